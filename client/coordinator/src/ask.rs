//! Putting a request to the catalog: whom to ask, when to ask one more, and what the answers of several mean together.
//!
//! A node that gives no answer costs at most the patience of the request ([`patience`]), not its deadline: then the next
//! node is asked too, and the first answer counts. A try that was overtaken runs on until it ends, so that a silent
//! node is known the next time.
//!
//! **Invariants.** Every request is safe to repeat; only one that is safe to repeat at the same time is overtaken. At most
//! [`AT_ONCE_MAX`] tries of one request are waited for. No fault of a try is definite while another may have been, or may
//! yet be, carried out. A request that changes nothing has no outcome to be unsure of.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt,
    channel::oneshot,
    future::{Either, select},
    stream::FuturesUnordered,
};
use pacsvault_core::{catalog::Command, layout::NodeState};
use pacsvault_ports::{
    BoxFuture,
    env::MonoTime,
    peer::{Class, Fault, Reply, Request, Target},
};

use crate::{
    Options,
    cluster::{Cluster, target_of},
};

/// Pause between two rounds of asking every node.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// How long a node that gave no answer is asked after all others: longer than asking a whole site of them in turn.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// How long a node that was overtaken is asked after all others: about an election. It may only have waited for one.
const OVERTAKEN_FOR: Duration = Duration::from_secs(2);
/// How long nodes may all say that they are no members before that is believed: longer than a join takes.
const JOINING_MAX: Duration = Duration::from_secs(3);
/// Tries of one request waited for at once: two silent nodes and one that answers, without burdening a slow cluster
/// more than threefold.
const AT_ONCE_MAX: usize = 3;
/// A replica has not applied what was asked for.
const BEHIND: &str = "PV-REPLICA-BEHIND";

/// The reply to a request that may have been sent more than once.
pub struct Answer {
    pub reply: Reply,
    /// Another try may have been carried out too.
    pub doubtful: bool,
}

impl Cluster {
    /// Asks nodes until one answers, round after round until the operation deadline.
    pub async fn ask(self: &Arc<Self>, request: &Request) -> Result<Reply, Fault> {
        Ok(self.ask_told(request).await?.reply)
    }

    /// As [`Cluster::ask`], and says whether another try may have been carried out too.
    pub async fn ask_told(self: &Arc<Self>, request: &Request) -> Result<Answer, Fault> {
        self.ask_either(request, request).await
    }

    /// As [`Cluster::ask_told`], with `later` instead of `first` once the patience ran out or a replica is behind. Both
    /// ask the same thing, `later` with lower demands.
    pub async fn ask_either(self: &Arc<Self>, first: &Request, later: &Request) -> Result<Answer, Fault> {
        let began = self.env.now().0;
        let mut asking = Asking {
            cluster: self,
            first,
            later,
            end: began + self.options.operation_deadline,
            patience: patience(&self.options, first),
            impatient: false,
            doubtful: false,
            last: Fault::new(Class::Retry, "PV-NO-NODE", "no node of the cluster is known: name at least one endpoint"),
            codes: BTreeSet::new(),
            calls: FuturesUnordered::new(),
            waiting: Vec::new(),
        };
        loop {
            if let Some(answer) = asking.round().await? {
                return Ok(answer);
            }
            let now = self.env.now().0;
            if hopeless(&asking.codes, now.saturating_sub(began)) {
                let mut last = asking.last.clone();
                if last.code == "PV-TRUST" {
                    last.class = Class::Reject;
                }
                return Err(asking.definite(last));
            }
            if now + ROUND_PAUSE >= asking.end {
                return Err(asking.gave_up());
            }
            self.env.sleep(ROUND_PAUSE).await;
        }
    }

    /// Nodes to ask, best first: the one that answered last, own site, others, suspects last; then the seeds.
    fn targets(&self) -> VecDeque<Target> {
        let known = self.known();
        let mut targets: Vec<Target> = known.preferred.iter().cloned().collect();
        if let Some((layout, _)) = &known.layout {
            let mut nodes: Vec<_> = layout.nodes.values().filter(|node| node.state != NodeState::Removed).collect();
            nodes.sort_by_key(|node| {
                (known.suspects.contains_key(&node.id), Some(&node.site) != self.options.site.as_ref(), node.id)
            });
            targets.extend(nodes.into_iter().map(target_of));
        }
        targets.extend(self.options.seeds.iter().cloned());
        let mut met = BTreeSet::new();
        targets.retain(|target| met.insert(target.address.clone()));
        let now = self.env.now();
        targets.sort_by_key(|target| known.silent.get(&target.address).is_some_and(|until| *until > now));
        targets.into()
    }

