//! Clock, randomness and tasks of one node.

use std::{sync::Arc, time::Duration};

use futures::future::{Either, select};
use pacsvault_core::ids::WallMillis;

use crate::BoxFuture;

/// A monotonic instant: time since this process (or simulated node) started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MonoTime(pub Duration);

/// A unit of blocking work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Clock, randomness and tasks. All work a node does runs through one of these, so that killing a simulated node
/// drops everything it was doing.
pub trait Env: Send + Sync + 'static {
    /// Monotonic time; never goes back.
    fn now(&self) -> MonoTime;
    /// Wall clock; may be wrong by hours and may jump. Only liveness may depend on it.
    fn wall(&self) -> WallMillis;
    /// Resolves after `duration` of monotonic time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// Runs a task of this node until it ends or the node stops.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Runs blocking work away from the async threads. In the simulator it runs at once, after a seeded delay.
    fn run_blocking(&self, job: Job);
    /// 64 random bits.
    fn random(&self) -> u64;
}

/// A shared environment.
pub type SharedEnv = Arc<dyn Env>;

/// Waits for `future` at most `limit`; `None` when the time is over (the future is dropped).
pub async fn timeout<T>(env: &dyn Env, limit: Duration, future: impl Future<Output = T> + Send) -> Option<T> {
    let sleep = env.sleep(limit);
    match select(std::pin::pin!(future), sleep).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(((), _)) => None,
    }
}

/// Runs `work` under [`Env::run_blocking`] and awaits its value; `None` when the node stops first.
pub async fn blocking<T: Send + 'static>(env: &dyn Env, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = futures::channel::oneshot::channel();
    env.run_blocking(Box::new(move || {
        // The waiter may have given up; the work is done all the same.
        let _ = done.send(work());
    }));
    result.await.ok()
}
