//! The one who breaks things, and in the end repairs them.
//!
//! **Invariants.** Only kinds of the scenario's subset happen. All damage that does not end by itself (a volume fails, rots,
//! fills, is replaced; a machine is wiped) hits one machine, until everything was proven whole: every acknowledged write
//! survives any one node. After [`Nemesis::heal`] nothing is broken but that machine, and people go on repairing it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pacsvault_ports::disk::Disk as _;
use pacsvault_simdisk::{OpKind, SimDisk};

use crate::{
    cluster::{Cluster, Stop},
    exec::Life,
    machine::HEALTHY_MICROS,
    net::{HostId, Trap, Weather},
    operator::{AfterDrain, Operator},
    rng::SimRng,
    scenario::{Fault, SITES},
};

/// The fault injector of one run.
pub struct Nemesis {
    cluster: Arc<Cluster>,
    held: Mutex<BTreeSet<usize>>,
    /// What people do meanwhile.
    pub operator: Arc<Operator>,
    over: AtomicBool,
}

impl Nemesis {
    /// Breaks nothing yet. From now on machines that end by themselves are started again.
    pub fn new(cluster: &Arc<Cluster>) -> Arc<Self> {
        let nemesis = Arc::new(Self {
            cluster: Arc::clone(cluster),
            held: Mutex::default(),
            operator: Operator::new(cluster),
            over: AtomicBool::new(false),
        });
        let supervisor = Arc::clone(&nemesis);
        cluster.sim.spawn(Life::HARNESS, Box::pin(async move { supervisor.supervise().await }));
        nemesis
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pause(&self, duration: Duration) {
        self.cluster.sim.sleep(Life::HARNESS, duration).await;
    }

    /// What an init system does.
    async fn supervise(self: Arc<Self>) {
        loop {
            self.pause(Duration::from_millis(400)).await;
            for at in 0..self.cluster.count() {
                if self.cluster.is_down(at) && !self.held().contains(&at) {
                    self.cluster.start(at);
                }
            }
        }
    }

    /// Holds machine `at` down.
    pub fn down(&self, at: usize, how: Stop) {
        if self.held().insert(at) {
            self.cluster.stop(at, how);
        }
    }

    /// Stops machine `at` for work on it; false when it is being worked on already.
    pub fn take(&self, at: usize) -> bool {
        if self.cluster.machines()[at].blank {
            return false;
        }
        self.held().insert(at);
        self.cluster.stop(at, Stop::Power);
        true
    }

    /// The work is done.
    pub fn give_back(&self, at: usize) {
        self.up(at);
    }

    /// False once [`Nemesis::heal`] was called.
    pub fn faults_last(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Starts machine `at`.
    pub fn up(&self, at: usize) {
        self.held().remove(&at);
        self.cluster.start(at);
    }

    /// Breaks things until `until`.
    pub async fn run(self: Arc<Self>, until: Duration) {
        let mut rng = self.cluster.sim.random(SimRng::fork);
        let kinds: Vec<Fault> = self.cluster.scenario.faults.iter().copied().collect();
        if kinds.is_empty() {
            return;
        }
        let mut number = 0;
        loop {
            let pause = Duration::from_millis(rng.range(50, self.cluster.scenario.fault_pause_millis));
            self.pause(pause).await;
            if self.cluster.sim.now() >= until {
                return;
            }
            // Each strike draws from a generator of its own: leaving one out shifts no other.
            let (kind, mut own) = (*rng.pick(&kinds), rng.fork());
            number += 1;
            let scenario = &self.cluster.scenario;
            if !scenario.has(kind) || scenario.skipped.contains(&number) {
                continue;
            }
            self.cluster.sim.event("fault", &[number], || kind.to_string());
            self.strike(kind, &mut own);
        }
    }

    fn later(self: &Arc<Self>, after: Duration, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let nemesis = Arc::clone(self);
        let task = async move {
            nemesis.pause(after).await;
            work(&nemesis);
        };
        self.cluster.sim.spawn(Life::HARNESS, Box::pin(task));
    }

    fn strike(self: &Arc<Self>, kind: Fault, rng: &mut SimRng) {
        let cluster = &self.cluster;
        let one = rng.index(cluster.count());
        let site = rng.index(SITES);
        let short = rng.micros(20_000, 3_000_000);
        match kind {
            Fault::Crash => self.take_down(&[one], Stop::Process, short, kind),
            Fault::PowerLoss => self.take_down(&[one], Stop::Power, short, kind),
            Fault::PowerLossInOperation => self.lose_power_in_operation(one, rng),
            Fault::SitePowerLoss => self.take_down(&cluster.of_site(site), Stop::Power, short, kind),
            Fault::MajorityPowerLoss => {
                let spared = cluster.of_site(site);
                let victims: Vec<usize> = (0..cluster.count()).filter(|at| !spared.contains(at)).collect();
                self.take_down(&victims, Stop::Power, short, kind);
            }
            Fault::TotalPowerLoss => {
                let victims: Vec<usize> = (0..cluster.count()).collect();
                self.take_down(&victims, Stop::Power, short, kind);
            }
            Fault::CutOneWay => {
                let other = (one + 1 + rng.index(cluster.count() - 1)) % cluster.count();
                self.cut(vec![(one, other)], short, kind);
            }
            Fault::IsolateSite => {
                let inside = cluster.of_site(site);
                let outside = (0..cluster.count()).filter(|at| !inside.contains(at));
                let pairs = outside.flat_map(|out| inside.iter().flat_map(move |&own| [(own, out), (out, own)]));
                self.cut(pairs.collect(), short * 2, kind);
            }
            Fault::Bridge => {
                let (left, right) = (cluster.of_site((site + 1) % SITES), cluster.of_site((site + 2) % SITES));
                let pairs = left.iter().flat_map(|&a| right.iter().flat_map(move |&b| [(a, b), (b, a)]));
                self.cut(pairs.collect(), short * 2, kind);
            }
            Fault::Storm => self.storm(short, rng),
            Fault::SlowDisk => {
                cluster.sim.hit(kind.name());
                cluster.machines()[one].speed.set(rng.range(20_000, 700_000));
                self.later(short, move |nemesis| nemesis.cluster.machines()[one].speed.set(HEALTHY_MICROS));
            }
            Fault::FailingVolumeSync | Fault::BitRot | Fault::FullVolume => self.hurt_volume(one, kind, rng),
            Fault::FailingLogSync => {
                cluster.sim.hit(kind.name());
                let machines = cluster.machines();
                let log = &machines[one].log;
                let how = *rng.pick(&[pacsvault_simkv::Fault::Before, pacsvault_simkv::Fault::After]);
                log.fail_at(log.operations() + rng.below(10), how);
            }
            Fault::ClockJump => {
                let Some(life) = cluster.life(one) else { return };
                cluster.sim.hit(kind.name());
                let ahead = i64::try_from(rng.below(7_200_000)).unwrap_or(0) - 3_600_000;
                cluster.sim.jump_wall(life, ahead);
            }
            Fault::TransferLeader => self.transfer_leader(one),
            // Clients see to this themselves.
            Fault::ClientCrash => {}
            Fault::LongAbsence | Fault::LeaderCrash | Fault::CrashInRepair | Fault::CrashInSnapshot => {
                self.crash_somebody(kind, one, short, rng);
            }
            Fault::WipeNode
            | Fault::ReplaceVolume
            | Fault::DrainNode
            | Fault::DrainVolume
            | Fault::AddNode
            | Fault::ScrubNow => self.operate(kind, one, rng),
        }
    }

    /// Absences and crashes that healing must get over.
    fn crash_somebody(self: &Arc<Self>, kind: Fault, one: usize, short: Duration, rng: &mut SimRng) {
        let cluster = &self.cluster;
        match kind {
            Fault::LongAbsence => {
                let how = *rng.pick(&[Stop::Process, Stop::Power]);
                cluster.sim.hit(kind.name());
                self.down(one, how);
                let back = rng.micros(3_000_000, 14_000_000);
                self.later(back, move |nemesis| nemesis.up(one));
            }
            Fault::LeaderCrash => {
                let how = *rng.pick(&[Stop::Process, Stop::Power]);
                if let Some(at) = self.leader_at() {
                    self.take_down(&[at], how, short, kind);
                }
            }
            Fault::CrashInRepair => self.set_trap(Trap::Repair, kind, rng),
            Fault::CrashInSnapshot => self.set_trap(Trap::Snapshot, kind, rng),
            _ => {}
        }
    }

    /// What people do, or what makes them do it.
    fn operate(self: &Arc<Self>, kind: Fault, at: usize, rng: &mut SimRng) {
        let cluster = &self.cluster;
        let (operator, nemesis) = (&self.operator, Arc::clone(self));
        if cluster.machines()[at].blank {
            return;
        }
        match kind {
            Fault::WipeNode if operator.may_lose_a_node() && cluster.may_damage(at) => {
                operator.begin(|operator| operator.wipe(nemesis, at));
            }
            Fault::ReplaceVolume => {
                let volume = cluster.machines()[at].volumes.first().map(|volume| volume.id);
                let Some(volume) = volume.filter(|_| cluster.may_damage(at)) else { return };
                operator.begin(|operator| operator.replace(nemesis, at, volume));
            }
            Fault::DrainNode if operator.jobs() == 0 => {
                let then = *rng.pick(&[AfterDrain::TakenBack, AfterDrain::Removed]);
                operator.begin(|operator| operator.drain(nemesis, at, then));
            }
            Fault::DrainVolume if operator.jobs() == 0 => operator.begin(|operator| operator.drain_volume(at)),
            Fault::AddNode => {
                let site = cluster.machines()[at].site;
                let most = cluster.scenario.nodes_per_site + 1;
                if cluster.scenario.is_witness(site) || cluster.of_site(site).len() >= most {
                    return;
                }
                operator.add(self, site);
            }
            Fault::ScrubNow => operator.begin(Operator::scrub),
            _ => return,
        }
        cluster.sim.hit(kind.name());
    }

    /// Somebody dies at the next such moment, or soon after.
    fn set_trap(self: &Arc<Self>, trap: Trap, kind: Fault, rng: &mut SimRng) {
        let nemesis = Arc::clone(self);
        let (after, how) = (rng.micros(0, 120_000), *rng.pick(&[Stop::Process, Stop::Power]));
        let (who, lasts) = (rng.index(3), rng.micros(20_000, 3_000_000));
        self.cluster.net.set_trap(
            trap,
            Box::new(move |from, to| {
                let victim = match (trap, who) {
                    (Trap::Repair, 0) => nemesis.leader_at(),
                    (Trap::Repair, 1) => nemesis.machine_of(to),
                    (Trap::Repair, _) | (Trap::Snapshot, _) => nemesis.machine_of(from),
                };
                let Some(victim) = victim else { return };
                nemesis.later(after, move |nemesis| {
                    if nemesis.faults_last() {
                        nemesis.take_down(&[victim], how, lasts, kind);
                    }
                });
            }),
        );
    }

    fn machine_of(&self, host: HostId) -> Option<usize> {
        self.cluster.machines().iter().position(|machine| machine.host == host)
    }

    fn leader_at(&self) -> Option<usize> {
        let leads = |at: &usize| {
            self.cluster.replica(*at).is_some_and(|replica| replica.status().leader == Some(replica.status().node))
        };
        (0..self.cluster.count()).find(leads)
    }

    /// Between two operations of any store of the machine, or within one of a volume's disk.
    fn lose_power_in_operation(&self, at: usize, rng: &mut SimRng) {
        self.cluster.sim.hit(Fault::PowerLossInOperation.name());
        let machines = self.cluster.machines();
        if rng.chance(500) || machines[at].volumes.is_empty() {
            machines[at].fuse.light(rng.range(1, 40));
        } else {
            let disk = &rng.pick(&machines[at].volumes).disk;
            disk.crash_at(disk.ops() + rng.range(1, 30));
        }
    }

    fn storm(self: &Arc<Self>, lasts: Duration, rng: &mut SimRng) {
        let weather = Weather {
            jitter_micros: rng.range(300, 30_000),
            loss_per_mille: rng.range(1, 60),
            duplicate_per_mille: rng.range(1, 60),
            hold_per_mille: rng.range(1, 60),
        };
        self.cluster.sim.hit(Fault::Storm.name());
        self.cluster.net.set_weather(weather);
        self.later(lasts, |nemesis| nemesis.cluster.net.set_weather(Weather::fair()));
    }

    fn transfer_leader(&self, at: usize) {
        let cluster = &self.cluster;
        let (Some(from), Some(to), Some(life)) = (self.leader(), cluster.replica(at), cluster.life(at)) else { return };
        cluster.sim.hit(Fault::TransferLeader.name());
        let to = to.status().node;
        cluster.sim.spawn(life, Box::pin(async move { drop(from.transfer_leader(to).await) }));
    }

    fn leader(&self) -> Option<Arc<dyn pacsvault_consensus::Replica>> {
        let replicas = (0..self.cluster.count()).filter_map(|at| self.cluster.replica(at));
        let mut leading = replicas.filter(|replica| replica.status().leader == Some(replica.status().node));
        leading.next()
    }

    fn take_down(self: &Arc<Self>, victims: &[usize], how: Stop, longest: Duration, kind: Fault) {
        self.cluster.sim.hit(kind.name());
        for &at in victims {
            self.down(at, how);
            let back = self.cluster.sim.random(|rng| rng.below(crate::exec::nanos(longest) + 1));
            self.later(Duration::from_nanos(back) + Duration::from_millis(10), move |nemesis| nemesis.up(at));
        }
    }

    fn cut(self: &Arc<Self>, pairs: Vec<(usize, usize)>, lasts: Duration, kind: Fault) {
        self.cluster.sim.hit(kind.name());
        let hosts: Vec<_> = {
            let machines = self.cluster.machines();
            pairs.iter().map(|&(from, to)| (machines[from].host, machines[to].host)).collect()
        };
        hosts.iter().for_each(|&(from, to)| self.cluster.net.cut(from, to));
        self.later(lasts, move |nemesis| {
            hosts.iter().for_each(|&(from, to)| nemesis.cluster.net.mend(from, to));
        });
    }

    fn hurt_volume(self: &Arc<Self>, at: usize, kind: Fault, rng: &mut SimRng) {
        let (id, disk) = {
            let machines = self.cluster.machines();
            if machines[at].volumes.is_empty() {
                return;
            }
            let volume = rng.pick(&machines[at].volumes);
            (volume.id, volume.disk.clone())
        };
        {
            if !self.cluster.may_damage(at) {
                return;
            }
            self.cluster.hurt().insert(id);
        }
        self.cluster.sim.hit(kind.name());
        match kind {
            Fault::BitRot => rot(&disk, rng),
            Fault::FullVolume => {
                disk.set_thin_full(true);
                let lasts = rng.micros(100_000, 3_000_000);
                self.later(lasts, move |nemesis| nemesis.each_disk(|disk| disk.set_thin_full(false)));
            }
            _ => {
                let failing = *rng.pick(&[OpKind::Sync, OpKind::Sync, OpKind::Write]);
                disk.fail(failing, rng.range(1, 4), std::io::ErrorKind::Other);
            }
        }
    }

    fn each_disk(&self, work: impl Fn(&SimDisk)) {
        self.cluster.machines().iter().flat_map(|machine| &machine.volumes).for_each(|volume| work(&volume.disk));
    }

    /// Ends every fault and starts every machine.
    pub fn heal(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.cluster.net.heal();
        self.cluster.net.set_weather(Weather::fair());
        self.held().clear();
        self.each_disk(|disk| disk.set_thin_full(false));
        // A power loss still to come is put off for ever.
        self.each_disk(|disk| disk.crash_at(u64::MAX));
        for machine in self.cluster.machines().iter() {
            machine.speed.set(HEALTHY_MICROS);
            machine.fuse.light(0);
            machine.log.fail_at(u64::MAX, pacsvault_simkv::Fault::Before);
        }
        for at in 0..self.cluster.count() {
            if let Some(life) = self.cluster.life(at) {
                self.cluster.sim.jump_wall(life, 0);
            }
            self.cluster.start(at);
        }
    }
}

/// Flips bits of segments, here and there. The identity is spared: without it a volume is not one any more.
fn rot(disk: &SimDisk, rng: &mut SimRng) {
    let segments = disk.names().unwrap_or_default();
    let segments: Vec<String> = segments.into_iter().filter(|name| !name.starts_with("volume.")).collect();
    if segments.is_empty() {
        return;
    }
    for _ in 0..rng.range(1, 12) {
        let name = rng.pick(&segments);
        let len = disk.open(name).and_then(|file| file.len()).unwrap_or(0);
        // What was written lies at the beginning.
        let offset = if rng.chance(700) { rng.below(len.min(32 << 10)) } else { rng.below(len) };
        disk.flip(name, offset, u8::try_from(rng.below(8)).unwrap_or(0));
    }
}
