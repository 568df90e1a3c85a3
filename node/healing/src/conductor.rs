//! The conductor: what the leader does about the health of the cluster. Two loops of one node that do nothing while another
//! leads. One listens: who lives, and what the log must hear of it. One works: survey, plan, hand out tasks, take answers.
//!
//! **Invariants.** Everything known here is derived from the catalog and from signs of life, and forgotten when the term
//! changes. Nothing is repaired before [`REPAIRS_FROM`] is in force. No lock is held across an await. Reads of the catalog run as
//! blocking work, in bounded pieces, so that listening never waits for planning.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::select;
use pacsvault_core::{
    catalog::{Command, Outcome},
    health::{liveness::Liveness, report::Done},
    ids::{NodeId, Term},
    layout::Layout,
    limits::COMMANDS_PER_ENTRY_MAX,
};
use pacsvault_ports::{
    env::blocking,
    peer::{Class, Fault, Reply, Request, Target},
};

use crate::{
    Healer,
    desk::{After, Desk, Flight},
    pass::{Ground, Pass, Surveyed, Wish},
    telemetry,
};

/// Version of commands from which on repair is possible: it stays so whatever newer versions bring, also while nodes of
/// both run side by side.
pub(crate) const REPAIRS_FROM: u32 = 2;
/// A task may have to wait for room, for the budget and for slow volumes; one whose worker dies is given up by layout.
const TASK_DEADLINE: Duration = Duration::from_secs(600);
/// A survey is repeated at the earliest after so many times the time it took: planning takes a tenth of one core at most.
const SURVEY_SHARE: u32 = 10;
/// While nothing is to be done, a survey is made every so many heartbeats.
const IDLE_BEATS: u32 = 5;
/// Shortest pause of the working loop.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// What a leader knows in one term.
pub struct Reign {
    /// The term.
    pub term: Term,
    /// Who lives.
    pub liveness: Liveness,
    /// What is being done.
    pub desk: Desk,
    /// The last judgement of everything.
    pub surveyed: Option<Arc<Surveyed>>,
    /// Why work that the last pass looked at is not being done.
    pub held_back: BTreeSet<String>,
}

/// What only the working loop knows.
#[derive(Default)]
pub struct Bench {
    term: Term,
    pass: Option<Pass>,
    surveyed_at: Duration,
    survey_took: Duration,
    /// Something was finished since the last survey.
    moved: bool,
}

impl Healer {
    /// The reign of this node, begun when it leads and has none of this term; ended when it does not lead.
    pub(crate) fn reign<T>(&self, look: impl FnOnce(&mut Reign) -> T) -> Option<T> {
        let status = self.parts.replica.status();
        let mut reign = self.lock_reign();
        if status.leader != Some(status.node) || status.fatal.is_some() {
            if reign.take().is_some() {
                pacsvault_core::sometimes!("recovery: deposed leader left repair to the next");
                tracing::info!(term = %status.term, "no longer looks after the cluster's health");
                telemetry::conducts(false);
            }
            return None;
        }
        if reign.as_ref().is_none_or(|known| known.term != status.term) {
            tracing::info!(term = %status.term, "looks after the cluster's health");
            telemetry::conducts(true);
            let pace = &self.parts.pace;
            *reign = Some(Reign {
                term: status.term,
                liveness: Liveness::new(pace.clone(), self.parts.env.now().0),
                desk: Desk::new(pace.repair_parallel),
                surveyed: None,
                held_back: BTreeSet::new(),
            });
        }
        reign.as_mut().map(look)
    }

