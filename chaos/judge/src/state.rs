//! The sequential object: which versions there are, and which of them are deleted.
//!
//! **Invariants.** Numbers only grow, a deleted version stays deleted. Deleted versions are kept as ranges, ascending, neither
//! touching nor overlapping, so that thousands of them cost a few words, and states that are equal compare equal.

use std::sync::Arc;

/// Versions of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Versions {
    /// The newest ever made.
    pub(crate) newest: u32,
    dead: Arc<Vec<(u32, u32)>>,
}

impl Versions {
    /// The range of deleted versions that has this one.
    fn grave(&self, version: u32) -> Option<(u32, u32)> {
        let after = self.dead.partition_point(|(first, _)| *first <= version);
        let (first, last) = *self.dead.get(after.checked_sub(1)?)?;
        (version <= last).then_some((first, last))
    }

    /// Whether it was made and not deleted.
    pub(crate) fn live(&self, version: u32) -> bool {
        (1..=self.newest).contains(&version) && self.grave(version).is_none()
    }

    /// The newest that is not deleted.
    pub(crate) fn newest_live(&self) -> Option<u32> {
        let last = self.grave(self.newest).map_or(self.newest, |(first, _)| first - 1);
        (last > 0).then_some(last)
    }

    /// The first live version above `after`, up to `through`.
    pub(crate) fn next_live(&self, after: u32, through: u32) -> Option<u32> {
        let next = after.saturating_add(1);
        let next = self.grave(next).map_or(next, |(_, last)| last.saturating_add(1));
        (next <= through.min(self.newest)).then_some(next)
    }

    /// How many live versions lie above `after`, up to `through`.
    pub(crate) fn count_live(&self, after: u32, through: u32) -> u32 {
        let through = through.min(self.newest);
        let buried = self.dead.iter().map(|(first, last)| {
            let (first, last) = ((*first).max(after.saturating_add(1)), (*last).min(through));
            if first <= last { last - first + 1 } else { 0 }
        });
        through.saturating_sub(after) - buried.sum::<u32>()
    }

    /// Deletes all above `after`, up to `through`.
    pub(crate) fn delete(&mut self, after: u32, through: u32) {
        let (mut first, mut last) = (after.saturating_add(1), through.min(self.newest));
        if first > last {
            return;
        }
        let mut ranges = Vec::with_capacity(self.dead.len() + 1);
        for (from, to) in self.dead.iter().copied() {
            if to.saturating_add(1) < first || from > last.saturating_add(1) {
                ranges.push((from, to));
            } else {
                (first, last) = (first.min(from), last.max(to));
            }
        }
        let at = ranges.partition_point(|(from, _)| *from < first);
        ranges.insert(at, (first, last));
        self.dead = Arc::new(ranges);
    }

    /// In a few words.
    pub(crate) fn describe(&self) -> String {
        let live = match self.newest_live() {
            Some(live) => format!("version {live} is the newest live one"),
            None => "no version is live".to_owned(),
        };
        format!("{} versions were made, {live}", self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_set() {
        let mut bits = 7_u32;
        for _ in 0..400 {
            let mut versions = Versions { newest: 12, ..Versions::default() };
            let mut dead = std::collections::BTreeSet::new();
            for _ in 0..6 {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (after, through) = ((bits >> 8) % 13, (bits >> 16) % 15);
                versions.delete(after, through);
                dead.extend(after + 1..=through.min(12));
            }
            let live: Vec<u32> = (1..=12).filter(|version| !dead.contains(version)).collect();
            assert_eq!((1..=13).filter(|version| versions.live(*version)).collect::<Vec<_>>(), live);
            assert_eq!(versions.newest_live(), live.last().copied());
            for (after, through) in [(0, 12), (3, 9), (5, 40), (7, 7), (12, 13)] {
                let within: Vec<u32> = live.iter().copied().filter(|one| (after + 1..=through).contains(one)).collect();
                assert_eq!(versions.next_live(after, through), within.first().copied());
                assert_eq!(usize::try_from(versions.count_live(after, through)), Ok(within.len()));
            }
        }
    }
}
