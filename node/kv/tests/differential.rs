//! The store against its model: every operation, reopening, checkpoints and installs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{path::Path, sync::Arc};

use pacsvault_kv::{Journal, Options, RocksKv};
use pacsvault_ports::kv::{Batch, Change, Checkpoint, Durability, Kv, Rows};
use pacsvault_simkv::{SimKv, SimKvMedia};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<Change>, Durability),
    Get(Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, usize),
    Last(Vec<u8>, Vec<u8>),
    Flush,
    Reopen,
    Checkpoint,
    Install,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few keys that share prefixes, and the empty one, so that operations meet.
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xff)], 0..4)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => (key(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(key, value)| Change::Put(key, value)),
        2 => key().prop_map(Change::Delete),
        1 => (key(), key()).prop_map(|(from, to)| Change::DeleteRange(from, to)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let durability = prop_oneof![Just(Durability::Synced), Just(Durability::Buffered)];
    prop_oneof![
        12 => (proptest::collection::vec(change(), 0..6), durability).prop_map(|(batch, how)| Step::Write(batch, how)),
        6 => key().prop_map(Step::Get),
        6 => (key(), key(), 0_usize..20).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
        6 => (key(), key()).prop_map(|(from, to)| Step::Last(from, to)),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Install),
    ]
}

fn options(journal: Journal) -> Options {
    let options = if journal == Journal::Synced { Options::log() } else { Options::state() };
    options.with_block_cache_bytes(1 << 20).with_write_buffer_bytes(64 << 10)
}

fn all(store: &dyn Kv) -> Rows {
    store.scan(&[], &[0xff; 9], usize::MAX).unwrap()
}

/// Carries a checkpoint into a store in pieces of `piece` bytes, resuming what is there.
fn install(from: &dyn Checkpoint, to: &dyn Kv, id: &str, piece: usize) {
    let mut install = to.begin_install(id).unwrap();
    for file in from.files() {
        loop {
            let at = install.received(&file.name).unwrap();
            let bytes = from.read(&file.name, at, piece).unwrap();
            if bytes.is_empty() {
                break;
            }
            install.write(&file.name, at, &bytes).unwrap();
        }
    }
    install.finish(from.files()).unwrap();
}

struct Pair {
    real: RocksKv,
    model: Arc<SimKv>,
    media: SimKvMedia,
    checkpoint: Option<(Arc<dyn Checkpoint>, Arc<dyn Checkpoint>)>,
}

fn run(dir: &Path, journal: Journal, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let media = SimKvMedia::new();
    let real = RocksKv::open(dir, options(journal)).unwrap();
    let mut pair = Pair { real, model: media.open(), media, checkpoint: None };
    for step in steps {
        match step {
            Step::Write(changes, durability) => {
                let batch = Batch { changes };
                pair.real.write(batch.clone(), durability).unwrap();
                pair.model.write(batch, durability).unwrap();
            }
            Step::Get(key) => prop_assert_eq!(pair.real.get(&key).unwrap(), pair.model.get(&key).unwrap()),
            Step::Scan(from, to, limit) => {
                let expected = pair.model.scan(&from, &to, limit).unwrap();
                prop_assert_eq!(pair.real.scan(&from, &to, limit).unwrap(), expected);
            }
            Step::Last(from, to) => {
                prop_assert_eq!(pair.real.last(&from, &to).unwrap(), pair.model.last(&from, &to).unwrap());
            }
            Step::Flush => {
                pair.real.flush().unwrap();
                pair.model.flush().unwrap();
            }
            Step::Reopen => {
                let Pair { real, media, checkpoint, .. } = pair;
                drop((real, checkpoint));
                let real = RocksKv::open(dir, options(journal)).unwrap();
                pair = Pair { real, model: media.open(), media, checkpoint: None };
            }
            Step::Checkpoint => {
                pair.checkpoint = Some((pair.real.checkpoint().unwrap(), pair.model.checkpoint().unwrap()));
            }
            Step::Install => {
                if let Some((real, model)) = &pair.checkpoint {
                    install(&**real, &pair.real, "x", 1000);
                    install(&**model, &*pair.model, "x", 1000);
                }
            }
        }
    }
    prop_assert_eq!(all(&pair.real), all(&*pair.model));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_store_with_journal_equals_its_model(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), Journal::Synced, steps)?;
    }

    #[test]
    fn a_store_without_journal_equals_its_model(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), Journal::Off, steps)?;
    }
}

