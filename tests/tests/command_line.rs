//! The command line against a cluster it has founded itself: a synthetic study goes in and comes back the same, receipts
//! are proven offline, damage on a disk is found and read around, and what is asked wrongly is answered helpfully.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use pacsvault_harness::{Cluster, output};
use pacsvault_tests::{bed, refusal::says};
use serde_json::Value;

/// A cluster made and asked through the command line alone.
struct Scene {
    cluster: Cluster,
    dir: PathBuf,
    _home: tempfile::TempDir,
    _turn: fs::File,
}

impl Scene {
    fn set(sites: usize, nodes: usize) -> anyhow::Result<Self> {
        let turn = bed::turn(env!("CARGO_TARGET_TMPDIR"))?;
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let dir = home.path().join("cluster");
        let mut cluster = Cluster::prepare(&bed::bin_dir()?, &dir, sites, nodes)?;
        // Small volumes have small segments, which the test on damage reads as a whole.
        for node in &cluster.nodes {
            fs::write(&node.config, fs::read_to_string(&node.config)?.replace("64GiB", "2GiB"))?;
        }
        cluster.start(|_| true)?;
        cluster.form()?;
        Ok(Self { cluster, dir, _home: home, _turn: turn })
    }

    /// Rows of `--json` output.
    fn rows(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = output(self.cluster.client().arg("--json").args(arguments))?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// Code and words of a command that must fail.
    fn failure(&self, mut command: Command, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = command.args(arguments).output()?;
        anyhow::ensure!(!output.status.success(), "{arguments:?} should fail");
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn text<'a>(row: &'a Value, name: &str) -> anyhow::Result<&'a str> {
    row[name].as_str().with_context(|| format!("no {name} in {row}"))
}

#[test]
fn a_study_goes_in_is_proven_and_comes_back_the_same() -> anyhow::Result<()> {
    let scene = Scene::set(3, 2)?;
    let (study, receipts, back) = (scene.dir.join("study"), scene.dir.join("receipts"), scene.dir.join("back"));
    let shown = |path: &Path| path.display().to_string();
    output(scene.cluster.client().arg("sample").arg(&study).args(["--slices", "12", "--frames", "40"]))?;
    let put = scene.rows(&["put", &shown(&study), "--receipts", &shown(&receipts)])?;
    let mut files = BTreeMap::new();
    for row in put.iter().filter(|row| row["key"].is_string()) {
        anyhow::ensure!(row["degraded"] == false, "{row}");
        files.insert(
            text(row, "key")?.to_owned(),
            (PathBuf::from(text(row, "path")?), PathBuf::from(text(row, "receipt")?)),
        );
    }
    anyhow::ensure!(files.len() == 13, "12 slices and a multi-frame: {put:?}");
    // Again: the same versions, nothing new.
    let again = scene.rows(&["put", &shown(&study)])?;
    anyhow::ensure!(again.iter().filter(|row| row["key"].is_string()).all(|row| row["version"] == 1), "{again:?}");

    // Receipts are proven without any cluster; an altered one proves nothing.
    let ca = shown(&scene.dir.join("pki/ca.pem"));
    for (_, receipt) in files.values() {
        let mut alone = Command::new(scene.cluster.bin.join("pacsvault"));
        output(alone.env_clear().args(["receipt", "verify", &shown(receipt), "--ca", &ca]))?;
    }
    let (_, one) = files.values().next().context("a file")?;
    let mut altered = fs::read(one)?;
    let middle = altered.len() / 3;
    altered[middle] ^= 1;
    let forged = scene.dir.join("forged.receipt");
    fs::write(&forged, altered)?;
    scene.failure(scene.cluster.client(), &["receipt", "verify", &shown(&forged), "--ca", &ca])?;

    // What was listed, looked at, re-read and read.
    let uid = files.keys().next().and_then(|key| key.split('/').nth(1)).context("a study")?.to_owned();
    anyhow::ensure!(scene.rows(&["ls"])?[0]["objects"] == 13);
    anyhow::ensure!(scene.rows(&["ls", &uid])?.len() == 13);
    for row in
        scene.rows(&["get", "--study", &uid, "--out", &shown(&back)])?.iter().filter(|row| row["key"].is_string())
    {
        let (original, _) = files.get(text(row, "key")?).with_context(|| format!("never stored: {row}"))?;
        anyhow::ensure!(fs::read(text(row, "path")?)? == fs::read(original)?, "other bytes: {row}");
    }
    let (key, (original, _)) = files.iter().next().context("a file")?;
    let piece = scene.cluster.client().args(["get", key, "--range", "128-131", "--out", "-"]).output()?.stdout;
    anyhow::ensure!(piece == b"DICM" && piece == fs::read(original)?[128..132], "{piece:?}");
    output(scene.cluster.client().args(["verify", "--study", &uid]))?;

    // Gone for readers, and only with a yes.
    let (code, words) = scene.failure(scene.cluster.client(), &["rm", key])?;
    anyhow::ensure!(code == Some(2), "{code:?}");
    says(&words, &["--yes"])?;
    output(scene.cluster.client().args(["rm", key, "--yes"]))?;
    let (_, words) = scene.failure(scene.cluster.client(), &["head", key])?;
    says(&words, &["not stored"])?;
    anyhow::ensure!(scene.rows(&["ls", &uid])?.len() == 12);
    Ok(())
}

#[test]
fn damage_on_a_disk_is_found_named_and_read_around() -> anyhow::Result<()> {
    let mut scene = Scene::set(3, 2)?;
    let document = scene.dir.join("scan.bin");
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&document, &content)?;
    let path = document.display().to_string();
    output(scene.cluster.client().args(["put", &path, "--study", "1.2.3", "--name", "scan.bin"]))?;
    // Rot in every place where one node holds these bytes, behind its back.
    scene.cluster.kill(|node| node.name == "b2")?;
    let marks: Vec<Vec<u8>> = content.chunks(1 << 20).map(|chunk| chunk[1_000..1_064].to_vec()).collect();
    let mut spoiled = 0;
    for entry in walk(&scene.dir.join("b2/volume"))? {
        let mut bytes = fs::read(&entry)?;
        for mark in &marks {
            let places: Vec<usize> =
                bytes.windows(64).enumerate().filter(|(_, it)| it == mark).map(|(at, _)| at).collect();
            for at in places {
                bytes[at] ^= 0x40;
                spoiled += 1;
            }
        }
        fs::write(&entry, bytes)?;
    }
    scene.cluster.start(|_| true)?;
    scene.cluster.wait_whole()?;
    let back = scene.dir.join("back.bin");
    output(scene.cluster.client().args(["get", "1.2.3/@/scan.bin", "--out", &back.display().to_string()]))?;
    anyhow::ensure!(fs::read(&back)? == content, "other bytes came back");
    let verified = scene.cluster.client().args(["verify", "--study", "1.2.3", "--json"]).output()?;
    let report = String::from_utf8_lossy(&verified.stdout).into_owned();
    if spoiled == 0 {
        // b2 held parity only: none of the content's own bytes.
        anyhow::ensure!(verified.status.success(), "{report}");
    } else {
        anyhow::ensure!(verified.status.code() == Some(1), "{spoiled} places are spoiled: {report}");
        says(&report, &["damaged", "\"b2\"", "\"readable\":true"])?;
    }
    eprintln!("{spoiled} places spoiled: {report}");
    Ok(())
}

