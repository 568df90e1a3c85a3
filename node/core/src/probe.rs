//! Marks of recovery branches, which the simulator counts, and bugs that can be planted, which it must find.
//!
//! `sometimes!("recovery: …")` stands in a branch that only misfortune takes. It costs one relaxed load in production, where
//! nobody listens. In a simulation each mark is counted, and a run of enough seeds fails when one was met by none: a branch
//! that no test takes is a branch that nobody knows to work.
//!
//! [`planted`] asks whether a bug is planted here. Without the cargo feature `planted` it is a constant `false`, and the
//! compiler leaves the bug out; no program of a release is built with that feature.
//!
//! **Invariants.** A mark changes nothing: neither an answer, nor the order of anything. Each tag of [`TAGS`] stands in
//! exactly one place, each bug of [`BUGS`] in at least one; `cargo xtask check` compares.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

/// Every tag. Another one does not compile.
pub const TAGS: &[&str] = &[
    "recovery: answer to a task that was given up",
    "recovery: attempt answered with another's record is answered so again",
    "recovery: attempt sealed before answered with its record",
    "recovery: cluster told again what a node is like",
    "recovery: compaction freed a segment",
    "recovery: compaction moved live shards",
    "recovery: copy kept: its stripe is not whole without it",
    "recovery: copy wanted again while its sweep was near",
    "recovery: damaged segment kept aside",
    "recovery: damaged shard struck off its record",
    "recovery: dead voter replaced",
    "recovery: deposed leader left repair to the next",
    "recovery: draining voter passed its vote on",
    "recovery: emptied node removed",
    "recovery: failed volume taken out of service through the log",
    "recovery: flapping node kept waiting",
    "recovery: former holders asked for an unreadable stripe",
    "recovery: half-done joint configuration finished",
    "recovery: head of a segment written anew",
    "recovery: known node introduced itself again",
    "recovery: lagging replica would have denied what is stored",
    "recovery: leader changed while it was asked",
    "recovery: leadership handed over to a better node",
    "recovery: leadership handed over to who reaches more",
    "recovery: learner promoted",
    "recovery: log tail truncated",
    "recovery: lost shards made again",
    "recovery: mark in a segment written anew",
    "recovery: mark of an earlier recovery read",
    "recovery: miss proven by the leader",
    "recovery: newer version put in force",
    "recovery: newest segment recovered",
    "recovery: one more node asked while the first is silent",
    "recovery: orphan kept: it may yet be sealed",
    "recovery: orphan of an attempt that was never sealed swept",
    "recovery: poisoned volume opened again",
    "recovery: put deduplicated by its content",
    "recovery: read decoded from parity",
    "recovery: read went around a shard that failed",
    "recovery: reader found moved shards where they are now",
    "recovery: removed node let go",
    "recovery: repair gave a stripe up",
    "recovery: repair gave up: its writes took too long",
    "recovery: repair looked for each shard by itself",
    "recovery: repair made true what part of it was durable",
    "recovery: repair read shards of other sites",
    "recovery: repeated write worth too little by now",
    "recovery: repetition stored anew: the earlier record is worth less",
    "recovery: reseat refused: it came too late",
    "recovery: reseat refused: it would weaken the stripe",
    "recovery: reseat refused: its target is away",
    "recovery: reseat refused: its target is being drained",
    "recovery: reseat refused: its target is fenced",
    "recovery: reseat refused: the stripe has changed",
    "recovery: returned copy adopted where it lies",
    "recovery: scrub found damage",
    "recovery: seal refused: below its floor",
    "recovery: seal refused: it names a fenced volume",
    "recovery: seal refused: the attempt has expired",
    "recovery: shard of a deleted instance swept",
    "recovery: shard to be moved off a fuller volume",
    "recovery: shards of a write placed again",
    "recovery: shards to be moved off a draining volume",
    "recovery: shards to be spread anew for their contract",
    "recovery: silent node given up as lost",
    "recovery: slow read hedged",
    "recovery: snapshot installed",
    "recovery: snapshot transfer resumed",
    "recovery: stale copy swept",
    "recovery: strict write refused before anything was sent",
    "recovery: stripe at its last node spread as far as it can be",
    "recovery: stripe at its last shards repaired without waiting",
    "recovery: stripe set aside",
    "recovery: stripe set aside is tried again",
    "recovery: suspected shard found sound",
    "recovery: sweep refused: the catalog does not give the volume to this node",
    "recovery: task did not fit this replica: the log was asked",
    "recovery: tombstones of an emptied segment looked at",
    "recovery: torn record voided",
    "recovery: unknown outcome settled by asking again",
    "recovery: volume lacked shards that the catalog named",
    "recovery: volume poisoned by a failed write or sync",
    "recovery: voters not changed, most of the new ones fell silent",
    "recovery: worker of repair benched",
    "recovery: write answered with an earlier record",
    "recovery: write in doubt stays so whatever its last attempt was told",
    "recovery: write placed in full by a recent layout",
    "recovery: write refused while an old copy is being deleted",
    "recovery: write sealed without its stragglers",
];

