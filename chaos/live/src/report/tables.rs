//! The tables of a report: verdicts, faults with what they cost, nodes, latencies, and the figures of the plot.
//!
//! **Invariants.** Every cell names its column, so that a narrow screen can show a row as a card. Worst figures are marked by weight.

use std::collections::BTreeMap;

use super::{
    numbers::{bytes, clock, count, escape, lasted, latency, trimmed},
    page::span_words,
    series::Bin,
};
use crate::record::{FaultRecord, Outage, Refusal, Run, SiteOutage};

/// Most rows of the table behind the plot.
const ROWS_MAX: usize = 60;

/// A cell; `class` may be empty.
fn cell(class: &str, label: &str, words: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<td{class} data-label=\"{}\">{}</td>", escape(label), escape(words))
}

/// Heads: names, and whether they are figures.
fn head(columns: &[(&str, bool)]) -> String {
    let cells: String = (columns.iter())
        .map(|(name, figure)| format!("<th scope=\"col\"{}>{name}</th>", if *figure { " class=\"n\"" } else { "" }))
        .collect();
    format!("<thead><tr>{cells}</tr></thead>")
}

/// The verdict, check by check; those that failed first.
pub(super) fn checks(run: &Run) -> String {
    let mut all: Vec<_> = run.checks.iter().collect();
    all.sort_by_key(|check| check.passed);
    let rows: String = (all.iter())
        .map(|check| {
            let (class, words) = if check.passed { ("passed", "✓ holds") } else { ("failed", "✗ fails") };
            format!(
                "<tr><td class=\"lead-cell\" data-label=\"What must hold\">{}</td><td data-label=\"Verdict\">\
                 <span class=\"pill {class}\">{words}</span></td>{}</tr>",
                escape(&check.name),
                cell("what", "Found", &check.detail)
            )
        })
        .collect();
    let rows = if rows.is_empty() { "<tr><td colspan=\"3\">No check was made.</td></tr>".to_owned() } else { rows };
    let head = head(&[("What must hold", false), ("Verdict", false), ("Found", false)]);
    format!("<section><h2>Checks</h2><table class=\"cards\">{head}<tbody>{rows}</tbody></table></section>")
}

/// What was done, and what was seen of it.
fn seen(fault: &FaultRecord) -> String {
    if fault.effect.is_empty() { fault.what.clone() } else { format!("{}; seen: {}", fault.what, fault.effect) }
}

/// The site whose clients waited longest, of those that were promised anything.
pub(super) fn slowest(outage: &Outage, part: fn(&SiteOutage) -> u64) -> Option<&SiteOutage> {
    outage.sites.iter().filter(|site| !site.cut_off).max_by_key(|site| part(site))
}

/// Every fault and what it cost.
pub(super) fn faults(run: &Run) -> String {
    let outages: BTreeMap<u64, &Outage> = run.outages.iter().map(|outage| (outage.fault, outage)).collect();
    let most = |part: fn(&Outage) -> u64| run.outages.iter().map(part).max().unwrap_or(0);
    let (worst_writes, worst_reads) = (most(|it| it.without_writes_ms), most(|it| it.without_reads_ms));
    let gap = |label: &str, fault: u64, part: fn(&Outage) -> u64, of_site: fn(&SiteOutage) -> u64, worst: u64| {
        let Some(outage) = outages.get(&fault) else { return cell("n", label, "–") };
        let value = part(outage);
        let class = if value == worst && value > 0 { "n worst" } else { "n" };
        let site = slowest(outage, of_site).map(|site| format!(" ({}: {})", site.site, lasted(of_site(site))));
        cell(class, label, &(lasted(value) + &site.unwrap_or_default()))
    };
    let rows: String = (run.faults.iter())
        .map(|fault| {
            let (began, took) = span_words(fault.began_ms, fault.ended_ms);
            let (number, title) = (fault.number, format!("{} · {}", fault.number, fault.kind));
            format!(
                "<tr>{}{}{}{}{}{}{}</tr>",
                cell("lead-cell", "Fault", &title),
                cell("what", "What", &seen(fault)),
                cell("what", "Whom", &fault.targets.join(", ")),
                cell("n", "At", &began),
                cell("n", "For", &took),
                gap("Without writes", number, |it| it.without_writes_ms, |it| it.without_writes_ms, worst_writes),
                gap("Without reads", number, |it| it.without_reads_ms, |it| it.without_reads_ms, worst_reads),
            )
        })
        .collect();
    let rows = if rows.is_empty() { "<tr><td colspan=\"7\">Nothing was done.</td></tr>".to_owned() } else { rows };
    let head = head(&[
        ("Fault", false),
        ("What", false),
        ("Whom", false),
        ("At", true),
        ("For", true),
        ("Without writes", true),
        ("Without reads", true),
    ]);
    format!(
        "<section><h2>Faults and what they cost</h2><p class=\"soft\">Without writes: the longest time between two acknowledged writes \
         while the fault lasted and shortly after, of any session; in brackets the site whose clients waited longest, of those that no \
         fault kept from a majority. Without reads: the same for answered reads.</p>\
         <table class=\"cards\">{head}<tbody>{rows}</tbody></table></section>"
    )
}

