//! What the moments of a run say: throughput and latency second by second, and how long each fault kept clients waiting.
//!
//! **Invariants.** Pure. Every moment counts in exactly one sample.

use pacsvault_judge::{Answer, Call, Operation};

use crate::{
    eyes::Look,
    record::{Counts, FaultRecord, HIDDEN, Outage, Sample, Totals},
};

/// Length of a sample.
const SAMPLE_MS: u64 = 1_000;

/// One operation that ended and says whether clients are served: a write, or a read of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// When it began.
    pub started_us: u64,
    /// When it ended.
    pub ended_us: u64,
    /// A put or a delete, not a read.
    pub write: bool,
    /// A delete.
    pub delete: bool,
    /// Acknowledged, or bytes were handed out and compared.
    pub good: bool,
    /// Refused, not unknown.
    pub refused: bool,
    /// Content bytes.
    pub bytes: u64,
}

impl Moment {
    /// Of an operation that ended with so many bytes stored, or read and compared. `None`: it moved nothing, so it is no
    /// evidence that clients are served; a read that found nothing or no byte, a delete that had nothing to delete.
    pub fn of(operation: &Operation, bytes: u64) -> Option<Self> {
        let good = match &operation.answer {
            Answer::Stored { .. } | Answer::Deleted { .. } => true,
            Answer::Found { .. } if bytes > 0 => true,
            Answer::Found { .. } | Answer::Missing => return None,
            Answer::Refused | Answer::Unknown => false,
        };
        Some(Self {
            started_us: operation.started,
            ended_us: operation.ended.unwrap_or(operation.started),
            write: !matches!(operation.call, Call::Get { .. }),
            delete: matches!(operation.call, Call::Delete { .. }),
            good,
            refused: operation.answer == Answer::Refused,
            bytes,
        })
    }
}

/// The value below which so many of a hundred lie; sorts.
pub fn percentile(values: &mut [u64], percent: usize) -> Option<u64> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    values.get((values.len() * percent / 100).min(last)).copied()
}

fn millis(micros: Option<u64>) -> Option<f64> {
    micros.map(|micros| micros as f64 / 1_000.0)
}

/// Second by second.
pub fn samples(moments: &[Moment], looks: &[Look], took_ms: u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    let (mut moments, mut looks) = (moments.to_vec(), looks.iter().peekable());
    moments.sort_unstable_by_key(|moment| moment.ended_us);
    let mut rest = moments.as_slice();
    let mut seen: Option<&Look> = None;
    let mut at_ms = 0;
    while at_ms < took_ms || !rest.is_empty() {
        at_ms += SAMPLE_MS;
        let count = rest.partition_point(|moment| moment.ended_us < at_ms * 1_000);
        let (now, later) = rest.split_at(count);
        rest = later;
        while let Some(look) = looks.next_if(|look| look.at_ms <= at_ms) {
            seen = Some(look);
        }
        samples.push(sample(at_ms, now, seen));
    }
    samples
}

fn sample(at_ms: u64, moments: &[Moment], look: Option<&Look>) -> Sample {
    let count = |of: &dyn Fn(&Moment) -> bool| moments.iter().filter(|moment| of(moment)).count() as u64;
    let bytes =
        |write: bool| -> u64 { moments.iter().filter(|one| one.good && one.write == write).map(|one| one.bytes).sum() };
    let took = |write: bool| -> Vec<u64> {
        let good = moments.iter().filter(|one| one.good && one.write == write);
        good.map(|one| one.ended_us - one.started_us).collect()
    };
    let (mut writes, mut reads) = (took(true), took(false));
    Sample {
        at_ms,
        counts: Counts {
            writes_acked: count(&|one| one.write && one.good),
            writes_refused: count(&|one| one.write && one.refused),
            writes_unknown: count(&|one| one.write && !one.good && !one.refused),
            reads_ok: count(&|one| !one.write && one.good),
            reads_failed: count(&|one| !one.write && !one.good),
            bytes_written: bytes(true),
            bytes_read: bytes(false),
        },
        write_p50_ms: millis(percentile(&mut writes, 50)),
        write_p99_ms: millis(percentile(&mut writes, 99)),
        read_p50_ms: millis(percentile(&mut reads, 50)),
        read_p99_ms: millis(percentile(&mut reads, 99)),
        bytes_by_distance: look.and_then(|look| look.by_distance),
        bytes_unreadable: look.and_then(|look| look.unreadable),
        bytes_below_contract: look.and_then(|look| look.below_contract),
        leader: look.and_then(|look| look.leader.clone()),
        nodes_answering: look.map_or(0, |look| look.answering.len() as u64),
    }
}

