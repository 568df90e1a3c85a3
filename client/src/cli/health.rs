//! Health on the screen and as JSON: what is close to loss, and what is being done about it.

use pacsvault_core::{
    health::{
        Aside, ByTier, Cause, Sums, Tier,
        report::{Health, ScrubAge},
    },
    layout::{Layout, NodeState, VolumeState},
};
use serde_json::{Value, json};

use super::{
    find::node_name,
    output::{counted, size_text, span_text, table, time_text},
};

/// Upper ends of the columns of [`ScrubAge::histogram`].
pub const AGES: [&str; 7] = ["<1 d", "<2 d", "<4 d", "<7 d", "<14 d", "<28 d", "older"];

/// The word for a cause.
pub fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::Repair => "repair",
        Cause::Respread => "respread",
        Cause::Drain => "drain",
        Cause::Rebalance => "rebalance",
    }
}

/// The word for a node's state.
pub fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::Lost => "lost",
        NodeState::Removed => "removed",
    }
}

/// The word for a volume's state.
pub fn volume_state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Up => "up",
        VolumeState::ReadOnly => "read-only",
        VolumeState::Fenced => "fenced",
        VolumeState::Away => "away",
    }
}

/// Sums as JSON.
pub fn sums_value(sums: Sums) -> Value {
    json!({"stripes": sums.stripes, "content_bytes": sums.content_bytes, "shard_bytes": sums.shard_bytes})
}

/// Content by tier as JSON, closest to loss first.
pub fn tiers_value(by_tier: &ByTier) -> Value {
    let row = |(tier, sums): (&Tier, &Sums)| {
        let mut value = sums_value(*sums);
        value["distance"] = match tier {
            Tier::Unreadable => Value::Null,
            Tier::Distance(survived) => json!(survived),
        };
        value["readable"] = json!(*tier != Tier::Unreadable);
        value
    };
    by_tier.0.iter().map(row).collect()
}

/// Content by tier as lines, closest to loss first.
pub fn tiers_words(by_tier: &ByTier) -> Vec<String> {
    let line = |(tier, sums): (&Tier, &Sums)| {
        let means = match tier {
            Tier::Unreadable => "cannot be read until something returns".to_owned(),
            Tier::Distance(0) => "the next node that fails may lose it".to_owned(),
            Tier::Distance(survived) => {
                format!(
                    "any {} may fail",
                    if *survived == 1 { "one node".to_owned() } else { format!("{survived} nodes") }
                )
            }
        };
        format!(
            "  {:<11} {:>12} in {}: {means}",
            tier.to_string(),
            size_text(sums.content_bytes),
            stripes(sums.stripes)
        )
    };
    by_tier.0.iter().map(line).collect()
}

/// So many stripes.
pub fn stripes(count: u64) -> String {
    counted(count, "stripe")
}

/// Age of verification as JSON.
pub fn scrub_value(age: &ScrubAge) -> Value {
    json!({
        "histogram": age.histogram, "oldest": age.oldest.map(|oldest| time_text(oldest.0)), "damaged": age.damaged,
        "verified": age.verified, "hurried": age.hurried,
    })
}

/// What was set aside, as JSON.
pub fn aside_value(aside: &Aside) -> Value {
    json!({
        "instance": aside.instance.to_string(), "stripe": aside.stripe.0, "reason": aside.reason,
        "since": time_text(aside.since.0), "layout": aside.layout.0,
    })
}

