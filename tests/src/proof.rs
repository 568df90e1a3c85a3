//! The proof from the volumes themselves: opens every volume of a stopped cluster, reads and verifies every shard on it,
//! and says of each stripe what the shards found would survive. The catalog is not asked: which instances must be there
//! comes from receipts.
//!
//! **Invariants.** A shard counts only if its bytes hash to its digest and its Merkle path leads to the root that the
//! stripe's other shards lead to. Survival is counted by brute force over sites and nodes, not by the code under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use pacsvault_core::{
    codec::Coder,
    ids::{ClusterId, Digest, InstanceId, NodeName, ShardIndex, StripeIndex},
    layout::profile::Code,
    merkle,
    shard::{ShardHeader, ShardId},
};
use pacsvault_harness::Cluster;
use pacsvault_volume::{FileDisk, Options, Owner, Store, file_disk::FileDiskOptions};

/// Shards listed at once.
const PAGE: usize = 1_000;

/// Where a sound shard lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Site of the node.
    pub site: String,
    /// The node.
    pub node: String,
}

/// The sound shards of one stripe.
#[derive(Debug, Clone)]
pub struct Stripe {
    /// Its code, as its shards say.
    pub code: Code,
    /// Its content bytes, as its shards say.
    pub stripe_bytes: u64,
    /// Root that its shards lead to.
    pub root: Digest,
    /// Holders of each shard.
    pub shards: BTreeMap<ShardIndex, BTreeSet<Place>>,
}

/// What all volumes hold.
#[derive(Default)]
pub struct Inventory {
    /// Sound shards by stripe.
    pub stripes: BTreeMap<(InstanceId, StripeIndex), Stripe>,
    /// Shards that are there and damaged, in words.
    pub damaged: Vec<String>,
    volumes: Vec<(Place, Store)>,
}

/// Counts of a proof.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proven {
    /// Instances looked at.
    pub instances: usize,
    /// Their stripes.
    pub stripes: usize,
    /// Sound shards of those.
    pub shards: usize,
    /// Bytes decoded from shards and compared.
    pub decoded_bytes: u64,
}

impl Inventory {
    /// Reads all volumes of `cluster`, whose nodes must be stopped.
    pub fn read(cluster: &Cluster, cluster_id: ClusterId) -> anyhow::Result<Self> {
        let mut inventory = Self::default();
        for node in &cluster.nodes {
            ensure!(cluster.pid(&node.name).is_none(), "node {} still runs", node.name);
            let home = node.config.parent().context("a configuration lies in a folder")?;
            for path in volume_paths(home)? {
                let place = Place { site: node.site.clone(), node: node.name.clone() };
                let store =
                    open(&path, cluster_id, &node.name).with_context(|| format!("volume {}", path.display()))?;
                inventory.take(&place, &store)?;
                inventory.volumes.push((place, store));
            }
        }
        Ok(inventory)
    }

    fn take(&mut self, place: &Place, store: &Store) -> anyhow::Result<()> {
        let mut after: Option<ShardId> = None;
        loop {
            let page = store.list(after, PAGE);
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(*last);
            for id in page {
                match sound(store, id) {
                    Ok((header, root)) => self.note(place, &header, root)?,
                    Err(why) => self.damaged.push(format!("{id} on {place:?}: {why}")),
                }
            }
        }
    }

    fn note(&mut self, place: &Place, header: &ShardHeader, root: Digest) -> anyhow::Result<()> {
        let id = header.id;
        let fresh = Stripe { code: header.code, stripe_bytes: header.stripe_bytes, root, shards: BTreeMap::new() };
        let stripe = self.stripes.entry((id.instance, id.stripe)).or_insert(fresh);
        ensure!(
            stripe.root == root && stripe.code == header.code,
            "shards of stripe {}/{} disagree about its root: {id} on {place:?}",
            id.instance,
            id.stripe
        );
        stripe.shards.entry(id.shard).or_default().insert(place.clone());
        Ok(())
    }

