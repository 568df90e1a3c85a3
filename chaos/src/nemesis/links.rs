//! What goes wrong between machines, and with clients, who are coordinators of writes and stand in a site like everybody.
//!
//! **Invariants.** Every disturbance ends by itself, and nothing is disturbed again after the nemesis has healed. What is cut
//! off by site takes the clients of the site along. Who is away is told of machines alone: clients hold nothing.

use std::{sync::Arc, time::Duration};

use super::{Nemesis, UNNOTICED};
use crate::{
    cluster::ClientAt,
    exec::Life,
    net::{HostId, Net, Weather},
    rng::SimRng,
    scenario::Fault,
};

/// Hosts that cannot, or can hardly, talk: from, to.
type Pairs = Vec<(HostId, HostId)>;

/// Links of one disturbance, and the machines that may be out of sight by it.
#[derive(Debug, Clone, Default)]
struct Links {
    pairs: Pairs,
    away: Vec<usize>,
}

/// How often a link drawn between two is one between a machine and a client, in 1,000.
const WITH_CLIENT_PER_MILLE: u64 = 250;
/// How far a client's clock is wrong at most while a write of it may still be stored, in milliseconds.
const CLIENT_WRONG_MILLIS: u64 = 3_600_000;
/// How far it is wrong when none may: a day and more than all clocks of nodes are.
const CLIENT_ASTRAY_MILLIS: i64 = 30 * 3_600_000;

/// Both directions between each of `left` and each of `right`.
fn between(left: &[HostId], right: &[HostId]) -> Pairs {
    left.iter().flat_map(|&a| right.iter().flat_map(move |&b| [(a, b), (b, a)])).filter(|(a, b)| a != b).collect()
}

impl Nemesis {
    pub(super) fn disturb(self: &Arc<Self>, kind: Fault, one: usize, site: usize, rng: &mut SimRng) {
        let short = rng.micros(20_000, 3_000_000);
        match kind {
            Fault::CutOneWay => {
                let links = self.some_link(one, rng);
                self.cut(&links, short, kind);
            }
            Fault::IsolateSite => self.cut(&self.around(site), short * 2, kind),
            Fault::Bridge => self.cut(&self.between_sites(site), short * 2, kind),
            Fault::SplitInSite => self.split_in_site(site, short * 2, rng),
            Fault::Storm => self.storm(short, rng),
            Fault::HeldLink => {
                let links = self.some_links(one, site, rng);
                self.with_links(&links, short, kind, Net::hold, Net::release);
            }
            Fault::SlowLink => {
                let micros = rng.range(5_000, 400_000);
                let slow = move |net: &Net, from, to| net.slow_down(from, to, micros);
                let links = self.some_links(one, site, rng);
                self.with_links(&links, short * 3, kind, slow, |net, from, to| net.slow_down(from, to, 0));
            }
            Fault::FlappingLink => {
                let mut links = self.some_link(one, rng);
                if rng.chance(500) {
                    links.pairs = links.pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect();
                }
                self.flap(kind, rng, move |_| links.clone());
            }
            Fault::FlappingSite => self.flap(kind, rng, move |nemesis| nemesis.around(site)),
            Fault::LeaderSiteFlap => self.flap(kind, rng, |nemesis| {
                let site = nemesis.leader_at().map(|at| nemesis.cluster.machines()[at].site);
                site.map(|site| nemesis.around(site)).unwrap_or_default()
            }),
            _ => {}
        }
    }

    /// Hosts of a site: its machines, and its clients.
    fn hosts_of(&self, site: usize) -> Vec<HostId> {
        let machines = self.cluster.machines();
        let machines = machines.iter().filter(|machine| machine.site == site).map(|machine| machine.host);
        let clients = self.cluster.clients().into_iter().filter(|client| client.site == site);
        machines.chain(clients.map(|client| client.host)).collect()
    }

    fn machine_hosts(&self) -> Vec<HostId> {
        self.cluster.machines().iter().map(|machine| machine.host).collect()
    }

