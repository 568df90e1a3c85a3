//! A whole cluster on this machine: certificates, configurations and processes, for the demo and the benchmarks.
//!
//! **Invariants.** Every process started is stopped by its pid when the cluster is dropped, unless it is to be kept. That
//! pid is the node's own, also in a network namespace: what starts it there replaces itself by it. When this process ends
//! without dropping anything, also by SIGKILL, a [`Guardian`] kills the nodes. An interrupt from the keyboard reaches no node.

mod guardian;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

pub use guardian::Guardian;

/// Where a node is in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// `ip:port` it listens on.
    pub bind: String,
    /// `host:port` that others dial.
    pub advertise: String,
    /// `ip:port` of its operations port.
    pub ops: String,
    /// Address that its own connections come from.
    pub source: Option<IpAddr>,
    /// Network namespace that it runs in, which needs root.
    pub namespace: Option<String>,
}

/// A node that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Such as `a1`.
    pub name: String,
    /// Such as `a`.
    pub site: String,
    /// Votes and holds nothing.
    pub witness: bool,
    /// Its place in the network.
    pub seat: Seat,
}

/// One node process.
pub struct Node {
    /// Such as `a1`.
    pub name: String,
    /// Such as `a`.
    pub site: String,
    /// gRPC address.
    pub address: String,
    /// Operations address.
    pub ops: String,
    /// Votes and holds nothing.
    pub witness: bool,
    /// Network namespace that it runs in.
    pub namespace: Option<String>,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it logs.
    pub log: PathBuf,
    /// Where its program is; the cluster's place when absent. For clusters of several releases.
    pub bin: Option<PathBuf>,
    /// Variables it is started with, besides those of this process.
    pub environment: Vec<(String, String)>,
    child: Option<Child>,
}

/// Nodes of several sites, each a process of its own.
pub struct Cluster {
    /// Where the programs are.
    pub bin: PathBuf,
    /// Everything it writes.
    pub dir: PathBuf,
    /// All nodes, by site.
    pub nodes: Vec<Node>,
    guardian: Guardian,
    kept: bool,
}

/// Runs a command quietly and returns what it printed; an error carries what it complained.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let shown = format!("{program} {}", arguments.join(" "));
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Seat {
    /// On this machine's loopback, without anything in between.
    pub fn on_loopback(port: u16, ops: u16) -> Self {
        let bind = format!("127.0.0.1:{port}");
        Self { advertise: bind.clone(), bind, ops: format!("127.0.0.1:{ops}"), source: None, namespace: None }
    }
}

fn empty(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    Ok(fs::create_dir_all(dir.join("pki"))?)
}

fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held at once, so that they differ; they are free again when this returns.
    let listeners: Result<Vec<_>, _> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    listeners?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

impl Cluster {
    /// Makes certificates and configurations for `sites` × `nodes` nodes in an empty `dir`. Starts nothing.
    pub fn prepare(bin: &Path, dir: &Path, sites: usize, nodes: usize) -> anyhow::Result<Self> {
        empty(dir)?;
        let pki = dir.join("pki");
        let cli = bin.join("pacsvault");
        output(Command::new(&cli).args(["pki", "init"]).arg(&pki))?;
        let issue = |role: &str, name: &str| {
            let mut command = Command::new(&cli);
            command.args(["pki", "issue"]).arg(&pki).args([
                "--role",
                role,
                name,
                "--host",
                "127.0.0.1",
                "--host",
                "localhost",
            ]);
            output(&mut command).map(drop)
        };
        Self::prepare_issued(bin, dir, sites, nodes, &issue)
    }

