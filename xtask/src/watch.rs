//! A cluster that heals, watched from outside: the leader's health, a node given up for good, and the wait until everything
//! keeps its contract again.
//!
//! **Invariants.** All of it is asked of the command line as an operator would. "Whole" is said only after several looks in a
//! row, since a survey may be older than what has just happened; the time told is that of the first of them.

use std::{
    io::{IsTerminal, Write},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pacsvault_harness::Cluster;
use serde_json::Value;

use crate::tools;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in a row that must find everything whole.
const LOOKS: u32 = 3;
/// Without a terminal, a line of progress this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take to join, or a survey to learn of what was stored.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// The leader's health at one moment.
pub struct Look(Value);

impl Look {
    /// Asks the leader.
    pub fn take(cluster: &Cluster) -> anyhow::Result<Self> {
        let text = tools::output(cluster.admin().args(["repair", "status", "--json"]))?;
        Ok(Self(serde_json::from_str(text.trim())?))
    }

    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }

    fn rows(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0[name].as_array().into_iter().flatten()
    }

    /// Content that this look knows of: less than what is stored when it is from before.
    pub fn content_bytes(&self) -> u64 {
        self.rows("by_tier").filter_map(|row| row["content_bytes"].as_u64()).sum()
    }

    /// Bytes written by repair and moves since this leader began.
    pub fn done_bytes(&self) -> u64 {
        self.number("done_bytes")
    }

    /// Of these and of those read for them, bytes that crossed between sites.
    pub fn wan_bytes(&self) -> u64 {
        self.number("wan_bytes")
    }

    /// Who leads.
    pub fn leader(&self) -> &str {
        self.0["leader"].as_str().unwrap_or_default()
    }

    /// Ids of the volumes of a node that are not fenced.
    pub fn volumes(&self, node: &str) -> Vec<&str> {
        self.rows("volumes")
            .filter(|volume| volume["node"] == node)
            .filter_map(|volume| volume["id"].as_str())
            .collect()
    }

    /// Everything keeps its contract, and nothing waits that would better protection. Evening out is no part of it.
    fn is_whole(&self) -> bool {
        let protects = |row: &&Value| row["cause"] == "repair" || row["cause"] == "respread";
        let waiting: u64 = self.rows("waiting").filter(protects).filter_map(|row| row["stripes"].as_u64()).sum();
        self.0["below_contract"]["stripes"] == 0 && waiting == 0
    }

    /// How close to loss, how fast, how long: one line.
    pub fn words(&self) -> String {
        let content = |wanted: Value| -> u64 {
            let of = self.rows("by_tier").filter(|row| row["distance"] == wanted);
            of.filter_map(|row| row["content_bytes"].as_u64()).sum()
        };
        let tiers: Vec<String> =
            (0..3).map(|distance: u64| format!("{distance}: {}", size(content(distance.into())))).collect();
        let unreadable = content(Value::Null);
        let unreadable = if unreadable > 0 { format!(", UNREADABLE: {}", size(unreadable)) } else { String::new() };
        let eta = self.0["eta_s"].as_u64().map_or_else(String::new, |eta| format!(", done in {eta} s"));
        let rate = size(self.number("rate_bytes_per_s"));
        // Of reading and writing together; a node without clients has none, told as 0.
        let allowed =
            self.rows("nodes").filter_map(|node| node["allowed_bytes_per_s"].as_u64()).filter(|rate| *rate > 0);
        let allowed = allowed.min().map_or_else(String::new, |rate| format!(", a node's limit now {}/s", size(rate)));
        format!("content at distance {}{unreadable}; {rate}/s{eta}{allowed}", tiers.join(", "))
    }

    /// Why nothing more happens, as far as the leader knows.
    fn trouble(&self) -> String {
        let below = &self.0["below_contract"]["stripes"];
        format!(
            "{below} stripes below contract, waiting {}, {} in progress, {} set aside, held back {}",
            self.0["waiting"],
            self.number("in_progress"),
            self.number("aside_total"),
            self.0["held_back"]
        )
    }
}

