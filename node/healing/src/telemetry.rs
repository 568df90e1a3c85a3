//! What Prometheus is told of healing. Only a node that leads knows most of it: `pacsvault_repair_conducts` says which.
//!
//! **Invariants.** Labels are bounded: tiers, causes, and members of the cluster. A gauge that only a leader knows is 0 on a
//! node that leads no longer: the last it saw must not pass for the present.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics::{counter, gauge};
use pacsvault_core::{
    health::{Cause, Tier, report::Done},
    layout::NodeState,
};

use crate::{desk::Desk, pass::Surveyed};

/// Tiers told apart; what is farther from loss is told with the last.
const TIERS: [(&str, Tier); 4] = [
    ("unreadable", Tier::Unreadable),
    ("0", Tier::Distance(0)),
    ("1", Tier::Distance(1)),
    ("2+", Tier::Distance(u8::MAX)),
];
const CAUSES: [(&str, Cause); 4] = [
    ("repair", Cause::Repair),
    ("respread", Cause::Respread),
    ("drain", Cause::Drain),
    ("rebalance", Cause::Rebalance),
];

/// Nodes whose state this process has told: gauges outlive the layout that named them.
static NODES_TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether this node looks after the cluster's health. When it does no longer, it forgets what it told of it.
pub fn conducts(yes: bool) {
    gauge!("pacsvault_repair_conducts").set(f64::from(u8::from(yes)));
    if !yes {
        forget();
    }
}

fn forget() {
    for (label, _) in TIERS {
        gauge!("pacsvault_bytes_by_distance", "distance" => label).set(0.0);
    }
    gauge!("pacsvault_bytes_below_contract").set(0.0);
    gauge!("pacsvault_stripes_set_aside").set(0.0);
    for (label, _) in CAUSES {
        gauge!("pacsvault_repair_waiting_stripes", "cause" => label).set(0.0);
        gauge!("pacsvault_repair_waiting_bytes", "cause" => label).set(0.0);
    }
    gauge!("pacsvault_repair_in_progress").set(0.0);
    gauge!("pacsvault_repair_rate_bytes_per_second").set(0.0);
    gauge!("pacsvault_recode_left").set(0.0);
    tell_nodes(std::iter::empty());
}

/// Tells the states of these nodes, and 0, which is no state, of all others told before.
fn tell_nodes(states: impl Iterator<Item = (String, NodeState)>) {
    let mut told = NODES_TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let mut gone = std::mem::take(&mut *told);
    for (name, state) in states {
        gauge!("pacsvault_node_state", "node" => name.clone()).set(f64::from(state as u8));
        gone.remove(&name);
        told.insert(name);
    }
    for name in gone {
        gauge!("pacsvault_node_state", "node" => name).set(0.0);
    }
}

/// A task has ended.
pub fn done(done: &Done) {
    match done {
        Done::Reseated { written_bytes, read_bytes, wan_bytes } => {
            counter!("pacsvault_repair_stripes_total").increment(1);
            counter!("pacsvault_repair_written_bytes_total").increment(*written_bytes);
            counter!("pacsvault_repair_read_bytes_total").increment(*read_bytes);
            counter!("pacsvault_repair_wan_bytes_total").increment(*wan_bytes);
        }
        Done::Outdated => counter!("pacsvault_repair_outdated_total").increment(1),
        Done::Irreparable(_) => counter!("pacsvault_repair_irreparable_total").increment(1),
    }
}

/// Everything was judged.
pub fn surveyed(surveyed: &Surveyed, desk: &mut Desk, now: Duration) {
    let survey = &surveyed.survey;
    let mut below = None;
    for (label, upto) in TIERS {
        let within =
            survey.by_tier.0.iter().filter(|(tier, _)| **tier <= upto && below.is_none_or(|last| **tier > last));
        let bytes: u64 = within.map(|(_, sums)| sums.content_bytes).sum();
        gauge!("pacsvault_bytes_by_distance", "distance" => label).set(bytes as f64);
        below = Some(upto);
    }
    gauge!("pacsvault_bytes_below_contract").set(survey.below_contract.content_bytes as f64);
    gauge!("pacsvault_stripes_set_aside").set(surveyed.asides.1 as f64);
    for (label, cause) in CAUSES {
        let sums = survey.waiting.get(&cause).copied().unwrap_or_default();
        gauge!("pacsvault_repair_waiting_stripes", "cause" => label).set(sums.stripes as f64);
        gauge!("pacsvault_repair_waiting_bytes", "cause" => label).set(sums.shard_bytes as f64);
    }
    gauge!("pacsvault_repair_in_progress").set(desk.flying() as f64);
    gauge!("pacsvault_repair_rate_bytes_per_second").set(desk.progress.rate(now) as f64);
    let members = surveyed.ground.layout.nodes.values().filter(|node| node.state != NodeState::Removed);
    tell_nodes(members.map(|node| (node.name.as_str().to_owned(), node.state)));
}

/// What this node's governor allows now; 0: no limit.
pub fn allowed(bytes_per_s: u64) {
    gauge!("pacsvault_repair_allowed_bytes_per_second").set(bytes_per_s as f64);
}

/// A version was re-encoded.
pub fn recoded() {
    counter!("pacsvault_recode_done_total").increment(1);
}

/// Versions known to be coded otherwise than wanted.
pub fn recode_left(count: u64) {
    gauge!("pacsvault_recode_left").set(count as f64);
}
