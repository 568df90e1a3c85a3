//! One machine: its disks, its stores and what it remembers.
//!
//! **Invariants.** A machine is its disks. One that was wiped is blank until somebody makes a new node of it: it never starts
//! under its old identity.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use pacsvault_core::{
    ids::{Incarnation, NodeName, VolumeId},
    layout::VolumeState,
    shard::ShardId,
};
use pacsvault_ports::peer::Fault;
use pacsvault_service::{FORMAT_VERSION, Membership, Node, Registry};
use pacsvault_simdisk::{OpKind, SimDisk, Strike, WriteLie};
use pacsvault_simkv::{self as simkv, SimKvMedia};
use pacsvault_volume::Volume;

use crate::{
    env::WorkSpeed,
    exec::{ClockSkew, Life, PowerLost, Sim},
    net::HostId,
    rng::SimRng,
    scenario::{Fault as Kind, Scenario},
};

/// Longest duration of blocking work on a healthy machine, in microseconds.
pub const HEALTHY_MICROS: u64 = 1_500;

/// Where a node remembers who it is; durable at once.
#[derive(Default)]
pub struct MemoryRegistry(Mutex<Option<Membership>>, Mutex<BTreeSet<String>>);

impl Registry for MemoryRegistry {
    fn load(&self) -> Result<Option<Membership>, Fault> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, membership: &Membership) -> Result<(), Fault> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(membership.clone());
        Ok(())
    }

    fn asked(&self) -> Result<BTreeSet<String>, Fault> {
        Ok(self.1.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save_asked(&self, asked: &BTreeSet<String>) -> Result<(), Fault> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone_from(asked);
        Ok(())
    }
}

/// Counts disk operations down to a power loss. 0: none is planned.
#[derive(Debug, Default)]
pub struct Fuse(AtomicU64);

impl Fuse {
    /// The power goes before the `nth` next operation.
    pub fn light(&self, nth: u64) {
        self.0.store(nth, Ordering::Relaxed);
    }

    /// Called before each disk operation of the machine; does not return when the power goes.
    pub fn burn(&self) {
        let left = self.0.load(Ordering::Relaxed);
        if left > 0 {
            self.0.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                hit(Kind::PowerLossInOperation.name());
                // Not a bug of the node: no message, and the executor ends the life.
                std::panic::resume_unwind(Box::new(PowerLost));
            }
        }
    }
}

/// Counts a fault that struck, in whichever simulation it runs.
fn hit(what: &'static str) {
    if let Some(sim) = Sim::try_current() {
        sim.hit(what);
    }
}

/// Under which name it counts when a disk of a volume fails its node so.
fn strike_name(strike: Strike) -> &'static str {
    match strike {
        Strike::Failed(OpKind::Sync) => Kind::FailingVolumeSync.name(),
        Strike::Failed(OpKind::Write) => "disk failed: write",
        Strike::Failed(OpKind::SyncNames | OpKind::Create | OpKind::Rename | OpKind::Remove) => {
            "disk failed: change of names"
        }
        Strike::Failed(OpKind::Read) => "disk failed: read",
        Strike::Lied(WriteLie::Misdirected) => Kind::MisdirectedWrite.name(),
        Strike::Lied(WriteLie::Lost | WriteLie::OnlyCached) => Kind::LostWrite.name(),
        Strike::Full => Kind::FullVolume.name(),
        Strike::PowerLost => Kind::PowerLossInOperation.name(),
        Strike::Misread => Kind::MisdirectedRead.name(),
    }
}

/// An empty store that counts its failures as strikes of `kind`. After one nobody may change it again in that life: what a second
/// try would confirm the system may have forgotten.
fn store(kind: Kind) -> SimKvMedia {
    let media = SimKvMedia::new();
    media.on_failure(Arc::new(move |strike| match strike {
        simkv::Strike::Failed => hit(kind.name()),
        simkv::Strike::TriedAgain => panic!("a store was changed again after a change of it had failed ({kind})"),
    }));
    media
}

/// One volume of a machine.
pub struct SimVolume {
    /// Its identity.
    pub id: VolumeId,
    /// Its disk as of now.
    pub disk: SimDisk,
    /// What its store held when its last life was ended from outside, between two operations: then that is exactly what it
    /// holds in the next one.
    pub(crate) held: Option<BTreeSet<ShardId>>,
}

