//! Histories that break one promise each, with the violation that must be told; and fine ones, about which nothing may be.

mod common;

use common::{Script, deleted, found, stored, stored_before};
use pacsvault_judge::{
    Answer::{Missing, Refused, Unknown},
    Call, Kind, Verdict, check, check_within,
};

fn judged(write: impl FnOnce(&mut Script)) -> Verdict {
    let mut script = Script::default();
    write(&mut script);
    check(&script.0)
}

#[track_caller]
fn bad(kind: Kind, operations: &[u64], write: impl FnOnce(&mut Script)) {
    let verdict = judged(write);
    let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
    let hit = verdict.violations.iter().find(|violation| violation.kind == kind);
    let hit = hit.unwrap_or_else(|| panic!("no {kind} in {told:#?}, undecided {:?}", verdict.undecided));
    let named: Vec<u64> = hit.operations.iter().map(|operation| operation.number).collect();
    for number in operations {
        assert!(named.contains(number), "#{number} is not named by {hit}");
    }
}

#[track_caller]
fn fine(write: impl FnOnce(&mut Script)) {
    let verdict = judged(write);
    let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
    assert!(verdict.passed(), "{told:#?} {:?}", verdict.undecided);
}

#[test]
fn a_stale_read_is_told() {
    bad(Kind::StaleRead, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b")).get(2, (4, 5), found(1, "a"));
    });
    // Somebody had seen the newer one, though its put is open still.
    bad(Kind::StaleRead, &[4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 99), "b", stored(2, "b"));
        s.get(2, (4, 5), found(2, "b")).get(3, (6, 7), found(1, "a"));
    });
    // The same of a put whose outcome nobody was told.
    bad(Kind::StaleRead, &[4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", Unknown);
        s.get(2, (4, 5), found(2, "b")).get(3, (6, 7), found(1, "a"));
    });
}

#[test]
fn a_lost_write_is_told() {
    bad(Kind::LostWrite, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).get(2, (2, 3), Missing);
    });
    bad(Kind::LostWrite, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).get_one((2, 3), 1, Missing);
    });
    // Refused deletes delete nothing.
    bad(Kind::LostWrite, &[1, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, Refused).get(2, (4, 5), Missing);
    });
}

#[test]
fn a_delete_that_hid_a_later_write_is_told() {
    bad(Kind::LostWrite, &[3, 4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[1]));
        s.put(1, (4, 5), "b", stored(2, "b")).get(2, (6, 7), Missing);
    });
    // It was given up before: whatever comes of it, it did not look that late.
    bad(Kind::LostWrite, &[3, 4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, Unknown);
        s.put(1, (4, 5), "b", stored(2, "b")).get(2, (6, 7), Missing);
    });
}

#[test]
fn a_resurrected_delete_is_told() {
    bad(Kind::ResurrectedDelete, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[1])).get(2, (4, 5), found(1, "a"));
    });
    // Whether it came back is seen in what had been seen of it.
    bad(Kind::ResurrectedDelete, &[4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, Unknown);
        s.get(2, (4, 5), Missing).get(2, (6, 7), found(1, "a"));
    });
    bad(Kind::ResurrectedDelete, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), Some(1), deleted(&[1])).get_one(
            (4, 5),
            1,
            found(1, "a"),
        );
    });
    // A plain read may be old, but not older than what its own session was told.
    bad(Kind::ResurrectedDelete, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[1])).plain(1, (4, 5), found(1, "a"));
    });
    // Nor does a put find it again.
    bad(Kind::ResurrectedDelete, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[1]));
        s.attempt(2, (4, 5), "again", "a", stored_before(1, "a"));
    });
}

#[test]
fn a_refused_write_that_is_seen_is_told() {
    bad(Kind::RefusedSeen, &[1, 2], |s| {
        s.put(1, (0, 1), "a", Refused).get(2, (2, 3), found(1, "a"));
    });
    bad(Kind::RefusedSeen, &[1, 2], |s| {
        s.put(1, (0, 1), "a", Refused).attempt(2, (2, 3), "again", "a", stored_before(1, "a"));
    });
}

