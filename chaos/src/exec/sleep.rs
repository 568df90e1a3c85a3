//! Waiting for a virtual instant.
//!
//! **Invariants.** It is over by the clock of its life, whose rate may change meanwhile. Its timer goes with it; no waker is
//! called or dropped while the state is locked.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::{Life, Sim};

/// Resolves at a virtual instant.
#[derive(Debug)]
pub struct Sleep {
    pub(super) sim: Sim,
    pub(super) life: Life,
    pub(super) local_nanos: u64,
    pub(super) deadline_nanos: u64,
    pub(super) timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.sim.state();
        if state.now_nanos >= this.deadline_nanos {
            if state.life(this.life).clock_nanos(state.now_nanos) >= this.local_nanos {
                return Poll::Ready(());
            }
            // The clock has slowed down meanwhile: a new timer.
            let (sim, life, local) = (this.sim.clone(), this.life, this.local_nanos);
            let spent = this.timer.take().and_then(|timer| state.timers.remove(&timer));
            drop(state);
            drop(spent);
            this.deadline_nanos = sim.true_nanos(life, local);
            state = this.sim.state();
        }
        let timer = *this.timer.get_or_insert_with(|| {
            state.next_timer += 1;
            (this.deadline_nanos, state.next_timer)
        });
        let replaced = state.timers.insert(timer, context.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let waker = self.sim.state().timers.remove(&timer);
            drop(waker);
        }
    }
}
