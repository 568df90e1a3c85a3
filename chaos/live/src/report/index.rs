//! The index over several runs.
//!
//! **Invariants.** A directory that holds no readable record is named in the index, never left out in silence. Failed runs stand
//! first.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{
    PAGE_NAME, RECORD_NAME, holds,
    numbers::{bytes, count, counted, date, escape, lasted},
    page, publish, read,
};
use crate::record::Run;

/// What became of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// Runs in it.
    pub runs: usize,
    /// Of those, not passed.
    pub failed: usize,
    /// Directories whose record could not be read.
    pub unreadable: usize,
}

/// Writes an index over the runs in `dirs` to `out`, and their pages anew. Each of `dirs` holds a run, or directories that do.
///
/// # Errors
/// There is no run in them, or a file cannot be written.
pub fn write_index(dirs: &[PathBuf], out: &Path) -> anyhow::Result<Index> {
    let mut found = BTreeSet::new();
    for dir in dirs {
        found.append(&mut runs_in(dir)?);
    }
    if found.is_empty() {
        let names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        bail!("there is no {RECORD_NAME} in {}, nor one directory below", names.join(", "));
    }
    let (mut runs, mut unreadable) = (Vec::new(), Vec::new());
    for dir in found {
        match read(&dir) {
            Ok(run) => {
                publish(&dir.join(PAGE_NAME), &page::render(&run))?;
                runs.push((dir, run));
            }
            Err(error) => unreadable.push(format!("{error:#}")),
        }
    }
    runs.sort_by(|(_, one), (_, other)| {
        let key = |run: &Run| (holds(run), run.scenario.clone(), run.seed, run.began_wall_ms);
        key(one).cmp(&key(other))
    });
    let base = out.parent().unwrap_or(Path::new(""));
    let page = render(&runs, &unreadable, base);
    publish(out, &page)?;
    let failed = runs.iter().filter(|(_, run)| !holds(run)).count();
    Ok(Index { runs: runs.len(), failed, unreadable: unreadable.len() })
}

/// `dir` itself, or its children, whichever hold a record.
fn runs_in(dir: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    if dir.join(RECORD_NAME).exists() {
        return Ok(BTreeSet::from([dir.to_owned()]));
    }
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.join(RECORD_NAME).exists() {
            found.insert(path);
        }
    }
    Ok(found)
}

fn render(runs: &[(PathBuf, Run)], unreadable: &[String], base: &Path) -> String {
    let failed = runs.iter().filter(|(_, run)| !holds(run)).count() + unreadable.len();
    let all = runs.iter().map(|(_, run)| run);
    let faults: u64 = all.clone().map(|run| run.faults.len() as u64).sum();
    let writes: u64 = all.clone().map(|run| run.totals.counts.writes_acked).sum();
    let longest = |part: fn(&Run) -> u64| lasted(all.clone().map(part).max().unwrap_or(0));
    let scenarios: BTreeSet<&str> = all.clone().map(|run| run.scenario.as_str()).collect();
    let (class, mark, words) = if failed == 0 {
        let runs = counted(runs.len() as u64, "run", "runs");
        ("passed", "✓", format!("Passed: {runs} with {}, every check held.", counted(faults, "fault", "faults")))
    } else {
        let of = runs.len() + unreadable.len();
        ("failed", "✗", format!("Failed: {failed} of {} did not pass.", counted(of as u64, "run", "runs")))
    };
    let tiles = [
        (count(runs.len() as u64), "runs".to_owned()),
        (count(scenarios.len() as u64), "scenarios".to_owned()),
        (count(faults), "faults".to_owned()),
        (count(writes), "acknowledged writes".to_owned()),
        (longest(|run| run.totals.longest_without_writes_ms), "longest without writes".to_owned()),
        (longest(|run| run.totals.longest_without_reads_ms), "longest without reads".to_owned()),
        (bytes(all.clone().map(|run| run.totals.counts.bytes_written).sum()), "written".to_owned()),
    ];
    let tiles: String =
        tiles.iter().map(|(figure, words)| format!("<div><dt>{words}</dt><dd>{figure}</dd></div>")).collect();
    let lost: String =
        unreadable.iter().map(|why| format!("<p class=\"verdict failed\">{}</p>", escape(why))).collect();
    let rows: String = runs.iter().map(|(dir, run)| row(dir, run, base)).collect();
    let body = format!(
        "<header><h1>Runs under fire</h1></header><div class=\"verdict {class}\" role=\"status\"><span class=\"mark\" \
         aria-hidden=\"true\">{mark}</span><p>{}</p></div>{lost}<dl class=\"figures\">{tiles}</dl><table class=\"cards\"><thead><tr>\
         <th scope=\"col\">Scenario</th><th scope=\"col\">Verdict</th><th class=\"n\" scope=\"col\">Seed</th>\
         <th class=\"n\" scope=\"col\">Faults</th><th class=\"n\" scope=\"col\">Writes</th><th class=\"n\" scope=\"col\">Without writes</th>\
         <th class=\"n\" scope=\"col\">Without reads</th><th scope=\"col\">Network</th><th scope=\"col\">Began</th></tr></thead>\
         <tbody>{rows}</tbody></table>",
        escape(&words)
    );
    page::document("Runs under fire", &body, "")
}

fn row(dir: &Path, run: &Run, base: &Path) -> String {
    let page = dir.join(PAGE_NAME);
    // Beside or below the index where possible, so that both can be copied elsewhere together.
    let link = page.strip_prefix(base).unwrap_or(&page).display().to_string();
    let (class, words) = if holds(run) { ("passed", "✓ passed") } else { ("failed", "✗ failed") };
    let cell = |class: &str, label: &str, words: &str| {
        format!("<td class=\"{class}\" data-label=\"{label}\">{}</td>", escape(words))
    };
    format!(
        "<tr><td class=\"lead-cell\" data-label=\"Scenario\"><a href=\"{}\">{}</a></td><td data-label=\"Verdict\">\
         <span class=\"pill {class}\">{words}</span></td>{}{}{}{}{}{}{}</tr>",
        escape(&href(&link)),
        escape(&run.scenario),
        cell("n", "Seed", &run.seed.to_string()),
        cell("n", "Faults", &count(run.faults.len() as u64)),
        cell("n", "Writes", &count(run.totals.counts.writes_acked)),
        cell("n", "Without writes", &lasted(run.totals.longest_without_writes_ms)),
        cell("n", "Without reads", &lasted(run.totals.longest_without_reads_ms)),
        cell("what", "Network", &run.network),
        cell("what", "Began", &date(run.began_wall_ms)),
    )
}

/// A path as a link: what a link would read otherwise is encoded.
fn href(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
