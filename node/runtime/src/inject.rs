//! The fault port of a real process: steps of its wall clock, a slow disk, a sync that fails. For tests and game days only.
//!
//! It exists only in a process that was started with [`VARIABLE`] naming a file. That file holds one [`Inject`] as JSON and is
//! read again whenever it changes; replace it by a rename, so that no half of it is read.
//!
//! **Invariants.**
//! - Without the variable nothing is wrapped: no branch, no thread, no cost.
//! - What cannot be read or parsed at start is an [`Error`]: a typing error must not look like a healthy cluster. Later it is told
//!   once and the last good setting stays in force.
//! - Monotonic time is never touched: a wall clock may jump, time does not.
//! - Each change of `fail_sync` to true, seen while the process runs, fails exactly one sync, the next one of any of its volumes.
//!   The sync after it would succeed: whoever tries again and believes it is found out, as on Linux. What a file holds at start
//!   arms nothing, so that a node that is restarted does not lose one more volume.
//! - Nothing is made durable, or lost, that the disk below would not: a failed sync is not passed on, a delay only waits.

mod disk;

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pacsvault_core::ids::WallMillis;
use pacsvault_ports::{
    BoxFuture,
    disk::Disk,
    env::{Env, Job, MonoTime, SharedEnv},
};
use serde::{Deserialize, Serialize};

/// Names the file. Empty counts as not set.
pub const VARIABLE: &str = "PACSVAULT_INJECT";
/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Longest delay of one disk operation: longer than any patience of the cluster, short enough to survive a typing error.
const DELAY_MS_MAX: u64 = 60_000;
/// Furthest step of the wall clock: ten years.
const OFFSET_MS_MAX: u64 = 10 * 366 * 24 * 3_600_000;
/// Size of a file that is surely not ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What is wrong with this process now. Absent fields mean: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inject {
    /// Milliseconds added to the wall clock; at most ten years either way.
    pub wall_offset_ms: i64,
    /// Milliseconds that every read, write and sync of a volume takes longer; at most a minute.
    pub disk_delay_ms: u64,
    /// A change to true fails the next sync of a volume.
    pub fail_sync: bool,
}

impl Inject {
    /// Reads one from JSON.
    /// # Errors
    /// [`Error::Parse`]: no JSON, an unknown field, or a value out of its range.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if !text.trim_start().starts_with('{') {
            return Err(Error::Parse { why: "it is no JSON object".to_owned() });
        }
        let parsed: Self = serde_json::from_str(text).map_err(|error| Error::Parse { why: error.to_string() })?;
        if parsed.disk_delay_ms > DELAY_MS_MAX {
            return Err(Error::Parse { why: format!("disk_delay_ms is above {DELAY_MS_MAX}") });
        }
        if parsed.wall_offset_ms.unsigned_abs() > OFFSET_MS_MAX {
            return Err(Error::Parse { why: format!("wall_offset_ms is beyond {OFFSET_MS_MAX} either way") });
        }
        Ok(parsed)
    }
}

impl fmt::Display for Inject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "wall clock {:+} ms, disk {} ms slower, fail_sync {}",
            self.wall_offset_ms, self.disk_delay_ms, self.fail_sync
        )
    }
}

/// Why the fault port cannot be used. Correct the file, or start without [`VARIABLE`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not there or cannot be read.
    #[error("cannot read {}, which {VARIABLE} names", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds no setting.
    #[error(
        "this is no setting of the fault port: {why}; write for instance \
         {{\"wall_offset_ms\": 0, \"disk_delay_ms\": 0, \"fail_sync\": false}}"
    )]
    Parse {
        /// What does not fit.
        why: String,
    },
    /// The file holds no setting.
    #[error("cannot use {}, which {VARIABLE} names", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The system gives no thread to watch the file.
    #[error("cannot watch the file that {VARIABLE} names")]
    Watch(#[source] io::Error),
}

/// The faults in force in this process.
#[derive(Debug, Default)]
pub struct Faults {
    wall_offset_ms: AtomicI64,
    disk_delay_ms: AtomicU64,
    /// One sync is to fail.
    sync_fails: AtomicBool,
}

