//! A real cluster of three sites on each emulated network: it works, and losing a site costs a pause of writes at most.
//!
//! Needs the programs `pacsvault-node` and `pacsvault`: in `PACSVAULT_BIN_DIR`, else beside this test's own folder. Without
//! them the test says so and is skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use pacsvault_chaos_live::net::{self, Conditions, Host, SiteLatency, Wan};
use pacsvault_harness::{Cluster, Member, Seat, output};
use pacsvault_tests::bed::turn;

const SITES: [&str; 3] = ["a", "b", "c"];
const WITNESS: &str = "w";
const WAY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);

fn bin_dir() -> Option<PathBuf> {
    let given = std::env::var_os("PACSVAULT_BIN_DIR").map(PathBuf::from);
    let own = || Some(std::env::current_exe().ok()?.parent()?.parent()?.to_path_buf());
    let dir = given.or_else(own)?;
    ["pacsvault-node", "pacsvault"].iter().all(|program| dir.join(program).is_file()).then_some(dir)
}

fn hosts() -> Vec<Host> {
    let host = |name: String, site: &str| Host { name, site: site.to_owned() };
    let nodes = (1..=2).flat_map(|number| SITES.map(|site| host(format!("{site}{number}"), site)));
    nodes.chain(SITES.map(|site| host(format!("client-{site}"), site))).collect()
}

fn latency() -> SiteLatency {
    let pair = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), WAY);
    [pair("a", "b"), pair("a", "c"), pair("b", "c")].into_iter().collect()
}

fn prepared(bin: &Path, dir: &Path, wan: &dyn Wan, hosts: Vec<Host>) -> anyhow::Result<Cluster> {
    let cli = bin.join("pacsvault");
    let pki = dir.join("pki");
    output(Command::new(&cli).args(["pki", "init"]).arg(&pki))?;
    let issue = |role: &str, name: &str| {
        output(Command::new(&cli).args(["pki", "issue"]).arg(&pki).args(["--role", role, name])).map(drop)
    };
    let members: Vec<Member> = hosts
        .into_iter()
        .filter(|host| !host.name.starts_with("client-"))
        .map(|host| {
            let place = wan.place(&host.name).clone();
            let seat = Seat {
                bind: place.bind,
                advertise: place.advertise,
                ops: place.ops,
                source: Some(place.source),
                namespace: place.namespace,
            };
            let witness = host.site == WITNESS;
            Member { name: host.name, site: host.site, witness, seat }
        })
        .collect();
    let cluster = Cluster::prepare_planned(bin, dir, &members, &issue)?;
    cluster.shrink("2GiB")?;
    // A client of site a, who is subject to the network's conditions, unlike the operator.
    let config = dir.join("client.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("{text}source = \"{}\"\nsite = \"a\"\n", wan.place("client-a").source))?;
    Ok(cluster)
}

/// Stores a file under `number` and reads it back; an error is what the program said.
fn round(cluster: &Cluster, dir: &Path, number: u32) -> anyhow::Result<()> {
    let (file, back) = (dir.join(format!("in-{number}")), dir.join(format!("out-{number}")));
    let content: Vec<u8> = (0..300_000_u32).flat_map(|at| (at ^ number).to_le_bytes()).collect();
    fs::write(&file, &content)?;
    let (study, name) = ("1.2.840.77", format!("document-{number}"));
    output(cluster.client().args(["put", "--study", study, "--name", &name]).arg(&file))?;
    // A reading that failed half way may have left it.
    if back.exists() {
        fs::remove_file(&back)?;
    }
    output(cluster.client().args(["get", &format!("{study}/@/{name}"), "--out"]).arg(&back))?;
    anyhow::ensure!(fs::read(&back)? == content, "{name} came back as something else");
    Ok(())
}

