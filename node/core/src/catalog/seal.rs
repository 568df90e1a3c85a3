//! `apply(Seal)`: where a write becomes true.
//!
//! **Invariants.**
//! - A record exists only if, by the layout of that moment, every stripe survived the floor of the newest version of
//!   its profile, and its contract too when the seal is strict. `survives` is what *every* stripe survives.
//! - One instance id names one content for ever. Sealing is idempotent by instance id, whatever became of the record.
//! - It is idempotent by content too, against the newest live version of the key and no older one, but only while that
//!   record's shards are worth, by the layout of this moment, all that the new attempt's are, and the floor of the profile
//!   asked for. What is acknowledged is never more than what holds now; otherwise the attempt is a version of its own.
//! - An attempt has one outcome: what was answered with another's record is answered with it for as long as it could be
//!   sealed, though the key has other content since. A proposal that was held up must not become a version after its answer.
//! - Once `id.time < catalog_time − WRITE_WINDOW_MILLIS`, an unsealed id is never sealed: the sweeper relies on it.
//! - The object record, the study's sums and all indexes change in the same batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Error;
use super::command::{Outcome, Rejection, Seal, SealedInstance, StripeSeal};
use super::keys;
use super::machine::{At, Machine, Stop};
use super::query::{Placements, by_instance, read_object, read_version, resolve};
use super::sums::one_stripe;
use super::view::{Overlay, View};
use super::wire::{InstanceMessage, MissingMessage, ObjectMessage, StudyMessage, frame, open_strict};
use super::wire_seal::{Placed, SealedMessage, sealed, sealed_message};
use crate::ids::{InstanceId, PlacementId, ProfileName, ShardIndex, StripeIndex, VersionNumber, VolumeId, WallMillis};
use crate::layout::survival::{Held, covers, strongest, survives};
use crate::layout::{Contract, Failures, Layout, NodeState, Profile, VolumeState};
use crate::limits::{ATTRIBUTES_BYTES_MAX, STRIPE_BYTES_MAX, STRIPES_MAX, WRITE_WINDOW_MILLIS};

/// RFC 6838 allows 127 + 1 + 127 bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// Distinguished names of certificates are tens of bytes.
const COORDINATOR_BYTES_MAX: usize = 255;
/// A wrapped 32-byte key with its provider's envelope is below 1 KiB; post-quantum wrapping below 4 KiB.
const WRAPPED_KEY_BYTES_MAX: usize = 4 << 10;
/// Verdicts kept; each ~600 bytes, so at most ~10 MiB.
const JUDGEMENTS_CACHED: usize = 16_384;

/// Expired answers forgotten with each that is remembered: more than one, so that they do not add up.
const ANSWERS_FORGOTTEN: usize = 2;

/// What the shards of one stripe survive, by the present layout.
struct Judgement {
    survives: Vec<Failures>,
    /// Why the floor breaks, if it does.
    below_floor: Option<String>,
    /// Why the contract breaks, if it does.
    below_contract: Option<String>,
}

struct Judged {
    persisted: u32,
    /// Data shards of the stripe's code.
    data: usize,
    /// Whose newest version was asked about; it is of this layout.
    promise: ProfileName,
    judgement: Arc<Judgement>,
}

/// Remembers judgements while the layout stays: most stripes share few placements.
#[derive(Default)]
pub(super) struct Judgements {
    by_volumes: BTreeMap<Vec<VolumeId>, Vec<Judged>>,
    count: usize,
}

impl Judgements {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What `stripe` of a code with `data` data shards is worth to `promise`, the newest version of its profile.
    fn of(&mut self, layout: &Layout, data: usize, promise: &Profile, stripe: &StripeSeal) -> Arc<Judgement> {
        let known = self.by_volumes.get(&stripe.placement).and_then(|all| {
            let same = |one: &&Judged| one.persisted == stripe.persisted && one.data == data;
            all.iter().filter(same).find(|one| one.promise == promise.name)
        });
        if let Some(known) = known {
            return Arc::clone(&known.judgement);
        }
        if self.count >= JUDGEMENTS_CACHED {
            self.clear();
        }
        let judgement = Arc::new(judge(layout, data, promise, stripe));
        self.count += 1;
        self.by_volumes.entry(stripe.placement.clone()).or_default().push(Judged {
            persisted: stripe.persisted,
            data,
            promise: promise.name.clone(),
            judgement: Arc::clone(&judgement),
        });
        judgement
    }
}

