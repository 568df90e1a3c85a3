//! What a run of many seeds must have met: every kind of fault, every kind of part that had to suffice, and every branch that
//! product code marks.
//!
//! **Invariants.** Marks are counted into the simulation that runs on the thread, and nowhere else. What is not asked for is named
//! in [`EXCUSED`], with the reason.

use std::{cell::Cell, collections::BTreeMap};

use pacsvault_core::probe;

use crate::{exec::Sim, remnant, scenario::FAULTS};

/// So many seeds meet everything; of fewer seeds nothing is asked.
pub const SEEDS_FOR_ALL: usize = 1_000;

/// What else must be met, in words of the harness.
const MARKS: &[&str] = &[
    "beyond: linearizable read refused without a quorum",
    "beyond: lost content refused with a code",
    "beyond: restarted on rotten volumes",
    "beyond: write refused without a quorum",
    "catalog compared with the disks",
    "damage on several machines, inside the promise",
    "deletion held to the logs",
    "disk failed: change of names",
    "disk failed: write",
    "encore: a machine wiped",
    "encore: a node drained and removed",
    "encore: a site wiped",
    "encore: all studies in another profile",
    "encore: all was swept that nothing names",
    "encore: shards looked for that nothing names",
    "encore: the disks of a machine rotten",
    "everything asked for after a disk was struck",
    "everything proven on the disks",
    "machine restarted whose disk kept a write in its cache alone",
    "operator: removed a node that was drained",
    "other encoding of what was acknowledged proven on the disks",
    "receipt checked on the disks",
    "rows of all replicas compared",
    "volume compared with what it held before a restart",
];

/// Marks of judges that look away, of which mark they are a part, and most of 1,000 of those: about twice what 230 seeds show. A
/// judge that looks away more often has become weak.
const LIMITS: &[(&str, &str, u64)] = &[
    ("beyond: no quorum taken, it is not clear who votes", "beyond: the logs of half of the voters gone", 100),
    ("part: content that waits for what is missing", "part: read what has enough shards left", 100),
    ("part: danger not judged, no replica runs", "part: sufficed", 20),
    ("part: danger not judged, repair waits for the upgrade", "part: sufficed", 40),
    ("part: nobody who could lead reaches everybody", "part: led by somebody who reaches everybody", 300),
    ("part: none drawn, it is not clear who votes", "part: sufficed", 40),
    ("part: none drawn, none would suffice", "part: sufficed", 40),
    ("part: outvoted by a change that was under way", "part: sufficed", 20),
    ("part: stripe at a volume given up, more is damaged than was promised", "part: sufficed", 500),
    ("part: too few nodes for a stripe of this code to outlive the next", "part: sufficed", 100),
    ("part: too small for repair", "part: sufficed", 250),
    ("part: too small for the floor, no write asked of it", "part: took a write", 1000),
    ("one site dark: too little left for the floor", "everything read with one site dark", 650),
    ("receipt of what has another encoding since", "receipt checked on the disks", 10),
    ("receipt of what has moved since", "receipt checked on the disks", 10),
    ("encore: all was swept that nothing names but what came later", "encore: all was swept that nothing names", 60),
    ("encore: deleted shard whose tombstone has rotted", "encore: shards looked for that nothing names", 60),
];
/// An excused mark that was met in more of 1,000 seeds is asked for from then on.
const EXCUSED_SEEDS_MAX: u64 = 10;

/// Why marks are not asked for that are rare: at most one of the first 300 seeds met each.
const RARE: &str = "too rare for 1,000 seeds as far as is known; ask for it as soon as larger runs have met it";

/// Marks that need not be met, and why.
pub const EXCUSED: &[(&str, &str)] = &[
    (
        "recovery: repair gave up: its writes took too long",
        "no call outlives its deadline of 20 s, a third of what is too long",
    ),
    ("recovery: cluster told again what a node is like", RARE),
    ("recovery: repeated write worth too little by now", RARE),
    ("recovery: reseat refused: its target is fenced", RARE),
    ("recovery: stripe set aside is tried again", RARE),
    ("recovery: sweep refused: the catalog does not give the volume to this node", RARE),
    ("recovery: write refused while an old copy is being deleted", RARE),
];

/// What faults meet besides machines.
pub const CLIENTS: &[&str] = &[
    "clients cut off with their site",
    "clients stopped with their site",
    "link of a client disturbed",
    "write refused: its client's clock is more than a day wrong",
];

thread_local! {
    static INSTRUMENT: Cell<bool> = const { Cell::new(false) };
}

