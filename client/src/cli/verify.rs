//! `verify`: re-reads every shard and says what an object survives with those that were proven.
//!
//! **Invariants.** "Whole" is said of an object only when each of its shards was read back and proven in this very run; exit
//! code 0 only when all objects are whole.

use std::collections::BTreeMap;

use pacsvault_coordinator::{ShardCheck, ShardFinding};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::Uid,
    layout::{
        Contract, Failures, Layout,
        survival::{Held, strongest, survives},
    },
};
use serde_json::{Value, json};

use super::{
    Context,
    args::Verify,
    failure::Failure,
    inspect::objects,
    output::{counted, failures, table},
};

/// Objects whose shards are asked for together: enough to keep all volumes busy, little to repeat.
const OBJECTS_AT_ONCE: usize = 64;

#[derive(Default)]
struct Counts {
    proven: u64,
    missing: u64,
    away: u64,
    damaged: u64,
}

impl Counts {
    fn add(&mut self, finding: &ShardFinding) {
        match finding {
            ShardFinding::Proven => self.proven += 1,
            ShardFinding::Missing => self.missing += 1,
            ShardFinding::Away(_) => self.away += 1,
            ShardFinding::Damaged(_) => self.damaged += 1,
        }
    }
}

/// Objects by what was found of them. An object is counted in each line that is true of it.
#[derive(Default)]
struct Tally {
    objects: u64,
    whole: u64,
    damaged: u64,
    unreadable: u64,
    away: u64,
    degraded: u64,
}

impl Tally {
    fn add(&mut self, checks: &[ShardCheck], readable: bool) {
        let any = |of: fn(&ShardFinding) -> bool| u64::from(checks.iter().any(|check| of(&check.finding)));
        self.objects += 1;
        self.whole += u64::from(checks.iter().all(|check| check.finding == ShardFinding::Proven));
        self.damaged += any(|finding| matches!(finding, ShardFinding::Damaged(_)));
        self.away += any(|finding| matches!(finding, ShardFinding::Away(_)));
        self.degraded += any(|finding| *finding == ShardFinding::Missing);
        self.unreadable += u64::from(!readable);
    }

    fn value(&self) -> Value {
        json!({
            "objects": self.objects, "whole": self.whole, "damaged": self.damaged, "unreadable": self.unreadable,
            "away": self.away, "degraded": self.degraded,
        })
    }

    fn words(&self) -> String {
        let mut text = format!("{} of {} whole", self.whole, counted(self.objects, "object"));
        if self.whole == self.objects {
            return text + ": every shard was read back and proven";
        }
        for (count, what) in [
            (self.away, "with shards on volumes that are away"),
            (self.degraded, "with shards that are still to be repaired"),
            (self.damaged, "with damaged shards"),
            (self.unreadable, "that cannot be read now"),
        ] {
            if count > 0 {
                text.push_str(&format!("; {count} {what}"));
            }
        }
        text
    }

    /// Success only when all are whole.
    fn conclude(&self) -> Result<(), Failure> {
        if self.whole == self.objects {
            return Ok(());
        }
        let (damaged, unreadable) = (counted(self.damaged, "object"), self.unreadable);
        if self.damaged > 0 {
            let text = format!("{damaged} with damaged shards, {unreadable} that cannot be read now");
            let hint = "damaged shards are read around and repaired by themselves: `pacsvault repair status`";
            return Err(Failure::failed("PV-DAMAGED", text).hint(hint));
        }
        let lacking = counted(self.objects - self.whole, "object");
        let text = match (self.unreadable, self.away) {
            (0, 0) => format!("nothing is damaged, but {lacking} lack shards that are still to be repaired"),
            (0, _) => {
                format!("nothing was found damaged, but not every shard of {lacking} could be read: volumes are away")
            }
            (_, _) => format!("{unreadable} of {lacking} cannot be read now, since too many shards are away"),
        };
        let hint = if self.away > 0 {
            "`pacsvault status` shows what is away; verify again when it is back"
        } else {
            "`pacsvault repair status` shows what is repaired, and what holds it back"
        };
        Err(Failure::failed("PV-NOT-WHOLE", text).hint(hint))
    }
}

