//! One received call: which method, whether its caller may, and its answer.
//!
//! **Invariants.** Authorization comes before the first byte of the body is read. A unary call holds its announced bytes
//! of [`limits::REQUEST_KIB_MAX`] from then until it is answered or abandoned, and one that asks for bytes holds as many
//! until they are sent; without room it is refused at once, never queued. A unary call ends by its caller's deadline. What was
//! cut off is never taken for a whole request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request as HttpRequest, Response, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use pacsvault_core::limits::{CHUNK_BYTES, MESSAGE_BYTES_MAX};
use pacsvault_ports::peer::{Class, Fault, Request, Service};
use pacsvault_security::Identity;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Status, service::Routes};
use tower::ServiceExt;

use crate::{
    fault::{BROKEN, DEADLINE, DENIED, Invalid, NO_METHOD, OVERLOAD, Refusal, TOO_LARGE, status_of},
    frames::{Payload, ReadError, Success, read_message},
    limits,
    methods::{self, Method},
    roles::{self, Kind},
};

/// Path of the thin clients' service.
const ARCHIVE: &str = "/pacsvault.v1.Archive/";
/// Paths that any member may use.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];

/// What all calls of a server share.
pub struct Shared {
    service: Arc<dyn Service>,
    routes: Routes,
    room: Arc<Semaphore>,
}

impl Shared {
    /// `routes` answers what is not unary: archive, health, reflection.
    pub fn new(service: Arc<dyn Service>, routes: Routes) -> Self {
        Self { service, routes: routes.prepare(), room: Arc::new(Semaphore::new(limits::REQUEST_KIB_MAX)) }
    }
}

impl Shared {
    fn room_for(&self, len_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(len_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.room.clone().try_acquire_many_owned(kib).ok()
    }
}

/// Most bytes of payload that the reply may have: what is asked, and the rest of the chunks at both ends.
fn reply_bytes(request: &Request) -> usize {
    let asked = match request {
        Request::GetShard(get) => get.len_bytes.saturating_add(2 * CHUNK_BYTES as u64),
        Request::SnapshotRead { len_bytes, .. } => u64::from(*len_bytes),
        _ => 0,
    };
    usize::try_from(asked).unwrap_or(usize::MAX).min(MESSAGE_BYTES_MAX)
}

/// Body of an answer.
pub enum Answer {
    /// A unary reply, and its room until it is sent or its caller is gone.
    Success(Success, Option<OwnedSemaphorePermit>),
    /// What a generated server made.
    Stream(tonic::body::Body),
}

impl Default for Answer {
    fn default() -> Self {
        Self::Stream(tonic::body::Body::empty())
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Success(body, _) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Success(body, _) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Success(body, _) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// The body of a call that a generated server answers. It ends only where its sender ended it: a stream that was reset, by its
/// client or with its connection, is an error, though hyper (`NO_ERROR`) and tonic (`CANCEL`, and trailers in mid-message, which
/// no gRPC request has) take it for a clean end, and with it a part of an upload for the whole.
struct Whole(Incoming);

impl Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let cut_off = |why: &str| {
            let text = format!("the request was cut off before its end ({why}); nothing was done");
            Poll::Ready(Some(Err(status_of(&Fault::new(Class::Retry, BROKEN, text)))))
        };
        match std::task::ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_trailers() => cut_off("by trailers, which no request has"),
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => cut_off(&error.to_string()),
            None if self.0.is_end_stream() => Poll::Ready(None),
            None => cut_off("its stream was reset"),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Answers one call of a verified peer.
pub async fn answer(shared: Arc<Shared>, peer: Arc<Identity>, request: HttpRequest<Incoming>) -> Response<Answer> {
    let path = request.uri().path();
    let answered = if let Some(method) = Method::from_path(path) {
        unary(&shared, &peer, method, request).await
    } else if path.starts_with(ARCHIVE) {
        match roles::check(&peer, Kind::Archive) {
            Ok(_) => Ok(routed(&shared, request).await),
            Err(fault) => Err(fault.into()),
        }
    } else if OPEN.iter().any(|open| path.starts_with(open)) {
        Ok(routed(&shared, request).await)
    } else {
        let text = format!("this node has no method {:?}", path.chars().take(120).collect::<String>());
        Err(Fault::new(Class::Reject, NO_METHOD, text).into())
    };
    answered.unwrap_or_else(|refusal| {
        let refused = matches!(&refusal, Refusal::Fault(fault) if fault.code == DENIED);
        if refused {
            tracing::warn!(peer = %peer, error = %refusal, "denied");
        }
        refusal.status().into_http()
    })
}

async fn routed(shared: &Shared, request: HttpRequest<Incoming>) -> Response<Answer> {
    match shared.routes.clone().oneshot(request.map(|body| tonic::body::Body::new(Whole(body)))).await {
        Ok(response) => response.map(Answer::Stream),
        Err(never) => match never {},
    }
}

async fn unary(
    shared: &Shared,
    peer: &Identity,
    method: Method,
    request: HttpRequest<Incoming>,
) -> Result<Response<Answer>, Refusal> {
    let caller = roles::check(peer, method.kind())?;
    let limit = call_timeout(request.headers())?.unwrap_or(limits::CALL_DEADLINE).min(limits::CALL_DEADLINE);
    let work = async {
        let mut room: Option<OwnedSemaphorePermit> = None;
        let admit = |len_bytes: usize| {
            room = shared.room_for(len_bytes);
            room.is_some()
        };
        let read = read_message(request.into_body(), MESSAGE_BYTES_MAX, admit).await;
        let (frames, _) = read.map_err(|error| unreadable(&error))?;
        let asked = methods::decode_request(method, frames)?;
        roles::check_request(&caller, &asked.request)?;
        let reply_room = match reply_bytes(&asked.request) {
            0 => None,
            len_bytes => Some(shared.room_for(len_bytes).ok_or_else(|| unreadable(&ReadError::NoRoom))?),
        };
        let reply = shared.service.handle(caller, asked.request).await?;
        drop(room);
        let payload = methods::encode_reply(method, &asked.profiles, reply)?;
        Ok::<(Payload, Option<OwnedSemaphorePermit>), Refusal>((payload, reply_room))
    };
    let Ok(answered) = timeout(limit, work).await else {
        let text = format!("not finished within {} ms; it may yet be done", limit.as_millis());
        return Err(Fault::new(Class::Unknown, DEADLINE, text).into());
    };
    let (payload, reply_room) = answered?;
    let mut response = Response::new(Answer::Success(Success::new(payload), reply_room));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn unreadable(error: &ReadError) -> Refusal {
    let text = error.to_string();
    match error {
        ReadError::TooLarge { .. } => Fault::new(Class::Reject, TOO_LARGE, text).into(),
        ReadError::NoRoom => Fault::new(Class::Exhausted, OVERLOAD, text).into(),
        // Whoever sent it will hardly hear this; nothing was done.
        ReadError::Broken(_) => Fault::new(Class::Retry, BROKEN, text).into(),
        ReadError::Truncated { .. } | ReadError::Trailing | ReadError::Compressed => {
            Invalid::new("message", text).into()
        }
    }
}

/// `grpc-timeout`: up to 8 digits and a unit. `SPEC: gRPC over HTTP/2, Requests`.
fn call_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Invalid> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let bad = || Invalid::new("grpc-timeout", "must be 1 to 8 digits and one of H M S m u n");
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let count: u64 = digits.parse().map_err(|_| bad())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(bad()),
    }))
}

