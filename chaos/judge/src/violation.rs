//! What can be wrong with a history, and the verdict on one.

use std::fmt;

use serde::Serialize;

use crate::history::Operation;

/// Most operations that the text of a violation tells.
const TOLD_MAX: usize = 12;

/// Which promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The record itself contradicts itself: a bug of who recorded it.
    Malformed,
    /// A read found an older version than the newest one then.
    StaleRead,
    /// A read found nothing where something acknowledged had to be.
    LostWrite,
    /// What was deleted came back.
    ResurrectedDelete,
    /// A write told as refused was seen.
    RefusedSeen,
    /// One attempt made two versions.
    TwoOutcomes,
    /// One version was two contents, or two attempts.
    VersionReused,
    /// A put was answered with the record of other content, of another key, or as first with another's record.
    WrongRecord,
    /// Content was found that nobody wrote there.
    InventedContent,
    /// Something was seen before the attempt that made it began.
    FromTheFuture,
    /// A session no longer saw what it had been told itself.
    SessionWentBack,
    /// Version numbers do not follow the order of writes, or one was made by nobody.
    VersionOrder,
    /// A delete's answer fits no moment at which it can have been done.
    DeleteDisagrees,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "no history",
            Self::StaleRead => "stale read",
            Self::LostWrite => "lost write",
            Self::ResurrectedDelete => "resurrected delete",
            Self::RefusedSeen => "refused write seen",
            Self::TwoOutcomes => "two outcomes of one attempt",
            Self::VersionReused => "version reused",
            Self::WrongRecord => "wrong record",
            Self::InventedContent => "invented content",
            Self::FromTheFuture => "from the future",
            Self::SessionWentBack => "session went back",
            Self::VersionOrder => "versions out of order",
            Self::DeleteDisagrees => "delete disagrees",
        })
    }
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which.
    pub kind: Kind,
    /// On which object; empty when it is about none.
    pub key: String,
    /// What happened, in a sentence.
    pub what: String,
    /// Those concerned, in the order begun.
    pub operations: Vec<Operation>,
}

impl Violation {
    /// About these operations.
    pub(crate) fn new<'a>(
        kind: Kind,
        key: &str,
        what: String,
        operations: impl IntoIterator<Item = &'a Operation>,
    ) -> Self {
        let mut operations: Vec<Operation> = operations.into_iter().cloned().collect();
        operations.sort_by_key(|operation| (operation.started, operation.number));
        operations.dedup();
        Self { kind, key: key.to_owned(), what, operations }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)?;
        for operation in self.operations.iter().take(TOLD_MAX) {
            write!(f, "; {operation}")?;
        }
        match self.operations.len().checked_sub(TOLD_MAX) {
            Some(more) if more > 0 => write!(f, "; and {more} more"),
            _ => Ok(()),
        }
    }
}

/// What the judge says of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Operations judged.
    pub operations: usize,
    /// Objects they were about.
    pub keys: usize,
    /// States that the search for an order went through.
    pub states_searched: u64,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Objects whose search came to no end within its bound, each with the reason. Neither good nor bad.
    pub undecided: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong and nothing is undecided.
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }
}
