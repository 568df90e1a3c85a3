//! Prints how long the judge takes for long histories of one object: `cargo run --release -p pacsvault-judge --example ten_thousand`.

#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::time::Instant;

use pacsvault_judge::{Answer, Call, History, Operation, check};

/// So many clients at once.
const SESSIONS: u64 = 16;

struct Busy {
    bits: u64,
    versions: Vec<(String, bool)>,
    unknown_percent: u64,
    operations: Vec<Operation>,
}

impl Busy {
    fn below(&mut self, end: u64) -> u64 {
        self.bits = self.bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.bits >> 33) % end
    }

    /// One operation takes effect at moment `at`; it began up to so many operations before that as there are sessions.
    fn step(&mut self, number: u64) {
        let at = number * 10;
        let (before, after) = (self.below(SESSIONS * 10), self.below(SESSIONS * 10));
        let newest = self.versions.iter().rposition(|(_, live)| *live);
        let version = |at: usize| u32::try_from(at + 1).expect("few");
        let (call, mut answer) = match self.below(100) {
            0..45 => {
                let content = format!("content {number}");
                self.versions.push((content.clone(), true));
                let attempt = format!("attempt {number}");
                let stored =
                    Answer::Stored { version: version(self.versions.len() - 1), attempt: attempt.clone(), first: true };
                (Call::Put { attempt: Some(attempt), content, size_bytes: 1 }, stored)
            }
            45..94 => {
                let found = newest.map_or(Answer::Missing, |at| Answer::Found {
                    version: version(at),
                    content: self.versions[at].0.clone(),
                });
                (Call::Get { version: None, linearizable: true }, found)
            }
            _ => match newest {
                Some(at) => {
                    self.versions[at].1 = false;
                    (Call::Delete { version: Some(version(at)) }, Answer::Deleted { versions: vec![version(at)] })
                }
                None => (Call::Delete { version: None }, Answer::Missing),
            },
        };
        if !matches!(call, Call::Get { .. }) && self.below(100) < self.unknown_percent {
            answer = Answer::Unknown;
        }
        let (started, ended) = (at.saturating_sub(before), Some(at + after));
        let session = number % SESSIONS;
        self.operations.push(Operation { number, session, key: "k".to_owned(), call, started, ended, answer });
    }
}

fn main() {
    for unknown_percent in [0, 5, 30] {
        let mut busy = Busy { bits: 1, versions: Vec::new(), unknown_percent, operations: Vec::new() };
        (0..10_000).for_each(|number| busy.step(number));
        let mut history = History { operations: busy.operations };
        for spoilt in [false, true] {
            if spoilt {
                let last = history.operations.iter_mut().rev().find(|one| matches!(one.answer, Answer::Found { .. }));
                last.into_iter().for_each(|one| one.answer = Answer::Missing);
            }
            let began = Instant::now();
            let verdict = check(&history);
            println!(
                "10,000 operations on one key, {SESSIONS} at once, {unknown_percent} % unknown, {}: {} violations, \
                 {} undecided, {} states, {:.1} ms",
                if spoilt { "last answer wrong" } else { "all true" },
                verdict.violations.len(),
                verdict.undecided.len(),
                verdict.states_searched,
                began.elapsed().as_secs_f64() * 1e3
            );
        }
    }
}
