//! A whole cluster on one thread: tasks of many nodes, a virtual clock, and one seed that decides what runs when.
//!
//! **Invariants.**
//! - One seed and one program give one trace: every choice is drawn from the seed, and folded into [`Sim::trace_hash`]: which
//!   task ran when, what was drawn (the state of the generator after each use), what was sent, how clocks were set.
//! - Every task belongs to one [`Life`]: one life of one node between start and kill. It is inherited on spawn. Killing
//!   a life drops all its tasks before the next poll; nothing of a dead life ever runs again.
//! - Time moves only when nothing can run, and then to the next timer.
//! - No future is polled or dropped while the state is locked.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use pacsvault_ports::BoxFuture;

use crate::{
    rng::{SimRng, splitmix},
    trace::Event,
};

mod sleep;

pub use sleep::Sleep;

/// Polls before a run is declared stuck: the longest healthy scenario needs about two million.
const POLLS_MAX: u64 = 60_000_000;
/// Ready-queue and slot number of the future that [`Sim::block_on`] was given.
const MAIN: u64 = 0;
/// Events kept, the last ones: about a gigabyte, and several times what a run has that ends.
const EVENTS_MAX: usize = 4_000_000;

/// One life of one node. The harness itself is [`Life::HARNESS`], whose clock is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life(u32);

impl Life {
    /// Tasks of the test itself: clients, the fault injector, the network.
    pub const HARNESS: Self = Self(0);
}

/// How the clocks of one life go wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockSkew {
    /// Parts per million by which its monotonic clock runs fast (or slow, when negative).
    pub rate_ppm: i32,
    /// Milliseconds by which its wall clock is ahead.
    pub wall_offset_millis: i64,
}

struct LifeState {
    label: String,
    alive: bool,
    /// True time since when its clock runs at its present rate.
    since_nanos: u64,
    /// What its clock showed then.
    shown_nanos: u64,
    skew: ClockSkew,
    /// Tasks that could run while it is paused; `None` while it runs.
    parked: Option<Vec<u64>>,
}

impl LifeState {
    fn new(label: String, since_nanos: u64, skew: ClockSkew) -> Self {
        Self { label, alive: true, since_nanos, shown_nanos: 0, skew, parked: None }
    }

    fn clock_nanos(&self, now_nanos: u64) -> u64 {
        self.shown_nanos + State::scaled(now_nanos - self.since_nanos, i64::from(self.skew.rate_ppm))
    }
}

struct TaskSlot {
    life: Life,
    /// `None` while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Waker,
    queued: bool,
}

struct State {
    rng: SimRng,
    now_nanos: u64,
    lives: Vec<LifeState>,
    tasks: BTreeMap<u64, TaskSlot>,
    next_task: u64,
    main_queued: bool,
    ready: Vec<u64>,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    hash: u64,
    polls: u64,
    panics: Vec<(Life, String)>,
    hits: BTreeMap<&'static str, u64>,
    planted: Option<&'static str>,
    /// Taken down while somebody listens.
    events: Option<VecDeque<Event>>,
}

/// The simulation, shared by everything that runs in it.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<State>>);

thread_local! {
    static CURRENT: RefCell<Option<Sim>> = const { RefCell::new(None) };
    static LIFE: Cell<Life> = const { Cell::new(Life::HARNESS) };
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sim")
    }
}

/// Restores what was current before, also on unwinding.
struct Entered {
    sim: Option<Sim>,
    life: Life,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.sim.take();
        let ended = CURRENT.with(|current| current.replace(before));
        LIFE.set(self.life);
        drop(ended);
    }
}

struct TaskWaker {
    sim: Sim,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.sim.state().enqueue(self.task);
    }
}

