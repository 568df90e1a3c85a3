//! Judges profiles on a layout, for operators. The judge is [`pacsvault_core::layout::plan`], as for every change of the
//! layout; this room only puts its word on the wire.

use pacsvault_core::layout::{Layout, Plan, Profile, Topology};
use pacsvault_proto::v1;

use crate::convert;

/// One judgement per profile; of all profiles of the layout when none are given.
pub fn judge(layout: &Layout, profiles: &[Profile]) -> v1::PlanReply {
    let topology = Topology::of(layout);
    let known: Vec<&Profile> =
        if profiles.is_empty() { layout.profiles.values().collect() } else { profiles.iter().collect() };
    v1::PlanReply { profiles: known.into_iter().map(|profile| judge_one(&topology, profile)).collect() }
}

fn judge_one(topology: &Topology, profile: &Profile) -> v1::ProfilePlan {
    let (holds, explanation) = match Plan::of(profile, topology) {
        Ok(plan) => (true, plan.to_string()),
        Err(impossible) => (false, impossible.to_string()),
    };
    v1::ProfilePlan { profile: Some(convert::profile_message(profile)), holds, explanation }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pacsvault_core::{
        ids::{ClusterId, Incarnation, LayoutVersion, NodeId, VolumeId},
        layout::{
            Contract, Failures, Node, NodeState, Roles, Volume, VolumeState,
            plan::check_possible,
            profile::{Code, ReadPreference},
        },
    };

    use super::*;

    fn profile(name: &str, data: u8, parity: u8, contract: Failures) -> Profile {
        Profile {
            name: name.parse().expect("a name"),
            version: 1,
            code: Code::new(data, parity).expect("a code"),
            contract: Contract::one(contract),
            floor: Contract::one(Failures { sites: 0, nodes: 1 }),
            read_preference: ReadPreference::OwnSite,
        }
    }

    /// Three sites of two nodes, one node of them down just now.
    fn layout() -> Layout {
        let node = |number: u8| Node {
            id: NodeId(number.into()),
            name: format!("node-{number}").parse().expect("a name"),
            site: format!("site-{}", number % 3).parse().expect("a name"),
            address: format!("10.0.0.{number}:7400"),
            roles: Roles { storage: true, voter: true },
            state: if number == 1 { NodeState::Down } else { NodeState::Up },
            incarnation: Incarnation([number; 16]),
            version: 1,
            draining: false,
        };
        let volume = |number: u8| Volume {
            id: VolumeId([number; 16]),
            node: NodeId(number.into()),
            capacity_bytes: 1 << 40,
            state: VolumeState::Up,
            draining: false,
        };
        let standard = profile("standard", 4, 2, Failures { sites: 1, nodes: 0 });
        Layout {
            cluster: ClusterId([1; 16]),
            version: LayoutVersion(1),
            format: 2,
            nodes: (1..=6).map(node).map(|node| (node.id, node)).collect(),
            volumes: (1..=6).map(volume).map(|volume| (volume.id, volume)).collect(),
            default_profile: standard.name.clone(),
            profiles: BTreeMap::from([(standard.name.clone(), standard)]),
        }
    }

    #[test]
    fn a_profile_is_judged_as_the_catalog_will_judge_it() {
        let layout = layout();
        let asked = [
            profile("standard", 4, 2, Failures { sites: 1, nodes: 0 }),
            profile("greedy", 4, 2, Failures { sites: 2, nodes: 0 }),
        ];
        for judged in judge(&layout, &asked).profiles.iter().zip(&asked) {
            let verdict = check_possible(judged.1, &Topology::of(&layout));
            assert_eq!(judged.0.holds, verdict.is_ok(), "{}", judged.1.name);
            assert!(judged.0.explanation.contains(judged.1.name.as_str()), "{}", judged.0.explanation);
        }
        let own = judge(&layout, &[]).profiles;
        assert_eq!(own.iter().map(|plan| plan.holds).collect::<Vec<_>>(), [true]);
    }
}
