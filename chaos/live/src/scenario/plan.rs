//! A plan: what is done to a cluster, step by step, as plain data.
//!
//! **Invariants.** A plan follows from scenario, seed, minutes and topology alone. Whom a step means by "the leader" is found
//! when it begins; everything else is decided before the first process starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::{
    driver::Ability,
    net::{Conditions, LinkState},
};

/// The sites of a cluster and their nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Nodes by site.
    pub sites: BTreeMap<String, Vec<String>>,
    /// Sites that only vote.
    pub witnesses: BTreeSet<String>,
    /// Clients by site: hosts of the network besides the nodes.
    pub clients: BTreeMap<String, String>,
}

impl Topology {
    /// `sites` × `nodes` nodes, and a witness site if asked for.
    pub fn new(sites: usize, nodes: usize, witness: bool) -> Self {
        let mut topology = Self::default();
        for (index, letter) in ('a'..='z').take(sites + usize::from(witness)).enumerate() {
            let count = if index < sites { nodes } else { 1 };
            let names = (1..=count).map(|number| format!("{letter}{number}")).collect();
            topology.sites.insert(letter.to_string(), names);
            if index < sites {
                topology.clients.insert(letter.to_string(), format!("client-{letter}"));
            } else {
                topology.witnesses.insert(letter.to_string());
            }
        }
        topology
    }

    /// Sites that store.
    pub fn storing(&self) -> Vec<String> {
        self.sites.keys().filter(|site| !self.witnesses.contains(*site)).cloned().collect()
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.sites.values().flatten().cloned().collect()
    }

    /// Nodes that store.
    pub fn storage_nodes(&self) -> Vec<String> {
        self.storing().iter().filter_map(|site| self.sites.get(site)).flatten().cloned().collect()
    }

    /// The site of a node.
    pub fn site_of(&self, node: &str) -> Option<&str> {
        let found = self.sites.iter().find(|(_, nodes)| nodes.iter().any(|one| one == node));
        found.map(|(site, _)| site.as_str())
    }

    /// All hosts of a site: nodes and client.
    pub fn hosts(&self, site: &str) -> Vec<String> {
        let nodes = self.sites.get(site).cloned().unwrap_or_default();
        nodes.into_iter().chain(self.clients.get(site).cloned()).collect()
    }
}

/// Whom a fault means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// This node.
    Node(String),
    /// All nodes of this site.
    Site(String),
    /// Whoever leads when the step begins.
    Leader,
    /// All nodes of the leader's site.
    LeaderSite,
    /// Some storage node that does not lead; the number decides which.
    Follower(u64),
    /// Some storage node that no fault in force is about; the number decides which.
    Other(u64),
    /// All nodes.
    Everything,
}

impl fmt::Display for Who {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(to, "node {name}"),
            Self::Site(name) => write!(to, "site {name}"),
            Self::Leader => to.write_str("the leader"),
            Self::LeaderSite => to.write_str("the leader's site"),
            Self::Follower(_) => to.write_str("a follower"),
            Self::Other(_) => to.write_str("another node"),
            Self::Everything => to.write_str("all nodes"),
        }
    }
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and a start when the fault is lifted.
    Kill,
    /// SIGSTOP, and SIGCONT when the fault is lifted.
    Pause,
    /// Nothing passes to or from the targets' sites and the others; within a site all is well.
    Isolate,
    /// Targets hear nobody of other sites, but are heard.
    Deafen,
    /// Targets are heard by nobody of other sites, but hear.
    Mute,
    /// No site hears any other.
    Split,
    /// The targets' site and one of the others lose each other, and nobody else: both still reach the rest.
    Sever {
        /// Decides which one.
        draw: u64,
    },
    /// Everything between the targets and other sites is slow and lossy.
    Slow {
        /// On top of the latency of the network.
        delay_ms: u64,
        /// At most this much more.
        jitter_ms: u64,
        /// Packets lost of a thousand.
        loss_per_mille: u16,
    },
    /// kill -9, all data taken, its volumes given up; it joins as a new node after everything is rebuilt elsewhere.
    Wipe,
    /// Stopped, bytes flipped in its files, started, and told to verify all.
    Rot {
        /// Decides which bytes.
        seed: u64,
        /// How many places.
        places: usize,
    },
    /// The disk under the shards is filled to the last byte.
    Fill,
    /// Every disk operation takes longer.
    SlowDisk {
        /// So much.
        delay_ms: u64,
    },
    /// A sync of its volume fails once. The volume goes out of service and is never trusted again; the node joins as a new one with
    /// an empty disk after everything is rebuilt elsewhere.
    FailSync,
    /// The wall clock steps.
    Clock {
        /// So far.
        step_ms: i64,
    },
    /// A node is added to the site, and takes its share.
    Add,
    /// A node is emptied, retired and switched off.
    Retire,
    /// A node is stopped and started with the present release.
    Upgrade,
}

