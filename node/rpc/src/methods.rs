//! The unary methods: which path carries which [`Request`], and how requests and replies read on the wire.
//!
//! **Invariants.** One row of [`METHODS`] per method, and one arm each in the four translations. Requests and replies
//! come back from the wire as they were sent. A payload (shard, Raft message, snapshot piece) is never copied here.

mod healing;

use std::sync::Arc;

use bytes::Bytes;
use pacsvault_core::{
    catalog::{Command, Outcome, wire},
    ids::{Digest, LogIndex, NodeId, VolumeId},
    layout::Profile,
    limits::COMMANDS_PER_ENTRY_MAX,
    shard::DurableShard,
};
use pacsvault_ports::{
    kv::CheckpointFile,
    peer::{Class, Fault, GetShard, ListPage, PutShard, Reply, Request, ShardData, Target},
};
use pacsvault_proto::v1;
use prost::Message;

use crate::{
    convert::{self, fixed, raw, required},
    fault::{Invalid, rejected},
    frames::{Frames, Payload},
    plan,
    roles::Kind,
};

/// Which connection of a target carries a method: consensus never waits behind shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Raft messages and read indexes: small and urgent.
    Consensus,
    /// Catalog, administration, healing: no payloads.
    Control,
    /// Shards and snapshot pieces.
    Bulk,
}

/// One unary method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the methods in the .proto files, which document them")]
pub enum Method {
    PutShard,
    GetShard,
    Raft,
    SnapshotFiles,
    SnapshotRead,
    ReadIndex,
    Lookup,
    List,
    Propose,
    Layout,
    Status,
    AdminLayout,
    InitCluster,
    Join,
    JoinVia,
    SetVolumeState,
    SetProfile,
    TransferLeader,
    Plan,
    Heartbeat,
    Repair,
    Health,
    WhatIf,
    DrainPlan,
    SetDrain,
    RemoveNode,
    RetryAside,
    SetStudyProfile,
    ScrubNow,
    VerifyShards,
}

/// Path, method, kind for authorization, lane.
const METHODS: [(&str, Method, Kind, Lane); 30] = [
    ("/pacsvault.v1.Shards/PutShard", Method::PutShard, Kind::Shards, Lane::Bulk),
    ("/pacsvault.v1.Shards/GetShard", Method::GetShard, Kind::Shards, Lane::Bulk),
    ("/pacsvault.v1.Consensus/Raft", Method::Raft, Kind::Consensus, Lane::Consensus),
    ("/pacsvault.v1.Consensus/SnapshotFiles", Method::SnapshotFiles, Kind::Consensus, Lane::Control),
    ("/pacsvault.v1.Consensus/SnapshotRead", Method::SnapshotRead, Kind::Consensus, Lane::Bulk),
    ("/pacsvault.v1.Consensus/ReadIndex", Method::ReadIndex, Kind::Consensus, Lane::Consensus),
    ("/pacsvault.v1.Catalog/Lookup", Method::Lookup, Kind::Catalog, Lane::Control),
    ("/pacsvault.v1.Catalog/List", Method::List, Kind::Catalog, Lane::Control),
    ("/pacsvault.v1.Catalog/Propose", Method::Propose, Kind::Propose, Lane::Control),
    ("/pacsvault.v1.Catalog/Layout", Method::Layout, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/Status", Method::Status, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/Layout", Method::AdminLayout, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/InitCluster", Method::InitCluster, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/Join", Method::Join, Kind::Join, Lane::Control),
    ("/pacsvault.v1.Admin/JoinVia", Method::JoinVia, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/SetVolumeState", Method::SetVolumeState, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/SetProfile", Method::SetProfile, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/TransferLeader", Method::TransferLeader, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/Plan", Method::Plan, Kind::Status, Lane::Control),
    // As urgent as Raft's own messages, and as small: a node must not seem dead because a listing is in its way.
    ("/pacsvault.v1.Healing/Heartbeat", Method::Heartbeat, Kind::Healing, Lane::Consensus),
    ("/pacsvault.v1.Healing/Repair", Method::Repair, Kind::Healing, Lane::Control),
    ("/pacsvault.v1.Admin/Health", Method::Health, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/WhatIf", Method::WhatIf, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/DrainPlan", Method::DrainPlan, Kind::Status, Lane::Control),
    ("/pacsvault.v1.Admin/SetDrain", Method::SetDrain, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/RemoveNode", Method::RemoveNode, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/RetryAside", Method::RetryAside, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/SetStudyProfile", Method::SetStudyProfile, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/ScrubNow", Method::ScrubNow, Kind::Administer, Lane::Control),
    ("/pacsvault.v1.Admin/VerifyShards", Method::VerifyShards, Kind::Prove, Lane::Control),
];