fn filled(dir: &Path, journal: Journal, rows: u32) -> RocksKv {
    let store = RocksKv::open(dir, options(journal)).unwrap();
    for number in 0..rows {
        let mut batch = Batch::default();
        let value = incompressible(number);
        batch.put(number.to_be_bytes(), value);
        store.write(batch, Durability::Buffered).unwrap();
    }
    store
}

/// Bytes that do not compress away.
fn incompressible(number: u32) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    };
    (0..16).flat_map(|_| next()).collect()
}

#[test]
fn a_checkpoint_carries_everything_written_before_it_and_nothing_after() {
    for journal in [Journal::Synced, Journal::Off] {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = filled(from.path(), journal, 5000);
        let before = all(&source);
        let checkpoint = source.checkpoint().unwrap();
        let mut late = Batch::default();
        late.put(b"late".to_vec(), b"x".to_vec());
        source.write(late, Durability::Synced).unwrap();

        let target = filled(to.path(), journal, 3);
        install(&*checkpoint, &target, "one", 30_000);
        assert_eq!(all(&target), before);
        target.write(Batch::default(), Durability::Synced).unwrap();
        drop(target);
        assert_eq!(all(&RocksKv::open(to.path(), options(journal)).unwrap()), before, "after a restart too");
        let generations = names(to.path()).into_iter().filter(|name| name.starts_with("gen-")).count();
        assert_eq!(generations, 1, "the replaced content is gone");
    }
}

#[test]
fn readers_keep_the_content_they_began_with_while_it_is_replaced() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = filled(from.path(), Journal::Off, 2000).checkpoint().unwrap();
    let target = filled(to.path(), Journal::Off, 1000);
    let counts = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut counts = std::collections::BTreeSet::new();
            while !counts.contains(&2000) {
                counts.insert(all(&target).len());
            }
            counts
        });
        install(&*checkpoint, &target, "one", 100_000);
        reader.join().unwrap()
    });
    assert!(counts.iter().all(|count| [1000, 2000].contains(count)), "never a mixture: {counts:?}");
}

#[test]
fn an_interrupted_install_goes_on_where_it_stopped_after_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = filled(from.path(), Journal::Off, 5000);
    let checkpoint = source.checkpoint().unwrap();
    let table = checkpoint.files().iter().max_by_key(|file| file.len_bytes).unwrap();
    let target = filled(to.path(), Journal::Off, 3);
    let mut begun = target.begin_install("snapshot 7/x").unwrap();
    let part = usize::try_from(table.len_bytes / 2).unwrap();
    begun.write(&table.name, 0, &checkpoint.read(&table.name, 0, part).unwrap()).unwrap();
    assert!(begun.write(&table.name, 0, b"again").is_err(), "only what follows is taken");
    drop((begun, target));

    let target = RocksKv::open(to.path(), options(Journal::Off)).unwrap();
    assert_eq!(all(&target).len(), 3, "the old content until the install is finished");
    let resumed = target.begin_install("snapshot 7/x").unwrap();
    assert_eq!(resumed.received(&table.name).unwrap(), part as u64);
    drop(resumed);
    install(&*checkpoint, &target, "snapshot 7/x", 10_000);
    assert_eq!(all(&target), all(&source));

    target.begin_install("a").unwrap().write("f", 0, b"x").unwrap();
    assert_eq!(target.begin_install("b").unwrap().received("f").unwrap(), 0);
    assert_eq!(target.begin_install("a").unwrap().received("f").unwrap(), 0, "another id discards");
}

