//! What the answers about one object say outright: which attempt made which version, and what contradicts that.
//!
//! Every write gets the next version number in the order of the log and every answer names the version it is about. So most of
//! a history needs no search: this room finds for each version the attempt that made it, or the few that can have made it.
//!
//! **Invariants.** A version is one content and one attempt, for ever; an attempt makes at most one version; a refused one
//! makes none. Nothing is seen before the attempt that made it began.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    history::{Answer, Call, Operation, short},
    violation::{Kind, Violation},
};

/// Position of an operation in [`Facts::operations`].
pub(crate) type At = usize;
/// Position in [`Facts::groups`].
pub(crate) type GroupAt = usize;
/// The group of attempts whose content nobody saw without knowing whose it was.
pub(crate) const FREE: GroupAt = 0;

/// Who made a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// This put.
    Put(At),
    /// One of the puts of this group.
    Group(GroupAt),
}

/// All that is known of one object before any search.
pub(crate) struct Facts<'a> {
    /// Its name.
    pub(crate) key: &'a str,
    /// In the order begun.
    pub(crate) operations: Vec<&'a Operation>,
    /// Of each version that somebody told of with its content. Other versions up to `highest` are of some unknown put.
    pub(crate) makers: BTreeMap<u32, Maker>,
    /// The newest version that any answer names.
    pub(crate) highest: u32,
    /// Puts that may have made a version, and which is not known: of one content each, the first of any other content.
    pub(crate) groups: Vec<Vec<At>>,
    /// What is wrong already.
    pub(crate) violations: Vec<Violation>,
    contents: BTreeMap<u32, (&'a str, At)>,
    /// Puts that were answered with a record under an id that is nobody's attempt, as far as is known.
    recoded: BTreeSet<At>,
}

/// Which key and put an attempt is, over the whole history.
pub(crate) type Attempts<'a> = BTreeMap<&'a str, &'a Operation>;

/// Names all attempts. A name that a caller gave is its own, whatever others were told of theirs; else the first has it.
pub(crate) fn attempts(operations: &[Operation]) -> Attempts<'_> {
    let (given, told): (Vec<_>, Vec<_>) =
        operations.iter().partition(|one| matches!(one.call, Call::Put { attempt: Some(_), .. }));
    let mut attempts = Attempts::new();
    for operation in given.into_iter().chain(told) {
        if let Some(attempt) = operation.attempt() {
            attempts.entry(attempt).or_insert(operation);
        }
    }
    attempts
}

fn content_of(operation: &Operation) -> Option<&str> {
    match &operation.call {
        Call::Put { content, .. } => Some(content),
        Call::Get { .. } | Call::Delete { .. } => None,
    }
}

impl<'a> Facts<'a> {
    /// Gathers what is known of `key`.
    pub(crate) fn new(key: &'a str, mut operations: Vec<&'a Operation>, attempts: &Attempts<'a>) -> Self {
        operations.sort_by_key(|operation| (operation.started, operation.number));
        let mut facts = Self {
            key,
            operations,
            makers: BTreeMap::new(),
            highest: 0,
            groups: vec![Vec::new()],
            violations: Vec::new(),
            contents: BTreeMap::new(),
            recoded: BTreeSet::new(),
        };
        facts.receipts(attempts);
        facts.found();
        facts.group();
        facts.numbers();
        facts.future();
        facts.deleted_twice();
        facts
    }

    fn wrong(&mut self, kind: Kind, what: String, concerned: &[At]) {
        let operations: Vec<&Operation> = concerned.iter().map(|at| self.operations[*at]).collect();
        self.violations.push(Violation::new(kind, self.key, what, operations));
    }

