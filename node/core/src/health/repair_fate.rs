//! What became of each shard of a stripe, and how long one waits before doing something about it.
//!
//! **Invariants.** A shard is [`Fate::Here`], [`Fate::Leaving`] or [`Fate::Suspected`] exactly when it is persisted and
//! its volume counts. Silence that may be an outage of a whole site is never taken for the death of its nodes before the
//! log calls them lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::repair::Situation;
use super::{StripeState, Sums};
use crate::ids::{NodeId, ProfileName, SiteName, VolumeId};
use crate::layout::{NodeState, VolumeState};

/// A volume gets nothing while less than this many shards of the size in question have room …
const SHARDS_FREE_MIN: u64 = 2;
/// … or when it is fuller than this, in percent: repair must not be what fills a disk.
const USED_PERCENT_MAX: u128 = 95;

/// What became of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Persisted, on a volume that counts.
    Here,
    /// As `Here`, but an operator wants its volume empty.
    Leaving,
    /// As `Here`, but its node, alone of its site, has been silent for long enough to worry.
    Suspected,
    /// Not persisted, while its volume can take it: made again where it is.
    Again,
    /// Lost for good.
    Gone,
    /// As good as lost, though it may return.
    Lost,
    /// Its node has been away for longer than one waits; it may return.
    Overdue,
    /// Its return is waited for.
    Waits(Wait),
}

/// For what one waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// For the site of this node, which is away as a whole.
    Site(NodeId),
    /// For this node, which is down.
    Node(NodeId),
    /// Until this node is heard again or is down.
    Suspect(NodeId),
}

impl Fate {
    /// True when the shard can be read now.
    pub(super) fn present(self) -> bool {
        matches!(self, Self::Here | Self::Leaving | Self::Suspected)
    }

    /// True when the shard, if it was persisted, may be read again one day.
    pub(super) fn may_return(self) -> bool {
        matches!(self, Self::Lost | Self::Overdue | Self::Waits(Wait::Site(_) | Wait::Node(_)))
    }
}

/// Why something known is not done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// Fewer than `k` shards are present; with these nodes enough may return.
    Unreadable(BTreeSet<NodeId>),
    /// A whole site is away.
    Site(SiteName),
    /// A node is down.
    Node(NodeId),
    /// A node is suspect.
    Suspect(NodeId),
    /// No other place is better.
    Nowhere,
    /// The contract cannot hold on this layout.
    Below(ProfileName),
}

