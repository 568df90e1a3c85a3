//! Whoever does not belong to the cluster gets nowhere, and whatever arrives on the port harms nobody else.
#![allow(dead_code, reason = "shared support; each test binary uses a part of it")]

mod support;

use std::sync::Arc;

use pacsvault_ports::peer::{Class, Peer, Request, Target};
use pacsvault_rpc::{ServerTls, server};
use pacsvault_security::{Role, tls};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use support::{Echo, PATIENCE, Pki, Running};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn server(pki: &Pki) -> Running {
    Running::start(pki, "node-1", Arc::new(Echo::default()), None).await
}

/// Waits for a count to be reached: it is made after the other side has seen its connection end.
async fn until(what: &str, reached: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// A client that trusts the cluster but is not held to its rules: shows what the test wants.
async fn raw(pki: &Pki, address: &str, shown: Option<&Pki>) -> std::io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pki.0.certificate_pem().as_bytes()).expect("PEM");
    roots.add(ca).expect("a CA");
    let builder = ClientConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("TLS 1.3");
    let builder = builder.with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(other) => {
            let pem = other.pem(Role::Node, "node-2");
            let certificate = CertificateDer::from_pem_slice(pem.certificate_pem.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(pem.key_pem.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("fits")
        }
    };
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from(tls::SERVER_NAME).expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await?;
    Ok(read)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_cluster_trusts_no_node_of_this_one() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let server = server(&ours).await;
    let stranger = theirs.peer(Role::Node, "node-2");
    let fault = stranger.call(&server.target, Request::Status, PATIENCE).await.expect_err("is refused");
    assert_eq!((fault.class, fault.code), (Class::Retry, "PV-TRUST"), "{fault}");
    assert!(fault.message.contains("cluster"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_refuses_strangers_and_the_nameless() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let server = server(&ours).await;
    let address = server.target.address.as_str();
    let stranger = raw(&ours, address, Some(&theirs)).await.expect_err("another cluster's certificate");
    assert!(stranger.to_string().contains("fatal alert"), "{stranger}");
    let nameless = raw(&ours, address, None).await.expect_err("no certificate");
    assert!(nameless.to_string().contains("fatal alert"), "{nameless}");
    until("both are counted", || server.counters.counts().handshakes_failed == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_at_the_address_is_not_taken_for_the_one_expected() {
    let pki = Pki::new();
    let server = server(&pki).await;
    let wrong = Target { name: Some("node-9".parse().expect("a name")), ..server.target.clone() };
    let peer = pki.peer(Role::Node, "node-2");
    let fault = peer.call(&wrong, Request::Status, PATIENCE).await.expect_err("is another");
    assert_eq!(fault.code, "PV-TRUST");
    assert!(fault.message.contains("node-9") && fault.message.contains("node-1"), "{fault}");
    let any = Target { name: None, ..server.target.clone() };
    assert!(peer.call(&any, Request::Status, PATIENCE).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_drops_its_own_connection_only() {
    let pki = Pki::new();
    let server = server(&pki).await;
    let peer = pki.peer(Role::Node, "node-2");
    assert!(peer.call(&server.target, Request::Status, PATIENCE).await.is_ok());
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let mut socket = TcpStream::connect(&server.target.address).await.expect("connects");
        socket.write_all(garbage).await.expect("is taken");
        socket.shutdown().await.expect("ends");
        // An alert or nothing; then the end, or a reset.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    }
    until("three failed handshakes", || server.counters.counts().handshakes_failed == 3).await;
    // Garbage from a member, inside TLS.
    let _ = raw(&pki, &server.target.address, Some(&pki)).await;
    until("a broken protocol", || server.counters.counts().broken == 1).await;
    assert!(peer.call(&server.target, Request::Status, PATIENCE).await.is_ok());
    assert_eq!(server.counters.counts().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_node_may_serve_and_credentials_are_replaced_while_running() {
    let pki = Pki::new();
    let gateway = ServerTls::new(&pki.credentials(Role::Gateway, "gateway-1"));
    assert!(matches!(gateway, Err(server::Error::Tls(_))));
    let server_tls = ServerTls::new(&pki.credentials(Role::Node, "node-1")).expect("a node's");
    assert!(server_tls.reload(&pki.credentials(Role::Node, "node-1")).is_ok());
    assert!(server_tls.reload(&pki.credentials(Role::Operator, "operator-1")).is_err());

    let server = server(&pki).await;
    let peer = pki.peer(Role::Auditor, "someone");
    assert!(peer.call(&server.target, Request::Status, PATIENCE).await.is_err());
    peer.reload(pki.credentials(Role::Operator, "someone"));
    assert!(peer.call(&server.target, Request::Status, PATIENCE).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer_any_member() {
    let pki = Pki::new();
    let server = server(&pki).await;
    let peer = pki.peer(Role::Auditor, "someone");
    let (channel, origin) = peer.channel(&server.target).expect("a channel");
    let mut health = HealthClient::with_origin(channel.clone(), origin.clone());
    let reply = health.check(HealthCheckRequest { service: String::new() }).await.expect("answers").into_inner();
    assert_eq!(reply.status, 1, "SERVING");

    let mut reflection = ServerReflectionClient::with_origin(channel, origin);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut replies =
        reflection.server_reflection_info(futures::stream::iter([ask])).await.expect("answers").into_inner();
    let reply = replies.message().await.expect("answers").expect("one reply");
    let Some(MessageResponse::ListServicesResponse(list)) = reply.message_response else { panic!("a list") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for wanted in ["pacsvault.v1.Archive", "pacsvault.v1.Admin", "pacsvault.v1.Shards", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == wanted), "{wanted} is not among {names:?}");
    }
}
