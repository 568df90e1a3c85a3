//! How a node becomes and stays a member: founding a cluster, joining one, returning to it.
//!
//! **Invariants.**
//! - The node id is written down durably before the replica starts under it, and never changes while this data directory
//!   lives. A node whose incarnation the cluster does not know under its name is refused by `apply`.
//! - A node that may have been let in somewhere never founds: whom it asked is written down before it asks, and struck out
//!   only when it is sure that nothing came of it.
//! - A cluster is founded on an operator's word alone, whose profiles are then the ones it gets; a founder that crashed
//!   half-way waits for that word to be repeated.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection},
    ids::{ClusterId, LayoutVersion, LogIndex, NodeId},
    layout::{
        Profile as StorageProfile,
        plan::{Topology, defaults_for},
    },
};
use pacsvault_ports::{
    env::SharedEnv,
    peer::{Class, Fault, Freshness, Reply, Request, Target},
};

use crate::Node;

/// Pause between two tries to join, to introduce oneself or to fence.
pub const RETRY_EVERY: Duration = Duration::from_millis(500);
/// Pause between two looks whether the cluster knows this node as it is.
const KNOWN_EVERY: Duration = Duration::from_secs(5);
/// How long one try to join may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a seed may take to say whether it is a member before a cluster is founded without its answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Id of the node that founds a cluster; `apply` gives the others 2, 3, ….
const FOUNDER: NodeId = NodeId(1);

/// Whether this node began the cluster. A founder that crashed half-way is founded again by its operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Founding {
    /// It was let in by others.
    Joined,
    /// It made the cluster, or was about to.
    Founder,
}

/// What a node must remember to come back as itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Given by the cluster.
    pub node: NodeId,
    /// Which cluster.
    pub cluster: ClusterId,
    /// How it came in.
    pub founding: Founding,
}

/// Where a node remembers. Implemented by the shell over its data directory.
pub trait Registry: Send + Sync + 'static {
    /// What was saved.
    fn load(&self) -> Result<Option<Membership>, Fault>;
    /// Saves; durable when it returns.
    fn save(&self, membership: &Membership) -> Result<(), Fault>;
    /// Addresses that were asked to let this node in, and may have done so without its knowing.
    fn asked(&self) -> Result<BTreeSet<String>, Fault>;
    /// Replaces [`Registry::asked`]; durable when it returns.
    fn save_asked(&self, asked: &BTreeSet<String>) -> Result<(), Fault>;
}

/// What a node says of itself to one that wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It belongs to a cluster.
    Member,
    /// It belongs to none.
    Outside,
}

/// Whether a seed had been asked before without a known end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// This is the first time.
    Never,
    /// It may have let this node in already.
    Before,
}

/// The topology a new cluster is made for when its operator names no profiles: three sites with two storage nodes.
fn expected_topology() -> Topology {
    let sites = ["a", "b", "c"].into_iter().filter_map(|name| name.parse().ok());
    Topology::with_nodes(sites.map(|site| (site, 2)))
}

/// Introduces the node again whenever the cluster has another picture of it: what an earlier life of it said, of an older
/// version perhaps, may have been under way for long, and come last.
async fn stay_known(env: SharedEnv, node: Weak<Node>) {
    let mut tried = None;
    loop {
        env.sleep(KNOWN_EVERY).await;
        let Some(node) = node.upgrade() else { return };
        let Some(version) = node.known_otherwise().filter(|version| tried != Some(*version)) else { continue };
        // Perhaps only this replica is behind.
        let Ok(replica) = node.member() else { continue };
        if replica.wait(Freshness::Linearizable).await.is_err() || node.known_otherwise() != Some(version) {
            continue;
        }
        pacsvault_core::sometimes!("recovery: cluster told again what a node is like");
        tracing::info!("the cluster knows this node by what it was; introducing it again");
        if node.introduce_once().await.is_ok() {
            // Accepted, or refused for as long as the layout stays so.
            tried = Some(version);
        }
    }
}

impl Node {
    /// Runs the node's membership: comes back, joins or waits to be founded, then introduces itself to the cluster.
    /// Ends when the node is a member and known with its present address and volumes.
    pub async fn run(self: Arc<Self>) -> Result<(), Fault> {
        if let Some(membership) = self.registry.load()? {
            self.check_cluster(&membership)?;
            self.start(membership.node).await?;
            if membership.founding == Founding::Founder && self.member()?.layout().is_none() {
                tracing::warn!("if founding the cluster was cut short, run `pacsvault cluster init` again");
            }
        }
        let mut told = String::new();
        while self.replica().is_none() {
            if let Err(fault) = self.try_join(&self.profile.join).await {
                if fault.class == Class::Reject {
                    return Err(fault);
                }
                // Each reason once: it may take an operator to change it, and a node that waits in silence shows none.
                if fault.message != told {
                    tracing::warn!(code = fault.code, %fault, "not let into the cluster yet; trying again");
                    told.clone_from(&fault.message);
                }
            }
            if self.replica().is_none() {
                self.env.sleep(RETRY_EVERY).await;
            }
        }
        self.introduce().await;
        self.env.spawn(Box::pin(stay_known(self.env.clone(), Arc::downgrade(&self))));
        Ok(())
    }

