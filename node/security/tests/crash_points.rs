//! Processes that die while they publish keys: a file under its name is whole, a certificate has its key, and repeating works.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use pacsvault_core::ids::WallMillis;
use pacsvault_ports::crash::{CROSSED, dies_at, tags_in};
use pacsvault_security::{Authority, Error};

const DIR: &str = "PACSVAULT_PKI_TEST_DIR";
const NOW: WallMillis = WallMillis(1_800_000_000_000);

/// Not a test of its own: what the dying processes run.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) {
        Authority::create(&dir, NOW).expect("created");
        println!("told of success");
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("listed");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

/// What the crash left keeps the promises at the head of `pki.rs`.
fn inspect(dir: &Path, at: &str) {
    let found = names(dir);
    for name in found.iter().filter(|name| name.contains("key")) {
        let mode = fs::metadata(dir.join(name)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{at}: {name}");
    }
    let (key, certificate) = (found.contains("ca.key"), found.contains("ca.pem"));
    assert!(key || !certificate, "{at}: a certificate without its key");
    if key {
        let text = fs::read_to_string(dir.join("ca.key")).expect("readable");
        assert!(text.trim_end().ends_with("-----END PRIVATE KEY-----"), "{at}: the key is whole");
        assert!(matches!(Authority::create(dir, NOW), Err(Error::Exists { .. })), "{at}: it was overwritten");
        assert_eq!(fs::read_to_string(dir.join("ca.key")).expect("readable"), text);
    }
    if key && certificate {
        Authority::open(dir).expect("both are whole and belong together");
        return;
    }
    // As the operator is told to: move the lone key away and repeat.
    if key {
        fs::rename(dir.join("ca.key"), dir.join("moved")).expect("moved");
    }
    let made = Authority::create(dir, NOW).expect("repeating works");
    assert_eq!(Authority::open(dir).expect("it opens").cluster(), made.cluster());
    assert!(!names(dir).iter().any(|name| name.ends_with(".part")), "{at}: {:?}", names(dir));
}

#[test]
fn a_crash_at_every_point_leaves_whole_files_and_no_certificate_without_its_key() {
    let tags = tags_in(include_str!("../src/pki.rs"));
    let mut crossed = BTreeSet::new();
    for tag in &tags {
        for passing in 1.. {
            let dir = tempfile::tempdir().expect("a directory");
            let dir = dir.path().join("pki");
            let mut command = Command::new(std::env::current_exe().expect("a test binary"));
            command.args(["child", "--exact", "--nocapture"]).env(DIR, &dir);
            let at = format!("{tag}#{passing}");
            let Some(told) = dies_at(&mut command, &at) else { break };
            assert!(!told.contains("told of success"), "{at}");
            inspect(&dir, &at);
            crossed.insert(*tag);
        }
    }
    for tag in &crossed {
        println!("{CROSSED}{tag}");
    }
    assert_eq!(crossed, tags);
}
