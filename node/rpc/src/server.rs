//! The gRPC port of a node: accepts connections, knows who is there, and hands calls on.
//!
//! **Invariants.** Nobody is served who has not shown a certificate of this cluster. Connections, handshakes, streams
//! and request bytes are bounded ([`limits`]). Whatever arrives on the port, the worst that happens is that this one
//! connection is dropped and counted.

use std::{
    fmt, io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pacsvault_coordinator::Coordinator;
use pacsvault_core::{ids::ClusterId, limits::MESSAGE_BYTES_MAX};
use pacsvault_ports::peer::Service;
use pacsvault_proto::{DESCRIPTORS, v1::archive_server::ArchiveServer};
use pacsvault_security::{Credentials, Identity, peer_identity, tls};
use rustls::ServerConfig;
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::service::Routes;

use crate::{
    archive::ArchiveService,
    dispatch::{Shared, answer},
    limits,
    link::chain,
};

/// A connection as served.
type Stream = TlsStream<BufReader<TcpStream>>;

/// Why a server cannot be made. An operator must change something; retrying cannot help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The credentials do not serve.
    #[error("cannot make the TLS settings of the gRPC port")]
    Tls(#[from] pacsvault_security::Error),
    /// The schema built into this program is broken.
    #[error("cannot serve reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// TLS settings of a server; replaced without a restart.
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
    cluster: ClusterId,
}

impl ServerTls {
    /// Settings from a node's credentials.
    ///
    /// # Errors
    /// [`Error::Tls`] when they are not a node's.
    pub fn new(credentials: &Credentials) -> Result<Arc<Self>, Error> {
        let config = RwLock::new(tls::server_config(credentials)?);
        Ok(Arc::new(Self { config, cluster: credentials.cluster() }))
    }

    /// Uses other credentials for connections from now on.
    ///
    /// # Errors
    /// [`Error::Tls`]; the old ones stay in use.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), Error> {
        let config = tls::server_config(credentials)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What happened on a port since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    handshakes_failed: AtomicU64,
    broken: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// TCP connections accepted.
    pub accepted: u64,
    /// Of these, dropped because [`limits::CONNECTIONS_MAX`] were open.
    pub refused: u64,
    /// Of these, dropped because TLS failed: garbage, a wrong certificate, silence.
    pub handshakes_failed: u64,
    /// Of these, ended by a broken protocol or peer later on.
    pub broken: u64,
}

impl Counters {
    /// The counts now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            handshakes_failed: read(&self.handshakes_failed),
            broken: read(&self.broken),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A node's gRPC port, ready to be served.
pub struct Server {
    tls: Arc<ServerTls>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// A server of `service`, and of the `Archive` when there is a coordinator for it.
    ///
    /// # Errors
    /// [`Error::Reflection`]: this program was built wrongly.
    pub fn new(tls: Arc<ServerTls>, service: Arc<dyn Service>, archive: Option<Coordinator>) -> Result<Self, Error> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        // The reporter may go: the empty service name, the whole server, is serving from the start.
        let (_, health) = tonic_health::server::health_reporter();
        let mut routes = Routes::new(health).add_service(reflection);
        if let Some(coordinator) = archive {
            let archive = ArchiveServer::new(ArchiveService::new(coordinator));
            routes = routes.add_service(archive.max_decoding_message_size(MESSAGE_BYTES_MAX));
        }
        Ok(Self {
            tls,
            shared: Arc::new(Shared::new(service, routes)),
            counters: Arc::new(Counters::default()),
            handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES_MAX)),
            connections: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
        })
    }

    /// What happens on the port, for metrics.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves until `shutdown` resolves; then takes no new calls, and drops what has not ended after
    /// [`limits::DRAIN_TIMEOUT`]. Dropping this future drops all connections at once.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, address)) => self.accept(&mut tasks, socket, &address, &stopped),
                    Err(error) => {
                        // Out of file descriptors, mostly: connections must end before another can begin.
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(20)).await;
                    }
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        drop(listener);
        // Nobody may be listening.
        let _ = stop.send(true);
        let drained = timeout(limits::DRAIN_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::info!(connections = tasks.len(), "dropping connections that did not end");
        }
    }

    fn accept(
        &self,
        tasks: &mut JoinSet<()>,
        socket: TcpStream,
        address: &impl fmt::Display,
        stopped: &watch::Receiver<bool>,
    ) {
        count(&self.counters.accepted);
        let Ok(place) = self.connections.clone().try_acquire_owned() else {
            count(&self.counters.refused);
            tracing::warn!(%address, max = limits::CONNECTIONS_MAX, "too many connections: refused");
            return;
        };
        let config = self.tls.config();
        let connection = Connection {
            cluster: self.tls.cluster,
            shared: self.shared.clone(),
            counters: self.counters.clone(),
            handshakes: self.handshakes.clone(),
            address: address.to_string(),
            _place: place,
        };
        tasks.spawn(connection.run(socket, config, stopped.clone()));
    }
}

/// One accepted connection.
struct Connection {
    cluster: ClusterId,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    handshakes: Arc<Semaphore>,
    address: String,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, socket: TcpStream, config: Arc<ServerConfig>, stopped: watch::Receiver<bool>) {
        let shaken = match timeout(limits::HANDSHAKE_TIMEOUT, self.handshake(socket, config)).await {
            Ok(shaken) => shaken,
            Err(_) => Err("no TLS handshake in time".to_owned()),
        };
        match shaken {
            Ok((stream, peer)) => self.calls(stream, peer, stopped).await,
            Err(error) => {
                count(&self.counters.handshakes_failed);
                tracing::debug!(address = self.address, error, "handshake failed");
            }
        }
    }

    async fn handshake(&self, socket: TcpStream, config: Arc<ServerConfig>) -> Result<(Stream, Identity), String> {
        let _turn = self.handshakes.acquire().await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let socket = BufReader::with_capacity(limits::READ_BUFFER_BYTES, socket);
        let mut stream = TlsAcceptor::from(config).accept(socket).await.map_err(|error| refused(&error))?;
        let session = stream.get_mut().1;
        session.set_buffer_limit(Some(limits::TLS_BUFFER_BYTES));
        let certificates = session.peer_certificates().unwrap_or_default();
        let peer = peer_identity(certificates, self.cluster).map_err(|error| error.to_string())?;
        Ok((stream, peer))
    }

    async fn calls(&self, stream: Stream, peer: Identity, mut stopped: watch::Receiver<bool>) {
        let peer = Arc::new(peer);
        let service = service_fn(|request| {
            let answered = answer(self.shared.clone(), peer.clone(), request);
            async move { Ok::<_, std::convert::Infallible>(answered.await) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .adaptive_window(false)
            .max_frame_size(limits::FRAME_BYTES)
            .max_concurrent_streams(limits::STREAMS_MAX)
            .max_send_buf_size(limits::SEND_BUFFER_BYTES)
            .max_header_list_size(limits::HEADER_LIST_BYTES)
            .auto_date_header(false)
            .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // Changes once: when the server stops, or is dropped.
            _ = stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            count(&self.counters.broken);
            tracing::debug!(address = self.address, peer = %peer, error = chain(&error), "connection broke");
        }
    }
}

fn refused(error: &io::Error) -> String {
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    rustls.and_then(tls::refusal).unwrap_or_else(|| error.to_string())
}