/// Re-reads every shard.
pub async fn verify(context: &Context, args: Verify) -> Result<(), Failure> {
    let client = context.connect()?;
    let (object, study) = study_or_object(args);
    let found = objects(&client, object.as_deref(), study).await?;
    let layout = client.layout().await?;
    let mut total: BTreeMap<(String, String), Counts> = BTreeMap::new();
    let mut tally = Tally::default();
    let bar = context.out.bytes_bar(found.iter().map(|sealed| sealed.seal.size_bytes).sum());
    for chunk in found.chunks(OBJECTS_AT_ONCE) {
        for (sealed, checks) in client.prove(chunk).await? {
            let claims = claims(&sealed, &checks, &layout);
            tally.add(&checks, !claims.is_empty());
            for check in &checks {
                total.entry(place_of(check, &layout)).or_default().add(&check.finding);
            }
            if context.out.json {
                context.out.value(&verify_value(&sealed, &checks, &claims, &layout));
            } else {
                bar.suspend(|| tell(context, &sealed, &checks, &claims, &layout));
            }
        }
        bar.inc(chunk.iter().map(|sealed| sealed.seal.size_bytes).sum());
    }
    bar.finish_and_clear();
    if context.out.json {
        context.out.value(&json!({ "summary": tally.value() }));
    } else {
        context.out.say(totals_table(&total));
        context.out.say(tally.words());
    }
    tally.conclude()
}

/// A UID alone names a study.
fn study_or_object(args: Verify) -> (Option<String>, Option<Uid>) {
    match args.object {
        Some(text) if !text.contains('/') => match text.parse() {
            Ok(study) => (None, Some(study)),
            Err(_) => (Some(text), None),
        },
        object => (object, args.study),
    }
}

/// What is not good about one object.
fn tell(context: &Context, sealed: &SealedInstance, checks: &[ShardCheck], claims: &[Failures], layout: &Layout) {
    let faults: Vec<_> = checks.iter().filter_map(|check| Some((check, fault_text(&check.finding)?))).collect();
    if faults.is_empty() {
        return;
    }
    let (all, now) = (checks.len(), survives_text(claims));
    let proven = all - faults.len();
    context.out.say(format!("{} v{}: {proven} of {all} shards proven; {now}", sealed.seal.key, sealed.version));
    for (check, what) in faults {
        let (site, node) = place_of(check, layout);
        context.out.say(format!("  stripe {} shard {} on {node} ({site}): {what}", check.stripe, check.shard));
    }
}

fn place_of(check: &ShardCheck, layout: &Layout) -> (String, String) {
    let unknown = || "unknown".to_owned();
    let site = check.site.as_ref().map_or_else(unknown, ToString::to_string);
    let node = check.node.and_then(|id| layout.nodes.get(&id)).map_or_else(unknown, |node| node.name.to_string());
    (site, node)
}

fn fault_text(finding: &ShardFinding) -> Option<String> {
    match finding {
        ShardFinding::Proven => None,
        ShardFinding::Missing => Some("missing: not stored yet, repair will bring it".to_owned()),
        ShardFinding::Away(why) => Some(format!("away: {why}")),
        ShardFinding::Damaged(why) => Some(format!("DAMAGED: {why}")),
    }
}

fn survives_text(claims: &[Failures]) -> String {
    match claims {
        [] => "NOT READABLE now".to_owned(),
        [Failures { sites: 0, nodes: 0 }] => "readable, but survives no further failure now".to_owned(),
        claims => format!("survives {} now", failures(claims).join("; ")),
    }
}

fn totals_table(total: &BTreeMap<(String, String), Counts>) -> String {
    let rows: Vec<Vec<String>> = total
        .iter()
        .map(|((site, node), counts)| {
            let numbers = [counts.proven, counts.missing, counts.away, counts.damaged].map(|count| count.to_string());
            [site.clone(), node.clone()].into_iter().chain(numbers).collect()
        })
        .collect();
    table(&["SITE", "NODE", "PROVEN", "MISSING", "AWAY", "DAMAGED"], &rows)
}

