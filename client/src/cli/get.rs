//! `get`: content out of the archive, into files or standard output.
//!
//! **Invariants.** A file appears under its name only after its whole content was verified and synced. Standard output gets
//! proven bytes only; if the read ends early the exit code says so.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use pacsvault_client::Client;
use pacsvault_coordinator::{
    GetQuery,
    repeat::{backoff, worth_repeating},
};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Leaf, ObjectKey, Tenant, Uid, VersionNumber},
};
use pacsvault_ports::{
    crash,
    peer::{Class, Fault, Freshness},
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Context,
    args::{Get, Range},
    failure::{Exit, Failure},
    inspect::everything,
    output::{counted, size_text},
    put::{check_replaceable, part_of},
};

/// Whole reads of one file before it is given up; what a single read survives is decided by the coordinator.
const ATTEMPTS_MAX: u32 = 4;
/// Pieces on their way to the disk.
const PIECES_QUEUED: usize = 8;

/// Reads all that was asked for.
pub async fn run(context: &Context, args: Get) -> Result<(), Failure> {
    let client = context.connect()?;
    match &args.object {
        Some(text) => one(context, &client, &args, text).await,
        None => many(context, &client, &args).await,
    }
}

/// Reads `tenant/study/…`; the tenant may be left out.
pub fn parse_key(text: &str, tenant: &Tenant) -> Result<ObjectKey, Failure> {
    let full = if text.split('/').count() == 3 { format!("{tenant}/{text}") } else { text.to_owned() };
    full.parse().map_err(|error| Failure::usage(format!("{error}")).hint("`pacsvault ls STUDY` prints keys"))
}

async fn one(context: &Context, client: &Client, args: &Get, text: &str) -> Result<(), Failure> {
    let key = parse_key(text, &client.config().tenant)?;
    let sealed = client.lookup(&key, args.number.map(VersionNumber)).await?;
    if args.out.as_deref() == Some(Path::new("-")) {
        return to_stdout(client, &sealed, args.range).await;
    }
    let folder = |out: &Path| out.is_dir() || out.as_os_str().to_string_lossy().ends_with('/');
    let path = match &args.out {
        Some(out) if folder(out) => out.join(file_name(&key)),
        Some(out) => out.clone(),
        None => PathBuf::from(file_name(&key)),
    };
    let began = Instant::now();
    let bar = context.out.bytes_bar(sealed.seal.size_bytes);
    let bytes = to_file(client, &sealed, args.range, &path, &bar).await?;
    bar.finish_and_clear();
    tell(context, &sealed, &path, bytes);
    if context.out.json {
        summarize(context, 1, bytes, began.elapsed());
    }
    Ok(())
}

async fn many(context: &Context, client: &Client, args: &Get) -> Result<(), Failure> {
    let found = find(client, args.study.clone(), args.series.clone()).await?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("."));
    if out == Path::new("-") {
        return Err(Failure::usage("a study does not fit into one stream: give a folder as --out"));
    }
    let bar = context.out.bytes_bar(found.iter().map(|sealed| sealed.seal.size_bytes).sum());
    let began = Instant::now();
    let mut results = stream::iter(&found)
        .map(|sealed| {
            let path = out.join(relative_path(&sealed.seal.key));
            let bar = &bar;
            async move {
                let result = to_file(client, sealed, None, &path, bar).await;
                (sealed, path, result)
            }
        })
        .buffer_unordered(usize::from(args.jobs));
    let (mut files, mut bytes, mut failed) = (0, 0, 0);
    while let Some((sealed, path, result)) = results.next().await {
        bar.suspend(|| match result {
            Ok(size) => {
                files += 1;
                bytes += size;
                tell(context, sealed, &path, size);
            }
            Err(failure) => {
                failed += 1;
                if context.out.json {
                    let error = json!({"code": failure.code, "message": failure.message, "hint": failure.hint});
                    context.out.value(&json!({"key": sealed.seal.key.to_string(), "path": path, "error": error}));
                } else {
                    eprintln!("{}: {failure}", sealed.seal.key);
                }
            }
        });
    }
    bar.finish_and_clear();
    if context.out.json {
        let summary =
            json!({"files": files, "bytes": bytes, "seconds": began.elapsed().as_secs_f64(), "failed": failed});
        context.out.value(&json!({ "summary": summary }));
    } else {
        summarize(context, files, bytes, began.elapsed());
    }
    if failed > 0 {
        return Err(Failure::failed("PV-GET-INCOMPLETE", format!("{failed} of {} files were not read", found.len())));
    }
    Ok(())
}

/// Everything in the study, or in the series wherever it is.
async fn find(client: &Client, study: Option<Uid>, series: Option<Uid>) -> Result<Vec<SealedInstance>, Failure> {
    let studies = match study {
        Some(study) => vec![study],
        None => everything(client, None, None).await?.studies.into_iter().map(|row| row.study).collect(),
    };
    for study in studies {
        let found = everything(client, Some(study), series.clone()).await?.instances;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(Fault::new(Class::NotFound, "PV-NOT-FOUND", "nothing is stored in that study or series").into())
}

/// Where an object goes below the folder of its study. Names come from the archive and cannot hold a separator or lead upwards.
fn relative_path(key: &ObjectKey) -> PathBuf {
    match &key.leaf {
        Leaf::Instance { series, .. } => Path::new(series.as_str()).join(file_name(key)),
        Leaf::Document(_) => Path::new("documents").join(file_name(key)),
    }
}

fn file_name(key: &ObjectKey) -> String {
    match &key.leaf {
        Leaf::Instance { instance, .. } => format!("{instance}.dcm"),
        Leaf::Document(name) => name.as_str().to_owned(),
    }
}

fn query(sealed: &SealedInstance, range: Option<Range>) -> GetQuery {
    let mut query = GetQuery::whole(sealed.seal.key.clone());
    query.version = Some(sealed.version);
    query.freshness = Freshness::AtLeast(sealed.index);
    if let Some(Range { first, last }) = range {
        query.offset_bytes = first;
        query.len_bytes = last.map(|last| (last - first).saturating_add(1));
    }
    query
}

async fn to_stdout(client: &Client, sealed: &SealedInstance, range: Option<Range>) -> Result<(), Failure> {
    let mut reading = client.get(query(sealed, range)).await?;
    while let Some(piece) = reading.next().await {
        let piece = piece?;
        let written = tokio::task::spawn_blocking(move || {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&piece).and_then(|()| stdout.flush())
        });
        let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| Failure::failed("PV-FILE", format!("cannot write to standard output: {error}")))?;
    }
    Ok(())
}

