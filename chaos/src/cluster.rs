//! The cluster under test: machines with simulated disks that start, stop, lose power and come back.
//!
//! **Invariants.** A machine is its disks; a running node is a life on them and holds nothing that the disks do not.
//! Starting runs the same code as production: `Store::open`, `Replica`, `Node`. A power loss drops what was not synced on
//! every disk of the machine, by the seed; a process crash drops only the tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::query,
    ids::{ClusterId, InstanceId, ProfileName, SiteName, Uid, VolumeId},
    layout::Roles,
    shard::ShardId,
};
use pacsvault_ports::{
    disk::Disk,
    env::{SharedEnv, blocking},
    peer::{Caller, Peer, Reply, Request, Service, Target},
};
use pacsvault_service::{Front, LocalFirst, Node, OwnVolume, Profile, ReplicaStarter};
use pacsvault_simdisk::{SIMULATED, SimDisk};
use pacsvault_simkv::INJECTED;
use pacsvault_volume::{Identity, Options as VolumeOptions, Owner, Store, Volume};

use crate::{
    atlas::{Atlas, Part},
    chronicle::Chronicle,
    env::SimEnv,
    exec::{ClockSkew, Life, PowerLost, Sim},
    faulty::{Heard, Lie, LyingDisk, LyingPeer, MortalDisk, hasty_sweeper},
    machine::{CAPACITY_BYTES, Machine, Running, SimVolume, id_bytes},
    net::{Absence, HostId, Net},
    proof::newest,
    scenario::{PlantedBug, SITES_MAX, Scenario},
};

mod starter;

use starter::Starter;

const SITE_LETTERS: [u8; SITES_MAX] = *b"abcde";

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The process ends; the operating system keeps what was written.
    Process,
    /// No power: unsynced bytes are gone, connections time out.
    Power,
}

/// What leads recovery to the records of a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guide {
    /// The head of this segment, or the copy of it.
    Head(String, u64),
    /// A mark between records.
    Mark,
}

/// A client process at work, as faults see it.
#[derive(Debug, Clone, Copy)]
pub struct ClientAt {
    /// On the network.
    pub host: HostId,
    /// Where it stands.
    pub site: usize,
    /// Its process.
    pub life: Life,
    /// How its clock is wrong when no fault makes it worse.
    pub skew: ClockSkew,
}

/// All machines and the network between them.
pub struct Cluster {
    /// The world.
    pub sim: Sim,
    /// The network.
    pub net: Arc<Net>,
    /// What was drawn.
    pub scenario: Scenario,
    /// What the logs say.
    pub chronicle: Arc<Chronicle>,
    id: ClusterId,
    machines: Mutex<Vec<Machine>>,
    hurt: Mutex<BTreeSet<VolumeId>>,
    /// Those hurt by nothing but strikes at bytes that lay there: when the last one struck.
    struck_at: Mutex<BTreeMap<VolumeId, Duration>>,
    /// Heads of segments that were struck.
    heads: Mutex<BTreeSet<(VolumeId, Guide)>>,
    /// When attempts to write began, by instance.
    began: Mutex<BTreeMap<InstanceId, Duration>>,
    /// How often bytes on disks were struck.
    strikes: AtomicU64,
    atlas: Mutex<Atlas>,
    /// Volumes of machines that were wiped or removed: where they were.
    gone: Mutex<BTreeMap<VolumeId, (usize, usize)>>,
    /// In which profiles people ever wanted the instances of a study, other than their writers'.
    asked: Mutex<BTreeMap<Uid, BTreeSet<ProfileName>>>,
    /// Machines whose node has ended by itself: it is told once.
    ended: Mutex<BTreeSet<usize>>,
    clients: Mutex<BTreeMap<HostId, ClientAt>>,
    operator: HostId,
}

/// The name of site number `site`.
pub fn site_name(site: usize) -> SiteName {
    format!("site-{}", char::from(SITE_LETTERS[site])).parse().expect("a valid name")
}

