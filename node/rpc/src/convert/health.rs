//! Health, what-if and drain plans on the wire.
//!
//! **Invariants.** As of [`crate::convert`]: what comes out is well formed, and both directions are inverse.

use std::collections::BTreeMap;

use pacsvault_core::{
    catalog::command::DrainTarget,
    health::{
        Aside, ByTier, Cause, Loss, Sums, Tier,
        report::{DrainPlan, Health, NodeHealth, ScrubAge, VolumeHealth, WhatIf, WritesUnder},
    },
    ids::{InstanceId, LayoutVersion, NodeId, StripeIndex, VolumeId, WallMillis},
    layout::Failures,
};
use pacsvault_proto::v1;

use super::{Parsed, failures_messages, fixed, raw, required, small, text};
use crate::fault::Invalid;

/// Tier from the wire.
pub fn tier(field: &str, message: Option<v1::Tier>) -> Parsed<Tier> {
    Ok(match required(field, message)?.distance {
        None => Tier::Unreadable,
        Some(survived) => Tier::Distance(small(field, survived)?),
    })
}

/// Tier to the wire.
pub fn tier_message(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Unreadable => v1::Tier { distance: None },
        Tier::Distance(survived) => v1::Tier { distance: Some(survived.into()) },
    }
}

/// Cause from the wire.
pub fn cause(field: &str, number: i32) -> Parsed<Cause> {
    match v1::Cause::try_from(number) {
        Ok(v1::Cause::Repair) => Ok(Cause::Repair),
        Ok(v1::Cause::Respread) => Ok(Cause::Respread),
        Ok(v1::Cause::Drain) => Ok(Cause::Drain),
        Ok(v1::Cause::Rebalance) => Ok(Cause::Rebalance),
        Ok(v1::Cause::Unspecified) | Err(_) => Err(Invalid::new(field, "must be REPAIR, RESPREAD, DRAIN or REBALANCE")),
    }
}

/// Cause to the wire.
pub fn cause_message(cause: Cause) -> i32 {
    let cause = match cause {
        Cause::Repair => v1::Cause::Repair,
        Cause::Respread => v1::Cause::Respread,
        Cause::Drain => v1::Cause::Drain,
        Cause::Rebalance => v1::Cause::Rebalance,
    };
    cause.into()
}

fn sums(field: &str, message: Option<v1::Sums>) -> Parsed<Sums> {
    let message = required(field, message)?;
    Ok(Sums { stripes: message.stripes, content_bytes: message.content_bytes, shard_bytes: message.shard_bytes })
}

fn sums_message(sums: Sums) -> Option<v1::Sums> {
    let Sums { stripes, content_bytes, shard_bytes } = sums;
    Some(v1::Sums { stripes, content_bytes, shard_bytes })
}

fn by_tier(messages: Vec<v1::TierSums>) -> Parsed<ByTier> {
    let mut by_tier = BTreeMap::new();
    for message in messages {
        let tier = tier("by_tier.tier", message.tier)?;
        if by_tier.insert(tier, sums("by_tier.sums", message.sums)?).is_some() {
            return Err(Invalid::new("by_tier", format!("names {tier} twice")));
        }
    }
    Ok(ByTier(by_tier))
}

fn by_tier_messages(by_tier: &ByTier) -> Vec<v1::TierSums> {
    let message =
        |(tier, sums): (&Tier, &Sums)| v1::TierSums { tier: Some(tier_message(*tier)), sums: sums_message(*sums) };
    by_tier.0.iter().map(message).collect()
}

/// Age of verification from the wire; unset when the sender does not know.
pub fn scrub_age(message: Option<v1::ScrubAge>) -> Parsed<ScrubAge> {
    let Some(message) = message else { return Ok(ScrubAge::default()) };
    let histogram = if message.histogram.is_empty() {
        [0; 7]
    } else {
        message.histogram.try_into().map_err(|_| Invalid::new("scrub.histogram", "must be empty or 7 numbers"))?
    };
    Ok(ScrubAge {
        histogram,
        oldest: message.oldest_millis.map(WallMillis),
        damaged: message.damaged,
        verified: message.verified,
        hurried: message.hurried,
    })
}

