//! gRPC messages as HTTP/2 bodies without copying payloads.
//!
//! A gRPC message is one flag byte (0: not compressed), four bytes of big-endian length, and the protobuf message.
//! Messages with a payload have it as their last field, so that a message is a small encoded head and an untouched
//! tail of bytes, sent as two frames of one body.
//!
//! **Invariants.** [`read_message`] never holds more than the announced length, and refuses a length above the limit
//! before a byte of it is kept. A received payload that came in one HTTP/2 frame is handed on without a copy.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, SizeHint};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;
/// Number of the payload field in every message that has one.
pub const PAYLOAD_TAG: u32 = 15;

/// A message ready to be sent: encoded fields, then the payload as it is.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    head: Bytes,
    tail: Bytes,
}

impl Payload {
    /// A message without a separate payload.
    pub fn of(message: &impl Message) -> Self {
        Self::with_tail(message, Bytes::new())
    }

    /// `message` must have its payload field (number 15, the highest) empty; `tail` becomes its value.
    pub fn with_tail(message: &impl Message, tail: Bytes) -> Self {
        let mut head = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len() + 12);
        head.put_bytes(0, PREFIX_BYTES);
        message.encode(&mut head).expect("a growing buffer has room");
        if !tail.is_empty() {
            encode_key(PAYLOAD_TAG, WireType::LengthDelimited, &mut head);
            encode_varint(tail.len() as u64, &mut head);
        }
        let length = u32::try_from(head.len() - PREFIX_BYTES + tail.len()).expect("messages are below 4 GiB");
        head[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        Self { head: head.freeze(), tail }
    }

    /// Bytes of the message, without its prefix.
    pub fn message_bytes(&self) -> usize {
        self.head.len() - PREFIX_BYTES + self.tail.len()
    }

    fn next(&mut self) -> Option<Bytes> {
        // A short tail is cheaper copied behind its head than sent as a frame of its own.
        const JOIN_BYTES: usize = 1024;
        if !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            if self.tail.is_empty() || self.tail.len() > JOIN_BYTES {
                return Some(head);
            }
            let mut joined = BytesMut::from(head);
            joined.extend_from_slice(&std::mem::take(&mut self.tail));
            return Some(joined.freeze());
        }
        (!self.tail.is_empty()).then(|| std::mem::take(&mut self.tail))
    }

    fn is_sent(&self) -> bool {
        self.head.is_empty() && self.tail.is_empty()
    }
}

/// Body of a unary request.
impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_sent()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.head.len() + self.tail.len()) as u64)
    }
}

/// Body of a successful unary reply: the message, then `grpc-status: 0`.
#[derive(Debug)]
pub struct Success {
    payload: Payload,
    done: bool,
}

impl Success {
    /// A reply of `payload`.
    pub fn new(payload: Payload) -> Self {
        Self { payload, done: false }
    }
}

