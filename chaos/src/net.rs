//! The simulated network: carries `Request` and `Reply` between hosts of several sites, badly when told to.
//!
//! **Invariants.**
//! - Every call ends no later than its deadline by the caller's clock.
//! - A fault of class `Retry` means that the request reached no service; anything less certain is `Unknown`.
//! - A request runs as a task of the callee's life, so that a crash of the callee abandons it half done. A caller that
//!   stops waiting cancels the request, once the news has crossed the network; across a cut it never does.
//! - Messages are delayed, lost and repeated by the seed alone.
//! - What a held link holds back arrives when it is released, all at once and in drawn order, whether or not its sender still
//!   waits. Messages neither stay in it for ever nor vanish.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    channel::oneshot,
    future::{Either, select},
};
use pacsvault_core::{ids::LogIndex, shard::DurableShard};
use pacsvault_ports::{
    BoxFuture,
    peer::{Caller, Class, Fault, Peer, Reply, Request, Service, Target},
};

use crate::{
    exec::{Life, Sim},
    scenario::PlantedBug,
    trace,
};

mod trap;

pub use trap::{Sprung, Trap};
use trap::{answer_gist, gist, kind};

/// After so long without an answer to its pings a connection is given up.
const KEEPALIVE: Duration = Duration::from_secs(9);

/// A machine on the network: a node or a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

/// What a host without a running service does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// The machine runs, the process does not: connections are refused at once.
    Refuses,
    /// The machine has no power: nothing comes back.
    Silent,
}

/// How bad the network is.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Most added delay per message, in microseconds.
    pub jitter_micros: u64,
    /// Messages of 1,000 that are lost or retransmitted late.
    pub loss_per_mille: u64,
    /// Requests of 1,000 that arrive twice.
    pub duplicate_per_mille: u64,
    /// Messages of 1,000 that are held back for up to a second.
    pub hold_per_mille: u64,
}

impl Weather {
    /// Jitter only.
    pub fn fair() -> Self {
        Self { jitter_micros: 300, loss_per_mille: 0, duplicate_per_mille: 0, hold_per_mille: 0 }
    }
}

/// What does not see what, whatever is cut and mended meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Barrier {
    /// Nobody in this site sees anybody outside, and the other way round.
    pub site: Option<usize>,
    /// From, to.
    pub links: BTreeSet<(HostId, HostId)>,
}

struct Host {
    name: String,
    site: usize,
    address: String,
    service: Result<(Life, Arc<dyn Service>), Absence>,
}

struct State {
    hosts: Vec<Host>,
    /// One-way latency in microseconds between sites.
    latency_micros: Vec<Vec<u64>>,
    cuts: BTreeSet<(HostId, HostId)>,
    barrier: Barrier,
    /// Messages that wait in links which are held.
    held: BTreeMap<(HostId, HostId), Vec<oneshot::Sender<Duration>>>,
    /// Microseconds that a link takes longer.
    slow: BTreeMap<(HostId, HostId), u64>,
    weather: Weather,
    /// Links with weather of their own.
    storms: BTreeMap<(HostId, HostId), Weather>,
    bug: Option<PlantedBug>,
    trap: Option<(Trap, Sprung)>,
}

/// The network of one simulation.
pub struct Net {
    sim: Sim,
    state: Mutex<State>,
}

/// Fate of one message.
enum Passage {
    Arrives(Duration),
    /// Stays in the link until it is told how much longer it takes.
    Waits(oneshot::Receiver<Duration>),
    Vanishes,
}

impl State {
    fn weather(&self, from: HostId, to: HostId) -> &Weather {
        self.storms.get(&(from, to)).unwrap_or(&self.weather)
    }

    fn bars(&self, from: HostId, to: HostId) -> bool {
        let inside = |host: HostId| Some(self.hosts[host.0].site) == self.barrier.site;
        inside(from) != inside(to) || self.barrier.links.contains(&(from, to))
    }
}

