//! Proof by fire on real processes: a cluster of node processes over an emulated wide network, sessions that write and read,
//! a scenario of faults drawn from a seed, and a judge of everything that was answered.
//!
//! **Invariants.**
//! - What is done follows from the scenario, its seed, its minutes and the topology; only timing is left to chance.
//! - Every operation of every session is recorded before it is judged. A run passes only when each of its checks does.
//! - A driver that lacks an ability refuses the scenario before anything is harmed.
//!
//! Rooms: [`net`] (the wide network), [`driver`] (how nodes are started, killed and harmed), [`scenario`] (what is done),
//! [`record`] (what a run leaves behind), [`report`] (what people read), [`gameday`] (commands for clusters that are not ours).

pub mod driver;
pub mod gameday;
pub mod net;
pub mod record;
pub mod report;
pub mod scenario;
