//! The driver with a program in place of `kubectl` that notes its calls and answers from files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::net::LinkState;

/// Notes arguments, and its input as one line; answers from files beside it.
const FAKE: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 9
[ -e hang ] && exec sleep 60
line="$*"
case "$line" in *"-f -") line="$line <<< $(cat)";; esac
printf '%s\n' "$line" >> calls
case "$line" in
  *" get pods "*) cat pods.json;;
  *" get networkpolicies -l app.kubernetes.io/managed-by=pacsvault-chaos "*) [ -e ours ] && cat ours; exit 0;;
  *" get networkpolicies "*) [ -e policies ] && cat policies; exit 0;;
  *" exec $(cat unreachable 2>/dev/null) "*) exit 1;;
  *" -KILL "*) echo "command terminated with exit code 137" >&2; exit 137;;
  *" logs "*) [ -e logs ] || exit 1; cat logs;;
  *" exec "*) [ -e pausable ] || exit 1;;
  *" apply "*) [ -e apply-refusal ] && { cat apply-refusal >&2; exit 1; };;
  *" delete networkpolicies -l "*) echo networkpolicy.networking.k8s.io/pacsvault-chaos-old;;
esac
[ -e refusal ] && { cat refusal >&2; exit 1; }
exit 0
"#;

const FOUR: [(&str, &str, &str); 4] =
    [("a-0", "a", "10.0.0.1"), ("a-1", "a", "10.0.0.2"), ("b-0", "b", "10.0.0.3"), ("c-0", "c", "fd00::4")];

struct Fake {
    dir: TempDir,
}

impl Fake {
    fn new() -> Self {
        let fake = Self { dir: tempfile::tempdir().expect("a directory") };
        fake.put("kubectl", FAKE);
        fs::set_permissions(fake.path("kubectl"), fs::Permissions::from_mode(0o755)).expect("executable");
        fake.pods(&FOUR);
        fake
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn pods(&self, pods: &[(&str, &str, &str)]) {
        self.pods_after(pods, &|_| ("one", 0));
    }

    /// The same, with what tells that a pod was made again, and how often its container was restarted.
    fn pods_after(&self, pods: &[(&str, &str, &str)], past: &dyn Fn(&str) -> (&'static str, u64)) {
        let item = |(name, site, address): &(&str, &str, &str)| {
            let labels = json!({"pacsvault.io/site": site, "statefulset.kubernetes.io/pod-name": name});
            let (uid, restarts) = past(name);
            let last = json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}});
            let container = json!({"name": "node", "restartCount": restarts, "lastState": last});
            json!({
                "metadata": {"name": name, "uid": uid, "labels": labels},
                "status": {
                    "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [container],
                },
            })
        };
        self.put("pods.json", &json!({"items": pods.iter().map(item).collect::<Vec<_>>()}).to_string());
    }

    fn options(&self) -> Options {
        let mut options = Options::new("pacs", "app=pacsvault");
        options.program = self.path("kubectl");
        options.call_within = Duration::from_secs(20);
        options.ready_within = Duration::from_secs(20);
        options
    }

    fn attach(&self) -> Kubectl {
        Kubectl::attach(&self.options()).expect("attached")
    }

    /// Calls since this was asked last.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        self.put("calls", "");
        text.lines().map(str::to_owned).collect()
    }
}

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("refused"))
}

/// Sites `one` and `other` cannot reach each other.
fn split(one: &[&str], other: &[&str]) -> Conditions {
    let mut conditions = Conditions::default();
    let cut = LinkState { cut: true, ..LinkState::default() };
    for (from, to) in one.iter().flat_map(|from| other.iter().map(move |to| (*from, *to))) {
        conditions.links.insert((from.into(), to.into()), cut.clone());
        conditions.links.insert((to.into(), from.into()), cut.clone());
    }
    conditions
}

