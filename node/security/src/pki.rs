//! The development authority: draws a cluster's id and issues its certificates.
//!
//! Files in its directory: `ca.pem`, `ca.key`, and per member `<role>-<name>.pem`, `<role>-<name>.key`. All keys are
//! ECDSA P-256 in PKCS#8. Hospitals with their own authority need only put the same URIs into their certificates
//! (see [`crate::identity`]).
//!
//! **Invariants.** A file appears under its name whole and durable, or not at all, and never replaces another. Keys
//! have mode 0600 from their first byte. A key is published before its certificate: a certificate on disk has its key.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use pacsvault_core::ids::{ClusterId, WallMillis};
use pacsvault_ports::crash;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{Error, Identity, Role, identity};

/// Certificates begin this long before they are made, so that a node whose clock is late accepts them.
pub const BACKDATED_DAYS: u32 = 7;
/// Validity of the authority: 20 years. Receipts are verified against it long after the members' certificates ended.
pub const AUTHORITY_DAYS: u32 = 7300;
/// Default validity of a member's certificate, in days.
pub const MEMBER_DAYS_DEFAULT: u32 = 825;
/// Longest validity of a member's certificate, in days.
pub const MEMBER_DAYS_MAX: u32 = AUTHORITY_DAYS;

const DAY_SECONDS: u64 = 86_400;
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// What to certify.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What the holder may do.
    pub role: Role,
    /// Its name: a DNS label.
    pub name: &'a str,
    /// DNS names and IP addresses under which it is reached; for outside tools, pacsvault itself checks the identity.
    pub hosts: &'a [String],
    /// Present time.
    pub now: WallMillis,
    /// Validity from now on, in days, 1 to [`MEMBER_DAYS_MAX`].
    pub days: u32,
}

/// A certificate with its key, as PEM texts.
#[derive(Clone)]
pub struct Certified {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key. Secret.
    pub key_pem: String,
}

/// Where an issued certificate was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

/// A cluster's authority: whoever holds it can make any member.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    key: KeyPair,
}

