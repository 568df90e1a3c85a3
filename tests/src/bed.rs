//! A cluster for one test: processes, certificates, clients, and the questions that tests ask of it.
//!
//! **Invariants.** Made only while holding the machine's lock. Depends on the node program alone, not on the command line:
//! certificates are issued and the cluster is founded through the libraries.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use pacsvault_client::{Client, Config};
use pacsvault_core::{
    ids::{LogIndex, NodeName},
    layout::{Layout, NodeState},
};
use pacsvault_harness::{Cluster, Node};
use pacsvault_ports::peer::{Fault, Freshness, NodeStatus, Peer, Reply, Request, Target};
use pacsvault_rpc::TonicPeer;
use pacsvault_runtime::wall_now;
use pacsvault_security::{Authority, pki};
use tokio::runtime::Runtime;

use crate::{mount::SmallDisk, raw};

/// How long one status may take: a paused node must not hold up the others' for long.
const STATUS_DEADLINE: Duration = Duration::from_millis(700);
/// Lines of each node's log that a failed test prints.
const LINES_SHOWN: usize = 40;

/// A cluster, its clients and its place on disk. Fields are dropped in this order.
pub struct Bed {
    /// The processes.
    pub cluster: Cluster,
    /// Small disks under some of them.
    pub disks: Vec<SmallDisk>,
    /// The runtime of everything that tests do against the cluster.
    pub runtime: Runtime,
    admin: TonicPeer,
    dir: Option<tempfile::TempDir>,
    _turn: File,
}

/// Where the programs under test are: `PACSVAULT_BIN_DIR`, else beside the folder of this very test.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    let dir = match std::env::var_os("PACSVAULT_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let own = std::env::current_exe()?;
            own.parent().and_then(Path::parent).context("the test's program has no folder")?.to_path_buf()
        }
    };
    if !dir.join("pacsvault-node").is_file() {
        bail!(
            "{} has no pacsvault-node: run `cargo build --release -p pacsvault-node -p pacsvault-client` first",
            dir.display()
        );
    }
    Ok(dir)
}

/// Waits for this test's turn; it lasts until the file is closed.
pub fn turn(tmp: &str) -> anyhow::Result<File> {
    fs::create_dir_all(tmp)?;
    let path = Path::new(tmp).join("one-cluster.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("waiting for the cluster that holds {}", path.display()),
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock this machine for one cluster"),
    }
    file.lock().context("cannot wait for this machine's other clusters")?;
    Ok(file)
}

/// Issues a certificate of `authority` into `dir`, for hosts of this machine.
pub fn issue(authority: &Authority, dir: &Path, role: &str, name: &str) -> anyhow::Result<()> {
    let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    authority.issue(dir, &pki::Request { role: role.parse()?, name, hosts: &hosts, now: wall_now(), days: 30 })?;
    Ok(())
}

impl Bed {
    /// Certificates and configurations of `sites` × `nodes` nodes under `tmp`; nothing is started.
    pub fn prepared(tmp: &str, sites: usize, nodes: usize) -> anyhow::Result<Self> {
        Self::prepared_with(&bin_dir()?, tmp, sites, nodes)
    }

    /// The same with the programs of a folder.
    pub fn prepared_with(bin: &Path, tmp: &str, sites: usize, nodes: usize) -> anyhow::Result<Self> {
        let turn = turn(tmp)?;
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(tmp)?;
        let pki = dir.path().join("pki");
        let authority = Authority::create(&pki, wall_now())?;
        let issue = |role: &str, name: &str| issue(&authority, &pki, role, name);
        let cluster = Cluster::prepare_issued(bin, dir.path(), sites, nodes, &issue)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let admin = TonicPeer::new(raw::credentials(&pki, "operator-admin")?);
        Ok(Self { cluster, disks: Vec::new(), runtime, admin, dir: Some(dir), _turn: turn })
    }

    /// A whole running cluster.
    pub fn running(tmp: &str, sites: usize, nodes: usize) -> anyhow::Result<Self> {
        let mut bed = Self::prepared(tmp, sites, nodes)?;
        bed.cluster.start(|_| true)?;
        bed.form()?;
        Ok(bed)
    }

    /// Founds the cluster on its first node and waits until all are in.
    pub fn form(&self) -> anyhow::Result<()> {
        let first = self.cluster.nodes[0].name.clone();
        self.until(Duration::from_secs(30), "the first node to found the cluster", || {
            match self.ask(&first, Request::InitCluster { profiles: Vec::new() }, Duration::from_secs(10)) {
                Ok(_) => Ok(true),
                Err(fault) if fault.code == "PV-ALREADY-MEMBER" => Ok(true),
                Err(fault) => Err(fault.into()),
            }
        })?;
        self.until_whole(Duration::from_secs(90))
    }

    /// Waits until every node is up and one leader is followed by all, with enough voters for any site to go.
    pub fn until_whole(&self, limit: Duration) -> anyhow::Result<()> {
        let wanted = self.cluster.nodes.len();
        let voters = match wanted {
            5.. => 5,
            3 | 4 => 3,
            _ => 1,
        };
        self.until(limit, "all nodes to be up and the voters to be spread", || {
            let statuses = self.statuses();
            let leaders: BTreeSet<_> = statuses.values().map(|status| status.leader).collect();
            anyhow::ensure!(statuses.len() == wanted, "only {} of {wanted} nodes answer", statuses.len());
            anyhow::ensure!(leaders.len() == 1 && !leaders.contains(&None), "leaders are {leaders:?}");
            let fewest = statuses.values().map(|status| status.voters.len()).min().unwrap_or(0);
            anyhow::ensure!(fewest >= voters, "{fewest} voters instead of {voters}");
            let layout = self.layout()?;
            let up = layout.nodes.values().filter(|node| node.state == NodeState::Up).count();
            anyhow::ensure!(up == wanted, "{up} of {wanted} nodes are up in the layout");
            Ok(true)
        })
    }

