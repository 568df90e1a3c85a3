//! Deterministic whole-cluster simulation: the real node and coordinator code on simulated clocks, network and disks.
//!
//! **Invariants.** One seed decides a run, bit for bit; [`exec::Sim::trace_hash`] proves it. No clock, thread, socket or
//! file of the machine is used inside a run. Nothing imports this crate.
//!
//! [`exec`] runs tasks, [`env`] and [`runtime`] lend it to our ports and to openraft, [`net`] connects the nodes; [`scenario`] draws a run, [`cluster`]
//! and [`workload`] play it, [`nemesis`] breaks it as far as the [`atlas`] allows, [`operator`] does what people do about it, [`remnant`] leaves a part that must suffice, [`chronicle`], [`model`], [`proof`], [`rows`], [`leftovers`], [`recoding`] and
//! [`audit`] judge it, [`run`] reports, [`coverage`] says what should have been met; [`trace`] tells a run, [`overrides`] change one by hand, [`minimise`] makes a
//! failing one small.

pub mod atlas;
pub mod audit;
pub mod beyond;
pub mod chronicle;
pub mod cluster;
pub mod coverage;
pub mod env;
pub mod exec;
mod faulty;
pub mod leftovers;
pub mod machine;
pub mod minimise;
pub mod model;
pub mod nemesis;
pub mod net;
pub mod operator;
pub mod overrides;
pub mod progress;
pub mod proof;
pub mod recoding;
pub mod remnant;
pub mod rng;
pub mod rows;
pub mod run;
pub mod runtime;
pub mod scenario;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod workload;
