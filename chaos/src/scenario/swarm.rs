//! What a seed draws beside its faults: topology, profile, knobs and the mix of work.
//!
//! **Invariants.** Every profile drawn can keep its contract on its topology, and survives any one site: the finale reads with
//! one dark.

use pacsvault_core::layout::{
    Contract, Failures, Profile,
    plan::{Topology, check_possible},
    profile::Code,
};

use pacsvault_simdisk::SECTOR_BYTES;

use super::{SITES_MAX, Scenario};
use crate::{cluster::site_name, rng::SimRng};

/// A small volume has room for so many segments.
const SEGMENTS_OF_A_SMALL_VOLUME: u64 = 96;

/// What clients do, in shares.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Weights of put, get, range, list and delete.
    pub weights: [u64; 5],
    /// Puts of 1,000 that repeat content which somebody put under the key before.
    pub again_per_mille: u64,
    /// Operations of 1,000 that go to the one hot key.
    pub hot_per_mille: u64,
    /// Operations of 1,000 that go to documents of a study.
    pub document_per_mille: u64,
    /// Puts of 1,000 that accept nothing below the contract.
    pub strict_per_mille: u64,
    /// Writes of unknown outcome, of 1,000, that are tried again.
    pub retry_per_mille: u64,
    /// Weights of empty, small and large content.
    pub sizes: [u64; 3],
    /// Longest pause of a client between two operations, in microseconds.
    pub pause_micros: u64,
}

/// Small sizes of what is large in production.
#[derive(Debug, Clone)]
pub struct Knobs {
    /// Bytes of a volume's segment.
    pub segment_bytes: u64,
    /// Most entries in one replication message.
    pub payload_entries_max: u64,
    /// Most bytes of recent entries in memory.
    pub cache_bytes_max: usize,
    /// How long a proposal waits for company, in microseconds.
    pub linger_micros: u64,
    /// Between two comparisons of digests, in milliseconds.
    pub compare_every_millis: u64,
    /// Bytes of one piece of a snapshot under way.
    pub snapshot_piece_bytes: u32,
    /// What a volume may hold.
    pub capacity_bytes: u64,
    /// Bytes of a disk that survive or vanish together.
    pub torn_unit_bytes: usize,
}

impl Mix {
    /// The mix of former runs: a bit of everything.
    pub fn usual() -> Self {
        Self {
            weights: [45, 30, 9, 8, 8],
            again_per_mille: 50,
            hot_per_mille: 100,
            document_per_mille: 100,
            strict_per_mille: 100,
            retry_per_mille: 700,
            sizes: [1, 14, 5],
            pause_micros: 150_000,
        }
    }

    pub(super) fn draw(rng: &mut SimRng) -> Self {
        if rng.chance(300) {
            return Self::usual();
        }
        let mut weight = |usual: u64| *rng.pick(&[usual / 4 + 1, usual, usual, usual * 3]);
        let weights = [weight(45), weight(30), weight(9), weight(8), weight(8)];
        Self {
            weights,
            again_per_mille: *rng.pick(&[0, 50, 300]),
            hot_per_mille: *rng.pick(&[0, 100, 700]),
            document_per_mille: *rng.pick(&[0, 100, 400]),
            strict_per_mille: *rng.pick(&[0, 100, 500]),
            retry_per_mille: *rng.pick(&[0, 700, 1_000]),
            sizes: *rng.pick(&[[1, 14, 5], [8, 8, 1], [1, 4, 15]]),
            pause_micros: *rng.pick(&[40_000, 150_000, 150_000, 400_000]),
        }
    }
}

impl Knobs {
    pub(super) fn draw(rng: &mut SimRng) -> Self {
        Self {
            segment_bytes: *rng.pick(&[64 << 10, 128 << 10, 256 << 10, 256 << 10, 1 << 20]),
            payload_entries_max: *rng.pick(&[1, 3, 64, 64]),
            cache_bytes_max: *rng.pick(&[1 << 10, 64 << 20, 64 << 20]),
            linger_micros: *rng.pick(&[0, 1_000, 1_000, 20_000]),
            compare_every_millis: *rng.pick(&[2_000, 10_000, 30_000]),
            snapshot_piece_bytes: 1 << 20,
            capacity_bytes: 64 << 20,
            torn_unit_bytes: SECTOR_BYTES,
        }
    }

    /// What came later, from a generator of its own: runs are as they were in all else. True when volumes are so small that what
    /// a run stores makes one fuller than another.
    pub(super) fn draw_later(&mut self, rng: &mut SimRng, small_allowed: bool) -> bool {
        self.snapshot_piece_bytes = *rng.pick(&[1 << 20, 16 << 10, 4 << 10, 1_000]);
        self.torn_unit_bytes = *rng.pick(&[SECTOR_BYTES, 512]);
        let small = rng.chance(300) && small_allowed;
        if small {
            self.capacity_bytes = self.segment_bytes * SEGMENTS_OF_A_SMALL_VOLUME;
        }
        small
    }
}

