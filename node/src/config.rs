//! The node's configuration file: parsed strictly, checked as a whole, refused with what to do.
//!
//! **Invariants.** A [`Config`] that exists is complete and consistent. Unknown keys are errors: a typo must not silently
//! become a default. Relative paths count from the file's own folder and are kept as absolute ones, so that a volume is the
//! same however the file was named.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use pacsvault_core::{
    health as healing,
    ids::{NodeName, SiteName},
    layout::Roles,
};
use pacsvault_ports::peer::Target;
use serde::{Deserialize, Deserializer, de::Visitor};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key or a value of the wrong kind. The source says line and column.
    #[error("configuration {path} is not valid: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A value is of the right kind but impossible.
    #[error("configuration {path}: {key}: {reason}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    site: String,
    data_dir: PathBuf,
    listen: SocketAddr,
    advertise: Option<String>,
    ops_listen: Option<SocketAddr>,
    #[serde(default = "default_roles")]
    roles: Vec<RawRole>,
    #[serde(default)]
    join: Vec<String>,
    tls: RawTls,
    #[serde(default)]
    network: RawNetwork,
    #[serde(default)]
    volumes: Vec<RawVolume>,
    #[serde(default)]
    consensus: RawConsensus,
    #[serde(default)]
    sweep: RawSweep,
    #[serde(default)]
    healing: RawHealing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRole {
    Storage,
    Voter,
    Witness,
}

fn default_roles() -> Vec<RawRole> {
    vec![RawRole::Storage, RawRole::Voter]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    source: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    path: PathBuf,
    capacity: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConsensus {
    #[serde(default = "default_heartbeat")]
    heartbeat_ms: u64,
    #[serde(default = "default_election_min")]
    election_min_ms: u64,
    #[serde(default = "default_election_max")]
    election_max_ms: u64,
}

impl Default for RawConsensus {
    fn default() -> Self {
        Self {
            heartbeat_ms: default_heartbeat(),
            election_min_ms: default_election_min(),
            election_max_ms: default_election_max(),
        }
    }
}

fn default_heartbeat() -> u64 {
    200
}

fn default_election_min() -> u64 {
    500
}

fn default_election_max() -> u64 {
    1_000
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSweep {
    every_s: u64,
}

impl Default for RawSweep {
    fn default() -> Self {
        Self { every_s: 3_600 }
    }
}

/// Absent keys keep the defaults of [`healing::Pace`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHealing {
    heartbeat: Option<Span>,
    suspect_after: Option<Span>,
    urgent_after: Option<Span>,
    down_after: Option<Span>,
    repair_after: Option<Span>,
    lost_after: Option<Span>,
    steady_for: Option<Span>,
    repair_rate: Option<Amount>,
    repair_parallel: Option<usize>,
    scrub_within: Option<Span>,
    reconcile_every: Option<Span>,
    rebalance_percent: Option<u8>,
    voter_grace: Option<Span>,
    preferred_leader_site: Option<String>,
}

/// A duration: a whole number of seconds, or a text such as `500ms`.
#[derive(Debug, Clone, Copy)]
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = NumberOrText { expected: "a number of seconds, or a text such as \"500ms\" or \"24h\"" };
        match from.deserialize_any(read)? {
            Written::Number(seconds) => check_span(Duration::from_secs(seconds), &seconds.to_string()),
            Written::Text(text) => parse_span(&text),
        }
        .map(Self)
        .map_err(serde::de::Error::custom)
    }
}

/// Bytes: a whole number, or a text such as `50MB`.
#[derive(Debug, Clone, Copy)]
struct Amount(u64);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match from.deserialize_any(NumberOrText { expected: "a number of bytes, or a text such as \"50MB\"" })? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => parse_bytes(&text).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

enum Written {
    Number(u64),
    Text(String),
}

/// Reads either, and says what was expected otherwise.
struct NumberOrText {
    expected: &'static str,
}

