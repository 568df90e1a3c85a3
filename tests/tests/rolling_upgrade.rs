//! The previous release's programs and these ones in one cluster, under load: node by node is stopped and started again
//! with the new program on the same data, as the operator's guide says. Meanwhile nothing acknowledged is lost, both
//! releases make the same catalog of the same log, and what the older one could not understand is refused. Afterwards the
//! new version is in force by itself, the old program is no member any more, and what was stored before the upgrade heals
//! like everything else, also while all nodes are restarted once more.
//!
//! `tests/previous_build.sh` builds the programs of the previous release (`cargo xtask test` runs it). Without them this
//! test fails; `PACSVAULT_SKIP_UPGRADE=1` leaves it out.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use pacsvault_core::{
    catalog::{
        Command, Outcome, Rejection,
        command::{COMMANDS_VERSION, DrainTarget},
    },
    ids::{LogIndex, NodeId},
    layout::{Layout, NodeState, VolumeState},
};
use pacsvault_ports::peer::{Freshness, Reply, Request};
use pacsvault_rpc::fault::rejected;
use pacsvault_security::Authority;
use pacsvault_tests::{
    Bed, Ledger, Load, Shape, bed,
    refusal::{refused, says},
    scene::{HASTE, Scene},
    seed, skip,
};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// The commit of the previous release.
const PREVIOUS: &str = include_str!("../previous-release");
/// How long writes may pause while a node is stopped and another one elected.
const INTERRUPTION_MAX: Duration = Duration::from_secs(20);
/// How long a node may take to serve again and catch up.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// How long healing may take here; it takes seconds.
const HEALED_WITHIN: Duration = Duration::from_secs(120);

/// Where the programs of the previous release are; `None` when this test is left out.
fn previous_bin() -> anyhow::Result<Option<PathBuf>> {
    if std::env::var("PACSVAULT_SKIP_UPGRADE").is_ok_and(|value| !value.is_empty() && value != "0") {
        skip("the upgrade from the previous release", "PACSVAULT_SKIP_UPGRADE is set");
        return Ok(None);
    }
    let commit = PREVIOUS.trim();
    let dir = match std::env::var_os("PACSVAULT_PREVIOUS_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(TMP).parent().context("no target directory")?.join("previous").join(commit),
    };
    if !dir.join("pacsvault-node").is_file() {
        bail!(
            "{} has no pacsvault-node of the previous release ({commit}): run tests/previous_build.sh, or set \
             PACSVAULT_SKIP_UPGRADE=1 to leave this test out",
            dir.display()
        );
    }
    Ok(Some(dir))
}

/// Six nodes of the previous release, founded.
fn previous_cluster(previous: &Path) -> anyhow::Result<Scene> {
    let mut bed = Bed::prepared(TMP, 3, 2)?;
    for node in &mut bed.cluster.nodes {
        node.bin = Some(previous.to_path_buf());
    }
    bed.cluster.start(|_| true)?;
    bed.form()?;
    let clients = vec![bed.client(false)?, bed.client(true)?];
    Ok(Scene { bed, ledger: Arc::new(Ledger::default()), clients, load: None })
}

/// Puts load on the cluster, `round` after round.
fn load(scene: &mut Scene, round: u64) {
    let shape = Shape { bytes_max: 192 << 20, large_per_mille: 4, ..Shape::default() };
    scene.load = Some(Load::start(&scene.bed.runtime, &scene.clients, &scene.ledger, shape, seed(), round));
}

/// Stops one node and starts it again with its present program, until it serves and has caught up.
fn restart(scene: &mut Scene, name: &str) -> anyhow::Result<()> {
    scene.bed.cluster.stop(Duration::from_secs(30), |node| node.name == name)?;
    scene.bed.cluster.start(|node| node.name == name)?;
    scene.bed.until(BACK_WITHIN, &format!("{name} to catch up"), || {
        let statuses = scene.bed.statuses();
        let furthest = statuses.values().map(|status| status.applied.0).max().unwrap_or(0);
        let own = statuses.get(name).map(|status| (status.leader.is_some(), status.applied.0));
        ensure!(own.is_some_and(|(led, at)| led && at + 200 >= furthest), "{own:?} of {furthest}");
        Ok(true)
    })?;
    scene.load().until_acked(3, INTERRUPTION_MAX, &format!("after the restart of {name}"))?;
    alive(scene)
}

/// Fails when a process ended by itself: a replica stops when its catalog differs from the others'.
fn alive(scene: &mut Scene) -> anyhow::Result<()> {
    let ended = scene.bed.cluster.reap()?;
    ensure!(ended.is_empty(), "{ended:?} ended by themselves");
    Ok(())
}

/// From the next start on the node runs the new program; with timings that the old one would not know.
fn replace_program(scene: &mut Scene, name: &str) -> anyhow::Result<()> {
    let nodes = &mut scene.bed.cluster.nodes;
    let node = nodes.iter_mut().find(|node| node.name == name).context("a node of this cluster")?;
    node.bin = None;
    let present = fs::read_to_string(&node.config)?;
    Ok(fs::write(&node.config, format!("{present}\n{HASTE}"))?)
}