/// One line on the terminal that is drawn again and again; elsewhere a line per second.
pub struct Progress {
    terminal: bool,
    told: Option<Instant>,
}

impl Progress {
    /// On standard output.
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), told: None }
    }

    fn tell(&mut self, text: &str) -> anyhow::Result<()> {
        if self.terminal {
            // Back to the first column, erase to the end: what was longer leaves nothing behind.
            print!("\r\u{1b}[K    | {text}");
            std::io::stdout().flush()?;
        } else if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            println!("    | {text}");
        }
        Ok(())
    }

    fn end(&self) {
        if self.terminal {
            print!("\r\u{1b}[K");
        }
    }
}

/// Waits until everything keeps its contract, without a volume of `without` where one is named; how long that took, counted
/// from `began`.
pub fn until_whole(
    cluster: &Cluster,
    began: Instant,
    limit: Duration,
    without: Option<&str>,
) -> anyhow::Result<Duration> {
    let mut progress = Progress::new();
    let mut whole = (0, Duration::ZERO);
    let mut trouble = "nobody told the health".to_owned();
    while began.elapsed() < limit {
        let at = began.elapsed();
        // Right after a disaster nobody may lead for a moment.
        if let Ok(look) = Look::take(cluster) {
            progress.tell(&look.words())?;
            trouble = look.trouble();
            // The survey behind this look knows of the loss only when the volumes are gone from it.
            let aware = without.is_none_or(|node| look.volumes(node).is_empty());
            whole = match (look.is_whole() && aware, whole) {
                (false, _) => (0, Duration::ZERO),
                (true, (0, _)) => (1, at),
                (true, (looks, first)) => (looks + 1, first),
            };
            if whole.0 >= LOOKS && without.map_or(Ok(true), |node| is_empty(cluster, node))? {
                progress.end();
                return Ok(whole.1);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    progress.end();
    bail!("not whole after {} s: {trouble}; logs are in {}", limit.as_secs(), cluster.dir.display())
}

/// Founds the cluster and waits until the layout counts every node as up, with its volume: one that only answers, or that was
/// not heard for a while after it joined, gets no shards, and what is stored meanwhile lies on the others.
pub fn form(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.form()?;
    cluster.until(TAKEN_WITHIN, "every node to count as up, with its volume", || {
        let Ok(look) = Look::take(cluster) else { return Ok(false) };
        let Ok(status) = status(cluster.admin().args(["status", "--json"])) else { return Ok(false) };
        let up = |row: &Value| row["state"] == "up" && row["layout_state"] == "up";
        let all = status["nodes"].as_array().is_some_and(|rows| rows.iter().all(up));
        Ok(all && cluster.nodes.iter().all(|node| !look.volumes(&node.name).is_empty()))
    })
}

/// Waits until the leader's survey knows of this much content and finds it whole.
pub fn until_known(cluster: &Cluster, content_bytes: u64) -> anyhow::Result<Look> {
    until_whole(cluster, Instant::now(), TAKEN_WITHIN, None)?;
    let mut last = None;
    cluster.until(TAKEN_WITHIN, "the leader to know of what was stored", || {
        let look = Look::take(cluster).ok();
        last = look.filter(|look| look.content_bytes() >= content_bytes && look.is_whole());
        Ok(last.is_some())
    })?;
    last.context("it was there a moment ago")
}

/// `pacsvault drain NODE --dry-run`: what lies there as the catalog knows it. Whether draining would be safe is not asked.
fn plan(cluster: &Cluster, node: &str) -> anyhow::Result<Value> {
    let output = cluster.admin().args(["drain", node, "--dry-run", "--json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next();
    let line = line.with_context(|| format!("no plan: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    Ok(serde_json::from_str(line)?)
}

fn is_empty(cluster: &Cluster, node: &str) -> anyhow::Result<bool> {
    Ok(plan(cluster, node)?["empty"] == true)
}

/// The operator's word that a node never comes back: its volumes are fenced, so that nothing waits for it. Returns bytes of the
/// shards that are to be rebuilt.
pub fn give_up(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    let bytes = plan(cluster, node)?["moves_bytes"].as_u64().context("a plan without bytes")?;
    let look = Look::take(cluster)?;
    let volumes = look.volumes(node);
    ensure!(!volumes.is_empty(), "node {node} has no volume to give up");
    for volume in volumes {
        tools::output(cluster.admin().args(["cluster", "fence-volume", volume, "--yes"]))?;
    }
    Ok(bytes)
}

/// A node that does not lead, of the most crowded kind: the last of its site.
pub fn follower(cluster: &Cluster) -> anyhow::Result<String> {
    let (_, leader) = cluster.leader()?;
    let node = cluster.nodes.iter().rev().find(|node| node.name != leader);
    Ok(node.context("more than one node")?.name.clone())
}

/// Retires a node that holds nothing any more.
pub fn retire(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    tools::output(cluster.admin().args(["remove", node, "--yes"])).map(drop)
}

/// Starts a wiped node again, and waits until it is a new member with a volume in use; the ids before and now.
pub fn rejoin(cluster: &mut Cluster, node: &str, before: u64) -> anyhow::Result<u64> {
    cluster.start(|known| known.name == node)?;
    let mut now = None;
    cluster.until(TAKEN_WITHIN, "the wiped node to join as a new one", || {
        // The command fails while a node is away, and tells all the same.
        let Ok(status) = status(cluster.admin().args(["status", "--json"])) else { return Ok(false) };
        now = id_of(&status, node).filter(|id| *id != before);
        let whole = status["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["state"] == "up"));
        Ok(whole && now.is_some() && status["leader"].is_string())
    })?;
    now.context("it was there a moment ago")
}

/// The node's id as a member.
pub fn id(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    let status = status(cluster.admin().args(["status", "--json"]))?;
    id_of(&status, node).with_context(|| format!("{node} is not a member"))
}

fn id_of(status: &Value, node: &str) -> Option<u64> {
    status["nodes"].as_array()?.iter().find(|row| row["name"] == node)?["id"].as_u64()
}

fn status(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(text.trim()).with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// For people.
#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Millions of bytes per second.
#[allow(clippy::cast_precision_loss, reason = "shown without decimals")]
pub fn mb_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(below: u64, cause: &str) -> Look {
        Look(json!({
            "below_contract": {"stripes": below}, "waiting": [{"cause": cause, "stripes": 2}], "rate_bytes_per_s": 5 << 20,
            "by_tier": [{"distance": null, "content_bytes": 0}, {"distance": 1, "content_bytes": 3 << 20}], "eta_s": 7,
            "nodes": [{"allowed_bytes_per_s": null}, {"allowed_bytes_per_s": 0}, {"allowed_bytes_per_s": 2 << 20}],
            "volumes": [{"id": "aa", "node": "a1"}, {"id": "bb", "node": "b1"}],
        }))
    }

    #[test]
    fn evening_out_is_no_part_of_being_whole() {
        assert!(look(0, "rebalance").is_whole());
        assert!(!look(0, "repair").is_whole() && !look(0, "respread").is_whole() && !look(1, "rebalance").is_whole());
    }

    #[test]
    fn one_line_tells_distance_rate_and_end() {
        let words = look(1, "repair").words();
        assert_eq!(
            words,
            "content at distance 0: 0.0 MiB, 1: 3.0 MiB, 2: 0.0 MiB; 5.0 MiB/s, done in 7 s, a node's limit now 2.0 MiB/s"
        );
        assert_eq!(look(1, "repair").volumes("b1"), ["bb"]);
    }
}
