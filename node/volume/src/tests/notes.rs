//! Notes: what is saved is there, what is damaged is absent, and no note is in anybody's way.

use std::io::ErrorKind;

use pacsvault_simdisk::OpKind;

use super::*;
use crate::NOTE_BYTES_MAX;

#[test]
fn the_note_saved_last_is_loaded_also_after_a_crash() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    assert_eq!(store.load_note("scrub"), None);
    for len in [0, 1, 5000, NOTE_BYTES_MAX] {
        let note = blake3_like(7, len)[..len].to_vec();
        store.save_note("scrub", &note).unwrap();
        store.save_note("sweep-cursor", b"other").unwrap();
        assert_eq!(store.load_note("scrub"), Some(note.clone()));
        let (again, recovery) = open(&disk.survivors(len as u64), 2).unwrap();
        assert_eq!((again.load_note("scrub"), recovery.segments), (Some(note), 0));
        assert_eq!(again.load_note("sweep-cursor").unwrap(), b"other");
    }
    let names = disk.names().unwrap();
    assert_eq!(names, ["scrub.note", "sweep-cursor.note", "volume.id"]);
    // What a crash left of an unfinished one goes.
    disk.create("scrub.note.tmp", 10).unwrap();
    let (store, _) = open(&disk, 3).unwrap();
    put(&store, 1, 100).unwrap();
    assert!(!disk.names().unwrap().contains(&"scrub.note.tmp".to_owned()));
}

#[test]
fn a_note_with_any_bit_flipped_or_of_another_volume_is_absent() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    let note = blake3_like(1, 200)[..200].to_vec();
    store.save_note("scrub", &note).unwrap();
    for at in (0..236).filter(|at| !(10..12).contains(at)) {
        disk.flip("scrub.note", at, 4);
        assert_eq!(store.load_note("scrub"), None, "byte {at}");
        disk.flip("scrub.note", at, 4);
    }
    assert_eq!(store.load_note("scrub"), Some(note));
    let mut bytes = vec![0; 236];
    disk.open("scrub.note").unwrap().read_at(0, &mut bytes).unwrap();
    let other = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
    Store::format(&other, &Identity { volume: VolumeId([7; 16]), ..identity() }).unwrap();
    other.create("scrub.note", 236).unwrap().write_at(0, &[&bytes]).unwrap();
    assert_eq!(open(&other, 1).unwrap().0.load_note("scrub"), None);
    disk.fail_reads_at("scrub.note", 0);
    assert_eq!(store.load_note("scrub"), None, "unreadable");
    store.save_note("scrub", b"new").unwrap();
    assert_eq!(store.load_note("scrub").unwrap(), b"new", "and replaced");
}

#[test]
fn a_note_without_room_is_refused_and_a_failed_one_poisons() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    store.save_note("scrub", b"old").unwrap();
    disk.fail(OpKind::Create, 1, ErrorKind::StorageFull);
    assert!(matches!(store.save_note("scrub", b"new"), Err(Error::Full { .. })));
    put(&store, 1, 100).unwrap();
    disk.fail(OpKind::Sync, 1, ErrorKind::Other);
    assert!(matches!(store.save_note("scrub", b"new"), Err(Error::Write { .. })));
    assert!(matches!(store.save_note("scrub", b"new"), Err(Error::Poisoned { .. })));
    assert!(matches!(store.compact_step(1), Err(Error::Poisoned { .. })));
    assert_eq!(store.load_note("scrub").unwrap(), b"old");
    for seed in 0..20 {
        assert_eq!(open(&disk.survivors(seed), 2).unwrap().0.load_note("scrub").unwrap(), b"old");
    }
}

#[test]
#[should_panic(expected = "notes are named")]
fn a_note_cannot_be_named_like_another_file() {
    let (store, _) = open(&formatted(), 1).unwrap();
    let _ = store.save_note("../seg", b"");
}
