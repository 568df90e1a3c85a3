//! What holds of identities, files, handshakes and receipts.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use pacsvault_core::ids::WallMillis;
use pacsvault_security::{
    Authority, Credentials, Error, Identity, Role, SignedReceipt, Signer,
    credentials::Files,
    peer_identity,
    pki::{BACKDATED_DAYS, Request},
    signature::{Claim, verify_receipt},
    tls,
};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, pem::PemObject};

const DAY: u64 = 86_400_000;

fn now() -> WallMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    WallMillis(u64::try_from(since.as_millis()).unwrap())
}

fn request(role: Role, name: &str) -> Request<'_> {
    Request { role, name, hosts: &[], now: now(), days: 30 }
}

fn credentials(authority: &Authority, role: Role, name: &str) -> Credentials {
    let certified = authority.certify(&request(role, name)).unwrap();
    Credentials::from_pem(authority.certificate_pem(), &certified.certificate_pem, &certified.key_pem, now()).unwrap()
}

fn authority() -> Authority {
    Authority::draw(now()).unwrap()
}

/// Another cluster whose certificates are nevertheless signed by the key of the first.
fn authority_with_key_of(first: &Authority, dir: &std::path::Path) -> (String, String, String) {
    // The certificate is made by hand, with the first authority's key and another cluster in its URI.
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(dir.join("ca.key")).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(first.certificate_pem(), &key).unwrap();
    let other = Identity::new(pacsvault_core::ids::ClusterId([7; 16]), Role::Node, "a1").unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(other.uri().try_into().unwrap())];
    let certificate = params.signed_by(&own, &issuer).unwrap();
    (first.certificate_pem().to_owned(), certificate.pem(), own.serialize_pem())
}

fn certificate_with_uris(authority_dir: &std::path::Path, uris: &[&str]) -> Vec<u8> {
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(authority_dir.join("ca.key")).unwrap()).unwrap();
    let ca = fs::read_to_string(authority_dir.join("ca.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, &key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
    params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap().der().to_vec()
}

#[test]
fn identities_read_back_from_the_certificates_they_are_put_into() {
    let authority = authority();
    for role in Role::ALL {
        let hosts = ["node.example".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let request = Request { hosts: &hosts, ..request(role, "a1") };
        let pem = authority.certify(&request).unwrap().certificate_pem;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let identity = Identity::from_certificate(&der).unwrap();
        assert_eq!(identity, Identity { cluster: authority.cluster(), role, name: "a1".to_owned() });
        assert_eq!(peer_identity(&[der], authority.cluster()).unwrap(), identity);
    }
    assert!(matches!(peer_identity(&[], authority.cluster()), Err(Error::NoCertificate)));
}

#[test]
fn certificates_without_exactly_one_known_identity_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let id = Authority::create(dir.path(), now()).unwrap().cluster();
    let (good, other) = (format!("pacsvault://{id}/node/a"), format!("pacsvault://{id}/node/b"));
    let read = |uris: &[&str]| Identity::from_certificate(&certificate_with_uris(dir.path(), uris));
    assert!(read(&[&good]).is_ok());
    assert!(read(&["spiffe://other/x", &good]).is_ok(), "foreign URIs are none of our business");
    assert!(matches!(read(&[]), Err(Error::Identity { .. })));
    assert!(matches!(read(&[&good, &other]), Err(Error::Identity { .. })));
    assert!(matches!(read(&[&format!("pacsvault://{id}")]), Err(Error::Identity { .. })));
    assert!(matches!(read(&[&format!("pacsvault://{id}/node/A_")]), Err(Error::Identity { .. })));
    assert!(matches!(read(&["pacsvault://12/node/a"]), Err(Error::Identity { .. })));
    let error = read(&[&format!("pacsvault://{id}/janitor/a")]).unwrap_err();
    assert!(matches!(error, Error::UnknownRole { .. }));
    assert!(error.to_string().contains("roles are node, gateway, operator and auditor"), "{error}");
    assert!(matches!(Identity::from_certificate(b"garbage"), Err(Error::Malformed { .. })));
}

#[test]
fn authorities_reopen_and_never_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let created = Authority::create(dir.path(), now()).unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca.key"), 0o600);
    let error = Authority::create(dir.path(), now()).err().unwrap();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    let opened = Authority::open(dir.path()).unwrap();
    assert_eq!(opened.cluster(), created.cluster());

    let files = opened.issue(dir.path(), &request(Role::Node, "a1")).unwrap();
    assert_eq!(files.certificate, dir.path().join("node-a1.pem"));
    assert_eq!(files.key, dir.path().join("node-a1.key"));
    assert_eq!(mode("node-a1.key"), 0o600);
    let before = fs::read(&files.key).unwrap();
    assert!(matches!(opened.issue(dir.path(), &request(Role::Node, "a1")), Err(Error::Exists { .. })));
    assert_eq!(fs::read(&files.key).unwrap(), before);
    let parts = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension() == Some("part".as_ref()))
        .count();
    assert_eq!(parts, 0);

    let ca = dir.path().join("ca.pem");
    let paths = Files { ca: &ca, certificate: &files.certificate, key: &files.key };
    let loaded = Credentials::load(paths, now()).unwrap().expect_node().unwrap();
    assert_eq!(loaded.identity().to_string(), "node/a1");
    let missing = dir.path().join("node-zz.pem");
    let error = Credentials::load(Files { certificate: &missing, ..paths }, now()).unwrap_err();
    assert!(error.to_string().contains("node-zz.pem"), "{error}");
}