impl Cluster {
    /// Builds the machines; none runs yet.
    pub fn new(sim: &Sim, scenario: Scenario) -> Arc<Self> {
        let net = Net::new(sim.clone(), scenario.latency_micros.clone());
        net.plant(scenario.bug);
        let mut machines = Vec::new();
        for (site, letter) in SITE_LETTERS.into_iter().enumerate().take(scenario.sites) {
            for number in 0..scenario.nodes_of(site) {
                let name = format!("{}-{number}", char::from(letter));
                let host = net.add_host(&name, site);
                machines.push(Machine::new(sim, host, &scenario, site, &name));
            }
        }
        machines[0].founder = true;
        if scenario.upgrade {
            machines.iter_mut().for_each(|machine| machine.format = 1);
        }
        let sites = machines.iter().map(|machine| machine.site).collect();
        let atlas = Atlas::new(sites, scenario.profiles().map(|profile| profile.floor.clone()).collect());
        let operator = net.add_host("operator", 0);
        let id = ClusterId(id_bytes(sim));
        Arc::new(Self {
            sim: sim.clone(),
            net,
            scenario,
            chronicle: Arc::default(),
            id,
            machines: Mutex::new(machines),
            hurt: Mutex::default(),
            struck_at: Mutex::default(),
            heads: Mutex::default(),
            began: Mutex::default(),
            strikes: AtomicU64::new(0),
            atlas: Mutex::new(atlas),
            gone: Mutex::default(),
            asked: Mutex::default(),
            ended: Mutex::default(),
            clients: Mutex::default(),
            operator,
        })
    }

    /// The machines, locked: never hold this over an await.
    pub fn machines(&self) -> MutexGuard<'_, Vec<Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which cluster it is.
    pub fn id(&self) -> ClusterId {
        self.id
    }

