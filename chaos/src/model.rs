//! What clients did and were told: the history for the judge, and what can be judged at once.
//!
//! Every operation is written down for [`pacsvault_judge`], which judges the whole at the end of a run. What needs more than
//! the answers is judged here, at once: bytes, records of receipts, and what became of each attempt.
//!
//! **Rules** (a broken one is a violation, kept in [`Model::violations`]):
//! - A visible version is one attempt's whole content, byte for byte; an attempt has at most one version, a version one attempt.
//! - A version may get other encodings of its content, under instance ids that are nobody's attempt, where people asked for a
//!   profile; such an id is of one version for ever. A version first seen in another encoding is of some attempt with that content.
//! - A refused write is never visible, a refused delete never hides anything. An unknown one may be either, for ever.
//! - A write of several attempts is told to be refused only when each of them was, and to be unknown only when one of them is.
//! - An acknowledged write that nobody may have deleted is readable for ever.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
};

use bytes::Bytes;
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, InstanceId, ObjectKey},
};
use pacsvault_judge::{Answer, Call, History, Operation};

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
    /// Told that it was stored and is deleted.
    Gone,
    /// Told that nothing is stored.
    Refused,
}

/// What a client's loop told of all attempts at one write together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// It is stored.
    Acked,
    /// It may be stored.
    Unknown,
    /// Nothing of it is stored.
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
    operation: usize,
}

/// What is known of a version that was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    digest: Digest,
    /// Whose it is, once its first encoding was seen.
    attempt: Option<InstanceId>,
}

/// A version that was acknowledged and that nobody may have deleted.
#[derive(Debug, Clone)]
pub struct Live {
    /// Of which key.
    pub key: usize,
    /// The record of the newest receipt for it.
    pub acked: SealedInstance,
    /// Its content.
    pub content: Bytes,
}

struct Deletion {
    operation: usize,
    key: usize,
    version: Option<u32>,
    started: Moment,
    ended: Option<Moment>,
    refused: bool,
}

impl Deletion {
    /// Whether it may hide one of these versions, written by an attempt begun at `began`, from a look that ended at `now`.
    fn may_hide(&self, versions: &RangeInclusive<u32>, began: Moment, now: Moment) -> bool {
        !self.refused
            && self.version.is_none_or(|only| versions.contains(&only))
            && self.started < now
            && self.ended.is_none_or(|ended| ended > began)
    }

    /// Nobody waits for it any more. It may still be done, but one of all versions names those that it looked up before: it
    /// hides nothing of an attempt that begins later.
    fn given_up(&mut self, at: Moment) {
        if self.version.is_none() {
            self.ended = Some(at);
        }
    }
}

/// One read as it was asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who asks.
    pub session: Session,
    /// Which key.
    pub key: ObjectKey,
    /// Which version; `None`: the newest.
    pub version: Option<u32>,
    /// Whether the answer must be of now.
    pub linearizable: bool,
    /// When.
    pub started: Moment,
}

/// The history of one run.
#[derive(Default)]
pub struct Model {
    moment: Moment,
    attempts: Vec<Attempt>,
    deletions: Vec<Deletion>,
    versions: BTreeMap<(usize, u32), Seen>,
    /// Versions in other encodings than their attempts made, by instance.
    encodings: BTreeMap<InstanceId, (usize, u32)>,
    recodes: bool,
    history: History,
    /// What went wrong, in order.
    pub violations: Vec<String>,
}

impl Model {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    /// From now on versions may be found in other encodings.
    pub fn expect_other_encodings(&mut self) {
        self.recodes = true;
    }

    /// Notes a violation.
    pub fn violation(&mut self, text: impl Into<String>) {
        self.violations.push(text.into());
    }