/// Why something was refused; nothing when nothing was.
pub(super) fn refusals(run: &Run) -> String {
    if run.refusals.is_empty() {
        return String::new();
    }
    let row = |one: &Refusal| {
        let (code, times) = (cell("lead-cell", "Code", &one.code), cell("n", "Times", &count(one.count)));
        format!("<tr>{code}{times}{}{}</tr>", cell("what", "First", &one.first), cell("what", "Last", &one.last))
    };
    let rows: String = run.refusals.iter().map(row).collect();
    let head = head(&[("Code", false), ("Times", true), ("First", false), ("Last", false)]);
    format!("<section><h2>Refusals</h2><table class=\"cards\">{head}<tbody>{rows}</tbody></table></section>")
}

/// Outages by kind of fault; nothing when no outage was measured.
pub(super) fn by_kind(run: &Run) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Outage>> = BTreeMap::new();
    for outage in &run.outages {
        kinds.entry(&outage.kind).or_default().push(outage);
    }
    if kinds.is_empty() {
        return String::new();
    }
    let summary = |outages: &[&Outage], part: fn(&Outage) -> u64| {
        let mut values: Vec<u64> = outages.iter().map(|outage| part(outage)).collect();
        values.sort_unstable();
        // Of an even number the upper middle, which is the less flattering one.
        let median = values.get(values.len() / 2).copied().unwrap_or(0);
        (lasted(median), lasted(values.last().copied().unwrap_or(0)))
    };
    let rows: String = (kinds.iter())
        .map(|(kind, outages)| {
            let (writes, worst_writes) = summary(outages, |it| it.without_writes_ms);
            let (reads, worst_reads) = summary(outages, |it| it.without_reads_ms);
            format!(
                "<tr>{}{}{}{}{}{}</tr>",
                cell("lead-cell", "Kind", kind),
                cell("n", "Faults", &count(outages.len() as u64)),
                cell("n", "Without writes, median", &writes),
                cell("n", "worst", &worst_writes),
                cell("n", "Without reads, median", &reads),
                cell("n", "worst", &worst_reads)
            )
        })
        .collect();
    let head = head(&[
        ("Kind", false),
        ("Faults", true),
        ("Without writes, median", true),
        ("worst", true),
        ("Without reads, median", true),
        ("worst", true),
    ]);
    format!("<section><h2>Outages by kind</h2><table class=\"cards\">{head}<tbody>{rows}</tbody></table></section>")
}

/// Nodes by site.
pub(super) fn nodes(run: &Run) -> String {
    let mut sites: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &run.nodes {
        sites.entry(&node.site).or_default().push(&node.name);
    }
    let rows: String = (sites.iter())
        .map(|(site, nodes)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(site), escape(&nodes.join(", ")))
        })
        .collect();
    format!(
        "<table class=\"fit\"><thead><tr><th scope=\"col\">Site</th><th scope=\"col\">Nodes</th></tr></thead><tbody>{rows}</tbody></table>"
    )
}

/// Latency between sites as a matrix; nothing when none is emulated.
pub(super) fn wan(run: &Run) -> String {
    let links: BTreeMap<(&str, &str), f64> =
        run.wan_ms.iter().map(|link| ((link.from.as_str(), link.to.as_str()), link.latency_ms)).collect();
    let mut sites: Vec<&str> = links.keys().flat_map(|(from, to)| [*from, *to]).collect();
    sites.sort_unstable();
    sites.dedup();
    if sites.is_empty() {
        return String::new();
    }
    let heads: String =
        sites.iter().map(|site| format!("<th class=\"n\" scope=\"col\">{}</th>", escape(site))).collect();
    let rows: String = (sites.iter())
        .map(|from| {
            let cells: String = (sites.iter())
                .map(|to| links.get(&(*from, *to)).map_or("–".to_owned(), |latency| trimmed(*latency)))
                .map(|words| format!("<td class=\"n\">{words}</td>"))
                .collect();
            format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(from))
        })
        .collect();
    format!(
        "<div class=\"scroll\"><table class=\"fit\"><caption>Latency between sites, one way, in ms</caption><thead><tr><th scope=\"col\">\
         from \\ to</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

/// The figures of the plot, for those who cannot see it.
pub(super) fn samples(bins: &[Bin]) -> String {
    if bins.is_empty() {
        return String::new();
    }
    let every = bins.len().div_ceil(ROWS_MAX);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let rows: String = (bins.iter().step_by(every))
        .map(|bin| {
            let errors: u64 = bin.errors.iter().sum();
            let cells = [
                trimmed(bin.writes.mean),
                trimmed(bin.reads.mean),
                count(errors),
                or_dash(bin.latency[1].map(latency)),
                or_dash(bin.latency[3].map(latency)),
                or_dash(bin.by_distance.map(|bytes_by| bytes(bytes_by[0]))),
                or_dash(bin.below_contract.map(bytes)),
                or_dash(bin.nodes_answering.map(count)),
            ];
            let cells: String = cells.iter().map(|words| format!("<td class=\"n\">{words}</td>")).collect();
            format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", clock(bin.to_ms))
        })
        .collect();
    let head = head(&[
        ("At", false),
        ("Writes/s", true),
        ("Reads/s", true),
        ("Errors", true),
        ("Write p99", true),
        ("Read p99", true),
        ("At no further loss", true),
        ("Below contract", true),
        ("Nodes", true),
    ]);
    let skipped = if every > 1 { format!(" One row of {every}; all are in run.json.") } else { String::new() };
    format!(
        "<section><details><summary>The figures of the timeline as a table.{skipped}</summary><div class=\"scroll\"><table>{head}\
         <tbody>{rows}</tbody></table></div></details></section>"
    )
}