    /// All links between a site and the others.
    fn around(&self, site: usize) -> Links {
        let outside: Vec<HostId> = (0..self.cluster.scenario.sites)
            .filter(|other| *other != site)
            .flat_map(|other| self.hosts_of(other))
            .collect();
        if self.cluster.clients().iter().any(|client| client.site == site) {
            self.cluster.sim.hit("clients cut off with their site");
        }
        Links { pairs: between(&self.hosts_of(site), &outside), away: self.cluster.of_site(site) }
    }

    /// All links between the two sites after this one: of three, the others.
    fn between_sites(&self, but: usize) -> Links {
        let sites = [1, 2].map(|next| (but + next) % self.cluster.scenario.sites);
        let [left, right] = sites.map(|site| self.hosts_of(site));
        let away = sites.map(|site| self.cluster.of_site(site)).concat();
        Links { pairs: between(&left, &right), away }
    }

    /// One direction between a machine and another, or a client.
    fn some_link(&self, one: usize, rng: &mut SimRng) -> Links {
        let hosts = self.machine_hosts();
        let clients = self.cluster.clients();
        if rng.chance(WITH_CLIENT_PER_MILLE) && !clients.is_empty() {
            self.cluster.sim.hit("link of a client disturbed");
            let (machine, client) = (hosts[one], rng.pick(&clients).host);
            let pair = if rng.chance(500) { (machine, client) } else { (client, machine) };
            return Links { pairs: vec![pair], away: Vec::new() };
        }
        let other = (one + 1 + rng.index(hosts.len() - 1)) % hosts.len();
        Links { pairs: vec![(hosts[one], hosts[other])], away: vec![other] }
    }

    /// One direction of one link, or both of all between two sites.
    fn some_links(&self, one: usize, site: usize, rng: &mut SimRng) -> Links {
        if rng.chance(500) { self.some_link(one, rng) } else { self.between_sites(site) }
    }

    fn with_links(
        self: &Arc<Self>,
        links: &Links,
        lasts: Duration,
        kind: Fault,
        begin: impl Fn(&Net, HostId, HostId),
        end: impl Fn(&Net, HostId, HostId) + Send + 'static,
    ) {
        self.cluster.sim.hit(kind.name());
        let pairs = links.pairs.clone();
        pairs.iter().for_each(|&(from, to)| begin(&self.cluster.net, from, to));
        // Whoever hears nothing may be taken for away by the others, or take them for away.
        let deaf = pairs.iter().filter_map(|&(_, to)| self.machine_of(to));
        let away: Vec<usize> = links.away.iter().copied().chain(deaf).collect();
        let lasts = self.grant(&away, lasts);
        self.later(lasts, move |nemesis| pairs.iter().for_each(|&(from, to)| end(&nemesis.cluster.net, from, to)));
    }

    fn cut(self: &Arc<Self>, links: &Links, lasts: Duration, kind: Fault) {
        self.with_links(links, lasts, kind, Net::cut, Net::mend);
    }

