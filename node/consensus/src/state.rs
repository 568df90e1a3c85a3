//! The replicated state: the catalog in its store, and how far it has been applied.
//!
//! **Invariants.**
//! - The applied position and the membership are in the same batch as the effects they account for; so after a crash
//!   the state is that of some applied position, and the log replays from there.
//! - `durable <= applied`; the log is purged only up to what [`Durable::ensure_durable`] made durable.
//! - What is published (layout, digest, index) is of one applied position, and never goes back.
//! - Derived sums fit the records before anything of them is published: made again when the state is opened or a snapshot
//!   taken over, if need be.
//! - A store that failed is not changed again: the failure is kept where it happens, before anybody else's turn.
//! - An entry that the catalog cannot apply stops the replica: nothing of it is written, the reason is kept, and
//!   [`State::running`] lets nothing more of it be served.
//!
//! Keys, outside the catalog's first bytes: `~raft/applied` a log id, `~raft/membership` the stored membership.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{Stream, StreamExt, channel::oneshot};
use openraft::{
    AsyncRuntime, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot,
    storage::{EntryResponder, RaftStateMachine},
};
use pacsvault_core::{
    catalog::{Outcome, View},
    ids::{Digest, LogIndex, Term, WallMillis},
    layout::Layout,
};
use pacsvault_ports::{
    crash,
    env::{SharedEnv, blocking},
    kv::{Checkpoint, CheckpointFile, Durability, Install, InstallError, Kv, KvError, KvView},
    peer::{Class, Fault},
};

use crate::{
    log_store::Durable,
    machine::Catalog,
    options::Error,
    rows::{LogIdRow, MembershipRow, membership, membership_row, read, stored},
    types::{CommittedLeaderId, Entry, LogId, Member, SnapshotMeta, StoredMembership, Types},
};

const APPLIED: &[u8] = b"~raft/applied";
const MEMBERSHIP: &[u8] = b"~raft/membership";

/// Most entries applied in one batch.
const APPLY_ENTRIES_MAX: usize = 128;
/// Most bytes of entries applied in one batch: 2 MiB keeps the store's write buffer far from full.
const APPLY_BYTES_MAX: usize = 2 << 20;
/// Bytes copied at once when a checkpoint is installed from the same process.
const COPY_BYTES: usize = 1 << 20;

/// What a snapshot is made of.
pub enum SnapshotData {
    /// The state itself: a checkpoint of it is taken when it is sent, not when openraft asks for a snapshot to purge
    /// its log; that one only needs the state to be durable.
    Latest(Arc<State>),
    /// Received in full, not yet installed.
    Received {
        /// Where it was received.
        install: Box<dyn Install>,
        /// What it consists of.
        files: Vec<CheckpointFile>,
    },
}

/// What others may see of the state, all of one applied position.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) applied: LogIndex,
    pub(crate) digest: Digest,
    pub(crate) layout: Option<Arc<Layout>>,
    pub(crate) time: WallMillis,
    /// Last entry with commands: the one `digest` belongs to.
    pub(crate) digest_index: LogIndex,
    pub(crate) fatal: Option<String>,
}

struct Gate {
    catalog: Catalog,
    applied: Option<LogId>,
    membership: StoredMembership,
}

#[derive(Default)]
struct Waiters {
    by_index: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    next: u64,
}