/// All of it as JSON.
pub fn value(health: &Health, layout: Option<&Layout>) -> Value {
    let waiting = health.waiting.iter().map(|(cause, sums)| {
        let mut value = sums_value(*sums);
        value["cause"] = json!(cause_word(*cause));
        value
    });
    let name = |node| layout.map_or_else(|| node_id(node), |layout| node_name(layout, node));
    let nodes = health.nodes.iter().map(|node| {
        json!({
            "id": node.node.0, "name": name(node.node), "silent_ms": node.silent_ms,
            "allowed_bytes_per_s": node.allowed_bytes_per_s,
        })
    });
    let volumes = health.volumes.iter().map(|volume| {
        let known = layout.and_then(|layout| layout.volumes.get(&volume.volume));
        json!({
            "id": volume.volume.to_string(), "node": known.map(|known| name(known.node)),
            "state": known.map(|known| volume_state(known.state)), "draining": layout.map(|it| it.draining(volume.volume)),
            "catalog_bytes": volume.catalog_bytes, "used_bytes": volume.used_bytes, "free_bytes": volume.free_bytes,
            "capacity_bytes": known.map(|known| known.capacity_bytes), "scrub": scrub_value(&volume.scrub),
        })
    });
    json!({
        "leader": name(health.leader), "layout": health.layout.0, "version": health.format,
        "by_tier": tiers_value(&health.by_tier), "below_contract": sums_value(health.below_contract),
        "worst": health.worst.map(|worst| worst.to_string()),
        "sites_away": health.sites_away.iter().map(|site| site.as_str()).collect::<Vec<_>>(),
        "waiting": waiting.collect::<Vec<_>>(), "in_progress": health.in_progress,
        "rate_bytes_per_s": health.rate_bytes_per_s, "done_stripes": health.done_stripes, "done_bytes": health.done_bytes,
        "wan_bytes": health.wan_bytes, "eta_s": health.eta_s, "held_back": health.held_back,
        "aside": health.aside.iter().map(aside_value).collect::<Vec<_>>(), "aside_total": health.aside_total,
        "nodes": nodes.collect::<Vec<_>>(), "volumes": volumes.collect::<Vec<_>>(),
    })
}

fn node_id(node: pacsvault_core::ids::NodeId) -> String {
    node.to_string()
}

/// Protection: what is close to loss.
pub fn protection_words(health: &Health) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match health.worst {
        None => "protection: nothing is stored".to_owned(),
        Some(_) if health.below_contract.stripes == 0 => "protection: everything keeps its contract".to_owned(),
        Some(_) => {
            let below = health.below_contract;
            format!("protection: {} in {} BELOW CONTRACT", size_text(below.content_bytes), stripes(below.stripes))
        }
    });
    lines.extend(tiers_words(&health.by_tier));
    for site in &health.sites_away {
        lines.push(format!("  site {site} is away as a whole"));
    }
    lines
}

/// What is being done about it.
pub fn work_words(health: &Health) -> Vec<String> {
    let mut lines = Vec::new();
    let any = health.in_progress > 0 || health.waiting.values().any(|sums| sums.stripes > 0);
    if any {
        let rate = format!("{}/s", size_text(health.rate_bytes_per_s));
        let eta =
            health.eta_s.map_or_else(|| "no end in sight yet".to_owned(), |eta| format!("done in {}", span_text(eta)));
        lines.push(format!("work: {} in progress, {rate}, {eta}", stripes(health.in_progress)));
        for (cause, sums) in &health.waiting {
            let (name, bytes) = (cause_word(*cause), size_text(sums.shard_bytes));
            lines.push(format!("  {name:<11} {bytes:>12} in {} waiting", stripes(sums.stripes)));
        }
    } else {
        lines.push("work: none waits".to_owned());
    }
    lines.extend(health.held_back.iter().map(|why| format!("  held back: {why}")));
    if health.done_stripes > 0 {
        let (done, wan) = (size_text(health.done_bytes), size_text(health.wan_bytes));
        lines.push(format!(
            "  done since this leader began: {done} in {}, {wan} between sites",
            stripes(health.done_stripes)
        ));
    }
    if health.aside_total > 0 {
        let set_aside = stripes(health.aside_total);
        lines.push(format!("  {set_aside} SET ASIDE as irreparable for now: `pacsvault repair status` says why"));
    }
    lines
}

/// Every volume that is not fenced.
pub fn volumes_words(health: &Health, layout: &Layout, now_millis: u64) -> String {
    let rows: Vec<Vec<String>> = health
        .volumes
        .iter()
        .map(|volume| {
            let known = layout.volumes.get(&volume.volume);
            let node = layout.node_of(volume.volume);
            let state = known.map_or("unknown", |known| volume_state(known.state));
            let draining = if layout.draining(volume.volume) { ", draining" } else { "" };
            let oldest = volume.scrub.oldest.map_or_else(|| "-".to_owned(), |oldest| ago(oldest.0, now_millis));
            vec![
                volume.volume.to_string()[..12].to_owned(),
                node.map_or_else(|| "-".to_owned(), |node| node.name.to_string()),
                format!("{state}{draining}"),
                size_text(volume.used_bytes),
                size_text(volume.free_bytes),
                known.map_or_else(|| "-".to_owned(), |known| fullness(volume.used_bytes, known.capacity_bytes)),
                oldest,
                volume.scrub.damaged.to_string(),
            ]
        })
        .collect();
    table(&["VOLUME", "NODE", "STATE", "USED", "FREE", "FULL", "VERIFIED", "DAMAGED"], &rows)
}

