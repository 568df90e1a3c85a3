//! A directory of a real file system as [`Disk`].
//!
//! **Invariants.**
//! - One process per directory: the lock file is held exclusively while the [`FileDisk`] or any of its files lives.
//! - Opening a file writes back and then drops what the kernel caches of it, so that recovery reads what the device holds,
//!   not what a failed sync of an earlier process left in memory.
//! - With direct writes, whole-sector writes go past the page cache from an aligned buffer; all others go through it.
//!   The kernel keeps the two coherent.
//! - An uncached read drops the pages before it reads, so that they come from the device, and after it, so that a scrub does
//!   not push out what clients read.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use pacsvault_ports::disk::{Disk, DiskFile, Space};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};

const LOCK_NAME: &str = "volume.lock";
/// What direct writes must be aligned to, in memory and in the file.
const DIRECT_ALIGN: usize = 4096;
/// Buffers kept for direct writes, each as large as the largest write so far: one per writing lane.
const BUFFERS_MAX: usize = 2;
/// Longest chunk of one direct write: 1 MiB keeps the copy within the second-level cache.
const DIRECT_BYTES_MAX: usize = 1 << 20;
/// The kernel takes at most so many parts at once.
const PARTS_MAX: usize = 1024;

/// How to use the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDiskOptions {
    /// Write whole sectors past the page cache, where the file system allows it.
    pub direct: bool,
}

impl Default for FileDiskOptions {
    fn default() -> Self {
        Self { direct: true }
    }
}

struct Shared {
    directory: PathBuf,
    options: FileDiskOptions,
    /// Locked for as long as it is open.
    _lock: File,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// The directory.
pub struct FileDisk {
    shared: Arc<Shared>,
}

struct OpenFile {
    shared: Arc<Shared>,
    file: File,
    direct: Option<File>,
}

fn during(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{step} {}: {error}", path.display()))
}

impl FileDisk {
    /// Takes a directory, which is created if absent.
    /// # Errors
    /// When it cannot be made or opened; `WouldBlock` when another process has it.
    pub fn open(directory: &Path, options: FileDiskOptions) -> io::Result<Self> {
        std::fs::create_dir_all(directory).map_err(during("create", directory))?;
        let path = directory.join(LOCK_NAME);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(during("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(during("another process uses this volume: cannot lock", &path))?;
        let directory = directory.to_owned();
        Ok(Self { shared: Arc::new(Shared { directory, options, _lock: lock, buffers: Mutex::default() }) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shared.directory.join(name)
    }

    fn handle(&self, path: &Path, file: File) -> Arc<dyn DiskFile> {
        // Some file systems have no direct writes; the page cache is right there, if slower.
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let direct = self.shared.options.direct.then(|| OpenOptions::new().write(true).custom_flags(flags).open(path));
        Arc::new(OpenFile { shared: self.shared.clone(), file, direct: direct.and_then(Result::ok) })
    }
}

impl Disk for FileDisk {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(during("create", &path))?;
        if len_bytes > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len_bytes).map_err(io::Error::from) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => file.set_len(len_bytes),
                other => other,
            }
            .map_err(during("allocate", &path))?;
        }
        Ok(self.handle(&path, file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(during("open", &path))?;
        rustix::fs::fdatasync(&file).map_err(io::Error::from).map_err(during("sync", &path))?;
        if let Err(error) = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed) {
            tracing::warn!(path = %path.display(), %error, "cannot drop cached pages");
        }
        Ok(self.handle(&path, file))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let directory = &self.shared.directory;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(during("list", directory))? {
            let entry = entry.map_err(during("list", directory))?;
            // Directories such as lost+found and names that are not text are not ours.
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK_NAME
                && entry.file_type().map_err(during("list", directory))?.is_file()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.path(from);
        std::fs::rename(&path, self.path(to)).map_err(during("rename", &path))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(during("remove", &path))
    }

    fn sync_names(&self) -> io::Result<()> {
        let directory = &self.shared.directory;
        File::open(directory).and_then(|file| file.sync_all()).map_err(during("sync directory", directory))
    }

    fn space(&self) -> io::Result<Space> {
        let directory = &self.shared.directory;
        let stat = rustix::fs::statvfs(directory).map_err(io::Error::from).map_err(during("measure", directory))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) })
    }
}

impl OpenFile {
    fn write_cached(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        for group in parts.chunks(PARTS_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
            let mut left = &mut slices[..];
            while !left.is_empty() {
                match rustix::io::pwritev(&self.file, left, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        offset += count as u64;
                        IoSlice::advance_slices(&mut left, count);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Copies `parts` through an aligned buffer, piece by piece.
    fn write_direct(&self, direct: &File, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let pool = || self.shared.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = pool().pop().unwrap_or_else(|| vec![0; DIRECT_BYTES_MAX + DIRECT_ALIGN]);
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGN);
        let mut filled = 0;
        let mut result = Ok(());
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        'parts: for part in parts {
            let mut part = *part;
            while !part.is_empty() {
                let count = part.len().min(DIRECT_BYTES_MAX - filled);
                buffer[start + filled..start + filled + count].copy_from_slice(&part[..count]);
                part = &part[count..];
                filled += count;
                done += count;
                if filled == DIRECT_BYTES_MAX || done == total {
                    result = direct.write_all_at(&buffer[start..start + filled], offset);
                    if result.is_err() {
                        break 'parts;
                    }
                    offset += filled as u64;
                    filled = 0;
                }
            }
        }
        let mut buffers = pool();
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
        result
    }
}

impl DiskFile for OpenFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_at_uncached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // The kernel drops whole pages only, so the range is widened to pages; it drops no page that is not written back.
        let page = DIRECT_ALIGN as u64;
        let start = offset / page * page;
        let len = NonZeroU64::new((offset + buffer.len() as u64).next_multiple_of(page) - start);
        let drop_cached = || {
            // Refused by some file systems, which then read through their cache.
            let _ = rustix::fs::fadvise(&self.file, start, len, Advice::DontNeed);
        };
        drop_cached();
        self.file.read_exact_at(buffer, offset)?;
        drop_cached();
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let whole = total.is_multiple_of(DIRECT_ALIGN) && offset.is_multiple_of(DIRECT_ALIGN as u64);
        match &self.direct {
            Some(direct) if whole && total > 0 => self.write_direct(direct, offset, parts),
            Some(_) | None => self.write_cached(offset, parts),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        rustix::fs::fdatasync(&self.file).map_err(io::Error::from)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }
}
