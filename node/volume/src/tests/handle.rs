//! The async handle: group commit, bounds, order.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use futures::{executor::block_on, future::join_all};
use pacsvault_ports::{
    BoxFuture,
    env::{Env, Job, MonoTime},
};
use pacsvault_simdisk::OpKind;

use super::*;
use crate::{Purpose, Volume, worker::WAITING_MAX};

/// Keeps jobs until told to run them.
#[derive(Default)]
struct Held(Mutex<VecDeque<Job>>);

impl Held {
    fn run_all(&self) {
        loop {
            let job = self.0.lock().unwrap().pop_front();
            match job {
                Some(job) => job(),
                None => return,
            }
        }
    }
}

impl Env for Held {
    fn now(&self) -> MonoTime {
        MonoTime::default()
    }
    fn wall(&self) -> WallMillis {
        WallMillis(0)
    }
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
    fn spawn(&self, _: BoxFuture<'static, ()>) {}
    fn run_blocking(&self, job: Job) {
        self.0.lock().unwrap().push_back(job);
    }
    fn random(&self) -> u64 {
        0
    }
}

/// Runs each job on a thread of its own.
struct Threads;

impl Env for Threads {
    fn now(&self) -> MonoTime {
        MonoTime::default()
    }
    fn wall(&self) -> WallMillis {
        WallMillis(0)
    }
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
    fn spawn(&self, _: BoxFuture<'static, ()>) {}
    fn run_blocking(&self, job: Job) {
        std::thread::spawn(job);
    }
    fn random(&self) -> u64 {
        0
    }
}

#[test]
fn all_that_waits_shares_one_sync() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 10).unwrap();
    let env = Arc::new(Held::default());
    let volume = Volume::new(store, env.clone());
    let before = disk.ops();
    let puts: Vec<_> = (10..20)
        .map(|number| {
            let (header, data) = shard(number, 1000);
            volume.put(header, data, Purpose::Client)
        })
        .collect();
    assert_eq!(disk.ops(), before, "nothing runs before its time");
    env.run_all();
    assert!(block_on(join_all(puts)).iter().all(Result::is_ok));
    let kinds: Vec<_> = disk.log().into_iter().filter(|op| op.number > before).map(|op| op.kind).collect();
    assert_eq!(kinds, [OpKind::Write, OpKind::Sync]);
    let read = volume.get(id(12), 0, u64::MAX);
    let read = std::thread::spawn(move || block_on(read));
    while !read.is_finished() {
        env.run_all();
        std::thread::yield_now();
    }
    assert_eq!(read.join().unwrap().unwrap().data, shard(12, 1000).1);
}

#[test]
fn a_queue_that_is_too_long_refuses_at_once() {
    let disk = formatted();
    let env = Arc::new(Held::default());
    let volume = Volume::new(open(&disk, 1).unwrap().0, env.clone());
    let puts: Vec<_> = (0..WAITING_MAX as u64 + 5)
        .map(|number| {
            let (header, data) = shard(number, 10);
            volume.put(header, data, Purpose::Client)
        })
        .collect();
    env.run_all();
    let answers = block_on(join_all(puts));
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Error::Busy { .. }))).count();
    assert_eq!(busy, 5);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), WAITING_MAX);
}

#[test]
fn many_writers_readers_and_a_deleter_agree_with_what_reopening_finds() {
    let disk = formatted();
    let volume = Volume::new(open(&disk, 1).unwrap().0, Arc::new(Threads));
    let writers: Vec<_> = (0..6_u64)
        .map(|writer| {
            let volume = volume.clone();
            std::thread::spawn(move || {
                for at in 0..40 {
                    let number = 1000 * writer + at;
                    let (header, data) = shard(number, 9000);
                    // Each shard is sent twice at once, as a retry would.
                    let first = volume.put(header.clone(), data.clone(), Purpose::Client);
                    let second = volume.put(header, data.clone(), Purpose::Client);
                    let (first, second) = block_on(futures::future::join(first, second));
                    assert_eq!(first.unwrap(), second.unwrap());
                    assert_eq!(block_on(volume.get(id(number), 0, u64::MAX)).unwrap().data, data);
                    if at % 2 == 0 {
                        assert_eq!(block_on(volume.delete(vec![id(number)], LogIndex(at))).unwrap(), 1);
                        let gone = block_on(volume.get(id(number), 0, u64::MAX));
                        assert!(matches!(gone, Err(Error::NotFound { .. })));
                    }
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let held = volume.store().list(None, 1000);
    assert_eq!(held.len(), 120);
    let (again, recovery) = open(&disk.crash(1), 2).unwrap();
    assert_eq!(again.list(None, 1000), held);
    assert_eq!(recovery.void_records, 0);
}
