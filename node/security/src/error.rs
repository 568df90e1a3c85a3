//! What can be wrong with certificates, keys and signatures, and what to do about it.

use std::{io, path::PathBuf};

use pacsvault_core::ids::ClusterId;

use crate::identity::Role;

/// Why trust was refused. Retrying cannot help: a file, a certificate or a peer must change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A certificate or key file cannot be read.
    #[error("cannot read {path}: make one with `pacsvault pki issue`, or correct the path in the configuration")]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A certificate or key file cannot be written.
    #[error("cannot write {path}")]
    WriteFile {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file that would have to be replaced. Keys and certificates are never overwritten.
    #[error("{path} exists and is never overwritten: choose another directory, or move it away if it is not in use")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file or message holds no readable certificate or key.
    #[error("{what} is not readable: {reason}")]
    Malformed {
        /// Which file or field.
        what: String,
        /// The parser's words.
        reason: String,
    },
    /// A certificate does not name exactly one cluster, role and name.
    #[error(
        "the certificate must hold exactly one URI pacsvault://<cluster>/<role>/<name>, but {found}: \
         issue it with `pacsvault pki issue`"
    )]
    Identity {
        /// What it holds instead.
        found: String,
    },
    /// A certificate names a role this version does not know.
    #[error(
        "the certificate's role {role:?} is unknown: roles are node, gateway, operator and auditor; \
         issue it again with one of these, or upgrade this process first"
    )]
    UnknownRole {
        /// The role as written.
        role: String,
    },
    /// A certificate of another cluster.
    #[error("the certificate belongs to cluster {found}, not to {expected}: use certificates and CA of one cluster")]
    OtherCluster {
        /// Ours.
        expected: ClusterId,
        /// Theirs.
        found: ClusterId,
    },
    /// A certificate whose role does not fit what it is used for.
    #[error("{purpose} needs a {needed} certificate, but this one is for {found}")]
    WrongRole {
        /// What was to be done.
        purpose: &'static str,
        /// Roles that may, as text.
        needed: &'static str,
        /// The role it has.
        found: Role,
    },
    /// The right role, another name.
    #[error("expected the certificate of {expected:?}, but this one is of {found:?}")]
    WrongName {
        /// Who it should be.
        expected: String,
        /// Who it is.
        found: String,
    },
    /// Not signed by this authority, or altered.
    #[error("the certificate is not signed by this cluster's CA ({reason}): check that ca.pem is the cluster's")]
    Untrusted {
        /// The verifier's words.
        reason: String,
    },
    /// Outside its validity.
    #[error("the certificate {problem} (checked at {at_seconds} s since 1970): issue a new one, or correct the clock")]
    NotValidNow {
        /// "expired" or "is not yet valid".
        problem: &'static str,
        /// The time used for the check.
        at_seconds: u64,
    },
    /// The key file belongs to another certificate.
    #[error("the private key does not belong to the certificate: take both files from one `pacsvault pki issue`")]
    KeyMismatch,
    /// A host that is neither a DNS name nor an IP address, or a name that breaks its alphabet.
    #[error("cannot put {text:?} into a certificate: {reason}")]
    Name {
        /// The text as given.
        text: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// The cryptographic library refused to make a key, a certificate or TLS settings.
    #[error("cannot {step}: {reason}")]
    Crypto {
        /// What was being done.
        step: &'static str,
        /// The library's words.
        reason: String,
    },
    /// The peer sent no certificate.
    #[error("the peer sent no certificate: connect with one of this cluster")]
    NoCertificate,
    /// The signature is not by this certificate over these bytes.
    #[error("the receipt's signature does not fit its content: it was altered, or signed by another key")]
    BadSignature,
    /// A signed receipt of a later format.
    #[error("signed receipts of format {found} are unknown here (this version reads {known}): upgrade this program")]
    UnknownFormat {
        /// Theirs.
        found: u32,
        /// Ours.
        known: u32,
    },
}
