//! Generated types to core types and back, one function each.
//!
//! **Invariants.** Every field of a received message is checked here; what comes out is well formed. A violation names
//! its field ([`Invalid`]). Both directions are inverse for values that core can hold.

pub mod health;
pub mod repair;

use std::str::FromStr;

use bytes::Bytes;
use pacsvault_core::{
    catalog::{SealedInstance, command::Attribute},
    ids::{
        ClusterId, Digest, Incarnation, InstanceId, Leaf, LogIndex, NodeId, ObjectKey, ShardIndex, StripeIndex, Term,
        Uid, VersionNumber, VolumeId,
    },
    layout::{
        Contract, Failures, Layout, NodeState, Profile, VolumeState,
        profile::{Code, ReadPreference},
    },
    limits::LIST_ROWS_MAX,
    receipt::{Receipt, StripePlacement},
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::peer::{Freshness, List, ListPage, Lookup, NodeStatus, StudyRow, VolumeStatus};
use pacsvault_proto::v1;

use crate::fault::Invalid;

type Parsed<T> = Result<T, Invalid>;

/// A name, UID or other text id.
pub fn text<T: FromStr<Err: ToString>>(field: &str, text: &str) -> Parsed<T> {
    text.parse().map_err(|error: T::Err| Invalid::new(field, error))
}

/// A text id that may be left empty.
pub fn optional_text<T: FromStr<Err: ToString>>(field: &str, value: &str) -> Parsed<Option<T>> {
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

/// An id of fixed length.
pub fn fixed<const N: usize>(field: &str, bytes: &[u8]) -> Parsed<[u8; N]> {
    bytes.try_into().map_err(|_| Invalid::new(field, format!("must be {N} bytes, has {}", bytes.len())))
}

/// A message field that must be present.
pub fn required<T>(field: &str, value: Option<T>) -> Parsed<T> {
    value.ok_or_else(|| Invalid::new(field, "must be set"))
}

fn small(field: &str, value: u32) -> Parsed<u8> {
    u8::try_from(value).map_err(|_| Invalid::new(field, "must be at most 255"))
}

/// Raw bytes of an id.
pub fn raw(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Key from the wire.
pub fn key(message: Option<v1::ObjectKey>) -> Parsed<ObjectKey> {
    let message = required("key", message)?;
    let leaf = match required("key.leaf", message.leaf)? {
        v1::object_key::Leaf::Instance(leaf) => Leaf::Instance {
            series: text("key.instance.series", &leaf.series)?,
            instance: text("key.instance.instance", &leaf.instance)?,
        },
        v1::object_key::Leaf::Document(name) => Leaf::Document(text("key.document", &name)?),
    };
    Ok(ObjectKey { tenant: text("key.tenant", &message.tenant)?, study: text("key.study", &message.study)?, leaf })
}

/// Key to the wire.
pub fn key_message(key: &ObjectKey) -> v1::ObjectKey {
    let leaf = match &key.leaf {
        Leaf::Instance { series, instance } => v1::object_key::Leaf::Instance(v1::InstanceLeaf {
            series: series.to_string(),
            instance: instance.to_string(),
        }),
        Leaf::Document(name) => v1::object_key::Leaf::Document(name.as_str().to_owned()),
    };
    v1::ObjectKey { tenant: key.tenant.to_string(), study: key.study.to_string(), leaf: Some(leaf) }
}

/// Freshness from the wire; unset means "whatever the replica has".
pub fn freshness(message: Option<v1::Freshness>) -> Parsed<Freshness> {
    match message.and_then(|message| message.kind) {
        None => Ok(Freshness::AtLeast(LogIndex(0))),
        Some(v1::freshness::Kind::MinLogIndex(index)) => Ok(Freshness::AtLeast(LogIndex(index))),
        Some(v1::freshness::Kind::Linearizable(true)) => Ok(Freshness::Linearizable),
        Some(v1::freshness::Kind::Linearizable(false)) => {
            Err(Invalid::new("freshness.linearizable", "must be true when set; leave freshness unset otherwise"))
        }
    }
}

/// Freshness to the wire.
pub fn freshness_message(freshness: Freshness) -> Option<v1::Freshness> {
    let kind = match freshness {
        Freshness::AtLeast(index) => v1::freshness::Kind::MinLogIndex(index.0),
        Freshness::Linearizable => v1::freshness::Kind::Linearizable(true),
    };
    Some(v1::Freshness { kind: Some(kind) })
}

/// Version from the wire.
pub fn version(number: Option<u32>) -> Parsed<Option<VersionNumber>> {
    match number {
        Some(0) => Err(Invalid::new("version", "versions begin at 1; leave it unset for the newest")),
        other => Ok(other.map(VersionNumber)),
    }
}

/// Code from the wire.
pub fn code(message: Option<v1::Code>) -> Parsed<Code> {
    let message = required("code", message)?;
    Code::new(small("code.data", message.data)?, small("code.parity", message.parity)?)
        .ok_or_else(|| Invalid::new("code", "data and parity must be at least 1 and at most 32 together"))
}

/// Code to the wire.
pub fn code_message(code: Code) -> Option<v1::Code> {
    Some(v1::Code { data: code.data_u8().into(), parity: code.parity_u8().into() })
}

/// Failure sets to the wire.
pub fn failures_messages(failures: &[Failures]) -> Vec<v1::Failures> {
    failures.iter().map(|set| v1::Failures { sites: set.sites.into(), nodes: set.nodes.into() }).collect()
}

fn contract(field: &str, messages: &[v1::Failures]) -> Parsed<Contract> {
    let sets =
        messages.iter().map(|set| Ok(Failures { sites: small(field, set.sites)?, nodes: small(field, set.nodes)? }));
    Contract::new(sets.collect::<Parsed<Vec<_>>>()?)
        .ok_or_else(|| Invalid::new(field, "must name at least one failure set"))
}

/// Profile from the wire.
pub fn profile(message: v1::Profile) -> Parsed<Profile> {
    let read_preference = match message.read_preference() {
        v1::ReadPreference::OwnSite | v1::ReadPreference::Unspecified => ReadPreference::OwnSite,
        v1::ReadPreference::EverySite => ReadPreference::EverySite,
    };
    Ok(Profile {
        name: text("name", &message.name)?,
        version: message.version.max(1),
        code: code(message.code)?,
        contract: contract("contract", &message.contract)?,
        floor: contract("floor", &message.floor)?,
        read_preference,
    })
}

/// Profile to the wire.
pub fn profile_message(profile: &Profile) -> v1::Profile {
    let read_preference = match profile.read_preference {
        ReadPreference::OwnSite => v1::ReadPreference::OwnSite,
        ReadPreference::EverySite => v1::ReadPreference::EverySite,
    };
    v1::Profile {
        name: profile.name.to_string(),
        version: profile.version,
        code: code_message(profile.code),
        contract: failures_messages(profile.contract.failures()),
        floor: failures_messages(profile.floor.failures()),
        read_preference: read_preference.into(),
    }
}

/// Volume state from the wire.
pub fn volume_state(field: &str, number: i32) -> Parsed<VolumeState> {
    match v1::VolumeState::try_from(number) {
        Ok(v1::VolumeState::Up) => Ok(VolumeState::Up),
        Ok(v1::VolumeState::ReadOnly) => Ok(VolumeState::ReadOnly),
        Ok(v1::VolumeState::Fenced) => Ok(VolumeState::Fenced),
        Ok(v1::VolumeState::Away) => Ok(VolumeState::Away),
        Ok(v1::VolumeState::Unspecified) | Err(_) => Err(Invalid::new(field, "must be UP, READ_ONLY, FENCED or AWAY")),
    }
}

/// Volume state to the wire.
pub fn volume_state_message(state: VolumeState) -> i32 {
    let state = match state {
        VolumeState::Up => v1::VolumeState::Up,
        VolumeState::ReadOnly => v1::VolumeState::ReadOnly,
        VolumeState::Fenced => v1::VolumeState::Fenced,
        VolumeState::Away => v1::VolumeState::Away,
    };
    state.into()
}

/// Shard header from the wire.
pub fn shard_header(message: Option<v1::ShardHeader>) -> Parsed<ShardHeader> {
    let message = required("header", message)?;
    if !message.merkle_path.len().is_multiple_of(32) {
        return Err(Invalid::new("header.merkle_path", "must be whole digests of 32 bytes"));
    }
    Ok(ShardHeader {
        id: shard_id(&message.instance, message.stripe, message.shard).map_err(|error| error.within("header"))?,
        code: code(message.code).map_err(|error| error.within("header"))?,
        stripe_bytes: message.stripe_bytes,
        digest: Digest(fixed("header.digest", &message.digest)?),
        merkle_path: message.merkle_path.chunks_exact(32).filter_map(Digest::from_slice).collect(),
        chunk_crcs: message.chunk_crcs,
    })
}

/// Shard header to the wire.
pub fn shard_header_message(header: &ShardHeader) -> v1::ShardHeader {
    v1::ShardHeader {
        instance: raw(&header.id.instance.0),
        stripe: header.id.stripe.0,
        shard: header.id.shard.0.into(),
        code: code_message(header.code),
        stripe_bytes: header.stripe_bytes,
        digest: raw(&header.digest.0),
        merkle_path: header.merkle_path.iter().flat_map(|digest| digest.0).collect(),
        chunk_crcs: header.chunk_crcs.clone(),
    }
}

/// Shard id from the wire.
pub fn shard_id(instance: &[u8], stripe: u32, shard: u32) -> Parsed<ShardId> {
    Ok(ShardId {
        instance: InstanceId(fixed("instance", instance)?),
        stripe: StripeIndex(stripe),
        shard: ShardIndex(small("shard", shard)?),
    })
}

/// Lookup from the wire.
pub fn lookup(message: v1::LookupRequest) -> Parsed<Lookup> {
    Ok(Lookup { key: key(message.key)?, version: version(message.version)?, freshness: freshness(message.freshness)? })
}

/// Listing from the wire; the public and the internal form have the same fields.
pub fn list(message: v1::CatalogListRequest) -> Parsed<List> {
    let rows = usize::try_from(message.rows_max).unwrap_or(LIST_ROWS_MAX);
    let study: Option<Uid> = optional_text("study", &message.study)?;
    let series: Option<Uid> = optional_text("series", &message.series)?;
    if series.is_some() && study.is_none() {
        return Err(Invalid::new("series", "needs a study"));
    }
    Ok(List {
        tenant: text("tenant", &message.tenant)?,
        study,
        series,
        studies_only: message.studies_only,
        page_token: message.page_token.to_vec(),
        rows_max: if rows == 0 { LIST_ROWS_MAX } else { rows.min(LIST_ROWS_MAX) },
        freshness: freshness(message.freshness)?,
    })
}

/// Listing to the wire.
pub fn list_message(list: &List) -> v1::CatalogListRequest {
    v1::CatalogListRequest {
        tenant: list.tenant.to_string(),
        study: list.study.as_ref().map(Uid::to_string).unwrap_or_default(),
        series: list.series.as_ref().map(Uid::to_string).unwrap_or_default(),
        studies_only: list.studies_only,
        page_token: list.page_token.clone().into(),
        rows_max: u32::try_from(list.rows_max).unwrap_or(u32::MAX),
        freshness: freshness_message(list.freshness),
    }
}

/// Study row from the wire.
pub fn study_row(row: &v1::CatalogStudyRow) -> Parsed<StudyRow> {
    Ok(StudyRow { study: text("studies.study", &row.study)?, objects: row.objects, size_bytes: row.size_bytes })
}

/// A page for thin clients.
pub fn page_message(page: &ListPage) -> v1::ListReply {
    let studies = page.studies.iter().map(|row| v1::StudyRow {
        study: row.study.to_string(),
        objects: row.objects,
        size_bytes: row.size_bytes,
    });
    v1::ListReply {
        studies: studies.collect(),
        stored: page.instances.iter().map(stored_message).collect(),
        next_page_token: page.next_page_token.clone().into(),
    }
}

/// Attributes from the wire.
pub fn attributes(messages: Vec<v1::Attribute>) -> Vec<Attribute> {
    messages.into_iter().map(|message| Attribute { tag: message.tag, value: message.value }).collect()
}

/// A sealed instance for thin clients.
pub fn stored_message(sealed: &SealedInstance) -> v1::StoredVersion {
    let seal = &sealed.seal;
    let attributes = seal.attributes.iter().map(|one| v1::Attribute { tag: one.tag, value: one.value.clone() });
    v1::StoredVersion {
        key: Some(key_message(&seal.key)),
        version: sealed.version.0,
        instance: raw(&seal.instance.0),
        size_bytes: seal.size_bytes,
        digest: raw(&seal.digest.0),
        media_type: seal.media_type.clone(),
        profile: seal.profile.to_string(),
        profile_version: seal.profile_version,
        code: code_message(seal.code),
        survives: failures_messages(&sealed.survives),
        degraded: sealed.degraded,
        stripes: u32::try_from(seal.stripes.len()).unwrap_or(u32::MAX),
        index: sealed.index.0,
        term: sealed.term.0,
        time_millis: sealed.time.0,
        coordinator: seal.coordinator.clone(),
        attributes: attributes.collect(),
    }
}

/// A receipt for reading.
pub fn receipt_message(receipt: &Receipt) -> v1::Receipt {
    v1::Receipt {
        cluster: raw(&receipt.cluster.0),
        key: Some(key_message(&receipt.key)),
        version: receipt.version.0,
        instance: raw(&receipt.instance.0),
        size_bytes: receipt.size_bytes,
        digest: raw(&receipt.digest.0),
        profile: receipt.profile.to_string(),
        profile_version: receipt.profile_version,
        code: code_message(receipt.code),
        contract: failures_messages(receipt.contract.failures()),
        survives: failures_messages(&receipt.survives),
        degraded: receipt.degraded,
        stripes: receipt.stripes.iter().map(placement_message).collect(),
        layout_version: receipt.layout.0,
        term: receipt.term.0,
        index: receipt.index.0,
        time_millis: receipt.time.0,
        coordinator: receipt.coordinator.clone(),
    }
}

fn placement_message(stripe: &StripePlacement) -> v1::StripePlacement {
    let shards = stripe.shards.iter().map(|(shard, site, volume)| v1::ShardPlace {
        shard: (*shard).into(),
        site: site.to_string(),
        volume: raw(&volume.0),
    });
    v1::StripePlacement { shard_root: raw(&stripe.shard_root.0), shards: shards.collect() }
}

/// Layout for operators.
pub fn layout_message(layout: &Layout) -> v1::AdminLayoutReply {
    let node_state = |state| match state {
        NodeState::Up => v1::NodeState::Up,
        NodeState::Down => v1::NodeState::Down,
        NodeState::Removed => v1::NodeState::Removed,
        NodeState::Suspect => v1::NodeState::Suspect,
        NodeState::Lost => v1::NodeState::Lost,
    };
    let nodes = layout.nodes.values().map(|node| v1::LayoutNode {
        id: node.id.0,
        name: node.name.to_string(),
        site: node.site.to_string(),
        address: node.address.clone(),
        storage: node.roles.storage,
        voter: node.roles.voter,
        state: node_state(node.state).into(),
        incarnation: raw(&node.incarnation.0),
        format_version: node.version,
        draining: node.draining,
    });
    let volumes = layout.volumes.values().map(|volume| v1::LayoutVolume {
        id: raw(&volume.id.0),
        node: volume.node.0,
        capacity_bytes: volume.capacity_bytes,
        state: volume_state_message(volume.state),
        draining: volume.draining,
    });
    v1::AdminLayoutReply {
        cluster: raw(&layout.cluster.0),
        version: layout.version.0,
        nodes: nodes.collect(),
        volumes: volumes.collect(),
        profiles: layout.profiles.values().map(profile_message).collect(),
        default_profile: layout.default_profile.to_string(),
        format: layout.format,
    }
}

/// Status to the wire.
pub fn status_message(status: &NodeStatus) -> v1::StatusReply {
    let volumes = status.volumes.iter().map(|volume| v1::VolumeStatus {
        volume: raw(&volume.volume.0),
        state: volume_state_message(volume.state),
        reason: volume.reason.clone(),
        shards: volume.shards,
        used_bytes: volume.used_bytes,
        free_bytes: volume.free_bytes,
        capacity_bytes: volume.capacity_bytes,
        scrub: health::scrub_age_message(&volume.scrub),
    });
    v1::StatusReply {
        node: status.node.map(|node| node.0),
        name: status.name.to_string(),
        site: status.site.to_string(),
        binary_version: status.binary_version.clone(),
        cluster: raw(&status.cluster.0),
        leader: status.leader.map(|node| node.0),
        term: status.term.0,
        last_log: status.last_log.0,
        applied: status.applied.0,
        state_digest: raw(&status.state_digest.0),
        voters: status.voters.iter().map(|node| node.0).collect(),
        learners: status.learners.iter().map(|node| node.0).collect(),
        volumes: volumes.collect(),
    }
}

/// Status from the wire.
pub fn status(message: v1::StatusReply) -> Parsed<NodeStatus> {
    let volumes = message.volumes.into_iter().map(|volume| {
        Ok(VolumeStatus {
            volume: VolumeId(fixed("volumes.volume", &volume.volume)?),
            state: volume_state("volumes.state", volume.state)?,
            reason: volume.reason,
            shards: volume.shards,
            used_bytes: volume.used_bytes,
            free_bytes: volume.free_bytes,
            capacity_bytes: volume.capacity_bytes,
            scrub: health::scrub_age(volume.scrub).map_err(|error| error.within("volumes"))?,
        })
    });
    Ok(NodeStatus {
        node: message.node.map(NodeId),
        name: text("name", &message.name)?,
        site: text("site", &message.site)?,
        binary_version: message.binary_version,
        cluster: ClusterId(fixed("cluster", &message.cluster)?),
        leader: message.leader.map(NodeId),
        term: Term(message.term),
        last_log: LogIndex(message.last_log),
        applied: LogIndex(message.applied),
        state_digest: Digest(fixed("state_digest", &message.state_digest)?),
        voters: message.voters.into_iter().map(NodeId).collect(),
        learners: message.learners.into_iter().map(NodeId).collect(),
        volumes: volumes.collect::<Parsed<Vec<_>>>()?,
    })
}

/// Answer to joining from the wire.
pub fn joined(message: &v1::JoinedReply) -> Parsed<(NodeId, ClusterId, Incarnation)> {
    let cluster = ClusterId(fixed("cluster", &message.cluster)?);
    Ok((NodeId(message.node), cluster, Incarnation(fixed("incarnation", &message.incarnation)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation<T>(parsed: Parsed<T>) -> String {
        parsed.err().expect("must be refused").field
    }

    #[test]
    fn keys_come_back_as_they_were_sent() {
        for written in ["main/1.2.840.1/1.2.3/1.2.3.4", "main/1.2.840.1/@/report 1.pdf"] {
            let parsed: ObjectKey = written.parse().expect("a key");
            assert_eq!(key(Some(key_message(&parsed))), Ok(parsed));
        }
    }

    #[test]
    fn a_bad_key_names_the_field_that_is_wrong() {
        let good = key_message(&"main/1.2/1.3/1.4".parse().expect("a key"));
        assert_eq!(violation(key(None)), "key");
        assert_eq!(violation(key(Some(v1::ObjectKey { tenant: "A".into(), ..good.clone() }))), "key.tenant");
        assert_eq!(violation(key(Some(v1::ObjectKey { study: "1.02".into(), ..good.clone() }))), "key.study");
        assert_eq!(violation(key(Some(v1::ObjectKey { leaf: None, ..good }))), "key.leaf");
    }

    #[test]
    fn profiles_come_back_as_they_were_sent() {
        let profile_in = Profile {
            name: "standard".parse().expect("a name"),
            version: 3,
            code: Code::new(4, 2).expect("a code"),
            contract: Contract::one(Failures { sites: 1, nodes: 0 }),
            floor: Contract::one(Failures { sites: 0, nodes: 1 }),
            read_preference: ReadPreference::EverySite,
        };
        assert_eq!(profile(profile_message(&profile_in)), Ok(profile_in.clone()));
        let empty = v1::Profile { contract: vec![], ..profile_message(&profile_in) };
        assert_eq!(violation(profile(empty)), "contract");
        let wide = v1::Profile { code: Some(v1::Code { data: 30, parity: 3 }), ..profile_message(&profile_in) };
        assert_eq!(violation(profile(wide)), "code");
    }

    #[test]
    fn version_zero_and_a_series_without_study_are_refused() {
        assert_eq!(violation(version(Some(0))), "version");
        let request = v1::CatalogListRequest { tenant: "main".into(), series: "1.2".into(), ..Default::default() };
        assert_eq!(violation(list(request)), "series");
    }
}