impl Net {
    /// A network between sites with the given one-way latencies.
    pub fn new(sim: Sim, latency_micros: Vec<Vec<u64>>) -> Arc<Self> {
        let state = State {
            hosts: Vec::new(),
            latency_micros,
            cuts: BTreeSet::new(),
            barrier: Barrier::default(),
            held: BTreeMap::new(),
            slow: BTreeMap::new(),
            weather: Weather::fair(),
            storms: BTreeMap::new(),
            bug: None,
            trap: None,
        };
        Arc::new(Self { sim, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a machine without a running service. Its address is `name:7000`.
    pub fn add_host(&self, name: &str, site: usize) -> HostId {
        let mut state = self.state();
        let address = format!("{name}:7000");
        state.hosts.push(Host { name: name.to_owned(), site, address, service: Err(Absence::Refuses) });
        let host = HostId(state.hosts.len() - 1);
        self.sim.event("host", &[host.0 as u64], || name.to_owned());
        host
    }

    /// Where `host` is dialled.
    pub fn address(&self, host: HostId) -> String {
        self.state().hosts[host.0].address.clone()
    }

    /// The service of `host` runs in `life` from now on.
    pub fn serve(&self, host: HostId, life: Life, service: Arc<dyn Service>) {
        let before = std::mem::replace(&mut self.state().hosts[host.0].service, Ok((life, service)));
        drop(before);
    }

    /// The service of `host` is gone.
    pub fn stop(&self, host: HostId, absence: Absence) {
        let before = std::mem::replace(&mut self.state().hosts[host.0].service, Err(absence));
        drop(before);
    }

    /// Messages from `from` to `to` vanish. The other direction is not touched.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.state().cuts.insert((from, to));
        self.sim.event("cut", &[from.0 as u64, to.0 as u64], String::new);
    }

    /// Undoes one cut.
    pub fn mend(&self, from: HostId, to: HostId) {
        self.state().cuts.remove(&(from, to));
        self.sim.event("mend", &[from.0 as u64, to.0 as u64], String::new);
    }

    /// Messages from `from` to `to` pile up in the link from now on.
    pub fn hold(&self, from: HostId, to: HostId) {
        self.state().held.entry((from, to)).or_default();
        self.sim.event("hold", &[from.0 as u64, to.0 as u64], String::new);
    }

    /// What piled up in the link arrives, in drawn order.
    pub fn release(&self, from: HostId, to: HostId) {
        let piled = self.state().held.remove(&(from, to)).unwrap_or_default();
        self.sim.event("release", &[from.0 as u64, to.0 as u64, piled.len() as u64], String::new);
        for message in piled {
            self.sim.hit("message held and released");
            let after = self.sim.random(|rng| rng.micros(1, 2_000));
            // Nobody may wait for it any more.
            let _ = message.send(after);
        }
    }

    /// Messages from `from` to `to` take so much longer. Zero: as ever.
    pub fn slow_down(&self, from: HostId, to: HostId, micros: u64) {
        self.sim.event("slow link", &[from.0 as u64, to.0 as u64, micros], String::new);
        let slow = &mut self.state().slow;
        if micros == 0 {
            slow.remove(&(from, to));
        } else {
            slow.insert((from, to), micros);
        }
    }

    /// Raises a barrier, which only [`Net::heal`] takes away.
    pub fn raise(&self, barrier: Barrier) {
        self.sim.event("barrier", &[barrier.links.len() as u64], || format!("{barrier:?}"));
        self.state().barrier = barrier;
    }

    /// Removes every cut and barrier, releases what is held, and no link is slower than it should be.
    pub fn heal(&self) {
        let held: Vec<(HostId, HostId)> = {
            let mut state = self.state();
            state.cuts.clear();
            state.barrier = Barrier::default();
            state.slow.clear();
            state.storms.clear();
            state.held.keys().copied().collect()
        };
        held.into_iter().for_each(|(from, to)| self.release(from, to));
        self.sim.event("heal", &[], String::new);
    }

    /// Makes nodes misbehave on purpose.
    pub fn plant(&self, bug: Option<PlantedBug>) {
        self.state().bug = bug;
    }

    /// What a misbehaving node answers instead of doing its work.
    fn misbehaves(&self, request: &Request) -> Option<Reply> {
        match (self.state().bug, request) {
            (Some(PlantedBug::NodeAcksUnwritten), Request::PutShard(put)) if self.sim.random(|rng| rng.chance(100)) => {
                let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
                Some(Reply::Durable(durable))
            }
            (Some(PlantedBug::ReadIndexUnconfirmed), Request::ReadIndex) => Some(Reply::ReadIndex(LogIndex(0))),
            _ => None,
        }
    }

    /// Calls `sprung` with sender and receiver when such a request is delivered next. A trap set before is gone.
    pub fn set_trap(&self, trap: Trap, sprung: Sprung) {
        let before = self.state().trap.replace((trap, sprung));
        drop(before);
    }

    fn spring(&self, from: HostId, to: HostId, request: &Request) {
        let sprung = self.state().trap.take_if(|(trap, _)| trap.catches(request));
        if let Some((_, sprung)) = sprung {
            sprung(from, to);
        }
    }

    /// Changes how bad the network is.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Changes how bad one direction of a link is; `None`: as bad as the network is.
    pub fn set_weather_of(&self, from: HostId, to: HostId, weather: Option<Weather>) {
        let storms = &mut self.state().storms;
        match weather {
            Some(weather) => drop(storms.insert((from, to), weather)),
            None => drop(storms.remove(&(from, to))),
        }
    }

    /// The network as `host` sees it; calls run on the clock of `life` and are made as `caller`.
    pub fn peer(self: &Arc<Self>, host: HostId, life: Life, caller: Caller) -> Arc<SimPeer> {
        Arc::new(SimPeer { net: Arc::clone(self), host, life, caller })
    }

    /// Sends a message; true when it has arrived.
    async fn travel(&self, from: HostId, to: HostId) -> bool {
        let passage = self.passage(from, to);
        self.arrive(passage).await
    }

    /// Waits until a message has arrived; false when it never will.
    async fn arrive(&self, passage: Passage) -> bool {
        let delay = match passage {
            Passage::Arrives(delay) => delay,
            Passage::Waits(released) => match released.await {
                Ok(delay) => delay,
                Err(oneshot::Canceled) => return false,
            },
            Passage::Vanishes => return false,
        };
        self.sim.sleep(Life::HARNESS, delay).await;
        true
    }

    fn passage(&self, from: HostId, to: HostId) -> Passage {
        let mut state = self.state();
        if from == to {
            return Passage::Arrives(Duration::from_micros(20));
        }
        if state.cuts.contains(&(from, to)) || state.bars(from, to) {
            self.sim.hit("message into a cut");
            self.sim.event("lost", &[from.0 as u64, to.0 as u64], || "into a cut".to_owned());
            return Passage::Vanishes;
        }
        if let Some(piled) = state.held.get_mut(&(from, to)) {
            let (message, released) = oneshot::channel();
            piled.push(message);
            return Passage::Waits(released);
        }
        let base = state.latency_micros[state.hosts[from.0].site][state.hosts[to.0].site];
        let base = base + state.slow.get(&(from, to)).copied().unwrap_or(0);
        let weather = state.weather(from, to);
        self.sim.random(|rng| {
            let mut micros = base + rng.below(weather.jitter_micros + base / 4 + 1);
            if rng.chance(weather.loss_per_mille) {
                // Half of the losses are repaired by a retransmission, the others break the stream.
                if rng.chance(500) {
                    return Passage::Vanishes;
                }
                micros += rng.range(200_000, 800_000);
            }
            if rng.chance(weather.hold_per_mille) {
                micros += rng.below(1_000_000);
            }
            Passage::Arrives(Duration::from_micros(micros))
        })
    }

    fn resolve(&self, target: &Target) -> Result<HostId, Fault> {
        let state = self.state();
        let at = state.hosts.iter().position(|host| host.address == target.address);
        let at = at.ok_or_else(|| refused(&target.address))?;
        match &target.name {
            Some(name) if name.as_str() != state.hosts[at].name => {
                Err(Fault::new(Class::Reject, "PV-IDENTITY", format!("{} is not {name}", target.address)))
            }
            _ => Ok(HostId(at)),
        }
    }
}

fn refused(address: &str) -> Fault {
    Fault::new(Class::Retry, "PV-UNREACHABLE", format!("{address} refused the connection"))
}

fn broken(address: &str) -> Fault {
    Fault::new(Class::Unknown, "PV-CONNECTION-LOST", format!("the connection to {address} broke"))
}

fn late(address: &str, deadline: Duration) -> Fault {
    Fault::new(Class::Unknown, "PV-DEADLINE", format!("{address} did not answer within {} ms", deadline.as_millis()))
}

/// One host's view of the network.
pub struct SimPeer {
    net: Arc<Net>,
    host: HostId,
    life: Life,
    caller: Caller,
}

impl Peer for SimPeer {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let address = target.address.clone();
        let exchange = Exchange {
            net: Arc::clone(&self.net),
            from: self.host,
            caller: self.caller.clone(),
            to: self.net.resolve(target),
            address: address.clone(),
        };
        // A clock that ran behind must not shorten a call to nothing, and a call must end: one nanosecond to one hour.
        let deadline = deadline.clamp(Duration::from_nanos(1), Duration::from_secs(3_600));
        let limit = self.net.sim.sleep(self.life, deadline);
        Box::pin(async move {
            match select(Box::pin(exchange.run(request)), limit).await {
                Either::Left((result, _)) => result,
                Either::Right(((), _)) => Err(late(&address, deadline)),
            }
        })
    }
}

/// One call on its way.
#[derive(Clone)]
struct Exchange {
    net: Arc<Net>,
    from: HostId,
    caller: Caller,
    to: Result<HostId, Fault>,
    address: String,
}

impl Exchange {
    /// Nothing comes back: the connection's own signs of life end the call.
    async fn silence(&self) -> Result<Reply, Fault> {
        self.net.sim.sleep(Life::HARNESS, KEEPALIVE).await;
        Err(broken(&self.address))
    }

