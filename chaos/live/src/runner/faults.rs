//! What each kind of fault does to nodes, and how it is lifted.
//!
//! **Invariants.** A node that lost its disk comes back only when everything it held is rebuilt elsewhere, and as another member.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context;
use pacsvault_core::{
    catalog::{Command, command::DrainTarget},
    ids::NodeId,
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::peer::{Reply, Request};

use super::{Active, Runner};
use crate::{driver::Inject, scenario::plan::Fault};

impl Runner<'_> {
    /// Begins a fault; tells details, if there are any.
    pub(super) fn strike(&mut self, active: &mut Active) -> anyhow::Result<Option<String>> {
        let down = self.down();
        match active.fault.clone() {
            Fault::Kill => {
                active.nodes.retain(|name| !down.contains(name));
                self.driver.kill(&active.nodes)?;
            }
            Fault::Pause => {
                let paused = self.active.iter().filter(|one| one.fault == Fault::Pause);
                let paused: BTreeSet<&String> = paused.flat_map(|one| &one.nodes).collect();
                active.nodes.retain(|name| !down.contains(name) && !paused.contains(name));
                self.driver.pause(&active.nodes)?;
            }
            Fault::Wipe => self.burn(active)?,
            Fault::Rot { seed, places } => return self.rot(active, seed, places).map(Some),
            Fault::Fill => active.nodes.iter().try_for_each(|name| self.driver.fill(name))?,
            Fault::SlowDisk { delay_ms } => self.inject(&active.nodes, |inject| inject.disk_delay_ms = delay_ms)?,
            Fault::FailSync => {
                active.old = Some(self.eyes.member(active.nodes.first().context("a node")?)?);
                self.inject(&active.nodes, |inject| inject.fail_sync = true)?;
            }
            Fault::Clock { step_ms } => self.inject(&active.nodes, |inject| inject.wall_offset_ms = step_ms)?,
            Fault::Add => {
                let wanted = active.sites.iter().next().map(String::as_str);
                let site = self.roomy(wanted).context("the network has no seat left")?;
                let name = self.driver.add_node(&site)?;
                active.nodes = vec![name.clone()];
                self.eyes.watch(self.driver.addresses());
                return Ok(Some(name));
            }
            Fault::Retire => {
                let id = self.eyes.member(active.nodes.first().context("a node")?)?;
                active.old = Some(id);
                let order = Command::SetDrain { target: DrainTarget::Node(id), draining: true };
                self.eyes.order(&order, self.limits.served)?;
            }
            Fault::Upgrade => active.nodes.iter().try_for_each(|name| self.driver.upgrade(name))?,
            Fault::Sever { .. } => {
                let other = active.fault.severed(&self.topology, &active.sites);
                return Ok(other.map(|site| format!("the other is site {site}")));
            }
            Fault::Isolate | Fault::Deafen | Fault::Mute | Fault::Split | Fault::Slow { .. } => {}
        }
        Ok(None)
    }

    /// A storing site that can take one more node: the wanted one, else the first.
    pub(super) fn roomy(&self, wanted: Option<&str>) -> Option<String> {
        let storing = self.topology.storing();
        let with_room = |site: &&str| self.driver.has_room(site);
        wanted.into_iter().chain(storing.iter().map(String::as_str)).find(with_room).map(str::to_owned)
    }

    /// A node of the site that has most.
    pub(super) fn crowded(&self) -> Option<String> {
        let mut sites: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in self.driver.nodes() {
            sites.entry(node.site).or_default().push(node.name);
        }
        let fewest = sites.values().map(Vec::len).min()?;
        let largest = sites.into_values().max_by_key(Vec::len)?;
        if largest.len() > fewest { largest.into_iter().next() } else { None }
    }

    fn burn(&mut self, active: &mut Active) -> anyhow::Result<()> {
        let name = active.nodes.first().context("a node")?.clone();
        let id = self.eyes.member(&name)?;
        active.old = Some(id);
        self.driver.kill(&active.nodes)?;
        self.driver.wipe(&name)?;
        self.give_up(id)
    }

    /// The operator's word that a node's volumes never come back, so that they are rebuilt at once.
    fn give_up(&mut self, node: NodeId) -> anyhow::Result<()> {
        for volume in self.eyes.volumes_of(node)? {
            self.eyes.order(&Command::SetVolumeState { volume, state: VolumeState::Fenced }, self.limits.served)?;
        }
        Ok(())
    }

    fn rot(&mut self, active: &Active, seed: u64, places: usize) -> anyhow::Result<String> {
        self.driver.kill(&active.nodes)?;
        let mut details = Vec::new();
        for (name, number) in active.nodes.iter().zip(0..) {
            details.push(format!("{name}: {}", self.driver.damage(name, seed.wrapping_add(number), places)?));
        }
        self.driver.start(&active.nodes)?;
        Ok(details.join("; "))
    }

    /// Has nodes verify all they hold, and waits for it.
    fn verify(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        for name in nodes {
            let (eyes, name) = (self.eyes.clone(), name.clone());
            let within = Duration::from_secs(2);
            self.until(self.limits.whole, &format!("{name} to begin to verify its shards"), || {
                eyes.ask(&name, Request::ScrubNow(None), within).err().map(|error| error.to_string())
            })?;
        }
        for name in nodes {
            let (eyes, name) = (self.eyes.clone(), name.clone());
            self.until(self.limits.healed, &format!("{name} to have verified its shards"), || {
                match eyes.ask(&name, Request::Status, Duration::from_secs(2)) {
                    Ok(Reply::Status(status)) => {
                        let hurried = status.volumes.iter().any(|volume| volume.scrub.hurried);
                        hurried.then(|| "it is still at it".to_owned())
                    }
                    Ok(_) => Some("it answers something else".to_owned()),
                    Err(error) => Some(error.to_string()),
                }
            })?;
        }
        Ok(())
    }

    fn inject(&mut self, nodes: &[String], change: impl Fn(&mut Inject)) -> anyhow::Result<()> {
        for name in nodes {
            let inject = self.injected.entry(name.clone()).or_default();
            change(inject);
            self.driver.inject(name, inject)?;
        }
        Ok(())
    }

    /// Ends a fault.
    pub(super) fn lift(&mut self, active: &Active) -> anyhow::Result<()> {
        match &active.fault {
            Fault::Kill => {
                let down = self.down();
                let nodes: Vec<String> = active.nodes.iter().filter(|name| !down.contains(*name)).cloned().collect();
                self.driver.start(&nodes)
            }
            Fault::Pause => self.driver.resume(&active.nodes),
            Fault::Isolate | Fault::Deafen | Fault::Mute | Fault::Split | Fault::Sever { .. } | Fault::Slow { .. } => {
                self.shape()
            }
            Fault::Fill => {
                active.nodes.iter().try_for_each(|name| self.driver.relieve(name))?;
                let up = |state| state == VolumeState::Up;
                active
                    .nodes
                    .iter()
                    .try_for_each(|name| self.volumes(name, "notice by itself that there is room again", up))
            }
            Fault::SlowDisk { .. } => self.inject(&active.nodes, |inject| inject.disk_delay_ms = 0),
            Fault::Clock { .. } => self.inject(&active.nodes, |inject| inject.wall_offset_ms = 0),
            Fault::Rot { .. } => {
                self.driver.start(&active.nodes)?;
                self.verify(&active.nodes)?;
                let seen = self.seen_damage(&active.nodes)?;
                if let Some(record) = self.faults.get_mut(active.index) {
                    record.effect = seen;
                }
                Ok(())
            }
            // It failed before anything was done.
            Fault::FailSync | Fault::Wipe | Fault::Retire if active.old.is_none() => Ok(()),
            Fault::FailSync => {
                self.inject(&active.nodes, |inject| inject.fail_sync = false)?;
                self.given_up(active)?;
                self.replace(active)
            }
            Fault::Wipe => self.replace(active),
            Fault::Retire => {
                self.healed(self.limits.healed)?;
                self.retire(active)?;
                let name = active.nodes.first().context("a node")?;
                self.driver.forget(name)?;
                self.eyes.watch(self.driver.addresses());
                Ok(())
            }
            Fault::Upgrade => self.driver.start(&active.nodes),
            Fault::Add => Ok(()),
        }
    }

    /// Retires the former life of a node, once nothing is left on it.
    fn retire(&mut self, active: &Active) -> anyhow::Result<()> {
        let id = active.old.context("a former member")?;
        let eyes = self.eyes.clone();
        self.until(self.limits.healed, "the emptied node to be let go", || {
            let order = Command::SetNodeState { node: id, state: NodeState::Removed };
            eyes.order(&order, Duration::from_secs(10)).err().map(|error| error.to_string())
        })
    }

    /// Waits until the cluster has given up all volumes of a node, by itself.
    fn given_up(&mut self, active: &Active) -> anyhow::Result<()> {
        let (id, eyes) = (active.old.context("a former member")?, self.eyes.clone());
        self.until(self.limits.whole, "the volume whose sync failed to go out of service", || {
            match eyes.volumes_of(id) {
                Ok(left) => (!left.is_empty()).then(|| format!("{} still count", left.len())),
                Err(error) => Some(error.to_string()),
            }
        })
    }

    /// A node without its disk comes back empty, once all it held is elsewhere.
    fn replace(&mut self, active: &Active) -> anyhow::Result<()> {
        let name = active.nodes.first().context("a node")?.clone();
        // Done already, unless the fault failed half-way.
        self.give_up(active.old.context("a former member")?)?;
        self.healed(self.limits.healed)?;
        if active.fault != Fault::Wipe {
            self.driver.kill(&active.nodes)?;
            self.driver.wipe(&name)?;
        }
        self.retire(active)?;
        self.driver.start(&active.nodes)?;
        let (eyes, old) = (self.eyes.clone(), active.old);
        self.until(self.limits.whole, &format!("{name} to be a member again"), || match eyes.member(&name) {
            Ok(id) if Some(id) != old => None,
            Ok(_) => Some("still the former one".to_owned()),
            Err(error) => Some(error.to_string()),
        })
    }
}
