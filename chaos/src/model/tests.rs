//! Each rule catches the history made to break it, and none condemns a fine one.

use super::*;
use crate::testing::{instance, name, record};

const WHOLE: Range<u64> = 0..u64::MAX;

fn put(model: &mut Model, number: u8, version: u32) -> usize {
    let content = Bytes::from(vec![number; 4]);
    let put = model.begin_put(1, (0, &name()), content.clone(), instance(number));
    model.acked(put, &record(number, version, &content), true);
    put
}

#[test]
fn a_fine_history_has_no_violation() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    put(&mut model, 2, 2);
    model.observe_bytes(0, &record(2, 2, &[2; 4]), 1..3, &[2, 2]);
    model.observe_bytes(0, &record(2, 2, &[2; 4]), 3..9, &[2]);
    model.ends_before(0, 5);
    assert_eq!(model.must_live().len(), 2);
    let delete = model.begin_delete(1, (0, &name()), None);
    assert!(model.may_be_gone(0, &record(1, 1, &[1; 4])));
    model.deleted(delete, Some(vec![1, 2]));
    assert!(model.must_live().is_empty());
    assert_eq!(model.violations, Vec::<String>::new());
    assert!(pacsvault_judge::check(model.history()).passed());
}

#[test]
fn what_clients_were_told_reaches_the_judge() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    put(&mut model, 2, 2);
    let started = model.tick();
    let question = Question { session: 2, key: name(), version: None, linearizable: true, started };
    model.answered(question, Some(&record(1, 1, &[1; 4])));
    let open = model.begin_put(3, (0, &name()), Bytes::from_static(b"x"), instance(9));
    model.died(3);
    let unknown = model.begin_put(4, (0, &name()), Bytes::from_static(b"y"), instance(8));
    model.put_unknown(unknown);
    assert!(model.history().operations.iter().all(|operation| operation.ended.is_some()));
    assert_eq!((open, model.history().operations.len()), (2, 5));
    let verdict = pacsvault_judge::check(model.history());
    assert_eq!(verdict.violations.iter().map(|one| one.kind).collect::<Vec<_>>(), [pacsvault_judge::Kind::StaleRead]);
}

#[test]
fn a_delete_that_was_over_before_a_write_does_not_excuse_its_loss() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    let delete = model.begin_delete(1, (0, &name()), None);
    model.deleted(delete, Some(vec![1]));
    put(&mut model, 2, 2);
    assert_eq!(model.must_live().len(), 1);
}

#[test]
fn a_delete_given_up_excuses_only_what_it_may_have_looked_up() {
    let name = name();
    type GiveUp = fn(&mut Model, usize);
    let ways: [GiveUp; 2] = [|model, delete| model.delete_unknown(delete), |model, _| model.died(7)];
    for give_up in ways {
        for version in [None, Some(2)] {
            let mut model = Model::default();
            put(&mut model, 1, 1);
            let delete = model.begin_delete(7, (0, &name), version);
            give_up(&mut model, delete);
            put(&mut model, 2, 2);
            let alive: Vec<u32> = model.must_live().iter().map(|live| live.acked.version.0).collect();
            // One of a version by its number may come late, and meet it.
            let expected = if version.is_none() { vec![2] } else { vec![1] };
            assert_eq!(alive, expected, "{version:?}");
        }
    }
}

#[test]
fn a_refused_write_that_shows_is_caught() {
    let mut model = Model::default();
    let put = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(1));
    model.put_refused(put);
    model.observe(0, &record(1, 1, b"x"));
    assert_eq!(model.violations.len(), 1);
}

#[test]
fn two_versions_of_one_attempt_and_two_attempts_of_one_version_are_caught() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    model.observe(0, &record(1, 2, &[1; 4]));
    assert_eq!(model.violations.len(), 1);
    put(&mut model, 2, 2);
    assert_eq!(model.violations.len(), 2);
}

#[test]
fn altered_bytes_are_caught() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    model.observe_bytes(0, &record(1, 1, &[1; 4]), WHOLE, &[1, 1, 9, 1]);
    assert_eq!(model.violations.len(), 1);
}

#[test]
fn a_read_that_gives_less_than_it_was_asked_for_is_caught() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    model.observe_bytes(0, &record(1, 1, &[1; 4]), 1..3, &[1]);
    assert_eq!(model.violations.len(), 1);
    model.observe_bytes(0, &record(1, 1, &[1; 4]), WHOLE, &[1; 3]);
    assert_eq!(model.violations.len(), 2);
    model.ends_before(0, 4);
    assert_eq!(model.violations.len(), 3, "no version of it is so short");
}

