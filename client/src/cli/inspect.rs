//! `ls`, `head`, `verify`, `rm`: what is stored, whether it is whole, and its end.

use std::collections::BTreeMap;

use pacsvault_client::{Client, dicom::attributes};
use pacsvault_coordinator::{ShardCheck, ShardFinding};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Leaf, ObjectKey, Uid, VersionNumber},
    layout::{
        Contract, Failures, Layout,
        survival::{Held, strongest, survives},
    },
};
use pacsvault_ports::peer::{Class, Fault, ListPage};
use serde_json::{Map, Value, json};

use super::{
    Context,
    args::{Head, Ls, Rm, Verify},
    failure::Failure,
    get::parse_key,
    output::{counted, failures, size_text, table, time_text},
};

/// All pages of a listing as one.
pub async fn everything(client: &Client, study: Option<Uid>, series: Option<Uid>) -> Result<ListPage, Fault> {
    let mut all = ListPage::default();
    loop {
        let token = std::mem::take(&mut all.next_page_token);
        let page = client.list(study.clone(), series.clone(), token).await?;
        all.studies.extend(page.studies);
        all.instances.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        all.next_page_token = page.next_page_token;
    }
}

fn attribute(sealed: &SealedInstance, tag: u32) -> &str {
    let found = sealed.seal.attributes.iter().find(|attribute| attribute.tag == tag);
    found.map_or("", |attribute| attribute.value.as_str())
}

