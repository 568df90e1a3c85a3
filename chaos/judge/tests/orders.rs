//! The judge against a search of all orders: for short histories both say the same.

mod common;

use std::collections::BTreeSet;

use pacsvault_judge::{Answer, Call, History, Operation, check, check_within};
use proptest::prelude::*;

/// The object, done naively: content and whether it is live, by number.
type Object = Vec<(String, bool)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Done {
    Not,
    /// A delete of all has seen this as the newest live version.
    Looked(usize),
    Yes,
}

fn newest(object: &Object) -> Option<usize> {
    object.iter().rposition(|(_, live)| *live)
}

/// Every way in which one operation can go a step: the object after it, and what then is done of it.
fn ways(operation: &Operation, object: &Object, done: Done) -> Vec<(Object, Done)> {
    let number = |at: usize| u32::try_from(at + 1).expect("short");
    let live = |version: u32| object.get(version as usize - 1).is_some_and(|(_, live)| *live);
    let without = |through: usize, only: Option<usize>| {
        let mut after = object.clone();
        let dead = |at: usize| only.map_or(at <= through, |only| only == at);
        after.iter_mut().enumerate().filter(|(at, _)| dead(*at)).for_each(|(_, one)| one.1 = false);
        after
    };
    let same = || vec![(object.clone(), Done::Yes)];
    match (&operation.call, &operation.answer) {
        (_, Answer::Refused) => same(),
        (Call::Put { attempt, content, .. }, answer) => {
            let mut after = object.clone();
            after.push((content.clone(), true));
            match answer {
                Answer::Stored { version, attempt: whose, .. } if Some(whose) == attempt.as_ref() => {
                    if *version == number(object.len()) { vec![(after, Done::Yes)] } else { Vec::new() }
                }
                Answer::Stored { version, .. } => {
                    let fits = newest(object).is_some_and(|at| number(at) == *version && object[at].0 == *content);
                    if fits { same() } else { Vec::new() }
                }
                _ => vec![(after, Done::Yes)],
            }
        }
        (Call::Get { version: None, .. } | Call::Delete { version: None }, Answer::Missing) => {
            if newest(object).is_none() { same() } else { Vec::new() }
        }
        (Call::Get { version: Some(version), .. }, Answer::Missing) => {
            if live(*version) {
                Vec::new()
            } else {
                same()
            }
        }
        (Call::Get { version: asked, .. }, Answer::Found { version, content }) => {
            let at = *version as usize - 1;
            let there = live(*version) && object[at].0 == *content;
            let fits = there && (asked.is_some() || newest(object) == Some(at));
            if fits { same() } else { Vec::new() }
        }
        (Call::Delete { version: Some(version) }, answer) => {
            let (at, there) = (*version as usize - 1, object.len() >= *version as usize);
            let fits = match answer {
                Answer::Deleted { versions } => there && (versions.is_empty() || live(*version)),
                Answer::Missing => !there,
                _ => there,
            };
            if fits { vec![(without(0, Some(at)), Done::Yes)] } else { Vec::new() }
        }
        (Call::Delete { version: None }, answer) => match done {
            Done::Looked(through) => {
                let gone: Vec<u32> = (0..=through).filter(|at| object[*at].1).map(number).collect();
                let fits = match answer {
                    Answer::Deleted { versions } => versions.is_empty() || *versions == gone,
                    _ => true,
                };
                if fits { vec![(without(through, None), Done::Yes)] } else { Vec::new() }
            }
            _ => match newest(object) {
                Some(at) => vec![(object.clone(), Done::Looked(at))],
                None if *answer == (Answer::Deleted { versions: Vec::new() }) => same(),
                None => Vec::new(),
            },
        },
        _ => Vec::new(),
    }
}

type Seen = BTreeSet<(Object, Vec<Done>)>;