/// How full, in percent.
pub fn fullness(used_bytes: u64, capacity_bytes: u64) -> String {
    if capacity_bytes == 0 {
        return "-".to_owned();
    }
    format!("{} %", u128::from(used_bytes) * 100 / u128::from(capacity_bytes))
}

/// How long ago.
pub fn ago(then_millis: u64, now_millis: u64) -> String {
    format!("{} ago", span_text(now_millis.saturating_sub(then_millis) / 1000))
}

#[cfg(test)]
pub mod tests {
    use pacsvault_core::{
        health::report::VolumeHealth,
        ids::{InstanceId, LayoutVersion, NodeId, StripeIndex, WallMillis},
    };

    use super::{super::find::tests::layout, *};

    fn sums(stripes: u64) -> Sums {
        Sums { stripes, content_bytes: stripes << 20, shard_bytes: stripes << 18 }
    }

    /// A cluster with something of everything.
    pub fn health() -> Health {
        let volumes = layout().volumes.into_keys().map(|volume| VolumeHealth {
            volume,
            catalog_bytes: 1,
            used_bytes: 50 << 20,
            free_bytes: 50 << 20,
            scrub: ScrubAge { oldest: Some(WallMillis(0)), damaged: 3, ..ScrubAge::default() },
        });
        let aside = Aside {
            instance: InstanceId([1; 16]),
            stripe: StripeIndex(2),
            reason: "1 of 2 shards".to_owned(),
            since: WallMillis(0),
            layout: LayoutVersion(40),
        };
        Health {
            leader: NodeId(2),
            by_tier: ByTier(
                [(Tier::Unreadable, sums(1)), (Tier::Distance(0), sums(2)), (Tier::Distance(1), sums(3))].into(),
            ),
            below_contract: sums(3),
            worst: Some(Tier::Unreadable),
            waiting: [(Cause::Repair, sums(3))].into(),
            in_progress: 4,
            rate_bytes_per_s: 100 << 20,
            eta_s: Some(90),
            held_back: vec!["site west is away as a whole".to_owned()],
            aside: vec![aside],
            aside_total: 1,
            volumes: volumes.collect(),
            ..Health::default()
        }
    }

    #[test]
    fn what_is_close_to_loss_comes_first_and_in_words() {
        let words = protection_words(&health());
        assert_eq!(words[0], "protection: 3.0 MiB in 3 stripes BELOW CONTRACT");
        assert!(words[1].starts_with("  unreadable ") && words[1].contains("1.0 MiB in 1 stripe:"), "{}", words[1]);
        assert!(words[2].starts_with("  distance 0") && words[2].ends_with("the next node that fails may lose it"));
        assert!(words[3].ends_with("any one node may fail"));
        assert_eq!(protection_words(&Health::default()), ["protection: nothing is stored"]);
    }

    #[test]
    fn work_is_told_with_rate_end_and_reasons() {
        let text = work_words(&health()).join("\n");
        for word in
            ["4 stripes in progress, 100.0 MiB/s, done in 1.5 min", "repair", "held back: site west", "SET ASIDE"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(work_words(&Health::default()), ["work: none waits"]);
    }

    #[test]
    fn json_has_the_same_with_names() {
        let layout = layout();
        let value = value(&health(), Some(&layout));
        assert_eq!((&value["leader"], &value["by_tier"][0]["distance"]), (&json!("east-1"), &Value::Null));
        assert_eq!((&value["by_tier"][1]["distance"], &value["by_tier"][0]["readable"]), (&json!(0), &json!(false)));
        assert_eq!((&value["waiting"][0]["cause"], &value["eta_s"]), (&json!("repair"), &json!(90)));
        assert_eq!((&value["volumes"][0]["node"], &value["volumes"][0]["state"]), (&json!("7"), &json!("up")));
        assert_eq!(value["aside"][0]["reason"], "1 of 2 shards");
    }

    #[test]
    fn volumes_show_fullness_and_the_age_of_their_verification() {
        let text = volumes_words(&health(), &layout(), 3 * 86_400_000);
        assert!(text.contains("50 %") && text.contains("3.0 d ago") && text.contains("22abababab"), "{text}");
        assert_eq!((fullness(1, 0), fullness(u64::MAX, u64::MAX)), ("-".to_owned(), "100 %".to_owned()));
    }
}
