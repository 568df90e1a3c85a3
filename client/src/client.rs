//! The connection to a cluster: credentials, transport, and the coordinator that stands on them.
//!
//! **Invariants.** The mode follows from the certificate: who may not sign receipts never coordinates a write. Nothing is sent
//! before the first request; a [`Client`] that exists has usable credentials, not necessarily a reachable cluster.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, TryStreamExt, stream};
use pacsvault_coordinator::{Coordinator, Options, ReceiptSigner, ShardCheck, repeat::worth_repeating};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{LogIndex, ObjectKey, Uid, VersionNumber},
    layout::{Layout, NodeState},
    limits::LIST_ROWS_MAX,
    receipt::Receipt,
};
use pacsvault_ports::{
    env::{MonoTime, SharedEnv},
    peer::{Class, Fault, Freshness, List, ListPage, Peer, Target},
};
use pacsvault_rpc::{CertificateSigner, TonicPeer};
use pacsvault_runtime::{TokioEnv, wall_now};
use pacsvault_security::{Credentials, Signer, credentials::Files};

use crate::{config::Config, thin};

/// Why there is no client. Correct files or configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Certificates or keys that do not fit.
    #[error(transparent)]
    Trust(#[from] pacsvault_security::Error),
    /// The configured source is no address of this machine.
    #[error("source: {0}")]
    Source(String),
}

/// Lookups under way at once when the versions of an object are listed.
const LOOKUPS_AT_ONCE: usize = 16;

/// How content travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// This process coordinates: shards go straight to the volumes.
    Direct,
    /// A node coordinates: content goes to its `Archive` endpoint.
    ViaNode,
}

/// A cluster, as seen by one process. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    config: Arc<Config>,
    credentials: Arc<Credentials>,
    env: SharedEnv,
    peer: Arc<TonicPeer>,
    coordinator: Coordinator,
    mode: Mode,
    /// When each host last failed us, by address.
    failed_hosts: Arc<Mutex<BTreeMap<String, MonoTime>>>,
}

impl Client {
    /// Loads the credentials and makes ready. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error`]: the credentials are unusable. That no node answers shows with the first request.
    pub fn connect(config: Config) -> Result<Self, Error> {
        let files = Files { ca: &config.ca, certificate: &config.cert, key: &config.key };
        let credentials = Arc::new(Credentials::load(files, wall_now())?);
        config.source.map_or(Ok(()), pacsvault_rpc::check_source).map_err(Error::Source)?;
        let role = credentials.identity().role;
        let mode = if role.may_sign_receipts() && !config.via_node { Mode::Direct } else { Mode::ViaNode };
        let signer: Arc<dyn ReceiptSigner> = match mode {
            Mode::Direct => Arc::new(CertificateSigner(Signer::new(&credentials)?)),
            Mode::ViaNode => Arc::new(NoSigner(credentials.identity().name.clone())),
        };
        let env: SharedEnv = TokioEnv::current();
        let peer = Arc::new(TonicPeer::dialling_from(config.source, credentials.clone()));
        let mut options = Options::new(seeds(&config));
        options.site = config.site.clone();
        let coordinator = Coordinator::new(options, env.clone(), peer.clone(), signer);
        Ok(Self { config: Arc::new(config), credentials, env, peer, coordinator, mode, failed_hosts: Arc::default() })
    }

    /// How content travels.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who we are, and the CA that we trust.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Clock and randomness.
    pub fn env(&self) -> &SharedEnv {
        &self.env
    }

    /// The transport, for requests to one particular node.
    pub fn peer(&self) -> &Arc<TonicPeer> {
        &self.peer
    }

    /// The same transport as the port.
    pub fn shared_peer(&self) -> Arc<dyn Peer> {
        self.peer.clone()
    }

    /// The coordinator: listings, lookups, deletes and administration in every mode; content in [`Mode::Direct`] only.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The configured endpoints.
    pub fn seeds(&self) -> Vec<Target> {
        seeds(&self.config)
    }

    /// The node that hosts us now: the best one of [`Client::hosts`] that has not failed, else the one that failed longest ago.
    pub(crate) async fn host(&self) -> Result<Target, Fault> {
        let hosts = self.hosts().await;
        let failed = self.failed_hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let best = hosts.into_iter().min_by_key(|host| failed.get(&host.address).copied());
        best.ok_or_else(|| {
            Fault::new(Class::Retry, "PV-NO-NODE", "no node of the cluster is known: name at least one endpoint")
        })
    }

    /// All of [`Client::hosts`], those that failed lately last.
    pub(crate) async fn hosts_by_luck(&self) -> Vec<Target> {
        let mut hosts = self.hosts().await;
        let failed = self.failed_hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.sort_by_key(|host| failed.get(&host.address).copied());
        hosts
    }

