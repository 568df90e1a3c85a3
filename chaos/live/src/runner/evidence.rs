//! Whether each fault did what it says: what is seen of it while it lasts.
//!
//! **Invariants.** A fault that shows no effect fails its step: what was not broken proves nothing. What another fault hides (a slow
//! disk of a node that is down) is told as hidden, and never by the main fault of a step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use pacsvault_core::layout::VolumeState;
use pacsvault_ports::peer::{Freshness, Reply, Request};

use super::Runner;
use crate::{
    net::{Conditions, Traffic},
    record::HIDDEN,
    scenario::plan::{Fault, merged},
};

/// How long an effect may take to show.
const SHOWN_WITHIN: Duration = Duration::from_secs(15);
/// How long a node has to answer a question that it should not be able to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_200);

/// A link, from host to host.
type Pair = (String, String);
/// How long each link takes without a fault, at least.
pub(super) type Ways = BTreeMap<Pair, Duration>;

impl Runner<'_> {
    /// Sees that every fault in force has its effect, and notes what was seen.
    ///
    /// # Errors
    /// One has none.
    pub(super) fn see(&mut self) -> anyhow::Result<()> {
        for at in 0..self.active.len() {
            let what = self.faults[self.active[at].index].what.clone();
            let seen = self.seen(at).with_context(|| format!("no effect: {what}"))?;
            let record = &mut self.faults[self.active[at].index];
            ensure!(record.beside || seen != HIDDEN, "no effect: {what}: {HIDDEN}");
            record.effect = seen;
        }
        Ok(())
    }

    fn seen(&mut self, at: usize) -> anyhow::Result<String> {
        let one = &self.active[at];
        let nodes = one.nodes.clone();
        match one.fault {
            Fault::Isolate | Fault::Deafen | Fault::Mute | Fault::Split | Fault::Sever { .. } => self.seen_cut(at),
            Fault::Slow { .. } => self.seen_slow(at),
            Fault::SlowDisk { .. } | Fault::Clock { .. } => self.seen_injected(&nodes),
            Fault::Fill => self.seen_full(&nodes),
            Fault::Kill | Fault::Pause => self.seen_still(&nodes),
            // Waited for when they begin: the disk's emptiness, the node's start.
            Fault::Wipe | Fault::Add | Fault::Upgrade => Ok(String::new()),
            // Waited for when they are lifted: damage that is found, a volume that is given up, a node that is let go.
            Fault::Rot { .. } | Fault::FailSync | Fault::Retire => Ok(String::new()),
        }
    }

    /// Those that run now: neither down nor stopped in mid-air.
    fn running(&self, nodes: &[String]) -> Vec<String> {
        let down = self.down();
        let paused = self.active.iter().filter(|one| one.fault == Fault::Pause).flat_map(|one| &one.nodes);
        let paused: BTreeSet<&String> = paused.collect();
        nodes.iter().filter(|name| !down.contains(*name) && !paused.contains(name)).cloned().collect()
    }

    fn seen_cut(&mut self, at: usize) -> anyhow::Result<String> {
        let one = &self.active[at];
        match (self.driver.traffic(), &one.since) {
            (Some(now), Some(since)) => silent(&one.links, since, &now).map_err(anyhow::Error::msg),
            _ => self.seen_alone(at),
        }
    }

    /// For networks that count nothing: nodes that are cut off from a majority cannot tell what is newest.
    fn seen_alone(&mut self, at: usize) -> anyhow::Result<String> {
        let one = &self.active[at];
        let all = self.driver.nodes();
        let alone = all.iter().filter(|node| one.fault == Fault::Split || one.sites.contains(&node.site));
        let alone: Vec<String> = alone.map(|node| node.name.clone()).collect();
        let alone = self.running(&alone);
        for name in &alone {
            let (eyes, name) = (self.eyes.clone(), name.clone());
            self.until(SHOWN_WITHIN, &format!("{name} to be cut off"), || {
                let asked = eyes.ask(&name, Request::Layout(Freshness::Linearizable), ANSWER_WITHIN);
                asked.is_ok().then(|| "it still reaches a majority".to_owned())
            })?;
        }
        Ok(if alone.is_empty() { HIDDEN.to_owned() } else { format!("{} reach no majority", alone.join(", ")) })
    }

    fn seen_slow(&mut self, at: usize) -> anyhow::Result<String> {
        let cut = merged(self.active.iter().map(|one| one.links.clone()));
        let hosts: Vec<String> = self.driver.nodes().into_iter().map(|node| node.name).collect();
        let gone: BTreeSet<String> = {
            let running: BTreeSet<String> = self.running(&hosts).into_iter().collect();
            hosts.into_iter().filter(|name| !running.contains(name)).collect()
        };
        let mut own = self.active[at].links.clone();
        own.links.retain(|pair, _| {
            let hidden = cut.links.get(pair).is_some_and(|link| link.cut);
            !hidden && !gone.contains(&pair.0) && !gone.contains(&pair.1)
        });
        if own.links.is_empty() {
            return Ok(HIDDEN.to_owned());
        }
        let since = self.active[at].since.clone().context("a network that slows links down counts")?;
        let began = Instant::now();
        loop {
            let now = self.driver.traffic().context("a network that slows links down counts")?;
            match late(&own, &self.ways, &since, &now) {
                Ok(seen) => return Ok(seen),
                Err(why) if began.elapsed() > SHOWN_WITHIN => bail!(why),
                Err(_) => self.rest(Duration::from_millis(100))?,
            }
        }
    }

    /// The node's own word that a setting of its fault port is in force.
    fn seen_injected(&mut self, nodes: &[String]) -> anyhow::Result<String> {
        let running = self.running(nodes);
        for name in &running {
            let wanted = self.injected.get(name).copied().unwrap_or_default();
            let began = Instant::now();
            while !self.driver.injected(name, &wanted)? {
                ensure!(began.elapsed() < SHOWN_WITHIN, "{name} does not say that {wanted:?} is in force");
                self.rest(Duration::from_millis(50))?;
            }
        }
        Ok(if running.is_empty() { HIDDEN.to_owned() } else { format!("{} say so", running.join(", ")) })
    }

    fn seen_full(&mut self, nodes: &[String]) -> anyhow::Result<String> {
        let mut told = Vec::new();
        for name in nodes {
            self.volumes(name, "say that its disk is full", |state| state != VolumeState::Up)?;
            told.push(name.as_str());
        }
        Ok(format!("{} says that it is full", told.join(", ")))
    }

    /// Waits until a volume of a node is, by its own word, in such a state; all of them are looked at.
    pub(super) fn volumes(
        &mut self,
        node: &str,
        what: &str,
        wanted: impl Fn(VolumeState) -> bool,
    ) -> anyhow::Result<()> {
        let eyes = self.eyes.clone();
        self.until(SHOWN_WITHIN, &format!("{node} to {what}"), || {
            match eyes.ask(node, Request::Status, ANSWER_WITHIN) {
                Ok(Reply::Status(status))
                    if !status.volumes.is_empty() && status.volumes.iter().all(|one| wanted(one.state)) =>
                {
                    None
                }
                Ok(Reply::Status(status)) => {
                    let told = status.volumes.iter().map(|volume| format!("{:?} {}", volume.state, volume.reason));
                    Some(told.collect::<Vec<_>>().join(", "))
                }
                Ok(_) => Some("it answers something else".to_owned()),
                Err(error) => Some(error.to_string()),
            }
        })
    }

    fn seen_still(&mut self, nodes: &[String]) -> anyhow::Result<String> {
        for name in nodes {
            let (eyes, name) = (self.eyes.clone(), name.clone());
            self.until(SHOWN_WITHIN, &format!("{name} to stand still"), || {
                let asked = eyes.ask(&name, Request::Status, Duration::from_millis(200));
                asked.is_ok().then(|| "it still answers".to_owned())
            })?;
        }
        Ok(if nodes.is_empty() { HIDDEN.to_owned() } else { format!("{} do not answer", nodes.join(", ")) })
    }

    /// What damage was found since nodes were started after their files were harmed.
    pub(super) fn seen_damage(&mut self, nodes: &[String]) -> anyhow::Result<String> {
        let mut found = BTreeMap::new();
        for name in nodes {
            let Reply::Status(status) = self.eyes.ask(name, Request::Status, ANSWER_WITHIN)? else {
                bail!("{name} answers something else");
            };
            found.insert(name.clone(), status.volumes.iter().map(|volume| volume.scrub.damaged).sum());
        }
        damage(&found).map_err(|why| anyhow!(why))
    }
}

