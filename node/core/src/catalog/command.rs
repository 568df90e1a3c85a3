//! Commands: everything that can change the catalog, and what each can answer.

use crate::ids::{
    ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, LogIndex, NodeId, NodeName, ObjectKey, ProfileName,
    SiteName, Term, VersionNumber, VolumeId, WallMillis,
};
use crate::layout::{Contract, Failures, NodeState, Profile, Roles, VolumeState, profile::Code};

/// One log entry: commands proposed together, with the leader's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The leader's wall clock when it proposed. `catalog_time = max(catalog_time, time)`.
    pub time: WallMillis,
    /// Applied in order; each has its own outcome.
    pub commands: Vec<Command>,
}

/// A change to the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// First command of a cluster: its identity and profiles.
    InitCluster {
        /// From the certificate authority.
        cluster: ClusterId,
        /// At least the default one.
        profiles: Vec<Profile>,
        /// Profile of writes that name none.
        default_profile: ProfileName,
    },
    /// A node asks to be part of the cluster. Same name and incarnation again: answers the same id, updates the address.
    JoinNode(JoinNode),
    /// Changes whether a node counts.
    SetNodeState {
        /// Which node.
        node: NodeId,
        /// Into which state.
        state: NodeState,
    },
    /// Adds a formatted volume to a node of the cluster.
    AddVolume {
        /// Owner.
        node: NodeId,
        /// Its identity.
        volume: VolumeId,
        /// Bytes it may hold.
        capacity_bytes: u64,
    },
    /// Changes whether a volume counts. `Fenced` is final.
    SetVolumeState {
        /// Which volume.
        volume: VolumeId,
        /// Into which state.
        state: VolumeState,
    },
    /// Adds or replaces a profile; refused when its contract cannot hold on the present layout.
    SetProfile {
        /// The profile; its version is set by `apply`.
        profile: Profile,
        /// Make it the default of writes that name none.
        make_default: bool,
    },
    /// Makes a written instance true and visible.
    Seal(Box<Seal>),
    /// Marks one version, or all versions, of a key as deleted. The only authority to delete shard bytes.
    Delete {
        /// Which key.
        key: ObjectKey,
        /// Only this version; all when absent.
        version: Option<VersionNumber>,
    },
    /// The proposer's state digest after `index`; a replica that remembers another digest has diverged and stops.
    CompareDigest {
        /// Digest is of the state after this entry.
        index: LogIndex,
        /// The proposer's rolling state digest.
        digest: Digest,
    },
}

/// What a node says of itself when it asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinNode {
    /// From its certificate.
    pub name: NodeName,
    /// This life of its data directory.
    pub incarnation: Incarnation,
    /// Failure domain.
    pub site: SiteName,
    /// `host:port` for peers and clients.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Formatted volumes with their capacities in bytes.
    pub volumes: Vec<(VolumeId, u64)>,
    /// Highest command and format version it understands.
    pub version: u32,
}

/// One stripe of an instance to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeSeal {
    /// Content bytes in the stripe.
    pub stripe_bytes: u64,
    /// Merkle root over all `k + m` shard digests.
    pub shard_root: Digest,
    /// Volume of each shard, in `ShardIndex` order; `k + m` of them. A volume may appear twice when degraded.
    pub placement: Vec<VolumeId>,
    /// Bit `i` set: shard `i` is durable on `placement[i]`. The others are missing and become repair work.
    pub persisted: u32,
}

/// A DICOM attribute kept for listing and search: tag and value as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Attribute {
    /// `(group << 16) | element`.
    pub tag: u32,
    /// Value in the default character repertoire or UTF-8, components joined by '\\'.
    pub value: String,
}

impl std::fmt::Debug for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({:04X},{:04X}) <redacted>", self.tag >> 16, self.tag & 0xffff)
    }
}

/// Fields that encryption, audit and retention will fill; carried and stored from the first format version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reserved {
    /// Data key of the instance, wrapped by a tenant key.
    pub wrapped_key: Vec<u8>,
    /// DICOM attributes, encrypted at the edge.
    pub encrypted_attributes: Vec<u8>,
    /// Keyed hashes for exact and prefix search.
    pub blind_index: Vec<Vec<u8>>,
    /// Keep at least until this time; `apply` refuses to delete before.
    pub retain_until: Option<WallMillis>,
    /// Hash of the audit record chained to this write.
    pub audit_chain_hash: Vec<u8>,
}

