//! How fast this node may repair: it yields to clients, by what clients feel.
//!
//! **How.** Latencies of clients' shard requests are sampled. While nothing is repaired, their 90th percentile is the
//! baseline. While something is, a percentile clearly above the baseline cuts the allowed rate by three tenths, any other
//! raises it by a fixed step (additive increase, multiplicative decrease). Bytes are granted at that rate, to urgent work
//! first. With idle clients, or before their baseline is known, only the configured limit counts.
//!
//! **Invariants.** Time is an argument and never goes back. What an operator configured is never exceeded over a second or
//! longer. Below it, urgent work gets at least [`FLOOR_URGENT`] and other work, when none is urgent, at least [`FLOOR`],
//! whatever clients feel: repair always ends. Whoever asks is let through in order of asking, within its urgency.

use std::{collections::VecDeque, time::Duration};

use pacsvault_core::health::Tier;

/// Least bytes per second of work that one more failure could turn into loss.
pub const FLOOR_URGENT: u64 = 8 << 20;
/// Least bytes per second of other work.
pub const FLOOR: u64 = 1 << 20;
/// What clients that have only just begun are shared with.
const START: u64 = 64 << 20;
/// More, four times a second, while clients feel nothing.
const STEP: u64 = 4 << 20;
/// No machine here moves more; a bound for the arithmetic.
const TOP: u64 = 4 << 30;
/// Pause between two judgements: some ten requests of one busy client.
const JUDGE_EVERY: Duration = Duration::from_millis(250);
/// Latencies older than this say nothing about now.
const WINDOW: Duration = Duration::from_secs(2);
/// Fewer latencies within the window are no load worth yielding to: two requests per second.
const SAMPLES_MIN: usize = 4;
/// Most latencies kept: 256 × 32 bytes, sorted four times a second.
const SAMPLES_MAX: usize = 256;
/// After so long without a byte of repair, latencies are the clients' own.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// A rise below this is noise, however small the baseline.
const NOISE: Duration = Duration::from_millis(2);
/// Longest sleep of a waiter before it looks at the rate again.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long work counts as urgent after it asked last.
const URGENT_FOR: Duration = Duration::from_secs(1);

/// How much it matters that work goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// One more failure may lose data.
    Urgent,
    /// It can wait for clients.
    Patient,
}

impl Urgency {
    /// Of work on a stripe of this tier.
    pub fn of(tier: Tier) -> Self {
        if tier <= Tier::Distance(0) { Self::Urgent } else { Self::Patient }
    }
}

/// A place in the queue.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    urgency: Urgency,
    /// May go on once so many bytes of its urgency were granted.
    start: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    /// Bytes asked for.
    asked: u64,
    /// Bytes granted, at most those asked for.
    granted: u64,
}

/// See the room's text.
#[derive(Debug)]
pub struct Governor {
    /// As configured; 0: none.
    ceiling: u64,
    allowed: u64,
    baseline: Option<Duration>,
    /// When and how long, oldest first.
    samples: VecDeque<(Duration, Duration)>,
    judged: Duration,
    /// Latencies up to here were judged by a cut already.
    cut: Duration,
    /// When repair asked last.
    asked: Option<Duration>,
    asked_urgent: Option<Duration>,
    urgent: Lane,
    patient: Lane,
    refilled: Duration,
    spare: u64,
}

impl Governor {
    /// With the configured limit in bytes per second; 0: none.
    pub fn new(ceiling: u64, now: Duration) -> Self {
        Self {
            ceiling,
            allowed: START,
            baseline: None,
            samples: VecDeque::new(),
            judged: now,
            cut: now,
            asked: None,
            asked_urgent: None,
            urgent: Lane::default(),
            patient: Lane::default(),
            refilled: now,
            spare: 0,
        }
    }

