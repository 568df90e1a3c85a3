//! Nodes, volumes and sites as people name them: by name, id, or the first digits of an id.
//!
//! **Invariants.** A name stands for exactly one thing or is refused with what there is; nothing is guessed.

use pacsvault_core::{
    catalog::command::DrainTarget,
    ids::{NodeId, SiteName, VolumeId},
    layout::{Layout, Node, NodeState, Volume},
};

use super::{args::Target, failure::Failure};

/// Shortest beginning of a volume's id that is taken for it.
const PREFIX_DIGITS_MIN: usize = 4;

/// A node that was not removed, by name or id.
pub fn node<'a>(layout: &'a Layout, text: &str) -> Result<&'a Node, Failure> {
    let present = || layout.nodes.values().filter(|node| node.state != NodeState::Removed);
    // A node may be named "7": names come first.
    let by_name = present().find(|node| node.name.as_str() == text);
    let wanted = text.parse().ok().map(NodeId);
    let found = by_name.or_else(|| present().find(|node| Some(node.id) == wanted));
    found.ok_or_else(|| {
        let names: Vec<&str> = present().map(|node| node.name.as_str()).collect();
        Failure::usage(format!("{text} is not a node of this cluster")).hint(format!("nodes: {}", names.join(", ")))
    })
}

/// A volume by its id or the first digits of it.
pub fn volume<'a>(layout: &'a Layout, text: &str) -> Result<&'a Volume, Failure> {
    let wanted = text.to_ascii_lowercase();
    let like = wanted.len() >= PREFIX_DIGITS_MIN && wanted.chars().all(|digit| digit.is_ascii_hexdigit());
    let matching: Vec<&Volume> =
        layout.volumes.values().filter(|volume| like && volume.id.to_string().starts_with(&wanted)).collect();
    match matching.as_slice() {
        [only] => Ok(only),
        [] => Err(Failure::usage(format!("{text} is not a volume of this cluster"))
            .hint("`pacsvault status` lists the volumes; give an id or at least its first four digits")),
        many => {
            let ids: Vec<String> = many.iter().map(|volume| volume.id.to_string()).collect();
            let text = format!("{text} may mean {} volumes", many.len());
            Err(Failure::usage(text).hint(format!("give more digits of {}", ids.join(" or "))))
        }
    }
}

/// A site that has nodes.
pub fn site(layout: &Layout, text: &str) -> Result<SiteName, Failure> {
    let mut sites: Vec<&SiteName> =
        layout.nodes.values().filter(|node| node.state != NodeState::Removed).map(|node| &node.site).collect();
    sites.sort_unstable();
    sites.dedup();
    let found = sites.iter().find(|site| site.as_str() == text).copied().cloned();
    found.ok_or_else(|| {
        let names: Vec<&str> = sites.iter().map(|site| site.as_str()).collect();
        Failure::usage(format!("{text} is not a site of this cluster")).hint(format!("sites: {}", names.join(", ")))
    })
}

/// What is to be emptied, and how to call it.
pub fn target(layout: &Layout, target: &Target) -> Result<(DrainTarget, String), Failure> {
    match (&target.node, &target.volume) {
        (_, Some(text)) => {
            let volume = volume(layout, text)?;
            Ok((DrainTarget::Volume(volume.id), format!("volume {}", volume_name(layout, volume.id))))
        }
        (Some(text), None) => {
            let node = node(layout, text)?;
            Ok((DrainTarget::Node(node.id), format!("node {}", node.name)))
        }
        (None, None) => Err(Failure::usage("name a node, or a volume with --volume")),
    }
}

/// A volume for people: the first digits of its id, and where it is.
pub fn volume_name(layout: &Layout, volume: VolumeId) -> String {
    let id = volume.to_string();
    let short = &id[..12];
    match layout.node_of(volume) {
        Some(node) => format!("{short} on {}", node.name),
        None => short.to_owned(),
    }
}