#[test]
fn two_outcomes_of_one_attempt_are_told() {
    bad(Kind::TwoOutcomes, &[1, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b")).get(2, (4, 5), found(3, "a"));
    });
    bad(Kind::TwoOutcomes, &[1, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b"));
        s.attempt(2, (4, 5), "again", "a", stored_before(3, "a"));
    });
    bad(Kind::TwoOutcomes, &[2, 3], |s| {
        s.put(1, (0, 1), "a", Unknown).get(1, (2, 3), found(1, "a")).get(2, (4, 5), found(2, "a"));
    });
}

#[test]
fn a_version_used_twice_is_told() {
    bad(Kind::VersionReused, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(1, "b"));
    });
    bad(Kind::VersionReused, &[1, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (0, 1), "b", Unknown).plain(1, (2, 3), found(1, "b"));
    });
    bad(Kind::VersionReused, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).attempt(1, (2, 3), "again", "a", stored(1, "again"));
    });
}

#[test]
fn a_receipt_of_something_else_is_told() {
    bad(Kind::WrongRecord, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored_before(1, "a"));
    });
    bad(Kind::WrongRecord, &[2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).attempt(1, (2, 3), "again", "a", stored(1, "a"));
    });
    bad(Kind::WrongRecord, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).attempt(1, (2, 3), "again", "a", stored_before(1, "a"));
        s.0.operations[0].key = "another".to_owned();
    });
    // There was newer content in between, so the attempt had to be a version of its own.
    bad(Kind::StaleRead, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b"));
        s.attempt(2, (4, 5), "again", "a", stored_before(1, "a"));
    });
}

#[test]
fn invented_content_is_told() {
    bad(Kind::InventedContent, &[2], |s| {
        s.put(1, (0, 1), "a", Unknown).plain(2, (2, 3), found(1, "x"));
    });
}

#[test]
fn what_is_seen_before_it_began_is_told() {
    bad(Kind::FromTheFuture, &[1, 2], |s| {
        s.get(2, (0, 1), found(1, "a")).put(1, (2, 3), "a", stored(1, "a"));
    });
    bad(Kind::FromTheFuture, &[1, 2], |s| {
        s.plain(2, (0, 1), found(1, "a")).put(1, (2, 3), "a", Unknown);
    });
}

#[test]
fn a_session_that_goes_back_is_told() {
    bad(Kind::SessionWentBack, &[2, 3], |s| {
        s.put(2, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b")).plain(1, (4, 5), found(1, "a"));
    });
    bad(Kind::SessionWentBack, &[1, 2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).plain(1, (2, 3), Missing);
    });
    // A delete that was over when it wrote again hides nothing.
    bad(Kind::SessionWentBack, &[3, 4], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(2, (2, 3), None, Unknown);
        s.put(1, (4, 5), "b", stored(2, "b")).plain(1, (6, 7), found(1, "a"));
    });
}

#[test]
fn versions_out_of_order_are_told() {
    bad(Kind::VersionOrder, &[1], |s| {
        s.put(1, (0, 1), "a", stored(2, "a")).put(1, (2, 3), "b", stored(1, "b"));
    });
    bad(Kind::VersionOrder, &[2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(3, "b"));
    });
    // The unknown put that must have been version 2 began after version 3 was told.
    bad(Kind::VersionOrder, &[2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(3, "b")).put(1, (4, 5), "c", Unknown);
    });
    // One unknown put cannot be two versions.
    bad(Kind::VersionOrder, &[3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", Unknown).put(1, (4, 5), "c", stored(4, "c"));
    });
}

#[test]
fn a_delete_that_disagrees_is_told() {
    // It left one out that was there before it began.
    bad(Kind::DeleteDisagrees, &[3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b"));
        s.delete(2, (4, 5), None, deleted(&[1]));
    });
    bad(Kind::DeleteDisagrees, &[2, 3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[1]));
        s.delete(2, (4, 5), Some(1), deleted(&[1]));
    });
    bad(Kind::DeleteDisagrees, &[2], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), Some(1), Missing);
    });
    // It was told of nothing, so it or an earlier try of it deleted what was there.
    bad(Kind::ResurrectedDelete, &[3], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), None, deleted(&[])).get(2, (4, 5), found(1, "a"));
    });
}

#[test]
fn a_record_that_contradicts_itself_is_told() {
    bad(Kind::Malformed, &[], |s| {
        s.put(1, (0, 1), "a", Missing);
    });
    bad(Kind::Malformed, &[], |s| {
        s.put(1, (5, 1), "a", stored(1, "a"));
    });
    bad(Kind::Malformed, &[], |s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (0, 1), "a", Unknown);
    });
}

