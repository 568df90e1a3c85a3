//! A driver for a cluster that runs on Kubernetes: kills pods and cuts sites through `kubectl`, for game days.
//!
//! **Invariants.**
//! - It changes nothing but pods that the selector finds (deleted, so that their controller makes them again, or paused) and
//!   NetworkPolicies that carry [`OURS`]. These are removed, and paused nodes told to go on, when the driver is dropped and by
//!   [`Kubectl::clean`]; policies also by hand with the same label.
//! - A killed node is held off the network until it is started: its controller brings the pod back at once, and a node that answers
//!   after a second would be no outage. Pods are never deleted by force: policies no longer count for a process whose pod is gone
//!   from the cluster's records, and it goes on for as long as it takes to stop.
//! - A restart of a node's container, or another pod in its place, that is not of our making is told as an end by itself.
//! - What a NetworkPolicy cannot express (delay, loss, one direction) is refused before anything is changed.
//! - Every call has a time limit; every error says which command failed and what to do.
//! - In a dry run what would change something is printed and not done.

mod call;
mod pods;
mod policy;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{Ability, Death, Driver};
use crate::{net::Conditions, record::NodeInfo};
use call::Caller;
use pods::{Pod, PodList, pod, restarted};
use policy::Isolation;

/// Label, and its value, of everything that is made here.
pub const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "pacsvault-chaos");
/// How often a pod that is to come back is looked at.
const POLL: Duration = Duration::from_secs(1);
/// How often pods are looked at for restarts.
const WATCH: Duration = Duration::from_secs(5);
/// How long looking may fail before that is an error.
const BLIND_FOR: Duration = Duration::from_secs(60);
/// How long after it stood still a node may be restarted because of it, by a probe that it did not answer.
const PROBED_FOR: Duration = Duration::from_secs(60);
/// What an exec ends with whose container was killed meanwhile.
const KILLED: &str = "exit code 137";

/// Which cluster, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program; `kubectl` from the path by default.
    pub program: PathBuf,
    /// Context of its configuration; the current one when absent.
    pub context: Option<String>,
    /// Namespace of the pods.
    pub namespace: String,
    /// Finds the pods of storage nodes and witnesses.
    pub selector: String,
    /// Container of the node in these pods; the pod's default one when absent.
    pub container: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// For each call.
    pub call_within: Duration,
    /// For a pod to be ready again.
    pub ready_within: Duration,
}

impl Options {
    /// With the time limits that suit most clusters.
    pub fn new(namespace: impl Into<String>, selector: impl Into<String>) -> Self {
        Self {
            program: PathBuf::from("kubectl"),
            context: None,
            namespace: namespace.into(),
            selector: selector.into(),
            container: None,
            dry_run: false,
            call_within: Duration::from_secs(30),
            ready_within: Duration::from_secs(180),
        }
    }
}

/// The driver.
pub struct Kubectl {
    caller: Caller,
    ready_within: Duration,
    selector: String,
    pods: BTreeMap<String, Pod>,
    abilities: BTreeSet<Ability>,
    /// Why links cannot be cut, if so.
    no_cuts: Option<String>,
    /// Nodes held down.
    down: BTreeSet<String>,
    /// Nodes that may stand still.
    paused: BTreeSet<String>,
    /// Whom each node cannot reach.
    cut: BTreeMap<String, BTreeSet<String>>,
    /// Names of policies in force.
    applied: BTreeSet<String>,
    /// Nodes that are on their way back, so that their restarts are ours.
    returning: BTreeSet<String>,
    /// Until when restarts of a node that stood still are ours.
    probed: BTreeMap<String, Instant>,
    /// Ends that were not ours and have not been told.
    ended: Vec<(String, String)>,
    began: Instant,
    /// When pods were looked at last.
    looked: Instant,
    /// Whether logs can be read.
    reads_logs: bool,
    /// Panics in logs of pods that are gone.
    panics: Vec<String>,
    /// Nodes that were killed before their log was read.
    unread: BTreeSet<String>,
}

impl Kubectl {
    /// Finds the pods and what can be done to them; nothing is changed.
    ///
    /// # Errors
    /// There is no such program or cluster, it finds no pods, or a pod does not tell its site or has no label of its own.
    pub fn attach(options: &Options) -> anyhow::Result<Self> {
        let mut driver = Self::new(options);
        driver.refresh()?;
        let (key, value) = OURS;
        let left = driver.policies(&format!("{key}={value}"))?;
        ensure!(
            left.is_empty(),
            "policies of another run are in force ({}): let it end, or remove what it left with `pacsvault-chaos attach --clean`",
            left.join(", ")
        );
        driver.no_cuts = driver.foreign_policies()?;
        if driver.no_cuts.is_none() {
            driver.abilities.insert(Ability::Network);
        }
        if driver.can_pause() {
            driver.abilities.insert(Ability::Pause);
        }
        let first = driver.pods.values().next().map(|pod| pod.name.clone());
        driver.reads_logs = first.is_some_and(|pod| driver.caller.log(&pod, "--tail=1").is_ok());
        Ok(driver)
    }