    /// Proves that every stripe of `instances` survives the loss of any one site, and of any one node, by what is on the
    /// volumes; and that content decoded from shards has the digest promised.
    pub fn prove(&self, instances: &BTreeMap<InstanceId, (u64, Digest)>) -> anyhow::Result<Proven> {
        let mut proven = Proven::default();
        let mut weak = Vec::new();
        for (instance, (size, digest)) in instances {
            let stripes: Vec<_> = self
                .stripes
                .range((*instance, StripeIndex(0))..=(*instance, StripeIndex(u32::MAX)))
                .map(|((_, index), stripe)| (*index, stripe))
                .collect();
            let found: u64 = stripes.iter().map(|(_, stripe)| stripe.stripe_bytes).sum();
            if found != *size {
                weak.push(format!("{instance}: stripes of {found} bytes on the volumes, {size} promised"));
                continue;
            }
            for (index, stripe) in &stripes {
                if let Some(why) = stripe.weakness() {
                    weak.push(format!("{instance}/{index}: {why}"));
                }
                proven.shards += stripe.shards.len();
            }
            proven.instances += 1;
            proven.stripes += stripes.len();
            let decoded = self.decode(*instance, &stripes)?;
            ensure!(Digest::of(&decoded) == *digest, "{instance}: decoded from shards it is other content");
            proven.decoded_bytes += decoded.len() as u64;
        }
        ensure!(weak.is_empty(), "{} stripes are not at full contract, first: {}", weak.len(), weak[0]);
        Ok(proven)
    }

    /// Content of an instance, decoded from the last `k` shards found of each stripe: parity before data.
    fn decode(&self, instance: InstanceId, stripes: &[(StripeIndex, &Stripe)]) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        for (index, stripe) in stripes {
            let mut shards: Vec<Option<Bytes>> = vec![None; stripe.code.total()];
            for (shard, places) in stripe.shards.iter().rev().take(stripe.code.data()) {
                let place = places.first().context("a shard without a holder")?;
                let id = ShardId { instance, stripe: *index, shard: *shard };
                let holders = self.volumes.iter().filter(|(at, store)| at == place && store.contains(id));
                let read = holders.map(|(_, store)| store.read(id, 0, u64::MAX)).find_map(Result::ok);
                shards[usize::from(shard.0)] = Some(read.context("a sound shard cannot be read")?.data);
            }
            let data = Coder::new(stripe.code).data_shards(&shards)?;
            let mut left = usize::try_from(stripe.stripe_bytes)?;
            for shard in data {
                let take = left.min(shard.len());
                content.extend_from_slice(&shard[..take]);
                left -= take;
            }
        }
        Ok(content)
    }
}

impl Stripe {
    /// Why it is below full contract, if it is: too few distinct shards left without some site or some node.
    fn weakness(&self) -> Option<String> {
        let all: BTreeSet<&Place> = self.shards.values().flatten().collect();
        let left = |gone: &dyn Fn(&Place) -> bool| {
            self.shards.values().filter(|places| places.iter().any(|place| !gone(place))).count()
        };
        let sites: BTreeSet<&str> = all.iter().map(|place| place.site.as_str()).collect();
        for site in sites {
            let remain = left(&|place| place.site == site);
            if remain < self.code.data() {
                return Some(format!("without site {site} {remain} shards remain, {} needed", self.code.data()));
            }
        }
        for node in &all {
            let remain = left(&|place| place == *node);
            if remain < self.code.data() {
                return Some(format!("without node {} {remain} shards remain, {} needed", node.node, self.code.data()));
            }
        }
        let missing = self.code.total() - self.shards.len();
        (missing > 0).then(|| format!("{missing} of {} shards are nowhere", self.code.total()))
    }
}

fn volume_paths(home: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(home)? {
        let path = entry?.path();
        if path.join(pacsvault_volume::format::IDENTITY_NAME).is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn open(path: &Path, cluster: ClusterId, node: &str) -> anyhow::Result<Store> {
    let disk = Arc::new(FileDisk::open(path, FileDiskOptions::default())?);
    let owner = Owner { cluster, node: node.parse::<NodeName>()? };
    let (store, _) = Store::open(disk, &owner, Options::new(rand::random()))?;
    Ok(store)
}

/// Reads a whole shard, hashes it, and follows its path to the root.
fn sound(store: &Store, id: ShardId) -> Result<(ShardHeader, Digest), String> {
    let read = store.read(id, 0, u64::MAX).map_err(|error| error.to_string())?;
    if Digest::of(&read.data) != read.header.digest {
        return Err("its bytes are not those of its digest".to_owned());
    }
    let header = read.header;
    let root = merkle::root_from(header.digest, id.shard, header.code.total(), &header.merkle_path);
    root.map(|root| (header, root)).ok_or_else(|| "its path leads nowhere".to_owned())
}
