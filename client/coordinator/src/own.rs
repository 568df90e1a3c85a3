//! What this coordinator wrote lately: which index of the log a read of a key must not fall behind.
//!
//! **Invariants.** [`OwnWrites::of_key`] is at least the index of every write of that key that was noted, and at most the
//! largest index noted. At most [`KEYS_MAX`] keys are remembered. Of what was forgotten the largest index counts for
//! every key.

use std::collections::{BTreeMap, BTreeSet};

use pacsvault_core::ids::{LogIndex, ObjectKey};

/// Keys remembered: 4 096 × 2 × about 300 bytes of UIDs. A replica that is so many writes behind is away anyway.
const KEYS_MAX: usize = 4_096;

/// Indexes of own seals and deletions.
#[derive(Default)]
pub struct OwnWrites {
    newest: LogIndex,
    by_key: BTreeMap<ObjectKey, LogIndex>,
    by_index: BTreeSet<(LogIndex, ObjectKey)>,
    forgotten: LogIndex,
}

impl OwnWrites {
    /// A write of `key` is visible from `index` on.
    pub fn note(&mut self, key: &ObjectKey, index: LogIndex) {
        self.newest = self.newest.max(index);
        if index <= self.of_key(key) {
            return;
        }
        if let Some(earlier) = self.by_key.insert(key.clone(), index) {
            self.by_index.remove(&(earlier, key.clone()));
        }
        self.by_index.insert((index, key.clone()));
        if self.by_key.len() > KEYS_MAX
            && let Some((oldest, key)) = self.by_index.pop_first()
        {
            self.by_key.remove(&key);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    /// From here on all own writes are visible.
    pub fn newest(&self) -> LogIndex {
        self.newest
    }

    /// From here on all own writes of `key` are visible.
    pub fn of_key(&self, key: &ObjectKey) -> LogIndex {
        self.by_key.get(key).copied().unwrap_or_default().max(self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> ObjectKey {
        format!("main/1.2.3/1.2.4/1.2.5.{number}").parse().expect("a key")
    }

    #[test]
    fn a_key_is_as_fresh_as_its_own_last_write() {
        let mut own = OwnWrites::default();
        own.note(&key(1), LogIndex(7));
        own.note(&key(2), LogIndex(9));
        own.note(&key(1), LogIndex(5));
        assert_eq!((own.of_key(&key(1)), own.of_key(&key(2))), (LogIndex(7), LogIndex(9)));
        assert_eq!((own.of_key(&key(3)), own.newest()), (LogIndex(0), LogIndex(9)));
    }

    #[test]
    fn what_is_forgotten_counts_for_every_key() {
        let mut own = OwnWrites::default();
        let index = |number: usize| LogIndex(u64::try_from(number).expect("small") + 1);
        for number in 0..KEYS_MAX + 10 {
            own.note(&key(number), index(number));
            own.note(&key(5), index(number));
        }
        assert_eq!(own.by_key.len(), KEYS_MAX);
        assert_eq!(own.by_index.len(), KEYS_MAX);
        let last = KEYS_MAX + 9;
        assert_eq!((own.of_key(&key(5)), own.of_key(&key(last))), (index(last), index(last)));
        // Keys 0 to 10 were forgotten, all but the fifth.
        for number in [0, 4, 10, last + 1] {
            assert_eq!(own.of_key(&key(number)), index(10), "key {number}");
        }
        assert_eq!(own.of_key(&key(11)), index(11));
    }
}
