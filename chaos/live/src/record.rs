//! The record of a run: all that a report shows, as plain data.
//!
//! **Invariants.** Times are milliseconds since the run began. Counts of a [`Sample`] are those of its interval alone, so sums
//! over all samples are the totals. A run is passed only when each of its checks is.

use serde::{Deserialize, Serialize};

/// One run of one scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Name of the scenario.
    pub scenario: String,
    /// What it does and what must hold, for people.
    pub summary: String,
    /// The command that does the same again.
    pub command: String,
    /// Decides what is done.
    pub seed: u64,
    /// How long faults were to last.
    pub minutes: f64,
    /// What ran.
    pub program: Program,
    /// What it ran on.
    pub machine: String,
    /// `proxy`, `namespaces`, `direct` or `kubernetes`.
    pub network: String,
    /// Protection profile of what is stored.
    pub profile: String,
    /// All nodes, by site.
    pub nodes: Vec<NodeInfo>,
    /// Latency between sites.
    pub wan_ms: Vec<Link>,
    /// Wall clock at the beginning, milliseconds since 1970.
    pub began_wall_ms: u64,
    /// When sessions ended: what follows are the last reads and the proof. Absent in old records.
    pub load_ended_ms: Option<u64>,
    /// How long everything took, checks included.
    pub took_ms: u64,
    /// What the scenario would also do if the driver could.
    pub left_out: Vec<String>,
    /// Checks that nobody could make here, and why.
    pub unchecked: Vec<String>,
    /// Settings of the nodes by which outages are found out; those of a test cluster are hastier than the defaults.
    pub timings: String,
    /// What was measured, about every second.
    pub samples: Vec<Sample>,
    /// What was done to the cluster.
    pub faults: Vec<FaultRecord>,
    /// What each fault meant for clients.
    pub outages: Vec<Outage>,
    /// Who led since when.
    pub leaders: Vec<LeaderChange>,
    /// The verdict, one by one.
    pub checks: Vec<Check>,
    /// Sums.
    pub totals: Totals,
    /// Why writes, deletions and listings were refused, by code.
    pub refusals: Vec<Refusal>,
    /// What ended it before its time; absent when it came to its end.
    pub interrupted: Option<String>,
    /// True when every check passed.
    pub passed: bool,
}

/// What is said of a fault whose effect another one hides, as when all that it would kill are down already.
pub const HIDDEN: &str = "hidden by other faults";

/// Kind of a kill that gives nodes a second to finish something, where the driver can do no other.
pub const STOP: &str = "stop";

/// Name of the check that an interrupted run fails.
pub const CAME_TO_ITS_END: &str = "the run came to its end";

/// The program under test, `pacsvault-node`. A version stays the same from one commit to the next, so its bytes are named too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// What nodes said they are; all of it when they were upgraded.
    pub version: String,
    /// SHA-256 of the file, of the present release; empty when it runs elsewhere.
    pub sha256: String,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Such as `a1`.
    pub name: String,
    /// Such as `a`.
    pub site: String,
}

/// Latency from one site to another, one way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Site.
    pub from: String,
    /// Site.
    pub to: String,
    /// One way.
    pub latency_ms: f64,
}

/// What clients were told in some time. A write stores content; a deletion is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Writes acknowledged.
    pub writes_acked: u64,
    /// Writes that surely did nothing.
    pub writes_refused: u64,
    /// Writes whose outcome nobody knew.
    pub writes_unknown: u64,
    /// Deletions acknowledged.
    pub deletes: u64,
    /// Deletions refused, or of unknown outcome.
    pub deletes_failed: u64,
    /// Reads whose bytes were handed out and compared.
    pub reads_ok: u64,
    /// Reads not answered.
    pub reads_failed: u64,
    /// Content bytes acknowledged.
    pub bytes_written: u64,
    /// Content bytes read.
    pub bytes_read: u64,
}

/// One interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the interval.
    pub at_ms: u64,
    /// What clients were told.
    #[serde(flatten)]
    pub counts: Counts,
    /// Median time of an acknowledged write.
    pub write_p50_ms: Option<f64>,
    /// 99th percentile of it.
    pub write_p99_ms: Option<f64>,
    /// Median time of an answered read.
    pub read_p50_ms: Option<f64>,
    /// 99th percentile of it.
    pub read_p99_ms: Option<f64>,
    /// Stored bytes that survive 0, 1, 2, and 3 or more further losses.
    pub bytes_by_distance: Option<[u64; 4]>,
    /// Stored bytes that cannot be read until somebody returns.
    #[serde(default)]
    pub bytes_unreadable: Option<u64>,
    /// Stored bytes whose profile is not kept now.
    pub bytes_below_contract: Option<u64>,
    /// Who leads.
    pub leader: Option<String>,
    /// How many nodes answered a status; absent before anybody looked.
    pub nodes_answering: Option<u64>,
}

/// A fault and how long it lasted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// Counts from 1.
    pub number: u64,
    /// Kind, such as `kill`.
    pub kind: String,
    /// In words.
    pub what: String,
    /// Nodes or sites concerned.
    pub targets: Vec<String>,
    /// When it began.
    pub began_ms: u64,
    /// When it was lifted; absent when it lasts.
    pub ended_ms: Option<u64>,
    /// What was seen of it; empty when its doing was waited for.
    #[serde(default)]
    pub effect: String,
    /// A fault beside another one: not measured as an outage of its own unless it takes somebody away.
    #[serde(default)]
    pub beside: bool,
    /// Sites whose clients it keeps from a majority.
    #[serde(default)]
    pub cuts_off: Vec<String>,
}

/// The recovery time of one fault: the longest gaps in what clients were answered while it lasted and shortly after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// Number of the fault.
    pub fault: u64,
    /// Its kind.
    pub kind: String,
    /// When it began.
    pub began_ms: u64,
    /// Longest time without an acknowledged write.
    pub without_writes_ms: u64,
    /// Longest time without an answered read.
    pub without_reads_ms: u64,
    /// The same for clients of each site by itself.
    #[serde(default)]
    pub sites: Vec<SiteOutage>,
}

/// What an outage meant for the clients of one site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteOutage {
    /// Which.
    pub site: String,
    /// Longest time without an acknowledged write.
    pub without_writes_ms: u64,
    /// Longest time without an answered read.
    pub without_reads_ms: u64,
    /// A fault of that time kept these clients from a majority: nobody promises them anything meanwhile.
    pub cut_off: bool,
}

/// What was refused for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its code.
    pub code: String,
    /// How often.
    pub count: u64,
    /// The first one, in the words of the client.
    pub first: String,
    /// The last one.
    #[serde(default)]
    pub last: String,
}

/// A new leader, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderChange {
    /// When it was seen.
    pub at_ms: u64,
    /// Who leads now.
    pub node: Option<String>,
    /// In which term.
    pub term: u64,
}

/// One part of the verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What must hold.
    pub name: String,
    /// Whether it did.
    pub passed: bool,
    /// Figures, or what was found instead.
    pub detail: String,
}

/// Sums of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// What clients were told.
    #[serde(flatten)]
    pub counts: Counts,
    /// Faults.
    pub faults: u64,
    /// Longest time without an acknowledged write.
    pub longest_without_writes_ms: u64,
    /// Longest time without an answered read.
    pub longest_without_reads_ms: u64,
}