    fn new(options: &Options) -> Self {
        Self {
            caller: Caller::new(options),
            ready_within: options.ready_within,
            selector: options.selector.clone(),
            pods: BTreeMap::new(),
            abilities: BTreeSet::from([Ability::Kill]),
            no_cuts: None,
            down: BTreeSet::new(),
            paused: BTreeSet::new(),
            cut: BTreeMap::new(),
            applied: BTreeSet::new(),
            returning: BTreeSet::new(),
            probed: BTreeMap::new(),
            ended: Vec::new(),
            began: Instant::now(),
            looked: Instant::now(),
            reads_logs: false,
            panics: Vec::new(),
            unread: BTreeSet::new(),
        }
    }

    /// Removes every NetworkPolicy that an attached run left behind, and has paused nodes go on; tells the policies' names.
    ///
    /// # Errors
    /// `kubectl` fails, or finds no pods.
    pub fn clean(options: &Options) -> anyhow::Result<Vec<String>> {
        let mut driver = Self::new(options);
        let removed = remove_all(&driver.caller)?;
        driver.refresh()?;
        if driver.can_pause() {
            let nodes: Vec<String> = driver.pods.keys().cloned().collect();
            driver.signal(&nodes, "CONT")?;
        }
        Ok(removed)
    }

    /// What stands in the way of cutting links; `None` when nothing does.
    pub fn no_cuts(&self) -> Option<&str> {
        self.no_cuts.as_deref()
    }

    /// Looks at the pods anew: addresses change when one is made again.
    fn refresh(&mut self) -> anyhow::Result<()> {
        let text = self.caller.read(&["get", "pods", "-l", &self.selector, "-o", "json"])?;
        let list: PodList = serde_json::from_str(&text).context("kubectl get pods gave something else than pods")?;
        let mut pods = BTreeMap::new();
        for item in list.items.into_iter().filter(|item| item.metadata.deletion_timestamp.is_none()) {
            let (node, pod) = pod(item)?;
            if let Some(other) = pods.insert(node.clone(), pod) {
                bail!("pods {} and another both say that they are node {node}: correct their labels", other.name);
            }
        }
        ensure!(
            !pods.is_empty() || !self.pods.is_empty(),
            "no pod has the labels {}: give --selector and --namespace of the storage nodes",
            self.selector
        );
        // One that is being made again is still a node of ours.
        for (node, old) in std::mem::take(&mut self.pods) {
            if let Some(how) = pods.get(&node).and_then(|new| restarted(&old, new)).filter(|_| !self.is_ours(&node)) {
                self.ended.push((node.clone(), how));
            }
            pods.entry(node).or_insert(Pod { ready: false, ..old });
        }
        self.pods = pods;
        self.looked = Instant::now();
        Ok(())
    }

    /// Whether a restart of a node is of our making.
    fn is_ours(&self, node: &str) -> bool {
        let probed = self.probed.get(node).is_some_and(|until| Instant::now() < *until);
        probed || [&self.down, &self.paused, &self.returning].iter().any(|some| some.contains(node))
    }

    /// Panics in the logs of a node's pod since the driver was attached.
    fn panics_of(&self, node: &str, pod: &Pod) -> anyhow::Result<Vec<String>> {
        let since = format!("--since={}s", self.began.elapsed().as_secs() + 1);
        let mut log = self.caller.log(&pod.name, &since)?;
        if pod.restarts.values().any(|(count, _)| *count > 0) {
            log.push_str(&self.caller.log(&pod.name, "--previous")?);
        }
        Ok(log.lines().filter(|line| line.contains("panicked")).map(|line| format!("{node}: {line}")).collect())
    }

    /// Names of the NetworkPolicies with such labels.
    fn policies(&self, labels: &str) -> anyhow::Result<Vec<String>> {
        let text = self.caller.read(&["get", "networkpolicies", "-l", labels, "-o", "name"])?;
        Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
    }

