//! How a cluster's nodes are started, killed and harmed, wherever they run.
//!
//! **Invariants.** What a driver cannot do it refuses with an error that names the ability, and it changes nothing then.

pub mod kubectl;
pub mod local;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::bail;
use pacsvault_core::ids::{Digest, InstanceId};
pub use pacsvault_runtime::inject::Inject;

use crate::{
    net::{Conditions, Traffic},
    record::NodeInfo,
};

/// Something a driver may be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ability {
    /// Kill nodes at once and start them again.
    Kill,
    /// Stop nodes in mid-air and let them go on.
    Pause,
    /// Cut links, both ways.
    Network,
    /// Slow links down, lose packets on them, and cut them one way.
    Links,
    /// Take all data from a node.
    Wipe,
    /// Flip bytes in a node's files.
    Damage,
    /// Fill a node's disk.
    Fill,
    /// Step a node's clock, slow its disk, fail its syncs.
    Inject,
    /// Add nodes, and let them go again.
    Add,
    /// Start with the previous release and go on with the present one.
    Upgrade,
    /// Open the volumes of stopped nodes.
    Volumes,
}

impl Ability {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Network,
        Self::Links,
        Self::Wipe,
        Self::Damage,
        Self::Fill,
        Self::Inject,
        Self::Add,
        Self::Upgrade,
        Self::Volumes,
    ];
}

impl fmt::Display for Ability {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Kill => "kill nodes",
            Self::Pause => "pause nodes",
            Self::Network => "cut the network",
            Self::Links => "slow links down and cut them one way",
            Self::Wipe => "wipe nodes",
            Self::Damage => "damage files",
            Self::Fill => "fill disks",
            Self::Inject => "step clocks, slow disks and fail syncs",
            Self::Add => "add nodes",
            Self::Upgrade => "upgrade nodes",
            Self::Volumes => "open the volumes of stopped nodes",
        })
    }
}

/// How nodes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: without a chance to finish anything.
    Sudden,
    /// SIGTERM, and SIGKILL a second later: as a fault it is called a stop.
    Told,
}

/// A cluster whose nodes can be harmed.
pub trait Driver: Send {
    /// All nodes, also stopped ones.
    fn nodes(&self) -> Vec<NodeInfo>;

    /// What it can do.
    fn abilities(&self) -> BTreeSet<Ability>;

    /// Kills nodes at once, in the way of [`Driver::death`].
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn kill(&mut self, nodes: &[String]) -> anyhow::Result<()>;

    /// How it kills.
    fn death(&self) -> Death {
        Death::Sudden
    }

    /// Starts killed nodes again.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn start(&mut self, nodes: &[String]) -> anyhow::Result<()>;

    /// Stops nodes in mid-air.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn pause(&mut self, _nodes: &[String]) -> anyhow::Result<()> {
        lacks(Ability::Pause)
    }

    /// Lets paused nodes go on.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn resume(&mut self, _nodes: &[String]) -> anyhow::Result<()> {
        lacks(Ability::Pause)
    }

    /// Makes the network do this from now on.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn shape(&mut self, _conditions: &Conditions) -> anyhow::Result<()> {
        lacks(Ability::Network)
    }

    /// Takes everything from a killed node but its name.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn wipe(&mut self, _node: &str) -> anyhow::Result<()> {
        lacks(Ability::Wipe)
    }

    /// Damages `places` places in the stored content of a node, chosen by `seed`; tells what was done.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn damage(&mut self, _node: &str, _seed: u64, _places: usize) -> anyhow::Result<String> {
        lacks(Ability::Damage)
    }

    /// Takes all space that is left on a node's disk.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn fill(&mut self, _node: &str) -> anyhow::Result<()> {
        lacks(Ability::Fill)
    }

    /// Gives that space back.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn relieve(&mut self, _node: &str) -> anyhow::Result<()> {
        lacks(Ability::Fill)
    }

    /// Sets what a node's fault port does.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn inject(&mut self, _node: &str, _inject: &Inject) -> anyhow::Result<()> {
        lacks(Ability::Inject)
    }

    /// Whether a running node says that this setting of its fault port is in force.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn injected(&self, _node: &str, _inject: &Inject) -> anyhow::Result<bool> {
        lacks(Ability::Inject)
    }

    /// What has arrived on each link so far; absent when nobody counts.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Adds and starts a node in a site; returns its name.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn add_node(&mut self, _site: &str) -> anyhow::Result<String> {
        lacks(Ability::Add)
    }

    /// Whether one more node could be added to a site.
    fn has_room(&self, _site: &str) -> bool {
        self.abilities().contains(&Ability::Add)
    }

    /// Forgets a node that the cluster let go, and stops it.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn forget(&mut self, _node: &str) -> anyhow::Result<()> {
        lacks(Ability::Add)
    }

    /// Kills a node, and starts it with the present release.
    ///
    /// # Errors
    /// Unable, or whatever stands in the way.
    fn upgrade(&mut self, _node: &str) -> anyhow::Result<()> {
        lacks(Ability::Upgrade)
    }

    /// Nodes that run the previous release.
    fn outdated(&self) -> Vec<String> {
        Vec::new()
    }

    /// Where the harness itself reaches each node, besides the network that is shaped; empty: where the layout says.
    fn addresses(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Stops all nodes and proves from their volumes that these instances are stored at full contract; tells figures.
    ///
    /// # Errors
    /// Unable, or what is not as promised.
    fn prove(&mut self, _promised: &BTreeMap<InstanceId, (u64, Digest)>) -> anyhow::Result<String> {
        lacks(Ability::Volumes)
    }

    /// Panics that nodes have logged, also those that the process survived; absent when this driver cannot tell.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn panics(&self) -> anyhow::Result<Option<Vec<String>>> {
        Ok(None)
    }

    /// Nodes whose process ended by itself, or not in order when it was told to stop, since this was asked last, with how; absent
    /// when this driver cannot tell.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn ended(&mut self) -> anyhow::Result<Option<Vec<(String, String)>>> {
        Ok(None)
    }

    /// Has [`Driver::ended`] know of all that happened until now.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn look_again(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn lacks<T>(ability: Ability) -> anyhow::Result<T> {
    bail!("this driver cannot {ability}")
}