#[test]
fn names_hosts_and_validities_that_make_no_certificate_are_refused() {
    let authority = authority();
    assert!(matches!(authority.certify(&request(Role::Node, "Bad Name")), Err(Error::Name { .. })));
    assert!(matches!(authority.certify(&request(Role::Node, "../x")), Err(Error::Name { .. })));
    let hosts = ["host:7000".to_owned()];
    let with_port = Request { hosts: &hosts, ..request(Role::Node, "a") };
    assert!(matches!(authority.certify(&with_port), Err(Error::Name { .. })));
    assert!(matches!(authority.certify(&Request { days: 0, ..request(Role::Node, "a") }), Err(Error::Name { .. })));
}

#[test]
fn credentials_that_do_not_fit_together_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::create(dir.path(), now()).unwrap();
    let theirs = authority();
    let node = ours.certify(&request(Role::Node, "a1")).unwrap();
    let second = ours.certify(&request(Role::Node, "a2")).unwrap();
    let load = |ca: &str, certificate: &str, key: &str, at| Credentials::from_pem(ca, certificate, key, at);
    let ca = ours.certificate_pem();
    let (certificate, key) = (&node.certificate_pem, &node.key_pem);

    assert!(load(ca, certificate, key, now()).is_ok());
    assert!(matches!(load(ca, certificate, &second.key_pem, now()), Err(Error::KeyMismatch)));
    assert!(matches!(load(theirs.certificate_pem(), certificate, key, now()), Err(Error::OtherCluster { .. })));
    let late = WallMillis(now().0 + 31 * DAY);
    let error = load(ca, certificate, key, late).unwrap_err();
    assert!(matches!(error, Error::NotValidNow { problem: "expired", .. }), "{error}");
    let slow_clock = WallMillis(now().0 - (u64::from(BACKDATED_DAYS) - 1) * DAY);
    assert!(load(ca, certificate, key, slow_clock).is_ok(), "a clock some days late still works");
    let early = WallMillis(now().0 - (u64::from(BACKDATED_DAYS) + 1) * DAY);
    assert!(matches!(load(ca, certificate, key, early), Err(Error::NotValidNow { .. })));
    assert!(matches!(load(ca, "no pem", key, now()), Err(Error::Malformed { .. })));
    assert!(matches!(load(ca, certificate, "no pem", now()), Err(Error::Malformed { .. })));
    assert!(matches!(load("no pem", certificate, key, now()), Err(Error::Malformed { .. })));
    assert!(matches!(load(certificate, certificate, key, now()), Err(Error::Malformed { .. })), "not a CA");

    let (ca, certificate, key) = authority_with_key_of(&ours, dir.path());
    let error = load(&ca, &certificate, &key, now()).unwrap_err();
    assert!(matches!(error, Error::OtherCluster { .. }), "same CA key, other cluster: {error}");

    let error = credentials(&ours, Role::Gateway, "g").expect_node().unwrap_err();
    assert_eq!(error.to_string(), "a node needs a node certificate, but this one is for gateway");
    assert!(!format!("{:?}", credentials(&ours, Role::Node, "n")).contains("BEGIN"));
}

