//! The catalog equals a naive model after any sequence of commands, and replicas agree however they batch.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::collections::{BTreeMap, BTreeSet};

use catalog_support::{ALL, NODES, Replica, START, State, instance, key, profile, seal, spare, stripe, volume};
use pacsvault_core::catalog::command::{DrainTarget, Replace, Reseat};
use pacsvault_core::catalog::query::{
    Page, StudyRow, asides, by_instance, deleted_instances, groups, list, lookup, missing_shards, volume_sums,
};
use pacsvault_core::catalog::{Command, Entry, Outcome, Overlay, Rejection, Seal, SealedInstance, wire};
use pacsvault_core::health::Sums;
use pacsvault_core::ids::{
    Digest, InstanceId, LogIndex, NodeId, ObjectKey, ShardIndex, StripeIndex, Uid, VersionNumber, VolumeId, WallMillis,
};
use pacsvault_core::layout::survival::{Held, survives};
use pacsvault_core::layout::{Contract, Failures, Layout, NodeState, VolumeState};
use pacsvault_core::limits::WRITE_WINDOW_MILLIS;
use pacsvault_core::shard::ShardId;
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
    /// Of a stripe of the picked instance; `stale` when it was decided on old news.
    Reseat {
        pick: usize,
        last: bool,
        /// To a target, or again to where the shard belongs.
        moves: Vec<(u8, Option<u8>)>,
        stale: bool,
    },
    Damage {
        pick: usize,
        volume: u8,
        shards: u8,
    },
    Replace {
        pick: usize,
        attempt: u64,
        lost: u32,
        turn: usize,
    },
    Aside {
        pick: usize,
    },
    Retry,
    Drain {
        node: u64,
        on: bool,
    },
}

/// Volumes that shards can be on: one of each node, and a second one of the first three.
fn target(number: u8) -> VolumeId {
    if number < NODES { volume(number) } else { spare(number - NODES) }
}

/// With spare volumes, and with version 2 in force or not.
fn cluster(healing: bool) -> Replica {
    let mut replica = if healing { Replica::upgraded() } else { Replica::with_cluster() };
    (0..3).for_each(|node| replica.add_spare(node));
    replica
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
    let shard = prop_oneof![30 => 0..6_u8, 1 => Just(6_u8)];
    let place = prop_oneof![1 => Just(None), 2 => (0..9_u8).prop_map(Some)];
    let moves = prop_oneof![
        1 => Just(Vec::new()),
        12 => proptest::collection::vec((shard.clone(), place.clone()), 1..2),
        8 => proptest::collection::vec((shard, place), 2..4),
    ];
    let step = prop_oneof![
        12 => a_seal,
        3 => (0..7_usize, proptest::option::of(0..4_u32)).prop_map(|(key, version)| Step::Delete { key, version }),
        2 => (1..=6_u64, any::<bool>()).prop_map(|(node, up)| Step::Node { node, up }),
        9 => (0..9_usize, any::<bool>(), moves, 0..9_u8)
            .prop_map(|(pick, last, moves, stale)| Step::Reseat { pick, last, moves, stale: stale == 0 }),
        3 => (0..9_usize, 0..9_u8, any::<u8>())
            .prop_map(|(pick, volume, shards)| Step::Damage { pick, volume, shards }),
        3 => (0..9_usize, 0..9_u64, prop_oneof![2 => Just(0_u32), 1 => 0..64_u32], 0..6_usize)
            .prop_map(|(pick, attempt, lost, turn)| Step::Replace { pick, attempt, lost, turn }),
        2 => (0..9_usize).prop_map(|pick| Step::Aside { pick }),
        1 => Just(Step::Retry),
        1 => (1..=6_u64, any::<bool>()).prop_map(|(node, on)| Step::Drain { node, on }),
    ];
    let ticks = prop_oneof![3 => 0..5_u64, 1 => Just(WRITE_WINDOW_MILLIS / 2)];
    proptest::collection::vec((ticks, proptest::collection::vec(step, 0..5)), 1..25)
}

/// One of the newest live instances.
fn picked(state: &State, pick: usize) -> Option<SealedInstance> {
    let page = list(state, &"main".parse().unwrap(), None, None, false, &[], 1_000).unwrap();
    let count = page.instances.len();
    page.instances.into_iter().nth(pick % count.max(1))
}

