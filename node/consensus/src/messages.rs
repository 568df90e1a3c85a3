//! Messages between replicas, as they travel in `Request::Raft` and `Reply::Raft`.
//!
//! **Invariants.** Every request is an [`Envelope`]: it names the cluster and the node id and incarnation it is for. A
//! message begins with the format byte.

use bytes::Bytes;
use openraft::{
    AsyncRuntime,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};

use crate::{
    rows::{EntryRow, LogIdRow, MemberRow, MembershipRow, RowError, VoteRow, entry, entry_row},
    types::{LogId, Types, Vote},
};

/// A request, addressed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Envelope {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cluster: Bytes,
    /// Node id it is for.
    #[prost(uint64, tag = "2")]
    pub(crate) to: u64,
    /// Incarnation it is for.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) incarnation: Bytes,
    /// Node id of the sender.
    #[prost(uint64, tag = "4")]
    pub(crate) from: u64,
    #[prost(oneof = "Ask", tags = "5, 6, 7, 8, 9, 10")]
    pub(crate) ask: Option<Ask>,
}

/// What is asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Ask {
    #[prost(message, tag = "5")]
    Append(Append),
    #[prost(message, tag = "6")]
    Vote(AskVote),
    #[prost(message, tag = "7")]
    PreVote(AskVote),
    #[prost(message, tag = "8")]
    Transfer(Transfer),
    #[prost(message, tag = "9")]
    Offer(Offer),
    #[prost(message, tag = "10")]
    Reach(Nodes),
}

/// A reply.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Answer {
    #[prost(oneof = "Answered", tags = "1, 2, 3, 4, 5")]
    pub(crate) answered: Option<Answered>,
}

/// What is answered.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Answered {
    #[prost(message, tag = "1")]
    Appended(Appended),
    #[prost(message, tag = "2")]
    Voted(Voted),
    #[prost(message, tag = "3")]
    Transferred(Transferred),
    #[prost(message, tag = "4")]
    Offered(Offered),
    #[prost(message, tag = "5")]
    Reached(Nodes),
}

/// Which members are to be called, and which of them answered.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Nodes {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

/// Entries to append, or a heartbeat.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Append {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    pub(crate) previous: Option<LogIdRow>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) entries: Vec<EntryRow>,
    #[prost(message, optional, tag = "4")]
    pub(crate) commit: Option<LogIdRow>,
}

/// How an append went.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Appended {
    #[prost(enumeration = "AppendedKind", tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) matching: Option<LogIdRow>,
    #[prost(message, optional, tag = "3")]
    pub(crate) vote: Option<VoteRow>,
}

/// Ways an append can go. Tags are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AppendedKind {
    Unknown = 0,
    Success = 1,
    Partial = 2,
    Conflict = 3,
    HigherVote = 4,
}

/// A candidate's request, real or probing.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AskVote {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    pub(crate) last: Option<LogIdRow>,
    #[prost(bool, tag = "3")]
    pub(crate) transfer: bool,
}

/// Answer to a candidate.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Voted {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    pub(crate) last: Option<LogIdRow>,
    #[prost(bool, tag = "3")]
    pub(crate) granted: bool,
}

/// The leader asks a follower to take over.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Transfer {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRow>,
    #[prost(uint64, tag = "2")]
    pub(crate) to: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRow>,
}

/// Whether it does.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Transferred {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote_changed: Option<VotePair>,
    #[prost(message, optional, tag = "2")]
    pub(crate) not_flushed: Option<LogIdPair>,
}

/// Expected and actual vote.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VotePair {
    #[prost(message, optional, tag = "1")]
    pub(crate) expected: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    pub(crate) actual: Option<VoteRow>,
}

/// Expected and actual log id.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LogIdPair {
    #[prost(message, optional, tag = "1")]
    pub(crate) expected: Option<LogIdRow>,
    #[prost(message, optional, tag = "2")]
    pub(crate) actual: Option<LogIdRow>,
}

/// A snapshot that the receiver may fetch from the sender. Repeated until it is installed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Offer {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) vote: Option<VoteRow>,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRow>,
    #[prost(message, optional, tag = "4")]
    pub(crate) membership: Option<MembershipRow>,
    /// Where to fetch it.
    #[prost(message, optional, tag = "5")]
    pub(crate) sender: Option<MemberRow>,
}

/// How far the receiver is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Offered {
    /// Bytes received so far.
    #[prost(uint64, tag = "1")]
    pub(crate) received_bytes: u64,
    /// Set when it is installed or was not needed: the receiver's vote.
    #[prost(message, optional, tag = "2")]
    pub(crate) vote: Option<VoteRow>,
    /// Set when it failed: why.
    #[prost(string, optional, tag = "3")]
    pub(crate) failed: Option<String>,
}

/// A part that must be there.
pub(crate) fn part<T>(value: Option<T>, what: &'static str) -> Result<T, RowError> {
    value.ok_or(RowError::Part(what))
}

