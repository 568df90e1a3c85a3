//! Bytes of every record and message, as released: old bytes open for ever.
//!
//! `catalog_golden.txt` holds `name hex` lines: entries, what they left in the state, and messages; `catalog_golden_2.txt`
//! those of version 2. After a deliberate, additive change, run with `CATALOG_GOLDEN_WRITE=1` and review the difference: no
//! old line may change.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::fmt::Write as _;

use catalog_support::{ALL, Replica, START, State, init, instance, join, key, profile, seal, spare, stripe, volume};
use pacsvault_core::catalog::command::{Command, DrainTarget, JoinNode, Outcome, Rejection, Replace, Reseat, Reserved};
use pacsvault_core::catalog::query::{Page, StudyRow, asides, by_instance, groups, list, lookup, study_profiles};
use pacsvault_core::catalog::{Entry, Error, FIRST_BYTES, Machine, wire};
use pacsvault_core::ids::{Digest, LogIndex, NodeId, ShardIndex, StripeIndex, VersionNumber, VolumeId, WallMillis};
use pacsvault_core::layout::{NodeState, VolumeState};
use pacsvault_core::receipt::Receipt;
use pacsvault_core::shard::ShardId;

const GOLDEN: &str = include_str!("catalog_golden.txt");
const GOLDEN_2: &str = include_str!("catalog_golden_2.txt");
const KEY: &str = "main/1.2.840/1.3/1.4";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// One of each command.
fn commands() -> Vec<Command> {
    let mut commands = vec![init()];
    commands.extend((0..6).map(|node| Command::JoinNode(join(node))));
    commands.push(Command::SetNodeState { node: NodeId(6), state: NodeState::Down });
    commands.push(Command::AddVolume { node: NodeId(1), volume: VolumeId([60; 16]), capacity_bytes: 5 << 40 });
    commands.push(Command::SetVolumeState { volume: VolumeId([60; 16]), state: VolumeState::Fenced });
    let mut hot = profile();
    hot.name = "hot".parse().unwrap();
    commands.push(Command::SetProfile { profile: hot, make_default: true });
    let mut rich = seal(KEY, "abcdefgh", instance(START, 1));
    rich.stripes = vec![stripe(5, ALL), stripe(3, ALL & !(1 << 5))];
    rich.reserved = Reserved {
        wrapped_key: vec![1, 2],
        encrypted_attributes: vec![3],
        blind_index: vec![vec![4], vec![5, 6]],
        retain_until: Some(WallMillis(START - 1)),
        audit_chain_hash: vec![7; 32],
    };
    commands.push(Command::Seal(Box::new(rich)));
    commands.push(Command::Seal(Box::new(seal(KEY, "second", instance(START, 2)))));
    let mut report = seal("main/1.2.840/@/report", "", instance(START, 3));
    report.stripes[0].persisted = ALL & !(1 << 5);
    commands.push(Command::Seal(Box::new(report)));
    commands.push(Command::Delete { key: key(KEY), version: Some(VersionNumber(1)) });
    commands.push(Command::Delete { key: key(KEY), version: None });
    commands.push(Command::Seal(Box::new(seal(KEY, "third", instance(START, 4)))));
    commands.push(Command::CompareDigest { index: LogIndex(1), digest: Digest([9; 32]) });
    commands
}