/// What all stripes of a seal are worth, by the present layout.
struct Worth {
    /// What every stripe survives, strongest first.
    survives: Vec<Failures>,
    /// The first stripe that breaks the floor.
    below_floor: Option<Rejection>,
    /// The first stripe that breaks the contract.
    below_contract: Option<Rejection>,
}

/// What every stripe survives; refuses when one is below what is required.
fn accepted(strict: bool, worth: Worth) -> Result<Vec<Failures>, Rejection> {
    if worth.below_floor.is_some() {
        crate::sometimes!("recovery: seal refused: below its floor");
    }
    match worth.below_floor.or(worth.below_contract.filter(|_| strict)) {
        Some(weak) => Err(weak),
        None => Ok(worth.survives),
    }
}

fn judge(layout: &Layout, k: usize, promise: &Profile, stripe: &StripeSeal) -> Judgement {
    // Shards on nodes that are away, or fenced, do not count.
    let mut held: Vec<Held> = persisted(stripe).filter(|held| layout.counts(held.volume)).collect();
    if crate::probe::planted("weak-quorum") {
        // PLANTED BUG: one shard fewer than promised is enough.
        let missing = (0_u8..32).zip(&stripe.placement).find(|(shard, _)| stripe.persisted & (1 << shard) == 0);
        held.extend(missing.map(|(shard, volume)| Held { shard: ShardIndex(shard), volume: *volume }));
    }
    let breaks = |contract| survives(&held, k, contract, layout).err().map(|breaks| breaks.to_string());
    Judgement {
        survives: strongest(&held, k, layout),
        below_floor: breaks(&promise.floor),
        below_contract: breaks(&promise.contract),
    }
}

fn persisted(stripe: &StripeSeal) -> impl Iterator<Item = Held> + '_ {
    let durable = |shard: &u8| stripe.persisted & (1 << shard) != 0;
    let held = |(shard, volume): (u8, &VolumeId)| Held { shard: ShardIndex(shard), volume: *volume };
    (0_u8..32).zip(&stripe.placement).filter(move |(shard, _)| durable(shard)).map(held)
}

impl Machine {
    pub(super) fn seal(&mut self, overlay: &mut Overlay<'_>, at: At, seal: &Seal) -> Result<Outcome, Stop> {
        let layout = self.initialised()?;
        let (named, promise) = self.profiles_of(&layout, seal)?;
        check_structure(seal, named, &layout).map_err(Rejection::Malformed)?;
        if let Some(earlier) = by_instance(overlay, seal.instance)? {
            crate::sometimes!("recovery: attempt sealed before answered with its record");
            return Ok(sealed_before(&layout, seal, living(overlay, earlier)?)?);
        }
        if let Some(earlier) = answered_with(overlay, seal.instance)? {
            crate::sometimes!("recovery: attempt answered with another's record is answered so again");
            return Ok(sealed_before(&layout, seal, living(overlay, earlier)?)?);
        }
        let name = keys::object_name(&seal.key);
        let object = read_object(overlay, &name)?.unwrap_or_default();
        let worth = self.worth(&layout, seal, promise);
        if let Some(same) = same_content(overlay, seal, object.live.as_ref())?
            && let Some(same) = self.still_true(&layout, same, seal.strict, promise, &worth.survives)
        {
            crate::sometimes!("recovery: put deduplicated by its content");
            if layout.format >= 2 {
                remember_answer(overlay, at, seal.instance, same.seal.instance)?;
            }
            return Ok(Outcome::Sealed { sealed: Box::new(same), first: false });
        }
        check_window(seal.instance.time(), at.time)?;
        check_fences(seal, &layout)?;
        let survives = accepted(seal.strict, worth)?;
        let version = object
            .newest
            .checked_add(1)
            .ok_or_else(|| Rejection::NotAllowed(format!("{} has as many versions as can be counted", seal.key)))?;
        let sealed = SealedInstance {
            degraded: !covers(&survives, &promise.contract),
            contract: promise.contract.clone(),
            seal: seal.clone(),
            version: VersionNumber(version),
            survives,
            term: at.term,
            index: at.index,
            time: at.time,
            deleted: None,
            moved: BTreeMap::new(),
        };
        self.store_sealed(overlay, &name, object, &sealed)?;
        Ok(Outcome::Sealed { sealed: Box::new(sealed), first: true })
    }