    /// The same in a `dir` whose `pki/ca.pem` is there already; `issue` puts `<role>-<name>.pem` and `.key` beside it.
    pub fn prepare_issued(
        bin: &Path,
        dir: &Path,
        sites: usize,
        nodes: usize,
        issue: &dyn Fn(&str, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let ports = free_ports(sites * nodes * 2)?;
        let letters = (0..nodes).flat_map(|number| ('a'..='z').take(sites).map(move |letter| (letter, number + 1)));
        let members: Vec<Member> = letters
            .zip(ports.chunks_exact(2))
            .map(|((site, number), ports)| Member {
                name: format!("{site}{number}"),
                site: site.to_string(),
                witness: false,
                seat: Seat::on_loopback(ports[0], ports[1]),
            })
            .collect();
        Self::prepare_planned(bin, dir, &members, issue)
    }

    /// The same for any `members`, each at its seat; the first ones of each site are those that all ask to be let in.
    pub fn prepare_planned(
        bin: &Path,
        dir: &Path,
        members: &[Member],
        issue: &dyn Fn(&str, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        // The guardian knows nodes by it, whichever folder they were started from.
        let dir = &std::path::absolute(dir)?;
        issue("operator", "admin")?;
        issue("gateway", "demo")?;
        let mut sites = BTreeSet::new();
        let firsts = members.iter().filter(|member| sites.insert(member.site.as_str()));
        let seeds: Vec<String> = firsts.map(|member| member.seat.advertise.clone()).collect();
        let mut cluster = Self {
            bin: bin.to_path_buf(),
            dir: dir.to_path_buf(),
            nodes: Vec::new(),
            guardian: Guardian::of_cluster(dir)?,
            kept: false,
        };
        for member in members {
            issue("node", &member.name)?;
            cluster.describe(member, &seeds)?;
        }
        cluster.write_client_config("operator-admin", "admin.toml")?;
        cluster.write_client_config("gateway-demo", "client.toml")?;
        Ok(cluster)
    }

    /// Writes a node's configuration and takes it in, stopped.
    fn describe(&mut self, member: &Member, seeds: &[String]) -> anyhow::Result<()> {
        let Member { name, site, witness, seat } = member;
        let home = self.dir.join(name);
        fs::create_dir_all(&home)?;
        let config = home.join("node.toml");
        let seeds: Vec<String> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let roles = if *witness { "roles = [\"witness\"]\n" } else { "" };
        let source = seat.source.map(|source| format!("[network]\nsource = \"{source}\"\n\n")).unwrap_or_default();
        let volume = "[[volumes]]\npath = \"volume\"\ncapacity = \"64GiB\"\n";
        let text = format!(
            "name = \"{name}\"\nsite = \"{site}\"\n{roles}data_dir = \"data\"\nlisten = \"{}\"\nadvertise = \"{}\"\n\
             ops_listen = \"{}\"\njoin = [{}]\n\n{source}[tls]\nca = \"../pki/ca.pem\"\n\
             cert = \"../pki/node-{name}.pem\"\nkey = \"../pki/node-{name}.key\"\n\n{}",
            seat.bind,
            seat.advertise,
            seat.ops,
            seeds.join(", "),
            if *witness { "" } else { volume },
        );
        fs::write(&config, text)?;
        self.nodes.push(Node {
            log: home.join("node.log"),
            name: name.clone(),
            site: site.clone(),
            address: seat.advertise.clone(),
            ops: seat.ops.clone(),
            witness: *witness,
            namespace: seat.namespace.clone(),
            config,
            bin: None,
            environment: Vec::new(),
            child: None,
        });
        Ok(())
    }

    /// Takes in one more node of `site`, stopped, that asks the others to let it in; its name is the site's next number.
    pub fn add(&mut self, site: char, issue: &dyn Fn(&str, &str) -> anyhow::Result<()>) -> anyhow::Result<String> {
        let present = self.nodes.iter().filter(|node| node.site == site.to_string()).count();
        let name = format!("{site}{}", present + 1);
        let ports = free_ports(2)?;
        let seat = Seat::on_loopback(ports[0], ports[1]);
        let member = Member { name: name.clone(), site: site.to_string(), witness: false, seat };
        self.add_planned(&member, issue)?;
        Ok(name)
    }

    /// Takes in one more node, stopped, at a seat of its own.
    pub fn add_planned(
        &mut self,
        member: &Member,
        issue: &dyn Fn(&str, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.nodes.iter().any(|node| node.name == member.name) {
            bail!("there is a node {} already", member.name);
        }
        issue("node", &member.name)?;
        let seeds: Vec<String> = self.nodes.iter().take(3).map(|node| node.address.clone()).collect();
        self.describe(member, &seeds)
    }

    /// Appends `text` (TOML tables) to every node's configuration.
    pub fn configure(&self, text: &str) -> anyhow::Result<()> {
        for node in &self.nodes {
            let present = fs::read_to_string(&node.config)?;
            fs::write(&node.config, format!("{present}\n{text}"))?;
        }
        Ok(())
    }

    /// Gives every volume another capacity; before the first start.
    pub fn shrink(&self, capacity: &str) -> anyhow::Result<()> {
        for node in &self.nodes {
            let present = fs::read_to_string(&node.config)?;
            fs::write(&node.config, present.replace("\"64GiB\"", &format!("\"{capacity}\"")))?;
        }
        Ok(())
    }

    /// Takes everything from a stopped node but its configuration and its log: a burnt machine with the same name.
    pub fn wipe(&self, name: &str) -> anyhow::Result<()> {
        let node = self.nodes.iter().find(|node| node.name == name).context("no such node")?;
        if node.child.is_some() {
            bail!("node {name} still runs");
        }
        let home = node.config.parent().context("a configuration lies in a folder")?;
        for entry in fs::read_dir(home)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    fn write_client_config(&self, certificate: &str, file: &str) -> anyhow::Result<()> {
        let endpoints: Vec<String> = self.nodes.iter().map(|node| format!("\"{}\"", node.address)).collect();
        let text = format!(
            "endpoints = [{}]\nca = \"pki/ca.pem\"\ncert = \"pki/{certificate}.pem\"\nkey = \"pki/{certificate}.key\"\n",
            endpoints.join(", ")
        );
        Ok(fs::write(self.dir.join(file), text)?)
    }

    /// The command line with the certificate of a gateway.
    pub fn client(&self) -> Command {
        self.cli("client.toml")
    }

    /// The command line with the certificate of an operator.
    pub fn admin(&self) -> Command {
        self.cli("admin.toml")
    }

    fn cli(&self, config: &str) -> Command {
        let mut command = Command::new(self.bin.join("pacsvault"));
        command.env("PACSVAULT_CONFIG", self.dir.join(config));
        command
    }

    /// Starts the nodes that `which` selects and are not running.
    pub fn start(&mut self, which: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        let bin = self.bin.clone();
        for node in self.nodes.iter_mut().filter(|node| which(node) && node.child.is_none()) {
            let log = File::options().create(true).append(true).open(&node.log)?;
            let program = node.bin.as_ref().unwrap_or(&bin).join("pacsvault-node");
            let mut command = match &node.namespace {
                None => Command::new(program),
                Some(namespace) => {
                    let mut command = Command::new("ip");
                    command.args(["netns", "exec", namespace]).arg(program);
                    command
                }
            };
            command.arg("--config").arg(&node.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.envs(node.environment.iter().map(|(name, value)| (name, value))).process_group(0);
            node.child = Some(command.spawn().with_context(|| format!("cannot start node {}", node.name))?);
        }
        Ok(())
    }

    /// Kills the nodes that `which` selects with SIGKILL, all before waiting for any.
    pub fn kill(&mut self, which: impl Fn(&Node) -> bool) -> anyhow::Result<Vec<String>> {
        let mut gone: Vec<&mut Node> =
            self.nodes.iter_mut().filter(|node| which(node) && node.child.is_some()).collect();
        for node in &mut gone {
            if let Some(child) = &mut node.child {
                child.kill()?;
            }
        }
        for node in &mut gone {
            if let Some(mut child) = node.child.take() {
                child.wait()?;
            }
        }
        Ok(gone.iter().map(|node| node.name.clone()).collect())
    }

    /// Sends a signal, such as `STOP`, to the running nodes that `which` selects, one right after the other.
    pub fn signal(&self, signal: &str, which: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        for node in self.nodes.iter().filter(|node| which(node)) {
            if let Some(child) = &node.child {
                // The shell's own `kill`: the program of that name is not on every machine. No keyboard interrupts it.
                let arguments = ["-c", "kill -s \"$0\" \"$1\"", signal, &child.id().to_string()];
                output(Command::new("sh").args(arguments).process_group(0))?;
            }
        }
        Ok(())
    }

    /// Stops the nodes that `which` selects in order (SIGTERM) and waits until they have ended. Returns those that did not end with
    /// success, with how: they had broken off before, or could not stop in order.
    pub fn stop(
        &mut self,
        limit: Duration,
        which: impl Fn(&Node) -> bool,
    ) -> anyhow::Result<Vec<(String, std::process::ExitStatus)>> {
        self.signal("TERM", &which)?;
        let (began, mut unclean) = (Instant::now(), Vec::new());
        for node in self.nodes.iter_mut().filter(|node| which(node)) {
            let Some(child) = &mut node.child else { continue };
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                if began.elapsed() > limit {
                    bail!("node {} did not stop within {} s of SIGTERM", node.name, limit.as_secs());
                }
                thread::sleep(Duration::from_millis(20));
            };
            node.child = None;
            if !status.success() {
                unclean.push((node.name.clone(), status));
            }
        }
        Ok(unclean)
    }

    /// Names of the nodes whose process ended by itself, with how; they count as not running from now on.
    pub fn reap(&mut self) -> anyhow::Result<Vec<(String, std::process::ExitStatus)>> {
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child
                && let Some(status) = child.try_wait()?
            {
                ended.push((node.name.clone(), status));
                node.child = None;
            }
        }
        Ok(ended)
    }

    /// Makes a cluster of the first node and waits until all are members with shards and enough voters.
    pub fn form(&self) -> anyhow::Result<()> {
        self.found(&[])
    }

    /// The same with the profiles that are built in for just this topology.
    pub fn form_as_planned(&self) -> anyhow::Result<()> {
        let mut sites = BTreeMap::<&str, usize>::new();
        for node in self.nodes.iter().filter(|node| !node.witness) {
            *sites.entry(&node.site).or_default() += 1;
        }
        let counts: Vec<String> = sites.values().map(usize::to_string).collect();
        let counts = counts.join(",");
        let mut arguments = vec!["--sites", &counts];
        if self.nodes.iter().any(|node| node.witness) {
            arguments.push("--witness");
        }
        self.found(&arguments)
    }

    fn found(&self, topology: &[&str]) -> anyhow::Result<()> {
        let first = &self.nodes[0].address;
        self.until(Duration::from_secs(60), "the first node to found the cluster", || {
            let mut command = self.admin();
            command.args(["--endpoints", first, "cluster", "init"]).args(topology);
            Ok(output(&mut command).is_ok())
        })?;
        self.wait_whole()
    }

    /// Waits until every node is up, there is a leader, and the voters are spread.
    pub fn wait_whole(&self) -> anyhow::Result<()> {
        let wanted = self.nodes.len();
        self.until(Duration::from_secs(90), "all nodes to be up and voters to be spread", || {
            let Ok(status) = self.status() else { return Ok(false) };
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let up = nodes.iter().filter(|node| node["state"] == "up").count();
            let voters = nodes.iter().filter(|node| node["role"] == "voter" || node["role"] == "leader").count();
            let enough = if wanted >= 5 { 5 } else { wanted.min(3) };
            Ok(up == wanted && voters >= enough && status["leader"].is_string())
        })
    }

    /// `pacsvault status --json`.
    pub fn status(&self) -> anyhow::Result<Value> {
        let text = output(self.admin().args(["status", "--json"]))?;
        Ok(serde_json::from_str(text.trim())?)
    }

    /// Site and name of the present leader.
    pub fn leader(&self) -> anyhow::Result<(String, String)> {
        let status = self.status()?;
        let name = status["leader"].as_str().context("no leader is known")?.to_owned();
        let node = self.nodes.iter().find(|node| node.name == name).context("the leader is a stranger")?;
        Ok((node.site.clone(), name))
    }

    /// Repeats `done` until it is true.
    pub fn until(
        &self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !done()? {
            for node in &self.nodes {
                let ended = fs::read_to_string(&node.log).unwrap_or_default();
                if let Some(line) = ended.lines().rev().find(|line| line.contains("cannot start or go on")) {
                    bail!("node {}: {line}", node.name);
                }
            }
            if began.elapsed() > limit {
                bail!("waited {} s in vain for {what}; logs are in {}", limit.as_secs(), self.dir.display());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// CPU seconds (user and system) that all running nodes have used, and bytes they caused to be written to disk.
    pub fn usage(&self) -> (f64, u64) {
        let mut seconds = 0.0;
        let mut written = 0;
        for child in self.nodes.iter().filter_map(|node| node.child.as_ref()) {
            seconds += cpu_seconds(child.id());
            let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
            let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
            written += line.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        (seconds, written)
    }

    /// Resident bytes of the largest node.
    pub fn resident_bytes_max(&self) -> u64 {
        let resident = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|text| text.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        self.nodes.iter().filter_map(|node| node.child.as_ref()).map(|child| resident(child.id())).max().unwrap_or(0)
    }

    /// Leaves the processes running when this is dropped.
    pub fn keep(mut self) {
        self.kept = true;
        self.guardian.dismiss();
        for node in &mut self.nodes {
            // Dropping a Child does not stop it.
            drop(node.child.take());
        }
    }

    /// Pid of the node named so, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.nodes.iter().find(|node| node.name == name)?.child.as_ref().map(Child::id)
    }

    /// Pids of the running nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.child.as_ref()).map(Child::id).collect()
    }
}

/// User and system time of a process, in seconds (Linux counts in hundredths).
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept {
            // Whoever cannot be killed from here is left to the guardian.
            if self.kill(|_| true).is_ok() {
                self.guardian.dismiss();
            }
        }
    }
}
