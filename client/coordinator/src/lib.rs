//! The coordinator: the write and the read path, wherever they stand: in a gateway, in the command line, or in a
//! node's `Archive` endpoint.
//!
//! A write: hash, cut into stripes, encode, place, send every shard to its volume, and when the persisted set
//! survives what the profile's contract names, propose the Seal. A read: look up, fetch `k` shards, prove them
//! against the root in the catalog, decode around what is missing.
//!
//! **Invariants.**
//! - A write is reported as stored only after `apply(Seal)` accepted it; until then it is invisible.
//! - What a receipt claims was decided by `apply`, never by this room; one fetched later claims no more than holds then.
//! - Memory is bounded: [`Options::stripe_memory_bytes`] for all transfers together.
//! - A coordinator reads its own writes: a lookup of a key sees all it wrote under that key, a listing all it wrote. What
//!   others wrote it may see as late as any replica does, unless it asks for `Linearizable`.
//! - No byte leaves a [`Download`] before the shard it came from was proven (whole shards: Merkle root; parts: CRC32C).
//!
//! Left to others: transport and trust (`rpc`), durability (`volume`), truth (`catalog`).

mod ask;
mod cluster;
mod copy;
mod fetch;
mod get;
mod lookup;
mod memory;
mod own;
mod put;
pub mod repeat;
mod shards;
mod stripe;
mod verify;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, SealedInstance, command::Attribute},
    ids::{Digest, InstanceId, LogIndex, ObjectKey, ProfileName, SiteName, VersionNumber},
    layout::Layout,
    limits::COMMANDS_PER_ENTRY_MAX,
    receipt::Receipt,
};
use pacsvault_ports::{
    env::SharedEnv,
    peer::{Class, Fault, Freshness, List, ListPage, Peer, Reply, Request, Target},
};

use cluster::Cluster;
pub use copy::{Pace, Recoded, at_once};
pub use get::Download;
pub use put::Upload;
pub use verify::{ShardCheck, ShardFinding};

/// Signs receipts with the coordinator's certificate key.
pub trait ReceiptSigner: Send + Sync {
    /// Subject of the certificate: goes into the receipt before it is signed.
    fn name(&self) -> String;
    /// Signs an encoded receipt; returns the signed receipt file. An error means the key is unusable.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, String>;
}

/// Settings of a coordinator. All have defaults that suit three sites up to 80 ms apart.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where to find the cluster at first; the layout tells the rest.
    pub seeds: Vec<Target>,
    /// Own site: its shards are read first, its nodes asked first.
    pub site: Option<SiteName>,
    /// Bytes of stripe buffers that all transfers of this coordinator may hold, half of them for reads. One upload needs
    /// up to three stripes with parity.
    pub stripe_memory_bytes: u64,
    /// Content bytes per stripe; `STRIPE_BYTES_MAX` except in tests.
    pub stripe_bytes: u64,
    /// After this long without an answer a volume is given up for this write.
    pub shard_deadline: Duration,
    /// After this long for one request of the catalog another node is asked.
    pub catalog_deadline: Duration,
    /// After this long without an answer a lookup is put to another node too, and content with this coordinator's own
    /// writes to its key.
    pub lookup_patience: Duration,
    /// After this long without an answer a seal, a deletion or a listing is put to another node too.
    pub change_patience: Duration,
    /// How long an operation keeps trying before it reports that it could not, or that its outcome is unknown.
    pub operation_deadline: Duration,
    /// Once the contract is met, how long to wait for the shards still on their way.
    pub straggler_grace: Duration,
    /// A read that has waited this long for a shard asks for another one too.
    pub hedge_after: Duration,
    /// A cached layout older than this is refreshed.
    pub layout_age_max: Duration,
    /// No client waits for what this coordinator reads: nodes do not slow their own background work for it.
    pub background: bool,
}

