//! The scrub: reads every shard of a volume within a deadline, proves it, and hands what fails to repair.
//!
//! **How.** One pass after the other over the ids in order. Its pace spreads the bytes over four fifths of the deadline, so that
//! there is time to catch up; small volumes are done sooner. While clients ask it waits, as long as it is not behind. What it
//! knows is saved every half minute as a note of the volume ([`crate::scrub_note`]) and goes on after a restart from there.
//!
//! **Invariants.** The device is read, past every cache. A shard that is sound by itself must also lead to the root that the
//! catalog has for its stripe. Nothing is said to be verified that was not; at most half a minute's work is done twice.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use pacsvault_core::{
    catalog::query,
    ids::{VolumeId, WallMillis},
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::{
    crash,
    env::blocking,
    peer::{Fault, ShardProof},
};
use pacsvault_volume::Error;

use crate::{
    damage::{belongs, stopping, unreadable},
    scrub_note::{Census, History, Pass},
    upkeep::{Kept, Upkeep},
};

/// Name of the note.
const NOTE: &str = "scrub";
/// Ids taken from the index at once.
const PAGE_SHARDS: usize = 128;
/// Ids counted at once.
const CENSUS_PAGE: usize = 10_000;
/// How often what is known is saved.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// How often ages are counted, for each 100 000 shards.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// Marks in a pass that takes all its time: ages are known to within 40 minutes of 14 days.
const MARKS: u32 = 400;
/// Share of the deadline in which a pass is meant to be done: four of five parts.
const WITHIN_PARTS: (u32, u32) = (4, 5);
/// Least and most bytes per second of a pass that nobody waits for: 2 TiB in eleven days; what a busy disk can spare.
const RATE_MIN: u64 = 2 << 20;
const RATE_MAX: u64 = 128 << 20;
/// Bytes per second of a pass that an operator waits for, without and with clients.
const RATE_HURRIED: u64 = 1 << 30;
const RATE_HURRIED_BUSY: u64 = 64 << 20;
/// Pause while clients ask.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// A pause that is worth sleeping for.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest sleep between two looks at whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A record's header, its paths and its padding: what a shard costs besides its bytes.
const RECORD_BYTES: u64 = 1 << 10;

/// What the loop of one volume carries along.
struct Scrub<'a> {
    upkeep: &'a Upkeep,
    kept: &'a Kept,
    id: VolumeId,
    history: History,
    saved: Duration,
    counted: Option<Duration>,
    /// Time that was not slept yet.
    owed: Duration,
}

/// What the present pass has done.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    began: WallMillis,
    hurried: bool,
    bytes: u64,
}

/// What a page came to.
enum Step {
    /// Go on.
    More,
    /// Nothing to do for so long.
    Rest(Duration),
}

impl Upkeep {
    /// Verifies a volume over and over, for ever.
    pub(crate) async fn keep_scrubbing(self: Arc<Self>, id: VolumeId) {
        let Some(kept) = self.kept.get(&id) else { return };
        let now = self.env.wall();
        let note = kept.volume.load_note(NOTE).await.ok().flatten();
        let history = note.and_then(|bytes| History::decode(&bytes)).map(|history| history.believed(now));
        let fresh = history.is_none();
        let history = history.unwrap_or_else(|| History::new(now));
        let saved = self.env.now().0;
        let mut scrub = Scrub { upkeep: &self, kept, id, history, saved, counted: None, owed: Duration::ZERO };
        if fresh {
            // From now on the times at which shards are written count.
            scrub.save().await;
        }
        loop {
            match scrub.step().await {
                Ok(Step::More) => {}
                Ok(Step::Rest(most)) => self.rest(kept, most).await,
                Err(fault) => {
                    tracing::debug!(volume = %id, code = fault.code, %fault, "scrub put off");
                    self.rest(kept, LOOK_EVERY).await;
                }
            }
        }
    }
}