    /// Other NetworkPolicies add to what is allowed, so ours could not forbid anything.
    fn foreign_policies(&self) -> anyhow::Result<Option<String>> {
        let names = self.policies(&format!("{}!={}", OURS.0, OURS.1))?;
        Ok((!names.is_empty()).then(|| {
            format!(
                "the namespace has NetworkPolicies of its own ({}), and policies only ever add to what is allowed: what ours cut, \
                 they could allow. Try on a namespace without, or remove them for the game day",
                names.join(", ")
            )
        }))
    }

    /// Whether the process of a node can be stopped from inside its pod: process 1 of a namespace cannot.
    fn can_pause(&self) -> bool {
        let script = format!("{PID_OF_NODE} && [ \"$p\" != 1 ] && kill -0 \"$p\"");
        let first = self.pods.values().find(|pod| pod.ready).or_else(|| self.pods.values().next());
        first.is_some_and(|pod| self.caller.ask(&pod.name, &script).is_ok())
    }

    fn pod(&self, node: &str) -> anyhow::Result<&Pod> {
        self.pods.get(node).with_context(|| {
            let known: Vec<&str> = self.pods.keys().map(String::as_str).collect();
            format!("there is no node {node}; there are {}", known.join(", "))
        })
    }

    /// Sends a signal to all that can be reached, whatever fails; the first error is told.
    fn signal(&self, nodes: &[String], signal: &str) -> anyhow::Result<()> {
        let mut all = Ok(());
        for node in nodes {
            let script = format!("{PID_OF_NODE} && kill -{signal} \"$p\"");
            let one = self.pod(node).and_then(|pod| self.caller.script(&pod.name, &script).map(drop));
            all = all.and(one.with_context(|| format!("cannot send SIG{signal} to {node}")));
        }
        all
    }

    /// Makes the policies in the cluster those that are wanted now.
    fn enforce(&mut self) -> anyhow::Result<()> {
        let mut wanted = Vec::new();
        let sides = policy::sides(&self.cut, &self.down);
        for (node, pod) in &self.pods {
            let whom: Vec<&Pod> =
                sides.get(node).into_iter().flatten().filter_map(|other| self.pods.get(other)).collect();
            if self.down.contains(node) {
                wanted.push(Isolation::full(node, pod, self.caller.namespace()));
            } else if !whom.is_empty() {
                wanted.push(Isolation::from_some(node, pod, &whom, self.caller.namespace()));
            }
        }
        let names: BTreeSet<String> = wanted.iter().map(|policy| policy.name.clone()).collect();
        if !wanted.is_empty() {
            let list = policy::list(&wanted);
            // Noted before: a call that fails half-way may have made some.
            self.applied.extend(names.iter().cloned());
            self.caller.change(&["apply", "-f", "-"], Some(&list))?;
        }
        let over: Vec<String> = self.applied.difference(&names).cloned().collect();
        if !over.is_empty() {
            let mut command = vec!["delete", "networkpolicies", "--ignore-not-found"];
            command.extend(over.iter().map(String::as_str));
            self.caller.change(&command, None)?;
            self.applied = names;
        }
        Ok(())
    }

    /// Kills the node in a pod from inside.
    fn end(&self, pod: &str) -> anyhow::Result<()> {
        match self.caller.script(pod, &format!("{PID_OF_NODE} && kill -KILL \"$p\"")) {
            // The container went before the shell in it could tell.
            Err(error) if !format!("{error:#}").contains(KILLED) => Err(error.context(format!("cannot kill {pod}"))),
            _ => Ok(()),
        }
    }

    /// What the logs of nodes tell before these are gone.
    fn keep_panics(&mut self, nodes: &[String]) {
        if !self.reads_logs {
            return;
        }
        for node in nodes {
            match self.pod(node).and_then(|pod| self.panics_of(node, pod)) {
                Ok(found) => self.panics.extend(found),
                Err(error) => {
                    eprintln!("warning: the log of {node} is lost with its pod: {error:#}");
                    self.unread.insert(node.clone());
                }
            }
        }
    }

    fn ready_again(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        if self.caller.dry_run() {
            return Ok(());
        }
        let deadline = Instant::now() + self.ready_within;
        loop {
            self.refresh()?;
            let missing: Vec<&str> = (nodes.iter().map(String::as_str))
                .filter(|node| self.pods.get(*node).is_none_or(|pod| !pod.ready))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not ready again within {} s: {}; look at `kubectl describe pod`",
                self.ready_within.as_secs(),
                missing.join(", ")
            );
            thread::sleep(POLL.min(self.ready_within / 10));
        }
    }
}

/// Sets `p` to the process of the node.
const PID_OF_NODE: &str = "p=$(pidof pacsvault-node)";

