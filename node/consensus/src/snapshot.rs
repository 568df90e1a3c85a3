//! Snapshots on their way: checkpoints that a leader holds for others, and the one that this node is fetching.
//!
//! **Invariants.**
//! - A replica that has stopped offers nothing: others must not take over a state that may be wrong.
//! - At most [`HELD_MAX`] checkpoints are held, each no longer than [`IDLE_MAX`] after its last use.
//! - A receiver fetches one snapshot at a time, in pieces of at most [`PIECE_BYTES_MAX`], at most [`PIECES_IN_FLIGHT`] in memory;
//!   what it has survives a restart (`Install`).
//! - A store that failed stops the replica: nothing is tried again on it.
//! - Every file fetched from its beginning is checked against its digest before the state is touched; `Install::finish`
//!   checks all of them again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use pacsvault_ports::{
    crash,
    env::{MonoTime, SharedEnv, blocking},
    kv::{Checkpoint, CheckpointFile, Install, InstallError, KvError},
    peer::{Class, Fault, Peer, Reply, Request, Target},
};

use crate::{
    state::{SnapshotData, State},
    types::{LogId, SnapshotMeta},
};

/// Checkpoints held at once: one being fetched, one newer.
pub const HELD_MAX: usize = 2;
/// How long a checkpoint is held after its last use.
pub const IDLE_MAX: Duration = Duration::from_secs(120);
/// Most bytes of one piece: 1 MiB fits every message limit.
pub const PIECE_BYTES_MAX: u32 = 1 << 20;
/// Pieces asked for at once: 8 MiB in flight fill 80 ms at 100 MB/s.
pub const PIECES_IN_FLIGHT: usize = 8;
/// Deadline of one piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);

struct Held {
    checkpoint: Arc<dyn Checkpoint>,
    meta: SnapshotMeta,
    used: MonoTime,
}

/// Checkpoints held for receivers.
pub(crate) struct Checkpoints {
    state: Arc<State>,
    env: SharedEnv,
    held: Mutex<BTreeMap<String, Held>>,
}

fn gone(id: &str) -> Fault {
    Fault::new(Class::Retry, "PV-SNAPSHOT-GONE", format!("snapshot {id} is no longer held; wait for another offer"))
}

/// The fault of an install that cannot go on; stops the replica when it was the store that failed.
fn install_fault(state: &State, error: InstallError) -> Fault {
    match error {
        InstallError::Store(error) => state.store_failed(&error),
        InstallError::Unfit(_) => Fault::new(Class::Bug, "PV-SNAPSHOT-STORE", error.to_string()),
    }
}

fn stopping() -> Fault {
    Fault::new(Class::Retry, "PV-STOPPING", "the node is stopping")
}

impl Checkpoints {
    pub(crate) fn new(state: Arc<State>, env: SharedEnv) -> Self {
        Self { state, env, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.env.now();
        held.retain(|_, one| now.0.saturating_sub(one.used.0) < IDLE_MAX);
        held
    }

    fn touch(&self, id: &str) -> Option<Arc<dyn Checkpoint>> {
        let now = self.env.now();
        let mut held = self.held();
        let one = held.get_mut(id)?;
        one.used = now;
        Some(one.checkpoint.clone())
    }

    /// A checkpoint that covers at least `least`: one that is held, so that an interrupted transfer resumes, or a new
    /// one.
    pub(crate) async fn offer(&self, least: Option<LogId>) -> Result<(String, SnapshotMeta), Fault> {
        self.state.running()?;
        let now = self.env.now();
        let usable = self.held().iter_mut().rev().find(|(_, one)| one.meta.last_log_id >= least).map(|(id, one)| {
            one.used = now;
            (id.clone(), one.meta.clone())
        });
        if let Some(found) = usable {
            return Ok(found);
        }
        let state = self.state.clone();
        let taken = blocking(self.env.as_ref(), move || {
            let (meta, checkpoint) = state.checkpoint()?;
            // Digests may be computed on first use: here, not on an async thread.
            checkpoint.files();
            Ok((meta, checkpoint))
        });
        let taken = taken.await.ok_or_else(stopping)?;
        let (meta, checkpoint) = taken.map_err(|error: KvError| self.state.store_failed(&error))?;
        let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        // Sorts by what it covers; the random part tells two processes' checkpoints of one position apart, whose
        // files may differ.
        let id = format!("{index:020}-{term}-{:016x}", self.env.random());
        let mut held = self.held();
        while held.len() >= HELD_MAX {
            let Some(oldest) = held.iter().min_by_key(|(_, one)| one.used).map(|(id, _)| id.clone()) else { break };
            held.remove(&oldest);
        }
        held.insert(id.clone(), Held { checkpoint, meta: meta.clone(), used: self.env.now() });
        Ok((id, meta))
    }

    /// Notes that a receiver is at work on `id`.
    pub(crate) fn keep(&self, id: &str) -> bool {
        self.touch(id).is_some()
    }

    pub(crate) async fn files(&self, id: &str) -> Result<Vec<CheckpointFile>, Fault> {
        self.state.running()?;
        let checkpoint = self.touch(id).ok_or_else(|| gone(id))?;
        blocking(self.env.as_ref(), move || checkpoint.files().to_vec()).await.ok_or_else(stopping)
    }

    pub(crate) async fn read(&self, id: &str, name: String, offset: u64, len: u32) -> Result<Bytes, Fault> {
        self.state.running()?;
        let checkpoint = self.touch(id).ok_or_else(|| gone(id))?;
        if checkpoint.files().binary_search_by(|file| file.name.cmp(&name)).is_err() {
            return Err(gone(id));
        }
        let len = usize::try_from(len.min(PIECE_BYTES_MAX)).unwrap_or(0);
        let read = blocking(self.env.as_ref(), move || checkpoint.read(&name, offset, len)).await;
        read.ok_or_else(stopping)?.map(Bytes::from).map_err(|error| self.state.store_failed(&error))
    }
}

/// Fetches snapshots from a leader.
pub(crate) struct Fetch {
    pub(crate) state: Arc<State>,
    pub(crate) env: SharedEnv,
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) from: Target,
    pub(crate) id: String,
    /// Asked for at once: 1 to [`PIECE_BYTES_MAX`].
    pub(crate) piece_bytes: u32,
}

