//! Who a certificate is for.
//!
//! **Invariants.** An [`Identity`] that exists came from exactly one URI
//! `pacsvault://<cluster, 32 hex digits>/<role>/<name>` in the subject alternative names; other URIs are ignored, DNS
//! names and addresses say nothing about identity. An authority's certificate holds `pacsvault://<cluster>` instead,
//! so that it can never pass for a member. Parsing says nothing about trust: callers verify the chain.

use std::{fmt, str::FromStr};

use pacsvault_core::ids::{ClusterId, NodeName};
use rustls_pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::FromDer, prelude::X509Certificate};

use crate::Error;

const SCHEME: &str = "pacsvault://";

/// What the holder of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A member of the cluster: stores, votes, coordinates, talks to other nodes.
    Node,
    /// A trusted writer and reader outside the cluster: coordinates writes, signs receipts.
    Gateway,
    /// A person or job that administers the cluster, and may read and write.
    Operator,
    /// May look, never change.
    Auditor,
}

impl Role {
    /// All roles, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Node, Self::Gateway, Self::Operator, Self::Auditor];

    /// The word in certificates and file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Gateway => "gateway",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }

    /// May sign receipts, that is, coordinate writes.
    pub fn may_sign_receipts(self) -> bool {
        matches!(self, Self::Node | Self::Gateway)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| Error::UnknownRole { role: text.chars().take(40).collect() })
    }
}

/// Cluster, role and name, as a certificate states them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The cluster whose CA signed it.
    pub cluster: ClusterId,
    /// What it may do.
    pub role: Role,
    /// Its name: a DNS label.
    pub name: String,
}

impl Identity {
    /// Makes an identity; the name must be a DNS label.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(cluster: ClusterId, role: Role, name: &str) -> Result<Self, Error> {
        let valid = name.parse::<NodeName>();
        valid.map_err(|error| Error::Name { text: name.to_owned(), reason: error.to_string() })?;
        Ok(Self { cluster, role, name: name.to_owned() })
    }

    /// Reads the identity from a certificate's bytes, without checking who signed it.
    ///
    /// # Errors
    /// [`Error::Identity`] without exactly one identity, [`Error::UnknownRole`], [`Error::Malformed`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, Error> {
        let uris = our_uris(der)?;
        match uris.as_slice() {
            [one] => Self::parse(one),
            [] => Err(Error::Identity { found: "it has none".to_owned() }),
            several => Err(Error::Identity { found: format!("it has {}", several.len()) }),
        }
    }

    /// The URI that stands in certificates.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }

    /// Refuses an identity of another cluster.
    ///
    /// # Errors
    /// [`Error::OtherCluster`].
    pub fn expect_cluster(self, expected: ClusterId) -> Result<Self, Error> {
        if self.cluster == expected { Ok(self) } else { Err(Error::OtherCluster { expected, found: self.cluster }) }
    }

    fn parse(uri: &str) -> Result<Self, Error> {
        let bad = || Error::Identity { found: format!("it has {:?}", uri.chars().take(120).collect::<String>()) };
        let path = uri.strip_prefix(SCHEME).ok_or_else(bad)?;
        let parts: Vec<&str> = path.split('/').collect();
        let [cluster, role, name] = parts[..] else { return Err(bad()) };
        let cluster = cluster.parse().map_err(|_| bad())?;
        let role = role.parse()?;
        Self::new(cluster, role, name).map_err(|_| bad())
    }
}

impl fmt::Display for Identity {
    /// `role/name`, for logs and messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// Identity of a peer whose chain rustls has verified, from the certificates of its connection (its own first).
///
/// # Errors
/// [`Error::NoCertificate`], [`Error::OtherCluster`], and those of [`Identity::from_certificate`].
pub fn peer_identity(certificates: &[CertificateDer<'_>], expected: ClusterId) -> Result<Identity, Error> {
    let own = certificates.first().ok_or(Error::NoCertificate)?;
    Identity::from_certificate(own)?.expect_cluster(expected)
}

/// The URI in an authority's certificate.
pub(crate) fn authority_uri(cluster: ClusterId) -> String {
    format!("{SCHEME}{cluster}")
}

/// The cluster for which an authority's certificate speaks.
pub(crate) fn authority_cluster(der: &[u8]) -> Result<ClusterId, Error> {
    let bad = |reason: &str| Error::Malformed { what: "the CA certificate".to_owned(), reason: reason.to_owned() };
    match our_uris(der)?.as_slice() {
        [one] => one
            .strip_prefix(SCHEME)
            .and_then(|cluster| cluster.parse().ok())
            .ok_or_else(|| bad("its URI is not pacsvault://<cluster>; is it a member's certificate?")),
        _ => Err(bad("it does not hold exactly one URI pacsvault://<cluster>")),
    }
}

fn our_uris(der: &[u8]) -> Result<Vec<String>, Error> {
    let malformed = |reason: String| Error::Malformed { what: "the certificate".to_owned(), reason };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow it".to_owned()));
    }
    let names = certificate.subject_alternative_name().map_err(|error| malformed(error.to_string()))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some((*uri).to_owned()),
        _ => None,
    });
    Ok(uris.collect())
}
