//! The receipt: what an acknowledged write promises, in a form that anyone with the cluster's CA can verify.
//!
//! **Invariants.** [`Receipt::encode`] is deterministic, and [`Receipt::decode`] accepts exactly what it writes: the
//! signed bytes and the promise determine each other. A receipt never says more than the catalog's record, and one of now
//! ([`Receipt::of_now`]) no more than what holds now.
//!
//! Bytes: format 1, then protobuf. Tags are never reused.

use std::collections::BTreeSet;
use std::fmt;

use crate::catalog::wire::{frame, open_strict};
use crate::catalog::wire_words::{
    CodeMessage, FailuresMessage, cluster_id, contract, digest, failures, failures_messages, instance_id, present,
    small, text, volume_id,
};
use crate::catalog::{Error, SealedInstance, StripeSeal, survived_by_all};
use crate::health::held;
use crate::ids::{
    ClusterId, Digest, InstanceId, LayoutVersion, LogIndex, ObjectKey, ProfileName, SiteName, Term, VersionNumber,
    VolumeId, WallMillis,
};
use crate::layout::survival::{Held, covers, strongest};
use crate::layout::{Contract, Failures, Layout, profile::Code};

/// Shards of one stripe as persisted when it was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripePlacement {
    /// Merkle root over all shard digests.
    pub shard_root: Digest,
    /// For each durable shard: its index, site and volume, in index order.
    pub shards: Vec<(u8, SiteName, VolumeId)>,
}

/// What was promised. Signed bytes are [`Receipt::encode`]'s; the signature and certificate travel beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which cluster promises.
    pub cluster: ClusterId,
    /// What is stored.
    pub key: ObjectKey,
    /// Its version.
    pub version: VersionNumber,
    /// The attempt.
    pub instance: InstanceId,
    /// Content bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Profile.
    pub profile: ProfileName,
    /// Its version.
    pub profile_version: u32,
    /// Its code.
    pub code: Code,
    /// What the profile promises at full strength.
    pub contract: Contract,
    /// What the write survived when sealed, or what it survives now if this is less and the receipt is of a later day;
    /// strongest first.
    pub survives: Vec<Failures>,
    /// True when `survives` does not cover `contract`.
    pub degraded: bool,
    /// Where the shards are.
    pub stripes: Vec<StripePlacement>,
    /// Layout by which they were placed.
    pub layout: LayoutVersion,
    /// Raft term of the sealing entry.
    pub term: Term,
    /// Raft index of the sealing entry.
    pub index: LogIndex,
    /// Catalog time of the seal.
    pub time: WallMillis,
    /// Subject of the signing certificate.
    pub coordinator: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ShardMessage {
    #[prost(uint32, tag = "1")]
    shard: u32,
    #[prost(string, tag = "2")]
    site: String,
    #[prost(bytes = "vec", tag = "3")]
    volume: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StripeMessage {
    #[prost(bytes = "vec", tag = "1")]
    shard_root: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    shards: Vec<ShardMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReceiptMessage {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(uint32, tag = "3")]
    version: u32,
    #[prost(bytes = "vec", tag = "4")]
    instance: Vec<u8>,
    #[prost(uint64, tag = "5")]
    size_bytes: u64,
    #[prost(bytes = "vec", tag = "6")]
    digest: Vec<u8>,
    #[prost(string, tag = "7")]
    profile: String,
    #[prost(uint32, tag = "8")]
    profile_version: u32,
    #[prost(message, optional, tag = "9")]
    code: Option<CodeMessage>,
    #[prost(message, repeated, tag = "10")]
    contract: Vec<FailuresMessage>,
    #[prost(message, repeated, tag = "11")]
    survives: Vec<FailuresMessage>,
    #[prost(bool, tag = "12")]
    degraded: bool,
    #[prost(message, repeated, tag = "13")]
    stripes: Vec<StripeMessage>,
    #[prost(uint64, tag = "14")]
    layout: u64,
    #[prost(uint64, tag = "15")]
    term: u64,
    #[prost(uint64, tag = "16")]
    index: u64,
    #[prost(uint64, tag = "17")]
    time: u64,
    #[prost(string, tag = "18")]
    coordinator: String,
}

impl Receipt {
    /// The receipt of a sealed record. `layout` names the sites; it should be at least as new as the record. A volume
    /// that it does not know is left out of the placement: a receipt then shows less, never more.
    pub fn of(sealed: &SealedInstance, layout: &Layout) -> Self {
        let seal = &sealed.seal;
        Self {
            cluster: layout.cluster,
            key: seal.key.clone(),
            version: sealed.version,
            instance: seal.instance,
            size_bytes: seal.size_bytes,
            digest: seal.digest,
            profile: seal.profile.clone(),
            profile_version: seal.profile_version,
            code: seal.code,
            contract: sealed.contract.clone(),
            survives: sealed.survives.clone(),
            degraded: sealed.degraded,
            stripes: seal.stripes.iter().map(|stripe| StripePlacement::of(stripe, layout)).collect(),
            layout: seal.layout,
            term: sealed.term,
            index: sealed.index,
            time: sealed.time,
            coordinator: seal.coordinator.clone(),
        }
    }

    /// The receipt of what holds now: shards reported as damaged, and volumes that are away by `layout`, do not count. It says
    /// no more than the record: what was never promised is not promised by chance.
    pub fn of_now(sealed: &SealedInstance, layout: &Layout) -> Self {
        let seal = &sealed.seal;
        // Stripes of one object mostly share few placements.
        let kinds: BTreeSet<(&[VolumeId], u32)> =
            seal.stripes.iter().map(|stripe| (stripe.placement.as_slice(), stripe.persisted)).collect();
        let mut claims: BTreeSet<Vec<Failures>> = BTreeSet::from([sealed.survives.clone()]);
        for (placement, persisted) in kinds {
            let counting = held(placement, persisted).into_iter().filter(|one| layout.counts(one.volume));
            claims.insert(strongest(&counting.collect::<Vec<Held>>(), seal.code.data(), layout));
        }
        let survives = survived_by_all(claims);
        let degraded = !covers(&survives, &sealed.contract);
        Self { survives, degraded, ..Self::of(sealed, layout) }
    }

    /// The bytes to be signed.
    pub fn encode(&self) -> Vec<u8> {
        let stripe = |stripe: &StripePlacement| StripeMessage {
            shard_root: stripe.shard_root.0.to_vec(),
            shards: stripe.shards.iter().map(shard_message).collect(),
        };
        frame(&ReceiptMessage {
            cluster: self.cluster.0.to_vec(),
            key: self.key.to_string(),
            version: self.version.0,
            instance: self.instance.0.to_vec(),
            size_bytes: self.size_bytes,
            digest: self.digest.0.to_vec(),
            profile: self.profile.to_string(),
            profile_version: self.profile_version,
            code: Some(self.code.into()),
            contract: failures_messages(self.contract.failures()),
            survives: failures_messages(&self.survives),
            degraded: self.degraded,
            stripes: self.stripes.iter().map(stripe).collect(),
            layout: self.layout.0,
            term: self.term.0,
            index: self.index.0,
            time: self.time.0,
            coordinator: self.coordinator.clone(),
        })
    }

    /// Reads signed bytes. Check the signature over `bytes` first.
    /// # Errors
    /// Unknown format, or bytes that [`Receipt::encode`] of a known format does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let message: ReceiptMessage = open_strict("receipt", bytes)?;
        let stripes = message.stripes.iter().map(stripe_placement).collect::<Result<_, _>>()?;
        let receipt = Self {
            cluster: cluster_id(&message.cluster)?,
            key: text("key", &message.key)?,
            version: VersionNumber(message.version),
            instance: instance_id(&message.instance)?,
            size_bytes: message.size_bytes,
            digest: digest(&message.digest)?,
            profile: text("profile name", &message.profile)?,
            profile_version: message.profile_version,
            code: present("code", message.code)?.try_into()?,
            contract: contract(&message.contract)?,
            survives: failures(&message.survives)?,
            degraded: message.degraded,
            stripes,
            layout: LayoutVersion(message.layout),
            term: Term(message.term),
            index: LogIndex(message.index),
            time: WallMillis(message.time),
            coordinator: message.coordinator,
        };
        if receipt.encode() == bytes {
            Ok(receipt)
        } else {
            Err(Error::Unreadable { what: "receipt", why: "it is not in canonical form".to_owned() })
        }
    }

    /// Shards of the whole write by site, for people.
    fn sites(&self) -> std::collections::BTreeMap<&SiteName, usize> {
        let mut sites = std::collections::BTreeMap::new();
        for (_, site, _) in self.stripes.iter().flat_map(|stripe| &stripe.shards) {
            *sites.entry(site).or_default() += 1;
        }
        sites
    }
}