    /// Clients at work, which faults may meet.
    pub fn clients(&self) -> Vec<ClientAt> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// A client is at work from now on.
    pub fn enter(&self, client: ClientAt) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(client.host, client);
    }

    /// The client of `host` is not at work any more.
    pub fn leave(&self, host: HostId) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
    }

    /// Volumes whose disks were damaged: they count as lost.
    pub fn hurt(&self) -> MutexGuard<'_, BTreeSet<VolumeId>> {
        self.hurt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn struck_at(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Duration>> {
        self.struck_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn began(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Duration>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything on `volume` counts as lost from now on, also what will be written.
    pub fn distrust(&self, volume: VolumeId) {
        self.hurt().insert(volume);
        self.struck_at().remove(&volume);
    }

    /// Bytes that lie on `volume` now were struck, these guides among them: what is written later is sound, unless both copies
    /// of what leads to it were met. Nobody looks whether the scrub has written them anew in time.
    pub fn strike(&self, volume: VolumeId, guides: Vec<Guide>) {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = guides.contains(&Guide::Mark);
        for guide in guides {
            if let Guide::Head(segment, copy) = &guide {
                lost |= heads.contains(&(volume, Guide::Head(segment.clone(), 1 - copy)));
            }
            heads.insert((volume, guide));
        }
        if lost {
            return self.distrust(volume);
        }
        let newly = self.hurt().insert(volume);
        let mut struck_at = self.struck_at();
        if newly || struck_at.contains_key(&volume) {
            struck_at.insert(volume, self.sim.now());
        }
    }

    /// An attempt to write begins now.
    pub fn begins(&self, instance: InstanceId) {
        self.began().insert(instance, self.sim.now());
    }

    /// Whether a fault may have hurt a shard of `instance` on `volume`. What struck a disk before the attempt began has not.
    pub fn may_be_hurt(&self, volume: VolumeId, instance: InstanceId) -> bool {
        let before = self.struck_at().get(&volume).copied();
        let later = |before: Duration| self.began().get(&instance).is_some_and(|began| *began > before);
        self.hurt().contains(&volume) && !before.is_some_and(later)
    }

    /// The ledger of damage.
    pub fn atlas(&self) -> MutexGuard<'_, Atlas> {
        self.atlas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether machine `at` may be lost as a whole, data and log; if so that is booked.
    pub fn may_damage(&self, at: usize) -> bool {
        let voters = self.voters();
        self.atlas().damage(at, Part::Log, voters)
    }

    /// Whether volume `volume` of machine `at` may be damaged for good; if so that is booked.
    pub fn may_damage_volume(&self, at: usize, volume: VolumeId) -> bool {
        let allowed = self.atlas().damage(at, Part::Volume(volume), 0);
        if allowed && self.atlas().damaged() > 1 {
            self.sim.hit("damage on several machines, inside the promise");
        }
        allowed
    }

    /// Bytes on a disk were struck.
    pub fn struck(&self) {
        self.strikes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often bytes on disks were struck.
    pub fn strikes(&self) -> u64 {
        self.strikes.load(Ordering::Relaxed)
    }

    /// Votes at present, by whoever leads; none while they change or nobody leads.
    pub fn voters(&self) -> usize {
        let statuses = (0..self.count()).filter_map(|at| Some(self.replica(at)?.status()));
        let mut leading = statuses.filter(|status| status.leader == Some(status.node) && !status.joint);
        leading.next().map_or(0, |status| status.voters.len())
    }

    /// People are about to ask for the instances of `study` in this profile.
    pub fn ask(&self, study: &Uid, profile: &ProfileName) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.entry(study.clone()).or_default().insert(profile.clone());
    }

    /// In which profiles people ever asked for the instances of `study`.
    pub fn asked(&self, study: &Uid) -> BTreeSet<ProfileName> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(study).cloned().unwrap_or_default()
    }

    /// Everything was proven whole: all damage is made good.
    pub fn proven_whole(&self) {
        self.atlas().whole();
    }

    /// Volumes that are no more, with the machine and site where they were.
    pub fn gone(&self) -> BTreeMap<VolumeId, (usize, usize)> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lose(&self, at: usize, site: usize, volume: VolumeId) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, (at, site));
        self.distrust(volume);
    }

    /// Empties machine `at`, which is stopped: its node is no more.
    pub fn wipe(&self, at: usize) {
        self.stop(at, Stop::Power);
        let mut machines = self.machines();
        let machine = &mut machines[at];
        machine.blank = true;
        let lost: Vec<VolumeId> = machine.volumes.drain(..).map(|volume| volume.id).collect();
        lost.into_iter().for_each(|volume| self.lose(at, machine.site, volume));
        self.sim.event("wipe", &[at as u64], String::new);
    }

    /// Makes a new node of machine `at`, which was wiped; with the same name, or another.
    pub fn refit(&self, at: usize, same_name: bool) {
        let mut machines = self.machines();
        let machine = &mut machines[at];
        if !machine.blank {
            return;
        }
        let (site, mut host, mut name) = (machine.site, machine.host, machine.name.as_str().to_owned());
        if !same_name {
            name = format!("{}-r{}", char::from(SITE_LETTERS[site]), self.sim.random(|rng| rng.below(1 << 40)));
            host = self.net.add_host(&name, site);
        }
        *machine = Machine::new(&self.sim, host, &self.scenario, site, &name);
        self.sim.event("refit", &[at as u64], || name);
    }

    /// Adds a machine to `site`; answers its number. It is stopped.
    pub fn add_machine(&self, site: usize) -> usize {
        let mut machines = self.machines();
        let name = format!("{}-{}", char::from(SITE_LETTERS[site]), machines.len() + 10);
        let host = self.net.add_host(&name, site);
        machines.push(Machine::new(&self.sim, host, &self.scenario, site, &name));
        self.atlas().add(site);
        machines.len() - 1
    }

    /// Puts an empty disk in place of volume `volume` of machine `at`, which is stopped.
    pub fn replace_volume(&self, at: usize, volume: VolumeId) {
        let mut machines = self.machines();
        let machine = &mut machines[at];
        let Some(place) = machine.volumes.iter().position(|own| own.id == volume) else { return };
        machine.volumes[place] = SimVolume::new(&self.sim, &machine.fuse);
        self.lose(at, machine.site, volume);
        self.sim.event("replace volume", &[at as u64], || volume.to_string());
    }

    /// How many sites and machines there are.
    pub fn extent(&self) -> (usize, usize) {
        (self.scenario.sites, self.count())
    }

    /// How many machines there are.
    pub fn count(&self) -> usize {
        self.machines().len()
    }

    /// How many volumes they have.
    pub fn volumes(&self) -> usize {
        self.machines().iter().map(|machine| machine.volumes.len()).sum()
    }

    /// Machines of one site.
    pub fn of_site(&self, site: usize) -> Vec<usize> {
        let machines = self.machines();
        (0..machines.len()).filter(|&at| machines[at].site == site).collect()
    }

    /// How to dial machine `at`.
    pub fn target(&self, at: usize) -> Target {
        let machines = self.machines();
        Target { address: self.net.address(machines[at].host), name: Some(machines[at].name.clone()) }
    }

    /// The node of machine `at`, when it runs and has come up.
    pub fn node(&self, at: usize) -> Option<Arc<Node>> {
        let machines = self.machines();
        let running = machines[at].running.as_ref().filter(|running| self.sim.alive(running.life))?;
        running.node.get().cloned()
    }

    /// The replica of machine `at`, when there is one.
    pub fn replica(&self, at: usize) -> Option<Arc<dyn Replica>> {
        self.node(at)?.replica()
    }

    /// The life of machine `at`, when it runs.
    pub fn life(&self, at: usize) -> Option<Life> {
        self.machines()[at].running.as_ref().map(|running| running.life).filter(|life| self.sim.alive(*life))
    }

    /// Whether the running node that has `volume` finds `shard` on it; nothing when none runs. What it has deleted may be back
    /// after its next start, when rot has taken the tombstone.
    pub fn finds(&self, volume: VolumeId, shard: ShardId) -> Option<bool> {
        let machines = self.machines();
        let running = machines.iter().filter_map(|machine| machine.running.as_ref());
        let stores = running.filter_map(|running| running.stores.get()).flatten();
        let store = stores.into_iter().find(|store| store.id() == volume)?;
        Some(!matches!(store.store().header(shard), Err(pacsvault_volume::Error::NotFound { .. })))
    }

    /// The wall clock of machine `at` shows so much more than the true one, also after a restart.
    pub fn set_wall(&self, at: usize, ahead_millis: i64) {
        self.machines()[at].skew.wall_offset_millis = ahead_millis;
        if let Some(life) = self.life(at) {
            self.sim.jump_wall(life, ahead_millis);
        }
    }

    /// The monotonic clock of machine `at` runs at another rate, also after a restart; `None`: at its usual one.
    pub fn set_rate(&self, at: usize, rate_ppm: Option<i32>) {
        let rate = {
            let machine = &mut self.machines()[at];
            machine.skew.rate_ppm = rate_ppm.unwrap_or(machine.usual.rate_ppm);
            machine.skew.rate_ppm
        };
        if let Some(life) = self.life(at) {
            self.sim.set_rate(life, rate);
        }
    }

    /// The clocks of machine `at` are as wrong as they always are, and no more.
    pub fn set_clocks_right(&self, at: usize) {
        let usual = self.machines()[at].usual.wall_offset_millis;
        self.set_wall(at, usual);
        self.set_rate(at, None);
    }

    /// True when machine `at` is stopped, or its life has ended by itself.
    pub fn is_down(&self, at: usize) -> bool {
        self.life(at).is_none()
    }

    /// Stops machine `at`; fine if it is down already.
    pub fn stop(&self, at: usize, how: Stop) {
        let (seeds, host, running) = {
            let mut machines = self.machines();
            let machine = &mut machines[at];
            machine.fuse.light(0);
            let seeds: [u64; 2] = self.sim.random(|rng| [rng.bits(), rng.bits()]);
            (seeds, machine.host, machine.running.take())
        };
        let absence = if how == Stop::Power { Absence::Silent } else { Absence::Refuses };
        self.net.stop(host, absence);
        let planned = running.as_ref().is_some_and(|running| !self.sim.alive(running.life));
        let mut held = running.as_ref().filter(|_| !planned).map(Running::held);
        if let Some(running) = running {
            if self.sim.alive(running.life) {
                self.sim.kill(running.life);
            }
            self.sim.within(running.life, || drop(running));
        }
        let mut machines = self.machines();
        let machine = &mut machines[at];
        let lived = held.is_some() || planned;
        for volume in machine.volumes.iter_mut().filter(|_| lived) {
            volume.held = held.as_mut().and_then(|held| held.remove(&volume.id));
        }
        // A life that ended by a fuse lost its power then, whatever it is stopped as now.
        if how == Stop::Power || planned {
            machine.log.crash(seeds[0]);
            machine.state.crash(seeds[1]);
            for (volume, number) in machine.volumes.iter_mut().zip(0_u64..) {
                volume.disk = volume.disk.crash(seeds[0].wrapping_add(number).rotate_left(17));
            }
        } else {
            for volume in &mut machine.volumes {
                volume.disk = volume.disk.restart();
            }
        }
    }

    /// Lets go of every node, so that nothing keeps the world alive in a cycle. Call at the end of a run.
    pub fn end(&self) {
        for at in 0..self.count() {
            self.stop(at, Stop::Process);
        }
    }

    /// Starts machine `at`; fine if it runs.
    pub fn start(self: &Arc<Self>, at: usize) {
        if !self.is_down(at) || self.machines()[at].blank {
            return;
        }
        self.stop(at, Stop::Process);
        let (node, stores) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let life = {
            let mut machines = self.machines();
            let machine = &mut machines[at];
            let life = self.sim.begin_life(machine.name.as_str(), machine.skew);
            machine.running = Some(Running { life, node: Arc::clone(&node), stores: Arc::clone(&stores) });
            life
        };
        let cluster = Arc::clone(self);
        let task = async move {
            let sim = cluster.sim.clone();
            if let Err(why) = Arc::clone(&cluster).run(at, life, &node, &stores).await {
                // The process exits; the supervisor tries again. Only a disk that refuses a call is a reason.
                sim.event("node ended", &[at as u64], || why.clone());
                if why.contains(SIMULATED) {
                    sim.hit("node ended by itself: its volume cannot be opened");
                    std::panic::resume_unwind(Box::new(PowerLost));
                }
                let first = cluster.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(at);
                assert!(!first, "machine {at}: its node ended by itself: {why}");
                std::panic::resume_unwind(Box::new(PowerLost));
            }
        };
        self.sim.spawn(life, Box::pin(task));
    }

    /// What the node's main does, on simulated ports.
    async fn run(
        self: Arc<Self>,
        at: usize,
        life: Life,
        slot: &OnceLock<Arc<Node>>,
        opened: &OnceLock<Vec<Arc<Volume>>>,
    ) -> Result<(), String> {
        let (profile, env, peer, registry, starter, disks, host) = {
            let machines = self.machines();
            let machine = &machines[at];
            let env: SharedEnv = Arc::new(SimEnv::new(self.sim.clone(), life, Arc::clone(&machine.speed)));
            let remote = self.net.peer(machine.host, life, Caller::Node(machine.name.clone()));
            let local = LocalFirst::new(machine.name.clone(), env.clone(), remote);
            let profile = self.profile(machine, &machines);
            let starter = self.starter(machine, &profile, &env, &local);
            let disks: Vec<(VolumeId, SimDisk)> =
                machine.volumes.iter().map(|volume| (volume.id, volume.disk.clone())).collect();
            (profile, env, local, Arc::clone(&machine.registry), starter, disks, machine.host)
        };
        let mut volumes = BTreeMap::new();
        let (mut stores, mut distrusted) = (Vec::new(), Vec::new());
        for (id, disk) in disks {
            let disk = MortalDisk { disk, heard: self.hears_deletions(id) };
            let (node, incarnation) = (profile.name.clone(), profile.incarnation);
            let identity = Identity { cluster: self.id, node, incarnation, volume: id };
            let disk: Arc<dyn Disk> = match self.scenario.bug {
                Some(PlantedBug::VolumeAcksBeforeSync) => Arc::new(LyingDisk { inner: disk, lie: Lie::Data }),
                Some(PlantedBug::VolumeForgetsNames) => Arc::new(LyingDisk { inner: disk, lie: Lie::Names }),
                _ => Arc::new(disk),
            };
            let opened = open_volume(disk, identity, env.clone(), self.scenario.knobs.segment_bytes).await;
            let (volume, was_poisoned) = opened.map_err(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                format!("volume {id}: {error}: {cause}")
            })?;
            if was_poisoned {
                distrusted.push(id);
            }
            self.check_reopened(at, &volume);
            let volume = Arc::new(volume);
            stores.push(Arc::clone(&volume));
            volumes.insert(id, OwnVolume { volume, capacity_bytes: CAPACITY_BYTES });
        }
        assert!(opened.set(stores.clone()).is_ok(), "volumes are opened once in a life");
        let asks = Arc::new(LyingPeer {
            inner: Arc::clone(&peer) as Arc<dyn Peer>,
            bug: self.scenario.bug,
            sim: self.sim.clone(),
        });
        let node = Node::new(profile, env, asks, registry, starter, volumes, self.scenario.pace.clone());
        for volume in distrusted {
            self.sim.hit("volume distrusted that failed in an earlier life");
            node.distrust(volume, "a write or sync failed in an earlier life");
        }
        let front: Arc<dyn Service> = Arc::new(Front(Arc::clone(&node)));
        peer.attach(&front);
        self.net.serve(host, life, front);
        assert!(slot.set(Arc::clone(&node)).is_ok(), "a slot belongs to one life");
        let sweeper = Arc::clone(&node).run_sweeper(self.scenario.sweep_every);
        self.sim.spawn(life, Box::pin(sweeper));
        if self.scenario.bug == Some(PlantedBug::SweepsAtOnce) {
            self.sim.spawn(life, Box::pin(hasty_sweeper(self.sim.clone(), life, Arc::clone(&node), stores)));
        }
        self.sim.spawn(life, Box::pin(stop_when_fatal(self.sim.clone(), at, life, Arc::clone(&node))));
        node.run().await.map_err(|fault| format!("{}: {fault}", fault.code))
    }

    /// Holds each deletion that volume `id` writes to the logs.
    fn hears_deletions(self: &Arc<Self>, id: VolumeId) -> Heard {
        let cluster = Arc::downgrade(self);
        Arc::new(move |parts| {
            let Some(cluster) = cluster.upgrade() else { return };
            let sealed = |instance| query::by_instance(newest(&cluster)?.view().as_ref(), instance).ok();
            match cluster.chronicle.deletes(parts, sealed) {
                Ok(0) => {}
                Ok(_) => cluster.sim.hit("deletion held to the logs"),
                Err(why) => panic!("volume {id} deletes without a log entry: {why}"),
            }
        })
    }

    /// A volume holds after a restart what it held before, as far as no fault has hurt that: what was deleted stays so.
    fn check_reopened(&self, at: usize, volume: &Volume) {
        let before = {
            let mut machines = self.machines();
            let own = machines[at].volumes.iter_mut().find(|own| own.id == volume.id());
            own.and_then(|own| own.held.take())
        };
        let Some(before) = before else { return };
        let now: BTreeSet<ShardId> = volume.store().list(None, usize::MAX).into_iter().collect();
        if !self.hurt().contains(&volume.id()) {
            self.sim.hit("volume compared with what it held before a restart");
        }
        let sound = |shard: &&ShardId| !self.may_be_hurt(volume.id(), shard.instance);
        if let Some(back) = now.difference(&before).find(sound) {
            panic!("volume {} holds shard {back} after a restart, which was deleted before", volume.id());
        }
        if let Some(lost) = before.difference(&now).find(sound) {
            panic!("volume {} has lost shard {lost} by a restart", volume.id());
        }
    }

    fn profile(&self, machine: &Machine, machines: &[Machine]) -> Profile {
        let join = |other: &Machine| Target { address: self.net.address(other.host), name: Some(other.name.clone()) };
        Profile {
            cluster: self.id,
            name: machine.name.clone(),
            site: site_name(machine.site),
            address: self.net.address(machine.host),
            roles: Roles { storage: !self.scenario.is_witness(machine.site), voter: true },
            incarnation: machine.incarnation,
            // The first machine is founded; the others ask anybody.
            join: if machine.founder {
                Vec::new()
            } else {
                machines.iter().filter(|other| !other.blank && other.name != machine.name).map(join).collect()
            },
            binary_version: "sim".to_owned(),
            format_version: machine.format,
        }
    }

    fn starter(
        &self,
        machine: &Machine,
        profile: &Profile,
        env: &SharedEnv,
        peer: &Arc<LocalFirst>,
    ) -> Arc<dyn ReplicaStarter> {
        Arc::new(Starter {
            profile: profile.clone(),
            env: env.clone(),
            peer: Arc::clone(peer) as Arc<dyn Peer>,
            log: machine.log.clone(),
            state: machine.state.clone(),
            fuse: Arc::clone(&machine.fuse),
            chronicle: Arc::clone(&self.chronicle),
            scenario: self.scenario.clone(),
        })
    }

    /// Founds the cluster on the first machine and waits until every machine is a member.
    ///
    /// # Errors
    /// It did not come up in time.
    pub async fn found(self: &Arc<Self>) -> Result<(), String> {
        (0..self.count()).for_each(|at| self.start(at));
        let operator = self.operator();
        let request = Request::InitCluster { profiles: self.scenario.profiles().cloned().collect() };
        let mut last = String::new();
        for _ in 0..120 {
            let known = self.replica(0).and_then(|replica| replica.layout());
            if known.is_none() {
                let answer = operator.call(&self.target(0), request.clone(), Duration::from_secs(10)).await;
                last = match answer {
                    Ok(Reply::Joined { .. }) => String::new(),
                    Ok(other) => format!("{other:?}"),
                    Err(fault) => fault.to_string(),
                };
            }
            let complete = known
                .is_some_and(|layout| layout.nodes.len() == self.count() && layout.volumes.len() == self.volumes());
            if complete && (0..self.count()).all(|at| self.replica(at).is_some()) {
                return Ok(());
            }
            self.sim.sleep(Life::HARNESS, Duration::from_millis(500)).await;
        }
        Err(format!("the cluster did not form: {last}"))
    }

    /// A peer for administration, at the first site.
    pub fn operator(&self) -> Arc<dyn Peer> {
        self.net.peer(self.operator, Life::HARNESS, Caller::Operator("operator".to_owned()))
    }
}