/// Reads into a file, from the start again when the cluster faltered in the middle. Returns the bytes written.
async fn to_file(
    client: &Client,
    sealed: &SealedInstance,
    range: Option<Range>,
    path: &Path,
    bar: &ProgressBar,
) -> Result<u64, Failure> {
    check_replaceable(path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| Failure::file("make", parent, &error))?;
    }
    let mut attempt = 1;
    loop {
        let mut seen = 0;
        let fault = match try_to_file(client, sealed, range, path, &mut |bytes| {
            seen += bytes;
            bar.inc(bytes);
        })
        .await
        {
            Ok(bytes) => return Ok(bytes),
            Err(Broken::Local(failure)) => return Err(failure),
            Err(Broken::Cluster(fault)) => fault,
        };
        bar.dec(seen);
        if !worth_repeating(fault.class) || attempt >= ATTEMPTS_MAX {
            // A read leaves nothing in doubt: it did not succeed.
            return Err(Failure { exit: Exit::Failed, ..fault.into() });
        }
        client.env().sleep(backoff(attempt, client.env().random())).await;
        attempt += 1;
    }
}

enum Broken {
    Local(Failure),
    Cluster(Fault),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Cluster(fault)
    }
}

async fn try_to_file(
    client: &Client,
    sealed: &SealedInstance,
    range: Option<Range>,
    path: &Path,
    watch: &mut (dyn FnMut(u64) + Send),
) -> Result<u64, Broken> {
    let mut reading = client.get(query(sealed, range)).await?;
    let part = part_of(path);
    let failed = |error: io::Error| Broken::Local(Failure::file("write", path, &error));
    let (sender, receiver) = mpsc::channel(PIECES_QUEUED);
    let target = part.clone();
    let writer = tokio::task::spawn_blocking(move || write_pieces(&target, receiver));
    let mut bytes = 0;
    let mut broken = None;
    while let Some(piece) = reading.next().await {
        match piece {
            Ok(piece) => {
                bytes += piece.len() as u64;
                watch(piece.len() as u64);
                if sender.send(piece).await.is_err() {
                    break; // the writer's own error follows
                }
            }
            Err(fault) => {
                broken = Some(fault);
                break;
            }
        }
    }
    drop(sender);
    let written = writer.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    if broken.is_some() || written.is_err() {
        // What is left of it helps nobody; an error here changes nothing for the caller.
        let _ = fs::remove_file(&part);
    }
    if let Some(fault) = broken {
        return Err(fault.into());
    }
    written.map_err(failed)?;
    keep(&part, path).map_err(failed)?;
    Ok(bytes)
}

/// Gives a part that is whole and synced the name of its file.
pub(super) fn keep(part: &Path, path: &Path) -> io::Result<()> {
    // CRASH(client.4): the file is whole and synced under its part name, or under its own.
    crash::point("client.4");
    fs::rename(part, path)
}

/// Writes pieces as they come, until no more can; synced on return.
pub(super) fn write_pieces(part: &Path, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<()> {
    let mut file = fs::File::create(part)?;
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
    }
    // CRASH(client.3): a torn part may stay under its own name; the next run replaces it.
    crash::point("client.3");
    file.sync_data()
}

fn tell(context: &Context, sealed: &SealedInstance, path: &Path, bytes: u64) {
    let (key, digest) = (sealed.seal.key.to_string(), sealed.seal.digest.to_string());
    let value = json!({"key": key, "path": path, "size_bytes": bytes, "digest": digest, "version": sealed.version.0});
    context.out.either(&value, || format!("{} <- {key} v{}, {}", path.display(), sealed.version, size_text(bytes)));
}

fn summarize(context: &Context, files: u64, bytes: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    let value = json!({"summary": {"files": files, "bytes": bytes, "seconds": seconds, "failed": 0}});
    context.out.either(&value, || format!("read {}, {} in {seconds:.1} s", counted(files, "file"), size_text(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_may_leave_out_the_tenant() {
        let tenant: Tenant = "main".parse().expect("a tenant");
        for (text, full) in [
            ("1.2/1.3/1.4", "main/1.2/1.3/1.4"),
            ("east/1.2/1.3/1.4", "east/1.2/1.3/1.4"),
            ("1.2/@/a.pdf", "main/1.2/@/a.pdf"),
        ] {
            assert_eq!(parse_key(text, &tenant).expect("valid").to_string(), full);
        }
        assert_eq!(parse_key("1.2", &tenant).expect_err("refused").exit, Exit::Usage);
    }

    #[test]
    fn objects_go_to_a_folder_per_series_and_documents_to_theirs() {
        let path = |text: &str| relative_path(&text.parse().expect("a key"));
        assert_eq!(path("main/1.2/1.3/1.4"), Path::new("1.3/1.4.dcm"));
        assert_eq!(path("main/1.2/@/a b.pdf"), Path::new("documents/a b.pdf"));
    }
}
