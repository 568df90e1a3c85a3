//! The kv port in memory, with a disk that forgets.
//!
//! [`SimKvMedia`] is the disk: the harness owns it and it outlives the nodes. [`SimKvMedia::open`] gives a node its
//! store; every open ends the store opened before, as a lock file would. [`SimKvMedia::crash`] loses a random part of what
//! was not synced. It is also the model against which the real store is tested.
//!
//! **Invariants.**
//! - What survives a crash is a prefix of the batches written, and holds every batch that was synced or flushed.
//! - The same calls with the same seeds give the same content: no clock, no global randomness, no hash maps.
//! - A store of a former life, or one that failed, answers every call with an error.

mod install;
mod rows;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use pacsvault_ports::kv::{Batch, Change, Checkpoint, CheckpointFile, Durability, Install, Kv, KvError, Row, Rows};

use crate::install::{Incoming, SimInstall};

/// Content in order.
pub type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// What an injected failure says.
pub const INJECTED: &str = "injected failure";

/// Where an injected failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation has no effect.
    Before,
    /// The operation has its effect (not yet durable), but reports failure.
    After,
}

/// The disk of one simulated store. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimKvMedia {
    state: Arc<Mutex<State>>,
}

/// What is told of injected failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// An operation fails.
    Failed,
    /// A changing operation is begun in a life that has failed before: its caller believes in a second try.
    TriedAgain,
}

/// Called with each; it must not call the store.
pub type Struck = Arc<dyn Fn(Strike) + Send + Sync>;

#[derive(Default)]
struct State {
    /// What a crash leaves at least.
    durable: Content,
    /// What the process sees: `durable` with `pending` applied.
    visible: Content,
    /// Batches that a crash may lose, oldest first.
    pending: Vec<Batch>,
    incoming: Option<Incoming>,
    /// Grows at every open and crash; stores of an older life are dead.
    life: u64,
    /// Changing operations so far, over all lives.
    operations: u64,
    /// The operation that shall fail, by number.
    fault: Option<(u64, Fault)>,
    /// The life that failed; it answers nothing more.
    failed: Option<KvError>,
    struck: Option<Struck>,
}

impl SimKvMedia {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The store on this disk, as a process sees it that starts now. What was written before and not crashed is still
    /// there; the store opened before is dead.
    pub fn open(&self) -> Arc<SimKv> {
        let mut state = self.lock();
        state.life += 1;
        state.failed = None;
        Arc::new(SimKv { media: self.clone(), life: state.life })
    }

    /// Power loss: of the batches not synced, a prefix drawn from `seed` survives, and of files being received, prefixes.
    pub fn crash(&self, seed: u64) {
        let mut random = seed;
        let mut state = self.lock();
        let kept = draw(&mut random, state.pending.len());
        for batch in std::mem::take(&mut state.pending).into_iter().take(kept) {
            apply(&mut state.durable, batch);
        }
        state.visible = state.durable.clone();
        if let Some(incoming) = &mut state.incoming {
            for file in incoming.files.values_mut() {
                let kept = draw(&mut random, file.len());
                file.truncate(kept);
            }
        }
        state.life += 1;
        state.failed = None;
    }

    /// Lets the changing operation number `operation` (see [`SimKvMedia::operations`]) fail. The store is then dead until
    /// the next open.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.lock().fault = Some((operation, fault));
    }

    /// How many changing operations (write, flush, install steps, checkpoints) were begun.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Whom to tell of injected failures.
    pub fn on_failure(&self, struck: Struck) {
        self.lock().struck = Some(struck);
    }

    /// What a process sees.
    pub fn content(&self) -> Content {
        self.lock().visible.clone()
    }

    /// What the harshest crash leaves.
    pub fn durable(&self) -> Content {
        self.lock().durable.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside would be a bug of the simulator; the state is whole between statements all the same.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Runs a changing operation under the fault plan.
    fn change<T, E: From<KvError>>(
        &mut self,
        step: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == number => {
                if fault == Fault::After {
                    // The effect stays, its result is lost.
                    let _ = work(self);
                }
                let error = error(step, INJECTED);
                self.failed = Some(error.clone());
                if let Some(struck) = &self.struck {
                    struck(Strike::Failed);
                }
                Err(error.into())
            }
            _ => work(self),
        }
    }

    fn write(&mut self, batch: Batch) {
        apply(&mut self.visible, batch.clone());
        self.pending.push(batch);
    }

    fn sync(&mut self) {
        for batch in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, batch);
        }
        debug_assert!(self.durable == self.visible, "synced content is what the process sees");
    }
}