/// The state of one replica.
pub struct State {
    kv: Arc<dyn Kv>,
    view: Arc<dyn View>,
    env: SharedEnv,
    /// Held while a batch is applied and while a checkpoint is taken, so that the checkpoint is of one position.
    gate: Mutex<Gate>,
    published: Mutex<Published>,
    waiters: Mutex<Waiters>,
    durable: AtomicU64,
    /// What the latest snapshot covers; its state is durable.
    snapshot: Mutex<Option<SnapshotMeta>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is answered for a replica that has stopped: another one may serve.
pub(crate) fn stopped(why: impl std::fmt::Display) -> Fault {
    Fault::new(Class::Retry, "PV-REPLICA-STOPPED", format!("the replica has stopped: {why}"))
}

fn stopping() -> io::Error {
    io::Error::other("the node is stopping")
}

/// What `kv` holds, with derived sums that fit. Blocks: for as long as reading every record takes, if they do not.
fn load(kv: &Arc<dyn Kv>, env: &SharedEnv) -> Result<Gate, Error> {
    let corrupt = |record: &str, why: String| Error::Corrupt { record: record.to_owned(), why };
    let applied = match kv.get(APPLIED)? {
        Some(value) => {
            let row = read::<LogIdRow>(value).map_err(|why| corrupt("applied position", why.to_string()))?;
            Some(LogId::from(row))
        }
        None => None,
    };
    let membership = match kv.get(MEMBERSHIP)? {
        Some(value) => read::<MembershipRow>(value)
            .and_then(membership)
            .map_err(|why| corrupt("applied membership", why.to_string()))?,
        None => StoredMembership::default(),
    };
    let mut catalog = Catalog::load(kv).map_err(|why| corrupt("catalog", chain(&why)))?;
    let began = env.now();
    if let Some(batch) = catalog.rebuild_sums().map_err(|why| corrupt("catalog", chain(&why)))? {
        // CRASH(consensus.9): lost, the marker still says that the sums are old, and the next start makes them again.
        crash::point("consensus.9");
        kv.write(batch, Durability::Buffered)?;
        let took_ms = env.now().0.saturating_sub(began.0).as_millis();
        tracing::info!(took_ms, "made the catalog's sums again from its records");
    }
    Ok(Gate { catalog, applied, membership })
}

impl Gate {
    fn published(&self) -> Published {
        let (digest_index, digest) = self.catalog.digest();
        Published {
            applied: LogIndex(self.applied.map_or(0, |id| id.index)),
            digest,
            layout: self.catalog.layout(),
            time: self.catalog.time(),
            digest_index,
            fatal: None,
        }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl State {
    /// Opens the state in `kv`. Blocks.
    pub fn open(kv: Arc<dyn Kv>, env: SharedEnv) -> Result<Arc<Self>, Error> {
        let gate = load(&kv, &env)?;
        let published = gate.published();
        // What a fresh process reads is what the store recovered, which is durable.
        let durable = AtomicU64::new(published.applied.0);
        Ok(Arc::new(Self {
            view: Arc::new(KvView(kv.clone())),
            kv,
            env,
            gate: Mutex::new(gate),
            published: Mutex::new(published),
            waiters: Mutex::default(),
            durable,
            snapshot: Mutex::new(None),
        }))
    }

    /// The state, for reads.
    pub(crate) fn view(&self) -> Arc<dyn View> {
        self.view.clone()
    }

    pub(crate) fn published(&self) -> Published {
        guard(&self.published).clone()
    }

    /// Keeps the first reason why the replica stopped, and lets go whoever waits for it to go on.
    pub(crate) fn fail(&self, why: &str) {
        {
            let mut published = guard(&self.published);
            if published.fatal.is_none() {
                tracing::error!(why, "the replica stops");
                published.fatal = Some(why.to_owned());
            }
        }
        guard(&self.waiters).by_index.clear();
    }

    /// Stops the replica, since its store failed: after that nothing of the store may be believed before it was opened anew.
    pub(crate) fn store_failed(&self, error: &KvError) -> Fault {
        self.fail(&error.to_string());
        stopped(error)
    }

    /// As [`State::store_failed`], where the store is used: whoever comes next must find it stopped before he touches the store,
    /// however long the error takes to whom it is for.
    fn watched<T>(&self, result: Result<T, KvError>) -> Result<T, KvError> {
        result.inspect_err(|error| self.fail(&error.to_string()))
    }

    /// Refuses to change the store once the replica has stopped.
    pub(crate) fn changeable(&self) -> Result<(), KvError> {
        let stopped =
            |why: &String| KvError { step: "changing the state", message: format!("the replica has stopped: {why}") };
        guard(&self.published).fatal.as_ref().map_or(Ok(()), |why| Err(stopped(why)))
    }

    /// Refuses when the replica has stopped for good: its state may be wrong and is not served any more.
    pub(crate) fn running(&self) -> Result<(), Fault> {
        guard(&self.published).fatal.as_ref().map_or(Ok(()), |why| Err(stopped(why)))
    }

    /// Resolves when `index` has been applied. Dropping the receiver gives up.
    pub(crate) fn when_applied(&self, index: LogIndex) -> Option<oneshot::Receiver<()>> {
        let mut waiters = guard(&self.waiters);
        // Checked under the waiters' lock: `publish` takes it after the index moved.
        if guard(&self.published).applied >= index {
            return None;
        }
        let (wake, woken) = oneshot::channel();
        waiters.by_index.retain(|_, waiter| !waiter.is_canceled());
        waiters.next += 1;
        let key = (index.0, waiters.next);
        waiters.by_index.insert(key, wake);
        Some(woken)
    }

    fn publish(&self, next: Published) {
        let applied = next.applied;
        {
            let mut published = guard(&self.published);
            let fatal = published.fatal.take();
            *published = Published { fatal, ..next };
        }
        let mut waiters = guard(&self.waiters);
        let later = waiters.by_index.split_off(&(applied.0.saturating_add(1), 0));
        for (_, wake) in std::mem::replace(&mut waiters.by_index, later) {
            // A waiter that gave up is no loss.
            let _ = wake.send(());
        }
    }

    /// Makes all that was applied durable, and answers up to where. Blocks.
    pub(crate) fn flush(&self) -> Result<(), KvError> {
        let applied = self.published().applied;
        // CRASH(consensus.4): lost, the log still has every entry since the last flush.
        crash::point("consensus.4");
        self.changeable()?;
        self.watched(self.kv.flush())?;
        self.durable.fetch_max(applied.0, Ordering::SeqCst);
        Ok(())
    }

    /// A checkpoint of the present state and what it covers. Blocks.
    pub(crate) fn checkpoint(&self) -> Result<(SnapshotMeta, Arc<dyn Checkpoint>), KvError> {
        let gate = guard(&self.gate);
        self.changeable()?;
        Ok((gate.meta(), self.watched(self.kv.checkpoint())?))
    }

    /// Begins or resumes receiving checkpoint `id`. Blocks.
    pub(crate) fn begin_install(&self, id: &str) -> Result<Box<dyn Install>, KvError> {
        self.changeable()?;
        self.watched(self.kv.begin_install(id))
    }

    fn apply_batch(&self, entries: &[Entry]) -> Result<Vec<Vec<Outcome>>, String> {
        let mut gate = guard(&self.gate);
        let mut applied = gate.applied;
        let mut new_membership = None;
        let mut commands = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = entry.log_id;
            if applied.is_some_and(|before| id.index <= before.index) {
                return Err(format!("entry {id} cannot be applied after {applied:?}"));
            }
            applied = Some(id);
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(data) => {
                    commands.push((LogIndex(id.index), Term(id.leader_id.term), data.0.as_ref()));
                }
                EntryPayload::Membership(next) => new_membership = Some(StoredMembership::new(Some(id), next.clone())),
            }
        }
        let (mut batch, outcomes) = gate.catalog.apply(&commands).map_err(|error| chain(&error))?;
        if let Some(id) = &applied {
            batch.put(APPLIED, stored(&LogIdRow::from(id)));
        }
        if let Some(next) = &new_membership {
            batch.put(MEMBERSHIP, stored(&membership_row(next)));
        }
        // CRASH(consensus.5): effects, position and membership are one atomic batch. Lost, with all batches after
        // it, the log replays from the position that remains; it is purged only below what was flushed.
        crash::point("consensus.5");
        self.changeable().map_err(|error| error.to_string())?;
        self.watched(self.kv.write(batch, Durability::Buffered)).map_err(|error| error.to_string())?;
        gate.applied = applied;
        if let Some(next) = new_membership {
            gate.membership = next;
        }
        self.publish(gate.published());
        Ok(spread(entries, outcomes))
    }