    /// Notes that a host did not serve, so that another one is next. What would fail anywhere is not the host's fault.
    pub(crate) fn note_host(&self, host: &Target, fault: &Fault) {
        if matches!(fault.code, "PV-TOO-WEAK" | "PV-NO-VOLUMES" | "PV-FENCED") || !worth_repeating(fault.class) {
            return;
        }
        tracing::info!(address = host.address, code = fault.code, reason = %fault, "asking another node");
        self.failed_hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(host.address.clone(), self.env.now());
    }

    /// Nodes that may host a thin client, best first: own site, then the others, then the endpoints.
    pub(crate) async fn hosts(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        if let Ok(layout) = self.coordinator.layout().await {
            let suspects = self.coordinator.suspects();
            let mut nodes: Vec<_> = layout.nodes.values().filter(|node| node.state == NodeState::Up).collect();
            let site = self.config.site.as_ref();
            nodes.sort_by_key(|node| (suspects.contains_key(&node.id), site != Some(&node.site), node.id));
            targets.extend(nodes.iter().map(|node| target_of(node)));
        }
        let known: Vec<String> = targets.iter().map(|target| target.address.clone()).collect();
        targets.extend(self.seeds().into_iter().filter(|seed| !known.contains(&seed.address)));
        targets
    }

    /// One stored version; the newest when none is named. When the version is not there but others are, the fault says so.
    pub async fn lookup(&self, key: &ObjectKey, version: Option<VersionNumber>) -> Result<SealedInstance, Fault> {
        let sought = self.coordinator.lookup(key, version, Freshness::AtLeast(LogIndex(0))).await;
        match (sought, version) {
            (Err(fault), Some(version)) if fault.class == Class::NotFound => {
                let newest = self.coordinator.lookup(key, None, Freshness::AtLeast(LogIndex(0))).await;
                Err(newest.map_or(fault, |newest| missing_version(key, version, newest.version)))
            }
            (sought, _) => sought,
        }
    }

    /// All versions that are still stored under the key of `newest`, oldest first, `newest` last.
    pub async fn versions_of(&self, newest: &SealedInstance) -> Result<Vec<SealedInstance>, Fault> {
        let (key, freshness) = (&newest.seal.key, Freshness::AtLeast(newest.index));
        // Version numbers count from 1 and are never reused; those of deleted versions are holes.
        let older = stream::iter(1..newest.version.0)
            .map(|number| self.coordinator.lookup(key, Some(VersionNumber(number)), freshness))
            .buffered(LOOKUPS_AT_ONCE);
        let found = older.filter_map(|found| async move {
            match found {
                Err(fault) if fault.class == Class::NotFound => None,
                other => Some(other),
            }
        });
        let mut versions: Vec<SealedInstance> = found.try_collect().await?;
        versions.push(newest.clone());
        Ok(versions)
    }

    /// One page of studies, or of what is stored in a study or series. Linearizable: what was acknowledged to anyone is in it.
    pub async fn list(&self, study: Option<Uid>, series: Option<Uid>, page_token: Vec<u8>) -> Result<ListPage, Fault> {
        let list = List {
            tenant: self.config.tenant.clone(),
            studies_only: study.is_none(),
            study,
            series,
            page_token,
            rows_max: LIST_ROWS_MAX,
            freshness: Freshness::Linearizable,
        };
        self.coordinator.list(list).await
    }

    /// Re-reads and proves every shard of one stored version, which is sent for that; see also [`Client::prove`].
    pub async fn verify(&self, sealed: &SealedInstance) -> Result<Vec<ShardCheck>, Fault> {
        match self.mode {
            Mode::Direct => self.coordinator.verify(sealed).await,
            Mode::ViaNode => thin::verify(self, sealed).await,
        }
    }

    /// A fresh signed receipt of what is stored.
    pub async fn receipt(&self, sealed: &SealedInstance) -> Result<(Receipt, Vec<u8>), Fault> {
        match self.mode {
            Mode::Direct => self.coordinator.receipt(sealed).await,
            Mode::ViaNode => thin::receipt(self, sealed).await,
        }
    }

    /// The layout as last seen.
    pub async fn layout(&self) -> Result<Arc<Layout>, Fault> {
        self.coordinator.layout().await
    }
}

fn missing_version(key: &ObjectKey, version: VersionNumber, newest: VersionNumber) -> Fault {
    let text = format!(
        "version {version} of {key} is not stored, the newest is {newest}; `pacsvault head KEY --versions` lists all"
    );
    Fault::new(Class::NotFound, "PV-NOT-FOUND", text)
}

/// How to reach a node of the layout.
pub fn target_of(node: &pacsvault_core::layout::Node) -> Target {
    Target { address: node.address.clone(), name: Some(node.name.clone()) }
}

fn seeds(config: &Config) -> Vec<Target> {
    config.endpoints.iter().map(|address| Target { address: address.clone(), name: None }).collect()
}

/// Stands where no write is coordinated.
struct NoSigner(String);

impl ReceiptSigner for NoSigner {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn sign(&self, _payload: &[u8]) -> Result<Vec<u8>, String> {
        Err("this certificate may not sign receipts; content must go through a node".to_owned())
    }
}
