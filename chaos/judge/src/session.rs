//! Plain reads: they may be as of any earlier time, within what a session was told itself.
//!
//! **Rules.** A plain read sees what its session wrote and was told of before it asked, or something newer, unless somebody may
//! have deleted that since. It never sees what its session was told to be deleted. What others wrote it may see late, and then
//! not again: a session reads at whichever replica answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    facts::Facts,
    history::{Answer, Call, Operation},
    violation::{Kind, Violation},
};

/// What one session was told so far about one object: version to the operations that told it.
#[derive(Default)]
struct Told<'a> {
    stored: BTreeMap<u32, Vec<&'a Operation>>,
    deleted: BTreeMap<u32, Vec<&'a Operation>>,
}

/// Judges the plain reads of one object.
pub(crate) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut sessions: BTreeMap<u64, Told<'_>> = BTreeMap::new();
    for operation in &facts.operations {
        let told = sessions.entry(operation.session).or_default();
        match (&operation.call, &operation.answer) {
            (_, Answer::Stored { version, .. }) => told.stored.entry(*version).or_default().push(operation),
            (Call::Delete { version }, Answer::Deleted { versions }) => {
                let named: BTreeSet<u32> = versions.iter().copied().chain(*version).collect();
                named.into_iter().for_each(|version| told.deleted.entry(version).or_default().push(operation));
            }
            _ => {}
        }
    }
    let deletes: Vec<&Operation> = facts.operations.iter().copied().filter(|one| may_delete(one)).collect();
    let reads = facts.operations.iter().filter(|one| matches!(one.call, Call::Get { linearizable: false, .. }));
    reads.filter_map(|read| went_back(facts, read, sessions.get(&read.session)?, &deletes)).collect()
}

fn may_delete(operation: &Operation) -> bool {
    matches!(operation.call, Call::Delete { .. })
        && matches!(operation.answer, Answer::Deleted { .. } | Answer::Unknown)
}

/// Whether this delete may have hidden `version` from `read`.
fn hides(facts: &Facts<'_>, delete: &Operation, version: u32, read: &Operation) -> bool {
    let Call::Delete { version: only } = delete.call else { return false };
    let told = match &delete.answer {
        // Without names an earlier try has deleted what this one no longer found.
        Answer::Deleted { versions } => versions.is_empty() || versions.contains(&version),
        _ => true,
    };
    let possible = only.is_none_or(|only| only == version) && told;
    // A delete of all that was over before the version began did not mean it. One of a version by number may be carried out
    // when nobody waits for it any more, but not told so.
    let over = delete.ended.is_some_and(|ended| ended < facts.began(version)) && (only.is_none() || delete.answered());
    possible && !over && read.ended.is_some_and(|ended| delete.started < ended)
}

fn went_back(facts: &Facts<'_>, read: &Operation, told: &Told<'_>, deletes: &[&Operation]) -> Option<Violation> {
    let Call::Get { version: asked, .. } = read.call else { return None };
    let seen = match &read.answer {
        Answer::Found { version, .. } => Some(*version),
        Answer::Missing => None,
        _ => return None,
    };
    let before = |one: &&&Operation| one.ended.is_some_and(|ended| ended < read.started);
    if let Some(delete) = seen.and_then(|seen| told.deleted.get(&seen)?.iter().find(before)) {
        let what = "a session saw what it had been told to be deleted".to_owned();
        return Some(Violation::new(Kind::ResurrectedDelete, facts.key, what, [read, *delete]));
    }
    let expected = |version: u32| match asked {
        Some(asked) => asked == version && seen.is_none(),
        None => seen.is_none_or(|seen| seen < version),
    };
    let own = told.stored.range(seen.map_or(0, |seen| seen + 1)..).filter(|(version, _)| expected(**version));
    for (version, stored) in own {
        let Some(put) = stored.iter().find(before) else { continue };
        if !deletes.iter().any(|delete| hides(facts, delete, *version, read)) {
            let what = format!("a session did not see version {version}, which it had been told of");
            return Some(Violation::new(Kind::SessionWentBack, facts.key, what, [read, *put]));
        }
    }
    None
}
