//! Protobuf forms of entries, commands and outcomes.
//!
//! **Invariants.** The tag of a command is its kind and is never reused. A message in which no known kind is set is
//! an unknown command: an error, never skipped.

use super::Error;
use super::command::{Command, DrainTarget, Entry, Outcome, Rejection, Replace, Reseat};
use super::keys;
use super::wire_seal::{Placed, SealMessage, SealedMessage, no_placements, seal, seal_message, sealed, sealed_message};
use super::wire_words::{
    JoinMessage, ProfileMessage, cluster_id, digest, instance_id, node_state, present, text, unreadable, volume_bytes,
    volume_id, volume_ids, volume_state,
};
use crate::ids::{LogIndex, NodeId, ShardIndex, StripeIndex, VersionNumber, WallMillis};
use crate::layout::Profile;
use crate::shard::ShardId;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EntryMessage {
    #[prost(uint64, tag = "1")]
    pub time: u64,
    #[prost(message, repeated, tag = "2")]
    pub commands: Vec<CommandMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CommandMessage {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
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
    #[prost(uint32, tag = "10")]
    Activate(u32),
    #[prost(message, tag = "11")]
    Reseat(ReseatMessage),
    #[prost(message, tag = "12")]
    Damage(DamageMessage),
    #[prost(message, tag = "13")]
    Aside(AsideMessage),
    #[prost(bool, tag = "14")]
    RetryAside(bool),
    #[prost(message, tag = "15")]
    Replace(Box<ReplaceMessage>),
    #[prost(message, tag = "16")]
    StudyProfile(StudyProfileMessage),
    #[prost(message, tag = "17")]
    Drain(DrainMessage),
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

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReseatMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub instance: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub stripe: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub expected: Vec<u8>,
    #[prost(uint32, tag = "4")]
    pub persisted: u32,
    /// One byte each.
    #[prost(bytes = "vec", tag = "5")]
    pub shards: Vec<u8>,
    /// 16 bytes each, as many as shards.
    #[prost(bytes = "vec", tag = "6")]
    pub targets: Vec<u8>,
    #[prost(uint64, tag = "7")]
    pub not_after: u64,
}

impl From<&Reseat> for ReseatMessage {
    fn from(reseat: &Reseat) -> Self {
        Self {
            instance: reseat.instance.0.to_vec(),
            stripe: reseat.stripe.0,
            expected: volume_bytes(&reseat.expected),
            persisted: reseat.persisted,
            shards: reseat.moves.iter().map(|(shard, _)| shard.0).collect(),
            targets: reseat.moves.iter().flat_map(|(_, volume)| volume.0).collect(),
            not_after: reseat.not_after.0,
        }
    }
}

impl TryFrom<ReseatMessage> for Reseat {
    type Error = Error;
    fn try_from(message: ReseatMessage) -> Result<Self, Error> {
        let targets = volume_ids(&message.targets)?;
        if targets.len() != message.shards.len() {
            return Err(unreadable("reseat", "shards and targets differ in number"));
        }
        Ok(Self {
            instance: instance_id(&message.instance)?,
            stripe: StripeIndex(message.stripe),
            expected: volume_ids(&message.expected)?,
            persisted: message.persisted,
            moves: message.shards.iter().map(|shard| ShardIndex(*shard)).zip(targets).collect(),
            not_after: WallMillis(message.not_after),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DamageMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    /// 21 bytes each: instance, stripe (big-endian), shard.
    #[prost(bytes = "vec", tag = "2")]
    pub shards: Vec<u8>,
}

fn shard_bytes(shards: &[ShardId]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(21 * shards.len());
    for shard in shards {
        bytes.extend_from_slice(&shard.instance.0);
        bytes.extend_from_slice(&shard.stripe.0.to_be_bytes());
        bytes.push(shard.shard.0);
    }
    bytes
}

fn shard_ids(bytes: &[u8]) -> Result<Vec<ShardId>, Error> {
    let (ids, rest) = bytes.as_chunks::<21>();
    if !rest.is_empty() {
        return Err(unreadable("list of shards", format!("it has {} bytes", bytes.len())));
    }
    let one = |id: &[u8; 21]| {
        let mut stripe = [0; 4];
        stripe.copy_from_slice(&id[16..20]);
        Ok(ShardId {
            instance: instance_id(&id[..16])?,
            stripe: StripeIndex(u32::from_be_bytes(stripe)),
            shard: ShardIndex(id[20]),
        })
    };
    ids.iter().map(one).collect()
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AsideMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub instance: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub stripe: u32,
    #[prost(string, tag = "3")]
    pub reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReplaceMessage {
    #[prost(message, optional, tag = "1")]
    pub seal: Option<SealMessage>,
    #[prost(uint32, tag = "2")]
    pub version: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub replaces: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StudyProfileMessage {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(string, tag = "2")]
    pub study: String,
    #[prost(string, optional, tag = "3")]
    pub profile: Option<String>,
}

/// Exactly one of node and volume is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DrainMessage {
    #[prost(uint64, optional, tag = "1")]
    pub node: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub volume: Option<Vec<u8>>,
    #[prost(bool, tag = "3")]
    pub draining: bool,
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
        Command::Activate { version } => Kind::Activate(*version),
        Command::Reseat(reseat) => Kind::Reseat(reseat.into()),
        Command::ReportDamage { volume, shards } => {
            Kind::Damage(DamageMessage { volume: volume.0.to_vec(), shards: shard_bytes(shards) })
        }
        Command::SetAside { instance, stripe, reason } => {
            Kind::Aside(AsideMessage { instance: instance.0.to_vec(), stripe: stripe.0, reason: reason.clone() })
        }
        Command::RetryAside => Kind::RetryAside(true),
        Command::Replace(replace) => Kind::Replace(Box::new(ReplaceMessage {
            seal: Some(seal_message(&replace.seal, &Placed::ByVolumes)),
            version: replace.version.0,
            replaces: replace.replaces.0.to_vec(),
        })),
        Command::SetStudyProfile { tenant, study, profile } => Kind::StudyProfile(StudyProfileMessage {
            tenant: tenant.to_string(),
            study: study.to_string(),
            profile: profile.as_ref().map(ToString::to_string),
        }),
        Command::SetDrain { target, draining } => {
            let mut message = DrainMessage { draining: *draining, ..Default::default() };
            match target {
                DrainTarget::Node(node) => message.node = Some(node.0),
                DrainTarget::Volume(volume) => message.volume = Some(volume.0.to_vec()),
            }
            Kind::Drain(message)
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
            Kind::Activate(version) => Self::Activate { version },
            Kind::Reseat(reseat) => Self::Reseat(reseat.try_into()?),
            Kind::Damage(damage) => {
                Self::ReportDamage { volume: volume_id(&damage.volume)?, shards: shard_ids(&damage.shards)? }
            }
            Kind::Aside(aside) => Self::SetAside {
                instance: instance_id(&aside.instance)?,
                stripe: StripeIndex(aside.stripe),
                reason: aside.reason,
            },
            Kind::RetryAside(true) => Self::RetryAside,
            Kind::RetryAside(false) => return Err(unreadable("retry", "it says no")),
            Kind::Replace(replace) => Self::Replace(Box::new(Replace {
                seal: seal(present("seal of a replacement", replace.seal)?, &mut no_placements)?,
                version: VersionNumber(replace.version),
                replaces: instance_id(&replace.replaces)?,
            })),
            Kind::StudyProfile(set) => Self::SetStudyProfile {
                tenant: text("tenant", &set.tenant)?,
                study: text("study UID", &set.study)?,
                profile: set.profile.map(|name| text("profile name", &name)).transpose()?,
            },
            Kind::Drain(drain) => Self::SetDrain {
                target: match (drain.node, drain.volume) {
                    (Some(node), None) => DrainTarget::Node(NodeId(node)),
                    (None, Some(volume)) => DrainTarget::Volume(volume_id(&volume)?),
                    _ => return Err(unreadable("drain", "it names not exactly one of node and volume")),
                },
                draining: drain.draining,
            },
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
    /// 9 malformed, 10 not found, 11 changed, 12 upgrade pending.
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
        Rejection::Changed(text) => plain(11, text),
        Rejection::UpgradePending { needed, present } => {
            RejectionMessage { first: u64::from(*needed), second: u64::from(*present), ..plain(12, "") }
        }
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
            11 => Self::Changed(message.text),
            12 => Self::UpgradePending {
                needed: u32::try_from(message.first).map_err(|error| unreadable("version", error))?,
                present: u32::try_from(message.second).map_err(|error| unreadable("version", error))?,
            },
            tag => return Err(Error::UnknownTag { what: "rejection", tag }),
        })
    }
}
