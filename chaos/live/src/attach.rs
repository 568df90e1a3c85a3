//! A stage on a cluster that runs already, somewhere else: for game days.
//!
//! **Invariants.** Nothing is written outside the tenant of the client's configuration. What the driver cannot do is refused
//! before anything is harmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, ensure};
use pacsvault_client::{Client, Config, Mode};
use pacsvault_core::layout::NodeState;
use tokio::runtime::Handle;

use crate::{
    driver::Driver,
    scenario::Topology,
    stage::{SESSIONS, Stage},
};

/// How long the cluster has to tell its layout.
const LAYOUT_WITHIN: Duration = Duration::from_secs(20);

/// A stage with the cluster that `config` reaches and `driver` harms.
///
/// # Errors
/// The cluster does not answer, the certificate may not write, or driver and cluster name nodes differently.
pub fn stage(
    driver: Box<dyn Driver>,
    network: &str,
    config: &Config,
    out: PathBuf,
    runtime: &Handle,
) -> anyhow::Result<Stage> {
    let _inside = runtime.enter();
    let first = Client::connect(config.clone())?;
    ensure!(
        first.mode() == Mode::Direct,
        "the client's certificate must be a gateway's, and via_node must not be set: sessions coordinate their writes themselves"
    );
    let layout = runtime.block_on(async { tokio::time::timeout(LAYOUT_WITHIN, first.layout()).await });
    let layout = layout.context("the cluster does not tell its layout")??;
    let members = layout.nodes.values().filter(|node| node.state != NodeState::Removed);
    let addresses: BTreeMap<String, String> =
        members.map(|node| (node.name.to_string(), node.address.clone())).collect();
    let mut topology = Topology::default();
    for node in driver.nodes() {
        ensure!(
            addresses.contains_key(&node.name),
            "the driver knows a node {}, the cluster has {:?}",
            node.name,
            addresses.keys()
        );
        topology.sites.entry(node.site).or_default().push(node.name);
    }
    for (site, nodes) in &topology.sites {
        let stores = |name: &String| {
            let mut members = layout.nodes.values().filter(|node| node.name.as_str() == name && node.roles.storage);
            members.any(|node| node.state != NodeState::Removed)
        };
        if !nodes.iter().any(stores) {
            topology.witnesses.insert(site.clone());
        }
    }
    let sites: BTreeSet<String> = topology.storing().into_iter().collect();
    topology.clients = sites.iter().map(|site| (site.clone(), format!("client-{site}"))).collect();
    let of_site = |site: &String| -> anyhow::Result<Client> {
        Ok(Client::connect(Config { site: Some(site.parse()?), ..config.clone() })?)
    };
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        for site in &sites {
            clients.push(of_site(site)?);
        }
    }
    Ok(Stage {
        driver,
        operator: first.peer().clone(),
        addresses,
        topology,
        clients,
        readers: sites.iter().take(2).map(of_site).collect::<anyhow::Result<_>>()?,
        ca_pem: fs::read_to_string(&config.ca).with_context(|| format!("cannot read {}", config.ca.display()))?,
        runtime: runtime.clone(),
        network: network.to_owned(),
        wan_ms: Vec::new(),
        out,
    })
}
