//! What a page must be, whatever is in a record.

use std::fs;

use super::{fixture, index, page, read, write, write_index};
use crate::record::{CAME_TO_ITS_END, Check, Counts, FaultRecord, Run, Sample};

/// Elements in order of opening; panics on one that is closed wrongly or never.
fn elements(page: &str) -> Vec<String> {
    let body = page.strip_prefix("<!DOCTYPE html>\n").expect("a page");
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let mut rest = body;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at + 1..];
        let end = tag.find('>').expect("a tag ends");
        let (inside, after) = (&tag[..end], &tag[end + 1..]);
        rest = after;
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed out of order");
            continue;
        }
        let name: String = inside.chars().take_while(|letter| letter.is_ascii_alphanumeric()).collect();
        assert!(!name.is_empty(), "a bare < before {:?}", tag.chars().take(30).collect::<String>());
        assert!(inside.matches('"').count().is_multiple_of(2), "quotes of <{inside}>");
        all.push(name.clone());
        if name == "script" || name == "style" {
            // Raw text: only its own end counts.
            let close = format!("</{name}>");
            rest = &rest[rest.find(&close).expect("it ends") + close.len()..];
        } else if !inside.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    all
}

fn numbers_are_finite(page: &str) {
    for wrong in ["NaN", "inf\"", "inf "] {
        assert!(!page.contains(wrong), "{wrong}");
    }
}

#[test]
fn a_page_is_whole_and_loads_nothing() {
    let text = page::render(&fixture::run(300));
    let found = elements(&text);
    for name in ["svg", "table", "dl", "details", "pre", "figure"] {
        assert!(found.iter().any(|one| one == name), "{name}");
    }
    numbers_are_finite(&text);
    for outside in ["src=", "href=", "url(http", "@import", "http://", "https://"] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert_eq!(text.matches("<svg").count(), text.matches("role=\"img\"").count());
    for (id, _) in text.match_indices(" id=\"").map(|(at, _)| text[at + 5..].split_once('"').expect("quoted")) {
        assert_eq!(text.matches(&format!(" id=\"{id}\"")).count(), 1, "{id} twice");
    }
    assert!(text.contains("pacsvault-chaos run site-outage --seed 20261 --minutes 5"));
    assert!(text.len() < 600_000, "{} bytes", text.len());
}

#[test]
fn the_verdict_stands_first_and_is_not_better_than_the_checks() {
    let mut run = fixture::run(60);
    let words = page::verdict_words(&run);
    assert!(words.starts_with("Passed: every check held through 11 faults"), "{words}");
    assert!(words.contains("write was 3.0 s") && words.contains("read 609 ms"), "{words}");
    let text = page::render(&run);
    assert!(text.find("class=\"verdict").expect("there") < text.find("<svg").expect("there"));
    run.checks[1] = Check { name: "per-key order".into(), passed: false, detail: "k1 read v2 after v3".into() };
    assert!(
        page::verdict_words(&run).starts_with("Failed: 1 of 6 checks did not hold through 11 faults: per-key order")
    );
    let text = page::render(&run);
    assert!(text.contains("verdict failed") && !text.contains("verdict passed"));
    let ended = Check { name: CAME_TO_ITS_END.into(), passed: false, detail: "interrupted by SIGTERM".into() };
    run.checks.push(ended);
    run.interrupted = Some("interrupted by SIGTERM".into());
    let words = page::verdict_words(&run);
    assert!(words.starts_with("Failed: the run was interrupted by SIGTERM after 11 faults"), "{words}");
    assert!(words.ends_with("besides, 1 check did not hold: per-key order."), "{words}");
    run.interrupted = None;
    run.checks.clear();
    assert!(page::verdict_words(&run).contains("proves nothing"));
    run.checks.push(Check { passed: true, ..Check::default() });
    run.passed = false;
    assert!(page::verdict_words(&run).starts_with("Failed"));
}

#[test]
fn nothing_in_a_record_becomes_markup() {
    let evil = "</script><script>alert('x')</script>\"<b>&amp;";
    let mut run = fixture::run(30);
    let Run { scenario, summary, machine, profile, network, program, .. } = &mut run;
    for text in [scenario, summary, machine, profile, network, &mut program.version, &mut program.sha256] {
        *text = evil.to_owned();
    }
    run.faults[0].kind = evil.into();
    run.faults[0].what = evil.into();
    run.faults[0].targets = vec![evil.into()];
    run.outages[0].kind = evil.into();
    run.nodes[0].site = evil.into();
    run.nodes[0].name = evil.into();
    run.leaders[0].node = Some(evil.into());
    run.wan_ms[0].from = evil.into();
    run.checks[0].name = evil.into();
    run.checks[0].detail = evil.into();
    run.refusals[0].code = evil.into();
    run.refusals[0].first = evil.into();
    let text = page::render(&run);
    assert_eq!(elements(&text).iter().filter(|name| *name == "script").count(), 2);
    assert!(!text.contains("<b>") && !text.contains("alert('x')</"), "it stays text");
}

#[test]
fn an_empty_record_makes_a_page_that_says_so() {
    let text = page::render(&Run::default());
    elements(&text);
    numbers_are_finite(&text);
    for words in ["nothing was measured", "Nothing was done", "No check was made", "proves nothing", "not told"] {
        assert!(text.contains(words), "{words}");
    }
}

