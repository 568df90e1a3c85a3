//! What clients did and were told, and the judge of it.
//!
//! Writes of one key get growing version numbers in the order in which the log applied them, so a key's history needs no
//! search: every answer names the version it saw, and each rule below compares numbers.
//!
//! **Rules** (a broken one is a violation, kept in [`Model::violations`]):
//! - A visible version is one attempt's whole content, byte for byte; an attempt has at most one version, a version one attempt.
//! - A refused write is never visible, a refused delete never hides anything. An unknown one may be either, for ever.
//! - A read sees every write that the reader was told of before it asked (linearizable reads and misses: that anybody was
//!   told of), unless a delete that was not over before that write began may have hidden it.
//! - A linearizable read sees no version whose deletion was acknowledged before it asked.
//! - An acknowledged write that nobody may have deleted is readable for ever.

use std::collections::BTreeMap;

use bytes::Bytes;
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, InstanceId},
};

/// Order of events: one simulation is one thread, so a counter is exact.
pub type Moment = u64;
/// A client's session: a restarted client is another one.
pub type Session = u64;

/// What became of a write.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Not answered yet, abandoned, or told unknown.
    Open,
    /// Acknowledged.
    Acked {
        /// When the client learned it.
        at: Moment,
        /// The record of the receipt.
        sealed: Box<SealedInstance>,
    },
    /// Told that nothing is stored.
    Refused,
}

/// One attempt to write.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who.
    pub session: Session,
    /// Which key.
    pub key: usize,
    /// What.
    pub content: Bytes,
    /// Its digest.
    pub digest: Digest,
    /// Id of the attempt.
    pub instance: InstanceId,
    /// When it began.
    pub started: Moment,
    /// What became of it.
    pub fate: Fate,
}

struct Deletion {
    key: usize,
    version: Option<u32>,
    started: Moment,
    ended: Option<Moment>,
    acked: Vec<u32>,
    refused: bool,
}

/// How much a reader may expect to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Its own acknowledged writes (a miss of a lookup is always checked with `All`).
    Own(Session),
    /// Everybody's.
    All,
}

/// One read as it ended.
#[derive(Debug, Clone, Copy)]
pub struct ReadView {
    /// Which key.
    pub key: usize,
    /// When it was asked.
    pub started: Moment,
    /// What it must see.
    pub scope: Scope,
    /// The newest version it saw; `None`: it was told that there is none.
    pub seen: Option<u32>,
}

/// The history of one run.
#[derive(Default)]
pub struct Model {
    moment: Moment,
    attempts: Vec<Attempt>,
    deletions: Vec<Deletion>,
    versions: BTreeMap<(usize, u32), InstanceId>,
    /// What went wrong, in order.
    pub violations: Vec<String>,
}

impl Model {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    /// Notes a violation.
    pub fn violation(&mut self, text: impl Into<String>) {
        self.violations.push(text.into());
    }

    /// All attempts, in the order begun.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// A write begins; answers its number.
    pub fn begin_put(&mut self, session: Session, key: usize, content: Bytes, instance: InstanceId) -> usize {
        let (digest, started) = (Digest::of(&content), self.tick());
        self.attempts.push(Attempt { session, key, content, digest, instance, started, fate: Fate::Open });
        self.attempts.len() - 1
    }

    /// A write was acknowledged with this record; `first` is what the reply said.
    pub fn acked(&mut self, put: usize, sealed: &SealedInstance, first: bool) {
        let at = self.tick();
        let attempt = self.attempts[put].clone();
        self.observe(attempt.key, sealed);
        if sealed.seal.digest != attempt.digest || sealed.seal.size_bytes != attempt.content.len() as u64 {
            self.violation(format!("attempt {} was acknowledged with the record of other content", attempt.instance));
        }
        if first && sealed.seal.instance != attempt.instance {
            self.violation(format!("attempt {} was told to be first as {}", attempt.instance, sealed.seal.instance));
        }
        self.attempts[put].fate = Fate::Acked { at, sealed: Box::new(sealed.clone()) };
    }

    /// A write was answered with "nothing is stored".
    pub fn put_refused(&mut self, put: usize) {
        let instance = self.attempts[put].instance;
        if self.versions.values().any(|seen| *seen == instance) {
            self.violation(format!("attempt {instance} was visible before it was refused"));
        }
        self.attempts[put].fate = Fate::Refused;
        self.tick();
    }

    /// A delete begins; answers its number.
    pub fn begin_delete(&mut self, key: usize, version: Option<u32>) -> usize {
        let started = self.tick();
        self.deletions.push(Deletion { key, version, started, ended: None, acked: Vec::new(), refused: false });
        self.deletions.len() - 1
    }

    /// A delete was acknowledged for these versions.
    pub fn deleted(&mut self, delete: usize, versions: Vec<u32>) {
        let at = self.tick();
        self.deletions[delete].ended = Some(at);
        self.deletions[delete].acked = versions;
    }

    /// A delete was answered with "nothing was done".
    pub fn delete_refused(&mut self, delete: usize) {
        self.tick();
        self.deletions[delete].refused = true;
    }

