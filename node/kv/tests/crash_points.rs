//! Real processes that die at every `CRASH` tag of this room, at every passing: what they acknowledged is there, content is
//! old or new, and what they left behind is gone after the next start.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use pacsvault_kv::{Journal, Options, RocksKv};
use pacsvault_ports::{
    crash::{CROSSED, dies_at, tags_in},
    kv::{Batch, CheckpointFile, Durability, Install, Kv},
};

const DIR: &str = "PACSVAULT_KV_TEST_DIR";
/// Rows before the process that dies is started.
const BEFORE: u64 = 5;
/// And after it, had it lived.
const AFTER: u64 = 13;

const SOURCES: [&str; 5] = [
    include_str!("../src/checkpoint.rs"),
    include_str!("../src/directory.rs"),
    include_str!("../src/generation.rs"),
    include_str!("../src/install.rs"),
    include_str!("../src/store.rs"),
];

/// What one process does, and what must hold after it died.
struct Scenario {
    name: &'static str,
    prepare: fn(&Path),
    work: fn(&Path),
    check: fn(&Path, &Death<'_>),
}

/// How a process ended.
struct Death<'a> {
    tag: &'a str,
    at: &'a str,
    /// The last number that it acknowledged.
    acked: Option<u64>,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "make", prepare: |_| {}, work: make, check: made },
    Scenario { name: "journal", prepare: prepare_journal, work: write_journal, check: journal_written },
    Scenario { name: "no-journal", prepare: prepare_no_journal, work: write_no_journal, check: no_journal_written },
    Scenario { name: "leftovers", prepare: prepare_leftovers, work: tidy, check: tidied },
    Scenario { name: "install", prepare: prepare_install, work: install_and_tell, check: installed },
];

fn open(dir: &Path, journal: Journal) -> RocksKv {
    let options = if journal == Journal::Synced { Options::log() } else { Options::state() };
    let options = options.with_block_cache_bytes(1 << 20).with_write_buffer_bytes(64 << 10);
    RocksKv::open(dir, options).expect("it opens")
}

fn ack(number: u64) {
    println!("ack {number}");
}

fn count(store: &RocksKv) -> u64 {
    let last = store.get(b"count").expect("readable");
    last.map_or(0, |last| u64::from_be_bytes(last.try_into().expect("eight bytes")))
}

fn row(number: u64) -> (Vec<u8>, Vec<u8>) {
    ([b"n".as_slice(), &number.to_be_bytes()].concat(), vec![number.to_be_bytes()[7]; 100])
}

fn write(store: &RocksKv, number: u64, durability: Durability) {
    let (key, value) = row(number);
    let mut batch = Batch::default();
    batch.put(key, value);
    batch.put(b"count".to_vec(), (number + 1).to_be_bytes());
    store.write(batch, durability).expect("written");
}

