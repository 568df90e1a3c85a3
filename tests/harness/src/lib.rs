//! A whole cluster on this machine: certificates, configurations and processes, for the demo and the benchmarks.
//!
//! **Invariants.** Every process started is stopped by its pid when the cluster is dropped, unless it is to be kept.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

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
        issue("operator", "admin")?;
        issue("gateway", "demo")?;
        let ports = free_ports(sites * nodes * 2)?;
        let seeds: Vec<String> = ports.iter().take(sites).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut cluster = Self { bin: bin.to_path_buf(), dir: dir.to_path_buf(), nodes: Vec::new(), kept: false };
        for number in 0..nodes {
            for letter in ('a'..='z').take(sites) {
                let name = format!("{letter}{}", number + 1);
                issue("node", &name)?;
                let index = cluster.nodes.len();
                cluster.describe(name, letter, ports[index], ports[sites * nodes + index], &seeds)?;
            }
        }
        cluster.write_client_config("operator-admin", "admin.toml")?;
        cluster.write_client_config("gateway-demo", "client.toml")?;
        Ok(cluster)
    }

    /// Writes a node's configuration and takes it in, stopped.
    fn describe(&mut self, name: String, site: char, port: u16, ops: u16, seeds: &[String]) -> anyhow::Result<()> {
        let home = self.dir.join(&name);
        fs::create_dir_all(&home)?;
        let config = home.join("node.toml");
        let seeds: Vec<String> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let text = format!(
            "name = \"{name}\"\nsite = \"{site}\"\ndata_dir = \"data\"\nlisten = \"127.0.0.1:{port}\"\n\
             ops_listen = \"127.0.0.1:{ops}\"\njoin = [{}]\n\n[tls]\nca = \"../pki/ca.pem\"\n\
             cert = \"../pki/node-{name}.pem\"\nkey = \"../pki/node-{name}.key\"\n\n[[volumes]]\npath = \"volume\"\n\
             capacity = \"64GiB\"\n",
            seeds.join(", ")
        );
        fs::write(&config, text)?;
        self.nodes.push(Node {
            log: home.join("node.log"),
            name,
            site: site.to_string(),
            address: format!("127.0.0.1:{port}"),
            ops: format!("127.0.0.1:{ops}"),
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
        issue("node", &name)?;
        let ports = free_ports(2)?;
        let seeds: Vec<String> = self.nodes.iter().take(3).map(|node| node.address.clone()).collect();
        self.describe(name.clone(), site, ports[0], ports[1], &seeds)?;
        Ok(name)
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
            let mut command = Command::new(node.bin.as_ref().unwrap_or(&bin).join("pacsvault-node"));
            command.arg("--config").arg(&node.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.envs(node.environment.iter().map(|(name, value)| (name, value)));
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
                // The shell's own `kill`: the program of that name is not on every machine.
                output(Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal, &child.id().to_string()]))?;
            }
        }
        Ok(())
    }

    /// Stops the nodes that `which` selects in order (SIGTERM) and waits until they have ended.
    pub fn stop(&mut self, limit: Duration, which: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        self.signal("TERM", &which)?;
        let began = Instant::now();
        for node in self.nodes.iter_mut().filter(|node| which(node)) {
            let Some(child) = &mut node.child else { continue };
            while child.try_wait()?.is_none() {
                if began.elapsed() > limit {
                    bail!("node {} did not stop within {} s of SIGTERM", node.name, limit.as_secs());
                }
                thread::sleep(Duration::from_millis(20));
            }
            node.child = None;
        }
        Ok(())
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
        let first = &self.nodes[0].address;
        self.until(Duration::from_secs(60), "the first node to found the cluster", || {
            Ok(output(self.admin().args(["--endpoints", first, "cluster", "init"])).is_ok())
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
            // Best effort on the way out: whatever is left is reported by the next start as a busy port or lock.
            let _ = self.kill(|_| true);
        }
    }
}
