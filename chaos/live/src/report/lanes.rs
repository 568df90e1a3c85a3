//! Where the bars of faults stand: one lane per kind, and more where faults of one kind overlap.
//!
//! **Invariants.** No bar and no label covers another bar or label. A label that does not fit is made shorter, then left out; the
//! table and the title of the bar have it all the same. Order is that of first appearance.

use crate::record::{FaultRecord, Run};

/// Pixels between two things in a lane.
const GAP: f64 = 4.0;
/// Shortest bar that can be seen and pointed at.
const BAR_MIN: f64 = 4.0;

/// Maps moments to pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Pixel of the run's beginning.
    pub left: f64,
    /// Pixel of its end.
    pub right: f64,
    /// The end.
    pub end_ms: u64,
}

impl Span {
    /// The pixel of a moment.
    pub(super) fn at(&self, ms: u64) -> f64 {
        let part = ms.min(self.end_ms) as f64 / self.end_ms.max(1) as f64;
        self.left + (self.right - self.left) * part
    }
}

/// A lane.
#[derive(Debug, Default)]
pub(super) struct Lane<'a> {
    /// Kind of its faults; empty in further lanes of the same kind.
    pub name: &'a str,
    /// From left to right.
    pub bars: Vec<Bar<'a>>,
}

/// One fault.
#[derive(Debug)]
pub(super) struct Bar<'a> {
    /// Which.
    pub fault: &'a FaultRecord,
    /// Pixels.
    pub from: f64,
    /// Pixels.
    pub to: f64,
    /// What is written, beginning at `label_at`; may be empty.
    pub label: String,
    /// Pixels.
    pub label_at: f64,
}

/// When everything of a run is over: the end of the time axis.
pub(super) fn end_ms(run: &Run) -> u64 {
    let samples = run.samples.iter().map(|sample| sample.at_ms);
    let faults = run.faults.iter().map(|fault| fault.ended_ms.unwrap_or(fault.began_ms));
    let leaders = run.leaders.iter().map(|change| change.at_ms);
    samples.chain(faults).chain(leaders).max().unwrap_or(0).max(1000)
}

/// Lays out all faults. `letter`: pixels of one letter of a label.
pub(super) fn lanes<'a>(faults: &'a [FaultRecord], span: Span, letter: f64) -> Vec<Lane<'a>> {
    let mut kinds: Vec<&str> = Vec::new();
    for fault in faults {
        if !kinds.contains(&fault.kind.as_str()) {
            kinds.push(&fault.kind);
        }
    }
    let mut all = Vec::new();
    for kind in kinds {
        let mut own: Vec<Lane<'a>> = Vec::new();
        let mut of_kind: Vec<&FaultRecord> = faults.iter().filter(|fault| fault.kind == kind).collect();
        of_kind.sort_by_key(|fault| (fault.began_ms, fault.number));
        for fault in of_kind {
            let from = span.at(fault.began_ms);
            let to = span.at(fault.ended_ms.unwrap_or(span.end_ms).max(fault.began_ms)).max(from + BAR_MIN);
            let bar = Bar { fault, from, to, label: String::new(), label_at: 0.0 };
            match own.iter_mut().find(|lane| lane.bars.last().is_none_or(|last| last.to + 1.0 <= from)) {
                Some(lane) => lane.bars.push(bar),
                None => own.push(Lane { name: if own.is_empty() { kind } else { "" }, bars: vec![bar] }),
            }
        }
        for lane in &mut own {
            label(lane, span, letter);
        }
        all.append(&mut own);
    }
    all
}

/// Writes into or behind each bar what fits before the next one.
fn label(lane: &mut Lane<'_>, span: Span, letter: f64) {
    let next: Vec<f64> = lane.bars.iter().skip(1).map(|bar| bar.from).chain([span.right + GAP]).collect();
    for (bar, next) in lane.bars.iter_mut().zip(next) {
        let number = bar.fault.number.to_string();
        let long = format!("{number} {}", bar.fault.targets.join(", "));
        let width = |text: &str| text.chars().count() as f64 * letter;
        let fits = |text: &str, at: f64, until: f64| at + width(text) + GAP <= until;
        let (inside, behind) = (bar.from + GAP, bar.to + GAP);
        let places =
            [(&long, inside, bar.to), (&long, behind, next), (&number, inside, bar.to), (&number, behind, next)];
        if let Some((text, at, _)) = places.into_iter().find(|(text, at, until)| fits(text, *at, *until)) {
            (bar.label, bar.label_at) = (text.trim_end().to_owned(), at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { left: 100.0, right: 1100.0, end_ms: 100_000 };

    fn fault(number: u64, kind: &str, began_ms: u64, ended_ms: Option<u64>) -> FaultRecord {
        FaultRecord {
            number,
            kind: kind.into(),
            targets: vec!["site b".into()],
            began_ms,
            ended_ms,
            ..Default::default()
        }
    }

    #[test]
    fn overlapping_faults_of_a_kind_get_lanes_of_their_own() {
        let faults = [fault(1, "kill", 0, Some(50_000)), fault(2, "kill", 20_000, None), fault(3, "cut", 0, Some(1))];
        let lanes = lanes(&faults, SPAN, 6.0);
        let names: Vec<&str> = lanes.iter().map(|lane| lane.name).collect();
        assert_eq!(names, ["kill", "", "cut"]);
        assert!((lanes[1].bars[0].to - 1100.0).abs() < 1e-9, "what lasts goes on to the end");
        assert!(lanes[2].bars[0].to - lanes[2].bars[0].from >= BAR_MIN, "a moment can be seen");
    }

    #[test]
    fn however_many_faults_nothing_covers_anything() {
        let faults: Vec<FaultRecord> = (0..400)
            .map(|number| {
                fault(number, ["kill", "cut"][usize::from(number % 3 == 0)], number * 211 % 99_000, {
                    (number % 7 != 0).then_some(number * 211 % 99_000 + number * 37 % 3000)
                })
            })
            .collect();
        let lanes = lanes(&faults, SPAN, 6.0);
        assert_eq!(lanes.iter().map(|lane| lane.bars.len()).sum::<usize>(), faults.len());
        for lane in &lanes {
            let mut free_from = SPAN.left;
            for bar in &lane.bars {
                assert!(bar.from >= free_from, "bar {} covers what is before it", bar.fault.number);
                let label_to = bar.label_at + bar.label.chars().count() as f64 * 6.0;
                free_from = if bar.label.is_empty() { bar.to } else { bar.to.max(label_to) };
                assert!(free_from <= SPAN.right + BAR_MIN, "{free_from} is outside");
            }
        }
    }

    #[test]
    fn a_label_becomes_shorter_before_it_goes() {
        let faults = [
            fault(1, "kill", 0, Some(20_000)),
            fault(2, "kill", 30_000, Some(30_100)),
            fault(3, "kill", 33_000, Some(33_100)),
            fault(4, "kill", 33_800, Some(90_000)),
        ];
        let lanes = lanes(&faults, SPAN, 6.0);
        let labels: Vec<&str> = lanes[0].bars.iter().map(|bar| bar.label.as_str()).collect();
        assert_eq!(labels, ["1 site b", "2", "", "4 site b"]);
    }
}
