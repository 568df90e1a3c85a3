//! Keys of the catalog's records: first byte says the kind, the rest sorts as the core's types do.
//!
//! Numbers are big-endian; texts end with 0x00, which none of them contains, so that `a` sorts before `a1` and one
//! tenant's keys never run into another's.
//!
//! | first byte | key | value | written by | dies |
//! |---|---|---|---|---|
//! | 01 | – | meta | every entry | never |
//! | 02 | slot u64 (`index % DIGESTS_REMEMBERED`) | index, digest | every entry | overwritten a window later |
//! | 03 | node u64 | node | join, node state | never: ids are not reused |
//! | 04 | volume 16 | volume | join, add, volume state | never |
//! | 05 | profile name, version u32 | profile | init, set profile | never: sealed records name versions |
//! | 06 | – | version of commands and formats in force; absent is 1 | activate | never |
//! | 10 | object name | newest version, newest live record | seal, delete, replace, reseat, damage | never: versions are not reused |
//! | 11 | object name, version u32 | superseded or deleted record | seal (of the next), delete, replace, reseat, damage | never yet |
//! | 12 | tenant, study | objects and bytes | seal, delete | when the last object is deleted |
//! | 13 | instance 16 | version, object name | seal, replace | never: proves what was sealed |
//! | 14 | instance 16 | record that was replaced by another encoding, as deleted | replace | never yet |
//! | 15 | instance 16 of an attempt | instance 16 of the record that it was answered with | seal that found its content stored | seal, a write window later |
//! | 20 | placement u64 | volumes | first seal or reseat that uses it | never |
//! | 21 | volumes 16 × n | placement | with 20 | never |
//! | 22 | volume 16, placement u64 | – | with 20 | never |
//! | 23 | placement u64, instance 16, stripe u32 | – | seal, replace, reseat | reseat, replace, delete (in version 1: never) |
//! | 24 | instance 16, stripe u32 | persisted bits | seal with missing shards, damage, reseat | reseat, replace, delete |
//! | 25 | placement u64, profile name 00, version u32 | sums over stripes of live records | whatever changes them | at 0 |
//! | 26 | instance 16, stripe u32 | why and when set aside | set aside | retry, reseat, replace, delete |
//! | 28 | – | index of the entry up to which 25 is right | every entry | never |
//! | 30 | log index u64, instance 16 | – | delete, replace | never yet |
//! | 31 | tenant 00 study 00 | profile that the study is to have | set study profile | the same |
//!
//! "Never yet": a later command that records completed sweeping may remove them. 01, 02, 25 and 28 are outside the digest:
//! the first two hold it, the others are derived and can be made again from 10 and 11.
//! The object name is `tenant 00 study 00 series 00 instance 00` or `tenant 00 study 00 @ name 00`; `@` sorts after
//! every digit, so documents follow the series as in [`ObjectKey`]'s order.

use std::str::FromStr;

use super::Error;
use crate::ids::{
    InstanceId, Leaf, LogIndex, NodeId, ObjectKey, PlacementId, ProfileName, StripeIndex, Tenant, Uid, VersionNumber,
    VolumeId,
};

/// First bytes of all keys of the catalog. The rest of the state store belongs to others.
pub const FIRST_BYTES: std::ops::RangeInclusive<u8> = 0x01..=0x3f;

const META: u8 = 0x01;
const DIGEST: u8 = 0x02;
const NODE: u8 = 0x03;
const VOLUME: u8 = 0x04;
const PROFILE: u8 = 0x05;
const FORMAT: u8 = 0x06;
const OBJECT: u8 = 0x10;
const VERSION: u8 = 0x11;
const STUDY: u8 = 0x12;
const INSTANCE: u8 = 0x13;
const REPLACED: u8 = 0x14;
const ANSWERED: u8 = 0x15;
const PLACEMENT: u8 = 0x20;
const PLACEMENT_OF: u8 = 0x21;
const VOLUME_PLACEMENT: u8 = 0x22;
const PLACEMENT_STRIPE: u8 = 0x23;
const MISSING: u8 = 0x24;
const SUMS: u8 = 0x25;
const ASIDE: u8 = 0x26;
const SUMS_APPLIED: u8 = 0x28;
const TOMBSTONE: u8 = 0x30;
const STUDY_PROFILE: u8 = 0x31;

