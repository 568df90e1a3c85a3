//! `drain`, `undrain`, `remove`: shrinking without risk.
//!
//! **Invariants.** Nothing begins before its plan was shown and it was confirmed; what is unsafe is refused with the
//! arithmetic, here and again by the catalog. "Empty" is said only when the cluster's own plan says so.

use std::time::Duration;

use pacsvault_client::Client;
use pacsvault_core::{
    catalog::command::DrainTarget,
    health::{
        Loss,
        report::{DrainPlan, WhatIf},
    },
    layout::{Layout, Node, NodeState, VolumeState},
};
use pacsvault_ports::peer::{Class, Fault};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Context,
    args::{Drain, Remove, Undrain},
    failure::Failure,
    find::{self, volume_name},
    health::stripes,
    output::{size_text, span_text},
};

/// Pause between two looks at how much is left.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Without a terminal for the bar, a line of progress this often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long nobody may be able to tell how much is left: longer than an election.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What stops a drain, for those who no longer watch it.
const STOPS: &str = "`pacsvault undrain` stops it";

/// Empties.
pub async fn drain(context: &Context, args: Drain) -> Result<(), Failure> {
    let client = context.connect()?;
    let layout = client.layout().await?;
    let (target, name) = find::target(&layout, &args.target)?;
    let plan = client.drain_plan(target).await?;
    context.out.either(&plan_value(&plan, &name), || plan_words(&plan, &name, &layout));
    check_safe(&plan, &name)?;
    if args.dry_run {
        return Ok(());
    }
    if !args.yes {
        return Err(Failure::usage(format!("this would empty {name}")).hint("add --yes if that is meant"));
    }
    client.drain(target).await?;
    let begun = json!({"draining": name});
    if !args.wait {
        let next = "`pacsvault status --watch` shows progress";
        context.out.either(&begun, || format!("{name} is being emptied; {next}"));
        return Ok(());
    }
    let emptied = wait_until_empty(context, &client, target, plan, STOPS).await?;
    let took = span_text(emptied.as_secs());
    context.out.either(&json!({"empty": name, "seconds": emptied.as_secs()}), || {
        let next = match target {
            DrainTarget::Node(_) => format!("; next: pacsvault remove {} --yes", args.target.node.unwrap_or_default()),
            DrainTarget::Volume(volume) => {
                format!("; next: pacsvault cluster fence-volume {volume} --yes, then take it out of the node's configuration")
            }
        };
        format!("{name} is empty after {took}{next}")
    });
    Ok(())
}

/// Refuses what would break a contract.
fn check_safe(plan: &DrainPlan, name: &str) -> Result<(), Failure> {
    if plan.safe {
        return Ok(());
    }
    let text = format!("emptying {name} is not safe: {}", plan.reasons.join("; "));
    Err(Failure::failed("PV-IMPOSSIBLE", text).hint("add a node or a volume first; `pacsvault plan` helps to choose"))
}

async fn wait_until_empty(
    context: &Context,
    client: &Client,
    target: DrainTarget,
    first: DrainPlan,
    next: &str,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    let (mut told, mut answered) = (began, began);
    let mut total = first.moves.shard_bytes;
    let bar = context.out.bytes_bar(total);
    loop {
        match client.drain_plan(target).await {
            Ok(plan) if plan.empty => {
                bar.finish_and_clear();
                return Ok(began.elapsed());
            }
            Ok(plan) => {
                answered = Instant::now();
                let left = plan.moves.shard_bytes;
                // Writes that were under way still land there.
                total = total.max(left);
                bar.set_length(total);
                bar.set_position(total - left);
                if bar.is_hidden() && told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    tell_progress(client, &plan).await;
                }
            }
            Err(fault) if fault.class == Class::Retry && answered.elapsed() < SILENCE_MAX => {}
            Err(fault) => {
                bar.abandon();
                return Err(still_draining(fault, next));
            }
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                bar.abandon();
                let text = "no longer watched; it is still being emptied";
                return Err(Failure::failed("PV-INTERRUPTED", text).hint(next));
            }
        }
    }
}

fn still_draining(fault: Fault, next: &str) -> Failure {
    Failure::from(fault).hint(format!("it is still being emptied; `pacsvault status --watch` shows progress; {next}"))
}

/// For logs: standard error, so that results stay results.
async fn tell_progress(client: &Client, plan: &DrainPlan) {
    let (left, count) = (size_text(plan.moves.shard_bytes), stripes(plan.moves.stripes));
    let why = client.health().await.map(|health| health.held_back).unwrap_or_default();
    let why = if why.is_empty() { String::new() } else { format!("; held back: {}", why.join("; ")) };
    eprintln!("note: {left} in {count} left{why}");
}