fn reseat(known: &SealedInstance, last: bool, moves: &[(u8, Option<u8>)], stale: bool) -> Command {
    let index = if last { known.seal.stripes.len() - 1 } else { 0 };
    let stripe = &known.seal.stripes[index];
    let own = |shard: u8| stripe.placement.get(usize::from(shard)).copied().unwrap_or(volume(0));
    Command::Reseat(Reseat {
        instance: known.seal.instance,
        stripe: StripeIndex(u32::try_from(index).unwrap()),
        expected: stripe.placement.clone(),
        persisted: if stale { stripe.persisted ^ 1 } else { stripe.persisted },
        moves: moves.iter().map(|(shard, to)| (ShardIndex(*shard), to.map_or(own(*shard), target))).collect(),
        not_after: WallMillis(u64::MAX),
    })
}

fn damage(known: &SealedInstance, volume: u8, shards: u8) -> Command {
    let instance = known.seal.instance;
    let hit = (0..8).filter(|shard| shards & (1 << shard) != 0).map(ShardIndex);
    // One stripe more than there is.
    let stripes = (0..=u32::try_from(known.seal.stripes.len()).unwrap()).map(StripeIndex);
    let shards = stripes.flat_map(|stripe| hit.clone().map(move |shard| ShardId { instance, stripe, shard }));
    Command::ReportDamage { volume: target(volume), shards: shards.collect() }
}

fn replace(known: SealedInstance, id: InstanceId, lost: u32, turn: usize) -> Command {
    let replaces = known.seal.instance;
    let mut seal = Seal { instance: id, ..known.seal };
    for stripe in &mut seal.stripes {
        stripe.placement = (0..NODES).map(volume).collect();
        stripe.placement.rotate_left(turn);
        stripe.persisted = ALL & !lost;
    }
    Command::Replace(Box::new(Replace { seal, version: known.version, replaces }))
}

