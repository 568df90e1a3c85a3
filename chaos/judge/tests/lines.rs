//! Histories on disk: what is written is read again, and what is not a history says why.

mod common;

use common::{Script, deleted, found, stored};
use pacsvault_judge::{Answer, Call, Error, History};

#[test]
fn what_is_written_is_read_again() {
    let mut script = Script::default();
    script.put(1, (0, 1), "a", stored(1, "a")).get(2, (2, 3), found(1, "a")).delete(1, (4, 5), None, deleted(&[1]));
    script.put(1, (6, 7), "b", Answer::Refused).plain(1, (8, 9), Answer::Missing);
    script.add(3, (10, None), Call::Delete { version: Some(4) }, Answer::Unknown);
    let mut text = Vec::new();
    script.0.write(&mut text).expect("memory takes it");
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), script.0.operations.len());
    assert_eq!(History::read(text.as_slice()).expect("it was just written"), script.0);
}

#[test]
fn the_format_of_a_line_stays() {
    let line = r#"{"number":7,"session":2,"key":"main/1/2/3","call":{"put":{"attempt":"a1","content":"c0ffee","size_bytes":9}},"started":5,"ended":8,"answer":{"stored":{"version":3,"attempt":"a1","first":true}}}
{"number":8,"session":2,"key":"main/1/2/3","call":{"get":{"version":null,"linearizable":true}},"started":9,"answer":"unknown"}
"#;
    let history = History::read(line.as_bytes()).expect("both are operations");
    assert_eq!(history.operations[0].answer, stored(3, "a1"));
    assert_eq!(history.operations[1].ended, None);
}

#[test]
fn an_end_replaces_its_beginning_and_nothing_else() {
    let begun =
        r#"{"number":1,"session":2,"key":"k","call":{"delete":{"version":null}},"started":9,"answer":"unknown"}"#;
    let ended = begun.replace("\"unknown\"", "\"refused\"").replace("\"started\":9", "\"started\":9,\"ended\":12");
    let history = History::read(format!("{begun}\n{ended}\n").as_bytes()).expect("one operation");
    assert_eq!((history.operations.len(), &history.operations[0].answer), (1, &Answer::Refused));
    let other = ended.replace("\"k\"", "\"l\"");
    for two in [format!("{begun}\n{other}"), format!("{begun}\n{ended}\n{ended}"), format!("{ended}\n{begun}")] {
        let error = History::read(two.as_bytes()).expect_err("two operations of one number");
        assert!(error.to_string().contains("two operations have number 1"), "{error}");
    }
}

#[test]
fn a_bad_line_is_named() {
    let good =
        r#"{"number":1,"session":2,"key":"k","call":{"delete":{"version":null}},"started":9,"answer":"unknown"}"#;
    let bad = [
        ("{\"number\":", "line 3"),
        ("{}", "line 3"),
        (good, "two operations have number 1"),
        (
            &good.replace("\"number\":1", "\"number\":2").replace("unknown", "missing"),
            "operation 2 has an answer and no end",
        ),
    ];
    for (line, expected) in bad {
        let text = format!("{good}\n\n{line}\n");
        let error = History::read(text.as_bytes()).expect_err("it is no history");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error, Error::Parse { .. } | Error::Contradiction(_)));
    }
}
