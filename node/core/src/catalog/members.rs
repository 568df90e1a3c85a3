//! Commands that change the layout: cluster, nodes, volumes, profiles.
//!
//! **Invariants.** The layout's version grows with each change and only then. A node id, once given, means one life of
//! one node for ever; a removed node and a fenced volume never return. A node never changes its site, for that would
//! falsify what receipts say. A profile that the present topology cannot keep is refused with the arithmetic.

use super::command::{JoinNode, Outcome, Rejection};
use super::keys;
use super::machine::{Machine, Stop, empty_layout};
use super::view::Overlay;
use super::wire::frame;
use super::wire_words::{NodeMessage, ProfileMessage, VolumeMessage};
use crate::ids::{ClusterId, NodeId, ProfileName, VolumeId};
use crate::layout::plan::{Topology, check_possible};
use crate::layout::survival::covers;
use crate::layout::{Layout, Node, NodeState, Profile, Volume, VolumeState};

/// Longest address: a DNS name of 253 bytes, a colon and five digits.
const ADDRESS_BYTES_MAX: usize = 259;

impl Machine {
    pub(super) fn init_cluster(
        &mut self,
        overlay: &mut Overlay<'_>,
        cluster: ClusterId,
        profiles: &[Profile],
        default_profile: &ProfileName,
    ) -> Result<Outcome, Stop> {
        if let Some(layout) = &self.layout {
            return Err(Rejection::ClusterState(format!("already initialised as {}", layout.cluster)).into());
        }
        let mut layout = empty_layout(cluster, default_profile.clone(), 0);
        for profile in profiles {
            check_floor(profile)?;
            let first = Profile { version: 1, ..profile.clone() };
            if layout.profiles.insert(profile.name.clone(), first).is_some() {
                return Err(Rejection::NotAllowed(format!("profile {} is given twice", profile.name)).into());
            }
        }
        if !layout.profiles.contains_key(default_profile) {
            return Err(Rejection::Unknown(format!("default profile {default_profile}")).into());
        }
        for profile in layout.profiles.values() {
            self.store_profile(overlay, profile);
        }
        overlay.note_fact("cluster", &cluster.to_string());
        overlay.note_fact("default profile", default_profile.as_str());
        self.publish(layout);
        Ok(Outcome::Done)
    }

