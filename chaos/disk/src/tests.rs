//! The forgetful disk keeps what was synced, and may lose, tear or reorder everything else.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(Options::default(), seed)
}

fn read(disk: &SimDisk, name: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.open(name).unwrap().read_at(offset, &mut bytes).unwrap();
    bytes
}

fn durable_file(disk: &SimDisk, name: &str, len: u64) -> Arc<dyn DiskFile> {
    let file = disk.create(name, len).unwrap();
    file.sync_data().unwrap();
    disk.sync_names().unwrap();
    file
}

#[test]
fn synced_bytes_and_names_survive_every_crash() {
    for seed in 0..200 {
        let disk = disk(seed);
        let file = durable_file(&disk, "a", 1 << 20);
        file.write_at(10, &[b"one", b"two"]).unwrap();
        file.sync_data().unwrap();
        file.write_at(100_000, &[&[7; 9000]]).unwrap();
        let after = disk.crash(seed);
        assert_eq!(read(&after, "a", 10, 6), b"onetwo");
        assert!(file.write_at(0, &[b"x"]).is_err(), "a crashed disk answers nothing");
    }
}

#[test]
fn unsynced_writes_are_kept_lost_and_torn() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..400 {
        let disk = disk(seed);
        let file = durable_file(&disk, "a", 1 << 16);
        file.write_at(0, &[&[1; 4 * SECTOR_BYTES]]).unwrap();
        let bytes = read(&disk.crash(seed), "a", 0, 4 * SECTOR_BYTES);
        match bytes.iter().filter(|&&byte| byte == 1).count() {
            0 => lost += 1,
            count if count == bytes.len() => kept += 1,
            count => {
                assert_eq!(count % SECTOR_BYTES, 0, "sectors are whole");
                torn += 1;
            }
        }
    }
    assert!(kept > 50 && lost > 50 && torn > 50, "{kept} kept, {lost} lost, {torn} torn");
}

#[test]
fn unsynced_names_are_kept_or_lost() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..100 {
        let disk = disk(seed);
        durable_file(&disk, "a", 0);
        disk.rename("a", "b").unwrap();
        match disk.crash(seed).names().unwrap().join(",").as_str() {
            "a" => lost += 1,
            "b" => kept += 1,
            other => panic!("{other}"),
        }
    }
    assert!(kept > 20 && lost > 20);
}

#[test]
fn a_failed_sync_is_not_repaired_by_a_later_one() {
    let lost = (0..100).filter(|&seed| {
        let disk = disk(seed);
        let file = durable_file(&disk, "a", 4096);
        file.write_at(0, &[&[1; 4096]]).unwrap();
        disk.fail(OpKind::Sync, 1, io::ErrorKind::Other);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(read(&disk, "a", 0, 1), [1], "the page still looks fine");
        read(&disk.crash(seed), "a", 0, 1) == [0]
    });
    assert!(lost.count() > 20);
}

#[test]
fn power_fails_during_the_chosen_call_and_the_same_seed_gives_the_same_disk() {
    let run = |at: u64| {
        let disk = disk(3);
        disk.crash_at(at);
        let done = (|| -> io::Result<()> {
            let file = disk.create("a", 8192)?;
            file.write_at(0, &[&[9; 8192]])?;
            file.sync_data()?;
            disk.sync_names()?;
            disk.rename("a", "b")?;
            disk.sync_names()
        })();
        assert_eq!(done.is_err(), at <= 6);
        assert_eq!(disk.ops(), at.min(6));
        let after = disk.crash(at);
        let names = after.names().unwrap();
        let bytes = names.first().map(|name| {
            let len = usize::try_from(after.open(name).unwrap().len().unwrap()).unwrap();
            read(&after, name, 0, len)
        });
        (names, bytes)
    };
    for at in 1..=7 {
        assert_eq!(run(at), run(at));
    }
    assert_eq!(run(7), (vec!["b".to_owned()], Some(vec![9; 8192])));
}

#[test]
fn a_restarted_process_sees_unsynced_bytes_that_a_crash_may_still_take() {
    let lost = (0..100).filter(|&seed| {
        let disk = disk(seed);
        let file = durable_file(&disk, "a", 4096);
        file.write_at(0, &[&[1; 4096]]).unwrap();
        let again = disk.restart();
        assert!(file.sync_data().is_err(), "the dead process cannot sync");
        assert_eq!(read(&again, "a", 0, 1), [1]);
        read(&again.crash(seed), "a", 0, 1) == [0]
    });
    assert!(lost.count() > 20);
}

