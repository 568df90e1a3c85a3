//! The cluster heals itself, with real processes under load: nodes and volumes wiped, segments rotted, everything restarted
//! in the middle of a repair. Each ends with every acknowledged byte read again and full contract proven from the volumes.
//!
//! Short by default; `PACSVAULT_LONG=1` runs each load ten times as long. `PACSVAULT_TEST_SEED` repeats a run's choices.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use pacsvault_client::Source;
use pacsvault_coordinator::PutHeader;
use pacsvault_core::{
    catalog::Command,
    health::Loss,
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::peer::Request;
use pacsvault_tests::{
    Shape,
    scene::{HASTE, Scene, moments},
};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// How long healing may take here; it takes seconds.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

fn scene() -> anyhow::Result<Scene> {
    let shape = Shape { bytes_max: 192 << 20, large_per_mille: 4, ..Shape::default() };
    Scene::set(TMP, 3, 2, HASTE, shape)
}

/// A node that does not lead.
fn follower(scene: &Scene) -> anyhow::Result<String> {
    let (_, leader) = scene.bed.leader()?;
    let mut nodes = scene.bed.cluster.nodes.iter().map(|node| node.name.clone());
    nodes.find(|name| *name != leader).context("six nodes")
}

/// The operator's word that a node never comes back: its volumes are fenced, so that they are rebuilt at once.
fn give_up(scene: &Scene, name: &str) -> anyhow::Result<()> {
    for volume in scene.volumes_of(scene.node_id(name)?)? {
        scene.order(&Command::SetVolumeState { volume, state: VolumeState::Fenced })?;
    }
    Ok(())
}

fn proven(scene: &mut Scene) -> anyhow::Result<()> {
    scene.quiet()?;
    scene.until_healed(HEALED_WITHIN)?;
    scene.prove().map(drop)
}

#[test]
fn a_wiped_node_is_rebuilt_on_the_others_and_joins_again_as_a_new_one() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let victim = follower(scene)?;
            let old = scene.node_id(&victim)?;
            scene.bed.cluster.kill(|node| node.name == victim)?;
            scene.bed.cluster.wipe(&victim)?;
            give_up(scene, &victim)?;
            scene.load().until_acked(10, TAKEN_WITHIN, "after a node burnt")?;
            scene.until_healed(HEALED_WITHIN)?;
            scene.order(&Command::SetNodeState { node: old, state: NodeState::Removed })?;
            scene.bed.cluster.start(|node| node.name == victim)?;
            scene.bed.until(Duration::from_secs(60), "the new node to be a member", || {
                Ok(scene.node_id(&victim)? != old && scene.bed.statuses().len() == 6)
            })?;
            scene.load().run_for(moments(3));
            Ok(())
        },
        proven,
    )
}

#[test]
fn a_node_that_dies_is_noticed_and_rebuilt_without_anybody_asking() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let victim = follower(scene)?;
            let id = scene.node_id(&victim)?;
            scene.bed.cluster.kill(|node| node.name == victim)?;
            scene.bed.until(TAKEN_WITHIN, "the log to count it as down", || {
                Ok(scene.bed.layout()?.nodes[&id].state == NodeState::Down)
            })?;
            scene.until_healed(HEALED_WITHIN)?;
            // It returns with everything it had: nothing is resurrected, nothing is lost, and what is stale goes.
            scene.load().run_for(moments(2));
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))
        },
        proven,
    )
}

#[test]
fn a_wiped_volume_is_rebuilt() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let victim = follower(scene)?;
            let old = scene.volumes_of(scene.node_id(&victim)?)?;
            scene.bed.cluster.stop(TAKEN_WITHIN, |node| node.name == victim)?;
            let home = scene.bed.node(&victim).config.parent().context("a folder")?.to_path_buf();
            fs::remove_dir_all(home.join("volume"))?;
            let mut forget = std::process::Command::new(scene.bed.cluster.bin.join("pacsvault-node"));
            forget.arg("--config").arg(&scene.bed.node(&victim).config).args(["--forget-volume", "volume"]);
            pacsvault_harness::output(&mut forget)?;
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until(TAKEN_WITHIN, "the log to see that the old volume is not served", || {
                let layout = scene.bed.layout()?;
                Ok(old.iter().all(|volume| layout.volumes[volume].state == VolumeState::Away))
            })?;
            for volume in old {
                scene.order(&Command::SetVolumeState { volume, state: VolumeState::Fenced })?;
            }
            scene.load().until_acked(10, TAKEN_WITHIN, "with a new volume")?;
            scene.bed.until_whole(Duration::from_secs(60))
        },
        proven,
    )
}

