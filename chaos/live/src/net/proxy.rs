//! The network without rights: each node is dialled at a relay on loopback, and the caller's address tells the link.
//!
//! **Invariants.** A connection is made only while both directions of its link are open, and costs a round trip: a cut link
//! answers nobody. A cut freezes what is under way and resets nothing. Ports are held from the beginning, so that two runs on
//! one machine never meet.
//!
//! What it cannot show: a caller's `connect` succeeds at once even when the link is cut (only the answer never comes), and
//! TCP's own congestion control does not see delay or loss. [`super::namespaces()`] has neither limit.
//!
//! Addresses: node `n` of site `s` listens on `127.20.s.n`, is dialled at `127.30.s.n`; clients are `127.20.s.200` and up.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Runtime,
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Conditions, Host, Place, SiteLatency, Wan,
    flow::{End, Meters, Way, carry, jitter, lateness},
    table::{Control, Numbers, Table, is_client},
    tally::{Tally, Traffic},
};

/// First port that is tried; the operations port is the next one. All below those that systems give to callers.
const FIRST_PORT: u16 = 17_400;
/// Port that is not tried any more.
const LAST_PORT: u16 = 29_400;
/// Kernel buffers of a relayed connection, each side: what may pass a cut unseen, doubled by the kernel.
const KERNEL_BUFFER_BYTES: u32 = 64 << 10;
/// How often a caller on a cut link is looked at: has it given up?
const GIVEN_UP_POLL: Duration = Duration::from_millis(200);
/// How long a node may take to accept, when its own queue is full.
const ACCEPT_LIMIT: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// The relays.
pub struct Proxy {
    places: BTreeMap<String, Place>,
    control: Control,
    table: watch::Sender<Arc<Table>>,
    tally: Arc<Tally>,
    runtime: Option<Runtime>,
}

/// What every connection needs.
struct Shared {
    /// Hosts by the address that they call from.
    callers: BTreeMap<IpAddr, usize>,
    table: watch::Receiver<Arc<Table>>,
    meters: Meters,
}

/// A port of one node, held.
struct Relay {
    listener: StdListener,
    to: usize,
    node: SocketAddr,
}

impl Proxy {
    /// Opens the relays of all nodes among `hosts`.
    pub fn start(hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Self> {
        let numbers = Numbers::new(hosts, latency)?;
        allow_many_files()?;
        let (port, relays) = hold_ports(&numbers)?;
        let mut places = BTreeMap::new();
        let mut callers = BTreeMap::new();
        for (number, (host, site, own)) in numbers.seats()?.into_iter().enumerate() {
            let source = IpAddr::from([127, 20, site, own]);
            let place = Place {
                bind: format!("{source}:{port}"),
                advertise: format!("127.30.{site}.{own}:{port}"),
                ops: format!("{source}:{}", port + 1),
                source,
                namespace: None,
            };
            callers.insert(source, number);
            places.insert(host.name, place);
        }
        let meters = Meters::new(numbers.count());
        let tally = meters.tally.clone();
        let (control, table) = Control::new(numbers)?;
        let table = watch::Sender::new(Arc::new(table));
        let shared = Arc::new(Shared { callers, table: table.subscribe(), meters });
        // One thread of its own: a busy load generator in the same process must not delay the network.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .context("cannot start the proxy's thread")?;
        let inside = runtime.enter();
        for relay in relays {
            relay.listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(relay.listener)?;
            runtime.spawn(accept(listener, relay.to, relay.node, shared.clone()));
        }
        drop(inside);
        Ok(Self { places, control, table, tally, runtime: Some(runtime) })
    }

    fn enforce(&self, table: Table) {
        self.table.send_replace(Arc::new(table));
    }
}

impl Wan for Proxy {
    fn place(&self, host: &str) -> &Place {
        self.places.get(host).expect("a host that the network was made with")
    }

    fn apply(&self, conditions: &Conditions) -> anyhow::Result<()> {
        self.control.apply(conditions, |table| self.enforce(table))
    }

    fn reset(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.control.reset(from, to, |table| self.enforce(table))
    }

    fn traffic(&self) -> Traffic {
        self.tally.read(self.control.numbers())
    }