impl StripePlacement {
    fn of(stripe: &StripeSeal, layout: &Layout) -> Self {
        let durable = |shard: &u8| u32::from(*shard) < u32::BITS && stripe.persisted & (1 << *shard) != 0;
        let placed = (0_u8..=u8::MAX).zip(&stripe.placement).filter(|(shard, _)| durable(shard));
        let shards = placed
            .filter_map(|(shard, volume)| layout.node_of(*volume).map(|node| (shard, node.site.clone(), *volume)));
        Self { shard_root: stripe.shard_root, shards: shards.collect() }
    }
}

fn shard_message((shard, site, volume): &(u8, SiteName, VolumeId)) -> ShardMessage {
    ShardMessage { shard: (*shard).into(), site: site.to_string(), volume: volume.0.to_vec() }
}

fn stripe_placement(message: &StripeMessage) -> Result<StripePlacement, Error> {
    let shard =
        |one: &ShardMessage| Ok((small("shard", one.shard)?, text("site name", &one.site)?, volume_id(&one.volume)?));
    Ok(StripePlacement {
        shard_root: digest(&message.shard_root)?,
        shards: message.shards.iter().map(shard).collect::<Result<_, Error>>()?,
    })
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: Vec<String>| if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") };
        let survives = list(self.survives.iter().map(ToString::to_string).collect());
        let sites = list(self.sites().iter().map(|(site, shards)| format!("{site} {shards}")).collect());
        writeln!(f, "{} version {}", self.key, self.version)?;
        writeln!(f, "  content   {} bytes, BLAKE3 {}", self.size_bytes, self.digest)?;
        writeln!(f, "  profile   {} version {}, code {}", self.profile, self.profile_version, self.code)?;
        writeln!(f, "  survives  {survives}")?;
        if self.degraded {
            writeln!(f, "  DEGRADED  the profile promises {}; repair will restore it", self.contract)?;
        } else {
            writeln!(f, "  contract  {}: kept", self.contract)?;
        }
        writeln!(f, "  shards    {} stripes, by site: {sites}", self.stripes.len())?;
        writeln!(f, "  attempt   {} by {}, layout {}", self.instance, self.coordinator, self.layout)?;
        write!(f, "  sealed    term {} index {} at {} ms, cluster {}", self.term, self.index, self.time, self.cluster)
    }
}
