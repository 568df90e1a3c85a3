//! An invented run that has everything a report shows.

use crate::record::{
    Check, Counts, FaultRecord, LeaderChange, Link, NodeInfo, Outage, Program, Refusal, Run, Sample, SiteOutage, Totals,
};

/// Numbers that look drawn and are always the same.
pub(super) struct Draw(pub u64);

impl Draw {
    /// From 0 to 1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 40).unwrap_or(0)) / f64::from(1_u32 << 24)
    }

    /// From 0 to `most`, whole.
    pub(super) fn whole(&mut self, most: u64) -> u64 {
        (self.0 >> 33) % (most + 1).max(1) + u64::from(self.next() < 0.0)
    }
}

fn fault(number: u64, kind: &str, what: &str, target: &str, began_s: u64, ended_s: Option<u64>) -> FaultRecord {
    FaultRecord {
        number,
        kind: kind.into(),
        what: what.into(),
        targets: vec![target.into()],
        began_ms: began_s * 1000,
        ended_ms: ended_s.map(|at| at * 1000),
        ..FaultRecord::default()
    }
}

/// Figures that any decimal notation keeps exactly.
fn in_eighths(mut sample: Sample) -> Sample {
    let latencies =
        [&mut sample.write_p50_ms, &mut sample.write_p99_ms, &mut sample.read_p50_ms, &mut sample.read_p99_ms];
    for latency in latencies {
        *latency = latency.map(|ms| (ms * 8.0).round() / 8.0);
    }
    sample
}

fn faults(part: impl Fn(u64) -> u64) -> Vec<FaultRecord> {
    vec![
        fault(1, "site-outage", "site b is cut off and killed", "b", part(8), Some(part(20))),
        fault(2, "kill", "kill -9 of a2", "a2", part(24), Some(part(26))),
        fault(3, "slow-disk", "disks of c1 are 40 ms slower", "c1", part(30), Some(part(52))),
        fault(4, "kill", "kill -9 of the leader a1", "a1", part(33), Some(part(36))),
        fault(5, "one-way", "nothing passes from a to c", "a → c", part(40), Some(part(47))),
        fault(6, "site-outage", "site b is cut off and killed", "b", part(55), Some(part(68))),
        fault(7, "pause", "SIGSTOP of c2", "c2", part(58), Some(part(61))),
        fault(8, "kill", "kill -9 of c1", "c1", part(60), Some(part(61))),
        fault(9, "clock-step", "the clock of a1 steps by 2 h", "a1", part(71), Some(part(82))),
        fault(10, "site-outage", "site a, which leads, is cut off and killed", "a", part(86), Some(part(93))),
        fault(11, "bit-rot", "8 places of b2's volume are damaged", "b2", part(95), None),
    ]
}

fn leaders(part: impl Fn(u64) -> u64) -> Vec<LeaderChange> {
    let lead = |at_ms: u64, node: Option<&str>, term: u64| LeaderChange { at_ms, node: node.map(str::to_owned), term };
    vec![
        lead(0, Some("b1"), 1),
        lead(part(8) * 1000, None, 1),
        lead(part(8) * 1000 + 2100, Some("a1"), 3),
        lead(part(33) * 1000, None, 3),
        lead(part(33) * 1000 + 1600, Some("c1"), 4),
        lead(part(60) * 1000, None, 4),
        lead(part(60) * 1000 + 1700, Some("a2"), 6),
        lead(part(86) * 1000, None, 6),
        lead(part(86) * 1000 + 2600, Some("b2"), 8),
    ]
}

fn checks() -> Vec<Check> {
    let check = |name: &str, detail: &str| Check { name: name.into(), passed: true, detail: detail.into() };
    vec![
        check("every acknowledged object is there, byte for byte", "4,211 objects, 505 MB read back from every site"),
        check("per-key linearizability", "17,204 operations on 640 keys; 61,332 states searched"),
        check("every receipt is true", "4,211 receipts counted against the shards on the volumes"),
        check("the contract is kept again at the end", "0 bytes below contract after 31 s"),
        check("state digests are equal", "6 replicas at index 9,118"),
        check("no orphan is left after the sweep", "37 swept, 0 left"),
    ]
}

