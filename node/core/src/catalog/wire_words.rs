//! Protobuf forms of the words that several records share: codes, contracts, profiles, nodes, volumes, layouts.
//!
//! **Invariants.** Tags of fields and enums are never reused. These structs stop here: one `TryFrom` each makes a
//! core type or an error.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::Error;
use super::command::JoinNode;
use crate::ids::{ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, NodeId, VolumeId};
use crate::layout::profile::{Code, ReadPreference};
use crate::layout::{Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState};

pub(crate) fn unreadable(what: &'static str, why: impl ToString) -> Error {
    Error::Unreadable { what, why: why.to_string() }
}

pub(crate) fn text<T: FromStr<Err = crate::ids::Error>>(what: &'static str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|error: crate::ids::Error| unreadable(what, error))
}

pub(crate) fn small(what: &'static str, value: u32) -> Result<u8, Error> {
    u8::try_from(value).map_err(|_| unreadable(what, format!("{value} exceeds 255")))
}

pub(crate) fn present<T>(what: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| unreadable(what, "it is absent"))
}

macro_rules! hex_reader {
    ($name:ident, $id:ident, $what:literal) => {
        pub(crate) fn $name(bytes: &[u8]) -> Result<$id, Error> {
            $id::from_slice(bytes).ok_or_else(|| unreadable($what, format!("it has {} bytes", bytes.len())))
        }
    };
}
hex_reader!(cluster_id, ClusterId, "cluster id");
hex_reader!(volume_id, VolumeId, "volume id");
hex_reader!(incarnation, Incarnation, "incarnation");
hex_reader!(instance_id, InstanceId, "instance id");
hex_reader!(digest, Digest, "digest");

pub(crate) fn volume_ids(bytes: &[u8]) -> Result<Vec<VolumeId>, Error> {
    let (ids, rest) = bytes.as_chunks::<16>();
    if rest.is_empty() {
        Ok(ids.iter().copied().map(VolumeId).collect())
    } else {
        Err(unreadable("list of volumes", format!("it has {} bytes", bytes.len())))
    }
}

pub(crate) fn volume_bytes(volumes: &[VolumeId]) -> Vec<u8> {
    volumes.iter().flat_map(|volume| volume.0).collect()
}

pub(crate) fn node_state(tag: u32) -> Result<NodeState, Error> {
    match tag {
        1 => Ok(NodeState::Up),
        2 => Ok(NodeState::Down),
        3 => Ok(NodeState::Removed),
        4 => Ok(NodeState::Suspect),
        5 => Ok(NodeState::Lost),
        tag => Err(Error::UnknownTag { what: "node state", tag }),
    }
}

