//! Every `CRASH(tag)` in the code, and whether a crash was made to happen there: tests named `…crash…` print
//! `CRASH-CROSSED tag` for each place where they let the power fail or killed the process, and this compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::bail;

use crate::tools;

/// Says in a test's output that a crash happened at a tag.
const CROSSED: &str = "CRASH-CROSSED ";

/// Runs the crash tests and lists all tags; fails when one was not crossed or stands in two places.
pub fn run() -> anyhow::Result<()> {
    let tags = tags()?;
    let crossed = crossed()?;
    let mut faults = Vec::new();
    for (tag, places) in &tags {
        let word = if crossed.contains(tag) { "crossed" } else { "UNTESTED" };
        println!("{tag:24} {word:10} {}", places.join(" "));
        if !crossed.contains(tag) {
            faults.push(format!("{tag} is crossed by no test"));
        }
        if places.len() > 1 {
            faults.push(twice_text(tag, places));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("crash points:\n  {}", faults.join("\n  ")) }
}

/// Fails when a tag stands in two places: a crash at one of them would pass for the other. Runs nothing.
pub fn unique() -> anyhow::Result<()> {
    let tags = tags()?;
    let twice = tags.iter().filter(|(_, places)| places.len() > 1);
    let faults: Vec<String> = twice.map(|(tag, places)| twice_text(tag, places)).collect();
    if !faults.is_empty() {
        bail!("crash tags:\n  {}", faults.join("\n  "));
    }
    println!("crash tags: {}, each in one place", tags.len());
    Ok(())
}

fn twice_text(tag: &str, places: &[String]) -> String {
    format!("{tag} stands in {} places: {}", places.len(), places.join(" "))
}

/// Tags with the places where they stand.
fn tags() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in tools::files(&tools::root(), "rs")? {
        let shown = path.strip_prefix(tools::root()).unwrap_or(&path).display().to_string();
        if shown.starts_with("xtask/") || shown.contains("tests") {
            continue;
        }
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let tag = line.split_once("// CRASH(").and_then(|(_, rest)| rest.split_once(')')).map(|(tag, _)| tag);
            if let Some(tag) = tag {
                tags.entry(tag.to_owned()).or_default().push(format!("{shown}:{}", number + 1));
            }
        }
    }
    Ok(tags)
}

/// Tags that the crash tests crossed.
fn crossed() -> anyhow::Result<BTreeSet<String>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace is selected, so that dependencies have the features they have in all other runs.
    command.args(["test", "--release", "--workspace", "--lib", "--bins", "--tests", "crash", "--", "--nocapture"]);
    command.env("PACSVAULT_BIN_DIR", tools::bin_dir()).current_dir(tools::root());
    let text = tools::output(&mut command)?;
    let lines = text.lines().filter_map(|line| line.split_once(CROSSED));
    Ok(lines.filter_map(|(_, tag)| tag.split_whitespace().next()).map(str::to_owned).collect())
}