impl Authority {
    /// Draws a new cluster and its authority, in memory only.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn draw(now: WallMillis) -> Result<Self, Error> {
        let cluster = ClusterId(random()?);
        let key = new_key()?;
        let mut params = params(now, AUTHORITY_DAYS)?;
        params.distinguished_name.push(DnType::OrganizationName, "pacsvault");
        params.distinguished_name.push(DnType::CommonName, format!("pacsvault cluster {cluster}"));
        params.subject_alt_names = vec![uri_name(identity::authority_uri(cluster))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|error| crypto("sign the CA certificate", &error))?;
        Ok(Self { cluster, certificate_pem: certificate.pem(), key })
    }

    /// Draws a new cluster and writes `ca.pem` and `ca.key` into `dir`, which is made if needed.
    ///
    /// # Errors
    /// [`Error::Exists`] when one of the files is there already, [`Error::WriteFile`], [`Error::Crypto`].
    pub fn create(dir: &Path, now: WallMillis) -> Result<Self, Error> {
        let authority = Self::draw(now)?;
        publish_pair(dir, (CA_KEY, &authority.key.serialize_pem()), (CA_CERTIFICATE, &authority.certificate_pem))?;
        Ok(authority)
    }

    /// Opens the authority that [`Authority::create`] wrote into `dir`.
    ///
    /// # Errors
    /// [`Error::ReadFile`], [`Error::Malformed`], [`Error::KeyMismatch`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| Error::ReadFile { path, source })
        };
        let certificate_pem = read(CA_CERTIFICATE)?;
        let malformed = |what: &str, reason: String| Error::Malformed { what: what.to_owned(), reason };
        let key = KeyPair::from_pem(&read(CA_KEY)?).map_err(|error| malformed(CA_KEY, error.to_string()))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| malformed(CA_CERTIFICATE, error.to_string()))?;
        let cluster = identity::authority_cluster(&der)?;
        if crate::credentials::public_key_of(&der)? != key.public_key_raw() {
            return Err(Error::KeyMismatch);
        }
        Ok(Self { cluster, certificate_pem, key })
    }

    /// The cluster for which it speaks.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate: the trust root that every process needs, not secret.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes a key and a certificate for it, in memory only.
    ///
    /// # Errors
    /// [`Error::Name`] for a bad name, host or validity; [`Error::Crypto`].
    pub fn certify(&self, request: &Request<'_>) -> Result<Certified, Error> {
        let identity = Identity::new(self.cluster, request.role, request.name)?;
        if request.days == 0 || request.days > MEMBER_DAYS_MAX {
            let reason = format!("validity must be 1 to {MEMBER_DAYS_MAX} days");
            return Err(Error::Name { text: request.days.to_string(), reason });
        }
        let mut params = params(request.now, request.days)?;
        params.distinguished_name.push(DnType::OrganizationName, "pacsvault");
        params.distinguished_name.push(DnType::CommonName, identity.to_string());
        params.subject_alt_names = vec![uri_name(identity.uri())?];
        for host in request.hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if request.role == Role::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        let step = "sign the certificate";
        let issuer =
            Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key).map_err(|error| crypto(step, &error))?;
        let key = new_key()?;
        let certificate = params.signed_by(&key, &issuer).map_err(|error| crypto(step, &error))?;
        Ok(Certified { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// [`Authority::certify`], written into `dir` as `<role>-<name>.pem` and `<role>-<name>.key`.
    ///
    /// To renew, issue into another directory and move the files over when the old ones are no longer needed.
    ///
    /// # Errors
    /// Those of [`Authority::certify`], [`Error::Exists`], [`Error::WriteFile`].
    pub fn issue(&self, dir: &Path, request: &Request<'_>) -> Result<IssuedFiles, Error> {
        let certified = self.certify(request)?;
        let stem = format!("{}-{}", request.role, request.name);
        let (key, certificate) = (format!("{stem}.key"), format!("{stem}.pem"));
        publish_pair(dir, (&key, &certified.key_pem), (&certificate, &certified.certificate_pem))?;
        Ok(IssuedFiles { certificate: dir.join(certificate), key: dir.join(key) })
    }
}

fn params(now: WallMillis, days: u32) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let seconds = now.0 / 1000;
    let start = seconds.saturating_sub(u64::from(BACKDATED_DAYS) * DAY_SECONDS);
    let end = seconds + u64::from(days) * DAY_SECONDS;
    let epoch = date_time_ymd(1970, 1, 1);
    // The last second that X.509 can write is in the year 9999; no clock that shows more is worth a certificate.
    if end > 253_000_000_000 {
        return Err(Error::Name { text: end.to_string(), reason: "the clock is beyond the year 9987".to_owned() });
    }
    params.not_before = epoch + Duration::from_secs(start);
    params.not_after = epoch + Duration::from_secs(end);
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f; // positive, as RFC 5280 asks
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

fn uri_name(uri: String) -> Result<SanType, Error> {
    let text = uri.clone();
    let uri = uri.try_into().map_err(|error: rcgen::Error| Error::Name { text, reason: error.to_string() })?;
    Ok(SanType::URI(uri))
}

fn host_name(host: &str) -> Result<SanType, Error> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = |reason: &str| Error::Name { text: host.to_owned(), reason: reason.to_owned() };
    rustls_pki_types::DnsName::try_from(host)
        .map_err(|_| bad("neither a DNS name nor an IP address (give no port)"))?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad("not ASCII"))?))
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| crypto("draw a key", &error))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|error| crypto("draw random bytes", &error))?;
    Ok(bytes)
}

fn crypto(step: &'static str, error: &dyn std::fmt::Display) -> Error {
    Error::Crypto { step, reason: error.to_string() }
}

/// Publishes a key, then its certificate. Refuses before writing anything when either name is taken.
fn publish_pair(dir: &Path, key: (&str, &str), certificate: (&str, &str)) -> Result<(), Error> {
    let failed = |source| Error::WriteFile { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    for (name, _) in [certificate, key] {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists { path });
        }
    }
    publish(dir, key, 0o600)?;
    // CRASH(pki.1): after the key alone, the operator is told that it exists; nothing was signed with it, so moving
    // it away and repeating is safe.
    crash::point("pki.1");
    publish(dir, certificate, 0o644)
}

/// Makes `name` appear with its whole content, durable, unless the name is taken.
fn publish(dir: &Path, (name, text): (&str, &str), mode: u32) -> Result<(), Error> {
    let path = dir.join(name);
    let part = dir.join(format!(".{name}.part"));
    let written = (|| {
        // A part left by a crash holds nothing that anyone uses.
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(text.as_bytes())?;
        // CRASH(pki.2): a part may stay, torn; the next attempt removes it.
        crash::point("pki.2");
        file.sync_all()?;
        // CRASH(pki.3): a link, not a rename, because a rename would replace a file that appeared meanwhile.
        crash::point("pki.3");
        fs::hard_link(&part, &path)?;
        fs::remove_file(&part)?;
        // CRASH(pki.4): the name may vanish; the caller has not been told of success.
        crash::point("pki.4");
        File::open(dir)?.sync_all()
    })();
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path },
        _ => Error::WriteFile { path, source },
    })
}
