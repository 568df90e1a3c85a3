//! Changes of an ordered key-value state, as values: what `apply` returns and stores carry out atomically.

/// A change of one key or range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes the key; fine if absent.
    Delete(Vec<u8>),
    /// Removes all keys `from <= key < to`.
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Changes that happen together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// In order; a later one wins.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Adds a put.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push(Change::Put(key.into(), value.into()));
    }

    /// Adds a delete.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.changes.push(Change::Delete(key.into()));
    }
}
