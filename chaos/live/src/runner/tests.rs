//! The runner with an invented cluster: what does not hold must fail, and what was broken is lifted.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use pacsvault_judge::{Answer, Call};
use pacsvault_ports::peer::{Class, Fault as Refusal, Freshness, Peer, Reply, Request, Target};

use super::{waits::HEALED_FOR, *};
use crate::{
    eyes::Look,
    net::Carried,
    record::{HIDDEN, NodeInfo},
};

/// How long things may take here.
const LIMITS: Limits = Limits {
    served: Duration::from_millis(1_500),
    whole: Duration::from_secs(3),
    repairs: Duration::from_secs(1),
    healed: Duration::from_secs(3),
};

/// How the invented cluster misbehaves.
#[derive(Default)]
struct Vices {
    /// A site whose clients are not served under a fault.
    unserved: Option<&'static str>,
    /// Bytes come through a cut.
    leaks: bool,
    /// Writes are acknowledged without a majority.
    acknowledges: bool,
    /// Nodes answer though they were killed.
    undead: bool,
    /// The network stays as it is when it is to heal.
    stays_cut: bool,
    /// How long a cut takes to be in force, and nobody counts what links carry.
    slow: Option<Duration>,
}

#[derive(Default)]
struct World {
    vices: Vices,
    /// When a cut is in force.
    cut: Option<Instant>,
    /// Sites that reach no other one then.
    alone: BTreeSet<String>,
    down: BTreeSet<String>,
    carried: u64,
    /// What the driver was told.
    told: Vec<String>,
}

impl World {
    fn is_cut(&self) -> bool {
        self.cut.is_some_and(|at| at <= Instant::now())
    }

    fn broken(&self) -> bool {
        self.is_cut() || !self.down.is_empty()
    }

    fn serves(&self, site: &str) -> bool {
        let unserved = self.vices.unserved.is_some_and(|one| one == site) && self.broken();
        !unserved && (self.vices.acknowledges || !self.is_cut() || !self.alone.contains(site))
    }
}

type Shared = Arc<Mutex<World>>;

fn world(shared: &Shared) -> MutexGuard<'_, World> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Invented {
    world: Shared,
    topology: Topology,
}

impl Driver for Invented {
    fn nodes(&self) -> Vec<NodeInfo> {
        let of = |(site, nodes): (&String, &Vec<String>)| {
            let site = site.clone();
            nodes.clone().into_iter().map(move |name| NodeInfo { name, site: site.clone() })
        };
        self.topology.sites.iter().flat_map(of).collect()
    }

    fn abilities(&self) -> BTreeSet<Ability> {
        [Ability::Kill, Ability::Network].into()
    }

    fn kill(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        let mut world = world(&self.world);
        world.told.push(format!("kill {}", nodes.join(" ")));
        world.down.extend(nodes.iter().cloned());
        Ok(())
    }

    fn start(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        let mut world = world(&self.world);
        world.told.push(format!("start {}", nodes.join(" ")));
        world.down.retain(|node| !nodes.contains(node));
        if world.is_cut() { bail!("it finds no majority") } else { Ok(()) }
    }

    fn shape(&mut self, conditions: &Conditions) -> anyhow::Result<()> {
        let mut world = world(&self.world);
        let cut = conditions.links.values().any(|link| link.cut);
        world.told.push(if cut { "cut" } else { "heal" }.to_owned());
        if !cut && world.vices.stays_cut {
            bail!("the network stays as it is");
        }
        let takes = world.vices.slow.unwrap_or_default();
        world.cut = cut.then(|| Instant::now() + takes);
        let nodes = self.nodes();
        let reach = |from: &NodeInfo, to: &NodeInfo| {
            let link = conditions.links.get(&(from.name.clone(), to.name.clone()));
            from.site != to.site && link.is_none_or(|link| !link.cut)
        };
        let others = |from: &&NodeInfo| !nodes.iter().any(|to| reach(from, to));
        world.alone = nodes.iter().filter(others).map(|node| node.site.clone()).collect();
        Ok(())
    }

    fn traffic(&self) -> Option<Traffic> {
        let mut world = world(&self.world);
        if !world.is_cut() || world.vices.leaks {
            world.carried += 1;
        }
        let carried = Carried { bytes: world.carried, pieces: 1, under_way_us: 1 };
        let hosts: Vec<String> = self.topology.sites.keys().flat_map(|site| self.topology.hosts(site)).collect();
        let pairs = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (from.clone(), to.clone())));
        world.vices.slow.is_none().then(|| pairs.map(|pair| (pair, carried)).collect())
    }
}

impl Peer for Invented {
    fn call(&self, target: &Target, request: Request, _: Duration) -> BoxFuture<'static, Result<Reply, Refusal>> {
        let world = world(&self.world);
        let down = world.down.contains(&target.address) && !world.vices.undead;
        let newest = matches!(request, Request::Layout(Freshness::Linearizable));
        let alone =
            world.is_cut() && self.topology.site_of(&target.address).is_some_and(|site| world.alone.contains(site));
        let answers = !(down || newest && alone);
        let refused = || Refusal::new(Class::Retry, "PV-TEST", "nobody answers");
        let answer = if answers { Ok(Reply::Outcomes(Vec::new())) } else { Err(refused()) };
        async { answer }.boxed()
    }
}