    /// Waits until all nodes have applied the same entries; fails at once if they disagree about what these mean.
    pub fn until_equal(&self, limit: Duration) -> anyhow::Result<LogIndex> {
        let wanted = self.cluster.nodes.len();
        let mut settled = LogIndex(0);
        self.until(limit, "all replicas to have applied the same entries", || {
            let statuses = self.statuses();
            anyhow::ensure!(statuses.len() == wanted, "only {} of {wanted} nodes answer", statuses.len());
            let applied: BTreeMap<&str, LogIndex> =
                statuses.iter().map(|(name, status)| (name.as_str(), status.applied)).collect();
            let first = statuses.values().next().context("no node")?;
            anyhow::ensure!(
                statuses.values().all(|status| status.applied == first.applied),
                "they stand at {applied:?}"
            );
            let equal = statuses.values().all(|status| status.state_digest == first.state_digest);
            assert!(equal, "replicas that applied {} entries differ: {statuses:#?}", first.applied);
            settled = first.applied;
            Ok(true)
        })?;
        Ok(settled)
    }

    /// Status of every node that answers, by name.
    pub fn statuses(&self) -> BTreeMap<String, NodeStatus> {
        let names = self.cluster.nodes.iter().map(|node| node.name.clone());
        names.filter_map(|name| Some((name.clone(), self.status_of(&name).ok()?))).collect()
    }

    /// Status of one node.
    pub fn status_of(&self, name: &str) -> Result<NodeStatus, Fault> {
        match self.ask(name, Request::Status, STATUS_DEADLINE)? {
            Reply::Status(status) => Ok(*status),
            other => panic!("a status answered {other:?}"),
        }
    }

    /// The layout, from any node.
    pub fn layout(&self) -> anyhow::Result<Arc<Layout>> {
        for node in &self.cluster.nodes {
            let request = Request::Layout(Freshness::AtLeast(LogIndex(0)));
            if let Ok(Reply::Layout(layout)) = self.ask(&node.name, request, Duration::from_secs(2)) {
                return Ok(layout);
            }
        }
        bail!("no node knows the layout")
    }

    /// Site and name of the leader that most nodes follow.
    pub fn leader(&self) -> anyhow::Result<(String, String)> {
        let mut found = None;
        self.until(Duration::from_secs(20), "a leader", || {
            let statuses = self.statuses();
            let newest = statuses.values().filter(|status| status.leader.is_some()).max_by_key(|status| status.term);
            let leader = newest.and_then(|status| status.leader).context("no node knows a leader")?;
            let own = statuses.values().find(|status| status.node == Some(leader)).context("the leader is away")?;
            found = Some((own.site.to_string(), own.name.to_string()));
            Ok(true)
        })?;
        found.context("no leader")
    }

    /// Sends one request to one node with the operator's certificate.
    pub fn ask(&self, name: &str, request: Request, deadline: Duration) -> Result<Reply, Fault> {
        let node = self.node(name);
        let target = Target { address: node.address.clone(), name: node.name.parse::<NodeName>().ok() };
        self.runtime.block_on(async { self.admin.call(&target, request, deadline).await })
    }

    /// A node by name.
    ///
    /// # Panics
    /// When there is none: a broken test.
    pub fn node(&self, name: &str) -> &Node {
        self.cluster.nodes.iter().find(|node| node.name == name).expect("a node of this cluster")
    }

    /// A gateway's client: coordinating itself, or through a node.
    pub fn client(&self, via_node: bool) -> anyhow::Result<Client> {
        let _inside = self.runtime.enter();
        let pki = self.pki();
        Ok(Client::connect(Config {
            endpoints: self.cluster.nodes.iter().map(|node| node.address.clone()).collect(),
            ca: pki.join("ca.pem"),
            cert: pki.join("gateway-demo.pem"),
            key: pki.join("gateway-demo.key"),
            site: None,
            tenant: "main".parse()?,
            via_node,
            source: None,
        })?)
    }

    /// The folder of certificates.
    pub fn pki(&self) -> PathBuf {
        self.cluster.dir.join("pki")
    }

    /// The CA certificate.
    pub fn ca_pem(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.pki().join("ca.pem"))?)
    }

    /// Repeats `done` until it is true; an error counts as "not yet", and the last one is told when time is over.
    pub fn until(
        &self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let why = match done() {
                Ok(true) => return Ok(()),
                Ok(false) => String::new(),
                Err(error) => format!(": {error:#}"),
            };
            if began.elapsed() > limit {
                bail!("waited {} s in vain for {what}{why}", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Prints the end of every node's log: for a test that fails.
    pub fn show_logs(&self) {
        for node in &self.cluster.nodes {
            let text = fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} (last of {} lines)", node.name, lines.len());
            for line in lines.iter().skip(lines.len().saturating_sub(LINES_SHOWN)) {
                eprintln!("{line}");
            }
        }
    }

    /// Leaves the folder of the cluster when this goes; the processes are stopped all the same.
    pub fn keep(&mut self) {
        if let Some(dir) = self.dir.take() {
            // The path stays that of the cluster.
            let _ = dir.keep();
        }
    }

    /// Runs `test`; when it fails, shows the logs.
    pub fn run(mut self, test: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let result = test(&mut self);
        if result.is_err() {
            self.show_logs();
        }
        result
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_logs();
        }
        // Before the directories go; errors show when something is still there at the next start.
        let _ = self.cluster.kill(|_| true);
        self.disks.clear();
        if std::env::var_os("PACSVAULT_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}
