//! Proposals on the leader: gathered into entries, submitted in order, answered one by one.
//!
//! **Invariants.** At most `queue_max` proposals wait and at most [`ENTRIES_IN_FLIGHT_MAX`] entries are uncommitted; more
//! are refused or wait. An entry holds whole proposals: at most `COMMANDS_PER_ENTRY_MAX` commands, and at most
//! `entry_bytes_max` bytes unless one proposal alone is larger. A proposal waits for company only while others are in
//! flight, and no longer than `linger`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, select};
use openraft::{
    AsyncRuntime, Raft,
    errors::{ClientWriteError, ForwardToLeader},
    impls::OneshotResponder,
};
use pacsvault_core::{
    catalog::{Command, Entry, Outcome, wire::encode_entry},
    limits::COMMANDS_PER_ENTRY_MAX,
};
use pacsvault_ports::{
    env::SharedEnv,
    peer::{Class, Fault},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    state::StateMachine,
    types::{Data, Types},
};

/// Entries proposed and not yet answered: 128 × 256 KiB = 32 MiB at worst, and at 80 ms per round trip 1 600 entries/s.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 128;

type Answer = Result<Vec<Outcome>, Fault>;
type Reply = oneshot::Sender<Answer>;

/// Commands of one caller.
pub(crate) struct Proposal {
    pub(crate) commands: Vec<Command>,
    pub(crate) bytes: usize,
    pub(crate) reply: Reply,
}

/// Fault of a proposal that nobody has seen.
pub(crate) fn not_leader<R: AsyncRuntime>(forward: &ForwardToLeader<Types<R>>) -> Fault {
    let message = match forward.leader_id {
        Some(leader) => format!("this node does not lead ({:?}); node {leader} may", forward.reason),
        None => format!("this node does not lead ({:?}), and no leader is known", forward.reason),
    };
    Fault::new(Class::Retry, "PV-NOT-LEADER", message)
}

/// Fault of a proposal that may yet be applied.
pub(crate) fn unknown(why: impl std::fmt::Display) -> Fault {
    let message = format!("the outcome is unknown ({why}); repeat the request with the same ids");
    Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", message)
}

/// About how many bytes `commands` take in the log; only batching depends on it.
pub(crate) fn estimate_bytes(commands: &[Command]) -> usize {
    commands.iter().map(estimate).sum()
}

fn estimate(command: &Command) -> usize {
    let Command::Seal(seal) = command else { return 256 };
    let stripes: usize = seal.stripes.iter().map(|stripe| 64 + 18 * stripe.placement.len()).sum();
    let attributes: usize = seal.attributes.iter().map(|attribute| 12 + attribute.value.len()).sum();
    let reserved = &seal.reserved;
    let blind: usize = reserved.blind_index.iter().map(|key| key.len() + 2).sum();
    384 + stripes + attributes + blind + reserved.wrapped_key.len() + reserved.encrypted_attributes.len()
}

/// Gathers proposals into entries.
pub(crate) struct Batcher<R: AsyncRuntime> {
    pub(crate) raft: Raft<Types<R>, StateMachine>,
    pub(crate) env: SharedEnv,
    pub(crate) queue: mpsc::Receiver<Proposal>,
    pub(crate) entry_bytes_max: usize,
    pub(crate) linger: Duration,
}

#[derive(Default)]
struct Gathered {
    proposals: Vec<Proposal>,
    commands: usize,
    bytes: usize,
}

impl Gathered {
    fn admits(&self, next: &Proposal, bytes_max: usize) -> bool {
        self.proposals.is_empty()
            || (self.commands + next.commands.len() <= COMMANDS_PER_ENTRY_MAX && self.bytes + next.bytes <= bytes_max)
    }

    fn add(&mut self, next: Proposal) {
        self.commands += next.commands.len();
        self.bytes += next.bytes;
        self.proposals.push(next);
    }
}

impl<R: AsyncRuntime> Batcher<R> {
    /// Runs until the queue is closed and empty.
    pub(crate) async fn run(mut self) {
        let permits = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
        let in_flight = Arc::new(AtomicUsize::new(0));
        let mut carried: Option<Proposal> = None;
        loop {
            let Some(first) = (match carried.take() {
                Some(first) => Some(first),
                None => self.queue.recv().await,
            }) else {
                return;
            };
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let mut gathered = Gathered::default();
            gathered.add(first);
            carried = self.gather(&mut gathered, in_flight.load(Ordering::Relaxed) > 0).await;
            self.submit(gathered, permit, in_flight.clone()).await;
        }
    }

    /// Adds what waits, and, if `patient`, what comes within the linger time. Answers what did not fit.
    async fn gather(&mut self, gathered: &mut Gathered, patient: bool) -> Option<Proposal> {
        let mut over = self.env.sleep(self.linger);
        loop {
            let next = match self.queue.try_recv() {
                Ok(next) => next,
                Err(_) if !patient => return None,
                Err(_) => match select(Box::pin(self.queue.recv()), &mut over).await {
                    Either::Left((Some(next), _)) => next,
                    Either::Left((None, _)) | Either::Right(_) => return None,
                },
            };
            if next.reply.is_closed() {
                continue;
            }
            if !gathered.admits(&next, self.entry_bytes_max) {
                return Some(next);
            }
            gathered.add(next);
        }
    }

    async fn submit(&self, gathered: Gathered, permit: OwnedSemaphorePermit, in_flight: Arc<AtomicUsize>) {
        let mut commands = Vec::with_capacity(gathered.commands);
        let mut waiting = Vec::with_capacity(gathered.proposals.len());
        for proposal in gathered.proposals {
            waiting.push((proposal.commands.len(), proposal.reply));
            commands.extend(proposal.commands);
        }
        let entry = Entry { time: self.env.wall(), commands };
        let data = Data(Bytes::from(encode_entry(&entry)));
        let (responder, answer) = OneshotResponder::<Types<R>, _>::new_pair();
        if let Err(stopped) = self.raft.client_write_ff(data, Some(responder)).await {
            let fault = Fault::new(Class::Retry, "PV-REPLICA-STOPPED", format!("the replica has stopped: {stopped}"));
            return respond(waiting, Err(fault));
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        self.env.spawn(Box::pin(async move {
            let outcomes = match answer.await {
                Ok(Ok(applied)) => Ok(applied.data),
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
                Ok(Err(error)) => Err(unknown(error)),
                Err(_) => Err(unknown("the replica has stopped")),
            };
            in_flight.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
            respond(waiting, outcomes);
        }));
    }
}

/// Gives each proposal its share. Callers that gave up are skipped.
fn respond(waiting: Vec<(usize, Reply)>, outcomes: Answer) {
    match outcomes {
        Err(fault) => {
            for (_, reply) in waiting {
                let _ = reply.send(Err(fault.clone()));
            }
        }
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for (count, reply) in waiting {
                let share: Vec<Outcome> = outcomes.by_ref().take(count).collect();
                assert_eq!(share.len(), count, "INVARIANT: one outcome per command");
                let _ = reply.send(Ok(share));
            }
        }
    }
}
