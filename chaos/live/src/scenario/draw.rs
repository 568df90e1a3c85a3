//! The scenarios themselves.

use std::time::Duration;

use super::{
    Draw, Scenario, Step,
    plan::{Beside, Cue, Fault, Meanwhile, Then, Who},
};
use crate::driver::Ability;

const THREE: Scenario = Scenario {
    name: "",
    line: "",
    does: "",
    holds: "",
    sites: 3,
    nodes_per_site: 2,
    witness: false,
    own: &["kill", "partition", "pause"],
    essential: &[Ability::Kill],
    previous: false,
    small_disks: false,
    draw: site_outage,
};

/// All, in the order they are listed.
pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "site-outage",
        line: "one site after the other goes away: killed, cut off or frozen",
        does: "Again and again a site drawn by the seed is killed with kill -9, cut off from the others, or frozen, and comes \
            back seconds later. Beside it clocks step, disks and links of the sites that stay get slower.",
        holds: "Writes and reads go on within 20 s of each outage; what is written meanwhile is degraded and healed.",
        draw: site_outage,
        ..THREE
    },
    Scenario {
        name: "rolling-site-outages",
        line: "sites go away in turn, the next as soon as the last one is back",
        does: "Site a, b, c, a, … is killed or cut off, in turn, without waiting for healing in between: only until all nodes \
            are there again.",
        holds: "Writes and reads go on within 20 s of each outage.",
        draw: rolling,
        ..THREE
    },
    Scenario {
        name: "leader-site-flap",
        line: "whichever site leads goes away, again and again",
        does: "The site of the leader of the moment is killed, cut off or frozen for a short while, so that every outage costs \
            an election.",
        holds: "Each election ends, and writes and reads are back within 20 s.",
        draw: leader_flap,
        ..THREE
    },
    Scenario {
        name: "asymmetric-partition",
        line: "a site hears the others and is not heard, or the other way round; or two sites lose each other only",
        does: "Links are cut in one direction only, around the leader's site or one drawn by the seed; or the link between two sites \
            is cut both ways, while both reach the third.",
        holds: "Writes and reads are back within 20 s through every site that is neither deaf nor mute, also through two that have \
            lost each other: leadership moves to who reaches both. In no term two leaders are believed.",
        own: &["one-way partition", "severed link"],
        essential: &[Ability::Links],
        draw: asymmetric,
        ..THREE
    },
    Scenario {
        name: "split-three-ways",
        line: "no site reaches any other",
        does: "All links between sites are cut for some seconds, again and again; beside it nodes are killed or frozen.",
        holds: "No write that begins under the split is acknowledged under it. After each split writes are back within 20 s.",
        own: &["split"],
        essential: &[Ability::Network],
        draw: split,
        ..THREE
    },
    Scenario {
        name: "site-outage-during-repair",
        line: "a node burns, and a site goes away while it is being rebuilt",
        does: "A node is wiped and given up; while what it held is seen to be rebuilt, two sites are killed, cut off or frozen.",
        holds: "Nothing is lost: an outage takes no data, so the repair goes on when the site is back. At least one outage met a \
            repair.",
        own: &["wipe"],
        essential: &[Ability::Kill, Ability::Wipe],
        draw: during_repair,
        ..THREE
    },
    Scenario {
        name: "kill-everything",
        line: "the power of all sites fails at once",
        does: "All nodes are killed with kill -9 at one moment and started again; sometimes twice in a row.",
        holds: "Everything acknowledged is there; writes are back within 20 s of the start.",
        own: &["kill"],
        draw: kill_everything,
        ..THREE
    },
    Scenario {
        name: "node-wipe",
        line: "nodes lose their disks, by fire or by a sync that fails, and return empty",
        does: "In turn: a node is killed, its data taken, its volumes given up; the leader's site goes away for a while; one sync of \
            a node's volume fails, and the next would succeed. When all that the node held is rebuilt elsewhere it joins as a new \
            one.",
        holds: "Writes and reads go on within 20 s; a volume whose sync failed goes out of service and is never tried again; \
            full contract is back before the next node loses its disk.",
        own: &["wipe", "failed sync"],
        essential: &[Ability::Kill, Ability::Wipe],
        draw: node_wipe,
        ..THREE
    },
    Scenario {
        name: "bit-rot",
        line: "bytes flip on the volumes of a whole site",
        does: "The nodes of one site are stopped, bytes flipped in tens of places of their volumes' segments, and started; then they \
            verify what they hold. Beside it links and disks get slower. The disks of log and catalog are never damaged.",
        holds: "No damaged byte is ever handed out; damage is found and rebuilt before the next site rots.",
        own: &["bit rot"],
        essential: &[Ability::Damage],
        draw: bit_rot,
        ..THREE
    },
    Scenario {
        name: "disk-full",
        line: "a neighbour fills a volume's disk to the last byte",
        does: "The file system under the volumes of a node is filled to the last byte, and relieved later. Needs root: small \
            disks are mounted. The disk of log and catalog is never filled.",
        holds: "The node says that it is full, and writes go elsewhere; nothing acknowledged is lost, and the node takes part again \
            by itself when there is room.",
        own: &["full disk"],
        essential: &[Ability::Fill],
        small_disks: true,
        draw: disk_full,
        ..THREE
    },
    Scenario {
        name: "slow-site",
        line: "one site is slow: its links, its disks, or all it does in bursts",
        does: "Links of a site get hundreds of milliseconds slower and lossy, its disks slower, or its nodes freeze for \
            moments.",
        holds: "Writes and reads go on within 20 s, whoever is slow.",
        own: &["slow network", "slow disk", "pause"],
        essential: &[Ability::Pause],
        draw: slow_site,
        ..THREE
    },
    Scenario {
        name: "membership-churn",
        line: "nodes come and go while others die",
        does: "A node is added, others are killed, cut off and frozen, a node is emptied and retired; again and again. While one comes \
            or goes another one dies, too, and is back before all that moves has moved.",
        holds: "Writes and reads go on within 20 s of each change.",
        own: &["add node", "retire node"],
        essential: &[Ability::Kill, Ability::Add],
        draw: churn,
        ..THREE
    },
    Scenario {
        name: "upgrade-under-fire",
        line: "node by node gets the present release while others are killed and frozen",
        does: "The cluster starts with the previous release. Node after node is stopped and started with this one; between two \
            of them nodes are killed and frozen.",
        holds: "Writes and reads go on within 20 s; both releases make the same catalog of the same log; at the end the new \
            version is in force.",
        own: &["upgrade"],
        essential: &[Ability::Kill, Ability::Upgrade],
        previous: true,
        draw: upgrade,
        ..THREE
    },
    Scenario {
        name: "witness-loss",
        line: "two sites and a witness: one of the three goes away",
        does: "The witness, or one of the two sites that store, is killed, cut off or frozen.",
        holds: "Writes and reads go on within 20 s, whichever one it is.",
        sites: 2,
        nodes_per_site: 3,
        witness: true,
        draw: witness,
        ..THREE
    },
];

