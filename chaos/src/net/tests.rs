//! Facts about calls over a good and a bad network.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::exec::ClockSkew;

struct Slow {
    sim: Sim,
    takes: Duration,
    begun: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
}

impl Service for Slow {
    fn handle(&self, _: Caller, _: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        let (begun, ended) = (Arc::clone(&self.begun), Arc::clone(&self.ended));
        let sleep = self.sim.sleep(Life::HARNESS, self.takes);
        Box::pin(async move {
            begun.fetch_add(1, Ordering::Relaxed);
            sleep.await;
            ended.fetch_add(1, Ordering::Relaxed);
            Ok(Reply::Done)
        })
    }
}

struct World {
    sim: Sim,
    net: Arc<Net>,
    life: Life,
    hosts: [HostId; 2],
    counts: [Arc<AtomicU64>; 2],
}

impl World {
    fn new(takes_millis: u64) -> Self {
        let sim = Sim::new(5);
        let net = Net::new(sim.clone(), vec![vec![100, 5_000], vec![5_000, 100]]);
        let hosts = [net.add_host("client", 0), net.add_host("node", 1)];
        let life = sim.begin_life("node", ClockSkew::default());
        let counts = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let takes = Duration::from_millis(takes_millis);
        let service = Slow { sim: sim.clone(), takes, begun: counts[0].clone(), ended: counts[1].clone() };
        net.serve(hosts[1], life, Arc::new(service));
        Self { sim, net, life, hosts, counts }
    }

    async fn call(&self, deadline_millis: u64) -> Result<Reply, Fault> {
        let peer = self.net.peer(self.hosts[0], Life::HARNESS, Caller::Gateway("test".to_owned()));
        let target = Target { address: self.net.address(self.hosts[1]), name: None };
        peer.call(&target, Request::Status, Duration::from_millis(deadline_millis)).await
    }

    fn counted(&self) -> [u64; 2] {
        [self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed)]
    }

    async fn pause(&self, millis: u64) {
        self.sim.sleep(Life::HARNESS, Duration::from_millis(millis)).await;
    }
}

#[test]
fn a_call_takes_a_round_trip_and_the_work() {
    let world = World::new(10);
    world.sim.clone().block_on(async {
        assert!(matches!(world.call(1_000).await, Ok(Reply::Done)));
        let took = world.sim.now();
        assert!(took >= Duration::from_millis(20) && took < Duration::from_millis(25), "{took:?}");
    });
    world.sim.end();
}

#[test]
fn a_stopped_process_refuses_and_a_dark_machine_is_unknown() {
    let world = World::new(10);
    world.sim.clone().block_on(async {
        world.net.stop(world.hosts[1], Absence::Refuses);
        assert_eq!(world.call(1_000).await.map(drop).expect_err("refused").class, Class::Retry);
        world.net.stop(world.hosts[1], Absence::Silent);
        assert_eq!(world.call(1_000).await.map(drop).expect_err("late").class, Class::Unknown);
        assert_eq!(world.counted(), [0, 0]);
    });
    world.sim.end();
}

#[test]
fn a_cut_way_back_leaves_the_outcome_unknown_though_the_work_is_done() {
    let world = World::new(10);
    world.sim.clone().block_on(async {
        world.net.cut(world.hosts[1], world.hosts[0]);
        assert_eq!(world.call(1_000).await.map(drop).expect_err("late").class, Class::Unknown);
        assert_eq!(world.counted(), [1, 1]);
    });
    world.sim.end();
}

#[test]
fn a_crash_of_the_callee_abandons_the_work_and_breaks_the_call() {
    let world = World::new(100);
    world.sim.clone().block_on(async {
        let crash = async {
            world.pause(50).await;
            world.sim.kill(world.life);
        };
        let (result, ()) = futures::join!(world.call(10_000), crash);
        assert_eq!(result.map(drop).expect_err("broken").class, Class::Unknown);
        assert!(world.sim.now() < Duration::from_millis(100));
        world.pause(1_000).await;
        assert_eq!(world.counted(), [1, 0]);
    });
    world.sim.end();
}

