//! Hosts by number, and what every ordered pair of them is like right now.
//!
//! **Invariants.** A table is complete: each ordered pair of hosts has a link. An address that belongs to no host is an
//! observer's; its links have no latency and no faults, so that a run can be watched whatever happens to it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};

use super::{Conditions, Host, LinkState, SiteLatency};

/// Smallest number of a client within its site; nodes count from 1.
const FIRST_CLIENT: u8 = 200;
/// Prefix of the names of clients.
const CLIENT: &str = "client-";

/// One direction between two hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Base latency and what was added.
    pub delay: Duration,
    /// Faults; `extra_delay` is part of `delay` already.
    pub state: LinkState,
    /// How often its connections were to be broken.
    pub resets: u64,
}

/// Links of all ordered pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    count: usize,
    links: Vec<Link>,
    open: Link,
}

impl Table {
    /// The link between two hosts by number; `None` is an observer.
    pub fn link(&self, from: Option<usize>, to: Option<usize>) -> &Link {
        match (from, to) {
            (Some(from), Some(to)) => &self.links[from * self.count + to],
            _ => &self.open,
        }
    }

    /// A round trip between two hosts.
    pub fn round_trip(&self, from: Option<usize>, to: Option<usize>) -> Duration {
        self.link(from, to).delay + self.link(to, from).delay
    }
}

/// Numbers of hosts: in the network, and within their sites.
#[derive(Debug, Clone)]
pub struct Numbers {
    hosts: Vec<Host>,
    by_name: BTreeMap<String, usize>,
    latency: SiteLatency,
}

impl Numbers {
    /// Numbers `hosts`; names must differ.
    pub fn new(hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Self> {
        let mut by_name = BTreeMap::new();
        for (number, host) in hosts.iter().enumerate() {
            if by_name.insert(host.name.clone(), number).is_some() {
                bail!("two hosts are named {}", host.name);
            }
        }
        Ok(Self { hosts: hosts.to_vec(), by_name, latency: latency.clone() })
    }

    /// How many hosts there are.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Names, by number.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// The number of a host.
    pub fn number(&self, host: &str) -> anyhow::Result<usize> {
        self.by_name.get(host).copied().with_context(|| format!("{host} is no host of this network"))
    }

    /// Every host with the number of its site and its own within it: the last two bytes of its addresses.
    pub fn seats(&self) -> anyhow::Result<Vec<(Host, u8, u8)>> {
        let mut sites: Vec<&str> = Vec::new();
        let mut taken: BTreeMap<(usize, bool), u8> = BTreeMap::new();
        let mut seats = Vec::with_capacity(self.hosts.len());
        for host in &self.hosts {
            let site = sites.iter().position(|site| *site == host.site).unwrap_or_else(|| {
                sites.push(&host.site);
                sites.len() - 1
            });
            let client = is_client(host);
            let next = taken.entry((site, client)).or_insert(if client { FIRST_CLIENT } else { 1 });
            if *next == if client { u8::MAX } else { FIRST_CLIENT } {
                bail!("site {} has too many hosts", host.site);
            }
            let site = u8::try_from(site + 1).context("too many sites")?;
            seats.push((host.clone(), site, *next));
            *next += 1;
        }
        Ok(seats)
    }

    /// What `conditions` make of the links; `resets` counts by pair of numbers.
    pub fn table(&self, conditions: &Conditions, resets: &BTreeMap<(usize, usize), u64>) -> anyhow::Result<Table> {
        let count = self.hosts.len();
        let mut links = Vec::with_capacity(count * count);
        for from in &self.hosts {
            for to in &self.hosts {
                links.push(Link { delay: self.base(&from.site, &to.site), ..Link::default() });
            }
        }
        for ((from, to), state) in &conditions.links {
            if state.loss_per_mille > 1_000 {
                bail!("{from} to {to}: {} of a thousand packets cannot be lost", state.loss_per_mille);
            }
            if state.bytes_per_second == Some(0) {
                bail!("{from} to {to}: a link of no bandwidth is a cut one; say so");
            }
            let link = &mut links[self.number(from)? * count + self.number(to)?];
            link.delay += state.extra_delay;
            link.state = state.clone();
        }
        for ((from, to), times) in resets {
            links[from * count + to].resets = *times;
        }
        Ok(Table { count, links, open: Link::default() })
    }

    /// A pair that is given one way only has the same latency both ways.
    fn base(&self, from: &str, to: &str) -> Duration {
        let given = |from: &str, to: &str| self.latency.get(&(from.to_owned(), to.to_owned())).copied();
        given(from, to).or_else(|| given(to, from)).unwrap_or_default()
    }
}

/// What a network was told last, and what follows from it.
///
/// **Invariants.** What is refused changes nothing. Changes are enforced in the order in which they were made.
pub struct Control {
    numbers: Numbers,
    now: Mutex<Now>,
}

#[derive(Default, Clone)]
struct Now {
    conditions: Conditions,
    resets: BTreeMap<(usize, usize), u64>,
}

impl Control {
    /// Of a network that was told nothing yet, and its table.
    pub fn new(numbers: Numbers) -> anyhow::Result<(Self, Table)> {
        let now = Now::default();
        let table = numbers.table(&now.conditions, &now.resets)?;
        Ok((Self { numbers, now: Mutex::new(now) }, table))
    }

