//! Facts about the executor and the runtime on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft_rt::{AsyncRuntime as _, Instant as _, WatchReceiver as _, WatchSender as _, testing::Suite};

use super::{SimInstant, SimRuntime, SimWatch};
use crate::exec::{ClockSkew, Life, Sim};

#[test]
fn openrafts_own_runtime_suite_passes() {
    Suite::<SimRuntime>::test_all();
}

/// Ten tasks that sleep random times and watch each other; returns the order of their steps and the trace hash.
fn scramble(seed: u64) -> (Vec<u64>, u64) {
    let sim = Sim::new(seed);
    let order = sim.block_on(async {
        let (sender, receiver) = <SimWatch as openraft_rt::Watch>::channel(Vec::new());
        for task in 0..10_u64 {
            let sender = sender.clone();
            let mut receiver = receiver.clone();
            drop(SimRuntime::spawn(async move {
                for step in 0..5 {
                    sender.send_if_modified(|seen: &mut Vec<u64>| {
                        seen.push(task * 10 + step);
                        true
                    });
                    let pause = Sim::current().random(|rng| rng.micros(0, 3));
                    SimRuntime::sleep(pause).await;
                    receiver.changed().await.expect("senders live");
                }
            }));
        }
        SimRuntime::sleep(Duration::from_secs(1)).await;
        receiver.borrow_watched().clone()
    });
    let hash = sim.trace_hash();
    sim.end();
    (order, hash)
}

#[test]
fn one_seed_gives_one_trace_and_two_seeds_give_two() {
    assert_eq!(scramble(3), scramble(3));
    assert_ne!(scramble(3).1, scramble(4).1);
    assert_ne!(scramble(3).0, scramble(4).0);
}

struct CountsDrops(Arc<AtomicU64>);

impl Drop for CountsDrops {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn killing_a_life_drops_all_its_tasks_and_no_others() {
    let sim = Sim::new(1);
    let (drops, ticks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (doomed, other) =
        (sim.begin_life("doomed", ClockSkew::default()), sim.begin_life("other", ClockSkew::default()));
    for life in [doomed, other] {
        let (drops, ticks) = (Arc::clone(&drops), Arc::clone(&ticks));
        sim.spawn(
            life,
            Box::pin(async move {
                // A child inherits the life of its parent.
                drop(SimRuntime::spawn(async move {
                    let _held = CountsDrops(drops);
                    loop {
                        SimRuntime::sleep(Duration::from_millis(1)).await;
                        ticks.fetch_add(1, Ordering::Relaxed);
                    }
                }));
                std::future::pending::<()>().await;
            }),
        );
    }
    sim.block_on(async {
        SimRuntime::sleep(Duration::from_millis(10)).await;
        let sim = Sim::current();
        sim.kill(doomed);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        let before = ticks.load(Ordering::Relaxed);
        SimRuntime::sleep(Duration::from_millis(10)).await;
        assert_eq!(ticks.load(Ordering::Relaxed) - before, 10);
        sim.spawn(doomed, Box::pin(async { panic!("a dead life runs nothing") }));
        SimRuntime::sleep(Duration::from_millis(1)).await;
    });
    assert!(sim.panics().is_empty());
    sim.end();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_fast_clock_shows_more_time_and_sleeps_less() {
    let sim = Sim::new(1);
    let fast = sim.begin_life("fast", ClockSkew { rate_ppm: 100_000, wall_offset_millis: -5_000 });
    assert_eq!(sim.wall_millis(Life::HARNESS) - sim.wall_millis(fast), 5_000);
    let (done, slept) = tokio::sync::oneshot::channel();
    sim.spawn(
        fast,
        Box::pin(async move {
            let before = SimInstant::now();
            SimRuntime::sleep(Duration::from_millis(1_100)).await;
            let _ = done.send((SimInstant::now() - before, Sim::current().now()));
        }),
    );
    let (local, truly) = sim.block_on(slept).expect("the task ends");
    assert!(local >= Duration::from_millis(1_100));
    assert_eq!(truly.as_millis(), 1_000);
    sim.end();
}

#[test]
fn a_panicking_task_ends_its_life_and_is_remembered() {
    let sim = Sim::new(1);
    let life = sim.begin_life("node", ClockSkew::default());
    sim.spawn(life, Box::pin(async { panic!("broken invariant") }));
    sim.block_on(async { SimRuntime::sleep(Duration::from_millis(1)).await });
    assert!(!sim.alive(life));
    assert_eq!(sim.panics(), vec![(life, "broken invariant".to_owned())]);
    sim.end();
}
