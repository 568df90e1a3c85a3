//! `ls`, `head`, `rm`: what is stored, and its end.

use std::collections::BTreeMap;

use pacsvault_client::{Client, dicom::attributes};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Leaf, ObjectKey, Uid, VersionNumber},
    layout::Layout,
};
use pacsvault_ports::peer::{Class, Fault, ListPage};
use serde_json::{Map, Value, json};

use super::{
    Context,
    args::{Head, Ls, Rm},
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
        for newest in &page.instances {
            let all = if args.versions { client.versions_of(newest).await? } else { vec![newest.clone()] };
            for sealed in &all {
                if context.out.json {
                    context.out.value(&instance_value(sealed));
                }
                rows.push(instance_row(sealed));
            }
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    match (&args.study, rows.is_empty()) {
        (Some(study), true) => {
            let text = format!("nothing is stored in study {study}");
            return Err(Fault::new(Class::NotFound, "PV-NOT-FOUND", text).into());
        }
        (None, true) => eprintln!("note: nothing is stored for tenant {}", client.config().tenant),
        (_, false) if context.out.json => {}
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
    if args.versions {
        let newest = client.lookup(&key, None).await?;
        let all = client.versions_of(&newest).await?;
        if context.out.json {
            all.iter().for_each(|sealed| context.out.value(&instance_value(sealed)));
        } else {
            let rows: Vec<Vec<String>> = all.iter().map(version_row).collect();
            context.out.say(table(&["VERSION", "STORED", "SIZE", "BLAKE3", "SURVIVES"], &rows));
        }
        return Ok(());
    }
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

fn version_row(sealed: &SealedInstance) -> Vec<String> {
    let degraded = if sealed.degraded { " (degraded)" } else { "" };
    vec![
        sealed.version.to_string(),
        time_text(sealed.time.0),
        size_text(sealed.seal.size_bytes),
        sealed.seal.digest.to_string(),
        format!("{}{degraded}", failures(&sealed.survives).join("; ")),
    ]
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

/// One object, or all of a study; at least one.
pub async fn objects(
    client: &Client,
    object: Option<&str>,
    study: Option<Uid>,
) -> Result<Vec<SealedInstance>, Failure> {
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