/// Repeats [`round`] until it works.
fn eventually(cluster: &Cluster, dir: &Path, number: u32) -> anyhow::Result<()> {
    let mut last = None;
    let done = cluster.until(PATIENCE, "a write and its reading", || {
        let done = round(cluster, dir, number);
        let fine = done.is_ok();
        last = done.err();
        Ok(fine)
    });
    done.with_context(|| last.map(|error| format!("{error:#}")).unwrap_or_default())
}

fn works_and_outlives_a_site(bin: &Path, wan: &dyn Wan) -> anyhow::Result<()> {
    let _turn = turn(env!("CARGO_TARGET_TMPDIR"))?;
    let home = tempfile::tempdir()?;
    let dir = home.path();
    let mut cluster = prepared(bin, dir, wan, hosts())?;
    cluster.start(|_| true)?;
    cluster.form_as_planned()?;
    for node in &cluster.nodes {
        let pid = cluster.pid(&node.name).context("runs")?;
        let program = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        anyhow::ensure!(program.trim() == "pacsvault-node", "the pid of {} is that of {program}", node.name);
    }
    round(&cluster, dir, 1)?;

    let (leader, _) = cluster.leader()?;
    let (gone, rest): (Vec<Host>, Vec<Host>) = hosts().into_iter().partition(|host| host.site == "c");
    let names = |hosts: &[Host]| hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>();
    let (gone, rest) = (names(&gone), names(&rest));
    let mut conditions = Conditions::default();
    conditions.cut_between(gone.iter().map(String::as_str), rest.iter().map(String::as_str));
    wan.apply(&conditions)?;
    println!("{}: site c is cut off, the leader was in site {leader}", wan.name());
    eventually(&cluster, dir, 2)?;
    wan.apply(&Conditions::default())?;
    cluster.wait_whole()?;
    eventually(&cluster, dir, 3)
}

#[test]
fn a_cluster_on_each_network_outlives_a_site() {
    let Some(bin) = bin_dir() else {
        eprintln!("skipped: pacsvault-node and pacsvault are not built (set PACSVAULT_BIN_DIR)");
        return;
    };
    works_and_outlives_a_site(&bin, &*net::proxy(&hosts(), &latency()).expect("needs no rights")).expect("over relays");
    match net::namespaces_refused() {
        Some(why) => eprintln!("skipped on namespaces: {why}"),
        None => works_and_outlives_a_site(&bin, &*net::namespaces(&hosts(), &latency()).expect("root may"))
            .expect("over real stacks"),
    }
}

#[test]
fn two_sites_and_a_witness_are_a_cluster_by_plan() {
    let Some(bin) = bin_dir() else {
        eprintln!("skipped: pacsvault-node and pacsvault are not built (set PACSVAULT_BIN_DIR)");
        return;
    };
    let host = |name: &str, site: &str| Host { name: name.to_owned(), site: site.to_owned() };
    let nodes = ["a1", "b1", "a2", "b2", "a3", "b3"].map(|name| host(name, &name[..1]));
    let mut hosts = nodes.to_vec();
    hosts.extend([host("w1", WITNESS), host("client-a", "a")]);
    let wan = net::proxy(&hosts, &SiteLatency::new()).expect("needs no rights");
    let _turn = turn(env!("CARGO_TARGET_TMPDIR")).expect("the machine's turn");
    let home = tempfile::tempdir().expect("a folder");
    let mut cluster = prepared(&bin, home.path(), &*wan, hosts).expect("certificates and configurations");
    cluster.start(|_| true).expect("programs that start");
    cluster.form_as_planned().expect("a whole cluster");
    let status = cluster.status().expect("a status");
    let nodes = status["nodes"].as_array().expect("nodes");
    let witness = nodes.iter().find(|node| node["name"] == "w1").expect("the witness is a member");
    assert_eq!(witness["volumes"].as_array().map_or(0, Vec::len), 0, "{witness}");
    round(&cluster, home.path(), 1).expect("stores and reads");
}