impl Method {
    /// The method that `path` names.
    pub fn from_path(path: &str) -> Option<Self> {
        METHODS.iter().find(|row| row.0 == path).map(|row| row.1)
    }

    /// Its path.
    pub fn path(self) -> &'static str {
        self.row().0
    }

    /// What it counts as for authorization.
    pub fn kind(self) -> Kind {
        self.row().2
    }

    /// Which connection carries it.
    pub fn lane(self) -> Lane {
        self.row().3
    }

    fn row(self) -> &'static (&'static str, Self, Kind, Lane) {
        METHODS.iter().find(|row| row.1 == self).expect("the table has a row for every method")
    }
}

/// A received request, and what else is needed to answer it.
#[derive(Debug)]
pub struct Asked {
    /// For the service.
    pub request: Request,
    /// For [`encode_reply`].
    pub profiles: Vec<Profile>,
}

impl From<Request> for Asked {
    fn from(request: Request) -> Self {
        Self { request, profiles: Vec::new() }
    }
}

/// A request as a method and its message. `NO_METHOD` for requests that do not travel.
pub fn encode_request(request: Request) -> Result<(Method, Payload), Fault> {
    Ok(match request {
        Request::PutShard(put) => (Method::PutShard, encode_put_shard(*put)),
        Request::GetShard(get) => (Method::GetShard, encode_get_shard(&get)),
        Request::Layout(freshness) => {
            (Method::Layout, Payload::of(&v1::LayoutRequest { freshness: convert::freshness_message(freshness) }))
        }
        Request::Lookup(lookup) => {
            let message = v1::LookupRequest {
                key: Some(convert::key_message(&lookup.key)),
                version: lookup.version.map(|version| version.0),
                freshness: convert::freshness_message(lookup.freshness),
            };
            (Method::Lookup, Payload::of(&message))
        }
        Request::List(list) => (Method::List, Payload::of(&convert::list_message(&list))),
        Request::Propose(commands) => {
            let commands_encoded = commands.iter().map(|command| wire::encode_command(command).into()).collect();
            (Method::Propose, Payload::of(&v1::ProposeRequest { commands_encoded }))
        }
        Request::Raft(payload) => (Method::Raft, Payload::with_tail(&v1::RaftMessage::default(), payload)),
        Request::SnapshotFiles { id } => (Method::SnapshotFiles, Payload::of(&v1::SnapshotFilesRequest { id })),
        Request::SnapshotRead { id, name, offset_bytes, len_bytes } => {
            let message = v1::SnapshotReadRequest { id, name, offset_bytes, len_bytes };
            (Method::SnapshotRead, Payload::of(&message))
        }
        Request::ReadIndex => (Method::ReadIndex, Payload::of(&v1::ReadIndexRequest {})),
        Request::Join(join) => (Method::Join, Payload::of(&v1::JoinRequest { node: wire::encode_join(&join).into() })),
        Request::JoinVia { seeds } => {
            let seeds = seeds.into_iter().map(|seed| seed.address).collect();
            (Method::JoinVia, Payload::of(&v1::JoinViaRequest { seeds }))
        }
        Request::InitCluster { profiles } => {
            let profiles = profiles.iter().map(convert::profile_message).collect();
            (Method::InitCluster, Payload::of(&v1::InitClusterRequest { profiles }))
        }
        Request::Status => (Method::Status, Payload::of(&v1::StatusRequest {})),
        Request::TransferLeader { to } => {
            (Method::TransferLeader, Payload::of(&v1::TransferLeaderRequest { to: to.0 }))
        }
        other => return healing::encode_request(other),
    })
}

fn encode_put_shard(put: PutShard) -> Payload {
    let message = v1::PutShardRequest {
        volume: raw(&put.volume.0),
        header: Some(convert::shard_header_message(&put.header)),
        repair: put.repair,
        data: Bytes::new(),
    };
    Payload::with_tail(&message, put.data)
}

fn encode_get_shard(get: &GetShard) -> Payload {
    Payload::of(&v1::GetShardRequest {
        volume: raw(&get.volume.0),
        instance: raw(&get.id.instance.0),
        stripe: get.id.stripe.0,
        shard: get.id.shard.0.into(),
        offset_bytes: get.offset_bytes,
        len_bytes: get.len_bytes,
        background: get.background,
    })
}

fn read<M: Message + Default>(frames: Frames) -> Result<M, Invalid> {
    M::decode(frames).map_err(|error| Invalid::new("message", error))
}