/// What clients and the cluster told each second.
fn samples(seconds: u64, faults: &[FaultRecord]) -> Vec<Sample> {
    let mut draw = Draw(7);
    let mut samples = Vec::new();
    let mut stored = 40 << 20;
    for second in 1..=seconds {
        let at = second * 1000;
        let on =
            |kind: &str| faults.iter().any(|it| it.kind == kind && it.began_ms < at && at <= it.ended_ms.unwrap_or(at));
        let just = |kind: &str, for_ms: u64| {
            faults.iter().any(|it| it.kind == kind && it.began_ms < at && at <= it.began_ms + for_ms)
        };
        let (outage, fresh, leaderless) =
            (on("site-outage"), just("site-outage", 2500), just("kill", 1500) || just("site-outage", 2500));
        let calm = if outage { 0.7 } else { 1.0 } * if on("slow-disk") { 0.8 } else { 1.0 };
        let rate = |mean: f64, draw: &mut Draw| {
            format!("{:.0}", mean * calm * (0.85 + 0.3 * draw.next())).parse().unwrap_or(0)
        };
        let writes: u64 = if leaderless { draw.whole(2) } else { rate(42.0, &mut draw) };
        let reads: u64 = if fresh { draw.whole(30) + 8 } else { rate(118.0, &mut draw) };
        stored += writes * 180_000;
        let slow = if on("slow-disk") { 3.1 } else { 1.0 } * if outage { 1.5 } else { 1.0 };
        let below = if outage {
            stored
        } else if on("kill") {
            stored / 3
        } else {
            0
        };
        let sample = Sample {
            at_ms: at,
            counts: Counts {
                writes_acked: writes,
                writes_refused: if leaderless { 3 + draw.whole(5) } else { 0 },
                writes_unknown: if fresh { 1 + draw.whole(2) } else { 0 },
                deletes: reads / 20,
                deletes_failed: 0,
                reads_ok: reads,
                reads_failed: if fresh { draw.whole(3) } else { 0 },
                bytes_written: writes * 120_000,
                bytes_read: reads * 120_000,
            },
            write_p50_ms: (writes > 0).then(|| 38.0 * slow * (0.9 + 0.2 * draw.next())),
            write_p99_ms: (writes > 0)
                .then(|| if leaderless { 2400.0 } else { 95.0 * slow * (0.8 + 0.6 * draw.next()) }),
            read_p50_ms: Some(9.0 * (0.9 + 0.2 * draw.next()) * if outage { 1.6 } else { 1.0 }),
            read_p99_ms: Some(if fresh { 510.0 } else { 44.0 * (0.8 + 0.6 * draw.next()) * slow }),
            bytes_unreadable: (!leaderless).then_some(0),
            bytes_by_distance: (!leaderless).then_some([
                if outage { stored / 9 } else { 0 },
                if outage { stored - stored / 9 } else { below },
                if outage { 0 } else { stored / 4 - below / 4 },
                if outage { 0 } else { stored - below - (stored / 4 - below / 4) },
            ]),
            bytes_below_contract: (!leaderless).then_some(below),
            leader: None,
            nodes_answering: Some(6 - if outage { 2 } else { 0 } - u64::from(on("kill")) - u64::from(on("pause"))),
        };
        samples.push(in_eighths(sample));
    }
    samples
}

/// What clients of each site were told: those of the site that is away, nothing.
fn sites(fault: &FaultRecord, gap: u64) -> Vec<SiteOutage> {
    let away = fault.kind == "site-outage";
    let site = |site: &str| {
        let cut_off = away && fault.targets.iter().any(|target| target == site);
        let without = if cut_off { fault.ended_ms.unwrap_or(0).saturating_sub(fault.began_ms) } else { gap };
        SiteOutage { site: site.into(), without_writes_ms: without + 400, without_reads_ms: without / 4 + 90, cut_off }
    };
    ["a", "b", "c"].map(site).into()
}

/// `seconds` of a cluster that loses site b three times, among other things.
pub(super) fn run(seconds: u64) -> Run {
    let part = |percent: u64| seconds * percent / 100;
    let faults = faults(part);
    let gaps = [2310, 180, 0, 1720, 640, 1480, 420, 90, 0, 2870, 0];
    let outages: Vec<Outage> = (faults.iter().zip(gaps))
        .map(|(fault, gap)| Outage {
            fault: fault.number,
            kind: fault.kind.clone(),
            began_ms: fault.began_ms,
            without_writes_ms: gap + 110,
            without_reads_ms: gap / 5 + 35,
            sites: sites(fault, gap),
        })
        .collect();
    let samples = samples(seconds, &faults);
    let sum = |part: fn(&Counts) -> u64| samples.iter().map(|sample| part(&sample.counts)).sum();
    let totals = Totals {
        counts: Counts {
            writes_acked: sum(|it| it.writes_acked),
            writes_refused: sum(|it| it.writes_refused),
            writes_unknown: sum(|it| it.writes_unknown),
            deletes: sum(|it| it.deletes),
            deletes_failed: sum(|it| it.deletes_failed),
            reads_ok: sum(|it| it.reads_ok),
            reads_failed: sum(|it| it.reads_failed),
            bytes_written: sum(|it| it.bytes_written),
            bytes_read: sum(|it| it.bytes_read),
        },
        faults: faults.len() as u64,
        longest_without_writes_ms: 2980,
        longest_without_reads_ms: 609,
    };
    let refusal = Refusal {
        code: "PV-TOO-WEAK".into(),
        count: 17,
        first: "stored on too few volumes".into(),
        last: "no leader".into(),
    };
    let link = |from: &str, to: &str, latency_ms: f64| Link { from: from.into(), to: to.into(), latency_ms };
    Run {
        scenario: "site-outage".into(),
        summary: "Whole sites are cut off and killed, one after another, while other faults go on. Writes must return within 10 s on \
                  the sites that are left, and nothing that was acknowledged may be lost."
            .into(),
        command: "pacsvault-chaos run site-outage --seed 20261 --minutes 5".into(),
        seed: 20_261,
        minutes: seconds as f64 / 60.0,
        program: Program {
            version: "0.1.0+faults".into(),
            sha256: "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5".into(),
        },
        machine: "Linux x86_64, 2 cores".into(),
        network: "proxy".into(),
        profile: "standard: 4+2, survives 1 site or 2 nodes".into(),
        nodes: ["a1", "a2", "b1", "b2", "c1", "c2"]
            .map(|name| NodeInfo { name: name.into(), site: name[..1].into() })
            .into(),
        wan_ms: vec![
            link("a", "b", 12.0),
            link("b", "a", 12.0),
            link("a", "c", 24.0),
            link("c", "a", 24.0),
            link("b", "c", 17.5),
            link("c", "b", 17.5),
        ],
        began_wall_ms: 1_795_313_340_000,
        took_ms: seconds * 1000 + 48_000,
        load_ended_ms: Some(seconds * 970),
        timings: "hasty: suspect_after = \"2s\", down_after = \"4s\"".into(),
        unchecked: Vec::new(),
        left_out: Vec::new(),
        samples,
        faults,
        outages,
        leaders: leaders(part),
        checks: checks(),
        totals,
        refusals: vec![refusal],
        interrupted: None,
        passed: true,
    }
}
