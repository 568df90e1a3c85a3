//! What a runner waits for, and how long.
//!
//! **Invariants.** Every wait has a limit, and says in vain of what it waited for and what it saw instead. Only looks that began after a
//! moment tell of it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};

use super::Runner;
use crate::{eyes::Look, measure};

/// Answers after which clients of a site count as served.
const ANSWERS: u64 = 3;
/// For how long everything must look healed: a survey of the moment before may not know of what has just been found.
pub(super) const HEALED_FOR: usize = 5;

impl Runner<'_> {
    /// Waits until the cluster is seen to repair something; false when it never is.
    pub(super) fn repairs(&mut self) -> anyhow::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < self.limits.repairs {
            if self.eyes.repairing().is_some_and(|stripes| stripes > 0) {
                return Ok(true);
            }
            self.rest(Duration::from_millis(20))?;
        }
        Ok(false)
    }

    /// Fails when clients of one of these sites waited too long for an acknowledged write or a read since a moment.
    pub(super) fn uninterrupted(&self, from_ms: u64, sites: &BTreeSet<String>, what: &str) -> anyhow::Result<()> {
        let limit_ms = u64::try_from(self.limits.served.as_millis())?;
        let span = (from_ms, self.eyes.now_ms());
        match measure::interrupted(&self.recorder.moments(), sites, span, limit_ms) {
            Some(gap) => bail!("{gap}, more than {} s: {what}", self.limits.served.as_secs()),
            None => Ok(()),
        }
    }

    /// Waits until writes and reads that began after a moment are answered, in each of these sites.
    pub(super) fn served(&mut self, since_us: u64, sites: &BTreeSet<String>, when: &str) -> anyhow::Result<()> {
        ensure!(!sites.is_empty(), "there is no site whose clients could be served {when}");
        let recorder = self.recorder.clone();
        self.until(self.limits.served, &format!("clients of {} sites to be served {when}", sites.len()), || {
            sites.iter().find_map(|site| {
                let (writes, reads) = recorder.served_since(since_us, Some(site));
                let few = writes < ANSWERS || reads < ANSWERS;
                few.then(|| format!("in site {site} {writes} writes and {reads} reads since"))
            })
        })
    }

    /// Waits until all nodes answer, are up in the layout, and one leads.
    ///
    /// # Errors
    /// Not within the limit.
    pub fn whole(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        let wanted: BTreeSet<String> = self.driver.nodes().into_iter().map(|node| node.name).collect();
        self.until(limit, "all nodes to be back", || {
            let looks = eyes.since(from);
            let Some(look) = looks.last() else { return Some("no look yet".to_owned()) };
            let missing: Vec<&String> =
                wanted.iter().filter(|name| !look.answering.contains(*name) || !look.up.contains(*name)).collect();
            (look.leader.is_none() || !missing.is_empty())
                .then(|| format!("leader {:?}, not up: {missing:?}", look.leader))
        })
    }

    /// Waits until everything stored is at full contract.
    ///
    /// # Errors
    /// Not within the limit.
    pub fn healed(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        self.until(limit, "full contract", || unhealed(&eyes.since(from)))
    }

    /// Repeats `why_not` until it has no answer.
    pub(super) fn until(
        &mut self,
        limit: Duration,
        what: &str,
        mut why_not: impl FnMut() -> Option<String>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Some(why) = why_not() {
            if began.elapsed() > limit {
                bail!("waited {} s in vain for {what}: {why}", limit.as_secs());
            }
            self.rest(Duration::from_millis(50))?;
        }
        Ok(())
    }
}

/// Why not everything has looked healed for long enough, if so.
pub(super) fn unhealed(looks: &[Look]) -> Option<String> {
    let last: Vec<&Look> = looks.iter().rev().take(HEALED_FOR).collect();
    let short = (last.len() < HEALED_FOR).then(|| "not looked at for long enough".to_owned());
    last.into_iter().find_map(|look| look.unhealed.clone()).or(short)
}

/// What some look saw that could not be read, more than `degraded` bytes.
pub(super) fn unreadable(looks: &[Look], degraded: u64) -> Option<String> {
    let worst = looks.iter().max_by_key(|look| look.unreadable)?;
    let bytes = worst.unreadable.filter(|bytes| *bytes > degraded)?;
    Some(format!("{bytes} bytes could not be read at {} ms", worst.at_ms))
}