    async fn run(self, request: Request) -> Result<Reply, Fault> {
        let to = match &self.to {
            Ok(to) => *to,
            Err(fault) => {
                self.net.sim.sleep(Life::HARNESS, Duration::from_micros(500)).await;
                return Err(fault.clone());
            }
        };
        let passage = self.net.passage(self.from, to);
        if matches!(passage, Passage::Vanishes) {
            return self.silence().await;
        }
        let (reply, replied) = oneshot::channel();
        let (_cancel, cancelled) = oneshot::channel();
        let sent = self.clone();
        // Once sent, a request travels even if its sender dies or gives up.
        let carry = async move {
            if sent.net.arrive(passage).await {
                sent.knock(to, request, reply, cancelled).await;
            }
        };
        self.net.sim.spawn(Life::HARNESS, Box::pin(carry));
        self.answer(to, replied).await
    }

    /// A request arrives: it is taken, refused, or nobody is there.
    async fn knock(
        self,
        to: HostId,
        request: Request,
        reply: oneshot::Sender<Result<Reply, Fault>>,
        mut cancelled: oneshot::Receiver<()>,
    ) {
        let sim = &self.net.sim;
        let absent = match &self.net.state().hosts[to.0].service {
            Ok((life, _)) if sim.alive(*life) => None,
            Ok(_) => Some(Absence::Refuses),
            Err(absence) => Some(*absence),
        };
        match absent {
            None => {}
            Some(Absence::Silent) => return,
            Some(Absence::Refuses) => {
                // The refusal must come back as well.
                if self.net.travel(to, self.from).await {
                    sim.hit("connection refused");
                    drop(reply.send(Err(refused(&self.address))));
                }
                return;
            }
        }
        if cancelled.try_recv().is_err() {
            sim.hit("request arrived after its sender had died or given up");
        }
        let twice = self.from != to && {
            let per_mille = self.net.state().weather(self.from, to).duplicate_per_mille;
            sim.random(|rng| rng.chance(per_mille))
        };
        if twice {
            sim.hit("request delivered twice");
            self.deliver_again_later(to, request.clone());
        }
        self.deliver(to, request, reply, Some(cancelled));
    }