/// Longest time between two successes from `from_ms` to the first success after `to_ms`.
pub fn longest_gap(ended_us: &[u64], from_ms: u64, to_ms: u64) -> u64 {
    let (mut longest, mut last) = (0, from_ms * 1_000);
    for at in ended_us.iter().copied().filter(|at| *at >= from_ms * 1_000) {
        longest = longest.max(at - last);
        last = at;
        if at >= to_ms * 1_000 {
            return longest / 1_000;
        }
    }
    longest.max((to_ms * 1_000).saturating_sub(last)) / 1_000
}

fn successes(moments: &[Moment], write: bool) -> Vec<u64> {
    let good = moments.iter().filter(|moment| moment.good && moment.write == write);
    let mut ended: Vec<u64> = good.map(|moment| moment.ended_us).collect();
    ended.sort_unstable();
    ended
}

/// Why clients were not served from one moment to another, if a time without acknowledged writes or without reads was longer
/// than `limit_ms`.
pub fn interrupted(moments: &[Moment], from_ms: u64, to_ms: u64, limit_ms: u64) -> Option<String> {
    [("acknowledged writes", true), ("reads", false)].into_iter().find_map(|(what, write)| {
        let gap = longest_gap(&successes(moments, write), from_ms, to_ms);
        (gap > limit_ms).then(|| format!("{gap} ms without {what}"))
    })
}

/// Kinds of fault that take somebody away: measured also beside another one.
const TAKES_AWAY: [&str; 7] = ["kill", "stop", "pause", "partition", "one-way partition", "severed link", "split"];

/// What each fault meant for clients; of those beside another one only such as take somebody away: the time of the others is that
/// of the main one. What another fault hid is none. `until_ms`: when the load ended.
pub fn outages(moments: &[Moment], faults: &[FaultRecord], until_ms: u64) -> Vec<Outage> {
    let (writes, reads) = (successes(moments, true), successes(moments, false));
    let outage = |fault: &FaultRecord| {
        let ended_ms = fault.ended_ms.unwrap_or(until_ms);
        Outage {
            fault: fault.number,
            kind: fault.kind.clone(),
            began_ms: fault.began_ms,
            without_writes_ms: longest_gap(&writes, fault.began_ms, ended_ms),
            without_reads_ms: longest_gap(&reads, fault.began_ms, ended_ms),
        }
    };
    let measured = |fault: &&FaultRecord| !fault.beside || TAKES_AWAY.contains(&fault.kind.as_str());
    faults.iter().filter(|fault| fault.effect != HIDDEN).filter(measured).map(outage).collect()
}