/// A request to make a written instance true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The attempt.
    pub instance: InstanceId,
    /// Under which name.
    pub key: ObjectKey,
    /// Content bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Profile by name and version, as the coordinator saw it.
    pub profile: ProfileName,
    /// Version of that profile.
    pub profile_version: u32,
    /// Code used; equals the profile's.
    pub code: Code,
    /// Layout the coordinator placed by.
    pub layout: LayoutVersion,
    /// In order, at least one (empty content has one stripe of 0 bytes).
    pub stripes: Vec<StripeSeal>,
    /// Media type of the content, such as `application/dicom`.
    pub media_type: String,
    /// Indexed DICOM attributes.
    pub attributes: Vec<Attribute>,
    /// Refuse instead of accepting less than the profile's contract.
    pub strict: bool,
    /// Name of the coordinator: subject of the certificate that signs the receipt.
    pub coordinator: String,
    /// For later format versions.
    pub reserved: Reserved,
}

/// A sealed instance as the catalog keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedInstance {
    /// What was sealed.
    pub seal: Seal,
    /// Version given to it.
    pub version: VersionNumber,
    /// Failure sets that it survived when sealed, strongest first.
    pub survives: Vec<Failures>,
    /// True when that is less than `contract`.
    pub degraded: bool,
    /// What the profile promised when it was sealed (its newest version then).
    pub contract: Contract,
    /// Term of the entry that sealed it.
    pub term: Term,
    /// Index of the entry that sealed it.
    pub index: LogIndex,
    /// Catalog time when sealed.
    pub time: WallMillis,
    /// Set when a logged delete marked it; its shards may be swept.
    pub deleted: Option<LogIndex>,
}

/// Why `apply` refused a command. Each is final for this proposal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The cluster was already initialised, or not yet.
    #[error("the cluster is {0}")]
    ClusterState(String),
    /// The same name is a member with another incarnation.
    #[error(
        "node name {name} belongs to node {node} with other data; remove that node first, or restore its data directory"
    )]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Its present holder.
        node: NodeId,
    },
    /// A node, volume or profile is unknown.
    #[error("{0} is not part of this cluster")]
    Unknown(String),
    /// Not allowed in the present state.
    #[error("{0}")]
    NotAllowed(String),
    /// The contract cannot hold; carries the arithmetic.
    #[error("{0}")]
    Impossible(String),
    /// A volume of the placement has been fenced since. Place again and retry as a new attempt.
    #[error("volume {volume} was fenced after the shards were placed; write again")]
    Fenced {
        /// Which volume.
        volume: VolumeId,
    },
    /// The persisted set survives less than required.
    #[error("the persisted shards of stripe {stripe} survive less than required: {why}")]
    TooWeak {
        /// Index of the stripe.
        stripe: u32,
        /// The failure set that would lose it.
        why: String,
    },
    /// The attempt began too long ago.
    #[error(
        "the attempt began at {began} ms, before {horizon} ms, where the write window begins: write again, and if that is \
         refused too, correct the coordinator's clock"
    )]
    WindowClosed {
        /// Time in the instance id.
        began: u64,
        /// `catalog_time − write_window`.
        horizon: u64,
    },
    /// A seal contradicts itself or the catalog: a coordinator bug or an attack.
    #[error("malformed seal: {0}")]
    Malformed(String),
    /// Key or version not found.
    #[error("{0} is not stored")]
    NotFound(String),
}

/// What a command answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Done, nothing to tell.
    Done,
    /// The node's id.
    Joined(NodeId),
    /// Sealed now, or found sealed by an earlier attempt (`first` is false).
    Sealed {
        /// The record.
        sealed: Box<SealedInstance>,
        /// False when an earlier attempt with the same id or the same key and digest had sealed it.
        first: bool,
    },
    /// Marked as deleted, now or before.
    Deleted {
        /// Versions that this command marked; none when all were marked before.
        versions: Vec<VersionNumber>,
        /// Index of this command's entry: a state that has applied it does not show what was to be deleted.
        index: LogIndex,
    },
    /// Refused.
    Rejected(Rejection),
}