/// The policies of the last `apply` among `calls`, by the pod that they select.
fn applied(calls: &[String]) -> BTreeMap<String, Value> {
    let call = calls.iter().rev().find(|call| call.contains("apply -f -")).expect("applied");
    let list: Value = serde_json::from_str(call.split_once("<<< ").expect("with input").1).expect("JSON");
    assert_eq!((&list["apiVersion"], &list["kind"]), (&json!("v1"), &json!("List")));
    let items = list["items"].as_array().expect("items").iter();
    items
        .map(|item| {
            assert_eq!(item["apiVersion"], "networking.k8s.io/v1");
            assert_eq!(item["kind"], "NetworkPolicy");
            assert_eq!(item["metadata"]["namespace"], "pacs");
            assert_eq!(item["metadata"]["labels"][OURS.0], OURS.1);
            assert_eq!(item["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
            let pod = &item["spec"]["podSelector"]["matchLabels"]["statefulset.kubernetes.io/pod-name"];
            (pod.as_str().expect("a pod").to_owned(), item["spec"].clone())
        })
        .collect()
}

#[test]
fn pods_are_nodes_and_attaching_changes_nothing() {
    let fake = Fake::new();
    let driver = fake.attach();
    let nodes: Vec<String> = driver.nodes().iter().map(|node| format!("{} in {}", node.name, node.site)).collect();
    assert_eq!(nodes, ["a-0 in a", "a-1 in a", "b-0 in b", "c-0 in c"]);
    assert_eq!(driver.abilities(), BTreeSet::from([Ability::Kill, Ability::Network]));
    drop(driver);
    let calls = fake.calls();
    assert_eq!(calls[0], "-n pacs get pods -l app=pacsvault -o json");
    assert_eq!(calls[1], "-n pacs get networkpolicies -l app.kubernetes.io/managed-by=pacsvault-chaos -o name");
    assert_eq!(calls[2], "-n pacs get networkpolicies -l app.kubernetes.io/managed-by!=pacsvault-chaos -o name");
    let looks = |call: &String| [" get ", "kill -0", " logs a-0 --tail=1"].iter().any(|one| call.contains(one));
    assert!(calls.iter().all(looks), "{calls:?}");
}

#[test]
fn a_killed_node_is_held_off_the_network_until_it_is_started() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    fake.calls();
    driver.kill(&["b-0".into()]).expect("killed");
    let calls = fake.calls();
    let spec = &applied(&calls)["b-0"];
    assert_eq!((&spec["ingress"], &spec["egress"]), (&json!([]), &json!([])));
    let kill = "-n pacs delete pods --grace-period=1 --wait=false --ignore-not-found b-0";
    assert_eq!(calls.last().map(String::as_str), Some(kill), "cut off first, then told to stop");
    assert!(
        driver.death() == Death::Told && !calls.iter().any(|call| call.contains("KILL") || call.contains("--force"))
    );
    driver.start(&["b-0".into()]).expect("started");
    assert_eq!(fake.calls()[0], "-n pacs delete networkpolicies --ignore-not-found pacsvault-chaos-b-0");
    assert!(error(driver.kill(&["x".into()])).contains("there is no node x; there are a-0, a-1, b-0, c-0"));
}

#[test]
fn a_cut_names_who_is_cut_and_allows_everybody_else() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    driver.shape(&split(&["a-0", "a-1"], &["b-0", "c-0"])).expect("cut");
    let policies = applied(&fake.calls());
    assert_eq!(policies.keys().collect::<Vec<_>>(), ["a-0", "a-1"], "one side is enough");
    let peers = &policies["a-0"]["ingress"][0]["from"];
    assert_eq!(peers, &policies["a-0"]["egress"][0]["to"]);
    let expression = &peers[0]["podSelector"]["matchExpressions"][0];
    assert_eq!(expression["operator"], "NotIn");
    assert_eq!(expression["values"], json!(["b-0", "c-0"]), "its own site stays reachable");
    assert_eq!(peers[1]["namespaceSelector"]["matchExpressions"][0]["values"], json!(["pacs"]));
    assert_eq!(peers[2]["ipBlock"], json!({"cidr": "0.0.0.0/0", "except": ["10.0.0.3/32"]}));
    assert_eq!(peers[3]["ipBlock"], json!({"cidr": "::/0", "except": ["fd00::4/128"]}));
    // Another cut replaces it; none removes all.
    driver.shape(&split(&["b-0"], &["c-0"])).expect("cut");
    let calls = fake.calls();
    assert_eq!(applied(&calls).keys().collect::<Vec<_>>(), ["b-0"]);
    let gone = "-n pacs delete networkpolicies --ignore-not-found pacsvault-chaos-a-0 pacsvault-chaos-a-1";
    assert_eq!(calls.last().map(String::as_str), Some(gone));
    driver.shape(&Conditions::default()).expect("healed");
    let gone = "-n pacs delete networkpolicies --ignore-not-found pacsvault-chaos-b-0";
    assert_eq!(fake.calls().last().map(String::as_str), Some(gone));
    drop(driver);
    assert!(fake.calls().is_empty(), "nothing is left to remove");
}

