//! From replica to replica: openraft's calls as messages over the `Peer` port.
//!
//! **Invariants.** Every call ends by its deadline, with or without the peer's help. A message goes to the address that
//! the layout knows for this incarnation of the node, and says which node and incarnation it means; whoever answers at
//! that address proves to be that one or refuses.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{Either, join_all, select};
use openraft::{
    AsyncRuntime, OptionalSend, Snapshot,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use pacsvault_core::ids::{ClusterId, NodeId};
use pacsvault_ports::{
    env::{MonoTime, SharedEnv, timeout},
    peer::{Class, Fault, Peer, Reply, Request, Target},
};

use crate::{
    messages::{Answer, Answered, Append, Ask, AskVote, Envelope, Nodes, Offer, Offered, Transfer},
    rows::{LogIdRow, RowError, VoteRow, member_row, membership_row, read, stored},
    snapshot::Checkpoints,
    state::{SnapshotData, State},
    types::{CommittedLeaderId, LogId, Member, SnapshotMeta, StoredMembership, Types, Vote},
};

/// Between two offers of a snapshot that is being fetched.
const OFFER_EVERY: Duration = Duration::from_millis(250);
/// A transfer that has not moved for so long is given up and begun again.
const OFFER_STALLED: Duration = Duration::from_secs(60);
/// Failed offers in a row before the transfer is given up.
const OFFER_FAILURES_MAX: u32 = 20;

/// What all connections of a replica share.
pub(crate) struct Net {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) member: Member,
    pub(crate) env: SharedEnv,
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) state: Arc<State>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) append_deadline: Duration,
    /// Of a snapshot under way.
    pub(crate) piece_bytes: u32,
}

impl Net {
    /// Where to dial `member`, known as `id`. Addresses may change; incarnations do not.
    pub(crate) fn target(&self, id: u64, member: &Member) -> Target {
        let layout = self.state.published().layout;
        let known = layout.as_ref().and_then(|layout| layout.nodes.get(&NodeId(id)));
        match known.filter(|node| node.incarnation == member.incarnation) {
            Some(node) => Target { address: node.address.clone(), name: Some(node.name.clone()) },
            None => member.target(),
        }
    }

    /// Calls, and ends by the deadline whatever the peer does.
    pub(crate) async fn call(&self, target: &Target, request: Request, deadline: Duration) -> Result<Reply, Fault> {
        let call = self.peer.call(target, request, deadline);
        timeout(self.env.as_ref(), deadline, call).await.unwrap_or_else(|| {
            Err(Fault::new(Class::Unknown, "PV-DEADLINE", format!("no reply from {} in time", target.address)))
        })
    }

    /// Which of these members answer now, as what they are known as; itself among them, if asked for.
    pub(crate) async fn answering(
        &self,
        members: &StoredMembership,
        ids: impl IntoIterator<Item = u64>,
        deadline: Duration,
    ) -> BTreeSet<u64> {
        let members = members.membership();
        let calls = ids.into_iter().collect::<BTreeSet<u64>>().into_iter().filter_map(|id| {
            let target = self.target(id, members.get_node(&id)?);
            Some(async move {
                if id == self.node.0 {
                    return Some(id);
                }
                let status = self.call(&target, Request::Status, deadline).await;
                matches!(status, Ok(Reply::Status(status)) if status.node == Some(NodeId(id))).then_some(id)
            })
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    /// Which of these members `to` reaches; `None` when it does not say.
    pub(crate) async fn reached_by(&self, to: u64, member: &Member, ids: Vec<u64>) -> Option<BTreeSet<u64>> {
        let answer = self.ask(to, member, Ask::Reach(Nodes { ids }), self.append_deadline).await;
        match answer {
            Ok(Answered::Reached(nodes)) => Some(nodes.ids.into_iter().collect()),
            Ok(_) | Err(_) => None,
        }
    }

    async fn ask(&self, to: u64, member: &Member, ask: Ask, deadline: Duration) -> Result<Answered, Fault> {
        let envelope = Envelope {
            cluster: Bytes::copy_from_slice(&self.cluster.0),
            to,
            incarnation: Bytes::copy_from_slice(&member.incarnation.0),
            from: self.node.0,
            ask: Some(ask),
        };
        let request = Request::Raft(Bytes::from(stored(&envelope)));
        let reply = match self.call(&self.target(to, member), request, deadline).await? {
            Reply::Raft(bytes) => bytes,
            _ => return Err(garbled("another reply")),
        };
        read::<Answer>(reply).ok().and_then(|answer| answer.answered).ok_or_else(|| garbled("an unreadable reply"))
    }
}

fn garbled(what: &str) -> Fault {
    Fault::new(Class::Bug, "PV-CONSENSUS-MESSAGE", format!("a consensus message got {what}"))
}

fn unreadable(error: RowError) -> Fault {
    garbled(&error.to_string())
}

fn unreachable<R: AsyncRuntime>(fault: &Fault) -> Unreachable<Types<R>> {
    Unreachable::new(fault)
}

fn rpc_error<R: AsyncRuntime>(fault: Fault) -> RPCError<Types<R>> {
    RPCError::Unreachable(unreachable(&fault))
}

/// Makes a [`Client`] per node.
pub(crate) struct Factory(pub(crate) Arc<Net>);

impl<R: AsyncRuntime> RaftNetworkFactory<Types<R>> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        Client { net: self.0.clone(), to: target, member: node.clone() }
    }
}

/// Calls one node.
pub(crate) struct Client {
    net: Arc<Net>,
    to: u64,
    member: Member,
}

impl Client {
    async fn ask(&self, ask: Ask, deadline: Duration) -> Result<Answered, Fault> {
        self.net.ask(self.to, &self.member, ask, deadline).await
    }

