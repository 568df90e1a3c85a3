//! Reads of the catalog: lookups, listings, and the indexes that sweeping, repair and reconciliation walk.
//!
//! **Invariants.** Pure functions of a view; what they answer is as fresh as the view. Deleted versions appear only in
//! [`by_instance`] and the walks, which decide about shards; never in [`lookup`] and [`list`]. Every answer is bounded.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::command::SealedInstance;
use super::machine::DIGESTS_REMEMBERED;
use super::view::View;
use super::wire::{DigestMessage, InstanceMessage, ObjectMessage, PlacementMessage, StudyMessage, open_strict};
use super::wire_seal::{SealedMessage, sealed};
use super::wire_words::{digest, volume_ids};
use super::{Error, keys};
use crate::ids::{
    Digest, InstanceId, LogIndex, ObjectKey, PlacementId, ShardIndex, StripeIndex, Tenant, Uid, VersionNumber, VolumeId,
};
use crate::limits::LIST_ROWS_MAX;

pub use super::groups::{
    aside, asides, group_stripes, groups, stripe_state, study_profile, study_profiles, volume_sums,
};

/// A page ends early once its records pass this size: with the largest record below 16 MiB, it fits a message.
const PAGE_BYTES: usize = 1 << 20;
/// Rows read at once by a listing.
const SCAN_ROWS: usize = 128;
/// Rows that one page may look at; deleted objects are passed over, so a page may be short before the end.
const ROWS_SEEN_MAX: usize = 8 * LIST_ROWS_MAX;
/// Entries of consensus in a row that a search for a digest passes: elections and membership changes without any command
/// between them are a few.
const FOREIGN_ENTRIES_MAX: usize = 64;
/// First byte of a page token.
const TOKEN_FORMAT: u8 = 1;

/// Sum over a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyRow {
    /// Study Instance UID.
    pub study: Uid,
    /// Instances and documents, newest versions that are not deleted.
    pub objects: u64,
    /// Their content bytes.
    pub size_bytes: u64,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// When studies were asked for.
    pub studies: Vec<StudyRow>,
    /// Otherwise: newest live versions in key order.
    pub instances: Vec<SealedInstance>,
    /// Empty at the end. A page may be short, even empty, before the end.
    pub next_page_token: Vec<u8>,
}

/// A stripe that a volume was given shards of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStripe {
    /// Where the walk stands: pass it as `after` to go on.
    pub position: StripePosition,
    /// Shards of the stripe that belong on the volume, persisted or not.
    pub shards: Vec<ShardIndex>,
}

/// Names a stripe and the placement it was found by; the order of [`stripes_on`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StripePosition {
    /// Placement of the stripe.
    pub placement: PlacementId,
    /// Instance of the stripe, perhaps deleted: ask [`by_instance`].
    pub instance: InstanceId,
    /// Which stripe of it.
    pub stripe: StripeIndex,
}

/// Finds a sealed instance: this version, or the newest live one. `None` when absent or deleted, also when the deleted
/// version is named: content that was deleted is not served.
/// # Errors
/// The state is unreadable.
pub fn lookup(
    view: &dyn View,
    key: &ObjectKey,
    version: Option<VersionNumber>,
) -> Result<Option<SealedInstance>, Error> {
    let name = keys::object_name(key);
    let record = match version {
        None => read_object(view, &name)?.and_then(|object| object.live),
        Some(version) => read_version(view, &name, version)?,
    };
    match record {
        Some(record) if record.deleted.is_none() => resolve(view, record).map(Some),
        _ => Ok(None),
    }
}

/// Finds what an attempt sealed, deleted or not: `deleted` names the entry that allows to sweep its shards, which is also
/// so when the version lives on in another encoding. `None` means that no entry up to the view's has sealed it.
/// # Errors
/// The state is unreadable.
pub fn by_instance(view: &dyn View, instance: InstanceId) -> Result<Option<SealedInstance>, Error> {
    read_instance(view, instance)?.map(|record| resolve(view, record)).transpose()
}

/// The record that [`by_instance`] answers, as stored.
pub(super) fn read_instance(view: &dyn View, instance: InstanceId) -> Result<Option<SealedMessage>, Error> {
    let Some(bytes) = view.get(&keys::instance(instance))? else { return Ok(None) };
    let found: InstanceMessage = open_strict("instance record", &bytes)?;
    let gone = || Error::Inconsistent(format!("instance {instance} is known and its record is not"));
    let record = read_version(view, &found.object, VersionNumber(found.version))?.ok_or_else(gone)?;
    if record.seal.as_ref().is_some_and(|seal| seal.instance == instance.0) {
        return Ok(Some(record));
    }
    // Another encoding took its place. It is asked for last, because the view may be of a store that moves: the row is
    // written together with what was just read.
    let bytes = view.get(&keys::replaced(instance))?.ok_or_else(gone)?;
    open_strict("replaced record", &bytes).map(Some)
}

