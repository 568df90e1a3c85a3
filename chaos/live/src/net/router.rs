//! The router between the stacks: one thread that reads packets, keeps them for their time, and hands them on or not.
//!
//! **Invariants.** Packets of one link arrive in the order in which they were sent, whatever the jitter. What a cut meets, on
//! its way or under way, is gone. At most [`HELD_BYTES_MAX`] are under way and [`QUEUE`] waits for a slow link; more is
//! dropped, as routers do, and TCP learns from it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    flow::jitter,
    packet,
    table::{Link, Table},
    tally::Tally,
    tun::{MTU_BYTES, Tun},
};

/// Most bytes under way on all links together.
const HELD_BYTES_MAX: usize = 512 << 20;
/// How long a packet may wait for a slow link's wire: what routers call their buffer.
const QUEUE: Duration = Duration::from_millis(100);
/// Packets read from one device before the others have their turn.
const TURN_PACKETS: usize = 64;
/// Longest time without a look at whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// For how long after a request the packets of a link are answered by resets.
const RESET_FOR: Duration = Duration::from_secs(1);

/// A stack's wire and who is behind it.
pub struct Port {
    /// The wire.
    pub tun: Tun,
    /// Addresses behind it, with the host's number; `None` is an observer's.
    pub addresses: Vec<(Ipv4Addr, Option<usize>)>,
}

/// A running router; stops when dropped.
pub struct Router {
    table: Arc<Mutex<Arc<Table>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Starts to forward.
    pub fn start(ports: Vec<Port>, table: Table, tally: Arc<Tally>) -> io::Result<Self> {
        let table = Arc::new(Mutex::new(Arc::new(table)));
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work::new(ports, table.clone(), tally);
        let told = stop.clone();
        let thread = thread::Builder::new().name("router".to_owned()).spawn(move || {
            while !told.load(Ordering::Relaxed) {
                work.step();
            }
        })?;
        Ok(Self { table, stop, thread: Some(thread) })
    }

    /// Another table from the next packet on.
    pub fn apply(&self, table: Table) {
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by itself.
            let _ = thread.join();
        }
    }
}

/// A packet under way.
struct Flight {
    sent: Instant,
    due: Instant,
    /// Order among those that are due at once.
    number: u64,
    way: (Option<usize>, Option<usize>),
    port: usize,
    packet: Vec<u8>,
}

impl Flight {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// What the router remembers of a link.
struct Wire {
    /// When the last packet arrives.
    last: Instant,
    /// When a slow link's wire is free.
    free_at: Instant,
    resets: u64,
    reset_until: Option<Instant>,
}

struct Work {
    ports: Vec<Port>,
    routes: BTreeMap<Ipv4Addr, (usize, Option<usize>)>,
    shared: Arc<Mutex<Arc<Table>>>,
    table: Arc<Table>,
    tally: Arc<Tally>,
    wires: BTreeMap<(Option<usize>, Option<usize>), Wire>,
    flights: BinaryHeap<Reverse<Flight>>,
    held_bytes: usize,
    next: u64,
    /// Buffers of packets that have arrived.
    spare: Vec<Vec<u8>>,
}

impl Work {
    fn new(ports: Vec<Port>, shared: Arc<Mutex<Arc<Table>>>, tally: Arc<Tally>) -> Self {
        let routes = ports
            .iter()
            .enumerate()
            .flat_map(|(number, port)| port.addresses.iter().map(move |(address, host)| (*address, (number, *host))));
        let routes = routes.collect();
        let table = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self {
            ports,
            routes,
            shared,
            table,
            tally,
            wires: BTreeMap::new(),
            flights: BinaryHeap::new(),
            held_bytes: 0,
            next: 0,
            spare: Vec::new(),
        }
    }

    /// Waits for packets or for the next one's time, and does what is to be done.
    fn step(&mut self) {
        let ready = self.wait();
        self.look();
        for port in ready {
            for _ in 0..TURN_PACKETS {
                let mut packet = self.spare.pop().unwrap_or_default();
                packet.resize(usize::from(MTU_BYTES), 0);
                match self.ports[port].tun.take(&mut packet) {
                    Ok(length) => {
                        packet.truncate(length);
                        // What was asked for before this packet was sent holds for it.
                        self.look();
                        self.send(packet);
                    }
                    // Nothing more waits; a device that is gone stays silent, which its host will notice.
                    Err(_) => {
                        self.spare.push(packet);
                        break;
                    }
                }
            }
        }
        self.arrive();
    }