impl Visitor<'_> for NumberOrText {
    type Value = Written;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Written, E> {
        let number = u64::try_from(value);
        number.map(Written::Number).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Written, E> {
        Ok(Written::Number(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Written, E> {
        Ok(Written::Text(value.to_owned()))
    }
}

/// Certificate files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One data directory.
#[derive(Debug, Clone)]
pub struct VolumePath {
    /// The directory.
    pub path: PathBuf,
    /// Bytes it may hold; the whole disk when absent.
    pub capacity_bytes: Option<u64>,
}

/// Pace of consensus, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Interval of heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_min_ms: u64,
    /// Longest election timeout.
    pub election_max_ms: u64,
}

/// A complete configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Must equal the name in the certificate.
    pub name: NodeName,
    /// Failure domain.
    pub site: SiteName,
    /// Catalog, log and identity.
    pub data_dir: PathBuf,
    /// gRPC port.
    pub listen: SocketAddr,
    /// What others dial.
    pub advertise: String,
    /// Address that connections to others are made from; the system chooses when absent.
    pub source: Option<IpAddr>,
    /// Metrics and health; none when absent.
    pub ops_listen: Option<SocketAddr>,
    /// What the node does.
    pub roles: Roles,
    /// Where to ask to be let in.
    pub join: Vec<Target>,
    /// Certificates.
    pub tls: Tls,
    /// Data directories.
    pub volumes: Vec<VolumePath>,
    /// Pace of consensus.
    pub pace: Pace,
    /// Seconds between two sweeps of orphans.
    pub sweep_every_s: u64,
    /// Timings and limits of healing; consistent.
    pub healing: healing::Pace,
}

impl Config {
    /// Reads and checks `path`.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks `text` as the content of `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let raw: Raw = toml::from_str(text)
            .map_err(|error| Error::Parse { path: path.to_owned(), reason: error.to_string().trim().to_owned() })?;
        let wrong = |key: &'static str, reason: String| Error::Value { path: path.to_owned(), key, reason };
        let absolute = std::path::absolute(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let base = absolute.parent().unwrap_or(Path::new("/"));
        let roles = roles(&raw.roles).map_err(|reason| wrong("roles", reason))?;
        if roles.storage && raw.volumes.is_empty() {
            return Err(wrong("volumes", "a storage node needs at least one [[volumes]] with a path".to_owned()));
        }
        if !roles.storage && !raw.volumes.is_empty() {
            return Err(wrong(
                "volumes",
                "a witness holds no shards: remove [[volumes]], or give it the role storage".to_owned(),
            ));
        }
        let advertise = match raw.advertise {
            Some(address) => address,
            None if raw.listen.ip().is_unspecified() => {
                let reason = format!(
                    "needed because listen = \"{}\" is no address others can dial; write host:port",
                    raw.listen
                );
                return Err(wrong("advertise", reason));
            }
            None => raw.listen.to_string(),
        };
        for address in raw.join.iter().chain([&advertise]) {
            check_address(address).map_err(|reason| wrong("join/advertise", reason))?;
        }
        if let Some(source) = raw.network.source.filter(|source| source.is_unspecified() || source.is_multicast()) {
            let reason = format!("{source} is no address to connect from; leave the key out to let the system choose");
            return Err(wrong("network.source", reason));
        }
        let pace = pace(&raw.consensus).map_err(|reason| wrong("consensus", reason))?;
        let healing = healing_pace(&raw.healing).map_err(|reason| wrong("healing", reason))?;
        let mut volumes = Vec::with_capacity(raw.volumes.len());
        for volume in raw.volumes {
            let capacity = volume.capacity.as_deref().map(parse_bytes).transpose();
            let capacity_bytes = capacity.map_err(|reason| wrong("volumes.capacity", reason))?;
            let path = base.join(volume.path);
            if volumes.iter().any(|known: &VolumePath| known.path == path) {
                return Err(wrong("volumes.path", format!("{} is listed twice", path.display())));
            }
            volumes.push(VolumePath { path, capacity_bytes });
        }
        if raw.sweep.every_s == 0 {
            return Err(wrong("sweep.every_s", "must be at least 1".to_owned()));
        }
        Ok(Self {
            name: raw.name.parse().map_err(|error| wrong("name", format!("{error}")))?,
            site: raw.site.parse().map_err(|error| wrong("site", format!("{error}")))?,
            data_dir: base.join(raw.data_dir),
            listen: raw.listen,
            advertise,
            source: raw.network.source,
            ops_listen: raw.ops_listen,
            roles,
            join: raw.join.into_iter().map(|address| Target { address, name: None }).collect(),
            tls: Tls { ca: base.join(raw.tls.ca), cert: base.join(raw.tls.cert), key: base.join(raw.tls.key) },
            volumes,
            pace,
            sweep_every_s: raw.sweep.every_s,
            healing,
        })
    }
}

fn roles(raw: &[RawRole]) -> Result<Roles, String> {
    let has = |role| raw.contains(&role);
    let roles = Roles { storage: has(RawRole::Storage), voter: has(RawRole::Voter) || has(RawRole::Witness) };
    if has(RawRole::Witness) && has(RawRole::Storage) {
        return Err("a witness votes and holds no shards: name either witness or storage".to_owned());
    }
    if !roles.storage && !roles.voter {
        return Err("name at least one of storage, voter, witness".to_owned());
    }
    Ok(roles)
}

fn pace(raw: &RawConsensus) -> Result<Pace, String> {
    let fine = (20..=5_000).contains(&raw.heartbeat_ms)
        && raw.heartbeat_ms * 2 <= raw.election_min_ms
        && raw.election_min_ms < raw.election_max_ms
        && raw.election_max_ms <= 60_000;
    if !fine {
        return Err(format!(
            "heartbeat_ms {} (20 to 5000), election_min_ms {} (at least twice that) and election_max_ms {} (more, at most 60000) \
             do not fit together",
            raw.heartbeat_ms, raw.election_min_ms, raw.election_max_ms
        ));
    }
    Ok(Pace {
        heartbeat_ms: raw.heartbeat_ms,
        election_min_ms: raw.election_min_ms,
        election_max_ms: raw.election_max_ms,
    })
}

fn healing_pace(raw: &RawHealing) -> Result<healing::Pace, String> {
    let default = healing::Pace::default();
    let span = |given: Option<Span>, default: Duration| given.map_or(default, |Span(given)| given);
    let site = raw.preferred_leader_site.as_deref().map(str::parse::<SiteName>).transpose();
    let pace = healing::Pace {
        heartbeat: span(raw.heartbeat, default.heartbeat),
        suspect_after: span(raw.suspect_after, default.suspect_after),
        down_after: span(raw.down_after, default.down_after),
        lost_after: span(raw.lost_after, default.lost_after),
        steady_for: span(raw.steady_for, default.steady_for),
        urgent_after: span(raw.urgent_after, default.urgent_after),
        repair_after: span(raw.repair_after, default.repair_after),
        repair_rate: raw.repair_rate.map_or(default.repair_rate, |Amount(given)| given),
        repair_parallel: raw.repair_parallel.unwrap_or(default.repair_parallel),
        scrub_within: span(raw.scrub_within, default.scrub_within),
        reconcile_every: span(raw.reconcile_every, default.reconcile_every),
        rebalance_percent: raw.rebalance_percent.unwrap_or(default.rebalance_percent),
        voter_grace: span(raw.voter_grace, default.voter_grace),
        preferred_leader_site: site.map_err(|error| format!("preferred_leader_site: {error}"))?,
    };
    pace.check()?;
    Ok(pace)
}

fn check_address(address: &str) -> Result<(), String> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(format!("{address:?} must be host:port")),
    }
}

