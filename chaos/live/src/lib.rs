//! Proof by fire on real processes: a cluster of node processes over an emulated wide network, sessions that write and read,
//! a scenario of faults drawn from a seed, and a judge of everything that was answered.
//!
//! **Invariants.**
//! - What is done follows from the scenario, its seed, its minutes and the topology; only timing is left to chance.
//! - Every operation of every session is recorded before it is judged. A run passes only when each of its checks does.
//! - A driver that lacks an ability refuses the scenario before anything is harmed.
//!
//! Rooms: [`net`] (the wide network), [`attach`] (a cluster that runs already), [`driver`] (how nodes are started, killed and harmed), [`scenario`] (what is done),
//! [`stage`] (all that a run needs, and its course), [`runner`] (step after step), [`load`] (sessions), [`history`] (what they were
//! told), [`eyes`] (what is seen of the cluster), [`measure`] (figures), [`verdict`] (what must hold at the end), [`record`] (what a
//! run leaves behind), [`report`] (what people read), [`gameday`] (commands for clusters that are not ours), [`interrupt`] (who
//! wants it to end).

pub mod attach;
pub mod driver;
pub mod eyes;
pub mod gameday;
pub mod history;
pub mod interrupt;
pub mod load;
pub mod measure;
pub mod net;
pub mod record;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod stage;
pub mod verdict;
