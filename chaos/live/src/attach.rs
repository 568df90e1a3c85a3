//! A stage on a cluster that runs already, somewhere else: for game days.
//!
//! **Invariants.** Nothing is written outside the tenant of the client's configuration. What the driver cannot do is refused
//! before anything is harmed.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use pacsvault_client::{Client, Config, Mode};
use pacsvault_core::layout::NodeState;
use tokio::runtime::Handle;

use crate::{
    driver::Driver,
    interrupt::Interrupt,
    record::NodeInfo,
    runner::Limits,
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
    config: &Config,
    out: PathBuf,
    runtime: &Handle,
    interrupt: &Interrupt,
) -> anyhow::Result<Stage> {
    let _inside = runtime.enter();
    let first = Client::connect(config.clone())?;
    ensure!(
        first.mode() == Mode::Direct,
        "the client's certificate must be a gateway's, and via_node must not be set: sessions decide how content travels"
    );
    let layout = runtime.block_on(async { tokio::time::timeout(LAYOUT_WITHIN, first.layout()).await });
    let layout = layout.context("the cluster does not tell its layout")??;
    let members: Vec<_> = layout.nodes.values().filter(|node| node.state != NodeState::Removed).collect();
    let addresses = members.iter().map(|node| (node.name.to_string(), node.address.clone())).collect();
    let known =
        members.iter().map(|node| NodeInfo { name: node.name.to_string(), site: node.site.to_string() }).collect();
    same(&known, &driver.nodes().into_iter().collect())?;
    let mut topology = Topology::default();
    for NodeInfo { name, site } in known {
        topology.sites.entry(site).or_default().push(name);
    }
    for (site, nodes) in &topology.sites {
        let stores = |name: &String| members.iter().any(|node| node.name.as_str() == name && node.roles.storage);
        if !nodes.iter().any(stores) {
            topology.witnesses.insert(site.clone());
        }
    }
    let sites: BTreeSet<String> = topology.storing().into_iter().collect();
    topology.clients = sites.iter().map(|site| (site.clone(), format!("client-{site}"))).collect();
    let of_site = |site: &String, mode: Mode| -> anyhow::Result<Client> {
        Ok(Client::connect(Config { site: Some(site.parse()?), via_node: mode == Mode::ViaNode, ..config.clone() })?)
    };
    let mut clients = Vec::new();
    for mode in SESSIONS {
        for site in &sites {
            clients.push(of_site(site, mode)?);
        }
    }
    Ok(Stage {
        driver,
        operator: first.peer().clone(),
        addresses,
        topology,
        clients,
        readers: sites
            .iter()
            .zip([Mode::Direct, Mode::ViaNode])
            .map(|(site, mode)| of_site(site, mode))
            .collect::<anyhow::Result<_>>()?,
        ca_pem: fs::read_to_string(&config.ca).with_context(|| format!("cannot read {}", config.ca.display()))?,
        runtime: runtime.clone(),
        network: "kubernetes".to_owned(),
        wan_ms: Vec::new(),
        sha256: String::new(),
        command: String::new(),
        timings: "those of the cluster, which are not told".to_owned(),
        limits: Limits::DEFAULT,
        interrupt: interrupt.clone(),
        out,
    })
}

/// Refuses when driver and cluster do not mean the same nodes in the same sites: a cut would be another one than its name says.
fn same(cluster: &BTreeSet<NodeInfo>, driver: &BTreeSet<NodeInfo>) -> anyhow::Result<()> {
    let shown = |some: BTreeSet<&NodeInfo>| {
        let shown: Vec<String> = some.into_iter().map(|node| format!("{} in site {}", node.name, node.site)).collect();
        if shown.is_empty() { "nothing else".to_owned() } else { shown.join(", ") }
    };
    ensure!(
        cluster == driver,
        "the cluster has {}, where the driver finds {}: correct the selector, or the labels of pods",
        shown(cluster.difference(driver).collect()),
        shown(driver.difference(cluster).collect())
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_only_one_of_them_knows_are_named() {
        let nodes = |of: &[(&str, &str)]| -> BTreeSet<NodeInfo> {
            of.iter().map(|(name, site)| NodeInfo { name: (*name).into(), site: (*site).into() }).collect()
        };
        let cluster = nodes(&[("a1", "a"), ("b1", "b")]);
        same(&cluster, &cluster).expect("the same");
        let other = same(&cluster, &nodes(&[("a1", "a"), ("b1", "c")])).expect_err("another site").to_string();
        assert!(other.contains("has b1 in site b, where the driver finds b1 in site c"), "{other}");
        let fewer = same(&cluster, &nodes(&[("a1", "a")])).expect_err("one is missing").to_string();
        assert!(fewer.contains("has b1 in site b, where the driver finds nothing else"), "{fewer}");
        assert!(same(&nodes(&[("a1", "a")]), &cluster).is_err(), "the other way round");
    }
}