fn has_order(operations: &[Operation], object: &Object, done: &[Done], seen: &mut Seen) -> bool {
    if !seen.insert((object.clone(), done.to_vec())) {
        return false;
    }
    let open = |at: usize| operations[at].answered() && done[at] != Done::Yes;
    if !(0..operations.len()).any(open) {
        return true;
    }
    for at in (0..operations.len()).filter(|at| done[*at] != Done::Yes) {
        let operation = &operations[at];
        // What was answered before this began has to be done by now.
        let late = |other: usize| open(other) && operations[other].ended.is_some_and(|ended| ended < operation.started);
        // It does not look when it is over.
        let looks = operation.call == Call::Delete { version: None } && done[at] == Done::Not;
        let begun = |other: usize| {
            done[other] != Done::Not && operation.ended.is_some_and(|ended| ended < operations[other].started)
        };
        if (0..operations.len()).any(|other| late(other) || (looks && begun(other))) {
            continue;
        }
        for (after, state) in ways(operation, object, done[at]) {
            let mut now = done.to_vec();
            now[at] = state;
            if has_order(operations, &after, &now, seen) {
                return true;
            }
        }
    }
    false
}

fn operation() -> impl Strategy<Value = (u64, Option<u64>, u8, u8, u8)> {
    (0_u64..12, prop::option::weighted(0.97, 0_u64..8), 0_u8..100, 1_u8..5, 0_u8..100)
}

/// Makes an operation of random numbers; answers are often possible ones, and often not.
fn made(number: u64, (started, lasted, what, version, how): (u64, Option<u64>, u8, u8, u8)) -> Operation {
    let version = u32::from(version);
    let ended = lasted.map(|lasted| started + lasted);
    let content = |version: u32| format!("c{}", version % 3);
    let (call, answer) = match what {
        0..45 => {
            let attempt = format!("a{number}");
            let answer = match how {
                0..55 => Answer::Stored { version, attempt: attempt.clone(), first: true },
                55..65 => Answer::Stored { version, attempt: format!("a{}", number % 3), first: false },
                65..70 => Answer::Refused,
                _ => Answer::Unknown,
            };
            (Call::Put { attempt: Some(attempt), content: content(version), size_bytes: 1 }, answer)
        }
        45..75 => {
            let answer = match how {
                0..70 => Answer::Found { version, content: content(version) },
                _ => Answer::Missing,
            };
            let asked = (how % 4 == 0).then_some(version);
            (Call::Get { version: asked, linearizable: true }, answer)
        }
        _ => {
            let asked = (how % 2 == 0).then_some(version);
            let answer = match how {
                0..35 => Answer::Deleted { versions: vec![version] },
                35..45 => {
                    Answer::Deleted { versions: if asked.is_none() { (1..=version).collect() } else { Vec::new() } }
                }
                45..55 => Answer::Deleted { versions: Vec::new() },
                55..60 => Answer::Missing,
                60..65 => Answer::Refused,
                _ => Answer::Unknown,
            };
            (Call::Delete { version: asked }, answer)
        }
    };
    let ended = if answer == Answer::Unknown { ended } else { ended.or(Some(started + 3)) };
    Operation { number, session: 1, key: "k".to_owned(), call, started, ended, answer }
}

/// Attempts that a put may be answered with: nobody's id stands for another encoding, which this object does not know.
fn of_somebody(operations: &[Operation]) -> bool {
    let puts: BTreeSet<String> = operations.iter().filter_map(attempt).collect();
    operations.iter().all(|one| match &one.answer {
        Answer::Stored { attempt, .. } => puts.contains(attempt),
        _ => true,
    })
}

fn attempt(operation: &Operation) -> Option<String> {
    match &operation.call {
        Call::Put { attempt, .. } => attempt.clone(),
        _ => None,
    }
}

/// Whether receipts name the attempt that made the version, which the naive object does not know.
fn receipts_agree(operations: &[Operation]) -> bool {
    let mut makers = std::collections::BTreeMap::new();
    operations.iter().all(|one| match &one.answer {
        Answer::Stored { version, attempt, .. } => makers.entry(*version).or_insert(attempt) == &attempt,
        _ => true,
    }) && {
        let mut versions = std::collections::BTreeMap::new();
        operations.iter().all(|one| match &one.answer {
            Answer::Stored { version, attempt, .. } => versions.entry(attempt).or_insert(version) == &version,
            _ => true,
        })
    }
}

/// Whether a receipt of another's attempt names one that made it: by content, and refused ones make nothing.
fn pins_hold(operations: &[Operation]) -> bool {
    let find = |name: &str| operations.iter().find(|one| attempt(one).as_deref() == Some(name));
    operations.iter().all(|one| match &one.answer {
        Answer::Stored { version, attempt: whose, .. } => find(whose).is_some_and(|put| match &put.answer {
            Answer::Stored { version: own, attempt: its, .. } => own == version && its == whose,
            _ => false,
        }),
        _ => true,
    })
}

