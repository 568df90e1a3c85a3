//! Clocks and processes of the executor that go wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pacsvault_chaos::exec::{ClockSkew, Life, Sim};

const TICK: Duration = Duration::from_millis(100);

/// A life that counts its ticks.
fn ticking(sim: &Sim) -> (Life, Arc<AtomicU64>) {
    let (life, ticks) = (sim.begin_life("node", ClockSkew::default()), Arc::new(AtomicU64::new(0)));
    let (own, counted) = (sim.clone(), Arc::clone(&ticks));
    let task = async move {
        loop {
            own.sleep(life, TICK).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    };
    sim.spawn(life, Box::pin(task));
    (life, ticks)
}

async fn pause(sim: &Sim, millis: u64) {
    sim.sleep(Life::HARNESS, Duration::from_millis(millis)).await;
}

#[test]
fn a_paused_life_does_nothing_until_it_is_resumed_while_its_clock_goes_on() {
    let sim = Sim::new(1);
    let (life, ticks) = ticking(&sim);
    sim.clone().block_on(async {
        pause(&sim, 350).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3);
        sim.pause(life);
        let shown = sim.life_nanos(life);
        pause(&sim, 5_000).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3);
        assert_eq!(sim.life_nanos(life) - shown, 5_000_000_000);
        sim.resume(life);
        pause(&sim, 250).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 6, "the tick that was due, and two more");
    });
    sim.end();
}

#[test]
fn a_paused_life_can_be_killed_and_then_resuming_it_is_nothing() {
    let sim = Sim::new(1);
    let (life, ticks) = ticking(&sim);
    sim.clone().block_on(async {
        sim.pause(life);
        pause(&sim, 350).await;
        sim.kill(life);
        sim.resume(life);
        pause(&sim, 350).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 0);
    });
    sim.end();
}

#[test]
fn a_clock_that_slows_down_lets_nobody_wake_early_by_it() {
    let sim = Sim::new(1);
    let life = sim.begin_life("node", ClockSkew::default());
    sim.clone().block_on(async {
        let asleep = sim.sleep(life, Duration::from_secs(10));
        let began = sim.life_nanos(life);
        let slower = async {
            pause(&sim, 5_000).await;
            sim.set_rate(life, -500_000);
        };
        futures::future::join(asleep, slower).await;
        assert!(sim.life_nanos(life) - began >= 10_000_000_000);
        assert_eq!(sim.now(), Duration::from_secs(15));
        sim.set_rate(life, 1_000_000);
        sim.sleep(life, Duration::from_secs(10)).await;
        assert_eq!(sim.now(), Duration::from_secs(20));
    });
    sim.end();
}
