//! Makes a failing run small: fewer faults, less time, fewer clients, keys and nodes, while it still fails in the same way.
//!
//! **Invariants.** What is handed back was run and failed with a violation of the kind that the given run failed with. No
//! more runs than allowed. The schedule of faults is the seed's own: leaving one out shifts no other.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    overrides::Overrides,
    run::{Report, run},
    scenario::Fault,
};

/// Below that nothing happens any more.
const FAULT_TIME_MIN: Duration = Duration::from_millis(250);
/// How often everything is tried again, as long as something became smaller.
const ROUNDS_MAX: usize = 3;

/// Makes a run calmer in one respect.
type Calm = fn(&mut Overrides);

/// The smallest failing run that was found.
#[derive(Debug, Clone)]
pub struct Smallest {
    /// What to change in the scenario of the seed.
    pub overrides: Overrides,
    /// How it went.
    pub report: Report,
    /// Runs made.
    pub runs: u32,
    /// Faults that struck in the given run, and in this one.
    pub strikes: (usize, usize),
}

/// The kind of a violation: its words without numbers, ids and names.
pub fn kind(violation: &str) -> String {
    let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || b",.;'".contains(&byte));
    let text = violation.split(": ").next().unwrap_or(violation);
    text.split_whitespace().filter(plain).take(8).collect::<Vec<_>>().join(" ")
}

/// Numbers of the faults that struck.
pub fn strikes(report: &Report) -> Vec<u64> {
    report.events.iter().filter(|event| event.kind == "fault").map(|event| event.numbers[0]).collect()
}

/// The fewest of `items` with which `fails` still holds, as far as leaving out parts finds them (Zeller's ddmin).
pub fn fewest<T: Clone>(items: &[T], mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut items = items.to_vec();
    if items.is_empty() || fails(&[]) {
        return Vec::new();
    }
    let mut parts = 2;
    while items.len() > 1 {
        let size = items.len().div_ceil(parts);
        let without = |at: usize| {
            let kept = items.iter().enumerate().filter(|(index, _)| index / size != at);
            kept.map(|(_, item)| item.clone()).collect::<Vec<T>>()
        };
        match (0..items.len().div_ceil(size)).map(without).find(|rest| fails(rest)) {
            Some(rest) => (items, parts) = (rest, (parts - 1).max(2)),
            None if parts >= items.len() => break,
            None => parts = (parts * 2).min(items.len()),
        }
    }
    items
}

struct Search<'a> {
    seed: u64,
    kind: String,
    best: Overrides,
    report: Report,
    runs: u32,
    runs_max: u32,
    tell: &'a mut dyn FnMut(u32, u32, &str, &Overrides),
}

/// Makes the run of `seed` with `start` smaller within `runs_max` runs. `None` when it does not fail. `tell` hears runs
/// made and allowed, what was tried, and the smallest so far.
pub fn minimise(
    seed: u64,
    start: &Overrides,
    runs_max: u32,
    tell: &mut dyn FnMut(u32, u32, &str, &Overrides),
) -> Option<Smallest> {
    let report = run(&start.draw(seed), true);
    let kind = kind(report.violations.first()?);
    let before = strikes(&report).len();
    let mut search = Search { seed, kind, best: start.clone(), report, runs: 1, runs_max, tell };
    for _ in 0..ROUNDS_MAX {
        let round = search.best.clone();
        search.faults();
        search.calm();
        search.sizes();
        search.time();
        search.strikes();
        if search.best == round || search.runs >= runs_max {
            break;
        }
    }
    let strikes = (before, strikes(&search.report).len());
    Some(Smallest { overrides: search.best, report: search.report, runs: search.runs, strikes })
}

