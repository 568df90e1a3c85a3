//! The verdict: what must hold when the fire is out.
//!
//! **Invariants.** Every check is made, also after one failed. The last reads are part of the history that is judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use pacsvault_client::{Client, receipt};
use pacsvault_coordinator::GetQuery;
use pacsvault_core::{
    ids::{Digest, InstanceId, NodeId, ObjectKey, VersionNumber},
    receipt::Receipt,
};
use pacsvault_judge::{Answer, Call, History, Verdict};
use pacsvault_ports::peer::Freshness;

use crate::{
    eyes::{Eyes, Look},
    history::{Promise, Recorder},
    load::read,
    record::{Check, FaultRecord, HIDDEN, STOP},
    scenario::plan::Fault,
};

/// Versions read at once.
const READS_AT_ONCE: usize = 6;
/// Sessions of the last reads; far from those of the load.
const LAST_SESSIONS: u64 = 1_000_000;
/// Times that the last read of a version is tried.
const TRIES: usize = 3;
/// How long replicas may take to have applied the same.
const EQUAL_WITHIN: Duration = Duration::from_secs(45);

/// A check from what was found.
pub fn check(name: &str, found: Result<String, String>) -> Check {
    let passed = found.is_ok();
    let detail = match found {
        Ok(detail) | Err(detail) => detail,
    };
    Check { name: name.to_owned(), passed, detail }
}

fn some(what: &[String]) -> String {
    let shown: Vec<&str> = what.iter().take(5).map(String::as_str).collect();
    format!("{}: {}", what.len(), shown.join("; "))
}

/// Keys that somebody may have deleted something of.
pub fn deleted(history: &History) -> BTreeSet<String> {
    let deletes = history.operations.iter().filter(|operation| {
        matches!(operation.call, Call::Delete { .. })
            && matches!(operation.answer, Answer::Deleted { .. } | Answer::Unknown)
    });
    deletes.map(|operation| operation.key.clone()).collect()
}

/// Reads every acknowledged version again, through one client and then the other.
pub async fn reread(clients: &[Client], recorder: &Recorder, gone: &BTreeSet<String>) -> Result<String, String> {
    let promises: Vec<((String, u32), Promise)> = recorder.promises().into_iter().collect();
    let count = promises.len() * clients.len();
    let jobs =
        promises.iter().flat_map(|promise| clients.iter().zip(1..).map(move |(client, turn)| (promise, client, turn)));
    let jobs: Vec<_> = jobs.collect();
    let reads = stream::iter(jobs).map(|(((key, version), promise), client, turn)| {
        let may_be_gone = gone.contains(key);
        async move { reread_one(client, turn, recorder, (key.as_str(), *version), promise, may_be_gone).await }
    });
    let found: Vec<Result<u64, String>> = reads.buffer_unordered(READS_AT_ONCE).collect().await;
    let wrong: Vec<String> = found.iter().filter_map(|one| one.as_ref().err().cloned()).collect();
    let bytes: u64 = found.iter().filter_map(|one| one.as_ref().ok()).sum();
    if wrong.is_empty() { Ok(format!("{count} reads, {bytes} bytes compared")) } else { Err(some(&wrong)) }
}

async fn reread_one(
    client: &Client,
    turn: u64,
    recorder: &Recorder,
    (key, version): (&str, u32),
    promise: &Promise,
    may_be_gone: bool,
) -> Result<u64, String> {
    let name: ObjectKey = key.parse().map_err(|error| format!("{key}: {error}"))?;
    let mut last = Answer::Unknown;
    for _ in 0..TRIES {
        let call = Call::Get { version: Some(version), linearizable: true };
        let number = recorder.begin(LAST_SESSIONS + turn, key, call);
        let query = GetQuery {
            version: Some(VersionNumber(version)),
            freshness: Freshness::Linearizable,
            ..GetQuery::whole(name.clone())
        };
        let (answer, bytes) = read(client, recorder, query, None).await;
        recorder.end(number, answer.clone(), bytes);
        match &answer {
            Answer::Found { content, .. } if *content == promise.content.digest.to_string() => return Ok(bytes),
            Answer::Missing if may_be_gone => return Ok(0),
            _ => last = answer,
        }
    }
    Err(format!("{key} version {version} of {} bytes is {last:?}", promise.content.size_bytes))
}

