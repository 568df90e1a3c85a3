//! When nodes and volumes may leave: drains, and the removal of nodes.
//!
//! **Invariants.** From version 2 on, a node is removed only when no live stripe names a volume of it, when every profile
//! in use that can be kept with it can be kept without it, and when another voter stays. A drain is begun only when the
//! cluster could do without what is drained. What is drained already is not counted on.

use std::collections::BTreeSet;

use super::command::{DrainTarget, Outcome, Rejection};
use super::groups::read_sums;
use super::machine::{Machine, Stop};
use super::members::{store_node, store_volume};
use super::view::{Overlay, View};
use super::{Error, keys};
use crate::health::Sums;
use crate::ids::{ProfileName, VolumeId};
use crate::layout::plan::{Topology, check_possible};
use crate::layout::{Layout, Node, NodeState, Profile, Volume, VolumeState};

/// Rows read at once.
const ROWS: usize = 1_024;

impl Machine {
    pub(super) fn set_drain(
        &mut self,
        overlay: &mut Overlay<'_>,
        target: DrainTarget,
        draining: bool,
    ) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let present = is_draining(&layout, target)?;
        if present == draining {
            return Ok(Outcome::Done);
        }
        if draining {
            check_without(&layout, layout.profiles.values(), |volume| match target {
                DrainTarget::Node(node) => volume.node == node,
                DrainTarget::Volume(id) => volume.id == id,
            })?;
        }
        let mut changed = Layout::clone(&layout);
        match target {
            DrainTarget::Node(id) => {
                if let Some(node) = layout.nodes.get(&id) {
                    store_node(overlay, &mut changed, Node { draining, ..node.clone() });
                }
            }
            DrainTarget::Volume(id) => {
                if let Some(volume) = layout.volumes.get(&id) {
                    store_volume(overlay, &mut changed, Volume { draining, ..volume.clone() });
                }
            }
        }
        self.publish(changed);
        Ok(Outcome::Done)
    }

    /// Refuses to remove a node that something still depends on.
    pub(super) fn check_removal(
        &mut self,
        overlay: &mut Overlay<'_>,
        layout: &Layout,
        node: &Node,
    ) -> Result<(), Stop> {
        // Earlier commands of this entry count.
        self.settle_sums(overlay)?;
        let mut stripes = 0;
        for volume in layout.volumes.values().filter(|volume| volume.node == node.id) {
            stripes += held_on(overlay, volume.id)?.stripes;
        }
        if stripes > 0 {
            return Err(Rejection::NotAllowed(format!(
                "node {} still holds {stripes} shards of what is stored: drain it, or wait until they are repaired \
                 elsewhere",
                node.id
            ))
            .into());
        }
        let used = profiles_in_use(overlay, layout)?;
        let used = layout.profiles.values().filter(|profile| used.contains(&profile.name));
        check_without(layout, used, |volume| volume.node == node.id)?;
        let mut others = layout.nodes.values().filter(|other| other.id != node.id && other.roles.voter);
        if node.roles.voter && others.all(|other| other.state == NodeState::Removed) {
            return Err(Rejection::NotAllowed(format!("node {} is the last that may vote", node.id)).into());
        }
        crate::sometimes!("recovery: emptied node removed");
        Ok(())
    }
}

fn is_draining(layout: &Layout, target: DrainTarget) -> Result<bool, Rejection> {
    match target {
        DrainTarget::Node(id) => match layout.nodes.get(&id) {
            None => Err(Rejection::Unknown(format!("node {id}"))),
            Some(node) if node.state == NodeState::Removed => {
                Err(Rejection::NotAllowed(format!("node {id} was removed; it holds nothing")))
            }
            Some(node) => Ok(node.draining),
        },
        DrainTarget::Volume(id) => match layout.volumes.get(&id) {
            None => Err(Rejection::Unknown(format!("volume {id}"))),
            Some(volume) if volume.state == VolumeState::Fenced => Err(Rejection::NotAllowed(format!(
                "volume {id} is fenced; what was on it is repaired elsewhere without being told"
            ))),
            Some(volume) => Ok(volume.draining),
        },
    }
}

/// Refuses, with the arithmetic, when a profile that can be kept with these volumes cannot be kept without them.
fn check_without<'p>(
    layout: &Layout,
    profiles: impl Iterator<Item = &'p Profile>,
    leaves: impl Fn(&Volume) -> bool,
) -> Result<(), Rejection> {
    let stays = |volume: &Volume| !layout.draining(volume.id);
    let present = Topology::of_volumes(layout, |volume| stays(volume) || leaves(volume));
    let left = Topology::of_volumes(layout, |volume| stays(volume) && !leaves(volume));
    for profile in profiles.filter(|profile| check_possible(profile, &present).is_ok()) {
        check_possible(profile, &left)
            .map_err(|why| Rejection::Impossible(format!("without what is to leave, {why}")))?;
    }
    Ok(())
}

/// Shards of live records that belong on `volume`, durable there or not.
fn held_on(view: &dyn View, volume: VolumeId) -> Result<Sums, Error> {
    let mut held = Sums::default();
    let (mut from, to) = keys::volume_placements(volume);
    loop {
        let rows = view.scan(&from, &to, ROWS)?;
        let end = rows.len() < ROWS;
        for (key, _) in rows {
            let (first, last) = keys::sums_of(keys::parse_volume_placement(&key)?);
            for (_, value) in view.scan(&first, &last, ROWS)? {
                let sums = read_sums(&value)?;
                held.stripes += sums.stripes;
                held.content_bytes += sums.content_bytes;
                held.shard_bytes += sums.shard_bytes;
            }
            from = keys::after(key);
        }
        if end {
            return Ok(held);
        }
    }
}

/// The default profile, and every profile that something is stored by.
fn profiles_in_use(view: &dyn View, layout: &Layout) -> Result<BTreeSet<ProfileName>, Error> {
    let mut used = BTreeSet::from([layout.default_profile.clone()]);
    let (mut from, to) = keys::all_sums();
    loop {
        let rows = view.scan(&from, &to, ROWS)?;
        let end = rows.len() < ROWS;
        for (key, _) in rows {
            let (_, profile, _) = keys::parse_sums(&key)?;
            used.insert(profile);
            from = keys::after(key);
        }
        if end {
            return Ok(used);
        }
    }
}