fn remove_all(caller: &Caller) -> anyhow::Result<Vec<String>> {
    let ours = format!("{}={}", OURS.0, OURS.1);
    let text = caller.change(&["delete", "networkpolicies", "-l", &ours, "--ignore-not-found", "-o", "name"], None)?;
    Ok(text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect())
}

impl Driver for Kubectl {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.pods.iter().map(|(name, pod)| NodeInfo { name: name.clone(), site: pod.site.clone() }).collect()
    }

    fn abilities(&self) -> BTreeSet<Ability> {
        self.abilities.clone()
    }

    fn kill(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        let mut names = Vec::new();
        for node in nodes {
            names.push(self.pod(node)?.name.clone());
        }
        if names.is_empty() {
            return Ok(());
        }
        self.keep_panics(nodes);
        self.down.extend(nodes.iter().cloned());
        if self.no_cuts.is_none() {
            self.enforce()?;
        }
        if self.death() == Death::Sudden {
            names.iter().try_for_each(|name| self.end(name))?;
        }
        let mut command = vec!["delete", "pods", "--grace-period=1", "--wait=false", "--ignore-not-found"];
        command.extend(names.iter().map(String::as_str));
        self.caller.change(&command, None)?;
        Ok(())
    }

    /// What a pod's deletion does is told by SIGTERM; only from inside a node can be killed at once.
    fn death(&self) -> Death {
        if self.abilities.contains(&Ability::Pause) { Death::Sudden } else { Death::Told }
    }

    fn start(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        for node in nodes {
            self.pod(node)?;
        }
        self.returning.extend(nodes.iter().cloned());
        self.down.retain(|node| !nodes.contains(node));
        if self.no_cuts.is_none() {
            self.enforce()?;
        }
        self.ready_again(nodes)?;
        self.returning.retain(|node| !nodes.contains(node));
        // It has another address now, which cuts that go on must know.
        if self.cut.values().any(|whom| !whom.is_empty()) { self.enforce() } else { Ok(()) }
    }

    fn pause(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        if !self.abilities.contains(&Ability::Pause) {
            bail!(
                "this driver cannot {}: in these pods the node is process 1, which nothing inside can stop. With \
                 shareProcessNamespace: true in the pod's spec it could",
                Ability::Pause
            );
        }
        // Noted before: a call that fails half-way may have stopped some.
        self.paused.extend(nodes.iter().cloned());
        self.signal(nodes, "STOP")
    }

    fn resume(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.signal(nodes, "CONT")?;
        self.paused.retain(|node| !nodes.contains(node));
        self.probed.extend(nodes.iter().map(|node| (node.clone(), Instant::now() + PROBED_FOR)));
        Ok(())
    }

    fn shape(&mut self, conditions: &Conditions) -> anyhow::Result<()> {
        let cut = policy::cuts(conditions, &self.pods.keys().cloned().collect())?;
        if let Some(why) = self.no_cuts.as_deref().filter(|_| !cut.is_empty()) {
            bail!("this driver cannot {}: {why}", Ability::Network);
        }
        if cut.is_empty() && self.cut.is_empty() {
            return Ok(());
        }
        self.refresh()?;
        self.cut = cut;
        self.enforce()
    }

    fn panics(&self) -> anyhow::Result<Option<Vec<String>>> {
        if !self.reads_logs {
            return Ok(None);
        }
        let mut found = self.panics.clone();
        for (node, pod) in &self.pods {
            found.extend(self.panics_of(node, pod)?);
        }
        // Nobody has read the whole.
        Ok((self.unread.is_empty() || !found.is_empty()).then_some(found))
    }

    fn ended(&mut self) -> anyhow::Result<Option<Vec<(String, String)>>> {
        if self.looked.elapsed() >= WATCH
            && let Err(error) = self.refresh()
            && self.looked.elapsed() > BLIND_FOR
        {
            return Err(error);
        }
        Ok(Some(std::mem::take(&mut self.ended)))
    }

    fn look_again(&mut self) -> anyhow::Result<()> {
        self.refresh()
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        let paused: Vec<String> = self.paused.iter().cloned().collect();
        if let Err(error) = self.signal(&paused, "CONT") {
            eprintln!("error: {error:#}\nsuch a node stands still until `attach --clean`, or until its pod is deleted");
        }
        // By label: also what a call made that then failed.
        if !self.applied.is_empty()
            && let Err(error) = remove_all(&self.caller)
        {
            eprintln!(
                "error: NetworkPolicies are left behind: {error:#}\nremove them with `pacsvault-chaos attach --clean --namespace {}`",
                self.caller.namespace()
            );
        }
    }
}
