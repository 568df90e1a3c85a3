//! What people and tools ask of health: how it is, what if, what would emptying mean.
//!
//! **Invariants.** Health is the leader's word, told with the layout it was judged on. What-if and drain plans are the leader's
//! too, for it alone knows how full disks are and how fast repair is. Where none answers they are made here, with what the
//! catalog says of room: a what-if then of what this replica has applied, for that is when people ask; a drain plan only from a
//! linearizable read, because it may say that a node is empty, and never as a safe one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pacsvault_core::{
    catalog::{command::DrainTarget, query},
    health::{
        Group, Loss, Room, StripeState,
        drain::drain_plan,
        report::{DrainPlan, Health, NodeHealth, VolumeHealth, WhatIf},
        what_if::what_if,
    },
    ids::VolumeId,
    layout::{Layout, NodeState, VolumeState},
};
use pacsvault_ports::{
    env::blocking,
    peer::{Class, Fault, Freshness, Reply, Request},
};

use crate::{
    Healer,
    conductor::{REPAIRS_FROM, Reign, stopping, target_of, unreadable},
    pass::{Surveyed, read_all},
};

/// Repair rate assumed until one was measured, in bytes per second: half of what two cores reach.
const RATE_ASSUMED: u64 = 50 << 20;
/// How long a leader that has just begun is waited for.
const FIRST_SURVEY: Duration = Duration::from_secs(5);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the leader may take to tell.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);

impl Healer {
    /// Health as the leader sees it; asked of it when that is another.
    ///
    /// # Errors
    /// Nobody leads, or the leader has not yet looked.
    pub async fn health(&self) -> Result<Health, Fault> {
        let status = self.parts.replica.status();
        let leader = status.leader.filter(|leader| *leader != status.node);
        let Some(leader) = leader else { return self.health_here().await };
        let layout = self.parts.replica.layout();
        let target = layout.and_then(|layout| target_of(&layout, leader));
        let target =
            target.ok_or_else(|| Fault::new(Class::Retry, "PV-NO-LEADER", "the leader's address is not known yet"))?;
        match self.parts.peer.call(&target, Request::Health, FORWARD_DEADLINE).await? {
            Reply::Health(health) => Ok(*health),
            _ => Err(Fault::new(Class::Bug, "PV-BUG", "health was answered with something else")),
        }
    }

    /// Health as this node sees it; only when it leads.
    ///
    /// # Errors
    /// It does not lead, or has not yet looked.
    pub async fn health_here(&self) -> Result<Health, Fault> {
        let began = self.parts.env.now().0;
        loop {
            let now = self.parts.env.now().0;
            let told = self.reign(|reign| reign.surveyed.clone().map(|surveyed| self.tell(reign, &surveyed, now)));
            match told {
                None => {
                    return Err(Fault::new(Class::Retry, "PV-NOT-LEADER", "this node does not lead; ask the leader"));
                }
                Some(Some(health)) => return Ok(health),
                Some(None) if now.saturating_sub(began) >= FIRST_SURVEY => {
                    let text = "this leader has not judged the catalog yet; ask again";
                    return Err(Fault::new(Class::Retry, "PV-UNAVAILABLE", text));
                }
                Some(None) => self.parts.env.sleep(LOOK_EVERY).await,
            }
        }
    }

