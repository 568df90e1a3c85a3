//! Administration: how close to loss the cluster is, what would be, and the changes that people decide.
//!
//! **Invariants.** Questions change nothing and are put to one node after the other until one answers, at most
//! [`LOOK_WITHIN`]. Changes go through the log, may be repeated, and are reported as done only when the catalog accepted
//! them; a refusal keeps its code and its arithmetic.

use std::time::Duration;

use futures::{Stream, stream};
use pacsvault_core::{
    catalog::{Command, Outcome, command::DrainTarget},
    health::{
        Loss,
        report::{DrainPlan, Health, WhatIf},
    },
    ids::{NodeId, ProfileName, Uid, VolumeId},
    layout::{NodeState, Profile, VolumeState},
};
use pacsvault_ports::peer::{Class, Fault, Peer, Reply, Request, Target};
use pacsvault_rpc::fault::rejected;
use tokio::time::timeout;

use crate::Client;

/// How long one node has to answer a question: its way to the leader and back, around the world, and some work.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long all nodes together have.
pub const LOOK_WITHIN: Duration = Duration::from_secs(12);

impl Client {
    /// How close to loss what is stored is, and what is being done about it, as the leader sees it.
    ///
    /// # Errors
    /// Nobody answers, or nobody leads.
    pub async fn health(&self) -> Result<Health, Fault> {
        match self.question(Request::Health).await? {
            Reply::Health(health) => Ok(*health),
            _ => Err(unexpected()),
        }
    }

    /// [`Client::health`] again and again, with `every` between two looks. Never ends by itself.
    pub fn watch_health(&self, every: Duration) -> impl Stream<Item = Result<Health, Fault>> + '_ {
        stream::unfold(true, move |first| async move {
            if !first {
                tokio::time::sleep(every).await;
            }
            Some((self.health().await, false))
        })
    }

    /// What if this were lost now?
    ///
    /// # Errors
    /// Nobody answers; a site, node or volume is unknown.
    pub async fn what_if(&self, loss: Loss) -> Result<WhatIf, Fault> {
        match self.question(Request::WhatIf(loss)).await? {
            Reply::WhatIf(what_if) => Ok(*what_if),
            _ => Err(unexpected()),
        }
    }

    /// What would emptying this mean? While it is being emptied: what is left.
    ///
    /// # Errors
    /// Nobody answers; the node or volume is unknown.
    pub async fn drain_plan(&self, target: DrainTarget) -> Result<DrainPlan, Fault> {
        match self.question(Request::DrainPlan(target)).await? {
            Reply::DrainPlan(plan) => Ok(*plan),
            _ => Err(unexpected()),
        }
    }

    /// Begins to empty a node or a volume.
    ///
    /// # Errors
    /// `PV-IMPOSSIBLE` with the arithmetic when a contract could not be kept without it.
    pub async fn drain(&self, target: DrainTarget) -> Result<(), Fault> {
        self.change(Command::SetDrain { target, draining: true }).await
    }

    /// Ends to empty a node or a volume. What was moved off stays where it is.
    ///
    /// # Errors
    /// The catalog refuses, or nobody answers.
    pub async fn undrain(&self, target: DrainTarget) -> Result<(), Fault> {
        self.change(Command::SetDrain { target, draining: false }).await
    }

    /// Retires a node for good.
    ///
    /// # Errors
    /// Refused while one of its volumes holds a stripe, or a contract could not be kept without it.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), Fault> {
        self.change(Command::SetNodeState { node, state: NodeState::Removed }).await
    }

    /// Takes a volume out of service for good: its shards count as lost and are rebuilt elsewhere.
    ///
    /// # Errors
    /// The catalog refuses, or nobody answers.
    pub async fn fence_volume(&self, volume: VolumeId) -> Result<(), Fault> {
        self.change(Command::SetVolumeState { volume, state: VolumeState::Fenced }).await
    }

    /// Forgets which stripes were set aside, so that their repair is tried again.
    ///
    /// # Errors
    /// The catalog refuses, or nobody answers.
    pub async fn retry_aside(&self) -> Result<(), Fault> {
        self.change(Command::RetryAside).await
    }

    /// The profile that what is stored in a study is to have; `None` leaves everything as it is.
    ///
    /// # Errors
    /// The profile is unknown, or nobody answers.
    pub async fn set_study_profile(&self, study: Uid, profile: Option<ProfileName>) -> Result<(), Fault> {
        let tenant = self.config().tenant.clone();
        self.change(Command::SetStudyProfile { tenant, study, profile }).await
    }

    /// Adds a profile, or changes one for new writes; `make_default` makes it that of writes that name none.
    ///
    /// # Errors
    /// `PV-IMPOSSIBLE` with the arithmetic when its contract cannot hold.
    pub async fn set_profile(&self, profile: Profile, make_default: bool) -> Result<(), Fault> {
        self.change(Command::SetProfile { profile, make_default }).await
    }

    /// Tells one node to verify all shards of its volumes, or of one, at full speed. Returns when it has begun; the node's
    /// status tells progress.
    ///
    /// # Errors
    /// The node does not answer or has no such volume.
    pub async fn scrub_now(&self, node: &Target, volume: Option<VolumeId>) -> Result<(), Fault> {
        match self.peer().call(node, Request::ScrubNow(volume), ANSWER_WITHIN).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Proposes one change of the cluster.
    async fn change(&self, command: Command) -> Result<(), Fault> {
        match self.coordinator().propose(vec![command]).await?.into_iter().next() {
            Some(Outcome::Done) => Ok(()),
            Some(Outcome::Rejected(why)) => Err(rejected(&why)),
            _ => Err(unexpected()),
        }
    }

    /// Asks one node after the other; the first answer or refusal counts.
    async fn question(&self, request: Request) -> Result<Reply, Fault> {
        let mut last = Fault::new(Class::Retry, "PV-UNAVAILABLE", "no node answered in time; see `pacsvault status`");
        let asked = timeout(LOOK_WITHIN, async {
            for host in self.hosts_by_luck().await {
                match self.peer().call(&host, request.clone(), ANSWER_WITHIN).await {
                    Ok(reply) => return Ok(Some(reply)),
                    Err(fault) if matches!(fault.class, Class::Retry | Class::Unknown | Class::Exhausted) => {
                        self.note_host(&host, &fault);
                        // A question leaves nothing in doubt.
                        last = Fault { class: Class::Retry, ..fault };
                    }
                    Err(fault) => return Err(fault),
                }
            }
            Ok(None)
        });
        match asked.await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Err(fault)) => Err(fault),
            Ok(Ok(None)) | Err(_) => Err(last),
        }
    }
}

fn unexpected() -> Fault {
    Fault::new(Class::Bug, "PV-BUG", "the cluster answered something else than was asked")
}
