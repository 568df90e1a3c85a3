//! Where the cluster is and who we are: flags, then environment, then one TOML file.
//!
//! **Invariants.** Unknown keys of a file are refused. Relative paths in a file count from the file's folder, those of flags
//! and environment from the working directory. A [`Config`] that exists names at least one well-formed endpoint.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use pacsvault_core::ids::{self, SiteName, Tenant};
use serde::Deserialize;

/// Names the configuration file.
pub const ENV_CONFIG: &str = "PACSVAULT_CONFIG";
/// Looked for in the working directory when [`ENV_CONFIG`] is not set.
pub const LOCAL_FILE: &str = "pacsvault.toml";
/// Looked for in the home directory after that.
pub const HOME_FILE: &str = ".config/pacsvault/config.toml";
/// Tenant of those who name none.
pub const TENANT_DEFAULT: &str = "main";

/// What is wrong with the configuration. Correct it; repeating cannot help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file that was asked for cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not TOML, or not our keys.
    #[error("the configuration {path} is not valid: {reason}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// The parser's words, on one line.
        reason: String,
    },
    /// Something needed is set nowhere.
    #[error("{what} is not set: give --{flag}, set {variable}, or write `{flag} = ...` into {LOCAL_FILE}")]
    Missing {
        /// For people.
        what: &'static str,
        /// Flag, and key of the file.
        flag: &'static str,
        /// Environment variable.
        variable: &'static str,
    },
    /// Not `host:port`.
    #[error("endpoint {text:?} must read host:port, such as 10.1.0.5:7400 or [::1]:7400")]
    Endpoint {
        /// As given.
        text: String,
    },
    /// A malformed site or tenant.
    #[error(transparent)]
    Name(#[from] ids::Error),
}

/// Settings of one source; what is absent is left to a weaker source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `host:port` of some nodes, best first.
    pub endpoints: Option<Vec<String>>,
    /// The cluster's CA certificate.
    pub ca: Option<PathBuf>,
    /// Own certificate.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Own site.
    pub site: Option<String>,
    /// Owner of the studies.
    pub tenant: Option<String>,
    /// Send content through a node even when the certificate allows more.
    pub via_node: Option<bool>,
    /// Address of this machine to connect from.
    pub source: Option<IpAddr>,
}

