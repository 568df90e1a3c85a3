//! Small disks: memory file systems of a few megabytes, for running full. Needs root.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use pacsvault_harness::output;

const FILLER: &str = "filler";

/// A mounted file system; unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts `mib` MiB at `path`, which is made if needed. An error says why it cannot be done here.
    pub fn mount(path: &Path, mib: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={mib}m,mode=0755");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pacsvault-test"]).arg(path))?;
        Ok(Self { path: path.to_path_buf() })
    }

    /// Takes all the space that is left, as a neighbour on the same disk would.
    pub fn fill(&self) -> anyhow::Result<u64> {
        let mut file = fs::File::options().create(true).append(true).open(self.path.join(FILLER))?;
        let mut piece = vec![0xA5_u8; 1 << 20];
        let mut written = 0;
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(0) | Err(_) => piece.truncate(piece.len() / 2),
                Ok(count) => written += count as u64,
            }
        }
        Ok(written)
    }

    /// Gives that space back, if it was taken.
    pub fn relieve(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.path.join(FILLER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("cannot remove the filler"),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may hold it a moment longer.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
