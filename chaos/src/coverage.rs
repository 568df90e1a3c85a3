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
    "beyond: restarted on rotten volumes",
    "deletion held to the logs",
    "encore: all studies in another profile",
    "everything asked for after a disk was struck",
    "machine restarted whose disk kept a write in its cache alone",
    "other encoding of what was acknowledged proven on the disks",
];

/// Why marks are not asked for that are rare: at most one of the first 300 seeds met each.
const RARE: &str = "too rare for 1,000 seeds as far as is known; ask for it as soon as larger runs have met it";

/// Marks that need not be met, and why.
pub const EXCUSED: &[(&str, &str)] = &[
    (
        "recovery: repair gave up: its writes took too long",
        "no call outlives its deadline of 20 s, a third of what is too long",
    ),
    (
        "recovery: shard to be moved off a fuller volume",
        "what a run stores is less than the percent of a volume that matters",
    ),
    ("recovery: cluster told again what a node is like", RARE),
    ("recovery: repeated write worth too little by now", RARE),
    ("recovery: reseat refused: it came too late", RARE),
    ("recovery: reseat refused: its target is away", RARE),
    ("recovery: reseat refused: its target is fenced", RARE),
    ("recovery: snapshot transfer resumed", RARE),
    ("recovery: stripe set aside is tried again", RARE),
    ("recovery: sweep refused: the catalog does not give the volume to this node", RARE),
    ("recovery: torn record voided", RARE),
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

/// What runs of so many seeds should have met and did not, by the table of [`crate::run::coverage`].
pub fn gaps(table: &BTreeMap<&'static str, (u64, u64)>) -> Vec<String> {
    let faults = FAULTS.into_iter().map(|fault| fault.name());
    let asked = |tag: &&str| !EXCUSED.iter().any(|(known, _)| known == tag);
    let own = MARKS.iter().chain(remnant::MARKS).chain(CLIENTS).copied();
    let wanted = faults.chain(own).chain(probe::TAGS.iter().copied().filter(asked));
    wanted.filter(|tag| !table.contains_key(tag)).map(|tag| format!("no seed met `{tag}`")).collect()
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
        assert_eq!(gaps(&table), Vec::<String>::new());
        assert_eq!(gaps(&BTreeMap::new()).len(), table.len());
    }
}