/// Size and digest of what receipts promise, by instance.
pub type Promised = BTreeMap<InstanceId, (u64, Digest)>;

/// Proves all receipts offline; returns what they promise of keys that nobody deleted.
///
/// # Errors
/// Those that prove nothing or say something else.
pub fn receipts(recorder: &Recorder, ca_pem: &str, gone: &BTreeSet<String>) -> Result<(Promised, String), String> {
    let (mut promised, mut wrong) = (BTreeMap::new(), Vec::new());
    let (mut proven, mut degraded) = (0, 0);
    for ((key, version), promise) in recorder.promises() {
        match receipt::prove(&promise.signed, ca_pem) {
            Ok((receipt, _)) if fits(&receipt, &key, version, &promise) => {
                proven += 1;
                degraded += usize::from(receipt.degraded);
                if !gone.contains(&key) {
                    promised.insert(receipt.instance, (receipt.size_bytes, receipt.digest));
                }
            }
            Ok((receipt, _)) => wrong.push(format!("{key} version {version} has a receipt of {receipt}")),
            Err(error) => wrong.push(format!("{key} version {version}: {error}")),
        }
    }
    let detail = format!("{proven} receipts, {degraded} of degraded writes");
    if wrong.is_empty() { Ok((promised, detail)) } else { Err(some(&wrong)) }
}

fn fits(receipt: &Receipt, key: &str, version: u32, promise: &Promise) -> bool {
    receipt.key.to_string() == key
        && receipt.version.0 == version
        && receipt.digest == promise.content.digest
        && receipt.size_bytes == promise.content.size_bytes as u64
        && !receipt.survives.is_empty()
}