/// The rows are a prefix of what was written, with all that was acknowledged; tidy; and the store works.
fn is_prefix(dir: &Path, journal: Journal, before: u64, death: &Death<'_>) {
    let at = death.at;
    {
        let store = open(dir, journal);
        let found = count(&store);
        let promised = death.acked.map_or(before, |acked| acked + 1);
        assert!(found >= promised && found <= AFTER, "{at}: {promised} were promised, {found} are there");
        let rows = store.scan(b"n", b"o", usize::MAX).expect("readable");
        assert!(rows.into_iter().eq((0..found).map(row)), "{at}: not a prefix");
        is_tidy(dir, at);
        write(&store, found, Durability::Synced);
    }
    let store = open(dir, journal);
    assert!(count(&store) > before, "{at}: it works again");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

/// One generation, no checkpoint, no torn pointer.
fn is_tidy(dir: &Path, at: &str) {
    let found = names(dir);
    assert_eq!(found.iter().filter(|name| name.starts_with("gen-")).count(), 1, "{at}: {found:?}");
    assert!(!found.iter().any(|name| name.ends_with(".part")), "{at}: {found:?}");
    assert_eq!(names(&dir.join("checkpoints")), Vec::<String>::new(), "{at}");
}

fn make(dir: &Path) {
    let store = open(&dir.join("store"), Journal::Synced);
    write(&store, 0, Durability::Synced);
    ack(0);
}

fn made(dir: &Path, death: &Death<'_>) {
    is_prefix(&dir.join("store"), Journal::Synced, 0, death);
}

fn prepare(dir: &Path, journal: Journal) {
    let store = open(&dir.join("store"), journal);
    for number in 0..BEFORE {
        write(&store, number, Durability::Buffered);
    }
    store.flush().expect("flushed");
}

fn prepare_journal(dir: &Path) {
    prepare(dir, Journal::Synced);
}

fn prepare_no_journal(dir: &Path) {
    prepare(dir, Journal::Off);
}

fn write_journal(dir: &Path) {
    let store = open(&dir.join("store"), Journal::Synced);
    let mut checkpoints = Vec::new();
    for number in BEFORE..AFTER {
        let synced = number % 3 == 0;
        write(&store, number, if synced { Durability::Synced } else { Durability::Buffered });
        if number % 4 == 0 {
            store.flush().expect("flushed");
        }
        if synced || number % 4 == 0 {
            ack(number);
        }
        if number % 5 == 0 {
            checkpoints.push(store.checkpoint().expect("a checkpoint"));
        }
    }
}

fn journal_written(dir: &Path, death: &Death<'_>) {
    is_prefix(&dir.join("store"), Journal::Synced, BEFORE, death);
}

fn write_no_journal(dir: &Path) {
    let store = open(&dir.join("store"), Journal::Off);
    let mut checkpoints = Vec::new();
    for number in BEFORE..AFTER {
        write(&store, number, Durability::Buffered);
        if number % 4 == 0 {
            store.flush().expect("flushed");
            ack(number);
        }
        if number % 5 == 0 {
            checkpoints.push(store.checkpoint().expect("a checkpoint"));
        }
    }
}

fn no_journal_written(dir: &Path, death: &Death<'_>) {
    is_prefix(&dir.join("store"), Journal::Off, BEFORE, death);
}

/// What crashes elsewhere leave: an unreferenced generation, a checkpoint, a torn pointer.
fn prepare_leftovers(dir: &Path) {
    prepare(dir, Journal::Synced);
    let store = dir.join("store");
    for place in ["gen-00000007", "gen-00000009", "checkpoints/3"] {
        fs::create_dir_all(store.join(place)).expect("made");
        fs::write(store.join(place).join("000001.sst"), b"left over").expect("written");
    }
    fs::write(store.join("CURRENT.part"), b"gen-0000").expect("written");
}

fn tidy(dir: &Path) {
    ack(count(&open(&dir.join("store"), Journal::Synced)) - 1);
}

fn tidied(dir: &Path, death: &Death<'_>) {
    is_prefix(&dir.join("store"), Journal::Synced, BEFORE, death);
}

/// A store whose whole content is `word`, in many rows.
fn fill(dir: &Path, word: &str) {
    let store = open(dir, Journal::Off);
    let mut batch = Batch::default();
    for number in 0..300_u32 {
        batch.put(number.to_be_bytes(), word);
    }
    store.write(batch, Durability::Synced).expect("written");
}

/// A store with old content, and in `sent` the files of a checkpoint with new content.
fn prepare_install(dir: &Path) {
    fill(&dir.join("target"), "old");
    fill(&dir.join("source"), "new");
    let checkpoint = open(&dir.join("source"), Journal::Off).checkpoint().expect("a checkpoint");
    fs::create_dir(dir.join("sent")).expect("made");
    for file in checkpoint.files() {
        let bytes = checkpoint.read(&file.name, 0, usize::MAX).expect("read");
        fs::write(dir.join("sent").join(&file.name), bytes).expect("written");
    }
}

/// Sends what the receiver does not have yet, in two pieces a file.
fn install(dir: &Path) {
    let target = open(&dir.join("target"), Journal::Off);
    let mut install = target.begin_install("sent").expect("begun");
    let mut files = Vec::new();
    for name in names(&dir.join("sent")) {
        let bytes = fs::read(dir.join("sent").join(&name)).expect("read");
        let received = |install: &dyn Install| usize::try_from(install.received(&name).expect("known")).expect("small");
        let mut at = received(install.as_ref());
        while at < bytes.len() {
            let end = bytes.len().min(at + bytes.len() / 2 + 1);
            install.write(&name, at as u64, &bytes[at..end]).expect("written");
            at = received(install.as_ref());
        }
        files.push(CheckpointFile { len_bytes: bytes.len() as u64, digest: *blake3::hash(&bytes).as_bytes(), name });
    }
    install.finish(&files).expect("installed");
}

fn install_and_tell(dir: &Path) {
    install(dir);
    ack(1);
}

fn content(store: &RocksKv, at: &str) -> String {
    let rows = store.scan(&[], &[0xff; 5], usize::MAX).expect("readable");
    assert_eq!(rows.len(), 300, "{at}");
    assert!(rows.iter().all(|(_, value)| value == &rows[0].1), "{at}: a mixture");
    String::from_utf8(rows[0].1.clone()).expect("a word")
}

fn installed(dir: &Path, death: &Death<'_>) {
    let target = dir.join("target");
    // Only from the rename on does the pointer name the new content.
    let new = death.acked.is_some() || death.tag == "kv.3";
    {
        let store = open(&target, Journal::Off);
        assert_eq!(content(&store, death.at), if new { "new" } else { "old" }, "{}", death.at);
        is_tidy(&target, death.at);
    }
    // The sender sends again; what arrived before the crash may be used.
    install(dir);
    assert_eq!(content(&open(&target, Journal::Off), death.at), "new", "{}", death.at);
    is_tidy(&target, death.at);
    assert_eq!(names(&target.join("incoming")), Vec::<String>::new(), "{}", death.at);
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Not a test of its own: what the dying processes run.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let name = dir.file_name().expect("a name");
    let scenario = SCENARIOS.iter().find(|scenario| name == scenario.name).expect("a scenario");
    (scenario.work)(&dir);
}

/// How many passings of `tag` this scenario has; it dies at each.
fn cross(scenario: &Scenario, prepared: &Path, tag: &str) -> usize {
    for passing in 1.. {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join(scenario.name);
        copy(prepared, &dir).expect("copied");
        let mut command = Command::new(std::env::current_exe().expect("a test binary"));
        command.args(["child", "--exact", "--nocapture"]).env(DIR, &dir);
        let at = format!("{tag}#{passing}");
        let Some(told) = dies_at(&mut command, &at) else { return passing - 1 };
        let mut acks = told.lines().filter_map(|line| line.rsplit_once("ack ")?.1.parse().ok());
        let shown = format!("{} of {}", at, scenario.name);
        (scenario.check)(&dir, &Death { tag, at: &shown, acked: acks.next_back() });
    }
    0
}

#[test]
fn a_crash_at_every_point_of_the_store_leaves_old_or_new_content() {
    let tags: BTreeSet<&str> = SOURCES.into_iter().flat_map(tags_in).collect();
    let mut crossed = BTreeSet::new();
    let mut deaths = 0;
    for scenario in &SCENARIOS {
        let prepared = tempfile::tempdir().expect("a directory");
        (scenario.prepare)(prepared.path());
        for tag in &tags {
            let passings = cross(scenario, prepared.path(), tag);
            if passings > 0 {
                crossed.insert(*tag);
            }
            deaths += passings;
        }
    }
    for tag in &crossed {
        println!("{CROSSED}{tag}");
    }
    assert_eq!(crossed, tags);
    assert!(deaths > 50, "{deaths} deaths");
}
