//! Content by way of a node's `Archive` endpoint, for certificates that may not coordinate writes.
//!
//! **Invariants.** A host that failed is not asked first again until the others were. What a node acknowledges counts only
//! with a receipt that proves itself against the cluster's CA and speaks of the very content that was sent. From then on this
//! client sees that write under its key, or what came after it, whichever node it asks.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use pacsvault_coordinator::{GetQuery, PutHeader, ShardCheck, ShardFinding, repeat::worth_repeating};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, ObjectKey, ShardIndex, StripeIndex, VolumeId},
    layout::Layout,
    receipt::Receipt,
};
use pacsvault_ports::peer::{Class, Fault, Freshness, Target};
use pacsvault_proto::v1::{self, archive_client::ArchiveClient};
use pacsvault_rpc::{
    convert::{freshness_message, key_message},
    fault::fault_of,
    thin::ThinDownload,
};
use tokio::sync::mpsc;

use crate::{Client, receipt as proof, write::Acked};

/// How often progress is told.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// How long a node may take to begin its answer to a read.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Content coming from a node.
pub type Pieces = ThinDownload;

type ReadPieces = mpsc::Receiver<Result<Bytes, Fault>>;

/// One attempt at a write, through the present host.
pub async fn put(
    client: &Client,
    header: PutHeader,
    pieces: ReadPieces,
    watch: &(dyn Fn(u64) + Sync),
) -> Result<Acked, Fault> {
    let (key, size) = (header.key.clone(), header.declared_size_bytes);
    let told = Arc::new(Told::default());
    let host = client.host().await?;
    let archive = client.peer().archive(&host)?;
    let upload = archive.put(header, content(pieces, told.clone()));
    tokio::pin!(upload);
    let stored = loop {
        tokio::select! {
            result = &mut upload => break result,
            () = tokio::time::sleep(WATCH_EVERY) => watch(told.sent.load(Ordering::Relaxed)),
        }
    };
    let broken = told.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (broken, &stored) {
        // The stream ended early of its declared size, so the node stored nothing: this is the reason.
        (Some(fault), Err(_)) => return Err(fault),
        // All of the declared size had been sent when reading failed, such as nothing of an empty file.
        (Some(fault), Ok(_)) => return Err(Fault { class: Class::Unknown, ..fault }),
        (None, _) => {}
    }
    let stored = stored.inspect_err(|fault| client.note_host(&host, fault))?;
    watch(told.sent.load(Ordering::Relaxed));
    let digest = Digest(*told.hasher.lock().unwrap_or_else(PoisonError::into_inner).finalize().as_bytes());
    let receipt = proven(client, &stored.signed, &host)?;
    let ours = receipt.key == key && receipt.digest == digest && size.is_none_or(|size| receipt.size_bytes == size);
    if !ours {
        let text = format!("{} acknowledged {} with another content or key than was sent", host.address, receipt.key);
        return Err(Fault::new(Class::Unknown, "PV-WRONG-RECEIPT", text));
    }
    client.coordinator().note_write(&key, receipt.index);
    Ok(Acked { receipt, signed: stored.signed.to_vec(), first: stored.first, attempts: 1 })
}

/// What became of the content on its way out.
#[derive(Default)]
struct Told {
    sent: AtomicU64,
    hasher: Mutex<blake3::Hasher>,
    broken: Mutex<Option<Fault>>,
}

fn content(pieces: ReadPieces, told: Arc<Told>) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold((pieces, told), |(mut pieces, told)| async move {
        match pieces.recv().await? {
            Ok(piece) => {
                told.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                told.hasher.lock().unwrap_or_else(PoisonError::into_inner).update(&piece);
                Some((piece, (pieces, told)))
            }
            Err(fault) => {
                *told.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
                None
            }
        }
    })
}

fn proven(client: &Client, signed: &[u8], host: &Target) -> Result<Receipt, Fault> {
    let proven = proof::prove(signed, client.credentials().ca_pem());
    let (receipt, _) = proven.map_err(|error| {
        let text = format!("{} gave a receipt that proves nothing: {error}", host.address);
        Fault::new(Class::Unknown, "PV-WRONG-RECEIPT", text)
    })?;
    Ok(receipt)
}

/// Begins to read `len` bytes from `offset`.
pub async fn get(client: &Client, sealed: &SealedInstance, offset: u64, len: u64) -> Result<Pieces, Fault> {
    let query = GetQuery {
        key: sealed.seal.key.clone(),
        version: Some(sealed.version),
        offset_bytes: offset,
        len_bytes: Some(len),
        freshness: Freshness::AtLeast(sealed.index),
    };
    let ask = |host: Target| {
        let query = query.clone();
        async move { client.peer().archive(&host)?.get(query).await }
    };
    let pieces = anywhere(client, ask).await?;
    if pieces.len_bytes == len && pieces.version == sealed.version {
        return Ok(pieces);
    }
    let text = format!("a node answered {len} bytes of {} with something else", sealed.seal.key);
    Err(Fault::new(Class::Bug, "PV-BUG", text))
}

