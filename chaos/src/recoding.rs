//! Studies that are to be kept in another profile: when that is done, and that it gets done.
//!
//! **Invariants.** What people want is read from the catalog, where the last order is the one that counts. In a healed cluster
//! every live version of a study is in the wanted profile in time; whether it is true to its receipt there is judged in
//! [`crate::proof`].

use std::{sync::Arc, time::Duration};

use pacsvault_consensus::Replica;
use pacsvault_core::catalog::query;

use crate::{
    audit::heals,
    exec::Life,
    nemesis::Nemesis,
    proof::{kept, newest},
    run::phase,
    workload::Work,
};

/// Virtual time in which everything must be in the profile that is wanted for it: the longest rest of a study that failed
/// again and again while faults lasted, and a minute.
const RECODED_WITHIN: Duration = Duration::from_secs(320 + 60);

/// Waits until all studies are in the profiles that people want, and everything is whole then; false when it takes too long.
pub async fn done(work: &Arc<Work>, nemesis: &Arc<Nemesis>) -> bool {
    let sim = &work.cluster.sim;
    if work.cluster.scenario.other.is_none() {
        return true;
    }
    phase(sim, "re-encoding");
    let end = sim.now() + RECODED_WITHIN;
    loop {
        let left = match newest(&work.cluster) {
            Some(replica) => left(work, replica.as_ref()),
            None => Some("no replica runs".to_owned()),
        };
        let Some(left) = left else { break };
        sim.event("not re-encoded", &[], || left.clone());
        if sim.now() > end {
            let told = nemesis.operator.health().await.map(|health| health.held_back);
            work.violation(format!("the healed cluster does not re-encode: {left}; {told:?}"));
            return false;
        }
        sim.sleep(Life::HARNESS, Duration::from_millis(500)).await;
    }
    sim.hit("all studies are in the profiles wanted");
    heals(work, nemesis).await
}

/// A version that must live and is not in the profile wanted for its study.
fn left(work: &Work, replica: &dyn Replica) -> Option<String> {
    let view = replica.view();
    let Some(layout) = replica.layout() else { return Some("there is no layout".to_owned()) };
    for live in work.model(|model| model.must_live()) {
        let key = &live.acked.seal.key;
        let wanted = query::study_profile(view.as_ref(), &key.tenant, &key.study).ok().flatten();
        let (Some(wanted), Some(now)) = (wanted, kept(replica, &live)) else { continue };
        if now.seal.profile != wanted {
            let (version, is) = (now.version, &now.seal.profile);
            return Some(format!("version {version} of {key} is in profile {is}, {wanted} is wanted"));
        }
        let code = layout.profiles.get(&wanted).map(|profile| profile.code);
        if code.is_some_and(|code| code != now.seal.code) {
            return Some(format!("version {} of {key} is in code {}, of profile {wanted}", now.version, now.seal.code));
        }
    }
    None
}