pub(crate) fn volume_state(tag: u32) -> Result<VolumeState, Error> {
    match tag {
        1 => Ok(VolumeState::Up),
        2 => Ok(VolumeState::ReadOnly),
        3 => Ok(VolumeState::Fenced),
        4 => Ok(VolumeState::Away),
        tag => Err(Error::UnknownTag { what: "volume state", tag }),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CodeMessage {
    #[prost(uint32, tag = "1")]
    pub data: u32,
    #[prost(uint32, tag = "2")]
    pub parity: u32,
}

impl From<Code> for CodeMessage {
    fn from(code: Code) -> Self {
        Self { data: code.data_u8().into(), parity: code.parity_u8().into() }
    }
}

impl TryFrom<CodeMessage> for Code {
    type Error = Error;
    fn try_from(message: CodeMessage) -> Result<Self, Error> {
        let code = Self::new(small("data shards", message.data)?, small("parity shards", message.parity)?);
        code.ok_or_else(|| unreadable("code", format!("{}+{} is outside the limits", message.data, message.parity)))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FailuresMessage {
    #[prost(uint32, tag = "1")]
    pub sites: u32,
    #[prost(uint32, tag = "2")]
    pub nodes: u32,
}

pub(crate) fn failures_messages(all: &[Failures]) -> Vec<FailuresMessage> {
    all.iter().map(|one| FailuresMessage { sites: one.sites.into(), nodes: one.nodes.into() }).collect()
}

pub(crate) fn failures(messages: &[FailuresMessage]) -> Result<Vec<Failures>, Error> {
    let one = |message: &FailuresMessage| {
        Ok(Failures { sites: small("lost sites", message.sites)?, nodes: small("lost nodes", message.nodes)? })
    };
    messages.iter().map(one).collect()
}

pub(crate) fn contract(messages: &[FailuresMessage]) -> Result<Contract, Error> {
    Contract::new(failures(messages)?).ok_or_else(|| unreadable("contract", "it is empty"))
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProfileMessage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub version: u32,
    #[prost(message, optional, tag = "3")]
    pub code: Option<CodeMessage>,
    #[prost(message, repeated, tag = "4")]
    pub contract: Vec<FailuresMessage>,
    #[prost(message, repeated, tag = "5")]
    pub floor: Vec<FailuresMessage>,
    #[prost(uint32, tag = "6")]
    pub read_preference: u32,
}

impl From<&Profile> for ProfileMessage {
    fn from(profile: &Profile) -> Self {
        Self {
            name: profile.name.to_string(),
            version: profile.version,
            code: Some(profile.code.into()),
            contract: failures_messages(profile.contract.failures()),
            floor: failures_messages(profile.floor.failures()),
            read_preference: (profile.read_preference as u8).into(),
        }
    }
}

impl TryFrom<ProfileMessage> for Profile {
    type Error = Error;
    fn try_from(message: ProfileMessage) -> Result<Self, Error> {
        Ok(Self {
            name: text("profile name", &message.name)?,
            version: message.version,
            code: present("code", message.code)?.try_into()?,
            contract: contract(&message.contract)?,
            floor: contract(&message.floor)?,
            read_preference: match message.read_preference {
                1 => ReadPreference::OwnSite,
                2 => ReadPreference::EverySite,
                tag => return Err(Error::UnknownTag { what: "read preference", tag }),
            },
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeMessage {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub site: String,
    #[prost(string, tag = "4")]
    pub address: String,
    #[prost(bool, tag = "5")]
    pub storage: bool,
    #[prost(bool, tag = "6")]
    pub voter: bool,
    #[prost(uint32, tag = "7")]
    pub state: u32,
    #[prost(bytes = "vec", tag = "8")]
    pub incarnation: Vec<u8>,
    #[prost(uint32, tag = "9")]
    pub version: u32,
    #[prost(bool, tag = "10")]
    pub draining: bool,
}

impl From<&Node> for NodeMessage {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.0,
            name: node.name.to_string(),
            site: node.site.to_string(),
            address: node.address.clone(),
            storage: node.roles.storage,
            voter: node.roles.voter,
            state: (node.state as u8).into(),
            incarnation: node.incarnation.0.to_vec(),
            version: node.version,
            draining: node.draining,
        }
    }
}

impl TryFrom<NodeMessage> for Node {
    type Error = Error;
    fn try_from(message: NodeMessage) -> Result<Self, Error> {
        Ok(Self {
            id: NodeId(message.id),
            name: text("node name", &message.name)?,
            site: text("site name", &message.site)?,
            address: message.address,
            roles: Roles { storage: message.storage, voter: message.voter },
            state: node_state(message.state)?,
            incarnation: incarnation(&message.incarnation)?,
            version: message.version,
            draining: message.draining,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VolumeMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    #[prost(uint32, tag = "4")]
    pub state: u32,
    #[prost(bool, tag = "5")]
    pub draining: bool,
}

impl From<&Volume> for VolumeMessage {
    fn from(volume: &Volume) -> Self {
        Self {
            id: volume.id.0.to_vec(),
            node: volume.node.0,
            capacity_bytes: volume.capacity_bytes,
            state: (volume.state as u8).into(),
            draining: volume.draining,
        }
    }
}

impl TryFrom<VolumeMessage> for Volume {
    type Error = Error;
    fn try_from(message: VolumeMessage) -> Result<Self, Error> {
        Ok(Self {
            id: volume_id(&message.id)?,
            node: NodeId(message.node),
            capacity_bytes: message.capacity_bytes,
            state: volume_state(message.state)?,
            draining: message.draining,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LayoutMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub version: u64,
    #[prost(message, repeated, tag = "3")]
    pub nodes: Vec<NodeMessage>,
    #[prost(message, repeated, tag = "4")]
    pub volumes: Vec<VolumeMessage>,
    #[prost(message, repeated, tag = "5")]
    pub profiles: Vec<ProfileMessage>,
    #[prost(string, tag = "6")]
    pub default_profile: String,
    /// 0 is 1: so it was written before there were others, and so it still is.
    #[prost(uint32, tag = "7")]
    pub format: u32,
}

impl From<&Layout> for LayoutMessage {
    fn from(layout: &Layout) -> Self {
        Self {
            cluster: layout.cluster.0.to_vec(),
            version: layout.version.0,
            nodes: layout.nodes.values().map(NodeMessage::from).collect(),
            volumes: layout.volumes.values().map(VolumeMessage::from).collect(),
            profiles: layout.profiles.values().map(ProfileMessage::from).collect(),
            default_profile: layout.default_profile.to_string(),
            format: if layout.format > 1 { layout.format } else { 0 },
        }
    }
}

impl TryFrom<LayoutMessage> for Layout {
    type Error = Error;
    fn try_from(message: LayoutMessage) -> Result<Self, Error> {
        let nodes = message.nodes.into_iter().map(|node| Node::try_from(node).map(|node| (node.id, node)));
        let nodes: BTreeMap<_, _> = nodes.collect::<Result<_, _>>()?;
        let volumes = message.volumes.into_iter().map(|one| Volume::try_from(one).map(|one| (one.id, one)));
        let volumes: BTreeMap<_, _> = volumes.collect::<Result<_, _>>()?;
        if let Some(volume) = volumes.values().find(|volume: &&Volume| !nodes.contains_key(&volume.node)) {
            return Err(unreadable("layout", format!("volume {} belongs to no node", volume.id)));
        }
        let profiles =
            message.profiles.into_iter().map(|one| Profile::try_from(one).map(|one| (one.name.clone(), one)));
        let profiles: BTreeMap<_, _> = profiles.collect::<Result<_, _>>()?;
        Ok(Self {
            cluster: cluster_id(&message.cluster)?,
            version: LayoutVersion(message.version),
            format: message.format.max(1),
            nodes,
            volumes,
            profiles,
            default_profile: text("default profile", &message.default_profile)?,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OfferMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub capacity_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct JoinMessage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub incarnation: Vec<u8>,
    #[prost(string, tag = "3")]
    pub site: String,
    #[prost(string, tag = "4")]
    pub address: String,
    #[prost(bool, tag = "5")]
    pub storage: bool,
    #[prost(bool, tag = "6")]
    pub voter: bool,
    #[prost(message, repeated, tag = "7")]
    pub volumes: Vec<OfferMessage>,
    #[prost(uint32, tag = "8")]
    pub version: u32,
}

impl From<&JoinNode> for JoinMessage {
    fn from(join: &JoinNode) -> Self {
        let offer = |(volume, capacity_bytes): &(VolumeId, u64)| OfferMessage {
            volume: volume.0.to_vec(),
            capacity_bytes: *capacity_bytes,
        };
        Self {
            name: join.name.to_string(),
            incarnation: join.incarnation.0.to_vec(),
            site: join.site.to_string(),
            address: join.address.clone(),
            storage: join.roles.storage,
            voter: join.roles.voter,
            volumes: join.volumes.iter().map(offer).collect(),
            version: join.version,
        }
    }
}

impl TryFrom<JoinMessage> for JoinNode {
    type Error = Error;
    fn try_from(message: JoinMessage) -> Result<Self, Error> {
        let volumes = message.volumes.iter().map(|offer| Ok((volume_id(&offer.volume)?, offer.capacity_bytes)));
        Ok(Self {
            name: text("node name", &message.name)?,
            incarnation: incarnation(&message.incarnation)?,
            site: text("site name", &message.site)?,
            address: message.address,
            roles: Roles { storage: message.storage, voter: message.voter },
            volumes: volumes.collect::<Result<_, Error>>()?,
            version: message.version,
        })
    }
}
