//! Finding sealed instances, and finding them again when what a reader holds is out of date.
//!
//! **Consistency.** A lookup sees every write of its own coordinator to that key, and whatever index its caller named.
//! It asks for more at first: a replica that has applied all writes of this coordinator, so that what it shows goes
//! forward. When none answers within the patience, as between the death of a leader and the next one, a lookup is
//! content with the writes to its own key: then it may see what others wrote there as of any earlier time, as with
//! [`Freshness::AtLeast`] of 0 at any replica.
//! That something is *not* stored is only ever said after the leader was asked. A listing names no key and waits.

use std::sync::Arc;

use pacsvault_core::{
    catalog::SealedInstance,
    ids::{ObjectKey, VersionNumber},
};
use pacsvault_ports::peer::{Class, Fault, Freshness, Lookup, Reply, Request};

use crate::{cluster::Cluster, unexpected};

/// Times that one reader looks its instance up again: a move ends within one, a second one may follow it.
pub const RENEWALS_MAX: u32 = 4;

impl Cluster {
    /// Finds one sealed instance. `NotFound` when it is not stored or deleted.
    pub async fn lookup(
        self: &Arc<Self>,
        key: &ObjectKey,
        version: Option<VersionNumber>,
        freshness: Freshness,
    ) -> Result<SealedInstance, Fault> {
        let request = |freshness| Request::Lookup(Lookup { key: key.clone(), version, freshness });
        let (first, later) = (self.with_own(freshness), self.with_own_of(key, freshness));
        match self.ask_either(&request(first), &request(later)).await?.reply {
            Reply::Found { sealed: Some(sealed), .. } => Ok(*sealed),
            Reply::Found { sealed: None, .. } => Err(Fault::new(
                Class::NotFound,
                "PV-NOT-FOUND",
                format!("{key} is not stored; `pacsvault ls` lists what is"),
            )),
            other => Err(unexpected(&other)),
        }
    }

    /// The record of `held` as it is now, and the layout to read it by; `None` if neither changed since.
    ///
    /// # Errors
    /// It cannot be found out, it was deleted, or there is other content in its place.
    pub async fn renewed(self: &Arc<Self>, held: &SealedInstance) -> Result<Option<SealedInstance>, Fault> {
        let before = self.layout_version();
        // What was moved away may be gone from its old place as soon as the log says so.
        let now = self.lookup(&held.seal.key, Some(held.version), Freshness::Linearizable).await?;
        let same_content = now.seal.digest == held.seal.digest && now.seal.size_bytes == held.seal.size_bytes;
        if now.seal.instance != held.seal.instance && !same_content {
            let text = format!("{} version {} has other content than before", held.seal.key, held.version);
            return Err(Fault::new(Class::Bug, "PV-BUG", text));
        }
        let layout = self.refresh_layout().await?.version;
        let same = now.seal == held.seal && before.is_none_or(|before| before == layout);
        Ok((!same).then_some(now))
    }
}
