//! The page of one run.
//!
//! **Invariants.** The verdict stands first, in one sentence. The page is well-formed XML but for its doctype, so that a test can
//! prove that nothing is left open.

use serde_json::{Value, json};

use super::{
    holds, lanes,
    numbers::{bytes, clock, count, counted, date, escape, lasted},
    plot::{self, NARROW, WIDE},
    series::Bin,
    tables,
};
use crate::record::{CAME_TO_ITS_END, Outage, Run, SiteOutage};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// The whole page.
pub(super) fn render(run: &Run) -> String {
    let (wide, wide_bins) = plot::timeline(run, WIDE);
    let (narrow, narrow_bins) = plot::timeline(run, NARROW);
    let title = format!("{} {}", run.scenario, if holds(run) { "passed" } else { "failed" });
    let body = format!(
        "<header><h1>{}</h1><p class=\"soft\">{}</p><p>{}</p></header>{}{}\
         <section><h2>Timeline</h2><figure>{wide}{narrow}<div class=\"tip\" hidden=\"hidden\" aria-live=\"polite\"></div>\
         <figcaption>{}</figcaption></figure></section>{}{}{}{}{}{}",
        escape(&run.scenario),
        escape(&about(run)),
        escape(&run.summary),
        verdict(run),
        figures(run),
        caption(&wide_bins, run.samples.len()),
        tables::checks(run),
        tables::faults(run),
        tables::by_kind(run),
        tables::refusals(run),
        setting(run),
        tables::samples(&wide_bins),
    );
    document(
        &title,
        &body,
        &format!("{}<script>\n//<![CDATA[\n{SCRIPT}//]]>\n</script>", data(run, &wide_bins, &narrow_bins)),
    )
}

/// The frame of every page of ours.
pub(super) fn document(title: &str, body: &str, scripts: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>{}</title><style>\n{STYLE}</style></head>\n\
         <body>{body}{scripts}</body></html>\n",
        escape(title)
    )
}

fn about(run: &Run) -> String {
    format!("Seed {}, {}, {}", run.seed, counted(run.nodes.len() as u64, "node", "nodes"), date(run.began_wall_ms))
}

/// The verdict in one sentence.
pub(super) fn verdict_words(run: &Run) -> String {
    let faults = counted(run.faults.len() as u64, "fault", "faults");
    let failed = run.checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str());
    if let Some(signal) = &run.interrupted {
        let others: Vec<&str> = failed.filter(|name| *name != CAME_TO_ITS_END).collect();
        let found = match others.as_slice() {
            [] => "what could still be checked holds".to_owned(),
            some => {
                format!("besides, {} did not hold: {}", counted(some.len() as u64, "check", "checks"), some.join("; "))
            }
        };
        return format!("Failed: the run was {signal} after {faults} and has not come to its end; {found}.");
    }
    let failed: Vec<&str> = failed.collect();
    if !failed.is_empty() {
        let checks = run.checks.len();
        return format!(
            "Failed: {} of {checks} checks did not hold through {faults}: {}.",
            failed.len(),
            failed.join("; ")
        );
    }
    if run.checks.is_empty() {
        return "Failed: no check was made, so this run proves nothing.".to_owned();
    }
    if !run.passed {
        return "Failed: the run did not come to its end, though every check that was made holds.".to_owned();
    }
    format!(
        "Passed: every check held through {faults}; the longest time without an acknowledged write was {}, without an answered \
         read {}.",
        lasted(run.totals.longest_without_writes_ms),
        lasted(run.totals.longest_without_reads_ms)
    )
}

fn verdict(run: &Run) -> String {
    let (class, mark) = if holds(run) { ("passed", "✓") } else { ("failed", "✗") };
    let words = escape(&verdict_words(run));
    format!(
        "<div class=\"verdict {class}\" role=\"status\"><span class=\"mark\" aria-hidden=\"true\">{mark}</span><p>{words}</p></div>"
    )
}

/// Key figures.
fn figures(run: &Run) -> String {
    let totals = &run.totals;
    let worst = |part: fn(&Outage) -> u64| {
        let fault = run.outages.iter().max_by_key(|outage| part(outage)).filter(|outage| part(outage) > 0);
        fault.map_or(String::new(), |outage| format!(", fault {}", outage.fault))
    };
    let of_site = |part: fn(&SiteOutage) -> u64| {
        let worst = |outage| Some((outage, tables::slowest(outage, part)?));
        let found = run.outages.iter().filter_map(worst).max_by_key(|(_, site)| part(site));
        found.map_or((String::from("–"), String::new()), |(outage, site)| {
            (lasted(part(site)), format!(": {}, fault {}", site.site, outage.fault))
        })
    };
    let (site_writes, site_reads) = (of_site(|it| it.without_writes_ms), of_site(|it| it.without_reads_ms));
    let failed = run.checks.iter().filter(|check| !check.passed).count() as u64;
    let tiles = [
        (count(totals.counts.writes_acked), "acknowledged writes".to_owned(), false),
        (count(totals.counts.reads_ok), "answered reads".to_owned(), false),
        (count(run.faults.len() as u64), "faults".to_owned(), false),
        (
            lasted(totals.longest_without_writes_ms),
            format!("longest without writes{}", worst(|it| it.without_writes_ms)),
            false,
        ),
        (
            lasted(totals.longest_without_reads_ms),
            format!("longest without reads{}", worst(|it| it.without_reads_ms)),
            false,
        ),
        (site_writes.0, format!("longest without writes in one site{}", site_writes.1), false),
        (site_reads.0, format!("longest without reads in one site{}", site_reads.1), false),
        (
            count(totals.counts.deletes),
            format!("acknowledged deletions, {} not", count(totals.counts.deletes_failed)),
            false,
        ),
        (bytes(totals.counts.bytes_written), format!("written, {} read", bytes(totals.counts.bytes_read)), false),
        (count(failed), format!("of {} failed", counted(run.checks.len() as u64, "check", "checks")), failed > 0),
    ];
    let tiles: String = (tiles.iter())
        .map(|(figure, words, bad)| {
            let class = if *bad { " class=\"bad\"" } else { "" };
            format!("<div{class}><dt>{}</dt><dd>{}</dd></div>", escape(words), escape(figure))
        })
        .collect();
    format!("<dl class=\"figures\">{tiles}</dl>")
}

