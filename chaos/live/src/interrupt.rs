//! Ctrl-C, SIGTERM and SIGHUP: the first one ends a run in order, the second one at once.
//!
//! **Invariants.** Nothing is interrupted in the middle of a change: who waits looks, and who was told lifts what is broken. What
//! the end at once leaves behind on this machine is cleaned up by guardians (`pacsvault_harness::Guardian`).

use std::{fmt, thread};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A signal that asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted {
    name: &'static str,
    number: u8,
}

impl Interrupted {
    /// Ctrl-C.
    pub const INTERRUPT: Self = Self { name: "SIGINT", number: 2 };
    /// The end as `kill` asks for it.
    pub const TERMINATE: Self = Self { name: "SIGTERM", number: 15 };
    /// The terminal is gone.
    pub const HANGUP: Self = Self { name: "SIGHUP", number: 1 };

    /// What the process ends with, as shells have it.
    pub fn exit_code(self) -> u8 {
        128 + self.number
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "interrupted by {}", self.name)
    }
}

impl std::error::Error for Interrupted {}

/// Tells whether the end was asked for.
#[derive(Debug, Clone)]
pub struct Interrupt(watch::Receiver<Option<Interrupted>>);

impl Interrupt {
    /// From now on the first signal is told and does nothing else, and the second one ends the process.
    ///
    /// # Errors
    /// Signals cannot be listened to.
    pub fn listen() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let (mut interrupt, mut terminate, mut hangup) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        drop(inside);
        let (tell, told) = watch::channel(None);
        let listen = async move {
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Interrupted::INTERRUPT,
                    _ = terminate.recv() => Interrupted::TERMINATE,
                    _ = hangup.recv() => Interrupted::HANGUP,
                };
                if tell.send_replace(Some(signal)).is_some() {
                    eprintln!("\n{signal} again: ending at once");
                    std::process::exit(signal.exit_code().into());
                }
                eprintln!("\n{signal}: lifting what is broken; once more ends at once");
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(listen))
            .context("cannot start the thread that listens to signals")?;
        Ok(Self(told))
    }

    /// One that never is, or was from the beginning.
    #[cfg(test)]
    pub fn fixed(told: Option<Interrupted>) -> Self {
        Self(watch::channel(told).1)
    }

    /// The first signal, if it came.
    pub fn told(&self) -> Option<Interrupted> {
        *self.0.borrow()
    }

    /// An error once the first signal came.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        self.told().map_or(Ok(()), Err)
    }

    /// `wanted`, unless the signal comes first.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub async fn or<T>(&self, wanted: impl Future<Output = T>) -> Result<T, Interrupted> {
        let mut told = self.0.clone();
        let come = async {
            match told.wait_for(Option::is_some).await {
                Ok(signal) => signal.unwrap_or(Interrupted::TERMINATE),
                // Nobody listens any more: it never comes.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            signal = come => Err(signal),
            done = wanted => Ok(done),
        }
    }
}