#[derive(Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

/// Runs a handshake through memory; returns who refused, and why.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), (Side, Box<rustls::Error>)> {
    let mut client = ClientConnection::new(client, tls::SERVER_NAME.try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            if let Err(error) = server.process_new_packets() {
                return Err((Side::Server, Box::new(error)));
            }
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            if let Err(error) = client.process_new_packets() {
                return Err((Side::Client, Box::new(error)));
            }
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn client_refusal(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> String {
    let (side, error) = handshake(client, server).map(|_| ()).expect_err("must be refused");
    assert_eq!(side, Side::Client, "{error}");
    tls::refusal(&error).unwrap_or_else(|| error.to_string())
}

fn server_refusal(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> String {
    let (side, error) = handshake(client, server).map(|_| ()).expect_err("must be refused");
    assert_eq!(side, Side::Server, "{error}");
    tls::refusal(&error).unwrap_or_else(|| error.to_string())
}

#[test]
fn members_of_one_cluster_shake_hands_and_know_each_other() {
    let authority = authority();
    let node = credentials(&authority, Role::Node, "a1");
    let server = tls::server_config(&node).unwrap();
    for role in Role::ALL {
        let peer = credentials(&authority, role, "p");
        let config = tls::client_config(&peer, Some("a1")).unwrap();
        for (round, kind) in [("full", HandshakeKind::Full), ("resumed", HandshakeKind::Resumed)] {
            let (client, server) = handshake(config.clone(), server.clone()).map_err(|(_, error)| error).expect(round);
            assert_eq!(client.handshake_kind(), Some(kind));
            let seen = peer_identity(server.peer_certificates().unwrap(), authority.cluster()).unwrap();
            assert_eq!(&seen, peer.identity(), "{round}");
            let seen = peer_identity(client.peer_certificates().unwrap(), authority.cluster()).unwrap();
            assert_eq!(&seen, node.identity(), "{round}");
            assert_eq!(client.alpn_protocol(), Some(tls::ALPN_H2));
            assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            let suite = client.negotiated_cipher_suite().unwrap().suite();
            assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        }
    }
}

#[test]
fn another_node_than_the_expected_one_is_refused() {
    let authority = authority();
    let server = tls::server_config(&credentials(&authority, Role::Node, "a1")).unwrap();
    let client = tls::client_config(&credentials(&authority, Role::Node, "a2"), Some("a3")).unwrap();
    assert!(client_refusal(client, server).contains("expected the certificate of \"a3\""));
}

#[test]
fn a_server_and_a_client_of_another_authority_are_refused() {
    let (ours, theirs) = (authority(), authority());
    let server = tls::server_config(&credentials(&theirs, Role::Node, "a1")).unwrap();
    let client = tls::client_config(&credentials(&ours, Role::Node, "a2"), None).unwrap();
    assert!(client_refusal(client, server.clone()).contains("belongs to cluster"));

    // A client that would accept anything still cannot get in.
    let stranger = credentials(&ours, Role::Operator, "op");
    let careless = careless_client(Some(&stranger_files(&ours)), &stranger);
    assert!(server_refusal(careless, server).contains("belongs to cluster"));
}

#[test]
fn a_forged_identity_under_a_strange_ca_is_refused_by_its_chain() {
    // Right cluster id in the certificate, signed by a CA that merely claims that id.
    let dir = tempfile::tempdir().unwrap();
    let ours = authority();
    Authority::create(dir.path(), now()).unwrap();
    let uri = Identity::new(ours.cluster(), Role::Node, "a1").unwrap().uri();
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(dir.path().join("ca.key")).unwrap()).unwrap();
    let ca = fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, &key).unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let certificate = params.signed_by(&own, &issuer).unwrap();
    let error = Credentials::from_pem(ours.certificate_pem(), &certificate.pem(), &own.serialize_pem(), now());
    assert!(matches!(error, Err(Error::Untrusted { .. })), "{error:?}");

    let client = careless_client(Some(&(certificate.pem(), own.serialize_pem())), &credentials(&ours, Role::Node, "x"));
    let server = tls::server_config(&credentials(&ours, Role::Node, "a2")).unwrap();
    assert!(server_refusal(client, server).contains("not signed by this cluster's CA"));
}

#[test]
fn a_client_of_another_cluster_under_the_same_ca_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::create(dir.path(), now()).unwrap();
    let (_, certificate, key) = authority_with_key_of(&ours, dir.path());
    let client = careless_client(Some(&(certificate, key)), &credentials(&ours, Role::Node, "x"));
    let server = tls::server_config(&credentials(&ours, Role::Node, "a1")).unwrap();
    assert!(server_refusal(client, server).contains("belongs to cluster"));
}