impl Faults {
    /// Begins to follow the file that [`VARIABLE`] names; `None` without it. Says so in the log, as loudly as it can.
    /// # Errors
    /// [`Error`]: there is no such file, or no setting in it.
    pub fn from_environment() -> Result<Option<Arc<Self>>, Error> {
        match env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
            Some(name) => Self::follow(Path::new(&name)).map(Some),
            None => Ok(None),
        }
    }

    /// Begins to follow `path`, until the last handle of the result is dropped.
    /// # Errors
    /// As [`Faults::from_environment`].
    pub fn follow(path: &Path) -> Result<Arc<Self>, Error> {
        let text = read(path)?;
        let setting = Inject::parse(&text).map_err(|source| content(path, source))?;
        let faults = Arc::new(Self::default());
        // As if it had been in force before: only a later change arms a failing sync.
        faults.apply(setting, setting);
        tracing::warn!(
            file = %path.display(), %setting,
            "FAULTS ARE INJECTED INTO THIS NODE because {VARIABLE} is set; never do this where studies matter"
        );
        let follower = Follower { path: path.to_owned(), faults: Arc::downgrade(&faults), setting, seen: Ok(text) };
        thread::Builder::new().name("fault-port".to_owned()).spawn(|| follower.run()).map_err(Error::Watch)?;
        Ok(faults)
    }

    /// `inner`, with this process's idea of the wall clock.
    pub fn env(self: &Arc<Self>, inner: SharedEnv) -> SharedEnv {
        Arc::new(FaultyEnv { faults: self.clone(), inner })
    }

    /// `inner`, with this process's idea of a disk.
    pub fn disk(self: &Arc<Self>, inner: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(disk::FaultyDisk::new(self.clone(), inner))
    }

    /// Puts `setting` in force after `before`.
    fn apply(&self, before: Inject, setting: Inject) {
        self.wall_offset_ms.store(setting.wall_offset_ms, Ordering::Relaxed);
        self.disk_delay_ms.store(setting.disk_delay_ms, Ordering::Relaxed);
        if setting.fail_sync != before.fail_sync {
            self.sync_fails.store(setting.fail_sync, Ordering::Release);
        }
    }

    /// Waits as long as the disk is slow. A delay that is taken back ends the waits that are under way.
    fn delay(&self) {
        let began = Instant::now();
        loop {
            let delay = Duration::from_millis(self.disk_delay_ms.load(Ordering::Relaxed));
            match delay.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => thread::sleep(left.min(POLL)),
                None => return,
            }
        }
    }

    /// Fails once for each time it was armed.
    fn sync(&self) -> io::Result<()> {
        if self.sync_fails.swap(false, Ordering::AcqRel) {
            tracing::warn!("a sync fails because the fault port says so");
            return Err(io::Error::other("the fault port failed this sync"));
        }
        Ok(())
    }
}

fn content(path: &Path, source: Error) -> Error {
    Error::Content { path: path.to_owned(), source: Box::new(source) }
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(io::Error::other(format!("{size} bytes are too many for it"))));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Reads the file again and again.
struct Follower {
    path: PathBuf,
    faults: Weak<Faults>,
    /// In force.
    setting: Inject,
    /// Last content, or why there was none: each is told once.
    seen: Result<String, String>,
}

impl Follower {
    fn run(mut self) {
        loop {
            thread::sleep(POLL);
            let Some(faults) = self.faults.upgrade() else { return };
            self.look(&faults);
        }
    }

