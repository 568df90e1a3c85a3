//! What a replica answers to the messages of others.
//!
//! **Invariants.** A message for another cluster, node id or incarnation is refused before anything else is read of it.
//! The sender's id must not belong to another certificate name than the caller's, as far as the layout knows. At most one
//! snapshot is fetched at a time; a newer offer supersedes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::{AsyncRuntime, Raft, Snapshot, async_runtime::watch::WatchReceiver};
use pacsvault_core::ids::{Incarnation, NodeId, NodeName};
use pacsvault_ports::peer::{Class, Fault, Target};

use crate::{
    messages::{
        Answer, Answered, Append, Appended, Ask, AskVote, Envelope, Nodes, Offer, Offered, Transferred, Voted, part,
    },
    network::Net,
    rows::{RowError, VoteRow, member, read, snapshot_meta, stored},
    snapshot::Fetch,
    state::{StateMachine, stopped},
    types::{SnapshotMeta, Types, Vote},
};

struct Incoming {
    id: String,
    generation: u64,
    received_bytes: u64,
    ended: Option<Result<Vote, String>>,
}

/// Answers consensus messages.
pub(crate) struct Server<R: AsyncRuntime> {
    raft: Raft<Types<R>, StateMachine>,
    net: Arc<Net>,
    incoming: Mutex<Option<Incoming>>,
}

fn refused(code: &'static str, message: impl Into<String>) -> Fault {
    Fault::new(Class::Reject, code, message)
}

fn unreadable(error: RowError) -> Fault {
    refused("PV-CONSENSUS-MESSAGE", format!("a consensus message is unreadable: {error}"))
}

impl<R: AsyncRuntime> Server<R> {
    pub(crate) fn new(raft: Raft<Types<R>, StateMachine>, net: Arc<Net>) -> Self {
        Self { raft, net, incoming: Mutex::new(None) }
    }

    fn incoming(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn handle(self: Arc<Self>, from: Option<NodeName>, message: Bytes) -> Result<Bytes, Fault> {
        let envelope: Envelope = read(message).map_err(unreadable)?;
        self.admit(from, &envelope)?;
        self.net.state.running()?;
        let answered = match part(envelope.ask, "question").map_err(unreadable)? {
            Ask::Append(append) => self.append(append).await?,
            Ask::Vote(ask) => self.vote(ask).await?,
            Ask::PreVote(ask) => self.pre_vote(ask).await?,
            Ask::Transfer(transfer) => {
                let request = transfer.request::<R>().map_err(unreadable)?;
                let response = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
                Answered::Transferred(Transferred::new(&response))
            }
            Ask::Offer(offer) => Answered::Offered(self.clone().offered(offer)?),
            Ask::Reach(Nodes { ids }) => {
                let members = self.raft.metrics().borrow_watched().membership_config.clone();
                let reached = self.net.answering(&members, ids, self.net.append_deadline / 2).await;
                Answered::Reached(Nodes { ids: reached.into_iter().collect() })
            }
        };
        Ok(Bytes::from(stored(&Answer { answered: Some(answered) })))
    }

    fn admit(&self, from: Option<NodeName>, envelope: &Envelope) -> Result<(), Fault> {
        if envelope.cluster != self.net.cluster.0.as_slice() {
            return Err(refused("PV-WRONG-CLUSTER", "the message is for another cluster"));
        }
        let incarnation = Incarnation::from_slice(&envelope.incarnation);
        if envelope.to != self.net.node.0 || incarnation != Some(self.net.member.incarnation) {
            let message = format!("the message is for node {} of another life, this is {}", envelope.to, self.net.node);
            return Err(refused("PV-WRONG-DESTINATION", message));
        }
        let layout = self.net.state.published().layout;
        let known = layout.as_ref().and_then(|layout| layout.nodes.get(&NodeId(envelope.from)));
        match (known, from) {
            (Some(node), Some(name)) if node.name != name => {
                let message = format!("{name} speaks as node {}, which is {}", envelope.from, node.name);
                Err(refused("PV-WRONG-SENDER", message))
            }
            _ => Ok(()),
        }
    }

    async fn append(&self, append: Append) -> Result<Answered, Fault> {
        let request = append.request::<R>().map_err(unreadable)?;
        let response = self.raft.append_entries(request).await.map_err(stopped)?;
        Ok(Answered::Appended(Appended::new(&response)))
    }

    async fn vote(&self, ask: AskVote) -> Result<Answered, Fault> {
        let request = ask.request::<R>().map_err(unreadable)?;
        let response = self.raft.vote(request).await.map_err(stopped)?;
        Ok(Answered::Voted(Voted::new(&response)))
    }

    async fn pre_vote(&self, ask: AskVote) -> Result<Answered, Fault> {
        let request = ask.request::<R>().map_err(unreadable)?;
        let response = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Answered::Voted(Voted::new(&response)))
    }