    /// Takes over what is asked of the links now.
    fn look(&mut self) {
        self.table = self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
    }

    /// Numbers of the ports that have packets.
    fn wait(&self) -> Vec<usize> {
        let now = Instant::now();
        let left = self.flights.peek().map_or(LOOK, |Reverse(flight)| flight.due.saturating_duration_since(now));
        let timeout = Timespec::try_from(left.min(LOOK)).ok();
        let mut polls: Vec<PollFd<'_>> = self.ports.iter().map(|port| PollFd::new(&port.tun, PollFlags::IN)).collect();
        // Interrupted: nothing is ready yet, and the next look comes at once.
        if poll(&mut polls, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = polls.iter().enumerate().filter(|(_, poll)| poll.revents().contains(PollFlags::IN));
        ready.map(|(number, _)| number).collect()
    }

    /// Decides about a packet that a stack has sent.
    fn send(&mut self, packet: Vec<u8>) {
        let Some((from, to)) = packet::addresses(&packet) else { return self.drop_packet(packet) };
        let (Some((_, sender)), Some((port, receiver))) = (self.routes.get(&from), self.routes.get(&to)) else {
            return self.drop_packet(packet);
        };
        let (way, port) = ((*sender, *receiver), *port);
        let table = self.table.clone();
        let link = table.link(way.0, way.1);
        if link.state.cut || lost(link) {
            return self.drop_packet(packet);
        }
        let now = Instant::now();
        let new = Wire { last: now, free_at: now, resets: link.resets, reset_until: None };
        let wire = self.wires.entry(way).or_insert(new);
        if wire.resets != link.resets {
            wire.resets = link.resets;
            wire.reset_until = Some(now + RESET_FOR);
        }
        if wire.reset_until.is_some_and(|until| now < until)
            && let Some((forth, back)) = packet::resets(&packet)
        {
            self.give(port, &forth);
            if let Some((home, _)) = self.routes.get(&from).copied() {
                self.give(home, &back);
            }
            return self.drop_packet(packet);
        }
        let mut through = now;
        if let Some(rate) = link.state.bytes_per_second {
            let free_at = wire.free_at.max(now);
            if free_at > now + QUEUE {
                return self.drop_packet(packet);
            }
            let bytes = u64::try_from(packet.len()).unwrap_or(u64::MAX);
            wire.free_at = free_at + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
            through = wire.free_at;
        }
        let due = (through + link.delay + jitter(link.state.jitter)).max(wire.last);
        wire.last = due;
        if due <= now {
            self.tally.arrived(way.0, way.1, packet.len(), Duration::ZERO);
            self.give(port, &packet);
            return self.drop_packet(packet);
        }
        if self.held_bytes + packet.len() > HELD_BYTES_MAX {
            return self.drop_packet(packet);
        }
        self.held_bytes += packet.len();
        self.next += 1;
        self.flights.push(Reverse(Flight { sent: now, due, number: self.next, way, port, packet }));
    }

    /// Hands over what is due.
    fn arrive(&mut self) {
        let now = Instant::now();
        while self.flights.peek().is_some_and(|Reverse(flight)| flight.due <= now) {
            let Some(Reverse(flight)) = self.flights.pop() else { return };
            self.held_bytes -= flight.packet.len();
            if !self.table.link(flight.way.0, flight.way.1).state.cut {
                let under_way = now.saturating_duration_since(flight.sent);
                self.tally.arrived(flight.way.0, flight.way.1, flight.packet.len(), under_way);
                self.give(flight.port, &flight.packet);
            }
            self.drop_packet(flight.packet);
        }
    }

    /// A stack that does not take a packet has lost it: TCP sends it again.
    fn give(&self, port: usize, packet: &[u8]) {
        let _ = self.ports[port].tun.give(packet);
    }

    fn drop_packet(&mut self, packet: Vec<u8>) {
        const SPARE_MAX: usize = 4_096;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(packet);
        }
    }
}

fn lost(link: &Link) -> bool {
    link.state.loss_per_mille > 0 && rand::rng().random_range(0..1_000) < link.state.loss_per_mille
}