fn plan_words(plan: &DrainPlan, name: &str, layout: &Layout) -> String {
    let volumes: Vec<String> = plan.volumes.iter().map(|volume| volume_name(layout, *volume)).collect();
    let mut lines = vec![format!("to empty {name}: {}", volumes.join(", "))];
    if plan.empty {
        lines.push("  nothing is left to move".to_owned());
    } else {
        let takes =
            plan.takes_s.map_or_else(|| "time unknown".to_owned(), |takes| format!("about {}", span_text(takes)));
        lines.push(format!(
            "  moves {} in {}, {takes} at {}/s; {} free elsewhere",
            size_text(plan.moves.shard_bytes),
            stripes(plan.moves.stripes),
            size_text(plan.rate_bytes_per_s),
            size_text(plan.free_elsewhere_bytes)
        ));
    }
    lines.push(if plan.safe { "  safe".to_owned() } else { "  NOT SAFE".to_owned() });
    lines.extend(plan.reasons.iter().map(|reason| format!("    {reason}")));
    lines.join("\n")
}

fn plan_value(plan: &DrainPlan, name: &str) -> Value {
    json!({
        "target": name, "volumes": plan.volumes.iter().map(ToString::to_string).collect::<Vec<_>>(), "safe": plan.safe,
        "reasons": plan.reasons, "moves_stripes": plan.moves.stripes, "moves_bytes": plan.moves.shard_bytes,
        "free_elsewhere_bytes": plan.free_elsewhere_bytes, "takes_s": plan.takes_s,
        "rate_bytes_per_s": plan.rate_bytes_per_s, "empty": plan.empty,
    })
}

/// Uses it again.
pub async fn undrain(context: &Context, args: Undrain) -> Result<(), Failure> {
    let client = context.connect()?;
    let (target, name) = find::target(&*client.layout().await?, &args.target)?;
    client.undrain(target).await?;
    context.out.either(&json!({"undrained": name}), || format!("{name} is used again"));
    Ok(())
}

/// Retires.
pub async fn remove(context: &Context, args: Remove) -> Result<(), Failure> {
    let client = context.connect()?;
    let layout = client.layout().await?;
    let node = find::node(&layout, &args.node)?;
    if args.gone && !give_up(context, &client, &layout, node, &args).await? {
        return Ok(());
    }
    let plan = client.drain_plan(DrainTarget::Node(node.id)).await?;
    check_empty(&plan, node)?;
    check_safe(&plan, &format!("node {}", node.name))?;
    if !args.yes {
        let text = format!("this would retire node {} for good", node.name);
        return Err(Failure::usage(text).hint("add --yes if that is meant"));
    }
    client.remove_node(node.id).await?;
    let value = json!({"removed": node.name.as_str(), "node": node.id.0});
    context
        .out
        .either(&value, || format!("node {} is retired; stop its process, its machine and disks are free", node.name));
    Ok(())
}

/// Fences the volumes of a node that never returns; says whether all of it is rebuilt, which only `--wait` waits for.
async fn give_up(
    context: &Context,
    client: &Client,
    layout: &Layout,
    node: &Node,
    args: &Remove,
) -> Result<bool, Failure> {
    let answers = client.status().await.nodes.iter().any(|view| view.id == Some(node.id) && view.answer.is_ok());
    check_gone(node, answers)?;
    let what_if = client.what_if(Loss { nodes: vec![node.id], ..Loss::default() }).await?;
    check_rebuildable(&what_if, node)?;
    let target = DrainTarget::Node(node.id);
    let plan = client.drain_plan(target).await?;
    let (bytes, count) = (size_text(plan.moves.shard_bytes), stripes(plan.moves.stripes));
    if !args.yes {
        let text = format!("this would give up node {} with shards of {count}, {bytes}, for good", node.name);
        return Err(Failure::usage(text).hint("add --yes if that is meant"));
    }
    let held = layout.volumes.values().filter(|volume| volume.node == node.id && volume.state != VolumeState::Fenced);
    for volume in held {
        client.fence_volume(volume.id).await?;
    }
    let value = json!({"given_up": node.name.as_str(), "node": node.id.0, "rebuilds_bytes": plan.moves.shard_bytes});
    let next = format!("when all is rebuilt: pacsvault remove {} --yes", node.name);
    context.out.either(&value, || format!("node {} is given up; {bytes} are rebuilt elsewhere\n{next}", node.name));
    if args.wait {
        wait_until_empty(context, client, target, plan, &next).await?;
    }
    Ok(args.wait)
}

/// Refuses to give up what lives: whoever hears it, hears a node that holds shards.
fn check_gone(node: &Node, answers: bool) -> Result<(), Failure> {
    let heard = node.state == NodeState::Up;
    if !heard && !answers {
        return Ok(());
    }
    let who = if answers { "it answers" } else { "the leader has heard it within the last seconds" };
    let text = format!("node {} is not gone: {who}", node.name);
    let hint =
        format!("empty it instead: pacsvault drain {} --yes --wait; or stop it for good and ask again", node.name);
    Err(Failure::failed("PV-NODE-NOT-GONE", text).hint(hint))
}