    /// The profile that a seal names, and its newest version, which says what is promised.
    pub(super) fn profiles_of<'a, 'l>(
        &'a self,
        layout: &'l Layout,
        seal: &Seal,
    ) -> Result<(&'a Profile, &'l Profile), Rejection> {
        let named = self.profiles.get(&(seal.profile.clone(), seal.profile_version));
        named
            .zip(layout.profiles.get(&seal.profile))
            .ok_or_else(|| Rejection::Unknown(format!("version {} of profile {}", seal.profile_version, seal.profile)))
    }

    /// What every stripe survives; refuses when one is below what is required.
    pub(super) fn accepted(
        &mut self,
        layout: &Layout,
        seal: &Seal,
        promise: &Profile,
        strict: bool,
    ) -> Result<Vec<Failures>, Rejection> {
        accepted(strict, self.worth(layout, seal, promise))
    }

    /// Lets a record say what its shards are worth now, when that is more than it says: then it is all that it said before,
    /// or all that was promised.
    pub(super) fn raise(&mut self, layout: &Layout, sealed: &mut SealedInstance) {
        let Some(promise) = layout.profiles.get(&sealed.seal.profile) else { return };
        let now = self.worth(layout, &sealed.seal, promise).survives;
        let kept = covers(&now, &sealed.contract);
        let as_before = sealed.survives.iter().all(|one| covers(&now, &Contract::one(*one)));
        if as_before || (sealed.degraded && kept) {
            sealed.survives = now;
            sealed.degraded = !kept;
        }
    }

    /// What all stripes of `seal` are worth to `promise` by the present layout.
    fn worth(&mut self, layout: &Layout, seal: &Seal, promise: &Profile) -> Worth {
        let mut claims: BTreeSet<Vec<Failures>> = BTreeSet::new();
        let (mut below_floor, mut below_contract) = (None, None);
        for (stripe, index) in seal.stripes.iter().zip(0_u32..) {
            let judgement = self.judgements.of(layout, seal.code.data(), promise, stripe);
            let weak = |why: &String| Rejection::TooWeak { stripe: index, why: why.clone() };
            below_floor = below_floor.or_else(|| judgement.below_floor.as_ref().map(weak));
            below_contract = below_contract.or_else(|| judgement.below_contract.as_ref().map(weak));
            if !claims.contains(&judgement.survives) {
                claims.insert(judgement.survives.clone());
            }
        }
        Worth { survives: common(claims), below_floor, below_contract }
    }

    /// An earlier record of the same content as the answer to a new attempt whose shards survive `wanted`: saying no more
    /// than what holds by the present layout. `None` when that is less than
    /// is asked of it: less than the contract and than the new attempt offers.
    fn still_true(
        &mut self,
        layout: &Layout,
        mut earlier: SealedInstance,
        strict: bool,
        promise: &Profile,
        wanted: &[Failures],
    ) -> Option<SealedInstance> {
        let now = self.worth(layout, &earlier.seal, promise);
        // Keeping the contract asked for is enough: a repetition is no reason for another version because it happened to
        // survive more than anybody was promised.
        let as_good = wanted.iter().all(|one| covers(&now.survives, &Contract::one(*one)));
        if !(as_good || now.below_contract.is_none()) || now.below_floor.is_some() {
            crate::sometimes!("recovery: repetition stored anew: the earlier record is worth less");
            return None;
        }
        // Nodes that were away at sealing may be back; the record still promised no more than it did then.
        earlier.survives = common(BTreeSet::from([earlier.survives, now.survives]));
        earlier.degraded = !covers(&earlier.survives, &earlier.contract);
        // It may be of a profile that promises less: then, unless it is marked as degraded, nobody would be told.
        let enough = if earlier.degraded { !strict } else { now.below_contract.is_none() };
        enough.then_some(earlier)
    }

    fn store_sealed(
        &mut self,
        overlay: &mut Overlay<'_>,
        name: &[u8],
        object: ObjectMessage,
        sealed: &SealedInstance,
    ) -> Result<(), Error> {
        let seal = &sealed.seal;
        let placements = self.store_stripes(overlay, seal, sealed.version, name)?;
        let replaced = object.live.as_ref().and_then(|live| live.seal.as_ref()).map(|seal| seal.size_bytes);
        if let Some(live) = object.live {
            overlay.put(keys::version(name, VersionNumber(live.version)), frame(&live));
        }
        let live = Some(sealed_message(sealed, &Placed::ById(&placements)));
        overlay.put(keys::object(name), frame(&ObjectMessage { newest: sealed.version.0, live }));
        change_study(overlay, &seal.key, replaced, Some(seal.size_bytes))
    }