    /// Begins to fetch an offered snapshot, or tells how far that is.
    fn offered(self: Arc<Self>, offer: Offer) -> Result<Offered, Fault> {
        let vote: Vote = part(offer.vote, "vote").map_err(unreadable)?.into();
        let membership = part(offer.membership, "membership").map_err(unreadable)?;
        let meta = snapshot_meta(offer.last, membership).map_err(unreadable)?;
        let sender = part(offer.sender, "sender").and_then(member).map_err(unreadable)?;
        // openraft panics on a snapshot beyond its leader's term: such an offer is forged or late.
        if meta.last_log_id.is_some_and(|last| last.leader_id.term > vote.leader_id.term) {
            return Err(refused("PV-CONSENSUS-MESSAGE", "the snapshot is newer than its sender's leadership"));
        }
        let ours = self.raft.metrics().borrow_watched().vote;
        if vote < ours {
            return Ok(Offered { vote: Some(VoteRow::from(&ours)), ..Offered::default() });
        }
        let mut slot = self.incoming();
        if let Some(incoming) = slot.as_ref().filter(|incoming| incoming.id == offer.id) {
            let mut answer = Offered { received_bytes: incoming.received_bytes, ..Offered::default() };
            match &incoming.ended {
                None => {}
                Some(Ok(vote)) => answer.vote = Some(VoteRow::from(vote)),
                Some(Err(why)) => {
                    answer.failed = Some(why.clone());
                    // The next offer begins again.
                    *slot = None;
                }
            }
            return Ok(answer);
        }
        let generation = slot.as_ref().map_or(1, |incoming| incoming.generation + 1);
        *slot = Some(Incoming { id: offer.id.clone(), generation, received_bytes: 0, ended: None });
        drop(slot);
        let server = self.clone();
        self.net.env.spawn(Box::pin(server.fetch(generation, offer.id, vote, meta, sender.target())));
        Ok(Offered::default())
    }

    async fn fetch(self: Arc<Self>, generation: u64, id: String, vote: Vote, meta: SnapshotMeta, from: Target) {
        let fetch = Fetch {
            state: self.net.state.clone(),
            env: self.net.env.clone(),
            peer: self.net.peer.clone(),
            from,
            id: id.clone(),
            piece_bytes: self.net.piece_bytes,
        };
        let fetched = fetch.run(|received| self.note(generation, |incoming| incoming.received_bytes = received)).await;
        let ended = match fetched {
            Err(fault) => Err(fault.to_string()),
            Ok(snapshot) if self.note(generation, |_| {}) => self
                .raft
                .install_full_snapshot(vote, Snapshot { meta, snapshot })
                .await
                .map(|response| response.vote)
                .map_err(|error| error.to_string()),
            Ok(_) => Err("a newer snapshot was offered".to_owned()),
        };
        if let Err(why) = &ended {
            tracing::warn!(snapshot = id, why, "could not take over a snapshot");
        }
        self.note(generation, |incoming| incoming.ended = Some(ended));
    }

    /// Updates the transfer `generation`; false when another took its place.
    fn note(&self, generation: u64, update: impl FnOnce(&mut Incoming)) -> bool {
        let mut slot = self.incoming();
        let current = slot.as_mut().filter(|incoming| incoming.generation == generation);
        current.map(update).is_some()
    }
}
