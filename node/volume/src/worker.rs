//! The async handle of a volume: queues writes, lets a few blocking jobs drain them with group commit, runs reads beside.
//!
//! **Invariants.** At most [`LANES`] writing jobs run at once; each takes everything that waits, up to a batch, and answers
//! it after one sync. While something waits, a job runs. What waits is bounded by [`WAITING_MAX`] and
//! [`WAITING_BYTES_MAX`]; beyond that callers are refused at once. Dropping a future does not undo its write.
//!
//! Nothing here knows a runtime: jobs run under [`pacsvault_ports::env::Env::run_blocking`], in the simulator inline.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::channel::oneshot;
use pacsvault_core::{
    ids::{LogIndex, VolumeId},
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    env::{SharedEnv, blocking},
    peer::{ShardData, VolumeStatus},
};

use crate::{
    compact::Compacted,
    error::Error,
    store::{Done, Op, Purpose, Store, Verified},
    writer::BATCH_BYTES_MAX,
};

/// Writing jobs at once. The store allows one to write while another syncs, but measured, a second lane takes small batches
/// away from the first and gained nothing: 8 writers made 1.8 GB/s with two, 2.2 GB/s with one (medians of 3, busy machine).
pub const LANES: usize = 1;
/// Most writes that wait: 4096 shards of 16 KiB are 64 MiB.
pub const WAITING_MAX: usize = 4096;
/// Most bytes that wait: a second of a slow disk.
pub const WAITING_BYTES_MAX: u64 = 128 << 20;
/// Most ops in one batch: bounds the records that one crash can leave unproven.
const BATCH_OPS_MAX: usize = 1024;

struct Waiting {
    op: Op,
    bytes: u64,
    answer: oneshot::Sender<Result<Done, Error>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: u64,
    jobs: usize,
}

struct Shared {
    store: Arc<Store>,
    env: SharedEnv,
    queue: Mutex<Queue>,
}

/// A volume in use. Clones are the same volume.
#[derive(Clone)]
pub struct Volume {
    shared: Arc<Shared>,
}

/// A job's claim on a lane; ends with the job, even if it is dropped unrun.
struct Lane {
    shared: Arc<Shared>,
    claimed: bool,
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.claimed {
            self.shared.queue().jobs -= 1;
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume {
    /// A handle to `store` that works under `env`.
    pub fn new(store: Store, env: SharedEnv) -> Self {
        Self { shared: Arc::new(Shared { store: Arc::new(store), env, queue: Mutex::default() }) }
    }

    /// The store itself, for blocking callers such as sweeps.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// Which volume.
    pub fn id(&self) -> VolumeId {
        self.shared.store.volume()
    }

    /// Writes a shard; the answer means that it is durable. Repeating it is safe.
    pub fn put(
        &self,
        header: ShardHeader,
        data: Bytes,
        purpose: Purpose,
    ) -> BoxFuture<'static, Result<DurableShard, Error>> {
        let volume = self.id();
        let answer = self.submit(Op::Put { header, data, purpose });
        Box::pin(async move {
            match answer.await? {
                Done::Stored(durable) => Ok(durable),
                Done::Deleted(_) => Err(Error::Closed { volume }),
            }
        })
    }

    /// Deletes shards, as log entry `authority` allows; says how many were held. Repeating it is safe.
    pub fn delete(&self, ids: Vec<ShardId>, authority: LogIndex) -> BoxFuture<'static, Result<u64, Error>> {
        let volume = self.id();
        let answer = self.submit(Op::Delete { ids, authority });
        Box::pin(async move {
            match answer.await? {
                Done::Deleted(count) => Ok(count),
                Done::Stored(_) => Err(Error::Closed { volume }),
            }
        })
    }

