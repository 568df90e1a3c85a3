//! A cluster of processes on this machine.
//!
//! **Invariants.** The harness reaches every node beside the network it shapes, so that what it sees is not what it broke. Names
//! of nodes are never used twice. Processes and mounts are gone when the driver is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use pacsvault_client::{Client, Config, Mode};
use pacsvault_core::{
    ids::{Digest, InstanceId},
    layout::plan,
};
use pacsvault_ports::peer::Request;
use pacsvault_rpc::TonicPeer;
use pacsvault_security::Authority;
use pacsvault_tests::{
    bed::{self, Bed},
    mount::SmallDisk,
    proof::Inventory,
    raw,
    scene::HASTE,
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tokio::runtime::Handle;

use super::{Ability, Driver, Inject};
use crate::{
    net::{Conditions, Host, Traffic, Wan},
    record::NodeInfo,
    runner::Limits,
    scenario::Topology,
};

/// Size of what each volume may hold; a third of it is ever used.
const CAPACITY: &str = "1GiB";
/// Size of a small disk that is filled.
const SMALL_MIB: u32 = 640;
/// Beside [`HASTE`]: voters of a site that is away are replaced while it is, when it is away for long.
const VOTER_GRACE: &str = "voter_grace = \"15s\"\n";
/// Bytes at the beginning of a segment that hold no record.
const SEGMENT_HEAD: u64 = 4_096;
/// Bytes that are flipped in one place.
const PLACE_BYTES: usize = 64;
/// What every line says in which a node tells of its fault port.
const TELLS_OF_FAULTS: &str = "injected into this node";
/// Spare hosts of each site on the network, for nodes that are added.
const SPARE: usize = 8;
/// How long nodes have to stop in order before their volumes are opened.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Makes the network of a run for its hosts.
pub type MakeWan<'a> = &'a dyn Fn(&[Host]) -> anyhow::Result<Arc<dyn Wan>>;

/// How soon nodes find out about outages, and heal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Timings {
    /// Within seconds, so that much happens in a minute.
    Hasty,
    /// As nodes do without any settings: within minutes.
    Default,
}

impl Timings {
    /// What is added to each node's configuration.
    fn configuration(self) -> String {
        match self {
            Self::Hasty => format!("{HASTE}{VOTER_GRACE}"),
            Self::Default => String::new(),
        }
    }

    /// In words, with all settings.
    pub fn words(self) -> String {
        match self {
            Self::Hasty => {
                let text = self.configuration();
                let settings: Vec<&str> = text.lines().filter(|line| line.contains('=')).collect();
                format!("hasty: {}", settings.join(", "))
            }
            Self::Default => "the defaults of pacsvault-node".to_owned(),
        }
    }

    /// How long things may take with them.
    pub fn limits(self) -> Limits {
        match self {
            Self::Hasty => Limits::HASTY,
            Self::Default => Limits::DEFAULT,
        }
    }
}

/// What a local cluster is made of.
pub struct Options<'a> {
    /// Sites and nodes.
    pub topology: &'a Topology,
    /// Where the programs are.
    pub bin: PathBuf,
    /// Where the machine's lock and the cluster's folder are made.
    pub tmp: PathBuf,
    /// Where the programs of the previous release are, when the cluster begins with them.
    pub previous: Option<PathBuf>,
    /// Mount small disks under the volumes.
    pub small_disks: bool,
    /// How soon nodes find out about outages.
    pub timings: Timings,
    /// Makes the network; `None`: processes talk directly.
    pub wan: Option<MakeWan<'a>>,
}

/// The driver.
pub struct Local {
    bed: Bed,
    wan: Option<Arc<dyn Wan>>,
    /// Nodes that each site can ever have.
    seats: BTreeMap<String, usize>,
    small: BTreeMap<String, usize>,
    retired: BTreeSet<String>,
    injects: bool,
    previous: bool,
    timings: Timings,
    /// Nodes that did not end in order when they were told to stop.
    unclean: Vec<(String, String)>,
}

