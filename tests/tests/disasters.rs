//! Three sites with two nodes each, as processes with mutual TLS, under load, and what happens to hospitals: a node dies,
//! a site burns, the power of all sites fails, a leader freezes, an upgrade rolls through. Afterwards every acknowledged
//! byte is read again and compared, every receipt proven offline, and all replicas hold the same catalog.
//!
//! Short by default; `PACSVAULT_LONG=1` runs each load ten times as long. `PACSVAULT_TEST_SEED` repeats a run's choices.

use std::time::Duration;

use pacsvault_tests::{
    Load, Shape,
    scene::{Scene, WRITE_LIMIT, moments},
    seed,
};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// How long writes may pause while a site dies with the leader: an election of at most 2 s, found out by deadlines of 5 s.
const INTERRUPTION_MAX: Duration = Duration::from_secs(20);

fn scene() -> anyhow::Result<Scene> {
    Scene::set(TMP, 3, 2, "", Shape::default())
}

#[test]
fn losing_one_node_interrupts_nobody_for_long_and_loses_nothing() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let (_, leader) = scene.bed.leader()?;
            let victim = scene.bed.cluster.nodes.iter().map(|node| node.name.clone()).find(|name| *name != leader);
            let victim = victim.expect("six nodes");
            scene.bed.cluster.kill(|node| node.name == victim)?;
            scene.load().until_acked(10, INTERRUPTION_MAX, "after the death of a node")?;
            scene.load().run_for(moments(5));
            scene.bed.cluster.start(|_| true)?;
            scene.load().run_for(moments(3));
            Ok(())
        },
        Scene::settle,
    )
}

#[test]
fn losing_the_leaders_site_loses_nothing_and_writes_go_on() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let (site, _) = scene.bed.leader()?;
            scene.bed.cluster.kill(|node| node.site == site)?;
            scene.load().until_acked(10, INTERRUPTION_MAX, "after the loss of the leader's site")?;
            scene.load().run_for(moments(5));
            // The promise itself: with the site away, all that was acknowledged is read back.
            if let Some(load) = scene.load.take() {
                load.stop(&scene.bed.runtime, WRITE_LIMIT)?;
            }
            let readable =
                scene.bed.runtime.block_on(scene.ledger.check_reads(&scene.clients, &scene.bed.ca_pem()?))?;
            assert!(readable.versions > 0, "nothing was checked");
            let again = Load::start(&scene.bed.runtime, &scene.clients, &scene.ledger, Shape::default(), seed(), 1);
            scene.load = Some(again);
            scene.bed.cluster.start(|_| true)?;
            scene.load().run_for(moments(4));
            Ok(())
        },
        Scene::settle,
    )
}

#[test]
fn killing_everything_at_once_loses_nothing() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            for round in 0..2 {
                scene.bed.cluster.kill(|_| true)?;
                scene.bed.cluster.start(|_| true)?;
                scene.load().until_acked(10, Duration::from_secs(60), &format!("after power failure {round}"))?;
                scene.load().run_for(moments(3));
            }
            Ok(())
        },
        Scene::settle,
    )
}

#[test]
fn a_leader_that_freezes_and_thaws_changes_no_history() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            for _ in 0..2 {
                let (_, leader) = scene.bed.leader()?;
                scene.bed.cluster.signal("STOP", |node| node.name == leader)?;
                scene.load().until_acked(5, INTERRUPTION_MAX * 2, "while the leader is frozen")?;
                scene.load().run_for(moments(2));
                scene.bed.cluster.signal("CONT", |node| node.name == leader)?;
                scene.load().run_for(moments(2));
            }
            Ok(())
        },
        Scene::settle,
    )
}

#[test]
fn a_rolling_restart_loses_nothing() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let names: Vec<String> = scene.bed.cluster.nodes.iter().map(|node| node.name.clone()).collect();
            for name in names {
                scene.bed.cluster.stop(Duration::from_secs(30), |node| node.name == name)?;
                scene.load().run_for(Duration::from_millis(500));
                scene.bed.cluster.start(|node| node.name == name)?;
                // As an upgrade would: the next one only when this one serves again and has caught up.
                scene.bed.until(Duration::from_secs(60), &format!("{name} to catch up"), || {
                    let statuses = scene.bed.statuses();
                    let furthest = statuses.values().map(|status| status.applied.0).max().unwrap_or(0);
                    let own = statuses.get(&name).map(|status| (status.leader.is_some(), status.applied.0));
                    anyhow::ensure!(own.is_some_and(|(led, at)| led && at + 200 >= furthest), "{own:?} of {furthest}");
                    Ok(true)
                })?;
                scene.load().until_acked(3, INTERRUPTION_MAX, &format!("after {name} came back"))?;
            }
            Ok(())
        },
        Scene::settle,
    )
}
