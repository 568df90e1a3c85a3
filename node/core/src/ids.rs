//! Words: one newtype for every identity in the cluster.
//!
//! **Invariants.** A value that exists is well formed: names match their alphabet and length, DICOM UIDs follow
//! PS3.5 §9.1. Parsing is the only way in. Ordering of every id is the ordering of its bytes or number, so
//! that `BTreeMap` iteration is the same on every replica.

use std::{fmt, str::FromStr};

/// Longest site, node, profile or tenant name, in bytes: a DNS label, so that names can be host names.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest DICOM UID, in bytes (`SPEC: PS3.5 §9.1`).
pub const UID_BYTES_MAX: usize = 64;
/// Longest name of a document attached to a study, in bytes.
pub const DOCUMENT_NAME_BYTES_MAX: usize = 255;

/// Why a text is not the id it should be. Reject the request; retrying the same text cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name breaks its alphabet or length.
    #[error("{kind} name {text:?} must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")]
    Name {
        /// What it should have named.
        kind: &'static str,
        /// The text as given.
        text: String,
    },
    /// A DICOM UID breaks PS3.5 §9.1.
    #[error("{text:?} is not a DICOM UID: {reason} (PS3.5 section 9.1)")]
    Uid {
        /// The text as given, shortened.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A document name breaks its alphabet or length.
    #[error(
        "document name {text:?} must be 1 to 255 bytes without '/', '\\' or control characters, and not begin with '.'"
    )]
    DocumentName {
        /// The text as given, shortened.
        text: String,
    },
    /// A key does not have the shape `tenant/study/series/instance` or `tenant/study/@/document`.
    #[error("key {text:?} must read tenant/study/series/instance or tenant/study/@/document")]
    Key {
        /// The text as given, shortened.
        text: String,
    },
    /// A hexadecimal id has the wrong length or alphabet.
    #[error("{kind} {text:?} must be {digits} hexadecimal digits")]
    Hex {
        /// What it should have named.
        kind: &'static str,
        /// The text as given, shortened.
        text: String,
        /// Expected count of digits.
        digits: usize,
    },
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Error::Name { kind: $kind, text: shortened(text) })
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);
        impl $name {
            /// Reads the id from stored bytes; `None` when the length is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let bad = || Error::Hex { kind: $kind, text: shortened(text), digits: 2 * $bytes };
                let mut bytes = [0_u8; $bytes];
                if text.len() != 2 * $bytes || !text.is_ascii() {
                    return Err(bad());
                }
                for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
                }
                Ok(Self(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number_id! {
    /// A node of the cluster. Allocated from a committed log index, never reused.
    NodeId(u64)
}
number_id! {
    /// An interned placement: an ordered list of volumes, one per shard.
    PlacementId(u64)
}
number_id! {
    /// Version of the layout; grows with every change of nodes, volumes, their states or profiles.
    LayoutVersion(u64)
}
number_id! {
    /// Position in the Raft log.
    LogIndex(u64)
}
number_id! {
    /// Raft term.
    Term(u64)
}
number_id! {
    /// Version of the content under one key, from 1 upwards.
    VersionNumber(u32)
}
number_id! {
    /// Position of a stripe in its instance, from 0 upwards.
    StripeIndex(u32)
}
number_id! {
    /// Position of a shard in its stripe: data shards `0..k`, then parity `k..k+m`.
    ShardIndex(u8)
}
number_id! {
    /// Milliseconds since 1970-01-01 UTC, by some wall clock. Only liveness may depend on it.
    WallMillis(u64)
}

name_id! {
    /// A failure domain with its own power and network.
    SiteName, "site"
}
name_id! {
    /// The name under which a node was deployed; its [`NodeId`] is given by the cluster.
    NodeName, "node"
}
name_id! {
    /// A named pair of code and contract, such as `4+2`'s default `standard`.
    ProfileName, "profile"
}
name_id! {
    /// An owner of studies; keys of two tenants never meet.
    Tenant, "tenant"
}

hex_id! {
    /// One cluster, drawn at random when its authority is made. In every certificate and every volume.
    ClusterId, "cluster id", 16
}
hex_id! {
    /// One data directory on one disk. Drawn when the directory is formatted; a wiped disk is a new volume.
    VolumeId, "volume id", 16
}
hex_id! {
    /// One life of a node's data directory: a wiped node has another incarnation and cannot pass for the old one.
    Incarnation, "incarnation", 16
}
hex_id! {
    /// One attempt to write one content: 48 bits of wall-clock milliseconds, then 80 random bits.
    InstanceId, "instance id", 16
}
hex_id! {
    /// A BLAKE3 digest.
    Digest, "digest", 32
}

impl InstanceId {
    /// Makes an id from the coordinator's clock and 80 bits of its randomness (`random`'s low 80 bits).
    pub fn new(time: WallMillis, random: u128) -> Self {
        let mut bytes = (random & ((1 << 80) - 1)).to_be_bytes();
        bytes[..6].copy_from_slice(&time.0.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The coordinator's wall clock when the attempt began.
    pub fn time(self) -> WallMillis {
        let mut millis = [0_u8; 8];
        millis[2..].copy_from_slice(&self.0[..6]);
        WallMillis(u64::from_be_bytes(millis))
    }
}

impl Digest {
    /// The BLAKE3 digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

/// A DICOM unique identifier.
///
/// Invariant: 1 to 64 bytes of digits in components joined by '.', no component empty or with a leading zero.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(String);

impl Uid {
    /// The UID as text, without padding.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Uid {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let fault = if text.is_empty() {
            Some("it is empty")
        } else if text.len() > UID_BYTES_MAX {
            Some("it is longer than 64 bytes")
        } else {
            text.split('.').find_map(component_fault)
        };
        match fault {
            Some(reason) => Err(Error::Uid { text: shortened(text), reason }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

fn component_fault(component: &str) -> Option<&'static str> {
    if component.is_empty() {
        Some("a component is empty")
    } else if !component.bytes().all(|byte| byte.is_ascii_digit()) {
        Some("only digits and '.' are allowed")
    } else if component.len() > 1 && component.starts_with('0') {
        Some("a component has a leading zero")
    } else {
        None
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a document (report, annotation) attached to a study.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentName(String);

impl DocumentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DocumentName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let fine = !text.is_empty()
            && text.len() <= DOCUMENT_NAME_BYTES_MAX
            && !text.starts_with('.')
            && !text.chars().any(|c| c.is_control() || c == '/' || c == '\\');
        if fine { Ok(Self(text.to_owned())) } else { Err(Error::DocumentName { text: shortened(text) }) }
    }
}

/// What a key names inside its study.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    /// A DICOM instance of a series.
    Instance {
        /// Series Instance UID.
        series: Uid,
        /// SOP Instance UID.
        instance: Uid,
    },
    /// Any other document of the study.
    Document(DocumentName),
}

/// The name under which content is stored and found.
///
/// Text form: `tenant/study/series/instance`, or `tenant/study/@/document`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Owner.
    pub tenant: Tenant,
    /// Study Instance UID.
    pub study: Uid,
    /// What inside the study.
    pub leaf: Leaf,
}

impl FromStr for ObjectKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let [tenant, study, series, last] = parts[..] else {
            return Err(Error::Key { text: shortened(text) });
        };
        let leaf = if series == "@" {
            Leaf::Document(last.parse()?)
        } else {
            Leaf::Instance { series: series.parse()?, instance: last.parse()? }
        };
        Ok(Self { tenant: tenant.parse()?, study: study.parse()?, leaf })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.tenant, self.study)?;
        match &self.leaf {
            Leaf::Instance { series, instance } => write!(f, "{series}/{instance}"),
            Leaf::Document(name) => write!(f, "@/{}", name.as_str()),
        }
    }
}

fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|&byte| inner(byte) || byte == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_they_print() {
        for text in ["main/1.2.840.1/1.2.3/1.2.3.4", "main/1.2.840.1/@/report 1.pdf"] {
            assert_eq!(text.parse::<ObjectKey>().expect("a valid key").to_string(), text);
        }
    }

    #[test]
    fn malformed_uids_are_refused_with_the_rule_they_break() {
        for (text, rule) in [
            ("", "empty"),
            ("1..2", "component is empty"),
            ("1.02", "leading zero"),
            ("1.2a", "only digits"),
            (&"1".repeat(65), "longer than 64"),
        ] {
            let error = text.parse::<Uid>().expect_err("must be refused").to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn instance_ids_carry_their_time_and_sort_by_it() {
        let early = InstanceId::new(WallMillis(1_700_000_000_000), u128::MAX);
        let late = InstanceId::new(WallMillis(1_700_000_000_001), 0);
        assert_eq!(early.time(), WallMillis(1_700_000_000_000));
        assert!(early < late);
    }

    #[test]
    fn hex_ids_read_back_what_they_print() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("zz".parse::<Digest>().is_err());
    }
}
