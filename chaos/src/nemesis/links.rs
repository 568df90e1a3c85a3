//! What goes wrong between machines.
//!
//! **Invariants.** Every disturbance ends by itself, and nothing is disturbed again after the nemesis has healed.

use std::{sync::Arc, time::Duration};

use super::{Nemesis, UNNOTICED};
use crate::{
    exec::Life,
    net::{HostId, Net, Weather},
    rng::SimRng,
    scenario::{Fault, SITES},
};

/// Machines that cannot, or can hardly, talk: from, to.
type Pairs = Vec<(usize, usize)>;

/// Both directions between each of `left` and each of `right`.
fn between(left: &[usize], right: &[usize]) -> Pairs {
    left.iter().flat_map(|&a| right.iter().flat_map(move |&b| [(a, b), (b, a)])).filter(|(a, b)| a != b).collect()
}

impl Nemesis {
    pub(super) fn disturb(self: &Arc<Self>, kind: Fault, one: usize, site: usize, rng: &mut SimRng) {
        let short = rng.micros(20_000, 3_000_000);
        match kind {
            Fault::CutOneWay => {
                let pair = self.some_pair(one, rng);
                self.cut(vec![pair], &[pair.1], short, kind);
            }
            Fault::IsolateSite => {
                let inside = self.cluster.of_site(site);
                self.cut(between(&inside, &self.outside(site)), &inside, short * 2, kind);
            }
            Fault::Bridge => {
                let (left, right) = self.two_sites(site);
                let both: Vec<usize> = left.iter().chain(&right).copied().collect();
                self.cut(between(&left, &right), &both, short * 2, kind);
            }
            Fault::SplitInSite => self.split_in_site(site, short * 2, rng),
            Fault::Storm => self.storm(short, rng),
            Fault::HeldLink => {
                let pairs = self.some_pairs(one, site, rng);
                self.with_hosts(&pairs, short, kind, Net::hold, Net::release);
            }
            Fault::SlowLink => {
                let micros = rng.range(5_000, 400_000);
                let slow = move |net: &Net, from, to| net.slow_down(from, to, micros);
                let pairs = self.some_pairs(one, site, rng);
                self.with_hosts(&pairs, short * 3, kind, slow, |net, from, to| net.slow_down(from, to, 0));
            }
            Fault::FlappingLink => {
                let (a, b) = self.some_pair(one, rng);
                let pairs = if rng.chance(500) { vec![(a, b)] } else { vec![(a, b), (b, a)] };
                self.flap(kind, rng, move |_| (pairs.clone(), vec![b]));
            }
            Fault::FlappingSite => {
                let (inside, outside) = (self.cluster.of_site(site), self.outside(site));
                self.flap(kind, rng, move |_| (between(&inside, &outside), inside.clone()));
            }
            Fault::LeaderSiteFlap => self.flap(kind, rng, |nemesis| {
                let Some(at) = nemesis.leader_at() else { return Default::default() };
                let site = nemesis.cluster.machines()[at].site;
                let inside = nemesis.cluster.of_site(site);
                (between(&inside, &nemesis.outside(site)), inside)
            }),
            _ => {}
        }
    }

    fn outside(&self, site: usize) -> Vec<usize> {
        let inside = self.cluster.of_site(site);
        (0..self.cluster.count()).filter(|at| !inside.contains(at)).collect()
    }

    fn two_sites(&self, but: usize) -> (Vec<usize>, Vec<usize>) {
        (self.cluster.of_site((but + 1) % SITES), self.cluster.of_site((but + 2) % SITES))
    }

    fn some_pair(&self, one: usize, rng: &mut SimRng) -> (usize, usize) {
        let count = self.cluster.count();
        (one, (one + 1 + rng.index(count - 1)) % count)
    }

    /// One direction between two machines, or both between two sites.
    fn some_pairs(&self, one: usize, site: usize, rng: &mut SimRng) -> Pairs {
        if rng.chance(500) {
            return vec![self.some_pair(one, rng)];
        }
        let (left, right) = self.two_sites(site);
        between(&left, &right)
    }

