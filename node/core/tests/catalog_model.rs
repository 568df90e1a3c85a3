//! The catalog equals a naive model after any sequence of commands, and replicas agree however they batch.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::collections::{BTreeMap, BTreeSet};

use catalog_support::{ALL, Replica, START, State, instance, key, profile, seal, stripe};
use pacsvault_core::catalog::query::{Page, StudyRow, by_instance, deleted_instances, list, lookup, missing_shards};
use pacsvault_core::catalog::{Command, Entry, Outcome, Rejection, Seal, wire};
use pacsvault_core::ids::{
    Digest, InstanceId, LogIndex, NodeId, ObjectKey, ShardIndex, StripeIndex, Uid, VersionNumber, WallMillis,
};
use pacsvault_core::layout::survival::{Held, survives};
use pacsvault_core::layout::{Contract, Failures, Layout, NodeState};
use pacsvault_core::limits::WRITE_WINDOW_MILLIS;
use proptest::prelude::*;

const KEYS: [&str; 7] = [
    "main/1.2/1.3/1.4",
    "main/1.2/1.3/1.40",
    "main/1.2/1.30/1.4",
    "main/1.2/@/report",
    "main/1.20/1.3/1.4",
    "main/1.20/1.3/1.5",
    "other/1.2/1.3/1.4",
];
const CONTENTS: [&str; 3] = ["", "abc", "abcdefgh"];

