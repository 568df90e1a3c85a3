//! Histories in a few words.
#![allow(dead_code, reason = "each test file uses its part")]

use pacsvault_judge::{Answer, Call, History, Operation};

/// Writes down operations on one key; their numbers and times are given.
#[derive(Default)]
pub struct Script(pub History);

/// When: began and ended.
pub type Span = (u64, u64);

impl Script {
    pub fn add(&mut self, session: u64, span: (u64, Option<u64>), call: Call, answer: Answer) -> &mut Self {
        let number = self.0.operations.len() as u64 + 1;
        let (started, ended) = span;
        self.0.operations.push(Operation { number, session, key: "k".to_owned(), call, started, ended, answer });
        self
    }

    /// A put whose attempt is named after its content.
    pub fn put(&mut self, session: u64, span: Span, name: &str, answer: Answer) -> &mut Self {
        self.attempt(session, span, name, name, answer)
    }

    pub fn attempt(&mut self, session: u64, span: Span, name: &str, content: &str, answer: Answer) -> &mut Self {
        let call = Call::Put { attempt: Some(name.to_owned()), content: content.to_owned(), size_bytes: 1 };
        self.add(session, (span.0, Some(span.1)), call, answer)
    }

    /// A put whose attempt is a node's.
    pub fn through(&mut self, session: u64, span: Span, content: &str, answer: Answer) -> &mut Self {
        let call = Call::Put { attempt: None, content: content.to_owned(), size_bytes: 1 };
        self.add(session, (span.0, Some(span.1)), call, answer)
    }

    /// A linearizable read of the newest.
    pub fn get(&mut self, session: u64, span: Span, answer: Answer) -> &mut Self {
        self.add(session, (span.0, Some(span.1)), Call::Get { version: None, linearizable: true }, answer)
    }

    /// A linearizable read of one version.
    pub fn get_one(&mut self, span: Span, version: u32, answer: Answer) -> &mut Self {
        self.add(9, (span.0, Some(span.1)), Call::Get { version: Some(version), linearizable: true }, answer)
    }

    /// A plain read of the newest.
    pub fn plain(&mut self, session: u64, span: Span, answer: Answer) -> &mut Self {
        self.add(session, (span.0, Some(span.1)), Call::Get { version: None, linearizable: false }, answer)
    }

    pub fn delete(&mut self, session: u64, span: Span, version: Option<u32>, answer: Answer) -> &mut Self {
        self.add(session, (span.0, Some(span.1)), Call::Delete { version }, answer)
    }
}

/// Stored as this version by the attempt of this name.
pub fn stored(version: u32, name: &str) -> Answer {
    Answer::Stored { version, attempt: name.to_owned(), first: true }
}

/// Answered with what was stored before.
pub fn stored_before(version: u32, name: &str) -> Answer {
    Answer::Stored { version, attempt: name.to_owned(), first: false }
}

pub fn found(version: u32, content: &str) -> Answer {
    Answer::Found { version, content: content.to_owned() }
}

pub fn deleted(versions: &[u32]) -> Answer {
    Answer::Deleted { versions: versions.to_vec() }
}
