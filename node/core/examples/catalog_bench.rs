//! Prints how many seals per second `apply` decides, in batches as the shell makes them, on a map in memory.
//!
//! `cargo run --release -p pacsvault-core --example catalog_bench [SEALS]`

use std::collections::BTreeMap;
use std::time::Instant;

use pacsvault_core::batch::Change;
use pacsvault_core::catalog::command::{Attribute, JoinNode, Reserved};
use pacsvault_core::catalog::{Command, Entry, Machine, Outcome, Overlay, Seal, StripeSeal, wire};
use pacsvault_core::ids::{
    ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, LogIndex, Term, VolumeId, WallMillis,
};
use pacsvault_core::layout::profile::{Code, ReadPreference};
use pacsvault_core::layout::{Contract, Failures, Profile, Roles};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

const NODES: u8 = 6;
const VOLUMES_PER_NODE: u8 = 4;
const SEALS_PER_ENTRY: u64 = 256;
const START: u64 = 1_700_000_000_000;

fn volume(node: u8, volume: u8) -> VolumeId {
    VolumeId([node * VOLUMES_PER_NODE + volume + 1; 16])
}

fn store(state: &mut State, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Put(key, value) => {
                state.insert(key, value);
            }
            Change::Delete(key) => {
                state.remove(&key);
            }
            Change::DeleteRange(from, to) => state.retain(|key, _| *key < from || *key >= to),
        }
    }
}

fn cluster() -> Vec<Command> {
    let profile = Profile {
        name: "standard".parse().expect("a valid name"),
        version: 1,
        code: Code::new(4, 2).expect("a valid code"),
        contract: Contract::one(Failures { sites: 1, nodes: 0 }),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: ReadPreference::OwnSite,
    };
    let default_profile = profile.name.clone();
    let mut commands =
        vec![Command::InitCluster { cluster: ClusterId([7; 16]), profiles: vec![profile], default_profile }];
    commands.extend((0..NODES).map(|node| {
        Command::JoinNode(JoinNode {
            name: format!("node-{node}").parse().expect("a valid name"),
            incarnation: Incarnation([node + 1; 16]),
            site: format!("site-{}", node % 3).parse().expect("a valid name"),
            address: format!("10.0.0.{node}:7000"),
            roles: Roles { storage: true, voter: true },
            volumes: (0..VOLUMES_PER_NODE).map(|one| (volume(node, one), 1 << 40)).collect(),
            version: 1,
        })
    }));
    commands
}

fn seal(number: u64) -> Command {
    let study = number / 400;
    let key = format!("main/1.2.840.99.{study}/1.2.840.99.{study}.{}/1.2.840.99.{study}.{number}", number % 4);
    let draw = u8::try_from(number % u64::from(VOLUMES_PER_NODE)).expect("below four");
    let digest = Digest::of(&number.to_be_bytes());
    Command::Seal(Box::new(Seal {
        instance: InstanceId::new(WallMillis(START), u128::from(number) << 8),
        key: key.parse().expect("a valid key"),
        size_bytes: 524_288,
        digest,
        profile: "standard".parse().expect("a valid name"),
        profile_version: 1,
        code: Code::new(4, 2).expect("a valid code"),
        layout: LayoutVersion(7),
        stripes: vec![StripeSeal {
            stripe_bytes: 524_288,
            shard_root: digest,
            placement: (0..NODES).map(|node| volume(node, draw)).collect(),
            persisted: 0b11_1111,
        }],
        media_type: "application/dicom".to_owned(),
        attributes: (0..12)
            .map(|tag| Attribute { tag: 0x0010_0010 + tag, value: "SOME^VALUE 123".to_owned() })
            .collect(),
        strict: false,
        coordinator: "CN=gateway-1".to_owned(),
        reserved: Reserved::default(),
    }))
}

fn main() {
    let seals: u64 = std::env::args().nth(1).map_or(200_000, |text| text.parse().expect("a count of seals"));
    let mut state = State::new();
    let mut machine = Machine::load(&state).expect("an empty state loads");
    let changes = {
        let mut overlay = Overlay::new(&state);
        let entry = Entry { time: WallMillis(START), commands: cluster() };
        let outcomes = machine.apply(&mut overlay, LogIndex(1), Term(1), &entry).expect("the cluster forms");
        assert!(outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Rejected(_))), "{outcomes:?}");
        overlay.into_batch().changes
    };
    store(&mut state, changes);

    let entries: Vec<Vec<u8>> = (0..seals.div_ceil(SEALS_PER_ENTRY))
        .map(|entry| {
            let first = entry * SEALS_PER_ENTRY;
            let commands = (first..seals.min(first + SEALS_PER_ENTRY)).map(seal).collect();
            wire::encode_entry(&Entry { time: WallMillis(START + entry), commands })
        })
        .collect();
    let bytes: usize = entries.iter().map(Vec::len).sum();

    let (mut applying, mut decoding, mut changed) = (0.0, 0.0, 0_usize);
    let begun = Instant::now();
    for (bytes, index) in entries.iter().zip(2_u64..) {
        let start = Instant::now();
        let entry = wire::decode_entry(bytes).expect("our own bytes");
        decoding += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut overlay = Overlay::new(&state);
        let outcomes = machine.apply(&mut overlay, LogIndex(index), Term(1), &entry).expect("it applies");
        let changes = overlay.into_batch().changes;
        applying += start.elapsed().as_secs_f64();
        let first = |outcome: &Outcome| matches!(outcome, Outcome::Sealed { first: true, .. });
        assert!(outcomes.iter().all(first), "a seal was refused");
        changed += changes.len();
        store(&mut state, changes);
    }
    let total = begun.elapsed().as_secs_f64();
    let count = f64::from(u32::try_from(seals).expect("a sensible count"));
    let state_bytes: usize = state.iter().map(|(key, value)| key.len() + value.len()).sum();
    let start = Instant::now();
    let mut again = Machine::load(&state).expect("the state loads");
    let mut overlay = Overlay::new(&state);
    again.rebuild_sums(&mut overlay).expect("the records are readable");
    let rebuilding = start.elapsed().as_secs_f64();
    println!("{seals} seals, {SEALS_PER_ENTRY} per entry, {} bytes of log each", bytes / entries.len().max(1) / 256);
    println!("decode entry       {:>9.0} seals/s", count / decoding);
    println!("apply and batch    {:>9.0} seals/s", count / applying);
    println!("sums made again    {:>9.0} records/s", count / rebuilding);
    println!("with the map       {:>9.0} seals/s", count / total);
    println!(
        "state              {:>9.1} bytes per seal, {:.2} changes",
        to_f64(state_bytes) / count,
        to_f64(changed) / count
    );
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
