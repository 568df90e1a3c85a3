//! Faults on the wire: [`Fault`] to `grpc-status` and back, by one table.
//!
//! **Invariants.** `fault_of(status_of(f)) == f` for every fault: class, code and message travel in
//! `google.rpc.ErrorInfo`, so nothing depends on guessing from the gRPC code. A status without our `ErrorInfo` comes
//! from a proxy or another program; it is never taken for "nothing was done" unless the request was surely not sent.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pacsvault_core::catalog::Rejection;
use pacsvault_ports::peer::{Class, Fault};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// `ErrorInfo.domain` of everything we say.
pub const DOMAIN: &str = "pacsvault";
/// Key of the class in `ErrorInfo.metadata`.
const CLASS: &str = "class";
/// Code of a field that is not what it should be.
pub const INVALID: &str = "PV-INVALID";
/// Code of a caller whose certificate does not allow the request.
pub const DENIED: &str = "PV-DENIED";
/// Code of a message above the limit.
pub const TOO_LARGE: &str = "PV-MESSAGE-TOO-LARGE";
/// Code of a method this node does not have.
pub const NO_METHOD: &str = "PV-NO-METHOD";
/// Code of a deadline that passed.
pub const DEADLINE: &str = "PV-DEADLINE";
/// Code of a node that cannot be reached.
pub const UNREACHABLE: &str = "PV-UNREACHABLE";
/// Code of a node whose certificate we refuse, or that refuses ours.
pub const TRUST: &str = "PV-TRUST";
/// Code of a connection that broke with the request under way.
pub const BROKEN: &str = "PV-CONNECTION-BROKEN";
/// Code of a node with too much to do.
pub const OVERLOAD: &str = "PV-OVERLOAD";
/// Code of a status that another program made.
const FOREIGN: &str = "PV-FOREIGN";
/// Most distinct codes learned from peers; ours are about fifty, the rest is for newer nodes during an upgrade.
const CODES_MAX: usize = 512;
/// Longest code learned from a peer, in bytes.
const CODE_BYTES_MAX: usize = 48;

/// One row per class: its gRPC code, its name on the wire, and when a repetition makes sense.
const TABLE: [(Class, Code, &str, Option<Duration>); 7] = [
    (Class::Retry, Code::Unavailable, "retry", Some(Duration::from_millis(50))),
    (Class::Unknown, Code::Unknown, "unknown", Some(Duration::from_millis(50))),
    (Class::Reject, Code::FailedPrecondition, "reject", None),
    (Class::NotFound, Code::NotFound, "not-found", None),
    (Class::Corrupt, Code::DataLoss, "corrupt", None),
    (Class::Exhausted, Code::ResourceExhausted, "exhausted", Some(Duration::from_millis(500))),
    (Class::Bug, Code::Internal, "bug", None),
];

/// Refusals that gRPC has a finer code for than `FAILED_PRECONDITION`.
const FINER: [(&str, Code); 6] = [
    (INVALID, Code::InvalidArgument),
    ("PV-SIZE-MISMATCH", Code::InvalidArgument),
    ("PV-DIGEST-MISMATCH", Code::InvalidArgument),
    (DENIED, Code::PermissionDenied),
    (TOO_LARGE, Code::OutOfRange),
    (NO_METHOD, Code::Unimplemented),
];

/// A field of a message that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field, such as `key.study`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Invalid {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The same violation, one message further out.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

/// Why a request was not answered: by the service, or because it is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The service's own word.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The request is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self::new(Class::Reject, INVALID, invalid.to_string())
    }
}

impl Refusal {
    /// The status to answer.
    pub fn status(&self) -> Status {
        match self {
            Self::Fault(fault) => status_of(fault),
            Self::Invalid(invalid) => {
                let fault = Fault::from(invalid.clone());
                let mut details = details_of(&fault);
                details.set_bad_request(vec![FieldViolation::new(&invalid.field, &invalid.reason)]);
                Status::with_error_details(code_of(&fault), fault.message, details)
            }
        }
    }
}

/// What a refusal by the catalog means to who proposed the command.
pub fn rejected(rejection: &Rejection) -> Fault {
    let (class, code) = match rejection {
        Rejection::Fenced { .. } => (Class::Retry, "PV-FENCED"),
        Rejection::TooWeak { .. } => (Class::Retry, "PV-TOO-WEAK"),
        Rejection::WindowClosed { .. } => (Class::Reject, "PV-WINDOW-CLOSED"),
        Rejection::NotFound(_) => (Class::NotFound, "PV-NOT-FOUND"),
        Rejection::Changed(_) => (Class::Retry, "PV-CHANGED"),
        Rejection::UpgradePending { .. } => (Class::Reject, "PV-UPGRADE-PENDING"),
        Rejection::Impossible(_) => (Class::Reject, "PV-IMPOSSIBLE"),
        _ => (Class::Reject, "PV-REJECTED"),
    };
    Fault::new(class, code, rejection.to_string())
}

/// The status that carries `fault`.
pub fn status_of(fault: &Fault) -> Status {
    Status::with_error_details(code_of(fault), fault.message.clone(), details_of(fault))
}

