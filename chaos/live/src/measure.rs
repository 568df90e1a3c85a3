//! What the moments of a run say: throughput and latency second by second, and how long each fault kept clients waiting.
//!
//! **Invariants.** Pure. Every moment counts in exactly one sample. Service is content that was stored or handed out: a deletion is
//! counted by itself and is no service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pacsvault_judge::{Answer, Call, Operation};

use crate::{
    eyes::Look,
    record::{Counts, FaultRecord, HIDDEN, Outage, STOP, Sample, SiteOutage, Totals},
};

/// Length of a sample.
const SAMPLE_MS: u64 = 1_000;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// Stored content.
    Write,
    /// Deleted something.
    Delete,
    /// Read content.
    Read,
}

/// One operation of a session that ended and moved something, or should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Site of the session.
    pub site: Arc<str>,
    /// When it began.
    pub started_us: u64,
    /// When it ended.
    pub ended_us: u64,
    /// What.
    pub did: Did,
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
    pub fn of(operation: &Operation, bytes: u64, site: Arc<str>) -> Option<Self> {
        let good = match &operation.answer {
            Answer::Stored { .. } | Answer::Deleted { .. } => true,
            Answer::Found { .. } if bytes > 0 => true,
            Answer::Found { .. } | Answer::Missing => return None,
            Answer::Refused | Answer::Unknown => false,
        };
        Some(Self {
            site,
            started_us: operation.started,
            ended_us: operation.ended.unwrap_or(operation.started),
            did: match operation.call {
                Call::Put { .. } => Did::Write,
                Call::Delete { .. } => Did::Delete,
                Call::Get { .. } => Did::Read,
            },
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
    let took = |did: Did| -> Vec<u64> {
        let good = moments.iter().filter(|one| one.good && one.did == did);
        good.map(|one| one.ended_us - one.started_us).collect()
    };
    let (mut writes, mut reads) = (took(Did::Write), took(Did::Read));
    Sample {
        at_ms,
        counts: counts(moments),
        write_p50_ms: millis(percentile(&mut writes, 50)),
        write_p99_ms: millis(percentile(&mut writes, 99)),
        read_p50_ms: millis(percentile(&mut reads, 50)),
        read_p99_ms: millis(percentile(&mut reads, 99)),
        bytes_by_distance: look.and_then(|look| look.by_distance),
        bytes_unreadable: look.and_then(|look| look.unreadable),
        bytes_below_contract: look.and_then(|look| look.below_contract),
        leader: look.and_then(|look| look.leader.clone()),
        nodes_answering: look.map(|look| look.answering.len() as u64),
    }
}

fn counts(moments: &[Moment]) -> Counts {
    let mut counts = Counts::default();
    for one in moments {
        let (count, bytes) = match (one.did, one.good) {
            (Did::Write, true) => (&mut counts.writes_acked, Some(&mut counts.bytes_written)),
            (Did::Write, false) if one.refused => (&mut counts.writes_refused, None),
            (Did::Write, false) => (&mut counts.writes_unknown, None),
            (Did::Delete, true) => (&mut counts.deletes, None),
            (Did::Delete, false) => (&mut counts.deletes_failed, None),
            (Did::Read, true) => (&mut counts.reads_ok, Some(&mut counts.bytes_read)),
            (Did::Read, false) => (&mut counts.reads_failed, None),
        };
        *count += 1;
        if let Some(bytes) = bytes {
            *bytes += one.bytes;
        }
    }
    counts
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

/// When which operations succeeded; of one site, or of all.
fn successes(moments: &[Moment], did: Did, site: Option<&str>) -> Vec<u64> {
    let of_site = |moment: &&Moment| site.is_none_or(|site| *moment.site == *site);
    let good = moments.iter().filter(|moment| moment.good && moment.did == did).filter(of_site);
    let mut ended: Vec<u64> = good.map(|moment| moment.ended_us).collect();
    ended.sort_unstable();
    ended
}

/// Why clients of one of `sites` were not served from one moment to another, if a time without acknowledged writes or without
/// reads was longer than `limit_ms`.
pub fn interrupted(
    moments: &[Moment],
    sites: &BTreeSet<String>,
    (from_ms, to_ms): (u64, u64),
    limit_ms: u64,
) -> Option<String> {
    sites.iter().find_map(|site| {
        [("acknowledged writes", Did::Write), ("reads", Did::Read)].into_iter().find_map(|(what, did)| {
            let gap = longest_gap(&successes(moments, did, Some(site)), from_ms, to_ms);
            (gap > limit_ms).then(|| format!("{gap} ms without {what} in site {site}"))
        })
    })
}

/// Kinds of fault that take somebody away: measured also beside another one.
const TAKES_AWAY: [&str; 7] = ["kill", STOP, "pause", "partition", "one-way partition", "severed link", "split"];

/// What each fault meant for clients; of those beside another one only such as take somebody away: the time of the others is that
/// of the main one. What another fault hid is none. `until_ms`: when the load ended.
pub fn outages(moments: &[Moment], sites: &BTreeSet<String>, faults: &[FaultRecord], until_ms: u64) -> Vec<Outage> {
    let both = |site| [successes(moments, Did::Write, site), successes(moments, Did::Read, site)];
    let [writes, reads] = both(None);
    let by_site: BTreeMap<&String, [Vec<u64>; 2]> = sites.iter().map(|site| (site, both(Some(site)))).collect();
    let outage = |fault: &FaultRecord| {
        let (from_ms, to_ms) = (fault.began_ms, fault.ended_ms.unwrap_or(until_ms));
        let meanwhile =
            faults.iter().filter(|one| one.began_ms <= to_ms && one.ended_ms.unwrap_or(until_ms) >= from_ms);
        let cut_off: BTreeSet<&String> = meanwhile.flat_map(|one| &one.cuts_off).collect();
        let site = |(site, [writes, reads]): (&&String, &[Vec<u64>; 2])| SiteOutage {
            site: (*site).clone(),
            without_writes_ms: longest_gap(writes, from_ms, to_ms),
            without_reads_ms: longest_gap(reads, from_ms, to_ms),
            cut_off: cut_off.contains(*site),
        };
        Outage {
            fault: fault.number,
            kind: fault.kind.clone(),
            began_ms: fault.began_ms,
            without_writes_ms: longest_gap(&writes, from_ms, to_ms),
            without_reads_ms: longest_gap(&reads, from_ms, to_ms),
            sites: by_site.iter().map(site).collect(),
        }
    };
    let measured = |fault: &&FaultRecord| !fault.beside || TAKES_AWAY.contains(&fault.kind.as_str());
    faults.iter().filter(|fault| fault.effect != HIDDEN).filter(measured).map(outage).collect()
}

/// Sums.
pub fn totals(moments: &[Moment], faults: u64, from_ms: u64, until_ms: u64) -> Totals {
    Totals {
        counts: counts(moments),
        faults,
        longest_without_writes_ms: longest_gap(&successes(moments, Did::Write, None), from_ms, until_ms),
        longest_without_reads_ms: longest_gap(&successes(moments, Did::Read, None), from_ms, until_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(started_ms: u64, ended_ms: u64, good: bool) -> Moment {
        Moment {
            site: "a".into(),
            started_us: started_ms * 1_000,
            ended_us: ended_ms * 1_000,
            did: Did::Write,
            good,
            refused: !good,
            bytes: 10,
        }
    }

    fn at(ms: u64, did: Did, site: &str) -> Moment {
        Moment { did, site: site.into(), ..write(ms, ms, true) }
    }

    fn sites(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_moved_nothing_is_no_service() {
        let moment = |call: Call, answer: Answer, bytes| {
            let key = "main/1.2/1.2/1.2".to_owned();
            let operation = Operation { number: 1, session: 1, key, call, started: 1, ended: Some(2), answer };
            Moment::of(&operation, bytes, "a".into()).map(|moment| (moment.did, moment.good))
        };
        let get = || Call::Get { version: None, linearizable: true };
        let delete = || Call::Delete { version: None };
        let put = Call::Put { attempt: Some("i".into()), content: "c".into(), size_bytes: 0 };
        let found = || Answer::Found { version: 1, content: "c".into() };
        assert_eq!(moment(get(), Answer::Missing, 0), None);
        assert_eq!(moment(get(), found(), 0), None);
        assert_eq!(moment(delete(), Answer::Missing, 0), None);
        assert_eq!(moment(get(), found(), 7), Some((Did::Read, true)));
        assert_eq!(moment(get(), Answer::Unknown, 0), Some((Did::Read, false)));
        assert_eq!(moment(delete(), Answer::Deleted { versions: vec![1] }, 0), Some((Did::Delete, true)));
        let stored = Answer::Stored { version: 1, attempt: "i".into(), first: true };
        assert_eq!(moment(put, stored, 0), Some((Did::Write, true)));
    }

    #[test]
    fn deletions_are_counted_by_themselves_and_hide_no_outage() {
        let deletes: Vec<Moment> = (0..60).map(|second| at(second * 1_000, Did::Delete, "a")).collect();
        let why = interrupted(&deletes, &sites(&["a"]), (0, 30_000), 20_000).expect("nothing was stored");
        assert!(why.contains("without acknowledged writes in site a"), "{why}");
        let totals = totals(&deletes, 0, 0, 60_000);
        assert_eq!((totals.counts.deletes, totals.counts.writes_acked), (60, 0));
        assert_eq!(totals.longest_without_writes_ms, 60_000);
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
        let a = sites(&["a"]);
        let early = |n: u64| [at(10_000 + n, Did::Write, "a"), at(10_000 + n, Did::Read, "a")];
        let early: Vec<Moment> = (0..50).flat_map(early).collect();
        assert_eq!(interrupted(&early, &a, (10_000, 29_000), 20_000), None);
        let why = interrupted(&early, &a, (10_000, 31_000), 20_000).expect("stopped");
        assert!(why.contains("without acknowledged writes"), "{why}");
        let mut only_writes = early;
        only_writes.extend((0..20).map(|n| at(11_000 + n * 1_000, Did::Write, "a")));
        let why = interrupted(&only_writes, &a, (10_000, 31_000), 20_000);
        assert_eq!(why.as_deref(), Some("20951 ms without reads in site a"));
    }

    #[test]
    fn service_of_one_site_does_not_hide_that_another_has_none() {
        let both = |n: u64| [at(n * 1_000, Did::Write, "a"), at(n * 1_000, Did::Read, "a")];
        let only_a: Vec<Moment> = (0..40).flat_map(both).collect();
        assert_eq!(interrupted(&only_a, &sites(&["a"]), (0, 39_000), 20_000), None);
        let why = interrupted(&only_a, &sites(&["a", "b"]), (0, 39_000), 20_000).expect("b has none");
        assert!(why.contains("in site b"), "{why}");
        let cut = |number: u64, began_ms: u64, cuts_off: &[&str]| FaultRecord {
            number,
            began_ms,
            ended_ms: Some(began_ms + 5_000),
            cuts_off: cuts_off.iter().map(|site| (*site).to_owned()).collect(),
            ..FaultRecord::default()
        };
        let outages = outages(&only_a, &sites(&["a", "b"]), &[cut(1, 1_000, &[]), cut(2, 20_000, &["b"])], 39_000);
        let told: Vec<_> = outages.iter().map(|one| (one.without_writes_ms, one.sites[1].cut_off)).collect();
        assert_eq!(told, [(1_000, false), (1_000, true)]);
        assert!(outages.iter().all(|one| one.sites[0].without_writes_ms == 1_000 && one.sites[1].site == "b"));
        assert!(outages.iter().all(|one| one.sites[1].without_writes_ms == 5_000), "a site without a moment is told");
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
        let outages = outages(&[write_of(500), write_of(6_000)], &sites(&["a"]), &faults, 9_000);
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

    #[test]
    fn samples_add_up_to_the_totals() {
        let dids = [Did::Write, Did::Delete, Did::Read];
        let moment = |n: u64| Moment {
            good: !n.is_multiple_of(3),
            refused: n.is_multiple_of(5),
            did: dids[usize::try_from(n % 7 % 3).unwrap_or(0)],
            ..write(n * 37, n * 37 + n % 11 * 90, true)
        };
        let moments: Vec<Moment> = (0..400).map(moment).collect();
        let mut sum = Counts::default();
        for sample in samples(&moments, &[], 9_000) {
            let Counts { writes_acked, writes_refused, writes_unknown, .. } = sample.counts;
            let Counts { deletes, deletes_failed, reads_ok, reads_failed, bytes_written, bytes_read, .. } =
                sample.counts;
            sum.writes_acked += writes_acked;
            sum.writes_refused += writes_refused;
            sum.writes_unknown += writes_unknown;
            sum.deletes += deletes;
            sum.deletes_failed += deletes_failed;
            sum.reads_ok += reads_ok;
            sum.reads_failed += reads_failed;
            sum.bytes_written += bytes_written;
            sum.bytes_read += bytes_read;
        }
        let totals = totals(&moments, 0, 0, 20_000);
        assert_eq!(sum, totals.counts);
        assert!(sum.writes_refused > 0 && sum.writes_unknown > 0 && sum.deletes_failed > 0 && sum.reads_failed > 0);
    }

    #[test]
    fn before_anybody_looked_no_number_of_nodes_is_told() {
        let look = Look { at_ms: 1_500, answering: ["a1".to_owned()].into(), ..Look::default() };
        let nodes: Vec<_> = samples(&[], &[look], 3_000).iter().map(|one| one.nodes_answering).collect();
        assert_eq!(nodes, [None, Some(1), Some(1)]);
    }
}
