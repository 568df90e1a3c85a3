//! Names of the places where a crash matters. Each stands beside a `CRASH(name)` comment with its argument; the tests let
//! the power fail at every write, sync and rename and assert that each name was the last one passed in some run.

/// Passed just before a step that a crash may interrupt.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}

#[cfg(test)]
pub(crate) use recorded::{last, point, struck};

#[cfg(test)]
mod recorded {
    use std::cell::Cell;

    const POISON: &str = "volume.poison.1";

    thread_local! {
        static LAST: Cell<&'static str> = const { Cell::new("") };
        static BEFORE_POISON: Cell<&'static str> = const { Cell::new("") };
    }

    pub(crate) fn point(name: &'static str) {
        if name == POISON && LAST.get() != POISON {
            BEFORE_POISON.set(LAST.get());
        }
        LAST.set(name);
    }

    /// The point where the power failed, when nothing else did: the store takes the loss of power for a fault of the disk
    /// and goes on to leave its marker, in vain.
    pub(crate) fn struck() -> &'static str {
        if last() == POISON { BEFORE_POISON.get() } else { last() }
    }

    /// The point passed last on this thread.
    pub(crate) fn last() -> &'static str {
        LAST.get()
    }
}