    /// All attempts, in the order begun.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    fn begins(&mut self, session: Session, key: String, call: Call, started: Moment) -> usize {
        let number = self.history.operations.len();
        self.history.operations.push(Operation {
            number: number as u64,
            session,
            key,
            call,
            started,
            ended: None,
            answer: Answer::Unknown,
        });
        number
    }

    fn ends(&mut self, operation: usize, answer: Answer) -> Moment {
        let at = self.tick();
        let operation = &mut self.history.operations[operation];
        (operation.ended, operation.answer) = (Some(at), answer);
        at
    }

    /// The client died: nothing more is sent for what it was doing.
    pub fn died(&mut self, session: Session) {
        let at = self.tick();
        let open = |operation: &&mut Operation| operation.session == session && operation.ended.is_none();
        let mut ended = Vec::new();
        for operation in self.history.operations.iter_mut().filter(open) {
            operation.ended = Some(at);
            ended.push(operation.number);
        }
        for deletion in self.deletions.iter_mut().filter(|one| ended.contains(&(one.operation as u64))) {
            deletion.given_up(at);
        }
    }

    /// A read was answered.
    pub fn answered(&mut self, question: Question, seen: Option<&SealedInstance>) {
        let Question { session, key, version, linearizable, started } = question;
        let operation = self.begins(session, key.to_string(), Call::Get { version, linearizable }, started);
        self.ends(
            operation,
            seen.map_or(Answer::Missing, |sealed| Answer::Found {
                version: sealed.version.0,
                content: sealed.seal.digest.to_string(),
            }),
        );
    }

    /// Everything that clients did and were told.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// A write begins; answers its number.
    pub fn begin_put(
        &mut self,
        session: Session,
        (key, name): (usize, &ObjectKey),
        content: Bytes,
        instance: InstanceId,
    ) -> usize {
        let (digest, started) = (Digest::of(&content), self.tick());
        let call = Call::Put {
            attempt: Some(instance.to_string()),
            content: digest.to_string(),
            size_bytes: content.len() as u64,
        };
        let operation = self.begins(session, name.to_string(), call, started);
        self.attempts.push(Attempt { session, key, content, digest, instance, started, fate: Fate::Open, operation });
        self.attempts.len() - 1
    }

    /// Nobody knows what became of a write.
    pub fn put_unknown(&mut self, put: usize) {
        self.ends(self.attempts[put].operation, Answer::Unknown);
    }

    /// A write was acknowledged with this record; `first` is what the reply said.
    pub fn acked(&mut self, put: usize, sealed: &SealedInstance, first: bool) {
        let attempt = self.attempts[put].clone();
        let (version, whose) = (sealed.version.0, sealed.seal.instance.to_string());
        let at = self.ends(attempt.operation, Answer::Stored { version, attempt: whose, first });
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
        if self.versions.values().any(|seen| seen.attempt == Some(instance)) {
            self.violation(format!("attempt {instance} was visible before it was refused"));
        }
        self.attempts[put].fate = Fate::Refused;
        self.ends(self.attempts[put].operation, Answer::Refused);
    }

    /// A write was answered with "it was stored, and is deleted": somebody must have asked for that.
    pub fn put_deleted(&mut self, put: usize) {
        let now = self.ends(self.attempts[put].operation, Answer::Unknown);
        let (key, instance, began) = (self.attempts[put].key, self.attempts[put].instance, self.attempts[put].started);
        let seen = self.versions.iter().find(|((of, _), seen)| *of == key && seen.attempt == Some(instance));
        let versions = seen.map_or(1..=u32::MAX, |((_, version), _)| *version..=*version);
        let asked = self.deletions.iter().any(|one| one.key == key && one.may_hide(&versions, began, now));
        if !asked {
            self.violation(format!("attempt {instance} was told to be deleted, which nobody had asked for"));
        }
        self.attempts[put].fate = Fate::Gone;
    }

    /// A client was told this of all these attempts at one write together.
    pub fn concluded(&mut self, puts: &[usize], told: Conclusion) {
        let open = |put: &&usize| matches!(self.attempts[**put].fate, Fate::Open);
        let in_doubt = puts.iter().find(open).map(|put| self.attempts[*put].instance);
        let acked = puts.last().is_some_and(|put| matches!(self.attempts[*put].fate, Fate::Acked { .. }));
        match (told, in_doubt) {
            (Conclusion::Refused, Some(instance)) => {
                self.violation(format!("attempt {instance} is in doubt, and its write was told to be refused"));
            }
            (Conclusion::Unknown, None) => self.violation("a write was told to be in doubt, none of whose attempts is"),
            (Conclusion::Acked, _) if !acked => self.violation("a write was acknowledged whose last attempt was not"),
            (Conclusion::Unknown | Conclusion::Refused, _) if acked => {
                self.violation("a write was told to have failed whose last attempt was acknowledged");
            }
            _ => {}
        }
    }

    /// A delete begins; answers its number.
    pub fn begin_delete(&mut self, session: Session, (key, name): (usize, &ObjectKey), version: Option<u32>) -> usize {
        let started = self.tick();
        let operation = self.begins(session, name.to_string(), Call::Delete { version }, started);
        self.deletions.push(Deletion { operation, key, version, started, ended: None, refused: false });
        self.deletions.len() - 1
    }

    /// A delete was acknowledged for these versions; `None`: there was nothing to delete.
    pub fn deleted(&mut self, delete: usize, versions: Option<Vec<u32>>) {
        let answer = versions.map_or(Answer::Missing, |versions| Answer::Deleted { versions });
        let at = self.ends(self.deletions[delete].operation, answer);
        self.deletions[delete].ended = Some(at);
    }

    /// Nobody knows what became of a delete.
    pub fn delete_unknown(&mut self, delete: usize) {
        let at = self.ends(self.deletions[delete].operation, Answer::Unknown);
        self.deletions[delete].given_up(at);
    }

    /// A delete was answered with "nothing was done".
    pub fn delete_refused(&mut self, delete: usize) {
        self.ends(self.deletions[delete].operation, Answer::Refused);
        self.deletions[delete].refused = true;
    }

    /// A record was seen under `key`: it must be some attempt's, always the same one's, or another encoding of it. Answers the
    /// number of an attempt with its content.
    pub fn observe(&mut self, key: usize, sealed: &SealedInstance) -> Option<usize> {
        let instance = sealed.seal.instance;
        match self.attempts.iter().position(|attempt| attempt.instance == instance) {
            Some(at) => {
                self.observe_attempt(at, key, sealed);
                Some(at)
            }
            None => self.observe_encoding(key, sealed),
        }
    }

    fn observe_attempt(&mut self, at: usize, key: usize, sealed: &SealedInstance) {
        let (instance, version) = (sealed.seal.instance, sealed.version.0);
        let attempt = &self.attempts[at];
        let mut wrong = Vec::new();
        if attempt.key != key || attempt.digest != sealed.seal.digest {
            wrong.push(format!("attempt {instance} appears under another key or digest"));
        }
        if matches!(attempt.fate, Fate::Refused) {
            wrong.push(format!("attempt {instance} was refused and is visible as version {version} of key {key}"));
        }
        let seen = self.versions.entry((key, version)).or_insert(Seen { digest: attempt.digest, attempt: None });
        if *seen.attempt.get_or_insert(instance) != instance || seen.digest != attempt.digest {
            let other = seen.attempt.map_or_else(|| "another encoding".to_owned(), |other| other.to_string());
            wrong.push(format!("version {version} of key {key} was {other} and is {instance}"));
        }
        let other = |((_, known), seen): &(&(usize, u32), &Seen)| seen.attempt == Some(instance) && *known != version;
        if let Some(((_, known), _)) = self.versions.iter().find(other) {
            wrong.push(format!("attempt {instance} is version {known} and version {version} of key {key}"));
        }
        wrong.into_iter().for_each(|text| self.violation(text));
    }

    /// A record that is nobody's attempt: the version's content again, which some attempt wrote that was not refused.
    fn observe_encoding(&mut self, key: usize, sealed: &SealedInstance) -> Option<usize> {
        let (instance, version, digest) = (sealed.seal.instance, sealed.version.0, sealed.seal.digest);
        if !self.recodes {
            self.violation(format!("version {version} of key {key} is of attempt {instance}, which nobody made"));
            return None;
        }
        if *self.encodings.entry(instance).or_insert((key, version)) != (key, version) {
            self.violation(format!(
                "encoding {instance} is of two versions, one of them version {version} of key {key}"
            ));
        }
        let seen = *self.versions.entry((key, version)).or_insert(Seen { digest, attempt: None });
        if seen.digest != digest {
            self.violation(format!("version {version} of key {key} has other content in encoding {instance}"));
            return None;
        }
        let elsewhere = |attempt: &Attempt| {
            let of =
                |(at, seen): (&(usize, u32), &Seen)| seen.attempt == Some(attempt.instance) && *at != (key, version);
            self.versions.iter().any(of)
        };
        let wrote = |attempt: &Attempt| {
            let its = seen.attempt.is_none_or(|known| known == attempt.instance) && !elsewhere(attempt);
            its && attempt.key == key && attempt.digest == digest && !matches!(attempt.fate, Fate::Refused)
        };
        let at = self.attempts.iter().position(wrote);
        if at.is_none() {
            self.violation(format!("version {version} of key {key} is encoding {instance} of what nobody wrote"));
        }
        at
    }

    /// A read of a visible version that asked for these bytes, as many of them as there are, gave those.
    pub fn observe_bytes(&mut self, key: usize, sealed: &SealedInstance, asked: Range<u64>, bytes: &[u8]) {
        let Some(at) = self.observe(key, sealed) else { return };
        let content = &self.attempts[at].content;
        let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        let expected = &content[within(asked.start)..within(asked.end)];
        if expected.len() != bytes.len() {
            let (version, got, due) = (sealed.version, bytes.len(), expected.len());
            self.violation(format!("a read of {asked:?} of version {version} of key {key} gave {got} of {due} bytes"));
        } else if expected != bytes {
            self.violation(format!("version {} of key {key} read other bytes than were written", sealed.version));
        }
    }

    /// A read was told that `key` ends before `offset`: some version of it that may be there must.
    pub fn ends_before(&mut self, key: usize, offset: u64) {
        let short = |attempt: &Attempt| {
            let refused = matches!(attempt.fate, Fate::Refused);
            attempt.key == key && !refused && (attempt.content.len() as u64) < offset
        };
        if !self.attempts.iter().any(short) {
            self.violation(format!("a read from byte {offset} of key {key} was told that there are fewer"));
        }
    }

    /// Whether some delete may hide `version` of `key`, written by an attempt begun at `began`, from a look that ended at `now`.
    fn may_be_deleted(&self, key: usize, version: u32, began: Moment, now: Moment) -> bool {
        let hides = |one: &Deletion| one.key == key && one.may_hide(&(version..=version), began, now);
        self.deletions.iter().any(hides)
    }

    /// Whether some delete may have hidden this record by now.
    pub fn may_be_gone(&mut self, key: usize, sealed: &SealedInstance) -> bool {
        let now = self.tick();
        let began = self.began(key, sealed);
        self.may_be_deleted(key, sealed.version.0, began, now)
    }

    /// When the attempt began that made this record's version; of another encoding: the first one that can have made it.
    fn began(&self, key: usize, sealed: &SealedInstance) -> Moment {
        let instance = sealed.seal.instance;
        if let Some(attempt) = self.attempts.iter().find(|attempt| attempt.instance == instance) {
            return attempt.started;
        }
        let same = |attempt: &&Attempt| attempt.key == key && attempt.digest == sealed.seal.digest;
        self.attempts.iter().filter(same).map(|attempt| attempt.started).min().unwrap_or(Moment::MAX)
    }

    /// Every acknowledged version that nobody may have deleted, each once.
    pub fn must_live(&self) -> Vec<Live> {
        let mut live = BTreeMap::new();
        for attempt in &self.attempts {
            let Fate::Acked { sealed, .. } = &attempt.fate else { continue };
            let began = self.began(attempt.key, sealed).min(attempt.started);
            if !self.may_be_deleted(attempt.key, sealed.version.0, began, Moment::MAX) {
                let (key, acked, content) = (attempt.key, (**sealed).clone(), attempt.content.clone());
                live.insert((key, sealed.version.0), Live { key, acked, content });
            }
        }
        live.into_values().collect()
    }

    /// Highest version of `key` ever seen.
    pub fn newest_seen(&self, key: usize) -> u32 {
        self.versions.keys().filter(|(known, _)| *known == key).map(|(_, version)| *version).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