    fn look(&mut self, faults: &Faults) {
        let found = read(&self.path).map_err(|error| chain(&error));
        if found == self.seen {
            return;
        }
        let parsed = found.clone().and_then(|text| Inject::parse(&text).map_err(|error| error.to_string()));
        self.seen = found;
        match parsed {
            Ok(setting) => {
                faults.apply(self.setting, setting);
                self.setting = setting;
                tracing::warn!(%setting, "the faults injected into this node changed");
            }
            Err(why) => {
                tracing::error!(file = %self.path.display(), in_force = %self.setting, "faults stay as they are: {why}");
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// An environment whose wall clock may be wrong.
struct FaultyEnv {
    faults: Arc<Faults>,
    inner: SharedEnv,
}

impl Env for FaultyEnv {
    fn now(&self) -> MonoTime {
        self.inner.now()
    }

    fn wall(&self) -> WallMillis {
        let offset = self.faults.wall_offset_ms.load(Ordering::Relaxed);
        WallMillis(self.inner.wall().0.saturating_add_signed(offset))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.inner.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }

    fn run_blocking(&self, job: Job) {
        self.inner.run_blocking(job);
    }

    fn random(&self) -> u64 {
        self.inner.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_whole_and_strictly() {
        let all = Inject::parse(r#"{"wall_offset_ms": -90000, "disk_delay_ms": 25, "fail_sync": true}"#);
        assert_eq!(all.expect("parsed"), Inject { wall_offset_ms: -90_000, disk_delay_ms: 25, fail_sync: true });
        assert_eq!(Inject::parse("{}").expect("parsed"), Inject::default());
        for wrong in ["", "[]", "null", "{\"disk_delay_ms\": -1}", "{\"disk_delay\": 1}", "{\"disk_delay_ms\": 60001}"]
        {
            let refused = Inject::parse(wrong).expect_err(wrong).to_string();
            assert!(refused.contains("wall_offset_ms"), "it shows what to write: {refused}");
        }
        assert!(Inject::parse("{\"wall_offset_ms\": -9223372036854775808}").is_err());
    }

    #[test]
    fn a_file_that_is_missing_or_senseless_at_start_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("inject.json");
        let missing = Faults::follow(&path).expect_err("refused");
        assert!(matches!(&missing, Error::Read { .. }) && missing.to_string().contains("inject.json"), "{missing}");
        fs::write(&path, "{\"fail_sink\": true}").expect("written");
        let senseless = Faults::follow(&path).expect_err("refused");
        assert!(chain(&senseless).contains("inject.json") && chain(&senseless).contains("fail_sink"), "{senseless}");
    }

    fn follower(path: &Path, faults: &Arc<Faults>, setting: Inject) -> Follower {
        Follower { path: path.to_owned(), faults: Arc::downgrade(faults), setting, seen: Ok(String::new()) }
    }

    #[test]
    fn what_is_senseless_or_gone_later_leaves_the_last_good_setting_in_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("inject.json");
        let faults = Arc::new(Faults::default());
        let mut follower = follower(&path, &faults, Inject::default());
        let mut look = |text: Option<&str>| {
            match text {
                Some(text) => fs::write(&path, text).expect("written"),
                None => fs::remove_file(&path).expect("removed"),
            }
            follower.look(&faults);
            (faults.wall_offset_ms.load(Ordering::Relaxed), faults.disk_delay_ms.load(Ordering::Relaxed))
        };
        assert_eq!(look(Some("{\"wall_offset_ms\": 5000, \"disk_delay_ms\": 7}")), (5000, 7));
        assert_eq!(look(Some("{\"wall_offset_ms\": 50")), (5000, 7));
        assert_eq!(look(None), (5000, 7));
        assert_eq!(look(Some("{\"disk_delay_ms\": 1}")), (0, 1));
    }

    #[test]
    fn each_change_of_fail_sync_to_true_fails_one_sync() {
        let (calm, failing) = (Inject::default(), Inject { fail_sync: true, ..Inject::default() });
        let faults = Faults::default();
        faults.apply(failing, failing);
        assert!(faults.sync().is_ok(), "what a file holds at start arms nothing");
        faults.apply(calm, failing);
        faults.apply(failing, Inject { disk_delay_ms: 1, ..failing });
        assert!(faults.sync().is_err(), "another change does not disarm it");
        assert!(faults.sync().is_ok(), "once");
        faults.apply(failing, calm);
        faults.apply(calm, failing);
        assert!(faults.sync().is_err(), "and again");
        faults.apply(failing, calm);
        faults.apply(calm, failing);
        faults.apply(failing, calm);
        assert!(faults.sync().is_ok(), "taken back before it struck");
    }

    #[tokio::test]
    async fn only_the_wall_clock_steps() {
        let faults = Arc::new(Faults::default());
        let real: SharedEnv = crate::TokioEnv::current();
        let env = faults.env(real.clone());
        for offset_ms in [-7_200_000, 7_200_000] {
            faults.apply(Inject::default(), Inject { wall_offset_ms: offset_ms, ..Inject::default() });
            let (now, wall) = (real.now(), real.wall().0);
            let shifted = env.wall().0;
            let expected = wall.saturating_add_signed(offset_ms);
            assert!((expected..expected + 10_000).contains(&shifted), "{shifted} is not about {expected}");
            assert!(env.now() >= now && env.now().0 - now.0 < Duration::from_secs(10));
        }
        faults.apply(Inject::default(), Inject { wall_offset_ms: i64::MIN, ..Inject::default() });
        assert_eq!(env.wall(), WallMillis(0), "no clock goes below its beginning");
    }
}
