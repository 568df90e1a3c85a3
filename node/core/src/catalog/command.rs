//! Commands: everything that can change the catalog, and what each can answer.

use std::collections::BTreeMap;

use crate::ids::{
    ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, LogIndex, NodeId, NodeName, ObjectKey, ProfileName,
    ShardIndex, SiteName, StripeIndex, Tenant, Term, Uid, VersionNumber, VolumeId, WallMillis,
};
use crate::layout::{Contract, Failures, NodeState, Profile, Roles, VolumeState, profile::Code};
use crate::shard::ShardId;

/// The newest version of commands and formats that this build understands; [`Command::version`] is never above it.
pub const COMMANDS_VERSION: u32 = 2;

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
    /// Puts a version of commands and formats in force; refused while a member does not understand it. From 2 on the
    /// commands below are allowed.
    Activate {
        /// From then on; going back is refused, repeating it changes nothing.
        version: u32,
    },
    /// Version 2. Makes new holders of shards true, whose bytes are durable there.
    Reseat(Reseat),
    /// Version 2. The owner of `volume` found these shards missing or damaged on it: they count as absent until repaired.
    /// Shards that the catalog does not place there are skipped.
    ReportDamage {
        /// Where.
        volume: VolumeId,
        /// Which.
        shards: Vec<ShardId>,
    },
    /// Version 2. A stripe cannot be repaired for now: it is remembered with the reason and blocks nothing.
    SetAside {
        /// Of which instance.
        instance: InstanceId,
        /// Which stripe.
        stripe: StripeIndex,
        /// For people.
        reason: String,
    },
    /// Version 2. Forgets all stripes set aside, so that they are tried again.
    RetryAside,
    /// Version 2. Gives a live version another encoding of the same content.
    Replace(Box<Replace>),
    /// Version 2. The profile that a study's instances are to have; background re-encoding brings it about. `None` leaves
    /// them as they are.
    SetStudyProfile {
        /// Owner.
        tenant: Tenant,
        /// Which study.
        study: Uid,
        /// A profile of the layout.
        profile: Option<ProfileName>,
    },
    /// Version 2. Begins or ends emptying a node or a volume; refused, with the arithmetic, when a profile could not keep
    /// its contract without it.
    SetDrain {
        /// What.
        target: DrainTarget,
        /// Begin or end.
        draining: bool,
    },
}

impl Command {
    /// The version of commands that it belongs to: it may be proposed once the layout's `format` is at least this.
    pub fn version(&self) -> u32 {
        match self {
            Self::InitCluster { .. }
            | Self::JoinNode(_)
            | Self::AddVolume { .. }
            | Self::SetProfile { .. }
            | Self::Seal(_)
            | Self::Delete { .. }
            | Self::CompareDigest { .. }
            | Self::Activate { .. } => 1,
            Self::SetNodeState { state, .. } => {
                if matches!(state, NodeState::Suspect | NodeState::Lost) {
                    2
                } else {
                    1
                }
            }
            Self::SetVolumeState { state, .. } => {
                if matches!(state, VolumeState::Away) {
                    2
                } else {
                    1
                }
            }
            Self::Reseat(_)
            | Self::ReportDamage { .. }
            | Self::SetAside { .. }
            | Self::RetryAside
            | Self::Replace(_)
            | Self::SetStudyProfile { .. }
            | Self::SetDrain { .. } => 2,
        }
    }
}

/// What is to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainTarget {
    /// All volumes of a node.
    Node(NodeId),
    /// One volume.
    Volume(VolumeId),
}

/// New holders for shards of one stripe: a compare-and-swap on its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reseat {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which stripe.
    pub stripe: StripeIndex,
    /// Placement that the mover saw; refused when it is another by now.
    pub expected: Vec<VolumeId>,
    /// Persisted bits that the mover saw; refused when they are others by now.
    pub persisted: u32,
    /// Shards that are durable on new holders, or again on their old ones; each shard once.
    pub moves: Vec<(ShardIndex, VolumeId)>,
    /// Catalog time after which it is refused: at most [`RESEAT_WINDOW_MILLIS`](crate::limits::RESEAT_WINDOW_MILLIS) after the
    /// catalog time that the mover read *before* it asked a new holder to write. Thereby a holder knows when a copy that is
    /// named nowhere can no longer become named, and may be swept.
    pub not_after: WallMillis,
}

/// Another encoding of the content of a live version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replace {
    /// The new encoding: key, size, digest, media type, attributes and `reserved` equal those of the record replaced; it
    /// keeps the contract of its profile, or the command is refused.
    pub seal: Seal,
    /// Version of the key.
    pub version: VersionNumber,
    /// The attempt whose record it replaces; refused when it is another by now.
    pub replaces: InstanceId,
}

/// What became of one stripe's shards after it was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Entry of the last reseat: the authority under which stale copies are swept.
    pub index: LogIndex,
    /// Where shards were before their last move; such a copy may still be there, or not. At most one per shard.
    pub former: BTreeMap<ShardIndex, VolumeId>,
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
    /// Set when a logged delete or replacement marked it; its shards may be swept.
    pub deleted: Option<LogIndex>,
    /// Stripes that were reseated since.
    pub moved: BTreeMap<StripeIndex, Moved>,
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
    /// What the command was decided on has changed since. Look again and decide anew.
    #[error("{0} has changed meanwhile")]
    Changed(String),
    /// The command is of a version that is not in force yet.
    #[error(
        "this needs version {needed} of the cluster, which runs version {present} until every node has been upgraded: finish the \
         upgrade (`pacsvault status` shows versions), then repeat"
    )]
    UpgradePending {
        /// Version of the command.
        needed: u32,
        /// Version in force.
        present: u32,
    },
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