/// A received message of `method` as a request.
pub fn decode_request(method: Method, frames: Frames) -> Result<Asked, Invalid> {
    let request = match method {
        Method::PutShard => decode_put_shard(read(frames)?)?,
        Method::GetShard => decode_get_shard(&read(frames)?)?,
        Method::Layout => Request::Layout(convert::freshness(read::<v1::LayoutRequest>(frames)?.freshness)?),
        Method::AdminLayout => Request::Layout(convert::freshness(read::<v1::AdminLayoutRequest>(frames)?.freshness)?),
        Method::Lookup => Request::Lookup(convert::lookup(read(frames)?)?),
        Method::List => Request::List(convert::list(read(frames)?)?),
        Method::Propose => decode_propose(&read(frames)?)?,
        Method::Raft => Request::Raft(read::<v1::RaftMessage>(frames)?.payload),
        Method::SnapshotFiles => Request::SnapshotFiles { id: read::<v1::SnapshotFilesRequest>(frames)?.id },
        Method::SnapshotRead => {
            let message: v1::SnapshotReadRequest = read(frames)?;
            let v1::SnapshotReadRequest { id, name, offset_bytes, len_bytes } = message;
            Request::SnapshotRead { id, name, offset_bytes, len_bytes }
        }
        Method::ReadIndex => Request::ReadIndex,
        Method::Join => {
            let node = read::<v1::JoinRequest>(frames)?.node;
            Request::Join(wire::decode_join(&node).map_err(|error| Invalid::new("node", error))?)
        }
        Method::JoinVia => {
            let seeds = read::<v1::JoinViaRequest>(frames)?.seeds;
            if seeds.is_empty() {
                return Err(Invalid::new("seeds", "must name at least one member"));
            }
            // Names are learned from their certificates.
            Request::JoinVia { seeds: seeds.into_iter().map(|address| Target { address, name: None }).collect() }
        }
        Method::InitCluster => {
            Request::InitCluster { profiles: profiles(read::<v1::InitClusterRequest>(frames)?.profiles)? }
        }
        Method::Status => Request::Status,
        Method::TransferLeader => Request::TransferLeader { to: NodeId(read::<v1::TransferLeaderRequest>(frames)?.to) },
        Method::SetVolumeState => {
            let message: v1::SetVolumeStateRequest = read(frames)?;
            let volume = VolumeId(fixed("volume", &message.volume)?);
            let state = convert::volume_state("state", message.state)?;
            Request::Propose(vec![Command::SetVolumeState { volume, state }])
        }
        Method::SetProfile => {
            let message: v1::SetProfileRequest = read(frames)?;
            let profile = convert::profile(required("profile", message.profile)?).map_err(|e| e.within("profile"))?;
            Request::Propose(vec![Command::SetProfile { profile, make_default: message.make_default }])
        }
        Method::Plan => {
            let profiles = profiles(read::<v1::PlanRequest>(frames)?.profiles)?;
            return Ok(Asked { request: Request::Layout(convert::freshness(None)?), profiles });
        }
        Method::Heartbeat
        | Method::Repair
        | Method::Health
        | Method::WhatIf
        | Method::DrainPlan
        | Method::SetDrain
        | Method::RemoveNode
        | Method::RetryAside
        | Method::SetStudyProfile
        | Method::ScrubNow
        | Method::VerifyShards => healing::decode_request(method, frames)?,
    };
    Ok(request.into())
}

fn profiles(messages: Vec<v1::Profile>) -> Result<Vec<Profile>, Invalid> {
    messages.into_iter().map(|message| convert::profile(message).map_err(|error| error.within("profiles"))).collect()
}

fn decode_put_shard(message: v1::PutShardRequest) -> Result<Request, Invalid> {
    let header = convert::shard_header(message.header)?;
    let (have, need) = (message.data.len() as u64, header.shard_bytes());
    if have != need {
        return Err(Invalid::new("data", format!("has {have} bytes, but the header says {need}")));
    }
    let volume = VolumeId(fixed("volume", &message.volume)?);
    Ok(Request::PutShard(Box::new(PutShard { volume, header, data: message.data, repair: message.repair })))
}

fn decode_get_shard(message: &v1::GetShardRequest) -> Result<Request, Invalid> {
    Ok(Request::GetShard(GetShard {
        volume: VolumeId(fixed("volume", &message.volume)?),
        id: convert::shard_id(&message.instance, message.stripe, message.shard)?,
        offset_bytes: message.offset_bytes,
        len_bytes: message.len_bytes,
        background: message.background,
    }))
}

