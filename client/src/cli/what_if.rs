//! `what-if`: what would be if something were lost now. Nothing is touched.
//!
//! **Invariants.** Success only when every stored byte could still be read.

use pacsvault_core::{
    health::{
        Loss, Tier,
        report::{WhatIf as Answer, WritesUnder},
    },
    layout::Layout,
};
use serde_json::{Value, json};

use super::{
    Context, args,
    failure::Failure,
    find::{self, node_name, volume_name},
    health::{stripes, sums_value, tiers_value, tiers_words},
    output::{failures, size_text, span_text},
};

/// Asks and tells.
pub async fn run(context: &Context, args: args::WhatIf) -> Result<(), Failure> {
    if args.sites.is_empty() && args.nodes.is_empty() && args.volumes.is_empty() {
        return Err(Failure::usage("name what would be lost: --site, --node or --volume, each as often as you like"));
    }
    // The global flag of the same name has another meaning, which does not apply here.
    let client = context.without_site().connect()?;
    let layout = client.layout().await?;
    let loss = Loss {
        sites: args.sites.iter().map(|site| find::site(&layout, site)).collect::<Result<_, _>>()?,
        nodes: args.nodes.iter().map(|node| Ok(find::node(&layout, node)?.id)).collect::<Result<_, Failure>>()?,
        volumes: args.volumes.iter().map(|it| Ok(find::volume(&layout, it)?.id)).collect::<Result<_, Failure>>()?,
    };
    let answer = client.what_if(loss).await?;
    context.out.either(&value(&answer, &layout), || words(&answer, &layout));
    conclude(&answer)
}

fn conclude(answer: &Answer) -> Result<(), Failure> {
    if answer.all_readable {
        return Ok(());
    }
    let lost = answer.by_tier.0.get(&Tier::Unreadable).copied().unwrap_or_default();
    let text = format!(
        "{} in {} could not be read until something of it returns",
        size_text(lost.content_bytes),
        stripes(lost.stripes)
    );
    Err(Failure::failed("PV-WOULD-BE-UNREADABLE", text)
        .hint("nothing was touched; `pacsvault plan` shows what profiles survive"))
}

fn lost_words(answer: &Answer, layout: &Layout) -> String {
    let sites = answer.loss.sites.iter().map(|site| format!("site {site}"));
    let nodes = answer.loss.nodes.iter().map(|node| format!("node {}", node_name(layout, *node)));
    let volumes = answer.loss.volumes.iter().map(|volume| format!("volume {}", volume_name(layout, *volume)));
    sites.chain(nodes).chain(volumes).collect::<Vec<_>>().join(", ")
}

fn words(answer: &Answer, layout: &Layout) -> String {
    let gone: Vec<String> = answer.nodes_lost.iter().map(|node| node_name(layout, *node)).collect();
    let gone = if gone.is_empty() { "no whole node".to_owned() } else { gone.join(", ") };
    let mut lines = vec![format!("without {} (gone: {gone})", lost_words(answer, layout))];
    lines.push(if answer.all_readable {
        "reading: everything stays readable".to_owned()
    } else {
        "reading: NOT everything can be read".to_owned()
    });
    lines.extend(tiers_words(&answer.by_tier));
    let (within, below) = (answer.within_contract, answer.below_contract);
    lines.push(format!(
        "contract: {} in {} keep theirs, {} in {} do not",
        size_text(within.content_bytes),
        stripes(within.stripes),
        size_text(below.content_bytes),
        stripes(below.stripes)
    ));
    let (left, all) = answer.voters;
    lines.push(if answer.quorum {
        format!("writing: {left} of {all} voters are a majority")
    } else {
        format!("writing: NOTHING can be written: {left} of {all} voters are no majority")
    });
    lines.extend(answer.writes.iter().map(writes_words));
    lines.push(repair_words(answer));
    lines.join("\n")
}

fn writes_words(writes: &WritesUnder) -> String {
    let survives = failures(&writes.survives).join("; ");
    match (writes.survives.is_empty(), writes.full) {
        (true, _) => format!("  {}: new writes are REFUSED: {}", writes.profile, writes.why),
        (false, true) => format!("  {}: new writes survive {survives}, the whole contract", writes.profile),
        (false, false) => format!("  {}: new writes are degraded, survive {survives}: {}", writes.profile, writes.why),
    }
}