impl Local {
    /// Makes the cluster, starts and founds it.
    ///
    /// # Errors
    /// Programs are missing, or the cluster does not come up.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let topology = options.topology;
        let storing = topology.storing();
        let nodes = storing.first().and_then(|site| topology.sites.get(site)).map_or(0, Vec::len);
        let tmp = options.tmp.to_str().context("the temporary folder has a strange name")?;
        let mut bed = Bed::prepared_with(&options.bin, tmp, storing.len(), nodes)?;
        let pki = bed.pki();
        let authority = Authority::open(&pki)?;
        for site in &topology.witnesses {
            let letter = site.chars().next().context("a site has a name")?;
            let name = bed.cluster.add(letter, &|role, name| bed::issue(&authority, &pki, role, name))?;
            let config = bed.node(&name).config.clone();
            let text = fs::read_to_string(&config)?;
            let (before, _) = text.split_once("[[volumes]]").context("a configuration has volumes")?;
            fs::write(&config, format!("roles = [\"witness\"]\n{before}"))?;
        }
        bed.cluster.shrink(CAPACITY)?;
        let wan = match options.wan {
            Some(make) => Some(make(&hosts(topology))?),
            None => None,
        };
        let mut local = Self {
            bed,
            wan,
            seats: topology.sites.iter().map(|(site, nodes)| (site.clone(), nodes.len() + SPARE)).collect(),
            small: BTreeMap::new(),
            retired: BTreeSet::new(),
            injects: false,
            previous: options.previous.is_some(),
            timings: options.timings,
            unclean: Vec::new(),
        };
        let names: Vec<String> = local.bed.cluster.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            local.prepare(name, options.previous.as_deref())?;
            if options.small_disks && !topology.witnesses.iter().any(|site| name.starts_with(site.as_str())) {
                local.mount(name)?;
            }
        }
        local.bed.cluster.start(|_| true)?;
        local.found(topology)?;
        local.injects = names.iter().all(|name| local.log_has(name, "PACSVAULT_INJECT"));
        Ok(local)
    }

    fn found(&self, topology: &Topology) -> anyhow::Result<()> {
        let sites = topology.sites.iter().map(|(site, nodes)| {
            let storing = if topology.witnesses.contains(site) { 0 } else { nodes.len() };
            Ok((site.parse()?, storing))
        });
        let sites: anyhow::Result<Vec<_>> = sites.collect();
        let profiles = plan::defaults_for(&plan::Topology::with_nodes(sites?));
        let first = self.bed.cluster.nodes.first().context("a cluster has nodes")?.name.clone();
        self.bed.until(Duration::from_secs(60), "the first node to found the cluster", || {
            match self.bed.ask(&first, Request::InitCluster { profiles: profiles.clone() }, Duration::from_secs(10)) {
                Ok(_) => Ok(true),
                Err(fault) if fault.code == "PV-ALREADY-MEMBER" => Ok(true),
                Err(fault) => Err(fault.into()),
            }
        })?;
        self.bed.form()
    }

    /// Puts a node where the network wants it, with its timings and its fault port.
    fn prepare(&mut self, name: &str, previous: Option<&Path>) -> anyhow::Result<()> {
        let wan = self.wan.clone();
        let seeds: Vec<String> = match &wan {
            Some(wan) => {
                let first = self.bed.cluster.nodes.iter().take(3);
                first.map(|node| format!("\"{}\"", wan.place(&node.name).advertise)).collect()
            }
            None => Vec::new(),
        };
        let node =
            self.bed.cluster.nodes.iter_mut().find(|node| node.name == name).context("a node of this cluster")?;
        let mut text = fs::read_to_string(&node.config)?;
        if let Some(wan) = &wan {
            let place = wan.place(name);
            let own =
                |line: &str| !["listen ", "advertise ", "ops_listen ", "join "].iter().any(|key| line.starts_with(key));
            let kept: Vec<&str> = text.lines().filter(|line| own(line)).collect();
            text = format!(
                "listen = \"{}\"\nadvertise = \"{}\"\nops_listen = \"{}\"\njoin = [{}]\n{}\n\n[network]\nsource = \"{}\"\n",
                place.bind,
                place.advertise,
                place.ops,
                seeds.join(", "),
                kept.join("\n"),
                place.source
            );
            node.address = place.bind.clone();
            node.ops = place.ops.clone();
            node.namespace = place.namespace.clone();
        }
        node.bin = previous.map(Path::to_path_buf);
        if previous.is_none() {
            text = format!("{text}\n{}", self.timings.configuration());
            let port = node.config.with_file_name("inject.json");
            fs::write(&port, "{}")?;
            node.environment.push(("PACSVAULT_INJECT".to_owned(), port.display().to_string()));
        }
        Ok(fs::write(&node.config, text)?)
    }

    fn mount(&mut self, name: &str) -> anyhow::Result<()> {
        let volume = self.home(name)?.join("volume");
        let disk = SmallDisk::mount(&volume, SMALL_MIB)
            .context("full disks need small disks to be mounted, and that needs root; choose another scenario")?;
        self.small.insert(name.to_owned(), self.bed.disks.len());
        self.bed.disks.push(disk);
        Ok(())
    }

    fn home(&self, name: &str) -> anyhow::Result<PathBuf> {
        let config = &self.bed.node(name).config;
        Ok(config.parent().context("a configuration lies in a folder")?.to_path_buf())
    }

    fn log_has(&self, name: &str, word: &str) -> bool {
        fs::read_to_string(&self.bed.node(name).log).is_ok_and(|text| text.contains(word))
    }

    /// The runtime of everything done against the cluster.
    pub fn runtime(&self) -> Handle {
        self.bed.runtime.handle().clone()
    }

    /// Where everything of the cluster is.
    pub fn dir(&self) -> PathBuf {
        self.bed.cluster.dir.clone()
    }

    /// Leaves the cluster's folder when the driver goes.
    pub fn keep(&mut self) {
        self.bed.keep();
    }

    /// The certificate of the cluster's authority.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn ca_pem(&self) -> anyhow::Result<String> {
        self.bed.ca_pem()
    }

    /// What the harness asks nodes with.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn operator(&self) -> anyhow::Result<Arc<TonicPeer>> {
        Ok(Arc::new(TonicPeer::new(raw::credentials(&self.bed.pki(), "operator-admin")?)))
    }

    /// A gateway's client in a site.
    ///
    /// # Errors
    /// Certificates cannot be read.
    pub fn client(&self, topology: &Topology, site: &str, mode: Mode) -> anyhow::Result<Client> {
        let runtime = self.runtime();
        let _inside = runtime.enter();
        let pki = self.bed.pki();
        let own = self.bed.cluster.nodes.iter().filter(|node| node.site == site);
        let others = self.bed.cluster.nodes.iter().filter(|node| node.site != site);
        let endpoint = |node: &pacsvault_harness::Node| match &self.wan {
            Some(wan) => wan.place(&node.name).advertise.clone(),
            None => node.address.clone(),
        };
        let host = topology.clients.get(site).context("a site with clients")?;
        Ok(Client::connect(Config {
            endpoints: own.chain(others).map(endpoint).collect(),
            ca: pki.join("ca.pem"),
            cert: pki.join("gateway-demo.pem"),
            key: pki.join("gateway-demo.key"),
            site: Some(site.parse()?),
            tenant: "main".parse()?,
            via_node: mode == Mode::ViaNode,
            source: self.wan.as_ref().map(|wan| wan.place(host).source),
        })?)
    }

    /// Name of the network.
    pub fn network(&self) -> &'static str {
        self.wan.as_ref().map_or("direct", |wan| wan.name())
    }

    /// Has nodes stop in order, and remembers those that did not.
    fn stop(&mut self, which: impl Fn(&pacsvault_harness::Node) -> bool) -> anyhow::Result<()> {
        let unclean = self.bed.cluster.stop(STOP_WITHIN, which)?;
        let told = unclean.into_iter().map(|(name, status)| (name, format!("{status} when it was told to stop")));
        self.unclean.extend(told);
        Ok(())
    }

    fn signal(&self, signal: &str, nodes: &[String]) -> anyhow::Result<()> {
        self.bed.cluster.signal(signal, |node| nodes.contains(&node.name))
    }

    fn disk(&self, node: &str) -> anyhow::Result<&SmallDisk> {
        let index = self.small.get(node).with_context(|| format!("no small disk is mounted for {node}"))?;
        self.bed.disks.get(*index).context("a mounted disk")
    }
}