fn decode_propose(message: &v1::ProposeRequest) -> Result<Request, Invalid> {
    let count = message.commands_encoded.len();
    if count == 0 || count > COMMANDS_PER_ENTRY_MAX {
        let reason = format!("must be 1 to {COMMANDS_PER_ENTRY_MAX} commands, are {count}");
        return Err(Invalid::new("commands_encoded", reason));
    }
    let decoded = message.commands_encoded.iter().map(|bytes| wire::decode_command(bytes));
    let commands = decoded.collect::<Result<Vec<_>, _>>().map_err(|error| Invalid::new("commands_encoded", error))?;
    Ok(Request::Propose(commands))
}

/// What the service replied, as the message of `method`.
pub fn encode_reply(method: Method, profiles: &[Profile], reply: Reply) -> Result<Payload, Fault> {
    Ok(match (method, reply) {
        (Method::PutShard, Reply::Durable(durable)) => Payload::of(&v1::PutShardReply {
            instance: raw(&durable.id.instance.0),
            stripe: durable.id.stripe.0,
            shard: durable.id.shard.0.into(),
            volume: raw(&durable.volume.0),
            digest: raw(&durable.digest.0),
        }),
        (Method::GetShard, Reply::Shard(shard)) => {
            let header = Some(convert::shard_header_message(&shard.header));
            let message = v1::GetShardReply { header, offset_bytes: shard.offset_bytes, data: Bytes::new() };
            Payload::with_tail(&message, shard.data)
        }
        (Method::Layout, Reply::Layout(layout)) => {
            Payload::of(&v1::LayoutReply { layout_encoded: wire::encode_layout(&layout).into() })
        }
        (Method::AdminLayout, Reply::Layout(layout)) => Payload::of(&convert::layout_message(&layout)),
        (Method::Plan, Reply::Layout(layout)) => Payload::of(&plan::judge(&layout, profiles)),
        (Method::Lookup, Reply::Found { sealed, applied }) => Payload::of(&v1::LookupReply {
            sealed_encoded: sealed.map(|sealed| wire::encode_sealed(&sealed).into()),
            applied: applied.0,
        }),
        (Method::List, Reply::Page(page)) => encode_page(&page),
        (Method::Propose, Reply::Outcomes(outcomes)) => {
            let outcomes_encoded = outcomes.iter().map(|outcome| wire::encode_outcome(outcome).into()).collect();
            Payload::of(&v1::ProposeReply { outcomes_encoded })
        }
        (Method::SetVolumeState, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::SetVolumeStateReply {})
        }
        (Method::SetProfile, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::SetProfileReply {})
        }
        (Method::Raft, Reply::Raft(payload)) => Payload::with_tail(&v1::RaftMessage::default(), payload),
        (Method::SnapshotFiles, Reply::SnapshotFiles(files)) => {
            let file = |file: CheckpointFile| v1::SnapshotFile {
                name: file.name,
                len_bytes: file.len_bytes,
                digest: raw(&file.digest),
            };
            Payload::of(&v1::SnapshotFilesReply { files: files.into_iter().map(file).collect() })
        }
        (Method::SnapshotRead, Reply::Bytes(data)) => Payload::with_tail(&v1::SnapshotReadReply::default(), data),
        (Method::ReadIndex, Reply::ReadIndex(index)) => Payload::of(&v1::ReadIndexReply { index: index.0 }),
        (Method::Join | Method::JoinVia | Method::InitCluster, Reply::Joined { node, cluster, incarnation }) => {
            let (cluster, incarnation) = (raw(&cluster.0), raw(&incarnation.0));
            Payload::of(&v1::JoinedReply { node: node.0, cluster, incarnation })
        }
        (Method::Status, Reply::Status(status)) => Payload::of(&convert::status_message(&status)),
        (Method::TransferLeader, Reply::Done) => Payload::of(&v1::TransferLeaderReply {}),
        (method, reply) => return healing::encode_reply(method, reply),
    })
}

fn encode_page(page: &ListPage) -> Payload {
    let studies = page.studies.iter().map(|row| v1::CatalogStudyRow {
        study: row.study.to_string(),
        objects: row.objects,
        size_bytes: row.size_bytes,
    });
    Payload::of(&v1::CatalogListReply {
        studies: studies.collect(),
        sealed_encoded: page.instances.iter().map(|sealed| wire::encode_sealed(sealed).into()).collect(),
        next_page_token: page.next_page_token.clone().into(),
    })
}