    fn tell(&self, reign: &mut Reign, surveyed: &Surveyed, now: Duration) -> Health {
        let (layout, survey) = (&surveyed.ground.layout, &surveyed.survey);
        let mut sites: Vec<_> = layout.nodes.values().map(|node| node.site.clone()).collect();
        sites.sort_unstable();
        sites.dedup();
        let rate = reign.desk.progress.rate(now);
        let waiting_bytes: u64 = survey.waiting.values().map(|sums| sums.shard_bytes).sum();
        let mut held_back: Vec<String> = survey.held_back.clone();
        held_back.extend(reign.held_back.iter().filter(|reason| !survey.held_back.contains(reason)).cloned());
        if layout.format < REPAIRS_FROM {
            held_back
                .push(format!("nothing is repaired before every node runs version {REPAIRS_FROM}: finish the upgrade"));
        }
        held_back.extend(reign.desk.resting(now));
        held_back.extend(self.recode_reasons());
        Health {
            leader: self.parts.replica.status().node,
            layout: layout.version,
            format: layout.format,
            by_tier: survey.by_tier.clone(),
            below_contract: survey.below_contract,
            worst: survey.worst,
            sites_away: sites.into_iter().filter(|site| layout.site_away(site)).collect(),
            waiting: survey.waiting.clone(),
            in_progress: reign.desk.flying() as u64,
            rate_bytes_per_s: rate,
            done_stripes: reign.desk.progress.done_stripes,
            done_bytes: reign.desk.progress.done_bytes,
            wan_bytes: reign.desk.progress.wan_bytes,
            eta_s: (waiting_bytes > 0).then(|| waiting_bytes.checked_div(rate)).flatten(),
            held_back,
            aside: surveyed.asides.0.clone(),
            aside_total: surveyed.asides.1,
            nodes: nodes(reign, layout, now),
            volumes: volumes(reign, surveyed),
        }
    }

    /// Asks the leader, when that is another; nothing when there is none or it does not answer.
    async fn ask_leader(&self, request: Request) -> Option<Reply> {
        let status = self.parts.replica.status();
        let leader = status.leader.filter(|leader| *leader != status.node)?;
        let target = target_of(&*self.parts.replica.layout()?, leader)?;
        match self.parts.peer.call(&target, request, FORWARD_DEADLINE).await {
            Ok(reply) => Some(reply),
            Err(fault) => {
                tracing::info!(%leader, code = fault.code, %fault, "the leader does not tell; answering from here");
                None
            }
        }
    }

    /// What if this were lost now: the leader's answer, or this node's when there is none.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn what_if(&self, loss: Loss) -> Result<WhatIf, Fault> {
        match self.ask_leader(Request::WhatIf(loss.clone())).await {
            Some(Reply::WhatIf(answer)) => Ok(*answer),
            Some(_) => Err(Fault::new(Class::Bug, "PV-BUG", "a what-if was answered with something else")),
            None => self.what_if_here(loss).await,
        }
    }

    /// What if this were lost now, as far as this node knows.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn what_if_here(&self, loss: Loss) -> Result<WhatIf, Fault> {
        let status = self.parts.replica.status();
        if status.leader == Some(status.node)
            && let Err(fault) = self.parts.replica.wait(Freshness::Linearizable).await
        {
            tracing::info!(code = fault.code, %fault, "no majority confirms the catalog; what-if is of what is applied here");
        }
        let voters = self.parts.replica.status().voters;
        let (rate, known) = self.figures();
        let answer = self.with_catalog(move |layout, groups, incomplete| {
            let rooms = known.unwrap_or_else(|| rooms_of(layout, groups));
            what_if(&loss, layout, &voters, groups, incomplete, &rooms, rate)
        });
        answer.await
    }

    /// What emptying this would mean: the leader's answer, or this node's when there is none.
    ///
    /// # Errors
    /// The catalog cannot be read, or is not known to be fresh.
    pub async fn drain_plan(&self, target: DrainTarget) -> Result<DrainPlan, Fault> {
        match self.ask_leader(Request::DrainPlan(target)).await {
            Some(Reply::DrainPlan(plan)) => Ok(*plan),
            Some(_) => Err(Fault::new(Class::Bug, "PV-BUG", "a drain plan was answered with something else")),
            None => self.drain_plan_here(target).await,
        }
    }

    /// What emptying this would mean, as far as this node knows; not safe unless it leads and so knows the room there is.
    ///
    /// # Errors
    /// The catalog cannot be read, or is not known to be fresh.
    pub async fn drain_plan_here(&self, target: DrainTarget) -> Result<DrainPlan, Fault> {
        self.parts.replica.wait(Freshness::Linearizable).await?;
        let (rate, known) = self.figures();
        let answer = self.with_catalog(move |layout, groups, _| match known {
            Some(rooms) => drain_plan(target, layout, groups, &rooms, rate),
            None => {
                let mut plan = drain_plan(target, layout, groups, &rooms_of(layout, groups), rate);
                plan.safe = false;
                plan.reasons.push(
                    "no leader answers, and it alone knows how much is free on the volumes: the room told here is what the \
                     catalog leaves of their capacity; ask again"
                        .to_owned(),
                );
                plan
            }
        });
        answer.await
    }

    /// The measured rate of repair or the assumed one, and the rooms of volumes where they are known.
    fn figures(&self) -> (u64, Option<BTreeMap<VolumeId, Room>>) {
        let now = self.parts.env.now().0;
        let known = self.reign(|reign| (reign.desk.progress.rate(now), reign.liveness.rooms()));
        let (rate, rooms) = known.map_or((0, None), |(rate, rooms)| (rate, Some(rooms)));
        (if rate > 0 { rate } else { RATE_ASSUMED }, rooms)
    }

    async fn with_catalog<T: Send + 'static>(
        &self,
        judge: impl FnOnce(&Layout, &[Group], &[StripeState]) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let layout: Arc<Layout> = self.parts.replica.layout().ok_or_else(|| {
            Fault::new(Class::Retry, "PV-NOT-MEMBER", "this node has not heard of the cluster yet; ask another")
        })?;
        let view = self.parts.replica.view();
        let judged = blocking(self.parts.env.as_ref(), move || {
            let (groups, incomplete) = read_all(view.as_ref())?;
            Ok(judge(&layout, &groups, &incomplete))
        });
        judged.await.ok_or_else(stopping)?.map_err(|error| unreadable(&error))
    }
}

