//! The `Archive` service: the coordinator library behind gRPC, for thin clients.
//!
//! **Invariants.** An upload becomes visible only through `Upload::finish`, which is called only after the stream ended
//! cleanly; every other end drops the upload, which abandons it. Bytes are passed on as they come: per transfer one
//! message is held here, the rest is bounded by the coordinator and by HTTP/2 windows.

use std::{collections::VecDeque, pin::Pin};

use bytes::Bytes;
use futures::{Stream, stream};
use pacsvault_coordinator::{Coordinator, Download, GetQuery, PutHeader, ShardCheck, ShardFinding, Stored};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, LogIndex, ObjectKey, Tenant, Uid},
    layout::{
        Contract, Failures, Layout,
        survival::{Held, covers, strongest, survives},
    },
    limits::LIST_ROWS_MAX,
};
use pacsvault_ports::peer::{Class, Fault, Freshness, List};
use pacsvault_proto::v1::{self, archive_server::Archive};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    convert::{self, fixed, optional_text, raw, required},
    fault::{Invalid, Refusal, status_of},
    limits,
};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over one coordinator.
pub struct ArchiveService {
    coordinator: Coordinator,
}

impl ArchiveService {
    /// A service of `coordinator`.
    pub fn new(coordinator: Coordinator) -> Self {
        Self { coordinator }
    }

    async fn find(
        &self,
        key: Option<v1::ObjectKey>,
        version: Option<u32>,
        freshness: Option<v1::Freshness>,
    ) -> Result<SealedInstance, Refusal> {
        let (key, version) = (convert::key(key)?, convert::version(version)?);
        Ok(self.coordinator.lookup(&key, version, convert::freshness(freshness)?).await?)
    }

    async fn receive(&self, mut stream: Streaming<v1::PutRequest>) -> Result<Stored, Status> {
        let first = next_part(&mut stream).await?;
        let Some(v1::put_request::Part::Header(header)) = first else {
            return Err(Refusal::from(Invalid::new("header", "must be the first message")).status());
        };
        let header = put_header(header).map_err(|invalid| Refusal::from(invalid).status())?;
        let mut upload = self.coordinator.begin_put(header);
        while let Some(part) = next_part(&mut stream).await? {
            let v1::put_request::Part::Data(data) = part else {
                return Err(Refusal::from(Invalid::new("header", "may be sent only once")).status());
            };
            upload.write(data).await.map_err(|fault| status_of(&fault))?;
        }
        upload.finish().await.map_err(|fault| status_of(&fault))
    }
}

/// The next part; `None` when the client has ended its stream cleanly, which the body sees to (`Whole` in [`crate::dispatch`]).
async fn next_part(stream: &mut Streaming<v1::PutRequest>) -> Result<Option<v1::put_request::Part>, Status> {
    let Ok(message) = timeout(limits::UPLOAD_SILENCE, stream.message()).await else {
        let text = format!("no bytes for {} s; nothing was stored", limits::UPLOAD_SILENCE.as_secs());
        return Err(status_of(&Fault::new(Class::Retry, "PV-UPLOAD-SILENT", text)));
    };
    match message? {
        None => Ok(None),
        Some(v1::PutRequest { part: Some(part) }) => Ok(Some(part)),
        Some(v1::PutRequest { part: None }) => {
            Err(Refusal::from(Invalid::new("part", "must be a header or data")).status())
        }
    }
}

fn put_header(message: v1::PutHeader) -> Result<PutHeader, Invalid> {
    let key = convert::key(message.key)?;
    let media_type = match (message.media_type.is_empty(), &key.leaf) {
        (false, _) => message.media_type,
        (true, pacsvault_core::ids::Leaf::Instance { .. }) => "application/dicom".to_owned(),
        (true, pacsvault_core::ids::Leaf::Document(_)) => "application/octet-stream".to_owned(),
    };
    let mut header = PutHeader::new(key, media_type);
    header.attributes = convert::attributes(message.attributes);
    header.profile = optional_text("profile", &message.profile)?;
    header.strict = message.strict;
    header.declared_size_bytes = message.size_bytes;
    if !message.digest.is_empty() {
        header.declared_digest = Some(Digest(fixed("digest", &message.digest)?));
    }
    Ok(header)
}

#[tonic::async_trait]
impl Archive for ArchiveService {
    type GetStream = Replies<v1::GetReply>;
    type VerifyStream = Replies<v1::VerifyReply>;