fn repair_words(answer: &Answer) -> String {
    let rebuild = answer.rebuild_bytes;
    if rebuild.stripes == 0 {
        return "repair: nothing to rebuild, or nowhere to".to_owned();
    }
    let takes = answer.repair_s.map_or_else(|| "for a time unknown".to_owned(), |it| format!("for {}", span_text(it)));
    format!(
        "repair: would write {} in {} {takes} at {}/s, {} of it at once, {} between sites",
        size_text(rebuild.shard_bytes),
        stripes(rebuild.stripes),
        size_text(answer.rate_bytes_per_s),
        size_text(answer.urgent_bytes),
        size_text(answer.wan_bytes)
    )
}

fn value(answer: &Answer, layout: &Layout) -> Value {
    let writes = answer.writes.iter().map(|writes| {
        json!({
            "profile": writes.profile.as_str(), "survives": failures(&writes.survives), "full": writes.full,
            "refused": writes.survives.is_empty(), "why": writes.why,
        })
    });
    let names = |nodes: &[pacsvault_core::ids::NodeId]| -> Vec<String> {
        nodes.iter().map(|node| node_name(layout, *node)).collect()
    };
    json!({
        "loss": {
            "sites": answer.loss.sites.iter().map(|site| site.as_str()).collect::<Vec<_>>(),
            "nodes": names(&answer.loss.nodes),
            "volumes": answer.loss.volumes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "nodes_lost": names(&answer.nodes_lost), "all_readable": answer.all_readable, "quorum": answer.quorum,
        "voters_left": answer.voters.0, "voters": answer.voters.1, "by_tier": tiers_value(&answer.by_tier),
        "within_contract": sums_value(answer.within_contract), "below_contract": sums_value(answer.below_contract),
        "writes": writes.collect::<Vec<_>>(), "rebuild": sums_value(answer.rebuild_bytes),
        "urgent_bytes": answer.urgent_bytes, "wan_bytes": answer.wan_bytes, "repair_s": answer.repair_s,
        "rate_bytes_per_s": answer.rate_bytes_per_s,
    })
}

#[cfg(test)]
mod tests {
    use pacsvault_core::{
        health::{ByTier, Sums},
        ids::NodeId,
        layout::Failures,
    };

    use super::{super::find::tests::layout, *};

    fn answer(all_readable: bool) -> Answer {
        let sums = Sums { stripes: 2, content_bytes: 2 << 20, shard_bytes: 1 << 20 };
        let tier = if all_readable { Tier::Distance(0) } else { Tier::Unreadable };
        let writes = |survives: Vec<Failures>, full| WritesUnder {
            profile: "standard".parse().expect("a name"),
            survives,
            full,
            why: "one site is left".to_owned(),
        };
        Answer {
            loss: Loss { sites: vec!["east".parse().expect("a name")], nodes: vec![NodeId(3)], volumes: Vec::new() },
            nodes_lost: vec![NodeId(1), NodeId(2), NodeId(3)],
            by_tier: ByTier([(tier, sums)].into()),
            all_readable,
            quorum: all_readable,
            voters: (1, 3),
            writes: vec![writes(Vec::new(), false), writes(vec![Failures { sites: 0, nodes: 1 }], false)],
            rebuild_bytes: sums,
            repair_s: Some(120),
            ..Answer::default()
        }
    }

    #[test]
    fn it_fails_only_when_something_could_not_be_read() {
        assert!(conclude(&answer(true)).is_ok());
        let failure = conclude(&answer(false)).expect_err("unreadable");
        assert_eq!(failure.code, "PV-WOULD-BE-UNREADABLE");
        assert!(failure.message.starts_with("2.0 MiB in 2 stripes"), "{}", failure.message);
    }

    #[test]
    fn words_and_json_tell_the_same() {
        let layout = layout();
        let text = words(&answer(true), &layout);
        for word in
            ["site east, node west-1", "7, east-1, west-1", "everything stays", "REFUSED", "degraded", "2.0 min"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        let text = words(&answer(false), &layout);
        assert!(text.contains("NOT everything") && text.contains("1 of 3 voters are no majority"), "{text}");
        let value = value(&answer(true), &layout);
        assert_eq!((&value["loss"]["nodes"][0], &value["writes"][0]["refused"]), (&json!("west-1"), &json!(true)));
    }
}