impl Fault {
    /// Kind, as a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Isolate => "partition",
            Self::Deafen | Self::Mute => "one-way partition",
            Self::Split => "split",
            Self::Sever { .. } => "severed link",
            Self::Slow { .. } => "slow network",
            Self::Wipe => "wipe",
            Self::Rot { .. } => "bit rot",
            Self::Fill => "full disk",
            Self::SlowDisk { .. } => "slow disk",
            Self::FailSync => "failed sync",
            Self::Clock { .. } => "clock step",
            Self::Add => "add node",
            Self::Retire => "retire node",
            Self::Upgrade => "upgrade",
        }
    }

    /// What a driver must be able to do for it.
    pub fn needs(&self) -> Ability {
        match self {
            Self::Kill => Ability::Kill,
            Self::Pause => Ability::Pause,
            Self::Isolate | Self::Split => Ability::Network,
            Self::Deafen | Self::Mute | Self::Sever { .. } | Self::Slow { .. } => Ability::Links,
            Self::Wipe => Ability::Wipe,
            Self::Rot { .. } => Ability::Damage,
            Self::Fill => Ability::Fill,
            Self::SlowDisk { .. } | Self::FailSync | Self::Clock { .. } => Ability::Inject,
            Self::Add | Self::Retire => Ability::Add,
            Self::Upgrade => Ability::Upgrade,
        }
    }

    /// In words.
    pub fn what(&self, who: &str) -> String {
        match self {
            Self::Kill => format!("kill -9 of {who}"),
            Self::Pause => format!("{who} stands still (SIGSTOP)"),
            Self::Isolate => format!("{who} is cut off from all other sites"),
            Self::Deafen => format!("{who} hears no other site, but is heard"),
            Self::Mute => format!("{who} is heard by no other site, but hears"),
            Self::Split => "no site reaches any other".to_owned(),
            Self::Sever { .. } => format!("{who} and one other site lose each other"),
            Self::Slow { delay_ms, jitter_ms, loss_per_mille } => {
                format!("{who} is {delay_ms} ms (up to {jitter_ms} ms more) further away and loses {loss_per_mille} ‰")
            }
            Self::Wipe => format!("{who} burns down with its disks"),
            Self::Rot { places, .. } => format!("bytes rot in {places} places on {who}"),
            Self::Fill => format!("the disk of {who} is full"),
            Self::SlowDisk { delay_ms } => format!("every disk operation of {who} takes {delay_ms} ms longer"),
            Self::FailSync => format!("a sync of {who} fails"),
            Self::Clock { step_ms } => format!("the wall clock of {who} steps by {step_ms} ms"),
            Self::Add => format!("a node is added to {who}"),
            Self::Retire => format!("{who} is emptied and retired"),
            Self::Upgrade => format!("{who} is upgraded"),
        }
    }

    /// Sites whose clients this keeps from a majority: nobody promises them anything. Clients of a site whose nodes are all down
    /// or stand still reach the nodes of others.
    pub fn cuts_off(&self, topology: &Topology, sites: &BTreeSet<String>) -> BTreeSet<String> {
        match self {
            Self::Isolate | Self::Deafen | Self::Mute => sites.clone(),
            Self::Split => topology.sites.keys().cloned().collect(),
            Self::Kill | Self::Pause | Self::Sever { .. } | Self::Slow { .. } | Self::Wipe | Self::Rot { .. } => {
                BTreeSet::new()
            }
            Self::Fill | Self::SlowDisk { .. } | Self::FailSync | Self::Clock { .. } => BTreeSet::new(),
            Self::Add | Self::Retire | Self::Upgrade => BTreeSet::new(),
        }
    }

    /// The site that these sites lose, and nobody else does.
    pub fn severed<'a>(&self, topology: &'a Topology, sites: &BTreeSet<String>) -> Option<&'a String> {
        let Self::Sever { draw } = self else { return None };
        let others: Vec<&String> = topology.sites.keys().filter(|site| !sites.contains(*site)).collect();
        others.get(usize::try_from(draw % (others.len().max(1) as u64)).ok()?).copied()
    }

    /// What the network does because of it to these sites; nothing for faults that are not of the network.
    pub fn conditions(&self, topology: &Topology, sites: &BTreeSet<String>) -> Conditions {
        let mut links = BTreeMap::new();
        let other = self.severed(topology, sites);
        for (from_site, to_site) in pairs(topology) {
            let (out, inward) = (sites.contains(&from_site), sites.contains(&to_site));
            let cut = LinkState { cut: true, ..LinkState::default() };
            let state = match self {
                Self::Split => Some(cut),
                Self::Sever { .. } if out && other == Some(&to_site) => Some(cut),
                Self::Sever { .. } if inward && other == Some(&from_site) => Some(cut),
                Self::Isolate if out != inward => Some(cut),
                Self::Deafen if inward && !out => Some(cut),
                Self::Mute if out && !inward => Some(cut),
                Self::Slow { delay_ms, jitter_ms, loss_per_mille } if out != inward => Some(LinkState {
                    extra_delay: Duration::from_millis(*delay_ms),
                    jitter: Duration::from_millis(*jitter_ms),
                    loss_per_mille: *loss_per_mille,
                    ..LinkState::default()
                }),
                _ => None,
            };
            let Some(state) = state else { continue };
            for from in topology.hosts(&from_site) {
                for to in topology.hosts(&to_site) {
                    links.insert((from.clone(), to), state.clone());
                }
            }
        }
        Conditions { links }
    }
}

