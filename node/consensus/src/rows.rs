//! Bytes of what is stored and sent: log ids, votes, members, memberships, entries.
//!
//! **Invariants.** Every stored value begins with [`FORMAT`]. Encoding then decoding gives the same value; a value of
//! another format, or one that lacks a part, is an error and never a default.

use bytes::Bytes;
use openraft::EntryPayload;
use pacsvault_core::ids::Incarnation;
use prost::Message;

use crate::types::{Data, Entry, LeaderId, LogId, Member, Membership, SnapshotMeta, StoredMembership, Vote, log_id};

/// First byte of every stored value and of every message.
pub(crate) const FORMAT: u8 = 1;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RowError {
    /// The first byte is not [`FORMAT`].
    #[error("format {0:?} is not known to this version")]
    Format(Option<u8>),
    /// Not the protobuf expected.
    #[error("not decodable: {0}")]
    Decode(String),
    /// A part is absent or malformed.
    #[error("{0} is absent or malformed")]
    Part(&'static str),
}

/// A log id.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct LogIdRow {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) index: u64,
}

/// A vote.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct VoteRow {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(bool, tag = "3")]
    pub(crate) committed: bool,
}

/// A node of a membership.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberRow {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(string, tag = "4")]
    pub(crate) site: String,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) incarnation: Bytes,
}

/// One voter set.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VotersRow {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

/// A membership and, where stored, the log id that set it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipRow {
    #[prost(message, optional, tag = "1")]
    pub(crate) log_id: Option<LogIdRow>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) configs: Vec<VotersRow>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) members: Vec<MemberRow>,
}

/// A log entry.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryRow {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) index: u64,
    #[prost(oneof = "PayloadRow", tags = "3, 4, 5")]
    pub(crate) payload: Option<PayloadRow>,
}

/// What an entry carries.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum PayloadRow {
    /// Nothing: the first entry of a leader.
    #[prost(bool, tag = "3")]
    Blank(bool),
    /// Commands.
    #[prost(bytes = "bytes", tag = "4")]
    Normal(Bytes),
    /// A membership.
    #[prost(message, tag = "5")]
    Membership(MembershipRow),
}

/// A stored value: the format byte, then the message.
pub(crate) fn stored(row: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + row.encoded_len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&row.encode_to_vec());
    bytes
}

/// Reads what [`stored`] wrote.
pub(crate) fn read<M: Message + Default>(bytes: impl Into<Bytes>) -> Result<M, RowError> {
    let mut bytes: Bytes = bytes.into();
    match bytes.first() {
        Some(&FORMAT) => {}
        other => return Err(RowError::Format(other.copied())),
    }
    M::decode(bytes.split_off(1)).map_err(|error| RowError::Decode(error.to_string()))
}

impl From<&LogId> for LogIdRow {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<LogIdRow> for LogId {
    fn from(row: LogIdRow) -> Self {
        log_id(row.term, row.index)
    }
}

impl From<&Vote> for VoteRow {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteRow> for Vote {
    fn from(row: VoteRow) -> Self {
        Self { leader_id: LeaderId { term: row.term, voted_for: row.node }, committed: row.committed }
    }
}

/// The row of member `id`.
pub(crate) fn member_row(id: u64, member: &Member) -> MemberRow {
    MemberRow {
        id,
        address: member.address.clone(),
        name: member.name.as_ref().map(|name| name.as_str().to_owned()).unwrap_or_default(),
        site: member.site.as_ref().map(|site| site.as_str().to_owned()).unwrap_or_default(),
        incarnation: Bytes::copy_from_slice(&member.incarnation.0),
    }
}

/// The member that a row describes. Empty names are those of members made up by tests.
pub(crate) fn member(row: MemberRow) -> Result<Member, RowError> {
    let name = match row.name.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| RowError::Part("member name"))?),
    };
    let site = match row.site.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| RowError::Part("member site"))?),
    };
    let incarnation = Incarnation::from_slice(&row.incarnation).ok_or(RowError::Part("member incarnation"))?;
    Ok(Member { address: row.address, name, site, incarnation })
}

fn bare_membership_row(membership: &Membership) -> MembershipRow {
    MembershipRow {
        log_id: None,
        configs: membership
            .get_joint_config()
            .iter()
            .map(|config| VotersRow { ids: config.iter().copied().collect() })
            .collect(),
        members: membership.nodes().map(|(id, node)| member_row(*id, node)).collect(),
    }
}

fn bare_membership(row: MembershipRow) -> Result<Membership, RowError> {
    let configs: Vec<_> = row.configs.into_iter().map(|voters| voters.ids.into_iter().collect()).collect();
    let mut nodes = std::collections::BTreeMap::new();
    for member_row in row.members {
        nodes.insert(member_row.id, member(member_row)?);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| RowError::Part("membership"))
}