fn step(draw: &mut Draw, fault: Fault, who: Who) -> Step {
    let after = draw.millis(500..1500);
    let lasts = draw.lasts(3000..6000);
    Step { after, fault, who, lasts, meanwhile: Meanwhile::Served, then: Then::Whole, beside: Vec::new() }
}

/// A way for nodes to be away without losing anything.
fn away(draw: &mut Draw) -> Fault {
    match draw.below(5) {
        0 | 1 if draw.can(Ability::Network) => Fault::Isolate,
        2 if draw.can(Ability::Pause) => Fault::Pause,
        _ => Fault::Kill,
    }
}

/// A small fault that takes nobody away.
fn trouble(draw: &mut Draw, who: Who) -> Beside {
    let after = draw.millis(300..2500);
    let links = draw.can(Ability::Links);
    let inject = draw.can(Ability::Inject);
    let fault = match draw.below(4) {
        0 if inject => Fault::SlowDisk { delay_ms: 5 + draw.below(40) as u64 },
        1 if inject => Fault::Clock { step_ms: [-3_600_000, -90_000, -1_500, 700, 45_000, 7_200_000][draw.below(6)] },
        2 if inject && !links => Fault::SlowDisk { delay_ms: 20 },
        _ => Fault::Slow {
            delay_ms: 5 + draw.below(76) as u64,
            jitter_ms: draw.below(40) as u64,
            loss_per_mille: u16::try_from(draw.below(10)).unwrap_or(0),
        },
    };
    Beside { after, cue: Cue::None, fault, who }
}