/// Nothing has come over the links that are cut, and they were used before.
fn silent(cut: &Conditions, since: &Traffic, now: &Traffic) -> Result<String, String> {
    let cut: Vec<&Pair> = cut.links.iter().filter(|(_, link)| link.cut).map(|(pair, _)| pair).collect();
    let count = |traffic: &Traffic, pair: &Pair| traffic.get(pair).copied().unwrap_or_default();
    let before: u64 = cut.iter().map(|pair| count(since, pair).bytes).sum();
    let leaks = cut.iter().map(|pair| (pair, count(now, pair).since(count(since, pair)).bytes));
    if let Some(((from, to), bytes)) = leaks.into_iter().find(|(_, bytes)| *bytes > 0) {
        return Err(format!("{bytes} bytes came from {from} to {to} through the cut"));
    }
    if before == 0 {
        return Err("nothing used these links before".to_owned());
    }
    Ok(format!("nothing came over {} links that had carried {before} bytes", cut.len()))
}

/// Something has come over links that are slow, and all of it was under way for as long as they are anyway and the fault makes it.
fn late(slow: &Conditions, ways: &Ways, since: &Traffic, now: &Traffic) -> Result<String, String> {
    let (mut pieces, mut least) = (0, None::<u64>);
    for (pair, link) in &slow.links {
        let before = since.get(pair).copied().unwrap_or_default();
        let came = now.get(pair).copied().unwrap_or_default().since(before);
        let Some(mean_us) = came.under_way_us.checked_div(came.pieces) else { continue };
        let least_way = ways.get(pair).copied().unwrap_or_default() + link.extra_delay;
        let asked_us = u64::try_from(least_way.as_micros()).unwrap_or(u64::MAX);
        if mean_us < asked_us {
            let (from, to) = pair;
            return Err(format!("from {from} to {to} took {mean_us} µs and not {asked_us} µs"));
        }
        pieces += came.pieces;
        least = Some(least.map_or(mean_us, |least| least.min(mean_us)));
    }
    let least = least.ok_or("nothing came over the slow links")?;
    Ok(format!("{pieces} pieces took at least {} ms on average", least / 1_000))
}

