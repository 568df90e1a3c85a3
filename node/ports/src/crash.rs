//! Places where a crash matters, and the means to make one happen there. Each `CRASH(name)` comment has a [`point`]
//! beside it, just before the step that it argues about; tests let the process die at each and look at what is left.
//!
//! Two ways to die. With `PACSVAULT_CRASH_AT=name` in the environment, the process aborts when it passes `name` for the
//! first time; with `name#3`, for the third. With a [`trap`], the passing thread runs a closure, which takes the power from
//! simulated disks.
//!
//! What an abort does not prove: it is a kill, not a loss of power. What was written and not synced is still in the system's
//! page cache and survives, in order. That a sync is missing is therefore never seen here; it is seen with the simulated
//! disks, which forget, and by the argument beside the point.
//!
//! **Invariants.** Without the variable and without a trap a point does nothing and costs one relaxed load. The variable is
//! read once. A point never returns in a process that was told to die there.

use std::{
    collections::BTreeSet,
    io::Write,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

/// Names the point where the process dies, as `name` or `name#N` for the N-th passing.
pub const CRASH_AT: &str = "PACSVAULT_CRASH_AT";
/// Printed before a point's name when a crash happens there; `cargo xtask crash-points` reads it.
pub const CROSSED: &str = "CRASH-CROSSED ";
/// Before a point's name in a comment; in two parts, so that this line is not taken for one.
const COMMENT: &str = concat!("// ", "CRASH(");

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ARMED: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);
static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
static ACTION: Mutex<Option<Action>> = Mutex::new(None);

type Action = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Where the environment wants this process to die.
struct Plan {
    name: String,
    passing: u64,
    passed: AtomicU64,
}

/// Passed just before a step that a crash may interrupt.
#[inline]
pub fn point(name: &'static str) {
    if MODE.load(Ordering::Relaxed) != OFF {
        passed(name);
    }
}

#[cold]
fn passed(name: &'static str) {
    let plan = PLAN.get_or_init(|| parse_plan(&std::env::var(CRASH_AT).ok()?));
    let action = action().clone();
    if plan.is_none() && action.is_none() {
        // Fails when a trap was set meanwhile, and is then right to.
        let _ = MODE.compare_exchange(UNKNOWN, OFF, Ordering::Relaxed, Ordering::Relaxed);
        return;
    }
    if let Some(plan) = plan.as_ref().filter(|plan| plan.name == name)
        && plan.passed.fetch_add(1, Ordering::Relaxed) + 1 == plan.passing
    {
        let mut out = std::io::stdout().lock();
        // Who cannot be told still sees how the process ended.
        let _ = writeln!(out, "{CROSSED}{name}").and_then(|()| out.flush());
        std::process::abort();
    }
    if let Some(action) = action {
        action(name);
    }
}

/// `None` for a number that is none: a wish that cannot be read must not kill a process at another point.
fn parse_plan(text: &str) -> Option<Plan> {
    let (name, passing) = text.split_once('#').unwrap_or((text, "1"));
    Some(Plan { name: name.to_owned(), passing: passing.parse().ok()?, passed: AtomicU64::new(0) })
}

fn action() -> MutexGuard<'static, Option<Action>> {
    ACTION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the trap on drop.
#[must_use = "the trap ends when this is dropped"]
#[derive(Debug)]
pub struct Trap(());

/// For tests on simulated disks: every point passed in this process, by any thread, runs `action` until the answer is dropped.
/// One trap at a time; tests that need one each take turns, or are processes of their own.
pub fn trap(on_passing: impl Fn(&'static str) + Send + Sync + 'static) -> Trap {
    let before = action().replace(Arc::new(on_passing));
    assert!(before.is_none(), "another trap is set");
    MODE.store(ARMED, Ordering::Relaxed);
    Trap(())
}

impl Drop for Trap {
    fn drop(&mut self) {
        *action() = None;
        MODE.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// For tests: names of the `CRASH(name)` comments in a source file.
pub fn tags_in(source: &str) -> BTreeSet<&str> {
    let comments = source.lines().filter_map(|line| line.split_once(COMMENT));
    comments.filter_map(|(_, rest)| rest.split_once(')')).map(|(tag, _)| tag).collect()
}

/// For tests: runs `command`, which is to die at `at` (`name#N`). Its standard output when it did, and `None` when it never
/// passed there and ended well.
///
/// # Panics
/// When it does not start, or ends in any other way.
pub fn dies_at(command: &mut Command, at: &str) -> Option<String> {
    let output = command.env(CRASH_AT, at).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = at.split('#').next().unwrap_or(at);
    let crossed = text.lines().any(|line| line.split_once(CROSSED).is_some_and(|(_, found)| found == name));
    // An abort has no exit code.
    match (crossed, output.status.code()) {
        (true, None) => Some(text),
        (false, Some(0)) => None,
        _ => panic!("{at}: {}, crossed: {crossed}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a test of its own: what the dying processes run.
    #[test]
    fn child() {
        for _ in 0..3 {
            point("ports.a");
            point("ports.b");
        }
    }

    #[test]
    fn a_process_dies_at_the_passing_it_was_told_and_nowhere_else() {
        let mut command = Command::new(std::env::current_exe().expect("a test binary"));
        command.args(["crash::tests::child", "--exact", "--nocapture"]);
        for (at, dies) in
            [("ports.a", true), ("ports.b#3", true), ("ports.b#4", false), ("ports", false), ("ports.a#x", false)]
        {
            assert_eq!(dies_at(&mut command, at).is_some(), dies, "{at}");
        }
    }

    #[test]
    fn a_trap_sees_what_is_passed_until_it_is_dropped() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sees = seen.clone();
        let set = trap(move |name| sees.lock().expect("no panic").push(name));
        point("ports.trap");
        drop(set);
        point("ports.trap");
        let seen = seen.lock().expect("no panic");
        assert_eq!(seen.iter().filter(|name| **name == "ports.trap").count(), 1);
    }

    #[test]
    fn tags_are_read_from_comments_alone() {
        let source = format!("a {COMMENT}x.1): why\n  {COMMENT}x.2): why\nlet s = \"CRASH(x.3)\";\n");
        assert_eq!(tags_in(&source), BTreeSet::from(["x.1", "x.2"]));
    }
}