#[test]
fn a_pod_made_again_is_cut_off_under_its_new_address() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    driver.shape(&split(&["a-0"], &["b-0"])).expect("cut");
    driver.kill(&["b-0".into()]).expect("killed");
    fake.pods(&[("a-0", "a", "10.0.0.1"), ("b-0", "b", "10.0.0.99")]);
    fake.calls();
    driver.start(&["b-0".into()]).expect("started");
    let policies = applied(&fake.calls());
    assert_eq!(policies["a-0"]["egress"][0]["to"][2]["ipBlock"]["except"], json!(["10.0.0.99/32"]));
    assert_eq!(driver.nodes().len(), 4, "nodes whose pod is away are nodes still");
}

#[test]
fn what_policies_cannot_express_is_refused_before_anything_is_done() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    fake.calls();
    let mut one_way = split(&["a-0"], &["b-0"]);
    one_way.links.remove(&("b-0".to_owned(), "a-0".to_owned()));
    assert!(error(driver.shape(&one_way)).contains("one direction"));
    let mut slow = Conditions::default();
    let state = LinkState { extra_delay: Duration::from_millis(5), ..LinkState::default() };
    slow.links.insert(("a-0".into(), "b-0".into()), state);
    assert!(error(driver.shape(&slow)).contains("only cut"));
    assert!(error(driver.pause(&["a-0".into()])).contains("shareProcessNamespace"));
    assert!(error(driver.wipe("a-0")).contains("cannot wipe nodes"));
    // Clients are not pods of ours: their links stay as they are.
    driver.shape(&split(&["client-a"], &["b-0"])).expect("nothing to do");
    assert!(fake.calls().is_empty());
}

#[test]
fn policies_of_others_make_cuts_impossible_and_are_named() {
    let fake = Fake::new();
    fake.put("policies", "networkpolicy.networking.k8s.io/allow-gateways\n");
    let mut driver = fake.attach();
    assert_eq!(driver.abilities(), BTreeSet::from([Ability::Kill]));
    assert!(error(driver.shape(&split(&["a-0"], &["b-0"]))).contains("allow-gateways"));
    fake.calls();
    driver.kill(&["a-0".into()]).expect("still possible");
    assert!(fake.calls().iter().all(|call| !call.contains("apply")));
}

#[test]
fn a_cut_needs_policies_on_its_smaller_side_only() {
    let cut = |sites: &[&[&str]]| {
        let mut cut: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (at, one) in sites.iter().enumerate() {
            let others =
                || sites.iter().enumerate().filter(|(there, _)| *there != at).flat_map(|(_, site)| site.iter());
            for node in *one {
                cut.entry((*node).to_owned()).or_default().extend(others().map(|other| (*other).to_owned()));
            }
        }
        cut
    };
    let sides = |sites: &[&[&str]], held: &[&str]| {
        let held = held.iter().map(|node| (*node).to_owned()).collect();
        let found = policy::sides(&cut(sites), &held);
        found.into_iter().map(|(node, others)| format!("{node}: {}", others.len())).collect::<Vec<_>>()
    };
    assert_eq!(sides(&[&["a", "b", "c", "d"], &["x", "y"]], &[]), ["x: 4", "y: 4"]);
    let three: [&[&str]; 3] = [&["a1", "a2"], &["b1", "b2"], &["c1", "c2"]];
    assert_eq!(sides(&three, &[]), ["a1: 4", "a2: 4", "b1: 2", "b2: 2"]);
    assert_eq!(sides(&three, &["a1", "a2"]), ["b1: 2", "b2: 2"], "who is held off reaches nobody anyway");
}

