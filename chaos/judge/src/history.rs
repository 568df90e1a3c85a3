//! What clients asked and were told: the record that the judge works from.
//!
//! A line of JSON is one operation, so that a history can be written as it happens, cut off by a crash, and read again: once when
//! it begins, without an end, and once when it ended. Whatever an answer speaks of was then begun on an earlier line.
//!
//! **Invariants of a history that [`History::faults`] accepts.** Operations have distinct numbers, attempts distinct names. An
//! operation that was answered ended, not before it began. Its answer is one that its call can have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{BufRead, Write},
};

use serde::{Deserialize, Serialize};

/// One operation of one session on one key, as its caller saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Names it; no other operation of the history has it.
    pub number: u64,
    /// Who asked. A session is one coordinator with its memory of what it wrote; a restarted client is another one.
    pub session: u64,
    /// On which object.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// When, on one clock for all sessions (microseconds of real processes, moments of the simulator).
    pub started: u64,
    /// When it was answered or given up; `None`: never, its client died. After this nothing is sent for it any more.
    #[serde(default)]
    pub ended: Option<u64>,
    /// What was told.
    pub answer: Answer,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Store this content as a version of its own, unless the newest version has it already.
    Put {
        /// Names the attempt, for ever: its instance id. `None`: a node makes the attempt for its caller, and names it in its
        /// answer at the earliest.
        attempt: Option<String>,
        /// Digest of the content.
        content: String,
        /// Length of the content.
        size_bytes: u64,
    },
    /// Read one version, or the newest. A listing is one of these for each key that it covers.
    Get {
        /// Which; `None`: the newest that is not deleted.
        version: Option<u32>,
        /// Whether the answer must be as of a moment between question and answer. A lookup that finds nothing always is.
        linearizable: bool,
    },
    /// Delete one version, or all that are there when the operation looks.
    Delete {
        /// Which; `None`: all.
        version: Option<u32>,
    },
}

/// What was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To a put: the content is stored.
    Stored {
        /// As this version.
        version: u32,
        /// Whose record it is: another attempt's when that one had stored the same content before.
        attempt: String,
        /// Whether the answer said that this put made the version.
        first: bool,
    },
    /// To a get: there it is.
    Found {
        /// Which version.
        version: u32,
        /// Digest of its content.
        content: String,
    },
    /// To a get: not stored, or deleted. To a delete: nothing to delete, and nothing was done.
    Missing,
    /// To a delete: done. These were there until then; what is not named had been deleted before, perhaps by an earlier try.
    Deleted {
        /// Ascending.
        versions: Vec<u32>,
    },
    /// Surely nothing was done, and nothing will be.
    Refused,
    /// It may have been done, or be done at any later time, or never.
    Unknown,
}

/// The operations of one run, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// All of them.
    pub operations: Vec<Operation>,
}

