//! A thin client of a node's `Archive`: for those who leave coding and placing to the node.
//!
//! **Invariants.** An upload that is dropped before its content ended is reset and stores nothing. Faults are
//! those of [`crate::TonicPeer`]: `Retry` only if nothing was done.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use pacsvault_coordinator::{GetQuery, PutHeader};
use pacsvault_core::{
    ids::{Digest, VersionNumber},
    limits::MESSAGE_BYTES_MAX,
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault, Target},
};
use pacsvault_proto::v1::{self, archive_client::ArchiveClient};
use pacsvault_security::tls::SERVER_NAME;
use tonic::{Status, Streaming};

use crate::{
    client::TonicPeer,
    convert::{self, fixed},
    fault::{fault_of, status_of},
    link::{Link, Sent},
    methods::Lane,
};

/// One of our links in the form that generated clients want.
#[derive(Clone)]
pub struct Channel {
    link: Arc<Link>,
}

impl tower::Service<Request<tonic::body::Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Incoming>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let link = self.link.clone();
        Box::pin(async move { link.send(request.map(Sent::Stream)).await.map_err(|fault| status_of(&fault)) })
    }
}

impl TonicPeer {
    /// A channel for any generated client, with the origin that it needs.
    ///
    /// # Errors
    /// `PV-TRUST` when the credentials do not serve.
    pub fn channel(&self, target: &Target) -> Result<(Channel, Uri), Fault> {
        let origin = format!("https://{SERVER_NAME}");
        let origin = origin.parse().map_err(|error| Fault::new(Class::Bug, "PV-BUG", format!("{error}")))?;
        Ok((Channel { link: self.link(target, Lane::Bulk)? }, origin))
    }

    /// A thin client of the `Archive` of `target`.
    ///
    /// # Errors
    /// `PV-TRUST` when the credentials do not serve.
    pub fn archive(&self, target: &Target) -> Result<ThinArchive, Fault> {
        let (channel, origin) = self.channel(target)?;
        let client = ArchiveClient::with_origin(channel, origin).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(ThinArchive { client })
    }
}

/// A thin client. Cheap to clone.
#[derive(Clone)]
pub struct ThinArchive {
    client: ArchiveClient<Channel>,
}

/// An acknowledged upload.
#[derive(Debug, Clone)]
pub struct ThinStored {
    /// Version given to the content.
    pub version: VersionNumber,
    /// BLAKE3 of the content as the node computed it.
    pub digest: Digest,
    /// The write survives less than its profile's contract for now.
    pub degraded: bool,
    /// The signed receipt.
    pub signed: Bytes,
    /// False when the same content was already stored under the key.
    pub first: bool,
}

/// A download in progress.
pub struct ThinDownload {
    /// Version that is read.
    pub version: VersionNumber,
    /// Content bytes of that version.
    pub size_bytes: u64,
    /// BLAKE3 of its whole content.
    pub digest: Digest,
    /// Bytes that will come.
    pub len_bytes: u64,
    stream: Streaming<v1::GetReply>,
}

impl ThinArchive {
    /// Stores `content`. Dropping the future cancels the upload. Declare the size or the digest in the header, so that
    /// a content stream that ends early is refused: where whoever fills it is dropped in the same moment as the future, its end
    /// may be sent before the reset.
    ///
    /// # Errors
    /// What the node says; `Unknown` when the connection broke meanwhile.
    pub async fn put(
        &self,
        header: PutHeader,
        content: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<ThinStored, Fault> {
        let header = v1::PutRequest { part: Some(v1::put_request::Part::Header(header_message(header))) };
        let data = content.map(|data| v1::PutRequest { part: Some(v1::put_request::Part::Data(data)) });
        let parts = stream::once(std::future::ready(header)).chain(data);
        let reply = self.client.clone().put(parts).await.map_err(|status| fault_of(&status, true))?.into_inner();
        let receipt = reply.receipt.unwrap_or_default();
        Ok(ThinStored {
            version: VersionNumber(receipt.version),
            // It is stored all the same.
            digest: Digest(fixed("receipt.digest", &receipt.digest).map_err(|invalid| {
                Fault::new(Class::Unknown, "PV-WRONG-RECEIPT", format!("the node's receipt is malformed: {invalid}"))
            })?),
            degraded: receipt.degraded,
            signed: reply.signed_receipt,
            first: reply.first,
        })
    }

    /// Begins a download.
    ///
    /// # Errors
    /// What the node says.
    pub async fn get(&self, query: GetQuery) -> Result<ThinDownload, Fault> {
        let request = v1::GetRequest {
            key: Some(convert::key_message(&query.key)),
            version: query.version.map(|version| version.0),
            offset_bytes: query.offset_bytes,
            len_bytes: query.len_bytes,
            freshness: convert::freshness_message(query.freshness),
        };
        let reply = self.client.clone().get(request).await.map_err(|status| fault_of(&status, true))?;
        let mut stream = reply.into_inner();
        let first = stream.message().await.map_err(|status| fault_of(&status, true))?;
        let Some(v1::GetReply { part: Some(v1::get_reply::Part::Header(header)) }) = first else {
            return Err(Fault::new(Class::Bug, "PV-BUG", "a download did not begin with its header"));
        };
        let stored = header.stored.unwrap_or_default();
        Ok(ThinDownload {
            version: VersionNumber(stored.version),
            size_bytes: stored.size_bytes,
            digest: Digest(fixed("stored.digest", &stored.digest)?),
            len_bytes: header.len_bytes,
            stream,
        })
    }
}

impl ThinDownload {
    /// The next bytes in order; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        match self.stream.message().await {
            Ok(Some(v1::GetReply { part: Some(v1::get_reply::Part::Data(data)) })) => Some(Ok(data)),
            Ok(None) => None,
            Ok(Some(_)) => Some(Err(Fault::new(Class::Bug, "PV-BUG", "a download has something else than data"))),
            Err(status) => Some(Err(fault_of(&status, true))),
        }
    }
}

fn header_message(header: PutHeader) -> v1::PutHeader {
    let attribute = |one: pacsvault_core::catalog::command::Attribute| v1::Attribute { tag: one.tag, value: one.value };
    v1::PutHeader {
        key: Some(convert::key_message(&header.key)),
        media_type: header.media_type,
        profile: header.profile.map(|name| name.to_string()).unwrap_or_default(),
        strict: header.strict,
        size_bytes: header.declared_size_bytes,
        digest: header.declared_digest.map(|digest| convert::raw(&digest.0)).unwrap_or_default(),
        attributes: header.attributes.into_iter().map(attribute).collect(),
    }
}
