//! What each link has carried so far: evidence of what a fault did to it, counted where bytes are handed over.
//!
//! **Invariants.** Counts only grow. What arrived is counted, not what was sent: a cut link's count stands still.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::table::Numbers;

/// What arrived on one link, in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes.
    pub bytes: u64,
    /// Packets, or pieces of a relayed connection.
    pub pieces: u64,
    /// How long these were under way, all together.
    pub under_way_us: u64,
}

/// What arrived, by (from host, to host); links that carried nothing are absent.
pub type Traffic = BTreeMap<(String, String), Carried>;

impl Carried {
    /// What came since an earlier count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            pieces: self.pieces.saturating_sub(earlier.pieces),
            under_way_us: self.under_way_us.saturating_sub(earlier.under_way_us),
        }
    }
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    pieces: AtomicU64,
    under_way_us: AtomicU64,
}

/// The counts of all links.
pub struct Tally {
    count: usize,
    links: Vec<Counts>,
}

impl Tally {
    /// Nothing yet, for `count` hosts.
    pub fn new(count: usize) -> Self {
        Self { count, links: (0..count * count).map(|_| Counts::default()).collect() }
    }

    /// Something arrived; `None` is an observer, who is not counted.
    pub fn arrived(&self, from: Option<usize>, to: Option<usize>, bytes: usize, under_way: Duration) {
        let (Some(from), Some(to)) = (from, to) else { return };
        let counts = &self.links[from * self.count + to];
        counts.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        counts.pieces.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(under_way.as_micros()).unwrap_or(u64::MAX);
        counts.under_way_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// The counts by name.
    pub fn read(&self, numbers: &Numbers) -> Traffic {
        let names: Vec<&str> = numbers.names().collect();
        let mut traffic = Traffic::new();
        for (from, row) in names.iter().zip(self.links.chunks(self.count.max(1))) {
            for (to, counts) in names.iter().zip(row) {
                let carried = Carried {
                    bytes: counts.bytes.load(Ordering::Relaxed),
                    pieces: counts.pieces.load(Ordering::Relaxed),
                    under_way_us: counts.under_way_us.load(Ordering::Relaxed),
                };
                if carried.pieces > 0 {
                    traffic.insert(((*from).to_owned(), (*to).to_owned()), carried);
                }
            }
        }
        traffic
    }
}
