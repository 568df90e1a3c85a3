//! The catalog: what is stored where, as a pure state machine over an ordered key-value view.
//!
//! **Invariants.** `apply` is a function of (state, entry): no clock, no randomness, no I/O besides the returned
//! batch. Commands are versioned protobuf; an unknown one is an error that stops the replica. Rules that protect
//! data are checked here and nowhere later.
//!
//! Reading order: [`command`] (what may change), [`view`] (what it changes), [`machine`] (how), [`query`] (reads),
//! [`wire`] (bytes of entries and of values that travel), `keys` (bytes of keys).

pub mod command;
mod delete;
mod groups;
mod healing;
mod keys;
mod leaving;
pub mod machine;
mod members;
pub mod query;
mod record;
mod replace;
mod seal;
mod sums;
pub mod view;
pub mod wire;
mod wire_command;
mod wire_seal;
pub(crate) mod wire_words;

pub use command::{
    COMMANDS_VERSION, Command, Entry, Outcome, Rejection, Replace, Reseat, Seal, SealedInstance, StripeSeal,
};
pub use keys::FIRST_BYTES;
pub use machine::Machine;
pub(crate) use seal::common as survived_by_all;
pub use view::{Overlay, View, ViewError};

use crate::ids::{Digest, LogIndex};

/// Why the catalog cannot go on. In `apply` every one of them stops the replica: going on would be a guess. In a
/// query, [`Error::PageToken`] is the caller's fault and the others are as fatal as in `apply`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store below failed.
    #[error("cannot read the catalog's state")]
    View(#[from] ViewError),
    /// A record or message begins with a format byte of a newer (or no) version. Upgrade this node.
    #[error("{what} has format {format}, which this version does not know")]
    Format {
        /// Which kind of record.
        what: &'static str,
        /// Its first byte.
        format: u8,
    },
    /// A tag inside a record or message is of a newer version. Upgrade this node.
    #[error("{what} has tag {tag}, which this version does not know")]
    UnknownTag {
        /// Which kind of value.
        what: &'static str,
        /// The tag; 0 when none that we know is set.
        tag: u32,
    },
    /// Bytes are not what our encoder writes.
    #[error("{what} is not readable: {why}")]
    Unreadable {
        /// Which kind of record.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Two records of the state contradict each other.
    #[error("the catalog's state is inconsistent: {0}")]
    Inconsistent(String),
    /// Entries were not applied in log order, each once.
    #[error("entry {index} cannot be applied after entry {applied}")]
    Order {
        /// The entry.
        index: LogIndex,
        /// The last one applied.
        applied: LogIndex,
    },
    /// This replica's state differs from the proposer's after the same entry.
    #[error("state after entry {index} has digest {ours}, the proposer has {theirs}: this replica has diverged")]
    Diverged {
        /// After which entry.
        index: LogIndex,
        /// As remembered here.
        ours: Digest,
        /// As proposed.
        theirs: Digest,
    },
    /// A page token is not one that this listing gave out. Start the listing again.
    #[error("the page token does not belong to this listing")]
    PageToken,
}