/// Age of verification to the wire.
pub fn scrub_age_message(age: &ScrubAge) -> Option<v1::ScrubAge> {
    Some(v1::ScrubAge {
        histogram: age.histogram.to_vec(),
        oldest_millis: age.oldest.map(|oldest| oldest.0),
        damaged: age.damaged,
        verified: age.verified,
        hurried: age.hurried,
    })
}

fn aside(message: v1::Aside) -> Parsed<Aside> {
    Ok(Aside {
        instance: InstanceId(fixed("aside.instance", &message.instance)?),
        stripe: StripeIndex(message.stripe),
        reason: message.reason,
        since: WallMillis(message.since_millis),
        layout: LayoutVersion(message.layout_version),
    })
}

fn aside_message(aside: &Aside) -> v1::Aside {
    v1::Aside {
        instance: raw(&aside.instance.0),
        stripe: aside.stripe.0,
        reason: aside.reason.clone(),
        since_millis: aside.since.0,
        layout_version: aside.layout.0,
    }
}

fn volume_health(message: v1::VolumeHealth) -> Parsed<VolumeHealth> {
    Ok(VolumeHealth {
        volume: VolumeId(fixed("volumes.volume", &message.volume)?),
        catalog_bytes: message.catalog_bytes,
        used_bytes: message.used_bytes,
        free_bytes: message.free_bytes,
        scrub: scrub_age(message.scrub).map_err(|error| error.within("volumes"))?,
    })
}

fn volume_health_message(volume: &VolumeHealth) -> v1::VolumeHealth {
    v1::VolumeHealth {
        volume: raw(&volume.volume.0),
        catalog_bytes: volume.catalog_bytes,
        used_bytes: volume.used_bytes,
        free_bytes: volume.free_bytes,
        scrub: scrub_age_message(&volume.scrub),
    }
}

/// Health from the wire.
pub fn health(message: v1::HealthReply) -> Parsed<Health> {
    let waiting = message.waiting.into_iter();
    let waiting = waiting.map(|one| Ok((cause("waiting.cause", one.cause)?, sums("waiting.sums", one.sums)?)));
    let node = |node: v1::NodeHealth| NodeHealth {
        node: NodeId(node.node),
        silent_ms: node.silent_millis,
        allowed_bytes_per_s: node.allowed_bytes_per_s,
    };
    Ok(Health {
        leader: NodeId(message.leader),
        layout: LayoutVersion(message.layout_version),
        format: message.format,
        by_tier: by_tier(message.by_tier)?,
        below_contract: sums("below_contract", message.below_contract)?,
        worst: message.worst.map(|worst| tier("worst", Some(worst))).transpose()?,
        sites_away: message.sites_away.iter().map(|site| text("sites_away", site)).collect::<Parsed<_>>()?,
        waiting: waiting.collect::<Parsed<_>>()?,
        in_progress: message.in_progress,
        rate_bytes_per_s: message.rate_bytes_per_s,
        done_stripes: message.done_stripes,
        done_bytes: message.done_bytes,
        wan_bytes: message.wan_bytes,
        eta_s: message.eta_s,
        held_back: message.held_back,
        aside: message.aside.into_iter().map(aside).collect::<Parsed<_>>()?,
        aside_total: message.aside_total,
        nodes: message.nodes.into_iter().map(node).collect(),
        volumes: message.volumes.into_iter().map(volume_health).collect::<Parsed<_>>()?,
    })
}