impl Fetch {
    /// Fetches all files, telling `progress` of every piece; it answers false to give up.
    pub(crate) async fn run(&self, progress: impl Fn(u64) -> bool + Send + Sync) -> Result<SnapshotData, Fault> {
        let request = Request::SnapshotFiles { id: self.id.clone() };
        let files = match self.peer.call(&self.from, request, PIECE_DEADLINE).await? {
            Reply::SnapshotFiles(files) => files,
            _ => return Err(unexpected("SnapshotFiles")),
        };
        let (state, id) = (self.state.clone(), self.id.clone());
        let begun = blocking(self.env.as_ref(), move || state.begin_install(&id)).await;
        let mut install = begun.ok_or_else(stopping)?.map_err(|error| self.state.store_failed(&error))?;
        let mut before = 0_u64;
        for file in &files {
            install = self.fetch(install, file, |bytes| progress(before + bytes)).await?;
            before += file.len_bytes;
        }
        Ok(SnapshotData::Received { install, files })
    }

    async fn fetch(
        &self,
        install: Box<dyn Install>,
        file: &CheckpointFile,
        progress: impl Fn(u64) -> bool + Send + Sync,
    ) -> Result<Box<dyn Install>, Fault> {
        let start = install.received(&file.name).map_err(|error| install_fault(&self.state, error))?;
        if start > 0 {
            pacsvault_core::sometimes!("recovery: snapshot transfer resumed");
        }
        let pieces = (start..file.len_bytes).step_by(self.piece_bytes as usize).map(|offset| self.piece(file, offset));
        let mut pieces = stream::iter(pieces.collect::<Vec<_>>()).buffered(PIECES_IN_FLIGHT);
        let mut install = if file.len_bytes == 0 { self.write(install, file, 0, Bytes::new()).await? } else { install };
        let mut digest = (start == 0).then(blake3::Hasher::new);
        let mut offset = start;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if let Some(digest) = &mut digest {
                digest.update(&piece);
            }
            let len = piece.len() as u64;
            install = self.write(install, file, offset, piece).await?;
            offset += len;
            if !progress(offset) {
                return Err(Fault::new(Class::Retry, "PV-SNAPSHOT-SUPERSEDED", "a newer snapshot was offered"));
            }
        }
        if digest.is_some_and(|digest| *digest.finalize().as_bytes() != file.digest) {
            return Err(self.discard(&file.name).await);
        }
        Ok(install)
    }

    fn piece(&self, file: &CheckpointFile, offset: u64) -> impl Future<Output = Result<Bytes, Fault>> + Send + use<> {
        let wanted = u32::try_from(file.len_bytes - offset).unwrap_or(u32::MAX).min(self.piece_bytes);
        let (id, name) = (self.id.clone(), file.name.clone());
        let (peer, from) = (self.peer.clone(), self.from.clone());
        async move {
            let request = Request::SnapshotRead { id, name, offset_bytes: offset, len_bytes: wanted };
            match peer.call(&from, request, PIECE_DEADLINE).await? {
                Reply::Bytes(piece) if piece.len() as u64 == u64::from(wanted) => Ok(piece),
                _ => Err(unexpected("SnapshotRead")),
            }
        }
    }

    async fn write(
        &self,
        mut install: Box<dyn Install>,
        file: &CheckpointFile,
        offset: u64,
        piece: Bytes,
    ) -> Result<Box<dyn Install>, Fault> {
        let (name, state) = (file.name.clone(), self.state.clone());
        let written = blocking(self.env.as_ref(), move || {
            // CRASH(consensus.7): a piece may be lost or torn; the store tells what it has, and the digest of the
            // whole is checked before anything is replaced.
            crash::point("consensus.7");
            state.running()?;
            install.write(&name, offset, &piece).map(|()| install).map_err(|error| install_fault(&state, error))
        });
        written.await.ok_or_else(stopping)?
    }

    /// Forgets all that was received: some of it is damaged.
    async fn discard(&self, name: &str) -> Fault {
        let state = self.state.clone();
        // Another id discards; whether that works is seen when the next transfer begins.
        let _ = blocking(self.env.as_ref(), move || state.begin_install("discarded").map(drop)).await;
        Fault::new(Class::Corrupt, "PV-SNAPSHOT-DAMAGED", format!("file {name} of the snapshot arrived damaged"))
    }
}

fn unexpected(request: &str) -> Fault {
    Fault::new(Class::Bug, "PV-PEER-REPLY", format!("the reply does not fit the request {request}"))
}