fn accepted(outcomes: Vec<Outcome>) -> Result<(), Fault> {
    match outcomes.into_iter().next() {
        Some(Outcome::Rejected(rejection)) => Err(rejected(&rejection)),
        Some(_) => Ok(()),
        None => Err(Fault::new(Class::Bug, "PV-BUG", "a proposal had no outcome")),
    }
}

/// A received message of `method` as a reply.
pub fn decode_reply(method: Method, frames: Frames) -> Result<Reply, Fault> {
    parse_reply(method, frames).map_err(|invalid| {
        let text = format!("the reply of {} is malformed: {invalid}", method.path());
        Fault::new(Class::Bug, "PV-BUG", text)
    })
}

fn parse_reply(method: Method, frames: Frames) -> Result<Reply, Invalid> {
    Ok(match method {
        Method::PutShard => {
            let message: v1::PutShardReply = read(frames)?;
            Reply::Durable(DurableShard {
                id: convert::shard_id(&message.instance, message.stripe, message.shard)?,
                volume: VolumeId(fixed("volume", &message.volume)?),
                digest: Digest(fixed("digest", &message.digest)?),
            })
        }
        Method::GetShard => {
            let message: v1::GetShardReply = read(frames)?;
            let header = convert::shard_header(message.header)?;
            Reply::Shard(Box::new(ShardData { header, offset_bytes: message.offset_bytes, data: message.data }))
        }
        Method::Layout => {
            let bytes = read::<v1::LayoutReply>(frames)?.layout_encoded;
            Reply::Layout(Arc::new(wire::decode_layout(&bytes).map_err(|error| Invalid::new("layout_encoded", error))?))
        }
        Method::Lookup => {
            let message: v1::LookupReply = read(frames)?;
            let sealed = message.sealed_encoded.map(|bytes| wire::decode_sealed(&bytes).map(Box::new)).transpose();
            let sealed = sealed.map_err(|error| Invalid::new("sealed_encoded", error))?;
            Reply::Found { sealed, applied: LogIndex(message.applied) }
        }
        Method::List => Reply::Page(Box::new(decode_page(read(frames)?)?)),
        Method::Propose => {
            let encoded = read::<v1::ProposeReply>(frames)?.outcomes_encoded;
            let outcomes = encoded.iter().map(|bytes| wire::decode_outcome(bytes)).collect::<Result<Vec<_>, _>>();
            Reply::Outcomes(outcomes.map_err(|error| Invalid::new("outcomes_encoded", error))?)
        }
        Method::Raft => Reply::Raft(read::<v1::RaftMessage>(frames)?.payload),
        Method::SnapshotFiles => {
            let files = read::<v1::SnapshotFilesReply>(frames)?.files.into_iter().map(|file| {
                let digest = fixed("files.digest", &file.digest)?;
                Ok(CheckpointFile { name: file.name, len_bytes: file.len_bytes, digest })
            });
            Reply::SnapshotFiles(files.collect::<Result<Vec<_>, Invalid>>()?)
        }
        Method::SnapshotRead => Reply::Bytes(read::<v1::SnapshotReadReply>(frames)?.data),
        Method::ReadIndex => Reply::ReadIndex(LogIndex(read::<v1::ReadIndexReply>(frames)?.index)),
        Method::Join | Method::JoinVia | Method::InitCluster => {
            let (node, cluster, incarnation) = convert::joined(&read(frames)?)?;
            Reply::Joined { node, cluster, incarnation }
        }
        Method::Status => Reply::Status(Box::new(convert::status(read(frames)?)?)),
        Method::TransferLeader | Method::SetVolumeState | Method::SetProfile => Reply::Done,
        Method::AdminLayout | Method::Plan => return Err(Invalid::new("method", "is for other clients")),
        Method::Heartbeat
        | Method::Repair
        | Method::Health
        | Method::WhatIf
        | Method::DrainPlan
        | Method::SetDrain
        | Method::RemoveNode
        | Method::RetryAside
        | Method::SetStudyProfile
        | Method::ScrubNow
        | Method::VerifyShards => return healing::parse_reply(method, frames),
    })
}

fn decode_page(message: v1::CatalogListReply) -> Result<ListPage, Invalid> {
    let studies = message.studies.iter().map(convert::study_row).collect::<Result<Vec<_>, _>>()?;
    let instances =
        message.sealed_encoded.iter().map(|bytes| wire::decode_sealed(bytes)).collect::<Result<Vec<_>, _>>();
    let instances = instances.map_err(|error| Invalid::new("sealed_encoded", error))?;
    Ok(ListPage { studies, instances, next_page_token: message.next_page_token.to_vec() })
}
