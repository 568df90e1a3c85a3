//! What a volume's scrub remembers: how far it is, and when which shards were verified. Pure; kept as a note of the volume.
//!
//! **How.** Shards are verified in the order of their ids. A pass keeps marks: from this id on, up to the next mark, shards
//! were verified at this time or later. Two passes are kept, the present one and what is known from before, so that every
//! shard's last verification is known to within the distance of two marks, in a few KiB for any number of shards.
//!
//! **Invariants.** A shard is never said to be verified later than it was, nor than it was written. What came to the volume
//! behind the cursor counts as verified with its neighbours, before it was written, which is too old rather than too young.
//! A note that cannot be read is no note: the scrub begins anew, and what was there counts as never verified.

use std::time::Duration;

use pacsvault_core::{
    health::report::ScrubAge,
    ids::{InstanceId, ShardIndex, StripeIndex, WallMillis},
    shard::ShardId,
};

/// Most marks of a pass: 2 × 512 × 30 bytes fit a note.
const MARKS_MAX: usize = 512;
const FORMAT: u8 = 1;
const DAY_MILLIS: u64 = 24 * 3_600_000;
/// Upper bounds of all classes of age but the last, in days.
const CLASSES_DAYS: [u64; 6] = [1, 2, 4, 7, 14, 28];

/// Shards behind `after` were verified at `at` or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    after: Option<ShardId>,
    at: WallMillis,
}

/// One walk over a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// When it began.
    pub began: WallMillis,
    /// An operator asked for it.
    pub hurried: bool,
    /// It has come to the end.
    pub complete: bool,
    /// Shards verified by it.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last of them.
    upto: Option<ShardId>,
    /// In order of `after`, the first one at the beginning.
    marks: Vec<Mark>,
}

impl Pass {
    /// How long after this pass the next one rests, when one is to begin every `within`; `None`: it is due. When a pass began in
    /// the future, the clock was set back since, and nobody knows how long ago that was.
    pub fn rest(&self, now: WallMillis, within: Duration) -> Option<Duration> {
        let passed = Duration::from_millis(now.0.checked_sub(self.began.0)?);
        within.checked_sub(passed).filter(|left| !left.is_zero())
    }

    fn verified_at(&self, id: ShardId) -> Option<WallMillis> {
        if self.upto < Some(id) {
            return None;
        }
        let next = self.marks.partition_point(|mark| mark.after < Some(id));
        self.marks.get(next.checked_sub(1)?).map(|mark| mark.at)
    }

    /// Halves the marks; of two that become one, the earlier time holds.
    fn thin(&mut self) {
        let pairs = self.marks.chunks(2);
        let merged = pairs
            .map(|pair| Mark { after: pair[0].after, at: pair.iter().map(|mark| mark.at).min().unwrap_or_default() });
        self.marks = merged.collect();
    }

    /// What this pass and the one before know together.
    fn over(self, before: Option<Self>) -> Self {
        let Some(before) = before.filter(|before| before.upto > self.upto) else { return self };
        let mut all = Self { upto: before.upto, ..self.clone() };
        let at = before.marks.iter().rev().find(|mark| mark.after <= self.upto).map(|mark| mark.at);
        all.marks.extend(at.map(|at| Mark { after: self.upto, at }));
        all.marks.extend(before.marks.iter().filter(|mark| mark.after > self.upto));
        while all.marks.len() > MARKS_MAX {
            all.thin();
        }
        all
    }
}

/// What is known of a volume's verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// When this history began: what was there before and no pass has met was never verified.
    pub since: WallMillis,
    present: Option<Pass>,
    before: Option<Pass>,
}

impl History {
    /// Nothing is known.
    pub fn new(since: WallMillis) -> Self {
        Self { since, present: None, before: None }
    }

    /// The pass that runs or ran last.
    pub fn present(&self) -> Option<&Pass> {
        self.present.as_ref()
    }

    /// Where the present pass stands.
    pub fn cursor(&self) -> Option<ShardId> {
        self.present.as_ref().and_then(|pass| pass.upto)
    }

    /// Begins a pass at the first shard.
    pub fn begin(&mut self, now: WallMillis, hurried: bool) {
        if let Some(present) = self.present.take() {
            self.before = Some(present.over(self.before.take()));
        }
        let marks = vec![Mark { after: None, at: now }];
        self.present = Some(Pass { began: now, hurried, marks, ..Pass::default() });
    }

    /// The shards behind the cursor are verified from `now` on. To be called every now and then before going on; marks are
    /// set at least `apart` milliseconds from each other, best a few hundred in a pass.
    pub fn mark(&mut self, now: WallMillis, apart: u64) {
        let Some(pass) = &mut self.present else { return };
        let near = |last: &Mark| last.after == pass.upto || now.0.saturating_sub(last.at.0) < apart;
        if pass.upto.is_none() || pass.marks.last().is_some_and(near) {
            return;
        }
        if pass.marks.len() >= MARKS_MAX {
            pass.thin();
        }
        pass.marks.push(Mark { after: pass.upto, at: now });
    }