/// Refuses to fence what nothing else can restore: as long as it is not fenced it may return.
fn check_rebuildable(what_if: &WhatIf, node: &Node) -> Result<(), Failure> {
    if what_if.all_readable {
        return Ok(());
    }
    let text = format!("without node {} some of what is stored cannot be read, so it cannot be rebuilt", node.name);
    let hint = "bring back whatever else is away first; `pacsvault what-if --node NODE` says how much it is";
    Err(Failure::failed("PV-WOULD-BE-UNREADABLE", text).hint(hint))
}

/// Refuses to retire what holds something, and says what to do about it.
fn check_empty(plan: &DrainPlan, node: &Node) -> Result<(), Failure> {
    if plan.empty {
        return Ok(());
    }
    let (bytes, count) = (size_text(plan.moves.shard_bytes), stripes(plan.moves.stripes));
    let text = format!("node {} still holds shards of {count}, {bytes}", node.name);
    let hint = match node.state {
        NodeState::Down | NodeState::Lost => format!(
            "they are being rebuilt elsewhere, see `pacsvault status --watch`; if it does not return, `pacsvault drain {} --yes --wait` hurries",
            node.name
        ),
        NodeState::Up | NodeState::Suspect | NodeState::Removed => {
            format!("first: pacsvault drain {} --yes --wait", node.name)
        }
    };
    Err(Failure::failed("PV-NODE-NOT-EMPTY", text).hint(hint))
}

#[cfg(test)]
mod tests {
    use pacsvault_core::{health::Sums, ids::NodeId};

    use super::{super::find::tests::layout, *};

    fn plan(safe: bool, empty: bool) -> DrainPlan {
        let layout = layout();
        let moves = Sums { stripes: 8, content_bytes: 8 << 20, shard_bytes: 2 << 20 };
        DrainPlan {
            target: DrainTarget::Node(NodeId(2)),
            volumes: layout.volumes.values().filter(|it| it.node == NodeId(2)).map(|it| it.id).collect(),
            safe,
            reasons: vec!["standard v1: 2 nodes are left for 3 shards".to_owned()],
            moves: if empty { Sums::default() } else { moves },
            free_elsewhere_bytes: 1 << 30,
            takes_s: Some(5),
            rate_bytes_per_s: 1 << 20,
            empty,
        }
    }

    #[test]
    fn what_is_unsafe_is_refused_with_the_arithmetic() {
        assert!(check_safe(&plan(true, false), "node east-1").is_ok());
        let failure = check_safe(&plan(false, false), "node east-1").expect_err("unsafe");
        assert_eq!(failure.code, "PV-IMPOSSIBLE");
        assert!(failure.message.contains("2 nodes are left for 3 shards"), "{}", failure.message);
    }

    #[test]
    fn a_node_that_holds_something_is_not_retired() {
        let layout = layout();
        let up = &layout.nodes[&NodeId(3)];
        assert!(check_empty(&plan(true, true), up).is_ok());
        let failure = check_empty(&plan(true, false), up).expect_err("holds something");
        assert_eq!(failure.code, "PV-NODE-NOT-EMPTY");
        assert!(failure.hint.expect("a hint").contains("pacsvault drain west-1 --yes --wait"));
        let dead = Node { state: NodeState::Lost, ..up.clone() };
        let failure = check_empty(&plan(true, false), &dead).expect_err("holds something");
        assert!(failure.hint.expect("a hint").contains("rebuilt elsewhere"));
    }

    #[test]
    fn only_what_nobody_hears_is_given_up() {
        let layout = layout();
        let up = &layout.nodes[&NodeId(3)];
        let silent = Node { state: NodeState::Suspect, ..up.clone() };
        assert!(check_gone(&silent, false).is_ok());
        for (node, answers) in [(up, false), (up, true), (&silent, true)] {
            let failure = check_gone(node, answers).expect_err("somebody hears it");
            assert_eq!(failure.code, "PV-NODE-NOT-GONE");
            assert!(failure.hint.expect("a hint").contains("drain west-1"));
        }
    }

    #[test]
    fn what_nothing_else_can_restore_is_not_fenced() {
        let layout = layout();
        let node = &layout.nodes[&NodeId(3)];
        assert!(check_rebuildable(&WhatIf { all_readable: true, ..WhatIf::default() }, node).is_ok());
        let failure = check_rebuildable(&WhatIf::default(), node).expect_err("unreadable");
        assert_eq!(failure.code, "PV-WOULD-BE-UNREADABLE");
    }

    #[test]
    fn a_plan_says_what_moves_how_long_and_whether_it_is_safe() {
        let text = plan_words(&plan(true, false), "node east-1", &layout());
        for word in [
            "to empty node east-1: 22abababab",
            "2.0 MiB in 8 stripes, about 5 s at 1.0 MiB/s",
            "1.0 GiB free",
            "  safe",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(plan_words(&plan(false, true), "x", &layout()).contains("NOT SAFE"));
        assert_eq!(plan_value(&plan(true, false), "x")["moves_bytes"], 2 << 20);
    }
}