/// An invented cluster under load.
struct Scene {
    driver: Invented,
    senses: Senses,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn set(vices: Vices) -> Self {
        let topology = Topology::new(3, 2, false);
        let shared: Shared = Arc::new(Mutex::new(World { vices, carried: 1, ..World::default() }));
        let invented = || Invented { world: shared.clone(), topology: topology.clone() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (dir, began) = (tempfile::tempdir().expect("a directory"), Instant::now());
        let eyes = Arc::new(Eyes::new(Arc::new(invented()), began, runtime.handle().clone()));
        eyes.watch(topology.nodes().into_iter().map(|name| (name.clone(), name)).collect());
        let recorder = Arc::new(Recorder::new(began, &dir.path().join("history.jsonl")).expect("a file"));
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (site, session) in topology.storing().into_iter().zip(1..) {
            recorder.seat(session, &site);
            let (recorder, shared, over) = (recorder.clone(), shared.clone(), over.clone());
            threads.push(thread::spawn(move || write_and_read(&recorder, &shared, &over, session, &site)));
        }
        let (looking, shared_too, seen) = (eyes.clone(), shared.clone(), over.clone());
        threads.push(thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                look_around(&looking, &shared_too);
                thread::sleep(Duration::from_millis(20));
            }
        }));
        let senses = Senses {
            eyes,
            recorder,
            interrupt: Interrupt::fixed(None),
            limits: LIMITS,
            wan_ms: Vec::new(),
            readers: Vec::new(),
        };
        Self { driver: invented(), senses, over, threads, _runtime: runtime, _dir: dir }
    }

    /// Carries out one step; what was told to the driver meanwhile, and what came of it.
    fn play(&mut self, step: Step) -> (Vec<String>, anyhow::Result<()>, Vec<FaultRecord>) {
        let topology = self.driver.topology.clone();
        let mut runner = Runner::new(&mut self.driver, &self.senses, &topology, u64::MAX);
        let result = runner.run(&Plan { steps: vec![step] });
        let faults = std::mem::take(&mut runner.faults);
        (world(&self.driver.world).told.clone(), result, faults)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What one of them did not survive shows in the test.
            let _ = thread.join();
        }
    }
}

fn write_and_read(recorder: &Recorder, shared: &Shared, over: &AtomicBool, session: u64, site: &str) {
    let key = format!("main/1.2/1.2/1.{session}");
    while !over.load(Ordering::Relaxed) {
        let put = Call::Put { attempt: Some("i".to_owned()), content: "c".to_owned(), size_bytes: 9 };
        let written = recorder.begin(session, &key, put);
        let read = recorder.begin(session, &key, Call::Get { version: None, linearizable: true });
        thread::sleep(Duration::from_millis(5));
        let serves = world(shared).serves(site);
        let stored = Answer::Stored { version: 1, attempt: "i".to_owned(), first: true };
        let found = Answer::Found { version: 1, content: "c".to_owned() };
        recorder.end(written, if serves { stored } else { Answer::Unknown }, 9);
        recorder.end(read, if serves { found } else { Answer::Unknown }, 9);
    }
}

fn look_around(eyes: &Eyes, shared: &Shared) {
    let down = world(shared).down.clone();
    let nodes = Topology::new(3, 2, false).nodes();
    let up: BTreeSet<String> = nodes.into_iter().filter(|name| !down.contains(name)).collect();
    let (began_ms, leader) = (eyes.now_ms(), up.first().cloned());
    eyes.keep(Look { began_ms, at_ms: began_ms, leader, answering: up.clone(), up, ..Look::default() });
}

fn step_of(fault: Fault, who: Who, meanwhile: Meanwhile) -> Step {
    let lasts = Duration::from_millis(300);
    Step { after: Duration::from_millis(200), fault, who, lasts, meanwhile, then: Then::Whole, beside: Vec::new() }
}

fn outage() -> Step {
    step_of(Fault::Kill, Who::Site("b".to_owned()), Meanwhile::Served)
}

fn partition() -> Step {
    step_of(Fault::Isolate, Who::Site("b".to_owned()), Meanwhile::Served)
}

fn split() -> Step {
    step_of(Fault::Split, Who::Everything, Meanwhile::NothingAcked)
}

fn failure(step: Step, vices: Vices) -> String {
    format!("{:#}", Scene::set(vices).play(step).1.expect_err("it must fail"))
}

#[test]
fn what_holds_passes_and_is_recorded() {
    for (step, cuts_off) in [(outage(), vec![]), (partition(), vec!["b"]), (split(), vec!["a", "b", "c"])] {
        let (_, result, faults) = Scene::set(Vices::default()).play(step);
        result.expect("a cluster without vices");
        assert_eq!(faults[0].cuts_off, cuts_off);
        assert!(faults[0].ended_ms.is_some() && !faults[0].effect.is_empty(), "{faults:?}");
    }
}