fn pairs(topology: &Topology) -> Vec<(String, String)> {
    let names: Vec<&String> = topology.sites.keys().collect();
    let all = names.iter().flat_map(|from| names.iter().map(move |to| ((*from).clone(), (*to).clone())));
    all.filter(|(from, to)| from != to).collect()
}

/// What the network does under several faults at once: the worse of each.
pub fn merged(all: impl IntoIterator<Item = Conditions>) -> Conditions {
    let mut merged = Conditions::default();
    for (link, state) in all.into_iter().flat_map(|conditions| conditions.links) {
        let present: &mut LinkState = merged.links.entry(link).or_default();
        present.cut |= state.cut;
        present.extra_delay = present.extra_delay.max(state.extra_delay);
        present.jitter = present.jitter.max(state.jitter);
        present.loss_per_mille = present.loss_per_mille.max(state.loss_per_mille);
        present.bytes_per_second = match (present.bytes_per_second, state.bytes_per_second) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    merged
}

/// What must hold while a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Acknowledged writes and reads are back within the bound.
    Served,
    /// No write that began under the fault is acknowledged under it: no side has a majority.
    NothingAcked,
    /// Nothing is asked.
    Anything,
}

/// When the next step may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// When writes are acknowledged again.
    Served,
    /// When all nodes are there and follow one leader, too.
    Whole,
    /// When all that is stored keeps its contract, too.
    Healed,
}

/// What a fault beside another one waits for, besides its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cue {
    /// Nothing.
    None,
    /// That the cluster is seen to repair something.
    Repair,
}

/// A small fault beside a great one. It harms nothing that the contract counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// After the great one began.
    pub after: Duration,
    /// What it waits for then.
    pub cue: Cue,
    /// What.
    pub fault: Fault,
    /// To whom.
    pub who: Who,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Peace before it.
    pub after: Duration,
    /// What.
    pub fault: Fault,
    /// To whom.
    pub who: Who,
    /// How long at least.
    pub lasts: Duration,
    /// What must hold under it.
    pub meanwhile: Meanwhile,
    /// When it is over.
    pub then: Then,
    /// What comes on top.
    pub beside: Vec<Beside>,
}

/// All steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// What a driver must be able to do for it.
    pub fn needs(&self) -> BTreeSet<Ability> {
        let own = self.steps.iter().map(|step| step.fault.needs());
        own.chain(self.steps.iter().flat_map(|step| &step.beside).map(|beside| beside.fault.needs())).collect()
    }

    /// Whether some fault is to meet a repair.
    pub fn meets_repair(&self) -> bool {
        self.steps.iter().flat_map(|step| &step.beside).any(|beside| beside.cue == Cue::Repair)
    }

    /// Faults in all.
    pub fn faults(&self) -> usize {
        self.steps.iter().map(|step| 1 + step.beside.len()).sum()
    }
}
