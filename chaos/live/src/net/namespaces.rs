//! The network of real stacks: a namespace per host, a TUN device in each, and one router in this process.
//!
//! **Invariants.** Whatever is made is removed: in order when dropped, and by a guardian, a shell that waits for the end of
//! this process, when the process ends otherwise, also by SIGKILL. Names carry the process's id, so that leftovers are
//! recognised and removed at the next start, and runs side by side do not meet. Processes in the namespaces are killed
//! before these are removed.
//!
//! Addresses: host `n` of site `s` is `10.N.s.n` with `N` from 77, the first that is free here; clients are `10.N.s.200` and
//! up, in the namespace of this process; observers are `10.N.0.1`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, bail, ensure};
use pacsvault_harness::Guardian;

use super::{
    Conditions, Host, Place, SiteLatency, Wan,
    router::{Port, Router},
    table::{Control, Numbers, Table, is_client},
    tally::{Tally, Traffic},
    tun::{MTU_BYTES, Tun},
};

/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Begins the names of ours; the id of the process follows.
const PREFIX: &str = "pv-";
/// Second bytes of addresses that are tried.
const NETWORKS: std::ops::Range<u8> = 77..127;
/// gRPC port of every node, in a network of its own.
const PORT: u16 = 7_400;
/// Kills what still runs in the namespaces and removes them; for a guardian, whose arguments are their names.
const GUARD: &str = "for name; do \
    for pid in $(ip netns pids \"$name\" 2>/dev/null); do kill -9 \"$pid\"; done; ip netns del \"$name\"; done 2>/dev/null";

/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Namespaces, devices and the router between them.
pub struct Namespaces {
    places: BTreeMap<String, Place>,
    control: Control,
    router: Option<Router>,
    tally: Arc<Tally>,
    guardian: Option<Guardian>,
}

/// Why namespaces cannot work here, if so.
pub fn refused() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    ip(&["-V"]).err().map(|error| format!("{error:#}"))
}

impl Namespaces {
    /// Makes a namespace for every node among `hosts`, and starts the router.
    pub fn start(hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Self> {
        if let Some(why) = refused() {
            bail!("{why}; the network `proxy` needs nothing of that");
        }
        remove_leftovers()?;
        let numbers = Numbers::new(hosts, latency)?;
        let seats = numbers.seats()?;
        let run = format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let name = |host: &Host| format!("{PREFIX}{run}-{}", host.name);
        let nodes: Vec<String> = hosts.iter().filter(|host| !is_client(host)).map(name).collect();
        // Before the first of them is made: nothing may be left when this function fails half way.
        let guardian = Guardian::post(GUARD, nodes.iter().map(String::as_str))?;
        let (network, own) = own_side(&run, &seats)?;
        let mut ports = vec![own];
        let mut places = BTreeMap::new();
        for (number, (host, site, last)) in seats.into_iter().enumerate() {
            let address = Ipv4Addr::new(10, network, site, last);
            let namespace = (!is_client(&host)).then(|| name(&host));
            if let Some(namespace) = &namespace {
                let tun = plug_in(namespace, &device(&run, number + 1), address)?;
                ports.push(Port { tun, addresses: vec![(address, Some(number))] });
            }
            let place = Place {
                bind: format!("{address}:{PORT}"),
                advertise: format!("{address}:{PORT}"),
                ops: format!("{address}:{}", PORT + 1),
                source: IpAddr::V4(address),
                namespace,
            };
            places.insert(host.name, place);
        }
        let tally = Arc::new(Tally::new(numbers.count()));
        let (control, table) = Control::new(numbers)?;
        let router = Router::start(ports, table, tally.clone()).context("cannot start the router")?;
        Ok(Self { places, control, router: Some(router), tally, guardian: Some(guardian) })
    }

    fn enforce(&self, table: Table) {
        // It is there until the drop.
        if let Some(router) = &self.router {
            router.apply(table);
        }
    }
}

impl Wan for Namespaces {
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
        "namespaces"
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The namespaces first: a stack without its device would only be slower to go.
        drop(self.guardian.take());
        drop(self.router.take());
    }
}

/// Name of a device, at most 15 bytes: process ids have up to seven digits, runs in one process are few.
fn device(run: &str, number: usize) -> String {
    format!("pv{}.{number}", run.replace('-', ""))
}

/// The device of clients and observers, in this process's own namespace, and the network that it made its own.
fn own_side(run: &str, seats: &[(Host, u8, u8)]) -> anyhow::Result<(u8, Port)> {
    let device = device(run, 0);
    let tun = Tun::make(&device)?;
    ip(&["link", "set", &device, "mtu", &MTU_BYTES.to_string(), "up"])?;
    let mut last = None;
    for network in NETWORKS {
        let observer = Ipv4Addr::new(10, network, 0, 1);
        let route = format!("10.{network}.0.0/16");
        // Whoever has a route to it already has it for a reason.
        if !ip(&["route", "show", "exact", &route])?.trim().is_empty() {
            continue;
        }
        ip(&["address", "add", &format!("{observer}/32"), "dev", &device])?;
        if let Err(error) = ip(&["route", "add", &route, "dev", &device, "src", &observer.to_string()]) {
            ip(&["address", "del", &format!("{observer}/32"), "dev", &device])?;
            last = Some(error);
            continue;
        }
        let mut addresses = vec![(observer, None)];
        for (number, (host, site, own)) in seats.iter().enumerate().filter(|(_, (host, _, _))| is_client(host)) {
            let address = Ipv4Addr::new(10, network, *site, *own);
            ip(&["address", "add", &format!("{address}/32"), "dev", &device])
                .with_context(|| format!("no address for {}", host.name))?;
            addresses.push((address, Some(number)));
        }
        return Ok((network, Port { tun, addresses }));
    }
    let why = last.map(|error| format!(": {error:#}")).unwrap_or_default();
    bail!("none of the networks 10.{}.0.0/16 to 10.{}.0.0/16 is free{why}", NETWORKS.start, NETWORKS.end - 1)
}

/// Makes a namespace with one device, which is its only way out.
fn plug_in(namespace: &str, device: &str, address: Ipv4Addr) -> anyhow::Result<Tun> {
    ip(&["netns", "add", namespace])?;
    let tun = Tun::make(device)?;
    ip(&["link", "set", device, "netns", namespace])?;
    let lines = format!(
        "link set lo up\nlink set {device} mtu {MTU_BYTES} up\naddress add {address}/32 dev {device}\n\
         route add default dev {device} src {address}\n"
    );
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("a pipe")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "cannot set up {namespace}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(tun)
}

/// Runs `ip`; what it printed.
fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(arguments).output().context("cannot run `ip` (package iproute2)")?;
    let shown = arguments.join(" ");
    ensure!(output.status.success(), "ip {shown}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes the namespaces of processes that are no more.
fn remove_leftovers() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return Ok(()) };
    let mut left = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            left.push(name);
        }
    }
    if !left.is_empty() {
        drop(Guardian::post(GUARD, left.iter().map(String::as_str))?);
    }
    Ok(())
}