    /// Reads and verifies the chunks that hold a range of a shard.
    pub fn get(&self, id: ShardId, offset_bytes: u64, len_bytes: u64) -> BoxFuture<'static, Result<ShardData, Error>> {
        self.beside(move |store| store.read(id, offset_bytes, len_bytes))
    }

    /// Ids held, in order, after `after`; at most `limit`.
    pub fn list(&self, after: Option<ShardId>, limit: usize) -> BoxFuture<'static, Result<Vec<ShardId>, Error>> {
        self.beside(move |store| Ok(store.list(after, limit)))
    }

    /// Proves a shard from the device; see [`Store::verify`].
    pub fn verify(&self, id: ShardId) -> BoxFuture<'static, Result<Verified, Error>> {
        self.beside(move |store| store.verify(id))
    }

    /// A bounded piece of compaction; see [`Store::compact_step`].
    pub fn compact_step(&self, bytes_max: u64) -> BoxFuture<'static, Result<Compacted, Error>> {
        self.beside(move |store| store.compact_step(bytes_max))
    }

    /// Looks at heads and marks of segments, and mends them; see [`Store::mend_guides`].
    pub fn mend_guides(&self) -> BoxFuture<'static, Result<u64, Error>> {
        self.beside(Store::mend_guides)
    }

    /// A note saved before, if it is whole; see [`Store::load_note`].
    pub fn load_note(&self, name: &'static str) -> BoxFuture<'static, Result<Option<Vec<u8>>, Error>> {
        self.beside(move |store| Ok(store.load_note(name)))
    }

    /// Saves a note durably; see [`Store::save_note`].
    pub fn save_note(&self, name: &'static str, bytes: Vec<u8>) -> BoxFuture<'static, Result<(), Error>> {
        self.beside(move |store| store.save_note(name, &bytes))
    }

    /// Brings the room that [`Volume::status`] tells up to date; see [`Store::look_for_room`].
    pub fn look_for_room(&self) -> BoxFuture<'static, Result<(), Error>> {
        self.beside(Store::look_for_room)
    }

    /// What compaction can get back; see [`Store::dead_bytes`]. Never blocks for long.
    pub fn dead_bytes(&self) -> u64 {
        self.shared.store.dead_bytes()
    }

    /// How the volume is; never blocks for long.
    pub fn status(&self) -> VolumeStatus {
        self.shared.store.status()
    }

    /// Runs `work` on a blocking thread.
    fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let store = shared.store.clone();
            let volume = store.volume();
            let done = blocking(&*shared.env, move || work(&store)).await;
            done.unwrap_or(Err(Error::Closed { volume }))
        })
    }

    /// Queues an op at once, in the order of calls; the future only waits for its answer.
    fn submit(&self, op: Op) -> impl Future<Output = Result<Done, Error>> + Send + 'static {
        let volume = self.id();
        let (answer, answered) = oneshot::channel();
        let bytes = match &op {
            Op::Put { data, .. } => data.len() as u64,
            Op::Delete { ids, .. } => 40 * ids.len() as u64,
        };
        let refused = {
            let mut queue = self.shared.queue();
            let waiting = queue.waiting.len();
            let full = waiting >= WAITING_MAX || (waiting > 0 && queue.bytes + bytes > WAITING_BYTES_MAX);
            if !full {
                queue.bytes += bytes;
                queue.waiting.push_back(Waiting { op, bytes, answer });
            }
            full.then_some(Error::Busy { volume, waiting })
        };
        if refused.is_none() {
            self.start_job();
        }
        async move {
            match refused {
                Some(error) => Err(error),
                None => answered.await.unwrap_or(Err(Error::Closed { volume })),
            }
        }
    }

    fn start_job(&self) {
        {
            let mut queue = self.shared.queue();
            if queue.jobs >= LANES || queue.waiting.is_empty() {
                return;
            }
            queue.jobs += 1;
        }
        let lane = Lane { shared: self.shared.clone(), claimed: true };
        self.shared.env.run_blocking(Box::new(move || drain(lane)));
    }
}

/// Writes until nothing waits.
fn drain(mut lane: Lane) {
    while let Some(batch) = next_batch(&mut lane) {
        let shared = &lane.shared;
        let (ops, answers): (Vec<Op>, Vec<_>) = batch.into_iter().map(|waiting| (waiting.op, waiting.answer)).unzip();
        let results = shared.store.commit(ops);
        for (answer, result) in answers.into_iter().zip(results) {
            // The caller may have given up; the shard is durable all the same, and a retry will find it.
            let _ = answer.send(result);
        }
        if shared.store.wants_spare() {
            let store = shared.store.clone();
            shared.env.run_blocking(Box::new(move || {
                if let Err(error) = store.prepare() {
                    tracing::warn!(volume = %store.volume(), %error, "cannot prepare a segment");
                }
            }));
        }
    }
}

/// Takes what waits; when nothing does, gives the lane back in the same breath, so that whoever queues next starts a job.
fn next_batch(lane: &mut Lane) -> Option<Vec<Waiting>> {
    let mut queue = lane.shared.queue();
    let mut batch = Vec::new();
    let mut bytes = 0;
    while let Some(next) = queue.waiting.front() {
        if batch.len() >= BATCH_OPS_MAX || (!batch.is_empty() && bytes + next.bytes > BATCH_BYTES_MAX) {
            break;
        }
        bytes += next.bytes;
        batch.extend(queue.waiting.pop_front());
    }
    queue.bytes -= bytes;
    if batch.is_empty() {
        queue.jobs -= 1;
        lane.claimed = false;
    }
    (!batch.is_empty()).then_some(batch)
}