fn troubled(draw: &mut Draw, mut step: Step) -> Step {
    for _ in 0..=draw.below(2) {
        let node = draw.node();
        let who = Who::Node(node);
        let beside = trouble(draw, who);
        step.beside.push(beside);
    }
    step
}

fn site_outage(draw: &mut Draw) -> Step {
    let (fault, site) = (away(draw), draw.site());
    let step = step(draw, fault, Who::Site(site));
    let step = Step { then: Then::Healed, ..step };
    troubled(draw, step)
}

fn rolling(draw: &mut Draw) -> Step {
    let fault = away(draw);
    let sites = draw.topology.storing();
    let site = sites[draw.turn % sites.len()].clone();
    let step = step(draw, fault, Who::Site(site));
    troubled(draw, step)
}

fn leader_flap(draw: &mut Draw) -> Step {
    let fault = away(draw);
    let who = if draw.below(4) == 0 { Who::Leader } else { Who::LeaderSite };
    let mut step = step(draw, fault, who);
    step.lasts = draw.millis(1000..5000);
    troubled(draw, step)
}

fn asymmetric(draw: &mut Draw) -> Step {
    let fault = match draw.below(5) {
        0 | 1 => Fault::Deafen,
        2 | 3 => Fault::Mute,
        _ => Fault::Sever { draw: draw.random_number() },
    };
    let site = draw.site();
    let who = if draw.below(2) == 0 { Who::LeaderSite } else { Who::Site(site) };
    let mut step = step(draw, fault, who);
    // Until leadership has moved to who reaches both takes its time, and must be seen.
    let moves = matches!(step.fault, Fault::Sever { .. });
    step.lasts = if moves { draw.millis(24_000..30_000) } else { draw.lasts(3000..8000) };
    troubled(draw, step)
}

fn split(draw: &mut Draw) -> Step {
    let mut step = step(draw, Fault::Split, Who::Everything);
    step.meanwhile = Meanwhile::NothingAcked;
    if draw.below(2) == 0 {
        let (after, draws) = (draw.millis(300..1500), draw.random_number());
        let fault = if draw.below(2) == 0 { Fault::Kill } else { Fault::Pause };
        step.beside.push(Beside { after, cue: Cue::None, fault, who: Who::Follower(draws) });
    }
    troubled(draw, step)
}

/// In cycles of three: a node burns and is rebuilt while a site is away; then two harmless outages.
fn during_repair(draw: &mut Draw) -> Step {
    if !draw.turn.is_multiple_of(3) {
        return leader_flap(draw);
    }
    let who = Who::Follower(draw.random_number());
    let mut step = step(draw, Fault::Wipe, who);
    step.then = Then::Healed;
    // A burnt node and a frozen site are more than the contract survives: reads may wait, nothing may be lost.
    step.meanwhile = Meanwhile::Anything;
    let mut sites = draw.topology.storing();
    // The first as soon as the cluster repairs; two sites, not one twice.
    for cue in [Cue::Repair, Cue::None] {
        let after = if cue == Cue::Repair { Duration::ZERO } else { draw.millis(200..2500) };
        let fault = match draw.below(3) {
            0 if draw.can(Ability::Network) => Fault::Isolate,
            1 => Fault::Kill,
            _ => Fault::Pause,
        };
        let site = sites.swap_remove(draw.below(sites.len()));
        step.beside.push(Beside { after, cue, fault, who: Who::Site(site) });
    }
    step
}

fn kill_everything(draw: &mut Draw) -> Step {
    let mut step = step(draw, Fault::Kill, Who::Everything);
    step.lasts = draw.millis(50..1500);
    step.meanwhile = Meanwhile::Anything;
    // Half of them again before anything healed.
    step.then = if draw.below(2) == 0 { Then::Served } else { Then::Whole };
    step
}

fn node_wipe(draw: &mut Draw) -> Step {
    let fault = match draw.turn % 4 {
        2 if draw.can(Ability::Inject) => Fault::FailSync,
        0 | 2 => Fault::Wipe,
        _ => return leader_flap(draw),
    };
    let who = Who::Follower(draw.random_number());
    let step = step(draw, fault, who);
    let step = Step { then: Then::Healed, ..step };
    troubled(draw, step)
}

