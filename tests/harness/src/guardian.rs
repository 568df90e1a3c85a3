//! A shell that outlives this process by as long as cleaning up after it takes.
//!
//! **Invariants.** It acts when its standard input ends, which happens however this process ends, also by SIGKILL. No child of
//! this process holds that pipe open: pipes of the standard library are not inherited. A keyboard's interrupt, which goes to
//! the whole group of a process, does not reach it.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// Kills the nodes whose configuration is below its argument, a folder, and unmounts what is mounted under their volumes.
const CLUSTER: &str = "for at in /proc/[0-9]*; do \
    case $(tr '\\0' ' ' <\"$at/cmdline\") in *\" --config $1/\"*) kill -9 \"${at#/proc/}\";; esac; done 2>/dev/null; \
    for volume in \"$1\"/*/volume; do umount -l \"$volume\"; done 2>/dev/null";

/// Waits for the end of this process, and cleans up after it.
pub struct Guardian(Child);

impl Guardian {
    /// Has `script` run with `arguments`, as `$1` and so on, once this process ends or the guardian is dropped.
    ///
    /// # Errors
    /// There is no shell.
    pub fn post<'a>(script: &str, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Self> {
        let whole = format!("read -r word && exit 0; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &whole, "guardian"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self(command.spawn().context("cannot start the shell that cleans up after this process")?))
    }

    /// One for the cluster in `dir`.
    ///
    /// # Errors
    /// There is no shell.
    pub fn of_cluster(dir: &Path) -> anyhow::Result<Self> {
        Self::post(CLUSTER, [dir.to_str().context("the cluster's folder has a strange name")?])
    }

    /// Sends it away: there is nothing left to clean up, or all is to stay.
    pub fn dismiss(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // One that is gone already needs no word.
            let _ = pipe.write_all(b"dismissed\n");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nothing to be done about a shell that failed.
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOUCH: &str = "touch \"$1\"";

    #[test]
    fn it_acts_when_it_is_left_and_not_when_it_is_dismissed() -> anyhow::Result<()> {
        let dir = std::env::temp_dir().join(format!("guardian-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let (left, kept) = (dir.join("it was left"), dir.join("kept"));
        drop(Guardian::post(TOUCH, [left.to_str().context("plain")?])?);
        let mut dismissed = Guardian::post(TOUCH, [kept.to_str().context("plain")?])?;
        dismissed.dismiss();
        drop(dismissed);
        assert!(left.exists() && !kept.exists());
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }
}
