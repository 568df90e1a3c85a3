//! Profiles: how content is coded and which failures a write promises to survive.

use std::fmt;

use crate::ids::ProfileName;
use crate::limits::SHARDS_MAX;

/// One set of simultaneous failures: any `sites` whole sites, and besides them any `nodes` single nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failures {
    /// Whole sites lost.
    pub sites: u8,
    /// Further single nodes lost, on the surviving sites.
    pub nodes: u8,
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |count: u8, one: &str| match count {
            1 => format!("any one {one}"),
            n => format!("any {n} {one}s"),
        };
        match (self.sites, self.nodes) {
            (0, 0) => f.write_str("no failure"),
            (sites, 0) => f.write_str(&part(sites, "site")),
            (0, nodes) => f.write_str(&part(nodes, "node")),
            (sites, nodes) => write!(f, "{} and {} more", part(sites, "site"), part(nodes, "node")),
        }
    }
}

/// The failure sets that a write must survive: all of the listed, each on its own.
///
/// Invariant: never empty, sorted, without repeats.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contract(Vec<Failures>);

impl Contract {
    /// A contract of these failure sets; `None` when the list is empty.
    pub fn new(mut failures: Vec<Failures>) -> Option<Self> {
        failures.sort_unstable();
        failures.dedup();
        (!failures.is_empty()).then_some(Self(failures))
    }

    /// A contract of one failure set.
    pub fn one(failures: Failures) -> Self {
        Self(vec![failures])
    }

    /// The failure sets, sorted.
    pub fn failures(&self) -> &[Failures] {
        &self.0
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failures) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            failures.fmt(f)?;
        }
        Ok(())
    }
}

/// Data and parity shards per stripe. Invariant: both ≥ 1, sum ≤ [`SHARDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code {
    data: u8,
    parity: u8,
}

impl Code {
    /// A code of `data` + `parity` shards; `None` outside the invariant.
    pub fn new(data: u8, parity: u8) -> Option<Self> {
        let fine = data >= 1 && parity >= 1 && usize::from(data) + usize::from(parity) <= SHARDS_MAX;
        fine.then_some(Self { data, parity })
    }

    /// `k`: shards needed to read.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// `m`: shards that may be lost.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// `k + m`.
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// `k` as stored.
    pub fn data_u8(self) -> u8 {
        self.data
    }

    /// `m` as stored.
    pub fn parity_u8(self) -> u8 {
        self.parity
    }

    /// Bytes of each shard of a stripe of `stripe_bytes`: `ceil(stripe_bytes / k)`, at least 1.
    pub fn shard_bytes(self, stripe_bytes: u64) -> u64 {
        stripe_bytes.div_ceil(u64::from(self.data)).max(1)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

/// Where reads should find data first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReadPreference {
    /// Own site, then data shards before parity, then near sites.
    OwnSite = 1,
    /// Every site holds at least `k` shards, so that every read is local.
    EverySite = 2,
}

/// A named way to keep content. Versioned: a change gives a new version, stripes record the one they used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Name that writers use.
    pub name: ProfileName,
    /// From 1 upwards.
    pub version: u32,
    /// `k + m`.
    pub code: Code,
    /// What an acknowledged write survives.
    pub contract: Contract,
    /// The least that a degraded write must survive; below it writes are refused.
    pub floor: Contract,
    /// Where reads go first.
    pub read_preference: ReadPreference,
}