#[test]
fn a_client_without_certificate_is_refused() {
    let authority = authority();
    let node = credentials(&authority, Role::Node, "a1");
    let server = tls::server_config(&node).unwrap();
    assert!(server_refusal(careless_client(None, &node), server).contains("sent no certificate"));
}

#[test]
fn a_gateway_cannot_pose_as_a_node() {
    let authority = authority();
    let gateway = credentials(&authority, Role::Gateway, "g1");
    assert!(matches!(tls::server_config(&gateway), Err(Error::WrongRole { .. })));
    let certified = authority.certify(&request(Role::Gateway, "g1")).unwrap();
    let server = careless_server(&certified.certificate_pem, &certified.key_pem);
    let client = tls::client_config(&credentials(&authority, Role::Node, "a1"), None).unwrap();
    assert!(client_refusal(client, server).contains("needs a node certificate"));
}

#[test]
fn garbage_instead_of_a_handshake_is_an_error_not_a_panic() {
    let authority = authority();
    let config = tls::server_config(&credentials(&authority, Role::Node, "a1")).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    server.read_tls(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]).unwrap();
    assert!(server.process_new_packets().is_err());
}

fn stranger_files(authority: &Authority) -> (String, String) {
    let certified = authority.certify(&request(Role::Operator, "op")).unwrap();
    (certified.certificate_pem, certified.key_pem)
}

fn careless_server(certificate: &str, key: &str) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// A client that accepts every server and shows what it is given.
fn careless_client(shown: Option<&(String, String)>, like: &Credentials) -> Arc<ClientConfig> {
    #[derive(Debug)]
    struct Anyone(Vec<rustls::SignatureScheme>);
    impl rustls::client::danger::ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.clone()
        }
    }
    let schemes = tls::provider().signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Anyone(schemes)));
    let mut config = match shown {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            // `like` has our CA's hints; rustls would withhold a certificate only by its own resolver.
            builder.with_client_cert_resolver(always(chain, key))
        }
        None => builder.with_no_client_auth(),
    };
    assert!(!like.chain().is_empty());
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    Arc::new(config)
}

fn always(
    chain: Vec<CertificateDer<'static>>,
    key: rustls_pki_types::PrivateKeyDer<'static>,
) -> Arc<dyn rustls::client::ResolvesClientCert> {
    let key = tls::provider().key_provider.load_private_key(key).unwrap();
    Arc::new(rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key)))
}

fn claim(authority: &Authority) -> Claim<'_> {
    Claim { cluster: authority.cluster(), coordinator: "a1", time: now() }
}

#[test]
fn receipts_verify_offline_after_a_trip_through_a_file() {
    let authority = authority();
    let node = credentials(&authority, Role::Node, "a1");
    let signed = Signer::new(&node).unwrap().seal(b"payload".to_vec());
    let read = SignedReceipt::decode(&signed.encode()).unwrap();
    assert_eq!(read, signed);
    let signer = verify_receipt(&read, authority.certificate_pem(), claim(&authority)).unwrap();
    assert_eq!(&signer, node.identity());
    assert!(Signer::new(&credentials(&authority, Role::Gateway, "g")).is_ok());
    assert!(matches!(Signer::new(&credentials(&authority, Role::Auditor, "x")), Err(Error::WrongRole { .. })));
}

