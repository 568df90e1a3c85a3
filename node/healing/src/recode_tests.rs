//! Tests of the book of re-encoding; what it reads and writes is tested with a cluster.

use pacsvault_core::health::Sums;

use super::*;

const START: Duration = Duration::from_secs(1_000);

fn study(number: u32) -> Study {
    ("main".parse().expect("a name"), format!("1.2.{number}").parse().expect("a UID"))
}

fn name(text: &str) -> ProfileName {
    text.parse().expect("a name")
}

fn rows(wanted: &[(u32, &str)]) -> BTreeMap<Study, ProfileName> {
    wanted.iter().map(|(number, profile)| (study(*number), name(profile))).collect()
}

fn codes(hot: (u8, u8)) -> BTreeMap<ProfileName, Code> {
    let code = |(data, parity)| Code::new(data, parity).expect("a code");
    [(name("hot"), code(hot)), (name("cold"), code((4, 2)))].into()
}

/// Three studies with two versions left each.
fn book() -> Book {
    let mut book = Book::default();
    book.rows(START, rows(&[(1, "hot"), (2, "hot"), (3, "cold")]), codes((2, 4)));
    for (study, _) in book.uncounted(9) {
        book.counted(&study, 2);
    }
    book
}

fn turn(book: &mut Book, now: Duration) -> Option<Study> {
    book.next(now).map(|(study, _)| study)
}

#[test]
fn studies_take_turns_until_nothing_is_left() {
    let mut book = book();
    assert_eq!(book.left(), 6);
    let turns: Vec<_> = (0..4).filter_map(|_| turn(&mut book, START)).collect();
    assert_eq!(turns, [study(1), study(2), study(3), study(1)]);
    book.done(&study(1));
    assert_eq!(book.left(), 5);
    book.ended(&study(1), START, None);
    assert_eq!(book.uncounted(9), [(study(1), name("hot"))]);
    assert_eq!(turn(&mut book, START), Some(study(2)));
    book.counted(&study(1), 0);
    book.counted(&study(2), 0);
    book.counted(&study(3), 0);
    assert_eq!((turn(&mut book, START), book.left()), (None, 0));
}

#[test]
fn only_what_changed_is_counted_again_and_everything_in_a_while() {
    let mut book = book();
    book.rows(START, rows(&[(1, "hot"), (2, "cold"), (4, "hot")]), codes((2, 4)));
    assert_eq!(book.uncounted(9), [(study(2), name("cold")), (study(4), name("hot"))]);
    assert_eq!(book.left(), 4, "nobody wants the third any more");
    book.counted(&study(2), 0);
    book.counted(&study(4), 1);
    let again = rows(&[(1, "hot"), (2, "cold"), (4, "hot")]);
    book.rows(START + RECOUNT_EVERY - Duration::from_secs(1), again.clone(), codes((2, 4)));
    assert!(book.uncounted(9).is_empty());
    book.rows(START + RECOUNT_EVERY, again.clone(), codes((2, 4)));
    assert_eq!(book.uncounted(2).len(), 2);
    assert_eq!(book.uncounted(9).len(), 3);
    for number in [1, 2, 4] {
        book.counted(&study(number), 0);
    }
    book.rows(START + RECOUNT_EVERY, again, codes((3, 3)));
    assert_eq!(book.uncounted(9).len(), 3, "a profile has another code");
}

#[test]
fn a_study_that_fails_waits_longer_each_time_tells_why_and_holds_up_no_other() {
    let mut book = book();
    let mut now = START;
    for pause in [5, 10, 20, 40, 80, 160, 320, 320] {
        book.ended(&study(1), now, Some("full".to_owned()));
        book.counted(&study(1), 2);
        let others: BTreeSet<_> = (0..4).filter_map(|_| turn(&mut book, now)).collect();
        assert_eq!(others, [study(2), study(3)].into());
        now += Duration::from_secs(pause);
        let all: BTreeSet<_> = (0..3).filter_map(|_| turn(&mut book, now)).collect();
        assert_eq!(all.len(), 3, "after {pause} s");
    }
    assert_eq!(book.reasons(), ["re-encoding of study main/1.2.1 waits: full"]);
    book.rows(now, rows(&[(1, "cold"), (2, "hot")]), codes((2, 4)));
    assert!(book.reasons().is_empty(), "another wish is a new beginning");
    book.ended(&study(3), now, Some("nobody wants it any more".to_owned()));
    assert!(!book.uncounted(9).iter().any(|(uncounted, _)| *uncounted == study(3)));
}

