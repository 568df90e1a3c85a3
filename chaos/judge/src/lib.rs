//! The judge of what clients saw: whether a history of operations can be that of one object store that does one thing at a time.
//!
//! **What is judged.** For each object, apart from all others (linearizability composes: Herlihy & Wing 1990), whether all
//! definite answers fit one order of the operations that keeps real time, with this sequential object: versions 1, 2, 3, …; a
//! put makes the next one, or is answered with the newest live one of the same content; a delete hides one version, or all up
//! to the one that was the newest when it looked; a get finds the newest live version, or the one it names. An operation with
//! unknown outcome may take effect at any later moment, or never. A refused one never does. Plain reads are judged by what
//! their session was told ([`session`]), and by what can exist at all ([`facts`]).
//!
//! **How.** [`facts`] finds who made which version. [`search`] then looks for an order, as Wing & Gong 1993 do ("Testing and
//! verifying concurrent objects"), with the memory of states and just-in-time linearization of Lowe 2017 ("Testing for
//! linearizability"). The numbers of versions leave little to search, so thousands of operations on one object take
//! milliseconds.
//!
//! **Invariants.** No violation is told of a history that has an order; a history without one is told of, or undecided when
//! the search meets its bound, never passed. A property test compares with a search of all orders.

mod facts;
mod history;
mod search;
mod session;
mod state;
mod violation;

use std::collections::BTreeMap;

use crate::{facts::Facts, search::Outcome};
pub use crate::{
    history::{Answer, Call, Error, History, Operation},
    violation::{Kind, Verdict, Violation},
};

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    check_within(history, search::STATES_MAX)
}

/// Judges a history and searches at most so many states for each object.
pub fn check_within(history: &History, states_max: u64) -> Verdict {
    let mut verdict = Verdict { operations: history.operations.len(), ..Verdict::default() };
    let faults = history.faults();
    if !faults.is_empty() {
        let malformed = |what| Violation::new(Kind::Malformed, "", what, []);
        verdict.violations = faults.into_iter().map(malformed).collect();
        return verdict;
    }
    let attempts = facts::attempts(&history.operations);
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    verdict.keys = keys.len();
    for (key, operations) in keys {
        let mut facts = Facts::new(key, operations, &attempts);
        let mut violations = std::mem::take(&mut facts.violations);
        violations.extend(session::check(&facts));
        // What contradicts itself outright has no order, and the search could say no more.
        if violations.is_empty() {
            let searched = search::search(&facts, states_max);
            verdict.states_searched += searched.states;
            match searched.outcome {
                Outcome::Ordered => {}
                Outcome::Impossible(violation) => violations.push(*violation),
                Outcome::Undecided => {
                    verdict.undecided.push(format!("{key}: no order was found in {} states", searched.states));
                }
            }
        }
        verdict.violations.extend(violations);
    }
    verdict
}
