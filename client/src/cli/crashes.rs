//! Processes that die while they write files for people: the old file or the new one is there, and the next run ends well.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use pacsvault_ports::crash::{CROSSED, dies_at, tags_in};
use tokio::sync::mpsc;

use super::{
    get::{keep, write_pieces},
    put::{part_of, write_whole},
};

const DIR: &str = "PACSVAULT_CLIENT_TEST_DIR";
const VERSIONS: [&[u8]; 3] = [b"the first content", b"the second content, longer", b"the third"];

/// As `put --receipts` and `receipt fetch` do.
fn receipt(path: &Path, bytes: &'static [u8]) {
    write_whole(path, bytes).expect("written");
}

/// As `get` does with what arrives.
fn download(path: &Path, bytes: &'static [u8]) {
    let part = part_of(path);
    let (sender, receiver) = mpsc::channel(bytes.len());
    for piece in bytes.chunks(5) {
        sender.try_send(Bytes::from_static(piece)).expect("there is room");
    }
    drop(sender);
    write_pieces(&part, receiver).expect("written");
    keep(&part, path).expect("kept");
}

/// Gives a file new content.
type Writer = fn(&Path, &'static [u8]);

const WRITERS: [(&str, Writer); 2] = [("receipt", receipt), ("download", download)];

/// Not a test of its own: what the dying processes run.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    for (name, write) in WRITERS {
        for version in VERSIONS {
            write(&dir.join(name), version);
            println!("ack {name}");
        }
    }
}

#[test]
fn a_crash_at_every_point_leaves_the_old_file_or_the_new_one() {
    let tags: BTreeSet<&str> = [include_str!("put.rs"), include_str!("get.rs")].into_iter().flat_map(tags_in).collect();
    let mut crossed = BTreeSet::new();
    for tag in &tags {
        for passing in 1.. {
            let dir = tempfile::tempdir().expect("a directory");
            let mut command = Command::new(std::env::current_exe().expect("a test binary"));
            command.args(["cli::crashes::child", "--exact", "--nocapture"]).env(DIR, dir.path());
            let at = format!("{tag}#{passing}");
            let Some(told) = dies_at(&mut command, &at) else { break };
            for (name, write) in WRITERS {
                let path = dir.path().join(name);
                let acked = told.lines().filter(|line| line.ends_with(&format!("ack {name}"))).count();
                // All points but one are before the file gets its name: what was acknowledged last is there.
                let written = if *tag == "client.5" && name == "receipt" { passing } else { acked };
                let found = fs::read(&path).ok();
                assert_eq!(found.as_deref(), written.checked_sub(1).map(|last| VERSIONS[last]), "{at}: {name}");
                write(&path, VERSIONS[2]);
                assert_eq!(fs::read(&path).expect("there"), VERSIONS[2], "{at}: {name}");
                assert!(!part_of(&path).exists(), "{at}: the part is gone");
            }
            crossed.insert(*tag);
        }
    }
    for tag in &crossed {
        println!("{CROSSED}{tag}");
    }
    assert_eq!(crossed, tags);
}