impl Search<'_> {
    /// Runs a candidate; when it fails alike it is the best from now on.
    fn fails(&mut self, what: &str, candidate: Overrides) -> bool {
        if candidate == self.best {
            return true;
        }
        if self.runs >= self.runs_max {
            return false;
        }
        self.runs += 1;
        let report = run(&candidate.draw(self.seed), true);
        let alike = report.violations.iter().any(|violation| kind(violation) == self.kind);
        if alike {
            (self.best, self.report) = (candidate, report);
        }
        (self.tell)(self.runs, self.runs_max, what, &self.best);
        alike
    }

    fn faults(&mut self) {
        let scenario = self.best.draw(self.seed);
        let kinds: Vec<Fault> = scenario.faults.iter().copied().filter(|kind| scenario.has(*kind)).collect();
        fewest(&kinds, |kept| {
            let mut candidate = self.best.clone();
            candidate.set_only(&kept.iter().copied().collect());
            self.fails("fewer kinds of faults", candidate)
        });
    }

    fn calm(&mut self) {
        let calm: [(&str, Calm); 6] = [
            ("nothing beyond the contract", |candidate| candidate.no_beyond = true),
            ("no encore", |candidate| candidate.no_encore = true),
            ("no part that must suffice", |candidate| candidate.no_part = true),
            ("no upgrade", |candidate| candidate.no_upgrade = true),
            ("true clocks", |candidate| candidate.true_clocks = true),
            ("near sites", |candidate| candidate.near_sites = true),
        ];
        for (what, change) in calm {
            let mut candidate = self.best.clone();
            change(&mut candidate);
            self.fails(what, candidate);
        }
    }

    fn sizes(&mut self) {
        let scenario = self.best.draw(self.seed);
        let fewer = |now: usize| (1..now).map(|count| u16::try_from(count).unwrap_or(u16::MAX));
        for nodes in 1..scenario.nodes_per_site {
            let candidate = Overrides { nodes: u8::try_from(nodes).ok(), ..self.best.clone() };
            if self.fails("fewer nodes", candidate) {
                break;
            }
        }
        for clients in fewer(scenario.clients) {
            if self.fails("fewer clients", Overrides { clients: Some(clients), ..self.best.clone() }) {
                break;
            }
        }
        for keys in fewer(scenario.keys) {
            if self.fails("fewer keys", Overrides { keys: Some(keys), ..self.best.clone() }) {
                break;
            }
        }
    }

    /// Halves, then three quarters.
    fn time(&mut self) {
        for (times, of) in [(1, 2), (3, 4)] {
            loop {
                let now = self.best.draw(self.seed).fault_time;
                let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX) / of * times;
                let shorter = Duration::from_millis(millis);
                let candidate = Overrides { fault_time: Some(shorter), ..self.best.clone() };
                if shorter < FAULT_TIME_MIN || !self.fails("less time", candidate) {
                    break;
                }
            }
        }
    }

    fn strikes(&mut self) {
        let struck = strikes(&self.report);
        let before: BTreeSet<u64> = self.best.skip_fault.iter().copied().collect();
        fewest(&struck, |kept| {
            let left_out = struck.iter().filter(|number| !kept.contains(number));
            let skip: BTreeSet<u64> = before.iter().chain(left_out).copied().collect();
            let candidate = Overrides { skip_fault: skip.into_iter().collect(), ..self.best.clone() };
            self.fails("fewer faults", candidate)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_items_are_those_that_it_takes() {
        let all: Vec<u32> = (0..40).collect();
        let mut runs = 0;
        let found = fewest(&all, |kept| {
            runs += 1;
            kept.contains(&7) && kept.contains(&31)
        });
        assert_eq!(found, vec![7, 31]);
        assert!(runs < 100, "{runs}");
        assert_eq!(fewest(&all, |_| true), Vec::<u32>::new());
        assert_eq!(fewest(&[1], |kept| !kept.is_empty()), vec![1]);
    }

    #[test]
    fn violations_of_one_kind_differ_in_numbers_only() {
        let of = |number: u32| {
            kind(&format!("stripe {number} of 00ff{number} does not survive a site, as its receipt says"))
        };
        assert_eq!(of(1), of(2));
        assert_ne!(of(1), kind("volume 3 does not open after a power loss"));
        assert_eq!(kind("the run broke off: index out of bounds"), kind("the run broke off: stuck"));
    }
}
