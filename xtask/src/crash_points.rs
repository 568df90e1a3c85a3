//! Every `CRASH(room.n)` tag in the code, and whether a test names it: the tests that enumerate crashes list the tags they
//! crossed, and fail when one of theirs was not.

use std::{collections::BTreeMap, fs};

use anyhow::bail;

use crate::tools;

/// Lists tags; fails when one is untested or used twice.
pub fn run() -> anyhow::Result<()> {
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut tests = String::new();
    for path in tools::files(&tools::root(), "rs")? {
        let shown = path.strip_prefix(tools::root()).unwrap_or(&path).display().to_string();
        if shown.starts_with("xtask/") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for (number, line) in text.lines().enumerate() {
            let tag = line.split_once("CRASH(").and_then(|(_, rest)| rest.split_once(')')).map(|(tag, _)| tag);
            if let Some(tag) = tag {
                tags.entry(tag.to_owned()).or_default().push(format!("{shown}:{}", number + 1));
            }
        }
        let inline = text.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests);
        tests.push_str(if shown.contains("tests") { &text } else { inline });
    }
    let mut faults = Vec::new();
    for (tag, places) in &tags {
        let crossed = tests.contains(&format!("\"{tag}\""));
        println!("{tag:24} {:10} {}", if crossed { "crossed" } else { "UNTESTED" }, places.join(" "));
        if !crossed {
            faults.push(format!("{tag} is crossed by no test"));
        }
        if places.len() > 1 {
            faults.push(format!("{tag} is used {} times: {}", places.len(), places.join(" ")));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("crash points:\n  {}", faults.join("\n  ")) }
}