/// How much of a segment was written: up to its last byte that is not zero. Segments are made ahead of need, of zeros.
fn written(segment: &[u8]) -> u64 {
    let last = segment.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| u64::try_from(last).unwrap_or(u64::MAX).saturating_add(1))
}

/// A place among the written records of segments: which segment, and where in it. `None`: there are no records.
fn place(written: &[u64], random: &mut impl Rng) -> Option<(usize, u64)> {
    let room = |written: u64| written.saturating_sub(SEGMENT_HEAD + PLACE_BYTES as u64);
    let total: u64 = written.iter().map(|written| room(*written)).sum();
    let mut at = (total > 0).then(|| random.random_range(0..total))?;
    for (segment, written) in written.iter().enumerate() {
        match at.checked_sub(room(*written)) {
            None => return Some((segment, SEGMENT_HEAD + at)),
            Some(rest) => at = rest,
        }
    }
    None
}

/// Whether the last thing a log says of the fault port is this setting.
fn in_force(log: &str, inject: &Inject) -> bool {
    let told = log.lines().rev().find(|line| line.to_lowercase().contains(TELLS_OF_FAULTS));
    let Inject { wall_offset_ms, disk_delay_ms, fail_sync } = inject;
    let setting = format!("wall clock {wall_offset_ms:+} ms, disk {disk_delay_ms} ms slower, fail_sync {fail_sync}");
    told.is_some_and(|line| line.contains(&setting))
}