/// A node's name, or its id when it is unknown.
pub fn node_name(layout: &Layout, node: NodeId) -> String {
    layout.nodes.get(&node).map_or_else(|| node.to_string(), |known| known.name.to_string())
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use pacsvault_core::{
        ids::{ClusterId, Incarnation, LayoutVersion},
        layout::{Contract, Failures, Profile, Roles, VolumeState, profile::Code, profile::ReadPreference},
    };

    use super::*;

    /// Two sites, three nodes called `7`, `east-1`, `west-1` with ids 1 to 3, four volumes; node `gone` was removed.
    pub fn layout() -> Layout {
        let node = |id: u64, name: &str, site: &str, state: NodeState| Node {
            id: NodeId(id),
            name: name.parse().expect("a name"),
            site: site.parse().expect("a name"),
            address: format!("10.0.0.{id}:7400"),
            roles: Roles { storage: true, voter: true },
            state,
            incarnation: Incarnation([1; 16]),
            version: 2,
            draining: false,
        };
        let nodes = [
            node(1, "7", "east", NodeState::Up),
            node(2, "east-1", "east", NodeState::Suspect),
            node(3, "west-1", "west", NodeState::Up),
            node(9, "gone", "north", NodeState::Removed),
        ];
        let volume = |first: u8, last: u8, node: u64| {
            let mut id = [0xab; 16];
            (id[0], id[15]) = (first, last);
            let state = VolumeState::Up;
            Volume { id: VolumeId(id), node: NodeId(node), capacity_bytes: 100 << 20, state, draining: false }
        };
        let volumes = [volume(0x11, 1, 1), volume(0x22, 1, 2), volume(0x33, 1, 3), volume(0x33, 2, 3)];
        let standard = Profile {
            name: "standard".parse().expect("a name"),
            version: 1,
            code: Code::new(2, 1).expect("a code"),
            contract: Contract::one(Failures { sites: 0, nodes: 1 }),
            floor: Contract::one(Failures { sites: 0, nodes: 1 }),
            read_preference: ReadPreference::OwnSite,
        };
        Layout {
            cluster: ClusterId([5; 16]),
            version: LayoutVersion(44),
            format: 2,
            nodes: nodes.into_iter().map(|node| (node.id, node)).collect(),
            volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
            default_profile: standard.name.clone(),
            profiles: BTreeMap::from([(standard.name.clone(), standard)]),
        }
    }

    #[test]
    fn nodes_go_by_name_before_id_and_removed_ones_by_neither() {
        let layout = layout();
        assert_eq!(node(&layout, "east-1").expect("found").id, NodeId(2));
        assert_eq!(node(&layout, "3").expect("found").id, NodeId(3));
        assert_eq!(node(&layout, "7").expect("found").id, NodeId(1));
        for text in ["gone", "9", "", "east"] {
            let failure = node(&layout, text).expect_err("unknown");
            assert!(failure.hint.expect("a hint").contains("east-1"), "{text}");
        }
    }

    #[test]
    fn a_volume_is_known_by_its_first_digits_when_they_are_its_own() {
        let layout = layout();
        assert_eq!(volume(&layout, "22AB").expect("found").node, NodeId(2));
        let whole = layout.volumes.keys().last().expect("some").to_string();
        assert_eq!(volume(&layout, &whole).expect("found").id.to_string(), whole);
        assert!(volume(&layout, "33ab").expect_err("two").message.contains("2 volumes"));
        for text in ["22", "", "xyzw", "44ab"] {
            assert!(volume(&layout, text).is_err(), "{text}");
        }
    }

    #[test]
    fn sites_without_nodes_are_unknown() {
        let layout = layout();
        assert_eq!(site(&layout, "west").expect("found").as_str(), "west");
        assert_eq!(site(&layout, "north").expect_err("nobody there").hint.as_deref(), Some("sites: east, west"));
    }
}