#[test]
fn concurrent_operations_may_have_any_order() {
    fine(|s| {
        // Two puts and readers who see them one after the other, all at once.
        s.put(1, (0, 10), "a", stored(2, "a")).put(2, (0, 10), "b", stored(1, "b"));
        s.get(3, (1, 9), Missing).get(4, (2, 9), found(1, "b")).get(5, (3, 9), found(2, "a"));
    });
    fine(|s| {
        // A delete of all looked before the second put and took effect after it.
        s.put(1, (0, 1), "a", stored(1, "a")).delete(2, (2, 20), None, deleted(&[1]));
        s.put(1, (3, 4), "b", stored(2, "b")).get(3, (5, 6), found(2, "b")).get_one((7, 8), 1, found(1, "a"));
        s.get_one((9, 15), 1, Missing).get(3, (21, 22), found(2, "b"));
    });
    fine(|s| {
        // The newest was deleted by number: the one below shows again.
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b"));
        s.delete(1, (4, 9), Some(2), deleted(&[2])).get(3, (5, 6), found(2, "b")).get(3, (7, 8), found(1, "a"));
        s.attempt(2, (10, 11), "again", "a", stored_before(1, "a"));
    });
    fine(|s| {
        // A delete of all looked before anything was there, and was answered after something was.
        s.delete(2, (6, 10), None, deleted(&[])).put(1, (5, 8), "a", stored(1, "a"));
        s.delete(1, (11, 14), Some(1), deleted(&[1]));
    });
    fine(|s| {
        // It looked when the one version was deleted, before the next was made.
        s.put(1, (0, 1), "a", stored(1, "a")).delete(1, (2, 3), Some(1), deleted(&[1]));
        s.delete(2, (4, 10), None, deleted(&[])).put(1, (5, 6), "b", stored(2, "b")).get(3, (11, 12), found(2, "b"));
    });
}

#[test]
fn what_is_unknown_may_happen_late_or_never() {
    fine(|s| {
        s.put(1, (0, 1), "a", Unknown).get(2, (2, 3), Missing).get(2, (4, 5), found(1, "a"));
        s.delete(3, (6, 7), None, Unknown).get(2, (8, 9), found(1, "a")).get(2, (10, 11), Missing);
    });
    fine(|s| {
        // Version 2 was never seen: the unknown put made it, and the unknown delete hid it, before version 3.
        s.put(1, (0, 1), "a", stored(1, "a")).put(2, (2, 3), "b", Unknown).delete(3, (4, 5), None, Unknown);
        s.get(1, (6, 7), Missing).put(1, (8, 9), "c", stored(3, "c")).delete(1, (10, 11), Some(3), deleted(&[3]));
        s.get(1, (12, 13), Missing);
    });
    fine(|s| {
        // A delete by number that nobody waits for may hide what is stored later.
        s.put(1, (0, 1), "a", stored(1, "a")).delete(2, (2, 3), Some(2), Unknown);
        s.put(1, (4, 5), "b", stored(2, "b")).get(1, (6, 7), found(1, "a")).plain(1, (8, 9), found(1, "a"));
    });
    fine(|s| {
        // An earlier try of a delete did it, the later one was told that nothing was there.
        s.put(1, (0, 1), "a", stored(1, "a")).delete(2, (2, 3), None, deleted(&[])).get(1, (4, 5), Missing);
    });
    fine(|s| {
        // Of three attempts with one content, one made version 2; which one is not known.
        s.put(1, (0, 1), "a", stored(1, "a")).attempt(1, (2, 3), "b1", "b", Unknown);
        s.attempt(1, (2, 3), "b2", "b", Unknown).get(2, (4, 5), found(2, "b"));
        s.attempt(1, (6, 7), "b3", "b", stored_before(2, "b1"));
    });
}

#[test]
fn a_client_that_died_leaves_its_operation_open() {
    fine(|s| {
        let call = Call::Put { attempt: Some("a".to_owned()), content: "a".to_owned(), size_bytes: 1 };
        s.add(1, (0, None), call, Unknown).add(1, (0, None), Call::Delete { version: None }, Unknown);
        s.get(2, (2, 3), found(1, "a")).get(2, (4, 5), Missing);
    });
}

