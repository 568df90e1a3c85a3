//! A cluster under load with a ledger, and what ends every scenario: everything settled, every promise checked, and, where
//! the cluster healed, full contract proven from the volumes themselves.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use pacsvault_client::Client;
use pacsvault_core::{
    catalog::{Command, Outcome},
    health::{
        Loss,
        report::{Health, WhatIf},
    },
    ids::{NodeId, VolumeId},
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::peer::{Reply, Request};
use pacsvault_security::Authority;

use crate::{
    Bed, Ledger, Load, Shape, long,
    proof::{Inventory, Proven},
    seed,
};

/// The longest a single write may take until it is told how it ended, with all repetitions.
pub const WRITE_LIMIT: Duration = Duration::from_secs(120);
/// Healing in seconds instead of minutes. Scrub and rebalance have their say, too.
pub const HASTE: &str = "[healing]\nheartbeat = \"300ms\"\nsuspect_after = \"2s\"\nurgent_after = \"3s\"\ndown_after = \"4s\"\n\
                         repair_after = \"1s\"\nsteady_for = \"1s\"\nreconcile_every = \"5s\"\nscrub_within = \"60s\"\nrebalance_percent = 1\n";

/// Seconds of load, more when the run is long.
pub fn moments(seconds: u64) -> Duration {
    Duration::from_secs(if long() { seconds * 10 } else { seconds })
}

/// A cluster under load.
pub struct Scene {
    /// The cluster.
    pub bed: Bed,
    /// What it promised.
    pub ledger: Arc<Ledger>,
    /// A coordinator, and a client through nodes.
    pub clients: Vec<Client>,
    /// Running until [`Scene::quiet`].
    pub load: Option<Load>,
}

impl Scene {
    /// A cluster of `sites` × `nodes` under load; `configuration` is appended to each node's.
    pub fn set(tmp: &str, sites: usize, nodes: usize, configuration: &str, shape: Shape) -> anyhow::Result<Self> {
        let seed = seed();
        let mut bed = Bed::prepared(tmp, sites, nodes)?;
        bed.cluster.configure(configuration)?;
        if !configuration.is_empty() {
            // On disks of 64 GiB nothing that is written here would make a difference in fullness.
            bed.cluster.shrink("512MiB")?;
        }
        bed.cluster.start(|_| true)?;
        bed.form()?;
        let clients = vec![bed.client(false)?, bed.client(true)?];
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&bed.runtime, &clients, &ledger, shape, seed, 0);
        load.until_acked(20, Duration::from_secs(30), "in peace")?;
        load.run_for(moments(2));
        Ok(Self { bed, ledger, clients, load: Some(load) })
    }

    /// The running load.
    ///
    /// # Panics
    /// After [`Scene::quiet`]: a broken test.
    pub fn load(&self) -> &Load {
        self.load.as_ref().expect("the load runs until the end")
    }

    /// Ends the load; nothing is asked of the cluster any more.
    pub fn quiet(&mut self) -> anyhow::Result<()> {
        match self.load.take() {
            Some(load) => load.stop(&self.bed.runtime, WRITE_LIMIT),
            None => Ok(()),
        }
    }

    /// Checks every promise against the running cluster.
    pub fn check(&self) -> anyhow::Result<()> {
        self.bed.runtime.block_on(self.ledger.check(&self.clients, &self.bed.ca_pem()?)).map(drop)
    }

    /// Ends the load, waits until the cluster is whole and of one mind, and checks every promise.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        self.quiet()?;
        self.bed.until_whole(Duration::from_secs(60))?;
        self.check()?;
        let index = self.bed.until_equal(Duration::from_secs(30))?;
        eprintln!("all replicas are equal at entry {index}");
        Ok(())
    }

    /// Plays `disaster`; shows the nodes' logs when it or what must hold afterwards fails.
    pub fn play(
        mut self,
        disaster: impl FnOnce(&mut Self) -> anyhow::Result<()>,
        afterwards: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let result = disaster(&mut self).and_then(|()| afterwards(&mut self));
        if result.is_err() {
            self.bed.show_logs();
        }
        result
    }

    /// The leader's view of the cluster's health, from whichever node answers.
    pub fn health(&self) -> anyhow::Result<Health> {
        let mut last = None;
        for node in &self.bed.cluster.nodes {
            match self.bed.ask(&node.name, Request::Health, Duration::from_secs(3)) {
                Ok(Reply::Health(health)) => return Ok(*health),
                Ok(other) => anyhow::bail!("health answered {other:?}"),
                Err(fault) => last = Some(fault),
            }
        }
        Err(last.context("no node")?.into())
    }

    /// What would be if this were lost, from whichever node answers.
    pub fn what_if(&self, loss: Loss) -> anyhow::Result<WhatIf> {
        let mut found = None;
        self.bed.until(Duration::from_secs(20), "an answer to what-if", || {
            for node in &self.bed.cluster.nodes {
                let asked = self.bed.ask(&node.name, Request::WhatIf(loss.clone()), Duration::from_secs(5));
                if let Ok(Reply::WhatIf(answer)) = asked {
                    found = Some(*answer);
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        found.context("no answer")
    }

    /// Waits until everything stored keeps the contract of its profile and nothing is left to repair, move or empty; says
    /// how long that took.
    pub fn until_healed(&self, limit: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut quiet = 0;
        self.bed.until(limit, "full contract", || {
            let health = self.health()?;
            let left: u64 = health.waiting.values().map(|sums| sums.stripes).sum();
            let whole = health.below_contract.stripes == 0 && left == 0 && health.in_progress == 0;
            quiet = if whole { quiet + 1 } else { 0 };
            anyhow::ensure!(health.aside_total == 0, "set aside: {:?}", health.aside);
            anyhow::ensure!(
                whole,
                "{} stripes below contract, {left} waiting, {} in progress, by tier {:?}, held back {:?}",
                health.below_contract.stripes,
                health.in_progress,
                health.by_tier,
                health.held_back
            );
            // A survey of the moment before may not know of what has just been found: look more than once.
            Ok(quiet >= 40)
        })?;
        eprintln!("healed after {:.1} s", began.elapsed().as_secs_f64());
        Ok(began.elapsed())
    }

    /// Checks every promise, stops all nodes, and proves full contract from the sound shards on the volumes.
    pub fn prove(&mut self) -> anyhow::Result<Proven> {
        self.quiet()?;
        self.check()?;
        let ca = self.bed.ca_pem()?;
        let promised = self.ledger.promised(&ca)?;
        let cluster = Authority::open(&self.bed.pki())?.cluster();
        self.bed.cluster.stop(Duration::from_secs(30), |_| true)?;
        let inventory = Inventory::read(&self.bed.cluster, cluster)?;
        let proven = inventory.prove(&promised)?;
        // Damage may be left in what nobody needs: deleted content and former copies that are not swept yet.
        eprintln!("{} damaged shards are left besides", inventory.damaged.len());
        anyhow::ensure!(proven.instances > 0, "nothing was proven");
        eprintln!("proven from the volumes: {proven:?}");
        Ok(proven)
    }

    /// Id of a node by name.
    pub fn node_id(&self, name: &str) -> anyhow::Result<NodeId> {
        let layout = self.bed.layout()?;
        let mut named = layout.nodes.values().filter(|node| node.name.as_str() == name);
        let node = named.find(|node| node.state != NodeState::Removed).context("no such node in the layout")?;
        Ok(node.id)
    }

    /// Volumes of a node that are not out of service.
    pub fn volumes_of(&self, node: NodeId) -> anyhow::Result<Vec<VolumeId>> {
        let layout = self.bed.layout()?;
        let volumes = layout.volumes.values().filter(|volume| volume.node == node);
        Ok(volumes.filter(|volume| volume.state != VolumeState::Fenced).map(|volume| volume.id).collect())
    }

    /// Proposes one command with the operator's certificate, wherever it is taken; an error tells why it was refused.
    pub fn order(&self, command: &Command) -> anyhow::Result<()> {
        let mut answer = Err(anyhow::anyhow!("no node took {command:?}"));
        self.bed.until(Duration::from_secs(20), "an order to be taken", || {
            for node in &self.bed.cluster.nodes {
                let request = Request::Propose(vec![command.clone()]);
                if let Ok(Reply::Outcomes(outcomes)) = self.bed.ask(&node.name, request, Duration::from_secs(5)) {
                    answer = match outcomes.into_iter().next() {
                        Some(Outcome::Rejected(why)) => Err(anyhow::anyhow!("{why}")),
                        _ => Ok(()),
                    };
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        answer
    }

    /// Overwrites `bytes_each` random bytes in each of `places` places of the segments of a stopped node.
    pub fn rot(&self, name: &str, places: usize, bytes_each: usize) -> anyhow::Result<()> {
        use rand::{RngCore, SeedableRng, rngs::StdRng};
        use std::os::unix::fs::FileExt;
        let mut random = StdRng::seed_from_u64(seed());
        let home = self.bed.node(name).config.parent().context("a configuration lies in a folder")?.join("volume");
        let mut segments = Vec::new();
        for entry in fs::read_dir(&home)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seg-")) {
                segments.push(path);
            }
        }
        segments.sort();
        for _ in 0..places {
            let path = &segments[usize::try_from(random.next_u64())? % segments.len()];
            let file = fs::File::options().write(true).open(path)?;
            // Only the first part of a preallocated segment is written yet.
            let written = file.metadata()?.len().clamp(8192, 32 << 20);
            let at = 4096 + random.next_u64() % (written - 4096 - bytes_each as u64);
            let mut bytes = vec![0; bytes_each];
            random.fill_bytes(&mut bytes);
            file.write_at(&bytes, at)?;
        }
        Ok(())
    }
}
