//! `put`: files and folders into the archive.
//!
//! **Invariants.** A file's line is printed only after its receipt was got (and, when asked, kept). Every path given or found
//! ends as stored, failed or skipped, and is counted once.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use pacsvault_client::{
    Acked, Client, Source,
    dicom::attributes::{self, Described},
};
use pacsvault_coordinator::PutHeader;
use pacsvault_core::{
    ids::{DocumentName, Leaf, ObjectKey, Tenant},
    receipt::Receipt,
};
use pacsvault_ports::crash;
use serde_json::json;

use super::{
    Context,
    args::Put,
    failure::{Exit, Failure},
    output::{counted, failures, size_text},
};

/// Media type of Part 10 files.
const DICOM: &str = "application/dicom";

/// One file to store.
struct Item {
    path: PathBuf,
    size_bytes: u64,
    dicom: bool,
    /// Given by itself, not found in a folder.
    named: bool,
}

/// What the paths hold.
#[derive(Default)]
struct Gathered {
    items: Vec<Item>,
    refused: Vec<(PathBuf, Failure)>,
    skipped: u64,
}

impl Gathered {
    fn add(&mut self, path: &Path, found: Result<Option<Item>, Failure>) {
        match found {
            Ok(Some(item)) => self.items.push(item),
            Ok(None) => self.skip(path, "is not a DICOM file (--study UID stores it as a document)"),
            Err(failure) => self.refused.push((path.to_owned(), failure)),
        }
    }

    fn skip(&mut self, path: &Path, why: &str) {
        self.skipped += 1;
        eprintln!("note: {} {why}, skipped", path.display());
    }
}

#[derive(Default)]
struct Summary {
    files: u64,
    bytes: u64,
    failed: u64,
    unknown: u64,
    degraded: u64,
    skipped: u64,
}

/// Stores all.
pub async fn run(context: &Context, args: Put) -> Result<(), Failure> {
    let client = context.connect()?;
    if let Some(dir) = &args.receipts {
        fs::create_dir_all(dir).map_err(|error| Failure::file("make", dir, &error))?;
    }
    let Gathered { items, mut refused, skipped } = gather(&args);
    if args.name.is_some() && items.len() + refused.len() != 1 {
        return Err(Failure::usage("--name names one document, so give exactly one file"));
    }
    if items.is_empty()
        && skipped == 0
        && refused.len() == 1
        && let Some((_, failure)) = refused.pop()
    {
        return Err(failure);
    }
    let mut summary = Summary { skipped, ..Summary::default() };
    for (path, failure) in &refused {
        tell_failure(context, path, failure, &mut summary);
    }
    let bar = context.out.bytes_bar(items.iter().map(|item| item.size_bytes).sum());
    let began = Instant::now();
    let mut results = stream::iter(&items)
        .map(|item| {
            let (client, args, bar) = (&client, &args, &bar);
            async move { (item, store(client, args, item, bar).await) }
        })
        .buffer_unordered(usize::from(args.jobs));
    while let Some((item, result)) = results.next().await {
        bar.suspend(|| match result {
            Ok(Some(stored)) => tell(context, item, &stored, &mut summary),
            Ok(None) => {
                summary.skipped += 1;
                eprintln!("note: {} is a DICOMDIR, a list of other files, skipped", item.path.display());
            }
            Err(failure) => tell_failure(context, &item.path, &failure, &mut summary),
        });
    }
    bar.finish_and_clear();
    conclude(context, &summary, began.elapsed().as_secs_f64())
}

/// Walks the paths, in order. What cannot be read is refused alone. A file that was named must be usable; one that was
/// found may be skipped.
fn gather(args: &Put) -> Gathered {
    let mut gathered = Gathered::default();
    for path in &args.paths {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => walk(path, args, &mut gathered),
            _ => gathered.add(path, look(path, args, true)),
        }
    }
    gathered
}

fn walk(dir: &Path, args: &Put, gathered: &mut Gathered) {
    let listed = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = match listed {
        Ok(entries) => entries,
        Err(error) => return gathered.refused.push((dir.to_owned(), Failure::file("list", dir, &error))),
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // A link to a folder could lead in circles: links are followed to files only.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, args, gathered),
            Ok(kind) if kind.is_symlink() && path.is_dir() => {
                gathered.skip(&path, "is a link to a folder");
            }
            _ => gathered.add(&path, look(&path, args, false)),
        }
    }
}

