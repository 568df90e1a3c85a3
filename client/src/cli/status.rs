//! `status`: the cluster on one screen.

use std::{io::IsTerminal, time::Duration};

use pacsvault_client::status::{ClusterView, NodeView};
use pacsvault_core::layout::{Layout, NodeState, VolumeState};
use serde_json::{Value, json};

use super::{
    Context,
    args::Status,
    failure::Failure,
    output::{size_text, table},
};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shows it once, or again and again.
pub async fn run(context: &Context, args: Status) -> Result<(), Failure> {
    let client = context.connect()?;
    if !args.watch {
        let view = client.status().await;
        show(context, &view);
        return judge(&view);
    }
    let clear = !context.out.json && std::io::stdout().is_terminal();
    loop {
        let view = client.status().await;
        if clear {
            // Home and erase below: no flicker, and no leftovers of a longer screen.
            context.out.say("\u{1b}[H\u{1b}[J");
        }
        show(context, &view);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
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

fn show(context: &Context, view: &ClusterView) {
    if context.out.json { context.out.value(&value(view)) } else { context.out.say(words(view)) }
}

fn state_of(node: &NodeView) -> (&'static str, Option<String>) {
    match (&node.answer, node.state) {
        (Err(fault), _) => ("away", Some(fault.message.clone())),
        (Ok(_), Some(NodeState::Down)) => ("up", Some("the layout counts it as down".to_owned())),
        (Ok(status), _) if status.node.is_none() => ("up", Some("not a member of a cluster yet".to_owned())),
        (Ok(_), _) => ("up", None),
    }
}

fn volume_state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Up => "up",
        VolumeState::ReadOnly => "read-only",
        VolumeState::Fenced => "fenced",
        VolumeState::Away => "away",
    }
}

fn value(view: &ClusterView) -> Value {
    let nodes: Vec<Value> = view
        .nodes
        .iter()
        .map(|node| {
            let (state, reason) = state_of(node);
            let status = node.answer.as_ref().ok();
            let volumes: Vec<Value> = status
                .iter()
                .flat_map(|status| &status.volumes)
                .map(|it| {
                    json!({
                        "id": it.volume.to_string(), "state": volume_state(it.state), "reason": it.reason,
                        "used_bytes": it.used_bytes, "free_bytes": it.free_bytes, "capacity_bytes": it.capacity_bytes,
                        "shards": it.shards,
                    })
                })
                .collect();
            json!({
                "name": node.name.as_ref().map(|name| name.as_str()), "site": node.site.as_ref().map(|site| site.as_str()),
                "id": node.id.map(|id| id.0), "address": node.address, "state": state, "reason": reason,
                "role": node.role.as_str(), "applied": status.map(|status| status.applied.0),
                "last_log": status.map(|status| status.last_log.0), "term": status.map(|status| status.term.0),
                "version": status.map(|status| status.binary_version.as_str()), "volumes": volumes,
            })
        })
        .collect();
    let layout = view.layout.as_ref().ok();
    json!({
        "cluster": view.cluster.to_string(), "leader": view.leader.as_ref().map(|name| name.as_str()), "nodes": nodes,
        "layout": layout.map(|layout| layout.version.0), "profiles": layout.map(|layout| profiles(layout)),
    })
}

fn profiles(layout: &Layout) -> Vec<Value> {
    let profile = |it: &pacsvault_core::layout::Profile| {
        json!({
            "name": it.name.as_str(), "version": it.version, "code": it.code.to_string(),
            "contract": it.contract.to_string(), "floor": it.floor.to_string(), "default": it.name == layout.default_profile,
        })
    };
    layout.profiles.values().map(profile).collect()
}

fn words(view: &ClusterView) -> String {
    let rows: Vec<Vec<String>> = view.nodes.iter().map(row).collect();
    let nodes =
        table(&["NODE", "SITE", "STATE", "ROLE", "APPLIED", "VOLUMES", "SHARDS", "USED", "FREE", "ADDRESS"], &rows);
    let leader = view.leader.as_ref().map_or("nobody leads".to_owned(), |name| format!("{name} leads"));
    let up = view.nodes.iter().filter(|node| node.answer.is_ok()).count();
    let mut lines = vec![format!("cluster {}: {up} of {} nodes up, {leader}", view.cluster, view.nodes.len())];
    if let Ok(layout) = &view.layout {
        let profile = |it: &pacsvault_core::layout::Profile| {
            let default = if it.name == layout.default_profile { " (default)" } else { "" };
            format!("profile {}{default}: {}, promises to survive {}", it.name, it.code, it.contract)
        };
        lines.extend(layout.profiles.values().map(profile));
    }
    lines.push(String::new());
    lines.push(nodes);
    for node in &view.nodes {
        if let (_, Some(reason)) = state_of(node) {
            lines.push(format!("{}: {reason}", name_of(node)));
        }
        for volume in node.answer.iter().flat_map(|status| &status.volumes) {
            if volume.state != VolumeState::Up {
                let state = volume_state(volume.state);
                lines.push(format!("{}: volume {} is {state}: {}", name_of(node), volume.volume, volume.reason));
            }
        }
    }
    lines.join("\n")
}

fn row(node: &NodeView) -> Vec<String> {
    let dash = || "-".to_owned();
    let status = node.answer.as_ref().ok();
    let volumes = status.map(|status| status.volumes.as_slice()).unwrap_or_default();
    let sum = |part: fn(&pacsvault_ports::peer::VolumeStatus) -> u64| volumes.iter().map(part).sum::<u64>();
    let shown = |text: String| if status.is_some() { text } else { dash() };
    vec![
        name_of(node).to_owned(),
        node.site.as_ref().map_or_else(dash, ToString::to_string),
        state_of(node).0.to_owned(),
        node.role.as_str().to_owned(),
        status.map_or_else(dash, |status| status.applied.to_string()),
        shown(volumes.len().to_string()),
        shown(sum(|volume| volume.shards).to_string()),
        shown(size_text(sum(|volume| volume.used_bytes))),
        shown(size_text(sum(|volume| volume.free_bytes))),
        node.address.clone(),
    ]
}
