//! Re-encoding: the content of one stored version is read, written again in another profile, and put in its place.
//!
//! The read and the write are the ordinary ones: a [`Download`] that proves every byte, and an upload with a fresh instance
//! id that is durable before anything is proposed. What differs is the last step, `Replace` instead of `Seal`.
//!
//! **Invariants.**
//! - The new encoding is proposed only when its size and BLAKE3 are those of the record, and its shards keep the whole
//!   contract of the profile; `apply` judges the latter again, and refuses when the record is another by now.
//! - A crash anywhere leaves the version as it was, or replaced: shards whose seal was not applied are orphans, which the
//!   sweeper collects as after any abandoned write, and the old shards go by the tombstone that the replacement wrote.
//! - Memory: three stripes being read and three being written at most. A piece that was read waits for memory to be
//!   written. So whoever re-encodes several at once gives the coordinator room to read for all of them, or two of them could
//!   wait for what the other holds: one stripe needs at most twice its content.

use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, Replace, SealedInstance},
    ids::ProfileName,
    layout::{Layout, Profile},
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault},
};

use crate::{Coordinator, Download, PutHeader, stripe::too_weak};

/// What became of a re-encoding.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Recoded {
    /// The version is kept as this record says from now on.
    Replaced(Box<SealedInstance>),
    /// Deleted or re-encoded by another meanwhile: look again.
    Outdated,
    /// The catalog refused it; the version is as it was. Another try may do if the cluster changes.
    Refused(Rejection),
}

/// Asked before so many bytes go on their way; returns when they may, or with the reason to give up.
pub type Pace<'a> = &'a (dyn Fn(u64) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync);

/// The pace of one that waits for nobody.
pub fn at_once(_bytes: u64) -> BoxFuture<'static, Result<(), Fault>> {
    Box::pin(async { Ok(()) })
}

impl Coordinator {
    /// Gives exactly the version in `sealed` another encoding of its content: that of the newest version of `profile`.
    ///
    /// # Errors
    /// It could not be read or written now, or (`Unknown`) nobody told how the proposal ended. It is safe to repeat: the
    /// version is as it was or replaced.
    pub async fn recode(&self, sealed: &SealedInstance, profile: &ProfileName) -> Result<Recoded, Fault> {
        self.recode_paced(sealed, profile, &at_once).await
    }

    /// As [`Coordinator::recode`], at the given pace; it counts bytes read and the shards made of them. Dropping the future,
    /// and a pace that gives up, abandon it.
    ///
    /// # Errors
    /// As [`Coordinator::recode`], and what `pace` gave up with.
    pub async fn recode_paced(
        &self,
        sealed: &SealedInstance,
        profile: &ProfileName,
        pace: Pace<'_>,
    ) -> Result<Recoded, Fault> {
        // The profile's newest version, not that of a layout from a moment ago: this write is long.
        let layout = self.cluster.refresh_layout().await?;
        let Some(code) = layout.profiles.get(profile).map(|profile| profile.code) else {
            return Ok(Recoded::Refused(Rejection::Unknown(format!("profile {profile}"))));
        };
        let old = &sealed.seal;
        let mut upload = self.begin_put(PutHeader {
            key: old.key.clone(),
            media_type: old.media_type.clone(),
            attributes: old.attributes.clone(),
            profile: Some(profile.clone()),
            strict: true,
            declared_size_bytes: Some(old.size_bytes),
            declared_digest: Some(old.digest),
        });
        let mut download = Download::new(self.cluster.clone(), sealed.clone(), 0, None)?;
        while let Some(piece) = download.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(fault) if fault.class == Class::NotFound => return Ok(Recoded::Outdated),
                Err(fault) => return Err(fault),
            };
            let written = (piece.len() * code.total()).div_ceil(code.data());
            pace((piece.len() + written) as u64).await?;
            upload.write(piece).await?;
        }
        // Without this, a download at its end holds the memory of its last piece.
        drop(download);
        let (mut seal, _) = upload.complete().await?;
        seal.reserved = old.reserved.clone();
        let replace = Replace { seal, version: sealed.version, replaces: old.instance };
        self.replace(replace).await
    }

    /// Whether a strict write in this profile could keep its contract now, as far as this coordinator knows of volumes: to be
    /// asked before work that would be in vain.
    ///
    /// # Errors
    /// What such a write would be refused with.
    pub fn could_keep(&self, layout: &Layout, profile: &Profile) -> Result<(), Fault> {
        match self.cluster.placer(layout, profile, &self.cluster.avoided(layout)) {
            Ok(placer) if placer.degraded() => Err(too_weak(profile, &placer)),
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::new(Class::Retry, "PV-NO-VOLUMES", error.to_string())),
        }
    }

    async fn replace(&self, replace: Replace) -> Result<Recoded, Fault> {
        let outcomes = self.propose(vec![Command::Replace(Box::new(replace))]).await?;
        match outcomes.into_iter().next() {
            Some(Outcome::Sealed { sealed, .. }) if sealed.deleted.is_none() => {
                self.cluster.wrote(&sealed.seal.key, sealed.index);
                Ok(Recoded::Replaced(sealed))
            }
            Some(Outcome::Sealed { .. } | Outcome::Rejected(Rejection::Changed(_) | Rejection::NotFound(_))) => {
                Ok(Recoded::Outdated)
            }
            Some(Outcome::Rejected(rejection)) => {
                // The catalog knows better than the cached layout: see it before the next try.
                let _ = self.cluster.refresh_layout().await;
                Ok(Recoded::Refused(rejection))
            }
            _ => Err(Fault::new(Class::Bug, "PV-BUG", "a replacement answered something else")),
        }
    }
}
