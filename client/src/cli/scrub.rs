//! `scrub`: every shard read back and verified on its disk, now; and how long ago that happened.
//!
//! **Invariants.** With `--wait`, success means that every volume asked for went through a whole pass in this run, answered until
//! its end, and had no damaged shard.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pacsvault_client::{Client, client::target_of};
use pacsvault_core::{
    ids::{NodeId, VolumeId},
    layout::{Layout, Node, NodeState},
};
use pacsvault_ports::peer::{Fault, Peer, Reply, Request, VolumeStatus};
use pacsvault_runtime::wall_now;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Context,
    args::{Scrub, ScrubCommand},
    failure::Failure,
    find::{self, node_name, volume_name},
    health::{AGES, ago, scrub_value},
    output::{counted, table},
};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one node has to tell its status.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A node that is silent for longer is not waited for.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// One node, and which of its volumes; all when none.
struct Asked<'a> {
    node: &'a Node,
    volumes: BTreeSet<VolumeId>,
}

/// Verifies, or tells.
pub async fn run(context: &Context, args: Scrub) -> Result<(), Failure> {
    match args.command {
        Some(ScrubCommand::Status) if !args.nodes.is_empty() || !args.volumes.is_empty() || args.wait => {
            Err(Failure::usage("`scrub status` shows all volumes and takes no flags of its own"))
        }
        Some(ScrubCommand::Status) => status(context).await,
        None => scrub(context, &args).await,
    }
}

async fn scrub(context: &Context, args: &Scrub) -> Result<(), Failure> {
    let client = context.connect()?;
    let layout = client.layout().await?;
    let asked = asked(&layout, args)?;
    let mut before = BTreeMap::new();
    for one in &asked {
        before.extend(volumes_of(&client, one).await?);
        let target = target_of(one.node);
        if one.volumes.is_empty() {
            client.scrub_now(&target, None).await?;
        }
        for volume in &one.volumes {
            client.scrub_now(&target, Some(*volume)).await?;
        }
    }
    let shards: u64 = before.values().map(|volume| volume.shards).sum();
    let what = format!("{} on {}", counted(shards, "shard"), counted(before.len(), "volume"));
    if !args.wait {
        let value = json!({"scrubbing": before.keys().map(ToString::to_string).collect::<Vec<_>>(), "shards": shards});
        context.out.either(&value, || format!("verifying {what}; `pacsvault scrub status` shows how far it is"));
        return Ok(());
    }
    let after = wait(context, &client, &asked, &before).await?;
    let mut damaged = 0;
    for (volume, now) in &after {
        let then = before.get(volume).map(|volume| &volume.scrub);
        let since = |now: u64, then: Option<u64>| now.saturating_sub(then.unwrap_or_default());
        let verified = since(now.scrub.verified, then.map(|it| it.verified));
        let found = since(now.scrub.damaged, then.map(|it| it.damaged));
        damaged += found;
        let name = volume_name(&layout, *volume);
        let value = json!({"volume": volume.to_string(), "verified": verified, "damaged": found});
        context
            .out
            .either(&value, || format!("volume {name}: {} verified, {found} damaged", counted(verified, "shard")));
    }
    if damaged == 0 {
        return Ok(());
    }
    let text = format!("{} damaged", counted(damaged, "shard"));
    let hint = "they are being repaired: `pacsvault repair status`; if one volume has many, replace its disk";
    Err(Failure::failed("PV-DAMAGED", text).hint(hint))
}

/// Who is to verify what.
fn asked<'a>(layout: &'a Layout, args: &Scrub) -> Result<Vec<Asked<'a>>, Failure> {
    let mut by_node: BTreeMap<NodeId, Asked> = BTreeMap::new();
    for text in &args.nodes {
        let node = find::node(layout, text)?;
        by_node.insert(node.id, Asked { node, volumes: BTreeSet::new() });
    }
    for text in &args.volumes {
        let volume = find::volume(layout, text)?;
        let node = layout.node_of(volume.id).ok_or_else(|| Failure::usage(format!("{text} belongs to no node")))?;
        let whole = by_node.get(&node.id).is_some_and(|asked| asked.volumes.is_empty());
        if !whole {
            by_node.entry(node.id).or_insert(Asked { node, volumes: BTreeSet::new() }).volumes.insert(volume.id);
        }
    }
    if args.nodes.is_empty() && args.volumes.is_empty() {
        let holding = layout
            .nodes
            .values()
            .filter(|node| matches!(node.state, NodeState::Up | NodeState::Suspect) && node.roles.storage);
        by_node.extend(holding.map(|node| (node.id, Asked { node, volumes: BTreeSet::new() })));
    }
    Ok(by_node.into_values().collect())
}

async fn volumes_of(client: &Client, asked: &Asked<'_>) -> Result<BTreeMap<VolumeId, VolumeStatus>, Fault> {
    match client.peer().call(&target_of(asked.node), Request::Status, ANSWER_WITHIN).await? {
        Reply::Status(status) => {
            let of_interest =
                |volume: &VolumeStatus| asked.volumes.is_empty() || asked.volumes.contains(&volume.volume);
            Ok(status.volumes.into_iter().filter(of_interest).map(|volume| (volume.volume, volume)).collect())
        }
        _ => Err(Fault::new(
            pacsvault_ports::peer::Class::Bug,
            "PV-BUG",
            "a node answered something else than its status",
        )),
    }
}

