//! gRPC without our client: for uploads that break the rules, and for files of certificates that fit together or not.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use pacsvault_runtime::wall_now;
use pacsvault_security::{Credentials, credentials::Files, tls};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Credentials `<stem>.pem` and `<stem>.key` beside `ca.pem` in `pki`.
pub fn credentials(pki: &Path, stem: &str) -> anyhow::Result<Arc<Credentials>> {
    let (certificate, key) = (pki.join(format!("{stem}.pem")), pki.join(format!("{stem}.key")));
    let files = Files { ca: &pki.join("ca.pem"), certificate: &certificate, key: &key };
    Ok(Arc::new(Credentials::load(files, wall_now())?))
}

/// A connection to `address` that shows `credentials`.
pub async fn channel(address: &str, credentials: &Credentials) -> anyhow::Result<Channel> {
    let config = tls::client_config(credentials, None)?;
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (config, address) = (config.clone(), address.clone());
        async move {
            let socket = TcpStream::connect(&address).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from(tls::SERVER_NAME).expect("a valid DNS name");
            let stream = TlsConnector::from(config).connect(name, socket).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://node.pacsvault.internal");
    endpoint.connect_with_connector(connector).await.context("cannot connect")
}