    /// A client's shard request took so long.
    pub fn foreground(&mut self, now: Duration, took: Duration) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, took));
        self.judge(now);
    }

    /// Asks to read or write `bytes`; then [`Governor::wait`] until it says nothing more.
    pub fn ask(&mut self, now: Duration, urgency: Urgency, bytes: u64) -> Ticket {
        self.judge(now);
        self.refill(now);
        self.asked = Some(now);
        let lane = match urgency {
            Urgency::Urgent => {
                self.asked_urgent = Some(now);
                &mut self.urgent
            }
            Urgency::Patient => &mut self.patient,
        };
        let start = lane.asked;
        lane.asked = lane.asked.saturating_add(bytes);
        Ticket { urgency, start }
    }

    /// How long to sleep before asking again; `None`: go on.
    pub fn wait(&mut self, now: Duration, ticket: Ticket) -> Option<Duration> {
        self.judge(now);
        self.refill(now);
        let lane = match ticket.urgency {
            Urgency::Urgent => self.urgent,
            Urgency::Patient => self.patient,
        };
        let left = ticket.start.saturating_sub(lane.granted);
        if left == 0 {
            return None;
        }
        // Who waits has not given up: latencies are not the clients' own meanwhile.
        self.asked = Some(now);
        let rate = self.rate(now).unwrap_or(TOP).max(1);
        let micros = u64::try_from(u128::from(left) * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        Some(Duration::from_micros(micros).clamp(Duration::from_millis(1), LOOK_EVERY))
    }

    /// Bytes per second allowed now; 0: no limit.
    pub fn allowed(&self, now: Duration) -> u64 {
        self.rate(now).unwrap_or(0)
    }

    fn rate(&self, now: Duration) -> Option<u64> {
        let ceiling = (self.ceiling > 0).then_some(self.ceiling);
        if self.baseline.is_none() || self.lately(now, Duration::ZERO).count() < SAMPLES_MIN {
            return ceiling;
        }
        let urgent = self.urgent.asked > self.urgent.granted
            || self.asked_urgent.is_some_and(|at| now.saturating_sub(at) < URGENT_FOR);
        let floor = if urgent { FLOOR_URGENT } else { FLOOR };
        let shared = self.allowed.max(floor);
        Some(ceiling.map_or(shared, |ceiling| ceiling.min(shared)))
    }

    fn lately(&self, now: Duration, after: Duration) -> impl Iterator<Item = Duration> {
        let from = now.saturating_sub(WINDOW).max(after);
        self.samples.iter().filter(move |(at, _)| *at >= from).map(|(_, took)| *took)
    }

    fn judge(&mut self, now: Duration) {
        if now.saturating_sub(self.judged) < JUDGE_EVERY {
            return;
        }
        self.judged = now;
        let mut sorted: Vec<Duration> = self.lately(now, self.cut).collect();
        if sorted.len() < SAMPLES_MIN {
            return;
        }
        sorted.sort_unstable();
        let slow = sorted[(sorted.len() - 1) * 9 / 10];
        if self.asked.is_none_or(|at| now.saturating_sub(at) > QUIET_AFTER) {
            self.baseline = Some(self.baseline.map_or(slow, |baseline| (baseline * 7 + slow) / 8));
            return;
        }
        // Clients that began during a repair: their median is the best guess of what they would feel without it.
        let baseline = *self.baseline.get_or_insert(sorted[(sorted.len() - 1) / 2]);
        if slow > baseline * 8 / 5 + NOISE {
            self.allowed = (self.allowed / 10 * 7).max(FLOOR);
            self.cut = now;
        } else {
            self.allowed = (self.allowed + STEP).min(TOP);
        }
        if slow > baseline {
            // Clients' own load may have changed since: a baseline is forgotten, in some ten minutes.
            self.baseline = Some(baseline + baseline / 4096);
        }
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.refilled);
        self.refilled = self.refilled.max(now);
        let Some(rate) = self.rate(now) else {
            self.urgent.granted = self.urgent.asked;
            self.patient.granted = self.patient.asked;
            self.spare = 0;
            return;
        };
        let fresh = u64::try_from(u128::from(rate) * passed.as_micros() / 1_000_000).unwrap_or(u64::MAX);
        let mut budget = self.spare.saturating_add(fresh);
        for lane in [&mut self.urgent, &mut self.patient] {
            let given = budget.min(lane.asked - lane.granted);
            lane.granted += given;
            budget -= given;
        }
        // A tenth of a second may be saved up.
        self.spare = budget.min(rate / 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Moves `pieces` of 1 MiB one after the other, with a client request of `took(now)` every 10 ms; returns how long it
    /// took.
    fn moved(
        governor: &mut Governor,
        from: Duration,
        urgency: Urgency,
        pieces: u64,
        took: impl Fn(Duration) -> Option<Duration>,
    ) -> Duration {
        let mut now = from;
        let mut client = from;
        let mut feed = |governor: &mut Governor, until: Duration| {
            while client <= until {
                if let Some(took) = took(client) {
                    governor.foreground(client, took);
                }
                client += ms(10);
            }
        };
        for _ in 0..pieces {
            let ticket = governor.ask(now, urgency, MIB);
            while let Some(pause) = governor.wait(now, ticket) {
                now += pause;
                feed(governor, now);
            }
        }
        now - from
    }

    fn quiet_then(baseline: Duration) -> Governor {
        let mut governor = Governor::new(0, Duration::ZERO);
        (0..500).for_each(|at| governor.foreground(ms(at * 10), baseline));
        governor
    }

    #[test]
    fn with_idle_clients_there_is_no_limit_but_the_configured_one() {
        let mut free = Governor::new(0, Duration::ZERO);
        assert_eq!(moved(&mut free, ms(0), Urgency::Patient, 10_000, |_| None), Duration::ZERO);
        assert_eq!(free.allowed(ms(1)), 0);
        let mut limited = Governor::new(10 * MIB, Duration::ZERO);
        let took = moved(&mut limited, ms(0), Urgency::Patient, 100, |_| None);
        assert!((ms(9_000)..ms(10_500)).contains(&took), "100 MiB at 10 MiB/s took {took:?}");
    }

    #[test]
    fn clients_that_feel_nothing_let_the_rate_grow() {
        let mut governor = quiet_then(ms(10));
        moved(&mut governor, ms(5_000), Urgency::Patient, 2_000, |_| Some(ms(11)));
        assert!(governor.allowed > START, "{}", governor.allowed);
    }

    #[test]
    fn clients_that_suffer_cut_it_down_to_the_floor_of_its_urgency() {
        for (urgency, floor) in [(Urgency::Patient, FLOOR), (Urgency::Urgent, FLOOR_URGENT)] {
            let mut governor = quiet_then(ms(10));
            moved(&mut governor, ms(5_000), urgency, 150, |_| Some(ms(40)));
            let now = governor.refilled;
            assert_eq!(governor.rate(now), Some(floor));
            let took = moved(&mut governor, now, urgency, 80, |_| Some(ms(40)));
            let floor_time = Duration::from_secs(80 * MIB / floor);
            assert!(took <= floor_time + ms(1_000), "{took:?} at {floor}");
            assert!(took >= floor_time / 2, "{took:?} at {floor}");
        }
    }

    #[test]
    fn it_settles_where_clients_begin_to_feel_it() {
        // A machine that gives 40 MiB/s to repair before clients feel it.
        let mut governor = quiet_then(ms(10));
        let mut now = ms(5_000);
        let (mut done, mut begun) = (0, now);
        let mut rates = Vec::new();
        for step in 0..4_000_u64 {
            let ticket = governor.ask(now, Urgency::Patient, MIB / 4);
            while let Some(pause) = governor.wait(now, ticket) {
                now += pause;
            }
            done += MIB / 4;
            if now - begun >= ms(100) {
                let rate = done * 1_000 / u64::try_from((now - begun).as_millis()).expect("small");
                governor.foreground(now, if rate > 40 * MIB { ms(30) } else { ms(10) });
                if step > 1_000 {
                    rates.push(rate);
                }
                (done, begun) = (0, now);
            }
        }
        let mean = rates.iter().sum::<u64>() / rates.len() as u64;
        assert!((20 * MIB..50 * MIB).contains(&mean), "{} MiB/s", mean / MIB);
    }

    #[test]
    fn urgent_work_goes_before_what_waits() {
        let mut governor = Governor::new(MIB, Duration::ZERO);
        let patient: Vec<Ticket> = (0..20).map(|_| governor.ask(ms(0), Urgency::Patient, MIB)).collect();
        governor.ask(ms(0), Urgency::Urgent, MIB);
        let urgent = governor.ask(ms(0), Urgency::Urgent, MIB);
        assert!(governor.wait(ms(1_100), urgent).is_none(), "after its own predecessor alone");
        assert!(governor.wait(ms(1_100), patient[1]).is_some());
    }
}
