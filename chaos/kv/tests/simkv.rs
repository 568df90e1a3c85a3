//! What the simulated store promises.
#![allow(clippy::unwrap_used, reason = "tests")]

use pacsvault_ports::kv::{Batch, Durability, Kv};
use pacsvault_simkv::{Fault, SimKvMedia};
use proptest::prelude::*;

fn numbered(number: u8) -> Batch {
    let mut batch = Batch::default();
    batch.put(vec![number], vec![number]);
    batch.put(b"last".to_vec(), vec![number]);
    batch
}

proptest! {
    #[test]
    fn a_crash_keeps_a_prefix_with_everything_synced(
        synced in proptest::collection::vec(any::<bool>(), 1..40), seed: u64,
    ) {
        let crashed = |seed| {
            let media = SimKvMedia::new();
            let store = media.open();
            for (number, synced) in (0_u8..).zip(&synced) {
                let durability = if *synced { Durability::Synced } else { Durability::Buffered };
                store.write(numbered(number), durability).unwrap();
            }
            media.crash(seed);
            assert!(store.get(b"last").is_err(), "a store of a former life is dead");
            media
        };
        let media = crashed(seed);
        prop_assert_eq!(media.content(), crashed(seed).content(), "the same seed loses the same");
        let store = media.open();
        let kept = store.get(b"last").unwrap().map_or(0, |last| last[0] + 1);
        let acked = synced.iter().rposition(|synced| *synced).map_or(0, |at| at + 1);
        prop_assert!(usize::from(kept) >= acked);
        let rows = store.scan(&[], b"l", 100).unwrap();
        prop_assert_eq!(rows, (0..kept).map(|number| (vec![number], vec![number])).collect::<Vec<_>>());
    }
}

#[test]
fn crashes_lose_different_parts() {
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let media = SimKvMedia::new();
        let store = media.open();
        for number in 0..4 {
            store.write(numbered(number), Durability::Buffered).unwrap();
        }
        media.crash(seed);
        kept.insert(media.content().len());
    }
    assert_eq!(kept.len(), 5, "nothing, and one to four batches: {kept:?}");
}

#[test]
fn an_injected_failure_kills_the_store_until_it_is_opened_again() {
    for (fault, rows) in [(Fault::Before, 0), (Fault::After, 2)] {
        let media = SimKvMedia::new();
        let store = media.open();
        media.fail_at(media.operations(), fault);
        assert!(store.write(numbered(1), Durability::Buffered).is_err());
        assert!(store.get(b"last").is_err());
        assert!(store.flush().is_err());
        assert_eq!(media.open().scan(&[], &[0xff], 9).unwrap().len(), rows);
    }
}

#[test]
fn a_checkpoint_replaces_the_content_of_another_store_even_after_an_interruption() {
    let (from, to) = (SimKvMedia::new(), SimKvMedia::new());
    let source = from.open();
    for number in 0..20 {
        source.write(numbered(number), Durability::Buffered).unwrap();
    }
    let checkpoint = source.checkpoint().unwrap();
    source.write(numbered(99), Durability::Synced).unwrap();
    to.open().write(numbered(77), Durability::Synced).unwrap();

    let file = &checkpoint.files()[0];
    let half = usize::try_from(file.len_bytes / 2).unwrap();
    let target = to.open();
    let mut install = target.begin_install("one").unwrap();
    install.write(&file.name, 0, &checkpoint.read(&file.name, 0, half).unwrap()).unwrap();
    assert!(install.write(&file.name, 0, b"again").is_err());
    to.crash(7);
    assert!(install.received(&file.name).is_err());

    let target = to.open();
    assert_eq!(target.get(&[77]).unwrap(), Some(vec![77]), "the old content until the install is finished");
    let mut install = target.begin_install("one").unwrap();
    loop {
        let at = install.received(&file.name).unwrap();
        let piece = checkpoint.read(&file.name, at, 64).unwrap();
        if piece.is_empty() {
            break;
        }
        install.write(&file.name, at, &piece).unwrap();
    }
    install.finish(checkpoint.files()).unwrap();
    assert_eq!(target.get(&[77]).unwrap(), None);
    assert_eq!(target.get(b"last").unwrap(), Some(vec![19]));
    assert_eq!(to.durable(), to.content());

    let mut wrong = target.begin_install("two").unwrap();
    wrong.write(&file.name, 0, b"damaged").unwrap();
    assert!(wrong.finish(checkpoint.files()).is_err());
    assert_eq!(target.begin_install("two").unwrap().received(&file.name).unwrap(), 0, "the bad file was dropped");
}