/// Looks at one file; `None` when it may be skipped. Only regular files are opened: opening a pipe could wait for ever.
fn look(path: &Path, args: &Put, named: bool) -> Result<Option<Item>, Failure> {
    let refused = |error: io::Error| Failure::file("read", path, &error);
    let metadata = fs::metadata(path).map_err(refused)?;
    if !metadata.is_file() {
        let text = format!("{} is a pipe, socket or device: only regular files are stored", path.display());
        return Err(Failure::failed("PV-FILE", text));
    }
    let dicom = attributes::looks_like_dicom(path).map_err(refused)? && args.name.is_none();
    if dicom || args.study.is_some() {
        return Ok(Some(Item { path: path.to_owned(), size_bytes: metadata.len(), dicom, named }));
    }
    if !named {
        return Ok(None);
    }
    let text = format!("{} is not a DICOM Part 10 file", path.display());
    let hint = "to store it as a document of a study: pacsvault put FILE --study UID --name NAME";
    Err(Failure::failed("PV-NOT-DICOM", text).hint(hint))
}

/// A stored file, and where its receipt was kept.
type Stored = (Acked, Option<PathBuf>);

/// Stores one file; `None` when it was found in a folder and is that folder's DICOMDIR.
async fn store(client: &Client, args: &Put, item: &Item, bar: &ProgressBar) -> Result<Option<Stored>, Failure> {
    let Some(mut header) = header(client, args, item).await? else { return Ok(None) };
    header.profile = args.profile.clone();
    header.strict = args.strict;
    let source = Source::File { path: item.path.clone(), size_bytes: item.size_bytes };
    let seen = AtomicU64::new(0);
    let watch = |sent: u64| {
        let before = seen.swap(sent, Ordering::Relaxed);
        if sent >= before { bar.inc(sent - before) } else { bar.dec(before - sent) }
    };
    let acked = client.put(header, &source, &watch).await?;
    let kept = match &args.receipts {
        None => None,
        Some(dir) => {
            let path = dir.join(receipt_name(&acked.receipt));
            write_whole(&path, &acked.signed).map_err(|error| {
                Failure::file("keep the receipt as", &path, &error)
                    .hint("the content is stored; `pacsvault receipt fetch` gives another receipt")
            })?;
            Some(path)
        }
    };
    Ok(Some((acked, kept)))
}

async fn header(client: &Client, args: &Put, item: &Item) -> Result<Option<PutHeader>, Failure> {
    let tenant = client.config().tenant.clone();
    if item.dicom {
        let described = match describe(item.path.clone(), tenant).await? {
            Ok(described) => described,
            Err(attributes::Error::MediaDirectory) if !item.named => return Ok(None),
            Err(error) => {
                let hint = "to keep it as a document of a study: pacsvault put FILE --study UID --name NAME";
                return Err(Failure::failed("PV-NOT-DICOM", error.to_string()).hint(hint));
            }
        };
        let mut header = PutHeader::new(described.key, DICOM);
        header.attributes = described.attributes;
        return Ok(Some(header));
    }
    let study = args.study.clone().ok_or_else(|| Failure::usage("--study is needed for a document"))?;
    let name: DocumentName = match &args.name {
        Some(name) => name.clone(),
        None => {
            let name = item.path.file_name().unwrap_or_default().to_string_lossy();
            name.parse().map_err(|error| Failure::usage(format!("{error}")).hint("give another name with --name"))?
        }
    };
    let key = ObjectKey { tenant, study, leaf: Leaf::Document(name) };
    Ok(Some(PutHeader::new(key, args.media_type.clone())))
}

async fn describe(path: PathBuf, tenant: Tenant) -> Result<Result<Described, attributes::Error>, Failure> {
    let described = tokio::task::spawn_blocking(move || attributes::describe(&path, &tenant)).await;
    described.map_err(|error| Failure::failed("PV-SYSTEM", format!("reading the file's attributes stopped: {error}")))
}

/// File name of a receipt: unique per stored version.
pub fn receipt_name(receipt: &Receipt) -> String {
    let version = receipt.version;
    match &receipt.key.leaf {
        Leaf::Instance { instance, .. } => format!("{instance}.v{version}.receipt"),
        Leaf::Document(name) => format!("{}.{}.v{version}.receipt", receipt.key.study, name.as_str()),
    }
}

/// Makes `path` appear whole and durable, replacing an older file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = part_of(path);
    let mut file = fs::File::create(&part)?;
    file.write_all(bytes)?;
    // CRASH(client.1): a torn part may stay under its own name; nobody reads it, the next run replaces it.
    crash::point("client.1");
    file.sync_all()?;
    // CRASH(client.2): old or new file under the name, both whole.
    crash::point("client.2");
    fs::rename(&part, path)?;
    // CRASH(client.5): the name may vanish with the power; nobody was told that the receipt was kept.
    crash::point("client.5");
    let dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}