#[test]
fn reasons_are_told_for_a_few_studies_only() {
    let mut book = Book::default();
    let many: Vec<(u32, &str)> = (1..=20).map(|number| (number, "hot")).collect();
    book.rows(START, rows(&many), codes((2, 4)));
    (1..=20).for_each(|number| book.ended(&study(number), START, Some("full".to_owned())));
    let told = book.reasons();
    assert_eq!(told.len(), REASONS_MAX + 1);
    assert_eq!(told.last().map(String::as_str), Some("re-encoding of 12 more studies waits"));
}

#[test]
fn with_many_studies_a_count_ends_before_the_next_begins() {
    let mut book = Book::default();
    let many = rows(&(1_000..9_000).map(|number| (number, "hot")).collect::<Vec<_>>());
    let (mut now, mut seen) = (START, BTreeMap::new());
    let long = RECOUNT_EVERY * 3;
    while now < START + long {
        book.rows(now, many.clone(), codes((2, 4)));
        for (study, _) in book.uncounted(COUNTED_AT_ONCE) {
            book.counted(&study, 0);
            *seen.entry(study).or_insert(0) += 1;
        }
        now += LOOK_EVERY;
        if seen.len() == many.len() {
            break;
        }
        // A turn that ends again and again, at the front, takes no place of those that wait.
        book.ended(&study(1_000), now, None);
    }
    assert!(now > START + RECOUNT_EVERY, "it takes longer than the pause between two counts");
    assert_eq!(seen.len(), many.len(), "the last ones come to their turn");
    assert!(seen.iter().filter(|(_, count)| **count > 1).count() <= 1, "nothing else is counted twice before that");
    let took = now - START;
    book.rows(now, many.clone(), codes((2, 4)));
    assert!(book.uncounted(9).len() <= 1);
    book.rows(now + took, many, codes((2, 4)));
    assert_eq!(book.uncounted(9).len(), 9);
}

#[test]
fn nothing_is_begun_in_a_profile_that_is_held() {
    let mut book = book();
    book.hold([(name("hot"), "too few sites".to_owned())].into());
    let turns: BTreeSet<_> = (0..3).filter_map(|_| turn(&mut book, START)).collect();
    assert_eq!(turns, [study(3)].into());
    assert_eq!(book.reasons(), ["re-encoding in profile hot waits: too few sites"]);
    book.hold(BTreeMap::new());
    let turns: BTreeSet<_> = (0..3).filter_map(|_| turn(&mut book, START)).collect();
    assert_eq!((turns.len(), book.reasons().len()), (3, 0));
}

#[test]
fn what_cannot_be_repaired_is_not_waited_for() {
    let sums = |stripes, shard_bytes| Sums { stripes, shard_bytes, content_bytes: 4 * shard_bytes };
    let told = |waiting, below, aside| {
        let waiting = [(Cause::Repair, waiting)].into();
        comes_first(&Survey { waiting, below_contract: below, ..Survey::default() }, aside)
    };
    assert_eq!(comes_first(&Survey::default(), 0), (false, false));
    assert_eq!(told(sums(3, 900), sums(2, 800), 0), (true, true));
    assert_eq!(told(sums(1, 0), sums(1, 300), 1), (false, false), "one is lost");
    assert_eq!(told(sums(1, 300), sums(1, 300), 1), (false, false), "a worker found one lost");
    assert_eq!(told(sums(2, 300), sums(1, 300), 1), (true, false), "another one waits beside");
}
