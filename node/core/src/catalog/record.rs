//! The record of a live instance, read to be changed and put back where it was.

use super::query::{Placements, read_object, resolve};
use super::view::{Overlay, View};
use super::wire::{InstanceMessage, MissingMessage, ObjectMessage, frame, open_strict};
use super::wire_seal::{SealMessage, SealedMessage, StripeMessage};
use super::wire_words::present;
use super::{Error, SealedInstance, keys};
use crate::ids::{InstanceId, PlacementId, StripeIndex, VersionNumber, VolumeId};

/// A live record and its place.
pub(super) struct Record {
    /// Of its object.
    pub(super) name: Vec<u8>,
    /// As stored. Invariant: it has a seal, and is not deleted.
    pub(super) message: SealedMessage,
    /// When it lies in the object's row: the newest version ever given, which that row holds too.
    newest: Option<u32>,
}

impl Record {
    /// The record of `instance`; `None` when it is unknown, deleted, or was replaced by another encoding.
    pub(super) fn live(view: &dyn View, instance: InstanceId) -> Result<Option<Self>, Error> {
        let Some(bytes) = view.get(&keys::instance(instance))? else { return Ok(None) };
        let found: InstanceMessage = open_strict("instance record", &bytes)?;
        let name = found.object;
        let gone = || Error::Inconsistent(format!("instance {instance} is known and its record is not"));
        let object = read_object(view, &name)?.ok_or_else(gone)?;
        let in_object = object.live.filter(|live| live.version == found.version);
        let newest = in_object.is_some().then_some(object.newest);
        let message: SealedMessage = match in_object {
            Some(message) => message,
            None => {
                let bytes = view.get(&keys::version(&name, VersionNumber(found.version)))?.ok_or_else(gone)?;
                open_strict("version record", &bytes)?
            }
        };
        let own = message.seal.as_ref().is_some_and(|seal| seal.instance == instance.0);
        Ok((own && message.deleted.is_none()).then_some(Self { name, message, newest }))
    }

    /// Puts it back.
    pub(super) fn store(self, overlay: &mut Overlay<'_>) {
        match self.newest {
            Some(newest) => {
                let row = ObjectMessage { newest, live: Some(self.message) };
                overlay.put(keys::object(&self.name), frame(&row));
            }
            None => {
                overlay.put(keys::version(&self.name, VersionNumber(self.message.version)), frame(&self.message));
            }
        }
    }

    /// With its volumes.
    pub(super) fn read(&self, view: &dyn View) -> Result<SealedInstance, Error> {
        resolve(view, self.message.clone())
    }

    pub(super) fn seal(&self) -> Result<&SealMessage, Error> {
        present("seal of a record", self.message.seal.as_ref())
    }

    /// The stripe as stored, to be changed.
    pub(super) fn stripe(&mut self, stripe: StripeIndex) -> Option<&mut StripeMessage> {
        let at = usize::try_from(stripe.0).ok()?;
        self.message.seal.as_mut()?.stripes.get_mut(at)
    }
}

/// Volumes of a stored stripe.
pub(super) fn volumes(placements: &mut Placements<'_>, stripe: &StripeMessage) -> Result<Vec<VolumeId>, Error> {
    placements.get(PlacementId(stripe.placement))
}

/// Keeps the index of stripes with missing shards true.
pub(super) fn note_missing(
    overlay: &mut Overlay<'_>,
    (instance, stripe): (InstanceId, StripeIndex),
    persisted: u32,
    total: usize,
) -> Result<(), Error> {
    let key = keys::missing(instance, stripe);
    if persisted.count_ones() as usize != total {
        overlay.put(key, frame(&MissingMessage { persisted }));
    } else if overlay.get(&key)?.is_some() {
        overlay.delete(key);
    }
    Ok(())
}

/// Forgets that a stripe was set aside.
pub(super) fn forget_aside(overlay: &mut Overlay<'_>, instance: InstanceId, stripe: StripeIndex) -> Result<(), Error> {
    let key = keys::aside(instance, stripe);
    if overlay.get(&key)?.is_some() {
        overlay.delete(key);
    }
    Ok(())
}