/// Waits until all replicas have applied the same, and compares what they made of it.
pub async fn equal(eyes: &Arc<Eyes>, nodes: usize) -> Result<String, String> {
    let began = Instant::now();
    loop {
        let look = eyes.last();
        let applied: BTreeSet<_> = look.applied.values().map(|(index, _)| *index).collect();
        let digests: BTreeSet<_> = look.applied.values().map(|(_, digest)| digest.clone()).collect();
        if look.applied.len() == nodes && applied.len() == 1 {
            let index = applied.first().map(ToString::to_string).unwrap_or_default();
            return match digests.len() {
                1 => Ok(format!("{nodes} replicas at entry {index}")),
                _ => Err(format!("replicas differ at entry {index}: {:?}", look.applied)),
            };
        }
        if began.elapsed() > EQUAL_WITHIN {
            return Err(format!("{} of {nodes} replicas answer, at entries {applied:?}", look.applied.len()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Judges the history. What the judge could not decide is not passed.
///
/// # Errors
/// Broken promises, and objects whose search came to no end.
pub fn judged(history: &History) -> Result<String, String> {
    told(&pacsvault_judge::check(history))
}

fn told(verdict: &Verdict) -> Result<String, String> {
    let figures = format!(
        "{} operations on {} keys, {} states searched, {} undecided",
        verdict.operations,
        verdict.keys,
        verdict.states_searched,
        verdict.undecided.len()
    );
    if verdict.passed() {
        return Ok(figures);
    }
    let broken = verdict.violations.iter().map(ToString::to_string);
    let undecided = verdict.undecided.iter().map(|why| format!("undecided: {why}"));
    Err(format!("{figures}; {}", some(&broken.chain(undecided).collect::<Vec<_>>())))
}

/// Faults were done, also such as the scenario is named for: what broke nothing has shown nothing.
///
/// # Errors
/// None were.
pub fn done(faults: &[FaultRecord], own: &[&str]) -> Result<String, String> {
    let shown = faults.iter().filter(|fault| fault.effect != HIDDEN);
    let is_own = |kind: &str| own.contains(&kind) || (kind == STOP && own.contains(&Fault::Kill.kind()));
    let named = shown.filter(|fault| is_own(&fault.kind)).count();
    match faults.len() {
        0 => Err("nothing was done".to_owned()),
        all if named == 0 => Err(format!("{all} faults, and none of them is {}", own.join(" or "))),
        all => Ok(format!("{all} faults, {named} of them {}", own.join(" or "))),
    }
}

/// In no term two leaders were believed, by whomever.
///
/// # Errors
/// Terms with several, or nobody ever believed in one.
pub fn one_leader(looks: &[Look]) -> Result<String, String> {
    let mut terms: BTreeMap<u64, BTreeSet<NodeId>> = BTreeMap::new();
    for (term, leader) in looks.iter().flat_map(|look| &look.believed) {
        terms.entry(*term).or_default().insert(*leader);
    }
    let several = terms.iter().filter(|(_, leaders)| leaders.len() > 1);
    let several: Vec<String> = several.map(|(term, leaders)| format!("term {term}: {leaders:?}")).collect();
    match terms.len() {
        0 => Err("no node ever named a leader".to_owned()),
        _ if !several.is_empty() => Err(some(&several)),
        count => Ok(format!("{count} terms in {} looks", looks.len())),
    }
}

/// Nothing was seen that breaks a promise by itself.
pub fn unbroken(recorder: &Recorder) -> Result<String, String> {
    let broken = recorder.all_broken();
    if broken.is_empty() { Ok("no damaged byte, no refusal for good".to_owned()) } else { Err(some(&broken)) }
}

#[cfg(test)]
mod tests {
    use pacsvault_judge::Operation;

    use super::*;

    /// Puts of one key that all overlap, and a read of a version that none of them tells: a search with many states.
    fn crowded() -> History {
        let operation = |number: u64, call: Call, answer: Answer| Operation {
            number,
            session: number,
            key: "main/1.2/1.2/1.2".to_owned(),
            call,
            started: 0,
            ended: Some(10),
            answer,
        };
        let put = |number: u64| {
            let call = Call::Put { attempt: Some(format!("i{number}")), content: format!("c{number}"), size_bytes: 1 };
            operation(number, call, Answer::Unknown)
        };
        let get = Call::Get { version: None, linearizable: true };
        let found = Answer::Found { version: 3, content: "c1".to_owned() };
        let operations = (1..=6).map(put).chain([operation(7, get, found)]).collect();
        History { operations }
    }

    #[test]
    fn a_run_without_a_fault_of_its_scenario_has_not_passed() {
        let fault = |kind: &str| FaultRecord { kind: kind.to_owned(), ..FaultRecord::default() };
        assert!(done(&[], &["kill"]).is_err());
        assert!(done(&[fault("slow disk"), fault("clock step")], &["kill", "pause"]).is_err());
        assert_eq!(done(&[fault("slow disk"), fault("kill")], &["kill"]).as_deref(), Ok("2 faults, 1 of them kill"));
        let hidden = FaultRecord { effect: HIDDEN.to_owned(), ..fault("kill") };
        assert!(done(&[hidden], &["kill"]).is_err(), "all were down already");
        assert!(done(&[fault(STOP)], &["kill"]).is_ok() && done(&[fault(STOP)], &["pause"]).is_err());
    }

    #[test]
    fn two_leaders_of_one_term_are_found_over_all_looks() {
        let look = |believed: &[(u64, u64)]| Look {
            believed: believed.iter().map(|(term, node)| (*term, NodeId(*node))).collect(),
            ..Look::default()
        };
        assert!(one_leader(&[look(&[]), look(&[])]).is_err(), "nobody told anything");
        assert!(one_leader(&[look(&[(1, 1), (2, 2)]), look(&[(2, 2), (3, 1)])]).is_ok());
        let why = one_leader(&[look(&[(2, 2)]), look(&[(3, 1)]), look(&[(2, 1)])]).expect_err("two in term 2");
        assert!(why.contains("term 2"), "{why}");
    }

    #[test]
    fn what_the_judge_could_not_decide_is_not_passed() {
        assert!(judged(&crowded()).is_ok());
        let verdict = pacsvault_judge::check_within(&crowded(), 1);
        assert!(verdict.violations.is_empty() && verdict.undecided.len() == 1, "{verdict:?}");
        let why = told(&verdict).expect_err("undecided");
        assert!(why.contains("1 undecided") && why.contains("main/1.2/1.2/1.2"), "{why}");
    }
}
