//! The one who breaks things, and in the end repairs them.
//!
//! **Invariants.** Only kinds of the scenario's subset happen. All damage that does not end by itself (a volume fails, rots,
//! forgets, is replaced; a machine is wiped) is booked in the [`crate::atlas`], which keeps it inside what every acknowledged
//! write survives. After [`Nemesis::heal`] nothing is broken but what was damaged so, and people go on repairing it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    cluster::{Cluster, Stop},
    exec::Life,
    machine::HEALTHY_MICROS,
    net::{HostId, Trap, Weather},
    operator::{AfterDrain, Operator},
    rng::SimRng,
    scenario::Fault,
};

mod disks;
mod links;

pub(crate) use disks::rot_through;

/// No pace takes anybody for down who is out of sight for so long: nothing is repaired for it.
const UNNOTICED: Duration = Duration::from_millis(700);

/// How a machine stays, whatever is due, until everything heals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// Without power.
    Dark,
    /// Its process is stopped as SIGSTOP does; without power when it does not run.
    Stopped,
}

/// The fault injector of one run.
pub struct Nemesis {
    cluster: Arc<Cluster>,
    held: Mutex<BTreeSet<usize>>,
    frozen: Mutex<BTreeSet<usize>>,
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
            frozen: Mutex::default(),
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