#[test]
fn where_it_is_possible_a_node_is_killed_from_inside() {
    let fake = Fake::new();
    fake.put("pausable", "");
    let mut driver = fake.attach();
    assert_eq!(driver.death(), Death::Sudden);
    fake.calls();
    driver.kill(&["b-0".into()]).expect("the shell went with the container");
    let calls = fake.calls();
    let at = |words: &str| calls.iter().position(|call| call.contains(words)).expect("called");
    assert!(at("apply -f -") < at("exec b-0 -- sh -c p=$(pidof pacsvault-node) && kill -KILL"), "{calls:?}");
    assert!(at("-KILL") < at("delete pods --grace-period=1 --wait=false --ignore-not-found b-0"), "{calls:?}");
    fake.put("unreachable", "c-0");
    assert!(error(driver.kill(&["c-0".into()])).contains("cannot kill c-0"));
}

#[test]
fn restarts_that_are_not_ours_are_told_once() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    let told = |driver: &mut Kubectl| {
        driver.look_again().expect("looked");
        driver.ended().expect("told").expect("it can tell")
    };
    assert!(told(&mut driver).is_empty());
    fake.pods_after(&FOUR, &|name| ("one", u64::from(name == "a-1")));
    let why = "container node was restarted: OOMKilled, exit code 137".to_owned();
    assert_eq!(told(&mut driver), [("a-1".to_owned(), why)]);
    assert!(told(&mut driver).is_empty(), "once");
    driver.kill(&["b-0".into()]).expect("killed");
    let moved = |name: &str| if name == "b-0" { ("two", 0) } else { ("one", u64::from(name == "a-1")) };
    fake.pods_after(&FOUR, &moved);
    driver.start(&["b-0".into()]).expect("started");
    assert!(told(&mut driver).is_empty(), "that one was ours");
    fake.pods(&FOUR);
    assert_eq!(told(&mut driver), [("b-0".to_owned(), "another pod is in its place".to_owned())]);
}

#[test]
fn panics_are_found_in_logs_also_of_pods_that_are_gone_and_never_denied_unread() {
    let fake = Fake::new();
    assert_eq!(fake.attach().panics().expect("asked"), None, "logs cannot be read here");
    fake.put("logs", "INFO fine\n");
    let mut driver = fake.attach();
    assert_eq!(driver.panics().expect("asked"), Some(Vec::new()));
    fake.put("logs", "thread 'main' panicked at node/src/a.rs\n");
    driver.kill(&["a-1".into()]).expect("killed");
    fake.put("logs", "INFO fine\n");
    assert_eq!(driver.panics().expect("asked").expect("read").len(), 1);
    let mut driver = fake.attach();
    fs::remove_file(fake.path("logs")).expect("removed");
    driver.kill(&["a-1".into()]).expect("killed all the same");
    fake.put("logs", "INFO fine\n");
    assert_eq!(driver.panics().expect("asked"), None, "nobody has read the whole");
}

#[test]
fn nodes_that_are_not_process_one_can_be_paused() {
    let fake = Fake::new();
    fake.put("pausable", "");
    let mut driver = fake.attach();
    assert!(driver.abilities().contains(&Ability::Pause));
    fake.calls();
    driver.pause(&["a-0".into()]).expect("paused");
    driver.resume(&["a-0".into()]).expect("resumed");
    let calls = fake.calls();
    assert_eq!(calls[0], "-n pacs exec a-0 -- sh -c p=$(pidof pacsvault-node) && kill -STOP \"$p\"");
    assert!(calls[1].contains("kill -CONT"));
    drop(driver);
    assert!(fake.calls().is_empty(), "nobody stands still");
    let driver = Kubectl::attach(&Options { container: Some("node".into()), ..fake.options() }).expect("attached");
    assert!(fake.calls().iter().any(|call| call.contains(" exec a-0 -c node -- sh -c ")));
    drop(driver);
}