/// `from <= key < to`.
pub(super) type Range = (Vec<u8>, Vec<u8>);

fn build(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(first);
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// All keys that begin with `prefix`, whose last byte is below 0xff or is followed downwards by one that is.
pub(super) fn within(prefix: Vec<u8>) -> Range {
    let mut end = prefix.clone();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    // INVARIANT: every prefix begins with a kind below 0xff, so something is left to increment.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix, end)
}

/// The first key after `key`.
pub(super) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

pub(super) fn meta() -> Vec<u8> {
    vec![META]
}

pub(super) fn digest(slot: u64) -> Vec<u8> {
    build(DIGEST, &[&slot.to_be_bytes()])
}

pub(super) fn node(id: NodeId) -> Vec<u8> {
    build(NODE, &[&id.0.to_be_bytes()])
}

pub(super) fn nodes() -> Range {
    within(vec![NODE])
}

pub(super) fn volume(id: VolumeId) -> Vec<u8> {
    build(VOLUME, &[&id.0])
}

pub(super) fn volumes() -> Range {
    within(vec![VOLUME])
}

pub(super) fn profile(name: &ProfileName, version: u32) -> Vec<u8> {
    build(PROFILE, &[name.as_str().as_bytes(), &[0], &version.to_be_bytes()])
}

pub(super) fn profiles() -> Range {
    within(vec![PROFILE])
}

pub(super) fn format() -> Vec<u8> {
    vec![FORMAT]
}

/// The object name: how an [`ObjectKey`] appears in keys and messages.
pub(super) fn object_name(key: &ObjectKey) -> Vec<u8> {
    let (tenant, study) = (key.tenant.as_str().as_bytes(), key.study.as_str().as_bytes());
    let parts: [&[u8]; 8] = match &key.leaf {
        Leaf::Instance { series, instance } => {
            [tenant, &[0], study, &[0], series.as_str().as_bytes(), &[0], instance.as_str().as_bytes(), &[0]]
        }
        Leaf::Document(name) => [tenant, &[0], study, &[0], b"@", name.as_str().as_bytes(), &[0], &[]],
    };
    parts.concat()
}

/// Reads [`object_name`] back.
pub(super) fn parse_object_name(bytes: &[u8]) -> Result<ObjectKey, Error> {
    let bad = |why: &str| Error::Unreadable { what: "object name", why: why.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not UTF-8"))?;
    let parts: Vec<&str> = text.strip_suffix('\0').ok_or_else(|| bad("it is not terminated"))?.split('\0').collect();
    let leaf = match parts[..] {
        [_, _, document] => {
            let name = document.strip_prefix('@').ok_or_else(|| bad("it has three parts and no '@'"))?;
            Leaf::Document(part("document name", name)?)
        }
        [_, _, series, instance] => {
            Leaf::Instance { series: part("series UID", series)?, instance: part("instance UID", instance)? }
        }
        _ => return Err(bad("it has neither three nor four parts")),
    };
    Ok(ObjectKey { tenant: part("tenant", parts[0])?, study: part("study UID", parts[1])?, leaf })
}

fn part<T: FromStr<Err = crate::ids::Error>>(what: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: crate::ids::Error| Error::Unreadable { what, why: error.to_string() })
}

pub(super) fn object(name: &[u8]) -> Vec<u8> {
    build(OBJECT, &[name])
}

/// Objects of a tenant, of one of its studies, or of one series of it.
pub(super) fn objects(tenant: &Tenant, study: Option<&Uid>, series: Option<&Uid>) -> Range {
    let mut prefix = build(OBJECT, &[tenant.as_str().as_bytes(), &[0]]);
    for uid in [study, study.and(series)].into_iter().flatten() {
        prefix.extend_from_slice(uid.as_str().as_bytes());
        prefix.push(0);
    }
    within(prefix)
}

/// Newest versions of all objects.
pub(super) fn all_objects() -> Range {
    within(vec![OBJECT])
}

/// All records that are not in their object's row.
pub(super) fn all_versions() -> Range {
    within(vec![VERSION])
}

pub(super) fn version(name: &[u8], version: VersionNumber) -> Vec<u8> {
    build(VERSION, &[name, &version.0.to_be_bytes()])
}

pub(super) fn versions(name: &[u8]) -> Range {
    within(build(VERSION, &[name]))
}

pub(super) fn study(tenant: &Tenant, study: &Uid) -> Vec<u8> {
    build(STUDY, &[tenant.as_str().as_bytes(), &[0], study.as_str().as_bytes(), &[0]])
}

pub(super) fn studies(tenant: &Tenant) -> Range {
    within(build(STUDY, &[tenant.as_str().as_bytes(), &[0]]))
}

/// The study named by a key of [`study`].
pub(super) fn parse_study(key: &[u8]) -> Result<Uid, Error> {
    parse_tenant_study(key).map(|(_, study)| study)
}

pub(super) fn study_profile(tenant: &Tenant, study: &Uid) -> Vec<u8> {
    build(STUDY_PROFILE, &[tenant.as_str().as_bytes(), &[0], study.as_str().as_bytes(), &[0]])
}

pub(super) fn study_profiles() -> Range {
    within(vec![STUDY_PROFILE])
}

/// The study named by a key of [`study`] or [`study_profile`], with its owner.
pub(super) fn parse_tenant_study(key: &[u8]) -> Result<(Tenant, Uid), Error> {
    let bad = || Error::Unreadable { what: "study key", why: "it is not tenant 00 study 00".to_owned() };
    let text = std::str::from_utf8(key.get(1..).ok_or_else(bad)?).map_err(|_| bad())?;
    let (tenant, study) = text.strip_suffix('\0').and_then(|text| text.split_once('\0')).ok_or_else(bad)?;
    Ok((part("tenant", tenant)?, part("study UID", study)?))
}

pub(super) fn instance(id: InstanceId) -> Vec<u8> {
    build(INSTANCE, &[&id.0])
}

pub(super) fn replaced(id: InstanceId) -> Vec<u8> {
    build(REPLACED, &[&id.0])
}

pub(super) fn placement(id: PlacementId) -> Vec<u8> {
    build(PLACEMENT, &[&id.0.to_be_bytes()])
}

pub(super) fn placement_of(volumes: &[VolumeId]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 16 * volumes.len());
    key.push(PLACEMENT_OF);
    volumes.iter().for_each(|volume| key.extend_from_slice(&volume.0));
    key
}

