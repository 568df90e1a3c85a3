//! The layering rule: which room may depend on which, and which words may not appear in which.
//!
//! **Invariants.** A new arrow is a change of this table, made on purpose. Every crate of the workspace is in it.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, bail};

use crate::tools;

struct Room {
    /// Folder of the crate.
    dir: &'static str,
    /// Package name without `pacsvault-`.
    name: &'static str,
    /// Rooms it may use.
    may_use: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room { dir: "node/core", name: "core", may_use: &[] },
    Room { dir: "node/ports", name: "ports", may_use: &["core"] },
    Room { dir: "node/volume", name: "volume", may_use: &["core", "ports"] },
    Room { dir: "node/kv", name: "kv", may_use: &["core", "ports"] },
    Room { dir: "node/consensus", name: "consensus", may_use: &["core", "ports"] },
    Room { dir: "node/security", name: "security", may_use: &["core", "ports"] },
    Room { dir: "node/runtime", name: "runtime", may_use: &["core", "ports"] },
    Room { dir: "proto", name: "proto", may_use: &[] },
    Room { dir: "client/coordinator", name: "coordinator", may_use: &["core", "ports"] },
    Room { dir: "node/rpc", name: "rpc", may_use: &["core", "ports", "coordinator", "proto", "security"] },
    Room { dir: "node/service", name: "service", may_use: &["core", "ports", "volume", "consensus", "coordinator"] },
    Room {
        dir: "node",
        name: "node",
        may_use: &[
            "core",
            "ports",
            "volume",
            "kv",
            "consensus",
            "security",
            "runtime",
            "coordinator",
            "rpc",
            "service",
        ],
    },
    Room {
        dir: "client",
        name: "client",
        may_use: &["core", "ports", "security", "runtime", "coordinator", "rpc", "proto"],
    },
    Room { dir: "chaos/disk", name: "simdisk", may_use: &["core", "ports"] },
    Room { dir: "chaos/kv", name: "simkv", may_use: &["core", "ports"] },
    Room {
        dir: "chaos",
        name: "chaos",
        may_use: &["core", "ports", "volume", "consensus", "coordinator", "service", "simdisk", "simkv"],
    },
    Room {
        dir: "tests",
        name: "tests",
        may_use: &["core", "ports", "security", "runtime", "coordinator", "rpc", "proto", "client", "harness"],
    },
    Room { dir: "tests/harness", name: "harness", may_use: &[] },
];

/// Libraries that only the named rooms may depend on.
const OWNED: &[(&str, &[&str])] = &[
    ("rocksdb", &["kv"]),
    ("openraft", &["consensus", "chaos"]),
    ("tonic", &["rpc", "proto", "tests"]),
    ("dicom-object", &["client"]),
    ("rcgen", &["security", "tests"]),
];

/// Words that may not appear in the code (outside tests) of layers 0 to 2 and of what the simulator runs.
const PURE: &[&str] = &["core", "ports", "coordinator", "service", "volume", "consensus"];
const IMPURE_WORDS: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "tokio::spawn",
    "tokio::time",
    "tokio::net",
    "tokio::fs",
    "thread::spawn",
    "spawn_blocking",
    "rand::",
    "HashMap::new",
    "thread::sleep",
];
/// Files of those rooms that implement a port for production, and may.
const IMPURE_FILES: &[&str] = &["node/volume/src/file_disk.rs"];

/// Checks every crate.
pub fn run() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let known: BTreeSet<&str> = ROOMS.iter().map(|room| room.name).collect();
    for room in ROOMS {
        let manifest = tools::root().join(room.dir).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("no crate at {}", room.dir))?;
        for dependency in dependencies(&text) {
            match dependency.strip_prefix("pacsvault-") {
                Some(name) if !known.contains(name) => faults.push(format!("{}: unknown room {name}", room.dir)),
                Some(name) if !room.may_use.contains(&name) => {
                    faults.push(format!("{}: room {} may not use {name}", room.dir, room.name));
                }
                Some(_) => {}
                None => {
                    let owner = OWNED.iter().find(|(library, _)| *library == dependency);
                    if let Some((_, owners)) = owner.filter(|(_, owners)| !owners.contains(&room.name)) {
                        faults.push(format!("{}: {dependency} belongs to {} alone", room.dir, owners.join(", ")));
                    }
                }
            }
        }
        if PURE.contains(&room.name) {
            faults.extend(impure_words(room.dir)?);
        }
    }
    let members = fs::read_to_string(tools::root().join("Cargo.toml"))?;
    for line in members.lines().filter(|line| line.starts_with("pacsvault-")) {
        let name = line.trim_start_matches("pacsvault-").split([' ', '=']).next().unwrap_or_default();
        if !known.contains(name) {
            faults.push(format!("Cargo.toml: room {name} is in no layer; add it to xtask/src/layers.rs"));
        }
    }
    if faults.is_empty() {
        println!("layers: {} rooms, every arrow points down", ROOMS.len());
        return Ok(());
    }
    bail!("layers:\n  {}", faults.join("\n  "))
}

fn dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim();
        } else if section == "[dependencies]"
            && let Some(name) =
                line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty() && !name.starts_with('#'))
        {
            found.push(name);
        }
    }
    found
}

fn impure_words(dir: &str) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in tools::files(&tools::root().join(dir).join("src"), "rs")? {
        let shown = path.strip_prefix(tools::root()).unwrap_or(&path).display().to_string();
        if IMPURE_FILES.contains(&shown.as_str()) || shown.contains("tests") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            if let Some(word) = IMPURE_WORDS.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{shown}:{}: {word} makes runs unrepeatable; use the Env port", number + 1));
            }
        }
    }
    Ok(faults)
}
