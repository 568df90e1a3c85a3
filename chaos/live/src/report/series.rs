//! Samples, gathered so that a plot can show them without hiding anything.
//!
//! **Invariants.** A [`Bin`] tells the worst of what it holds beside the mean: the lowest and highest rate, the highest 99th
//! percentile, the most endangered distribution of bytes, the fewest nodes. Counts are sums, so all bins together are the totals.
//! A figure that no sample of a bin has stays absent; nothing is interpolated.

use crate::record::Sample;

/// Some neighbouring samples as one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Bin {
    /// Where it begins: the end of the sample before it.
    pub from_ms: u64,
    /// Where it ends.
    pub to_ms: u64,
    /// Acknowledged writes per second.
    pub writes: Rate,
    /// Answered reads per second.
    pub reads: Rate,
    /// Writes refused, writes of unknown outcome, reads not answered.
    pub errors: [u64; 3],
    /// Means of the medians, and the highest 99th percentiles: of writes, of reads.
    pub latency: [Option<f64>; 4],
    /// The distribution closest to loss.
    pub by_distance: Option<[u64; 4]>,
    /// Most bytes that could not be read.
    pub unreadable: Option<u64>,
    /// Most bytes below their contract.
    pub below_contract: Option<u64>,
    /// Fewest nodes that answered; absent before anybody looked.
    pub nodes_answering: Option<u64>,
}

/// Of events per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rate {
    /// Of any sample.
    pub lowest: f64,
    /// Over all.
    pub mean: f64,
    /// Of any sample.
    pub highest: f64,
}

/// `samples` in at most `most` bins of equally many samples; one each when there are few enough.
pub(super) fn bins(samples: &[Sample], most: usize) -> Vec<Bin> {
    let mut timed: Vec<(u64, &Sample)> = Vec::with_capacity(samples.len());
    let mut before = 0;
    for sample in samples {
        // Times go up in a record; one that does not is no reason for a senseless plot.
        let at = sample.at_ms.max(before);
        timed.push((before, sample));
        before = at;
    }
    let each = samples.len().div_ceil(most.max(1)).max(1);
    timed.chunks(each).map(bin).collect()
}

fn bin(samples: &[(u64, &Sample)]) -> Bin {
    let from_ms = samples.first().map_or(0, |(from, _)| *from);
    let to_ms = samples.last().map_or(0, |(from, sample)| sample.at_ms.max(*from));
    let sum = |part: fn(&Sample) -> u64| samples.iter().map(|(_, sample)| part(sample)).sum::<u64>();
    let present = |part: fn(&Sample) -> Option<f64>| samples.iter().filter_map(move |(_, sample)| part(sample));
    let mean = |part| {
        let (count, total) = present(part).fold((0_u32, 0.0), |(count, total), value| (count + 1, total + value));
        (count > 0).then(|| total / f64::from(count))
    };
    let highest = |part| present(part).reduce(f64::max);
    Bin {
        from_ms,
        to_ms,
        writes: rate(samples, |sample| sample.counts.writes_acked, to_ms - from_ms),
        reads: rate(samples, |sample| sample.counts.reads_ok, to_ms - from_ms),
        errors: [
            sum(|it| it.counts.writes_refused),
            sum(|it| it.counts.writes_unknown),
            sum(|it| it.counts.reads_failed),
        ],
        latency: [
            mean(|it| it.write_p50_ms),
            highest(|it| it.write_p99_ms),
            mean(|it| it.read_p50_ms),
            highest(|it| it.read_p99_ms),
        ],
        by_distance: samples.iter().filter_map(|(_, sample)| sample.bytes_by_distance).max(),
        unreadable: samples.iter().filter_map(|(_, sample)| sample.bytes_unreadable).max(),
        below_contract: samples.iter().filter_map(|(_, sample)| sample.bytes_below_contract).max(),
        nodes_answering: samples.iter().filter_map(|(_, sample)| sample.nodes_answering).min(),
    }
}

fn rate(samples: &[(u64, &Sample)], part: fn(&Sample) -> u64, took_ms: u64) -> Rate {
    let per_second = |events: u64, ms: u64| events as f64 * 1000.0 / ms.max(1) as f64;
    let each = || samples.iter().map(|(from, sample)| per_second(part(sample), sample.at_ms.saturating_sub(*from)));
    Rate {
        lowest: each().reduce(f64::min).unwrap_or(0.0),
        mean: per_second(samples.iter().map(|(_, sample)| part(sample)).sum(), took_ms),
        highest: each().reduce(f64::max).unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Counts;

    fn sample(at_s: u64, writes: u64) -> Sample {
        Sample {
            at_ms: at_s * 1000,
            counts: Counts { writes_acked: writes, ..Counts::default() },
            nodes_answering: Some(6),
            ..Sample::default()
        }
    }

    #[test]
    fn few_samples_stay_as_they_are_and_a_late_one_is_not_faster_for_it() {
        let bins = bins(&[sample(1, 10), sample(2, 20), sample(7, 50)], 10);
        let means: Vec<f64> = bins.iter().map(|bin| bin.writes.mean).collect();
        assert_eq!(means, [10.0, 20.0, 10.0]);
        assert_eq!((bins[2].from_ms, bins[2].to_ms), (2000, 7000));
        assert!(super::bins(&[], 10).is_empty());
    }

    #[test]
    fn an_hour_keeps_its_worst_second_and_its_sums() {
        let mut samples: Vec<Sample> = (1..=3600).map(|second| sample(second, 100)).collect();
        samples[1801].counts.writes_acked = 0;
        samples[1801].counts.writes_refused = 7;
        samples[1801].write_p99_ms = Some(9000.0);
        samples[1802].write_p99_ms = Some(10.0);
        samples[1801].nodes_answering = Some(3);
        samples[1801].bytes_by_distance = Some([5, 0, 0, 100]);
        samples[1802].bytes_by_distance = Some([0, 90, 0, 15]);
        let bins = bins(&samples, 300);
        assert_eq!(bins.len(), 300);
        let worst = bins.iter().find(|bin| bin.errors[0] > 0).expect("kept");
        assert_eq!((worst.writes.lowest, worst.writes.highest, worst.nodes_answering), (0.0, 100.0, Some(3)));
        assert_eq!((worst.latency[1], worst.by_distance), (Some(9000.0), Some([5, 0, 0, 100])));
        assert!(worst.writes.mean < 92.0);
        let written: f64 = bins.iter().map(|bin| bin.writes.mean * (bin.to_ms - bin.from_ms) as f64 / 1000.0).sum();
        assert!((written - 359_900.0).abs() < 1e-3, "{written}");
    }

    #[test]
    fn what_was_not_measured_stays_absent() {
        let unseen = |at_s| Sample { nodes_answering: None, ..sample(at_s, 0) };
        let bins = bins(&[unseen(1), unseen(2)], 1);
        assert_eq!(bins[0].nodes_answering, None);
        assert_eq!((bins[0].latency, bins[0].by_distance, bins[0].below_contract), ([None; 4], None, None));
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_senseless_rate() {
        let bins = bins(&[sample(5, 10), sample(3, 10), sample(6, 10)], 10);
        assert!(bins.iter().all(|bin| bin.writes.mean.is_finite() && bin.from_ms <= bin.to_ms));
    }
}