    fn install(&self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), Error> {
        let mut gate = guard(&self.gate);
        let installed = self.take_over(&mut gate, meta, data);
        installed.inspect_err(|error| self.fail(&format!("cannot install a snapshot: {}", chain(error))))
    }

    fn take_over(&self, gate: &mut Gate, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), Error> {
        // CRASH(consensus.6): the store has the old state or the new one. With the old one, the leader offers
        // the snapshot again; with the new one, openraft finds the state ahead of the log and purges the hole.
        crash::point("consensus.6");
        self.changeable()?;
        match data {
            SnapshotData::Received { install, files } => {
                install.finish(&files)?;
                pacsvault_core::sometimes!("recovery: snapshot installed");
            }
            SnapshotData::Latest(source) => self.copy(meta, &source)?,
        }
        if pacsvault_core::probe::planted("snapshot-omits-rows") {
            // PLANTED BUG: older versions do not come with a snapshot.
            let mut batch = pacsvault_ports::kv::Batch::default();
            batch.changes.push(pacsvault_ports::kv::Change::DeleteRange(vec![0x11], vec![0x12]));
            self.kv.write(batch, Durability::Buffered)?;
        }
        *gate = load(&self.kv, &self.env)?;
        if gate.applied != meta.last_log_id {
            let why = format!("it covers {:?} instead of {:?}", gate.applied, meta.last_log_id);
            return Err(Error::Corrupt { record: "installed snapshot".into(), why });
        }
        let published = gate.published();
        self.durable.fetch_max(published.applied.0, Ordering::SeqCst);
        *guard(&self.snapshot) = Some(meta.clone());
        self.publish(published);
        Ok(())
    }

    fn copy(&self, meta: &SnapshotMeta, source: &Self) -> Result<(), InstallError> {
        let (_, checkpoint) = source.checkpoint()?;
        let mut install = self.kv.begin_install(&format!("local-{:?}", meta.last_log_id))?;
        for file in checkpoint.files() {
            let mut offset = install.received(&file.name)?;
            while offset < file.len_bytes {
                let piece = checkpoint.read(&file.name, offset, COPY_BYTES)?;
                install.write(&file.name, offset, &piece)?;
                offset += piece.len() as u64;
            }
        }
        install.finish(checkpoint.files())
    }
}

/// An error with its sources, for the one place where it is reported.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text = format!("{text}: {next}");
        source = next.source();
    }
    text
}

