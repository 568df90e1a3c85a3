//! A watch channel: the latest value, and waiters woken in the order in which they began to wait.
//!
//! **Invariants.** `version` grows with every change. A waiter registers before it looks at the version, so that no
//! change passes between the look and the wait. A value lock is never held over a wake-up.

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    task::{Poll, Waker},
};

use openraft_rt::{OptionalSend, OptionalSync, RecvError, Watch, WatchReceiver, WatchSender, watch::SendError};

/// Watch channels.
#[derive(Debug)]
pub struct SimWatch;

#[derive(Debug)]
struct Waiting {
    wakers: Vec<(u64, Waker)>,
    next_waiter: u64,
    senders: usize,
    receivers: usize,
}

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<(u64, T)>,
    waiting: Mutex<Waiting>,
}

impl<T> Shared<T> {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, (u64, T)> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = {
            let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
            let changed = change(&mut value.1);
            value.0 += u64::from(changed);
            changed
        };
        if changed {
            self.wake_all();
        }
        changed
    }

    fn wake_all(&self) {
        let wakers = std::mem::take(&mut self.waiting().wakers);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Sets values.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the latest value.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The present value, locked against change.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, (u64, T)>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl Watch for SimWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let waiting = Waiting { wakers: Vec::new(), next_waiter: 0, senders: 1, receivers: 1 };
        let shared = Arc::new(Shared { value: RwLock::new((0, init)), waiting: Mutex::new(waiting) });
        (Sender(Arc::clone(&shared)), Receiver { shared, seen: 0 })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.waiting().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let left = {
            let mut waiting = self.0.waiting();
            waiting.senders -= 1;
            waiting.senders
        };
        if left == 0 {
            self.0.wake_all();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.waiting().receivers += 1;
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.waiting().receivers -= 1;
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<SimWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.waiting().receivers == 0 {
            return Err(SendError(value));
        }
        self.0.change(|present| {
            *present = value;
            true
        });
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.0.change(modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    fn subscribe(&self) -> Receiver<T> {
        self.0.waiting().receivers += 1;
        let seen = self.0.read().0;
        Receiver { shared: Arc::clone(&self.0), seen }
    }
}

/// Takes a waiter off the list when its wait ends, however it ends.
struct Registration<'a, T> {
    shared: &'a Shared<T>,
    waiter: u64,
}

impl<T> Drop for Registration<'_, T> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        if let Some(at) = waiting.wakers.iter().position(|(waiter, _)| *waiter == self.waiter) {
            let removed = waiting.wakers.remove(at);
            drop(waiting);
            drop(removed);
        }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<SimWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let waiter = {
            let mut waiting = self.shared.waiting();
            waiting.next_waiter += 1;
            waiting.next_waiter
        };
        let registration = Registration { shared: &self.shared, waiter };
        let seen = self.seen;
        let outcome = poll_fn(|context| {
            let closed = {
                let mut waiting = registration.shared.waiting();
                match waiting.wakers.iter_mut().find(|(known, _)| *known == waiter) {
                    Some((_, waker)) => waker.clone_from(context.waker()),
                    None => waiting.wakers.push((waiter, context.waker().clone())),
                }
                waiting.senders == 0
            };
            let version = registration.shared.read().0;
            if version != seen {
                Poll::Ready(Ok(version))
            } else if closed {
                Poll::Ready(Err(RecvError(())))
            } else {
                Poll::Pending
            }
        })
        .await;
        drop(registration);
        self.seen = outcome?;
        Ok(())
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = value.0;
        Ref(value)
    }
}