    /// A record was seen under `key`: it must be some attempt's, always the same one's. Answers that attempt's number.
    pub fn observe(&mut self, key: usize, sealed: &SealedInstance) -> Option<usize> {
        let (instance, version) = (sealed.seal.instance, sealed.version.0);
        let Some(at) = self.attempts.iter().position(|attempt| attempt.instance == instance) else {
            self.violation(format!("version {version} of key {key} is of attempt {instance}, which nobody made"));
            return None;
        };
        let attempt = &self.attempts[at];
        let mut wrong = Vec::new();
        if attempt.key != key || attempt.digest != sealed.seal.digest {
            wrong.push(format!("attempt {instance} appears under another key or digest"));
        }
        if matches!(attempt.fate, Fate::Refused) {
            wrong.push(format!("attempt {instance} was refused and is visible as version {version} of key {key}"));
        }
        if let Some(other) = self.versions.insert((key, version), instance)
            && other != instance
        {
            wrong.push(format!("version {version} of key {key} was {other} and is {instance}"));
        }
        let twice = self.versions.iter().find(|((_, known), seen)| **seen == instance && *known != version);
        if let Some(((_, known), _)) = twice {
            wrong.push(format!("attempt {instance} is version {known} and version {version} of key {key}"));
        }
        wrong.into_iter().for_each(|text| self.violation(text));
        Some(at)
    }

    /// Bytes of a visible version were read from `offset`.
    pub fn observe_bytes(&mut self, key: usize, sealed: &SealedInstance, offset: usize, bytes: &[u8]) {
        let Some(at) = self.observe(key, sealed) else { return };
        let expected = self.attempts[at].content.get(offset..).and_then(|rest| rest.get(..bytes.len()));
        if expected != Some(bytes) {
            let text = format!("version {} of key {key} read other bytes than were written", sealed.version);
            self.violation(text);
        }
    }

    /// Whether some delete may hide `version` of `key`, written by an attempt begun at `began`, from a look that ended at `now`.
    fn may_be_deleted(&self, key: usize, version: u32, began: Moment, now: Moment) -> bool {
        self.deletions.iter().any(|deletion| {
            deletion.key == key
                && !deletion.refused
                && deletion.version.is_none_or(|only| only == version)
                && deletion.started < now
                && deletion.ended.is_none_or(|ended| ended > began)
        })
    }

    /// Whether some delete may have hidden this record by now.
    pub fn may_be_gone(&mut self, key: usize, sealed: &SealedInstance) -> bool {
        let now = self.tick();
        let began = self.began(sealed.seal.instance);
        self.may_be_deleted(key, sealed.version.0, began, now)
    }

    /// A read of the newest version ended now.
    pub fn check_read(&mut self, read: &ReadView) {
        let now = self.tick();
        let mut wrong = Vec::new();
        for attempt in self.attempts.iter().filter(|attempt| attempt.key == read.key) {
            let Fate::Acked { at, sealed } = &attempt.fate else { continue };
            let told = match read.scope {
                Scope::All => true,
                Scope::Own(session) => attempt.session == session,
            };
            let version = sealed.version.0;
            let missed = read.seen.is_none_or(|seen| seen < version);
            let began = self.began(sealed.seal.instance).min(attempt.started);
            if told && *at < read.started && missed && !self.may_be_deleted(read.key, version, began, now) {
                let saw = read.seen.map_or_else(|| "nothing".to_owned(), |seen| format!("version {seen}"));
                wrong.push(format!(
                    "a read of key {} saw {saw}, though version {version} was acknowledged before (scope {:?})",
                    read.key, read.scope
                ));
            }
        }
        if read.scope == Scope::All
            && let Some(seen) = read.seen
        {
            let gone = |deletion: &Deletion| {
                deletion.key == read.key
                    && deletion.ended.is_some_and(|ended| ended < read.started)
                    && deletion.acked.contains(&seen)
            };
            if self.deletions.iter().any(gone) {
                wrong.push(format!("a linearizable read of key {} saw version {seen}, deleted before", read.key));
            }
        }
        wrong.into_iter().for_each(|text| self.violation(text));
    }

    fn began(&self, instance: InstanceId) -> Moment {
        let of = |attempt: &&Attempt| attempt.instance == instance;
        self.attempts.iter().find(of).map_or(Moment::MAX, |attempt| attempt.started)
    }

    /// Every acknowledged version that nobody may have deleted: `(key, record)`, each once.
    pub fn must_live(&self) -> Vec<(usize, SealedInstance)> {
        let mut live = BTreeMap::new();
        for attempt in &self.attempts {
            let Fate::Acked { sealed, .. } = &attempt.fate else { continue };
            let began = self.began(sealed.seal.instance).min(attempt.started);
            if !self.may_be_deleted(attempt.key, sealed.version.0, began, Moment::MAX) {
                live.insert((attempt.key, sealed.version.0), (**sealed).clone());
            }
        }
        live.into_iter().map(|((key, _), sealed)| (key, sealed)).collect()
    }

    /// Highest version of `key` ever seen.
    pub fn newest_seen(&self, key: usize) -> u32 {
        self.versions.keys().filter(|(known, _)| *known == key).map(|(_, version)| *version).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
