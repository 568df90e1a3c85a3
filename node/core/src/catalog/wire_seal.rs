//! Protobuf forms of seals and sealed records, as they travel and as they are stored.
//!
//! **Invariants.** A stripe that travels lists its volumes; a stored one names an interned placement instead. Exactly
//! one of the two is set, so a stored record can never pass for a message, nor the reverse.

use super::command::{Attribute, Moved, Reserved, Seal, SealedInstance, StripeSeal};
use super::wire_words::{
    CodeMessage, FailuresMessage, contract, digest, failures, failures_messages, instance_id, present, text,
    unreadable, volume_bytes, volume_ids,
};
use super::{Error, keys};
use crate::ids::{
    LayoutVersion, LogIndex, PlacementId, ShardIndex, StripeIndex, Term, VersionNumber, VolumeId, WallMillis,
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StripeMessage {
    #[prost(uint64, tag = "1")]
    pub stripe_bytes: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub shard_root: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub persisted: u32,
    /// Stored form; placements count from 1.
    #[prost(uint64, tag = "4")]
    pub placement: u64,
    /// Travelling form: 16 bytes each.
    #[prost(bytes = "vec", tag = "5")]
    pub volumes: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AttributeMessage {
    #[prost(uint32, tag = "1")]
    pub tag: u32,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReservedMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub wrapped_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub encrypted_attributes: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub blind_index: Vec<Vec<u8>>,
    #[prost(uint64, optional, tag = "4")]
    pub retain_until: Option<u64>,
    #[prost(bytes = "vec", tag = "5")]
    pub audit_chain_hash: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SealMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub instance: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub object: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub digest: Vec<u8>,
    #[prost(string, tag = "5")]
    pub profile: String,
    #[prost(uint32, tag = "6")]
    pub profile_version: u32,
    #[prost(message, optional, tag = "7")]
    pub code: Option<CodeMessage>,
    #[prost(uint64, tag = "8")]
    pub layout: u64,
    #[prost(message, repeated, tag = "9")]
    pub stripes: Vec<StripeMessage>,
    #[prost(string, tag = "10")]
    pub media_type: String,
    #[prost(message, repeated, tag = "11")]
    pub attributes: Vec<AttributeMessage>,
    #[prost(bool, tag = "12")]
    pub strict: bool,
    #[prost(string, tag = "13")]
    pub coordinator: String,
    #[prost(message, optional, tag = "14")]
    pub reserved: Option<ReservedMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SealedMessage {
    #[prost(message, optional, tag = "1")]
    pub seal: Option<SealMessage>,
    #[prost(uint32, tag = "2")]
    pub version: u32,
    #[prost(message, repeated, tag = "3")]
    pub survives: Vec<FailuresMessage>,
    #[prost(bool, tag = "4")]
    pub degraded: bool,
    #[prost(message, repeated, tag = "5")]
    pub contract: Vec<FailuresMessage>,
    #[prost(uint64, tag = "6")]
    pub term: u64,
    #[prost(uint64, tag = "7")]
    pub index: u64,
    #[prost(uint64, tag = "8")]
    pub time: u64,
    #[prost(uint64, optional, tag = "9")]
    pub deleted: Option<u64>,
    #[prost(message, repeated, tag = "10")]
    pub moved: Vec<MovedMessage>,
}

/// A stripe that was reseated.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MovedMessage {
    #[prost(uint32, tag = "1")]
    pub stripe: u32,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Shards, ascending, one byte each …
    #[prost(bytes = "vec", tag = "3")]
    pub shards: Vec<u8>,
    /// … and the volume that each was on, 16 bytes each.
    #[prost(bytes = "vec", tag = "4")]
    pub volumes: Vec<u8>,
}

pub(super) fn moved_message((stripe, moved): (&StripeIndex, &Moved)) -> MovedMessage {
    MovedMessage {
        stripe: stripe.0,
        index: moved.index.0,
        shards: moved.former.keys().map(|shard| shard.0).collect(),
        volumes: moved.former.values().flat_map(|volume| volume.0).collect(),
    }
}

pub(super) fn moved(message: &MovedMessage) -> Result<(StripeIndex, Moved), Error> {
    let volumes = volume_ids(&message.volumes)?;
    if volumes.len() != message.shards.len() {
        return Err(unreadable("former holders", "shards and volumes differ in number"));
    }
    let former = message.shards.iter().map(|shard| ShardIndex(*shard)).zip(volumes).collect();
    Ok((StripeIndex(message.stripe), Moved { index: LogIndex(message.index), former }))
}

/// How a stripe names its volumes: by list when it travels, by interned id when it is stored.
pub(super) enum Placed<'a> {
    /// As in the seal.
    ByVolumes,
    /// One id per stripe.
    ById(&'a [PlacementId]),
}

pub(super) fn seal_message(seal: &Seal, placed: &Placed<'_>) -> SealMessage {
    let stripe = |(index, stripe): (usize, &StripeSeal)| StripeMessage {
        stripe_bytes: stripe.stripe_bytes,
        shard_root: stripe.shard_root.0.to_vec(),
        persisted: stripe.persisted,
        placement: match placed {
            Placed::ByVolumes => 0,
            Placed::ById(ids) => ids[index].0,
        },
        volumes: match placed {
            Placed::ByVolumes => volume_bytes(&stripe.placement),
            Placed::ById(_) => Vec::new(),
        },
    };
    let attribute = |one: &Attribute| AttributeMessage { tag: one.tag, value: one.value.clone() };
    SealMessage {
        instance: seal.instance.0.to_vec(),
        object: keys::object_name(&seal.key),
        size_bytes: seal.size_bytes,
        digest: seal.digest.0.to_vec(),
        profile: seal.profile.to_string(),
        profile_version: seal.profile_version,
        code: Some(seal.code.into()),
        layout: seal.layout.0,
        stripes: seal.stripes.iter().enumerate().map(stripe).collect(),
        media_type: seal.media_type.clone(),
        attributes: seal.attributes.iter().map(attribute).collect(),
        strict: seal.strict,
        coordinator: seal.coordinator.clone(),
        reserved: reserved_message(&seal.reserved),
    }
}

fn reserved_message(reserved: &Reserved) -> Option<ReservedMessage> {
    (*reserved != Reserved::default()).then(|| ReservedMessage {
        wrapped_key: reserved.wrapped_key.clone(),
        encrypted_attributes: reserved.encrypted_attributes.clone(),
        blind_index: reserved.blind_index.clone(),
        retain_until: reserved.retain_until.map(|time| time.0),
        audit_chain_hash: reserved.audit_chain_hash.clone(),
    })
}

/// Looks a stored placement up. A travelling message must not need it: pass [`no_placements`].
pub(super) type Resolve<'a> = &'a mut dyn FnMut(PlacementId) -> Result<Vec<VolumeId>, Error>;

pub(super) fn no_placements(id: PlacementId) -> Result<Vec<VolumeId>, Error> {
    Err(unreadable("stripe", format!("it names placement {id} instead of volumes")))
}

pub(super) fn seal(message: SealMessage, resolve: Resolve<'_>) -> Result<Seal, Error> {
    let mut stripes = Vec::with_capacity(message.stripes.len());
    for stripe in &message.stripes {
        let placement = match (stripe.placement, stripe.volumes.is_empty()) {
            (0, _) => volume_ids(&stripe.volumes)?,
            (id, true) => resolve(PlacementId(id))?,
            (_, false) => return Err(unreadable("stripe", "it has both a placement and volumes")),
        };
        stripes.push(StripeSeal {
            stripe_bytes: stripe.stripe_bytes,
            shard_root: digest(&stripe.shard_root)?,
            placement,
            persisted: stripe.persisted,
        });
    }
    let reserved = message.reserved.unwrap_or_default();
    Ok(Seal {
        instance: instance_id(&message.instance)?,
        key: keys::parse_object_name(&message.object)?,
        size_bytes: message.size_bytes,
        digest: digest(&message.digest)?,
        profile: text("profile name", &message.profile)?,
        profile_version: message.profile_version,
        code: present("code", message.code)?.try_into()?,
        layout: LayoutVersion(message.layout),
        stripes,
        media_type: message.media_type,
        attributes: message.attributes.into_iter().map(|one| Attribute { tag: one.tag, value: one.value }).collect(),
        strict: message.strict,
        coordinator: message.coordinator,
        reserved: Reserved {
            wrapped_key: reserved.wrapped_key,
            encrypted_attributes: reserved.encrypted_attributes,
            blind_index: reserved.blind_index,
            retain_until: reserved.retain_until.map(WallMillis),
            audit_chain_hash: reserved.audit_chain_hash,
        },
    })
}

pub(super) fn sealed_message(sealed: &SealedInstance, placed: &Placed<'_>) -> SealedMessage {
    SealedMessage {
        seal: Some(seal_message(&sealed.seal, placed)),
        version: sealed.version.0,
        survives: failures_messages(&sealed.survives),
        degraded: sealed.degraded,
        contract: failures_messages(sealed.contract.failures()),
        term: sealed.term.0,
        index: sealed.index.0,
        time: sealed.time.0,
        deleted: sealed.deleted.map(|index| index.0),
        moved: sealed.moved.iter().map(moved_message).collect(),
    }
}

pub(super) fn sealed(message: SealedMessage, resolve: Resolve<'_>) -> Result<SealedInstance, Error> {
    Ok(SealedInstance {
        seal: seal(present("seal of a sealed record", message.seal)?, resolve)?,
        version: VersionNumber(message.version),
        survives: failures(&message.survives)?,
        degraded: message.degraded,
        contract: contract(&message.contract)?,
        term: Term(message.term),
        index: LogIndex(message.index),
        time: WallMillis(message.time),
        deleted: message.deleted.map(LogIndex),
        moved: message.moved.iter().map(moved).collect::<Result<_, _>>()?,
    })
}
