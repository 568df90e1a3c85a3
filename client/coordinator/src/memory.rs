//! Memory of all transfers of one coordinator, as permits.
//!
//! **Invariants.** Permits out never exceed the bytes given to [`Memory::new`] (rounded to KiB). Reads and writes have
//! pools of their own, so that neither can starve the other. Nobody waits for ever:
//! - A download waits only while it holds nothing ([`Memory::read`]); fetching ahead never waits ([`Memory::try_read`]).
//! - An upload grows its hold as its bytes arrive and so waits while it holds something. It waits for the next step or for
//!   all the rest of its stripe from the reserve, whichever comes first. Who has the rest waits for no memory any more,
//!   only for its own client (bounded by the server's silence limit) and for volumes (bounded by the shard deadline), so
//!   the reserve always comes back, and with it the turn of everybody who waits.

use std::sync::Arc;

use futures::future::{Either, select};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Content bytes that the first byte of a stripe makes room for: 2 000 idle uploads at 4+2 (96 KiB each with parity)
/// fit into three eighths of 512 MiB.
const FIRST_STEP_BYTES: u64 = 64 << 10;

/// Permits of one KiB each.
struct Pool {
    permits: Arc<Semaphore>,
    kib: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        // A pool of nothing would never let anything through.
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        Self { permits: Arc::new(Semaphore::new(usize::try_from(kib).unwrap_or(Semaphore::MAX_PERMITS))), kib }
    }

    /// All of the pool at most: whatever is larger goes alone.
    fn clamped(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.kib)
    }

    async fn acquire(&self, kib: u32) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_many_owned(kib).await.expect("the semaphore is never closed")
    }
}

/// The memory of all transfers.
pub struct Memory {
    writes: Pool,
    reserve: Pool,
    reads: Pool,
}

/// What one stripe being written holds.
#[derive(Default)]
pub struct WriteHold {
    steps: Option<OwnedSemaphorePermit>,
    rest: Option<OwnedSemaphorePermit>,
}

impl WriteHold {
    /// True before the first byte.
    pub fn is_empty(&self) -> bool {
        self.steps.is_none() && self.rest.is_none()
    }
}

/// What one stripe being read holds.
pub struct ReadHold(OwnedSemaphorePermit);

impl ReadHold {
    /// Gives back all but what `bytes` need.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
        drop(self.0.split(self.0.num_permits().saturating_sub(keep)));
    }

    /// Two holds of which the first is for `bytes`, if there are as many.
    pub fn split_at(mut self, bytes: u64) -> (Self, Self) {
        let keep = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
        let rest = self.0.num_permits().saturating_sub(keep);
        let rest = self.0.split(rest).expect("no more than it has");
        (self, Self(rest))
    }
}

impl Memory {
    /// Memory of `bytes` in all: half for reads, three eighths for writes, one eighth for finishing stripes.
    pub fn new(bytes: u64) -> Self {
        Self { writes: Pool::new(bytes / 8 * 3), reserve: Pool::new(bytes / 8), reads: Pool::new(bytes / 2) }
    }

    /// Grows `hold` to `to_bytes` of a stripe that may come to need `full_bytes`.
    pub async fn grow(&self, hold: &mut WriteHold, to_bytes: u64, full_bytes: u64) {
        let held = hold.steps.as_ref().map_or(0, |steps| u32::try_from(steps.num_permits()).unwrap_or(u32::MAX));
        let wanted = self.writes.clamped(to_bytes);
        if hold.rest.is_some() || wanted <= held {
            return;
        }
        let step = std::pin::pin!(self.writes.acquire(wanted - held));
        let rest_bytes = full_bytes.saturating_sub(u64::from(held) << 10);
        let rest = std::pin::pin!(self.reserve.acquire(self.reserve.clamped(rest_bytes)));
        match select(step, rest).await {
            Either::Left((step, _)) => match &mut hold.steps {
                Some(steps) => steps.merge(step),
                None => hold.steps = Some(step),
            },
            Either::Right((rest, _)) => hold.rest = Some(rest),
        }
    }