/// The row of a stored membership.
pub(crate) fn membership_row(stored: &StoredMembership) -> MembershipRow {
    MembershipRow { log_id: stored.log_id().as_ref().map(LogIdRow::from), ..bare_membership_row(stored.membership()) }
}

/// The stored membership that a row describes.
pub(crate) fn membership(row: MembershipRow) -> Result<StoredMembership, RowError> {
    let id = row.log_id.map(LogId::from);
    Ok(StoredMembership::new(id, bare_membership(row)?))
}

/// The row of an entry. Command bytes are shared, not copied.
pub(crate) fn entry_row(entry: &Entry) -> EntryRow {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRow::Blank(true),
        EntryPayload::Normal(data) => PayloadRow::Normal(data.0.clone()),
        EntryPayload::Membership(membership) => PayloadRow::Membership(bare_membership_row(membership)),
    };
    EntryRow { term: entry.log_id.leader_id.term, index: entry.log_id.index, payload: Some(payload) }
}

/// The entry that a row describes.
pub(crate) fn entry(row: EntryRow) -> Result<Entry, RowError> {
    let payload = match row.payload.ok_or(RowError::Part("entry payload"))? {
        PayloadRow::Blank(_) => EntryPayload::Blank,
        PayloadRow::Normal(bytes) => EntryPayload::Normal(Data(bytes)),
        PayloadRow::Membership(row) => EntryPayload::Membership(bare_membership(row)?),
    };
    Ok(Entry { log_id: log_id(row.term, row.index), payload })
}

/// What a snapshot covers, from the position and membership that travelled.
pub(crate) fn snapshot_meta(last: Option<LogIdRow>, row: MembershipRow) -> Result<SnapshotMeta, RowError> {
    Ok(SnapshotMeta { last_log_id: last.map(LogId::from), last_membership: membership(row)? })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use pacsvault_core::ids::{LogIndex, Term};

    use super::*;
    use crate::log_store::commands_of;

    fn joint() -> Membership {
        let member = |n: u8| Member {
            address: format!("10.0.0.{n}:7000"),
            name: Some(format!("node-{n}").parse().expect("a name")),
            site: Some("east".parse().expect("a name")),
            incarnation: Incarnation([n; 16]),
        };
        let nodes: BTreeMap<u64, Member> = (1..=4).map(|n| (u64::from(n), member(n))).collect();
        Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4])], nodes).expect("a membership")
    }

    #[test]
    fn entries_read_back_what_was_stored() {
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Data(Bytes::from_static(b"commands"))),
            EntryPayload::Normal(Data(Bytes::new())),
            EntryPayload::Membership(joint()),
        ] {
            let first = Entry { log_id: log_id(7, 42), payload };
            let again = entry(read(stored(&entry_row(&first))).expect("readable")).expect("an entry");
            assert_eq!(first, again);
        }
    }

    #[test]
    fn who_looks_on_reads_commands_from_rows_of_entries() {
        let row = |payload| stored(&entry_row(&Entry { log_id: log_id(7, 42), payload }));
        let told = |commands| Some((Term(7), LogIndex(42), commands));
        let commands = Bytes::from_static(b"commands");
        assert_eq!(commands_of(b"e00000042", &row(EntryPayload::Normal(Data(commands.clone())))), told(Some(commands)));
        assert_eq!(commands_of(b"e00000042", &row(EntryPayload::Blank)), told(None));
        assert_eq!(commands_of(b"c", &row(EntryPayload::Blank)), None);
        assert_eq!(commands_of(b"e00000042", b"\x02"), None);
    }

    #[test]
    fn memberships_and_votes_read_back_what_was_stored() {
        for first in [StoredMembership::default(), StoredMembership::new(Some(log_id(1, 2)), joint())] {
            assert_eq!(membership(read(stored(&membership_row(&first))).expect("readable")), Ok(first));
        }
        for committed in [false, true] {
            let vote = Vote { leader_id: LeaderId { term: 3, voted_for: 9 }, committed };
            assert_eq!(Vote::from(read::<VoteRow>(stored(&VoteRow::from(&vote))).expect("readable")), vote);
        }
    }

    #[test]
    fn another_format_is_refused() {
        assert_eq!(read::<VoteRow>(vec![2, 0]), Err(RowError::Format(Some(2))));
        assert_eq!(read::<VoteRow>(Vec::new()), Err(RowError::Format(None)));
        assert!(entry(read(vec![FORMAT]).expect("an empty message")).is_err());
    }
}