/// Lets a node re-read every shard of the newest version.
pub async fn verify(client: &Client, sealed: &SealedInstance) -> Result<Vec<ShardCheck>, Fault> {
    let layout = client.layout().await?;
    let key = &sealed.seal.key;
    let ask = |host: Target| {
        let request = v1::VerifyRequest {
            tenant: key.tenant.to_string(),
            study: key.study.to_string(),
            key: Some(key_message(key)),
        };
        async move {
            let (channel, origin) = client.peer().channel(&host)?;
            let reply = ArchiveClient::with_origin(channel, origin).verify(request).await;
            let mut replies = reply.map_err(|status| fault_of(&status, true))?.into_inner();
            let first = replies.message().await.map_err(|status| fault_of(&status, true))?;
            first.ok_or_else(|| Fault::new(Class::Retry, "PV-SHORT-READ", "the node ended the verification early"))
        }
    };
    let reply = anywhere(client, ask).await?;
    if reply.version != sealed.version.0 {
        let text = format!("{key} got version {} meanwhile; verify again", reply.version);
        return Err(Fault::new(Class::Retry, "PV-CHANGED", text));
    }
    Ok(checks(sealed, &layout, &reply.faults))
}

/// The node names what is not good; all other shards were proven.
fn checks(sealed: &SealedInstance, layout: &Layout, faults: &[v1::ShardReport]) -> Vec<ShardCheck> {
    let finding = |stripe: u32, shard: u8| {
        let fault = faults.iter().find(|fault| fault.stripe == stripe && fault.shard == u32::from(shard));
        let Some(fault) = fault else { return ShardFinding::Proven };
        match fault.health() {
            v1::ShardHealth::Good => ShardFinding::Proven,
            v1::ShardHealth::Missing => ShardFinding::Missing,
            v1::ShardHealth::Unreachable => ShardFinding::Away(fault.detail.clone()),
            v1::ShardHealth::Damaged | v1::ShardHealth::Unspecified => ShardFinding::Damaged(fault.detail.clone()),
        }
    };
    let check = |stripe: u32, shard: u8, volume: VolumeId| {
        let node = layout.node_of(volume);
        ShardCheck {
            stripe: StripeIndex(stripe),
            shard: ShardIndex(shard),
            volume,
            node: node.map(|node| node.id),
            site: node.map(|node| node.site.clone()),
            finding: finding(stripe, shard),
        }
    };
    let stripes = sealed.seal.stripes.iter().zip(0_u32..);
    stripes
        .flat_map(|(it, stripe)| it.placement.iter().zip(0_u8..).map(move |(volume, shard)| (stripe, shard, *volume)))
        .map(|(stripe, shard, volume)| check(stripe, shard, volume))
        .collect()
}

/// A receipt signed by a node, verified.
pub async fn receipt(client: &Client, sealed: &SealedInstance) -> Result<(Receipt, Vec<u8>), Fault> {
    let key: &ObjectKey = &sealed.seal.key;
    let ask = |host: Target| {
        let request = v1::ReceiptRequest {
            key: Some(key_message(key)),
            version: Some(sealed.version.0),
            freshness: freshness_message(Freshness::AtLeast(sealed.index)),
        };
        async move {
            let (channel, origin) = client.peer().channel(&host)?;
            let reply = ArchiveClient::with_origin(channel, origin).receipt(request).await;
            let signed = reply.map_err(|status| fault_of(&status, true))?.into_inner().signed_receipt.to_vec();
            Ok((proven(client, &signed, &host)?, signed))
        }
    };
    anywhere(client, ask).await
}

/// Asks one host after the other until one answers; for requests that change nothing.
async fn anywhere<T, F>(client: &Client, ask: impl Fn(Target) -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let tries = client.hosts().await.len().max(1);
    let mut last = None;
    for _ in 0..tries {
        let host = client.host().await?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, ask(host.clone())).await.unwrap_or_else(|_| {
            let text = format!("{} did not answer within {} s", host.address, ANSWER_WITHIN.as_secs());
            Err(Fault::new(Class::Retry, "PV-DEADLINE", text))
        });
        match answer {
            Err(fault) if worth_repeating(fault.class) => {
                client.note_host(&host, &fault);
                last = Some(fault);
            }
            other => return other,
        }
    }
    let none = || Fault::new(Class::Retry, "PV-NO-NODE", "no node of the cluster is known: name at least one endpoint");
    Err(last.map_or_else(none, |fault| Fault { class: Class::Retry, ..fault }))
}