/// Health to the wire.
pub fn health_message(health: &Health) -> v1::HealthReply {
    let waiting = health.waiting.iter();
    let waiting =
        waiting.map(|(cause, sums)| v1::CauseSums { cause: cause_message(*cause), sums: sums_message(*sums) });
    let node = |node: &NodeHealth| v1::NodeHealth {
        node: node.node.0,
        silent_millis: node.silent_ms,
        allowed_bytes_per_s: node.allowed_bytes_per_s,
    };
    v1::HealthReply {
        leader: health.leader.0,
        layout_version: health.layout.0,
        format: health.format,
        by_tier: by_tier_messages(&health.by_tier),
        below_contract: sums_message(health.below_contract),
        worst: health.worst.map(tier_message),
        sites_away: health.sites_away.iter().map(ToString::to_string).collect(),
        waiting: waiting.collect(),
        in_progress: health.in_progress,
        rate_bytes_per_s: health.rate_bytes_per_s,
        done_stripes: health.done_stripes,
        done_bytes: health.done_bytes,
        wan_bytes: health.wan_bytes,
        eta_s: health.eta_s,
        held_back: health.held_back.clone(),
        aside: health.aside.iter().map(aside_message).collect(),
        aside_total: health.aside_total,
        nodes: health.nodes.iter().map(node).collect(),
        volumes: health.volumes.iter().map(volume_health_message).collect(),
    }
}

/// A loss from the wire. Nothing lost is a question without sense.
pub fn loss(message: Option<v1::Loss>) -> Parsed<Loss> {
    let message = required("loss", message)?;
    if message.sites.is_empty() && message.nodes.is_empty() && message.volumes.is_empty() {
        return Err(Invalid::new("loss", "must name at least one site, node or volume"));
    }
    let volumes = message.volumes.iter().map(|volume| Ok(VolumeId(fixed("loss.volumes", volume)?)));
    Ok(Loss {
        sites: message.sites.iter().map(|site| text("loss.sites", site)).collect::<Parsed<_>>()?,
        nodes: message.nodes.into_iter().map(NodeId).collect(),
        volumes: volumes.collect::<Parsed<_>>()?,
    })
}

/// A loss to the wire.
pub fn loss_message(loss: &Loss) -> Option<v1::Loss> {
    Some(v1::Loss {
        sites: loss.sites.iter().map(ToString::to_string).collect(),
        nodes: loss.nodes.iter().map(|node| node.0).collect(),
        volumes: loss.volumes.iter().map(|volume| raw(&volume.0)).collect(),
    })
}

fn writes_under(message: v1::WritesUnder) -> Parsed<WritesUnder> {
    let survives = message.survives.iter().map(|set| {
        Ok(Failures { sites: small("writes.survives", set.sites)?, nodes: small("writes.survives", set.nodes)? })
    });
    Ok(WritesUnder {
        profile: text("writes.profile", &message.profile)?,
        survives: survives.collect::<Parsed<_>>()?,
        full: message.full,
        why: message.why,
    })
}

fn writes_under_message(writes: &WritesUnder) -> v1::WritesUnder {
    v1::WritesUnder {
        profile: writes.profile.to_string(),
        survives: failures_messages(&writes.survives),
        full: writes.full,
        why: writes.why.clone(),
    }
}

/// What would be, from the wire.
pub fn what_if(message: v1::WhatIfReply) -> Parsed<WhatIf> {
    Ok(WhatIf {
        loss: loss(message.loss)?,
        nodes_lost: message.nodes_lost.into_iter().map(NodeId).collect(),
        by_tier: by_tier(message.by_tier)?,
        within_contract: sums("within_contract", message.within_contract)?,
        below_contract: sums("below_contract", message.below_contract)?,
        all_readable: message.all_readable,
        quorum: message.quorum,
        voters: (message.voters_left, message.voters),
        writes: message.writes.into_iter().map(writes_under).collect::<Parsed<_>>()?,
        rebuild_bytes: sums("rebuild", message.rebuild)?,
        urgent_bytes: message.urgent_bytes,
        wan_bytes: message.wan_bytes,
        repair_s: message.repair_s,
        rate_bytes_per_s: message.rate_bytes_per_s,
    })
}

/// What would be, to the wire.
pub fn what_if_message(what_if: &WhatIf) -> v1::WhatIfReply {
    v1::WhatIfReply {
        loss: loss_message(&what_if.loss),
        nodes_lost: what_if.nodes_lost.iter().map(|node| node.0).collect(),
        by_tier: by_tier_messages(&what_if.by_tier),
        within_contract: sums_message(what_if.within_contract),
        below_contract: sums_message(what_if.below_contract),
        all_readable: what_if.all_readable,
        quorum: what_if.quorum,
        voters_left: what_if.voters.0,
        voters: what_if.voters.1,
        writes: what_if.writes.iter().map(writes_under_message).collect(),
        rebuild: sums_message(what_if.rebuild_bytes),
        urgent_bytes: what_if.urgent_bytes,
        wan_bytes: what_if.wan_bytes,
        repair_s: what_if.repair_s,
        rate_bytes_per_s: what_if.rate_bytes_per_s,
    }
}