/// One of each command of version 2, and of each state that it added.
fn commands_2() -> Vec<Command> {
    let mut commands = vec![init()];
    commands.extend((0..6).map(|node| Command::JoinNode(JoinNode { version: 2, ..join(node) })));
    commands.push(Command::Activate { version: 2 });
    for state in [NodeState::Lost, NodeState::Suspect] {
        commands.push(Command::SetNodeState { node: NodeId(6), state });
    }
    for node in [1_u8, 2] {
        let id = NodeId(u64::from(node) + 1);
        commands.push(Command::AddVolume { node: id, volume: spare(node), capacity_bytes: 5 << 40 });
    }
    commands.push(Command::SetVolumeState { volume: spare(2), state: VolumeState::Away });
    let id = instance(START, 1);
    let mut first = seal(KEY, "abcdefgh", id);
    first.stripes = vec![stripe(5, ALL), stripe(3, ALL & !(1 << 5))];
    commands.push(Command::Seal(Box::new(first)));
    commands.push(Command::Seal(Box::new(seal(KEY, "second", instance(START, 2)))));
    commands.push(Command::Reseat(Reseat {
        instance: id,
        stripe: StripeIndex(1),
        expected: (0..6).map(volume).collect(),
        persisted: ALL & !(1 << 5),
        moves: vec![(ShardIndex(5), volume(5)), (ShardIndex(1), spare(1))],
        not_after: WallMillis(START + 1),
    }));
    let damaged = ShardId { instance: id, stripe: StripeIndex(1), shard: ShardIndex(1) };
    commands.push(Command::ReportDamage { volume: spare(1), shards: vec![damaged] });
    let aside = Command::SetAside { instance: id, stripe: StripeIndex(1), reason: "3 of 4 shards".to_owned() };
    commands.extend([aside.clone(), Command::RetryAside, aside]);
    let replacement = seal(KEY, "second", instance(START, 3));
    let (version, replaces) = (VersionNumber(2), instance(START, 2));
    commands.push(Command::Replace(Box::new(Replace { seal: replacement, version, replaces })));
    for (study, profile) in [("1.2.840", Some(profile().name)), ("1.3", None)] {
        let (tenant, study) = ("main".parse().unwrap(), study.parse().unwrap());
        commands.push(Command::SetStudyProfile { tenant, study, profile });
    }
    commands.push(Command::SetDrain { target: DrainTarget::Volume(spare(1)), draining: true });
    commands.push(Command::SetDrain { target: DrainTarget::Volume(spare(1)), draining: false });
    commands.push(Command::SetDrain { target: DrainTarget::Node(NodeId(3)), draining: true });
    commands
}

fn outcomes_2() -> Vec<Outcome> {
    let rejections = [Rejection::Changed("stripe 1".to_owned()), Rejection::UpgradePending { needed: 2, present: 1 }];
    rejections.into_iter().map(Outcome::Rejected).collect()
}

fn outcomes() -> Vec<Outcome> {
    let rejections = [
        Rejection::ClusterState("not yet initialised".to_owned()),
        Rejection::NameTaken { name: join(0).name, node: NodeId(1) },
        Rejection::Unknown("node 9".to_owned()),
        Rejection::NotAllowed("no".to_owned()),
        Rejection::Impossible("1 < 2".to_owned()),
        Rejection::Fenced { volume: volume(3) },
        Rejection::TooWeak { stripe: 2, why: "any one node".to_owned() },
        Rejection::WindowClosed { began: 1, horizon: 2 },
        Rejection::Malformed("size".to_owned()),
        Rejection::NotFound("key".to_owned()),
    ];
    let deleted = |index| Outcome::Deleted { versions: vec![VersionNumber(1), VersionNumber(300)], index };
    // Before deletes told their index, it was left out, as 0 is.
    let mut outcomes = vec![Outcome::Done, Outcome::Joined(NodeId(3)), deleted(LogIndex(0))];
    outcomes.extend(rejections.into_iter().map(Outcome::Rejected));
    outcomes.push(deleted(LogIndex(70_000)));
    outcomes
}

type Lines = Vec<(String, Vec<u8>)>;

/// Commands one by one, with what they answer.
fn applied(replica: &mut Replica, commands: Vec<Command>) -> Lines {
    let mut lines = Lines::new();
    for command in commands {
        lines.push(("command".to_owned(), wire::encode_command(&command)));
        let entry = Entry { time: WallMillis(START), commands: vec![command.clone()] };
        lines.push(("entry".to_owned(), wire::encode_entry(&entry)));
        if !matches!(command, Command::CompareDigest { .. }) {
            let outcome = replica.one(START, command);
            assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
            lines.push(("outcome".to_owned(), wire::encode_outcome(&outcome)));
        }
    }
    lines
}

fn lines_2() -> Lines {
    let mut replica = Replica::new();
    let mut lines = applied(&mut replica, commands_2());
    lines.extend(outcomes_2().iter().map(|outcome| ("outcome".to_owned(), wire::encode_outcome(outcome))));
    let moved = lookup(&replica.state, &key(KEY), Some(VersionNumber(1))).unwrap().unwrap();
    let page = Page { studies: vec![], instances: vec![moved.clone()], next_page_token: vec![] };
    lines.push(("layout".to_owned(), wire::encode_layout(&replica.machine.layout().unwrap())));
    lines.push(("join".to_owned(), wire::encode_join(&JoinNode { version: 2, ..join(2) })));
    lines.push(("sealed".to_owned(), wire::encode_sealed(&moved)));
    lines.push(("page".to_owned(), wire::encode_page(&page)));
    lines.extend(replica.state.into_iter().map(|(key, value)| (format!("state/{}", hex(&key)), value)));
    lines
}