    /// The first node of a site and the others of it do not see each other, or the one does not hear the others.
    fn split_in_site(self: &Arc<Self>, site: usize, lasts: Duration, rng: &mut SimRng) {
        let (inside, hosts) = (self.cluster.of_site(site), self.machine_hosts());
        let Some((&first, others)) = inside.split_first().filter(|(_, others)| !others.is_empty()) else { return };
        let first_host = hosts[first];
        let mut others: Vec<HostId> = others.iter().map(|&at| hosts[at]).collect();
        if rng.chance(500) {
            // Clients stand with the others.
            let clients = self.cluster.clients().into_iter().filter(|client| client.site == site);
            others.extend(clients.map(|client| client.host));
        }
        let mut pairs = between(&[first_host], &others);
        if rng.chance(300) {
            pairs.retain(|(_, to)| *to == first_host);
        }
        self.cut(&Links { pairs, away: vec![first] }, lasts, Fault::SplitInSite);
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

    /// Cuts and mends, a few times; `whom` says each time what is cut.
    fn flap(self: &Arc<Self>, kind: Fault, rng: &mut SimRng, whom: impl Fn(&Self) -> Links + Send + 'static) {
        self.cluster.sim.hit(kind.name());
        let (nemesis, mut rng) = (Arc::clone(self), rng.fork());
        // A leader must have time to be elected between two cuts of its site.
        let longest = if kind == Fault::LeaderSiteFlap { 3_000_000 } else { 700_000 };
        let task = async move {
            for _ in 0..rng.range(3, 8) {
                if !nemesis.faults_last() {
                    return;
                }
                let links = whom(&nemesis);
                links.pairs.iter().for_each(|&(from, to)| nemesis.cluster.net.cut(from, to));
                // Many short cuts in a row may look like one long one.
                let lasts = rng.micros(20_000, longest);
                let granted = nemesis.grant(&links.away, lasts.max(UNNOTICED * 2)).min(lasts);
                nemesis.pause(granted).await;
                links.pairs.iter().for_each(|&(from, to)| nemesis.cluster.net.mend(from, to));
                nemesis.pause(rng.micros(20_000, longest)).await;
            }
        };
        self.cluster.sim.spawn(Life::HARNESS, Box::pin(task));
    }

    /// A site is out: its clients see nobody, or stand still with it.
    pub(super) fn clients_out(self: &Arc<Self>, site: usize, lasts: Duration, rng: &mut SimRng) {
        let stopped = rng.chance(500);
        let clients: Vec<ClientAt> = self.cluster.clients().into_iter().filter(|client| client.site == site).collect();
        if clients.is_empty() {
            return;
        }
        if stopped {
            self.cluster.sim.hit("clients stopped with their site");
            clients.iter().for_each(|client| self.stop_client(client, lasts));
            return;
        }
        self.cluster.sim.hit("clients cut off with their site");
        let hosts: Vec<HostId> = clients.iter().map(|client| client.host).collect();
        let pairs = between(&hosts, &self.machine_hosts());
        pairs.iter().for_each(|&(from, to)| self.cluster.net.cut(from, to));
        self.later(lasts, move |nemesis| {
            pairs.iter().for_each(|&(from, to)| nemesis.cluster.net.mend(from, to));
        });
    }

    fn stop_client(self: &Arc<Self>, client: &ClientAt, lasts: Duration) {
        let life = client.life;
        self.cluster.sim.pause(life);
        self.later(lasts, move |nemesis| nemesis.cluster.sim.resume(life));
    }

    /// What goes wrong with one client: its process stands still and goes on, or its clock is wrong.
    pub(super) fn hurt_client(self: &Arc<Self>, kind: Fault, rng: &mut SimRng) {
        let clients = self.cluster.clients();
        if clients.is_empty() {
            return;
        }
        let (client, short) = (*rng.pick(&clients), rng.micros(50_000, 8_000_000));
        self.cluster.sim.hit(kind.name());
        if kind == Fault::PausedClient {
            return self.stop_client(&client, short);
        }
        let ahead = if rng.chance(600) {
            let least = i64::try_from(CLIENT_WRONG_MILLIS).unwrap_or(0);
            i64::try_from(rng.below(2 * CLIENT_WRONG_MILLIS)).unwrap_or(0) - least
        } else {
            *rng.pick(&[-CLIENT_ASTRAY_MILLIS, CLIENT_ASTRAY_MILLIS])
        };
        let usual = client.skew.wall_offset_millis;
        self.cluster.sim.jump_wall(client.life, ahead);
        self.later(short, move |nemesis| nemesis.cluster.sim.jump_wall(client.life, usual));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn links_between_go_both_ways_and_never_to_oneself() {
        let [a, b, c] = [HostId(0), HostId(1), HostId(2)];
        let pairs: BTreeSet<_> = between(&[a, b], &[b, c]).into_iter().collect();
        assert_eq!(pairs, BTreeSet::from([(a, b), (b, a), (a, c), (c, a), (b, c), (c, b)]));
    }
}
