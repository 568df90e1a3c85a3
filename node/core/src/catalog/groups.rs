//! Queries of healing: sums by group, the stripes of a group, one stripe as repair sees it, and what people decided about
//! stripes and studies.
//!
//! **Invariants.** As in [`super::query`]: pure functions of a view. Sums are of live records only. Indexes may name
//! stripes that are deleted by now: [`stripe_state`] decides, and nothing is done to a stripe that it does not show.

use std::collections::BTreeMap;

use super::query::{Placements, read_instance};
use super::view::View;
use super::wire::{AsideRowMessage, SumsMessage, WantedProfileMessage, open_strict};
use super::wire_seal::{SealMessage, moved};
use super::wire_words::{ProfileMessage, present, text};
use super::{Error, keys};
use crate::health::{Aside, Group, StripeState, Sums};
use crate::ids::{InstanceId, LayoutVersion, PlacementId, ProfileName, StripeIndex, Tenant, Uid, VolumeId, WallMillis};
use crate::layout::Profile;
use crate::layout::profile::Code;

/// Rows read at once.
const ROWS: usize = 1_024;
/// Stripes set aside that are counted; nobody needs to tell more of them apart.
const ASIDES_COUNTED_MAX: u64 = 100_000;

/// All stripes of live records, by placement and version of their profile. Reads one row per group and one per placement.
/// # Errors
/// The state is unreadable.
pub fn groups(view: &dyn View) -> Result<Vec<Group>, Error> {
    let mut groups = Vec::new();
    let mut codes: BTreeMap<(ProfileName, u32), Code> = BTreeMap::new();
    let mut placements = Placements::new(view);
    let (mut from, to) = keys::all_sums();
    loop {
        let rows = view.scan(&from, &to, ROWS)?;
        let end = rows.len() < ROWS;
        for (key, value) in rows {
            let (placement, profile, profile_version) = keys::parse_sums(&key)?;
            let named = (profile, profile_version);
            let code = match codes.get(&named) {
                Some(code) => *code,
                None => read_code(view, &named.0, named.1)?,
            };
            codes.insert(named.clone(), code);
            groups.push(Group {
                placement,
                volumes: placements.get(placement)?,
                profile: named.0,
                profile_version,
                code,
                sums: read_sums(&value)?,
            });
            from = keys::after(key);
        }
        if end {
            return Ok(groups);
        }
    }
}

pub(super) fn read_sums(value: &[u8]) -> Result<Sums, Error> {
    let SumsMessage { stripes, content_bytes, shard_bytes } = open_strict("sums record", value)?;
    Ok(Sums { stripes, content_bytes, shard_bytes })
}

fn read_code(view: &dyn View, name: &ProfileName, version: u32) -> Result<Code, Error> {
    let gone = || Error::Inconsistent(format!("version {version} of profile {name} is not stored"));
    let bytes = view.get(&keys::profile(name, version))?.ok_or_else(gone)?;
    Profile::try_from(open_strict::<ProfileMessage>("profile record", &bytes)?).map(|profile| profile.code)
}

/// Stripes that share `placement`, of all profiles, in the order in which their attempts began. Some may be deleted by
/// now: ask [`stripe_state`]. At most `limit`, after `after`; fewer only at the end.
/// # Errors
/// The state is unreadable.
pub fn group_stripes(
    view: &dyn View,
    placement: PlacementId,
    after: Option<(InstanceId, StripeIndex)>,
    limit: usize,
) -> Result<Vec<(InstanceId, StripeIndex)>, Error> {
    let (mut from, to) = keys::placement_stripes(placement);
    if let Some((instance, stripe)) = after {
        from = keys::after(keys::placement_stripe(placement, instance, stripe));
    }
    view.scan(&from, &to, limit)?.iter().map(|(key, _)| keys::parse_placement_stripe(key)).collect()
}

