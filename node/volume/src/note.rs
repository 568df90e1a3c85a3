//! Notes: small durable byte strings beside the segments, for those who work on a volume, such as the cursor of its scrub.
//!
//! **Invariants.** A note is the old or the new one after every crash, never a mixture, and is only what was saved on this
//! volume: else it reads as absent. No promise rests on notes: who loses one begins anew. They are neither segments nor
//! spares, and no note keeps a volume from opening.
//!
//! `<name>.note`, the whole file:
//! ```text
//!   0  8 magic "PVSVNOTE"    8 2 version   10 2 reserved   12 4 bytes of the note (N)   16 16 volume id
//!  32  N the note            32+N 4 CRC32C of bytes 0..32+N
//! ```

use std::{io, sync::PoisonError};

use pacsvault_core::checksum::crc32c;

use crate::{
    crash,
    error::Error,
    store::{Store, to_usize},
};

/// Longest note.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 32;
const SUFFIX: &str = ".note";
const PART_SUFFIX: &str = ".note.tmp";
const MAGIC: &[u8; 8] = b"PVSVNOTE";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
const CRC_BYTES: usize = 4;

/// Whether a file is a note that was never finished.
pub(crate) fn is_part(name: &str) -> bool {
    name.strip_suffix(PART_SUFFIX).is_some_and(is_name)
}

fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    letters && (1..=NAME_BYTES_MAX).contains(&name.len())
}

impl Store {
    /// The note saved last under `name`; `None` when there is none, or it cannot be read, or is damaged.
    ///
    /// # Panics
    /// As [`Store::save_note`].
    pub fn load_note(&self, name: &str) -> Option<Vec<u8>> {
        assert!(is_name(name), "notes are named by 1 to 32 of a-z and '-'");
        let file = match self.disk.open(&format!("{name}{SUFFIX}")) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(volume = %self.volume(), name, %error, "cannot open a note");
                }
                return None;
            }
        };
        let len = file.len().ok().filter(|len| *len <= (HEAD_BYTES + NOTE_BYTES_MAX + CRC_BYTES) as u64)?;
        let mut bytes = vec![0; to_usize(len)];
        file.read_at(0, &mut bytes).ok()?;
        let note = self.decode_note(&bytes);
        if note.is_none() {
            tracing::warn!(volume = %self.volume(), name, "a note is damaged and counts as absent");
        }
        note
    }

    /// Saves a note; on `Ok` it survives power loss, and until then the one before does.
    /// # Errors
    /// [`Error::Full`] when there is no room, which changes nothing; [`Error::Write`], [`Error::Poisoned`].
    /// # Panics
    /// Unless `name` is 1 to 32 of `a-z` and `-`, and there are at most [`NOTE_BYTES_MAX`] bytes: both are the caller's choice.
    pub fn save_note(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        assert!(is_name(name), "notes are named by 1 to 32 of a-z and '-'");
        assert!(bytes.len() <= NOTE_BYTES_MAX, "notes have at most 64 KiB");
        let _one_at_a_time = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let (name, part) = (format!("{name}{SUFFIX}"), format!("{name}{PART_SUFFIX}"));
        let content = self.encode_note(bytes);
        // CRASH(volume.note.1): what a refused save left may stay; it is met again here and at the next open.
        crash::point("volume.note.1");
        match self.disk.remove(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.poison("remove an unfinished note", error));
            }
            Ok(()) | Err(_) => {}
        }
        // CRASH(volume.note.2): a part of any length and content may be left. Opening removes it.
        crash::point("volume.note.2");
        let file = match self.disk.create(&part, content.len() as u64) {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                return Err(Error::Full { volume: self.volume(), room_bytes: 0, reserve_bytes: 0 });
            }
            other => other.map_err(|error| self.poison("create a note", error))?,
        };
        file.write_at(0, &[&content]).map_err(|error| self.poison("write a note", error))?;
        file.sync_data().map_err(|error| self.poison("sync a note", error))?;
        // CRASH(volume.note.3): a whole part beside the note before. Opening removes it.
        crash::point("volume.note.3");
        self.disk.rename(&part, &name).map_err(|error| self.poison("name a note", error))?;
        // CRASH(volume.note.4): the name may be that of the note before or of this one: both are whole.
        crash::point("volume.note.4");
        self.disk.sync_names().map_err(|error| self.poison("sync the name of a note", error))
    }

    fn encode_note(&self, note: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + note.len() + CRC_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&u32::try_from(note.len()).expect("notes have at most 64 KiB").to_le_bytes());
        bytes.extend_from_slice(&self.volume().0);
        bytes.extend_from_slice(note);
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode_note(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
        let (head, note) = body.split_first_chunk::<HEAD_BYTES>()?;
        let sound = u32::from_le_bytes(*crc) == crc32c(body)
            && head.starts_with(MAGIC)
            && head[8..10] == VERSION.to_le_bytes()
            && head[12..16] == u32::try_from(note.len()).ok()?.to_le_bytes()
            && head[16..32] == self.volume().0;
        sound.then(|| note.to_vec())
    }
}