impl Body for Success {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.payload.next() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.done {
            return Poll::Ready(None);
        }
        self.done = true;
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

/// Received pieces of one message, in order.
#[derive(Debug, Default)]
pub struct Frames {
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Frames {
    /// Adds a piece at the end.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.remaining += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Frames {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "cannot advance past the end");
        self.remaining -= count;
        while count > 0 {
            let piece = self.pieces.front_mut().expect("remaining counts the pieces");
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        assert!(len <= self.remaining, "cannot take past the end");
        if let Some(piece) = self.pieces.front_mut().filter(|piece| piece.len() >= len) {
            let bytes = piece.split_to(len);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            self.remaining -= len;
            return bytes;
        }
        let mut joined = BytesMut::with_capacity(len);
        joined.put(self.take(len));
        joined.freeze()
    }
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The connection or the stream broke.
    #[error("the stream broke: {0}")]
    Broken(#[source] hyper::Error),
    /// The body ended before the message did, or held none.
    #[error("the body ended after {have} bytes of a message")]
    Truncated {
        /// Bytes received.
        have: usize,
    },
    /// Something follows the message.
    #[error("more than one message in a unary call")]
    Trailing,
    /// Compression was not offered.
    #[error("the message is compressed, which was not offered")]
    Compressed,
    /// Announced longer than allowed.
    #[error("a message of {len_bytes} bytes is above the limit of {limit_bytes}")]
    TooLarge {
        /// As announced.
        len_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The receiver has no room for it now.
    #[error("the node holds as many request bytes as it may")]
    NoRoom,
}

/// Reads the one message of a unary body. `admit` is asked once, with the announced length, before the message is
/// read. Returns the message and the trailers, if any.
pub async fn read_message<B>(
    mut body: B,
    limit_bytes: usize,
    mut admit: impl FnMut(usize) -> bool,
) -> Result<(Frames, Option<HeaderMap>), ReadError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let mut frames = Frames::default();
    let mut length: Option<usize> = None;
    let mut trailers = None;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = match frame.map_err(ReadError::Broken)?.into_data() {
            Ok(data) => data,
            Err(other) => {
                trailers = other.into_trailers().ok();
                continue;
            }
        };
        frames.push(frame);
        if length.is_none() && frames.remaining() >= PREFIX_BYTES {
            length = Some(parse_prefix(&mut frames, limit_bytes)?);
            if !admit(length.unwrap_or_default()) {
                return Err(ReadError::NoRoom);
            }
        }
        if length.is_some_and(|length| frames.remaining() > length) {
            return Err(ReadError::Trailing);
        }
    }
    if length != Some(frames.remaining()) {
        // A call that failed has trailers and no message; its caller looks at the trailers first.
        if trailers.is_some() && frames.remaining() == 0 {
            return Ok((frames, trailers));
        }
        return Err(ReadError::Truncated { have: frames.remaining() });
    }
    Ok((frames, trailers))
}

fn parse_prefix(frames: &mut Frames, limit_bytes: usize) -> Result<usize, ReadError> {
    if frames.get_u8() != 0 {
        return Err(ReadError::Compressed);
    }
    let len_bytes = usize::try_from(frames.get_u32()).unwrap_or(usize::MAX);
    if len_bytes > limit_bytes {
        return Err(ReadError::TooLarge { len_bytes, limit_bytes });
    }
    Ok(len_bytes)
}

#[cfg(test)]
mod tests {
    use pacsvault_proto::v1;

    use super::*;

    fn sent(payload: Payload) -> Frames {
        let mut payload = payload;
        let mut frames = Frames::default();
        while let Some(piece) = payload.next() {
            frames.push(piece);
        }
        frames
    }

    #[test]
    fn a_head_and_a_tail_are_the_same_message_as_protobuf_would_make() {
        for len in [0, 1, 500, 70_000] {
            let data = Bytes::from(vec![7_u8; len]);
            let whole = v1::PutShardRequest {
                volume: Bytes::from_static(b"v"),
                header: None,
                repair: true,
                data: data.clone(),
            };
            let mut frames =
                sent(Payload::with_tail(&v1::PutShardRequest { data: Bytes::new(), ..whole.clone() }, data));
            assert_eq!(parse_prefix(&mut frames, 1 << 20).expect("a prefix"), whole.encoded_len());
            assert_eq!(v1::PutShardRequest::decode(frames).expect("decodes"), whole);
        }
    }

    #[test]
    fn a_payload_in_one_piece_is_not_copied() {
        let data = Bytes::from(vec![7_u8; 70_000]);
        let mut frames = sent(Payload::with_tail(&v1::RaftMessage::default(), data.clone()));
        parse_prefix(&mut frames, 1 << 20).expect("a prefix");
        let message = v1::RaftMessage::decode(frames).expect("decodes");
        assert_eq!(message.payload.as_ptr(), data.as_ptr());
    }

    #[test]
    fn pieces_cut_anywhere_read_as_one() {
        let whole: Vec<u8> = (0..200).collect();
        for cut in 1..199 {
            let mut frames = Frames::default();
            frames.push(Bytes::copy_from_slice(&whole[..cut]));
            frames.push(Bytes::copy_from_slice(&whole[cut..]));
            assert_eq!(frames.copy_to_bytes(100), whole[..100]);
            assert_eq!(frames.copy_to_bytes(100), whole[100..]);
            assert!(!frames.has_remaining());
        }
    }
}