    /// The shard was verified, or found to be damaged or gone.
    pub fn advance(&mut self, id: ShardId, bytes: u64) {
        if let Some(pass) = &mut self.present {
            pass.upto = pass.upto.max(Some(id));
            pass.shards += 1;
            pass.bytes += bytes;
        }
    }

    /// The present pass has come to the end.
    pub fn finish(&mut self) {
        if let Some(pass) = &mut self.present {
            pass.complete = true;
        }
    }

    /// When the shard was verified last, or written since the history began; `None`: never.
    pub fn verified_at(&self, id: ShardId) -> Option<WallMillis> {
        let written = Some(id.instance.time()).filter(|written| *written >= self.since);
        let passes = [&self.present, &self.before];
        passes.into_iter().flatten().filter_map(|pass| pass.verified_at(id)).chain(written).max()
    }

    /// Forgets what a clock that was wrong by days has written.
    #[must_use]
    pub fn believed(self, now: WallMillis) -> Self {
        let latest = now.0.saturating_add(DAY_MILLIS);
        let wrong = |pass: &Pass| pass.marks.iter().any(|mark| mark.at.0 > latest);
        let passes = [&self.present, &self.before];
        let wrong = self.since.0 > latest || passes.into_iter().flatten().any(wrong);
        if wrong { Self::new(now) } else { self }
    }

    /// As bytes of a note.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend(self.since.0.to_le_bytes());
        for pass in [&self.present, &self.before] {
            bytes.push(u8::from(pass.is_some()));
            if let Some(pass) = pass {
                encode_pass(&mut bytes, pass);
            }
        }
        bytes
    }

    /// From bytes of a note, if they are whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        if rest.byte()? != FORMAT {
            return None;
        }
        let since = rest.time()?;
        let present = rest.pass()?;
        let before = rest.pass()?;
        rest.0.is_empty().then_some(Self { since, present, before })
    }
}

fn encode_position(bytes: &mut Vec<u8>, position: Option<ShardId>) {
    bytes.push(u8::from(position.is_some()));
    if let Some(id) = position {
        bytes.extend(id.instance.0);
        bytes.extend(id.stripe.0.to_be_bytes());
        bytes.push(id.shard.0);
    }
}

fn encode_pass(bytes: &mut Vec<u8>, pass: &Pass) {
    bytes.extend(pass.began.0.to_le_bytes());
    bytes.extend([u8::from(pass.hurried), u8::from(pass.complete)]);
    bytes.extend(pass.shards.to_le_bytes());
    bytes.extend(pass.bytes.to_le_bytes());
    encode_position(bytes, pass.upto);
    bytes.extend((pass.marks.len() as u64).to_le_bytes());
    for mark in &pass.marks {
        encode_position(bytes, mark.after);
        bytes.extend(mark.at.0.to_le_bytes());
    }
}

/// Reads a note from its beginning.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<WallMillis> {
        self.number().map(WallMillis)
    }

    fn position(&mut self) -> Option<Option<ShardId>> {
        if !self.flag()? {
            return Some(None);
        }
        let instance = InstanceId(self.take()?);
        let stripe = StripeIndex(u32::from_be_bytes(self.take()?));
        Some(Some(ShardId { instance, stripe, shard: ShardIndex(self.byte()?) }))
    }

    fn pass(&mut self) -> Option<Option<Pass>> {
        if !self.flag()? {
            return Some(None);
        }
        let (began, hurried, complete) = (self.time()?, self.flag()?, self.flag()?);
        let (shards, bytes, upto) = (self.number()?, self.number()?, self.position()?);
        let count = usize::try_from(self.number()?).ok().filter(|count| *count <= MARKS_MAX)?;
        let mut marks = Vec::with_capacity(count);
        for _ in 0..count {
            marks.push(Mark { after: self.position()?, at: self.time()? });
        }
        let ordered = marks.is_sorted_by(|one, next| one.after < next.after);
        ordered.then_some(Some(Pass { began, hurried, complete, shards, bytes, upto, marks }))
    }
}

/// Counts shards by the age of their verification.
#[derive(Debug, Clone, Default)]
pub struct Census {
    histogram: [u64; 7],
    oldest: Option<WallMillis>,
}

impl Census {
    /// One more shard.
    pub fn count(&mut self, history: &History, id: ShardId, now: WallMillis) {
        let verified = history.verified_at(id);
        let age_days = verified.map(|at| now.0.saturating_sub(at.0) / DAY_MILLIS);
        let class = age_days.and_then(|age| CLASSES_DAYS.iter().position(|most| age < *most));
        self.histogram[class.unwrap_or(CLASSES_DAYS.len())] += 1;
        let at = verified.unwrap_or(id.instance.time()).min(now);
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }

    /// Into what a node tells.
    pub fn tell(&self, age: &mut ScrubAge) {
        age.histogram = self.histogram;
        age.oldest = self.oldest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 1_700_000_000_000;

    fn day(number: u64) -> WallMillis {
        WallMillis(BEGIN + number * DAY_MILLIS)
    }

    /// Shard of an instance written on that day.
    fn shard(written: u64, number: u128) -> ShardId {
        let instance = InstanceId::new(day(written), number);
        ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) }
    }

    #[test]
    fn a_pass_that_began_in_the_future_is_followed_by_another_at_once() {
        let mut history = History::new(day(1));
        history.begin(day(10), false);
        let rest =
            |now: u64| history.present().and_then(|pass| pass.rest(day(now), Duration::from_secs(5 * 24 * 3_600)));
        assert_eq!(rest(12), Some(Duration::from_secs(3 * 24 * 3_600)));
        assert_eq!(rest(15), None);
        assert_eq!(rest(9), None, "the clock was set back");
    }

    #[test]
    fn ages_follow_the_present_pass_then_the_one_before_then_the_time_of_writing() {
        let mut history = History::new(day(10));
        let shards: Vec<ShardId> = (0..4).map(|number| shard(1, number)).collect();
        assert_eq!(history.verified_at(shards[0]), None, "there before, and never met");
        history.begin(day(11), false);
        for (id, at) in shards.iter().zip(11..) {
            history.mark(day(at), 0);
            history.advance(*id, 10);
        }
        history.finish();
        let times: Vec<_> = shards.iter().map(|id| history.verified_at(*id)).collect();
        assert_eq!(times, [11, 12, 13, 14].map(|at| Some(day(at))));
        assert_eq!(history.verified_at(shard(20, 1)), Some(day(20)), "written since");
        history.begin(day(30), false);
        history.advance(shards[0], 10);
        let times: Vec<_> = shards.iter().map(|id| history.verified_at(*id)).collect();
        assert_eq!(times, [30, 12, 13, 14].map(|at| Some(day(at))));
        // Begun anew in the middle: nothing is forgotten.
        history.begin(day(40), true);
        let times: Vec<_> = shards.iter().map(|id| history.verified_at(*id)).collect();
        assert_eq!(times, [30, 12, 13, 14].map(|at| Some(day(at))));
        assert_eq!(History::decode(&history.encode()), Some(history));
    }

    #[test]
    fn many_marks_become_fewer_and_never_younger() {
        let at = |number: u64| WallMillis(BEGIN + number);
        let known = |history: &History, number: u64| history.verified_at(shard(0, number.into())).unwrap_or_default();
        let mut history = History::new(day(1));
        for apart in [0, 12] {
            history = History::new(day(1));
            history.begin(day(0), false);
            for number in 0..5_000_u64 {
                history.mark(at(number), apart);
                history.advance(shard(0, number.into()), 1);
            }
            assert!((0..5_000).all(|number| known(&history, number) <= at(number)));
            assert!(history.encode().len() < 32 << 10);
        }
        (0..5_000).for_each(|number| assert!(known(&history, number) >= at(number.saturating_sub(12)), "{number}"));
        let whole = history.clone();
        history.begin(day(1), false);
        (0..100).for_each(|number| history.advance(shard(0, number), 1));
        history.begin(day(2), false);
        (100..5_000).for_each(|number| assert_eq!(known(&history, number), known(&whole, number), "{number}"));
        assert_eq!(History::decode(&history.encode()), Some(history));
    }

    #[test]
    fn torn_or_foreign_notes_are_no_notes_and_wrong_clocks_are_not_believed() {
        let mut history = History::new(day(0));
        history.begin(day(1), false);
        history.advance(shard(0, 1), 1);
        let bytes = history.encode();
        assert!((0..bytes.len()).all(|len| History::decode(&bytes[..len]).is_none()));
        assert!(History::decode(&[&bytes[..], &[0]].concat()).is_none());
        assert_eq!(history.clone().believed(day(1)), history);
        assert_eq!(history.believed(WallMillis(BEGIN - 1)), History::new(WallMillis(BEGIN - 1)));
    }

    #[test]
    fn a_census_counts_by_age_and_knows_the_oldest() {
        let mut history = History::new(day(10));
        history.begin(day(12), false);
        history.advance(shard(1, 1), 1);
        let mut census = Census::default();
        for id in [shard(1, 1), shard(1, 2), shard(14, 1), shard(16, 1)] {
            census.count(&history, id, day(16));
        }
        let mut age = ScrubAge::default();
        census.tell(&mut age);
        assert_eq!(age.histogram, [1, 0, 1, 1, 0, 0, 1], "today, two days, four days, never");
        assert_eq!(age.oldest, Some(day(1)));
    }
}