/// Lines of a log that tell of a panic.
fn panics(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("panicked"))
}

/// All hosts of the network: nodes, those that may be added, and clients.
fn hosts(topology: &Topology) -> Vec<Host> {
    let mut hosts = Vec::new();
    for (site, nodes) in &topology.sites {
        let spare = (nodes.len() + 1..=nodes.len() + SPARE).map(|number| format!("{site}{number}"));
        let names = nodes.iter().cloned().chain(spare).chain(topology.clients.get(site).cloned());
        hosts.extend(names.map(|name| Host { name, site: site.clone() }));
    }
    hosts
}

impl Driver for Local {
    fn nodes(&self) -> Vec<NodeInfo> {
        let present = self.bed.cluster.nodes.iter().filter(|node| !self.retired.contains(&node.name));
        present.map(|node| NodeInfo { name: node.name.clone(), site: node.site.clone() }).collect()
    }

    fn abilities(&self) -> BTreeSet<Ability> {
        let mut able: BTreeSet<Ability> = [Ability::Kill, Ability::Pause, Ability::Damage, Ability::Volumes].into();
        if self.small.is_empty() {
            able.extend([Ability::Wipe, Ability::Add]);
        } else {
            able.insert(Ability::Fill);
        }
        if self.wan.is_some() {
            able.extend([Ability::Network, Ability::Links]);
        }
        able.extend(self.injects.then_some(Ability::Inject));
        able.extend(self.previous.then_some(Ability::Upgrade));
        able
    }

    fn kill(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.bed.cluster.kill(|node| nodes.contains(&node.name)).map(drop)
    }

    fn start(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.bed.cluster.start(|node| nodes.contains(&node.name))
    }

    fn pause(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.signal("STOP", nodes)
    }

    fn resume(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.signal("CONT", nodes)
    }

    fn shape(&mut self, conditions: &Conditions) -> anyhow::Result<()> {
        self.wan.as_ref().context("there is no network to shape: run with --network proxy")?.apply(conditions)
    }

    fn wipe(&mut self, node: &str) -> anyhow::Result<()> {
        self.bed.cluster.wipe(node)
    }

