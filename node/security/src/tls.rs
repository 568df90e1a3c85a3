//! TLS settings: TLS 1.3 only, certificates on both sides, identity checked during the handshake.
//!
//! **Invariants.** A handshake completes only between members of one cluster: each side verified the other's chain to
//! its CA and the cluster in its identity. A client completes it only with a node, and with the expected one if it
//! named one. Host names play no part: nodes are reached by address, through port forwarding and proxies, and the
//! identity in the certificate says more than a name in DNS.
//!
//! Resumed sessions skip the certificates. That keeps the invariants, since a session can be resumed only by who holds
//! its secret: the server keeps the client's certificate with the session, and a client's sessions stay within one
//! [`ClientConfig`], that is, within one expectation.

use std::{fmt, sync::Arc};

use pacsvault_core::ids::ClusterId;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{Credentials, Error, Identity, Role};

/// The only application protocol.
pub const ALPN_H2: &[u8] = b"h2";
/// A server name for callers whose API asks for one; it is sent, and means nothing.
pub const SERVER_NAME: &str = "node.pacsvault.internal";

/// Settings for accepting connections. Clients must show a certificate of the same cluster, of any role; what the role
/// may do is for the services to decide, by [`crate::peer_identity`].
///
/// # Errors
/// [`Error::WrongRole`] unless the credentials are a node's; [`Error::Crypto`].
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    if credentials.identity().role != Role::Node {
        let found = credentials.identity().role;
        return Err(Error::WrongRole { purpose: "accepting connections", needed: "node", found });
    }
    let provider = provider();
    let chain = WebPkiClientVerifier::builder_with_provider(credentials.roots.clone(), provider.clone())
        .build()
        .map_err(|error| crypto(&error))?;
    let verifier = Arc::new(MemberVerifier { chain, cluster: credentials.cluster() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| crypto(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(|error| crypto(&error))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// Settings for connecting to a node of the cluster; to the one named `expected`, if given.
///
/// # Errors
/// [`Error::Crypto`].
pub fn client_config(credentials: &Credentials, expected: Option<&str>) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = NodeVerifier {
        roots: credentials.roots.clone(),
        algorithms: provider.signature_verification_algorithms,
        cluster: credentials.cluster(),
        expected: expected.map(str::to_owned),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| crypto(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .map_err(|error| crypto(&error))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(Arc::new(config))
}

/// The one cryptographic provider, with the fastest suite first: shards are already protected by digests of 256 bits,
/// AES-128-GCM has the least rounds, and ChaCha20 remains for processors without AES instructions.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Why a handshake was refused by us, in our own words, when `error` is (or wraps) such a refusal.
pub fn refusal(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => Some(inner.to_string()),
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::InvalidPurpose,
        ) => Some(Error::Untrusted { reason: error.to_string() }.to_string()),
        rustls::Error::NoCertificatesPresented => Some(Error::NoCertificate.to_string()),
        _ => None,
    }
}

/// Verifies nodes: chain to the CA, same cluster, role, name.
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    cluster: ClusterId,
    expected: Option<String>,
}

impl NodeVerifier {
    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let identity = Identity::from_certificate(certificate)?.expect_cluster(self.cluster)?;
        if identity.role != Role::Node {
            return Err(Error::WrongRole { purpose: "a server", needed: "node", found: identity.role });
        }
        match &self.expected {
            Some(expected) if *expected != identity.name => {
                Err(Error::WrongName { expected: expected.clone(), found: identity.name })
            }
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        // Identity first for the clearer words; both must hold.
        self.check_identity(end_entity).map_err(refused)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeVerifier")
            .field("cluster", &self.cluster)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

/// Verifies clients: chain to the CA, same cluster, a known role.
#[derive(Debug)]
struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: ClusterId,
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let identity = Identity::from_certificate(end_entity);
        identity.and_then(|identity| identity.expect_cluster(self.cluster)).map_err(refused)?;
        self.chain.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn refused(error: Error) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// TLS 1.2 is never negotiated, so a peer that reaches its verification has broken the protocol.
fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

fn crypto(error: &dyn fmt::Display) -> Error {
    Error::Crypto { step: "make TLS settings", reason: error.to_string() }
}