#[test]
fn a_caller_that_stops_waiting_cancels_the_work() {
    let world = World::new(100);
    world.sim.clone().block_on(async {
        assert_eq!(world.call(50).await.map(drop).expect_err("late").class, Class::Unknown);
        world.pause(1_000).await;
        assert_eq!(world.counted(), [1, 0]);
    });
    world.sim.end();
}

#[test]
fn what_was_sent_arrives_though_its_sender_has_died_meanwhile() {
    let world = World::new(1);
    world.sim.clone().block_on(async {
        let sender = world.sim.begin_life("client", ClockSkew::default());
        let peer = world.net.peer(world.hosts[0], sender, Caller::Gateway("test".to_owned()));
        let target = Target { address: world.net.address(world.hosts[1]), name: None };
        let call = peer.call(&target, Request::Status, Duration::from_secs(1));
        world.sim.spawn(sender, Box::pin(async move { drop(call.await) }));
        world.pause(2).await;
        // It has no power, and takes nothing back that is on its way.
        world.net.stop(world.hosts[0], Absence::Silent);
        world.sim.kill(sender);
        assert_eq!(world.counted(), [0, 0]);
        world.pause(100).await;
        assert_eq!(world.counted(), [1, 1]);
    });
    world.sim.end();
}

#[test]
fn what_a_held_link_holds_back_arrives_when_it_is_released() {
    let world = World::new(1);
    world.sim.clone().block_on(async {
        world.net.hold(world.hosts[0], world.hosts[1]);
        let calls = futures::future::join3(world.call(400), world.call(5_000), world.call(5_000));
        let release = async {
            world.pause(1_000).await;
            assert_eq!(world.counted(), [0, 0]);
            world.net.release(world.hosts[0], world.hosts[1]);
        };
        let ((first, second, third), ()) = futures::future::join(calls, release).await;
        assert!(first.is_err_and(|fault| fault.class == Class::Unknown), "it gave up");
        assert!(second.is_ok() && third.is_ok());
        world.pause(100).await;
        assert_eq!(world.counted()[0], 3, "also what nobody waits for any more");
    });
}

#[test]
fn a_held_answer_arrives_when_its_link_is_released_or_healed() {
    for heals in [false, true] {
        let world = World::new(1);
        world.sim.clone().block_on(async {
            world.net.hold(world.hosts[1], world.hosts[0]);
            let release = async {
                world.pause(1_000).await;
                assert_eq!(world.counted(), [1, 1]);
                if heals { world.net.heal() } else { world.net.release(world.hosts[1], world.hosts[0]) }
            };
            let (answer, ()) = futures::future::join(world.call(5_000), release).await;
            assert!(answer.is_ok());
        });
    }
}

#[test]
fn a_slow_link_is_slow_in_its_direction_until_it_is_not() {
    let world = World::new(0);
    world.sim.clone().block_on(async {
        world.net.slow_down(world.hosts[0], world.hosts[1], 300_000);
        assert!(world.call(250).await.is_err());
        assert!(world.call(500).await.is_ok());
        world.net.slow_down(world.hosts[0], world.hosts[1], 0);
        assert!(world.call(50).await.is_ok());
    });
}

#[test]
fn a_request_that_is_repeated_runs_twice_to_the_end_though_its_caller_gives_up() {
    let world = World::new(300);
    world.sim.clone().block_on(async {
        world.net.set_weather(Weather { duplicate_per_mille: 1_000, ..Weather::fair() });
        assert!(world.call(100).await.is_err());
        world.pause(5_000).await;
        assert_eq!(world.counted(), [2, 1], "the call itself was cancelled, its copy was not");
    });
    world.sim.end();
}