/// Lists, page by page.
pub async fn ls(context: &Context, args: Ls) -> Result<(), Failure> {
    let client = context.connect()?;
    let mut token = Vec::new();
    let mut rows = Vec::new();
    loop {
        let page = client.list(args.study.clone(), args.series.clone(), token).await?;
        for row in &page.studies {
            let value = json!({"study": row.study.as_str(), "objects": row.objects, "size_bytes": row.size_bytes});
            if context.out.json {
                context.out.value(&value);
            }
            rows.push(vec![row.study.to_string(), row.objects.to_string(), size_text(row.size_bytes)]);
        }
        for sealed in &page.instances {
            if context.out.json {
                context.out.value(&instance_value(sealed));
            }
            rows.push(instance_row(sealed));
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    if context.out.json {
        return Ok(());
    }
    match (&args.study, rows.is_empty()) {
        (None, true) => eprintln!("note: nothing is stored for tenant {}", client.config().tenant),
        (Some(study), true) => {
            let text = format!("nothing is stored in study {study}");
            return Err(Fault::new(Class::NotFound, "PV-NOT-FOUND", text).into());
        }
        (None, false) => context.out.say(table(&["STUDY", "OBJECTS", "SIZE"], &rows)),
        (Some(_), false) => context.out.say(table(&["KEY", "VERSION", "SIZE", "KIND", "SURVIVES"], &rows)),
    }
    Ok(())
}

fn instance_value(sealed: &SealedInstance) -> Value {
    let seal = &sealed.seal;
    json!({
        "key": seal.key.to_string(), "version": sealed.version.0, "size_bytes": seal.size_bytes,
        "digest": seal.digest.to_string(), "media_type": seal.media_type, "degraded": sealed.degraded,
        "survives": failures(&sealed.survives), "time": time_text(sealed.time.0),
    })
}

fn instance_row(sealed: &SealedInstance) -> Vec<String> {
    let kind = match (&sealed.seal.key.leaf, attribute(sealed, 0x0008_0060)) {
        (Leaf::Document(_), _) => sealed.seal.media_type.clone(),
        (Leaf::Instance { .. }, "") => "DICOM".to_owned(),
        (Leaf::Instance { .. }, modality) => {
            format!("{modality} #{}", attribute(sealed, 0x0020_0013))
        }
    };
    let degraded = if sealed.degraded { " (degraded)" } else { "" };
    vec![
        sealed.seal.key.to_string(),
        sealed.version.to_string(),
        size_text(sealed.seal.size_bytes),
        kind,
        format!("{}{degraded}", failures(&sealed.survives).join("; ")),
    ]
}

/// All that is known of one version.
pub async fn head(context: &Context, args: Head) -> Result<(), Failure> {
    let client = context.connect()?;
    let key = parse_key(&args.object, &client.config().tenant)?;
    let sealed = client.lookup(&key, args.number.map(VersionNumber)).await?;
    let layout = client.layout().await?;
    let seal = &sealed.seal;
    let attributes: Map<String, Value> =
        seal.attributes.iter().map(|it| (attributes::keyword(it.tag), Value::from(it.value.as_str()))).collect();
    let placement: Vec<Value> = seal.stripes.iter().map(|stripe| stripe_value(stripe, &layout)).collect();
    let mut value = instance_value(&sealed);
    if let Value::Object(fields) = &mut value {
        let more = json!({
            "instance": seal.instance.to_string(), "profile": seal.profile.as_str(), "profile_version": seal.profile_version,
            "code": seal.code.to_string(), "contract": sealed.contract.to_string(), "layout": seal.layout.0,
            "term": sealed.term.0, "index": sealed.index.0, "coordinator": seal.coordinator, "strict": seal.strict,
            "attributes": attributes, "stripes": placement, "sites": sites_of(&sealed, &layout),
        });
        if let Value::Object(more) = more {
            fields.extend(more);
        }
    }
    context.out.either(&value, || head_words(&sealed, &layout));
    Ok(())
}

fn stripe_value(stripe: &pacsvault_core::catalog::StripeSeal, layout: &Layout) -> Value {
    let shards = stripe.placement.iter().zip(0_u32..).map(|(volume, shard)| {
        let node = layout.node_of(*volume);
        json!({
            "shard": shard, "persisted": stripe.persisted & (1 << shard) != 0, "volume": volume.to_string(),
            "node": node.map(|node| node.name.as_str()), "site": node.map(|node| node.site.as_str()),
        })
    });
    let shards: Vec<Value> = shards.collect();
    json!({"stripe_bytes": stripe.stripe_bytes, "shard_root": stripe.shard_root.to_string(), "shards": shards})
}

/// Shards of all stripes per site, as persisted.
fn sites_of(sealed: &SealedInstance, layout: &Layout) -> BTreeMap<String, u64> {
    let mut sites = BTreeMap::new();
    for stripe in &sealed.seal.stripes {
        for (volume, _) in
            stripe.placement.iter().zip(0_u32..).filter(|(_, shard)| stripe.persisted & (1 << shard) != 0)
        {
            let site = layout.node_of(*volume).map_or_else(|| "unknown".to_owned(), |node| node.site.to_string());
            *sites.entry(site).or_insert(0) += 1;
        }
    }
    sites
}

fn head_words(sealed: &SealedInstance, layout: &Layout) -> String {
    let seal = &sealed.seal;
    let degraded = if sealed.degraded { "  DEGRADED" } else { "" };
    let sites = sites_of(sealed, layout).into_iter().map(|(site, shards)| format!("{site} {shards}"));
    let sites: Vec<String> = sites.collect();
    let facts = [
        ("key", seal.key.to_string()),
        ("version", sealed.version.to_string()),
        ("size", format!("{} bytes ({})", seal.size_bytes, size_text(seal.size_bytes))),
        ("BLAKE3", seal.digest.to_string()),
        ("media type", seal.media_type.clone()),
        (
            "stored",
            format!(
                "{} by {}, log term {} index {}",
                time_text(sealed.time.0),
                seal.coordinator,
                sealed.term,
                sealed.index
            ),
        ),
        ("profile", format!("{} v{}, {}, promises {}", seal.profile, seal.profile_version, seal.code, sealed.contract)),
        ("survives", format!("{}{degraded}", failures(&sealed.survives).join("; "))),
        ("shards by site", format!("{} in {}", sites.join(", "), counted(seal.stripes.len(), "stripe"))),
    ];
    let mut lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<15} {value}")).collect();
    if !seal.attributes.is_empty() {
        lines.push("attributes".to_owned());
        lines.extend(seal.attributes.iter().map(|it| format!("  {:<30} {}", attributes::keyword(it.tag), it.value)));
    }
    lines.join("\n")
}

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

/// Re-reads every shard.
pub async fn verify(context: &Context, args: Verify) -> Result<(), Failure> {
    let client = context.connect()?;
    let found = objects(&client, args.object.as_deref(), args.study.clone()).await?;
    let layout = client.layout().await?;
    let mut total: BTreeMap<(String, String), Counts> = BTreeMap::new();
    let (mut damaged, mut unreadable, mut whole) = (0_u64, 0_u64, 0_u64);
    for sealed in &found {
        let checks = client.verify(sealed).await?;
        let claims = claims(sealed, &checks, &layout);
        let bad = checks.iter().any(|check| matches!(check.finding, ShardFinding::Damaged(_)));
        let good = checks.iter().all(|check| check.finding == ShardFinding::Proven);
        damaged += u64::from(bad);
        unreadable += u64::from(claims.is_empty());
        whole += u64::from(good);
        for check in &checks {
            total.entry(place_of(check, &layout)).or_default().add(&check.finding);
        }
        if context.out.json {
            context.out.value(&verify_value(sealed, &checks, &claims, &layout));
        } else if !good {
            context.out.say(format!("{} v{}: survives {}", sealed.seal.key, sealed.version, survives_text(&claims)));
            for (check, what) in checks.iter().filter_map(|check| Some((check, fault_text(&check.finding)?))) {
                let (site, node) = place_of(check, &layout);
                context.out.say(format!("  stripe {} shard {} on {node} ({site}): {what}", check.stripe, check.shard));
            }
        }
    }
    if context.out.json {
        let summary = json!({"objects": found.len(), "whole": whole, "damaged": damaged, "unreadable": unreadable});
        context.out.value(&json!({ "summary": summary }));
    } else {
        context.out.say(totals_table(&total));
        context.out.say(format!("{whole} of {} objects are whole: every shard was read back and proven", found.len()));
    }
    if damaged + unreadable > 0 {
        let text = format!("{damaged} objects have damaged shards, {unreadable} cannot be read now");
        return Err(
            Failure::failed("PV-DAMAGED", text).hint("damaged shards are read around until repair replaces them")
        );
    }
    Ok(())
}

async fn objects(client: &Client, object: Option<&str>, study: Option<Uid>) -> Result<Vec<SealedInstance>, Failure> {
    if let Some(text) = object {
        let key = parse_key(text, &client.config().tenant)?;
        return Ok(vec![client.lookup(&key, None).await?]);
    }
    let study = study.ok_or_else(|| Failure::usage("give a key or --study"))?;
    let found = everything(client, Some(study.clone()), None).await?.instances;
    if found.is_empty() {
        let text = format!("nothing is stored in study {study}");
        return Err(Fault::new(Class::NotFound, "PV-NOT-FOUND", text).into());
    }
    Ok(found)
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
        ShardFinding::Missing => Some("missing: not stored when the write was acknowledged".to_owned()),
        ShardFinding::Away(why) => Some(format!("away: {why}")),
        ShardFinding::Damaged(why) => Some(format!("DAMAGED: {why}")),
    }
}