fn command(step: &Step, now: u64, state: &State) -> Command {
    let with =
        |pick: &usize, make: &dyn Fn(SealedInstance) -> Command| picked(state, *pick).map_or(Command::RetryAside, make);
    match step {
        Step::Reseat { pick, last, moves, stale } => with(pick, &|known| reseat(&known, *last, moves, *stale)),
        Step::Damage { pick, volume, shards } => with(pick, &|known| damage(&known, *volume, *shards)),
        Step::Replace { pick, attempt, lost, turn } => {
            with(pick, &|known| replace(known, instance(now, 1_000 + attempt), *lost, *turn))
        }
        Step::Aside { pick } => with(pick, &|known| Command::SetAside {
            instance: known.seal.instance,
            stripe: StripeIndex(0),
            reason: "unreadable".to_owned(),
        }),
        Step::Retry => Command::RetryAside,
        Step::Drain { node, on } => Command::SetDrain { target: DrainTarget::Node(NodeId(*node)), draining: *on },
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

/// The same once everybody is back who may come back.
fn lasts(seal: &Seal, contract: &Contract, layout: &Layout) -> bool {
    let mut whole = layout.clone();
    let nodes = whole.nodes.values_mut().filter(|node| node.state != NodeState::Removed);
    nodes.for_each(|node| node.state = NodeState::Up);
    let volumes = whole.volumes.values_mut().filter(|volume| volume.state != VolumeState::Fenced);
    volumes.for_each(|volume| volume.state = VolumeState::Up);
    keeps(seal, contract, &whole)
}

/// The naive catalog: versions in a list per key, everything else by looking at all of them.
#[derive(Default)]
struct Model {
    time: u64,
    objects: BTreeMap<ObjectKey, Vec<Version>>,
    /// Encodings that others took the place of, as deleted.
    replaced: Vec<(VersionNumber, Version)>,
    asides: BTreeSet<(InstanceId, StripeIndex)>,
    /// Attempts that were answered with the record of another.
    answered: BTreeMap<InstanceId, InstanceId>,
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

    /// The record of an instance, or the encoding that took its place while that version lives.
    fn stands_for(&self, instance: InstanceId, key: &ObjectKey) -> Option<(VersionNumber, &Version)> {
        let replaced = self.replaced.iter().find(|(_, old)| old.seal.instance == instance);
        // The encoding that took its place answers, while the version lives.
        let replaced = replaced.map(|(number, old)| {
            let heir = &self.objects[&old.seal.key][number.0 as usize - 1];
            (*number, if heir.deleted.is_none() && old.seal.key == *key { heir } else { old })
        });
        self.find(instance).or(replaced)
    }

    /// An attempt is answered with the record of another, and so for as long as it could be sealed.
    fn answer(&mut self, attempt: InstanceId, record: InstanceId) {
        let expired = |id: &InstanceId, now: u64| id.time().0 + WRITE_WINDOW_MILLIS < now;
        let oldest: Vec<InstanceId> = self.answered.keys().take(2).copied().collect();
        for id in oldest.iter().take_while(|id| expired(id, self.time)) {
            self.answered.remove(id);
        }
        if !expired(&attempt, self.time) {
            self.answered.insert(attempt, record);
        }
    }

    /// What the catalog should say, in short.
    fn seal(&mut self, layout: &Layout, seal: &Seal) -> String {
        let answered = self.answered.get(&seal.instance).and_then(|record| self.stands_for(*record, &seal.key));
        if let Some((number, known)) = self.stands_for(seal.instance, &seal.key).or(answered) {
            let same = known.seal.key == seal.key && known.seal.digest == seal.digest;
            let degraded = known.degraded || !lasts(&known.seal, &profile().contract, layout);
            let again = format!("version {number} again, degraded {degraded}");
            return if same { again } else { "malformed".to_owned() };
        }
        let promise = profile();
        if let Some((number, known)) = self.newest(&seal.key).filter(|(_, known)| known.seal.digest == seal.digest) {
            let kept = keeps(&known.seal, &promise.contract, layout);
            let as_good =
                kept || failure_sets().all(|one| !keeps(seal, &one, layout) || keeps(&known.seal, &one, layout));
            let degraded = known.degraded || !keeps(&known.seal, &promise.contract, layout);
            if as_good && keeps(&known.seal, &promise.floor, layout) && !(seal.strict && degraded) {
                let record = known.seal.instance;
                if layout.format >= 2 {
                    self.answer(seal.instance, record);
                }
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
                self.asides.retain(|(instance, _)| *instance != version.seal.instance);
                deleted.push(number);
            }
        }
        format!("deleted {deleted:?}")
    }

    /// The live version that an attempt sealed.
    fn live(&mut self, instance: InstanceId) -> Option<&mut Version> {
        let mut all = self.objects.values_mut().flatten();
        all.find(|one| one.seal.instance == instance && one.deleted.is_none())
    }

    fn reseat(&mut self, layout: &Layout, reseat: &Reseat) -> String {
        let Some(version) = self.live(reseat.instance) else { return "not found".to_owned() };
        let before = &version.seal.stripes[reseat.stripe.0 as usize];
        if before.placement != reseat.expected || before.persisted != reseat.persisted {
            return "changed".to_owned();
        }
        let mut after = before.clone();
        let mut moved = BTreeSet::new();
        for (shard, volume) in &reseat.moves {
            if shard.0 >= 6 || !moved.insert(*shard) {
                return "malformed".to_owned();
            }
            let place = &mut after.placement[usize::from(shard.0)];
            if !layout.counts(*volume) || (layout.draining(*volume) && place != volume) {
                return "not allowed".to_owned();
            }
            *place = *volume;
            after.persisted |= 1 << shard.0;
        }
        if moved.is_empty() {
            return "malformed".to_owned();
        }
        let mut one = version.seal.clone();
        one.stripes = vec![before.clone()];
        let survived: Vec<Contract> = failure_sets().filter(|set| keeps(&one, set, layout)).collect();
        one.stripes = vec![after.clone()];
        let weaker = survived.iter().any(|set| !keeps(&one, set, layout));
        // Emptying what an operator drains may cost what exceeds the contract.
        let drained = reseat.moves.iter().any(|(shard, _)| layout.draining(before.placement[usize::from(shard.0)]));
        if weaker && !(drained && keeps(&one, &profile().contract, layout)) {
            return "too weak".to_owned();
        }
        let changed = *before != after && !weaker;
        version.seal.stripes[reseat.stripe.0 as usize] = after;
        version.degraded &= !changed || !keeps(&version.seal, &profile().contract, layout);
        self.asides.remove(&(reseat.instance, reseat.stripe));
        said(&Outcome::Done)
    }

    fn damage(&mut self, volume: VolumeId, shards: &[ShardId]) -> String {
        for shard in shards {
            let Some(version) = self.live(shard.instance) else { continue };
            let Some(stripe) = version.seal.stripes.get_mut(shard.stripe.0 as usize) else { continue };
            if stripe.placement.get(usize::from(shard.shard.0)) == Some(&volume) {
                stripe.persisted &= !(1 << shard.shard.0);
            }
        }
        said(&Outcome::Done)
    }

    fn replace(&mut self, layout: &Layout, index: LogIndex, replace: &Replace) -> String {
        let seal = &replace.seal;
        let number = replace.version;
        let same = self.find(seal.instance).filter(|(at, known)| *at == number && known.seal.key == seal.key);
        if let Some((number, known)) = same {
            let degraded = known.degraded || !lasts(&known.seal, &profile().contract, layout);
            return format!("version {number} again, degraded {degraded}");
        }
        let known = self.replaced.iter().any(|(_, old)| old.seal.instance == seal.instance);
        if known || self.find(seal.instance).is_some() {
            return "malformed".to_owned();
        }
        if !keeps(seal, &profile().contract, layout) || !keeps(seal, &profile().floor, layout) {
            return "too weak".to_owned();
        }
        let place = &mut self.objects.get_mut(&seal.key).unwrap()[number.0 as usize - 1];
        let new = Version { seal: seal.clone(), degraded: false, deleted: None };
        let old = std::mem::replace(place, new);
        self.asides.retain(|(instance, _)| *instance != old.seal.instance);
        self.replaced.push((number, Version { deleted: Some(index), ..old }));
        format!("version {number} first, degraded false")
    }

    /// What the catalog should say.
    fn expects(&mut self, layout: &Layout, index: LogIndex, command: &Command, outcome: &Outcome) -> String {
        if command.version() > layout.format {
            return "upgrade pending".to_owned();
        }
        match command {
            Command::Seal(seal) => self.seal(layout, seal),
            Command::Delete { key, version } => self.delete(index, key, *version),
            Command::Reseat(reseat) => self.reseat(layout, reseat),
            Command::ReportDamage { volume, shards } => self.damage(*volume, shards),
            Command::Replace(replace) => self.replace(layout, index, replace),
            Command::SetAside { instance, stripe, .. } => {
                self.asides.insert((*instance, *stripe));
                said(&Outcome::Done)
            }
            Command::RetryAside => {
                self.asides.clear();
                said(&Outcome::Done)
            }
            // Whether it is possible has tests of its own.
            Command::SetDrain { .. } => said(outcome),
            _ => said(&Outcome::Done),
        }
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
        Outcome::Rejected(Rejection::Changed(_)) => "changed".to_owned(),
        Outcome::Rejected(Rejection::NotAllowed(_)) => "not allowed".to_owned(),
        Outcome::Rejected(Rejection::UpgradePending { .. }) => "upgrade pending".to_owned(),
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
    let dead = || all().chain(model.replaced.iter().map(|(_, old)| old));
    let deleted: BTreeSet<_> = dead().filter_map(|one| one.deleted.map(|index| (index, one.seal.instance))).collect();
    for (number, old) in &model.replaced {
        let proof = by_instance(state, old.seal.instance).unwrap().unwrap();
        assert_eq!((proof.version, proof.deleted, &proof.seal), (*number, old.deleted, &old.seal));
    }
    assert_eq!(deleted_instances(state, None, 1_000).unwrap(), deleted.into_iter().collect::<Vec<_>>());
    let mut missing: Vec<_> = all()
        .filter(|one| one.deleted.is_none())
        .flat_map(|one| (0..).zip(&one.seal.stripes).map(move |(index, stripe)| (one.seal.instance, index, stripe)))
        .filter(|(_, _, stripe)| stripe.persisted != ALL)
        .map(|(instance, index, _)| (instance, StripeIndex(index)))
        .collect();
    missing.sort_unstable();
    assert_eq!(missing_shards(state, None, 1_000).unwrap(), missing);
    check_derived(replica, model);
}

/// Sums, and the indexes by stripe, are what a look at all live records finds.
fn check_derived(replica: &Replica, model: &Model) {
    let state = &replica.state;
    let live = || model.objects.values().flatten().filter(|one| one.deleted.is_none());
    let mut by_placement: BTreeMap<Vec<VolumeId>, Sums> = BTreeMap::new();
    let (mut placed, mut bits) = (BTreeSet::new(), BTreeMap::new());
    for seal in live().map(|one| &one.seal) {
        for (stripe, index) in seal.stripes.iter().zip(0_u32..) {
            let sums = by_placement.entry(stripe.placement.clone()).or_default();
            sums.stripes += 1;
            sums.content_bytes += stripe.stripe_bytes;
            sums.shard_bytes += seal.code.shard_bytes(stripe.stripe_bytes);
            let name = [&seal.instance.0[..], &index.to_be_bytes()].concat();
            placed.insert(name.clone());
            if stripe.persisted != ALL {
                let bits_of = u8::try_from(stripe.persisted).unwrap();
                bits.insert(name, if bits_of == 0 { vec![1] } else { vec![1, 8, bits_of] });
            }
        }
    }
    let found = groups(state).unwrap();
    let of_groups: BTreeMap<_, _> = found.iter().map(|group| (group.volumes.clone(), group.sums)).collect();
    assert_eq!((of_groups, found.len()), (by_placement.clone(), by_placement.len()));
    let on_first: u64 = by_placement.iter().filter(|(at, _)| at.contains(&volume(0))).map(|(_, one)| one.stripes).sum();
    let twice = |at: &[VolumeId]| at.iter().filter(|one| **one == volume(0)).count() > 1;
    if !by_placement.keys().any(|at| twice(at)) {
        assert_eq!(volume_sums(&found).get(&volume(0)).map_or(0, |sums| sums.stripes), on_first);
    }
    let rows = |kind: u8| state.iter().filter(move |(key, _)| key[0] == kind);
    let found: BTreeMap<_, _> = rows(0x24).map(|(key, value)| (key[1..].to_vec(), value.clone())).collect();
    assert_eq!(found, bits, "persisted bits");
    if replica.machine.layout().unwrap().format >= 2 {
        assert_eq!(rows(0x23).count(), placed.len(), "each live stripe under one placement");
    }
    let found: BTreeSet<_> = rows(0x23).map(|(key, _)| key[9..].to_vec()).collect();
    assert!(found.is_superset(&placed));
    let (aside, total) = asides(state, 1_000).unwrap();
    let aside: BTreeSet<_> = aside.into_iter().map(|one| (one.instance, one.stripe)).collect();
    assert_eq!((&aside, total), (&model.asides, model.asides.len() as u64));
    // Made again from the records alone, they are the same rows.
    let mut machine = pacsvault_core::catalog::Machine::load(state).unwrap();
    let mut overlay = Overlay::new(state);
    machine.rebuild_sums(&mut overlay).unwrap();
    assert_eq!(groups(&overlay).unwrap(), groups(state).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_catalog_equals_a_naive_model(
        steps in steps(), rows_max in 1..6_usize, reload_every in 1..6_usize, old in 0..4_u8,
    ) {
        let mut replica = cluster(old != 0);
        let mut model = Model { time: START, ..Model::default() };
        let mut now = START;
        for (round, (tick, steps)) in steps.iter().enumerate() {
            now += tick;
            if round % reload_every == 0 {
                replica.reload();
            }
            for step in steps {
                let command = command(step, now, &replica.state);
                let layout = replica.machine.layout().unwrap();
                let outcome = replica.one(now, command.clone());
                prop_assert_eq!(wire::decode_outcome(&wire::encode_outcome(&outcome)), Ok(outcome.clone()));
                model.time = now;
                let expected = model.expects(&layout, LogIndex(replica.index), &command, &outcome);
                prop_assert_eq!(said(&outcome), expected, "{:?}", command);
            }
        }
        check_reads(&replica, &model, rows_max);
    }

    #[test]
    fn replicas_agree_however_they_batch_and_restart(steps in steps(), batch in 2..9_usize) {
        let mut now = START;
        let mut entries = Vec::new();
        // Commands are decided on a state, as those who heal do it.
        let mut seen = cluster(true);
        for (tick, steps) in &steps {
            now += tick;
            let commands = steps.iter().map(|step| command(step, now, &seen.state)).collect();
            let entry = Entry { time: WallMillis(now), commands };
            prop_assert_eq!(wire::decode_entry(&wire::encode_entry(&entry)), Ok(entry.clone()));
            seen.try_apply(std::slice::from_ref(&entry)).unwrap();
            entries.push(entry);
        }
        let (mut single, mut grouped) = (cluster(true), cluster(true));
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
