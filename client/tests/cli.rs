//! The command line as a process: what it prints where, and how it ends. Clusters of processes are tested elsewhere.

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs `pacsvault` in `dir` without any configuration of this machine.
fn pacsvault(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pacsvault"));
    command.current_dir(dir).env_clear().env("HOME", dir).args(arguments);
    command.output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_authority_makes_members_and_overwrites_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = pacsvault(dir.path(), &["pki", "init", "pki"]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(stdout(&made).contains("pacsvault pki issue pki --role node"), "it says what next");
    let issued = pacsvault(dir.path(), &["--json", "pki", "issue", "pki", "--role", "gateway", "main"]);
    let value: serde_json::Value = serde_json::from_slice(&issued.stdout).expect("one JSON object");
    assert_eq!(value["cert"], "pki/gateway-main.pem");
    assert!(dir.path().join("pki/gateway-main.key").is_file());
    let again = pacsvault(dir.path(), &["pki", "init", "pki"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).starts_with("error[PV-TRUST]: ") && stderr(&again).contains("never overwritten"));
}

#[test]
fn a_sample_study_has_the_files_that_were_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = pacsvault(dir.path(), &["sample", "study", "--slices", "2", "--frames", "1", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&made.stdout).expect("one JSON object");
    assert_eq!(value["files"], 3);
    assert_eq!(std::fs::read_dir(dir.path().join("study")).expect("listed").count(), 3);
}

#[test]
fn asking_wrongly_ends_with_2_and_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    for (arguments, word) in [
        (&["status"][..], "--endpoints"),
        (&["put"][..], "<PATH>"),
        (&["pki", "issue", "pki", "--role", "king", "x"][..], "operator"),
        (&["get", "--range", "9-5", "a"][..], "ends before it begins"),
        (&["put", "x", "--endpoints", "nowhere"][..], "host:port"),
        (&["drain"][..], "<NODE>"),
        (&["drain", "a", "--dry-run", "--yes"][..], "--yes"),
        (&["remove"][..], "<NODE>"),
        (&["what-if"][..], "--site, --node or --volume"),
        (&["status", "--watch", "--every", "1 year"][..], "500ms, 2s, 5m or 1h"),
        (&["scrub", "--wait", "status"][..], "takes no flags of its own"),
        (&["profile", "set-study", "1.2.3"][..], "<PROFILE>"),
        (&["profile", "set-study", "not-a-uid", "archive"][..], "not a DICOM UID"),
    ] {
        let output = pacsvault(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}: results only on standard output");
    }
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("pacsvault.toml"), "endpoint = [\"a:1\"]\n").expect("written");
    let output = pacsvault(dir.path(), &["ls"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("unknown field `endpoint`"), "{}", stderr(&output));
}

#[test]
fn plans_show_the_arithmetic_and_refuse_what_cannot_hold() {
    let dir = tempfile::tempdir().expect("a directory");
    let fine = pacsvault(dir.path(), &["plan", "--sites", "2,2,2"]);
    assert!(fine.status.success() && stdout(&fine).contains("standard v1: 4+2, 1.50 bytes stored per byte"));
    let refused = pacsvault(dir.path(), &["plan", "--sites", "2,2", "--profile", "archive=8+2:1 site"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stdout(&refused).contains("losing any one site leaves at most 5 shards of the 8 needed"));
}

#[test]
fn a_file_that_is_no_receipt_proves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(pacsvault(dir.path(), &["pki", "init", "pki"]).status.success());
    std::fs::write(dir.path().join("x.receipt"), "hello").expect("written");
    let output = pacsvault(dir.path(), &["receipt", "verify", "x.receipt", "--ca", "pki/ca.pem"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error[PV-RECEIPT]: "), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_cluster_that_does_not_answer_is_a_failure_with_a_hint() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(pacsvault(dir.path(), &["pki", "init", "pki"]).status.success());
    assert!(pacsvault(dir.path(), &["pki", "issue", "pki", "--role", "operator", "me"]).status.success());
    let config = "endpoints = [\"127.0.0.1:1\"]\nca = \"pki/ca.pem\"\ncert = \"pki/operator-me.pem\"\nkey = \"pki/operator-me.key\"\n";
    std::fs::write(dir.path().join("pacsvault.toml"), config).expect("written");
    let output = pacsvault(dir.path(), &["status", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&value["nodes"][0]["state"], &value["leader"]), (&"away".into(), &serde_json::Value::Null));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert!(error["error"]["code"].is_string() && error["error"]["hint"].is_string(), "{error}");
    let words = pacsvault(dir.path(), &["status"]);
    assert!(stderr(&words).contains("hint: "), "{}", stderr(&words));
}

#[test]
fn every_question_about_an_absent_cluster_ends_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(pacsvault(dir.path(), &["pki", "init", "pki"]).status.success());
    assert!(pacsvault(dir.path(), &["pki", "issue", "pki", "--role", "operator", "me"]).status.success());
    let config = "endpoints = [\"127.0.0.1:1\"]\nca = \"pki/ca.pem\"\ncert = \"pki/operator-me.pem\"\nkey = \"pki/operator-me.key\"\n";
    std::fs::write(dir.path().join("pacsvault.toml"), config).expect("written");
    let output = pacsvault(dir.path(), &["repair", "status", "--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert!(error["error"]["code"].as_str().is_some_and(|code| code.starts_with("PV-")), "{error}");
}

#[test]
fn failures_are_json_for_those_who_ask_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    for (arguments, code, word) in [
        (&["status", "--json"][..], "PV-CONFIG", "endpoints"),
        (&["put", "--json"][..], "PV-USAGE", "<PATH>"),
        (&["--json", "plan", "--sites", "2,2,2", "--profile", "a=4+2:many sites"][..], "PV-USAGE", "not a count"),
    ] {
        let output = pacsvault(dir.path(), arguments);
        let value: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
        assert_eq!((output.status.code(), &value["error"]["code"]), (Some(2), &code.into()), "{value}");
        let message = value["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(word) && !message.contains("None"), "{value}");
    }
}

#[test]
fn completion_scripts_know_the_commands() {
    let dir = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&pacsvault(dir.path(), &["completion", shell]));
        for word in ["probe", "transfer-leader", "what-if", "undrain", "scrub", "set-study"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