fn walk(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(walk(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

#[test]
fn what_is_asked_wrongly_is_answered_helpfully() -> anyhow::Result<()> {
    let scene = Scene::set(3, 1)?;
    let cluster = &scene.cluster;
    let wrong: [(&[&str], &[&str]); 6] = [
        (&["get", "main/1..2/1.3/1.4"], &["1..2", "component is empty"]),
        (&["get", "1.2.3"], &["tenant/study/series/instance"]),
        (&["head", "main/1.2/1.3/1.404"], &["not stored", "pacsvault ls"]),
        (&["put", "/nowhere/at/all"], &["/nowhere/at/all"]),
        (&["--endpoints", "node", "ls"], &["host:port"]),
        (&["--ca", "/nowhere/ca.pem", "ls"], &["/nowhere/ca.pem"]),
    ];
    for (arguments, words) in wrong {
        let (_, said) = scene.failure(cluster.client(), arguments)?;
        says(&said, words).with_context(|| format!("{arguments:?}"))?;
    }
    // A gateway may not found, and a founded cluster is not founded twice.
    let first = cluster.nodes[0].address.as_str();
    let (_, said) = scene.failure(cluster.client(), &["--endpoints", first, "cluster", "init"])?;
    says(&said, &["operator"])?;
    let (_, said) = scene.failure(cluster.admin(), &["--endpoints", first, "cluster", "init"])?;
    says(&said, &["already belongs to a cluster", "pacsvault status"])?;
    // With a node away, status says which, by its exit code too.
    let mut scene = scene;
    scene.cluster.kill(|node| node.name == "c1")?;
    let status = scene.cluster.admin().arg("status").output()?;
    anyhow::ensure!(status.status.code() == Some(1), "{status:?}");
    says(&String::from_utf8_lossy(&status.stdout), &["c1"])
}
