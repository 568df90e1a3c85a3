//! `status`: the cluster on one screen.

use std::io::IsTerminal;

use pacsvault_client::{
    Client,
    status::{ANSWER_WITHIN, ClusterView, NodeView},
};
use pacsvault_core::{
    health::report::Health,
    layout::{Layout, NodeState, VolumeState},
};
use pacsvault_ports::peer::{Class, FAULTS_SUFFIX, Fault};
use pacsvault_runtime::wall_now;
use serde_json::{Value, json};

use super::{
    Context,
    args::Status,
    failure::Failure,
    health::{self, node_state, volume_state},
    output::{size_text, table},
    repair::profile_value,
};

/// All nodes' own words, and the leader's.
struct Look {
    view: ClusterView,
    health: Result<Health, Fault>,
}

/// Shows it once, or again and again.
pub async fn run(context: &Context, args: Status) -> Result<(), Failure> {
    let client = context.connect()?;
    if !args.watch {
        let look = look(&client).await;
        show(context, &look);
        return judge(&look.view);
    }
    let clear = !context.out.json && std::io::stdout().is_terminal();
    loop {
        let look = look(&client).await;
        if clear {
            // Home and erase below: no flicker, and no leftovers of a longer screen.
            context.out.say("\u{1b}[H\u{1b}[J");
        }
        show(context, &look);
        if let (false, Err(failure)) = (context.out.json, judge(&look.view)) {
            context.out.say(failure.to_string());
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn look(client: &Client) -> Look {
    // As long as for the nodes' own words: a screen that is redrawn must not wait for one who is away.
    let health = async {
        let asked = tokio::time::timeout(ANSWER_WITHIN * 2, client.health()).await;
        asked.unwrap_or_else(|_| Err(Fault::new(Class::Retry, "PV-UNAVAILABLE", "no node told the health in time")))
    };
    let (view, health) = tokio::join!(client.status(), health);
    Look { view, health }
}

/// Everybody up, and somebody leads.
fn judge(view: &ClusterView) -> Result<(), Failure> {
    let away: Vec<&str> = view.nodes.iter().filter(|node| node.answer.is_err()).map(name_of).collect();
    if away.len() == view.nodes.len() {
        let why = view.nodes.iter().find_map(|node| node.answer.as_ref().err());
        return Err(match why {
            Some(fault) => Failure { exit: super::failure::Exit::Failed, ..fault.clone().into() },
            None => Failure::failed("PV-NO-NODE", "no node is known"),
        });
    }
    if let Err(fault) = &view.layout {
        let hint = "a new cluster is made with `pacsvault cluster init`; nodes join with `pacsvault cluster join`";
        return Err(Failure::failed(fault.code, fault.message.clone()).hint(hint));
    }
    if !away.is_empty() {
        let text = format!("{} of {} nodes away: {}", away.len(), view.nodes.len(), away.join(", "));
        return Err(Failure::failed("PV-NODES-AWAY", text));
    }
    match view.leader {
        Some(_) => Ok(()),
        None => Err(Failure::failed("PV-NO-LEADER", "no node leads: writes wait until a majority of voters agrees")),
    }
}

fn name_of(node: &NodeView) -> &str {
    node.name.as_ref().map_or(node.address.as_str(), |name| name.as_str())
}

fn show(context: &Context, look: &Look) {
    if context.out.json {
        context.out.value(&value(look));
    } else {
        context.out.say(words(look, wall_now().0));
    }
}

fn state_of(node: &NodeView) -> (&'static str, Option<String>) {
    match (&node.answer, node.state) {
        (Err(fault), _) => ("away", Some(fault.message.clone())),
        (Ok(_), Some(state @ (NodeState::Down | NodeState::Suspect | NodeState::Lost))) => {
            ("up", Some(format!("the layout counts it as {}", node_state(state))))
        }
        (Ok(status), _) if status.node.is_none() => ("up", Some("not a member of a cluster yet".to_owned())),
        (Ok(_), _) => ("up", None),
    }
}

fn value(look: &Look) -> Value {
    let view = &look.view;
    let layout = view.layout.as_deref().ok();
    let nodes: Vec<Value> = view.nodes.iter().map(|node| node_value(node, layout)).collect();
    json!({
        "cluster": view.cluster.to_string(), "leader": view.leader.as_ref().map(|name| name.as_str()), "nodes": nodes,
        "layout": layout.map(|layout| layout.version.0), "version": layout.map(|layout| layout.format),
        "profiles": layout.map(|layout| layout.profiles.values().map(|it| profile_value(it, layout)).collect::<Vec<_>>()),
        "health": look.health.as_ref().ok().map(|health| health::value(health, layout)),
        "health_error": look.health.as_ref().err().map(|fault| json!({"code": fault.code, "message": fault.message})),
    })
}

fn node_value(node: &NodeView, layout: Option<&Layout>) -> Value {
    let (state, reason) = state_of(node);
    let status = node.answer.as_ref().ok();
    let member = node.id.and_then(|id| layout?.nodes.get(&id));
    let volumes = status.iter().flat_map(|status| &status.volumes).map(|it| {
        json!({
            "id": it.volume.to_string(), "state": volume_state(it.state), "reason": it.reason,
            "used_bytes": it.used_bytes, "free_bytes": it.free_bytes, "capacity_bytes": it.capacity_bytes,
            "shards": it.shards, "scrub": health::scrub_value(&it.scrub),
            "draining": layout.map(|layout| layout.draining(it.volume)),
        })
    });
    json!({
        "name": node.name.as_ref().map(|name| name.as_str()), "site": node.site.as_ref().map(|site| site.as_str()),
        "id": node.id.map(|id| id.0), "address": node.address, "state": state, "reason": reason,
        "layout_state": node.state.map(node_state), "draining": member.map(|member| member.draining),
        "role": node.role.as_str(), "applied": status.map(|status| status.applied.0),
        "last_log": status.map(|status| status.last_log.0), "term": status.map(|status| status.term.0),
        "version": status.map(|status| status.binary_version.as_str()),
        "understands": member.map(|member| member.version), "volumes": volumes.collect::<Vec<_>>(),
    })
}

fn words(look: &Look, now_millis: u64) -> String {
    let view = &look.view;
    let layout = view.layout.as_deref().ok();
    let leader = view.leader.as_ref().map_or("nobody leads".to_owned(), |name| format!("{name} leads"));
    let up = view.nodes.iter().filter(|node| node.answer.is_ok()).count();
    let mut lines = vec![format!("cluster {}: {up} of {} nodes up, {leader}", view.cluster, view.nodes.len())];
    if let Some(layout) = layout {
        lines.extend(version_words(layout));
        let profile = |it: &pacsvault_core::layout::Profile| {
            let default = if it.name == layout.default_profile { " (default)" } else { "" };
            format!("profile {}{default}: {}, promises to survive {}", it.name, it.code, it.contract)
        };
        lines.extend(layout.profiles.values().map(profile));
    }
    match &look.health {
        Ok(health) => {
            lines.extend(health::protection_words(health));
            lines.extend(health::work_words(health));
        }
        Err(fault) => lines.push(format!("protection: unknown: {fault}")),
    }
    let rows: Vec<Vec<String>> = view.nodes.iter().map(|node| row(node, layout)).collect();
    lines.push(String::new());
    lines.push(table(
        &["NODE", "SITE", "STATE", "ROLE", "APPLIED", "VOLUMES", "SHARDS", "USED", "FREE", "ADDRESS"],
        &rows,
    ));
    lines.extend(view.nodes.iter().flat_map(troubles));
    if let (Ok(health), Some(layout)) = (&look.health, layout)
        && !health.volumes.is_empty()
    {
        lines.push(String::new());
        lines.push(health::volumes_words(health, layout, now_millis));
    }
    lines.join("\n")
}

/// Only when an upgrade is under way.
fn version_words(layout: &Layout) -> Option<String> {
    let members = || layout.nodes.values().filter(|node| node.state != NodeState::Removed);
    let newest = members().map(|node| node.version).max().unwrap_or(layout.format);
    let behind: Vec<&str> = members().filter(|node| node.version < newest).map(|node| node.name.as_str()).collect();
    match (newest > layout.format, behind.is_empty()) {
        (false, _) => None,
        (true, true) => Some(format!("version {} in force, {newest} follows at once", layout.format)),
        (true, false) => {
            Some(format!("version {} in force until {} run version {newest} too", layout.format, behind.join(", ")))
        }
    }
}

/// What is not as it should be on one node.
fn troubles(node: &NodeView) -> Vec<String> {
    let mut lines: Vec<String> =
        state_of(node).1.map(|reason| format!("{}: {reason}", name_of(node))).into_iter().collect();
    if node.answer.as_ref().is_ok_and(|status| status.binary_version.ends_with(FAULTS_SUFFIX)) {
        lines.push(format!("{}: faults are injected into this node (PACSVAULT_INJECT)", name_of(node)));
    }
    for volume in node.answer.iter().flat_map(|status| &status.volumes) {
        if volume.state != VolumeState::Up {
            let state = volume_state(volume.state);
            lines.push(format!("{}: volume {} is {state}: {}", name_of(node), volume.volume, volume.reason));
        }
    }
    lines
}

/// What the node is for itself and for the cluster.
fn state_words(node: &NodeView, layout: Option<&Layout>) -> String {
    let mut words = state_of(node).0.to_owned();
    match node.state {
        Some(state @ (NodeState::Suspect | NodeState::Down | NodeState::Lost)) => {
            words.push_str(&format!(" ({})", node_state(state)));
        }
        Some(NodeState::Up | NodeState::Removed) | None => {}
    }
    if node.id.and_then(|id| layout?.nodes.get(&id)).is_some_and(|member| member.draining) {
        words.push_str(", draining");
    }
    words
}

fn row(node: &NodeView, layout: Option<&Layout>) -> Vec<String> {
    let dash = || "-".to_owned();
    let status = node.answer.as_ref().ok();
    let volumes = status.map(|status| status.volumes.as_slice()).unwrap_or_default();
    let sum = |part: fn(&pacsvault_ports::peer::VolumeStatus) -> u64| volumes.iter().map(part).sum::<u64>();
    let shown = |text: String| if status.is_some() { text } else { dash() };
    vec![
        name_of(node).to_owned(),
        node.site.as_ref().map_or_else(dash, ToString::to_string),
        state_words(node, layout),
        node.role.as_str().to_owned(),
        status.map_or_else(dash, |status| status.applied.to_string()),
        shown(volumes.len().to_string()),
        shown(sum(|volume| volume.shards).to_string()),
        shown(size_text(sum(|volume| volume.used_bytes))),
        shown(size_text(sum(|volume| volume.free_bytes))),
        node.address.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use pacsvault_client::status::RaftRole;
    use pacsvault_core::{
        ids::{Digest, LogIndex, NodeId, Term},
        layout::Node,
    };
    use pacsvault_ports::peer::NodeStatus;

    use super::{
        super::{find::tests::layout, health::tests::health},
        *,
    };

    fn look_at(health: Result<Health, Fault>) -> Look {
        let layout = layout();
        let away = || Err(Fault::new(Class::Retry, "PV-UNREACHABLE", "nobody answers"));
        let view = |node: &Node| NodeView {
            name: Some(node.name.clone()),
            site: Some(node.site.clone()),
            id: Some(node.id),
            address: node.address.clone(),
            state: Some(node.state),
            role: RaftRole::Voter,
            answer: away(),
        };
        let nodes = layout.nodes.values().filter(|node| node.state != NodeState::Removed).map(view).collect();
        let view = ClusterView { cluster: layout.cluster, layout: Ok(layout.into()), leader: None, nodes };
        Look { view, health }
    }

    #[test]
    fn one_screen_has_protection_work_nodes_and_volumes() {
        let text = words(&look_at(Ok(health())), 86_400_000);
        for word in ["0 of 3 nodes up", "BELOW CONTRACT", "in progress", "away (suspect)", "VERIFIED", "1.0 d ago"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let value = value(&look_at(Ok(health())));
        assert_eq!((&value["version"], &value["health"]["in_progress"]), (&json!(2), &json!(4)));
        assert_eq!(value["nodes"][1]["layout_state"], "suspect");
    }

    #[test]
    fn a_node_with_an_open_fault_port_is_named() {
        let mut look = look_at(Ok(health()));
        let node = &mut look.view.nodes[0];
        let mut status = NodeStatus {
            node: node.id,
            name: node.name.clone().expect("a name"),
            site: node.site.clone().expect("a site"),
            binary_version: "0.1.0".to_owned(),
            cluster: look.view.cluster,
            leader: None,
            term: Term(1),
            last_log: LogIndex(5),
            applied: LogIndex(5),
            state_digest: Digest([0; 32]),
            voters: Vec::new(),
            learners: Vec::new(),
            volumes: Vec::new(),
        };
        node.answer = Ok(Box::new(status.clone()));
        assert!(!words(&look, 0).contains("PACSVAULT_INJECT"));
        status.binary_version.push_str(FAULTS_SUFFIX);
        look.view.nodes[0].answer = Ok(Box::new(status));
        let text = words(&look, 0);
        assert!(text.contains("faults are injected into this node (PACSVAULT_INJECT)"), "{text}");
    }

    #[test]
    fn a_leader_that_does_not_tell_hides_nothing_else() {
        let fault = Fault::new(Class::Retry, "PV-NO-LEADER", "nobody leads");
        let look = look_at(Err(fault));
        assert!(words(&look, 0).contains("protection: unknown: nobody leads"));
        let value = value(&look);
        assert_eq!((&value["health"], &value["health_error"]["code"]), (&Value::Null, &json!("PV-NO-LEADER")));
    }

    #[test]
    fn an_upgrade_under_way_names_who_is_behind() {
        let mut layout = layout();
        assert_eq!(version_words(&layout), None);
        layout.format = 1;
        assert!(version_words(&layout).expect("pending").contains("follows at once"));
        layout.nodes.get_mut(&NodeId(3)).expect("known").version = 1;
        assert_eq!(version_words(&layout).as_deref(), Some("version 1 in force until west-1 run version 2 too"));
    }
}