/// Every bug that can be planted in product code.
pub const BUGS: &[&str] = &[
    "ack-early",
    "apply-by-memory",
    "dedup-any-content",
    "delete-on-wrong-authority",
    "deleted-lives",
    "doubt-forgotten",
    "gate-ignored",
    "judgements-kept",
    "leader-stays-put",
    "lost-fence",
    "lost-told-missing",
    "lost-window",
    "miss-unproven",
    "orphans-never-swept",
    "orphans-swept-at-once",
    "poison-ignored",
    "range-clipped",
    "read-before-applied",
    "reseat-unverified",
    "reseat-without-compare",
    "scrub-sleeps",
    "snapshot-omits-rows",
    "strict-ignored",
    "tombstones-forgotten",
    "unknown-told-refused",
    "unverified-read",
    "urgent-repair-waits",
    "weak-quorum",
];

/// Whether bugs can be planted in this build.
pub const PLANTED: bool = cfg!(feature = "planted");

static LISTENING: AtomicBool = AtomicBool::new(false);
static LISTENER: OnceLock<fn(&'static str)> = OnceLock::new();

/// Whether `tag` is one of [`TAGS`].
pub const fn is_known(tag: &str) -> bool {
    let mut at = 0;
    while at < TAGS.len() {
        if same(TAGS[at].as_bytes(), tag.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Marks a branch; see the macro [`sometimes!`](crate::sometimes).
#[inline]
pub fn sometimes(tag: &'static str) {
    if LISTENING.load(Ordering::Relaxed) {
        tell(tag);
    }
}

#[cold]
fn tell(tag: &'static str) {
    if let Some(listener) = LISTENER.get() {
        listener(tag);
    }
}

/// Every mark of this process is told to `listener` from now on. The first one stays.
pub fn listen(listener: fn(&'static str)) {
    LISTENER.get_or_init(|| listener);
    LISTENING.store(true, Ordering::Relaxed);
}

/// Marks a branch that only misfortune takes, by one of [`TAGS`](crate::probe::TAGS).
#[macro_export]
macro_rules! sometimes {
    ($tag:literal) => {{
        const { assert!($crate::probe::is_known($tag), "the tag is not in probe::TAGS") };
        $crate::probe::sometimes($tag);
    }};
}

/// Whether bug `name` is planted: never.
#[cfg(not(feature = "planted"))]
#[inline]
pub const fn planted(_name: &str) -> bool {
    false
}

#[cfg(feature = "planted")]
static PLANTER: OnceLock<fn(&str) -> bool> = OnceLock::new();

/// Whether bug `name` is planted in what runs now.
#[cfg(feature = "planted")]
pub fn planted(name: &str) -> bool {
    debug_assert!(BUGS.contains(&name), "{name} is not in probe::BUGS");
    PLANTER.get().is_some_and(|planter| planter(name))
}

/// Bugs are planted where `planter` says so. The first one stays.
#[cfg(feature = "planted")]
pub fn plant(planter: fn(&str) -> bool) {
    PLANTER.get_or_init(|| planter);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_bugs_are_sorted_and_unique_and_known() {
        assert!(TAGS.windows(2).all(|two| two[0] < two[1]));
        assert!(BUGS.windows(2).all(|two| two[0] < two[1]));
        assert!(TAGS.iter().all(|tag| is_known(tag) && tag.starts_with("recovery: ")));
        assert!(!is_known("recovery: ") && !is_known(""));
    }

    #[test]
    fn marks_are_told_once_somebody_listens() {
        static HEARD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        sometimes(TAGS[0]);
        listen(|tag| {
            if tag == TAGS[0] {
                HEARD.fetch_add(1, Ordering::Relaxed);
            }
        });
        sometimes(TAGS[0]);
        assert_eq!(HEARD.load(Ordering::Relaxed), 1);
    }

    #[cfg(not(feature = "planted"))]
    #[test]
    fn nothing_is_planted_without_the_feature() {
        const { assert!(!planted("weak-quorum")) };
    }
}