/// Refuses to put a file in the place of something else: renaming over `/dev/null` would take it from everybody.
pub fn check_replaceable(path: &Path) -> Result<(), Failure> {
    // The link itself is looked at, not what it leads to: the rename would replace the link.
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            let text = format!("{} exists and is not a regular file: it will not be replaced", path.display());
            Err(Failure::failed("PV-FILE", text).hint("`get --out -` writes to standard output"))
        }
        // Absent, or a file. Any other obstacle shows when the file is written.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Name of a file while it is being written.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn tell_failure(context: &Context, path: &Path, failure: &Failure, summary: &mut Summary) {
    let unknown = failure.exit == Exit::Unknown;
    summary.failed += u64::from(!unknown);
    summary.unknown += u64::from(unknown);
    if context.out.json {
        let error = json!({
            "code": failure.code, "message": failure.message, "hint": failure.hint, "outcome_unknown": unknown,
        });
        context.out.value(&json!({"path": path, "error": error}));
    } else {
        eprintln!("{}: {failure}", path.display());
    }
}

fn tell(context: &Context, item: &Item, stored: &Stored, summary: &mut Summary) {
    let (acked, kept) = stored;
    let receipt = &acked.receipt;
    summary.files += 1;
    summary.bytes += receipt.size_bytes;
    summary.degraded += u64::from(receipt.degraded);
    let survives = failures(&receipt.survives);
    let value = json!({
        "path": item.path, "key": receipt.key.to_string(), "version": receipt.version.0, "size_bytes": receipt.size_bytes,
        "digest": receipt.digest.to_string(), "degraded": receipt.degraded, "survives": survives,
        "contract": receipt.contract.to_string(), "receipt": kept, "first": acked.first, "attempts": acked.attempts,
    });
    context.out.either(&value, || {
        let again = if acked.first { "" } else { ", was stored already" };
        let degraded = if receipt.degraded {
            format!("  DEGRADED: less than promised ({}) until repaired", receipt.contract)
        } else {
            String::new()
        };
        let (key, version, size) = (&receipt.key, receipt.version, size_text(receipt.size_bytes));
        format!("{key} v{version}, {size}, survives {}{again}{degraded}", survives.join("; "))
    });
}

fn conclude(context: &Context, summary: &Summary, seconds: f64) -> Result<(), Failure> {
    let Summary { files, bytes, failed, unknown, degraded, skipped } = summary;
    let value = json!({"summary": {
        "files": files, "bytes": bytes, "seconds": seconds, "failed": failed, "unknown": unknown,
        "degraded": degraded, "skipped": skipped,
    }});
    context.out.either(&value, || {
        let mut text = format!("stored {}, {} in {seconds:.1} s", counted(*files, "file"), size_text(*bytes));
        for (count, what) in
            [(degraded, "degraded"), (failed, "failed"), (unknown, "of unknown outcome"), (skipped, "skipped")]
        {
            if *count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        text
    });
    match (failed, unknown) {
        (0, 0) => Ok(()),
        (0, unknown) => {
            let failure = Failure::failed("PV-UNKNOWN-OUTCOME", format!("{unknown} files may or may not be stored"));
            let failure =
                failure.hint("run the same command again: what is stored as the newest version is not stored twice");
            Err(Failure { exit: Exit::Unknown, ..failure })
        }
        (failed, unknown) => {
            let text = format!("{} not stored, {unknown} of unknown outcome", counted(*failed, "file"));
            Err(Failure::failed("PV-PUT-INCOMPLETE", text).hint("run the same command again once the cause is gone"))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    #[test]
    fn only_absent_and_regular_files_are_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "x").expect("written");
        std::os::unix::fs::symlink("file", path("link")).expect("linked");
        assert!(check_replaceable(&path("file")).is_ok() && check_replaceable(&path("absent")).is_ok());
        for refused in [path("link"), dir.path().to_owned(), PathBuf::from("/dev/null"), PathBuf::from("/dev/stdout")] {
            assert_eq!(check_replaceable(&refused).expect_err("refused").code, "PV-FILE", "{}", refused.display());
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let mut dicom = vec![0; 128];
        dicom.extend_from_slice(b"DICM");
        fs::write(path("a.dcm"), &dicom).expect("written");
        fs::write(path("notes.txt"), "x").expect("written");
        std::os::unix::fs::symlink("/nowhere/at/all", path("dangling")).expect("linked");
        std::os::unix::fs::symlink(dir.path(), path("circle")).expect("linked");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("bound");
        let folder = dir.path().display().to_string();
        let cli = Cli::try_parse_from(["pacsvault", "put", &folder]).expect("valid");
        let Command::Put(args) = cli.command else { panic!("another command") };
        let Gathered { items, refused, skipped } = gather(&args);
        assert_eq!((items.len(), skipped), (1, 2));
        let refused: Vec<&Path> = refused.iter().map(|(path, _)| path.as_path()).collect();
        assert_eq!(refused, [path("dangling"), path("socket")]);
    }

    #[test]
    fn a_file_appears_whole_and_its_part_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.receipt");
        for content in [b"one".as_slice(), b"two!"] {
            write_whole(&path, content).expect("written");
            assert_eq!(fs::read(&path).expect("there"), content);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