impl SimVolume {
    /// An empty disk that burns `fuse`.
    pub fn new(sim: &Sim, scenario: &Scenario, fuse: &Arc<Fuse>) -> Self {
        let burning = Arc::clone(fuse);
        let options = pacsvault_simdisk::Options {
            capacity_bytes: scenario.knobs.capacity_bytes * 2,
            torn_unit_bytes: scenario.knobs.torn_unit_bytes,
            latency: Some(Arc::new(move |kind, _| {
                if kind != OpKind::Read {
                    burning.burn();
                }
            })),
            struck: Some(Arc::new(|strike| hit(strike_name(strike)))),
        };
        Self { id: VolumeId(id_bytes(sim)), disk: SimDisk::new(options, sim.random(SimRng::bits)), held: None }
    }
}

pub(crate) struct Running {
    pub life: Life,
    pub node: Arc<OnceLock<Arc<Node>>>,
    /// Its volumes, once they are open.
    pub stores: Arc<OnceLock<Vec<Arc<Volume>>>>,
}

impl Running {
    /// What each of its volumes holds now. Not of one that is poisoned, or was in an earlier life: what its last batch put or
    /// deleted was answered with an error, and may be found there or not.
    pub(crate) fn held(&self) -> BTreeMap<VolumeId, BTreeSet<ShardId>> {
        let held = |volume: &Arc<Volume>| (volume.id(), volume.store().list(None, usize::MAX).into_iter().collect());
        let told = self.node.get().map(|node| node.volume_statuses()).unwrap_or_default();
        let sound = |volume: &&Arc<Volume>| {
            // Before there is a node nobody has written.
            let said = told.iter().find(|one| one.volume == volume.id()).map(|one| one.state);
            said.unwrap_or_else(|| volume.store().status().state) != VolumeState::Fenced
        };
        self.stores.get().into_iter().flatten().filter(sound).map(held).collect()
    }
}

/// One machine.
pub struct Machine {
    /// On the network.
    pub host: HostId,
    /// Of its node.
    pub name: NodeName,
    /// Which site.
    pub site: usize,
    /// Of its node.
    pub incarnation: Incarnation,
    /// Its volumes.
    pub volumes: Vec<SimVolume>,
    /// Its Raft log.
    pub log: SimKvMedia,
    /// Its catalog.
    pub state: SimKvMedia,
    /// How fast its disks are.
    pub speed: Arc<WorkSpeed>,
    /// Its planned power loss.
    pub fuse: Arc<Fuse>,
    /// Whether its operator founds a cluster with it.
    pub founder: bool,
    /// Wiped, and no new node yet: does not start.
    pub blank: bool,
    /// Version of commands that its program understands.
    pub format: u32,
    pub(crate) registry: Arc<MemoryRegistry>,
    /// How its clocks are wrong now: a restart does not set them right.
    pub(crate) skew: ClockSkew,
    /// How they are wrong when no fault makes it worse.
    pub(crate) usual: ClockSkew,
    pub(crate) running: Option<Running>,
}

/// Sixteen random bytes.
pub(crate) fn id_bytes(sim: &Sim) -> [u8; 16] {
    sim.random(|rng| rng.bytes(16)).try_into().expect("16 bytes were asked for")
}

/// How wrong a clock of this scenario is.
pub(crate) fn draw_skew(rng: &mut SimRng, scenario: &Scenario) -> ClockSkew {
    let mut around = |most: u64| {
        let drawn = i64::try_from(rng.below(2 * most + 1)).unwrap_or(0);
        drawn - i64::try_from(most).unwrap_or(0)
    };
    let rate = around(scenario.clock_ppm);
    ClockSkew { rate_ppm: i32::try_from(rate).unwrap_or(0), wall_offset_millis: around(scenario.clock_off_millis) }
}

impl Machine {
    /// A machine with empty disks for a node of that name.
    pub fn new(sim: &Sim, host: HostId, scenario: &Scenario, site: usize, name: &str) -> Self {
        let fuse = Arc::new(Fuse::default());
        let count = if scenario.is_witness(site) { 0 } else { scenario.volumes_per_node };
        let volumes = (0..count).map(|_| SimVolume::new(sim, scenario, &fuse)).collect();
        let skew = sim.random(|rng| draw_skew(rng, scenario));
        Self {
            host,
            name: name.parse().expect("a valid name"),
            site,
            incarnation: Incarnation(id_bytes(sim)),
            volumes,
            log: store(Kind::FailingLogSync),
            state: store(Kind::FailingStateStore),
            speed: WorkSpeed::new(HEALTHY_MICROS),
            fuse,
            founder: false,
            blank: false,
            format: FORMAT_VERSION,
            registry: Arc::default(),
            skew,
            usual: skew,
            running: None,
        }
    }
}