fn lines() -> Lines {
    let mut replica = Replica::new();
    let mut lines = applied(&mut replica, commands());
    lines.extend(outcomes().iter().map(|outcome| ("outcome".to_owned(), wire::encode_outcome(outcome))));
    let layout = replica.machine.layout().unwrap();
    let sealed = lookup(&replica.state, &key(KEY), None).unwrap().unwrap();
    let row = StudyRow { study: "1.2".parse().unwrap(), objects: 2, size_bytes: 300 };
    let page = Page { studies: vec![row.clone()], instances: vec![sealed.clone()], next_page_token: vec![1, 2] };
    lines.push(("layout".to_owned(), wire::encode_layout(&layout)));
    lines.push(("profile".to_owned(), wire::encode_profile(&profile())));
    lines.push(("join".to_owned(), wire::encode_join(&join(2))));
    lines.push(("sealed".to_owned(), wire::encode_sealed(&sealed)));
    lines.push(("study-row".to_owned(), wire::encode_study_row(&row)));
    lines.push(("page".to_owned(), wire::encode_page(&page)));
    lines.push(("receipt".to_owned(), Receipt::of(&sealed, &layout).encode()));
    // Sums and their marker are derived, and came later.
    let stored = replica.state.into_iter().filter(|(key, _)| !matches!(key[0], 0x25 | 0x28));
    lines.extend(stored.map(|(key, value)| (format!("state/{}", hex(&key)), value)));
    lines
}

fn golden(text: &str) -> Lines {
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, bytes)| (name.to_owned(), unhex(bytes))).collect()
}

fn golden_state(text: &str) -> State {
    let lines = golden(text).into_iter();
    lines.filter_map(|(name, bytes)| Some((unhex(name.strip_prefix("state/")?), bytes))).collect()
}