pub(super) fn volume_placement(volume: VolumeId, placement: PlacementId) -> Vec<u8> {
    build(VOLUME_PLACEMENT, &[&volume.0, &placement.0.to_be_bytes()])
}

pub(super) fn volume_placements(volume: VolumeId) -> Range {
    within(build(VOLUME_PLACEMENT, &[&volume.0]))
}

pub(super) fn parse_volume_placement(key: &[u8]) -> Result<PlacementId, Error> {
    tail(key, 17, "volume-placement key").map(|bytes| PlacementId(u64::from_be_bytes(bytes)))
}

pub(super) fn placement_stripe(placement: PlacementId, instance: InstanceId, stripe: StripeIndex) -> Vec<u8> {
    build(PLACEMENT_STRIPE, &[&placement.0.to_be_bytes(), &instance.0, &stripe.0.to_be_bytes()])
}

pub(super) fn placement_stripes(placement: PlacementId) -> Range {
    within(build(PLACEMENT_STRIPE, &[&placement.0.to_be_bytes()]))
}

pub(super) fn parse_placement_stripe(key: &[u8]) -> Result<(InstanceId, StripeIndex), Error> {
    let bytes: [u8; 20] = tail(key, 9, "placement-stripe key")?;
    Ok(instance_stripe(bytes))
}

pub(super) fn missing(instance: InstanceId, stripe: StripeIndex) -> Vec<u8> {
    build(MISSING, &[&instance.0, &stripe.0.to_be_bytes()])
}

pub(super) fn all_missing() -> Range {
    within(vec![MISSING])
}

pub(super) fn parse_missing(key: &[u8]) -> Result<(InstanceId, StripeIndex), Error> {
    let bytes: [u8; 20] = tail(key, 1, "missing-shards key")?;
    Ok(instance_stripe(bytes))
}

pub(super) fn sums(placement: PlacementId, profile: &ProfileName, version: u32) -> Vec<u8> {
    build(SUMS, &[&placement.0.to_be_bytes(), profile.as_str().as_bytes(), &[0], &version.to_be_bytes()])
}

