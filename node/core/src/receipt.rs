//! The receipt: what an acknowledged write promises, in a form that anyone with the cluster's CA can verify.

use crate::ids::{
    ClusterId, Digest, InstanceId, LayoutVersion, LogIndex, ObjectKey, ProfileName, SiteName, Term, VersionNumber,
    VolumeId, WallMillis,
};
use crate::layout::{Contract, Failures, profile::Code};

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
    /// What the write survives now, strongest first.
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