    /// The version of the layout, when it has this node otherwise than it is.
    fn known_otherwise(&self) -> Option<LayoutVersion> {
        let layout = self.replica()?.layout()?;
        let own = self.introduction();
        let known = layout.nodes.values().find(|node| node.incarnation == own.incarnation)?;
        let volumes = own.volumes.iter().all(|(id, capacity_bytes)| {
            layout.volumes.get(id).is_some_and(|one| one.node == known.id && one.capacity_bytes == *capacity_bytes)
        });
        let same = (&known.address, known.roles, known.version) == (&own.address, own.roles, own.version);
        (!same || !volumes).then_some(layout.version)
    }

    fn check_cluster(&self, membership: &Membership) -> Result<(), Fault> {
        if membership.cluster == self.profile.cluster {
            return Ok(());
        }
        let text = format!(
            "this data directory belongs to cluster {}, the certificate to cluster {}: use the right certificate, or an empty \
             directory",
            membership.cluster, self.profile.cluster
        );
        Err(Fault::new(Class::Reject, "PV-OTHER-CLUSTER", text))
    }

    async fn start(&self, node: NodeId) -> Result<Arc<dyn Replica>, Fault> {
        let replica = self.starter.start(node).await?;
        self.serve_replica(&replica);
        tracing::info!(%node, name = %self.profile.name, "replica started");
        Ok(replica)
    }

    /// Makes a new cluster of this node alone. Safe to repeat.
    pub(crate) async fn found(&self, profiles: &[StorageProfile]) -> Result<NodeId, Fault> {
        // Held to the end: no join can begin meanwhile.
        let _joining = self.joining.lock().await;
        self.may_found().await?;
        if self.replica().is_none() {
            let membership = Membership { node: FOUNDER, cluster: self.profile.cluster, founding: Founding::Founder };
            self.registry.save(&membership)?;
            self.start(FOUNDER).await?;
        }
        self.finish_founding(profiles).await?;
        Ok(FOUNDER)
    }

    /// Refuses when this node belongs to a cluster, may belong to one, or can see the one it would double.
    async fn may_found(&self) -> Result<(), Fault> {
        let refused = |text: String| Err(Fault::new(Class::Reject, "PV-ALREADY-MEMBER", text));
        // A member that has not heard of its cluster yet has no layout: only the registry knows that it joined one.
        let joined = self.registry.load()?.is_some_and(|known| known.founding == Founding::Joined);
        if joined || self.replica().is_some_and(|replica| replica.layout().is_some()) {
            return refused("this node already belongs to a cluster; `pacsvault status` shows it".to_owned());
        }
        if let Some(seed) = self.registry.asked()?.first() {
            return refused(format!(
                "this node has asked {seed} to be let into its cluster and may be a member there: let it join, or wipe its \
                 data directory to found another cluster"
            ));
        }
        let probes =
            self.profile.join.iter().map(|seed| async move { (seed, self.standing(seed, PROBE_DEADLINE).await) });
        for (seed, standing) in futures::future::join_all(probes).await {
            if standing == Ok(Standing::Member) {
                return refused(format!("{} is already a member of this cluster: join it instead", seed.address));
            }
        }
        Ok(())
    }

    /// Asks `seed` whether it is a member. Asking commits to nothing.
    async fn standing(&self, seed: &Target, deadline: Duration) -> Result<Standing, Fault> {
        match self.peer.call(seed, Request::Status, deadline).await? {
            Reply::Status(status) if status.node.is_some() && !status.voters.is_empty() => Ok(Standing::Member),
            Reply::Status(_) => Ok(Standing::Outside),
            _ => Err(Fault::new(Class::Bug, "PV-BUG", "a status answered something else")),
        }
    }

    async fn finish_founding(&self, profiles: &[StorageProfile]) -> Result<(), Fault> {
        let replica = self.member()?;
        if replica.status().last_log == LogIndex(0) {
            match replica.initialise().await {
                // Its first entry is at index 0, too: a founder that was cut short right then goes on from there.
                Err(fault) if fault.code == "PV-ALREADY-INITIALISED" => {}
                initialised => initialised?,
            }
        }
        let built_in = defaults_for(&expected_topology());
        let profiles = if profiles.is_empty() { &built_in[..] } else { profiles };
        let init = Command::InitCluster {
            cluster: self.profile.cluster,
            profiles: profiles.to_vec(),
            default_profile: profiles[0].name.clone(),
        };
        let outcomes = replica.propose(vec![init, Command::JoinNode(self.introduction())]).await?;
        match outcomes.last() {
            Some(Outcome::Joined(node)) if *node == FOUNDER => Ok(()),
            Some(Outcome::Rejected(why)) => Err(Fault::new(Class::Reject, "PV-REJECTED", why.to_string())),
            other => Err(Fault::new(Class::Bug, "PV-BUG", format!("founding answered {other:?}"))),
        }
    }

