//! Pods, as `kubectl` tells of them.
//!
//! **Invariants.** A node has the name of a label that stays with its pod when it is made again; a pod that tells no site, or has no such
//! label, is an error and never guessed.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// Label of a pod that names its site; without it the zone counts.
const SITE_LABELS: [&str; 2] = ["pacsvault.io/site", "topology.kubernetes.io/zone"];
/// Labels that name one pod and stay when it is made again.
const NODE_LABELS: [&str; 2] = ["pacsvault.io/node", "statefulset.kubernetes.io/pod-name"];

/// A node and the pod that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) site: String,
    /// Label and value that find it, also when it was made again.
    pub(super) label: (String, String),
    pub(super) addresses: Vec<String>,
    pub(super) ready: bool,
    /// Another one when it was made again.
    pub(super) uid: String,
    /// Restarts of each container so far, and how it ended last.
    pub(super) restarts: BTreeMap<String, (u64, String)>,
}

#[derive(Deserialize)]
pub(super) struct PodList {
    pub(super) items: Vec<Item>,
}

#[derive(Deserialize)]
pub(super) struct Item {
    pub(super) metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    pub(super) deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    restart_count: u64,
    #[serde(default)]
    last_state: LastState,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LastState {
    terminated: Terminated,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    reason: String,
    exit_code: i64,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// The node that a pod is, by name.
///
/// # Errors
/// It does not tell its site, or has no label of its own.
pub(super) fn pod(item: Item) -> anyhow::Result<(String, Pod)> {
    let Metadata { name, uid, labels, .. } = item.metadata;
    let first = |wanted: &[&str]| {
        wanted.iter().find_map(|label| labels.get(*label).map(|value| ((*label).to_owned(), value.clone())))
    };
    let (_, site) = first(&SITE_LABELS).with_context(|| {
        format!("pod {name} does not tell its site: label it, `kubectl label pod {name} {}=SITE`", SITE_LABELS[0])
    })?;
    let label = first(&NODE_LABELS).with_context(|| {
        format!(
            "pod {name} has no label of its own: make it by a StatefulSet, or with the label {}=NAME",
            NODE_LABELS[0]
        )
    })?;
    let ready = item.status.conditions.iter().any(|one| one.kind == "Ready" && one.status == "True");
    let addresses = item.status.pod_ips.into_iter().map(|one| one.ip).collect();
    let restarts = item.status.container_statuses.into_iter().map(|one| {
        let Terminated { reason, exit_code } = one.last_state.terminated;
        (one.name, (one.restart_count, format!("{reason}, exit code {exit_code}")))
    });
    let restarts = restarts.collect();
    Ok((label.1.clone(), Pod { name, site, label, addresses, ready, uid, restarts }))
}

/// How a node ended between two looks, if it did.
pub(super) fn restarted(old: &Pod, new: &Pod) -> Option<String> {
    if old.uid != new.uid {
        return Some("another pod is in its place".to_owned());
    }
    let more = |container: &String, count: u64| old.restarts.get(container).is_some_and(|(before, _)| count > *before);
    let found = new.restarts.iter().find(|(container, (count, _))| more(container, *count));
    found.map(|(container, (_, how))| format!("container {container} was restarted: {how}"))
}
