//! The wide network between sites: where everyone is, and what the network does to them.
//!
//! **Invariants.** [`Conditions`] are plain data and replace whatever was applied before: nothing of an old fault remains. Who
//! calls from an address that belongs to no host is an observer: no latency, no faults.
//!
//! Two networks keep the same promises. [`proxy()`] needs no rights: connections end at a relay on loopback, which delays and
//! holds bytes. [`namespaces()`] needs root: every host has a network stack of its own, and a router delays and drops packets,
//! so that TCP itself suffers. Hosts that join later must be named from the beginning; nobody need be there.

mod conditions;
mod flow;
mod namespaces;
mod packet;
mod proxy;
mod router;
pub mod speed;
mod table;
mod tally;
mod tun;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

pub use conditions::{Conditions, LinkState};
pub use tally::{Carried, Traffic};

/// Someone on the network: a node, or the load generator's client of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Such as `a1`. A name that begins with `client-` is a client's: it is given an address and listens nowhere.
    pub name: String,
    /// Such as `a`.
    pub site: String,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `ip:port` a node listens on.
    pub bind: String,
    /// `ip:port` under which others reach it.
    pub advertise: String,
    /// `ip:port` of its operations interface, for observers.
    pub ops: String,
    /// Address its connections go out from.
    pub source: IpAddr,
    /// Network namespace it runs in.
    pub namespace: Option<String>,
}

/// One way latency between sites; a pair that is given in one order only has it both ways, absent pairs have none.
pub type SiteLatency = BTreeMap<(String, String), Duration>;

/// An emulated wide network. It is gone when dropped, with everything that was made for it.
pub trait Wan: Send + Sync {
    /// Where a host is.
    ///
    /// # Panics
    /// For a name that the network was not made with.
    fn place(&self, host: &str) -> &Place;
    /// Makes the network do this from now on.
    ///
    /// # Errors
    /// The network cannot be changed, or a host is unknown.
    fn apply(&self, conditions: &Conditions) -> anyhow::Result<()>;
    /// Breaks the connections that carry something from one host to another, as a firewall that lost its state: both ends are
    /// told. New ones may be made afterwards.
    ///
    /// # Errors
    /// A host is unknown.
    fn reset(&self, from: &str, to: &str) -> anyhow::Result<()>;
    /// What has arrived between hosts since the beginning.
    fn traffic(&self) -> Traffic;
    /// `proxy` or `namespaces`.
    fn name(&self) -> &'static str;
}

/// A network of relays on loopback.
///
/// # Errors
/// Two hosts of one name, too many of them, or no free ports.
pub fn proxy(hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Arc<dyn Wan>> {
    Ok(Arc::new(proxy::Proxy::start(hosts, latency)?))
}

/// A network of namespaces and one router.
///
/// # Errors
/// Not root, no `ip` program, no TUN devices, or hosts that [`proxy()`] would refuse too.
pub fn namespaces(hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Arc<dyn Wan>> {
    Ok(Arc::new(namespaces::Namespaces::start(hosts, latency)?))
}

/// Why [`namespaces()`] cannot work here, if so.
pub fn namespaces_refused() -> Option<String> {
    namespaces::refused()
}