#[test]
fn rot_on_as_many_nodes_as_there_is_parity_is_found_and_repaired() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            scene.load().run_for(moments(3));
            scene.quiet()?;
            // Both nodes of one site: at most two shards of a stripe, which is what 4+2 can lose.
            let site = scene.bed.cluster.nodes[0].site.clone();
            let victims: Vec<String> =
                scene.bed.cluster.nodes.iter().filter(|node| node.site == site).map(|node| node.name.clone()).collect();
            scene.bed.cluster.stop(TAKEN_WITHIN, |node| victims.contains(&node.name))?;
            for victim in &victims {
                scene.rot(victim, 30, 64)?;
            }
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))?;
            for victim in &victims {
                scene.bed.ask(victim, Request::ScrubNow(None), Duration::from_secs(10))?;
            }
            let mut found = 0;
            for victim in &victims {
                scene.bed.until(HEALED_WITHIN, "a volume to be verified whole", || {
                    let status = scene.bed.status_of(victim)?;
                    let volume = status.volumes.first().context("a volume")?;
                    ensure!(!volume.scrub.hurried && volume.scrub.verified >= volume.shards, "{:?}", volume.scrub);
                    found += volume.scrub.damaged;
                    Ok(true)
                })?;
            }
            ensure!(found > 0, "60 places rotted and nothing was found");
            Ok(())
        },
        proven,
    )
}

#[test]
fn restarting_everything_in_the_middle_of_a_repair_loses_nothing_and_it_goes_on() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            scene.load().run_for(moments(4));
            let victim = follower(scene)?;
            scene.bed.cluster.kill(|node| node.name == victim)?;
            scene.bed.cluster.wipe(&victim)?;
            give_up(scene, &victim)?;
            for round in 0..3 {
                std::thread::sleep(Duration::from_millis(300 * (round + 1)));
                scene.bed.cluster.kill(|_| true)?;
                scene.bed.cluster.start(|node| node.name != victim)?;
                scene.load().until_acked(5, Duration::from_secs(60), "after everything was restarted")?;
            }
            Ok(())
        },
        proven,
    )
}

#[test]
fn a_node_is_emptied_and_removed_under_load_also_the_leader() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let (_, leader) = scene.bed.leader()?;
            let id = scene.node_id(&leader)?;
            let target = pacsvault_core::catalog::command::DrainTarget::Node(id);
            let refused = scene.order(&Command::SetNodeState { node: id, state: NodeState::Removed });
            let why = refused.err().context("a node that holds shards must not be removed")?.to_string();
            ensure!(why.contains("drain"), "it says what to do: {why}");
            scene.order(&Command::SetDrain { target, draining: true })?;
            scene.bed.until(HEALED_WITHIN, "leadership to leave the draining node", || {
                Ok(scene.bed.leader()?.1 != leader)
            })?;
            scene.until_healed(HEALED_WITHIN)?;
            scene.load().until_acked(10, TAKEN_WITHIN, "with a node drained")?;
            scene.bed.until(HEALED_WITHIN, "the emptied node to be removed", || {
                scene.order(&Command::SetNodeState { node: id, state: NodeState::Removed })?;
                Ok(true)
            })?;
            scene.bed.cluster.kill(|node| node.name == leader)?;
            scene.bed.cluster.wipe(&leader)?;
            scene.load().until_acked(10, TAKEN_WITHIN, "with a node removed")?;
            Ok(())
        },
        proven,
    )
}