fn agree(operations: Vec<Operation>) -> Result<(), TestCaseError> {
    let history = History { operations };
    prop_assume!(history.faults().is_empty() && of_somebody(&history.operations));
    prop_assume!(receipts_agree(&history.operations) && pins_hold(&history.operations));
    let done = vec![Done::Not; history.operations.len()];
    let possible = has_order(&history.operations, &Vec::new(), &done, &mut Seen::new());
    let verdict = check(&history);
    prop_assert!(verdict.undecided.is_empty());
    let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
    let lines: Vec<String> = history.operations.iter().map(ToString::to_string).collect();
    prop_assert_eq!(possible, told.is_empty(), "{:#?}\n{:#?}", lines, told);
    Ok(())
}

/// Numbers of a history that really happened.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One operation before it happened: its call, and the moments of its one or two steps.
struct Draft {
    call: Call,
    span: (u64, u64),
    steps: Vec<u64>,
    looked: Option<usize>,
    answer: Answer,
}

fn draft(number: u64, dice: &mut Dice) -> Draft {
    let asked = dice.chance(40).then(|| u32::try_from(dice.below(3)).expect("small") + 1);
    let content = format!("c{}", dice.below(3));
    let call = match dice.below(100) {
        0..50 => Call::Put { attempt: Some(format!("a{number}")), content, size_bytes: 1 },
        50..70 => Call::Get { version: asked, linearizable: true },
        _ => Call::Delete { version: asked },
    };
    let (started, lasts) = (dice.below(60), dice.below(30));
    let mut steps: Vec<u64> = (0..2).map(|_| started + dice.below(lasts + 1)).collect();
    steps.sort_unstable();
    if call != (Call::Delete { version: None }) {
        steps.truncate(1);
    }
    Draft { call, span: (started, started + lasts), steps, looked: None, answer: Answer::Unknown }
}

/// Lets one step happen; the object of this test answers repetitions with the record of before.
fn happens(draft: &mut Draft, object: &mut Vec<(String, bool, String)>, repeats: bool) {
    let number = |at: usize| u32::try_from(at + 1).expect("short");
    let newest = object.iter().rposition(|(_, live, _)| *live);
    draft.answer = match &draft.call {
        Call::Put { attempt, content, .. } => match newest.filter(|at| repeats && object[*at].0 == *content) {
            Some(at) => Answer::Stored { version: number(at), attempt: object[at].2.clone(), first: false },
            None => {
                let attempt = attempt.clone().expect("each has a name");
                object.push((content.clone(), true, attempt.clone()));
                Answer::Stored { version: number(object.len() - 1), attempt, first: true }
            }
        },
        Call::Get { version, .. } => {
            let at = version.map_or(newest, |version| Some(version as usize - 1));
            match at.filter(|at| object.get(*at).is_some_and(|one| one.1)) {
                Some(at) => Answer::Found { version: number(at), content: object[at].0.clone() },
                None => Answer::Missing,
            }
        }
        Call::Delete { version: Some(version) } => match object.get_mut(*version as usize - 1) {
            Some((_, live, _)) => {
                let versions = if std::mem::take(live) { vec![*version] } else { Vec::new() };
                Answer::Deleted { versions }
            }
            None => Answer::Missing,
        },
        Call::Delete { version: None } => match draft.looked {
            Some(through) => {
                let live = (0..=through).filter(|at| object[*at].1).collect::<Vec<_>>();
                live.iter().for_each(|at| object[*at].1 = false);
                Answer::Deleted { versions: live.into_iter().map(number).collect() }
            }
            None if newest.is_none() => {
                draft.steps.clear();
                Answer::Missing
            }
            None => {
                draft.looked = newest;
                return;
            }
        },
    };
}