impl Options {
    /// Defaults, with these seeds.
    pub fn new(seeds: Vec<Target>) -> Self {
        Self {
            seeds,
            site: None,
            stripe_memory_bytes: 512 << 20,
            stripe_bytes: pacsvault_core::limits::STRIPE_BYTES_MAX,
            shard_deadline: Duration::from_secs(5),
            catalog_deadline: Duration::from_secs(5),
            lookup_patience: Duration::from_millis(300),
            change_patience: Duration::from_secs(1),
            operation_deadline: Duration::from_secs(30),
            straggler_grace: Duration::from_millis(25),
            hedge_after: Duration::from_millis(150),
            layout_age_max: Duration::from_secs(2),
            background: false,
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PutHeader {
    /// Under which key.
    pub key: ObjectKey,
    /// Media type, such as `application/dicom`.
    pub media_type: String,
    /// DICOM attributes to index.
    pub attributes: Vec<Attribute>,
    /// Profile; the cluster's default when absent.
    pub profile: Option<ProfileName>,
    /// Refuse rather than store below the profile's contract.
    pub strict: bool,
    /// Content bytes the writer announced; another size is refused.
    pub declared_size_bytes: Option<u64>,
    /// BLAKE3 the writer announced; another digest is refused.
    pub declared_digest: Option<Digest>,
}

impl PutHeader {
    /// A header for `key` with nothing else announced.
    pub fn new(key: ObjectKey, media_type: impl Into<String>) -> Self {
        Self {
            key,
            media_type: media_type.into(),
            attributes: Vec::new(),
            profile: None,
            strict: false,
            declared_size_bytes: None,
            declared_digest: None,
        }
    }
}

/// What is to be read.
#[derive(Debug, Clone)]
pub struct GetQuery {
    /// Which key.
    pub key: ObjectKey,
    /// Which version; the newest when absent.
    pub version: Option<VersionNumber>,
    /// First byte wanted.
    pub offset_bytes: u64,
    /// Bytes wanted; to the end when absent.
    pub len_bytes: Option<u64>,
    /// How fresh. Writes of this coordinator to the key are always seen.
    pub freshness: Freshness,
}

impl GetQuery {
    /// The whole newest version of `key`.
    pub fn whole(key: ObjectKey) -> Self {
        Self { key, version: None, offset_bytes: 0, len_bytes: None, freshness: Freshness::AtLeast(LogIndex(0)) }
    }
}

/// An acknowledged write.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The catalog's record.
    pub sealed: SealedInstance,
    /// What is promised.
    pub receipt: Receipt,
    /// The receipt with its signature, as a file for later.
    pub signed: Vec<u8>,
    /// False when an earlier attempt had already stored the same content.
    pub first: bool,
}

/// The write and read paths against one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    cluster: Arc<Cluster>,
    signer: Arc<dyn ReceiptSigner>,
}

impl Coordinator {
    /// A coordinator that reaches the cluster through `peer`.
    pub fn new(options: Options, env: SharedEnv, peer: Arc<dyn Peer>, signer: Arc<dyn ReceiptSigner>) -> Self {
        Self { cluster: Arc::new(Cluster::new(options, env, peer)), signer }
    }

    /// Begins a write. Nothing is visible before [`Upload::finish`] returned; dropping the upload abandons it.
    pub fn begin_put(&self, header: PutHeader) -> Upload {
        let cluster = &self.cluster;
        let random = u128::from(cluster.env.random()) << 64 | u128::from(cluster.env.random());
        let instance = InstanceId::new(cluster.env.wall(), random);
        Upload::new(self.clone(), header, instance)
    }

    /// Writes content that is in memory.
    pub async fn put(&self, header: PutHeader, content: bytes::Bytes) -> Result<Stored, Fault> {
        let mut upload = self.begin_put(header);
        upload.write(content).await?;
        upload.finish().await
    }

    /// Begins a read.
    pub async fn get(&self, query: GetQuery) -> Result<Download, Fault> {
        let sealed = self.lookup(&query.key, query.version, query.freshness).await?;
        Download::new(self.cluster.clone(), sealed, query.offset_bytes, query.len_bytes)
    }

    /// Finds one sealed instance. `NotFound` when it is not stored or deleted. Writes of this coordinator to the key are
    /// always seen; those to other keys unless no replica has them yet.
    pub async fn lookup(
        &self,
        key: &ObjectKey,
        version: Option<VersionNumber>,
        freshness: Freshness,
    ) -> Result<SealedInstance, Fault> {
        self.cluster.lookup(key, version, freshness).await
    }