/// Rooms as far as the catalog knows: what is placed on a volume is used, the rest of its capacity free.
fn rooms_of(layout: &Layout, groups: &[Group]) -> BTreeMap<VolumeId, Room> {
    let sums = query::volume_sums(groups);
    let room = |(id, volume): (&VolumeId, &pacsvault_core::layout::Volume)| {
        let capacity_bytes = volume.capacity_bytes;
        let used_bytes = sums.get(id).map_or(0, |sums| sums.shard_bytes);
        (*id, Room { capacity_bytes, used_bytes, free_bytes: capacity_bytes.saturating_sub(used_bytes) })
    };
    layout.volumes.iter().map(room).collect()
}

fn nodes(reign: &Reign, layout: &Layout, now: Duration) -> Vec<NodeHealth> {
    let silences = Healer::silences(reign, now);
    let beats = reign.liveness.last_beats();
    let members = layout.nodes.values().filter(|node| node.state != NodeState::Removed);
    let one = |node: &pacsvault_core::layout::Node| NodeHealth {
        node: node.id,
        silent_ms: silences.get(&node.id).map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        allowed_bytes_per_s: beats.get(&node.id).map(|(_, beat)| beat.allowed_bytes_per_s),
    };
    members.map(one).collect()
}

fn volumes(reign: &Reign, surveyed: &Surveyed) -> Vec<VolumeHealth> {
    let sums = query::volume_sums(&surveyed.groups);
    let beats = reign.liveness.last_beats();
    let known = surveyed.ground.layout.volumes.values().filter(|volume| volume.state != VolumeState::Fenced);
    let one = |volume: &pacsvault_core::layout::Volume| {
        let beat = beats.get(&volume.node).map(|(_, beat)| beat);
        let served = beat.and_then(|beat| beat.volumes.iter().find(|served| served.volume == volume.id));
        VolumeHealth {
            volume: volume.id,
            catalog_bytes: sums.get(&volume.id).map_or(0, |sums| sums.shard_bytes),
            used_bytes: served.map_or(0, |served| served.used_bytes),
            free_bytes: served.map_or(0, |served| served.free_bytes),
            scrub: served.map(|served| served.scrub.clone()).unwrap_or_default(),
        }
    };
    known.map(one).collect()
}