    fn offer(&self, id: &str, vote: &Vote, meta: &SnapshotMeta) -> Offer {
        let last_membership: &StoredMembership = &meta.last_membership;
        Offer {
            id: id.to_owned(),
            vote: Some(VoteRow::from(vote)),
            last: meta.last_log_id.as_ref().map(LogIdRow::from),
            membership: Some(membership_row(last_membership)),
            sender: Some(member_row(self.net.node.0, &self.net.member)),
        }
    }

    /// Offers a snapshot until the receiver has installed it.
    async fn transmit(&self, vote: Vote, least: Option<LogId>, ttl: Duration) -> Result<Vote, Fault> {
        let (id, meta) = self.net.checkpoints.offer(least).await?;
        if meta.last_log_id.is_some_and(|last| last.leader_id.term > vote.leader_id.term) {
            return Err(Fault::new(Class::Retry, "PV-NOT-LEADER", "this node no longer leads"));
        }
        let offer = self.offer(&id, &vote, &meta);
        let mut failures = 0_u32;
        let mut received = 0_u64;
        let mut moved: MonoTime = self.net.env.now();
        loop {
            let answer = match self.ask(Ask::Offer(offer.clone()), ttl).await {
                Ok(Answered::Offered(answer)) => Ok(answer),
                Ok(_) => Err(garbled("another answer")),
                Err(fault) => Err(fault),
            };
            match answer {
                Ok(Offered { vote: Some(row), .. }) => return Ok(row.into()),
                Ok(Offered { failed: Some(why), .. }) => {
                    return Err(Fault::new(Class::Retry, "PV-SNAPSHOT-FAILED", why));
                }
                Ok(Offered { received_bytes, .. }) => {
                    failures = 0;
                    self.net.checkpoints.keep(&id);
                    if received_bytes != received {
                        received = received_bytes;
                        moved = self.net.env.now();
                    }
                }
                Err(fault) if failures >= OFFER_FAILURES_MAX => return Err(fault),
                Err(_) => failures += 1,
            }
            if self.net.env.now().0.saturating_sub(moved.0) > OFFER_STALLED {
                return Err(Fault::new(Class::Retry, "PV-SNAPSHOT-STALLED", "the receiver makes no progress"));
            }
            self.net.env.sleep(OFFER_EVERY).await;
        }
    }
}

impl<R: AsyncRuntime> RaftNetworkV2<Types<R>> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, RPCError<Types<R>>> {
        // openraft's limit is one heartbeat interval: right for heartbeats, too short for megabytes over a WAN.
        let deadline =
            if rpc.entries.is_empty() { option.hard_ttl() } else { self.net.append_deadline.max(option.hard_ttl()) };
        match self.ask(Ask::Append(Append::new(&rpc)), deadline).await.map_err(rpc_error)? {
            Answered::Appended(row) => row.response().map_err(|error| rpc_error(unreadable(error))),
            _ => Err(rpc_error(garbled("another answer"))),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        match self.ask(Ask::Vote(AskVote::new(&rpc)), option.hard_ttl()).await.map_err(rpc_error)? {
            Answered::Voted(row) => row.response().map_err(|error| rpc_error(unreadable(error))),
            _ => Err(rpc_error(garbled("another answer"))),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        match self.ask(Ask::PreVote(AskVote::new(&rpc)), option.hard_ttl()).await.map_err(rpc_error)? {
            Answered::Voted(row) => row.response().map_err(|error| rpc_error(unreadable(error))),
            _ => Err(rpc_error(garbled("another answer"))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<CommittedLeaderId, u64, Member, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let transmit = self.transmit(vote, snapshot.meta.last_log_id, option.hard_ttl());
        match select(Box::pin(cancel), Box::pin(transmit)).await {
            Either::Left((closed, _)) => Err(StreamingError::Closed(closed)),
            Either::Right((Ok(vote), _)) => Ok(SnapshotResponse::new(vote)),
            Either::Right((Err(fault), _)) => Err(StreamingError::Unreachable(unreachable(&fault))),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        match self.ask(Ask::Transfer(Transfer::new(&req)), option.hard_ttl()).await.map_err(rpc_error)? {
            Answered::Transferred(row) => row.response().map_err(|error| rpc_error(unreadable(error))),
            _ => Err(rpc_error(garbled("another answer"))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let pauses = [50_u64, 100, 200, 400].into_iter().chain(std::iter::repeat(800));
        Some(Backoff::new(pauses.map(Duration::from_millis)))
    }
}