    /// Waits for memory to read `bytes`. Only for callers that hold none.
    pub async fn read(&self, bytes: u64) -> ReadHold {
        ReadHold(self.reads.acquire(self.reads.clamped(bytes)).await)
    }

    /// Memory to read `bytes` ahead, if half of the pool stays free for those who wait.
    pub fn try_read(&self, bytes: u64) -> Option<ReadHold> {
        let kib = self.reads.clamped(bytes);
        let enough = self.reads.permits.available_permits() >= usize::try_from(kib + self.reads.kib / 2).ok()?;
        let permit = enough.then(|| self.reads.permits.clone().try_acquire_many_owned(kib).ok()).flatten();
        permit.map(ReadHold)
    }
}

/// Content bytes to make room for when `filled` are there of at most `most`: doubled each time, so that the copies of a
/// growing buffer stay below its final size.
pub fn room_for(filled: u64, most: u64) -> u64 {
    filled.next_power_of_two().max(FIRST_STEP_BYTES).min(most).max(filled)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn grown(memory: &Memory, hold: &mut WriteHold, to_bytes: u64) -> bool {
        memory.grow(hold, to_bytes, 24 * MIB).now_or_never().is_some()
    }

    #[test]
    fn idle_uploads_block_nobody() {
        let memory = Memory::new(512 * MIB);
        let mut idle: Vec<WriteHold> = (0..1_000).map(|_| WriteHold::default()).collect();
        assert!(idle.iter_mut().all(|hold| grown(&memory, hold, 96 << 10)));
        let mut busy = WriteHold::default();
        assert!(grown(&memory, &mut busy, 24 * MIB));
        assert!(memory.read(24 * MIB).now_or_never().is_some());
    }

    #[test]
    fn uploads_that_all_wait_for_their_next_step_end_one_after_the_other() {
        let memory = Memory::new(192 * MIB);
        let mut holds: Vec<WriteHold> = (0..72).map(|_| WriteHold::default()).collect();
        assert!(holds.iter_mut().all(|hold| grown(&memory, hold, MIB)));
        assert_eq!(memory.writes.permits.available_permits(), 0);
        // Nothing is left for a step, but each in turn gets all the rest, and needs nothing more.
        while let Some(mut hold) = holds.pop() {
            assert!(grown(&memory, &mut hold, 2 * MIB) && grown(&memory, &mut hold, 24 * MIB));
        }
        assert_eq!(memory.writes.permits.available_permits(), 72 << 10);
        assert_eq!(memory.reserve.permits.available_permits(), 24 << 10);
    }

    #[test]
    fn writes_leave_reads_alone_and_a_read_gives_back_as_it_is_consumed() {
        let memory = Memory::new(8 * MIB);
        let mut all = WriteHold::default();
        assert!(grown(&memory, &mut all, 100 * MIB), "larger than the pool goes alone");
        let mut read = memory.read(4 * MIB).now_or_never().expect("has a pool of its own");
        assert!(memory.try_read(1).is_none());
        assert!(memory.read(1).now_or_never().is_none());
        read.shrink_to(MIB);
        assert_eq!(memory.reads.permits.available_permits(), 3 << 10);
        let (content, work) = read.split_at(MIB / 2);
        drop(work);
        assert!(memory.try_read(MIB).is_some());
        drop(content);
        assert_eq!(memory.reads.permits.available_permits(), 4 << 10);
    }

    #[test]
    fn room_doubles_up_to_what_may_come() {
        assert_eq!(room_for(1, 16 * MIB), 64 << 10);
        assert_eq!(room_for(1, 5), 5);
        assert_eq!(room_for(MIB + 1, 16 * MIB), 2 * MIB);
        assert_eq!(room_for(9 * MIB, 10 * MIB), 10 * MIB);
    }
}
