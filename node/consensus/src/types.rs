//! The types openraft is made of here.
//!
//! **Invariants.** Leader ids are the standard ones: one leader per term, so a log id is (term, index). Node ids are
//! never reused. A [`Data`] holds the encoded entry: it is encoded once by the proposer and decoded once by each
//! replica's `apply`, never in between.

use std::{cmp::Ordering, fmt, marker::PhantomData};

use bytes::Bytes;
use openraft::{
    AsyncRuntime, EntryPayload, OptionalSend, RaftTypeConfig,
    impls::{BoxedErrorSource, InlineBatch, OneshotResponder, leader_id_std},
    vote::RaftLeaderId,
};
use pacsvault_core::{
    catalog::Outcome,
    ids::{Incarnation, NodeName, SiteName},
};
use pacsvault_ports::peer::Target;

/// The node that was elected or asks to be: (term, node id).
pub type LeaderId = leader_id_std::LeaderId<u64, u64>;
/// What remains of a leader id once it was elected: its term.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
/// Identity of a log entry: (term, index).
pub type LogId = openraft::LogId<CommittedLeaderId>;
/// A vote, or the leadership it became.
pub type Vote = openraft::Vote<LeaderId>;
/// What an entry carries.
pub type Payload = EntryPayload<Data, u64, Member>;
/// A log entry.
pub type Entry = openraft::Entry<CommittedLeaderId, Payload>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, Member>;
/// A membership with the log id of the entry that set it.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Member>;

/// The log id of `index` in `term`.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// An encoded `core::catalog::Entry`, as proposed, stored, sent and applied.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(pub Bytes);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A node as the membership knows it. Never changed in place: another incarnation is another node with another id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where to dial it. Only a hint: the layout's address is preferred, and the receiver proves its identity.
    pub address: String,
    /// Name in its certificate; absent only for members that tests make up.
    pub name: Option<NodeName>,
    /// Failure domain; absent only for members that tests make up.
    pub site: Option<SiteName>,
    /// Which life of the data directory the node id belongs to.
    pub incarnation: Incarnation,
}

impl Default for Member {
    fn default() -> Self {
        Self { address: String::new(), name: None, site: None, incarnation: Incarnation([0; 16]) }
    }
}

impl Member {
    /// Where to dial this member.
    pub fn target(&self) -> Target {
        Target { address: self.address.clone(), name: self.name.clone() }
    }
}

/// openraft's type configuration over the runtime `R`.
pub struct Types<R>(PhantomData<fn() -> R>);

impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Types<R> {}

impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for Types<R> {}

impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<R: AsyncRuntime> RaftTypeConfig for Types<R> {
    type D = Data;
    type R = Vec<Outcome>;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}
