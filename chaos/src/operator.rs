//! What people do about a cluster: fence what is lost, remove nodes, drain them, add new ones, replace disks.
//!
//! **Invariants.** A person is patient: what is refused for now is asked for again, until [`Operator::give_up`]. A node whose
//! data is lost never comes back under its old identity.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use pacsvault_consensus::Status;
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, command::DrainTarget},
    health::report::Health,
    ids::{NodeId, ProfileName, VolumeId},
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::peer::{Reply, Request};
use pacsvault_service::FORMAT_VERSION;

use crate::{
    cluster::{Cluster, Stop},
    exec::Life,
    nemesis::Nemesis,
    scenario::Fault,
    workload::key_name,
};

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(700);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// So often in a row a drain may be told to be unsafe after it was begun, before it is taken back.
const UNSAFE_MAX: u32 = 20;

/// The people behind one cluster.
pub struct Operator {
    cluster: Arc<Cluster>,
    jobs: AtomicUsize,
    gave_up: AtomicBool,
    /// What was ordered to be drained without an answer: the order may come yet.
    unanswered: Mutex<BTreeSet<DrainTarget>>,
}

/// What becomes of a node that is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDrain {
    /// It is taken back after a while.
    TakenBack,
    /// It is removed when it is empty; a new node takes its machine.
    Removed,
}