fn bit_rot(draw: &mut Draw) -> Step {
    let site = draw.site();
    let (seed, places) = (draw.random_number(), 10 + draw.below(40));
    let mut step = step(draw, Fault::Rot { seed, places }, Who::Site(site));
    step.lasts = draw.millis(1000..2000);
    step.then = Then::Healed;
    troubled(draw, step)
}

fn disk_full(draw: &mut Draw) -> Step {
    let node = draw.node();
    let mut step = step(draw, Fault::Fill, Who::Node(node));
    step.then = Then::Healed;
    troubled(draw, step)
}

fn slow_site(draw: &mut Draw) -> Step {
    let site = draw.site();
    let fault = match draw.below(4) {
        0 | 1 if draw.can(Ability::Links) => Fault::Slow {
            delay_ms: 50 + draw.below(400) as u64,
            jitter_ms: draw.below(100) as u64,
            loss_per_mille: u16::try_from(draw.below(30)).unwrap_or(0),
        },
        2 if draw.can(Ability::Inject) => Fault::SlowDisk { delay_ms: 20 + draw.below(300) as u64 },
        _ => Fault::Pause,
    };
    let mut step = step(draw, fault, Who::Site(site));
    if step.fault == Fault::Pause {
        step.lasts = draw.millis(200..1500);
    }
    troubled(draw, step)
}

/// In cycles of five: a node comes, three outages, it or another one goes.
fn churn(draw: &mut Draw) -> Step {
    let site = draw.site();
    let mut made = match draw.turn % 5 {
        0 => step(draw, Fault::Add, Who::Site(site)),
        4 => step(draw, Fault::Retire, Who::Site(site)),
        _ => {
            let fault = away(draw);
            let who = if draw.below(2) == 0 { Who::Leader } else { Who::Follower(draw.random_number()) };
            return step(draw, fault, who);
        }
    };
    made.then = Then::Healed;
    // Somebody else dies meanwhile, and is back before anybody waits for what is moved.
    let (fault, after) = (away(draw), draw.millis(100..1_000));
    let who = Who::Other(draw.random_number());
    made.beside.push(Beside { after, cue: Cue::None, fault, who });
    made
}

fn upgrade(draw: &mut Draw) -> Step {
    let nodes = draw.topology.nodes();
    let turn = draw.turn / 3;
    if draw.turn.is_multiple_of(3) && turn < nodes.len() {
        let mut step = step(draw, Fault::Upgrade, Who::Node(nodes[turn].clone()));
        step.lasts = Duration::from_millis(500);
        return step;
    }
    let fault = if draw.below(2) == 0 { Fault::Kill } else { Fault::Pause };
    let who = match draw.below(3) {
        0 => Who::Leader,
        1 => Who::LeaderSite,
        _ => Who::Follower(draw.random_number()),
    };
    let mut step = step(draw, fault, who);
    step.lasts = draw.millis(500..3000);
    step
}

fn witness(draw: &mut Draw) -> Step {
    let sites: Vec<String> = draw.topology.sites.keys().cloned().collect();
    let site = match draw.topology.witnesses.iter().next() {
        Some(witness) if draw.below(2) == 0 => witness.clone(),
        _ => draw.pick(&sites),
    };
    let fault = away(draw);
    let mut step = step(draw, fault, Who::Site(site));
    step.then = Then::Healed;
    troubled(draw, step)
}