#[test]
fn one_pod_that_cannot_be_reached_does_not_keep_the_others_paused() {
    let fake = Fake::new();
    fake.put("pausable", "");
    let mut driver = fake.attach();
    let nodes = ["a-0".to_owned(), "a-1".to_owned(), "b-0".to_owned()];
    driver.pause(&nodes).expect("paused");
    fake.put("unreachable", "a-1");
    fake.calls();
    assert!(error(driver.resume(&nodes)).contains("SIGCONT to a-1"));
    let told = |calls: Vec<String>| {
        let told: Vec<String> =
            calls.iter().filter(|call| call.contains("-CONT")).map(|call| call[13..16].into()).collect();
        told
    };
    assert_eq!(told(fake.calls()), nodes);
    fs::remove_file(fake.path("unreachable")).expect("reachable again");
    drop(driver);
    assert_eq!(told(fake.calls()), nodes, "once more when the driver goes");
    Kubectl::clean(&fake.options()).expect("cleaned");
    assert_eq!(told(fake.calls()), ["a-0", "a-1", "b-0", "c-0"], "by hand all of them, whoever was paused");
}

#[test]
fn who_comes_while_policies_of_ours_are_in_force_is_refused() {
    let fake = Fake::new();
    fake.put("ours", "networkpolicy.networking.k8s.io/pacsvault-chaos-a-0\n");
    let told = error(Kubectl::attach(&fake.options()).map(drop));
    assert!(told.contains("pacsvault-chaos-a-0") && told.contains("attach --clean"), "{told}");
}

#[test]
fn what_is_left_is_removed_when_the_driver_goes_and_by_hand() {
    let fake = Fake::new();
    let mut driver = fake.attach();
    driver.shape(&split(&["a-0"], &["b-0"])).expect("cut");
    fake.calls();
    drop(driver);
    let all =
        "-n pacs delete networkpolicies -l app.kubernetes.io/managed-by=pacsvault-chaos --ignore-not-found -o name";
    assert_eq!(fake.calls(), [all]);
    let removed = Kubectl::clean(&fake.options()).expect("cleaned");
    assert_eq!(removed, ["networkpolicy.networking.k8s.io/pacsvault-chaos-old"]);
    // A call that failed may have made some of them all the same.
    let mut driver = fake.attach();
    fake.put("apply-refusal", "the server was interrupted");
    assert!(error(driver.shape(&split(&["a-0"], &["b-0"]))).contains("interrupted"));
    fake.calls();
    drop(driver);
    assert_eq!(fake.calls(), [all]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let fake = Fake::new();
    let mut options = fake.options();
    options.dry_run = true;
    let mut driver = Kubectl::attach(&options).expect("attached");
    fake.calls();
    driver.kill(&["b-0".into()]).expect("said");
    driver.shape(&split(&["a-0"], &["b-0"])).expect("said");
    driver.start(&["b-0".into()]).expect("said");
    drop(driver);
    let calls = fake.calls();
    assert!(calls.iter().all(|call| call.contains(" get ")), "{calls:?}");
}

#[test]
fn errors_tell_what_to_do() {
    let fake = Fake::new();
    let options = fake.options();
    let tried = |name: &str, text: &str, options: &Options| {
        fake.put(name, text);
        let told = error(Kubectl::attach(options).map(|_| ()));
        fs::remove_file(fake.path(name)).expect("removed");
        told
    };
    let forbidden = "Error from server (Forbidden): pods is forbidden: User \"x\" cannot list";
    assert!(tried("refusal", forbidden, &options).contains("needs get, list and delete of pods"));
    let refused = "The connection to the server localhost:8080 was refused";
    assert!(tried("refusal", refused, &options).contains("--context"));
    let hasty = Options { call_within: Duration::from_millis(200), ..options.clone() };
    assert!(tried("hang", "", &hasty).contains("did not end"));
    let absent = Options { program: fake.path("nowhere"), ..options.clone() };
    assert!(error(Kubectl::attach(&absent).map(|_| ())).contains("install kubectl"));
    fake.put("pods.json", "{\"items\": []}");
    assert!(error(Kubectl::attach(&options).map(|_| ())).contains("no pod has the labels app=pacsvault"));
    fake.put("pods.json", "{\"items\": [{\"metadata\": {\"name\": \"p\", \"labels\": {}}}]}");
    assert!(error(Kubectl::attach(&options).map(|_| ())).contains("kubectl label pod p pacsvault.io/site=SITE"));
    assert!(Path::new(&fake.path("calls")).exists());
}
