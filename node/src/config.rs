//! The node's configuration file: parsed strictly, checked as a whole, refused with what to do.
//!
//! **Invariants.** A [`Config`] that exists is complete and consistent. Unknown keys are errors: a typo must not silently
//! become a default. Relative paths count from the file's own folder and are kept as absolute ones, so that a volume is the
//! same however the file was named.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use pacsvault_core::{
    ids::{NodeName, SiteName},
    layout::Roles,
};
use pacsvault_ports::peer::Target;
use serde::Deserialize;

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
    volumes: Vec<RawVolume>,
    #[serde(default)]
    consensus: RawConsensus,
    #[serde(default)]
    sweep: RawSweep,
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
        let pace = pace(&raw.consensus).map_err(|reason| wrong("consensus", reason))?;
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
            ops_listen: raw.ops_listen,
            roles,
            join: raw.join.into_iter().map(|address| Target { address, name: None }).collect(),
            tls: Tls { ca: base.join(raw.tls.ca), cert: base.join(raw.tls.cert), key: base.join(raw.tls.key) },
            volumes,
            pace,
            sweep_every_s: raw.sweep.every_s,
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

fn check_address(address: &str) -> Result<(), String> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(format!("{address:?} must be host:port")),
    }
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
        ] {
            let error = parse(&GOOD.replace(from, to)).expect_err("refused").to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
