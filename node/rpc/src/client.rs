//! [`TonicPeer`]: the `Peer` port over gRPC and mutual TLS.
//!
//! **Invariants.** Each target has connections of its own for consensus, for control and for bulk data, so a Raft
//! message never waits behind a shard. Every call ends by its deadline. A fault is of class `Retry` only if the request
//! surely was not sent, or the other side said so; once it was sent, silence is `Unknown`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Method as HttpMethod, Request as HttpRequest, StatusCode, Uri, header};
use pacsvault_core::{ids::NodeName, limits::MESSAGE_BYTES_MAX};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault, Peer, Reply, Request, Target},
};
use pacsvault_security::{Credentials, tls};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::{
    fault::{BROKEN, DEADLINE, TOO_LARGE, TRUST, UNREACHABLE, fault_of},
    frames::{Payload, ReadError, read_message},
    limits,
    link::{Link, Sent},
    methods::{self, Lane, Method},
};

/// Connections to one target.
struct Links {
    consensus: Arc<Link>,
    control: Arc<Link>,
    bulk: Vec<Arc<Link>>,
    turn: AtomicUsize,
}

impl Links {
    fn link(&self, lane: Lane) -> &Arc<Link> {
        match lane {
            Lane::Consensus => &self.consensus,
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk[self.turn.fetch_add(1, Ordering::Relaxed) % self.bulk.len()],
        }
    }
}

/// Sends requests to nodes with the certificate of this process. Needs a tokio runtime around its calls.
pub struct TonicPeer {
    credentials: RwLock<Arc<Credentials>>,
    source: Option<IpAddr>,
    targets: Mutex<BTreeMap<Target, Arc<Links>>>,
}

impl TonicPeer {
    /// A peer that shows `credentials` and dials from wherever the system likes.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self::dialling_from(None, credentials)
    }

    /// A peer that shows `credentials` and dials from `source`, an address of this machine ([`crate::check_source`]).
    pub fn dialling_from(source: Option<IpAddr>, credentials: Arc<Credentials>) -> Self {
        Self { credentials: RwLock::new(credentials), source, targets: Mutex::new(BTreeMap::new()) }
    }

    /// Shows other credentials from now on. Calls in progress end on the connections they have.
    pub fn reload(&self, credentials: Arc<Credentials>) {
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The connection of `target` for a thin client of the `Archive` service.
    pub(crate) fn link(&self, target: &Target, lane: Lane) -> Result<Arc<Link>, Fault> {
        Ok(self.links(target)?.link(lane).clone())
    }

    fn links(&self, target: &Target) -> Result<Arc<Links>, Fault> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(links) = targets.get(target) {
            return Ok(links.clone());
        }
        if targets.len() >= limits::TARGETS_MAX {
            targets.clear();
        }
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let config = tls::client_config(&credentials, target.name.as_ref().map(NodeName::as_str))
            .map_err(|error| Fault::new(Class::Reject, TRUST, error.to_string()))?;
        let link = || Link::new(target.address.clone(), self.source, config.clone());
        let links = Arc::new(Links {
            consensus: link(),
            control: link(),
            bulk: (0..limits::BULK_CONNECTIONS).map(|_| link()).collect(),
            turn: AtomicUsize::new(0),
        });
        targets.insert(target.clone(), links.clone());
        Ok(links)
    }
}

impl Peer for TonicPeer {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let prepared = methods::encode_request(request).and_then(|(method, payload)| {
            if payload.message_bytes() > MESSAGE_BYTES_MAX {
                let text = format!("a message of {} bytes is above {MESSAGE_BYTES_MAX}", payload.message_bytes());
                return Err(Fault::new(Class::Reject, TOO_LARGE, text));
            }
            Ok((self.link(target, method.lane())?, method, payload))
        });
        match prepared {
            Ok((link, method, payload)) => Box::pin(call(link, method, payload, deadline)),
            Err(fault) => Box::pin(std::future::ready(Err(fault))),
        }
    }
}

async fn call(link: Arc<Link>, method: Method, payload: Payload, deadline: Duration) -> Result<Reply, Fault> {
    let end = Instant::now() + deadline;
    match timeout_at(end, link.ready()).await {
        Ok(ready) => ready?,
        Err(_) => {
            let text = format!("no connection within {} ms", deadline.as_millis());
            return Err(Fault::new(Class::Retry, UNREACHABLE, text));
        }
    }
    let request = request(method, payload, end.saturating_duration_since(Instant::now()))?;
    let exchange = exchange(&link, method, request);
    timeout_at(end, exchange).await.unwrap_or_else(|_| {
        let text = format!("no reply within {} ms; it may have been done", deadline.as_millis());
        Err(Fault::new(Class::Unknown, DEADLINE, text))
    })
}

fn request(method: Method, payload: Payload, left: Duration) -> Result<HttpRequest<Sent>, Fault> {
    let millis = left.as_millis().clamp(1, 99_999_999);
    let timeout = HeaderValue::from_str(&format!("{millis}m")).expect("digits and a letter");
    let uri = Uri::builder().scheme("https").authority(tls::SERVER_NAME).path_and_query(method.path()).build();
    let uri = uri.map_err(|error| Fault::new(Class::Bug, "PV-BUG", error.to_string()))?;
    let mut request = HttpRequest::new(Sent::Unary(payload));
    *request.method_mut() = HttpMethod::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-timeout", timeout);
    Ok(request)
}

async fn exchange(link: &Arc<Link>, method: Method, request: HttpRequest<Sent>) -> Result<Reply, Fault> {
    let (head, body) = link.send(request).await?.into_parts();
    if head.status != StatusCode::OK {
        let text = format!("HTTP status {} where gRPC was expected", head.status);
        return Err(Fault::new(Class::Unknown, BROKEN, text));
    }
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Err(fault_of(&status, true));
    }
    let (frames, trailers) = match read_message(body, MESSAGE_BYTES_MAX, |_| true).await {
        Ok(read) => read,
        Err(ReadError::Broken(error)) => return Err(link.broken_fault(&error)),
        Err(error) => return Err(Fault::new(Class::Unknown, BROKEN, error.to_string())),
    };
    match trailers.as_ref().and_then(Status::from_header_map) {
        Some(status) if status.code() == tonic::Code::Ok => methods::decode_reply(method, frames),
        Some(status) => Err(fault_of(&status, true)),
        None => Err(Fault::new(Class::Unknown, BROKEN, "the reply has no grpc-status")),
    }
}
