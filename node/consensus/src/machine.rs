//! The core's catalog over the state store.
//!
//! **Invariants.** An entry that does not decode, or that the machine cannot apply, is an error that stops the replica.
//! After an error the machine is ahead of its store and is not used again.

use std::sync::Arc;

use pacsvault_core::{
    catalog::{Error, Machine, Outcome, Overlay, wire::decode_entry},
    ids::{Digest, LogIndex, Term, WallMillis},
    layout::Layout,
};
use pacsvault_ports::kv::{Batch, Kv, KvView};

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

    /// The changes that make the derived sums those of the records, when they are not: after a release that knew no sums
    /// has applied entries, or a snapshot of one was taken over. One pass over all records.
    pub(crate) fn rebuild_sums(&mut self) -> Result<Option<Batch>, Error> {
        if !self.machine.sums_stale() {
            return Ok(None);
        }
        let mut overlay = Overlay::new(&self.view);
        self.machine.rebuild_sums(&mut overlay)?;
        Ok(Some(overlay.into_batch()))
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
