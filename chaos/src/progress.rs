//! How far many runs are: seeds per second, time to go, failures so far.
//!
//! **Invariants.** Writes to standard error only: a line that changes on a terminal, else a line every ten seconds.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Characters of the bar.
const BAR: u64 = 24;

/// The progress of `total` runs.
pub struct Progress {
    total: u64,
    terminal: bool,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    done: u64,
    failed: u64,
    shown: Instant,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(total: u64) -> Self {
        let began = Instant::now();
        let state = Mutex::new(State { done: 0, failed: 0, shown: began });
        Self { total, terminal: std::io::stderr().is_terminal(), began, state }
    }

    /// One more run ended; `told` is printed above the line at once.
    pub fn ended(&self, failed: bool, told: Option<&str>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += 1;
        state.failed += u64::from(failed);
        let mut out = std::io::stderr().lock();
        if let Some(told) = told {
            let clear = if self.terminal { "\r\x1b[K" } else { "" };
            // A lost line of progress is no reason to stop.
            let _ = writeln!(out, "{clear}{told}");
        }
        let pause = if self.terminal { Duration::from_millis(100) } else { Duration::from_secs(10) };
        if state.done < self.total && state.shown.elapsed() < pause {
            return;
        }
        state.shown = Instant::now();
        let line = line(state.done, self.total, state.failed, self.began.elapsed());
        let _ = if self.terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        if self.terminal && state.done >= self.total {
            let _ = writeln!(out);
        }
    }

    /// Ends a line that was being changed.
    pub fn finish(&self) {
        let done = self.state.lock().unwrap_or_else(PoisonError::into_inner).done;
        if self.terminal && done < self.total {
            eprintln!();
        }
    }
}

fn line(done: u64, total: u64, failed: u64, took: Duration) -> String {
    let full = (done * BAR).checked_div(total).unwrap_or(BAR).min(BAR);
    let bar: String = (0..BAR).map(|at| if at < full { '#' } else { '.' }).collect();
    let per_second = f64::from(u32::try_from(done).unwrap_or(u32::MAX)) / took.as_secs_f64().max(0.001);
    let left = f64::from(u32::try_from(total.saturating_sub(done)).unwrap_or(u32::MAX)) / per_second.max(0.001);
    let left = Duration::from_secs_f64(left.min(1e9)).as_secs();
    format!("[{bar}] {done}/{total} seeds, {per_second:.1}/s, {}:{:02} to go, {failed} failed", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_speed_and_time_to_go() {
        let told = line(50, 200, 1, Duration::from_secs(10));
        assert_eq!(told, "[######..................] 50/200 seeds, 5.0/s, 0:30 to go, 1 failed");
        assert!(line(0, 0, 0, Duration::ZERO).starts_with("[####"));
    }
}
