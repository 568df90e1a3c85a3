//! Receiving a checkpoint: files grow in `incoming/`, and become a generation when all of them are proven whole.
//!
//! **Invariants.** Received bytes are not trusted: not after a crash (a file may hold zeros instead of its tail) and not
//! from the network. Only the digests at the end decide. Nothing of it is visible before the pointer moves.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::PathBuf,
    sync::Arc,
};

use pacsvault_ports::{
    crash,
    kv::{CheckpointFile, Install, InstallError, KvError},
};

use crate::{checkpoint::digest, directory::sync_dir, failed, store::Shared};

const STEP: &str = "installing a checkpoint";

pub(crate) struct RocksInstall {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl RocksInstall {
    /// Begins or resumes the install known by `id`.
    pub(crate) fn begin(shared: Arc<Shared>, id: &str) -> Result<Self, KvError> {
        let path = shared.directory().incoming(id);
        shared.directory().begin_incoming(&path).map_err(failed(STEP))?;
        Ok(Self { shared, path })
    }

    /// The path of a file by this name; names come from the network.
    fn file(&self, name: &str) -> Result<PathBuf, InstallError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 255 || name.starts_with('.') || !name.bytes().all(plain) {
            let name: String = name.chars().take(80).collect();
            return Err(InstallError::Unfit(format!("{name:?} is not a file name")));
        }
        Ok(self.path.join(name))
    }

    /// Proves every file, syncs it, and removes whatever else was received.
    fn verify(&self, files: &[CheckpointFile]) -> Result<(), InstallError> {
        for file in files {
            let path = self.file(&file.name)?;
            if file.len_bytes == 0 {
                // Nobody sends zero bytes, and RocksDB's checkpoints do hold an empty journal.
                OpenOptions::new().create(true).append(true).open(&path).map_err(failed(STEP))?;
            }
            let found = match digest(&path) {
                Ok(found) => found,
                Err(reason) if reason.kind() == ErrorKind::NotFound => {
                    return Err(InstallError::Unfit(format!("{:?} was not received", file.name)));
                }
                Err(reason) => return Err(failed(STEP)(reason).into()),
            };
            if found != (file.len_bytes, file.digest) {
                fs::remove_file(&path).map_err(failed(STEP))?;
                return Err(InstallError::Unfit(format!(
                    "{:?} is not the file that was announced; dropped",
                    file.name
                )));
            }
            // CRASH(kv.7): before all files are synced nothing points at them.
            crash::point("kv.7");
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed(STEP))?;
        }
        for entry in fs::read_dir(&self.path).map_err(failed(STEP))? {
            let entry = entry.map_err(failed(STEP))?;
            if !files.iter().any(|file| entry.file_name() == file.name.as_str()) {
                fs::remove_file(entry.path()).map_err(failed(STEP))?;
            }
        }
        Ok(sync_dir(&self.path).map_err(failed(STEP))?)
    }
}

impl Install for RocksInstall {
    fn received(&self, name: &str) -> Result<u64, InstallError> {
        match fs::metadata(self.file(name)?) {
            Ok(metadata) => Ok(metadata.len()),
            Err(reason) if reason.kind() == ErrorKind::NotFound => Ok(0),
            Err(reason) => Err(failed(STEP)(reason).into()),
        }
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let path = self.file(name)?;
        let received = self.received(name)?;
        if received != offset {
            return Err(InstallError::Unfit(format!("{name:?} has {received} bytes, not {offset}")));
        }
        // CRASH(kv.8): not synced: the tail may be lost (it is sent again) or wrong (the digest tells).
        crash::point("kv.8");
        let file = match OpenOptions::new().create(true).append(true).open(path) {
            // Beginning another install removes the directory of this one.
            Err(reason) if reason.kind() == ErrorKind::NotFound => {
                return Err(InstallError::Unfit("another install was begun".to_owned()));
            }
            file => file,
        };
        Ok(file.and_then(|mut file| file.write_all(bytes)).map_err(failed(STEP))?)
    }

    fn finish(self: Box<Self>, files: &[CheckpointFile]) -> Result<(), InstallError> {
        if files.is_empty() {
            return Err(InstallError::Unfit("it has no files".to_owned()));
        }
        self.verify(files)?;
        Ok(self.shared.replace(&self.path)?)
    }
}