impl Scrub<'_> {
    fn wall(&self) -> WallMillis {
        self.upkeep.env.wall()
    }

    async fn step(&mut self) -> Result<Step, Fault> {
        self.count_when_due().await?;
        if !self.upkeep.sound(self.id) {
            return Ok(Step::Rest(LOOK_EVERY));
        }
        if let Some(rest) = self.begin_when_due() {
            return Ok(Step::Rest(rest));
        }
        let page = self.kept.volume.list(self.history.cursor(), PAGE_SHARDS).await.map_err(Fault::from)?;
        if page.is_empty() {
            // What only the next start would read.
            self.kept.volume.mend_guides().await.map_err(Fault::from)?;
            self.history.finish();
            self.save().await;
            self.counted = None;
            self.kept.age().hurried = *self.kept.wanted();
            tracing::info!(volume = %self.id, bytes = self.progress().bytes, "all shards verified");
            return Ok(Step::More);
        }
        for shard in page {
            if *self.kept.wanted() {
                break;
            }
            self.wait_for_clients().await;
            let bytes = self.verify(shard).await?;
            self.history.advance(shard, bytes);
            self.pay(bytes).await;
            if self.upkeep.env.now().0.saturating_sub(self.saved) >= SAVE_EVERY {
                self.save().await;
            }
        }
        Ok(Step::More)
    }

    fn progress(&self) -> Progress {
        let of = |pass: &Pass| Progress { began: pass.began, hurried: pass.hurried, bytes: pass.bytes };
        self.history.present().map(of).unwrap_or_default()
    }

    /// In which time a pass is meant to be done.
    fn within(&self) -> Duration {
        self.upkeep.pace.scrub_within / WITHIN_PARTS.1 * WITHIN_PARTS.0
    }

    /// Begins a pass if it is time to; otherwise, and if none is under way, says how long that takes.
    fn begin_when_due(&mut self) -> Option<Duration> {
        let now = self.wall();
        if std::mem::take(&mut *self.kept.wanted()) {
            self.history.begin(now, true);
            self.kept.age().hurried = true;
            return None;
        }
        let Some(present) = self.history.present() else {
            self.history.begin(now, false);
            return None;
        };
        if !present.complete {
            self.kept.age().hurried = present.hurried;
            return None;
        }
        let left = present.rest(now, self.within());
        if left.is_none() {
            self.history.begin(now, false);
        }
        left.map(|left| left.min(LOOK_EVERY))
    }

    /// Proves one shard; its bytes on the device.
    async fn verify(&mut self, shard: ShardId) -> Result<u64, Fault> {
        let (proof, bytes) = match self.kept.volume.verify(shard).await {
            Ok(verified) => (ShardProof::Sound(verified.root), record_bytes(&verified.header)),
            // Deleted or moved away since it was listed; reconciliation knows if that is wrong.
            Err(Error::NotFound { .. }) => return Ok(0),
            Err(error @ (Error::Corrupt { .. } | Error::Read { .. })) => {
                (ShardProof::Damaged(Fault::from(error).message), RECORD_BYTES)
            }
            Err(error) => return Err(error.into()),
        };
        let view = self.upkeep.replica.view();
        // A replica that lags knows less, but nothing else: the root of a stripe never changes.
        let look = move || query::by_instance(view.as_ref(), shard.instance);
        let sealed = blocking(self.upkeep.env.as_ref(), look).await.ok_or_else(stopping)?;
        let sealed = sealed.map_err(|error| unreadable(&error))?;
        let sound = match (&sealed, &proof) {
            (Some(sealed), proof) => belongs(sealed, shard, proof),
            (None, ShardProof::Sound(_)) => true,
            (None, ShardProof::Missing | ShardProof::Damaged(_)) => false,
        };
        // PLANTED BUG: nobody looks at what was read.
        let sound = sound || pacsvault_core::probe::planted("scrub-sleeps");
        if !sound {
            pacsvault_core::sometimes!("recovery: scrub found damage");
            tracing::warn!(volume = %self.id, %shard, ?proof, "scrub found a shard that is not what it should be");
            self.upkeep.suspect(self.id, shard);
        }
        self.kept.age().verified += 1;
        let label = self.id.to_string();
        counter!("pacsvault_scrub_verified_shards_total", "volume" => label.clone()).increment(1);
        counter!("pacsvault_scrub_verified_bytes_total", "volume" => label).increment(bytes);
        Ok(bytes)
    }

    /// Bytes that should be done by now, and bytes per second to be done in time.
    fn schedule(&self) -> (u64, u64) {
        let pass = self.progress();
        let total = self.kept.volume.status().used_bytes.max(pass.bytes);
        let (within, passed) = (self.within(), since(pass.began, self.wall()));
        let due = u128::from(total) * passed.min(within).as_millis() / within.as_millis().max(1);
        let left = within.saturating_sub(passed).as_secs().max(1);
        (u64::try_from(due).unwrap_or(u64::MAX), (total - pass.bytes) / left)
    }

    /// Leaves the disk to clients, as long as the pass is in time.
    async fn wait_for_clients(&self) {
        while self.upkeep.busy() && !self.progress().hurried && !*self.kept.wanted() {
            if self.progress().bytes < self.schedule().0 {
                return;
            }
            self.upkeep.env.sleep(BUSY_PAUSE).await;
        }
    }

    /// Sleeps as long as `bytes` may take.
    async fn pay(&mut self, bytes: u64) {
        let rate = match (self.progress().hurried, self.upkeep.busy()) {
            (true, false) => RATE_HURRIED,
            (true, true) => RATE_HURRIED_BUSY,
            (false, _) => self.schedule().1.clamp(RATE_MIN, RATE_MAX),
        };
        self.owed += Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        if self.owed >= PAUSE_MIN {
            let pause = std::mem::take(&mut self.owed).min(LOOK_EVERY);
            self.upkeep.rest(self.kept, pause).await;
        }
    }

    /// Saves what is known, with a mark for what comes.
    async fn save(&mut self) {
        self.saved = self.upkeep.env.now().0;
        let apart = u64::try_from((self.within() / MARKS).as_millis()).unwrap_or(u64::MAX);
        self.history.mark(self.wall(), apart);
        // CRASH(healing.scrub.1): the note before is there, or this one: what was verified since is verified again.
        crash::point("healing.scrub.1");
        if let Err(error) = self.kept.volume.save_note(NOTE, self.history.encode()).await {
            tracing::warn!(volume = %self.id, %error, "the place of the scrub cannot be saved");
        }
    }

    /// Counts shards by age: the index alone is read.
    async fn count_when_due(&mut self) -> Result<(), Fault> {
        let now = self.upkeep.env.now().0;
        let shards = self.kept.volume.status().shards;
        let every = COUNT_EVERY * u32::try_from(1 + shards / 100_000).unwrap_or(u32::MAX);
        if self.counted.is_some_and(|counted| now.saturating_sub(counted) < every) {
            return Ok(());
        }
        let (wall, mut census, mut after) = (self.wall(), Census::default(), None);
        loop {
            let page = self.kept.volume.list(after, CENSUS_PAGE).await.map_err(Fault::from)?;
            page.iter().for_each(|shard| census.count(&self.history, *shard, wall));
            after = page.last().copied();
            if page.len() < CENSUS_PAGE {
                break;
            }
        }
        self.counted = Some(now);
        let mut age = self.kept.age();
        census.tell(&mut age);
        let oldest = age.oldest.map_or(0, |oldest| wall.0.saturating_sub(oldest.0) / 1_000);
        gauge!("pacsvault_scrub_oldest_age_seconds", "volume" => self.id.to_string()).set(oldest as f64);
        Ok(())
    }
}

/// Time passed; none when the clock went back.
fn since(began: WallMillis, now: WallMillis) -> Duration {
    Duration::from_millis(now.0.saturating_sub(began.0))
}

fn record_bytes(header: &ShardHeader) -> u64 {
    header.shard_bytes() + RECORD_BYTES
}
