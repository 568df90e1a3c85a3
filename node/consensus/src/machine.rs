//! The core's catalog over the state store.
//!
//! **Invariants.** An entry that does not decode, or that the machine cannot apply, is an error that stops the replica.
//! After an error the machine is ahead of its store and is not used again.

use std::sync::Arc;

use pacsvault_core::{
    catalog::{Error, Machine, Outcome, Overlay, View, ViewError, wire::decode_entry},
    ids::{Digest, LogIndex, Term, WallMillis},
    layout::Layout,
};
use pacsvault_ports::kv::{Batch, Kv, KvError};

/// A store as the catalog reads it. Reads block, mostly on memory.
#[derive(Clone)]
pub(crate) struct KvView(pub(crate) Arc<dyn Kv>);

fn view_error(error: KvError) -> ViewError {
    ViewError { step: error.step, message: error.message }
}

impl View for KvView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        self.0.get(key).map_err(view_error)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ViewError> {
        self.0.scan(from, to, limit).map_err(view_error)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, ViewError> {
        self.0.last(from, to).map_err(view_error)
    }
}

/// The catalog of one replica.
pub(crate) struct Catalog {
    machine: Machine,
    view: KvView,
}

impl Catalog {
    /// The catalog that `kv` holds.
    pub(crate) fn load(kv: &Arc<dyn Kv>) -> Result<Self, Error> {
        let view = KvView(kv.clone());
        Ok(Self { machine: Machine::load(&view)?, view })
    }

    /// Applies encoded entries: the changes of all, and the outcomes of each.
    pub(crate) fn apply(&mut self, entries: &[(LogIndex, Term, &[u8])]) -> Result<(Batch, Vec<Vec<Outcome>>), Error> {
        let mut overlay = Overlay::new(&self.view);
        let mut outcomes = Vec::with_capacity(entries.len());
        for (index, term, bytes) in entries {
            let entry = decode_entry(bytes)?;
            outcomes.push(self.machine.apply(&mut overlay, *index, *term, &entry)?);
        }
        Ok((overlay.into_batch(), outcomes))
    }

    pub(crate) fn digest(&self) -> (LogIndex, Digest) {
        (self.machine.applied(), self.machine.digest())
    }

    pub(crate) fn layout(&self) -> Option<Arc<Layout>> {
        self.machine.layout()
    }

    pub(crate) fn time(&self) -> WallMillis {
        self.machine.time()
    }
}