pub(super) fn sums_of(placement: PlacementId) -> Range {
    within(build(SUMS, &[&placement.0.to_be_bytes()]))
}

pub(super) fn all_sums() -> Range {
    within(vec![SUMS])
}

pub(super) fn parse_sums(key: &[u8]) -> Result<(PlacementId, ProfileName, u32), Error> {
    let bad = |why: &str| Error::Unreadable { what: "sums key", why: why.to_owned() };
    let (placement, rest) = key.get(1..).and_then(|key| key.split_first_chunk::<8>()).ok_or_else(|| bad("short"))?;
    let (name, version) = rest.split_last_chunk::<4>().ok_or_else(|| bad("it has no version"))?;
    let name = name.strip_suffix(&[0]).ok_or_else(|| bad("its name is not terminated"))?;
    let name = std::str::from_utf8(name).map_err(|_| bad("it is not UTF-8"))?;
    let placement = PlacementId(u64::from_be_bytes(*placement));
    Ok((placement, part("profile name", name)?, u32::from_be_bytes(*version)))
}

pub(super) fn sums_applied() -> Vec<u8> {
    vec![SUMS_APPLIED]
}

pub(super) fn aside(instance: InstanceId, stripe: StripeIndex) -> Vec<u8> {
    build(ASIDE, &[&instance.0, &stripe.0.to_be_bytes()])
}

/// Stripes of one instance that are set aside.
pub(super) fn asides_of(instance: InstanceId) -> Range {
    within(build(ASIDE, &[&instance.0]))
}

pub(super) fn all_asides() -> Range {
    within(vec![ASIDE])
}

pub(super) fn parse_aside(key: &[u8]) -> Result<(InstanceId, StripeIndex), Error> {
    let bytes: [u8; 20] = tail(key, 1, "set-aside key")?;
    Ok(instance_stripe(bytes))
}

pub(super) fn answered(instance: InstanceId) -> Vec<u8> {
    build(ANSWERED, &[&instance.0])
}

/// All attempts that were answered with another's record, those that began first before the others.
pub(super) fn all_answered() -> Range {
    within(vec![ANSWERED])
}

/// Of a key or value: both end with an instance.
pub(super) fn parse_answered(bytes: &[u8]) -> Result<InstanceId, Error> {
    let skip = bytes.len().saturating_sub(16);
    tail(bytes, skip, "answered attempt").map(InstanceId)
}

pub(super) fn tombstone(index: LogIndex, instance: InstanceId) -> Vec<u8> {
    build(TOMBSTONE, &[&index.0.to_be_bytes(), &instance.0])
}

pub(super) fn tombstones() -> Range {
    within(vec![TOMBSTONE])
}

pub(super) fn parse_tombstone(key: &[u8]) -> Result<(LogIndex, InstanceId), Error> {
    let bytes: [u8; 24] = tail(key, 1, "tombstone key")?;
    let (mut index, mut instance) = ([0_u8; 8], [0_u8; 16]);
    index.copy_from_slice(&bytes[..8]);
    instance.copy_from_slice(&bytes[8..]);
    Ok((LogIndex(u64::from_be_bytes(index)), InstanceId(instance)))
}

fn tail<const N: usize>(key: &[u8], skip: usize, what: &'static str) -> Result<[u8; N], Error> {
    let bytes = key.get(skip..).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Error::Unreadable { what, why: format!("it has {} bytes", key.len()) })
}