    fn hosts(&self, pairs: &[(usize, usize)]) -> Vec<(HostId, HostId)> {
        let machines = self.cluster.machines();
        pairs.iter().map(|&(from, to)| (machines[from].host, machines[to].host)).collect()
    }

    fn with_hosts(
        self: &Arc<Self>,
        pairs: &[(usize, usize)],
        lasts: Duration,
        kind: Fault,
        begin: impl Fn(&Net, HostId, HostId),
        end: impl Fn(&Net, HostId, HostId) + Send + 'static,
    ) {
        self.cluster.sim.hit(kind.name());
        let hosts = self.hosts(pairs);
        hosts.iter().for_each(|&(from, to)| begin(&self.cluster.net, from, to));
        let away: Vec<usize> = pairs.iter().map(|&(_, to)| to).collect();
        let lasts = self.grant(&away, lasts);
        self.later(lasts, move |nemesis| hosts.iter().for_each(|&(from, to)| end(&nemesis.cluster.net, from, to)));
    }

    fn cut(self: &Arc<Self>, pairs: Pairs, away: &[usize], lasts: Duration, kind: Fault) {
        let lasts = self.grant(away, lasts);
        self.with_hosts(&pairs, lasts, kind, Net::cut, Net::mend);
    }

    /// The first node of a site and the others of it do not see each other, or the one does not hear the others.
    fn split_in_site(self: &Arc<Self>, site: usize, lasts: Duration, rng: &mut SimRng) {
        let inside = self.cluster.of_site(site);
        let Some((&first, others)) = inside.split_first().filter(|(_, others)| !others.is_empty()) else { return };
        let mut pairs = between(&[first], others);
        if rng.chance(300) {
            pairs.retain(|(_, to)| *to == first);
        }
        self.cut(pairs, &[first], lasts, Fault::SplitInSite);
    }

    fn storm(self: &Arc<Self>, lasts: Duration, rng: &mut SimRng) {
        let weather = Weather {
            jitter_micros: rng.range(300, 30_000),
            loss_per_mille: rng.range(1, 60),
            duplicate_per_mille: rng.range(1, 60),
            hold_per_mille: rng.range(1, 60),
        };
        self.cluster.sim.hit(Fault::Storm.name());
        self.cluster.net.set_weather(weather);
        self.later(lasts, |nemesis| nemesis.cluster.net.set_weather(Weather::fair()));
    }

    /// Cuts and mends, a few times; `whom` says each time what is cut, and who is out of sight by it.
    fn flap(
        self: &Arc<Self>,
        kind: Fault,
        rng: &mut SimRng,
        whom: impl Fn(&Self) -> (Pairs, Vec<usize>) + Send + 'static,
    ) {
        self.cluster.sim.hit(kind.name());
        let (nemesis, mut rng) = (Arc::clone(self), rng.fork());
        // A leader must have time to be elected between two cuts of its site.
        let longest = if kind == Fault::LeaderSiteFlap { 3_000_000 } else { 700_000 };
        let task = async move {
            for _ in 0..rng.range(3, 8) {
                if !nemesis.faults_last() {
                    return;
                }
                let (pairs, away) = whom(&nemesis);
                let hosts = nemesis.hosts(&pairs);
                hosts.iter().for_each(|&(from, to)| nemesis.cluster.net.cut(from, to));
                // Many short cuts in a row may look like one long one.
                let lasts = rng.micros(20_000, longest);
                let granted = nemesis.grant(&away, lasts.max(UNNOTICED * 2)).min(lasts);
                nemesis.pause(granted).await;
                hosts.iter().for_each(|&(from, to)| nemesis.cluster.net.mend(from, to));
                nemesis.pause(rng.micros(20_000, longest)).await;
            }
        };
        self.cluster.sim.spawn(Life::HARNESS, Box::pin(task));
    }
}
