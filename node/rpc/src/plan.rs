//! Judges profiles on a layout, for operators: does the contract hold, and by which arithmetic.

use std::collections::BTreeSet;

use pacsvault_core::layout::{Layout, Profile, placement::Placer};
use pacsvault_proto::v1;

use crate::convert;

/// One judgement per profile; of all profiles of the layout when none are given.
pub fn judge(layout: &Layout, profiles: &[Profile]) -> v1::PlanReply {
    let known: Vec<Profile> =
        if profiles.is_empty() { layout.profiles.values().cloned().collect() } else { profiles.to_vec() };
    v1::PlanReply { profiles: known.iter().map(|profile| judge_one(layout, profile)).collect() }
}

fn judge_one(layout: &Layout, profile: &Profile) -> v1::ProfilePlan {
    let (holds, explanation) = match Placer::new(layout, profile, &BTreeSet::new()) {
        Ok(placer) => {
            let claims: Vec<String> = placer.claims().iter().map(ToString::to_string).collect();
            let verdict = if placer.degraded() { "falls short of" } else { "holds" };
            let text = format!(
                "{} on {} volumes survives {}; that {verdict} the contract ({})",
                profile.code,
                layout.volumes.keys().filter(|volume| layout.writable(**volume)).count(),
                if claims.is_empty() { "nothing".to_owned() } else { claims.join("; ") },
                profile.contract,
            );
            (!placer.degraded(), text)
        }
        Err(error) => (false, error.to_string()),
    };
    v1::ProfilePlan { profile: Some(convert::profile_message(profile)), holds, explanation }
}