    /// Waits for the answer of a request that was delivered, or never will be.
    async fn answer(&self, to: HostId, replied: oneshot::Receiver<Result<Reply, Fault>>) -> Result<Reply, Fault> {
        if let Ok(result) = replied.await {
            return result;
        }
        // The callee died, or its answer vanished. Its death is noticed unless the way back is cut.
        let dead = match &self.net.state().hosts[to.0].service {
            Ok((life, _)) => !self.net.sim.alive(*life),
            Err(absence) => *absence == Absence::Refuses,
        };
        if self.net.travel(to, self.from).await && dead {
            self.net.sim.hit("callee died during a call");
            return Err(broken(&self.address));
        }
        self.silence().await
    }

    /// A copy of a request on its own: a retry whose sender gave up, held somewhere for up to seconds.
    fn deliver_again_later(&self, to: HostId, request: Request) {
        let late = self.clone();
        let held = self.net.sim.random(|rng| if rng.chance(500) { Duration::ZERO } else { rng.micros(0, 3_000_000) });
        let task = async move {
            late.net.sim.sleep(Life::HARNESS, held).await;
            let (reply, _) = oneshot::channel();
            late.deliver(to, request, reply, None);
        };
        self.net.sim.spawn(Life::HARNESS, Box::pin(task));
    }