/// Parses durations such as `500ms`, `30 s`, `5min`, `24h` or `14d`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number = trimmed[..digits].parse::<u64>();
    let number = number.map_err(|_| format!("{text:?} must begin with a whole number, as in 30s"))?;
    let millis: u64 = match trimmed[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        "" => return Err(format!("{text:?} has no unit; use ms, s, min, h or d")),
        unit => return Err(format!("unknown unit {unit:?} in {text:?}; use ms, s, min, h or d")),
    };
    let millis = number.checked_mul(millis).ok_or_else(|| format!("{text:?} is too long"))?;
    check_span(Duration::from_millis(millis), text)
}

/// Anything longer is a typing error, and sums of timings must not overflow.
fn check_span(span: Duration, text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(3_653 * 24 * 3_600);
    if span <= LONGEST { Ok(span) } else { Err(format!("{text:?} is too long: at most ten years")) }
}

/// Parses sizes such as `500GB`, `2TiB` or `1048576`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| format!("{text:?} must begin with a number, as in 2TiB"))?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("unknown unit {unit:?} in {text:?}; use KiB, MiB, GiB, TiB or KB, MB, GB, TB")),
    };
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "a1"
site = "site-a"
data_dir = "data"
listen = "127.0.0.1:7400"
[tls]
ca = "ca.pem"
cert = "node-a1.pem"
key = "node-a1.key"
[[volumes]]
path = "v1"
capacity = "2GiB"
"#;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new("/etc/pacsvault/node.toml"))
    }

    #[test]
    fn a_small_configuration_is_enough() {
        let config = parse(GOOD).expect("valid");
        assert_eq!(config.advertise, "127.0.0.1:7400");
        assert_eq!(config.volumes[0].path, Path::new("/etc/pacsvault/v1"));
        assert_eq!(config.volumes[0].capacity_bytes, Some(2 << 30));
        assert!(config.roles.storage && config.roles.voter);
    }

    #[test]
    fn a_typo_is_refused_with_its_place() {
        let text = GOOD.replace("site =", "sight =");
        let error = parse(&text).expect_err("unknown key").to_string();
        assert!(error.contains("sight") && error.contains("line"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused_with_the_key() {
        for (from, to, key) in [
            ("\"127.0.0.1:7400\"", "\"0.0.0.0:7400\"", "advertise"),
            ("2GiB", "2 parsecs", "volumes.capacity"),
            ("name = \"a1\"", "name = \"A 1\"", "name"),
            ("site = ", "roles = [\"witness\"]\nsite = ", "volumes"),
            ("[tls]", "[network]\nsource = \"0.0.0.0\"\n[tls]", "network.source"),
            ("[tls]", "[network]\nsource = \"ff02::1\"\n[tls]", "network.source"),
            ("[tls]", "[network]\nsource = \"node-a\"\n[tls]", "source"),
        ] {
            let error = parse(&GOOD.replace(from, to)).expect_err("refused").to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn outgoing_connections_have_a_source_when_one_is_given() {
        assert_eq!(parse(GOOD).expect("valid").source, None);
        let given = GOOD.replace("[tls]", "[network]\nsource = \"10.1.0.5\"\n[tls]");
        assert_eq!(parse(&given).expect("valid").source, Some(IpAddr::from([10, 1, 0, 5])));
    }

    fn with_healing(lines: &str) -> Result<Config, Error> {
        parse(&format!("{GOOD}[healing]\n{lines}\n"))
    }

    #[test]
    fn healing_without_a_section_has_the_defaults() {
        let defaults = healing::Pace::default();
        assert_eq!(parse(GOOD).expect("valid").healing, defaults);
        assert_eq!(with_healing("").expect("valid").healing, defaults);
        assert_eq!(defaults.check(), Ok(()));
    }

    #[test]
    fn healing_durations_are_seconds_or_texts() {
        let healing = with_healing(
            "heartbeat = \"500ms\"\nsuspect_after = 2\nurgent_after = \"5 s\"\ndown_after = 10\nlost_after = \"2h\"\n\
             scrub_within = \"7d\"\nrepair_after = \"1min\"\nrepair_rate = \"50MB\"\nrepair_parallel = 4\n\
             preferred_leader_site = \"site-b\"",
        );
        let healing = healing.expect("valid").healing;
        assert_eq!(healing.heartbeat, Duration::from_millis(500));
        assert_eq!(healing.suspect_after, Duration::from_secs(2));
        assert_eq!(healing.urgent_after, Duration::from_secs(5));
        assert_eq!(healing.lost_after, Duration::from_secs(7_200));
        assert_eq!(healing.scrub_within, Duration::from_secs(7 * 24 * 3_600));
        assert_eq!(healing.repair_after, Duration::from_secs(60));
        assert_eq!((healing.repair_rate, healing.repair_parallel), (50_000_000, 4));
        assert_eq!(healing.preferred_leader_site.expect("given").as_str(), "site-b");
        assert_eq!(healing.steady_for, healing::Pace::default().steady_for);
        assert_eq!(with_healing("repair_rate = 1048576").expect("valid").healing.repair_rate, 1 << 20);
    }

    #[test]
    fn bad_healing_is_refused_with_the_place_and_what_would_do() {
        for (lines, words) in [
            ("suspect = 5", "unknown field `suspect`"),
            ("suspect_after = \"5\"", "has no unit"),
            ("suspect_after = \"5 fortnights\"", "use ms, s, min, h or d"),
            ("suspect_after = \"soon\"", "must begin with a whole number"),
            ("suspect_after = -5", "a number of seconds, or a text"),
            ("suspect_after = 2.5", "a number of seconds, or a text"),
            ("suspect_after = true", "a number of seconds, or a text"),
            ("lost_after = \"99999d\"", "at most ten years"),
            ("lost_after = 9223372036854775807", "at most ten years"),
            ("repair_rate = \"fast\"", "must begin with a number"),
            ("repair_rate = -1", "a number of bytes, or a text"),
            ("repair_parallel = 0", "repair_parallel must be within 1 and 256"),
            ("rebalance_percent = 51", "rebalance_percent must be within 1 and 50"),
            ("rebalance_percent = 300", "line"),
            ("heartbeat = \"10ms\"", "heartbeat must be at least 50 ms"),
            ("heartbeat = 2", "suspect_after must be at least three heartbeats"),
            ("urgent_after = 4", "urgent_after must not be shorter than suspect_after"),
            ("down_after = 9", "down_after must not be shorter than urgent_after"),
            ("lost_after = 29", "lost_after must not be shorter than down_after"),
            ("lost_after = \"4min\"", "lost_after must not be shorter than repair_after"),
            (
                "heartbeat = \"2min\"\nsuspect_after = 400\nurgent_after = 400\ndown_after = 400\nvoter_grace = 400",
                "at most a minute",
            ),
            ("steady_for = \"1h\"", "steady_for must be at most ten minutes"),
            ("voter_grace = 1", "voter_grace must not be shorter than suspect_after"),
            ("reconcile_every = 0", "reconcile_every must be at least a second"),
            ("repair_rate = 50", "repair_rate is in bytes per second"),
            ("scrub_within = 59", "scrub_within must be at least a minute"),
            ("preferred_leader_site = \"Site B\"", "preferred_leader_site"),
        ] {
            let error = with_healing(lines).expect_err(lines).to_string();
            assert!(error.contains(words) && error.contains("node.toml"), "{lines}: {error}");
        }
    }
}