    fn note_no_answer(&self, target: &Target, fault: &Fault) {
        let mut known = self.known();
        if known.preferred.as_ref() == Some(target) {
            known.preferred = None;
        }
        if matches!(fault.class, Class::Unknown | Class::Retry) && fault.code != BEHIND {
            let until = MonoTime(self.env.now().0 + SILENT_FOR);
            known.silent.insert(target.address.clone(), until);
        }
    }

    /// `target` answered, and before those that are still waited for.
    fn note_answer(&self, target: Target, waiting: &[Target]) {
        let mut known = self.known();
        if waiting.is_empty() || known.preferred.is_none() {
            known.preferred = Some(target);
        }
        let until = MonoTime(self.env.now().0 + OVERTAKEN_FOR);
        for overtaken in waiting {
            let held = known.silent.entry(overtaken.address.clone()).or_insert(until);
            *held = until.max(*held);
        }
    }
}

/// One request on its way.
struct Asking<'a> {
    cluster: &'a Arc<Cluster>,
    first: &'a Request,
    later: &'a Request,
    /// When the operation deadline is over.
    end: Duration,
    /// After so long one more node is asked; never when absent.
    patience: Option<Duration>,
    /// `later` is asked from now on.
    impatient: bool,
    /// A try that ended may have been carried out.
    doubtful: bool,
    last: Fault,
    /// Of the faults of this round.
    codes: BTreeSet<&'static str>,
    calls: FuturesUnordered<BoxFuture<'static, (Target, Result<Reply, Fault>)>>,
    /// Who is asked by `calls`.
    waiting: Vec<Target>,
}

