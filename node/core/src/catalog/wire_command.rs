//! Protobuf forms of entries, commands and outcomes.
//!
//! **Invariants.** The tag of a command is its kind and is never reused. A message in which no known kind is set is
//! an unknown command: an error, never skipped.

use super::Error;
use super::command::{Command, Entry, Outcome, Rejection};
use super::keys;
use super::wire_seal::{Placed, SealMessage, SealedMessage, no_placements, seal, seal_message, sealed, sealed_message};
use super::wire_words::{
    JoinMessage, ProfileMessage, cluster_id, digest, node_state, present, text, volume_id, volume_state,
};
use crate::ids::{LogIndex, NodeId, VersionNumber, WallMillis};
use crate::layout::Profile;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EntryMessage {
    #[prost(uint64, tag = "1")]
    pub time: u64,
    #[prost(message, repeated, tag = "2")]
    pub commands: Vec<CommandMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CommandMessage {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "1")]
    Init(InitMessage),
    #[prost(message, tag = "2")]
    Join(JoinMessage),
    #[prost(message, tag = "3")]
    NodeState(NodeStateMessage),
    #[prost(message, tag = "4")]
    AddVolume(AddVolumeMessage),
    #[prost(message, tag = "5")]
    VolumeState(VolumeStateMessage),
    #[prost(message, tag = "6")]
    Profile(SetProfileMessage),
    #[prost(message, tag = "7")]
    Seal(Box<SealMessage>),
    #[prost(message, tag = "8")]
    Delete(DeleteMessage),
    #[prost(message, tag = "9")]
    Compare(CompareMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InitMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub cluster: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub profiles: Vec<ProfileMessage>,
    #[prost(string, tag = "3")]
    pub default_profile: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NodeStateMessage {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint32, tag = "2")]
    pub state: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddVolumeMessage {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub volume: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VolumeStateMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub state: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetProfileMessage {
    #[prost(message, optional, tag = "1")]
    pub profile: Option<ProfileMessage>,
    #[prost(bool, tag = "2")]
    pub make_default: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub object: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    pub version: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CompareMessage {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
}

pub(super) fn command_message(command: &Command) -> CommandMessage {
    let kind = match command {
        Command::InitCluster { cluster, profiles, default_profile } => Kind::Init(InitMessage {
            cluster: cluster.0.to_vec(),
            profiles: profiles.iter().map(ProfileMessage::from).collect(),
            default_profile: default_profile.to_string(),
        }),
        Command::JoinNode(join) => Kind::Join(join.into()),
        Command::SetNodeState { node, state } => {
            Kind::NodeState(NodeStateMessage { node: node.0, state: (*state as u8).into() })
        }
        Command::AddVolume { node, volume, capacity_bytes } => Kind::AddVolume(AddVolumeMessage {
            node: node.0,
            volume: volume.0.to_vec(),
            capacity_bytes: *capacity_bytes,
        }),
        Command::SetVolumeState { volume, state } => {
            Kind::VolumeState(VolumeStateMessage { volume: volume.0.to_vec(), state: (*state as u8).into() })
        }
        Command::SetProfile { profile, make_default } => {
            Kind::Profile(SetProfileMessage { profile: Some(profile.into()), make_default: *make_default })
        }
        Command::Seal(seal) => Kind::Seal(Box::new(seal_message(seal, &Placed::ByVolumes))),
        Command::Delete { key, version } => {
            Kind::Delete(DeleteMessage { object: keys::object_name(key), version: version.map(|version| version.0) })
        }
        Command::CompareDigest { index, digest } => {
            Kind::Compare(CompareMessage { index: index.0, digest: digest.0.to_vec() })
        }
    };
    CommandMessage { kind: Some(kind) }
}

impl TryFrom<CommandMessage> for Command {
    type Error = Error;
    fn try_from(message: CommandMessage) -> Result<Self, Error> {
        Ok(match message.kind.ok_or(Error::UnknownTag { what: "command", tag: 0 })? {
            Kind::Init(init) => Self::InitCluster {
                cluster: cluster_id(&init.cluster)?,
                profiles: init.profiles.into_iter().map(Profile::try_from).collect::<Result<_, _>>()?,
                default_profile: text("default profile", &init.default_profile)?,
            },
            Kind::Join(join) => Self::JoinNode(join.try_into()?),
            Kind::NodeState(set) => Self::SetNodeState { node: NodeId(set.node), state: node_state(set.state)? },
            Kind::AddVolume(add) => Self::AddVolume {
                node: NodeId(add.node),
                volume: volume_id(&add.volume)?,
                capacity_bytes: add.capacity_bytes,
            },
            Kind::VolumeState(set) => {
                Self::SetVolumeState { volume: volume_id(&set.volume)?, state: volume_state(set.state)? }
            }
            Kind::Profile(set) => Self::SetProfile {
                profile: present("profile", set.profile)?.try_into()?,
                make_default: set.make_default,
            },
            Kind::Seal(message) => Self::Seal(Box::new(seal(*message, &mut no_placements)?)),
            Kind::Delete(delete) => Self::Delete {
                key: keys::parse_object_name(&delete.object)?,
                version: delete.version.map(VersionNumber),
            },
            Kind::Compare(compare) => {
                Self::CompareDigest { index: LogIndex(compare.index), digest: digest(&compare.digest)? }
            }
        })
    }
}

impl TryFrom<EntryMessage> for Entry {
    type Error = Error;
    fn try_from(message: EntryMessage) -> Result<Self, Error> {
        let commands = message.commands.into_iter().map(Command::try_from).collect::<Result<_, _>>()?;
        Ok(Self { time: WallMillis(message.time), commands })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OutcomeMessage {
    /// 1 done, 2 joined, 3 sealed, 4 deleted, 5 rejected.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(message, optional, tag = "3")]
    pub sealed: Option<SealedMessage>,
    #[prost(bool, tag = "4")]
    pub first: bool,
    #[prost(uint32, repeated, tag = "5")]
    pub versions: Vec<u32>,
    #[prost(message, optional, tag = "6")]
    pub rejection: Option<RejectionMessage>,
    /// Of a delete; 0 from a version that did not tell, which no reader waits for.
    #[prost(uint64, tag = "7")]
    pub index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RejectionMessage {
    /// 1 cluster state, 2 name taken, 3 unknown, 4 not allowed, 5 impossible, 6 fenced, 7 too weak, 8 window closed,
    /// 9 malformed, 10 not found.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(string, tag = "2")]
    pub text: String,
    #[prost(bytes = "vec", tag = "3")]
    pub volume: Vec<u8>,
    #[prost(uint64, tag = "4")]
    pub first: u64,
    #[prost(uint64, tag = "5")]
    pub second: u64,
    #[prost(uint32, tag = "6")]
    pub stripe: u32,
}

pub(super) fn outcome_message(outcome: &Outcome) -> OutcomeMessage {
    match outcome {
        Outcome::Done => OutcomeMessage { kind: 1, ..Default::default() },
        Outcome::Joined(node) => OutcomeMessage { kind: 2, node: node.0, ..Default::default() },
        Outcome::Sealed { sealed, first } => OutcomeMessage {
            kind: 3,
            sealed: Some(sealed_message(sealed, &Placed::ByVolumes)),
            first: *first,
            ..Default::default()
        },
        Outcome::Deleted { versions, index } => OutcomeMessage {
            kind: 4,
            versions: versions.iter().map(|one| one.0).collect(),
            index: index.0,
            ..Default::default()
        },
        Outcome::Rejected(rejection) => {
            OutcomeMessage { kind: 5, rejection: Some(rejection_message(rejection)), ..Default::default() }
        }
    }
}

fn rejection_message(rejection: &Rejection) -> RejectionMessage {
    let plain = |kind: u32, text: &str| RejectionMessage { kind, text: text.to_owned(), ..Default::default() };
    match rejection {
        Rejection::ClusterState(text) => plain(1, text),
        Rejection::NameTaken { name, node } => RejectionMessage { first: node.0, ..plain(2, name.as_str()) },
        Rejection::Unknown(text) => plain(3, text),
        Rejection::NotAllowed(text) => plain(4, text),
        Rejection::Impossible(text) => plain(5, text),
        Rejection::Fenced { volume } => RejectionMessage { volume: volume.0.to_vec(), ..plain(6, "") },
        Rejection::TooWeak { stripe, why } => RejectionMessage { stripe: *stripe, ..plain(7, why) },
        Rejection::WindowClosed { began, horizon } => {
            RejectionMessage { first: *began, second: *horizon, ..plain(8, "") }
        }
        Rejection::Malformed(text) => plain(9, text),
        Rejection::NotFound(text) => plain(10, text),
    }
}

impl TryFrom<OutcomeMessage> for Outcome {
    type Error = Error;
    fn try_from(message: OutcomeMessage) -> Result<Self, Error> {
        Ok(match message.kind {
            1 => Self::Done,
            2 => Self::Joined(NodeId(message.node)),
            3 => {
                let record = sealed(present("sealed record", message.sealed)?, &mut no_placements)?;
                Self::Sealed { sealed: Box::new(record), first: message.first }
            }
            4 => Self::Deleted {
                versions: message.versions.into_iter().map(VersionNumber).collect(),
                index: LogIndex(message.index),
            },
            5 => Self::Rejected(present("rejection", message.rejection)?.try_into()?),
            tag => return Err(Error::UnknownTag { what: "outcome", tag }),
        })
    }
}

impl TryFrom<RejectionMessage> for Rejection {
    type Error = Error;
    fn try_from(message: RejectionMessage) -> Result<Self, Error> {
        Ok(match message.kind {
            1 => Self::ClusterState(message.text),
            2 => Self::NameTaken { name: text("node name", &message.text)?, node: NodeId(message.first) },
            3 => Self::Unknown(message.text),
            4 => Self::NotAllowed(message.text),
            5 => Self::Impossible(message.text),
            6 => Self::Fenced { volume: volume_id(&message.volume)? },
            7 => Self::TooWeak { stripe: message.stripe, why: message.text },
            8 => Self::WindowClosed { began: message.first, horizon: message.second },
            9 => Self::Malformed(message.text),
            10 => Self::NotFound(message.text),
            tag => return Err(Error::UnknownTag { what: "rejection", tag }),
        })
    }
}