    /// Starts the request in the callee's life. Its answer, if it gets through, goes to `reply`. Nobody can cancel it without
    /// `cancelled`.
    fn deliver(
        &self,
        to: HostId,
        request: Request,
        reply: oneshot::Sender<Result<Reply, Fault>>,
        cancelled: Option<oneshot::Receiver<()>>,
    ) {
        let running = match &self.net.state().hosts[to.0].service {
            Ok((life, service)) => Some((*life, Arc::clone(service))),
            Err(_) => None,
        };
        let Some((life, service)) = running else { return };
        let (net, from, caller) = (Arc::clone(&self.net), self.from, self.caller.clone());
        self.net.spring(self.from, to, &request);
        let kind = kind(&request);
        if kind == "snapshot-read" {
            net.sim.hit("piece of a snapshot sent");
        }
        let told = if net.sim.listens() { trace::words(kind, &request) } else { String::new() };
        net.sim.said(gist(&request));
        net.sim.event("deliver", &[from.0 as u64, to.0 as u64], || told.clone());
        let sim = net.sim.clone();
        let task = async move {
            let cancellation = Box::pin(cancellation(Arc::clone(&net), from, to, cancelled));
            let handling = match net.misbehaves(&request) {
                Some(reply) => Box::pin(std::future::ready(Ok(reply))),
                None => service.handle(caller, request),
            };
            let Either::Left((result, _)) = select(handling, cancellation).await else {
                net.sim.hit("request cancelled half-way");
                return;
            };
            net.sim.said(answer_gist(&result));
            net.sim.event("answer", &[to.0 as u64, from.0 as u64], || format!("{told}: {}", trace::answer(&result)));
            match net.passage(to, from) {
                Passage::Vanishes => net.sim.hit("answer lost"),
                passage => {
                    // Once sent, an answer travels even if its sender dies.
                    let sim = net.sim.clone();
                    let carry = async move {
                        if net.arrive(passage).await {
                            drop(reply.send(result));
                        }
                    };
                    sim.spawn(Life::HARNESS, Box::pin(carry));
                }
            }
        };
        sim.spawn(life, Box::pin(task));
    }
}

/// Resolves when the caller has stopped waiting and the callee can know.
async fn cancellation(net: Arc<Net>, from: HostId, to: HostId, cancelled: Option<oneshot::Receiver<()>>) {
    let Some(cancelled) = cancelled else { return std::future::pending().await };
    // Either way the caller no longer holds its end.
    let _ = cancelled.await;
    // Who has no power sends no word of it.
    let silent = matches!(net.state().hosts[from.0].service, Err(Absence::Silent));
    if silent || !net.travel(from, to).await {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