/// A store on a [`SimKvMedia`], in one life of its process.
pub struct SimKv {
    media: SimKvMedia,
    life: u64,
}

impl SimKv {
    /// The state, unless this store is dead.
    fn alive(&self, step: &'static str) -> Result<MutexGuard<'_, State>, KvError> {
        let state = self.media.lock();
        if state.life != self.life {
            return Err(error(step, "this store was closed by a crash or a later open"));
        }
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// As [`SimKv::alive`], for an operation that changes something.
    fn begin(&self, step: &'static str) -> Result<MutexGuard<'_, State>, KvError> {
        let begun = self.alive(step);
        if begun.is_err() {
            let state = self.media.lock();
            let struck = state.struck.clone().filter(|_| state.life == self.life);
            drop(state);
            if let Some(struck) = struck {
                struck(Strike::TriedAgain);
            }
        }
        begun
    }
}

impl Kv for SimKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.alive("reading")?.visible.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, KvError> {
        let state = self.alive("scanning")?;
        if from >= to {
            return Ok(Vec::new());
        }
        let range = state.visible.range::<[u8], _>(bounds(from, to));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, KvError> {
        let state = self.alive("scanning")?;
        if from >= to {
            return Ok(None);
        }
        let last = state.visible.range::<[u8], _>(bounds(from, to)).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        self.begin("writing")?.change("writing", |state| {
            state.write(batch);
            if durability == Durability::Synced {
                state.sync();
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), KvError> {
        self.begin("flushing")?.change("flushing", |state| {
            state.sync();
            Ok(())
        })
    }

    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, KvError> {
        self.begin("making a checkpoint")?.change("making a checkpoint", |state| {
            // As the real store does: a checkpoint makes its content durable on the way.
            state.sync();
            let bytes = rows::encode(&state.visible);
            let digest = *blake3::hash(&bytes).as_bytes();
            let file = CheckpointFile { name: rows::FILE.to_owned(), len_bytes: bytes.len() as u64, digest };
            Ok(Arc::new(SimCheckpoint { files: vec![file], bytes }) as Arc<dyn Checkpoint>)
        })
    }

    fn begin_install(&self, id: &str) -> Result<Box<dyn Install>, KvError> {
        self.begin("beginning an install")?.change("beginning an install", |state| {
            if state.incoming.as_ref().is_none_or(|incoming| incoming.id != id) {
                state.incoming = Some(Incoming { id: id.to_owned(), files: BTreeMap::new() });
            }
            Ok(())
        })?;
        Ok(Box::new(SimInstall::new(self.media.clone(), self.life, id)))
    }
}

/// A checkpoint: one file with all rows.
struct SimCheckpoint {
    files: Vec<CheckpointFile>,
    bytes: Vec<u8>,
}

impl Checkpoint for SimCheckpoint {
    fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, KvError> {
        if name != rows::FILE {
            return Err(error("reading a checkpoint", &format!("it has no file {name:?}")));
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(len).min(self.bytes.len());
        Ok(self.bytes[from..to].to_vec())
    }
}

fn apply(content: &mut Content, batch: Batch) {
    for change in batch.changes {
        match change {
            Change::Put(key, value) => {
                content.insert(key, value);
            }
            Change::Delete(key) => {
                content.remove(&key);
            }
            Change::DeleteRange(from, to) => {
                if from < to {
                    let doomed: Vec<_> = content.range(from..to).map(|(key, _)| key.clone()).collect();
                    for key in doomed {
                        content.remove(&key);
                    }
                }
            }
        }
    }
}

fn bounds<'a>(from: &'a [u8], to: &'a [u8]) -> (std::ops::Bound<&'a [u8]>, std::ops::Bound<&'a [u8]>) {
    (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to))
}

fn error(step: &'static str, message: &str) -> KvError {
    KvError { step, message: message.to_owned() }
}

/// A number `0..=max` from a splitmix64 sequence: well mixed even for seeds 0, 1, 2.
fn draw(state: &mut u64, max: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let z = u128::from(z ^ (z >> 31));
    // Scaled, so that the high bits decide; the result is at most `max`.
    usize::try_from((z * (max as u128 + 1)) >> 64).unwrap_or(max)
}