#[test]
fn a_write_told_to_be_deleted_was_asked_to_be() {
    for (of, begun_first, fine) in
        [(None, true, true), (Some(1), true, true), (Some(2), true, false), (None, false, false)]
    {
        let mut model = Model::default();
        let delete = |model: &mut Model| {
            let delete = model.begin_delete(2, (0, &name()), of);
            model.deleted(delete, Some(vec![1]));
        };
        if !begun_first {
            delete(&mut model);
        }
        let put = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(1));
        model.observe(0, &record(1, 1, b"x"));
        if begun_first {
            delete(&mut model);
        }
        model.put_deleted(put);
        assert_eq!(model.violations.is_empty(), fine, "{of:?} {begun_first}");
    }
}

#[test]
fn a_write_is_refused_only_when_every_attempt_was_and_in_doubt_only_when_one_is() {
    type Told = fn(&mut Model, usize);
    let (refused, unknown): (Told, Told) = (Model::put_refused, Model::put_unknown);
    let acked: Told = |model, put| {
        let (number, content) = (u8::try_from(put).expect("few") + 1, model.attempts()[put].content.clone());
        model.acked(put, &record(number, 1, &content), true);
    };
    let rows: [(&[Told], Conclusion, bool); 8] = [
        (&[refused, refused], Conclusion::Refused, true),
        (&[unknown, refused], Conclusion::Refused, false),
        (&[refused, unknown], Conclusion::Refused, false),
        (&[unknown, refused], Conclusion::Unknown, true),
        (&[refused, refused], Conclusion::Unknown, false),
        (&[unknown, acked], Conclusion::Acked, true),
        (&[unknown, refused], Conclusion::Acked, false),
        (&[unknown, acked], Conclusion::Unknown, false),
    ];
    for (row, (fates, conclusion, fine)) in rows.into_iter().enumerate() {
        let mut model = Model::default();
        let mut puts = Vec::new();
        for (fate, number) in fates.iter().zip(1..) {
            let put = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(number));
            fate(&mut model, put);
            puts.push(put);
        }
        model.concluded(&puts, conclusion);
        assert_eq!(model.violations.is_empty(), fine, "row {row}: {:?}", model.violations);
    }
}

#[test]
fn another_encoding_of_a_version_is_its_content_again() {
    let mut model = Model::default();
    model.expect_other_encodings();
    put(&mut model, 1, 1);
    model.observe_bytes(0, &record(90, 1, &[1; 4]), WHOLE, &[1; 4]);
    // Its first encoding may still be read where the news has not come yet.
    model.observe_bytes(0, &record(1, 1, &[1; 4]), WHOLE, &[1; 4]);
    // An unknown write, first seen in another encoding.
    let unknown = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(2));
    model.put_unknown(unknown);
    model.observe_bytes(0, &record(91, 2, b"x"), WHOLE, b"x");
    // Answered with another encoding of what was stored before.
    let again = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(3));
    model.acked(again, &record(91, 2, b"x"), false);
    assert_eq!(model.violations, Vec::<String>::new());
    let live: Vec<u32> = model.must_live().iter().map(|live| live.acked.version.0).collect();
    assert_eq!(live, [1, 2]);
    let verdict = pacsvault_judge::check(model.history());
    assert!(verdict.passed(), "{:?}", verdict.violations);
}

#[test]
fn another_encoding_that_nobody_asked_for_or_of_other_content_is_caught() {
    let mut model = Model::default();
    put(&mut model, 1, 1);
    model.observe(0, &record(90, 1, &[1; 4]));
    assert_eq!(model.violations.len(), 1, "nobody asked");
    model.expect_other_encodings();
    model.observe(0, &record(90, 1, &[7; 4]));
    assert_eq!(model.violations.len(), 2, "other content");
    model.observe(0, &record(91, 2, &[1; 4]));
    assert_eq!(model.violations.len(), 3, "its only attempt made another version");
    model.observe(0, &record(91, 1, &[1; 4]));
    assert_eq!(model.violations.len(), 4, "of two versions");
    let refused = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(2));
    model.put_refused(refused);
    model.observe(0, &record(92, 3, b"x"));
    assert_eq!(model.violations.len(), 5, "refused");
}

#[test]
fn a_delete_that_was_over_before_a_write_excuses_no_loss_of_its_other_encoding() {
    let mut model = Model::default();
    model.expect_other_encodings();
    let delete = model.begin_delete(1, (0, &name()), None);
    model.deleted(delete, None);
    let put = model.begin_put(1, (0, &name()), Bytes::from_static(b"x"), instance(1));
    model.acked(put, &record(90, 1, b"x"), false);
    assert!(!model.may_be_gone(0, &record(90, 1, b"x")));
    assert_eq!(model.must_live().len(), 1);
}
