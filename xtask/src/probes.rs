//! Every `sometimes!("recovery: …")` and every planted bug in the code, against the lists in `node/core/src/probe.rs`.
//!
//! **Invariants.** Nothing is compiled or run. Whether a tag is met by any seed, the simulator tells.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, bail};

use crate::tools;

const LISTS: &str = "node/core/src/probe.rs";

type Places = BTreeMap<String, Vec<String>>;

/// Fails when a tag does not stand in exactly one place, or a bug in none; or when either is not listed.
pub fn run() -> anyhow::Result<()> {
    let lists = fs::read_to_string(tools::root().join(LISTS)).with_context(|| format!("no {LISTS}"))?;
    let (tags, bugs) = (listed(&lists, "TAGS"), listed(&lists, "BUGS"));
    let (mut marked, mut planted) = (Places::new(), Places::new());
    for path in tools::files(&tools::root(), "rs")? {
        let shown = path.strip_prefix(tools::root()).unwrap_or(&path).display().to_string();
        if shown.starts_with("xtask/") || shown.contains("tests") || shown == LISTS {
            continue;
        }
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let place = format!("{shown}:{}", number + 1);
            named(line, "sometimes!(\"").for_each(|tag| marked.entry(tag).or_default().push(place.clone()));
            named(line, "planted(\"").for_each(|bug| planted.entry(bug).or_default().push(place.clone()));
        }
    }
    let mut faults = Vec::new();
    for tag in &tags {
        match marked.remove(tag).unwrap_or_default().as_slice() {
            [_] => {}
            [] => faults.push(format!("`{tag}` stands nowhere")),
            places => faults.push(format!("`{tag}` stands in {} places: {}", places.len(), places.join(" "))),
        }
    }
    faults.extend(marked.iter().map(|(tag, places)| format!("`{tag}` is not listed: {}", places.join(" "))));
    for bug in &bugs {
        if planted.remove(bug).is_none() {
            faults.push(format!("planted bug {bug} stands nowhere"));
        }
    }
    faults.extend(planted.iter().map(|(bug, places)| format!("bug {bug} is not listed: {}", places.join(" "))));
    if !faults.is_empty() {
        bail!("probes (see {LISTS}):\n  {}", faults.join("\n  "));
    }
    println!("probes: {} recovery branches marked, each in one place; {} bugs to be planted", tags.len(), bugs.len());
    Ok(())
}

/// The texts of a list.
fn listed(source: &str, list: &str) -> Vec<String> {
    let begin = format!("pub const {list}: &[&str] = &[");
    let body = source.split_once(&begin).and_then(|(_, rest)| rest.split_once("];")).map_or("", |(body, _)| body);
    body.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Texts that follow `opening` on a line of code, up to the next quote.
fn named<'a>(line: &'a str, opening: &'a str) -> impl Iterator<Item = String> + 'a {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split(opening).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_marks_are_read() {
        let source = "pub const TAGS: &[&str] = &[\n    \"a b\",\n    \"c\",\n];\npub const BUGS: &[&str] = &[\"d\"];";
        assert_eq!(
            (listed(source, "TAGS"), listed(source, "BUGS")),
            (vec!["a b".into(), "c".into()], vec!["d".into()])
        );
        assert_eq!(named("    sometimes!(\"x y\");", "sometimes!(\"").collect::<Vec<_>>(), ["x y"]);
        assert_eq!(named("    // sometimes!(\"x y\");", "sometimes!(\"").count(), 0);
    }

    #[test]
    fn this_checkout_marks_what_it_lists() {
        run().expect("each tag in one place");
    }
}