    fn name(&self) -> &'static str {
        "proxy"
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Not waited for: this may run inside another runtime.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Two sockets per connection of everybody with everybody are soon more than the 1,024 files that are usual.
fn allow_many_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files to what this process may have")
}

/// The first port at which all relays can listen and all nodes could. The relays' listeners hold it for the run.
fn hold_ports(numbers: &Numbers) -> anyhow::Result<(u16, Vec<Relay>)> {
    let nodes: Vec<_> = numbers.seats()?.into_iter().enumerate().filter(|(_, (host, _, _))| !is_client(host)).collect();
    let mut why = None;
    for port in (FIRST_PORT..LAST_PORT).step_by(2) {
        let held: std::io::Result<Vec<Relay>> = nodes
            .iter()
            .map(|(number, (_, site, own))| {
                let own_ip = Ipv4Addr::new(127, 20, *site, *own);
                let listener = listen(SocketAddr::from(([127, 30, *site, *own], port)))?;
                // Free again at once; whoever else looks for ports meets the relay's.
                for wanted in [port, port + 1] {
                    drop(listen(SocketAddr::from((own_ip, wanted)))?);
                }
                Ok(Relay { listener, to: *number, node: SocketAddr::from((own_ip, port)) })
            })
            .collect();
        match held {
            Ok(relays) => return Ok((port, relays)),
            Err(error) => why = Some(error),
        }
    }
    let why = why.map(|error| format!(": {error}")).unwrap_or_default();
    bail!("no port from {FIRST_PORT} to {LAST_PORT} is free on all of 127.20.0.0/16 and 127.30.0.0/16{why}")
}

/// A listener whose connections have small kernel buffers, made without a runtime.
fn listen(address: SocketAddr) -> std::io::Result<StdListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    let bytes = usize::try_from(KERNEL_BUFFER_BYTES).unwrap_or(usize::MAX);
    sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    bind(&socket, &address)?;
    listen(&socket, i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    Ok(StdListener::from(socket))
}

async fn accept(listener: TcpListener, to: usize, node: SocketAddr, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((caller, address)) => {
                tokio::spawn(relay(caller, address.ip(), to, node, shared.clone()));
            }
            // Out of descriptors, or a caller that was gone at once: neither ends the run.
            Err(_) => sleep(GIVEN_UP_POLL).await,
        }
    }
}

/// One connection, from the caller's SYN to its end. Errors of the caller's own socket need no report: it knows.
async fn relay(mut caller: TcpStream, address: IpAddr, to: usize, node: SocketAddr, shared: Arc<Shared>) {
    let forth = Way { from: shared.callers.get(&address).copied(), to: Some(to) };
    let back = Way { from: forth.to, to: forth.from };
    let mut table = shared.table.clone();
    if !shake_hands(&caller, forth, &mut table).await {
        return;
    }
    let ended = match timeout(ACCEPT_LIMIT, dial(address, node)).await {
        Ok(Ok(mut node)) => {
            let _ = caller.set_nodelay(true);
            let (caller_reads, caller_writes) = caller.split();
            let (node_reads, node_writes) = node.split();
            let forth = carry(caller_reads, node_writes, forth, table.clone(), &shared.meters);
            let back = carry(node_reads, caller_writes, back, table, &shared.meters);
            let ended = either_breaks(forth, back).await;
            if ended == End::Broken {
                let _ = node.set_zero_linger();
            }
            ended
        }
        // Nobody listens there: the caller is refused, as by the host itself.
        Ok(Err(_)) | Err(_) => End::Broken,
    };
    if ended == End::Broken {
        let _ = caller.set_zero_linger();
    }
}

/// Both directions, until each is closed or one is broken.
async fn either_breaks(forth: impl Future<Output = End>, back: impl Future<Output = End>) -> End {
    let (mut forth, mut back) = (std::pin::pin!(forth), std::pin::pin!(back));
    let (first, other_is_back) = tokio::select! {
        end = &mut forth => (end, true),
        end = &mut back => (end, false),
    };
    if first == End::Broken {
        return first;
    }
    if other_is_back { back.await } else { forth.await }
}

/// Waits for what a TCP handshake needs: both directions open, a round trip, and no loss. False: the caller gave up.
async fn shake_hands(caller: &TcpStream, forth: Way, table: &mut watch::Receiver<Arc<Table>>) -> bool {
    loop {
        let (open, trip) = {
            let table = table.borrow_and_update();
            let (there, back) = (table.link(forth.from, forth.to), table.link(forth.to, forth.from));
            let trip = table.round_trip(forth.from, forth.to);
            let waits = jitter(there.state.jitter) + jitter(back.state.jitter);
            // One packet each way; a handshake that is lost too often waits for the next look.
            let late = lateness(there, trip, 1).and_then(|late| Some(late + lateness(back, trip, 1)?));
            (!there.state.cut && !back.state.cut && late.is_some(), trip + waits + late.unwrap_or_default())
        };
        if open {
            if !trip.is_zero() {
                sleep(trip).await;
            }
            let table = table.borrow();
            if !table.link(forth.from, forth.to).state.cut && !table.link(forth.to, forth.from).state.cut {
                return true;
            }
        }
        // A proxy that is going away drops this task.
        let _ = timeout(GIVEN_UP_POLL, table.changed()).await;
        let closed = timeout(Duration::ZERO, caller.ready(tokio::io::Interest::READABLE)).await;
        if closed.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed())) {
            return false;
        }
    }
}

/// Calls the node as the caller would: from its address, so that logs name it.
async fn dial(source: IpAddr, node: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(KERNEL_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(KERNEL_BUFFER_BYTES)?;
    socket.bind(SocketAddr::new(source, 0))?;
    let stream = socket.connect(node).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
