//! One running replica: openraft with our stores, network and batching around it.
//!
//! **Invariants.** The identity (cluster, node id, incarnation) is written durably into the log store before openraft first
//! starts on it, and never changes; a store of another identity, or a state without its log, is refused. Requests that
//! were forwarded once are never forwarded again. Once the replica has a fatal reason it proposes, reads, votes and offers
//! nothing more: every such call is a fault of class `Retry`, so that the caller asks another one.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, select};
use openraft::{
    AsyncRuntime, Raft, RaftMetrics, ReadPolicy, ServerState,
    async_runtime::watch::WatchReceiver,
    errors::{InitializeError, LinearizableReadError, RaftError},
};
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, View},
    ids::{LogIndex, NodeId, NodeName, Term, WallMillis},
    layout::Layout,
    limits::COMMANDS_PER_ENTRY_MAX,
};
use pacsvault_ports::{
    BoxFuture, crash,
    env::{MonoTime, SharedEnv, blocking, timeout},
    kv::{Batch, CheckpointFile, Durability, Kv},
    peer::{Class, Fault, Freshness, Peer, Reply, Request},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    autopilot, gate,
    log_store::{Bounds, LogStore},
    network::{Factory, Net},
    options::{Error, Options},
    propose::{Batcher, Proposal, estimate_bytes, not_leader, unknown},
    replica::{Replica, Status},
    rows::{read, stored},
    server::Server,
    snapshot::{Checkpoints, PIECE_BYTES_MAX},
    state::{State, StateMachine, stopped},
    types::{Member, Types},
};

const IDENTITY: &[u8] = b"i";
/// Pause before a leader is looked for again when nothing changed meanwhile.
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// Whose log this is.
#[derive(Clone, PartialEq, prost::Message)]
struct IdentityRow {
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bytes = "bytes", tag = "3")]
    incarnation: Bytes,
}

/// A running replica over the runtime `R`.
pub struct Consensus<R: AsyncRuntime> {
    inner: Arc<Inner<R>>,
}

pub(crate) struct Inner<R: AsyncRuntime> {
    pub(crate) options: Options,
    pub(crate) env: SharedEnv,
    pub(crate) raft: Raft<Types<R>, StateMachine>,
    pub(crate) state: Arc<State>,
    pub(crate) net: Arc<Net>,
    server: Arc<Server<R>>,
    proposals: Mutex<Option<mpsc::Sender<Proposal>>>,
    pub(crate) stopped: AtomicBool,
}

/// Starts the replica that `log` and `state` hold, or a new one that waits to be initialised or invited.
pub async fn start<R: AsyncRuntime>(
    options: Options,
    env: SharedEnv,
    peer: Arc<dyn Peer>,
    log: Arc<dyn Kv>,
    state: Arc<dyn Kv>,
) -> Result<Consensus<R>, Error> {
    let config = Arc::new(options.config()?);
    let (opening, opening_env) = (options.clone(), env.clone());
    let opened = blocking(env.as_ref(), move || open(&opening, &opening_env, log, state)).await;
    let (log_store, state) = opened.ok_or(Error::Stopping)??;
    let net = Arc::new(Net {
        node: options.node,
        cluster: options.cluster,
        member: options.member(),
        env: env.clone(),
        peer,
        state: state.clone(),
        checkpoints: Checkpoints::new(state.clone(), env.clone()),
        append_deadline: options.append_deadline,
        piece_bytes: options.snapshot_piece_bytes.clamp(1, PIECE_BYTES_MAX),
    });
    let raft: Raft<Types<R>, StateMachine> =
        Raft::new(options.node.0, config, Factory(net.clone()), log_store, StateMachine(state.clone()))
            .await
            .map_err(|error| Error::Fatal(error.to_string()))?;
    let (proposals, queue) = mpsc::channel(options.queue_max);
    let (entry_bytes_max, linger) = (options.entry_bytes_max, options.linger);
    let batcher = Batcher { raft: raft.clone(), env: env.clone(), queue, entry_bytes_max, linger };
    env.spawn(Box::pin(batcher.run()));
    let server = Arc::new(Server::new(raft.clone(), net.clone()));
    let inner = Arc::new(Inner {
        options,
        env: env.clone(),
        raft,
        state,
        net,
        server,
        proposals: Mutex::new(Some(proposals)),
        stopped: AtomicBool::new(false),
    });
    if inner.options.autopilot {
        env.spawn(Box::pin(autopilot::run(Arc::downgrade(&inner))));
    }
    Ok(Consensus { inner })
}

