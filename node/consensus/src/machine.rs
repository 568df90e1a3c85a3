//! The catalog as a replicated state: placeholder until the core's machine is there.

use std::sync::Arc;

use pacsvault_core::{
    catalog::{Entry, Outcome},
    ids::{Digest, LogIndex, Term, WallMillis},
    layout::Layout,
};
use pacsvault_ports::kv::{Batch, Kv, KvError};

/// Placeholder.
pub(crate) struct Catalog {
    digest: Digest,
    time: WallMillis,
}

impl Catalog {
    pub(crate) fn load(kv: &dyn Kv) -> Result<Self, String> {
        let digest = kv.get(b"\x02d").map_err(|e: KvError| e.to_string())?;
        let digest = digest.and_then(|d| Digest::from_slice(&d)).unwrap_or(Digest([0; 32]));
        Ok(Self { digest, time: WallMillis(0) })
    }

    pub(crate) fn apply(
        &mut self,
        _kv: &dyn Kv,
        entries: &[(LogIndex, Term, &[u8])],
    ) -> Result<(Batch, Vec<Vec<Outcome>>), String> {
        let mut batch = Batch::default();
        let mut outcomes = Vec::new();
        for (index, term, bytes) in entries {
            let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
            let count: usize = text.parse().map_err(|_| format!("bad entry {text}"))?;
            let mut hash = self.digest.0.to_vec();
            hash.extend_from_slice(&index.0.to_be_bytes());
            hash.extend_from_slice(&term.0.to_be_bytes());
            hash.extend_from_slice(bytes);
            self.digest = Digest::of(&hash);
            batch.put(b"\x02d".to_vec(), self.digest.0.to_vec());
            let mut key = b"\x03".to_vec();
            key.extend_from_slice(&index.0.to_be_bytes());
            batch.put(key, bytes.to_vec());
            outcomes.push(vec![Outcome::Done; count]);
        }
        Ok((batch, outcomes))
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn layout(&self) -> Option<Arc<Layout>> {
        None
    }

    pub(crate) fn time(&self) -> WallMillis {
        self.time
    }
}

pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    entry.commands.len().to_string().into_bytes()
}