fn instance_stripe(bytes: [u8; 20]) -> (InstanceId, StripeIndex) {
    let (mut instance, mut stripe) = ([0_u8; 16], [0_u8; 4]);
    instance.copy_from_slice(&bytes[..16]);
    stripe.copy_from_slice(&bytes[16..]);
    (InstanceId(instance), StripeIndex(u32::from_be_bytes(stripe)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = ObjectKey> {
        let uid = "[1-3]{1,2}(\\.[1-3]{1,2}){0,1}";
        let leaf = prop_oneof![
            "[1-3]{1,2}(\\.[1-3]{1,2}){0,1}/[1-3]{1,2}(\\.[1-3]{1,2}){0,1}",
            "@/[a-zA-Zé~0][a-zA-Zé ~0]{0,2}"
        ];
        ("[a-b0-1]{1,2}", uid, leaf).prop_map(|(tenant, study, leaf)| {
            format!("{tenant}/{study}/{leaf}").parse().expect("the strategy makes valid keys")
        })
    }

    proptest! {
        #[test]
        fn object_names_read_back_and_sort_like_keys(a in any_key(), b in any_key()) {
            let (name_a, name_b) = (object_name(&a), object_name(&b));
            prop_assert_eq!(parse_object_name(&name_a), Ok(a.clone()));
            prop_assert_eq!(a.cmp(&b), name_a.cmp(&name_b));
            let (one, two) = (version(&name_a, VersionNumber(1)), version(&name_b, VersionNumber(256)));
            prop_assert_eq!((&a, 1_u32).cmp(&(&b, 256)), one.cmp(&two));
        }

        #[test]
        fn ranges_hold_exactly_their_keys(a in any_key(), b in any_key()) {
            let key = object(&object_name(&b));
            let holds = |range: &Range| range.0 <= key && key < range.1;
            prop_assert_eq!(holds(&objects(&a.tenant, None, None)), a.tenant == b.tenant);
            let same_study = a.tenant == b.tenant && a.study == b.study;
            prop_assert_eq!(holds(&objects(&a.tenant, Some(&a.study), None)), same_study);
            if let Leaf::Instance { series, .. } = &a.leaf {
                let same_series = matches!(&b.leaf, Leaf::Instance { series: other, .. } if other == series);
                prop_assert_eq!(
                    holds(&objects(&a.tenant, Some(&a.study), Some(series))), same_study && same_series);
            }
            let row = study(&b.tenant, &b.study);
            let range = studies(&a.tenant);
            prop_assert_eq!(range.0 <= row && row < range.1, a.tenant == b.tenant);
            prop_assert_eq!(parse_study(&row), Ok(b.study.clone()));
            let wanted = study_profile(&b.tenant, &b.study);
            prop_assert_eq!(parse_tenant_study(&wanted), Ok((b.tenant.clone(), b.study.clone())));
        }

        #[test]
        fn number_keys_read_back_and_sort_like_numbers(
            a in any::<(u64, [u8; 16], u32)>(), b in any::<(u64, [u8; 16], u32)>(),
        ) {
            let make = |x: (u64, [u8; 16], u32)| placement_stripe(PlacementId(x.0), InstanceId(x.1), StripeIndex(x.2));
            prop_assert_eq!(make(a).cmp(&make(b)), a.cmp(&b));
            prop_assert_eq!(parse_placement_stripe(&make(a)), Ok((InstanceId(a.1), StripeIndex(a.2))));
            let stone = tombstone(LogIndex(a.0), InstanceId(a.1));
            prop_assert_eq!(parse_tombstone(&stone), Ok((LogIndex(a.0), InstanceId(a.1))));
            prop_assert_eq!(parse_missing(&missing(InstanceId(a.1), StripeIndex(a.2))),
                Ok((InstanceId(a.1), StripeIndex(a.2))));
            prop_assert_eq!(parse_volume_placement(&volume_placement(VolumeId(a.1), PlacementId(a.0))),
                Ok(PlacementId(a.0)));
            prop_assert_eq!(parse_aside(&aside(InstanceId(a.1), StripeIndex(a.2))),
                Ok((InstanceId(a.1), StripeIndex(a.2))));
            let name: ProfileName = "cold".parse().expect("a valid name");
            let group = sums(PlacementId(a.0), &name, a.2);
            prop_assert_eq!(parse_sums(&group), Ok((PlacementId(a.0), name, a.2)));
            let (from, to) = sums_of(PlacementId(b.0));
            prop_assert_eq!(from <= group && group < to, a.0 == b.0);
            let (from, to) = asides_of(InstanceId(b.1));
            let one = aside(InstanceId(a.1), StripeIndex(a.2));
            prop_assert_eq!(from <= one && one < to, a.1 == b.1);
            let (from, to) = volume_placements(VolumeId(a.1));
            let other = volume_placement(VolumeId(b.1), PlacementId(b.0));
            prop_assert_eq!(from <= other && other < to, a.1 == b.1);
        }
    }
}
