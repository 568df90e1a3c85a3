//! What a command line changes in the scenario of a seed: to look closer, and to replay a run that was made smaller.
//!
//! **Invariants.** Seed and overrides decide a run. [`Overrides`] print as the options from which they are read.

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::Args;

use crate::scenario::{Encore, Fault, PlantedBug, Scenario, latencies};

/// Changes to drawn scenarios.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct Overrides {
    /// Plant a bug, to see it found.
    #[arg(long)]
    pub bug: Option<PlantedBug>,
    /// Of the drawn kinds of faults only these happen: crash,bit-rot; `none` for none.
    #[arg(long, value_delimiter = ',', value_parser = only)]
    pub only: Option<Vec<Option<Fault>>>,
    /// Leave out these faults, by the numbers that the trace shows.
    #[arg(long, value_delimiter = ',')]
    pub skip_fault: Vec<u64>,
    /// How long faults go on: 6s, 6500ms.
    #[arg(long, value_parser = duration)]
    pub fault_time: Option<Duration>,
    /// Clients at work at once.
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..100))]
    pub clients: Option<u16>,
    /// Keys that they share.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..1000))]
    pub keys: Option<u16>,
    /// Nodes per site, 1 to 3, with the profile that suits them and no witness.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub nodes: Option<u8>,
    /// Nothing happens once everything was proven whole.
    #[arg(long)]
    pub no_encore: bool,
    /// Everything heals at once when faults end, with no part that must suffice before.
    #[arg(long)]
    pub no_part: bool,
    /// Nothing is destroyed beyond the contract in the end.
    #[arg(long)]
    pub no_beyond: bool,
    /// The cluster begins in the present version.
    #[arg(long)]
    pub no_upgrade: bool,
    /// All clocks run true.
    #[arg(long)]
    pub true_clocks: bool,
    /// All sites are half a millisecond apart.
    #[arg(long)]
    pub near_sites: bool,
}

/// `6s`, `6500ms`, `0.5s`.
///
/// # Errors
/// Something else.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 6s or 6500ms");
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().map(Duration::from_millis).map_err(|_| wrong());
    }
    let seconds: f64 = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn only(text: &str) -> Result<Option<Fault>, String> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

impl Overrides {
    /// Which kinds alone happen.
    pub fn only(&self) -> Option<BTreeSet<Fault>> {
        self.only.as_ref().map(|kinds| kinds.iter().flatten().copied().collect())
    }

    /// Only these kinds shall happen.
    pub fn set_only(&mut self, kinds: &BTreeSet<Fault>) {
        let kinds: Vec<Option<Fault>> = kinds.iter().copied().map(Some).collect();
        self.only = Some(if kinds.is_empty() { vec![None] } else { kinds });
    }

    /// The scenario of `seed`, changed.
    pub fn draw(&self, seed: u64) -> Scenario {
        let mut scenario = Scenario::draw(seed);
        scenario.bug = self.bug;
        if let Some(nodes) = self.nodes {
            scenario.resize(usize::from(nodes));
        }
        if let Some(only) = self.only() {
            scenario.muted = scenario.faults.difference(&only).copied().collect();
        }
        scenario.skipped = self.skip_fault.iter().copied().collect();
        if let Some(time) = self.fault_time {
            scenario.fault_time = time;
        }
        if let Some(clients) = self.clients {
            scenario.clients = usize::from(clients);
        }
        if let Some(keys) = self.keys {
            scenario.keys = usize::from(keys);
        }
        if self.no_encore {
            scenario.encore = Encore::Nothing;
        }
        if self.no_part {
            scenario.part = None;
        }
        if self.no_beyond {
            scenario.beyond = None;
        }
        scenario.upgrade &= !self.no_upgrade;
        if self.true_clocks {
            (scenario.clock_ppm, scenario.clock_off_millis) = (0, 0);
        }
        if self.near_sites {
            scenario.latency_micros = latencies(scenario.sites, |_, _| 500);
        }
        scenario
    }
}

impl fmt::Display for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(",");
        if let Some(bug) = self.bug {
            write!(f, " --bug {bug}")?;
        }
        if let Some(kinds) = &self.only {
            let name = |kind: &Option<Fault>| kind.map_or_else(|| "none".to_owned(), |kind| kind.to_string());
            write!(f, " --only {}", list(kinds.iter().map(name).collect()))?;
        }
        if !self.skip_fault.is_empty() {
            write!(f, " --skip-fault {}", list(self.skip_fault.iter().map(u64::to_string).collect()))?;
        }
        if let Some(time) = self.fault_time {
            write!(f, " --fault-time {}ms", time.as_millis())?;
        }
        if let Some(clients) = self.clients {
            write!(f, " --clients {clients}")?;
        }
        if let Some(keys) = self.keys {
            write!(f, " --keys {keys}")?;
        }
        if let Some(nodes) = self.nodes {
            write!(f, " --nodes {nodes}")?;
        }
        for (set, name) in [
            (self.no_encore, "no-encore"),
            (self.no_part, "no-part"),
            (self.no_beyond, "no-beyond"),
            (self.no_upgrade, "no-upgrade"),
            (self.true_clocks, "true-clocks"),
            (self.near_sites, "near-sites"),
        ] {
            if set {
                write!(f, " --{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        overrides: Overrides,
    }

    #[test]
    fn overrides_print_as_what_they_are_read_from() {
        let line = "x --bug volume-acks-before-sync --only crash,bit-rot --skip-fault 3,7 --fault-time 6500ms --clients 1 \
                    --keys 2 --nodes 1 --no-encore --no-part --no-beyond --no-upgrade --true-clocks \
                    --near-sites";
        let read = Line::try_parse_from(line.split_whitespace()).expect("valid options").overrides;
        assert_eq!(format!("x{read}"), line.split_whitespace().collect::<Vec<_>>().join(" "));
        let scenario = read.draw(5);
        assert_eq!((scenario.clients, scenario.keys, scenario.nodes_per_site), (1, 2, 1));
        assert!(scenario.skipped.contains(&7) && scenario.encore == Encore::Nothing && scenario.clock_ppm == 0);
        assert_eq!(scenario.part, None);
        assert!((0..50).all(|seed| read.draw(seed).beyond.is_none() && !read.draw(seed).upgrade));
        let none = Line::try_parse_from(["x", "--only", "none"]).expect("valid options").overrides;
        assert!((0..50).all(|seed| {
            let scenario = none.draw(seed);
            scenario.faults.iter().all(|kind| !scenario.has(*kind))
        }));
        assert!(Line::try_parse_from(["x", "--only", "flood"]).is_err());
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        assert!(duration("soon").is_err());
    }
}