#[cfg(test)]
mod tests {
    use pacsvault_core::{
        ids::{InstanceId, ShardIndex, StripeIndex, VolumeId},
        shard::ShardId,
    };
    use pacsvault_ports::peer::GetShard;

    use super::*;

    #[test]
    fn a_reply_holds_its_room_until_it_is_sent() {
        let get = |len_bytes| {
            let id = ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(0), shard: ShardIndex(0) };
            Request::GetShard(GetShard { volume: VolumeId([2; 16]), id, offset_bytes: 0, len_bytes, background: false })
        };
        assert_eq!(reply_bytes(&get(4 << 20)), (4 << 20) + 2 * CHUNK_BYTES);
        assert_eq!(reply_bytes(&get(u64::MAX)), MESSAGE_BYTES_MAX);
        assert_eq!(reply_bytes(&Request::Status), 0);

        let room = Arc::new(Semaphore::new(100));
        let permit = room.clone().try_acquire_many_owned(100).ok();
        let mut answer = Answer::Success(Success::new(Payload::default()), permit);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(frame)) = Pin::new(&mut answer).poll_frame(&mut cx) {
            assert!(frame.is_ok());
            assert_eq!(room.available_permits(), 0, "held while frames come");
        }
        drop(answer);
        assert_eq!(room.available_permits(), 100);
    }

    #[test]
    fn timeouts_read_as_the_protocol_says() {
        let read = |text: &str| {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), text.parse().expect("a value"))]);
            call_timeout(&headers)
        };
        assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        for bad in ["", "m", "5", "5x", "123456789m", "-1m"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(call_timeout(&HeaderMap::new()), Ok(None));
    }
}
