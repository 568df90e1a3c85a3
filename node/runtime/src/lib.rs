//! The [`Env`] port over tokio: clocks, tasks, threads and randomness of a real process. The only room, besides the
//! mains, that touches them.
//!
//! **Invariants.** Must be made inside a tokio runtime. Blocking work runs on tokio's blocking threads, never on those
//! that serve sockets. What a test does to this process comes in through [`inject`] and nowhere else.

pub mod inject;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pacsvault_core::ids::WallMillis;
use pacsvault_ports::{
    BoxFuture,
    env::{Env, Job, MonoTime},
};

/// The environment of this process.
pub struct TokioEnv {
    began: Instant,
    runtime: tokio::runtime::Handle,
}

impl TokioEnv {
    /// The environment of the tokio runtime that calls this.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), runtime: tokio::runtime::Handle::current() })
    }
}

/// The wall clock of this machine; 1970 if it claims to be before that.
pub fn wall_now() -> WallMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Env for TokioEnv {
    fn now(&self) -> MonoTime {
        MonoTime(self.began.elapsed())
    }

    fn wall(&self) -> WallMillis {
        wall_now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.runtime.spawn(task);
    }

    fn run_blocking(&self, job: Job) {
        self.runtime.spawn_blocking(job);
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}