    /// Who made the version: the put that it is known of.
    pub(crate) fn put_of(&self, version: u32) -> Option<&'a Operation> {
        match self.makers.get(&version)? {
            Maker::Put(at) => Some(self.operations[*at]),
            Maker::Group(_) => None,
        }
    }

    /// Before this moment nobody can have made the version.
    pub(crate) fn began(&self, version: u32) -> u64 {
        let first = |group: &Vec<At>| group.iter().map(|at| self.operations[*at].started).min();
        match self.makers.get(&version) {
            Some(Maker::Put(at)) => self.operations[*at].started,
            Some(Maker::Group(group)) => first(&self.groups[*group]).unwrap_or(0),
            None => self.groups.iter().filter_map(first).min().unwrap_or(0),
        }
    }

    /// What was told to puts: whose record it is, and of which version.
    fn receipts(&mut self, attempts: &Attempts<'a>) {
        let places: BTreeMap<u64, At> = self.operations.iter().zip(0..).map(|(one, at)| (one.number, at)).collect();
        let mut versions: BTreeMap<At, (u32, At)> = BTreeMap::new();
        let mut of_nobody: BTreeMap<&str, (u32, At)> = BTreeMap::new();
        for at in 0..self.operations.len() {
            let operation = self.operations[at];
            let (Answer::Stored { version, attempt, first }, Call::Put { content, .. }) =
                (&operation.answer, &operation.call)
            else {
                continue;
            };
            self.highest = self.highest.max(*version);
            self.saw(*version, content, at);
            let maker = attempts.get(attempt.as_str());
            if *first && maker.is_none_or(|maker| maker.number != operation.number) {
                self.wrong(Kind::WrongRecord, format!("a put was told to be first with attempt {attempt}"), &[at]);
            }
            let Some(maker) = maker else {
                // The version was stored in another encoding since, under an id of its own; or a node made the attempt, and
                // told nobody its id.
                self.recoded.insert(at);
                let (other, before) = *of_nobody.entry(attempt.as_str()).or_insert((*version, at));
                if other != *version {
                    let what = format!("attempt {attempt} was told to be version {other} and version {version}");
                    self.wrong(Kind::TwoOutcomes, what, &[at, before]);
                }
                continue;
            };
            let Some(made) = places.get(&maker.number).copied() else {
                let what = format!("a put on {} was answered with a record of {}", self.key, maker.key);
                self.violations.push(Violation::new(Kind::WrongRecord, self.key, what, [operation, *maker]));
                continue;
            };
            self.receipt(at, *version, made, &mut versions);
        }
    }

    /// The put at `at` was told that `version` is of the put at `made`.
    fn receipt(&mut self, at: At, version: u32, made: At, versions: &mut BTreeMap<At, (u32, At)>) {
        let maker = self.operations[made];
        if content_of(maker) != content_of(self.operations[at]) {
            self.wrong(Kind::WrongRecord, "a put was answered with a record of other content".to_owned(), &[at, made]);
        }
        if maker.answer == Answer::Refused {
            let what = format!("version {version} is of an attempt that was told to be refused");
            self.wrong(Kind::RefusedSeen, what, &[at, made]);
        }
        match self.makers.insert(version, Maker::Put(made)) {
            Some(Maker::Put(other)) if other != made => {
                let what = format!("version {version} was told to be of two attempts");
                self.wrong(Kind::VersionReused, what, &[at, made, other]);
            }
            _ => {}
        }
        match versions.insert(made, (version, at)) {
            Some((other, before)) if other != version => {
                let what = format!("one attempt was told to be version {other} and version {version}");
                self.wrong(Kind::TwoOutcomes, what, &[at, made, before]);
            }
            _ => {}
        }
    }

    fn saw(&mut self, version: u32, content: &'a str, at: At) {
        let (known, before) = *self.contents.entry(version).or_insert((content, at));
        if known != content {
            let what = format!("version {version} was {} and {}", short(known), short(content));
            self.wrong(Kind::VersionReused, what, &[before, at]);
        }
    }

    fn found(&mut self) {
        for at in 0..self.operations.len() {
            match &self.operations[at].answer {
                Answer::Found { version, content } => {
                    self.highest = self.highest.max(*version);
                    self.saw(*version, content, at);
                }
                Answer::Deleted { versions } => {
                    let named = versions.last().copied().max(match self.operations[at].call {
                        Call::Delete { version } => version,
                        Call::Put { .. } | Call::Get { .. } => None,
                    });
                    self.highest = self.highest.max(named.unwrap_or(0));
                }
                Answer::Stored { .. } | Answer::Missing | Answer::Refused | Answer::Unknown => {}
            }
        }
    }

    /// Finds for each version that was seen, and not told whose it is, the puts that can have made it.
    fn group(&mut self) {
        let pinned: BTreeSet<At> = self.makers.values().filter_map(|maker| put_at(*maker)).collect();
        let mut open: BTreeMap<&str, Vec<At>> = BTreeMap::new();
        for (at, operation) in self.operations.iter().enumerate().filter(|(at, _)| !pinned.contains(at)) {
            // Who was answered with a record in another encoding may have made that version itself.
            let may = operation.answer == Answer::Unknown || self.recoded.contains(&at);
            if let Some(content) = content_of(operation).filter(|_| may) {
                open.entry(content).or_default().push(at);
            }
        }
        let mut seen: BTreeMap<&str, Vec<(u32, At)>> = BTreeMap::new();
        for (version, (content, at)) in &self.contents {
            if !self.makers.contains_key(version) {
                seen.entry(content).or_default().push((*version, *at));
            }
        }
        for (content, versions) in seen {
            let puts = open.remove(content).unwrap_or_default();
            if puts.len() < versions.len() {
                self.nobodys(content, &versions, &puts);
            }
            self.groups.push(puts);
            let group = Maker::Group(self.groups.len() - 1);
            self.makers.extend(versions.into_iter().map(|(version, _)| (version, group)));
        }
        let unknown = |at: &At| self.operations[*at].answer == Answer::Unknown;
        let mut free: Vec<At> = open.into_values().flatten().filter(unknown).collect();
        free.sort_unstable();
        self.groups[FREE] = free;
    }

    /// More versions of this content were seen than attempts can have made.
    fn nobodys(&mut self, content: &str, versions: &[(u32, At)], puts: &[At]) {
        let (version, seen) = versions[puts.len()];
        let with = |answer: fn(&Answer) -> bool| {
            let fits = |operation: &&Operation| content_of(operation) == Some(content) && answer(&operation.answer);
            (0..self.operations.len()).filter(|at| fits(&self.operations[*at])).collect::<Vec<_>>()
        };
        let refused = with(|answer| *answer == Answer::Refused);
        let told = with(|answer| matches!(answer, Answer::Stored { .. } | Answer::Unknown));
        let (kind, what, others) = if !refused.is_empty() {
            (Kind::RefusedSeen, "is of an attempt that was told to be refused", refused)
        } else if !told.is_empty() {
            (Kind::TwoOutcomes, "is of an attempt that made another version", told)
        } else {
            (Kind::InventedContent, "has content that nobody wrote there", Vec::new())
        };
        let concerned: Vec<At> = others.into_iter().chain([seen]).chain(versions.iter().map(|(_, at)| *at)).collect();
        self.wrong(kind, format!("version {version} {what}"), &concerned);
    }

    /// Versions that nobody saw must be of puts with unknown outcome.
    fn numbers(&mut self) {
        let named = self.makers.values().filter(|maker| put_at(**maker).is_none()).count();
        let unnamed = usize::try_from(self.highest).unwrap_or(usize::MAX).saturating_sub(self.makers.len());
        let spare = self.groups.iter().map(Vec::len).sum::<usize>().saturating_sub(named);
        if unnamed > spare {
            let who: Vec<At> = (0..self.operations.len()).filter(|at| self.names(*at) == Some(self.highest)).collect();
            let what = format!(
                "version {} was told, {unnamed} versions up to it were never seen, and only {spare} unknown puts can \
                 have made them",
                self.highest
            );
            self.wrong(Kind::VersionOrder, what, &who);
        }
    }

    /// The newest version that the answer of an operation says was there.
    fn names(&self, at: At) -> Option<u32> {
        match &self.operations[at].answer {
            Answer::Stored { version, .. } | Answer::Found { version, .. } => Some(*version),
            Answer::Deleted { versions } => versions.last().copied(),
            Answer::Missing | Answer::Refused | Answer::Unknown => None,
        }
    }

    fn future(&mut self) {
        for at in 0..self.operations.len() {
            let (Some(version), Some(ended)) = (self.names(at), self.operations[at].ended) else { continue };
            if ended < self.began(version) {
                let made: Vec<At> = match self.makers.get(&version) {
                    Some(Maker::Put(made)) => vec![*made],
                    Some(Maker::Group(group)) => self.groups[*group].clone(),
                    None => Vec::new(),
                };
                let concerned: Vec<At> = made.into_iter().chain([at]).collect();
                let what = format!("version {version} was seen before the put that made it began");
                self.wrong(Kind::FromTheFuture, what, &concerned);
            }
        }
    }

    fn deleted_twice(&mut self) {
        let mut by: BTreeMap<u32, At> = BTreeMap::new();
        for at in 0..self.operations.len() {
            let Answer::Deleted { versions } = &self.operations[at].answer else { continue };
            for version in versions {
                if let Some(other) = by.insert(*version, at) {
                    let what = format!("version {version} was told to be there by two deletes");
                    self.wrong(Kind::DeleteDisagrees, what, &[other, at]);
                }
            }
        }
    }
}

fn put_at(maker: Maker) -> Option<At> {
    match maker {
        Maker::Put(at) => Some(at),
        Maker::Group(_) => None,
    }
}