#[test]
fn clients_of_one_site_that_are_not_served_fail_the_step() {
    let unserved = |site| Vices { unserved: Some(site), ..Vices::default() };
    let why = failure(outage(), unserved("b"));
    assert!(why.contains("in site b 0 writes and 0 reads"), "the nodes of a site are dead, its clients are not: {why}");
    let why = failure(partition(), unserved("a"));
    assert!(why.contains("in site a"), "{why}");
    Scene::set(unserved("b")).play(partition()).1.expect("nobody promises anything to clients that are cut off");
}

#[test]
fn sites_that_lose_only_each_other_are_served() {
    // Site b and the draw-th of the others lose each other; a1 leads.
    let severed = |draw| step_of(Fault::Sever { draw }, Who::Site("b".to_owned()), Meanwhile::Served);
    for (draw, unserved) in [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c")] {
        let why = failure(severed(draw), Vices { unserved: Some(unserved), ..Vices::default() });
        assert!(why.contains(&format!("in site {unserved}")), "{why}");
    }
}

#[test]
fn a_cut_that_leaks_fails_the_step() {
    let why = failure(partition(), Vices { leaks: true, ..Vices::default() });
    assert!(why.contains("through the cut"), "{why}");
}

#[test]
fn a_write_acknowledged_under_a_split_fails_the_step() {
    let why = failure(split(), Vices { acknowledges: true, ..Vices::default() });
    assert!(why.contains("acknowledged though no side has a majority"), "{why}");
}

#[test]
fn what_is_acknowledged_before_a_slow_cut_is_in_force_is_fair() {
    let slow = Vices { slow: Some(Duration::from_millis(700)), ..Vices::default() };
    Scene::set(slow).play(split()).1.expect("only what follows counts");
    let slow = Vices { slow: Some(Duration::from_millis(700)), acknowledges: true, ..Vices::default() };
    assert!(failure(split(), slow).contains("no side has a majority"));
}

#[test]
fn a_killed_node_that_answers_fails_the_step() {
    let why = failure(outage(), Vices { undead: true, ..Vices::default() });
    assert!(why.contains("no effect") && why.contains("it still answers"), "{why}");
}

#[test]
fn the_network_heals_before_a_node_is_started() {
    let fault = Fault::Kill;
    let beside = Beside { after: Duration::ZERO, cue: Cue::None, fault, who: Who::Node("c1".to_owned()) };
    let (told, result, _) = Scene::set(Vices::default()).play(Step { beside: vec![beside], ..split() });
    result.expect("it finds a majority");
    assert_eq!(told, ["cut", "kill c1", "cut", "heal", "start c1"]);
}

#[test]
fn a_fault_that_cannot_be_lifted_fails_the_step_and_the_others_are_lifted() {
    let beside = Beside { after: Duration::ZERO, cue: Cue::None, fault: Fault::Kill, who: Who::Node("c1".to_owned()) };
    let mut scene = Scene::set(Vices { stays_cut: true, ..Vices::default() });
    let (told, result, faults) = scene.play(Step { beside: vec![beside], ..partition() });
    let why = format!("{:#}", result.expect_err("it must fail"));
    assert!(why.contains("lifting: partition") && why.contains("the network stays as it is"), "{why}");
    assert!(told.contains(&"start c1".to_owned()) && faults.iter().all(|fault| fault.ended_ms.is_some()), "{told:?}");
}

#[test]
fn a_kill_that_finds_everybody_down_is_no_fault() {
    let beside = |who| Beside { after: Duration::ZERO, cue: Cue::None, fault: Fault::Kill, who };
    let again = beside(Who::Node("b1".to_owned()));
    let (_, result, faults) = Scene::set(Vices::default()).play(Step { beside: vec![again], ..outage() });
    result.expect("it is told as hidden");
    assert_eq!((faults[1].effect.as_str(), faults[1].targets.len()), (HIDDEN, 0));
}

fn look(unhealed: Option<&str>, unreadable: Option<u64>) -> Look {
    Look { unhealed: unhealed.map(str::to_owned), unreadable, ..Look::default() }
}

#[test]
fn one_look_is_too_few_to_call_it_healed() {
    let healed = vec![look(None, Some(0)); HEALED_FOR];
    assert_eq!(unhealed(&healed), None);
    assert!(unhealed(&healed[1..]).is_some() && unhealed(&[]).is_some());
    let told = [healed.as_slice(), &[look(Some("3 stripes"), None)]].concat();
    assert_eq!(unhealed(&told).as_deref(), Some("3 stripes"));
}

#[test]
fn a_moment_in_which_something_could_not_be_read_is_told() {
    assert_eq!(unreadable(&[look(None, Some(0)), look(None, None)], 0), None);
    let looks = [look(None, Some(0)), look(None, Some(9)), look(None, None)];
    assert!(unreadable(&looks, 8).is_some());
    assert_eq!(unreadable(&looks, 9), None, "as much was written below its contract meanwhile");
}
