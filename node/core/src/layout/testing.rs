//! Layouts for the tests of this room and of those that judge by it. Volumes and nodes are numbered from 0, nodes site by site.

use std::collections::BTreeMap;

use super::{Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState};
use crate::ids::{ClusterId, Incarnation, LayoutVersion, NodeId, SiteName, VolumeId};
use crate::layout::profile::ReadPreference;

/// The volume with this number; volumes of node `n` are `n * per_node` and following.
pub(crate) fn volume(number: u64) -> VolumeId {
    VolumeId(u128::from(number).to_be_bytes())
}

/// The site with this number.
pub(crate) fn site(number: usize) -> SiteName {
    format!("site-{number}").parse().expect("a site name")
}

/// All up, sites of these many nodes, with equal volumes.
pub(crate) fn cluster(sites: &[usize], volumes_per_node: u64) -> Layout {
    let mut layout = Layout {
        cluster: ClusterId([7; 16]),
        version: LayoutVersion(1),
        format: 2,
        nodes: BTreeMap::new(),
        volumes: BTreeMap::new(),
        profiles: BTreeMap::new(),
        default_profile: "standard".parse().expect("a profile name"),
    };
    let by_site = sites.iter().enumerate().flat_map(|(at, &nodes)| std::iter::repeat_n(at, nodes));
    for (number, at) in (0_u64..).zip(by_site) {
        let id = NodeId(number);
        let node = Node {
            id,
            name: format!("node-{number}").parse().expect("a node name"),
            site: site(at),
            address: format!("node-{number}:7000"),
            roles: Roles { storage: true, voter: true },
            state: NodeState::Up,
            incarnation: Incarnation([0; 16]),
            version: 1,
            draining: false,
        };
        layout.nodes.insert(id, node);
        for id in (number * volumes_per_node..(number + 1) * volumes_per_node).map(volume) {
            let state = VolumeState::Up;
            layout
                .volumes
                .insert(id, Volume { id, node: NodeId(number), capacity_bytes: 1 << 40, state, draining: false });
        }
    }
    layout
}

pub(crate) fn fence(layout: &mut Layout, number: u64) {
    layout.volumes.get_mut(&volume(number)).expect("a known volume").state = VolumeState::Fenced;
}

pub(crate) fn take_down(layout: &mut Layout, number: u64) {
    layout.nodes.get_mut(&NodeId(number)).expect("a known node").state = NodeState::Down;
}

/// A profile whose floor accepts anything readable.
pub(crate) fn profile(code: &str, contract: &str) -> Profile {
    Profile {
        name: "tested".parse().expect("a profile name"),
        version: 1,
        code: code.parse().expect("a code"),
        contract: contract.parse().expect("a contract"),
        floor: Contract::one(Failures { sites: 0, nodes: 0 }),
        read_preference: ReadPreference::OwnSite,
    }
}