/// Why a history cannot be read, written or judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text ends early, or the device refused.
    #[error("line {line} of the history cannot be read")]
    Read {
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is no operation.
    #[error("line {line} of the history is no operation: {text}")]
    Parse {
        /// Counted from 1.
        line: usize,
        /// The line's beginning.
        text: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Its operations contradict each other.
    #[error("the history contradicts itself: {0}")]
    Contradiction(String),
    /// It cannot be written.
    #[error("operation {number} cannot be written")]
    Write {
        /// Which.
        number: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Most characters of a bad line that its error repeats.
const TEXT_CHARS: usize = 120;

impl Operation {
    /// Whether it was told what became of it.
    pub fn answered(&self) -> bool {
        self.answer != Answer::Unknown
    }

    /// The attempt that it is known to be.
    pub(crate) fn attempt(&self) -> Option<&str> {
        match (&self.call, &self.answer) {
            (Call::Put { attempt: Some(attempt), .. }, _)
            | (Call::Put { attempt: None, .. }, Answer::Stored { attempt, first: true, .. }) => Some(attempt),
            _ => None,
        }
    }

    /// Whether this is the line written when `ended` began.
    fn is_begin_of(&self, ended: &Self) -> bool {
        let begun = |of: &Self| Self { ended: None, answer: Answer::Unknown, ..of.clone() };
        self.ended.is_none() && ended.ended.is_some() && begun(self) == begun(ended)
    }

    /// What is wrong with it on its own.
    fn fault(&self) -> Option<String> {
        let number = self.number;
        let fits = match (&self.call, &self.answer) {
            (_, Answer::Refused | Answer::Unknown) => true,
            (Call::Put { .. }, Answer::Stored { version, .. }) => *version > 0,
            (Call::Get { version: asked, .. }, Answer::Found { version, .. }) => {
                *version > 0 && asked.is_none_or(|asked| asked == *version)
            }
            (Call::Get { .. } | Call::Delete { .. }, Answer::Missing) => true,
            (Call::Delete { version: asked }, Answer::Deleted { versions }) => {
                let ascending = versions.windows(2).all(|pair| pair[0] < pair[1]);
                ascending && versions.iter().all(|one| *one > 0 && asked.is_none_or(|asked| asked == *one))
            }
            _ => false,
        };
        if !fits {
            return Some(format!("operation {number} has an answer that its call cannot have: {self}"));
        }
        match self.ended {
            None if self.answered() => Some(format!("operation {number} has an answer and no end")),
            Some(ended) if ended < self.started => Some(format!("operation {number} ended before it began")),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} of session {} on {}, ", self.number, self.session, self.key)?;
        match &self.call {
            Call::Put { attempt, content, size_bytes } => {
                let attempt = attempt.as_ref().map_or("through a node".to_owned(), |name| format!("as attempt {name}"));
                write!(f, "put of {size_bytes} bytes {} {attempt}", short(content))?;
            }
            Call::Get { version, linearizable } => {
                let how = if *linearizable { "linearizable " } else { "plain " };
                write!(f, "{how}get of {}", what(*version, "the newest"))?;
            }
            Call::Delete { version } => write!(f, "delete of {}", what(*version, "all versions"))?,
        }
        write!(f, ", from {} to ", self.started)?;
        match self.ended {
            Some(ended) => write!(f, "{ended}: ")?,
            None => f.write_str("…: ")?,
        }
        match &self.answer {
            Answer::Stored { version, attempt, first } => {
                let how = if *first { "stored" } else { "stored before" };
                write!(f, "{how} as version {version} by attempt {attempt}")
            }
            Answer::Found { version, content } => write!(f, "found version {version} with {}", short(content)),
            Answer::Missing => f.write_str("missing"),
            Answer::Deleted { versions } => write!(f, "deleted {versions:?}"),
            Answer::Refused => f.write_str("refused"),
            Answer::Unknown => f.write_str("unknown"),
        }
    }
}

fn what(version: Option<u32>, all: &str) -> String {
    version.map_or_else(|| all.to_owned(), |version| format!("version {version}"))
}

/// The beginning of a digest: enough to tell two apart.
pub(crate) fn short(content: &str) -> &str {
    content.char_indices().nth(10).map_or(content, |(at, _)| &content[..at])
}

impl History {
    /// Reads operations, one JSON object on each line; empty lines are passed over. An operation's end replaces its beginning.
    ///
    /// # Errors
    /// The first line that is no operation, or what contradicts itself.
    pub fn read(lines: impl BufRead) -> Result<Self, Error> {
        let mut operations: Vec<Operation> = Vec::new();
        let mut open = BTreeMap::new();
        for (text, line) in lines.lines().zip(1..) {
            let text = text.map_err(|source| Error::Read { line, source })?;
            if text.trim().is_empty() {
                continue;
            }
            let parsed: Operation = serde_json::from_str(&text).map_err(|source| {
                let text = text.chars().take(TEXT_CHARS).collect();
                Error::Parse { line, text, source }
            })?;
            match open.get(&parsed.number).and_then(|at: &usize| operations.get_mut(*at)) {
                Some(begun) if begun.is_begin_of(&parsed) => *begun = parsed,
                _ => {
                    open.insert(parsed.number, operations.len());
                    operations.push(parsed);
                }
            }
        }
        let history = Self { operations };
        match history.faults().into_iter().next() {
            Some(fault) => Err(Error::Contradiction(fault)),
            None => Ok(history),
        }
    }

    /// Writes operations, one JSON object on each line.
    ///
    /// # Errors
    /// The device refused.
    pub fn write(&self, mut out: impl Write) -> Result<(), Error> {
        for operation in &self.operations {
            let failed = |source| Error::Write { number: operation.number, source };
            let mut text = serde_json::to_vec(operation).map_err(|source| failed(source.into()))?;
            text.push(b'\n');
            out.write_all(&text).map_err(failed)?;
        }
        Ok(())
    }

    /// Why it is no history: empty for one that can be judged.
    pub fn faults(&self) -> Vec<String> {
        let (mut numbers, mut attempts) = (BTreeSet::new(), BTreeSet::new());
        let mut faults = Vec::new();
        for operation in &self.operations {
            faults.extend(operation.fault());
            if !numbers.insert(operation.number) {
                faults.push(format!("two operations have number {}", operation.number));
            }
            if let Call::Put { attempt: Some(attempt), .. } = &operation.call
                && !attempts.insert(attempt)
            {
                faults.push(format!("two puts are attempt {attempt}"));
            }
        }
        faults
    }
}