/// While a node runs the older release, what that could not understand is refused.
fn expect_pending(scene: &Scene, at: &str) -> anyhow::Result<()> {
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(1)), draining: true };
    let commands = vec![drain, Command::RetryAside];
    let answer = scene.bed.ask(at, Request::Propose(commands), Duration::from_secs(30))?;
    let Reply::Outcomes(outcomes) = answer else { bail!("proposed to, {at} answered {answer:?}") };
    ensure!(outcomes.len() == 2, "{at} answered {outcomes:?}");
    for outcome in outcomes {
        let Outcome::Rejected(why) = outcome else { bail!("{at} answered {outcome:?}") };
        ensure!(why == Rejection::UpgradePending { needed: COMMANDS_VERSION, present: 1 }, "{at} answered {why}");
        ensure!(rejected(&why).code == "PV-UPGRADE-PENDING", "{why}");
    }
    ensure!(layout_at(scene, at)?.format == 1, "version {COMMANDS_VERSION} is in force too early");
    Ok(())
}

fn layout_at(scene: &Scene, name: &str) -> anyhow::Result<Arc<Layout>> {
    match scene.bed.ask(name, Request::Layout(Freshness::AtLeast(LogIndex(0))), Duration::from_secs(5))? {
        Reply::Layout(layout) => Ok(layout),
        other => bail!("asked for the layout, {name} answered {other:?}"),
    }
}

/// One node after the other; returns when the new version is in force everywhere.
fn upgrade(scene: &mut Scene) -> anyhow::Result<()> {
    let names: Vec<String> = scene.bed.cluster.nodes.iter().map(|node| node.name.clone()).collect();
    for (turn, name) in names.iter().enumerate() {
        replace_program(scene, name)?;
        restart(scene, name)?;
        if turn + 1 < names.len() {
            expect_pending(scene, name)?;
        }
        if turn + 1 == names.len() / 2 {
            scene.quiet()?;
            let index = scene.bed.until_equal(BACK_WITHIN)?;
            eprintln!("half of the nodes upgraded: all replicas are equal at entry {index}");
            load(scene, 1);
        }
    }
    scene.bed.until(BACK_WITHIN, "the new version to be in force", || {
        for name in &names {
            let format = layout_at(scene, name)?.format;
            ensure!(format == COMMANDS_VERSION, "version {format} is in force at {name}");
        }
        Ok(true)
    })?;
    scene.load().until_acked(10, INTERRUPTION_MAX, "with the new version in force")?;
    alive(scene)
}

/// The old program wants in, as a new node: it is told that it is too old.
fn expect_too_old(scene: &mut Scene, previous: &Path) -> anyhow::Result<()> {
    let pki = scene.bed.pki();
    let authority = Authority::open(&pki)?;
    let added = scene.bed.cluster.add('a', &|role, name| bed::issue(&authority, &pki, role, name))?;
    let reason = refused(previous, &scene.bed.node(&added).config)?;
    eprintln!("the previous release is told: {reason}");
    scene.bed.cluster.nodes.retain(|node| node.name != added);
    says(&reason, &["version"])
}

/// A node burns; while what it held is rebuilt, all others are restarted one by one.
fn restart_while_repairing(scene: &mut Scene) -> anyhow::Result<()> {
    let (_, leader) = scene.bed.leader()?;
    let names = scene.bed.cluster.nodes.iter().map(|node| node.name.clone());
    let (others, victims): (Vec<String>, Vec<String>) = names.partition(|name| *name == leader || !name.ends_with('2'));
    let victim = victims.first().context("a node that does not lead")?.clone();
    let old = scene.node_id(&victim)?;
    scene.bed.cluster.kill(|node| node.name == victim)?;
    scene.bed.cluster.wipe(&victim)?;
    for volume in scene.volumes_of(old)? {
        scene.order(&Command::SetVolumeState { volume, state: VolumeState::Fenced })?;
    }
    for name in others.iter().chain(&victims[1..]) {
        restart(scene, name)?;
    }
    scene.until_healed(HEALED_WITHIN)?;
    scene.order(&Command::SetNodeState { node: old, state: NodeState::Removed })?;
    scene.bed.cluster.start(|node| node.name == victim)?;
    scene.bed.until(BACK_WITHIN, "the burnt node to be back as a new one", || {
        Ok(scene.node_id(&victim)? != old && scene.bed.statuses().len() == 6)
    })?;
    scene.quiet()?;
    scene.until_healed(HEALED_WITHIN).map(drop)
}

#[test]
fn an_upgrade_node_by_node_loses_nothing_and_ends_in_the_new_version() -> anyhow::Result<()> {
    let Some(previous) = previous_bin()? else { return Ok(()) };
    previous_cluster(&previous)?.play(
        |scene| {
            load(scene, 0);
            scene.load().until_acked(20, BACK_WITHIN, "with the previous release")?;
            upgrade(scene)?;
            expect_too_old(scene, &previous)?;
            scene.quiet()?;
            scene.check()?;
            let index = scene.bed.until_equal(BACK_WITHIN)?;
            eprintln!("all nodes upgraded: all replicas are equal at entry {index}");
            load(scene, 2);
            restart_while_repairing(scene)
        },
        |scene| scene.prove().map(drop),
    )
}
