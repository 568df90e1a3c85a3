//! Profiles: how content is coded and which failures a write promises to survive.
//!
//! **Invariants.** Text forms read back what they print: `4+2`, `1 site + 1 node`, `any one site and any one node more`.
//! Which profile holds where is asked of [`super::plan`].

use std::{fmt, str::FromStr};

use crate::ids::ProfileName;
use crate::limits::SHARDS_MAX;

pub use super::plan::{check_possible, defaults_for};

/// Why a text is not the code or contract it should be. Correct the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Not `k+m`, or outside the limits.
    #[error(
        "code {text:?} must read k+m, as 4+2: data and parity shards, both at least 1, together at most {SHARDS_MAX}"
    )]
    Code {
        /// The text as given, shortened.
        text: String,
    },
    /// Not a list of failures.
    #[error(
        "contract {text:?}: {reason}; write for example \"1 site\", \"2 nodes\" or \"1 site + 1 node\", \
         and ';' between alternatives that must each be survived"
    )]
    Contract {
        /// The text as given, shortened.
        text: String,
        /// Which part is wrong, and why.
        reason: String,
    },
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// One set of simultaneous failures: any `sites` whole sites, and besides them any `nodes` single nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failures {
    /// Whole sites lost.
    pub sites: u8,
    /// Further single nodes lost, on the surviving sites.
    pub nodes: u8,
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |count: u8, one: &str| match count {
            1 => format!("any one {one}"),
            n => format!("any {n} {one}s"),
        };
        match (self.sites, self.nodes) {
            (0, 0) => f.write_str("no failure"),
            (sites, 0) => f.write_str(&part(sites, "site")),
            (0, nodes) => f.write_str(&part(nodes, "node")),
            (sites, nodes) => write!(f, "{} and {} more", part(sites, "site"), part(nodes, "node")),
        }
    }
}

impl FromStr for Failures {
    type Err = ParseError;

    /// Reads `1 site`, `2 nodes`, `1 site + 1 node`, `no failure`, and what `Display` prints.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fault = |reason: String| ParseError::Contract { text: shortened(text), reason };
        let lower = text.trim().to_ascii_lowercase();
        let mut failures = Self { sites: 0, nodes: 0 };
        if matches!(lower.as_str(), "no failure" | "none") {
            return Ok(failures);
        }
        for part in lower.split('+').flat_map(|part| part.split(" and ")) {
            let words: Vec<&str> = part.split_whitespace().filter(|word| !matches!(*word, "any" | "more")).collect();
            let [count, what] = words[..] else {
                return Err(fault(format!("{:?} is not a count and 'site' or 'node'", part.trim())));
            };
            let number = match count {
                "one" => Some(1),
                "two" => Some(2),
                "three" => Some(3),
                digits => digits.parse::<u8>().ok().filter(|&count| usize::from(count) <= SHARDS_MAX),
            };
            let number = number.filter(|&number| number > 0);
            let number = number.ok_or_else(|| fault(format!("{count:?} is not a count from 1 to {SHARDS_MAX}")))?;
            let field = match what {
                "site" | "sites" => &mut failures.sites,
                "node" | "nodes" => &mut failures.nodes,
                other => return Err(fault(format!("{other:?} is neither 'site' nor 'node'"))),
            };
            if *field > 0 {
                return Err(fault(format!("{what:?} is named twice")));
            }
            *field = number;
        }
        Ok(failures)
    }
}

/// The failure sets that a write must survive: all of the listed, each on its own.
///
/// Invariant: never empty, sorted, without repeats.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contract(Vec<Failures>);

impl Contract {
    /// A contract of these failure sets; `None` when the list is empty.
    pub fn new(mut failures: Vec<Failures>) -> Option<Self> {
        failures.sort_unstable();
        failures.dedup();
        (!failures.is_empty()).then_some(Self(failures))
    }

    /// A contract of one failure set.
    pub fn one(failures: Failures) -> Self {
        Self(vec![failures])
    }

    /// The failure sets, sorted.
    pub fn failures(&self) -> &[Failures] {
        &self.0
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failures) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            failures.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Contract {
    type Err = ParseError;

    /// Reads failure sets with `;` between them.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let failures: Vec<Failures> = text.split(';').map(str::parse).collect::<Result<_, _>>()?;
        let empty = || ParseError::Contract { text: shortened(text), reason: "it names no failure".to_owned() };
        Self::new(failures).ok_or_else(empty)
    }
}

