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
    Room { dir: "node/healing", name: "healing", may_use: &["core", "ports", "volume", "consensus", "coordinator"] },
    Room {
        dir: "node/service",
        name: "service",
        may_use: &["core", "ports", "volume", "consensus", "coordinator", "healing"],
    },
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
            "healing",
            "service",
        ],
    },
    Room {
        dir: "client",
        name: "client",
        may_use: &["core", "ports", "security", "runtime", "coordinator", "rpc", "proto"],
    },
    Room { dir: "chaos/disk", name: "simdisk", may_use: &["core", "ports"] },
    Room { dir: "chaos/judge", name: "judge", may_use: &[] },
    Room { dir: "chaos/kv", name: "simkv", may_use: &["core", "ports"] },
    Room {
        dir: "chaos",
        name: "chaos",
        may_use: &["core", "ports", "volume", "consensus", "coordinator", "service", "judge", "simdisk", "simkv"],
    },
    Room {
        dir: "tests",
        name: "tests",
        may_use: &[
            "core",
            "ports",
            "security",
            "runtime",
            "coordinator",
            "rpc",
            "proto",
            "volume",
            "client",
            "harness",
        ],
    },
    Room {
        dir: "chaos/live",
        name: "chaos-live",
        may_use: &["core", "ports", "security", "runtime", "coordinator", "rpc", "client", "harness", "tests", "judge"],
    },
    Room { dir: "tests/harness", name: "harness", may_use: &[] },
    Room { dir: "xtask", name: "xtask", may_use: &["harness"] },
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
const PURE: &[&str] = &["core", "ports", "coordinator", "healing", "service", "volume", "consensus"];
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
/// Words that may not appear in the code of layer 1: what would touch the machine or wait.
const PURE_CORE: &str = "core";
const CORE_WORDS: &[&str] = &["std::fs", "std::net", "std::env", "async fn", "async move", ".await", "tokio"];
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
            faults.extend(words(room.dir, IMPURE_WORDS, "makes runs unrepeatable; use the Env port")?);
        }
        if room.name == PURE_CORE {
            faults.extend(words(room.dir, CORE_WORDS, "is not for the pure core")?);
        }
    }
    let workspace = fs::read_to_string(tools::root().join("Cargo.toml"))?;
    for dir in members(&workspace).iter().filter(|dir| !ROOMS.iter().any(|room| room.dir == **dir)) {
        faults.push(format!("Cargo.toml: crate {dir} is in no layer; add it to xtask/src/layers.rs"));
    }
    for line in workspace.lines().filter(|line| line.starts_with("pacsvault-")) {
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

/// Folders of the workspace's crates.
fn members(workspace: &str) -> Vec<&str> {
    let list = workspace.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    list.map_or("", |(list, _)| list).split('"').skip(1).step_by(2).collect()
}

/// Names under `[dependencies]` and `[target.….dependencies]`, also when one has a table of its own. Tests may use what they
/// need: `[dev-dependencies]` are not read.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim().trim_matches(['[', ']']);
            let table =
                section.strip_prefix("dependencies.").or_else(|| Some(section.rsplit_once(".dependencies.")?.1));
            found.extend(table);
        } else if (section == "dependencies" || section.starts_with("target.") && section.ends_with(".dependencies"))
            && let Some(name) =
                line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty() && !name.starts_with('#'))
        {
            found.push(name);
        }
    }
    found
}

/// Places where code outside tests uses one of these words.
fn words(dir: &str, words: &[&str], why: &str) -> anyhow::Result<Vec<String>> {
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
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{shown}:{}: {word} {why}", number + 1));
            }
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_all_kinds_but_those_of_tests_are_read() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\n# b = 1\nc = { path = \"c\" }\n\
                        [dev-dependencies]\nd = \"1\"\n[target.'cfg(unix)'.dependencies]\ne = \"1\"\n\
                        [dependencies.f]\nversion = \"1\"\n[target.x.dependencies.g]\nversion = \"1\"\n\
                        [target.x.dev-dependencies]\nh = \"1\"\n";
        assert_eq!(dependencies(manifest), ["a", "c", "e", "f", "g"]);
        assert_eq!(members("members = [\n \"a\", \"b/c\",\n]\nx = [\"y\"]"), ["a", "b/c"]);
    }

    #[test]
    fn this_checkout_keeps_the_layers() {
        run().expect("every arrow points down");
    }
}