/// Lists a tenant, a study or a series in key order: newest live versions, or one row per study.
///
/// `series` counts only with `study`. `page_token` is empty or from the page before; `rows_max` is held to
/// 1..=[`LIST_ROWS_MAX`]. One range scan; a page ends early after about 1 MiB of records, or after many deleted ones.
/// # Errors
/// [`Error::PageToken`] when the token is not of this listing; otherwise the state is unreadable.
pub fn list(
    view: &dyn View,
    tenant: &Tenant,
    study: Option<&Uid>,
    series: Option<&Uid>,
    studies_only: bool,
    page_token: &[u8],
    rows_max: usize,
) -> Result<Page, Error> {
    let range = match (studies_only, study) {
        (false, _) => keys::objects(tenant, study, series),
        (true, None) => keys::studies(tenant),
        (true, Some(study)) => keys::within(keys::study(tenant, study)),
    };
    let rows_max = rows_max.clamp(1, LIST_ROWS_MAX);
    let mut from = resume(&range, page_token)?;
    let mut page = Page::default();
    let (mut bytes_listed, mut seen) = (0, 0);
    let mut placements = Placements::new(view);
    loop {
        let wanted = SCAN_ROWS.min(rows_max - page.studies.len() - page.instances.len());
        let rows = view.scan(&from, &range.1, wanted)?;
        if rows.len() < wanted && rows.is_empty() {
            return Ok(page);
        }
        let end = rows.len() < wanted;
        let count = rows.len();
        for (index, (key, value)) in rows.into_iter().enumerate() {
            if studies_only {
                page.studies.push(study_row(&key, &value)?);
            } else if let Some(record) = open_strict::<ObjectMessage>("object record", &value)?.live {
                bytes_listed += value.len() + record_growth(&record);
                page.instances.push(sealed(record, &mut |id| placements.get(id))?);
            }
            seen += 1;
            let full = page.studies.len() + page.instances.len() >= rows_max;
            let last = end && index + 1 == count;
            if !last && (full || bytes_listed >= PAGE_BYTES || seen >= ROWS_SEEN_MAX) {
                page.next_page_token = token(&key);
                return Ok(page);
            }
            from = keys::after(key);
        }
        if end {
            return Ok(page);
        }
    }
}

/// Stripes that were ever given to `volume`, as a range scan over its placements: what it held, for repair and for
/// the reconciliation of a returning volume. At most `limit` of them, after `after`; fewer only at the end.
/// # Errors
/// The state is unreadable.
pub fn stripes_on(
    view: &dyn View,
    volume: VolumeId,
    after: Option<StripePosition>,
    limit: usize,
) -> Result<Vec<HeldStripe>, Error> {
    let (mut from, to) = keys::volume_placements(volume);
    if let Some(position) = after {
        from = keys::volume_placement(volume, position.placement);
    }
    let mut placements = Placements::new(view);
    let mut held = Vec::new();
    while held.len() < limit {
        let Some((key, _)) = view.scan(&from, &to, 1)?.into_iter().next() else { break };
        let placement = keys::parse_volume_placement(&key)?;
        let volumes = placements.get(placement)?;
        let shards: Vec<ShardIndex> = (0_u8..=u8::MAX)
            .zip(&volumes)
            .filter(|(_, one)| **one == volume)
            .map(|(index, _)| ShardIndex(index))
            .collect();
        let (mut first, last) = keys::placement_stripes(placement);
        if let Some(position) = after.filter(|position| position.placement == placement) {
            first = keys::after(keys::placement_stripe(placement, position.instance, position.stripe));
        }
        for (key, _) in view.scan(&first, &last, limit - held.len())? {
            let (instance, stripe) = keys::parse_placement_stripe(&key)?;
            let position = StripePosition { placement, instance, stripe };
            held.push(HeldStripe { position, shards: shards.clone() });
        }
        from = keys::after(key);
    }
    Ok(held)
}

/// Stripes of live instances with shards that are not durable where they belong, in id order: repair's standing work. At most
/// `limit` of them, after `after`; fewer only at the end.
/// # Errors
/// The state is unreadable.
pub fn missing_shards(
    view: &dyn View,
    after: Option<(InstanceId, StripeIndex)>,
    limit: usize,
) -> Result<Vec<(InstanceId, StripeIndex)>, Error> {
    let (mut from, to) = keys::all_missing();
    if let Some((instance, stripe)) = after {
        from = keys::after(keys::missing(instance, stripe));
    }
    view.scan(&from, &to, limit)?.iter().map(|(key, _)| keys::parse_missing(key)).collect()
}

