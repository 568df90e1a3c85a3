//! Catalog commits of three fresh nodes: the other half of `tests/etcd_bench.sh`. Two kinds: seals of new instances with
//! attributes, about as many bytes as the values that etcd gets and indexed several times over, and `pacsvault bench
//! metadata`, whose commits go through the log and change nothing.
//!
//! The seals claim shards that were never sent: only the catalog is measured. For a cluster that is thrown away.
//!
//! usage: metadata_cluster DIR CLIENTS SECONDS; programs are taken from PACSVAULT_BIN_DIR or from beside this one.
#![allow(clippy::cast_precision_loss, reason = "rates are shown without decimals")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use pacsvault_client::{Client, Config, Settings};
use pacsvault_core::{
    catalog::{
        Command, Outcome, Seal, StripeSeal,
        command::{Attribute, Reserved},
    },
    ids::{Digest, InstanceId, StripeIndex},
    layout::{Layout, Profile, placement::Placer},
};
use pacsvault_harness::{Cluster, output};

/// Bytes of a CT slice.
const CONTENT_BYTES: u64 = 526_000;
/// Clients that share a client library with its connection, as many as etcd's share one.
const CLIENTS_PER_LIBRARY: usize = 16;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, clients, seconds] = &arguments[..] else { bail!("usage: metadata_cluster DIR CLIENTS SECONDS") };
    let bin = pacsvault_tests::bed::bin_dir()?;
    let mut cluster = Cluster::prepare(&bin, Path::new(dir), 3, 1).context("cannot prepare the cluster")?;
    cluster.start(|_| true)?;
    cluster.form()?;
    let length = Duration::from_secs(seconds.parse().context("SECONDS must be a number")?);
    let config = Config::try_from(Settings::from_file(&cluster.dir.join("client.toml"))?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("seals of new instances:");
    println!("{:>8} {:>10} {:>9} {:>9}", "clients", "seals/s", "p50 ms", "p99 ms");
    for clients in clients.split(',') {
        let clients: usize = clients.parse().context("CLIENTS must be numbers")?;
        // The first second warms up and is not counted.
        runtime.block_on(measure(&config, clients, Duration::from_secs(1)))?;
        let (mut latencies, took) = runtime.block_on(measure(&config, clients, length))?;
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let rate = latencies.len() as f64 / took.as_secs_f64();
        println!("{clients:>8} {rate:>10.0} {:>9.2} {:>9.2}", at(50), at(99));
    }
    println!("entries that change nothing:");
    let mut command = cluster.client();
    command.args(["bench", "metadata", "--clients", clients, "--seconds", seconds]);
    print!("{}", output(&mut command)?);
    Ok(())
}

async fn measure(config: &Config, clients: usize, length: Duration) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let mut libraries = Vec::new();
    for _ in 0..clients.div_ceil(CLIENTS_PER_LIBRARY) {
        let library = Client::connect(config.clone())?;
        // Connects now, as etcd's clients do before they are measured.
        let layout = library.layout().await?;
        libraries.push((library, layout));
    }
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let (library, layout) = libraries[number % libraries.len()].clone();
            tokio::spawn(seal_until(library, layout, next.clone(), began + length))
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    anyhow::ensure!(!latencies.is_empty(), "nothing was sealed");
    Ok((latencies, began.elapsed()))
}

async fn seal_until(
    client: Client,
    layout: Arc<Layout>,
    next: Arc<AtomicU64>,
    end: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let profile = layout.profiles.get(&layout.default_profile).context("no default profile")?.clone();
    let placer = Placer::new(&layout, &profile, &std::collections::BTreeSet::new())?;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let seal = seal(&client, &layout, &profile, &placer, number)?;
        let began = Instant::now();
        let outcomes = client.coordinator().propose(vec![Command::Seal(Box::new(seal))]).await?;
        match &outcomes[..] {
            [Outcome::Sealed { first: true, .. }] => latencies.push(began.elapsed()),
            other => bail!("a seal answered {other:?}"),
        }
    }
    Ok(latencies)
}

fn seal(client: &Client, layout: &Layout, profile: &Profile, placer: &Placer, number: u64) -> anyhow::Result<Seal> {
    let random = u128::from(client.env().random()) << 64 | u128::from(client.env().random());
    let instance = InstanceId::new(client.env().wall(), random);
    let stripe = StripeSeal {
        stripe_bytes: CONTENT_BYTES,
        shard_root: Digest::of(&random.to_be_bytes()),
        placement: placer.place(instance, StripeIndex(0)),
        persisted: (1 << profile.code.total()) - 1,
    };
    // What a CT slice brings: modality, date, description, patient's name and id, accession number and the like.
    let attribute = |element: u32| Attribute { tag: 0x0008_0000 | element, value: "SOME ORDINARY VALUE".to_owned() };
    // Every run its own studies, of 500 slices each.
    let (study, series) = (format!("2.25.{}.{}", layout.version, number / 500), "1.2.826.0.1.3680043.2.1125.2");
    let key = format!("main/{study}/{series}/2.25.{}", random >> 32);
    Ok(Seal {
        instance,
        key: key.parse()?,
        size_bytes: CONTENT_BYTES,
        digest: Digest::of(&instance.0),
        profile: profile.name.clone(),
        profile_version: profile.version,
        code: profile.code,
        layout: layout.version,
        stripes: vec![stripe],
        media_type: "application/dicom".to_owned(),
        attributes: (0x20..0x2C).map(attribute).collect(),
        strict: false,
        coordinator: client.credentials().identity().name.clone(),
        reserved: Reserved::default(),
    })
}
