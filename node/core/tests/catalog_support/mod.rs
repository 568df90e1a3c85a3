//! A replica on a map in memory, and commands to feed it: three sites of two nodes, one volume each, profile 4+2.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use pacsvault_core::batch::Change;
use pacsvault_core::catalog::command::{Attribute, JoinNode, Reserved};
use pacsvault_core::catalog::{
    Command, Entry, Error, Machine, Outcome, Overlay, Rejection, Seal, SealedInstance, StripeSeal,
};
use pacsvault_core::ids::{
    ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, LogIndex, NodeId, ObjectKey, Term, VolumeId, WallMillis,
};
use pacsvault_core::layout::profile::{Code, ReadPreference};
use pacsvault_core::layout::{Contract, Failures, Profile, Roles};

/// When the tests begin.
pub const START: u64 = 1_700_000_000_000;
/// Nodes of the test cluster.
pub const NODES: u8 = 6;
/// All six shards.
pub const ALL: u32 = 0b11_1111;

/// State in memory.
pub type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// A machine with its state.
pub struct Replica {
    /// What is stored.
    pub state: State,
    /// What applies.
    pub machine: Machine,
    /// Last index.
    pub index: u64,
}

impl Replica {
    /// Nothing applied.
    pub fn new() -> Self {
        let state = State::new();
        let machine = Machine::load(&state).expect("an empty state loads");
        Self { state, machine, index: 0 }
    }

    /// With the test cluster in it.
    pub fn with_cluster() -> Self {
        let mut replica = Self::new();
        for outcome in replica.apply(START, cluster()) {
            assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        }
        replica
    }

    /// With the test cluster in it, every node of version 2, and version 2 in force.
    pub fn upgraded() -> Self {
        let mut replica = Self::new();
        let mut commands = vec![init()];
        commands.extend((0..NODES).map(|node| Command::JoinNode(JoinNode { version: 2, ..join(node) })));
        commands.push(Command::Activate { version: 2 });
        for outcome in replica.apply(START, commands) {
            assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        }
        replica
    }

    /// Adds the second volume of a node.
    pub fn add_spare(&mut self, node: u8) {
        let id = NodeId(u64::from(node) + 1);
        let add = Command::AddVolume { node: id, volume: spare(node), capacity_bytes: 1 << 40 };
        assert_eq!(self.one(START, add), Outcome::Done);
    }

    /// Applies one entry in a batch of its own.
    pub fn apply(&mut self, time: u64, commands: Vec<Command>) -> Vec<Outcome> {
        self.try_apply(&[Entry { time: WallMillis(time), commands }]).expect("it applies").remove(0)
    }

    /// Applies one command in a batch of its own.
    pub fn one(&mut self, time: u64, command: Command) -> Outcome {
        self.apply(time, vec![command]).remove(0)
    }

    /// Applies a seal that must be accepted.
    pub fn sealed(&mut self, time: u64, seal: Seal) -> (SealedInstance, bool) {
        match self.one(time, Command::Seal(Box::new(seal))) {
            Outcome::Sealed { sealed, first } => (*sealed, first),
            other => panic!("not sealed: {other:?}"),
        }
    }

    /// Applies a command that must be refused.
    pub fn refused(&mut self, time: u64, command: Command) -> Rejection {
        match self.one(time, command) {
            Outcome::Rejected(rejection) => rejection,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Applies several entries in one batch.
    pub fn try_apply(&mut self, entries: &[Entry]) -> Result<Vec<Vec<Outcome>>, Error> {
        let mut overlay = Overlay::new(&self.state);
        let mut outcomes = Vec::new();
        for entry in entries {
            self.index += 1;
            outcomes.push(self.machine.apply(&mut overlay, LogIndex(self.index), Term(3), entry)?);
        }
        let batch = overlay.into_batch();
        for change in batch.changes {
            match change {
                Change::Put(key, value) => drop(self.state.insert(key, value)),
                Change::Delete(key) => drop(self.state.remove(&key)),
                Change::DeleteRange(from, to) => self.state.retain(|key, _| *key < from || *key >= to),
            }
        }
        Ok(outcomes)
    }

    /// As after a restart.
    pub fn reload(&mut self) {
        self.machine = Machine::load(&self.state).expect("the state loads");
    }
}

/// Volume of a node.
pub fn volume(node: u8) -> VolumeId {
    VolumeId([node + 1; 16])
}

/// Second volume of a node, once it was added.
pub fn spare(node: u8) -> VolumeId {
    VolumeId([node + 101; 16])
}

/// 4+2, any one site; at least any one node.
pub fn profile() -> Profile {
    Profile {
        name: "standard".parse().expect("a valid name"),
        version: 1,
        code: Code::new(4, 2).expect("a valid code"),
        contract: Contract::one(Failures { sites: 1, nodes: 0 }),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: ReadPreference::OwnSite,
    }
}

/// Node `number` on site `number % 3`.
pub fn join(number: u8) -> JoinNode {
    JoinNode {
        name: format!("node-{number}").parse().expect("a valid name"),
        incarnation: Incarnation([number + 1; 16]),
        site: format!("site-{}", number % 3).parse().expect("a valid name"),
        address: format!("10.0.0.{number}:7000"),
        roles: Roles { storage: true, voter: true },
        volumes: vec![(volume(number), 1 << 40)],
        version: 1,
    }
}

/// The first command of a cluster.
pub fn init() -> Command {
    let default_profile = profile().name;
    Command::InitCluster { cluster: ClusterId([7; 16]), profiles: vec![profile()], default_profile }
}

/// Commands that form the test cluster.
pub fn cluster() -> Vec<Command> {
    let mut commands = vec![init()];
    commands.extend((0..NODES).map(|node| Command::JoinNode(join(node))));
    commands
}

/// A key by its text.
pub fn key(text: &str) -> ObjectKey {
    text.parse().expect("a valid key")
}

/// An instance id begun at `time`.
pub fn instance(time: u64, number: u64) -> InstanceId {
    InstanceId::new(WallMillis(time), number.into())
}

/// A stripe on all nodes.
pub fn stripe(stripe_bytes: u64, persisted: u32) -> StripeSeal {
    let placement = (0..NODES).map(volume).collect();
    StripeSeal { stripe_bytes, shard_root: Digest::of(b"root"), placement, persisted }
}

/// A seal of one whole stripe of `content`.
pub fn seal(name: &str, content: &str, id: InstanceId) -> Seal {
    let size_bytes = content.len() as u64;
    Seal {
        instance: id,
        key: key(name),
        size_bytes,
        digest: Digest::of(content.as_bytes()),
        profile: profile().name,
        profile_version: 1,
        code: profile().code,
        layout: LayoutVersion(7),
        stripes: vec![stripe(size_bytes, ALL)],
        media_type: "application/dicom".to_owned(),
        attributes: vec![Attribute { tag: 0x0010_0020, value: "ID 1".to_owned() }],
        strict: false,
        coordinator: "CN=gateway-1".to_owned(),
        reserved: Reserved::default(),
    }
}