/// Deleted instances in the order of their deletes, each with the entry that deleted it: what may be swept. At most
/// `limit` of them, after `after`; fewer only at the end.
/// # Errors
/// The state is unreadable.
pub fn deleted_instances(
    view: &dyn View,
    after: Option<(LogIndex, InstanceId)>,
    limit: usize,
) -> Result<Vec<(LogIndex, InstanceId)>, Error> {
    let (mut from, to) = keys::tombstones();
    if let Some((index, instance)) = after {
        from = keys::after(keys::tombstone(index, instance));
    }
    view.scan(&from, &to, limit)?.iter().map(|(key, _)| keys::parse_tombstone(key)).collect()
}

/// The rolling digest that the state had after entry `upto`, and the last entry up to there that was the catalog's: those
/// of consensus do not change it. `None` when it is not remembered any more. The view must have applied `upto`.
/// # Errors
/// The state is unreadable.
pub fn remembered_digest(view: &dyn View, upto: LogIndex) -> Result<Option<(LogIndex, Digest)>, Error> {
    for index in (1..=upto.0).rev().take(FOREIGN_ENTRIES_MAX) {
        let Some(bytes) = view.get(&keys::digest(index % DIGESTS_REMEMBERED))? else { continue };
        let record: DigestMessage = open_strict("digest record", &bytes)?;
        match record.index.cmp(&index) {
            Ordering::Equal => return Ok(Some((LogIndex(index), digest(&record.digest)?))),
            // Nothing of the catalog had this index in the present round of the slots.
            Ordering::Less => {}
            Ordering::Greater => return Ok(None),
        }
    }
    Ok(None)
}

/// Interned placements, read once each.
pub(super) struct Placements<'v> {
    view: &'v dyn View,
    known: BTreeMap<PlacementId, Vec<VolumeId>>,
}

impl<'v> Placements<'v> {
    pub(super) fn new(view: &'v dyn View) -> Self {
        Self { view, known: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, id: PlacementId) -> Result<Vec<VolumeId>, Error> {
        if let Some(volumes) = self.known.get(&id) {
            return Ok(volumes.clone());
        }
        let bytes = self.view.get(&keys::placement(id))?;
        let bytes = bytes.ok_or_else(|| Error::Inconsistent(format!("placement {id} is not stored")))?;
        let record: PlacementMessage = open_strict("placement record", &bytes)?;
        let volumes = volume_ids(&record.volumes)?;
        self.known.insert(id, volumes.clone());
        Ok(volumes)
    }
}

pub(super) fn read_object(view: &dyn View, name: &[u8]) -> Result<Option<ObjectMessage>, Error> {
    view.get(&keys::object(name))?.map(|bytes| open_strict("object record", &bytes)).transpose()
}

/// The record of `version`: in the object's row while it is the newest live one, in a row of its own otherwise.
///
/// The view may be of a store that moves: between the two reads a delete can take the record out of the second row into
/// the first, where it was not yet looked for. So an absent row is believed at the second look only. For a third the
/// record would have to move to and fro in between, as a delete and a seal of the same key do it.
pub(super) fn read_version(
    view: &dyn View,
    name: &[u8],
    version: VersionNumber,
) -> Result<Option<SealedMessage>, Error> {
    for _look in 0..2 {
        let Some(object) = read_object(view, name)? else { return Ok(None) };
        if let Some(live) = object.live.filter(|live| live.version == version.0) {
            return Ok(Some(live));
        }
        if !(1..=object.newest).contains(&version.0) {
            return Ok(None);
        }
        if let Some(bytes) = view.get(&keys::version(name, version))? {
            return open_strict("version record", &bytes).map(Some);
        }
    }
    Ok(None)
}

pub(super) fn resolve(view: &dyn View, record: SealedMessage) -> Result<SealedInstance, Error> {
    let mut placements = Placements::new(view);
    sealed(record, &mut |id| placements.get(id))
}

fn study_row(key: &[u8], value: &[u8]) -> Result<StudyRow, Error> {
    let sums: StudyMessage = open_strict("study record", value)?;
    Ok(StudyRow { study: keys::parse_study(key)?, objects: sums.objects, size_bytes: sums.size_bytes })
}

/// Bytes that a stored record gains when its placements are written out.
fn record_growth(record: &SealedMessage) -> usize {
    let Some(seal) = &record.seal else { return 0 };
    let shards = seal.code.as_ref().map_or(0, |code| code.data.saturating_add(code.parity) as usize);
    seal.stripes.len() * shards * 16
}

fn token(key: &[u8]) -> Vec<u8> {
    [&[TOKEN_FORMAT], key].concat()
}

fn resume(range: &keys::Range, page_token: &[u8]) -> Result<Vec<u8>, Error> {
    match page_token.split_first() {
        None => Ok(range.0.clone()),
        Some((&TOKEN_FORMAT, key)) if range.0.as_slice() <= key && key < range.1.as_slice() => {
            Ok(keys::after(key.to_vec()))
        }
        Some(_) => Err(Error::PageToken),
    }
}
