//! Bytes of every record and message, as released: old bytes open for ever.
//!
//! `catalog_golden.txt` holds `name hex` lines: entries, what they left in the state, and messages. After a deliberate,
//! additive change, run with `CATALOG_GOLDEN_WRITE=1` and review the difference: no old line may change.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::fmt::Write as _;

use catalog_support::{ALL, Replica, START, State, init, instance, join, key, profile, seal, stripe, volume};
use pacsvault_core::catalog::command::{Command, Outcome, Rejection, Reserved};
use pacsvault_core::catalog::query::{Page, StudyRow, by_instance, list, lookup};
use pacsvault_core::catalog::{Entry, Error, FIRST_BYTES, Machine, wire};
use pacsvault_core::ids::{Digest, LogIndex, NodeId, VersionNumber, VolumeId, WallMillis};
use pacsvault_core::layout::{NodeState, VolumeState};
use pacsvault_core::receipt::Receipt;

const GOLDEN: &str = include_str!("catalog_golden.txt");
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

fn lines() -> Vec<(String, Vec<u8>)> {
    let mut lines = Vec::new();
    let mut replica = Replica::new();
    for command in commands() {
        lines.push(("command".to_owned(), wire::encode_command(&command)));
        let entry = Entry { time: WallMillis(START), commands: vec![command.clone()] };
        lines.push(("entry".to_owned(), wire::encode_entry(&entry)));
        if !matches!(command, Command::CompareDigest { .. }) {
            let outcome = replica.one(START, command);
            assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
            lines.push(("outcome".to_owned(), wire::encode_outcome(&outcome)));
        }
    }
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

fn golden() -> Vec<(String, Vec<u8>)> {
    let lines = GOLDEN.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, bytes)| (name.to_owned(), unhex(bytes))).collect()
}

#[test]
fn today_writes_the_bytes_that_were_released() {
    let today = lines();
    if std::env::var_os("CATALOG_GOLDEN_WRITE").is_some() {
        let text: String = today.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/catalog_golden.txt"), text).unwrap();
        return;
    }
    let golden = golden();
    for ((name, bytes), (golden_name, golden_bytes)) in today.iter().zip(&golden) {
        assert_eq!((name, hex(bytes)), (golden_name, hex(golden_bytes)));
    }
    assert_eq!(today.len(), golden.len());
}

#[test]
fn released_bytes_open_and_are_written_back_alike() {
    for (name, bytes) in golden() {
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
    let rows = golden().into_iter().filter_map(|(name, bytes)| Some((unhex(name.strip_prefix("state/")?), bytes)));
    let state: State = rows.collect();
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