    /// Indexes and sums of a record about to be stored; answers the placement of each stripe.
    pub(super) fn store_stripes(
        &mut self,
        overlay: &mut Overlay<'_>,
        seal: &Seal,
        version: VersionNumber,
        name: &[u8],
    ) -> Result<Vec<PlacementId>, Error> {
        let mut placements: Vec<PlacementId> = Vec::with_capacity(seal.stripes.len());
        for (stripe, index) in seal.stripes.iter().zip(0_u32..) {
            let id = self.intern(overlay, &stripe.placement)?;
            placements.push(id);
            self.tally.add(id, &seal.profile, seal.profile_version, one_stripe(seal.code, stripe.stripe_bytes));
            overlay.put(keys::placement_stripe(id, seal.instance, StripeIndex(index)), Vec::new());
            if stripe.persisted.count_ones() as usize != seal.code.total() {
                let missing = MissingMessage { persisted: stripe.persisted };
                overlay.put(keys::missing(seal.instance, StripeIndex(index)), frame(&missing));
            }
        }
        let instance = InstanceMessage { version: version.0, object: name.to_vec() };
        overlay.put(keys::instance(seal.instance), frame(&instance));
        Ok(placements)
    }
}

/// What is survived by all, given what each survives.
pub(super) fn survived_by_both(one: &[Failures], other: &[Failures]) -> Vec<Failures> {
    common(BTreeSet::from([one.to_vec(), other.to_vec()]))
}

/// Replaces an object of `before` bytes by one of `after` bytes in the sums of its study; `None` is no object.
pub(super) fn change_study(
    overlay: &mut Overlay<'_>,
    key: &crate::ids::ObjectKey,
    before: Option<u64>,
    after: Option<u64>,
) -> Result<(), Error> {
    let row = keys::study(&key.tenant, &key.study);
    let sums: StudyMessage = match overlay.get(&row)? {
        Some(bytes) => open_strict("study record", &bytes)?,
        None => StudyMessage::default(),
    };
    let moved = |sum: u64, minus: u64, plus: u64| {
        sum.checked_sub(minus)
            .and_then(|rest| rest.checked_add(plus))
            .ok_or_else(|| Error::Inconsistent(format!("study {}: {sum} − {minus} + {plus} is no sum", key.study)))
    };
    let objects = moved(sums.objects, before.is_some().into(), after.is_some().into())?;
    let size_bytes = moved(sums.size_bytes, before.unwrap_or(0), after.unwrap_or(0))?;
    if objects == 0 {
        overlay.delete(row);
    } else {
        overlay.put(row, frame(&StudyMessage { objects, size_bytes }));
    }
    Ok(())
}

/// Everything that a seal says must agree with itself, its profile and the layout.
pub(super) fn check_structure(seal: &Seal, profile: &Profile, layout: &Layout) -> Result<(), String> {
    if seal.code != profile.code {
        return Err(format!("code {} is not {} of profile {}", seal.code, profile.code, profile.name));
    }
    check_sizes(seal)?;
    for (index, stripe) in seal.stripes.iter().enumerate() {
        let total = seal.code.total();
        if stripe.placement.len() != total {
            return Err(format!("stripe {index} has {} places for {total} shards", stripe.placement.len()));
        }
        if u64::from(stripe.persisted) >> total != 0 {
            return Err(format!("stripe {index} has persisted shards beyond {total}"));
        }
        if let Some(unknown) = stripe.placement.iter().find(|volume| !layout.volumes.contains_key(*volume)) {
            return Err(format!("stripe {index} names volume {unknown}, which is not part of this cluster"));
        }
    }
    let bounded = |what: &str, bytes: usize, max: usize| {
        if bytes <= max { Ok(()) } else { Err(format!("{what} has {bytes} bytes, at most {max} are kept")) }
    };
    let attributes = seal.attributes.iter().map(|attribute| attribute.value.len() + 4).sum();
    let blind_index = seal.reserved.blind_index.iter().map(|hash| hash.len() + 4).sum();
    bounded("media type", seal.media_type.len(), MEDIA_TYPE_BYTES_MAX)?;
    bounded("coordinator", seal.coordinator.len(), COORDINATOR_BYTES_MAX)?;
    bounded("list of attributes", attributes, ATTRIBUTES_BYTES_MAX)?;
    bounded("list of encrypted attributes", seal.reserved.encrypted_attributes.len(), 2 * ATTRIBUTES_BYTES_MAX)?;
    bounded("blind index", blind_index, ATTRIBUTES_BYTES_MAX)?;
    bounded("wrapped key", seal.reserved.wrapped_key.len(), WRAPPED_KEY_BYTES_MAX)?;
    bounded("audit chain hash", seal.reserved.audit_chain_hash.len(), 64)
}