    /// Joins through `seeds`, on an operator's word.
    pub(crate) async fn join_via(&self, seeds: &[Target]) -> Result<NodeId, Fault> {
        if self.replica().is_none() {
            self.try_join(seeds).await?;
        }
        Ok(self.member()?.status().node)
    }

    async fn try_join(&self, seeds: &[Target]) -> Result<(), Fault> {
        let mut last = Fault::new(Class::Retry, "PV-NOT-MEMBER", "no node to join is configured");
        for seed in seeds {
            match self.join_at(seed).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.class == Class::Reject => return Err(fault),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    async fn join_at(&self, seed: &Target) -> Result<(), Fault> {
        // Only a member is asked, so that nodes that wait to be founded leave no traces on each other. That a seed is outside
        // says nothing of what came of asking it before: a member that is starting says so, too.
        if self.standing(seed, JOIN_DEADLINE).await? == Standing::Outside {
            let text = format!("{} is not a member of the cluster yet", seed.address);
            return Err(Fault::new(Class::Retry, "PV-NOT-MEMBER", text));
        }
        let Some(before) = self.remember_asked(seed).await? else { return Ok(()) };
        let fault = match self.peer.call(seed, Request::Join(self.introduction()), JOIN_DEADLINE).await {
            Ok(Reply::Joined { node, cluster, incarnation })
                if cluster == self.profile.cluster && incarnation == self.profile.incarnation =>
            {
                let _joining = self.joining.lock().await;
                if self.replica().is_none() {
                    self.registry.save(&Membership { node, cluster, founding: Founding::Joined })?;
                    self.start(node).await?;
                }
                return Ok(());
            }
            Ok(_) => Fault::new(Class::Bug, "PV-BUG", "a join answered something else"),
            Err(fault) => fault,
        };
        // Nothing came of this try. Of an earlier one, whose answer was lost, that says nothing.
        if before == Asked::Never && matches!(fault.class, Class::Retry | Class::Reject | Class::Exhausted) {
            self.forget_asked(seed).await?;
        }
        Err(fault)
    }

    /// Writes down that `seed` is about to be asked; `None` when this node has become a member meanwhile.
    async fn remember_asked(&self, seed: &Target) -> Result<Option<Asked>, Fault> {
        let _joining = self.joining.lock().await;
        if self.replica().is_some() {
            return Ok(None);
        }
        let mut asked = self.registry.asked()?;
        if !asked.insert(seed.address.clone()) {
            return Ok(Some(Asked::Before));
        }
        self.registry.save_asked(&asked)?;
        Ok(Some(Asked::Never))
    }

    async fn forget_asked(&self, seed: &Target) -> Result<(), Fault> {
        let _joining = self.joining.lock().await;
        let mut asked = self.registry.asked()?;
        if asked.remove(&seed.address) { self.registry.save_asked(&asked) } else { Ok(()) }
    }

    /// Tells the cluster the present address, volumes and version, until it has them.
    async fn introduce(&self) {
        loop {
            match self.introduce_once().await {
                Ok(()) => return,
                Err(fault) => tracing::debug!(%fault, "could not introduce this node yet"),
            }
            self.env.sleep(RETRY_EVERY).await;
        }
    }

    async fn introduce_once(&self) -> Result<(), Fault> {
        let outcomes = self.member()?.propose(vec![Command::JoinNode(self.introduction())]).await?;
        if let Some(Outcome::Rejected(why @ Rejection::ClusterState(_))) = outcomes.first() {
            // It is being founded.
            return Err(Fault::new(Class::Retry, "PV-NOT-MEMBER", why.to_string()));
        }
        if let Some(Outcome::Rejected(why)) = outcomes.first() {
            // An operator must act: the log has another view of this name or of one of its volumes.
            tracing::error!(%why, "the cluster refuses this node's introduction");
        }
        Ok(())
    }

    /// Answers another node that wants in.
    pub(crate) async fn admit(&self, join: pacsvault_core::catalog::command::JoinNode) -> Result<Reply, Fault> {
        let replica = self.member()?;
        let incarnation = join.incarnation;
        let outcomes = replica.propose(vec![Command::JoinNode(join)]).await?;
        match outcomes.into_iter().next() {
            Some(Outcome::Joined(node)) => Ok(Reply::Joined { node, cluster: self.profile.cluster, incarnation }),
            // It is being founded at this moment: the next try will do.
            Some(Outcome::Rejected(why @ Rejection::ClusterState(_))) => {
                Err(Fault::new(Class::Retry, "PV-NOT-MEMBER", why.to_string()))
            }
            Some(Outcome::Rejected(why)) => Err(Fault::new(Class::Reject, "PV-JOIN-REFUSED", why.to_string())),
            other => Err(Fault::new(Class::Bug, "PV-BUG", format!("joining answered {other:?}"))),
        }
    }

    /// Where this node asks to be let in.
    pub fn seeds(&self) -> &[Target] {
        &self.profile.join
    }
}