impl Operator {
    /// Does nothing yet.
    pub fn new(cluster: &Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            jobs: AtomicUsize::new(0),
            gave_up: AtomicBool::new(false),
            unanswered: Mutex::default(),
        })
    }

    /// How many things are still to be done.
    pub fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Relaxed)
    }

    /// Ends all patience: what is still to be done is left undone.
    pub fn give_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    /// Begins a job.
    pub fn begin<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, job: impl FnOnce(Arc<Self>) -> F) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        let (operator, job) = (Arc::clone(self), job(Arc::clone(self)));
        let task = async move {
            job.await;
            operator.jobs.fetch_sub(1, Ordering::Relaxed);
        };
        self.cluster.sim.spawn(Life::HARNESS, Box::pin(task));
    }

    async fn pause(&self, duration: Duration) {
        self.cluster.sim.sleep(Life::HARNESS, duration).await;
    }

    fn patient(&self) -> bool {
        !self.gave_up.load(Ordering::Relaxed)
    }

    /// Asks some machine that runs.
    async fn ask(&self, request: Request) -> Option<Reply> {
        let running: Vec<usize> = (0..self.cluster.count()).filter(|at| !self.cluster.is_down(*at)).collect();
        if running.is_empty() {
            return None;
        }
        let at = self.cluster.sim.random(|rng| *rng.pick(&running));
        self.cluster.operator().call(&self.cluster.target(at), request, CALL).await.ok()
    }

    /// Proposes until there is an answer.
    async fn propose(&self, command: Command) -> Option<Outcome> {
        while self.patient() {
            if let Some(Reply::Outcomes(outcomes)) = self.ask(Request::Propose(vec![command.clone()])).await {
                return outcomes.into_iter().next();
            }
            if let Command::SetDrain { target, draining: true } = &command {
                self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).insert(*target);
            }
            self.pause(AGAIN).await;
        }
        None
    }

    /// Proposes until it is accepted, or is of something that the cluster never heard of.
    async fn insist(&self, command: Command) -> bool {
        while self.patient() {
            match self.propose(command.clone()).await {
                Some(Outcome::Rejected(Rejection::Unknown(_))) => return true,
                Some(Outcome::Rejected(why)) => {
                    self.cluster.sim.event("operator refused", &[], || format!("{command:?}: {why}"));
                }
                Some(_) => return true,
                None => {}
            }
            self.pause(AGAIN).await;
        }
        false
    }

    /// The id of the node on machine `at`.
    fn node(&self, at: usize) -> Option<NodeId> {
        let incarnation = self.cluster.machines()[at].incarnation;
        let layout = crate::proof::newest(&self.cluster)?.layout()?;
        layout.nodes.values().find(|node| node.incarnation == incarnation).map(|node| node.id)
    }

    fn volumes(&self, at: usize) -> Vec<VolumeId> {
        self.cluster.machines()[at].volumes.iter().map(|volume| volume.id).collect()
    }

    /// Machine `at` lost everything: its volumes are fenced, a new node takes its place, the old one is removed.
    pub async fn wipe(self: Arc<Self>, nemesis: Arc<Nemesis>, at: usize) {
        let (node, volumes) = (self.node(at), self.volumes(at));
        let Some(node) = node.filter(|_| nemesis.take(at)) else { return };
        self.cluster.wipe(at);
        let (notices, same_name) = self.cluster.sim.random(|rng| (rng.micros(50_000, 6_000_000), rng.chance(300)));
        self.pause(notices).await;
        for volume in volumes {
            if !self.insist(Command::SetVolumeState { volume, state: VolumeState::Fenced }).await {
                return;
            }
        }
        let mut removed = false;
        if same_name {
            for _ in 0..8 {
                if removed || !nemesis.faults_last() {
                    break;
                }
                removed = self.try_remove(node).await;
                self.pause(AGAIN).await;
            }
        }
        if removed {
            self.cluster.sim.hit("wiped node replaced under its name");
        }
        self.cluster.refit(at, removed);
        nemesis.give_back(at);
        if !removed {
            self.remove(node).await;
        }
        self.cluster.sim.hit("operator: removed a node that was lost");
    }

    async fn try_remove(&self, node: NodeId) -> bool {
        let state = NodeState::Removed;
        match self.propose(Command::SetNodeState { node, state }).await {
            Some(Outcome::Rejected(why)) => {
                self.cluster.sim.event("operator refused", &[node.0], || format!("removal: {why}"));
                self.cluster.sim.hit("operator: removal refused for now");
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    async fn remove(&self, node: NodeId) {
        while self.patient() && !self.try_remove(node).await {
            self.pause(AGAIN).await;
        }
    }

    /// Drains the node of machine `at`.
    pub async fn drain(self: Arc<Self>, nemesis: Arc<Nemesis>, at: usize, then: AfterDrain) {
        let Some(node) = self.node(at) else { return };
        let incarnation = self.cluster.machines()[at].incarnation;
        // The log has a word of its own where nobody asked before.
        let asks = self.cluster.sim.random(|rng| rng.chance(700));
        if asks && !self.drains_safely(DrainTarget::Node(node)).await {
            return;
        }
        if !self.set_drain(DrainTarget::Node(node), true).await {
            return;
        }
        if then == AfterDrain::TakenBack {
            let lasts = self.cluster.sim.random(|rng| rng.micros(500_000, 8_000_000));
            self.pause(lasts).await;
            if self.cluster.machines()[at].incarnation == incarnation {
                self.insist(Command::SetDrain { target: DrainTarget::Node(node), draining: false }).await;
            }
            return;
        }
        let mut unsafe_times = 0;
        while self.patient() {
            if self.cluster.machines()[at].incarnation != incarnation {
                // It was lost meanwhile, and is replaced.
                return;
            }
            let plan = self.ask(Request::DrainPlan(DrainTarget::Node(node))).await;
            let empty = matches!(&plan, Some(Reply::DrainPlan(plan)) if plan.empty);
            if empty && self.try_remove(node).await {
                break;
            }
            match &plan {
                Some(Reply::DrainPlan(plan)) if !plan.safe && !plan.empty => unsafe_times += 1,
                Some(Reply::DrainPlan(_)) => unsafe_times = 0,
                _ => {}
            }
            if unsafe_times == UNSAFE_MAX {
                self.cluster.sim.hit("operator: took back a drain that became unsafe");
                self.insist(Command::SetDrain { target: DrainTarget::Node(node), draining: false }).await;
                return;
            }
            self.cluster.sim.event("drain", &[node.0], || format!("{plan:?}"));
            self.pause(AGAIN).await;
        }
        // Its vote is needed until another has it.
        while self.patient() && self.votes(node) {
            self.pause(AGAIN).await;
        }
        if self.patient() && nemesis.take(at) {
            self.cluster.sim.hit("operator: removed a node that was drained");
            self.cluster.wipe(at);
            self.cluster.refit(at, false);
            nemesis.give_back(at);
        }
    }

    /// Asks whether a drain is safe, as the command line does before it begins one.
    async fn drains_safely(&self, target: DrainTarget) -> bool {
        while self.patient() {
            if let Some(Reply::DrainPlan(plan)) = self.ask(Request::DrainPlan(target)).await {
                if !plan.safe {
                    self.cluster.sim.hit("operator: drain not begun: it is not safe");
                    self.cluster.sim.event("operator refrains", &[], || format!("{target:?}: {:?}", plan.reasons));
                }
                return plan.safe;
            }
            self.pause(AGAIN).await;
        }
        false
    }

    async fn set_drain(&self, target: DrainTarget, draining: bool) -> bool {
        match self.propose(Command::SetDrain { target, draining }).await {
            Some(Outcome::Rejected(why)) => {
                self.cluster.sim.hit("operator: drain refused");
                self.cluster.sim.event("operator refused", &[], || format!("{target:?}: {why}"));
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    /// Takes back a drain that nobody wants: one whose order was answered by nothing, and arrived late.
    pub fn take_back_drains(self: &Arc<Self>) {
        let Some(layout) = crate::proof::newest(&self.cluster).and_then(|replica| replica.layout()) else { return };
        let nodes = layout.nodes.values().filter(|node| node.draining && node.state != NodeState::Removed);
        let volumes = layout.volumes.values().filter(|one| one.draining && one.state != VolumeState::Fenced);
        let nodes = nodes.map(|node| DrainTarget::Node(node.id));
        let unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut drained = nodes.chain(volumes.map(|one| DrainTarget::Volume(one.id)));
        if let Some(target) = drained.find(|target| unanswered.contains(target)) {
            self.cluster.sim.hit("operator: took back a drain that had come late");
            self.begin(|operator| async move {
                // Given up when the run ends: then the judges say what is left of it.
                let _ = operator.insist(Command::SetDrain { target, draining: false }).await;
            });
        }
    }

    /// Drains a volume of machine `at`, and takes it back later.
    pub async fn drain_volume(self: Arc<Self>, at: usize) {
        let volumes = self.volumes(at);
        if volumes.is_empty() {
            return;
        }
        let (volume, lasts) = self.cluster.sim.random(|rng| (*rng.pick(&volumes), rng.micros(500_000, 8_000_000)));
        let target = DrainTarget::Volume(volume);
        if self.drains_safely(target).await && self.set_drain(target, true).await {
            self.pause(lasts).await;
            // Refused for ever when it was fenced meanwhile.
            self.propose(Command::SetDrain { target, draining: false }).await;
        }
    }

    /// A study is to be kept in a drawn profile from now on, or in that of its writers.
    pub async fn change_profile(self: Arc<Self>) {
        let profiles: Vec<ProfileName> = self.cluster.scenario.profiles().map(|profile| profile.name.clone()).collect();
        let (key, wanted) = self.cluster.sim.random(|rng| (rng.index(2), rng.index(profiles.len() + 1)));
        let command = self.set_profile(key, profiles.get(wanted).cloned());
        match self.propose(command).await {
            // The version of commands that has it may not be in force yet.
            Some(Outcome::Rejected(why)) => {
                self.cluster.sim.hit("operator: change of a profile refused");
                self.cluster.sim.event("operator refused", &[], || format!("change of a profile: {why}"));
            }
            Some(_) => self.cluster.sim.hit(Fault::ChangeProfile.name()),
            None => {}
        }
    }

    /// Has every study kept in the other profile.
    pub async fn recode_all(self: Arc<Self>) {
        let Some(other) = self.cluster.scenario.other.as_ref().map(|other| other.name.clone()) else { return };
        for key in 0..2 {
            self.insist(self.set_profile(key, Some(other.clone()))).await;
        }
    }

    /// The order to keep the study of `key` in this profile; noted before it is given.
    fn set_profile(&self, key: usize, profile: Option<ProfileName>) -> Command {
        let name = key_name(key);
        if let Some(profile) = &profile {
            self.cluster.ask(&name.study, profile);
        }
        Command::SetStudyProfile { tenant: name.tenant, study: name.study, profile }
    }

    /// A disk of machine `at` is replaced by an empty one.
    pub async fn replace(self: Arc<Self>, nemesis: Arc<Nemesis>, at: usize, volume: VolumeId) {
        if !nemesis.take(at) {
            return;
        }
        self.cluster.stop(at, Stop::Power);
        self.cluster.replace_volume(at, volume);
        nemesis.give_back(at);
        // Half of the operators leave it to the cluster to notice.
        if self.cluster.sim.random(|rng| rng.chance(500)) {
            self.give_up_volume(volume).await;
        }
    }

    /// Declares a volume lost, whatever it still holds.
    pub async fn give_up_volume(self: Arc<Self>, volume: VolumeId) {
        self.insist(Command::SetVolumeState { volume, state: VolumeState::Fenced }).await;
    }

    /// Replaces a disk whose volume was fenced, if there is one on a machine that runs.
    pub fn replace_fenced(self: &Arc<Self>, nemesis: &Arc<Nemesis>) {
        let Some(layout) = crate::proof::newest(&self.cluster).and_then(|replica| replica.layout()) else { return };
        for at in 0..self.cluster.count() {
            for volume in self.volumes(at) {
                let fenced = layout.volumes.get(&volume).is_some_and(|known| known.state == VolumeState::Fenced);
                if fenced && !self.cluster.is_down(at) {
                    self.cluster.sim.hit("operator: replaced a fenced volume");
                    let nemesis = Arc::clone(nemesis);
                    self.begin(|operator| operator.replace(nemesis, at, volume));
                    return;
                }
            }
        }
    }

    /// Installs the present release everywhere, node by node in drawn order, until its version is in force.
    pub async fn upgrade(self: Arc<Self>, nemesis: Arc<Nemesis>) {
        let sim = self.cluster.sim.clone();
        let mut rest: Vec<usize> = (0..self.cluster.count()).collect();
        while !rest.is_empty() && self.patient() {
            let (at, waits) = sim.random(|rng| (rng.index(rest.len()), rng.micros(100_000, 1_800_000)));
            let at = rest.swap_remove(at);
            self.pause(waits).await;
            self.check_gate();
            let behind = self.cluster.machines()[at].format < FORMAT_VERSION;
            // One that is blank gets the present release when it is made anew.
            if behind && nemesis.take(at) {
                self.cluster.machines()[at].format = FORMAT_VERSION;
                sim.hit("upgrade: node restarted with the present release");
                nemesis.give_back(at);
            }
        }
        while self.patient() {
            self.check_gate();
            let layout = crate::proof::newest(&self.cluster).and_then(|replica| replica.layout());
            if layout.is_some_and(|layout| layout.format == FORMAT_VERSION) {
                return sim.hit("upgrade: version put in force");
            }
            self.pause(AGAIN).await;
        }
    }

    /// No version is in force that some member's program does not understand.
    fn check_gate(&self) {
        let Some(layout) = crate::proof::newest(&self.cluster).and_then(|replica| replica.layout()) else { return };
        let machines = self.cluster.machines();
        for node in layout.nodes.values().filter(|node| node.state != NodeState::Removed) {
            let machine = machines.iter().find(|machine| machine.incarnation == node.incarnation);
            let understood = machine.is_none_or(|machine| machine.format >= layout.format);
            assert!(understood, "version {} is in force, which {} does not understand", layout.format, node.name);
        }
    }

    /// A node joins at `site`.
    pub fn add(&self, nemesis: &Nemesis, site: usize) {
        let at = self.cluster.add_machine(site);
        nemesis.up(at);
    }

    /// Has everything verified, everywhere, and tries again what was set aside.
    pub async fn scrub(self: Arc<Self>) {
        for at in 0..self.cluster.count() {
            let target = self.cluster.target(at);
            drop(self.cluster.operator().call(&target, Request::ScrubNow(None), CALL).await);
        }
        self.retry_aside().await;
    }

    /// Has what was set aside tried again.
    pub async fn retry_aside(self: Arc<Self>) {
        drop(self.ask(Request::Propose(vec![Command::RetryAside])).await);
    }

    /// What the cluster tells of its health.
    pub async fn health(&self) -> Option<Health> {
        match self.ask(Request::Health).await {
            Some(Reply::Health(health)) => Some(*health),
            _ => None,
        }
    }

    /// Whether one node may be lost for good: there are voters beside it.
    pub fn may_lose_a_node(&self) -> bool {
        let leads = |status: &Status| status.leader == Some(status.node);
        let replicas = (0..self.cluster.count()).filter_map(|at| self.cluster.replica(at));
        let leader = replicas.map(|replica| replica.status()).find(leads);
        leader.is_some_and(|status| status.voters.len() >= 3 && !status.joint)
    }

    /// Whether the node may still have a vote.
    fn votes(&self, node: NodeId) -> bool {
        let newest = crate::proof::newest(&self.cluster).map(|replica| replica.status());
        newest.is_none_or(|status| status.joint || status.voters.contains(&node))
    }
}
