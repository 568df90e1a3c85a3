//! Whether what is said to be unreadable is only what promised less.
//!
//! **Invariants.** Every read is in the history that is judged, and no service to anybody.

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use pacsvault_client::Client;
use pacsvault_coordinator::GetQuery;
use pacsvault_core::ids::{ObjectKey, VersionNumber};
use pacsvault_judge::{Answer, Call};
use pacsvault_ports::peer::Freshness;

use super::Runner;
use crate::{history::Recorder, load::read};

/// Most versions that are read.
const READ_MAX: usize = 300;
/// Versions read at once.
const READS_AT_ONCE: usize = 6;
/// Times that a read is tried: an election may come between.
const TRIES: usize = 4;
/// Session of these reads; far from those of the load.
const SESSION: u64 = 2_000_000;

impl Runner<'_> {
    /// When the cluster says that something cannot be read now: reads versions that were acknowledged at their full contract, through
    /// a site that is reached.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(super) fn readable(&mut self, what: &str) -> anyhow::Result<()> {
        let bytes = self.eyes.last().unreadable.unwrap_or(0);
        let reached = self.reached();
        let client = self.readers.iter().find(|reader| {
            let site = reader.config().site.as_ref();
            site.is_some_and(|site| reached.contains(site.as_str()))
        });
        let Some(client) = client.filter(|_| bytes > 0) else { return Ok(()) };
        let (recorder, versions) = (&*self.recorder, self.recorder.full(READ_MAX));
        let reads = stream::iter(&versions).map(|(key, version)| one(client, recorder, key, *version));
        let found: Vec<anyhow::Result<()>> = self.eyes.wait(reads.buffer_unordered(READS_AT_ONCE).collect());
        let (count, wrong) = (found.len(), found.into_iter().find_map(Result::err));
        self.say(&format!("{bytes} bytes cannot be read; {count} versions at full contract were tried"));
        wrong.map_or(Ok(()), |why| Err(why.context(format!("though its contract survives: {what}"))))
    }
}

async fn one(client: &Client, recorder: &Recorder, key: &str, version: u32) -> anyhow::Result<()> {
    let name: ObjectKey = key.parse().with_context(|| format!("{key} is no key"))?;
    for _ in 0..TRIES {
        let number = recorder.begin(SESSION, key, Call::Get { version: Some(version), linearizable: true });
        let (version, freshness) = (Some(VersionNumber(version)), Freshness::Linearizable);
        let query = GetQuery { version, freshness, ..GetQuery::whole(name.clone()) };
        let (answer, bytes) = read(client, recorder, query, None).await;
        recorder.end(number, answer.clone(), bytes);
        if answer != Answer::Unknown {
            // Whether it is the right one is for the judge.
            return Ok(());
        }
    }
    bail!("{key} version {version}, acknowledged at its full contract, cannot be read")
}
