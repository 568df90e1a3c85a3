//! What a run of many seeds must have met: every kind of fault, and every branch that product code marks.
//!
//! **Invariants.** Marks are counted into the simulation that runs on the thread, and nowhere else. What cannot happen here is
//! named in [`NOT_SIMULATED`], with the reason; it is a fault of the list when it does happen.

use std::{cell::Cell, collections::BTreeMap};

use pacsvault_core::probe;

use crate::{exec::Sim, scenario::FAULTS};

/// So many seeds meet everything; of fewer seeds nothing is asked.
pub const SEEDS_FOR_ALL: usize = 1_000;

/// Marks that no simulation meets, and why.
pub const NOT_SIMULATED: &[(&str, &str)] = &[];

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

/// What runs of these seeds should have met and did not, or met and should not have been able to; by the table of
/// [`crate::run::coverage`].
pub fn gaps(table: &BTreeMap<&'static str, (u64, u64)>) -> Vec<String> {
    let faults = FAULTS.into_iter().map(|fault| fault.name());
    let excused = |tag: &str| NOT_SIMULATED.iter().find(|(known, _)| *known == tag);
    let tags = probe::TAGS.iter().copied().filter(|tag| excused(tag).is_none());
    let missed = faults.chain(tags).filter(|tag| !table.contains_key(tag)).map(|tag| format!("no seed met `{tag}`"));
    let met = NOT_SIMULATED.iter().filter(|(tag, _)| table.contains_key(tag));
    missed.chain(met.map(|(tag, why)| format!("`{tag}` was met, although {why}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excuses_are_for_marks_that_there_are() {
        assert!(NOT_SIMULATED.iter().all(|(tag, why)| probe::is_known(tag) && !why.is_empty()));
        let everything = FAULTS.into_iter().map(|fault| fault.name()).chain(probe::TAGS.iter().copied());
        let excused = |tag: &&str| NOT_SIMULATED.iter().any(|(known, _)| known == tag);
        let table: BTreeMap<_, _> = everything.filter(|tag| !excused(tag)).map(|tag| (tag, (1, 1))).collect();
        assert_eq!(gaps(&table), Vec::<String>::new());
        assert_eq!(gaps(&BTreeMap::new()).len(), table.len());
    }
}
