//! Real processes, real disasters: what the integration tests of this crate share.
//!
//! **Invariants.**
//! - One cluster at a time on a machine: every [`Bed`] waits for its turn at a lock file, since six nodes and their clients
//!   need both cores of a small one.
//! - What a [`Ledger`] holds as acknowledged was acknowledged by a receipt; it is the judge of every scenario.
//! - Nothing is left behind: processes are stopped by pid and directories removed when the bed goes, also after a panic.
//!
//! Rooms: [`bed`] (a cluster and its clients), [`ledger`] (what was promised, and whether it holds), [`load`] (writers and
//! readers), [`proof`] (what the volumes themselves say), [`raw`] (gRPC without our client), [`refusal`] (nodes that must not start), [`mount`] (small disks), [`scene`] (a cluster under
//! load, from its disaster to the proof).

pub mod bed;
pub mod ledger;
pub mod load;
pub mod mount;
pub mod proof;
pub mod raw;
pub mod refusal;
pub mod scene;

pub use bed::Bed;
pub use ledger::Ledger;
pub use load::{Load, Shape};

/// True when the long runs are asked for (`PACSVAULT_LONG=1`).
pub fn long() -> bool {
    std::env::var("PACSVAULT_LONG").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Seed of this run: `PACSVAULT_TEST_SEED`, or a new one. Printed, so that a failure can be repeated.
///
/// # Panics
/// When the variable is not a number: a run under another seed than asked for would mislead.
pub fn seed() -> u64 {
    let seed = match std::env::var("PACSVAULT_TEST_SEED") {
        Ok(text) => text.parse().expect("PACSVAULT_TEST_SEED must be a number from 0 to 2^64 - 1"),
        Err(_) => rand::random(),
    };
    eprintln!("load of PACSVAULT_TEST_SEED={seed}");
    seed
}

/// Says on the test's output that a part was left out, and why.
pub fn skip(what: &str, why: &str) {
    eprintln!("SKIPPED {what}: {why}");
}
