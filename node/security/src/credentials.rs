//! The certificate, key and trust root of this process.
//!
//! **Invariants.** Credentials that exist fit together: the key belongs to the certificate, the chain leads to the CA
//! at the time of loading, certificate and CA are of one cluster. They never change; to reload, load others and swap
//! the `Arc`s of the settings made from them.

use std::{fmt, fs, path::Path, sync::Arc};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use pacsvault_core::ids::{ClusterId, WallMillis};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, Identity, Role, identity};

/// Where credentials are on disk.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The cluster's CA certificate, PEM.
    pub ca: &'a Path,
    /// Own certificate, with intermediates after it if there are any, PEM.
    pub certificate: &'a Path,
    /// Its private key, PEM.
    pub key: &'a Path,
}

/// Own certificate chain and key, trust root and identity.
pub struct Credentials {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: Arc<RootCertStore>,
    identity: Identity,
    ca_pem: String,
}

impl Credentials {
    /// Loads and checks the three files.
    ///
    /// # Errors
    /// [`Error::ReadFile`], [`Error::Malformed`], [`Error::KeyMismatch`], [`Error::NotValidNow`], [`Error::Untrusted`],
    /// [`Error::OtherCluster`], [`Error::Identity`], [`Error::UnknownRole`].
    pub fn load(files: Files<'_>, now: WallMillis) -> Result<Self, Error> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| Error::ReadFile { path: path.to_owned(), source });
        let (ca, certificate, key) = (read(files.ca)?, read(files.certificate)?, read(files.key)?);
        Self::check([&ca, &certificate, &key], files.named(), now)
    }

    /// [`Credentials::load`] from PEM texts.
    ///
    /// # Errors
    /// Those of [`Credentials::load`], except [`Error::ReadFile`].
    pub fn from_pem(ca: &str, certificate: &str, key: &str, now: WallMillis) -> Result<Self, Error> {
        let names = ["the CA certificate", "the certificate", "the private key"].map(str::to_owned);
        Self::check([ca, certificate, key], names, now)
    }

    /// Refuses credentials that are not a node's.
    ///
    /// # Errors
    /// [`Error::WrongRole`].
    pub fn expect_node(self) -> Result<Self, Error> {
        match self.identity.role {
            Role::Node => Ok(self),
            found => Err(Error::WrongRole { purpose: "a node", needed: "node", found }),
        }
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.identity.cluster
    }

    /// Own certificate first, then intermediates: what travels with a signed receipt.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The CA certificate as loaded.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The receipt and TLS key, for [`crate::Signer`].
    pub(crate) fn key_pair(&self) -> Result<EcdsaKeyPair, Error> {
        key_pair(&self.key, "the private key")
    }

    fn check(
        [ca, certificate, key]: [&str; 3],
        [ca_name, certificate_name, key_name]: [String; 3],
        now: WallMillis,
    ) -> Result<Self, Error> {
        let malformed = |what: &String, reason: String| Error::Malformed { what: what.clone(), reason };
        let authority = Authority::parse(ca, &ca_name)?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(&certificate_name, error.to_string()))?;
        let own = chain.first().ok_or_else(|| malformed(&certificate_name, "no certificate in it".to_owned()))?;
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| malformed(&key_name, error.to_string()))?;
        let pair = key_pair(&key, &key_name)?;
        if public_key_of(own)? != pair.public_key().as_ref() {
            return Err(Error::KeyMismatch);
        }
        let identity = authority.verify(&chain, now)?;
        let mut roots = RootCertStore::empty();
        roots.roots.push(authority.anchor);
        Ok(Self { chain, key, roots: Arc::new(roots), identity, ca_pem: ca.to_owned() })
    }
}

impl fmt::Debug for Credentials {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Files<'_> {
    fn named(self) -> [String; 3] {
        [self.ca, self.certificate, self.key].map(|path| path.display().to_string())
    }
}

/// A trust root and the cluster it speaks for.
pub(crate) struct Authority {
    pub(crate) cluster: ClusterId,
    pub(crate) anchor: TrustAnchor<'static>,
}

impl Authority {
    /// Reads a CA certificate in PEM; `what` names it in errors.
    pub(crate) fn parse(pem: &str, what: &str) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { what: what.to_owned(), reason };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let cluster = identity::authority_cluster(&der)?;
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|error| malformed(error.to_string()))?.to_owned();
        Ok(Self { cluster, anchor })
    }

    /// Verifies a chain (own certificate first) at a given time; returns whose it is, of this cluster.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], at: WallMillis) -> Result<Identity, Error> {
        let (own, intermediates) = chain.split_first().ok_or(Error::NoCertificate)?;
        // First whose it is: "of another cluster" helps an operator more than "unknown issuer".
        let identity = Identity::from_certificate(own)?.expect_cluster(self.cluster)?;
        let at_seconds = at.0 / 1000;
        let refused = |error: webpki::Error| match error {
            webpki::Error::CertExpired { .. } => Error::NotValidNow { problem: "expired", at_seconds },
            webpki::Error::CertNotValidYet { .. } => Error::NotValidNow { problem: "is not yet valid", at_seconds },
            other => Error::Untrusted { reason: other.to_string() },
        };
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at_seconds));
        EndEntityCert::try_from(own)
            .and_then(|end| {
                end.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    std::slice::from_ref(&self.anchor),
                    intermediates,
                    time,
                    // Every role is a client of some other; only nodes are servers too.
                    KeyUsage::client_auth(),
                    None,
                    None,
                )
                .map(|_path| ())
            })
            .map_err(refused)?;
        Ok(identity)
    }
}

/// The public key's bits of a certificate: an uncompressed point for P-256.
pub(crate) fn public_key_of(der: &[u8]) -> Result<Vec<u8>, Error> {
    let malformed = |reason: String| Error::Malformed { what: "the certificate".to_owned(), reason };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

fn key_pair(key: &PrivateKeyDer<'_>, what: &str) -> Result<EcdsaKeyPair, Error> {
    EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der())
        .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der()))
        .map_err(|error| Error::Malformed {
            what: what.to_owned(),
            reason: format!("an ECDSA P-256 key is needed ({error})"),
        })
}