fn happened(seed: u64, count: u64, spoilt: bool) -> Vec<Operation> {
    let mut dice = Dice(seed);
    let mut drafts: Vec<Draft> = (0..count).map(|number| draft(number, &mut dice)).collect();
    // What nobody waits for may happen later, or never.
    let given_up: Vec<bool> = drafts.iter().map(|_| dice.chance(30)).collect();
    for (draft, _) in drafts.iter_mut().zip(&given_up).filter(|(_, given_up)| **given_up) {
        let late = dice.below(60);
        let keeps = !dice.chance(40);
        draft.steps.last_mut().into_iter().for_each(|step| *step += late);
        if !keeps {
            draft.steps.pop();
        }
    }
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (at, draft) in drafts.iter().enumerate() {
        order.extend(draft.steps.iter().map(|step| (*step, at)));
    }
    order.sort_unstable();
    let (mut object, repeats) = (Vec::new(), dice.chance(60));
    for (_, at) in order {
        if !drafts[at].steps.is_empty() {
            happens(&mut drafts[at], &mut object, repeats);
        }
    }
    let mut operations = Vec::new();
    for ((draft, given_up), number) in drafts.into_iter().zip(given_up).zip(0..) {
        let Draft { call, span: (started, ended), answer, .. } = draft;
        let answer = if given_up { Answer::Unknown } else { answer };
        let ended = (answer != Answer::Unknown || dice.chance(70)).then_some(ended);
        operations.push(Operation { number, session: 1, key: "k".to_owned(), call, started, ended, answer });
    }
    if spoilt {
        spoil(&mut operations, &mut dice);
    }
    operations
}

/// Changes one answer a little.
fn spoil(operations: &mut [Operation], dice: &mut Dice) {
    let at = usize::try_from(dice.below(operations.len() as u64)).expect("short");
    let step = u32::try_from(dice.below(3)).expect("small");
    let operation = &mut operations[at];
    operation.answer = match (&operation.call, operation.answer.clone()) {
        (_, Answer::Unknown) => Answer::Refused,
        (Call::Get { .. }, Answer::Found { .. }) if step == 0 => Answer::Missing,
        (Call::Get { version: None, .. }, Answer::Found { version, content }) => {
            Answer::Found { version: (version + step).saturating_sub(1).max(1), content }
        }
        (Call::Delete { .. }, Answer::Deleted { mut versions }) => {
            versions.pop();
            Answer::Deleted { versions }
        }
        (Call::Put { attempt: Some(attempt), .. }, Answer::Stored { .. }) if step == 0 => {
            Answer::Stored { version: 1, attempt: attempt.clone(), first: true }
        }
        (_, answer) => answer,
    };
    operation.ended = operation.ended.or(Some(operation.started + 5));
}

/// Nodes made so many of a hundred attempts: their callers know of them what they were told.
fn hide_attempts(operations: &mut [Operation], dice: &mut Dice, percent: u64) {
    for operation in operations {
        if let Call::Put { attempt, .. } = &mut operation.call
            && dice.chance(percent)
        {
            *attempt = None;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, max_global_rejects: 2_000_000, ..ProptestConfig::default() })]

    #[test]
    fn the_judge_agrees_with_all_orders(drawn in prop::collection::vec(operation(), 1..8)) {
        agree(drawn.into_iter().zip(0..).map(|(one, number)| made(number, one)).collect())?;
    }

    #[test]
    fn the_judge_agrees_about_what_happened_and_what_nearly_did(seed: u64, count in 1_u64..9, spoilt: bool) {
        agree(happened(seed, count, spoilt))?;
    }

    /// With what all orders say of attempts that have names: those that nodes make are judged no harder.
    #[test]
    fn who_knows_less_condemns_nothing_more(seed: u64, count in 1_u64..9, spoilt: bool, through_nodes in 20_u64..100) {
        let named = happened(seed, count, spoilt);
        let mut hidden = named.clone();
        hide_attempts(&mut hidden, &mut Dice(!seed), through_nodes);
        let condemned = |operations| !check(&History { operations }).violations.is_empty();
        prop_assert!(!condemned(hidden.clone()) || condemned(named), "{:#?}", hidden);
    }

    #[test]
    fn what_really_happened_is_never_condemned(seed: u64, count in 1_u64..40, through_nodes in 0_u64..80) {
        let mut operations = happened(seed, count, false);
        hide_attempts(&mut operations, &mut Dice(!seed), through_nodes);
        let verdict = check_within(&History { operations }, 20_000);
        let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
        prop_assert!(told.is_empty(), "{:#?}", told);
    }
}