    fn frozen(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether machine `at` is held down, or being worked on.
    pub fn is_held(&self, at: usize) -> bool {
        self.held().contains(&at)
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

    /// Starts machine `at`, unless it is to stay as it is.
    pub fn up(&self, at: usize) {
        if self.frozen().contains(&at) {
            return;
        }
        self.held().remove(&at);
        self.cluster.start(at);
    }

    /// Breaks things until `until`.
    pub async fn run(self: Arc<Self>, until: Duration) {
        let mut rng = self.cluster.sim.random(SimRng::fork);
        if self.cluster.scenario.upgrade {
            let nemesis = Arc::clone(&self);
            self.operator.begin(|operator| operator.upgrade(nemesis));
        }
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
            self.cluster.sim.drew(&own);
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
        let site = rng.index(cluster.scenario.sites);
        let short = rng.micros(20_000, 3_000_000);
        match kind {
            Fault::Crash => self.take_down(&[one], Stop::Process, short, (kind, rng)),
            Fault::PowerLoss => self.take_down(&[one], Stop::Power, short, (kind, rng)),
            Fault::PowerLossInOperation => self.lose_power_in_operation(one, rng),
            Fault::SitePowerLoss => {
                self.take_down(&cluster.of_site(site), Stop::Power, short, (kind, rng));
                self.clients_out(site, short, rng);
            }
            Fault::MajorityPowerLoss => {
                let spared = cluster.of_site(site);
                let victims: Vec<usize> = (0..cluster.count()).filter(|at| !spared.contains(at)).collect();
                self.take_down(&victims, Stop::Power, short, (kind, rng));
            }
            Fault::TotalPowerLoss => {
                let victims: Vec<usize> = (0..cluster.count()).collect();
                self.take_down(&victims, Stop::Power, short, (kind, rng));
            }
            Fault::CutOneWay
            | Fault::IsolateSite
            | Fault::Bridge
            | Fault::Storm
            | Fault::HeldLink
            | Fault::SlowLink
            | Fault::SplitInSite
            | Fault::FlappingLink
            | Fault::FlappingSite
            | Fault::LeaderSiteFlap => self.disturb(kind, one, site, rng),
            Fault::SlowDisk => {
                cluster.sim.hit(kind.name());
                cluster.machines()[one].speed.set(rng.range(20_000, 700_000));
                self.later(short, move |nemesis| nemesis.cluster.machines()[one].speed.set(HEALTHY_MICROS));
            }
            Fault::FailingVolumeSync
            | Fault::BitRot
            | Fault::FullVolume
            | Fault::LatentErrors
            | Fault::MisdirectedWrite
            | Fault::LostWrite
            | Fault::StaleReads
            | Fault::MisdirectedRead => self.hurt_volume(one, kind, rng),
            // Counted when it happens.
            Fault::FailingLogSync | Fault::FailingStateStore => {
                let machines = cluster.machines();
                let store = if kind == Fault::FailingLogSync { &machines[one].log } else { &machines[one].state };
                let how = *rng.pick(&[pacsvault_simkv::Fault::Before, pacsvault_simkv::Fault::After]);
                store.fail_at(store.operations() + rng.below(10), how);
            }
            Fault::ClockJump => {
                cluster.sim.hit(kind.name());
                let ahead = i64::try_from(rng.below(7_200_000)).unwrap_or(0) - 3_600_000;
                cluster.set_wall(one, ahead);
            }
            Fault::TransferLeader => self.transfer_leader(one),
            // Clients see to this themselves.
            Fault::ClientCrash => {}
            Fault::PausedClient | Fault::ClientClock => self.hurt_client(kind, rng),
            Fault::LongAbsence
            | Fault::LeaderCrash
            | Fault::CrashInRepair
            | Fault::CrashInSnapshot
            | Fault::SiteOutage
            | Fault::PausedNode
            | Fault::PausedLeader => self.crash_somebody(kind, one, short, rng),
            Fault::ClockRate => self.change_rate(one, short, rng),
            Fault::WipeNode
            | Fault::ReplaceVolume
            | Fault::FenceInWrite
            | Fault::DrainNode
            | Fault::DrainVolume
            | Fault::AddNode
            | Fault::ScrubNow
            | Fault::ChangeProfile => self.operate(kind, one, rng),
        }
    }

    /// Absences and crashes that healing must get over.
    fn crash_somebody(self: &Arc<Self>, kind: Fault, one: usize, short: Duration, rng: &mut SimRng) {
        let cluster = &self.cluster;
        match kind {
            Fault::LongAbsence => {
                let how = *rng.pick(&[Stop::Process, Stop::Power]);
                let back = rng.micros(3_000_000, 14_000_000);
                if cluster.atlas().away(&[one]) {
                    cluster.sim.hit(kind.name());
                    self.down(one, how);
                    self.later(back, move |nemesis| nemesis.up(one));
                }
            }
            Fault::SiteOutage => {
                let how = *rng.pick(&[Stop::Process, Stop::Power, Stop::Power]);
                let site = cluster.machines()[one].site;
                let (dark, lasts) = (cluster.of_site(site), rng.micros(4_000_000, 12_000_000));
                if cluster.atlas().away(&dark) {
                    cluster.sim.hit(kind.name());
                    dark.iter().for_each(|&at| self.down(at, how));
                    self.clients_out(site, lasts, rng);
                    self.later(lasts, move |nemesis| dark.iter().for_each(|&at| nemesis.up(at)));
                }
            }
            Fault::PausedNode => self.pause_node(one, rng.micros(50_000, 6_000_000), kind),
            Fault::PausedLeader => {
                let lasts = rng.micros(200_000, 6_000_000);
                if let Some(at) = self.leader_at() {
                    self.pause_node(at, lasts, kind);
                }
            }
            Fault::LeaderCrash => {
                let how = *rng.pick(&[Stop::Process, Stop::Power]);
                if let Some(at) = self.leader_at() {
                    self.take_down(&[at], how, short, (kind, rng));
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
                let at = self.aim(at, rng);
                let volume = cluster.machines()[at].volumes.first().map(|volume| volume.id);
                let Some(volume) = volume.filter(|volume| cluster.may_damage_volume(at, *volume)) else { return };
                operator.begin(|operator| operator.replace(nemesis, at, volume));
            }
            // Counted when it happens.
            Fault::FenceInWrite => return self.fence_in_write(rng),
            Fault::DrainNode if operator.jobs() == 0 => {
                let then = *rng.pick(&[AfterDrain::TakenBack, AfterDrain::Removed]);
                operator.begin(|operator| operator.drain(nemesis, at, then));
            }
            Fault::DrainVolume if operator.jobs() == 0 => operator.begin(|operator| operator.drain_volume(at)),
            Fault::AddNode => {
                let site = cluster.machines()[at].site;
                let most = cluster.scenario.nodes_of(site) + 1;
                if cluster.scenario.is_witness(site) || cluster.of_site(site).len() >= most {
                    return;
                }
                operator.add(self, site);
            }
            Fault::ScrubNow => operator.begin(Operator::scrub),
            // Counted when it is accepted.
            Fault::ChangeProfile => return operator.begin(Operator::change_profile),
            _ => return,
        }
        cluster.sim.hit(kind.name());
    }

    /// Somebody dies at the next such moment, or soon after.
    fn set_trap(self: &Arc<Self>, trap: Trap, kind: Fault, rng: &mut SimRng) {
        let nemesis = Arc::clone(self);
        let (after, how) = (rng.micros(0, 120_000), *rng.pick(&[Stop::Process, Stop::Power]));
        let (who, lasts) = (rng.index(3), rng.micros(20_000, 3_000_000));
        let mut own = rng.fork();
        self.cluster.net.set_trap(
            trap,
            Box::new(move |from, to| {
                let victim = match (trap, who) {
                    (Trap::Repair, 0) => nemesis.leader_at(),
                    (Trap::Repair, 1) => nemesis.machine_of(to),
                    (Trap::Repair, _) | (Trap::Snapshot | Trap::Write, _) => nemesis.machine_of(from),
                };
                let Some(victim) = victim else { return };
                nemesis.later(after, move |nemesis| {
                    if nemesis.faults_last() {
                        nemesis.take_down(&[victim], how, lasts, (kind, &mut own));
                    }
                });
            }),
        );
    }

    /// A volume of the next node that a client writes to is given up, before or after the write is sealed.
    fn fence_in_write(self: &Arc<Self>, rng: &mut SimRng) {
        // Mostly at once: the write is sealed a round trip later.
        let after = if rng.chance(700) { rng.micros(0, 2_000) } else { rng.micros(0, 40_000) };
        let (nemesis, volume) = (Arc::clone(self), rng.index(8));
        let fence = move |nemesis: &Arc<Self>, at: usize| {
            let own = nemesis.cluster.machines()[at].volumes.iter().map(|volume| volume.id).collect::<Vec<_>>();
            let Some(volume) = own.get(volume % own.len().max(1)).copied() else { return };
            if nemesis.faults_last() && nemesis.cluster.may_damage_volume(at, volume) {
                nemesis.cluster.sim.hit(Fault::FenceInWrite.name());
                nemesis.operator.begin(|operator| operator.give_up_volume(volume));
            }
        };
        let sprung = move |_, to| {
            let Some(at) = nemesis.machine_of(to) else { return };
            nemesis.later(after, move |nemesis| fence(nemesis, at));
        };
        self.cluster.net.set_trap(Trap::Write, Box::new(sprung));
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

    /// Between two operations of any store of the machine, or within one of a volume's disk. Counted when it happens.
    fn lose_power_in_operation(&self, at: usize, rng: &mut SimRng) {
        let machines = self.cluster.machines();
        if rng.chance(500) || machines[at].volumes.is_empty() {
            machines[at].fuse.light(rng.range(1, 40));
        } else {
            let disk = &rng.pick(&machines[at].volumes).disk;
            disk.crash_at(disk.ops() + rng.range(1, 30));
        }
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

    /// Stops the process of machine `at` as SIGSTOP does, or a long pause of its host.
    fn pause_node(self: &Arc<Self>, at: usize, lasts: Duration, kind: Fault) {
        let Some(life) = self.cluster.life(at) else { return };
        let lasts = self.grant(&[at], lasts);
        self.cluster.sim.hit(kind.name());
        self.cluster.sim.pause(life);
        self.later(lasts, move |nemesis| {
            if !nemesis.frozen().contains(&at) {
                nemesis.cluster.sim.resume(life);
            }
        });
    }

    fn change_rate(self: &Arc<Self>, at: usize, lasts: Duration, rng: &mut SimRng) {
        let rate = *rng.pick(&[-300_000, -100_000, -20_000, 20_000, 100_000, 300_000]);
        self.cluster.sim.hit(Fault::ClockRate.name());
        self.cluster.set_rate(at, Some(rate));
        self.later(lasts * 2, move |nemesis| nemesis.cluster.set_rate(at, None));
    }

    /// How long machines may be out of sight that would be for `lasts`: short when the damage done allows no repair without
    /// them.
    fn grant(&self, machines: &[usize], lasts: Duration) -> Duration {
        if lasts <= UNNOTICED || self.cluster.atlas().away(machines) { lasts } else { UNNOTICED }
    }

    fn take_down(self: &Arc<Self>, victims: &[usize], how: Stop, longest: Duration, (kind, rng): (Fault, &mut SimRng)) {
        self.cluster.sim.hit(kind.name());
        for &at in victims {
            self.down(at, how);
            let back = rng.below(crate::exec::nanos(longest) + 1);
            let back = self.grant(&[at], Duration::from_nanos(back));
            self.later(back + Duration::from_millis(10), move |nemesis| nemesis.up(at));
        }
    }

    /// No fault begins any more; those that have begun go on.
    pub fn end_faults(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Lets machines stay so until everything heals.
    pub fn freeze(&self, machines: &BTreeSet<usize>, how: Stays) {
        for &at in machines {
            self.frozen().insert(at);
            match self.cluster.life(at).filter(|_| how == Stays::Stopped) {
                Some(life) => self.cluster.sim.pause(life),
                None => self.down(at, Stop::Power),
            }
        }
    }

    /// Ends every fault and starts every machine.
    pub fn heal(&self) {
        self.frozen().clear();
        self.heal_rest();
    }

    /// As [`Nemesis::heal`], of all machines that are not frozen.
    pub fn heal_rest(&self) {
        self.end_faults();
        let frozen = self.frozen().clone();
        self.cluster.net.heal();
        self.cluster.net.set_weather(Weather::fair());
        self.held().retain(|at| frozen.contains(at));
        for (_, machine) in self.cluster.machines().iter().enumerate().filter(|(at, _)| !frozen.contains(at)) {
            for disk in machine.volumes.iter().map(|volume| &volume.disk) {
                disk.set_thin_full(false);
                disk.be_honest();
                disk.end_stale_reads();
                // A failure or a power loss still to come is put off for ever: later everything is whole, and counted on.
                disk.fail_no_more();
                disk.crash_at(u64::MAX);
            }
            machine.speed.set(HEALTHY_MICROS);
            machine.fuse.light(0);
            for store in [&machine.log, &machine.state] {
                store.fail_at(u64::MAX, pacsvault_simkv::Fault::Before);
            }
        }
        self.drop_caches(&frozen);
        for at in (0..self.cluster.count()).filter(|at| !frozen.contains(at)) {
            if let Some(life) = self.cluster.life(at) {
                self.cluster.sim.resume(life);
            }
            self.cluster.set_clocks_right(at);
            self.cluster.start(at);
        }
    }

    /// Takes the power from every machine that is not frozen and has a disk that confirmed a write and kept it in its cache alone. No reading of a
    /// running node shows what is lost so; the next start does, and only what is seen is repaired. The loss was booked when
    /// the disk was told to lie.
    fn drop_caches(&self, frozen: &BTreeSet<usize>) {
        for at in (0..self.cluster.count()).filter(|at| !frozen.contains(at)) {
            let owes = self.cluster.machines()[at].volumes.iter().any(|volume| volume.disk.owes_cached());
            if owes {
                self.cluster.sim.hit("machine restarted whose disk kept a write in its cache alone");
                self.cluster.stop(at, Stop::Power);
            }
        }
    }
}