fn caption(bins: &[Bin], samples: usize) -> String {
    let hint = "<span class=\"hint\"> Point at a moment, or use the arrow keys, for its figures.</span>";
    let each = bins.first().map_or(0, |bin| bin.to_ms - bin.from_ms);
    let gathered = if bins.len() < samples {
        format!(
            " Each step gathers about {}: rates are means in a band from the lowest to the highest second, 99th percentiles are the \
             highest, bytes are as they were closest to loss, nodes the fewest.",
            lasted(each)
        )
    } else {
        String::new()
    };
    format!(
        "Shaded: while a fault lasted; grey at the end: no session any more, the last reads and the proof.{gathered}{hint}"
    )
}

/// What it ran on, and how to run it again.
fn setting(run: &Run) -> String {
    let program = match run.program.sha256.as_str() {
        "" => run.program.version.clone(),
        sha256 => format!("{}, SHA-256 {sha256}", run.program.version),
    };
    let facts = [
        ("Network", run.network.clone()),
        ("Profile", run.profile.clone()),
        ("pacsvault-node", program),
        ("Timings", run.timings.clone()),
        ("Machine", run.machine.clone()),
        (
            "Faults for",
            format!("{} min, {} with all checks", super::numbers::trimmed(run.minutes), lasted(run.took_ms)),
        ),
    ];
    let left_out = (!run.left_out.is_empty()).then(|| ("Not possible", run.left_out.join(", ")));
    let unchecked = (!run.unchecked.is_empty()).then(|| ("Not checked", run.unchecked.join("; ")));
    let facts: String = facts
        .into_iter()
        .chain(left_out)
        .chain(unchecked)
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escape(&value)))
        .collect();
    format!(
        "<section><h2>Where it ran</h2><div class=\"cols\"><div><dl class=\"facts\">{facts}</dl></div><div>{}{}</div></div>\
         <h2>Run it again</h2><pre>{}</pre><p class=\"soft\">The same faults in the same order; only timing is left to chance.</p>\
         </section>",
        tables::nodes(run),
        tables::wan(run),
        escape(&run.command)
    )
}

/// What the script shows.
fn data(run: &Run, wide: &[Bin], narrow: &[Bin]) -> String {
    let column = |name: &str, unit: &str, quiet: bool| json!({"name": name, "unit": unit, "quiet": quiet});
    let columns = json!([
        column("writes", "rate", false),
        column("lowest writes", "rate", false),
        column("reads", "rate", false),
        column("writes refused", "count", true),
        column("writes unknown", "count", true),
        column("reads failed", "count", true),
        column("write p50", "latency", false),
        column("write p99", "latency", false),
        column("read p50", "latency", false),
        column("read p99", "latency", false),
        column("no further loss", "bytes", true),
        column("1 more loss", "bytes", true),
        column("2 more losses", "bytes", true),
        column("3 or more", "bytes", true),
        column("below contract", "bytes", true),
        column("cannot be read", "bytes", true),
        column("nodes answer", "count", false),
    ]);
    let end = lanes::end_ms(run);
    let faults: Vec<Value> = (run.faults.iter())
        .map(|fault| json!([format!("{} {}", fault.number, fault.what), fault.began_ms, fault.ended_ms.unwrap_or(end)]))
        .collect();
    let leaders: Vec<Value> = run.leaders.iter().map(|change| json!([change.at_ms, change.node])).collect();
    let value = json!({
        "columns": columns, "wide": rows(wide), "narrow": rows(narrow), "faults": faults, "leaders": leaders,
    });
    // Nothing in it can end the element that holds it.
    let text = value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    format!("<script type=\"application/json\" id=\"data\">{text}</script>")
}

fn rows(bins: &[Bin]) -> Vec<Value> {
    let short = |value: f64| (value * 100.0).round() / 100.0;
    (bins.iter())
        .map(|bin| {
            let lowest = ((bin.writes.highest - bin.writes.lowest).abs() > 0.05).then(|| short(bin.writes.lowest));
            let mut row = vec![json!(bin.from_ms), json!(bin.to_ms), json!(short(bin.writes.mean)), json!(lowest)];
            row.push(json!(short(bin.reads.mean)));
            row.extend(bin.errors.map(|errors| json!(errors)));
            row.extend(bin.latency.map(|latency| json!(latency.map(short))));
            row.extend((0..4).map(|at| json!(bin.by_distance.map(|bytes| bytes[at]))));
            row.extend([json!(bin.below_contract), json!(bin.unreadable), json!(bin.nodes_answering)]);
            Value::Array(row)
        })
        .collect()
}

/// When a fault was, for a table.
pub(super) fn span_words(began_ms: u64, ended_ms: Option<u64>) -> (String, String) {
    let lasting = |end: u64| lasted(end.saturating_sub(began_ms));
    (clock(began_ms), ended_ms.map_or("to the end".to_owned(), lasting))
}