impl Settings {
    /// Reads `PACSVAULT_ENDPOINTS` (comma-separated), `_CA`, `_CERT`, `_KEY`, `_SITE` and `_TENANT`; empty ones count as unset.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| variable(name).filter(|value| !value.is_empty());
        let endpoints = text("PACSVAULT_ENDPOINTS")
            .map(|list| list.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect());
        let path = |name: &str| text(name).map(PathBuf::from);
        Self {
            endpoints,
            ca: path("PACSVAULT_CA"),
            cert: path("PACSVAULT_CERT"),
            key: path("PACSVAULT_KEY"),
            site: text("PACSVAULT_SITE"),
            tenant: text("PACSVAULT_TENANT"),
            via_node: None,
            source: None,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Malformed`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut settings: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map(|line| format!(" (line {line})")).unwrap_or_default();
            Error::Malformed { path: path.to_owned(), reason: format!("{}{place}", error.message()) }
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in [&mut settings.ca, &mut settings.cert, &mut settings.key].into_iter().flatten() {
            *file = folder.join(&*file);
        }
        Ok(settings)
    }

    /// These, completed by `weaker`.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            endpoints: self.endpoints.or(weaker.endpoints),
            ca: self.ca.or(weaker.ca),
            cert: self.cert.or(weaker.cert),
            key: self.key.or(weaker.key),
            site: self.site.or(weaker.site),
            tenant: self.tenant.or(weaker.tenant),
            via_node: self.via_node.or(weaker.via_node),
            source: self.source.or(weaker.source),
        }
    }

    /// These flags, then this process's environment, then the file: `file` if given, else the one that
    /// [`ENV_CONFIG`] names, else [`LOCAL_FILE`], else [`HOME_FILE`] in the home directory. Only a file that was named must exist.
    ///
    /// # Errors
    /// Those of [`Settings::from_file`].
    pub fn gather(self, file: Option<&Path>) -> Result<Self, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let named = file.map(Path::to_owned);
        let named = named.or_else(|| variable(ENV_CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from));
        let found = named.or_else(|| {
            let home = variable("HOME").map(|home| Path::new(&home).join(HOME_FILE));
            [Some(PathBuf::from(LOCAL_FILE)), home].into_iter().flatten().find(|path| path.is_file())
        });
        let weakest = found.map(|path| Self::from_file(&path)).transpose()?.unwrap_or_default();
        Ok(self.or(Self::from_env(variable)).or(weakest))
    }

    /// The tenant alone, for what needs no cluster.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn tenant(&self) -> Result<Tenant, Error> {
        Ok(self.tenant.as_deref().unwrap_or(TENANT_DEFAULT).parse()?)
    }
}

/// All that is needed to reach a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `host:port` of some nodes, best first; the rest of the cluster is learned from them.
    pub endpoints: Vec<String>,
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// Own certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Own site: read and asked first.
    pub site: Option<SiteName>,
    /// Owner of the studies.
    pub tenant: Tenant,
    /// Send content through a node even when the certificate allows more.
    pub via_node: bool,
    /// Address of this machine that connections are made from; the system chooses when absent.
    pub source: Option<IpAddr>,
}

impl TryFrom<Settings> for Config {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self, Error> {
        let missing = |what, flag, variable| move || Error::Missing { what, flag, variable };
        let endpoints = settings.endpoints.clone().filter(|list| !list.is_empty());
        let endpoints = endpoints.ok_or_else(missing("the address of a node", "endpoints", "PACSVAULT_ENDPOINTS"))?;
        endpoints.iter().try_for_each(|endpoint| check_endpoint(endpoint))?;
        Ok(Self {
            endpoints,
            tenant: settings.tenant()?,
            ca: settings.ca.ok_or_else(missing("the cluster's CA certificate", "ca", "PACSVAULT_CA"))?,
            cert: settings.cert.ok_or_else(missing("the client's certificate", "cert", "PACSVAULT_CERT"))?,
            key: settings.key.ok_or_else(missing("the client's private key", "key", "PACSVAULT_KEY"))?,
            site: settings.site.map(|site| site.parse()).transpose()?,
            via_node: settings.via_node.unwrap_or(false),
            source: settings.source,
        })
    }
}

/// Refuses what is not `host:port`.
///
/// # Errors
/// [`Error::Endpoint`].
pub fn check_endpoint(text: &str) -> Result<(), Error> {
    let fine = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
        let plain = !host.is_empty() && !host.contains([':', '/', ' ']);
        (bracketed || plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if fine { Ok(()) } else { Err(Error::Endpoint { text: text.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn full() -> Settings {
        Settings {
            endpoints: Some(vec!["a:1".to_owned()]),
            ca: Some("ca".into()),
            cert: Some("cert".into()),
            key: Some("key".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn paths_of_a_file_count_from_its_folder_and_flags_win() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pacsvault.toml");
        fs::write(
            &path,
            "endpoints = [\"a:1\", \"b:2\"]\nca = \"pki/ca.pem\"\ncert = \"/etc/c.pem\"\nsite = \"east\"\nsource = \"10.1.0.9\"\n",
        )
        .expect("written");
        let file = Settings::from_file(&path).expect("valid");
        assert_eq!(file.ca, Some(dir.path().join("pki/ca.pem")));
        assert_eq!(file.cert, Some("/etc/c.pem".into()));
        let flags = Settings { site: Some("west".to_owned()), ..Settings::default() };
        let environment = Settings::from_env(|name| (name == "PACSVAULT_ENDPOINTS").then(|| "c:3, d:4,".to_owned()));
        let merged = flags.or(environment).or(file);
        assert_eq!(merged.endpoints, Some(vec!["c:3".to_owned(), "d:4".to_owned()]));
        assert_eq!(merged.site.as_deref(), Some("west"));
        assert_eq!(merged.source, Some(IpAddr::from([10, 1, 0, 9])));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pacsvault.toml");
        fs::write(&path, "site = \"east\"\nendpoint = \"a:1\"\n").expect("written");
        let error = Settings::from_file(&path).expect_err("refused").to_string();
        assert!(error.contains("endpoint") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_every_way_to_give_it() {
        let error = Config::try_from(Settings { ca: None, ..full() }).expect_err("refused").to_string();
        assert!(error.contains("--ca") && error.contains("PACSVAULT_CA"), "{error}");
        assert_eq!(Config::try_from(full()).expect("complete").tenant.as_str(), TENANT_DEFAULT);
    }

    #[test]
    fn endpoints_must_have_a_host_and_a_port() {
        for text in ["a:1", "10.0.0.1:7400", "[::1]:7400", "node-a.site:443"] {
            assert!(check_endpoint(text).is_ok(), "{text}");
        }
        for text in ["", "a", ":1", "a:", "a:0", "a:70000", "https://a:1", "::1:7400"] {
            assert!(check_endpoint(text).is_err(), "{text}");
        }
    }
}