/// Until no volume is in a hurry any more.
async fn wait(
    context: &Context,
    client: &Client,
    asked: &[Asked<'_>],
    before: &BTreeMap<VolumeId, VolumeStatus>,
) -> Result<BTreeMap<VolumeId, VolumeStatus>, Failure> {
    let bar = context.out.count_bar(before.values().map(|volume| volume.shards).sum());
    let mut heard = Instant::now();
    loop {
        let mut now = BTreeMap::new();
        let mut silent = None;
        for one in asked {
            match volumes_of(client, one).await {
                Ok(volumes) => now.extend(volumes),
                Err(fault) => silent = Some((one.node.name.clone(), fault)),
            }
        }
        match silent {
            None => heard = Instant::now(),
            Some((name, fault)) if heard.elapsed() > SILENCE_MAX => {
                bar.abandon();
                let text = format!("{name} does not answer any more: {fault}");
                return Err(Failure::failed("PV-NODES-AWAY", text).hint("verify its volumes again when it is back"));
            }
            Some(_) => {}
        }
        let verified = now.values().map(|volume| {
            let then = before.get(&volume.volume).map_or(0, |volume| volume.scrub.verified);
            volume.scrub.verified.saturating_sub(then)
        });
        bar.set_position(verified.sum());
        if now.len() >= before.len() && !now.values().any(|volume| volume.scrub.hurried) {
            bar.finish_and_clear();
            return Ok(now);
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                bar.abandon();
                return Err(Failure::failed("PV-INTERRUPTED", "no longer watched; the nodes go on verifying"));
            }
        }
    }
}

/// Ages of verification, as the nodes tell them.
async fn status(context: &Context) -> Result<(), Failure> {
    let client = context.connect()?;
    let (layout, view) = (client.layout().await?, client.status().await);
    let now = wall_now().0;
    let mut rows = Vec::new();
    for (node, volume) in view.nodes.iter().flat_map(|node| {
        let name = node.id.map(|id| node_name(&layout, id)).unwrap_or_default();
        node.answer.iter().flat_map(|status| &status.volumes).map(move |volume| (name.clone(), volume))
    }) {
        if context.out.json {
            context.out.value(&age_value(&node, volume));
        }
        rows.push(age_row(&node, volume, now));
    }
    if !context.out.json {
        let head = ["NODE", "VOLUME", "SHARDS"].into_iter().chain(AGES).chain(["OLDEST", "DAMAGED", "NOW"]);
        context.out.say(table(&head.collect::<Vec<_>>(), &rows));
    }
    let away: Vec<&str> = view
        .nodes
        .iter()
        .filter(|node| node.answer.is_err())
        .filter_map(|node| Some(node.name.as_ref()?.as_str()))
        .collect();
    if away.is_empty() {
        return Ok(());
    }
    Err(Failure::failed("PV-NODES-AWAY", format!("nothing is known of the volumes of {}", away.join(", "))))
}

fn age_value(node: &str, volume: &VolumeStatus) -> Value {
    json!({
        "node": node, "volume": volume.volume.to_string(), "shards": volume.shards, "ages": AGES,
        "scrub": scrub_value(&volume.scrub),
    })
}

fn age_row(node: &str, volume: &VolumeStatus, now_millis: u64) -> Vec<String> {
    let scrub = &volume.scrub;
    let mut row = vec![node.to_owned(), volume.volume.to_string()[..12].to_owned(), volume.shards.to_string()];
    row.extend(scrub.histogram.iter().map(ToString::to_string));
    row.push(scrub.oldest.map_or_else(|| "-".to_owned(), |oldest| ago(oldest.0, now_millis)));
    row.push(scrub.damaged.to_string());
    row.push(if scrub.hurried { "verifying".to_owned() } else { "at leisure".to_owned() });
    row
}

#[cfg(test)]
mod tests {
    use pacsvault_core::{health::report::ScrubAge, ids::WallMillis, layout::VolumeState};

    use super::{super::find::tests::layout, *};

    fn args(nodes: &[&str], volumes: &[&str]) -> Scrub {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Scrub { command: None, nodes: owned(nodes), volumes: owned(volumes), wait: false }
    }

    #[test]
    fn a_node_named_whole_is_asked_once_and_removed_ones_never() {
        let layout = layout();
        let all = asked(&layout, &args(&[], &[])).expect("valid");
        assert_eq!(all.iter().map(|asked| asked.node.id.0).collect::<Vec<_>>(), [1, 2, 3]);
        let mixed = asked(&layout, &args(&["east-1"], &["22ab", "11ab"])).expect("valid");
        let mixed: Vec<(u64, usize)> = mixed.iter().map(|asked| (asked.node.id.0, asked.volumes.len())).collect();
        assert_eq!(mixed, [(1, 1), (2, 0)]);
        assert!(asked(&layout, &args(&["gone"], &[])).is_err());
    }

    #[test]
    fn ages_are_shown_in_as_many_columns_as_there_are() {
        let scrub = ScrubAge { histogram: [1, 0, 0, 0, 0, 0, 9], oldest: Some(WallMillis(0)), ..ScrubAge::default() };
        let volume = VolumeStatus {
            volume: VolumeId([0xab; 16]),
            state: VolumeState::Up,
            reason: String::new(),
            shards: 10,
            used_bytes: 0,
            free_bytes: 0,
            capacity_bytes: 0,
            scrub,
        };
        let row = age_row("east-1", &volume, 60 * 86_400_000);
        assert_eq!((row.len(), row[9].as_str(), row[10].as_str()), (13, "9", "60.0 d ago"));
        assert_eq!(age_value("east-1", &volume)["scrub"]["histogram"][6], 9);
    }
}