#[test]
fn an_attempt_that_a_node_makes_is_named_by_its_answer() {
    fine(|s| {
        // Nobody was told the id of the attempt that made version 1; the repetition is told of it.
        s.through(1, (0, 1), "a", Unknown).through(1, (2, 3), "a", stored_before(1, "x")).get(2, (4, 5), found(1, "a"));
        s.through(1, (6, 7), "b", stored(2, "y")).put(2, (8, 9), "b", stored_before(2, "y"));
    });
    fine(|s| {
        // Its node asked twice, and was told of what it had made itself.
        s.through(1, (0, 1), "a", stored_before(1, "x")).get(2, (2, 3), found(1, "a"));
    });
    bad(Kind::RefusedSeen, &[1, 2], |s| {
        s.through(1, (0, 1), "a", Refused).get(2, (2, 3), found(1, "a"));
    });
    bad(Kind::WrongRecord, &[2], |s| {
        s.through(1, (0, 1), "a", stored(1, "x")).through(2, (2, 3), "b", stored(2, "x"));
    });
    // A name that a caller gave is never another's, in whichever order they were written down.
    bad(Kind::WrongRecord, &[2], |s| {
        s.attempt(1, (0, 1), "x", "a", Unknown).through(2, (2, 3), "a", stored(1, "x"));
    });
    bad(Kind::RefusedSeen, &[1, 2], |s| {
        s.attempt(1, (0, 1), "x", "a", Refused).through(2, (2, 3), "a", stored(1, "x"));
    });
    // Whoever made it, it made one version.
    bad(Kind::TwoOutcomes, &[2, 5], |s| {
        s.through(1, (0, 1), "a", Unknown).through(1, (2, 3), "a", stored_before(1, "x"));
        s.delete(1, (4, 5), Some(1), deleted(&[1])).through(1, (6, 7), "a", Unknown);
        s.through(1, (8, 9), "a", stored_before(2, "x"));
    });
    bad(Kind::TwoOutcomes, &[1, 3], |s| {
        s.through(1, (0, 1), "a", stored(1, "x")).put(1, (2, 3), "b", stored(2, "b"));
        s.get(2, (4, 5), found(3, "a"));
    });
}

#[test]
fn plain_reads_may_be_late_about_others() {
    fine(|s| {
        s.put(1, (0, 1), "a", stored(1, "a")).put(1, (2, 3), "b", stored(2, "b"));
        s.plain(2, (4, 5), found(2, "b")).plain(2, (6, 7), found(1, "a")).plain(1, (6, 7), found(2, "b"));
        s.delete(1, (8, 9), None, deleted(&[1, 2])).plain(2, (10, 11), found(1, "a"));
    });
}

#[test]
fn content_stored_in_another_encoding_has_an_id_that_nobody_wrote() {
    fine(|s| {
        s.put(1, (0, 1), "a", stored(1, "a")).attempt(2, (2, 3), "again", "a", stored_before(1, "recoded"));
        s.get(1, (4, 5), found(1, "a"));
    });
    fine(|s| {
        // It was this put's own version that was stored anew before its answer came.
        s.put(1, (0, 9), "a", stored_before(1, "recoded")).get(1, (10, 11), found(1, "a"));
    });
}

#[test]
fn a_large_delete_is_done_entry_by_entry() {
    fine(|s| {
        for version in 1..=600_u32 {
            let (at, name) = (u64::from(version) * 2, format!("c{version}"));
            s.put(1, (at, at + 1), &name, stored(version, &name));
        }
        let all: Vec<u32> = (1..=600).collect();
        s.delete(1, (2_000, 2_009), None, deleted(&all)).get_one((2_001, 2_002), 1, Missing);
        s.get_one((2_003, 2_004), 600, found(600, "c600")).get(1, (2_010, 2_011), Missing);
    });
}

#[test]
fn a_search_without_end_is_undecided_and_not_a_verdict() {
    let mut script = Script::default();
    script.put(1, (0, 9), "a", stored(1, "a")).get(2, (0, 9), Missing).get(2, (0, 9), found(1, "a"));
    let verdict = check_within(&script.0, 1);
    assert!(verdict.violations.is_empty());
    assert_eq!(verdict.undecided.len(), 1);
    assert!(check(&script.0).passed());
}
