//! The store's directory: lock, pointer to the present generation, tidying.
//!
//! **Invariants.** Only the holder of the lock changes anything. [`Directory::point_at`] is the one place where
//! content changes hands. Tidying removes only what nothing refers to.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use pacsvault_ports::{crash, kv::KvError};

use crate::{error, failed};

const CURRENT: &str = "CURRENT";
const CURRENT_PART: &str = "CURRENT.part";
const LOCK: &str = "LOCK";
const CHECKPOINTS: &str = "checkpoints";
const INCOMING: &str = "incoming";
const CREATING: &str = "creating ";
const STEP: &str = "opening its directory";

/// What `CURRENT` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pointer {
    /// The directory is new.
    Absent,
    /// The first generation was begun and not finished; nothing was ever acknowledged from it.
    Creating(u64),
    /// The content is here.
    At(u64),
}

/// The directory of one store, locked by this process.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if needed, and locks it until drop.
    pub(crate) fn open(path: &Path) -> Result<Self, KvError> {
        fs::create_dir_all(path.join(CHECKPOINTS)).map_err(failed(STEP))?;
        fs::create_dir_all(path.join(INCOMING)).map_err(failed(STEP))?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.map_err(failed(STEP))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(error(STEP, format!("{} is in use by another process", path.display())));
            }
            Err(TryLockError::Error(reason)) => return Err(failed(STEP)(reason)),
        }
        sync_dir(path).map_err(failed(STEP))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).map_err(failed(STEP))?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// [`Directory::open`] for a store that must be there: an empty or absent directory is an error and stays as it is.
    pub(crate) fn reopen(path: &Path) -> Result<Self, KvError> {
        match path.join(CURRENT).try_exists() {
            Ok(true) => Self::open(path),
            Ok(false) => Err(gone(path)),
            Err(reason) => Err(failed(STEP)(reason)),
        }
    }

    /// Where a generation lives.
    pub(crate) fn generation(&self, number: u64) -> PathBuf {
        self.path.join(format!("gen-{number:08}"))
    }

    /// Where checkpoint `number` lives.
    pub(crate) fn checkpoint(&self, number: u64) -> PathBuf {
        self.path.join(CHECKPOINTS).join(number.to_string())
    }

    /// Where the files of an install known by `id` are received. Ids are any text, so their digest is the name.
    pub(crate) fn incoming(&self, id: &str) -> PathBuf {
        self.path.join(INCOMING).join(blake3::hash(id.as_bytes()).to_hex().as_str())
    }

    /// Reads the pointer.
    pub(crate) fn pointer(&self) -> Result<Pointer, KvError> {
        let text = match fs::read_to_string(self.path.join(CURRENT)) {
            Ok(text) => text,
            Err(reason) if reason.kind() == ErrorKind::NotFound => return self.absent(),
            Err(reason) => return Err(failed(STEP)(reason)),
        };
        let number = |text: &str| text.strip_suffix('\n')?.strip_prefix("gen-")?.parse().ok();
        let pointer = match text.strip_prefix(CREATING) {
            Some(text) => number(text).map(Pointer::Creating),
            None => number(&text).map(Pointer::At),
        };
        pointer
            .ok_or_else(|| error(STEP, format!("{CURRENT} is damaged: it reads {text:?}; restore or wipe this node")))
    }

    /// Without a pointer there must be no content either: to start empty beside it would forget what was promised.
    fn absent(&self) -> Result<Pointer, KvError> {
        match self.generations()?.first() {
            None => Ok(Pointer::Absent),
            Some(_) => Err(error(STEP, format!("{CURRENT} is missing beside content; restore or wipe this node"))),
        }
    }

    /// Makes `CURRENT` say that the content is in generation `number`, or is being created there. Durable on return.
    pub(crate) fn point_at(&self, pointer: Pointer) -> Result<(), KvError> {
        let text = match pointer {
            Pointer::Absent => return Err(error(STEP, "nothing to point at")),
            Pointer::Creating(number) => format!("{CREATING}gen-{number:08}\n"),
            Pointer::At(number) => format!("gen-{number:08}\n"),
        };
        let part = self.path.join(CURRENT_PART);
        let publish = || -> io::Result<()> {
            // CRASH(kv.1): the part may be torn; it is removed at the next open, `CURRENT` is untouched.
            crash::point("kv.1");
            let mut file = File::create(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // CRASH(kv.2): before the rename is durable the old pointer may return. Its generation still exists: it is
            // removed only after this function returned.
            crash::point("kv.2");
            fs::rename(&part, self.path.join(CURRENT))?;
            // CRASH(kv.3): from here on the new pointer stays.
            crash::point("kv.3");
            sync_dir(&self.path)
        };
        publish().map_err(failed("replacing its content"))
    }

    /// Removes what nothing refers to: other generations, checkpoints of former processes, torn parts. Installs that
    /// were cut short stay, to be resumed.
    pub(crate) fn tidy(&self, present: u64) -> Result<(), KvError> {
        // CRASH(kv.4): removal may be cut short anywhere; the rest is removed at the next open.
        for number in self.generations()? {
            crash::point("kv.4");
            if number != present {
                remove_dir(&self.generation(number)).map_err(failed(STEP))?;
            }
        }
        crash::point("kv.4");
        remove_dir(&self.path.join(CHECKPOINTS)).map_err(failed(STEP))?;
        crash::point("kv.4");
        fs::create_dir(self.path.join(CHECKPOINTS)).map_err(failed(STEP))?;
        match fs::remove_file(self.path.join(CURRENT_PART)) {
            Err(reason) if reason.kind() != ErrorKind::NotFound => Err(failed(STEP)(reason)),
            _ => Ok(()),
        }
    }

    /// Keeps the install in `keep` and discards all others; makes `keep` if it is new.
    pub(crate) fn begin_incoming(&self, keep: &Path) -> io::Result<()> {
        let parent = self.path.join(INCOMING);
        for entry in fs::read_dir(&parent)? {
            let path = entry?.path();
            if path != keep {
                remove_dir(&path)?;
            }
        }
        fs::create_dir_all(keep)?;
        sync_dir(&parent)
    }

    /// Moves a verified, synced install to its place as generation `number`. Not yet pointed at.
    pub(crate) fn adopt(&self, incoming: &Path, number: u64) -> io::Result<PathBuf> {
        let target = self.generation(number);
        remove_dir(&target)?;
        // CRASH(kv.5): the moved directory is unreferenced, and removed at the next open; the sender sends again.
        crash::point("kv.5");
        fs::rename(incoming, &target)?;
        sync_dir(&self.path.join(INCOMING))?;
        sync_dir(&self.path)?;
        Ok(target)
    }

    fn generations(&self) -> Result<Vec<u64>, KvError> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed(STEP))? {
            let name = entry.map_err(failed(STEP))?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("gen-")?.parse().ok()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// The error of a store that was there once.
pub(crate) fn gone(path: &Path) -> KvError {
    error(STEP, format!("there is no store in {}, where there was one", path.display()))
}

/// Makes names in `path` durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a directory with all in it; fine if absent.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(reason) if reason.kind() != ErrorKind::NotFound => Err(reason),
        _ => Ok(()),
    }
}