impl Asking<'_> {
    /// Asks every node once. `None`: none answered, and nobody is waited for any more.
    async fn round(&mut self) -> Result<Option<Answer>, Fault> {
        let mut targets = self.cluster.targets();
        self.codes.clear();
        self.ask_next(&mut targets)?;
        loop {
            let one_more = self.patience.filter(|_| !targets.is_empty() && self.calls.len() < AT_ONCE_MAX);
            let ended = match one_more {
                None => self.calls.next().await,
                Some(patience) => match select(self.calls.next(), self.cluster.env.sleep(patience)).await {
                    Either::Left((ended, _)) => ended,
                    Either::Right(((), _)) => {
                        pacsvault_core::sometimes!("recovery: one more node asked while the first is silent");
                        self.impatient = true;
                        self.ask_next(&mut targets)?;
                        continue;
                    }
                },
            };
            let Some((target, result)) = ended else { return Ok(None) };
            self.waiting.retain(|waiting| *waiting != target);
            match result {
                Ok(reply) => {
                    if self.doubtful && matches!(reply, Reply::Outcomes(_)) {
                        pacsvault_core::sometimes!("recovery: unknown outcome settled by asking again");
                    }
                    self.cluster.note_answer(target, &self.waiting);
                    return Ok(Some(Answer { reply, doubtful: self.in_doubt() }));
                }
                Err(fault) => {
                    self.judge(fault)?;
                    self.ask_next(&mut targets)?;
                }
            }
        }
    }

    /// Begins a try at the next node, if there is one. It runs on by itself when it is overtaken.
    fn ask_next(&mut self, targets: &mut VecDeque<Target>) -> Result<(), Fault> {
        let Some(target) = targets.pop_front() else { return Ok(()) };
        let left = self.end.saturating_sub(self.cluster.env.now().0);
        if left.is_zero() {
            return Err(self.gave_up());
        }
        let request = if self.impatient { self.later } else { self.first };
        let deadline = self.cluster.options.catalog_deadline.min(left);
        let call = self.cluster.peer.call(&target, request.clone(), deadline);
        let (done, answer) = oneshot::channel();
        let (cluster, asked) = (self.cluster.clone(), target.clone());
        self.cluster.env.spawn(Box::pin(async move {
            let result = call.await;
            match &result {
                Ok(_) => drop(cluster.known().silent.remove(&asked.address)),
                Err(fault) => cluster.note_no_answer(&asked, fault),
            }
            // The answer of another may have come first.
            let _ = done.send(result);
        }));
        self.waiting.push(target.clone());
        // It may have been sent.
        self.calls.push(Box::pin(async move {
            let stopping =
                || Fault::new(Class::Unknown, "PV-STOPPING", "this process is stopping; try again elsewhere");
            (target, answer.await.unwrap_or_else(|_| Err(stopping())))
        }));
        Ok(())
    }

    /// Ends the operation if the fault is the same wherever one asks.
    fn judge(&mut self, fault: Fault) -> Result<(), Fault> {
        match fault.class {
            Class::Unknown => self.doubtful |= !only_reads(self.first),
            Class::Retry | Class::Exhausted => {}
            Class::Reject | Class::NotFound | Class::Corrupt => return Err(self.definite(fault)),
            // An answer that nobody understands says nothing about what was done.
            Class::Bug => {
                self.doubtful |= !only_reads(self.first);
                return Err(self.definite(fault));
            }
        }
        self.impatient |= fault.code == BEHIND;
        self.codes.insert(fault.code);
        self.last = fault;
        Ok(())
    }

    fn in_doubt(&self) -> bool {
        self.doubtful || !(self.waiting.is_empty() || only_reads(self.first))
    }

    /// `fault`, if it is about the operation and not only about one of its tries.
    fn definite(&self, fault: Fault) -> Fault {
        if self.in_doubt() { in_doubt(&fault) } else { fault }
    }

    fn gave_up(&self) -> Fault {
        let (seconds, last) = (self.cluster.options.operation_deadline.as_secs(), &self.last);
        // PLANTED BUG: what nobody answered was not done.
        if self.in_doubt() && !pacsvault_core::probe::planted("unknown-told-refused") {
            let text = format!("outcome unknown after {seconds} s: {last}; trying again with the same content is safe");
            Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", text)
        } else {
            let text = format!("no node answered within {seconds} s: {last}; see `pacsvault status`");
            Fault::new(Class::Retry, "PV-UNAVAILABLE", text)
        }
    }
}

/// How long to wait for one node alone. Of changes only those are put to two nodes at once that name all they change:
/// content by its attempt, deletions by version.
fn patience(options: &Options, request: &Request) -> Option<Duration> {
    match request {
        Request::Lookup(_) | Request::Layout(_) => Some(options.lookup_patience),
        Request::List(_) => Some(options.change_patience),
        Request::Propose(commands) => {
            let named =
                |command: &Command| matches!(command, Command::Seal(_) | Command::Delete { version: Some(_), .. });
            commands.iter().all(named).then_some(options.change_patience)
        }
        _ => None,
    }
}

/// Requests that leave everything as it is, whether or not they were carried out.
fn only_reads(request: &Request) -> bool {
    matches!(
        request,
        Request::Layout(_)
            | Request::Lookup(_)
            | Request::List(_)
            | Request::Status
            | Request::Health
            | Request::WhatIf(_)
            | Request::DrainPlan(_)
            | Request::ReadIndex
            | Request::GetShard(_)
            | Request::VerifyShards { .. }
            | Request::SnapshotFiles { .. }
            | Request::SnapshotRead { .. }
    )
}

/// A whole round was refused, every node for the same reason, and asking again will not help.
fn hopeless(codes: &BTreeSet<&'static str>, asked_for: Duration) -> bool {
    let only = |code: &str| codes.len() == 1 && codes.contains(code);
    // A node that is being let in says that it is no member, but not for long.
    only("PV-TRUST") || (only("PV-NOT-MEMBER") && asked_for >= JOINING_MAX)
}

/// The fault of a try, when another try of the same request may be carried out.
pub fn in_doubt(fault: &Fault) -> Fault {
    let text = format!(
        "outcome unknown: another try may have been carried out, and one was refused: {fault}; trying again with the same \
         content is safe"
    );
    Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", text)
}
