//! `apply(Replace)`: a live version gets another encoding of the same content.
//!
//! **Invariants.** The version keeps its number, its content and its attributes; only how it is coded and where it lies
//! changes, and the new encoding keeps the contract of its profile at that moment. The old instance stays known, as
//! deleted by this entry, which is the authority to sweep its shards. Retention does not forbid it: nothing is lost.

use super::command::{Outcome, Rejection, Replace, Seal, SealedInstance};
use super::machine::{At, Machine, Stop};
use super::query::{by_instance, read_version, resolve};
use super::record::Record;
use super::seal::{check_fences, check_structure, check_window, sealed_before};
use super::view::Overlay;
use super::wire::frame;
use super::wire_seal::{Placed, sealed_message};
use super::{Error, keys};
use crate::layout::Layout;
use crate::layout::survival::covers;

impl Machine {
    pub(super) fn replace(&mut self, overlay: &mut Overlay<'_>, at: At, replace: &Replace) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let seal = &replace.seal;
        let (named, promise) = self.profiles_of(&layout, seal)?;
        check_structure(seal, named, &layout).map_err(Rejection::Malformed)?;
        let of = || format!("version {} of {}", replace.version, seal.key);
        let present = read_version(overlay, &keys::object_name(&seal.key), replace.version)?;
        let present = present.filter(|record| record.deleted.is_none());
        let present = resolve(overlay, present.ok_or_else(|| Rejection::NotFound(of()))?)?;
        if present.seal.instance == seal.instance {
            return Ok(sealed_before(&layout, seal, present)?);
        }
        if present.seal.instance != replace.replaces {
            return Err(Rejection::Changed(of()).into());
        }
        if by_instance(overlay, seal.instance)?.is_some() {
            return Err(Rejection::Malformed(format!("instance id {} was sealed before", seal.instance)).into());
        }
        check_same(&present.seal, seal).map_err(Rejection::Malformed)?;
        check_window(seal.instance.time(), at.time)?;
        check_fences(seal, &layout)?;
        let survives = self.accepted(&layout, seal, promise, true)?;
        let sealed = SealedInstance {
            degraded: !covers(&survives, &promise.contract),
            contract: promise.contract.clone(),
            seal: seal.clone(),
            version: replace.version,
            survives,
            term: at.term,
            index: at.index,
            time: at.time,
            deleted: None,
            moved: std::collections::BTreeMap::new(),
        };
        self.store_replacement(overlay, at, &layout, replace, &sealed)?;
        Ok(Outcome::Sealed { sealed: Box::new(sealed), first: true })
    }

    fn store_replacement(
        &mut self,
        overlay: &mut Overlay<'_>,
        at: At,
        layout: &Layout,
        replace: &Replace,
        sealed: &SealedInstance,
    ) -> Result<(), Error> {
        let gone = || Error::Inconsistent(format!("the record of instance {} vanished", replace.replaces));
        let mut record = Record::live(overlay, replace.replaces)?.ok_or_else(gone)?;
        self.release(overlay, layout.format, record.seal()?)?;
        let placements = self.store_stripes(overlay, &sealed.seal, sealed.version, &record.name)?;
        let new = sealed_message(sealed, &Placed::ById(&placements));
        let mut old = std::mem::replace(&mut record.message, new);
        old.deleted = Some(at.index.0);
        overlay.put(keys::replaced(replace.replaces), frame(&old));
        overlay.put(keys::tombstone(at.index, replace.replaces), Vec::new());
        record.store(overlay);
        Ok(())
    }
}

/// A replacement may change how the content is kept, and nothing of what it is.
fn check_same(old: &Seal, new: &Seal) -> Result<(), String> {
    let differs = [
        ("key", old.key != new.key),
        ("size", old.size_bytes != new.size_bytes),
        ("digest", old.digest != new.digest),
        ("media type", old.media_type != new.media_type),
        ("list of attributes", old.attributes != new.attributes),
        ("reserved part", old.reserved != new.reserved),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(format!("a replacement has another {what} than what it replaces")),
        None => Ok(()),
    }
}