#[test]
fn what_if_says_what_really_happens() -> anyhow::Result<()> {
    // Nothing is repaired meanwhile, so that what is foretold and what is can be compared.
    let haste = HASTE.replace("repair_after = \"1s\"", "repair_after = \"10min\"");
    let shape = Shape { bytes_max: 64 << 20, large_per_mille: 0, ..Shape::default() };
    Scene::set(TMP, 3, 2, &haste, shape)?.play(
        |scene| {
            scene.quiet()?;
            scene.until_healed(HEALED_WITHIN)?;
            let victim = follower(scene)?;
            let id = scene.node_id(&victim)?;
            let foretold = scene.what_if(Loss { nodes: vec![id], ..Loss::default() })?;
            ensure!(foretold.all_readable && foretold.quorum, "{foretold:?}");
            scene.bed.cluster.kill(|node| node.name == victim)?;
            scene.bed.until(TAKEN_WITHIN, "the log to count it as down", || {
                Ok(scene.bed.layout()?.nodes[&id].state == NodeState::Down)
            })?;
            scene.bed.until(TAKEN_WITHIN, "health to be as foretold", || {
                let health = scene.health()?;
                ensure!(
                    health.by_tier == foretold.by_tier && health.below_contract == foretold.below_contract,
                    "foretold {foretold:?}, found {health:?}"
                );
                Ok(true)
            })?;
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))?;
            scene.until_healed(HEALED_WITHIN)?;

            let site = scene.bed.leader()?.0;
            let foretold = scene.what_if(Loss { sites: vec![site.parse()?], ..Loss::default() })?;
            ensure!(foretold.all_readable && foretold.quorum && foretold.within_contract.stripes == 0, "{foretold:?}");
            scene.bed.cluster.kill(|node| node.site == site)?;
            let ca = scene.bed.ca_pem()?;
            scene.bed.runtime.block_on(scene.ledger.check_reads(&scene.clients, &ca))?;
            let key = "main/1.2.826.0.9/1.2.826.0.9.1/1.2.826.0.9.2".parse()?;
            let header = PutHeader::new(key, "application/octet-stream");
            let content = Source::Bytes(vec![7; 300_000].into());
            let acked = scene.bed.runtime.block_on(scene.clients[0].put(header, &content, &|_| {}))?;
            let writes =
                foretold.writes.iter().find(|one| one.profile == acked.receipt.profile).context("a profile")?;
            ensure!(!writes.full && acked.receipt.degraded, "{writes:?} against {}", acked.receipt);
            ensure!(writes.survives == acked.receipt.survives, "{writes:?} against {}", acked.receipt);
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))
        },
        |scene| {
            scene.until_healed(HEALED_WITHIN)?;
            scene.prove().map(drop)
        },
    )
}

#[test]
fn a_node_added_under_load_takes_its_share() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            scene.load().run_for(moments(4));
            let pki = scene.bed.pki();
            let authority = pacsvault_security::Authority::open(&pki)?;
            let issue = |role: &str, name: &str| pacsvault_tests::bed::issue(&authority, &pki, role, name);
            let added = scene.bed.cluster.add('b', &issue)?;
            let config = &scene.bed.node(&added).config;
            let text = fs::read_to_string(config)?.replace("64GiB", "512MiB");
            fs::write(config, format!("{text}\n{HASTE}"))?;
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))?;
            scene.quiet()?;
            scene.bed.until(HEALED_WITHIN, "the new node to hold its share of what there was", || {
                let volumes = scene.volumes_of(scene.node_id(&added)?)?;
                let health = scene.health()?;
                let total: u64 = health.volumes.iter().map(|volume| volume.catalog_bytes).sum();
                let own: u64 = health
                    .volumes
                    .iter()
                    .filter(|volume| volumes.contains(&volume.volume))
                    .map(|volume| volume.catalog_bytes)
                    .sum();
                // Its site may hold a third at most, and the others of it keep what all hold on average.
                ensure!(own * 30 > total, "it holds {own} of {total} bytes");
                Ok(true)
            })
        },
        proven,
    )
}