impl State {
    fn enqueue(&mut self, task: u64) {
        if task == MAIN {
            if !self.main_queued {
                self.main_queued = true;
                self.ready.push(MAIN);
            }
        } else if let Some(slot) = self.tasks.get_mut(&task)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push(task);
        }
    }

    fn fold(&mut self, word: u64) {
        self.hash = splitmix(self.hash ^ word);
    }

    fn life(&self, life: Life) -> &LifeState {
        &self.lives[life.0 as usize]
    }

    /// Scales true nanoseconds by a clock that is `ppm` fast.
    fn scaled(nanos: u64, ppm: i64) -> u64 {
        let scaled = i128::from(nanos) * i128::from(1_000_000 + ppm) / 1_000_000;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// Nanoseconds of a duration, saturating after 584 years.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Sim {
    /// A new world at time zero.
    pub fn new(seed: u64) -> Self {
        let harness = LifeState::new("harness".to_owned(), 0, ClockSkew::default());
        Self(Arc::new(Mutex::new(State {
            rng: SimRng::new(seed),
            now_nanos: 0,
            lives: vec![harness],
            tasks: BTreeMap::new(),
            next_task: MAIN + 1,
            main_queued: false,
            ready: Vec::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            hash: splitmix(seed),
            polls: 0,
            panics: Vec::new(),
            hits: BTreeMap::new(),
            planted: None,
            events: None,
        })))
    }

    /// The simulation that is running on this thread.
    ///
    /// # Panics
    /// Outside of a simulation: something that belongs inside was used elsewhere, a harness bug.
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone()).expect("inside a running simulation")
    }

    /// The simulation that is running on this thread, if one is.
    pub fn try_current() -> Option<Self> {
        CURRENT.try_with(|current| current.try_borrow().ok().and_then(|current| current.clone())).ok().flatten()
    }

    /// Plants a bug of product code; see `pacsvault_core::probe`.
    pub fn plant(&self, bug: &'static str) {
        self.state().planted = Some(bug);
    }

    /// Whether that bug of product code is planted here.
    pub fn planted(&self, bug: &str) -> bool {
        self.state().planted == Some(bug)
    }

    /// The life whose task is running.
    pub fn current_life() -> Life {
        LIFE.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down events from now on.
    pub fn listen(&self) {
        self.state().events = Some(VecDeque::new());
    }

    /// True when events are taken down.
    pub fn listens(&self) -> bool {
        self.state().events.is_some()
    }

    /// What was taken down so far.
    pub fn heard(&self) -> Vec<Event> {
        self.state().events.take().map(Vec::from).unwrap_or_default()
    }

    /// Digest of every decision so far. Equal for equal seeds and programs.
    pub fn trace_hash(&self) -> u64 {
        self.state().hash
    }

    /// Tasks polled so far.
    pub fn polls(&self) -> u64 {
        self.state().polls
    }

    /// Panics of tasks so far. A panicking task ends its life, as a panicking process does.
    pub fn panics(&self) -> Vec<(Life, String)> {
        self.state().panics.clone()
    }

    /// True time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.state().now_nanos)
    }

    /// Counts that something worth covering happened.
    pub fn hit(&self, what: &'static str) {
        *self.state().hits.entry(what).or_default() += 1;
    }

    /// What happened how often.
    pub fn hits(&self) -> BTreeMap<&'static str, u64> {
        self.state().hits.clone()
    }

    /// Runs `use_rng` on the simulation's generator.
    pub fn random<T>(&self, use_rng: impl FnOnce(&mut SimRng) -> T) -> T {
        let mut state = self.state();
        let drawn = use_rng(&mut state.rng);
        let mark = state.rng.mark();
        state.fold(mark);
        drawn
    }

    /// Folds what a generator of somebody's own has drawn so far into the trace hash.
    pub fn drew(&self, rng: &SimRng) {
        self.state().fold(rng.mark());
    }

    /// Folds a word that stands for something that was said into the trace hash.
    pub fn said(&self, word: u64) {
        self.state().fold(word);
    }

    /// Folds an event into the trace hash, and takes it down when somebody listens.
    pub fn event(&self, kind: &'static str, numbers: &[u64], detail: impl FnOnce() -> String) {
        let mut state = self.state();
        for byte in kind.bytes() {
            state.fold(u64::from(byte));
        }
        for &number in numbers {
            state.fold(number);
        }
        let listens = state.events.is_some();
        drop(state);
        if listens {
            self.note(kind, numbers, detail());
        }
    }

    /// Takes down an event that is no part of the trace hash, such as what a node logs.
    pub fn note(&self, kind: &'static str, numbers: &[u64], text: String) {
        let mut state = self.state();
        let (at, life) = (Duration::from_nanos(state.now_nanos), state.life(Self::current_life()).label.clone());
        let Some(events) = &mut state.events else { return };
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { at, life, kind, numbers: numbers.to_vec(), text });
    }

    /// Begins a life.
    pub fn begin_life(&self, label: impl Into<String>, skew: ClockSkew) -> Life {
        let mut state = self.state();
        let life = Life(u32::try_from(state.lives.len()).expect("fewer than 2^32 lives"));
        let now = state.now_nanos;
        state.lives.push(LifeState::new(label.into(), now, skew));
        drop(state);
        self.within(life, || self.event("start", &[u64::from(life.0)], String::new));
        life
    }

    /// Whether `life` may still run.
    pub fn alive(&self, life: Life) -> bool {
        self.state().life(life).alive
    }

    /// Ends a life: drops all its tasks at once. What they held is gone, as after a crash of the process.
    pub fn kill(&self, life: Life) {
        assert_ne!(life, Life::HARNESS, "the harness outlives every node");
        let dropped = {
            let mut state = self.state();
            state.lives[life.0 as usize].alive = false;
            state.lives[life.0 as usize].parked = None;
            let doomed: Vec<u64> =
                state.tasks.iter().filter(|(_, slot)| slot.life == life).map(|(&task, _)| task).collect();
            let dropped: Vec<TaskSlot> = doomed.iter().filter_map(|task| state.tasks.remove(task)).collect();
            let tasks = &state.tasks;
            let alive: Vec<u64> =
                state.ready.iter().copied().filter(|task| *task == MAIN || tasks.contains_key(task)).collect();
            state.ready = alive;
            dropped
        };
        self.within(life, || {
            self.event("kill", &[u64::from(life.0), dropped.len() as u64], String::new);
            drop(dropped);
        });
    }

    /// Runs `work` with this simulation and `life` current, as if it were called by one of its tasks.
    pub fn within<T>(&self, life: Life, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.with(|current| current.replace(Some(self.clone())));
        let _entered = Entered { sim: before, life: LIFE.replace(life) };
        work()
    }

    /// Spawns a task of `life`; dropped unrun when that life is over.
    pub fn spawn(&self, life: Life, future: BoxFuture<'static, ()>) {
        let refused = {
            let mut state = self.state();
            if state.life(life).alive {
                let task = state.next_task;
                state.next_task += 1;
                let waker = Waker::from(Arc::new(TaskWaker { sim: self.clone(), task }));
                state.tasks.insert(task, TaskSlot { life, future: Some(future), waker, queued: false });
                state.enqueue(task);
                None
            } else {
                Some(future)
            }
        };
        drop(refused);
    }

    /// Monotonic time of `life` in nanoseconds since it began, by its own clock.
    pub fn life_nanos(&self, life: Life) -> u64 {
        let state = self.state();
        state.life(life).clock_nanos(state.now_nanos)
    }

    /// True instant, in nanoseconds, at which the clock of `life` will show `local_nanos`.
    fn true_nanos(&self, life: Life, local_nanos: u64) -> u64 {
        let state = self.state();
        let known = state.life(life);
        let ppm = i128::from(known.skew.rate_ppm);
        // Rounded up: a sleeper must never wake before its own clock shows the deadline.
        let due = i128::from(local_nanos.saturating_sub(known.shown_nanos));
        let elapsed = (due * 1_000_000 + 999_999 + ppm) / (1_000_000 + ppm);
        known.since_nanos.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Wall clock of `life` in milliseconds since 1970. The true one starts in November 2026.
    pub fn wall_millis(&self, life: Life) -> u64 {
        const START_MILLIS: u64 = 1_794_000_000_000;
        let state = self.state();
        let honest = START_MILLIS + state.now_nanos / 1_000_000;
        honest.saturating_add_signed(state.life(life).skew.wall_offset_millis)
    }

    /// By how many milliseconds the wall clock of `life` is ahead of the true one.
    pub fn wall_offset(&self, life: Life) -> i64 {
        self.state().life(life).skew.wall_offset_millis
    }

    /// Moves the wall clock of `life` to `offset_millis` ahead of the true one.
    pub fn jump_wall(&self, life: Life, offset_millis: i64) {
        self.event("wall", &[u64::from(life.0), offset_millis.cast_unsigned()], || format!("{offset_millis} ms ahead"));
        self.state().lives[life.0 as usize].skew.wall_offset_millis = offset_millis;
    }

    /// The monotonic clock of `life` runs `rate_ppm` fast from now on. Who sleeps wakes no earlier by that clock than asked.
    pub fn set_rate(&self, life: Life, rate_ppm: i32) {
        let numbers = [u64::from(life.0), u64::from(rate_ppm.cast_unsigned())];
        self.event("rate", &numbers, || format!("{rate_ppm} parts per million fast"));
        let mut state = self.state();
        let now = state.now_nanos;
        let known = &mut state.lives[life.0 as usize];
        (known.shown_nanos, known.since_nanos) = (known.clock_nanos(now), now);
        known.skew.rate_ppm = rate_ppm;
    }

    /// Stops a life as SIGSTOP does: none of its tasks runs until [`Sim::resume`], while clocks go on and messages arrive.
    pub fn pause(&self, life: Life) {
        assert_ne!(life, Life::HARNESS, "the harness never stops");
        self.event("pause", &[u64::from(life.0)], String::new);
        self.state().lives[life.0 as usize].parked.get_or_insert_default();
    }

    /// Lets a paused life go on; fine if it is not paused, or over.
    pub fn resume(&self, life: Life) {
        self.event("resume", &[u64::from(life.0)], String::new);
        let mut state = self.state();
        let parked = state.lives[life.0 as usize].parked.take().unwrap_or_default();
        let ready: Vec<u64> = parked.into_iter().filter(|task| state.tasks.contains_key(task)).collect();
        state.ready.extend(ready);
    }

    /// Sleeps by the clock of `life`.
    pub fn sleep(&self, life: Life, duration: Duration) -> Sleep {
        let local = self.life_nanos(life).saturating_add(nanos(duration));
        self.sleep_until(life, local)
    }

    /// Sleeps until the clock of `life` shows `local_nanos`.
    pub fn sleep_until(&self, life: Life, local_nanos: u64) -> Sleep {
        let deadline_nanos = self.true_nanos(life, local_nanos);
        Sleep { sim: self.clone(), life, local_nanos, deadline_nanos, timer: None }
    }

    /// Runs until `main` ends. Tasks left over stay for the next call.
    ///
    /// # Panics
    /// When nothing can ever run again while `main` waits, or after [`POLLS_MAX`] polls: the run is stuck.
    pub fn block_on<F: Future>(&self, main: F) -> F::Output {
        let mut main = pin!(main);
        let main_waker = Waker::from(Arc::new(TaskWaker { sim: self.clone(), task: MAIN }));
        self.state().enqueue(MAIN);
        loop {
            match self.choose() {
                Chosen::Main => {
                    let polled =
                        self.within(Life::HARNESS, || main.as_mut().poll(&mut Context::from_waker(&main_waker)));
                    if let Poll::Ready(value) = polled {
                        return value;
                    }
                }
                Chosen::Task { task, life, future, waker } => self.poll_task(task, life, future, &waker),
                Chosen::Nothing => self.advance(),
            }
        }
    }

    fn choose(&self) -> Chosen {
        let mut state = self.state();
        let task = loop {
            if state.ready.is_empty() {
                return Chosen::Nothing;
            }
            let count = state.ready.len();
            let at = if count == 1 { 0 } else { state.rng.index(count) };
            let task = state.ready.swap_remove(at);
            // It stays marked as queued, so that nobody queues it again.
            let life = state.tasks.get(&task).map(|slot| slot.life);
            match life.and_then(|life| state.lives[life.0 as usize].parked.as_mut()) {
                Some(parked) => parked.push(task),
                None => break task,
            }
        };
        state.polls += 1;
        assert!(state.polls < POLLS_MAX, "stuck: {POLLS_MAX} polls without an end at {} ns", state.now_nanos);
        let now = state.now_nanos;
        state.fold(task ^ (now << 20));
        if task == MAIN {
            state.main_queued = false;
            return Chosen::Main;
        }
        let slot = state.tasks.get_mut(&task).expect("a queued task exists; kill() also cleans the queue");
        slot.queued = false;
        let future = slot.future.take().expect("only this loop takes it, and puts it back");
        Chosen::Task { task, life: slot.life, future, waker: slot.waker.clone() }
    }

    fn poll_task(&self, task: u64, life: Life, mut future: BoxFuture<'static, ()>, waker: &Waker) {
        let polled = self.within(life, || {
            let mut context = Context::from_waker(waker);
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)))
        });
        match polled {
            Ok(Poll::Pending) => {
                if let Some(slot) = self.state().tasks.get_mut(&task) {
                    slot.future = Some(future);
                    return;
                }
                // Killed by itself while it ran.
                self.within(life, || drop(future));
            }
            Ok(Poll::Ready(())) => {
                let slot = self.state().tasks.remove(&task);
                self.within(life, || drop((future, slot)));
            }
            Err(payload) => {
                if payload.is::<PowerLost>() {
                    self.hit("life ended at a disk operation");
                } else {
                    let text = panic_message(payload.as_ref());
                    self.note("violation", &[], text.clone());
                    self.state().panics.push((life, text));
                }
                let slot = self.state().tasks.remove(&task);
                self.within(life, || drop((future, slot)));
                if life != Life::HARNESS {
                    self.kill(life);
                }
            }
        }
    }

    fn advance(&self) {
        let due: Vec<Waker> = {
            let mut state = self.state();
            let (&(deadline, _), _) = state.timers.first_key_value().expect("stuck: nothing ready and no timer");
            state.now_nanos = state.now_nanos.max(deadline);
            let later = state.timers.split_off(&(deadline + 1, 0));
            std::mem::replace(&mut state.timers, later).into_values().collect()
        };
        due.iter().for_each(Waker::wake_by_ref);
    }

    /// Drops every task, so that nothing keeps the world alive in a cycle. Call at the end of a run.
    pub fn end(&self) {
        loop {
            let doomed: Vec<TaskSlot> = {
                let mut state = self.state();
                state.ready.clear();
                state.lives.iter_mut().for_each(|life| life.alive = false);
                std::mem::take(&mut state.tasks).into_values().collect()
            };
            if doomed.is_empty() {
                let timers = std::mem::take(&mut self.state().timers);
                drop(timers);
                return;
            }
            self.within(Life::HARNESS, || drop(doomed));
        }
    }
}

/// Panic payload of a planned power loss: ends the life without being a bug.
#[derive(Debug, Clone, Copy)]
pub struct PowerLost;

enum Chosen {
    Main,
    Task { task: u64, life: Life, future: BoxFuture<'static, ()>, waker: Waker },
    Nothing,
}

/// The text of a panic.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}
