//! One HTTP/2 connection to one target, dialled when needed and again whenever it broke.
//!
//! **Invariants.** At most one dial is under way per link, and it outlives the callers that wait for it, so that
//! callers with short deadlines cannot keep a slow link from ever being made. A failed dial is told to those who waited
//! for it and to nobody later: the next caller dials again at once. A request is repeated here only when it surely was not
//! sent. "Nothing was done" is said of a request that was sent only when its connection ended with an alert about our
//! certificate before it had answered anything. A link with a source never dials from another address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{HeaderValue, Request, Response, header};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pacsvault_ports::peer::{Class, Fault};
use pacsvault_security::tls::{SERVER_NAME, refusal};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::BufReader,
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::Status;

use crate::{
    fault::{BROKEN, TRUST, UNREACHABLE},
    frames::Payload,
    limits,
};

/// Body of a request on a link.
pub enum Sent {
    /// One message.
    Unary(Payload),
    /// Whatever a generated client sends.
    Stream(tonic::body::Body),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Unary(payload) => {
                Pin::new(payload).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Unary(payload) => payload.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Unary(payload) => payload.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// How one connection is going.
#[derive(Default)]
struct Life {
    /// It carried the head of an answer: the other side has accepted our certificate.
    answered: AtomicBool,
    /// Why it broke; part of the message of the calls that broke with it.
    broken: OnceLock<String>,
}

/// An open connection.
#[derive(Clone)]
struct Open {
    sender: SendRequest<Sent>,
    life: Arc<Life>,
}

type Dial = Shared<BoxFuture<'static, Result<Open, Fault>>>;

enum State {
    Idle,
    Dialling(Dial),
    Open(Open),
}

/// One connection to one target.
pub struct Link {
    address: String,
    source: Option<IpAddr>,
    tls: Arc<ClientConfig>,
    state: Mutex<State>,
}

impl Link {
    /// A link that is not dialled yet; it will be dialled from `source`, or from where the system likes.
    pub fn new(address: String, source: Option<IpAddr>, tls: Arc<ClientConfig>) -> Arc<Self> {
        Arc::new(Self { address, source, tls, state: Mutex::new(State::Idle) })
    }

    /// Waits for a usable connection. Class `Retry` on failure: nothing was sent.
    pub async fn ready(self: &Arc<Self>) -> Result<(), Fault> {
        self.open().await.map(drop)
    }

    async fn open(self: &Arc<Self>) -> Result<Open, Fault> {
        let dial = {
            let mut state = self.state();
            match &*state {
                State::Open(open) if !open.sender.is_closed() => return Ok(open.clone()),
                State::Dialling(dial) => dial.clone(),
                State::Open(_) | State::Idle => {
                    let dial = self.clone().dial();
                    *state = State::Dialling(dial.clone());
                    dial
                }
            }
        };
        dial.await
    }

    /// Sends `request` and waits for the head of the response.
    pub async fn send(self: &Arc<Self>, request: Request<Sent>) -> Result<Response<Incoming>, Fault> {
        let mut request = request;
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        // A connection that closed since it was looked up gives the request back: that one may go to a new connection.
        let mut again = true;
        loop {
            let Open { mut sender, life } = self.open().await?;
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => {
                    life.answered.store(true, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) => error,
            };
            match error.take_message() {
                Some(unsent) if again => request = unsent,
                unsent => {
                    let why = life.broken.get().cloned().unwrap_or_else(|| chain(error.error()));
                    let answered = life.answered.load(Ordering::Relaxed);
                    return Err(broken(&self.address, &why, unsent.is_none(), answered));
                }
            }
            again = false;
        }
    }

    /// What it means that a response broke off after its head.
    pub fn broken_fault(&self, error: &hyper::Error) -> Fault {
        broken(&self.address, &chain(error), true, true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dial(self: Arc<Self>) -> Dial {
        let task = tokio::spawn(async move {
            let result = match timeout(limits::CONNECT_TIMEOUT, self.connect()).await {
                Ok(result) => result,
                Err(_) => Err(unreachable(&self.address, "no answer in time")),
            };
            *self.state() = match &result {
                Ok(open) => State::Open(open.clone()),
                Err(_) => State::Idle,
            };
            result
        });
        async move { task.await.unwrap_or_else(|error| Err(unreachable("the target", &error.to_string()))) }
            .boxed()
            .shared()
    }

    async fn connect(self: &Arc<Self>) -> Result<Open, Fault> {
        let socket = connect_from(self.source, &self.address).await.map_err(|error| self.unreachable(&error))?;
        socket.set_nodelay(true).map_err(|error| self.unreachable(&error))?;
        let name = ServerName::try_from(SERVER_NAME).expect("a valid DNS name");
        let socket = BufReader::with_capacity(limits::READ_BUFFER_BYTES, socket);
        let mut stream =
            TlsConnector::from(self.tls.clone()).connect(name, socket).await.map_err(|error| self.untrusted(&error))?;
        stream.get_mut().1.set_buffer_limit(Some(limits::TLS_BUFFER_BYTES));
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .adaptive_window(false)
            .max_frame_size(limits::FRAME_BYTES)
            .max_send_buf_size(limits::SEND_BUFFER_BYTES)
            .initial_max_send_streams(usize::try_from(limits::STREAMS_MAX).unwrap_or(usize::MAX))
            .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let handshake = builder.handshake::<_, Sent>(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| unreachable(&self.address, &chain(&error)))?;
        let life = Arc::new(Life::default());
        let (watched, address) = (life.clone(), self.address.clone());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                let why = chain(&error);
                tracing::debug!(address, error = why, "connection ended");
                // Set once: a connection ends once.
                let _ = watched.broken.set(why);
            }
        });
        Ok(Open { sender, life })
    }

    fn unreachable(&self, error: &io::Error) -> Fault {
        unreachable(&self.address, &error.to_string())
    }

    fn untrusted(&self, error: &io::Error) -> Fault {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match refused {
            Some(error) => {
                let why = refusal(error).unwrap_or_else(|| error.to_string());
                Fault::new(Class::Retry, TRUST, format!("{} is not trusted: {why}", self.address))
            }
            None => self.unreachable(error),
        }
    }
}

/// Opens a connection from `source`: the addresses of `target` are tried in order, those of the other family never.
async fn connect_from(source: Option<IpAddr>, target: &str) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(target).await };
    let mut last = None;
    for address in lookup_host(target).await?.filter(|address| address.is_ipv4() == source.is_ipv4()) {
        let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let bound = socket.bind(SocketAddr::new(source, 0));
        bound.map_err(|error| io::Error::new(error.kind(), format!("from {source}: {error}")))?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(io::Error::new(error.kind(), format!("from {source}: {error}"))),
        }
    }
    Err(last.unwrap_or_else(|| {
        let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        let text = format!("it has no {family} address, and connections are made from {source}");
        io::Error::new(io::ErrorKind::AddrNotAvailable, text)
    }))
}

