//! What can go wrong in a volume, and what the caller should do about it.

use std::{io, sync::Arc};

use pacsvault_core::{
    ids::{ClusterId, NodeName, VolumeId},
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Fault};

/// Why a volume did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory holds no volume yet. Format it, if it is the right one.
    #[error("no volume here: the identity file is missing")]
    NotFormatted,
    /// The directory already holds a volume or other files. Formatting it would lose them.
    #[error("the directory is not empty ({found}); refusing to format it")]
    NotEmpty {
        /// A file found there.
        found: String,
    },
    /// The identity file cannot be believed. Restore it, or retire the volume and let repair rebuild its shards.
    #[error("the identity of the volume is damaged: {reason}")]
    IdentityDamaged {
        /// Which check failed.
        reason: &'static str,
    },
    /// The volume belongs to someone else. A disk was swapped, or the wrong directory is configured.
    #[error("volume {volume} belongs to node {node} of cluster {cluster}, not to this node")]
    Foreign {
        /// The volume found.
        volume: VolumeId,
        /// Whose it is.
        node: NodeName,
        /// In which cluster.
        cluster: ClusterId,
    },
    /// Opening failed. Nothing was promised; look at the disk.
    #[error("cannot {step}")]
    Open {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The shard does not agree with its own header. The sender's fault, or damage on the way: build it again.
    #[error("shard {shard} is malformed: {reason}")]
    Malformed {
        /// Which.
        shard: ShardId,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Other bytes are stored under this id. Ids are drawn at random: a broken writer.
    #[error("shard {shard} is stored with other content")]
    Conflict {
        /// Which.
        shard: ShardId,
    },
    /// Not on this volume.
    #[error("no shard {shard} on volume {volume}")]
    NotFound {
        /// Which.
        shard: ShardId,
        /// Where.
        volume: VolumeId,
    },
    /// The range begins beyond the end of the shard.
    #[error("shard {shard} has {shard_bytes} bytes; the range begins at {offset_bytes}")]
    Range {
        /// Which.
        shard: ShardId,
        /// Its size.
        shard_bytes: u64,
        /// Where the range begins.
        offset_bytes: u64,
    },
    /// Not the bytes we wrote. Do not retry: read another shard of the stripe and report this one for repair.
    #[error("shard {shard} on volume {volume} fails its checksum at byte {offset_bytes}")]
    Corrupt {
        /// Which.
        shard: ShardId,
        /// Where.
        volume: VolumeId,
        /// First byte, in the shard, of the chunk that fails.
        offset_bytes: u64,
    },
    /// The device refused to read. Read another shard of the stripe.
    #[error("cannot read shard {shard} from volume {volume}")]
    Read {
        /// Which.
        shard: ShardId,
        /// Where.
        volume: VolumeId,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// This very request met an I/O error. The volume takes no more writes until reopened; write elsewhere.
    #[error("cannot {step} on volume {volume}")]
    Write {
        /// What was being done.
        step: &'static str,
        /// Where.
        volume: VolumeId,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// An earlier request met an I/O error. Write elsewhere; an operator must look at the disk.
    #[error("volume {volume} takes no writes since {reason}")]
    Poisoned {
        /// Where.
        volume: VolumeId,
        /// The first error.
        reason: Arc<str>,
    },
    /// Beyond the watermark for this kind of write, or no room at all. Nothing was written; write elsewhere.
    #[error("volume {volume} is full: {room_bytes} bytes left, of which {reserve_bytes} are reserved")]
    Full {
        /// Where.
        volume: VolumeId,
        /// Bytes left.
        room_bytes: u64,
        /// Bytes kept back from this kind of write.
        reserve_bytes: u64,
    },
    /// Too much is waiting for this volume. Back off.
    #[error("volume {volume} has {waiting} requests waiting")]
    Busy {
        /// Where.
        volume: VolumeId,
        /// How many.
        waiting: usize,
    },
    /// The node is stopping; whether the work was done is unknown.
    #[error("volume {volume} is being closed")]
    Closed {
        /// Where.
        volume: VolumeId,
    },
}

impl Error {
    /// What the caller may do.
    pub fn class(&self) -> Class {
        self.row().0
    }

    /// Stable code with a page in `docs/errors/`.
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    fn row(&self) -> (Class, &'static str) {
        match self {
            Self::NotFormatted => (Class::Reject, "PV-VOLUME-NOT-FORMATTED"),
            Self::NotEmpty { .. } => (Class::Reject, "PV-VOLUME-NOT-EMPTY"),
            Self::IdentityDamaged { .. } => (Class::Corrupt, "PV-VOLUME-IDENTITY"),
            Self::Foreign { .. } => (Class::Reject, "PV-VOLUME-FOREIGN"),
            Self::Open { .. } => (Class::Reject, "PV-VOLUME-OPEN"),
            Self::Malformed { .. } => (Class::Reject, "PV-SHARD-MALFORMED"),
            Self::Conflict { .. } => (Class::Reject, "PV-SHARD-CONFLICT"),
            Self::NotFound { .. } => (Class::NotFound, "PV-SHARD-NOT-FOUND"),
            Self::Range { .. } => (Class::Reject, "PV-SHARD-RANGE"),
            Self::Corrupt { .. } => (Class::Corrupt, "PV-SHARD-CORRUPT"),
            Self::Read { .. } => (Class::Corrupt, "PV-VOLUME-READ"),
            Self::Write { .. } => (Class::Unknown, "PV-VOLUME-WRITE"),
            Self::Poisoned { .. } => (Class::Retry, "PV-VOLUME-POISONED"),
            Self::Full { .. } => (Class::Exhausted, "PV-VOLUME-FULL"),
            Self::Busy { .. } => (Class::Exhausted, "PV-VOLUME-BUSY"),
            Self::Closed { .. } => (Class::Unknown, "PV-VOLUME-CLOSED"),
        }
    }

    pub(crate) fn open(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Open { step, source: Arc::new(source) }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        use std::error::Error as _;
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Fault::new(error.class(), error.code(), message)
    }
}