/// Sums.
pub fn totals(moments: &[Moment], faults: u64, from_ms: u64, until_ms: u64) -> Totals {
    Totals {
        counts: sample(0, moments, None).counts,
        deletes: moments.iter().filter(|moment| moment.delete && moment.good).count() as u64,
        faults,
        longest_without_writes_ms: longest_gap(&successes(moments, true), from_ms, until_ms),
        longest_without_reads_ms: longest_gap(&successes(moments, false), from_ms, until_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(started_ms: u64, ended_ms: u64, good: bool) -> Moment {
        Moment {
            started_us: started_ms * 1_000,
            ended_us: ended_ms * 1_000,
            write: true,
            delete: false,
            good,
            refused: !good,
            bytes: 10,
        }
    }

    #[test]
    fn what_moved_nothing_is_no_service() {
        let moment = |call: Call, answer: Answer, bytes| {
            let key = "main/1.2/1.2/1.2".to_owned();
            let operation = Operation { number: 1, session: 1, key, call, started: 1, ended: Some(2), answer };
            Moment::of(&operation, bytes).map(|moment| (moment.write, moment.good))
        };
        let get = || Call::Get { version: None, linearizable: true };
        let delete = || Call::Delete { version: None };
        let put = Call::Put { attempt: "i".into(), content: "c".into(), size_bytes: 0 };
        let found = || Answer::Found { version: 1, content: "c".into() };
        assert_eq!(moment(get(), Answer::Missing, 0), None);
        assert_eq!(moment(get(), found(), 0), None);
        assert_eq!(moment(delete(), Answer::Missing, 0), None);
        assert_eq!(moment(get(), found(), 7), Some((false, true)));
        assert_eq!(moment(get(), Answer::Unknown, 0), Some((false, false)));
        assert_eq!(moment(delete(), Answer::Deleted { versions: vec![1] }, 0), Some((true, true)));
        assert_eq!(moment(put, Answer::Stored { version: 1, attempt: "i".into(), first: true }, 0), Some((true, true)));
    }

    #[test]
    fn a_gap_lasts_from_the_fault_to_the_first_success_after_it() {
        let ended: Vec<u64> = [900, 1_100, 1_200, 6_000, 6_100, 9_000].map(|ms| ms * 1_000).into();
        assert_eq!(longest_gap(&ended, 1_000, 5_000), 4_800);
        assert_eq!(longest_gap(&ended, 1_150, 1_160), 50);
        assert_eq!(longest_gap(&ended, 9_500, 12_000), 2_500);
        assert_eq!(longest_gap(&[], 1_000, 3_000), 2_000);
    }

    #[test]
    fn a_first_moment_of_service_does_not_hide_that_it_stopped() {
        let at = |ms: u64, write: bool| Moment { write, ..write_of(ms) };
        let early: Vec<Moment> = (0..50).flat_map(|n| [at(10_000 + n, true), at(10_000 + n, false)]).collect();
        assert_eq!(interrupted(&early, 10_000, 29_000, 20_000), None);
        let why = interrupted(&early, 10_000, 31_000, 20_000).expect("stopped");
        assert!(why.contains("without acknowledged writes"), "{why}");
        let mut only_writes = early;
        only_writes.extend((0..20).map(|n| at(11_000 + n * 1_000, true)));
        assert_eq!(interrupted(&only_writes, 10_000, 31_000, 20_000).as_deref(), Some("20951 ms without reads"));
    }

    fn write_of(ms: u64) -> Moment {
        write(ms, ms, true)
    }

    #[test]
    fn a_fault_beside_another_is_measured_when_it_takes_somebody_away() {
        let fault = |number: u64, kind: &str, beside: bool, effect: &str| FaultRecord {
            number,
            kind: kind.to_owned(),
            began_ms: 1_000,
            ended_ms: Some(5_000),
            effect: effect.to_owned(),
            beside,
            ..FaultRecord::default()
        };
        let faults = [
            fault(1, "wipe", false, ""),
            fault(2, "clock step", true, ""),
            fault(3, "kill", true, "b1, b2 do not answer"),
            fault(4, "pause", true, HIDDEN),
        ];
        let outages = outages(&[write_of(500), write_of(6_000)], &faults, 9_000);
        let gaps: Vec<_> = outages.iter().map(|one| (one.fault, one.without_writes_ms)).collect();
        assert_eq!(gaps, [(1, 5_000), (3, 5_000)]);
    }

    #[test]
    fn every_moment_is_in_one_sample() {
        let moments = [write(0, 999, true), write(0, 1_000, true), write(10, 2_500, false), write(0, 7_000, true)];
        let samples = samples(&moments, &[], 4_000);
        assert_eq!(samples.iter().map(|one| one.counts.writes_acked).collect::<Vec<_>>(), [1, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(samples.iter().map(|one| one.counts.writes_refused).sum::<u64>(), 1);
        assert_eq!(totals(&moments, 0, 0, 8_000).counts.writes_acked, 3);
        assert_eq!(totals(&moments, 0, 0, 8_000).longest_without_writes_ms, 6_000);
    }
}
