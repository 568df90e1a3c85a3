//! What people read of a run: `run.json`, one page `report.html` that needs nothing else, and an index over many runs.
//!
//! **Invariants.**
//! - A page loads nothing from anywhere and is whole without its script: every figure of the plot is in a table too.
//! - Nothing of a record is markup: every text is escaped where it enters a page.
//! - A page shows what the record says and judges nothing by itself, but for this: a run whose record holds a failed check, or none
//!   at all, is never shown as passed.
//! - Files appear whole under their names, or not at all.
//!
//! Rooms: `page` (the report), `plot` (its timeline), `lanes` (bars of faults), `series` (samples made fewer), `tables`,
//! `index` (many runs), `numbers` (figures as words).

mod index;
mod lanes;
mod numbers;
mod page;
mod plot;
mod series;
mod tables;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

pub use index::write_index;

use crate::record::Run;

/// Name of the record of a run in its directory.
pub const RECORD_NAME: &str = "run.json";
/// Name of its page.
pub const PAGE_NAME: &str = "report.html";

/// Writes `run.json` and `report.html` into `dir`, which is made if absent; returns the path of the page.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn write(run: &Run, dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let record = serde_json::to_string_pretty(run).context("a run is plain data")?;
    publish(&dir.join(RECORD_NAME), &record)?;
    let page = dir.join(PAGE_NAME);
    publish(&page, &page::render(run))?;
    Ok(page)
}

/// Reads the record in `dir`.
///
/// # Errors
/// There is none, or it is not one.
pub fn read(dir: &Path) -> anyhow::Result<Run> {
    let path = dir.join(RECORD_NAME);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no record of a run", path.display()))
}

/// Replaces `path` by `text` in one step.
fn publish(path: &Path, text: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot name {}", path.display()))
}

/// Whether a run may be shown as passed.
fn holds(run: &Run) -> bool {
    run.passed && !run.checks.is_empty() && run.checks.iter().all(|check| check.passed)
}