/// Lets marks be counted. Any number of times.
pub fn listen() {
    probe::listen(|tag| {
        if let Some(sim) = subject() {
            sim.hit(tag);
        }
    });
    #[cfg(feature = "planted")]
    probe::plant(|bug| subject().is_some_and(|sim| sim.planted(bug)));
}

/// The simulation that runs on this thread, when it is the code under test that runs.
fn subject() -> Option<Sim> {
    if INSTRUMENT.get() { None } else { Sim::try_current() }
}

/// Runs `work`, which uses product code to judge by, such as the recovery of a copied volume: what it meets is not what the
/// cluster met, and no bug is planted in it.
pub fn as_instrument<T>(work: impl FnOnce() -> T) -> T {
    let before = INSTRUMENT.replace(true);
    let done = work();
    INSTRUMENT.set(before);
    done
}

/// What runs of `seeds` seeds should have met and did not, or should have met less often, by the table of
/// [`crate::run::coverage`].
pub fn gaps(table: &BTreeMap<&'static str, (u64, u64)>, seeds: usize) -> Vec<String> {
    let faults = FAULTS.into_iter().map(|fault| fault.name());
    let asked = |tag: &&str| !EXCUSED.iter().any(|(known, _)| known == tag);
    let own = MARKS.iter().chain(remnant::MARKS).chain(CLIENTS).copied();
    let wanted = faults.chain(own).chain(probe::TAGS.iter().copied().filter(asked));
    let missed = wanted.filter(|tag| !table.contains_key(tag)).map(|tag| format!("no seed met `{tag}`"));
    missed.chain(looked_away(table)).chain(no_longer_rare(table, seeds)).collect()
}

/// Judges that looked away too often.
fn looked_away(table: &BTreeMap<&'static str, (u64, u64)>) -> impl Iterator<Item = String> {
    let times = |mark: &str| table.get(mark).map_or(0, |(times, _)| *times);
    let excess = |(excuse, of, most): &(&'static str, &'static str, u64)| {
        let (excused, all) = (times(excuse), times(of));
        let excess = excused * 1_000 > all * most;
        excess.then(|| format!("`{excuse}` {excused} times beside {all} times `{of}`: more than {most} of 1,000"))
    };
    LIMITS.iter().filter_map(excess).collect::<Vec<_>>().into_iter()
}

/// Excuses that do not hold any more.
fn no_longer_rare(table: &BTreeMap<&'static str, (u64, u64)>, seeds: usize) -> impl Iterator<Item = String> {
    let often = |(tag, _): &(&'static str, &str)| {
        let met = table.get(tag).map_or(0, |(_, seeds)| *seeds);
        let often = met * 1_000 > EXCUSED_SEEDS_MAX * seeds as u64;
        often.then(|| format!("`{tag}` is excused, and {met} of {seeds} seeds met it: ask for it"))
    };
    EXCUSED.iter().filter_map(often).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excuses_are_for_marks_that_there_are() {
        assert!(EXCUSED.iter().all(|(tag, why)| probe::is_known(tag) && !why.is_empty()));
        let own = MARKS.iter().chain(remnant::MARKS).chain(CLIENTS).copied();
        let everything = FAULTS.into_iter().map(|fault| fault.name()).chain(own).chain(probe::TAGS.iter().copied());
        let excused = |tag: &&str| EXCUSED.iter().any(|(known, _)| known == tag);
        let table: BTreeMap<_, _> = everything.filter(|tag| !excused(tag)).map(|tag| (tag, (1, 1))).collect();
        assert_eq!(gaps(&table, 1_000), Vec::<String>::new());
        assert_eq!(gaps(&BTreeMap::new(), 1_000).len(), table.len());
    }

    #[test]
    fn judges_that_look_away_and_excuses_that_do_not_hold_are_told() {
        let (excuse, of, most) = LIMITS[0];
        let table = |excused| BTreeMap::from([(excuse, (excused, 1)), (of, (1_000, 1))]);
        assert_eq!(looked_away(&table(most)).count(), 0);
        assert_eq!(looked_away(&table(most + 1)).count(), 1);
        assert_eq!(looked_away(&BTreeMap::from([(excuse, (1, 1))])).count(), 1);
        let table = |seeds| BTreeMap::from([(EXCUSED[0].0, (seeds, seeds))]);
        assert_eq!(no_longer_rare(&table(EXCUSED_SEEDS_MAX), 1_000).count(), 0);
        assert_eq!(no_longer_rare(&table(EXCUSED_SEEDS_MAX + 1), 1_000).count(), 1);
    }
}