/// What is to be emptied, from the wire.
pub fn drain_target(message: Option<v1::DrainTarget>) -> Parsed<DrainTarget> {
    Ok(match required("target.what", required("target", message)?.what)? {
        v1::drain_target::What::Node(node) => DrainTarget::Node(NodeId(node)),
        v1::drain_target::What::Volume(volume) => DrainTarget::Volume(VolumeId(fixed("target.volume", &volume)?)),
    })
}

/// What is to be emptied, to the wire.
pub fn drain_target_message(target: DrainTarget) -> Option<v1::DrainTarget> {
    let what = match target {
        DrainTarget::Node(node) => v1::drain_target::What::Node(node.0),
        DrainTarget::Volume(volume) => v1::drain_target::What::Volume(raw(&volume.0)),
    };
    Some(v1::DrainTarget { what: Some(what) })
}

/// What emptying means, from the wire.
pub fn drain_plan(message: v1::DrainPlanReply) -> Parsed<DrainPlan> {
    let volumes = message.volumes.iter().map(|volume| Ok(VolumeId(fixed("volumes", volume)?)));
    Ok(DrainPlan {
        target: drain_target(message.target)?,
        volumes: volumes.collect::<Parsed<_>>()?,
        safe: message.safe,
        reasons: message.reasons,
        moves: sums("moves", message.moves)?,
        free_elsewhere_bytes: message.free_elsewhere_bytes,
        takes_s: message.takes_s,
        rate_bytes_per_s: message.rate_bytes_per_s,
        empty: message.empty,
    })
}

/// What emptying means, to the wire.
pub fn drain_plan_message(plan: &DrainPlan) -> v1::DrainPlanReply {
    v1::DrainPlanReply {
        target: drain_target_message(plan.target),
        volumes: plan.volumes.iter().map(|volume| raw(&volume.0)).collect(),
        safe: plan.safe,
        reasons: plan.reasons.clone(),
        moves: sums_message(plan.moves),
        free_elsewhere_bytes: plan.free_elsewhere_bytes,
        takes_s: plan.takes_s,
        rate_bytes_per_s: plan.rate_bytes_per_s,
        empty: plan.empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation<T>(parsed: Parsed<T>) -> String {
        parsed.err().expect("must be refused").field
    }

    #[test]
    fn what_is_malformed_is_named() {
        assert_eq!(violation(tier("tier", None)), "tier");
        assert_eq!(violation(tier("tier", Some(v1::Tier { distance: Some(300) }))), "tier");
        assert_eq!(violation(cause("cause", 0)), "cause");
        assert_eq!(violation(cause("cause", 9)), "cause");
        assert_eq!(violation(loss(Some(v1::Loss::default()))), "loss");
        let short = v1::Loss { volumes: vec![raw(b"short")], ..v1::Loss::default() };
        assert_eq!(violation(loss(Some(short))), "loss.volumes");
        assert_eq!(violation(drain_target(Some(v1::DrainTarget { what: None }))), "target.what");
        let age = v1::ScrubAge { histogram: vec![1, 2], ..v1::ScrubAge::default() };
        assert_eq!(violation(scrub_age(Some(age))), "scrub.histogram");
        let twice = v1::TierSums { tier: Some(v1::Tier { distance: Some(1) }), sums: Some(v1::Sums::default()) };
        assert_eq!(violation(by_tier(vec![twice, twice])), "by_tier");
    }

    #[test]
    fn a_node_that_knows_no_age_of_verification_tells_none() {
        assert_eq!(scrub_age(None), Ok(ScrubAge::default()));
        assert_eq!(scrub_age(Some(v1::ScrubAge::default())), Ok(ScrubAge::default()));
    }
}