/// Whether connections can be made from `source`: it is an address of this machine.
///
/// # Errors
/// A sentence that names the address and says what to do.
pub fn check_source(source: IpAddr) -> Result<(), String> {
    match std::net::TcpListener::bind(SocketAddr::new(source, 0)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Err(format!(
            "{source} is no address of this machine; `ip address` lists those it has, and without a source the system chooses"
        )),
        Err(error) => Err(format!("connections cannot be made from {source}: {error}")),
    }
}

fn unreachable(address: &str, why: &str) -> Fault {
    Fault::new(Class::Retry, UNREACHABLE, format!("cannot reach {address}: {why}"))
}

/// Alerts by which a TLS 1.3 server refuses the certificate that it was shown (or not shown), as rustls prints them.
const CERTIFICATE_ALERTS: [&str; 9] = [
    "AccessDenied",
    "BadCertificate",
    "CertificateExpired",
    "CertificateRequired",
    "CertificateRevoked",
    "CertificateUnknown",
    "NoCertificate",
    "UnknownCA",
    "UnsupportedCertificate",
];

/// What a broken exchange means, by whether the request was `sent` and whether its connection had `answered` anything.
fn broken(address: &str, why: &str, sent: bool, answered: bool) -> Fault {
    let alert = why.split_once("received fatal alert: ").map(|(_, alert)| alert);
    let refused = alert.is_some_and(|alert| CERTIFICATE_ALERTS.iter().any(|known| alert.starts_with(known)));
    // In answer to our certificate it ends the connection before any request was looked at.
    if refused && !answered {
        let text = format!("{address} refuses this certificate ({why}): use one of its cluster");
        return Fault::new(Class::Retry, TRUST, text);
    }
    let class = if sent { Class::Unknown } else { Class::Retry };
    Fault::new(class, BROKEN, format!("the connection to {address} broke: {why}"))
}

/// An error and its sources, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_alert_before_any_answer_says_that_nothing_was_done() {
        let refused = "connection error: received fatal alert: UnknownCA";
        let judge = |why: &str, sent, answered| {
            let fault = broken("10.0.0.1:7400", why, sent, answered);
            (fault.class, fault.code)
        };
        assert_eq!(judge(refused, true, false), (Class::Retry, TRUST));
        assert_eq!(judge(refused, true, true), (Class::Unknown, BROKEN));
        for alert in ["InternalError", "BadRecordMac", "DecodeError"] {
            let why = format!("received fatal alert: {alert}");
            assert_eq!(judge(&why, true, false), (Class::Unknown, BROKEN), "{alert}");
            assert_eq!(judge(&why, false, false), (Class::Retry, BROKEN), "{alert}");
        }
        assert_eq!(judge("connection reset", true, false), (Class::Unknown, BROKEN));
    }
}