#[test]
fn single_and_missing_figures_are_drawn_without_invention() {
    let one = Sample {
        at_ms: 1000,
        counts: Counts { writes_acked: 1, ..Counts::default() },
        write_p50_ms: Some(10.0),
        write_p99_ms: Some(0.0),
        ..Sample::default()
    };
    let run = Run { samples: vec![one], ..Run::default() };
    let text = page::render(&run);
    numbers_are_finite(&text);
    // A point without neighbours is a dot, not a line to somewhere.
    assert!(text.contains("h0.01"));
    let mut run = fixture::run(60);
    for sample in &mut run.samples[20..30] {
        (sample.write_p50_ms, sample.write_p99_ms, sample.bytes_by_distance) = (None, None, None);
    }
    let text = page::render(&run);
    let path = text.split("<path class=\"line write p99\" d=\"").nth(1).and_then(|rest| rest.split('"').next());
    assert!(path.expect("drawn").matches('M').count() >= 2, "the line is broken where nothing was measured");
}

#[test]
fn an_hour_is_drawn_small_and_says_what_a_step_is() {
    let text = page::render(&fixture::run(3600));
    assert!(text.contains("Each step gathers about 12.0 s"), "said");
    assert!(text.contains("class=\"spread write\""), "the band from lowest to highest");
    assert!(text.contains("One row of 5"));
    assert!(text.len() < 600_000, "{} bytes", text.len());
    let few = page::render(&fixture::run(100));
    assert!(!few.contains("Each step gathers about"));
}

#[test]
fn what_could_not_be_read_is_drawn_only_when_there_was_any() {
    let mut run = fixture::run(100);
    assert!(!page::render(&run).contains("line unreadable\""));
    run.samples[40].bytes_unreadable = Some(7 << 20);
    let text = page::render(&run);
    assert!(text.contains("class=\"line unreadable\"") && text.contains("cannot be read"));
}

#[test]
fn what_follows_the_load_is_shaded_and_named() {
    let mut run = fixture::run(100);
    let shaded = |run: &Run| page::render(run).contains("sessions ended: last reads and proof");
    assert!(shaded(&run));
    run.load_ended_ms = None;
    assert!(!shaded(&run), "old records do not tell");
}

#[test]
fn clients_of_one_site_and_deletions_have_figures_of_their_own() {
    let mut run = fixture::run(100);
    run.unchecked = vec!["no node panicked".into()];
    let text = page::render(&run);
    for words in
        ["longest without writes in one site: ", "acknowledged deletions", "hasty: ", "Not checked", "PV-TOO-WEAK"]
    {
        assert!(text.contains(words), "{words}");
    }
    // Whose clients were cut off is not the worst of anything.
    let (away, fault) = (&run.outages[0], &run.faults[0]);
    assert_eq!((fault.targets[0].as_str(), away.sites[1].cut_off), ("b", true));
    assert!(!text.contains(&format!("(b: {}", super::numbers::lasted(away.sites[1].without_writes_ms))));
}

#[test]
fn hundreds_of_faults_stay_a_page() {
    let mut run = fixture::run(600);
    run.faults = (1..=300)
        .map(|number| FaultRecord {
            number,
            kind: format!("kind-{}", number % 9),
            what: "something".into(),
            targets: vec!["a1".into()],
            began_ms: number * 1900,
            ended_ms: Some(number * 1900 + number * 31 % 4000),
            ..FaultRecord::default()
        })
        .collect();
    let text = page::render(&run);
    elements(&text);
    assert_eq!(text.matches("class=\"fault\"").count(), 600, "all of them, in both drawings");
    assert!(text.len() < 1_200_000, "{} bytes", text.len());
}

#[test]
fn a_run_is_written_and_read_back_and_indexed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut run = fixture::run(30);
    let page = write(&run, &dir.path().join("good run")).expect("written");
    assert_eq!(read(page.parent().expect("a directory")).expect("read"), run);
    run.checks[0].passed = false;
    write(&run, &dir.path().join("bad")).expect("written");
    fs::create_dir(dir.path().join("torn")).expect("made");
    fs::write(dir.path().join("torn/run.json"), "{\"scenario\": 1").expect("written");
    let out = dir.path().join("index.html");
    let made = write_index(&[dir.path().to_owned()], &out).expect("indexed");
    assert_eq!(made, index::Index { runs: 2, failed: 1, unreadable: 1 });
    let text = fs::read_to_string(out).expect("readable");
    elements(&text);
    assert!(text.contains("href=\"good%20run/report.html\"") && text.contains("href=\"bad/report.html\""));
    assert!(text.contains("Failed: 2 of 3 runs did not pass") && text.contains("torn/run.json"));
    assert!(text.find("bad/report.html").expect("there") < text.find("good%20run").expect("there"), "failed first");
    let none = write_index(&[dir.path().join("nowhere")], &dir.path().join("x.html"));
    assert!(none.is_err());
}

#[test]
fn a_run_tells_the_command_that_does_it_again_and_what_was_not_possible() {
    let mut run = fixture::run(300);
    run.left_out = vec!["cut the network".to_owned()];
    let text = page::render(&run);
    assert!(text.contains("<pre>pacsvault-chaos run site-outage --seed 20261 --minutes 5</pre>"));
    assert!(text.contains("cut the network"));
}