#[test]
fn today_writes_the_bytes_that_were_released() {
    for (today, text, file) in [(lines(), GOLDEN, "catalog_golden.txt"), (lines_2(), GOLDEN_2, "catalog_golden_2.txt")]
    {
        if std::env::var_os("CATALOG_GOLDEN_WRITE").is_some() {
            let text: String = today.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
            std::fs::write(format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR")), text).unwrap();
            continue;
        }
        let golden = golden(text);
        for ((name, bytes), (golden_name, golden_bytes)) in today.iter().zip(&golden) {
            assert_eq!((name, hex(bytes)), (golden_name, hex(golden_bytes)), "{file}");
        }
        assert_eq!(today.len(), golden.len(), "{file}");
    }
}

#[test]
fn released_bytes_open_and_are_written_back_alike() {
    for (name, bytes) in [golden(GOLDEN), golden(GOLDEN_2)].concat() {
        let again = match name.as_str() {
            "command" => wire::encode_command(&wire::decode_command(&bytes).unwrap()),
            "entry" => wire::encode_entry(&wire::decode_entry(&bytes).unwrap()),
            "outcome" => wire::encode_outcome(&wire::decode_outcome(&bytes).unwrap()),
            "layout" => wire::encode_layout(&wire::decode_layout(&bytes).unwrap()),
            "profile" => wire::encode_profile(&wire::decode_profile(&bytes).unwrap()),
            "join" => wire::encode_join(&wire::decode_join(&bytes).unwrap()),
            "sealed" => wire::encode_sealed(&wire::decode_sealed(&bytes).unwrap()),
            "study-row" => wire::encode_study_row(&wire::decode_study_row(&bytes).unwrap()),
            "page" => wire::encode_page(&wire::decode_page(&bytes).unwrap()),
            "receipt" => Receipt::decode(&bytes).unwrap().encode(),
            state => {
                assert!(FIRST_BYTES.contains(&unhex(&state["state/".len()..])[0]));
                continue;
            }
        };
        assert_eq!(hex(&again), hex(&bytes), "{name}");
    }
}

#[test]
fn a_released_state_loads_and_is_readable() {
    let state = golden_state(GOLDEN);
    let kinds: std::collections::BTreeSet<u8> = state.keys().map(|key| key[0]).collect();
    assert_eq!(kinds.len(), 15, "a row of each kind: {kinds:x?}");
    let machine = Machine::load(&state).unwrap();
    assert_eq!(machine.layout().unwrap().nodes.len(), 6);
    assert_eq!(machine.applied(), LogIndex(17));
    assert_eq!(by_instance(&state, instance(START, 1)).unwrap().unwrap().deleted, Some(LogIndex(15)));
    let page = list(&state, &"main".parse().unwrap(), None, None, false, &[], 10).unwrap();
    let found: Vec<String> = page.instances.iter().map(|one| format!("{} {}", one.seal.key, one.version)).collect();
    assert_eq!(found, [format!("{KEY} 3"), "main/1.2.840/@/report 1".to_owned()]);
}

#[test]
fn a_released_state_of_version_2_loads_and_is_readable() {
    let state = golden_state(GOLDEN_2);
    let kinds: std::collections::BTreeSet<u8> = state.keys().map(|key| key[0]).collect();
    assert_eq!(kinds.len(), 21, "a row of each kind: {kinds:x?}");
    let machine = Machine::load(&state).unwrap();
    assert!(!machine.sums_stale());
    let layout = machine.layout().unwrap();
    assert_eq!((layout.format, layout.nodes[&NodeId(6)].state), (2, NodeState::Suspect));
    assert_eq!(layout.volumes[&spare(2)].state, VolumeState::Away);
    assert!(layout.nodes[&NodeId(3)].draining && !layout.volumes[&spare(1)].draining);
    let moved = by_instance(&state, instance(START, 1)).unwrap().unwrap();
    assert_eq!(moved.moved[&StripeIndex(1)].former[&ShardIndex(1)], volume(1));
    assert_eq!(moved.seal.stripes[1].persisted, ALL & !(1 << 1));
    assert!(by_instance(&state, instance(START, 2)).unwrap().unwrap().deleted.is_some());
    assert_eq!(groups(&state).unwrap().iter().map(|group| group.sums.stripes).sum::<u64>(), 3);
    assert_eq!(asides(&state, 9).unwrap().0[0].reason, "3 of 4 shards");
    assert_eq!(study_profiles(&state, None, 9).unwrap().len(), 1);
}

#[test]
fn commands_of_version_2_that_contradict_themselves_are_unreadable() {
    let reseat = [1_u8, 0x5a, 3, 0x2a, 1, 0];
    assert!(matches!(wire::decode_command(&reseat), Err(Error::Unreadable { .. })), "a shard without a target");
    let damage = [1_u8, 0x62, 4, 0x12, 2, 0, 0];
    assert!(wire::decode_command(&damage).is_err(), "21 bytes each");
    for drain in [vec![1_u8, 0x8a, 1, 0], vec![1, 0x8a, 1, 4, 0x08, 1, 0x12, 0]] {
        assert!(matches!(wire::decode_command(&drain), Err(Error::Unreadable { .. })), "exactly one target");
    }
    let replace = [1_u8, 0x7a, 2, 0x10, 1];
    assert!(matches!(wire::decode_command(&replace), Err(Error::Unreadable { .. })), "a replacement without a seal");
    let no_retry = [1_u8, 0x70, 0];
    assert!(wire::decode_command(&no_retry).is_err(), "it means nothing");
}

#[test]
fn what_is_newer_or_torn_is_an_error_and_never_skipped() {
    let entry = Entry { time: WallMillis(START), commands: commands() };
    let bytes = wire::encode_entry(&entry);
    assert_eq!(wire::decode_entry(&bytes), Ok(entry));
    assert!(matches!(wire::decode_entry(&[]), Err(Error::Unreadable { .. })));
    assert!(matches!(wire::decode_entry(&[&[2], &bytes[1..]].concat()), Err(Error::Format { format: 2, .. })));
    assert!(matches!(wire::decode_entry(&bytes[..bytes.len() - 1]), Err(Error::Unreadable { .. })), "torn");
    // Field 15 of the entry; a command that is field 15 of the command; a node state 9.
    assert!(matches!(wire::decode_entry(&[&bytes[..], &[0x78, 1]].concat()), Err(Error::Unreadable { .. })));
    assert!(wire::decode_entry(&[1, 0x12, 2, 0x7a, 0]).is_err());
    let empty_command = wire::decode_command(&[1]);
    assert_eq!(empty_command, Err(Error::UnknownTag { what: "command", tag: 0 }));
    let unknown_state = wire::decode_command(&[1, 0x1a, 4, 0x08, 1, 0x10, 9]);
    assert_eq!(unknown_state, Err(Error::UnknownTag { what: "node state", tag: 9 }));
    // Messages of a newer neighbour are read as far as they are known.
    let outcome = wire::encode_outcome(&Outcome::Done);
    assert_eq!(wire::decode_outcome(&[&outcome[..], &[0xf8, 0x07, 1]].concat()), Ok(Outcome::Done));
}