    /// Listens for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        let half = self.parts.pace.heartbeat / 2;
        loop {
            let now = self.parts.env.now().0;
            let layout = self.parts.replica.layout();
            let asked = layout.as_ref().and_then(|layout| {
                self.reign(|reign| (reign.liveness.tick(now, layout), reign.liveness.next_wakeup(now, layout)))
            });
            let pause = match asked {
                Some((commands, wakeup)) => {
                    self.propose(commands);
                    wakeup.saturating_sub(now).clamp(Duration::from_millis(5), half)
                }
                None => half,
            };
            self.parts.env.sleep(pause).await;
        }
    }

    /// Proposes in the background; what fails is proposed again by whoever still wants it.
    fn propose(&self, commands: Vec<Command>) {
        for chunk in commands.chunks(COMMANDS_PER_ENTRY_MAX) {
            let (replica, chunk) = (self.parts.replica.clone(), chunk.to_vec());
            self.parts.env.spawn(Box::pin(async move {
                for command in &chunk {
                    tracing::info!(?command, "proposes");
                }
                match replica.propose_local(chunk).await {
                    Ok(outcomes) => {
                        for outcome in outcomes {
                            if let Outcome::Rejected(why) = outcome {
                                tracing::info!(%why, "the log refused what the conductor proposed");
                            }
                        }
                    }
                    Err(fault) => tracing::debug!(code = fault.code, %fault, "cannot propose now"),
                }
            }));
        }
    }

    /// Works for ever.
    pub(crate) async fn conduct(self: Arc<Self>) {
        let mut bench = Bench::default();
        loop {
            if let Err(fault) = self.step(&mut bench).await {
                tracing::warn!(code = fault.code, %fault, "cannot look after the cluster's health now");
            }
            let pause = (self.parts.pace.heartbeat / 4).max(PAUSE_MIN);
            select(self.parts.env.sleep(pause), std::pin::pin!(self.wake.notified())).await;
        }
    }

    async fn step(self: &Arc<Self>, bench: &mut Bench) -> Result<(), Fault> {
        let now = self.parts.env.now().0;
        let ended = std::mem::take(&mut *self.lock_ended());
        let Some(layout) = self.parts.replica.layout() else { return Ok(()) };
        let after = self.reign(|reign| {
            let after: Vec<After> =
                ended.iter().map(|(flight, result)| reign.desk.finish(*flight, now, result)).collect();
            (reign.term, after)
        });
        let Some((term, after)) = after else {
            *bench = Bench::default();
            return Ok(());
        };
        if bench.term != term {
            *bench = Bench { term, ..Bench::default() };
        }
        bench.moved |= !ended.is_empty();
        ended.iter().filter_map(|(_, result)| result.as_ref().ok()).for_each(telemetry::done);
        self.propose(after.into_iter().filter_map(aside).collect());
        if self.survey_due(bench, now, &layout) {
            self.survey(bench, &layout).await?;
        }
        if layout.format >= REPAIRS_FROM {
            self.plan(bench).await?;
            self.dispatch(&layout);
        }
        Ok(())
    }

    /// At once when the layout has changed; otherwise as often as there is work, and as it is cheap.
    fn survey_due(&self, bench: &Bench, now: Duration, layout: &Layout) -> bool {
        let Some(pass) = &bench.pass else { return true };
        let known = &pass.surveyed;
        if known.ground.layout.version != layout.version || known.ground.layout.format != layout.format {
            return true;
        }
        let beat = self.parts.pace.heartbeat;
        // Silence grows by itself: while there is any, what it allows may change at any time.
        let waiting = !known.incomplete.is_empty() || !known.survey.work.is_empty() || !known.ground.silent.is_empty();
        let busy = bench.moved || waiting;
        let gap = if pass.ended() && busy { beat } else { beat * IDLE_BEATS };
        now.saturating_sub(bench.surveyed_at) >= gap.max(bench.survey_took * SURVEY_SHARE)
    }

    async fn survey(&self, bench: &mut Bench, layout: &Arc<Layout>) -> Result<(), Fault> {
        let began = self.parts.env.now().0;
        let ground = self.reign(|reign| Ground {
            layout: layout.clone(),
            silent: reign.liveness.silent(began, layout),
            rooms: reign.liveness.rooms(),
            pace: self.parts.pace.clone(),
            time: self.parts.replica.catalog_time(),
        });
        let Some(ground) = ground else { return Ok(()) };
        let (view, applied) = (self.parts.replica.view(), self.parts.replica.status().applied);
        let made = blocking(self.parts.env.as_ref(), move || Surveyed::make(view.as_ref(), ground, applied)).await;
        let surveyed = Arc::new(made.ok_or_else(stopping)?.map_err(|error| unreadable(&error))?);
        let now = self.parts.env.now().0;
        (bench.surveyed_at, bench.survey_took, bench.moved) = (now, now.saturating_sub(began), false);
        let changed = bench.pass.as_ref().is_none_or(|pass| pass.surveyed.ground.layout.version != layout.version);
        bench.pass = Some(Pass::new(surveyed.clone(), bench.pass.take()));
        self.reign(|reign| {
            if changed {
                reign.desk.layout_changed(layout);
            }
            reign.held_back.clear();
            reign.surveyed = Some(surveyed.clone());
            telemetry::surveyed(&surveyed, &mut reign.desk, now);
        });
        Ok(())
    }

    /// Plans a piece when the desk runs low.
    async fn plan(&self, bench: &mut Bench) -> Result<(), Fault> {
        let Some(mut pass) = bench.pass.take() else { return Ok(()) };
        let now = self.parts.env.now().0;
        let layout = pass.surveyed.ground.layout.clone();
        let Some(mut wish) = self.reign(|reign| Wish::of(&reign.desk, &pass, &layout, now)).flatten() else {
            bench.pass = Some(pass);
            return Ok(());
        };
        let view = self.parts.replica.view();
        let planned = blocking(self.parts.env.as_ref(), move || {
            let found = pass.go(view.as_ref(), &mut wish);
            (pass, found)
        });
        let (pass, found) = planned.await.ok_or_else(stopping)?;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                bench.pass = Some(pass);
                return Err(unreadable(&error));
            }
        };
        // A long stretch without work: go on at once, unless it is because workers have enough.
        let barren = found.tasks.is_empty() && found.looked() > 0;
        let aside = found.impossible.into_iter().map(|(stripe, reason)| After::SetAside(stripe, reason));
        self.propose(aside.filter_map(self::aside).collect());
        let on = self.reign(|reign| {
            reign.desk.add(found.tasks);
            reign.held_back.extend(found.held_back);
            barren && Wish::of(&reign.desk, &pass, &layout, now).is_some()
        });
        bench.pass = Some(pass);
        if on == Some(true) {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Sends tasks to workers that have room.
    fn dispatch(self: &Arc<Self>, layout: &Layout) {
        let now = self.parts.env.now().0;
        loop {
            let id = self.flights.fetch_add(1, Ordering::Relaxed);
            let next = self.reign(|reign| reign.desk.next(id, now, layout)).flatten();
            let Some(Flight { worker, task }) = next else { return };
            let Some(target) = target_of(layout, worker) else { continue };
            tracing::debug!(instance = %task.instance, stripe = %task.stripe, tier = %task.tier, %worker, "hands out a task");
            let healer = self.clone();
            self.parts.env.spawn(Box::pin(async move {
                let request = Request::Repair(Box::new(task));
                let result = match healer.parts.peer.call(&target, request, TASK_DEADLINE).await {
                    Ok(Reply::Repaired(done)) => Ok(done),
                    Ok(_) => Err(Fault::new(Class::Bug, "PV-BUG", "a task was answered with something else")),
                    Err(fault) => Err(fault),
                };
                if let Err(fault) = &result {
                    tracing::info!(%worker, code = fault.code, %fault, "a task was not done");
                } else if let Ok(Done::Irreparable(reason)) = &result {
                    tracing::warn!(%worker, reason, "a stripe cannot be repaired for now");
                }
                healer.lock_ended().push((id, result));
                healer.wake.notify_one();
            }));
        }
    }

    /// What nodes are silent and since when, as this leader hears it: for [`crate::answers`].
    pub(crate) fn silences(reign: &Reign, now: Duration) -> BTreeMap<NodeId, Duration> {
        let beats = reign.liveness.last_beats().iter();
        beats.map(|(node, (at, _))| (*node, now.saturating_sub(*at))).collect()
    }
}

fn aside(after: After) -> Option<Command> {
    match after {
        After::Nothing => None,
        After::SetAside((instance, stripe), reason) => Some(Command::SetAside { instance, stripe, reason }),
    }
}

/// How to reach a node.
pub(crate) fn target_of(layout: &Layout, node: NodeId) -> Option<Target> {
    let node = layout.nodes.get(&node)?;
    Some(Target { address: node.address.clone(), name: Some(node.name.clone()) })
}

pub(crate) fn stopping() -> Fault {
    Fault::new(Class::Retry, "PV-STOPPING", "this node is stopping")
}

pub(crate) fn unreadable(error: &pacsvault_core::catalog::Error) -> Fault {
    Fault::new(Class::Bug, "PV-CATALOG", format!("the catalog of this node cannot be read: {error}"))
}