    async fn put(&self, request: Request<Streaming<v1::PutRequest>>) -> Result<Response<v1::PutReply>, Status> {
        let stored = self.receive(request.into_inner()).await?;
        Ok(Response::new(v1::PutReply {
            receipt: Some(convert::receipt_message(&stored.receipt)),
            signed_receipt: stored.signed.into(),
            first: stored.first,
        }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let query = get_query(request.into_inner()).map_err(|invalid| Refusal::from(invalid).status())?;
        let download = self.coordinator.get(query).await.map_err(|fault| status_of(&fault))?;
        let range = download.range();
        let header = v1::GetHeader {
            stored: Some(convert::stored_message(download.sealed())),
            offset_bytes: range.start,
            len_bytes: range.end - range.start,
        };
        let sending = Sending { header: Some(header), download, pieces: VecDeque::new(), over: false };
        Ok(Response::new(Box::pin(stream::unfold(sending, Sending::step))))
    }

    async fn head(&self, request: Request<v1::HeadRequest>) -> Result<Response<v1::HeadReply>, Status> {
        let asked = request.into_inner();
        let sealed = self.find(asked.key, asked.version, asked.freshness).await.map_err(|refusal| refusal.status())?;
        Ok(Response::new(v1::HeadReply { stored: Some(convert::stored_message(&sealed)) }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListReply>, Status> {
        let asked = request.into_inner();
        let list = convert::list(v1::CatalogListRequest {
            tenant: asked.tenant,
            study: asked.study,
            series: asked.series,
            studies_only: asked.studies_only,
            page_token: asked.page_token,
            rows_max: asked.rows_max,
            freshness: asked.freshness,
        });
        let list = list.map_err(|invalid| Refusal::from(invalid).status())?;
        let page = self.coordinator.list(list).await.map_err(|fault| status_of(&fault))?;
        Ok(Response::new(convert::page_message(&page)))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        let asked = request.into_inner();
        let parsed = convert::key(asked.key).and_then(|key| Ok((key, convert::version(asked.version)?)));
        let (key, version) = parsed.map_err(|invalid| Refusal::from(invalid).status())?;
        let versions = self.coordinator.delete(key, version).await.map_err(|fault| status_of(&fault))?;
        Ok(Response::new(v1::DeleteReply { versions: versions.iter().map(|version| version.0).collect() }))
    }

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let walk = verify_walk(&self.coordinator, request.into_inner());
        let walk = walk.map_err(|invalid| Refusal::from(invalid).status())?;
        Ok(Response::new(Box::pin(stream::unfold(walk, Walk::step))))
    }

    async fn receipt(&self, request: Request<v1::ReceiptRequest>) -> Result<Response<v1::ReceiptReply>, Status> {
        let asked = request.into_inner();
        let sealed = self.find(asked.key, asked.version, asked.freshness).await.map_err(|refusal| refusal.status())?;
        let (receipt, signed) = self.coordinator.receipt(&sealed).await.map_err(|fault| status_of(&fault))?;
        let receipt = Some(convert::receipt_message(&receipt));
        Ok(Response::new(v1::ReceiptReply { receipt, signed_receipt: signed.into() }))
    }
}

fn get_query(message: v1::GetRequest) -> Result<GetQuery, Invalid> {
    Ok(GetQuery {
        key: convert::key(message.key)?,
        version: convert::version(message.version)?,
        offset_bytes: message.offset_bytes,
        len_bytes: message.len_bytes,
        freshness: convert::freshness(message.freshness)?,
    })
}

/// A download on its way out.
struct Sending {
    header: Option<v1::GetHeader>,
    download: Download,
    pieces: VecDeque<Bytes>,
    over: bool,
}

impl Sending {
    async fn step(mut self) -> Option<(Result<v1::GetReply, Status>, Self)> {
        if let Some(header) = self.header.take() {
            return Some((Ok(v1::GetReply { part: Some(v1::get_reply::Part::Header(header)) }), self));
        }
        loop {
            if let Some(mut piece) = self.pieces.pop_front() {
                if piece.len() > limits::DOWNLOAD_PIECE_BYTES {
                    let rest = piece.split_off(limits::DOWNLOAD_PIECE_BYTES);
                    self.pieces.push_front(rest);
                }
                return Some((Ok(v1::GetReply { part: Some(v1::get_reply::Part::Data(piece)) }), self));
            }
            if self.over {
                return None;
            }
            match self.download.next().await? {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => self.pieces.push_back(piece),
                Err(fault) => {
                    self.over = true;
                    return Some((Err(status_of(&fault)), self));
                }
            }
        }
    }
}

/// A verification in progress: the instances of the page at hand, and how to get the next page.
struct Walk {
    coordinator: Coordinator,
    only: Option<ObjectKey>,
    list: Option<List>,
    found: VecDeque<SealedInstance>,
}

fn verify_walk(coordinator: &Coordinator, message: v1::VerifyRequest) -> Result<Walk, Invalid> {
    let coordinator = coordinator.clone();
    if message.key.is_some() {
        let only = convert::key(message.key)?;
        let agrees = |field: &str, text: &str, own: &str| match text.is_empty() || text == own {
            true => Ok(()),
            false => Err(Invalid::new(field, "differs from the key's")),
        };
        agrees("tenant", &message.tenant, only.tenant.as_str())?;
        agrees("study", &message.study, only.study.as_str())?;
        return Ok(Walk { coordinator, only: Some(only), list: None, found: VecDeque::new() });
    }
    let tenant: Tenant = convert::text("tenant", &message.tenant)?;
    let study: Uid = required("study", optional_text("study", &message.study)?)?;
    let list = List {
        tenant,
        study: Some(study),
        series: None,
        studies_only: false,
        page_token: Vec::new(),
        rows_max: LIST_ROWS_MAX,
        freshness: Freshness::AtLeast(LogIndex(0)),
    };
    Ok(Walk { coordinator, only: None, list: Some(list), found: VecDeque::new() })
}

impl Walk {
    async fn step(mut self) -> Option<(Result<v1::VerifyReply, Status>, Self)> {
        match self.next().await {
            Ok(Some(reply)) => Some((Ok(reply), self)),
            Ok(None) => None,
            Err(fault) => {
                (self.only, self.list) = (None, None);
                self.found.clear();
                Some((Err(status_of(&fault)), self))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<v1::VerifyReply>, Fault> {
        if let Some(key) = self.only.take() {
            self.found.push_back(self.coordinator.lookup(&key, None, Freshness::AtLeast(LogIndex(0))).await?);
        }
        while self.found.is_empty() {
            let Some(list) = self.list.take() else { return Ok(None) };
            let page = self.coordinator.list(list.clone()).await?;
            self.found.extend(page.instances);
            if !page.next_page_token.is_empty() {
                self.list = Some(List { page_token: page.next_page_token, ..list });
            }
        }
        let Some(sealed) = self.found.pop_front() else { return Ok(None) };
        let layout = self.coordinator.layout().await?;
        let checks = self.coordinator.verify(&sealed).await?;
        Ok(Some(verify_message(&sealed, &checks, &layout)))
    }
}

fn verify_message(sealed: &SealedInstance, checks: &[ShardCheck], layout: &Layout) -> v1::VerifyReply {
    let claims = claims(sealed, checks, layout);
    let faults: Vec<v1::ShardReport> = checks.iter().filter_map(shard_report).collect();
    v1::VerifyReply {
        key: Some(convert::key_message(&sealed.seal.key)),
        version: sealed.version.0,
        whole: faults.is_empty(),
        readable: !claims.is_empty(),
        shards: u32::try_from(checks.len()).unwrap_or(u32::MAX),
        faults,
        survives: convert::failures_messages(&claims),
    }
}

/// What every stripe survives with the shards that were proven.
fn claims(sealed: &SealedInstance, checks: &[ShardCheck], layout: &Layout) -> Vec<Failures> {
    let k = sealed.seal.code.data();
    let stripes: Vec<Vec<Held>> = (0_u32..)
        .zip(&sealed.seal.stripes)
        .map(|(stripe, _)| {
            let proven =
                checks.iter().filter(|check| check.stripe.0 == stripe && check.finding == ShardFinding::Proven);
            proven.map(|check| Held { shard: check.shard, volume: check.volume }).collect()
        })
        .collect();
    let mut claims: Vec<Failures> = stripes.iter().flat_map(|held| strongest(held, k, layout)).collect();
    claims.sort_unstable_by(|a, b| b.cmp(a));
    claims.dedup();
    claims.retain(|claim| stripes.iter().all(|held| survives(held, k, &Contract::one(*claim), layout).is_ok()));
    // A claim of one stripe may be implied by a weaker stripe's other claim.
    let implied =
        |claim: Failures| claims.iter().any(|other| *other != claim && covers(&[*other], &Contract::one(claim)));
    claims.iter().copied().filter(|claim| !implied(*claim)).collect()
}

fn shard_report(check: &ShardCheck) -> Option<v1::ShardReport> {
    let (health, detail) = match &check.finding {
        ShardFinding::Proven => return None,
        ShardFinding::Missing => (v1::ShardHealth::Missing, "was not persisted when the write was sealed".to_owned()),
        ShardFinding::Away(why) => (v1::ShardHealth::Unreachable, why.clone()),
        ShardFinding::Damaged(why) => (v1::ShardHealth::Damaged, why.clone()),
    };
    Some(v1::ShardReport {
        stripe: check.stripe.0,
        shard: check.shard.0.into(),
        volume: raw(&check.volume.0),
        health: health.into(),
        detail,
    })
}
