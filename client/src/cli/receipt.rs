//! `receipt`: what was promised, and the proof of it.

use std::{fs, path::Path};

use pacsvault_client::receipt as proof;
use pacsvault_core::{ids::VersionNumber, receipt::Receipt as Promise};
use serde_json::{Value, json};

use super::{
    Context,
    args::Receipt,
    failure::Failure,
    get::parse_key,
    output::{counted, failures, size_text, time_text},
    put::{check_replaceable, write_whole},
};

/// Shows, proves, fetches.
pub async fn run(context: &Context, command: Receipt) -> Result<(), Failure> {
    match command {
        Receipt::Show { file } => {
            let (_, receipt) = proof::read(&read_file(&file)?)?;
            context.out.either(&value(&receipt), || words(&receipt));
            if !context.out.json {
                eprintln!("note: nothing is proven yet: pacsvault receipt verify {} --ca ca.pem", file.display());
            }
            Ok(())
        }
        Receipt::Verify { file } => verify(context, &file),
        Receipt::Fetch { object, number, out } => {
            let client = context.connect()?;
            let key = parse_key(&object, &client.config().tenant)?;
            let sealed = client.lookup(&key, number.map(VersionNumber)).await?;
            check_replaceable(&out)?;
            let (receipt, signed) = client.receipt(&sealed).await?;
            write_whole(&out, &signed).map_err(|error| Failure::file("write", &out, &error))?;
            let mut shown = value(&receipt);
            shown["receipt"] = json!(out);
            context.out.either(&shown, || format!("{}: {} v{}", out.display(), receipt.key, receipt.version));
            Ok(())
        }
    }
}

fn verify(context: &Context, file: &Path) -> Result<(), Failure> {
    let ca = context.settings()?.ca;
    let ca = ca.ok_or_else(|| Failure::usage("the cluster's CA certificate is needed: --ca ca.pem"))?;
    let ca_pem = fs::read_to_string(&ca).map_err(|error| Failure::file("read", &ca, &error))?;
    let (receipt, signer) = proof::prove(&read_file(file)?, &ca_pem)?;
    let mut shown = value(&receipt);
    shown["proven"] = json!(true);
    shown["signer"] = json!({"role": signer.role.as_str(), "name": signer.name});
    context.out.either(&shown, || {
        format!(
            "PROVEN: {} {} of this cluster signed at {} that it stored\n{}",
            signer.role,
            signer.name,
            time_text(receipt.time.0),
            words(&receipt)
        )
    });
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::file("read", path, &error))
}

fn value(receipt: &Promise) -> Value {
    let stripes: Vec<Value> = receipt
        .stripes
        .iter()
        .map(|stripe| {
            let shards: Vec<Value> = stripe
                .shards
                .iter()
                .map(|(shard, site, volume)| json!({"shard": shard, "site": site.as_str(), "volume": volume.to_string()}))
                .collect();
            json!({"shard_root": stripe.shard_root.to_string(), "shards": shards})
        })
        .collect();
    json!({
        "cluster": receipt.cluster.to_string(), "key": receipt.key.to_string(), "version": receipt.version.0,
        "instance": receipt.instance.to_string(), "size_bytes": receipt.size_bytes, "digest": receipt.digest.to_string(),
        "profile": receipt.profile.as_str(), "profile_version": receipt.profile_version, "code": receipt.code.to_string(),
        "contract": receipt.contract.to_string(), "survives": failures(&receipt.survives), "degraded": receipt.degraded,
        "stripes": stripes, "layout": receipt.layout.0, "term": receipt.term.0, "index": receipt.index.0,
        "time": time_text(receipt.time.0), "coordinator": receipt.coordinator,
    })
}

fn words(receipt: &Promise) -> String {
    let mut sites: Vec<(String, usize)> = Vec::new();
    for (_, site, _) in receipt.stripes.iter().flat_map(|stripe| &stripe.shards) {
        match sites.iter_mut().find(|(known, _)| known == site.as_str()) {
            Some((_, count)) => *count += 1,
            None => sites.push((site.to_string(), 1)),
        }
    }
    let sites: Vec<String> = sites.iter().map(|(site, count)| format!("{site} {count}")).collect();
    let degraded = if receipt.degraded { "  DEGRADED" } else { "" };
    let facts = [
        ("key", receipt.key.to_string()),
        ("version", receipt.version.to_string()),
        ("size", format!("{} bytes ({})", receipt.size_bytes, size_text(receipt.size_bytes))),
        ("BLAKE3", receipt.digest.to_string()),
        ("survives", format!("{}{degraded}", failures(&receipt.survives).join("; "))),
        (
            "promised",
            format!(
                "{} (profile {} v{}, {})",
                receipt.contract, receipt.profile, receipt.profile_version, receipt.code
            ),
        ),
        ("shards by site", format!("{} in {}", sites.join(", "), counted(receipt.stripes.len(), "stripe"))),
        ("log", format!("term {} index {}, {}", receipt.term, receipt.index, time_text(receipt.time.0))),
        ("signed by", receipt.coordinator.clone()),
        ("cluster", receipt.cluster.to_string()),
    ];
    let lines: Vec<String> = facts.iter().map(|(name, value)| format!("  {name:<15} {value}")).collect();
    lines.join("\n")
}