fn open(
    options: &Options,
    env: &SharedEnv,
    log: Arc<dyn Kv>,
    state: Arc<dyn Kv>,
) -> Result<(LogStore, Arc<State>), Error> {
    let state = State::open(state, env.clone())?;
    let ours = IdentityRow {
        cluster: Bytes::copy_from_slice(&options.cluster.0),
        node: options.node.0,
        incarnation: Bytes::copy_from_slice(&options.incarnation.0),
    };
    match log.get(IDENTITY)? {
        Some(value) => {
            let found: IdentityRow = read(value)
                .map_err(|why| Error::Corrupt { record: "replica identity".into(), why: why.to_string() })?;
            if found != ours {
                return Err(Error::Foreign(format!("node {} of another life or cluster", found.node)));
            }
        }
        None if state.published().applied > LogIndex(0) => {
            // Without its votes this replica could vote twice in one term.
            return Err(Error::Foreign("a replica whose log is gone; wipe it and let it join as a new node".into()));
        }
        None => {
            let mut batch = Batch::default();
            batch.put(IDENTITY, stored(&ours));
            // CRASH(consensus.8): lost, the stores are still empty and the next start writes it.
            crash::point("consensus.8");
            log.write(batch, Durability::Synced)?;
        }
    }
    let bounds = Bounds { cache_bytes_max: options.cache_bytes_max, payload_bytes_max: options.payload_bytes_max };
    Ok((LogStore::open(log, env.clone(), state.clone(), bounds)?, state))
}

fn no_leader() -> Fault {
    Fault::new(Class::Retry, "PV-NO-LEADER", "no leader is known; a majority of voters may be out of reach")
}

impl<R: AsyncRuntime> Inner<R> {
    pub(crate) fn metrics(&self) -> RaftMetrics<Types<R>> {
        // Cloned at once: a borrow that is held blocks openraft's core.
        self.raft.metrics().borrow_watched().clone()
    }

    /// Refuses when the replica has a fatal reason, its own or openraft's.
    pub(crate) fn running(&self) -> Result<(), Fault> {
        self.state.running()?;
        self.raft.metrics().borrow_watched().running_state.as_ref().map(|_| ()).map_err(stopped)
    }

    fn leader(&self) -> Option<(u64, Option<Member>)> {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let leader = metrics.current_leader?;
        Some((leader, metrics.membership_config.get_node(&leader).cloned()))
    }

    /// What of `commands` must not enter the log, by position; decided on everything that was committed before the call.
    async fn gate(&self, commands: &[Command]) -> Result<Option<Vec<Option<Rejection>>>, Fault> {
        let refused = || gate::refused(commands, self.state.published().layout.as_deref());
        if refused().is_none() {
            return Ok(None);
        }
        // Perhaps this replica is only behind, as a new leader is for a moment.
        self.wait(Freshness::Linearizable).await?;
        Ok(refused())
    }

    pub(crate) async fn propose_here(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        self.running()?;
        let Some(refused) = self.gate(&commands).await? else { return self.submit(commands).await };
        let admitted = gate::admitted(commands, &refused);
        let outcomes = if admitted.is_empty() { Vec::new() } else { self.submit(admitted).await? };
        Ok(gate::merged(refused, outcomes))
    }

