//! How commands fail: a code, one line of words, a hint, an exit code.

use std::{fmt, process::ExitCode};

use pacsvault_client::{client, config, receipt};
use pacsvault_ports::peer::{Class, Fault};
use serde_json::{Value, json};

/// How the process ends when not well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did not work.
    Failed = 1,
    /// It was asked wrongly.
    Usage = 2,
    /// It may have worked.
    Unknown = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(2),
            Exit::Unknown => Self::from(3),
        }
    }
}

/// Why a command ends without success.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Stable, with a page in the documentation.
    pub code: &'static str,
    /// What failed.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// How the process ends.
    pub exit: Exit,
}

impl Failure {
    /// It did not work.
    pub fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, exit: Exit::Failed }
    }

    /// It was asked wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: "PV-USAGE", message: message.into(), hint: None, exit: Exit::Usage }
    }

    /// A file of this machine refused.
    pub fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::failed("PV-FILE", format!("cannot {what} {}: {error}", path.display()))
    }

    /// As JSON, for callers that asked for it.
    pub fn value(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.line(), "hint": self.hint}})
    }

    /// The message in one line.
    fn line(&self) -> String {
        self.message.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// With this hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.line())?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let exit = if fault.class == Class::Unknown { Exit::Unknown } else { Exit::Failed };
        let hint = hint_of(&fault).map(str::to_owned);
        Self { code: fault.code, message: fault.message, hint, exit }
    }
}

fn hint_of(fault: &Fault) -> Option<&'static str> {
    let known = match fault.code {
        "PV-NO-NODE" | "PV-UNAVAILABLE" | "PV-UNREACHABLE" | "PV-DEADLINE" if fault.class != Class::Unknown => {
            "check --endpoints and that the nodes run; `pacsvault status` shows who answers"
        }
        "PV-TRUST" => "--ca, --cert and --key must come from the `pacsvault pki` of this very cluster",
        "PV-DENIED" => {
            "issue such a certificate: `pacsvault pki issue DIR --role ROLE NAME`, and give it as --cert and --key"
        }
        "PV-NOT-FOUND" => "`pacsvault ls` lists the studies, `pacsvault ls STUDY` what is in one",
        "PV-UPGRADE-PENDING" => "`pacsvault status` shows which node runs an older version",
        "PV-UNSUPPORTED" | "PV-NO-METHOD" => "the node that was asked is older than this command: upgrade it",
        "PV-TOO-WEAK" | "PV-NO-VOLUMES" => "`pacsvault status` shows what is away; nothing was stored",
        "PV-CONTENT-DIGEST" => "run `pacsvault verify KEY` and report this",
        _ => match fault.class {
            Class::Unknown => {
                "run the same command again: if it was stored and is still the newest version, you get that one"
            }
            Class::Retry => "try again; `pacsvault status` shows who answers",
            Class::Exhausted => "a limit was met: try again later, or with fewer --jobs",
            Class::Corrupt => "`pacsvault verify` shows which shards are damaged",
            Class::Bug => "this is a defect: please report it with the code and the message",
            Class::Reject | Class::NotFound => return None,
        },
    };
    // Many messages of the library say what to do already.
    (!fault.message.contains("`pacsvault ") || fault.code == "PV-DENIED").then_some(known)
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        let hint = "`pacsvault help` lists all settings; a file looks like: endpoints = [\"10.1.0.5:7400\"], ca = \"ca.pem\", \
                    cert = \"gateway-main.pem\", key = \"gateway-main.key\"";
        Self { code: "PV-CONFIG", message: error.to_string(), hint: Some(hint.to_owned()), exit: Exit::Usage }
    }
}

impl From<pacsvault_security::Error> for Failure {
    fn from(error: pacsvault_security::Error) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::failed("PV-TRUST", format!("{error}{source}"))
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Trust(error) => error.into(),
            client::Error::Source(_) => {
                Self { code: "PV-CONFIG", message: error.to_string(), hint: None, exit: Exit::Usage }
            }
            other => Self::failed("PV-CLIENT", other.to_string()),
        }
    }
}

impl From<receipt::Error> for Failure {
    fn from(error: receipt::Error) -> Self {
        Self::failed("PV-RECEIPT", error.to_string()).hint("believe nothing that this file says")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_a_hint() {
        let failure = Failure::from(Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", "no reply\nin time"));
        assert_eq!(failure.exit, Exit::Unknown);
        let text = failure.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "error[PV-UNKNOWN-OUTCOME]: no reply in time");
        assert!(lines[1].starts_with("  hint: run the same command again"));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_missing_setting_is_a_usage_error() {
        let error = config::Config::try_from(config::Settings::default()).expect_err("nothing is set");
        assert_eq!(Failure::from(error).exit, Exit::Usage);
    }
}