#[derive(Debug, Clone)]
enum Step {
    Seal {
        key: usize,
        content: usize,
        attempt: u64,
        age: u64,
        lost: [u32; 2],
        stripes: bool,
        strict: bool,
        turn: usize,
    },
    Delete {
        key: usize,
        version: Option<u32>,
    },
    Node {
        node: u64,
        up: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<(u64, Vec<Step>)>> {
    let lost = prop_oneof![3 => Just(0_u32), 2 => (0..6_u32).prop_map(|bit| 1 << bit), 1 => 0..64_u32];
    let age = prop_oneof![4 => Just(0_u64), 1 => Just(WRITE_WINDOW_MILLIS), 1 => Just(WRITE_WINDOW_MILLIS + 1)];
    let a_seal =
        (0..7_usize, 0..3_usize, 0..40_u64, age, [lost.clone(), lost], any::<bool>(), any::<bool>(), 0..6_usize)
            .prop_map(|(key, content, attempt, age, lost, stripes, strict, turn)| Step::Seal {
                key,
                content,
                attempt,
                age,
                lost,
                stripes,
                strict,
                turn,
            });
    let step = prop_oneof![
        12 => a_seal,
        3 => (0..7_usize, proptest::option::of(0..4_u32)).prop_map(|(key, version)| Step::Delete { key, version }),
        2 => (1..=6_u64, any::<bool>()).prop_map(|(node, up)| Step::Node { node, up }),
    ];
    let ticks = prop_oneof![3 => 0..5_u64, 1 => Just(WRITE_WINDOW_MILLIS / 2)];
    proptest::collection::vec((ticks, proptest::collection::vec(step, 0..5)), 1..25)
}

fn command(step: &Step, now: u64) -> Command {
    match step {
        Step::Seal { key, content, attempt, age, lost, stripes, strict, turn } => {
            let mut one = seal(KEYS[*key], CONTENTS[*content], instance(now - age, *attempt));
            if *stripes && one.size_bytes > 1 {
                one.stripes = vec![stripe(one.size_bytes - 1, ALL & !lost[0]), stripe(1, ALL & !lost[1])];
            } else {
                one.stripes[0].persisted = ALL & !lost[0];
            }
            one.stripes.iter_mut().for_each(|stripe| stripe.placement.rotate_left(*turn));
            one.strict = *strict;
            Command::Seal(Box::new(one))
        }
        Step::Delete { key: index, version } => {
            Command::Delete { key: key(KEYS[*index]), version: version.map(VersionNumber) }
        }
        Step::Node { node, up } => {
            Command::SetNodeState { node: NodeId(*node), state: if *up { NodeState::Up } else { NodeState::Down } }
        }
    }
}

struct Version {
    seal: Seal,
    degraded: bool,
    deleted: Option<LogIndex>,
}

/// Everything that six nodes on three sites can suffer.
fn failure_sets() -> impl Iterator<Item = Contract> {
    (0..=3).flat_map(|sites| (0..=6).map(move |nodes| Contract::one(Failures { sites, nodes })))
}

/// True when every stripe survives `contract` by its shards that count by `layout`.
fn keeps(seal: &Seal, contract: &Contract, layout: &Layout) -> bool {
    seal.stripes.iter().all(|stripe| {
        let placed = (0..).zip(&stripe.placement).filter(|(shard, _)| stripe.persisted & (1 << shard) != 0);
        let held = placed.map(|(shard, volume)| Held { shard: ShardIndex(shard), volume: *volume });
        let held: Vec<Held> = held.filter(|held| layout.counts(held.volume)).collect();
        survives(&held, 4, contract, layout).is_ok()
    })
}

/// The naive catalog: versions in a list per key, everything else by looking at all of them.
#[derive(Default)]
struct Model {
    time: u64,
    objects: BTreeMap<ObjectKey, Vec<Version>>,
}

impl Model {
    fn find(&self, id: InstanceId) -> Option<(VersionNumber, &Version)> {
        let mut all = self.objects.values().flat_map(|versions| (1..).zip(versions));
        all.find(|(_, version)| version.seal.instance == id).map(|(number, version)| (VersionNumber(number), version))
    }

    fn newest(&self, key: &ObjectKey) -> Option<(VersionNumber, &Version)> {
        let mut versions = (1..).zip(self.objects.get(key)?).collect::<Vec<_>>().into_iter().rev();
        versions.find(|(_, version)| version.deleted.is_none()).map(|(number, one)| (VersionNumber(number), one))
    }

    /// What the catalog should say, in short.
    fn seal(&mut self, layout: &Layout, seal: &Seal) -> String {
        if let Some((number, known)) = self.find(seal.instance) {
            let same = known.seal.key == seal.key && known.seal.digest == seal.digest;
            let again = format!("version {number} again, degraded {}", known.degraded);
            return if same { again } else { "malformed".to_owned() };
        }
        let promise = profile();
        if let Some((number, known)) = self.newest(&seal.key).filter(|(_, known)| known.seal.digest == seal.digest) {
            let kept = keeps(&known.seal, &promise.contract, layout);
            let as_good =
                kept || failure_sets().all(|one| !keeps(seal, &one, layout) || keeps(&known.seal, &one, layout));
            let degraded = known.degraded || !keeps(&known.seal, &promise.contract, layout);
            if as_good && keeps(&known.seal, &promise.floor, layout) && !(seal.strict && degraded) {
                return format!("version {number} again, degraded {degraded}");
            }
        }
        if seal.instance.time().0 + WRITE_WINDOW_MILLIS < self.time {
            return "window closed".to_owned();
        }
        let whole = keeps(seal, &promise.contract, layout);
        if !keeps(seal, &promise.floor, layout) || (seal.strict && !whole) {
            return "too weak".to_owned();
        }
        let versions = self.objects.entry(seal.key.clone()).or_default();
        versions.push(Version { seal: seal.clone(), degraded: !whole, deleted: None });
        format!("version {} first, degraded {}", versions.len(), !whole)
    }

    fn delete(&mut self, index: LogIndex, key: &ObjectKey, wanted: Option<VersionNumber>) -> String {
        let Some(versions) = self.objects.get_mut(key) else { return "not found".to_owned() };
        if wanted.is_some_and(|number| number.0 == 0 || number.0 as usize > versions.len()) {
            return "not found".to_owned();
        }
        let mut deleted = Vec::new();
        for (number, version) in (1..).map(VersionNumber).zip(versions) {
            if version.deleted.is_none() && wanted.is_none_or(|wanted| wanted == number) {
                version.deleted = Some(index);
                deleted.push(number);
            }
        }
        format!("deleted {deleted:?}")
    }
}

fn said(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Sealed { sealed, first: true } => {
            format!("version {} first, degraded {}", sealed.version, sealed.degraded)
        }
        Outcome::Sealed { sealed, first: false } => {
            format!("version {} again, degraded {}", sealed.version, sealed.degraded)
        }
        Outcome::Deleted { versions, .. } => format!("deleted {versions:?}"),
        Outcome::Rejected(Rejection::Malformed(_)) => "malformed".to_owned(),
        Outcome::Rejected(Rejection::WindowClosed { .. }) => "window closed".to_owned(),
        Outcome::Rejected(Rejection::TooWeak { .. }) => "too weak".to_owned(),
        Outcome::Rejected(Rejection::NotFound(_)) => "not found".to_owned(),
        other => format!("{other:?}"),
    }
}

fn pages(state: &State, study: Option<&Uid>, series: Option<&Uid>, studies_only: bool, rows_max: usize) -> Page {
    let mut whole = Page::default();
    let mut token = Vec::new();
    loop {
        let tenant = "main".parse().unwrap();
        let page = list(state, &tenant, study, series, studies_only, &token, rows_max).unwrap();
        assert!(page.instances.len() + page.studies.len() <= rows_max);
        assert_eq!(wire::decode_page(&wire::encode_page(&page)).as_ref(), Ok(&page));
        whole.instances.extend(page.instances);
        whole.studies.extend(page.studies);
        token = page.next_page_token;
        if token.is_empty() {
            return whole;
        }
    }
}

fn check_reads(replica: &Replica, model: &Model, rows_max: usize) {
    let state = &replica.state;
    for text in KEYS {
        let found = lookup(state, &key(text), None).unwrap();
        let expected = model.newest(&key(text));
        assert_eq!(
            found.as_ref().map(|one| (one.version, &one.seal)),
            expected.map(|(number, one)| (number, &one.seal))
        );
        for (number, version) in (1..).zip(model.objects.get(&key(text)).into_iter().flatten()) {
            let found = lookup(state, &key(text), Some(VersionNumber(number))).unwrap();
            assert_eq!(found.map(|one| one.seal), version.deleted.is_none().then(|| version.seal.clone()));
            let proof = by_instance(state, version.seal.instance).unwrap().unwrap();
            assert_eq!((proof.version.0, proof.deleted, proof.degraded), (number, version.deleted, version.degraded));
            assert_eq!(wire::decode_sealed(&wire::encode_sealed(&proof)), Ok(proof));
        }
    }
    let live = |wanted: &dyn Fn(&str) -> bool| -> Vec<InstanceId> {
        let keys: BTreeSet<ObjectKey> = KEYS.iter().filter(|text| wanted(text)).map(|text| key(text)).collect();
        keys.iter().filter_map(|key| model.newest(key)).map(|(_, version)| version.seal.instance).collect()
    };
    let ids = |page: Page| page.instances.iter().map(|one| one.seal.instance).collect::<Vec<_>>();
    let (study, series): (Uid, Uid) = ("1.2".parse().unwrap(), "1.3".parse().unwrap());
    assert_eq!(ids(pages(state, None, None, false, rows_max)), live(&|text| text.starts_with("main/")));
    assert_eq!(ids(pages(state, Some(&study), None, false, rows_max)), live(&|text| text.starts_with("main/1.2/")));
    let of_series = ids(pages(state, Some(&study), Some(&series), false, rows_max));
    assert_eq!(of_series, live(&|text| text.starts_with("main/1.2/1.3/")));
    let mut sums: BTreeMap<Uid, StudyRow> = BTreeMap::new();
    for (key, versions) in model.objects.iter().filter(|(key, _)| key.tenant.as_str() == "main") {
        assert!(!versions.is_empty());
        let Some((_, version)) = model.newest(key) else { continue };
        let empty = StudyRow { study: key.study.clone(), objects: 0, size_bytes: 0 };
        let row = sums.entry(key.study.clone()).or_insert(empty);
        row.objects += 1;
        row.size_bytes += version.seal.size_bytes;
    }
    assert_eq!(pages(state, None, None, true, rows_max).studies, sums.into_values().collect::<Vec<_>>());
    let all = || model.objects.values().flatten();
    let deleted: BTreeSet<_> = all().filter_map(|one| one.deleted.map(|index| (index, one.seal.instance))).collect();
    assert_eq!(deleted_instances(state, None, 1_000).unwrap(), deleted.into_iter().collect::<Vec<_>>());
    let mut missing: Vec<_> = all()
        .filter(|one| one.deleted.is_none())
        .flat_map(|one| (0..).zip(&one.seal.stripes).map(move |(index, stripe)| (one.seal.instance, index, stripe)))
        .filter(|(_, _, stripe)| stripe.persisted != ALL)
        .map(|(instance, index, _)| (instance, StripeIndex(index)))
        .collect();
    missing.sort_unstable();
    assert_eq!(missing_shards(state, None, 1_000).unwrap(), missing);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn the_catalog_equals_a_naive_model(steps in steps(), rows_max in 1..6_usize, reload_every in 1..6_usize) {
        let mut replica = Replica::with_cluster();
        let mut model = Model { time: START, ..Model::default() };
        let mut now = START;
        for (round, (tick, steps)) in steps.iter().enumerate() {
            now += tick;
            if round % reload_every == 0 {
                replica.reload();
            }
            for step in steps {
                let command = command(step, now);
                let layout = replica.machine.layout().unwrap();
                let outcome = replica.one(now, command.clone());
                prop_assert_eq!(wire::decode_outcome(&wire::encode_outcome(&outcome)), Ok(outcome.clone()));
                model.time = now;
                let expected = match &command {
                    Command::Seal(seal) => model.seal(&layout, seal),
                    Command::Delete { key, version } => model.delete(LogIndex(replica.index), key, *version),
                    _ => said(&Outcome::Done),
                };
                prop_assert_eq!(said(&outcome), expected, "{:?}", command);
            }
        }
        check_reads(&replica, &model, rows_max);
    }

    #[test]
    fn replicas_agree_however_they_batch_and_restart(steps in steps(), batch in 2..9_usize) {
        let mut now = START;
        let mut entries = Vec::new();
        for (tick, steps) in &steps {
            now += tick;
            let commands = steps.iter().map(|step| command(step, now)).collect();
            let entry = Entry { time: WallMillis(now), commands };
            prop_assert_eq!(wire::decode_entry(&wire::encode_entry(&entry)), Ok(entry.clone()));
            entries.push(entry);
        }
        let (mut single, mut grouped) = (Replica::with_cluster(), Replica::with_cluster());
        let mut outcomes = Vec::new();
        for entry in &entries {
            outcomes.extend(single.try_apply(std::slice::from_ref(entry)).unwrap());
            single.reload();
        }
        let grouped_outcomes: Vec<_> =
            entries.chunks(batch).flat_map(|chunk| grouped.try_apply(chunk).unwrap()).collect();
        prop_assert_eq!(outcomes, grouped_outcomes);
        prop_assert_eq!(single.machine.digest(), grouped.machine.digest());
        prop_assert_eq!(&single.state, &grouped.state);
        let digest = grouped.machine.digest();
        let compare = Command::CompareDigest { index: LogIndex(grouped.index), digest };
        prop_assert_eq!(single.one(now, compare), Outcome::Done);
    }
}

#[test]
fn another_order_of_the_same_entries_gives_another_digest() {
    let (mut one, mut two) = (Replica::with_cluster(), Replica::with_cluster());
    let seals = [1, 2].map(|n| Command::Seal(Box::new(seal(KEYS[0], &n.to_string(), instance(START, n)))));
    seals.iter().for_each(|seal| drop(one.one(START, seal.clone())));
    seals.iter().rev().for_each(|seal| drop(two.one(START, seal.clone())));
    assert_ne!(one.machine.digest(), two.machine.digest());
    assert_ne!(one.machine.digest(), Digest([0; 32]));
}

#[test]
fn a_long_listing_is_cut_by_bytes_and_passes_over_deleted_objects() {
    let mut replica = Replica::with_cluster();
    for number in 0..400_u64 {
        let mut one = seal(&format!("main/1.2/1.3/1.{number}"), "abc", instance(START, number));
        one.attributes[0].value = "x".repeat(8_000);
        let name = one.key.clone();
        replica.one(START, Command::Seal(Box::new(one)));
        if number % 3 == 0 {
            replica.one(START, Command::Delete { key: name, version: None });
        }
    }
    let first = list(&replica.state, &"main".parse().unwrap(), None, None, false, &[], 1_000).unwrap();
    assert!(first.instances.len() < 200 && !first.next_page_token.is_empty());
    assert_eq!(pages(&replica.state, None, None, false, 1_000).instances.len(), 266);
    let stolen = list(&replica.state, &"other".parse().unwrap(), None, None, false, &first.next_page_token, 10);
    assert_eq!(stolen, Err(pacsvault_core::catalog::Error::PageToken));
}