    pub(super) fn join_node(&mut self, overlay: &mut Overlay<'_>, join: &JoinNode) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        if join.address.is_empty() || join.address.len() > ADDRESS_BYTES_MAX {
            return Err(Rejection::NotAllowed(format!("node {} must give an address host:port", join.name)).into());
        }
        if !join.roles.storage && !join.volumes.is_empty() {
            return Err(Rejection::NotAllowed(format!(
                "node {} has volumes but not the storage role: give it the role, or no volumes",
                join.name
            ))
            .into());
        }
        if layout.format >= 2 && join.version < layout.format {
            return Err(Rejection::NotAllowed(format!(
                "node {} understands version {} only, and version {} is in force: upgrade its binary",
                join.name, join.version, layout.format
            ))
            .into());
        }
        let known = known_member(&layout, join)?;
        for (volume, _) in &join.volumes {
            check_owner(&layout, *volume, known.map(|node| node.id))?;
        }
        let id = match known {
            Some(node) => {
                crate::sometimes!("recovery: known node introduced itself again");
                node.id
            }
            None => self.next_node(),
        };
        let node = Node {
            id,
            name: join.name.clone(),
            site: join.site.clone(),
            address: join.address.clone(),
            roles: join.roles,
            state: known.map_or(NodeState::Up, |node| node.state),
            incarnation: join.incarnation,
            version: join.version,
            draining: known.is_some_and(|node| node.draining),
        };
        let mut changed = Layout::clone(&layout);
        store_node(overlay, &mut changed, node);
        for (volume, capacity_bytes) in &join.volumes {
            store_capacity(overlay, &mut changed, id, *volume, *capacity_bytes);
        }
        if changed != *layout {
            self.publish(changed);
        }
        Ok(Outcome::Joined(id))
    }

    pub(super) fn set_node_state(
        &mut self,
        overlay: &mut Overlay<'_>,
        node: NodeId,
        state: NodeState,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let present = layout.nodes.get(&node).ok_or_else(|| Rejection::Unknown(format!("node {node}")))?;
        if present.state == state {
            return Ok(Outcome::Done);
        }
        if present.state == NodeState::Removed {
            return Err(Rejection::NotAllowed(format!(
                "node {node} was removed and never returns; format its volumes and let it join as a new node"
            ))
            .into());
        }
        if layout.format >= 2 && state == NodeState::Removed {
            self.check_removal(overlay, &layout, present)?;
        }
        let mut changed = Layout::clone(&layout);
        store_node(overlay, &mut changed, Node { state, ..present.clone() });
        self.publish(changed);
        Ok(Outcome::Done)
    }

    pub(super) fn add_volume(
        &mut self,
        overlay: &mut Overlay<'_>,
        node: NodeId,
        volume: VolumeId,
        capacity_bytes: u64,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let owner = layout.nodes.get(&node).filter(|owner| owner.state != NodeState::Removed);
        let owner = owner.ok_or_else(|| Rejection::Unknown(format!("node {node}")))?;
        if !owner.roles.storage {
            return Err(Rejection::NotAllowed(format!("node {node} does not have the storage role")).into());
        }
        check_owner(&layout, volume, Some(node))?;
        let mut changed = Layout::clone(&layout);
        store_capacity(overlay, &mut changed, node, volume, capacity_bytes);
        if changed != *layout {
            self.publish(changed);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_volume_state(
        &mut self,
        overlay: &mut Overlay<'_>,
        volume: VolumeId,
        state: VolumeState,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let present = layout.volumes.get(&volume).ok_or_else(|| Rejection::Unknown(format!("volume {volume}")))?;
        if present.state == state {
            return Ok(Outcome::Done);
        }
        if present.state == VolumeState::Fenced {
            return Err(Rejection::NotAllowed(format!(
                "volume {volume} is fenced, which is final; format its disk as a new volume"
            ))
            .into());
        }
        let mut changed = Layout::clone(&layout);
        store_volume(overlay, &mut changed, Volume { state, ..present.clone() });
        self.publish(changed);
        Ok(Outcome::Done)
    }

    pub(super) fn set_profile(
        &mut self,
        overlay: &mut Overlay<'_>,
        profile: &Profile,
        make_default: bool,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        check_floor(profile)?;
        // Before the first storage node there is nothing to check against; a seal is then held to the floor.
        if layout.volumes.keys().any(|volume| member_volume(&layout, *volume)) {
            check_possible(profile, &Topology::staying(&layout))
                .map_err(|why| Rejection::Impossible(why.to_string()))?;
        }
        let present = layout.profiles.get(&profile.name);
        let next = Profile { version: present.map_or(0, |one| one.version) + 1, ..profile.clone() };
        let mut changed = Layout::clone(&layout);
        let same = present.is_some_and(|one| Profile { version: next.version, ..one.clone() } == next);
        if !same {
            self.store_profile(overlay, &next);
            changed.profiles.insert(next.name.clone(), next);
        }
        if make_default {
            changed.default_profile = profile.name.clone();
        }
        if changed != *layout {
            // The default's name lives in the meta record, which the digest does not cover: journal it here.
            overlay.note_fact("default profile", changed.default_profile.as_str());
            self.publish(changed);
        }
        Ok(Outcome::Done)
    }

    fn store_profile(&mut self, overlay: &mut Overlay<'_>, profile: &Profile) {
        overlay.put(keys::profile(&profile.name, profile.version), frame(&ProfileMessage::from(profile)));
        self.profiles.insert((profile.name.clone(), profile.version), profile.clone());
    }
}

/// The node that `join` already is, if any. Refuses a name held by other data, and another site.
fn known_member<'a>(layout: &'a Layout, join: &JoinNode) -> Result<Option<&'a Node>, Rejection> {
    let mut same_name = layout.nodes.values().filter(|node| node.name == join.name);
    let same_life = layout.nodes.values().find(|node| node.incarnation == join.incarnation);
    if let Some(node) = same_life {
        if node.name != join.name {
            return Err(Rejection::NotAllowed(format!(
                "the data directory of node {} belongs to node {} ({}); two nodes must not share one",
                join.name, node.id, node.name
            )));
        }
        if node.state == NodeState::Removed {
            return Err(Rejection::NotAllowed(format!(
                "node {} was removed and its id is retired; format its data directory and join as a new node",
                node.id
            )));
        }
        if node.site != join.site {
            return Err(Rejection::NotAllowed(format!(
                "node {} joined on site {} and cannot move to site {}; remove it and join as a new node",
                node.id, node.site, join.site
            )));
        }
        return Ok(Some(node));
    }
    match same_name.find(|node| node.state != NodeState::Removed) {
        Some(holder) => Err(Rejection::NameTaken { name: join.name.clone(), node: holder.id }),
        None => Ok(None),
    }
}

fn check_owner(layout: &Layout, volume: VolumeId, owner: Option<NodeId>) -> Result<(), Rejection> {
    match layout.volumes.get(&volume) {
        Some(known) if Some(known.node) != owner => Err(Rejection::NotAllowed(format!(
            "volume {volume} already belongs to node {}; a disk that changes nodes must be formatted first",
            known.node
        ))),
        _ => Ok(()),
    }
}

/// A floor above the contract would refuse writes that keep the whole promise.
fn check_floor(profile: &Profile) -> Result<(), Rejection> {
    if covers(profile.contract.failures(), &profile.floor) {
        Ok(())
    } else {
        Err(Rejection::Impossible(format!(
            "profile {}: its floor ({}) asks for more than its contract ({})",
            profile.name, profile.floor, profile.contract
        )))
    }
}

fn member_volume(layout: &Layout, volume: VolumeId) -> bool {
    layout.node_of(volume).is_some_and(|node| node.state != NodeState::Removed)
}

pub(super) fn store_node(overlay: &mut Overlay<'_>, layout: &mut Layout, node: Node) {
    if layout.nodes.get(&node.id) != Some(&node) {
        overlay.put(keys::node(node.id), frame(&NodeMessage::from(&node)));
        layout.nodes.insert(node.id, node);
    }
}

pub(super) fn store_volume(overlay: &mut Overlay<'_>, layout: &mut Layout, volume: Volume) {
    if layout.volumes.get(&volume.id) != Some(&volume) {
        overlay.put(keys::volume(volume.id), frame(&VolumeMessage::from(&volume)));
        layout.volumes.insert(volume.id, volume);
    }
}

/// A known volume keeps its state and gets the capacity; a new one begins `Up`.
fn store_capacity(overlay: &mut Overlay<'_>, layout: &mut Layout, node: NodeId, id: VolumeId, capacity_bytes: u64) {
    let known = layout.volumes.get(&id);
    let state = known.map_or(VolumeState::Up, |known| known.state);
    let draining = known.is_some_and(|known| known.draining);
    store_volume(overlay, layout, Volume { id, node, capacity_bytes, state, draining });
}