/// Outcomes by entry: those without commands have none.
fn spread(entries: &[Entry], outcomes: Vec<Vec<Outcome>>) -> Vec<Vec<Outcome>> {
    let mut outcomes = outcomes.into_iter();
    let of = |entry: &Entry| match entry.payload {
        EntryPayload::Normal(_) => outcomes.next().unwrap_or_default(),
        EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
    };
    entries.iter().map(of).collect()
}

impl Durable for State {
    fn ensure_durable(&self, index: LogIndex) -> Result<(), KvError> {
        if self.durable.load(Ordering::SeqCst) >= index.0 { Ok(()) } else { self.flush() }
    }
}

/// openraft's handle of a [`State`].
pub struct StateMachine(pub Arc<State>);

type AnySnapshot = Snapshot<CommittedLeaderId, u64, Member, SnapshotData>;

impl StateMachine {
    async fn apply_chunk<R: AsyncRuntime>(&self, chunk: Vec<EntryResponder<Types<R>>>) -> io::Result<()> {
        let (entries, responders): (Vec<Entry>, Vec<_>) = chunk.into_iter().unzip();
        let state = self.0.clone();
        let applied = blocking(self.0.env.as_ref(), move || state.apply_batch(&entries)).await.ok_or_else(stopping)?;
        let outcomes = applied.map_err(|why| {
            self.0.fail(&why);
            io::Error::other(why)
        })?;
        for (responder, outcomes) in responders.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }
}

impl<R: AsyncRuntime> RaftStateMachine<Types<R>> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let gate = guard(&self.0.gate);
        Ok((gate.applied, gate.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<R>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunk = Vec::new();
        let mut bytes = 0_usize;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if let EntryPayload::Normal(data) = &entry.payload {
                bytes += data.0.len();
            }
            chunk.push((entry, responder));
            if chunk.len() >= APPLY_ENTRIES_MAX || bytes >= APPLY_BYTES_MAX {
                bytes = 0;
                self.apply_chunk::<R>(std::mem::take(&mut chunk)).await?;
            }
        }
        if chunk.is_empty() { Ok(()) } else { self.apply_chunk::<R>(chunk).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { meta: guard(&self.0.gate).meta(), state: self.0.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (state, meta) = (self.0.clone(), meta.clone());
        let installed = blocking(self.0.env.as_ref(), move || state.install(&meta, snapshot)).await;
        installed.ok_or_else(stopping)?.map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<AnySnapshot>, io::Error> {
        let meta = guard(&self.0.snapshot).clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: SnapshotData::Latest(self.0.clone()) }))
    }
}

/// Makes the state durable, so that the log below it may be purged.
pub struct Builder {
    meta: SnapshotMeta,
    state: Arc<State>,
}

impl<R: AsyncRuntime> RaftSnapshotBuilder<Types<R>> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<AnySnapshot, io::Error> {
        let state = self.state.clone();
        let flushed = blocking(self.state.env.as_ref(), move || state.flush()).await.ok_or_else(stopping)?;
        flushed.map_err(io::Error::other)?;
        *guard(&self.state.snapshot) = Some(self.meta.clone());
        Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotData::Latest(self.state.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use pacsvault_runtime::TokioEnv;
    use pacsvault_simkv::{Fault as KvFault, SimKvMedia, Strike};

    use super::*;
    use crate::types::log_id;

    #[tokio::test]
    async fn what_waits_behind_a_failed_flush_does_not_touch_the_store() {
        let media = SimKvMedia::new();
        let again = Arc::new(AtomicUsize::new(0));
        let heard = again.clone();
        media.on_failure(Arc::new(move |strike| {
            heard.fetch_add(usize::from(matches!(strike, Strike::TriedAgain)), Ordering::SeqCst);
        }));
        let state = State::open(media.open(), TokioEnv::current()).expect("an empty store opens");
        let blank = |index| Entry { log_id: log_id(1, index), payload: EntryPayload::Blank };
        state.apply_batch(&[blank(1)]).expect("a sound store");
        media.fail_at(media.operations(), KvFault::Before);
        // These ran one after the other, before whoever asked for the flush heard of its failure.
        assert!(state.flush().is_err());
        assert!(state.apply_batch(&[blank(2)]).is_err());
        assert!(state.flush().is_err() && state.checkpoint().is_err() && state.begin_install("x").is_err());
        assert_eq!(again.load(Ordering::SeqCst), 0, "the store was changed again");
        assert!(state.running().is_err() && state.published().applied == LogIndex(1));
    }
}
