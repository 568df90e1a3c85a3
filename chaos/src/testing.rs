//! What tests of several judges are made of.

use std::collections::BTreeMap;

use pacsvault_core::{
    catalog::{Seal, SealedInstance, StripeSeal, command::Reserved},
    ids::{Digest, InstanceId, LayoutVersion, LogIndex, ObjectKey, Term, VersionNumber, VolumeId, WallMillis},
    layout::{Contract, Failures, profile::Code},
};

/// The key of all records.
pub(crate) fn name() -> ObjectKey {
    "t/1.2/3/4".parse().expect("a key")
}

/// An instance that began at 1 s.
pub(crate) fn instance(number: u8) -> InstanceId {
    InstanceId::new(WallMillis(1_000), u128::from(number))
}

/// A volume.
pub(crate) fn volume(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

/// A version of one stripe of 2+1 on the first three volumes, sealed by entry 7.
pub(crate) fn record(number: u8, version: u32, content: &[u8]) -> SealedInstance {
    let stripe = StripeSeal {
        stripe_bytes: content.len() as u64,
        shard_root: Digest::of(content),
        placement: (0..3).map(volume).collect(),
        persisted: 0b111,
    };
    let seal = Seal {
        instance: instance(number),
        key: name(),
        size_bytes: content.len() as u64,
        digest: Digest::of(content),
        profile: "standard".parse().expect("a name"),
        profile_version: 1,
        code: Code::new(2, 1).expect("a code"),
        layout: LayoutVersion(1),
        stripes: vec![stripe],
        media_type: String::new(),
        attributes: Vec::new(),
        strict: false,
        coordinator: String::new(),
        reserved: Reserved::default(),
    };
    SealedInstance {
        seal,
        version: VersionNumber(version),
        contract: Contract::one(Failures { sites: 1, nodes: 0 }),
        survives: Vec::new(),
        degraded: false,
        term: Term(1),
        index: LogIndex(7),
        time: WallMillis(1),
        deleted: None,
        moved: BTreeMap::new(),
    }
}