/// What the layout, the silence of nodes and the room of volumes say of each volume.
pub(super) struct Facts<'a> {
    pub(super) situation: Situation<'a>,
    /// Sites that are away as a whole.
    away: BTreeSet<&'a SiteName>,
    /// Sites none of whose storage nodes is up.
    mute: BTreeSet<&'a SiteName>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(situation: &Situation<'a>) -> Self {
        let mut up: BTreeMap<&SiteName, bool> = BTreeMap::new();
        let nodes = situation.layout.nodes.values();
        for node in nodes.filter(|node| node.roles.storage && node.state != NodeState::Removed) {
            *up.entry(&node.site).or_default() |= node.state == NodeState::Up;
        }
        let mute: BTreeSet<&SiteName> = up.into_iter().filter(|(_, up)| !up).map(|(site, _)| site).collect();
        let away = mute.iter().copied().filter(|site| situation.layout.site_away(site)).collect();
        Self { situation: *situation, away, mute }
    }

    /// What became of each shard, in shard order.
    pub(super) fn fates(&self, state: &StripeState) -> Vec<Fate> {
        let shard_bytes = state.code.shard_bytes(state.stripe_bytes);
        let bits = (0..32).map(|shard| state.persisted & (1_u32 << shard) != 0);
        state.volumes.iter().zip(bits).map(|(&volume, bit)| self.fate(volume, bit, shard_bytes)).collect()
    }

    /// What became of a shard on `volume`, persisted there or not.
    pub(super) fn fate(&self, volume: VolumeId, persisted: bool, shard_bytes: u64) -> Fate {
        let layout = self.situation.layout;
        let Some(known) = layout.volumes.get(&volume) else { return Fate::Gone };
        let Some(node) = layout.nodes.get(&known.node) else { return Fate::Gone };
        let draining = node.draining || known.draining;
        match (node.state, known.state) {
            (NodeState::Removed, _) | (_, VolumeState::Fenced) => return Fate::Gone,
            // A volume is away because its living node says so: that is a statement and not silence.
            (NodeState::Lost, _) | (_, VolumeState::Away) => return Fate::Lost,
            // The silence of a whole site says nothing of its nodes, emptied or not.
            (NodeState::Down, _) if self.away.contains(&node.site) => return Fate::Waits(Wait::Site(node.id)),
            // Who empties a node that alone is away does not expect it back.
            (NodeState::Down, _) if draining => return Fate::Lost,
            (NodeState::Down, _) if self.silent(node.id) >= self.situation.pace.repair_after => return Fate::Overdue,
            (NodeState::Down, _) => return Fate::Waits(Wait::Node(node.id)),
            (NodeState::Up | NodeState::Suspect, VolumeState::Up | VolumeState::ReadOnly) => {}
        }
        let suspect = node.state == NodeState::Suspect;
        match persisted {
            true if suspect && self.worrying(node.id, &node.site) => Fate::Suspected,
            true if draining && !suspect => Fate::Leaving,
            true => Fate::Here,
            false if suspect => Fate::Waits(Wait::Suspect(node.id)),
            false if layout.writable(volume) && self.has_room(volume, shard_bytes) => Fate::Again,
            false => Fate::Gone,
        }
    }

    fn silent(&self, node: NodeId) -> Duration {
        self.situation.silent.get(&node).copied().unwrap_or_default()
    }

    /// A site that falls silent as a whole is waited for until the log calls it down: its network may have blinked.
    fn worrying(&self, node: NodeId, site: &SiteName) -> bool {
        !self.mute.contains(site) && self.silent(node) >= self.situation.pace.urgent_after
    }

    /// True when `volume` can take a shard of this size without filling up.
    pub(super) fn has_room(&self, volume: VolumeId, shard_bytes: u64) -> bool {
        let Some(room) = self.situation.rooms.get(&volume) else { return true };
        let spare = room.free_bytes >= shard_bytes.saturating_mul(SHARDS_FREE_MIN);
        let full = u128::from(room.used_bytes) * 100 > u128::from(room.capacity_bytes) * USED_PERCENT_MAX;
        spare && !(full && room.capacity_bytes > 0)
    }

    /// Volumes without room for shards of this size.
    pub(super) fn crowded(&self, shard_bytes: u64) -> BTreeSet<VolumeId> {
        self.situation.rooms.keys().copied().filter(|volume| !self.has_room(*volume, shard_bytes)).collect()
    }

    /// The reason behind a wait.
    pub(super) fn hold(&self, wait: Wait) -> Hold {
        match wait {
            Wait::Site(node) => {
                self.situation.layout.nodes.get(&node).map_or(Hold::Node(node), |node| Hold::Site(node.site.clone()))
            }
            Wait::Node(node) => Hold::Node(node),
            Wait::Suspect(node) => Hold::Suspect(node),
        }
    }

    /// What is held back, why, and until when. `shard_bytes` of the sums are those of all shards concerned.
    pub(super) fn held_back(&self, hold: &Hold, sums: Sums) -> String {
        let what = format!("{} in {} stripes", bytes_text(sums.shard_bytes), sums.stripes);
        match hold {
            Hold::Site(_) | Hold::Node(_) => {
                format!("{}: {what} wait for its return {}", self.reason(hold), self.until(hold))
            }
            Hold::Suspect(_) => format!("{}: {what} wait until it is heard or called down", self.reason(hold)),
            Hold::Unreadable(_) => format!("{} stripes: {}", sums.stripes, self.reason(hold)),
            Hold::Nowhere | Hold::Below(_) => format!("{what}: {}", self.reason(hold)),
        }
    }

    /// The reason in words.
    pub(super) fn reason(&self, hold: &Hold) -> String {
        let layout = self.situation.layout;
        match hold {
            Hold::Site(site) => format!("site {site} is away"),
            Hold::Node(node) => format!("{} is down", self.named(*node)),
            Hold::Suspect(node) => format!("{} is suspect", self.named(*node)),
            Hold::Unreadable(nodes) => {
                let names: Vec<String> = nodes.iter().map(|node| self.named(*node)).collect();
                format!("too few shards are present to read; enough may return with {}", names.join(", "))
            }
            Hold::Nowhere => {
                let able = layout.volumes.keys().filter(|id| layout.writable(**id) && self.has_room(**id, 1)).count();
                let known = layout.volumes.len();
                format!("no place is safer than the present one: {able} of {known} volumes can take shards")
            }
            Hold::Below(profile) => {
                let contract = layout.profiles.get(profile).map(|known| known.contract.to_string()).unwrap_or_default();
                format!("the volumes that can take shards do not allow the contract of profile {profile}: {contract}")
            }
        }
    }

    /// How much longer one waits.
    pub(super) fn until(&self, hold: &Hold) -> String {
        let (layout, pace) = (self.situation.layout, self.situation.pace);
        let left = match hold {
            Hold::Site(site) => {
                let nodes = layout.nodes.values().filter(|node| node.site == *site && node.state == NodeState::Down);
                nodes.map(|node| pace.lost_after.saturating_sub(self.silent(node.id))).max()
            }
            Hold::Node(node) => Some(pace.repair_after.saturating_sub(self.silent(*node))),
            Hold::Unreadable(_) | Hold::Suspect(_) | Hold::Nowhere | Hold::Below(_) => None,
        };
        left.map(|left| format!("for another {}", duration_text(left))).unwrap_or_default()
    }

    fn named(&self, id: NodeId) -> String {
        let known = self.situation.layout.nodes.get(&id);
        known.map_or_else(|| format!("node {id}"), |node| format!("node {} of site {}", node.name, node.site))
    }
}

/// Bytes in the largest unit that leaves at least one, with a tenth.
fn bytes_text(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{}.{} {unit}", bytes >> shift, ((bytes >> (shift - 10)) & 1023) * 10 / 1024),
        None => format!("{bytes} B"),
    }
}

fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        60.. => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_read_well() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 39, "1.5 TiB")]
        {
            assert_eq!(bytes_text(bytes), text);
        }
        for (seconds, text) in [(0, "0 s"), (61, "1 min 1 s"), (86_340, "23 h 59 min")] {
            assert_eq!(duration_text(Duration::from_secs(seconds)), text);
        }
    }
}