/// All stripes but the last are equally long and the last is no longer, so that a reader finds the stripe of an
/// offset by one division.
fn check_sizes(seal: &Seal) -> Result<(), String> {
    let (Some(first), Some(last)) = (seal.stripes.first(), seal.stripes.last()) else {
        return Err("it has no stripe".to_owned());
    };
    if seal.stripes.len() > STRIPES_MAX as usize {
        return Err(format!("it has {} stripes, at most {STRIPES_MAX} are allowed", seal.stripes.len()));
    }
    let whole = &seal.stripes[..seal.stripes.len() - 1];
    if whole.iter().any(|stripe| stripe.stripe_bytes != first.stripe_bytes) || last.stripe_bytes > first.stripe_bytes {
        return Err("only its last stripe may be shorter than the first".to_owned());
    }
    if first.stripe_bytes > STRIPE_BYTES_MAX {
        return Err(format!("its stripes have {} bytes, at most {STRIPE_BYTES_MAX} are allowed", first.stripe_bytes));
    }
    if last.stripe_bytes == 0 && seal.stripes.len() > 1 {
        return Err("its last stripe is empty".to_owned());
    }
    // No overflow: STRIPES_MAX × STRIPE_BYTES_MAX is 1 TiB.
    let sum: u64 = seal.stripes.iter().map(|stripe| stripe.stripe_bytes).sum();
    if sum == seal.size_bytes { Ok(()) } else { Err(format!("{sum} bytes in stripes, {} claimed", seal.size_bytes)) }
}

/// The record that stands for what `earlier` was: itself, or the encoding that took its place in a version that lives on.
fn living(view: &dyn View, earlier: SealedInstance) -> Result<SealedInstance, Error> {
    if earlier.deleted.is_none() {
        return Ok(earlier);
    }
    let present = read_version(view, &keys::object_name(&earlier.seal.key), earlier.version)?;
    match present.filter(|record| record.deleted.is_none()) {
        Some(record) => resolve(view, record),
        None => Ok(earlier),
    }
}

/// The same attempt again: its first record, even if it was deleted since, saying no more than what its shards survive where
/// they are by now. While sites are away repair may bring them all together; that nothing is lost meanwhile rests on former
/// homes, which an acknowledgement does not show.
pub(super) fn sealed_before(layout: &Layout, seal: &Seal, mut earlier: SealedInstance) -> Result<Outcome, Rejection> {
    let known = &earlier.seal;
    if known.key == seal.key && known.digest == seal.digest && known.size_bytes == seal.size_bytes {
        let (layout, k) = (with_all_there(layout), known.code.data());
        let distinct: BTreeMap<(&[VolumeId], u32), &StripeSeal> =
            known.stripes.iter().map(|stripe| ((&stripe.placement[..], stripe.persisted), stripe)).collect();
        let lasting = |stripe: &&StripeSeal| strongest(&persisted(stripe).collect::<Vec<Held>>(), k, &layout);
        let now = common(distinct.values().map(lasting).collect());
        earlier.survives = common(BTreeSet::from([std::mem::take(&mut earlier.survives), now]));
        earlier.degraded = !covers(&earlier.survives, &earlier.contract);
        Ok(Outcome::Sealed { sealed: Box::new(earlier), first: false })
    } else {
        Err(Rejection::Malformed(format!("instance id {} was sealed with other content", seal.instance)))
    }
}

/// The layout as it will be when everybody who may return has done so.
fn with_all_there(layout: &Layout) -> Layout {
    let mut whole = layout.clone();
    for node in whole.nodes.values_mut().filter(|node| node.state != NodeState::Removed) {
        node.state = NodeState::Up;
    }
    for volume in whole.volumes.values_mut().filter(|volume| volume.state != VolumeState::Fenced) {
        volume.state = VolumeState::Up;
    }
    whole
}

/// The record that this attempt was answered with, when that is another's.
fn answered_with(view: &dyn View, attempt: InstanceId) -> Result<Option<SealedInstance>, Error> {
    let Some(value) = view.get(&keys::answered(attempt))? else { return Ok(None) };
    let earlier = keys::parse_answered(&value)?;
    let gone = || Error::Inconsistent(format!("attempt {attempt} was answered with {earlier}, which is not known"));
    by_instance(view, earlier)?.ok_or_else(gone).map(Some)
}

