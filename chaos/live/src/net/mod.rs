//! The wide network between sites: where everyone is, and what the network does to them.
//!
//! **Invariants.** [`Conditions`] are plain data and replace whatever was applied before: nothing of an old fault remains.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Someone on the network: a node, or the load generator's client of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Such as `a1`, or `client-a`.
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
    /// `ip:port` of its operations interface.
    pub ops: String,
    /// Address its connections go out from.
    pub source: IpAddr,
    /// Network namespace it runs in.
    pub namespace: Option<String>,
}

/// What the network does now. Replaces what was applied before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// By (from host, to host); absent: the base latency only.
    pub links: BTreeMap<(String, String), LinkState>,
}

/// What happens on one link, in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Nothing passes.
    pub cut: bool,
    /// On top of the base latency.
    pub extra_delay: Duration,
    /// At most this much more, drawn per piece.
    pub jitter: Duration,
    /// Of a thousand packets, how many are lost.
    pub loss_per_mille: u16,
    /// Bandwidth, if limited.
    pub bytes_per_second: Option<u64>,
}

/// One way latency between sites; absent pairs have none.
pub type SiteLatency = BTreeMap<(String, String), Duration>;

/// An emulated wide network.
pub trait Wan: Send + Sync {
    /// Where a host is.
    fn place(&self, host: &str) -> &Place;
    /// Makes the network do this from now on.
    ///
    /// # Errors
    /// The network cannot be changed, or a host is unknown.
    fn apply(&self, conditions: &Conditions) -> anyhow::Result<()>;
    /// `proxy` or `namespaces`.
    fn name(&self) -> &'static str;
}