/// Damage was found at all: bytes that somebody keeps were harmed.
fn damage(found: &BTreeMap<String, u64>) -> Result<String, String> {
    let told: Vec<String> = found.iter().map(|(node, shards)| format!("{node} found {shards}")).collect();
    if found.values().sum::<u64>() == 0 {
        return Err("no damaged shard was found".to_owned());
    }
    Ok(format!("damaged shards: {}", told.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Carried, LinkState};

    fn traffic(bytes: u64, pieces: u64, under_way_ms: u64) -> Traffic {
        let carried = Carried { bytes, pieces, under_way_us: under_way_ms * 1_000 };
        [(("a1".to_owned(), "b1".to_owned()), carried)].into()
    }

    fn conditions(state: LinkState) -> Conditions {
        let mut conditions = Conditions::default();
        *conditions.link("a1", "b1") = state;
        conditions
    }

    #[test]
    fn a_cut_that_lets_something_through_or_cuts_nothing_has_no_effect() {
        let cut = conditions(LinkState { cut: true, ..LinkState::default() });
        assert!(silent(&cut, &traffic(100, 3, 3), &traffic(100, 3, 3)).is_ok());
        let leaky = silent(&cut, &traffic(100, 3, 3), &traffic(101, 4, 4)).expect_err("leaky");
        assert!(leaky.contains("1 bytes came from a1 to b1"), "{leaky}");
        let unused = silent(&cut, &Traffic::new(), &Traffic::new()).expect_err("unused");
        assert!(unused.contains("nothing used"), "{unused}");
    }

    #[test]
    fn a_slow_link_that_is_fast_or_idle_has_no_effect() {
        let slow = conditions(LinkState { extra_delay: Duration::from_millis(50), ..LinkState::default() });
        let ways: Ways = [(("a1".to_owned(), "b1".to_owned()), Duration::from_millis(40))].into();
        let since = traffic(100, 10, 400);
        let then = |way_ms: u64| late(&slow, &ways, &since, &traffic(200, 12, 400 + 2 * way_ms));
        assert!(then(90).expect("slow").contains("2 pieces"));
        assert!(then(40).is_err(), "as fast as before");
        assert!(then(60).is_err(), "slower than the fault alone, and faster than it and the way");
        assert!(late(&slow, &ways, &since, &since).is_err(), "nothing came");
    }

    #[test]
    fn damage_that_nobody_finds_was_none() {
        let found = |a1: u64, a2: u64| damage(&[("a1".to_owned(), a1), ("a2".to_owned(), a2)].into());
        assert!(found(0, 0).is_err());
        assert_eq!(found(3, 0).expect("found"), "damaged shards: a1 found 3, a2 found 0");
    }
}