/// How many sites there are: mostly three.
pub(super) fn draw_sites(rng: &mut SimRng) -> usize {
    if rng.chance(150) { *rng.pick(&[4, 4, SITES_MAX]) } else { 3 }
}

/// How far sites are apart, one way: from one campus to half a continent.
pub(super) const FAR_MICROS: [u64; 6] = [500, 2_000, 8_000, 8_000, 25_000, 40_000];

/// Distances of sites that lie anywhere: each pair has its own, and one way may take half as long again as the other.
pub(super) fn draw_distances(rng: &mut SimRng, sites: usize) -> Vec<Vec<u64>> {
    let far: Vec<Vec<u64>> = (0..sites).map(|_| (0..sites).map(|_| *rng.pick(&FAR_MICROS)).collect()).collect();
    let skewed = rng.chance(300);
    let mut more = |micros: u64| if skewed { micros + rng.below(micros / 2) } else { micros };
    let drawn: Vec<Vec<u64>> =
        (0..sites).map(|a| (0..sites).map(|b| more(far[a.min(b)][a.max(b)])).collect()).collect();
    super::latencies(sites, |a, b| drawn[a][b])
}

/// How many nodes each of so many sites has more than the least of them.
pub(super) fn draw_extra(rng: &mut SimRng, sites: usize, nodes_per_site: usize) -> [usize; SITES_MAX] {
    let mut extra = [0; SITES_MAX];
    if nodes_per_site < 4 && rng.chance(180) {
        extra[rng.index(sites)] = 1;
        if rng.chance(300) {
            extra[rng.index(sites)] += 1;
        }
    }
    extra
}

fn topology(scenario: &Scenario) -> Topology {
    let sites = (0..scenario.sites).filter(|site| !scenario.is_witness(*site));
    Topology::with_nodes(sites.map(|site| (site_name(site), scenario.nodes_of(site))))
}

/// A profile that can keep its contract on this topology: the usual one, or another. `usual` can.
pub(super) fn draw_profile(rng: &mut SimRng, usual: Profile, scenario: &Scenario) -> Profile {
    let topology = topology(scenario);
    let mut profile = usual.clone();
    if rng.chance(500) {
        let possible: Vec<Profile> =
            others(&usual).into_iter().filter(|other| check_possible(other, &topology).is_ok()).collect();
        if !possible.is_empty() {
            profile = rng.pick(&possible).clone();
        }
    }
    // What is refused rather than stored below its contract allows damage on all that the contract covers.
    if rng.chance(300) {
        profile.floor = profile.contract.clone();
    }
    profile
}

/// In half of the runs: a profile of another code for some studies, which this topology can keep as well.
pub(super) fn draw_other(rng: &mut SimRng, scenario: &Scenario) -> Option<Profile> {
    let (first, topology) = (&scenario.profile, topology(scenario));
    let fits = |other: &Profile| other.code != first.code && check_possible(other, &topology).is_ok();
    let possible: Vec<Profile> = others(first).into_iter().filter(fits).collect();
    if possible.is_empty() || !rng.chance(500) {
        return None;
    }
    let mut other = Profile { name: "other".parse().expect("a valid name"), ..rng.pick(&possible).clone() };
    let strict = first.floor == first.contract;
    other.floor = if strict { other.contract.clone() } else { first.floor.clone() };
    Some(other)
}

fn others(usual: &Profile) -> Vec<Profile> {
    let (site, node) = (Failures { sites: 1, nodes: 0 }, Failures { sites: 1, nodes: 1 });
    let (two_sites, two_nodes) = (Failures { sites: 2, nodes: 0 }, Failures { sites: 0, nodes: 2 });
    let site_or_nodes = Contract::new(vec![site, two_nodes]);
    let one = |failures| Some(Contract::one(failures));
    let list = [
        (1, 2, one(two_sites)),
        (2, 1, one(site)),
        (2, 2, one(site)),
        (2, 4, one(site)),
        (2, 4, one(two_sites)),
        (3, 3, one(site)),
        (3, 6, one(node)),
        (4, 2, one(site)),
        (4, 4, one(site)),
        (4, 5, one(node)),
        (5, 4, one(node)),
        (4, 2, site_or_nodes.clone()),
        (3, 4, site_or_nodes),
    ];
    let made = |(data, parity, contract): (u8, u8, Option<Contract>)| {
        Some(Profile { code: Code::new(data, parity)?, contract: contract?, ..usual.clone() })
    };
    list.into_iter().filter_map(made).collect()
}