/// Remembers the answer of an attempt until the attempt expires; forgets answers of attempts that have.
fn remember_answer(overlay: &mut Overlay<'_>, at: At, attempt: InstanceId, record: InstanceId) -> Result<(), Error> {
    let horizon = at.time.0.saturating_sub(WRITE_WINDOW_MILLIS);
    let (from, to) = keys::all_answered();
    for (key, _) in overlay.scan(&from, &to, ANSWERS_FORGOTTEN)? {
        if keys::parse_answered(&key)?.time().0 >= horizon {
            break;
        }
        overlay.delete(key);
    }
    if attempt.time().0 >= horizon {
        overlay.put(keys::answered(attempt), record.0.to_vec());
    }
    Ok(())
}

/// The newest live version, when it has the content to be sealed. Older versions with that content are not looked for:
/// then the newest has other content, and the attempt is to be the newest.
fn same_content(view: &dyn View, seal: &Seal, live: Option<&SealedMessage>) -> Result<Option<SealedInstance>, Error> {
    let Some(live) = live else { return Ok(None) };
    let same = live
        .seal
        .as_ref()
        .is_some_and(|known| known.digest == seal.digest.0.as_slice() && known.size_bytes == seal.size_bytes);
    // PLANTED BUG: what is there already is what is to be stored.
    let same = same || crate::probe::planted("dedup-any-content");
    if !same {
        return Ok(None);
    }
    let mut placements = Placements::new(view);
    sealed(live.clone(), &mut |id| placements.get(id)).map(Some)
}

pub(super) fn check_window(began: WallMillis, now: WallMillis) -> Result<(), Rejection> {
    let horizon = now.0.saturating_sub(WRITE_WINDOW_MILLIS);
    // PLANTED BUG: an attempt may come however late.
    if began.0 < horizon && !crate::probe::planted("lost-window") {
        crate::sometimes!("recovery: seal refused: the attempt has expired");
        return Err(Rejection::WindowClosed { began: began.0, horizon });
    }
    // An id from the far future could not be swept until then, and would still be sealable when everyone has
    // forgotten it. Its coordinator's clock is wrong, and nobody notices unless told.
    if began.0 > now.0.saturating_add(WRITE_WINDOW_MILLIS) {
        return Err(Rejection::NotAllowed(format!(
            "the attempt claims to begin at {} ms, more than a day after the cluster's {} ms: \
             set the clock of the coordinator (or of the leader) and write again",
            began.0, now.0
        )));
    }
    Ok(())
}

/// Shards on a fenced volume, or of a removed node, are gone for good: the coordinator must place again. A node that
/// is down returns; its shards just do not count now.
pub(super) fn check_fences(seal: &Seal, layout: &Layout) -> Result<(), Rejection> {
    if crate::probe::planted("lost-fence") {
        // PLANTED BUG: what lies on a volume that was given up counts.
        return Ok(());
    }
    let mut held = seal.stripes.iter().flat_map(persisted);
    let gone = held.find(|held| {
        let fenced = layout.volumes.get(&held.volume).is_none_or(|volume| volume.state == VolumeState::Fenced);
        fenced || layout.node_of(held.volume).is_none_or(|node| node.state == NodeState::Removed)
    });
    gone.map_or(Ok(()), |held| {
        crate::sometimes!("recovery: seal refused: it names a fenced volume");
        Err(Rejection::Fenced { volume: held.volume })
    })
}

/// The strongest failure sets that all claims cover, strongest first.
pub(crate) fn common(claims: BTreeSet<Vec<Failures>>) -> Vec<Failures> {
    if claims.len() <= 1 {
        return claims.into_iter().next().unwrap_or_default();
    }
    let most = |of: fn(&Failures) -> u8| claims.iter().flatten().map(of).max().unwrap_or(0);
    // A claim {s, n} covers up to s + n nodes ([`covers`]), so no common set lies outside this grid.
    let (sites, nodes) = (most(|one| one.sites), most(|one| one.sites.saturating_add(one.nodes)));
    let grid = (0..=sites).rev().flat_map(|sites| (0..=nodes).rev().map(move |nodes| Failures { sites, nodes }));
    let mut strongest: Vec<Failures> = Vec::new();
    for candidate in grid {
        let one = Contract::one(candidate);
        if !covers(&strongest, &one) && claims.iter().all(|claim| covers(claim, &one)) {
            strongest.push(candidate);
        }
    }
    strongest
}
