//! The `Env` port for one life of one simulated node.
//!
//! **Invariants.** Whatever a node starts through its `SimEnv` belongs to its life, whichever task calls. A dead life's
//! `SimEnv` starts nothing.

use std::{sync::Arc, time::Duration};

use pacsvault_core::ids::WallMillis;
use pacsvault_ports::{
    BoxFuture,
    env::{Env, Job, MonoTime},
};

use crate::exec::{Life, Sim};

/// How long blocking work of a node takes, in microseconds; changed by the slow-disk fault.
#[derive(Debug)]
pub struct WorkSpeed {
    range_micros: std::sync::atomic::AtomicU64,
}

impl WorkSpeed {
    /// Work takes up to `max_micros`.
    pub fn new(max_micros: u64) -> Arc<Self> {
        Arc::new(Self { range_micros: max_micros.into() })
    }

    /// Changes the longest duration.
    pub fn set(&self, max_micros: u64) {
        self.range_micros.store(max_micros, std::sync::atomic::Ordering::Relaxed);
    }

    fn max_micros(&self) -> u64 {
        self.range_micros.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Clock, randomness and tasks of one life.
#[derive(Debug, Clone)]
pub struct SimEnv {
    sim: Sim,
    life: Life,
    speed: Arc<WorkSpeed>,
}

impl SimEnv {
    /// The environment of `life`.
    pub fn new(sim: Sim, life: Life, speed: Arc<WorkSpeed>) -> Self {
        Self { sim, life, speed }
    }
}

impl Env for SimEnv {
    fn now(&self) -> MonoTime {
        MonoTime(Duration::from_nanos(self.sim.life_nanos(self.life)))
    }

    fn wall(&self) -> WallMillis {
        WallMillis(self.sim.wall_millis(self.life))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.sim.sleep(self.life, duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.sim.spawn(self.life, task);
    }

    fn run_blocking(&self, job: Job) {
        let max = self.speed.max_micros();
        let delay = self.sim.random(|rng| rng.micros(max / 20, max));
        let sleep = self.sim.sleep(self.life, delay);
        self.sim.spawn(
            self.life,
            Box::pin(async move {
                sleep.await;
                job();
            }),
        );
    }

    fn random(&self) -> u64 {
        self.sim.random(crate::rng::SimRng::bits)
    }
}