    /// The hosts.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Other conditions instead of those before.
    pub fn apply(&self, conditions: &Conditions, enforce: impl FnOnce(Table)) -> anyhow::Result<()> {
        self.change(|now| now.conditions = conditions.clone(), enforce)
    }

    /// Connections between two hosts are to break once.
    pub fn reset(&self, from: &str, to: &str, enforce: impl FnOnce(Table)) -> anyhow::Result<()> {
        let pair = (self.numbers.number(from)?, self.numbers.number(to)?);
        self.change(|now| *now.resets.entry(pair).or_default() += 1, enforce)
    }

    fn change(&self, change: impl FnOnce(&mut Now), enforce: impl FnOnce(Table)) -> anyhow::Result<()> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = now.clone();
        change(&mut next);
        enforce(self.numbers.table(&next.conditions, &next.resets)?);
        *now = next;
        Ok(())
    }
}

/// Whether a host is a load generator's client, which listens nowhere.
pub fn is_client(host: &Host) -> bool {
    host.name.starts_with(CLIENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        let host = |name: &str, site: &str| Host { name: name.to_owned(), site: site.to_owned() };
        vec![host("a1", "a"), host("b1", "b"), host("a2", "a"), host("client-b", "b")]
    }

    fn numbers() -> Numbers {
        let ms = Duration::from_millis;
        let latency = [("a", "b", ms(10)), ("b", "a", ms(12)), ("a", "a", ms(1))];
        let latency = latency.map(|(from, to, delay)| ((from.to_owned(), to.to_owned()), delay));
        Numbers::new(&hosts(), &latency.into_iter().collect()).expect("names differ")
    }

    #[test]
    fn clients_are_numbered_apart_from_nodes() {
        let seats = numbers().seats().expect("few");
        let seats: Vec<_> = seats.iter().map(|(host, site, own)| (host.name.as_str(), *site, *own)).collect();
        assert_eq!(seats, [("a1", 1, 1), ("b1", 2, 1), ("a2", 1, 2), ("client-b", 2, 200)]);
    }

    #[test]
    fn extra_delay_comes_on_top_and_conditions_replace_each_other() {
        let numbers = numbers();
        let mut conditions = Conditions::default();
        conditions.link("a1", "b1").extra_delay = Duration::from_millis(5);
        let table = numbers.table(&conditions, &BTreeMap::new()).expect("known hosts");
        assert_eq!(table.link(Some(0), Some(1)).delay, Duration::from_millis(15));
        assert_eq!(table.round_trip(Some(0), Some(1)), Duration::from_millis(27));
        assert_eq!(table.link(Some(0), Some(2)).delay, Duration::from_millis(1));
        assert_eq!(table.link(None, Some(2)), &Link::default());
        let table = numbers.table(&Conditions::default(), &BTreeMap::new()).expect("known hosts");
        assert_eq!(table.link(Some(0), Some(1)).delay, Duration::from_millis(10));
    }

    #[test]
    fn impossible_conditions_and_strangers_are_refused() {
        let refused = |change: &dyn Fn(&mut Conditions)| {
            let mut conditions = Conditions::default();
            change(&mut conditions);
            numbers().table(&conditions, &BTreeMap::new()).expect_err("refused").to_string()
        };
        assert!(refused(&|c| c.link("a1", "c1").cut = true).contains("c1 is no host"));
        assert!(refused(&|c| c.link("a1", "b1").loss_per_mille = 1_001).contains("1001 of a thousand"));
        assert!(refused(&|c| c.link("a1", "b1").bytes_per_second = Some(0)).contains("say so"));
        let twice = [hosts(), hosts()].concat();
        assert!(Numbers::new(&twice, &SiteLatency::new()).is_err());
    }
}