fn vote_of(row: Option<VoteRow>) -> Result<Vote, RowError> {
    part(row, "vote").map(Vote::from)
}

fn id_row(id: &Option<LogId>) -> Option<LogIdRow> {
    id.as_ref().map(LogIdRow::from)
}

impl Append {
    pub(crate) fn new<R: AsyncRuntime>(request: &AppendEntriesRequest<Types<R>>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            previous: id_row(&request.prev_log_id),
            entries: request.entries.iter().map(entry_row).collect(),
            commit: id_row(&request.leader_commit),
        }
    }

    pub(crate) fn request<R: AsyncRuntime>(self) -> Result<AppendEntriesRequest<Types<R>>, RowError> {
        Ok(AppendEntriesRequest {
            vote: vote_of(self.vote)?,
            prev_log_id: self.previous.map(LogId::from),
            entries: self.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
            leader_commit: self.commit.map(LogId::from),
        })
    }
}

impl Appended {
    pub(crate) fn new<R: AsyncRuntime>(response: &AppendEntriesResponse<Types<R>>) -> Self {
        let (kind, matching, vote) = match response {
            AppendEntriesResponse::Success => (AppendedKind::Success, None, None),
            AppendEntriesResponse::PartialSuccess(id) => (AppendedKind::Partial, id_row(id), None),
            AppendEntriesResponse::Conflict => (AppendedKind::Conflict, None, None),
            AppendEntriesResponse::HigherVote(vote) => (AppendedKind::HigherVote, None, Some(vote.into())),
        };
        Self { kind: kind.into(), matching, vote }
    }

    pub(crate) fn response<R: AsyncRuntime>(self) -> Result<AppendEntriesResponse<Types<R>>, RowError> {
        match self.kind() {
            AppendedKind::Unknown => Err(RowError::Part("append result")),
            AppendedKind::Success => Ok(AppendEntriesResponse::Success),
            AppendedKind::Partial => Ok(AppendEntriesResponse::PartialSuccess(self.matching.map(LogId::from))),
            AppendedKind::Conflict => Ok(AppendEntriesResponse::Conflict),
            AppendedKind::HigherVote => Ok(AppendEntriesResponse::HigherVote(vote_of(self.vote)?)),
        }
    }
}

impl AskVote {
    pub(crate) fn new<R: AsyncRuntime>(request: &VoteRequest<Types<R>>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            last: id_row(&request.last_log_id),
            transfer: request.leadership_transfer,
        }
    }

    pub(crate) fn request<R: AsyncRuntime>(self) -> Result<VoteRequest<Types<R>>, RowError> {
        let mut request = VoteRequest::new(vote_of(self.vote)?, self.last.map(LogId::from));
        request.leadership_transfer = self.transfer;
        Ok(request)
    }
}

impl Voted {
    pub(crate) fn new<R: AsyncRuntime>(response: &VoteResponse<Types<R>>) -> Self {
        Self {
            vote: Some((&response.vote).into()),
            last: id_row(&response.last_log_id),
            granted: response.vote_granted,
        }
    }

    pub(crate) fn response<R: AsyncRuntime>(self) -> Result<VoteResponse<Types<R>>, RowError> {
        Ok(VoteResponse::new(vote_of(self.vote)?, self.last.map(LogId::from), self.granted))
    }
}

impl Transfer {
    pub(crate) fn new<R: AsyncRuntime>(request: &TransferLeaderRequest<Types<R>>) -> Self {
        Self {
            vote: Some(request.from_leader().into()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(LogIdRow::from),
        }
    }

    pub(crate) fn request<R: AsyncRuntime>(self) -> Result<TransferLeaderRequest<Types<R>>, RowError> {
        Ok(TransferLeaderRequest::new(vote_of(self.vote)?, self.to, self.last.map(LogId::from)))
    }
}

impl Transferred {
    pub(crate) fn new<R: AsyncRuntime>(response: &TransferLeaderResponse<Types<R>>) -> Self {
        match response {
            Ok(()) => Self::default(),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Self {
                vote_changed: Some(VotePair { expected: Some(expected.into()), actual: Some(actual.into()) }),
                not_flushed: None,
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self {
                vote_changed: None,
                not_flushed: Some(LogIdPair { expected: id_row(expected), actual: id_row(actual) }),
            },
        }
    }

    pub(crate) fn response<R: AsyncRuntime>(self) -> Result<TransferLeaderResponse<Types<R>>, RowError> {
        if let Some(pair) = self.vote_changed {
            let (expected, actual) = (vote_of(pair.expected)?, vote_of(pair.actual)?);
            return Ok(Err(TransferLeaderError::VoteChanged { expected, actual }));
        }
        if let Some(pair) = self.not_flushed {
            let (expected, actual) = (pair.expected.map(LogId::from), pair.actual.map(LogId::from));
            return Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }));
        }
        Ok(Ok(()))
    }
}