/// Data and parity shards per stripe. Invariant: both ≥ 1, sum ≤ [`SHARDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code {
    data: u8,
    parity: u8,
}

impl Code {
    /// A code of `data` + `parity` shards; `None` outside the invariant.
    pub fn new(data: u8, parity: u8) -> Option<Self> {
        let fine = data >= 1 && parity >= 1 && usize::from(data) + usize::from(parity) <= SHARDS_MAX;
        fine.then_some(Self { data, parity })
    }

    /// `k`: shards needed to read.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// `m`: shards that may be lost.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// `k + m`.
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// `k` as stored.
    pub fn data_u8(self) -> u8 {
        self.data
    }

    /// `m` as stored.
    pub fn parity_u8(self) -> u8 {
        self.parity
    }

    /// Bytes of each shard of a stripe of `stripe_bytes`: `ceil(stripe_bytes / k)`, at least 1.
    pub fn shard_bytes(self, stripe_bytes: u64) -> u64 {
        stripe_bytes.div_ceil(u64::from(self.data)).max(1)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl FromStr for Code {
    type Err = ParseError;

    /// Reads `k+m`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let (data, parity) = text.trim().split_once('+').unwrap_or_default();
        let code = digits(data.trim()).zip(digits(parity.trim())).and_then(|(data, parity)| Self::new(data, parity));
        code.ok_or_else(|| ParseError::Code { text: shortened(text) })
    }
}

/// Where reads should find data first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReadPreference {
    /// Own site, then data shards before parity, then near sites.
    OwnSite = 1,
    /// Every site holds at least `k` shards, so that every read is local.
    EverySite = 2,
}

/// A named way to keep content. Versioned: a change gives a new version, stripes record the one they used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Name that writers use.
    pub name: ProfileName,
    /// From 1 upwards.
    pub version: u32,
    /// `k + m`.
    pub code: Code,
    /// What an acknowledged write survives.
    pub contract: Contract,
    /// The least that a degraded write must survive; below it writes are refused.
    pub floor: Contract,
    /// Where reads go first.
    pub read_preference: ReadPreference,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_what_they_print() {
        for text in ["4+2", "1+1", "16+16"] {
            assert_eq!(text.parse::<Code>().expect("a valid code").to_string(), text);
        }
        assert_eq!(" 4 + 2 ".parse::<Code>().ok(), Code::new(4, 2));
        for text in ["", "4", "4+", "0+2", "4+0", "20+13", "4+2+1", "-4+2", "+4+2", "4,2"] {
            let error = text.parse::<Code>().expect_err("must be refused").to_string();
            assert!(error.contains("must read k+m"), "{error}");
        }
    }

    #[test]
    fn failures_read_back_what_they_print() {
        for sites in 0..4 {
            for nodes in 0..4 {
                let failures = Failures { sites, nodes };
                assert_eq!(failures.to_string().parse(), Ok(failures), "{failures}");
            }
        }
        for (text, sites, nodes) in
            [("1 site", 1, 0), ("2 nodes", 0, 2), ("1 site + 1 node", 1, 1), ("1 node+2 sites", 2, 1)]
        {
            assert_eq!(text.parse(), Ok(Failures { sites, nodes }), "{text}");
        }
    }

    #[test]
    fn contracts_read_back_what_they_print() {
        let contract: Contract = "2 nodes; 1 site".parse().expect("a valid contract");
        assert_eq!(contract.failures(), [Failures { sites: 0, nodes: 2 }, Failures { sites: 1, nodes: 0 }]);
        assert_eq!(contract.to_string().parse(), Ok(contract));
    }

    #[test]
    fn malformed_contracts_are_refused_with_what_is_wrong() {
        for (text, why) in [
            ("", "not a count and"),
            ("1 rack", "neither 'site' nor 'node'"),
            ("0 sites", "\"0\" is not a count from 1"),
            ("99 nodes", "\"99\" is not a count from 1"),
            ("many nodes", "\"many\" is not a count from 1"),
            ("1 site + 1 site", "named twice"),
            ("1 site;", "not a count and"),
        ] {
            let error = text.parse::<Contract>().expect_err("must be refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
