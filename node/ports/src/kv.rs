//! An ordered key-value store with atomic batches and explicit durability.
//!
//! **Invariants.** A batch is atomic. Batches become durable in the order written: when a later batch is durable, so is
//! every earlier one. [`Durability::Synced`] returns only after the batch and all before it are durable.
//! After an error the store must not be used again (the process stops).

use std::sync::Arc;

pub use pacsvault_core::batch::{Batch, Change};
use pacsvault_core::catalog::view::{self, View, ViewError};

/// When a write may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After it is durable, with everything before it.
    Synced,
    /// At once; a crash may lose it (and then everything after it).
    Buffered,
}

/// Why the store failed. Fatal: the process must stop and recover by reopening.
#[derive(Debug, Clone, thiserror::Error)]
#[error("store failed while {step}: {message}")]
pub struct KvError {
    /// What was being done.
    pub step: &'static str,
    /// The engine's words.
    pub message: String,
}

/// Why an install does not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InstallError {
    /// What was sent does not fit, or another install was begun. The store is sound: begin again.
    #[error("cannot take over a checkpoint: {0}")]
    Unfit(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KvError),
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Name within the checkpoint.
    pub name: String,
    /// Bytes.
    pub len_bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
}

/// A consistent, read-only copy of the store's state, readable in pieces. Dropping the last handle frees it.
pub trait Checkpoint: Send + Sync {
    /// All files, sorted by name.
    fn files(&self) -> &[CheckpointFile];
    /// Reads `len` bytes of `name` from `offset`; fewer only at its end. Blocks.
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, KvError>;
}

/// A checkpoint being received. Survives a restart of the receiver: received bytes need not be sent again.
pub trait Install: Send {
    /// Bytes of `name` that are already here.
    fn received(&self, name: &str) -> Result<u64, InstallError>;
    /// Appends at `offset`, which must equal [`Install::received`]. Blocks.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), InstallError>;
    /// Verifies every file's length and digest, then replaces the store's whole content, durably and atomically: after a
    /// crash the store has either the old content or the new. On a digest mismatch the bad file is dropped and an
    /// error says which. Blocks.
    fn finish(self: Box<Self>, files: &[CheckpointFile]) -> Result<(), InstallError>;
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);
/// The result page of a scan: rows in order.
pub type Rows = Vec<Row>;

/// The store. All methods block; call them from a blocking context, or inline where reads are known to be cached.
pub trait Kv: Send + Sync {
    /// Value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// At most `limit` rows with `from <= key < to`, in ascending order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Rows, KvError>;
    /// The last row with `from <= key < to`.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Row>, KvError>;
    /// Applies a batch.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError>;
    /// Makes everything written so far durable, whatever its durability was.
    fn flush(&self) -> Result<(), KvError>;
    /// A consistent copy of the present content.
    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, KvError>;
    /// Begins (or resumes) receiving a checkpoint known by `id`; another id discards what was received before.
    fn begin_install(&self, id: &str) -> Result<Box<dyn Install>, KvError>;
}

/// A store as the catalog reads it. Clones read the same store.
#[derive(Clone)]
pub struct KvView(pub Arc<dyn Kv>);

impl View for KvView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        Ok(self.0.get(key)?)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<view::Rows, ViewError> {
        Ok(self.0.scan(from, to, limit)?)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<view::Row>, ViewError> {
        Ok(self.0.last(from, to)?)
    }
}

impl From<KvError> for ViewError {
    fn from(KvError { step, message }: KvError) -> Self {
        Self { step, message }
    }
}