    /// Puts commands that passed the gate into the queue, and waits for what becomes of them.
    async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { bytes: estimate_bytes(&commands), commands, reply };
        {
            let proposals = self.proposals.lock().unwrap_or_else(PoisonError::into_inner);
            let queue = proposals.as_ref().ok_or_else(|| stopped("it was told to"))?;
            queue.try_send(proposal).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    Fault::new(Class::Exhausted, "PV-CONSENSUS-BUSY", "too many proposals are waiting; back off")
                }
                mpsc::error::TrySendError::Closed(_) => stopped("it was told to"),
            })?;
        }
        match timeout(self.env.as_ref(), self.options.deadline, answer).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(unknown("the replica has stopped")),
            None => Err(unknown("not committed in time")),
        }
    }

    /// As [`Inner::forward`], to who leads. Ends soon after another one is known to lead: a site that went dark answers
    /// nothing, and its connections take longer to break than the others need to elect.
    async fn forward_to_leader(
        &self,
        leader: u64,
        member: &Member,
        request: Request,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        let mut changes = self.raft.server_metrics();
        let mut call = Box::pin(self.forward(leader, member, request, limit));
        while self.leader().is_none_or(|(now, _)| now == leader) {
            match select(call, Box::pin(changes.changed())).await {
                Either::Left((reply, _)) => return reply,
                // It was sent: whoever leads may do it all the same.
                Either::Right((Err(_), _)) => return Err(unknown("the replica that passed it on has stopped")),
                Either::Right((Ok(()), pending)) => call = pending,
            }
        }
        pacsvault_core::sometimes!("recovery: leader changed while it was asked");
        // One that is alive and was deposed still tells what it knows.
        let told = timeout(self.env.as_ref(), LEADER_PAUSE * 2, call).await;
        told.unwrap_or_else(|| Err(unknown("the leader changed")))
    }

    pub(crate) async fn forward(
        &self,
        leader: u64,
        member: &Member,
        request: Request,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        self.net.call(&self.net.target(leader, member), request, limit).await
    }

    fn remaining(&self, deadline: MonoTime) -> Duration {
        deadline.0.saturating_sub(self.env.now().0)
    }

    fn deadline(&self) -> MonoTime {
        MonoTime(self.env.now().0 + self.options.deadline)
    }

    async fn attempt(&self, commands: &[Command], deadline: MonoTime) -> Result<Vec<Outcome>, Fault> {
        match self.leader() {
            Some((leader, _)) if leader == self.options.node.0 => self.propose_here(commands.to_vec()).await,
            Some((leader, Some(member))) => {
                let request = Request::Propose(commands.to_vec());
                match self.forward_to_leader(leader, &member, request, self.remaining(deadline)).await? {
                    Reply::Outcomes(outcomes) => Ok(outcomes),
                    _ => Err(unknown("the leader answered something else")),
                }
            }
            _ => Err(no_leader()),
        }
    }

    async fn attempt_index(&self, deadline: MonoTime) -> Result<LogIndex, Fault> {
        match self.leader() {
            Some((leader, _)) if leader == self.options.node.0 => self.read_index().await,
            Some((leader, Some(member))) => {
                match self.forward_to_leader(leader, &member, Request::ReadIndex, self.remaining(deadline)).await? {
                    Reply::ReadIndex(index) => Ok(index),
                    _ => Err(Fault::new(Class::Bug, "PV-PEER-REPLY", "the leader answered something else")),
                }
            }
            _ => Err(no_leader()),
        }
    }

    /// Repeats `attempt` while it faults with a class that `again` allows, until the deadline.
    async fn persist<'a, T>(
        &'a self,
        deadline: MonoTime,
        again: fn(Class) -> bool,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, Fault>> + Send + Sync,
    ) -> Result<T, Fault> {
        let mut changes = self.raft.server_metrics();
        loop {
            let fault = match attempt().await {
                Err(fault) if again(fault.class) => fault,
                ended => return ended,
            };
            self.running()?;
            if self.stopped.load(Ordering::SeqCst) || self.remaining(deadline).is_zero() {
                return Err(fault);
            }
            let pause = self.env.sleep(LEADER_PAUSE.min(self.remaining(deadline)));
            if let Either::Left((Err(_), _)) = select(Box::pin(changes.changed()), pause).await {
                return Err(stopped("its core is gone"));
            }
        }
    }

    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        check_size(&commands)?;
        self.running()?;
        // Here already: a leader of an older release would not even understand the request.
        let Some(refused) = self.gate(&commands).await? else { return self.propose_admitted(commands).await };
        let admitted = gate::admitted(commands, &refused);
        let outcomes = if admitted.is_empty() { Vec::new() } else { self.propose_admitted(admitted).await? };
        Ok(gate::merged(refused, outcomes))
    }

    async fn propose_admitted(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        let deadline = self.deadline();
        let attempt = || -> BoxFuture<'_, _> { Box::pin(self.attempt(&commands, deadline)) };
        self.persist(deadline, |class| class == Class::Retry, attempt).await
    }

    async fn read_index(&self) -> Result<LogIndex, Fault> {
        self.running()?;
        let asked = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        let answered = timeout(self.env.as_ref(), self.options.deadline, asked).await.ok_or_else(no_leader)?;
        match answered {
            Ok(linearizer) => Ok(LogIndex(linearizer.read_log_id().index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(no_leader()),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        }
    }

    pub(crate) async fn applied_at_least(&self, index: LogIndex, deadline: MonoTime) -> Result<LogIndex, Fault> {
        // PLANTED BUG: whatever was applied is told to be new enough.
        let early = pacsvault_core::probe::planted("read-before-applied");
        if let Some(applied) = self.state.when_applied(index).filter(|_| !early) {
            let behind = || {
                let message = format!("this replica has not applied entry {index} in time; ask another node");
                Fault::new(Class::Retry, "PV-REPLICA-BEHIND", message)
            };
            let woken = timeout(self.env.as_ref(), self.remaining(deadline), applied).await;
            woken.and_then(Result::ok).ok_or_else(|| self.running().err().unwrap_or_else(behind))?;
        }
        self.running()?;
        Ok(self.state.published().applied)
    }

    async fn wait(&self, freshness: Freshness) -> Result<LogIndex, Fault> {
        self.running()?;
        let deadline = self.deadline();
        let index = match freshness {
            Freshness::AtLeast(index) => index,
            // Asking again is harmless: a later index is only fresher.
            Freshness::Linearizable => {
                let attempt = || -> BoxFuture<'_, _> { Box::pin(self.attempt_index(deadline)) };
                self.persist(deadline, |class| matches!(class, Class::Retry | Class::Unknown), attempt).await?
            }
        };
        self.applied_at_least(index, deadline).await
    }

    pub(crate) async fn transfer_leader(&self, to: NodeId) -> Result<(), Fault> {
        self.running()?;
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return Err(Fault::new(Class::Retry, "PV-NOT-LEADER", "this node does not lead"));
        }
        if to == self.options.node {
            return Ok(());
        }
        if !metrics.membership_config.voter_ids().any(|voter| voter == to.0) {
            return Err(Fault::new(Class::Reject, "PV-NOT-VOTER", format!("node {to} is not a voter")));
        }
        self.raft.trigger().transfer_leader(to.0).await.map_err(stopped)?;
        let deadline = self.deadline();
        let taken = || -> BoxFuture<'_, Result<(), Fault>> {
            let fault = || Fault::new(Class::Retry, "PV-NOT-TRANSFERRED", format!("node {to} has not taken over"));
            let leads = self.leader().is_some_and(|(leader, _)| leader == to.0);
            Box::pin(std::future::ready(if leads { Ok(()) } else { Err(fault()) }))
        };
        self.persist(deadline, |class| class == Class::Retry, taken).await
    }

    async fn initialise(&self) -> Result<(), Fault> {
        self.running()?;
        let members = std::collections::BTreeMap::from([(self.options.node.0, self.options.member())]);
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(error @ (InitializeError::NotAllowed(_) | InitializeError::NotInMembers(_)))) => {
                Err(Fault::new(Class::Reject, "PV-ALREADY-INITIALISED", error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        }
    }

    async fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.proposals.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "openraft did not end cleanly");
        }
        let state = self.state.clone();
        if let Some(Err(error)) = blocking(self.env.as_ref(), move || state.flush()).await {
            tracing::warn!(%error, "the state was not flushed; the log replays");
        }
    }

    /// Ends this replica because its state is not what the others made of the same log.
    pub(crate) async fn stop_as_wrong(&self, why: &str) {
        self.state.fail(why);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "openraft did not end cleanly");
        }
    }

    fn status(&self) -> Status {
        let metrics = self.metrics();
        let published = self.state.published();
        let membership = &metrics.membership_config;
        let joint = membership.get_joint_config().len() > 1;
        let fatal = published.fatal.or_else(|| metrics.running_state.as_ref().err().map(ToString::to_string));
        Status {
            node: self.options.node,
            leader: metrics.current_leader.map(NodeId),
            term: Term(metrics.current_term),
            last_log: LogIndex(metrics.last_log_index.unwrap_or(0)),
            applied: published.applied,
            digest: published.digest,
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.membership().learner_ids().map(NodeId).collect(),
            joint,
            fatal,
        }
    }
}

