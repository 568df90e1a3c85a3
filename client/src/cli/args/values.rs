//! Values that arguments take, and how their texts are read.
//!
//! **Invariants.** What is refused is refused with the form that was meant and an example of it.

use std::time::Duration;

use pacsvault_core::{
    ids::ProfileName,
    layout::{Contract, Failures, Profile, profile::Code, profile::ReadPreference},
};
use pacsvault_security::Role;

/// Bytes from first to last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First.
    pub first: u64,
    /// Last; to the end when absent.
    pub last: Option<u64>,
}

pub(super) fn parse_range(text: &str) -> Result<Range, String> {
    let wrong = || format!("{text:?} must read A-B, first and last byte, such as 0-131, or A-");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first = first.parse().map_err(|_| wrong())?;
    let last = if last.is_empty() { None } else { Some(last.parse().map_err(|_| wrong())?) };
    if last.is_some_and(|last| last < first) {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(Range { first, last })
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} must be a number of bytes, optionally with KiB, MiB or GiB");
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(end);
    let scale: u64 = match unit.trim() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(wrong)?;
    if size == 0 { Err("the size must be at least one byte".to_owned()) } else { Ok(size) }
}

/// Shortest and longest pause between two looks.
const SPAN: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);

pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} must be a time between 100ms and 24h, such as 500ms, 2s, 5m or 1h");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let millis: u64 = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let span = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)?;
    if SPAN.contains(&span) { Ok(span) } else { Err(wrong()) }
}

pub(super) fn parse_role(text: &str) -> Result<Role, String> {
    let known = Role::ALL.iter().find(|role| role.as_str() == text);
    known.copied().ok_or_else(|| format!("{text:?} is not a role: node, gateway, operator or auditor"))
}

/// A profile as text: `NAME=K+M:CONTRACT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileArg(pub Profile);

impl std::str::FromStr for ProfileArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} must read NAME=K+M:CONTRACT, such as standard=4+2:\"1 site\"");
        let (name, rest) = text.split_once('=').ok_or_else(shape)?;
        let (code, contract) = rest.split_once(':').ok_or_else(shape)?;
        let name: ProfileName = name.parse().map_err(|error| format!("{error}"))?;
        let code: Code = code.parse().map_err(|error| format!("{error}"))?;
        let contract: Contract = contract.parse().map_err(|error| format!("{error}"))?;
        let floor = Contract::one(Failures { sites: 0, nodes: 1 });
        Ok(Self(Profile { name, version: 1, code, contract, floor, read_preference: ReadPreference::OwnSite }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_ranges_and_profiles_read_as_documented() {
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("32 MiB"), Ok(32 << 20));
        assert_eq!(parse_size("7"), Ok(7));
        for text in ["", "KiB", "0", "5 parsecs", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!((parse_span("2"), parse_span("2s")), (Ok(Duration::from_secs(2)), Ok(Duration::from_secs(2))));
        for text in ["", "s", "1ms", "25h", "-1s", "1 year", "99999999999999999999s"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert_eq!(parse_range("0-131"), Ok(Range { first: 0, last: Some(131) }));
        assert_eq!(parse_range("5-"), Ok(Range { first: 5, last: None }));
        assert!(parse_range("9-5").is_err() && parse_range("-5").is_err() && parse_range("x").is_err());
        let profile = "archive=8+4:1 site".parse::<ProfileArg>().expect("valid").0;
        assert_eq!((profile.name.as_str(), profile.code.to_string()), ("archive", "8+4".to_owned()));
        assert!("archive=8+4".parse::<ProfileArg>().is_err());
    }
}
