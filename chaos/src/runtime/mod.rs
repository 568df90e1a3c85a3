//! openraft's `AsyncRuntime` on the simulator: the same tasks, clock and randomness as everything else.
//!
//! **Invariants.** Nothing here knows real time, threads or the process's randomness. Tasks inherit the life of the task
//! that spawns them. Channels and mutexes wake in first-in order; which woken task runs first is the seed's choice.
//! Tokio's oneshot, mpsc and mutex are plain data structures that need no Tokio runtime; its watch is not used because
//! it wakes in an order drawn from a thread-local generator.

mod channel;
mod instant;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    fmt, io,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use openraft_rt::{AsyncRuntime, Instant as _, OptionalSend};
use tokio::sync::oneshot;

pub use channel::{SimMpsc, SimMutex, SimOneshot};
pub use instant::SimInstant;
pub use watch::SimWatch;

use crate::{
    exec::{Sim, Sleep, panic_message},
    rng::SimRng,
};

/// The runtime. Inside a simulation it is only a name; standing alone it owns one (for openraft's own test suite).
pub struct SimRuntime(Sim);

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRuntime")
    }
}

impl Drop for SimRuntime {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Why a task gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It panicked.
    #[error("task panicked: {0}")]
    Panic(String),
    /// Its life ended first.
    #[error("task was dropped with its node")]
    Dropped,
}

/// A limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deadline has passed")]
pub struct Elapsed;

/// Waits for a task; dropping it lets the task run on.
#[derive(Debug)]
pub struct JoinHandle<T>(oneshot::Receiver<Result<T, JoinError>>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|received| received.unwrap_or(Err(JoinError::Dropped)))
    }
}

/// A future with a deadline. The future is polled first, so that it wins a tie.
#[derive(Debug)]
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

impl AsyncRuntime for SimRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SimRng;
    type Mpsc = SimMpsc;
    type Watch = SimWatch;
    type Oneshot = SimOneshot;
    type Mutex<T: OptionalSend + 'static> = SimMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (done, handle) = oneshot::channel();
        let task = async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                // A dropped handle means that nobody waits.
                Ok(value) => drop(done.send(Ok(value))),
                Err(payload) => {
                    let text = panic_message(payload.as_ref());
                    drop(done.send(Err(JoinError::Panic(text))));
                    std::panic::resume_unwind(payload);
                }
            }
        };
        Sim::current().spawn(Sim::current_life(), Box::pin(task));
        JoinHandle(handle)
    }

    fn sleep(duration: Duration) -> Sleep {
        Sim::current().sleep(Sim::current_life(), duration)
    }

    fn sleep_until(deadline: SimInstant) -> Sleep {
        Sim::current().sleep_until(Sim::current_life(), deadline.nanos())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        Self::timeout_at(SimInstant::now() + duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: SimInstant, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep_until(deadline) }
    }

    fn is_panic(error: &JoinError) -> bool {
        matches!(error, JoinError::Panic(_))
    }

    fn thread_rng() -> SimRng {
        Sim::current().random(SimRng::fork)
    }

    fn new(_threads: usize) -> Self {
        Self(Sim::new(0))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let sim = Sim::current();
        let delay = sim.random(|rng| rng.micros(20, 400));
        let handle = Self::spawn(async move {
            Self::sleep(delay).await;
            work()
        });
        async { handle.await.map_err(io::Error::other) }
    }
}