impl Draw<'_> {
    fn random_number(&mut self) -> u64 {
        rand::Rng::random(&mut self.random)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::{Topology, plan::merged};

    fn everything() -> BTreeSet<Ability> {
        Ability::ALL.into()
    }

    fn topology(scenario: &Scenario) -> Topology {
        Topology::new(scenario.sites, scenario.nodes_per_site, scenario.witness)
    }

    #[test]
    fn a_plan_follows_from_its_seed() {
        for scenario in ALL {
            let topology = topology(scenario);
            let plan = |seed| scenario.plan(seed, 3.0, &topology, &everything());
            assert_eq!(plan(7), plan(7), "{}", scenario.name);
            assert_ne!(plan(7), plan(8), "{}", scenario.name);
        }
    }

    #[test]
    fn three_minutes_hold_at_least_twenty_faults() {
        for scenario in ALL {
            let plan = scenario.plan(1, 3.0, &topology(scenario), &everything());
            assert!(plan.faults() >= 20, "{}: {}", scenario.name, plan.faults());
        }
    }

    #[test]
    fn every_kind_of_fault_is_in_some_scenario() {
        let mut kinds = BTreeSet::new();
        for scenario in ALL {
            for step in scenario.plan(1, 10.0, &topology(scenario), &everything()).steps {
                kinds.insert(step.fault.kind());
                kinds.extend(step.beside.iter().map(|beside| beside.fault.kind()));
            }
        }
        let all = [
            "kill",
            "pause",
            "partition",
            "one-way partition",
            "split",
            "severed link",
            "slow network",
            "wipe",
            "bit rot",
            "full disk",
            "slow disk",
            "failed sync",
            "clock step",
            "add node",
            "retire node",
            "upgrade",
        ];
        assert_eq!(kinds, all.into());
    }

    #[test]
    fn what_a_driver_keeps_from_being_done_is_told() {
        let outage = &ALL[0];
        assert!(outage.left_out(1, 3.0, &topology(outage), &everything()).is_empty());
        let modest: BTreeSet<Ability> = [Ability::Kill, Ability::Pause].into();
        let left_out = outage.left_out(1, 3.0, &topology(outage), &modest);
        assert_eq!(left_out, [Ability::Network, Ability::Links, Ability::Inject].into());
    }

    #[test]
    fn a_cluster_without_the_sites_for_a_scenario_is_refused() {
        for scenario in ALL {
            scenario.check(&topology(scenario)).expect("its own");
            assert!(scenario.check(&Topology::new(2, 3, false)).is_err(), "{}", scenario.name);
            assert_eq!(scenario.check(&Topology::new(3, 2, false)).is_err(), scenario.witness, "{}", scenario.name);
        }
    }

    #[test]
    fn a_plan_asks_only_for_what_the_driver_can_do() {
        let modest: BTreeSet<Ability> = [Ability::Kill, Ability::Pause].into();
        for scenario in ALL {
            let able: BTreeSet<Ability> = modest.iter().chain(scenario.essential).copied().collect();
            for seed in 0..20 {
                let needs = scenario.plan(seed, 2.0, &topology(scenario), &able).needs();
                assert!(needs.is_subset(&able), "{} asks for {needs:?}", scenario.name);
            }
        }
    }

    #[test]
    fn who_only_cuts_both_ways_is_asked_for_nothing_else() {
        let able: BTreeSet<Ability> = [Ability::Kill, Ability::Pause, Ability::Network].into();
        let mut cuts = 0;
        for scenario in ALL.iter().filter(|scenario| scenario.essential.iter().all(|one| able.contains(one))) {
            for seed in 0..20 {
                let topology = topology(scenario);
                for step in scenario.plan(seed, 2.0, &topology, &able).steps {
                    let faults = step.beside.iter().map(|beside| &beside.fault).chain([&step.fault]);
                    let sites = [topology.storing()[0].clone()].into();
                    for links in faults.map(|fault| fault.conditions(&topology, &sites).links) {
                        cuts += links.len();
                        let both = |((from, to), _): (&(String, String), _)| links[&(to.clone(), from.clone())].cut;
                        assert!(links.iter().all(both), "{}", scenario.name);
                    }
                }
            }
        }
        assert!(cuts > 0);
    }

    #[test]
    fn what_takes_data_waits_for_full_contract_afterwards() {
        for scenario in ALL {
            for step in scenario.plan(3, 10.0, &topology(scenario), &everything()).steps {
                let takes = |fault: &Fault| matches!(fault, Fault::Wipe | Fault::FailSync | Fault::Rot { .. });
                if takes(&step.fault) || matches!(step.fault, Fault::Retire | Fault::Fill) {
                    assert_eq!(step.then, Then::Healed, "{}", scenario.name);
                }
                assert!(!step.beside.iter().any(|beside| takes(&beside.fault)), "{}", scenario.name);
            }
        }
    }

    #[test]
    fn a_plan_has_what_its_scenario_is_named_for_and_nothing_without_effect() {
        for scenario in ALL {
            for seed in 0..20 {
                let plan = scenario.plan(seed, 0.01, &topology(scenario), &everything());
                let first = plan.steps.first().expect("a run has a step, however short");
                assert!(scenario.own.contains(&first.fault.kind()), "{}: {:?}", scenario.name, first.fault);
                for beside in &first.beside {
                    assert!(!matches!(beside.fault, Fault::Slow { delay_ms: 0, .. }), "{}", scenario.name);
                }
            }
        }
    }

    #[test]
    fn an_outage_that_is_to_meet_a_repair_waits_for_one() {
        for scenario in ALL {
            let plan = scenario.plan(3, 3.0, &topology(scenario), &everything());
            assert_eq!(plan.meets_repair(), scenario.name == "site-outage-during-repair", "{}", scenario.name);
        }
    }

    #[test]
    fn two_sites_go_away_during_a_repair_and_not_one_twice() {
        let scenario = ALL.iter().find(|one| one.name == "site-outage-during-repair").expect("named");
        for seed in 0..50 {
            let plan = scenario.plan(seed, 3.0, &topology(scenario), &everything());
            for step in plan.steps.iter().filter(|step| step.fault == Fault::Wipe) {
                let sites: BTreeSet<String> = step.beside.iter().map(|beside| beside.who.to_string()).collect();
                assert_eq!(sites.len(), 2, "seed {seed}");
            }
        }
    }

    #[test]
    fn somebody_else_dies_while_a_node_comes_or_goes() {
        let scenario = ALL.iter().find(|one| one.name == "membership-churn").expect("named");
        for step in scenario.plan(1, 5.0, &topology(scenario), &everything()).steps {
            if matches!(step.fault, Fault::Add | Fault::Retire) {
                assert!(step.beside.iter().any(|one| matches!(one.who, Who::Other(_))), "{step:?}");
                assert!(step.beside.iter().all(|one| one.after < step.lasts), "{step:?}");
            }
        }
    }

    #[test]
    fn long_runs_have_outages_that_last_and_short_ones_have_none() {
        let longest = |scenario: &Scenario, minutes| {
            let plan = scenario.plan(1, minutes, &topology(scenario), &everything());
            plan.steps.iter().map(|step| step.lasts.as_secs()).max()
        };
        for (name, short) in
            [("site-outage", 10), ("rolling-site-outages", 10), ("witness-loss", 10), ("asymmetric-partition", 30)]
        {
            let scenario = ALL.iter().find(|one| one.name == name).expect("named");
            assert!(longest(scenario, 3.0) < Some(short), "{name}");
            assert!(longest(scenario, 20.0) >= Some(30), "{name}");
        }
    }

    #[test]
    fn two_sites_that_lose_each_other_still_reach_the_third() {
        let topology = Topology::new(3, 2, false);
        let a: BTreeSet<String> = ["a".to_owned()].into();
        for (draw, other, third) in [(0, "b", "c"), (1, "c", "b")] {
            let fault = Fault::Sever { draw };
            assert_eq!(fault.severed(&topology, &a).map(String::as_str), Some(other));
            let links = fault.conditions(&topology, &a).links;
            assert_eq!(links.len(), 2 * 9);
            assert!(links.values().all(|link| link.cut));
            let there = ("a1".to_owned(), format!("{other}2"));
            assert!(links.contains_key(&there) && links.contains_key(&(there.1.clone(), there.0.clone())));
            let third = topology.hosts(third);
            assert!(!links.keys().any(|(from, to)| third.contains(from) || third.contains(to)));
        }
    }

    #[test]
    fn cuts_are_between_sites_and_in_the_direction_they_say() {
        let topology = Topology::new(3, 2, false);
        let a: BTreeSet<String> = ["a".to_owned()].into();
        let link = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let deaf = Fault::Deafen.conditions(&topology, &a).links;
        assert!(deaf[&link("b1", "a1")].cut && deaf[&link("client-b", "a2")].cut);
        assert!(!deaf.contains_key(&link("a1", "b1")) && !deaf.contains_key(&link("a1", "a2")));
        let mute = Fault::Mute.conditions(&topology, &a).links;
        assert!(mute[&link("a1", "b1")].cut && !mute.contains_key(&link("b1", "a1")));
        let split = Fault::Split.conditions(&topology, &BTreeSet::new()).links;
        assert_eq!(split.len(), 6 * 9);
        assert!(!split.contains_key(&link("a1", "a2")) && !split.contains_key(&link("client-a", "a2")));
        let both = merged([Fault::Deafen.conditions(&topology, &a), Fault::Mute.conditions(&topology, &a)]);
        assert_eq!(both, Fault::Isolate.conditions(&topology, &a));
    }
}