/// One stripe as the catalog has it now; `None` when it is unknown, deleted, or belongs to an encoding that was replaced.
/// # Errors
/// The state is unreadable.
pub fn stripe_state(view: &dyn View, instance: InstanceId, stripe: StripeIndex) -> Result<Option<StripeState>, Error> {
    let Some(record) = read_instance(view, instance)?.filter(|record| record.deleted.is_none()) else {
        return Ok(None);
    };
    let seal: SealMessage = present("seal of a sealed record", record.seal)?;
    let at = usize::try_from(stripe.0).ok().and_then(|at| seal.stripes.get(at));
    let Some(stored) = at else { return Ok(None) };
    let latest = record.moved.iter().find(|one| one.stripe == stripe.0).map(moved).transpose()?;
    Ok(Some(StripeState {
        instance,
        stripe,
        stripe_bytes: stored.stripe_bytes,
        code: present("code", seal.code.clone())?.try_into()?,
        profile: text("profile name", &seal.profile)?,
        volumes: Placements::new(view).get(PlacementId(stored.placement))?,
        persisted: stored.persisted,
        former: latest.map(|(_, moved)| moved.former).unwrap_or_default(),
    }))
}

/// Stripes set aside, in id order, at most `limit`; and how many there are, counted up to 100 000.
/// # Errors
/// The state is unreadable.
pub fn asides(view: &dyn View, limit: usize) -> Result<(Vec<Aside>, u64), Error> {
    let mut found = Vec::new();
    let mut total = 0;
    let (mut from, to) = keys::all_asides();
    loop {
        let rows = view.scan(&from, &to, ROWS)?;
        let end = rows.len() < ROWS;
        for (key, value) in rows {
            if found.len() < limit {
                found.push(read_aside(keys::parse_aside(&key)?, &value)?);
            }
            total += 1;
            from = keys::after(key);
        }
        if end || total >= ASIDES_COUNTED_MAX {
            return Ok((found, total.min(ASIDES_COUNTED_MAX)));
        }
    }
}

/// Why this stripe is set aside, if it is.
/// # Errors
/// The state is unreadable.
pub fn aside(view: &dyn View, instance: InstanceId, stripe: StripeIndex) -> Result<Option<Aside>, Error> {
    view.get(&keys::aside(instance, stripe))?.map(|value| read_aside((instance, stripe), &value)).transpose()
}

fn read_aside((instance, stripe): (InstanceId, StripeIndex), value: &[u8]) -> Result<Aside, Error> {
    let AsideRowMessage { reason, since, layout } = open_strict("set-aside record", value)?;
    Ok(Aside { instance, stripe, reason, since: WallMillis(since), layout: LayoutVersion(layout) })
}

/// Studies with a wanted profile, in key order, at most `limit`, after `after`; fewer only at the end.
/// # Errors
/// The state is unreadable.
pub fn study_profiles(
    view: &dyn View,
    after: Option<(Tenant, Uid)>,
    limit: usize,
) -> Result<Vec<(Tenant, Uid, ProfileName)>, Error> {
    let (mut from, to) = keys::study_profiles();
    if let Some((tenant, study)) = after {
        from = keys::after(keys::study_profile(&tenant, &study));
    }
    let one = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let (tenant, study) = keys::parse_tenant_study(key)?;
        Ok((tenant, study, read_wanted(value)?))
    };
    view.scan(&from, &to, limit)?.iter().map(one).collect()
}

/// The profile that this study is to have, if one was set.
/// # Errors
/// The state is unreadable.
pub fn study_profile(view: &dyn View, tenant: &Tenant, study: &Uid) -> Result<Option<ProfileName>, Error> {
    view.get(&keys::study_profile(tenant, study))?.map(|value| read_wanted(&value)).transpose()
}

fn read_wanted(value: &[u8]) -> Result<ProfileName, Error> {
    text("profile name", &open_strict::<WantedProfileMessage>("wanted profile", value)?.profile)
}

/// What each volume holds by these groups: a stripe counts once per shard that is placed there.
pub fn volume_sums(groups: &[Group]) -> BTreeMap<VolumeId, Sums> {
    let mut volumes: BTreeMap<VolumeId, Sums> = BTreeMap::new();
    for group in groups {
        for volume in &group.volumes {
            let held = volumes.entry(*volume).or_default();
            held.stripes += group.sums.stripes;
            held.content_bytes += group.sums.content_bytes;
            held.shard_bytes += group.sums.shard_bytes;
        }
    }
    volumes
}