#[test]
fn files_damaged_on_the_way_are_refused_dropped_and_sent_again() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = filled(from.path(), Journal::Off, 500);
    let checkpoint = source.checkpoint().unwrap();
    let target = filled(to.path(), Journal::Off, 3);
    for victim in checkpoint.files().iter().filter(|file| file.len_bytes > 0) {
        let mut install = target.begin_install(&victim.name).unwrap();
        for file in checkpoint.files() {
            let at = install.received(&file.name).unwrap();
            let mut bytes = checkpoint.read(&file.name, at, usize::MAX).unwrap();
            if file == victim {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            install.write(&file.name, at, &bytes).unwrap();
        }
        let error = install.finish(checkpoint.files()).unwrap_err().to_string();
        assert!(error.contains(&victim.name), "{error}");
        assert_eq!(all(&target).len(), 3, "the old content stays");
        let again = target.begin_install(&victim.name).unwrap();
        assert_eq!(again.received(&victim.name).unwrap(), 0, "the bad file was dropped");
    }
    let one = target.begin_install("one").unwrap();
    assert!(one.finish(checkpoint.files()).unwrap_err().to_string().contains("not received"));
    install(&*checkpoint, &target, "one", 10_000);
    assert_eq!(all(&target), all(&source));
}

#[test]
fn names_from_the_network_cannot_leave_the_directory() {
    let to = tempfile::tempdir().unwrap();
    let target = filled(to.path(), Journal::Off, 1);
    let mut install = target.begin_install("../../x").unwrap();
    for name in ["../CURRENT", "a/b", "", ".", "..", ".hidden", "a\0b"] {
        assert!(install.write(name, 0, b"x").is_err(), "{name:?}");
        assert!(install.received(name).is_err(), "{name:?}");
    }
    assert!(install.finish(&[]).is_err(), "a checkpoint without files would empty the store");
    assert_eq!(all(&target).len(), 1);
}

#[test]
fn checkpoints_vanish_with_their_last_handle_and_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), Journal::Off, 10);
    let checkpoints = dir.path().join("checkpoints");
    let (first, second) = (store.checkpoint().unwrap(), store.checkpoint().unwrap());
    assert_eq!(names(&checkpoints).len(), 2);
    let again = Arc::clone(&first);
    drop(first);
    assert_eq!(names(&checkpoints).len(), 2);
    drop(again);
    assert_eq!(names(&checkpoints).len(), 1);
    drop(store);
    assert!(RocksKv::open(dir.path(), options(Journal::Off)).is_err(), "the directory is in use by the checkpoint");
    drop(second);
    std::fs::create_dir_all(checkpoints.join("7/left")).unwrap();
    let _store = RocksKv::open(dir.path(), options(Journal::Off)).unwrap();
    assert_eq!(names(&checkpoints).len(), 0);
}

#[test]
fn every_state_that_a_crash_can_leave_opens_and_damage_does_not() {
    let open = |dir: &Path| RocksKv::open(dir, options(Journal::Off));
    // kv.9: the first generation half made.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("CURRENT"), "creating gen-00000001\n").unwrap();
    std::fs::create_dir(dir.path().join("gen-00000001")).unwrap();
    std::fs::write(dir.path().join("gen-00000001/CURRENT"), "torn").unwrap();
    drop(open(dir.path()).unwrap());
    // kv.1, kv.4, kv.5: a torn pointer, an unreferenced generation.
    drop(filled(dir.path(), Journal::Off, 5));
    std::fs::write(dir.path().join("CURRENT.part"), "ge").unwrap();
    std::fs::create_dir_all(dir.path().join("gen-00000002/x")).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store).len(), 5);
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(store);
    assert!(!names(dir.path()).iter().any(|name| name == "CURRENT.part" || name == "gen-00000002"));

    std::fs::write(dir.path().join("CURRENT"), "gen-").unwrap();
    assert!(open(dir.path()).err().unwrap().to_string().contains("damaged"));
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    assert!(open(dir.path()).err().unwrap().to_string().contains("missing"));
    std::fs::write(dir.path().join("CURRENT"), "gen-00000009\n").unwrap();
    assert!(open(dir.path()).is_err(), "lost content is never an empty store");
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