    /// One page of a listing.
    pub async fn list(&self, mut list: List) -> Result<ListPage, Fault> {
        list.freshness = self.cluster.with_own(list.freshness);
        match self.cluster.ask(&Request::List(list)).await? {
            Reply::Page(page) => Ok(*page),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes one version, or all that exist now, by logged tombstones. Returns the versions now marked. `NotFound` when
    /// nothing is stored, or everything was deleted before.
    ///
    /// All versions are named one by one: a proposal that arrives late or twice, when its sender has long given up, must
    /// not delete what was stored after it.
    pub async fn delete(&self, key: ObjectKey, version: Option<VersionNumber>) -> Result<Vec<VersionNumber>, Fault> {
        let versions = match version {
            Some(version) => vec![version],
            None => {
                let newest = self.lookup(&key, None, Freshness::Linearizable).await?.version;
                (1..=newest.0).map(VersionNumber).collect()
            }
        };
        let mut deleted = Vec::new();
        for chunk in versions.chunks(COMMANDS_PER_ENTRY_MAX) {
            let commands = chunk.iter().map(|version| Command::Delete { key: key.clone(), version: Some(*version) });
            for outcome in self.propose(commands.collect()).await? {
                match outcome {
                    // What reads after this delete waits for it, on whichever node.
                    Outcome::Deleted { versions, index } => {
                        self.cluster.wrote(&key, index);
                        deleted.extend(versions);
                    }
                    Outcome::Rejected(rejection) => return Err(rejected(&rejection)),
                    _ => return Err(Fault::new(Class::Bug, "PV-BUG", "a delete answered something else")),
                }
            }
        }
        Ok(deleted)
    }

    /// Notes that somebody else, such as a node, wrote `key` for this caller, visible from `index` on: reads do not fall behind it.
    pub fn note_write(&self, key: &ObjectKey, index: LogIndex) {
        self.cluster.wrote(key, index);
    }

    /// Re-reads and proves every shard of one stored version.
    pub async fn verify(&self, sealed: &SealedInstance) -> Result<Vec<ShardCheck>, Fault> {
        verify::verify(&self.cluster, sealed).await
    }

    /// A fresh receipt of what is stored, signed by this coordinator: which failures it survives now, by the present layout.
    /// That is never more than the record says, and less while shards are damaged or away.
    pub async fn receipt(&self, sealed: &SealedInstance) -> Result<(Receipt, Vec<u8>), Fault> {
        // Not the cached one: it may be from before a node fell silent.
        let layout = self.cluster.refresh_layout().await?;
        self.sign_as(Receipt::of_now(sealed, &layout))
    }

    /// The layout as last seen.
    pub async fn layout(&self) -> Result<Arc<Layout>, Fault> {
        self.cluster.layout().await
    }

    /// Proposes commands, for administration. Repeats them while their outcome is unknown, so they must be idempotent.
    ///
    /// A rejection counts only if no earlier try can have been applied: otherwise it may be about a state that the
    /// earlier try made or will still change, and the outcome is unknown. What was accepted is definite.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Fault> {
        let ask::Answer { reply, doubtful } = self.cluster.ask_told(&Request::Propose(commands)).await?;
        let Reply::Outcomes(outcomes) = reply else { return Err(ask::in_doubt(&unexpected(&reply))) };
        let refused = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Rejected(rejection) => Some(rejected(rejection)),
            _ => None,
        });
        match refused {
            Some(fault) if doubtful => {
                // The catalog knows better than the cached layout: see it before the next try.
                let _ = self.cluster.refresh_layout().await;
                Err(ask::in_doubt(&fault))
            }
            _ => Ok(outcomes),
        }
    }

    /// Asks any node that answers; repeats elsewhere until the operation deadline.
    pub async fn ask(&self, request: &Request) -> Result<Reply, Fault> {
        self.cluster.ask(request).await
    }

    /// Nodes that did not answer lately, with the reason.
    pub fn suspects(&self) -> BTreeMap<pacsvault_core::ids::NodeId, String> {
        self.cluster.suspects()
    }

    /// The receipt of a write: what `apply` has just decided.
    fn sign(&self, sealed: &SealedInstance, layout: &Layout) -> Result<(Receipt, Vec<u8>), Fault> {
        self.sign_as(Receipt::of(sealed, layout))
    }

    fn sign_as(&self, mut receipt: Receipt) -> Result<(Receipt, Vec<u8>), Fault> {
        receipt.coordinator = self.signer.name();
        let signed = self
            .signer
            .sign(&receipt.encode())
            .map_err(|why| Fault::new(Class::Bug, "PV-SIGNATURE", format!("cannot sign the receipt: {why}")))?;
        Ok((receipt, signed))
    }
}

/// A reply of the wrong kind: the other side is broken.
fn unexpected(reply: &Reply) -> Fault {
    let kind = format!("{reply:?}");
    let kind = kind.split(['(', ' ', '{']).next().unwrap_or_default();
    Fault::new(Class::Bug, "PV-BUG", format!("a node answered with {kind}, which was not asked"))
}

/// What a refusal by `apply` means to a writer.
fn rejected(rejection: &Rejection) -> Fault {
    let (class, code) = match rejection {
        Rejection::Fenced { .. } => (Class::Retry, "PV-FENCED"),
        Rejection::TooWeak { .. } => (Class::Retry, "PV-TOO-WEAK"),
        Rejection::WindowClosed { .. } => (Class::Reject, "PV-WINDOW-CLOSED"),
        Rejection::NotFound(_) => (Class::NotFound, "PV-NOT-FOUND"),
        _ => (Class::Reject, "PV-REJECTED"),
    };
    Fault::new(class, code, rejection.to_string())
}