#[test]
fn large_files_of_zeros_cost_nothing() {
    let disk = disk(1);
    let file = disk.create("a", 1 << 33).unwrap();
    for step in 0..64_u64 {
        file.write_at(step << 20, &[&[0; 1 << 20]]).unwrap();
    }
    assert!(disk.resident_bytes() < 64 << 20, "zeros stay zeros");
    assert_eq!(disk.create("b", 1 << 40).err().unwrap().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn rot_and_bad_sectors_are_seen_by_readers() {
    let disk = disk(1);
    let file = durable_file(&disk, "a", 8192);
    assert!(disk.flip("a", 5000, 3));
    assert_eq!(read(&disk, "a", 5000, 1), [8]);
    disk.fail_reads_at("a", 5000);
    assert!(file.read_at(4096, &mut [0; 8]).is_err());
    assert!(file.read_at(0, &mut [0; 8]).is_ok());
}

#[test]
fn unreadable_sectors_outlive_crashes_until_they_are_written() {
    let disk = disk(1);
    let file = durable_file(&disk, "a", 8192);
    file.write_at(0, &[&[5; 8192]]).unwrap();
    file.sync_data().unwrap();
    disk.fail_reads_at("a", 5000);
    let again = disk.crash(1).restart();
    let file = again.open("a").unwrap();
    assert!(file.read_at(4096, &mut [0; 8]).is_err());
    file.write_at(4096, &[&[6; 4096]]).unwrap();
    assert_eq!(read(&again, "a", 4096, 2), [6, 6]);
}

#[test]
fn a_misdirected_write_lands_on_whole_sectors_elsewhere_in_its_file() {
    for seed in 0..100 {
        let disk = disk(seed);
        let file = durable_file(&disk, "a", 10 * SECTOR_BYTES as u64);
        disk.lie_about_write(2, WriteLie::Misdirected);
        file.write_at(0, &[&[1; 10]]).unwrap();
        file.write_at(5000, &[&[2; 6000]]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(disk.lies(), 1);
        let bytes = read(&disk.crash(seed), "a", 0, 10 * SECTOR_BYTES);
        let at = bytes.iter().position(|&byte| byte == 2).unwrap();
        assert!(at != 5000 && at % SECTOR_BYTES == 5000 % SECTOR_BYTES, "landed at {at}");
        assert!(bytes[at..at + 6000].iter().all(|&byte| byte == 2), "all of it, durable");
    }
}

#[test]
fn a_write_that_fits_nowhere_else_is_not_misdirected_and_the_next_one_is() {
    let disk = disk(1);
    let (small, large) = (durable_file(&disk, "a", 4096), durable_file(&disk, "b", 1 << 16));
    disk.lie_about_write(1, WriteLie::Misdirected);
    small.write_at(0, &[&[1; 4096]]).unwrap();
    assert_eq!((disk.lies(), read(&disk, "a", 0, 1)), (0, vec![1]));
    large.write_at(0, &[&[2; 4096]]).unwrap();
    assert_eq!((disk.lies(), read(&disk, "b", 0, 1)), (1, vec![0]));
}

#[test]
fn a_lost_write_is_seen_only_as_long_as_a_cache_lives() {
    for (lie, seen) in [(WriteLie::Lost, 1), (WriteLie::OnlyCached, 2)] {
        let disk = disk(1);
        let file = durable_file(&disk, "a", 8192);
        file.write_at(0, &[&[1; 100]]).unwrap();
        disk.lie_about_write(1, lie);
        file.write_at(10, &[&[2; 10]]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(read(&disk, "a", 10, 1), [seen], "{lie:?}");
        assert_eq!(disk.owes_cached(), lie == WriteLie::OnlyCached);
        assert_eq!(read(&disk.survivors(1), "a", 10, 1), [1], "{lie:?}: the medium never got it");
        let restarted = disk.restart();
        assert_eq!((read(&restarted, "a", 10, 1), restarted.owes_cached()), (vec![1], false));
    }
}

#[test]
fn a_stale_region_reads_as_before_its_last_sync_for_a_while_or_for_ever() {
    for lasts in [Stale::ForAWhile, Stale::ForEver] {
        let disk = disk(1);
        let file = durable_file(&disk, "a", 8192);
        assert!(!disk.read_stale_at("a", 0, lasts), "it never was different");
        for byte in [1, 2] {
            file.write_at(0, &[&[byte; 100]]).unwrap();
            file.sync_data().unwrap();
        }
        assert!(disk.read_stale_at("a", 50, lasts));
        assert_eq!(read(&disk, "a", 0, 2), [1, 1]);
        disk.end_stale_reads();
        let kept = if lasts == Stale::ForEver { 1 } else { 2 };
        assert_eq!(read(&disk, "a", 0, 1), [kept], "{lasts:?}");
        assert_eq!(read(&disk.crash(1), "a", 0, 1), [kept], "{lasts:?}");
    }
}

#[test]
fn a_misread_sector_reads_as_another_until_that_ends() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    let struck: Struck = Arc::new(move |strike| {
        assert_eq!(strike, Strike::Misread);
        count.fetch_add(1, Ordering::Relaxed);
    });
    let disk = SimDisk::new(Options { struck: Some(struck), ..Options::default() }, 1);
    let file = disk.create("a", 3 * SECTOR_BYTES as u64).expect("room");
    file.write_at(0, &[&[1; SECTOR_BYTES], &[2; SECTOR_BYTES]]).expect("sound");
    let second = || {
        let mut byte = [0];
        file.read_at(SECTOR_BYTES as u64 + 7, &mut byte).expect("it is there");
        byte[0]
    };
    assert!(!disk.misread_at("a", 0, 100) && !disk.misread_at("b", 0, 4096), "it stays where it is");
    assert!(disk.misread_at("a", SECTOR_BYTES as u64, 0));
    assert_eq!((second(), told.load(Ordering::Relaxed)), (1, 1));
    file.write_at(SECTOR_BYTES as u64, &[&[3; SECTOR_BYTES]]).expect("sound");
    assert_eq!(second(), 1, "the medium is sound, its readers are not");
    disk.end_stale_reads();
    assert_eq!((second(), told.load(Ordering::Relaxed)), (3, 2));
}
