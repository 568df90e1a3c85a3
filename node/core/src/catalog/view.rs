//! The state as `apply` and queries see it: an ordered map ([`View`]), and pending changes over one ([`Overlay`]).
//!
//! **Invariants.** An overlay answers every read as if its changes had been written. Its journal covers exactly the
//! changes made since the entry began, in the order made, so that the digest of an entry is the same however many
//! entries share an overlay.

use std::collections::BTreeMap;

use crate::batch::Batch;

/// The store below a view failed. Fatal for the replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {message}")]
pub struct ViewError {
    /// What was being done.
    pub step: &'static str,
    /// The store's words.
    pub message: String,
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);
/// Keys and values in order.
pub type Rows = Vec<Row>;

/// An ordered key-value state that can be read.
pub trait View: Send + Sync {
    /// Value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError>;
    /// At most `limit` rows with `from <= key < to`, in ascending order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, ViewError>;
    /// The last row with `from <= key < to`.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, ViewError>;
}

/// A state in memory; for tests and benchmarks, and for whatever fits.
impl View for BTreeMap<Vec<u8>, Vec<u8>> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, ViewError> {
        if from >= to {
            return Ok(Rows::new());
        }
        let rows = self.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, ViewError> {
        if from >= to {
            return Ok(None);
        }
        let mut rows = self.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(rows.next_back().map(|(key, value)| (key.clone(), value.clone())))
    }
}

/// Pending changes over a view. Several entries may share one; it becomes one atomic batch.
pub struct Overlay<'a> {
    base: &'a dyn View,
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    journal: blake3::Hasher,
}

impl<'a> Overlay<'a> {
    /// No changes yet.
    pub fn new(base: &'a dyn View) -> Self {
        Self { base, pending: BTreeMap::new(), journal: blake3::Hasher::new() }
    }

    /// Keys changed so far; the shell bounds its batches by it.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// True before the first change.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The changes, in key order.
    pub fn into_batch(self) -> Batch {
        let mut batch = Batch::default();
        for (key, value) in self.pending {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        batch
    }

    /// Starts the journal of an entry; `journal` already holds what precedes its changes.
    pub(super) fn begin_entry(&mut self, journal: blake3::Hasher) {
        self.journal = journal;
    }

    /// Digest of what [`Overlay::begin_entry`] was given and of every change since.
    pub(super) fn entry_digest(&self) -> blake3::Hash {
        self.journal.finalize()
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.note(1, &key, &value);
        self.put_outside_digest(key, value);
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.note(2, &key, &[]);
        self.pending.insert(key, None);
    }

    /// For records that are derived.
    pub(super) fn delete_outside_digest(&mut self, key: Vec<u8>) {
        self.pending.insert(key, None);
    }

    /// For records that hold the digest itself, and for derived ones.
    pub(super) fn put_outside_digest(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.pending.insert(key, Some(value));
    }

    /// Journals a change that is kept in a record outside the digest.
    pub(super) fn note_fact(&mut self, name: &str, value: &str) {
        self.note(3, name.as_bytes(), value.as_bytes());
    }

    fn note(&mut self, kind: u8, key: &[u8], value: &[u8]) {
        let mut head = [kind; 17];
        head[1..9].copy_from_slice(&(key.len() as u64).to_be_bytes());
        head[9..].copy_from_slice(&(value.len() as u64).to_be_bytes());
        self.journal.update(&head).update(key).update(value);
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        match self.pending.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, ViewError> {
        if from >= to {
            return Ok(Rows::new());
        }
        let bounds = (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to));
        // Every pending delete in the range can hide at most one row of the base.
        let hidden = self.pending.range::<[u8], _>(bounds).filter(|(_, value)| value.is_none()).count();
        let asked = limit.saturating_add(hidden);
        let mut below = self.base.scan(from, to, asked)?.into_iter().peekable();
        let mut above = self.pending.range::<[u8], _>(bounds).peekable();
        let mut rows = Rows::new();
        while rows.len() < limit {
            match (below.peek(), above.peek()) {
                (Some((low, _)), Some((high, _))) if low < *high => rows.extend(below.next()),
                (_, Some((high, _))) => {
                    below.next_if(|(low, _)| low == *high);
                    let Some((key, value)) = above.next() else { break };
                    rows.extend(value.as_ref().map(|value| (key.clone(), value.clone())));
                }
                (Some(_), None) => rows.extend(below.next()),
                (None, None) => break,
            }
        }
        Ok(rows)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, ViewError> {
        if from >= to {
            return Ok(None);
        }
        let bounds = (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to));
        let above = self.pending.range::<[u8], _>(bounds).rev().find(|(_, value)| value.is_some());
        let mut end = to.to_vec();
        // Each step passes one pending delete, so the steps are bounded by their number.
        let below = loop {
            match self.base.last(from, &end)? {
                Some((key, _)) if self.pending.contains_key(&key) => end = key,
                found => break found,
            }
        };
        let above = above.and_then(|(key, value)| value.as_ref().map(|value| (key.clone(), value.clone())));
        Ok(match (above, below) {
            (Some(high), Some(low)) => Some(if high.0 > low.0 { high } else { low }),
            (high, low) => high.or(low),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type State = BTreeMap<Vec<u8>, Vec<u8>>;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0..3_u8, 0..3)
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_if_its_changes_were_written(
            base in proptest::collection::btree_map(key(), key(), 0..8),
            changes in proptest::collection::vec((key(), proptest::option::of(key())), 0..8),
            from in key(), to in key(), limit in 0..6_usize,
        ) {
            let mut written: State = base.clone();
            let mut overlay = Overlay::new(&base);
            for (key, value) in changes {
                match value {
                    Some(value) => {
                        written.insert(key.clone(), value.clone());
                        overlay.put(key, value);
                    }
                    None => {
                        written.remove(&key);
                        overlay.delete(key);
                    }
                }
            }
            prop_assert_eq!(overlay.get(&from), View::get(&written, &from));
            prop_assert_eq!(overlay.scan(&from, &to, limit), written.scan(&from, &to, limit));
            prop_assert_eq!(overlay.last(&from, &to), View::last(&written, &from, &to));
            let mut stored = base.clone();
            for change in overlay.into_batch().changes {
                match change {
                    crate::batch::Change::Put(key, value) => drop(stored.insert(key, value)),
                    crate::batch::Change::Delete(key) => drop(stored.remove(&key)),
                    crate::batch::Change::DeleteRange(..) => unreachable!("overlays do not make ranges"),
                }
            }
            prop_assert_eq!(stored, written);
        }
    }
}
