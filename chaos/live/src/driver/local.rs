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
use pacsvault_client::{Client, Config};
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
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::runtime::Handle;

use super::{Ability, Driver, Inject};
use crate::{
    net::{Conditions, Host, Wan},
    record::NodeInfo,
    scenario::Topology,
};

/// Size of what each volume may hold; a third of it is ever used.
const CAPACITY: &str = "1GiB";
/// Size of a small disk that is filled.
const SMALL_MIB: u32 = 640;
/// Spare hosts of each site on the network, for nodes that are added.
const SPARE: usize = 8;
/// How long nodes have to stop in order before their volumes are opened.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Makes the network of a run for its hosts.
pub type MakeWan<'a> = &'a dyn Fn(&[Host]) -> anyhow::Result<Arc<dyn Wan>>;

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
            text = format!("{text}\n{HASTE}");
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
    pub fn client(&self, topology: &Topology, site: &str, via_node: bool) -> anyhow::Result<Client> {
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
            via_node,
            source: self.wan.as_ref().map(|wan| wan.place(host).source),
        })?)
    }

    /// Name of the network.
    pub fn network(&self) -> &'static str {
        self.wan.as_ref().map_or("direct", |wan| wan.name())
    }

    fn signal(&self, signal: &str, nodes: &[String]) -> anyhow::Result<()> {
        self.bed.cluster.signal(signal, |node| nodes.contains(&node.name))
    }

    fn disk(&self, node: &str) -> anyhow::Result<&SmallDisk> {
        let index = self.small.get(node).with_context(|| format!("no small disk is mounted for {node}"))?;
        self.bed.disks.get(*index).context("a mounted disk")
    }
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
        for _ in 0..places {
            let path = &segments[usize::try_from(random.next_u64() % segments.len() as u64)?];
            let file = File::options().write(true).open(path)?;
            // Only the first part of a preallocated segment is written yet.
            let written = file.metadata()?.len().clamp(8_192, 24 << 20);
            let at = 4_096 + random.next_u64() % (written - 4_096 - 64);
            let mut bytes = [0; 64];
            random.fill_bytes(&mut bytes);
            file.write_at(&bytes, at)?;
        }
        Ok(format!("{places} places in {} segments", segments.len()))
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
        self.bed.cluster.stop(STOP_WITHIN, |one| one.name == node)?;
        let one = self.bed.cluster.nodes.iter_mut().find(|one| one.name == node).context("a node of this cluster")?;
        if one.bin.take().is_none() {
            bail!("{node} runs the present release already");
        }
        // Timings that the previous release would not know.
        let text = fs::read_to_string(&one.config)?;
        fs::write(&one.config, format!("{text}\n{HASTE}"))?;
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
        self.bed.cluster.stop(STOP_WITHIN, |_| true)?;
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

    fn ended(&mut self) -> anyhow::Result<Vec<(String, String)>> {
        let mut told = Vec::new();
        for (name, status) in self.bed.cluster.reap()? {
            let log = fs::read_to_string(&self.bed.node(&name).log).unwrap_or_default();
            let why = log.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or("without a reason");
            told.push((name, format!("{status}: {why}")));
        }
        Ok(told)
    }
}