fn check_size(commands: &[Command]) -> Result<(), Fault> {
    if commands.len() <= COMMANDS_PER_ENTRY_MAX {
        return Ok(());
    }
    let message = format!("{} commands at once; at most {COMMANDS_PER_ENTRY_MAX}", commands.len());
    Err(Fault::new(Class::Reject, "PV-TOO-MANY-COMMANDS", message))
}

impl<R: AsyncRuntime> Replica for Consensus<R> {
    fn initialise(&self) -> BoxFuture<'static, Result<(), Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.initialise().await })
    }

    fn propose(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.propose(commands).await })
    }

    fn propose_local(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            check_size(&commands)?;
            match inner.leader() {
                Some((leader, _)) if leader == inner.options.node.0 => inner.propose_here(commands).await,
                Some((leader, _)) => {
                    let message = format!("this node does not lead; node {leader} may");
                    Err(Fault::new(Class::Retry, "PV-NOT-LEADER", message))
                }
                None => Err(no_leader()),
            }
        })
    }

    fn handle(&self, from: Option<NodeName>, message: Bytes) -> BoxFuture<'static, Result<Bytes, Fault>> {
        Box::pin(self.inner.server.clone().handle(from, message))
    }

    fn snapshot_files(&self, id: &str) -> BoxFuture<'static, Result<Vec<CheckpointFile>, Fault>> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        Box::pin(async move { inner.net.checkpoints.files(&id).await })
    }

    fn snapshot_read(
        &self,
        id: &str,
        name: &str,
        offset_bytes: u64,
        len_bytes: u32,
    ) -> BoxFuture<'static, Result<Bytes, Fault>> {
        let (inner, id, name) = (self.inner.clone(), id.to_owned(), name.to_owned());
        Box::pin(async move { inner.net.checkpoints.read(&id, name, offset_bytes, len_bytes).await })
    }

    fn read_index(&self) -> BoxFuture<'static, Result<LogIndex, Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.read_index().await })
    }

    fn wait(&self, freshness: Freshness) -> BoxFuture<'static, Result<LogIndex, Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.wait(freshness).await })
    }

    fn layout(&self) -> Option<Arc<Layout>> {
        let published = self.inner.state.published();
        published.layout.filter(|_| published.fatal.is_none())
    }

    fn view(&self) -> Arc<dyn View> {
        self.inner.state.view()
    }

    fn catalog_time(&self) -> WallMillis {
        self.inner.state.published().time
    }

    fn status(&self) -> Status {
        self.inner.status()
    }

    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'static, Result<(), Fault>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.transfer_leader(to).await })
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.stop().await })
    }
}
