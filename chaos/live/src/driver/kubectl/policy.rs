//! NetworkPolicies that cut nodes off.
//!
//! **Invariants.** A policy selects one pod by a label that stays with it. What is cut is named and everything else stays allowed:
//! other pods, other namespaces, the world outside. A cut counts in both directions; anything else cannot be expressed. One policy
//! closes both directions of its pod, so that a cut needs one on one side.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde_json::{Value, json};

use super::{OURS, pods::Pod};
use crate::net::{Conditions, LinkState};

/// One policy.
pub(super) struct Isolation {
    pub(super) name: String,
    body: Value,
}

impl Isolation {
    /// Nobody reaches `node`, and it reaches nobody.
    pub(super) fn full(node: &str, pod: &Pod, namespace: &str) -> Self {
        Self::new(node, pod, namespace, &json!([]))
    }

    /// `node` and `whom` do not reach each other.
    pub(super) fn from_some(node: &str, pod: &Pod, whom: &[&Pod], namespace: &str) -> Self {
        // Pods without the label are selected by NotIn too.
        let mut by_label: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for other in whom {
            by_label.entry(&other.label.0).or_default().push(&other.label.1);
        }
        let others: Vec<Value> = (by_label.iter())
            .map(|(label, values)| json!({"key": label, "operator": "NotIn", "values": values}))
            .collect();
        let elsewhere = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [namespace]});
        let mut peers = vec![
            json!({"podSelector": {"matchExpressions": others}}),
            json!({"namespaceSelector": {"matchExpressions": [elsewhere]}}),
        ];
        for (everything, bits, is_of) in [
            ("0.0.0.0/0", 32, (|it: &str| !it.contains(':')) as fn(&str) -> bool),
            ("::/0", 128, |it| it.contains(':')),
        ] {
            let except: Vec<String> = (whom.iter().flat_map(|other| &other.addresses))
                .filter(|address| is_of(address))
                .map(|address| format!("{address}/{bits}"))
                .collect();
            peers.push(json!({"ipBlock": {"cidr": everything, "except": except}}));
        }
        Self::new(node, pod, namespace, &Value::Array(peers))
    }

    fn new(node: &str, pod: &Pod, namespace: &str, peers: &Value) -> Self {
        let name = format!("pacsvault-chaos-{node}");
        let nobody = peers.as_array().is_some_and(Vec::is_empty);
        let rules = |side: &str| if nobody { json!([]) } else { json!([{side: peers}]) };
        let body = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace, "labels": {OURS.0: OURS.1}},
            "spec": {
                "podSelector": {"matchLabels": {pod.label.0.as_str(): pod.label.1}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": rules("from"),
                "egress": rules("to"),
            },
        });
        Self { name, body }
    }
}

/// On which nodes policies cut all of this, and from whom. A policy on one side of a cut closes both directions, so each cut has
/// one: of the side with fewer nodes. Nodes that are held off the network as a whole need no other one.
pub(super) fn sides(
    cut: &BTreeMap<String, BTreeSet<String>>,
    held: &BTreeSet<String>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut left = cut.clone();
    let done = |left: &mut BTreeMap<String, BTreeSet<String>>, node: &String| {
        let own = left.remove(node);
        for others in left.values_mut() {
            others.remove(node);
        }
        own
    };
    for node in held {
        done(&mut left, node);
    }
    let mut sides = BTreeMap::new();
    // Whoever loses most is on the smaller side.
    while let Some((node, _)) = left.iter().rev().max_by_key(|(_, others)| others.len()).filter(|one| !one.1.is_empty())
    {
        let node = node.clone();
        sides.extend(done(&mut left, &node).map(|others| (node, others)));
    }
    sides
}

/// All of them as one text for `kubectl apply`.
pub(super) fn list(policies: &[Isolation]) -> String {
    let items: Vec<&Value> = policies.iter().map(|policy| &policy.body).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Whom each node cannot reach, when all of it can be expressed. Links of hosts that are no nodes are left alone: where clients
/// run is not ours to change.
pub(super) fn cuts(
    conditions: &Conditions,
    nodes: &BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let mut cut: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ((from, to), state) in &conditions.links {
        if !nodes.contains(from) || !nodes.contains(to) || from == to {
            continue;
        }
        if *state == LinkState::default() {
            continue;
        }
        let link = format!("from {from} to {to}");
        if *state != (LinkState { cut: true, ..LinkState::default() }) {
            bail!("this driver cannot slow, shake or thin out the link {link}: NetworkPolicies only cut");
        }
        let back = conditions.links.get(&(to.clone(), from.clone()));
        if !back.is_some_and(|back| back.cut) {
            bail!("this driver cannot cut the link {link} in one direction: NetworkPolicies cut both");
        }
        cut.entry(from.clone()).or_default().insert(to.clone());
    }
    Ok(cut)
}