/// The fault that `status` carries. `sent` says whether the request may have reached the other side: then only what a server
/// says about a request that it did not take is a refusal. Unavailable, internal and exhausted are also what resets look like.
pub fn fault_of(status: &Status, sent: bool) -> Fault {
    let details = status.get_error_details();
    if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
        let named = info.metadata.get(CLASS).and_then(|name| TABLE.iter().find(|row| row.2 == name));
        let class = named.map_or_else(|| class_of(status.code()), |row| row.0);
        return Fault::new(class, intern(&info.reason), status.message());
    }
    let class = match class_of(status.code()) {
        Class::Retry | Class::Exhausted | Class::Bug if sent => Class::Unknown,
        class => class,
    };
    Fault::new(class, FOREIGN, format!("{:?}: {}", status.code(), status.message()))
}

fn row(class: Class) -> &'static (Class, Code, &'static str, Option<Duration>) {
    TABLE.iter().find(|row| row.0 == class).expect("the table has a row for every class")
}

fn code_of(fault: &Fault) -> Code {
    let finer = FINER.iter().find(|(code, _)| fault.class == Class::Reject && *code == fault.code);
    finer.map_or(row(fault.class).1, |(_, code)| *code)
}

fn details_of(fault: &Fault) -> ErrorDetails {
    let (_, _, name, delay) = row(fault.class);
    let metadata = HashMap::from([(CLASS.to_owned(), (*name).to_owned())]);
    let mut details = ErrorDetails::with_error_info(fault.code, DOMAIN, metadata);
    if delay.is_some() {
        details.set_retry_info(*delay);
    }
    details
}

/// What a bare gRPC code means.
fn class_of(code: Code) -> Class {
    match code {
        Code::Unavailable => Class::Retry,
        Code::Ok | Code::Unknown | Code::Aborted | Code::Cancelled | Code::DeadlineExceeded => Class::Unknown,
        Code::NotFound => Class::NotFound,
        Code::DataLoss => Class::Corrupt,
        Code::ResourceExhausted => Class::Exhausted,
        Code::Internal => Class::Bug,
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Class::Reject,
    }
}

/// Gives a received code the lifetime that [`Fault`] wants. Each distinct text is kept once; texts that do not look
/// like a code, and those beyond the bound, become [`FOREIGN`].
fn intern(text: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let like_a_code = text.len() <= CODE_BYTES_MAX
        && text.starts_with("PV-")
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-');
    if !like_a_code {
        return FOREIGN;
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = known.get(text) {
        return code;
    }
    if known.len() >= CODES_MAX {
        return FOREIGN;
    }
    let code: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(code);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_comes_back_as_it_was_sent() {
        for (class, ..) in TABLE {
            for code in ["PV-VOLUME-FULL", INVALID, DENIED, TOO_LARGE] {
                let fault = Fault::new(class, code, "volume 7 is full; add a disk — größer");
                let mut headers = http::HeaderMap::new();
                status_of(&fault).add_header(&mut headers).expect("fits into headers");
                let status = Status::from_header_map(&headers).expect("a status");
                assert_eq!(fault_of(&status, true), fault);
            }
        }
    }

    #[test]
    fn a_refusal_that_passes_by_itself_may_be_repeated() {
        let changed = rejected(&Rejection::Changed("the stripe".to_owned()));
        assert_eq!((changed.class, changed.code), (Class::Retry, "PV-CHANGED"));
        let pending = rejected(&Rejection::UpgradePending { needed: 2, present: 1 });
        assert_eq!((pending.class, pending.code), (Class::Reject, "PV-UPGRADE-PENDING"));
        assert!(pending.message.contains("finish the upgrade"), "{pending}");
    }

    #[test]
    fn a_foreign_unavailable_is_unknown_once_the_request_was_sent() {
        let status = Status::unavailable("proxy");
        assert_eq!(fault_of(&status, true).class, Class::Unknown);
        assert_eq!(fault_of(&status, false).class, Class::Retry);
    }

    #[test]
    fn what_a_broken_stream_says_is_no_refusal_once_the_request_was_sent() {
        // How HTTP/2 resets look: INTERNAL_ERROR, ENHANCE_YOUR_CALM, CANCEL.
        for status in [Status::internal("reset"), Status::resource_exhausted("reset"), Status::cancelled("reset")] {
            assert_eq!(fault_of(&status, true).class, Class::Unknown, "{status:?}");
        }
        assert_eq!(fault_of(&Status::unimplemented("no such method"), true).class, Class::Reject);
    }

    #[test]
    fn a_malformed_field_is_named_in_the_details() {
        let status = Refusal::from(Invalid::new("study", "is empty").within("key")).status();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_error_details().bad_request().expect("details").field_violations.clone();
        assert_eq!(violations[0].field, "key.study");
    }

    #[test]
    fn texts_that_are_not_codes_are_not_kept() {
        assert_eq!(intern("PV-FENCED"), "PV-FENCED");
        assert_eq!(intern("drop table"), FOREIGN);
        assert_eq!(intern(&"PV-X".repeat(20)), FOREIGN);
    }
}