    fn damage(&mut self, node: &str, seed: u64, places: usize) -> anyhow::Result<String> {
        ensure!(self.bed.cluster.pid(node).is_none(), "node {node} still runs");
        let mut segments = Vec::new();
        for entry in fs::read_dir(self.home(node)?.join("volume"))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seg-")) {
                segments.push(path);
            }
        }
        segments.sort();
        ensure!(!segments.is_empty(), "node {node} holds no segment");
        let mut random = StdRng::seed_from_u64(seed);
        let written =
            segments.iter().map(|path| Ok(written(&fs::read(path)?))).collect::<anyhow::Result<Vec<u64>>>()?;
        for _ in 0..places {
            let (segment, at) =
                place(&written, &mut random).with_context(|| format!("node {node} has written no record"))?;
            let mut bytes = [0; PLACE_BYTES];
            random.fill_bytes(&mut bytes);
            File::options().write(true).open(&segments[segment])?.write_at(&bytes, at)?;
        }
        let total: u64 = written.iter().sum();
        Ok(format!("{places} places in {} segments with {total} written bytes", segments.len()))
    }

    fn fill(&mut self, node: &str) -> anyhow::Result<()> {
        self.disk(node)?.fill().map(drop)
    }

    fn relieve(&mut self, node: &str) -> anyhow::Result<()> {
        self.disk(node)?.relieve()
    }

    fn inject(&mut self, node: &str, inject: &Inject) -> anyhow::Result<()> {
        let port = self.home(node)?.join("inject.json");
        let fresh = port.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(inject)?)?;
        // By a rename, so that no half of it is read.
        Ok(fs::rename(fresh, port)?)
    }

    fn injected(&self, node: &str, inject: &Inject) -> anyhow::Result<bool> {
        Ok(in_force(&fs::read_to_string(&self.bed.node(node).log)?, inject))
    }

    fn traffic(&self) -> Option<Traffic> {
        self.wan.as_ref().map(|wan| wan.traffic())
    }

    fn panics(&self) -> anyhow::Result<Option<Vec<String>>> {
        let mut found = Vec::new();
        for node in &self.bed.cluster.nodes {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            found.extend(panics(&log).map(|line| format!("{}: {line}", node.name)));
        }
        Ok(Some(found))
    }

    fn add_node(&mut self, site: &str) -> anyhow::Result<String> {
        ensure!(self.has_room(site), "the network has no seat left for a node of site {site}");
        let letter = site.chars().next().context("a site has a name")?;
        let pki = self.bed.pki();
        let authority = Authority::open(&pki)?;
        let name = self.bed.cluster.add(letter, &|role, name| bed::issue(&authority, &pki, role, name))?;
        let config = self.bed.node(&name).config.clone();
        fs::write(&config, fs::read_to_string(&config)?.replace("\"64GiB\"", &format!("\"{CAPACITY}\"")))?;
        self.prepare(&name, None)?;
        self.start(std::slice::from_ref(&name))?;
        Ok(name)
    }

    /// Names are not used twice, and on an emulated network each has a seat that was made at the beginning.
    fn has_room(&self, site: &str) -> bool {
        let ever = self.bed.cluster.nodes.iter().filter(|node| node.site == site).count();
        self.abilities().contains(&Ability::Add)
            && (self.wan.is_none() || ever < self.seats.get(site).copied().unwrap_or(0))
    }

    fn forget(&mut self, node: &str) -> anyhow::Result<()> {
        self.kill(&[node.to_owned()])?;
        self.retired.insert(node.to_owned());
        self.bed.cluster.wipe(node)
    }

    fn upgrade(&mut self, node: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        self.stop(|one| one.name == node)?;
        let one = self.bed.cluster.nodes.iter_mut().find(|one| one.name == node).context("a node of this cluster")?;
        if one.bin.take().is_none() {
            bail!("{node} runs the present release already");
        }
        // Timings that the previous release would not know.
        let text = fs::read_to_string(&one.config)?;
        fs::write(&one.config, format!("{text}\n{}", self.timings.configuration()))?;
        eprintln!("  {node} stopped in {} ms", began.elapsed().as_millis());
        self.start(&[node.to_owned()])
    }

    fn outdated(&self) -> Vec<String> {
        let nodes = self.bed.cluster.nodes.iter().filter(|node| !self.retired.contains(&node.name));
        nodes.filter(|node| node.bin.is_some()).map(|node| node.name.clone()).collect()
    }

    fn addresses(&self) -> BTreeMap<String, String> {
        let present = self.bed.cluster.nodes.iter().filter(|node| !self.retired.contains(&node.name));
        present.map(|node| (node.name.clone(), node.address.clone())).collect()
    }

    fn prove(&mut self, promised: &BTreeMap<InstanceId, (u64, Digest)>) -> anyhow::Result<String> {
        let cluster = Authority::open(&self.bed.pki())?.cluster();
        self.stop(|_| true)?;
        let inventory = Inventory::read(&self.bed.cluster, cluster)?;
        let proven = inventory.prove(promised)?;
        Ok(format!(
            "{} instances, {} stripes, {} shards, {} bytes decoded from shards; {} damaged shards besides",
            proven.instances,
            proven.stripes,
            proven.shards,
            proven.decoded_bytes,
            inventory.damaged.len()
        ))
    }

    fn ended(&mut self) -> anyhow::Result<Option<Vec<(String, String)>>> {
        let mut told = std::mem::take(&mut self.unclean);
        for (name, status) in self.bed.cluster.reap()? {
            let log = fs::read_to_string(&self.bed.node(&name).log).unwrap_or_default();
            let why = log.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or("without a reason");
            told.push((name, format!("{status}: {why}")));
        }
        Ok(Some(told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_hits_bytes_that_were_written() {
        let mut segment = vec![0; 1 << 20];
        segment[..20_000].fill(7);
        assert_eq!(written(&segment), 20_000);
        assert_eq!(written(&[0; 100]), 0);
        let mut random = StdRng::seed_from_u64(1);
        let mut hit = BTreeSet::new();
        for _ in 0..1_000 {
            let (segment, at) = place(&[4_096, 20_000, 0, 6_000], &mut random).expect("records");
            hit.insert(segment);
            let end = [4_096, 20_000, 0, 6_000][segment];
            assert!((SEGMENT_HEAD..end - PLACE_BYTES as u64).contains(&at), "{at} in {segment}");
        }
        assert_eq!(hit, [1, 3].into());
        assert_eq!(place(&[4_096, 0], &mut random), None, "a header is no record");
    }

    #[test]
    fn timings_tell_all_their_settings() {
        let words = Timings::Hasty.words();
        for setting in ["suspect_after = \"2s\"", "down_after = \"4s\"", "voter_grace = \"15s\""] {
            assert!(words.contains(setting), "{words}");
        }
        assert!(Timings::Default.configuration().is_empty());
    }

    #[test]
    fn a_setting_is_in_force_when_the_node_says_so_last() {
        let slow = Inject { disk_delay_ms: 40, ..Inject::default() };
        let start = "WARN node: FAULTS ARE INJECTED INTO THIS NODE because x file=i.json \
            setting=wall clock +0 ms, disk 0 ms slower, fail_sync false\n";
        let change = "WARN node: the faults injected into this node changed \
            setting=wall clock +0 ms, disk 40 ms slower, fail_sync false\n";
        assert!(in_force(start, &Inject::default()) && !in_force(start, &slow) && !in_force("", &slow));
        let log = format!("{start}{change}INFO node: something else\n");
        assert!(in_force(&log, &slow) && !in_force(&log, &Inject::default()));
        assert!(!in_force(&format!("{log}{start}"), &slow), "it was started again");
        let back = Inject { wall_offset_ms: -1_500, ..Inject::default() };
        assert!(in_force(
            "the faults injected into this node changed setting=wall clock -1500 ms, disk 0 ms slower, fail_sync false",
            &back
        ));
    }

    #[test]
    fn panics_are_found_also_when_the_process_lives_on() {
        let log = "INFO fine\nthread 'tokio-runtime-worker' (7) panicked at node/src/a.rs:1:2:\nINFO goes on\n";
        assert_eq!(panics(log).count(), 1);
        assert_eq!(panics("INFO no panic here\n").count(), 0);
    }
}
