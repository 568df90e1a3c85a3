//! Names of the places where a crash matters. Each stands beside a `CRASH(name)` comment with its argument; the tests let
//! the power fail at every write, sync and rename and assert that each name was the last one passed in some run.

/// Passed just before a step that a crash may interrupt.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}

#[cfg(test)]
pub(crate) use recorded::{last, point};

#[cfg(test)]
mod recorded {
    use std::cell::Cell;

    thread_local! {
        static LAST: Cell<&'static str> = const { Cell::new("") };
    }

    pub(crate) fn point(name: &'static str) {
        LAST.set(name);
    }

    /// The point passed last on this thread.
    pub(crate) fn last() -> &'static str {
        LAST.get()
    }
}