/// Opens a volume as a node does; formats it when it is empty.
/// And whether it failed in an earlier life.
async fn open_volume(
    disk: Arc<dyn Disk>,
    identity: Identity,
    env: SharedEnv,
    segment_bytes: u64,
) -> Result<(Volume, bool), pacsvault_volume::Error> {
    let life = env.random();
    let opening = move || {
        let owner = Owner { cluster: identity.cluster, node: identity.node.clone() };
        let mut options = VolumeOptions::new(life);
        options.capacity_bytes = Some(CAPACITY_BYTES);
        options.segment_bytes = Some(segment_bytes);
        match Store::open(Arc::clone(&disk), &owner, options.clone()) {
            Err(pacsvault_volume::Error::NotFormatted) => {
                Store::format(disk.as_ref(), &identity)?;
                Store::open(disk, &owner, options)
            }
            opened => opened,
        }
    };
    // The life ends before its own blocking work can be lost.
    let (store, recovery) =
        blocking(env.as_ref(), opening).await.unwrap_or_else(|| std::panic::resume_unwind(Box::new(PowerLost)))?;
    Ok((Volume::new(store, env), recovery.was_poisoned))
}

/// The main stops the process when consensus cannot go on; so does this.
async fn stop_when_fatal(sim: Sim, at: usize, life: Life, node: Arc<Node>) {
    loop {
        sim.sleep(life, Duration::from_millis(100)).await;
        let fatal = node.replica().and_then(|replica| replica.status().fatal);
        if let Some(why) = fatal {
            sim.event("fatal", &[at as u64], || why.clone());
            assert!(why.contains(INJECTED), "machine {at}: consensus stopped, and no fault was injected: {why}");
            sim.hit("process stopped itself after a failed store");
            std::panic::resume_unwind(Box::new(PowerLost));
        }
    }
}