fn survives_text(claims: &[Failures]) -> String {
    if claims.is_empty() { "NOTHING: it cannot be read now".to_owned() } else { failures(claims).join("; ") }
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

/// Deletes through the log.
pub async fn rm(context: &Context, args: Rm) -> Result<(), Failure> {
    let client = context.connect()?;
    let keys: Vec<ObjectKey> = match &args.object {
        Some(text) => vec![parse_key(text, &client.config().tenant)?],
        None => objects(&client, None, args.study.clone()).await?.into_iter().map(|sealed| sealed.seal.key).collect(),
    };
    if !args.yes {
        let what = if keys.len() == 1 { keys[0].to_string() } else { counted(keys.len(), "object") };
        return Err(Failure::usage(format!("this would delete {what}")).hint("add --yes if that is meant"));
    }
    let mut deleted = 0_u64;
    for key in keys {
        let versions = client.coordinator().delete(key.clone(), args.number.map(VersionNumber)).await;
        // A delete of unknown outcome that is repeated finds nothing: both mean that it is gone.
        let versions = versions.map_err(|fault| {
            let unknown = fault.class == Class::Unknown;
            let failure = Failure::from(fault);
            if unknown { failure.hint("run the same command again: deleting twice is safe") } else { failure }
        })?;
        deleted += versions.len() as u64;
        let numbers: Vec<u32> = versions.iter().map(|version| version.0).collect();
        let value = json!({"key": key.to_string(), "versions": numbers});
        context.out.either(&value, || {
            if numbers.is_empty() {
                return format!("{key} was deleted already");
            }
            let list: Vec<String> = numbers.iter().map(|number| format!("v{number}")).collect();
            format!("deleted {key} {}", list.join(" "))
        });
    }
    if context.out.json {
        context.out.value(&json!({"summary": {"versions": deleted}}));
    }
    Ok(())
}