fn verify_value(sealed: &SealedInstance, checks: &[ShardCheck], claims: &[Failures], layout: &Layout) -> Value {
    let mut sites: BTreeMap<String, Counts> = BTreeMap::new();
    let mut faults = Vec::new();
    for check in checks {
        let (site, node) = place_of(check, layout);
        let (kind, why) = match &check.finding {
            ShardFinding::Proven => ("proven", ""),
            ShardFinding::Missing => ("missing", ""),
            ShardFinding::Away(why) => ("away", why.as_str()),
            ShardFinding::Damaged(why) => ("damaged", why.as_str()),
        };
        if check.finding != ShardFinding::Proven {
            faults.push(json!({
                "stripe": check.stripe.0, "shard": check.shard.0, "volume": check.volume.to_string(), "node": node,
                "site": site, "finding": kind, "reason": why,
            }));
        }
        sites.entry(site).or_default().add(&check.finding);
    }
    let sites: Vec<Value> = sites
        .into_iter()
        .map(|(site, it)| {
            json!({"site": site, "proven": it.proven, "missing": it.missing, "away": it.away, "damaged": it.damaged})
        })
        .collect();
    json!({
        "key": sealed.seal.key.to_string(), "version": sealed.version.0, "whole": faults.is_empty(),
        "readable": !claims.is_empty(), "survives": failures(claims), "shards": checks.len(), "sites": sites,
        "faults": faults,
    })
}

/// What every stripe survives with the shards that were proven; empty when it cannot be read.
fn claims(sealed: &SealedInstance, checks: &[ShardCheck], layout: &Layout) -> Vec<Failures> {
    let k = sealed.seal.code.data();
    let proven = |stripe: u32| {
        let of_stripe = checks.iter().filter(move |check| check.stripe.0 == stripe);
        let proven = of_stripe.filter(|check| check.finding == ShardFinding::Proven);
        proven.map(|check| Held { shard: check.shard, volume: check.volume }).collect::<Vec<Held>>()
    };
    let stripes: Vec<Vec<Held>> = sealed.seal.stripes.iter().zip(0..).map(|(_, stripe)| proven(stripe)).collect();
    let mut claims: Vec<Failures> = stripes.iter().flat_map(|held| strongest(held, k, layout)).collect();
    claims.sort_unstable_by(|a, b| b.cmp(a));
    claims.dedup();
    claims.retain(|claim| stripes.iter().all(|held| survives(held, k, &Contract::one(*claim), layout).is_ok()));
    claims
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::{ShardIndex, StripeIndex, VolumeId};

    use super::*;

    fn tally(findings: &[ShardFinding], readable: bool) -> Tally {
        let check = |finding: &ShardFinding| ShardCheck {
            stripe: StripeIndex(0),
            shard: ShardIndex(0),
            volume: VolumeId([1; 16]),
            node: None,
            site: None,
            finding: finding.clone(),
        };
        let checks: Vec<ShardCheck> = findings.iter().map(check).collect();
        let mut tally = Tally::default();
        tally.add(&checks, readable);
        tally
    }

    #[test]
    fn a_uid_alone_is_a_study() {
        let args = |object: &str| Verify { object: Some(object.to_owned()), study: None };
        assert_eq!(study_or_object(args("1.2.840.1")), (None, Some("1.2.840.1".parse().expect("a UID"))));
        for key in ["main/1.2/1.3/1.4", "1.2/@/report.pdf", "report"] {
            assert_eq!(study_or_object(args(key)), (Some(key.to_owned()), None));
        }
    }

    #[test]
    fn only_what_was_proven_is_called_whole() {
        let away = || ShardFinding::Away("no answer".to_owned());
        let whole = tally(&[ShardFinding::Proven, ShardFinding::Proven], true);
        assert!(whole.conclude().is_ok());
        assert_eq!(whole.words(), "1 of 1 object whole: every shard was read back and proven");
        for (findings, readable, code, words) in [
            (vec![ShardFinding::Proven, away()], true, "PV-NOT-WHOLE", "away"),
            (vec![away(), away()], false, "PV-NOT-WHOLE", "cannot be read now"),
            (vec![ShardFinding::Proven, ShardFinding::Missing], true, "PV-NOT-WHOLE", "to be repaired"),
            (vec![away(), ShardFinding::Damaged("CRC".to_owned())], true, "PV-DAMAGED", "damaged"),
        ] {
            let tally = tally(&findings, readable);
            let failure = tally.conclude().expect_err("not whole");
            assert_eq!(failure.code, code, "{findings:?}");
            assert!(failure.message.contains(words), "{}", failure.message);
            assert!(
                tally.words().starts_with("0 of 1 object whole; 1 with") && tally.words().contains(words),
                "{}",
                tally.words()
            );
        }
    }
}