#[test]
fn receipts_stay_true_after_their_certificate_ended_and_are_not_true_outside_of_it() {
    let authority = authority();
    let signed = Signer::new(&credentials(&authority, Role::Node, "a1")).unwrap().seal(b"p".to_vec());
    let verify = |time| verify_receipt(&signed, authority.certificate_pem(), Claim { time, ..claim(&authority) });
    // Verification reads no clock, so this holds in ten years as it does now.
    assert!(verify(now()).is_ok());
    assert!(matches!(verify(WallMillis(now().0 + 40 * DAY)), Err(Error::NotValidNow { problem: "expired", .. })));
    assert!(matches!(verify(WallMillis(0)), Err(Error::NotValidNow { .. })));
}

#[test]
fn altered_receipts_are_refused() {
    let (ours, theirs) = (authority(), authority());
    let ca = ours.certificate_pem();
    let signed = Signer::new(&credentials(&ours, Role::Node, "a1")).unwrap().seal(b"payload".to_vec());
    let verify = |signed: &SignedReceipt| verify_receipt(signed, ca, claim(&ours));
    for position in 0..signed.payload.len() {
        let mut bad = signed.clone();
        bad.payload[position] ^= 1;
        assert!(matches!(verify(&bad), Err(Error::BadSignature)));
    }
    for position in 0..signed.signature.len() {
        let mut bad = signed.clone();
        bad.signature[position] ^= 1;
        assert!(matches!(verify(&bad), Err(Error::BadSignature)));
    }
    for position in 0..signed.chain[0].len() {
        let mut bad = signed.clone();
        bad.chain[0][position] ^= 1;
        assert!(verify(&bad).is_err(), "byte {position} of the certificate");
    }
    let other = Signer::new(&credentials(&ours, Role::Node, "a1")).unwrap();
    let swapped = SignedReceipt { chain: other.seal(vec![1]).chain, ..signed.clone() };
    assert!(matches!(verify(&swapped), Err(Error::BadSignature)), "another certificate of the same name");

    let bob = Signer::new(&credentials(&ours, Role::Node, "b2")).unwrap().seal(b"payload".to_vec());
    assert!(matches!(verify(&bob), Err(Error::WrongName { .. })));
    let stranger = Signer::new(&credentials(&theirs, Role::Node, "a1")).unwrap().seal(b"payload".to_vec());
    assert!(matches!(verify(&stranger), Err(Error::OtherCluster { .. })));
    let wrong_ca = verify_receipt(&signed, theirs.certificate_pem(), claim(&ours));
    assert!(matches!(wrong_ca, Err(Error::OtherCluster { .. })));
    let no_chain = SignedReceipt { chain: vec![], ..signed };
    assert!(matches!(verify(&no_chain), Err(Error::NoCertificate)));
}

#[test]
fn an_operator_cannot_sign_receipts_even_with_its_own_tool() {
    // The library refuses to make such a signer, so the signature is made by hand.
    let authority = authority();
    let certified = authority.certify(&request(Role::Operator, "a1")).unwrap();
    let der = CertificateDer::from_pem_slice(certified.certificate_pem.as_bytes()).unwrap();
    let signed = SignedReceipt { payload: b"p".to_vec(), signature: vec![1], chain: vec![der.to_vec()] };
    let error = verify_receipt(&signed, authority.certificate_pem(), claim(&authority)).unwrap_err();
    assert!(matches!(error, Error::WrongRole { .. }), "{error}");
}

#[test]
fn files_that_are_no_receipts_are_refused_with_the_reason() {
    assert!(matches!(SignedReceipt::decode(b"\xff\xff"), Err(Error::Malformed { .. })));
    assert!(matches!(SignedReceipt::decode(b""), Err(Error::Malformed { .. })));
    let later = [0x08, 0x02];
    assert!(matches!(SignedReceipt::decode(&later), Err(Error::UnknownFormat { found: 2, known: 1 })));
}

#[test]
fn receipts_of_format_1_open_forever() {
    let golden = SignedReceipt { payload: b"p".to_vec(), signature: b"s".to_vec(), chain: vec![b"c".to_vec()] };
    let bytes = [0x08, 1, 0x12, 1, b'p', 0x1a, 1, b's', 0x22, 1, b'c'];
    assert_eq!(golden.encode(), bytes);
    assert_eq!(SignedReceipt::decode(&bytes).unwrap(), golden);
}
