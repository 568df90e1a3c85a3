//! Re-encoding of studies whose wanted profile was set: in the background, by the node that leads.
//!
//! A round looks at the rows of wanted profiles, counts in the studies that are new among them what is coded otherwise, and
//! re-encodes one page of one study, a few versions at once. Studies take turns. What is done is told by the catalog alone:
//! a study is counted again when its turn ends, and all of them every few minutes, since writers go on in their own profile.
//!
//! **Invariants.** Nothing is stored: a new leader counts again. A version is re-encoded when its profile has another name or
//! another code than the newest version of the wanted one, live older versions too. A contract that alone has changed moves
//! shards, which is repair. It waits for repair, and for clients by the governor; a study that fails waits longer each
//! time and holds up no other. Nothing is begun in a profile whose contract cannot be kept now: each try would leave shards that
//! nothing names. What waits is told with its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use pacsvault_coordinator::Recoded;
use pacsvault_core::{
    catalog::{Error, Rejection, SealedInstance, View, query},
    health::{Cause, repair::Survey},
    ids::{ProfileName, Tenant, Term, Uid},
    layout::{Layout, profile::Code},
};
use pacsvault_ports::{
    BoxFuture,
    env::blocking,
    peer::{Class, Fault},
};

use crate::{
    Healer,
    conductor::{stopping, unreadable},
    governor::Urgency,
    telemetry,
    wanted::{Wanted, read_rows},
};

/// Versions re-encoded at once. Each holds up to six stripes; the worker's coordinator has room to read for both and for all
/// tasks of repair besides, so that none waits there while it holds bytes.
const PARALLEL: usize = 2;
/// Pause between two rounds when nothing is left, and the longest until a new row is seen.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause between two rounds while something is left.
const GO_ON_AFTER: Duration = Duration::from_millis(20);
/// Reading all rows may take this part of the time.
const LOOK_SHARE: u32 = 20;
/// All studies are counted again this often, or as often as volumes are compared with the catalog if that is more often: what
/// was written since is in the writers' profile. A count that takes long is followed by a pause as long, and ends before another
/// one begins: with many studies the last ones are counted as often as the first.
const RECOUNT_EVERY: Duration = Duration::from_secs(180);
/// Studies counted in one round: some 10 ms each when a study has a thousand instances.
const COUNTED_AT_ONCE: usize = 32;
/// Pause of a study after its first failure; doubled with each further one, up to [`DOUBLED_MAX`] times: five minutes.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const DOUBLED_MAX: u32 = 6;
/// Longest wait for repair that concerns nothing below its contract: shards that came late under load are repaired all the
/// time, and would keep re-encoding waiting for ever.
const YIELD_MAX: Duration = Duration::from_secs(60);
/// Studies whose reason is told.
const REASONS_MAX: usize = 8;

/// Names a study.
pub type Study = (Tenant, Uid);

#[derive(Debug, Clone)]
struct Trouble {
    failures: u32,
    not_before: Duration,
    reason: String,
}

/// How far counting all studies has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Count {
    /// It begins at this moment.
    Due(Duration),
    /// Up to this study, since then.
    Going(Option<Study>, Duration),
}

/// What the leader knows of re-encoding; pure, time is an argument.
#[derive(Debug)]
pub struct Book {
    recount_every: Duration,
    wanted: BTreeMap<Study, ProfileName>,
    codes: BTreeMap<ProfileName, Code>,
    count: Count,
    /// To be counted at once: what is wanted changed, or their turn ended.
    uncounted: BTreeSet<Study>,
    /// Profiles whose contract cannot be kept now, and why.
    held: BTreeMap<ProfileName, String>,
    left: BTreeMap<Study, u64>,
    troubled: BTreeMap<Study, Trouble>,
    last: Option<Study>,
}

impl Default for Book {
    fn default() -> Self {
        Self::new(RECOUNT_EVERY)
    }
}

impl Book {
    /// Nothing known yet; everything is to be counted again so often.
    pub fn new(recount_every: Duration) -> Self {
        Self {
            recount_every,
            wanted: BTreeMap::new(),
            codes: BTreeMap::new(),
            count: Count::Due(Duration::ZERO),
            uncounted: BTreeSet::new(),
            held: BTreeMap::new(),
            left: BTreeMap::new(),
            troubled: BTreeMap::new(),
            last: None,
        }
    }

    /// The rows and profiles as they are. What changed is to be counted now, everything when the last count ended long ago.
    pub fn rows(&mut self, now: Duration, rows: BTreeMap<Study, ProfileName>, codes: BTreeMap<ProfileName, Code>) {
        if codes != self.codes {
            self.troubled.clear();
            self.count = Count::Due(now);
        } else if let Count::Going(_, since) = self.count
            && self.counting().next().is_none()
        {
            self.count = Count::Due((since + self.recount_every).max(now + now.saturating_sub(since)));
        }
        let changed = rows.iter().filter(|(study, name)| self.wanted.get(study) != Some(name));
        let changed: Vec<Study> = changed.map(|(study, _)| study.clone()).collect();
        for study in &changed {
            self.troubled.remove(study);
        }
        self.left.retain(|study, _| rows.contains_key(study));
        self.uncounted.retain(|study| rows.contains_key(study));
        self.troubled.retain(|study, _| rows.contains_key(study));
        match self.count {
            Count::Due(at) if at <= now => self.count = Count::Going(None, now),
            Count::Due(_) | Count::Going(..) => self.uncounted.extend(changed),
        }
        (self.wanted, self.codes) = (rows, codes);
    }

    /// What the count of everything has yet to come to, without what is counted at once.
    fn counting(&self) -> impl Iterator<Item = &Study> {
        let rest = match &self.count {
            Count::Due(_) => None,
            Count::Going(None, _) => Some(Bound::Unbounded),
            Count::Going(Some(study), _) => Some(Bound::Excluded(study)),
        };
        let rest = rest.map(|after| self.wanted.range::<Study, _>((after, Bound::Unbounded)));
        rest.into_iter().flatten().map(|(study, _)| study).filter(|study| !self.uncounted.contains(*study))
    }

    /// Profiles that anything is wanted in.
    pub fn profiles(&self) -> BTreeSet<ProfileName> {
        self.wanted.values().cloned().collect()
    }

    /// Profiles in which nothing is begun for now, and why.
    pub fn hold(&mut self, held: BTreeMap<ProfileName, String>) {
        self.held = held;
    }

    /// Whether nothing is begun in this profile for now.
    pub fn holds(&self, profile: &ProfileName) -> bool {
        self.held.contains_key(profile)
    }

    /// Studies to be counted, at most `limit`, with what they are to have.
    pub fn uncounted(&self, limit: usize) -> Vec<(Study, ProfileName)> {
        let wanted = |study: &Study| Some((study.clone(), self.wanted.get(study)?.clone()));
        self.uncounted.iter().chain(self.counting()).filter_map(wanted).take(limit).collect()
    }

    /// So many versions of the study are coded otherwise.
    pub fn counted(&mut self, study: &Study, left: u64) {
        if !self.uncounted.remove(study)
            && self.counting().next() == Some(study)
            && let Count::Going(upto, _) = &mut self.count
        {
            *upto = Some(study.clone());
        }
        if left > 0 {
            self.left.insert(study.clone(), left);
        } else {
            self.left.remove(study);
            self.troubled.remove(study);
        }
    }

    /// One version of the study was done.
    pub fn done(&mut self, study: &Study) {
        if let Some(left) = self.left.get_mut(study) {
            *left = left.saturating_sub(1);
        }
    }

    /// The study whose turn it is: the next one after the last that has anything left and does not rest.
    pub fn next(&mut self, now: Duration) -> Option<(Study, ProfileName)> {
        let ready = |(study, _): &(&Study, &u64)| {
            !self.uncounted.contains(*study)
                && !self.wanted.get(*study).is_some_and(|profile| self.holds(profile))
                && self.troubled.get(*study).is_none_or(|trouble| trouble.not_before <= now)
        };
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.left.range::<Study, _>((after, Bound::Unbounded)).find(ready);
        let study = next.or_else(|| self.left.iter().find(ready)).map(|(study, _)| study.clone())?;
        let profile = self.wanted.get(&study)?.clone();
        self.last = Some(study.clone());
        Some((study, profile))
    }

    /// The turn of a study ended, at its end or because of a failure.
    pub fn ended(&mut self, study: &Study, now: Duration, failure: Option<String>) {
        if self.wanted.contains_key(study) {
            self.uncounted.insert(study.clone());
        }
        let Some(reason) = failure else {
            self.troubled.remove(study);
            return;
        };
        let failures = self.troubled.get(study).map_or(0, |trouble| trouble.failures).saturating_add(1);
        let not_before = now + RETRY_AFTER * 2_u32.pow((failures - 1).min(DOUBLED_MAX));
        self.troubled.insert(study.clone(), Trouble { failures, not_before, reason });
    }

    /// The code that a profile has now.
    pub fn code(&self, profile: &ProfileName) -> Option<Code> {
        self.codes.get(profile).copied()
    }

    /// Versions known to be left.
    pub fn left(&self) -> u64 {
        self.left.values().sum()
    }

    /// Why studies wait.
    pub fn reasons(&self) -> Vec<String> {
        let mut told: Vec<String> = self
            .troubled
            .iter()
            .take(REASONS_MAX)
            .map(|((tenant, study), trouble)| {
                format!("re-encoding of study {tenant}/{study} waits: {}", trouble.reason)
            })
            .collect();
        for (profile, why) in self.held.iter().take(REASONS_MAX) {
            told.push(format!("re-encoding in profile {profile} waits: {why}"));
        }
        if let Some(more) = self.troubled.len().checked_sub(REASONS_MAX).filter(|more| *more > 0) {
            told.push(format!("re-encoding of {more} more studies waits"));
        }
        told
    }
}

/// A study that is being worked on, page by page.
struct Turn {
    wanted: Wanted,
    token: Vec<u8>,
    failure: Option<String>,
}

/// What only the loop knows.
#[derive(Default)]
struct Bench {
    term: Term,
    book: Book,
    turn: Option<Turn>,
    looked: Option<Duration>,
    look_took: Duration,
    yields_since: Option<Duration>,
}

/// How a round ended.
enum Round {
    /// There is more to do at once.
    More,
    /// Nothing now.
    Rest,
}

/// How one version ended.
enum One {
    Done,
    /// It was another by then.
    Outdated,
    Failed(String),
    /// The contract cannot be kept now: neither for the next ones.
    TooWeak(String),
    /// Not this node's business any more.
    Over,
}

/// Whether repair waits that can be worked on, and whether any of what waits is below its contract. What is lost or set aside
/// stays so until something returns, and must not hold up all else until then.
fn comes_first(survey: &Survey, aside: u64) -> (bool, bool) {
    let waiting = survey.waiting.get(&Cause::Repair).copied().unwrap_or_default();
    // Of stripes that cannot be repaired no bytes wait, of those that a worker gave up they do.
    (waiting.shard_bytes > 0 && waiting.stripes > aside, survey.below_contract.stripes > aside)
}

impl Healer {
    /// Re-encodes for ever, while this node leads.
    pub(crate) async fn keep_recoded(self: Arc<Self>) {
        let mut bench = Bench::default();
        loop {
            let pause = match self.recode_round(&mut bench).await {
                Ok(Round::More) => GO_ON_AFTER,
                Ok(Round::Rest) => LOOK_EVERY,
                Err(fault) => {
                    tracing::warn!(code = fault.code, %fault, "cannot re-encode now");
                    LOOK_EVERY
                }
            };
            self.parts.env.sleep(pause).await;
        }
    }

    /// Why re-encoding waits, for people; only while this node leads.
    pub(crate) fn recode_reasons(&self) -> Vec<String> {
        self.recoding.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell_recoding(&self, book: &Book, yields: bool) {
        let mut reasons = book.reasons();
        if yields && book.left() > 0 {
            reasons.push(format!("re-encoding of {} instances waits for repair", book.left()));
        }
        telemetry::recode_left(book.left());
        *self.recoding.lock().unwrap_or_else(PoisonError::into_inner) = reasons;
    }

    async fn recode_round(self: &Arc<Self>, bench: &mut Bench) -> Result<Round, Fault> {
        let status = self.parts.replica.status();
        let layout = self.parts.replica.layout().filter(|layout| layout.format >= crate::conductor::REPAIRS_FROM);
        let leads = status.leader == Some(status.node) && status.fatal.is_none();
        let Some(layout) = layout.filter(|_| leads) else {
            *bench = Bench::default();
            self.tell_recoding(&bench.book, false);
            return Ok(Round::Rest);
        };
        if bench.term != status.term {
            let book = Book::new(RECOUNT_EVERY.min(self.parts.pace.reconcile_every));
            *bench = Bench { term: status.term, book, ..Bench::default() };
        }
        let now = self.parts.env.now().0;
        if bench.looked.is_none_or(|at| now.saturating_sub(at) >= LOOK_EVERY.max(bench.look_took * LOOK_SHARE)) {
            let rows = self.read_catalog(read_rows).await?;
            bench.look_took = self.parts.env.now().0.saturating_sub(now);
            bench.looked = Some(now);
            let codes = layout.profiles.iter().map(|(name, profile)| (name.clone(), profile.code)).collect();
            bench.book.rows(now, rows, codes);
            bench.book.hold(self.held_profiles(&layout, &bench.book.profiles()));
            let stale = |turn: &Turn| bench.book.code(&turn.wanted.profile) != Some(turn.wanted.code);
            if bench.turn.as_ref().is_some_and(stale) {
                bench.turn = None;
            }
            if let Some(turn) = bench.turn.take_if(|turn| bench.book.holds(&turn.wanted.profile)) {
                bench.book.ended(&turn.wanted.study, now, None);
            }
        }
        self.count_studies(&mut bench.book).await?;
        let yields = self.yields(bench, now);
        self.tell_recoding(&bench.book, yields);
        if yields {
            return Ok(Round::Rest);
        }
        let turn = bench.turn.take().or_else(|| {
            let (study, profile) = bench.book.next(now)?;
            let code = bench.book.code(&profile)?;
            Some(Turn { wanted: Wanted { study, profile, code }, token: Vec::new(), failure: None })
        });
        let Some(turn) = turn else {
            return Ok(if bench.book.uncounted(1).is_empty() { Round::Rest } else { Round::More });
        };
        self.recode_page(bench, turn).await?;
        self.tell_recoding(&bench.book, false);
        Ok(Round::More)
    }

    async fn count_studies(&self, book: &mut Book) -> Result<(), Fault> {
        for (study, profile) in book.uncounted(COUNTED_AT_ONCE) {
            // `apply` refuses to name a profile that is not there, and none is ever taken away.
            let Some(code) = book.code(&profile) else {
                book.counted(&study, 0);
                continue;
            };
            let wanted = Wanted { study: study.clone(), profile, code };
            let left = self.read_catalog(move |view| wanted.count(view)).await?;
            book.counted(&study, left);
        }
        Ok(())
    }

    /// Profiles whose contract cannot be kept on the volumes that take shards now, and why.
    fn held_profiles(&self, layout: &Layout, wanted: &BTreeSet<ProfileName>) -> BTreeMap<ProfileName, String> {
        let judge = |name: &ProfileName| {
            let fault = self.worker.coordinator().could_keep(layout, layout.profiles.get(name)?).err()?;
            Some((name.clone(), format!("{} {fault}", fault.code)))
        };
        wanted.iter().filter_map(judge).collect()
    }

    /// Whether repair comes first now.
    fn yields(&self, bench: &mut Bench, now: Duration) -> bool {
        let judged = self.reign(|reign| {
            let surveyed = reign.surveyed.as_ref()?;
            let (waits, below_contract) = comes_first(&surveyed.survey, surveyed.asides.1);
            Some((waits || reign.desk.repairs_wait(), below_contract))
        });
        let (repair, below_contract) = judged.flatten().unwrap_or((true, true));
        if !repair {
            bench.yields_since = None;
            return false;
        }
        let since = *bench.yields_since.get_or_insert(now);
        let long = now.saturating_sub(since) >= YIELD_MAX;
        if long && !below_contract {
            // One page, and then it waits again.
            bench.yields_since = None;
            return false;
        }
        true
    }

    /// Re-encodes what a page of a study has of other codes.
    async fn recode_page(self: &Arc<Self>, bench: &mut Bench, mut turn: Turn) -> Result<(), Fault> {
        let (wanted, token) = (turn.wanted.clone(), turn.token.clone());
        let page = self.read_catalog(move |view| wanted.page(view, &token)).await?;
        let total = page.found.len();
        let ones = page.found.into_iter().map(|sealed| {
            let (healer, wanted, term) = (self.clone(), turn.wanted.clone(), bench.term);
            async move { healer.recode_one(term, &wanted, &sealed).await }
        });
        let mut running = stream::iter(ones).buffer_unordered(PARALLEL);
        let mut failed = 0;
        while let Some(one) = running.next().await {
            match one {
                One::Done => {
                    telemetry::recoded();
                    bench.book.done(&turn.wanted.study);
                    telemetry::recode_left(bench.book.left());
                }
                One::Outdated => {}
                One::Failed(reason) => {
                    failed += 1;
                    turn.failure.get_or_insert(reason);
                }
                One::TooWeak(reason) => {
                    // What is under way beside would be refused as well, or is found re-encoded by the next count.
                    drop(running);
                    let now = self.parts.env.now().0;
                    bench.book.ended(&turn.wanted.study, now, Some(reason));
                    return Ok(());
                }
                // What was begun is abandoned; the next round, or the next leader, finds it as it was.
                One::Over => return Ok(()),
            }
        }
        drop(running);
        let hopeless = failed > 0 && failed == total;
        turn.token = page.next;
        if turn.token.is_empty() || hopeless {
            let now = self.parts.env.now().0;
            bench.book.ended(&turn.wanted.study, now, turn.failure);
        } else {
            bench.turn = Some(turn);
        }
        Ok(())
    }

    async fn recode_one(self: &Arc<Self>, term: Term, wanted: &Wanted, sealed: &SealedInstance) -> One {
        let (tenant, study) = wanted.study.clone();
        let still = self.read_catalog(move |view| query::study_profile(view, &tenant, &study)).await;
        if !self.leads(term) || !matches!(still, Ok(Some(profile)) if profile == wanted.profile) {
            return One::Over;
        }
        let healer = self.clone();
        let pace = move |bytes| -> BoxFuture<'static, Result<(), Fault>> {
            let healer = healer.clone();
            Box::pin(async move {
                if !healer.leads(term) {
                    return Err(Fault::new(Class::Retry, "PV-NOT-LEADER", "this node leads no longer"));
                }
                healer.worker.pay(Urgency::Patient, bytes).await;
                Ok(())
            })
        };
        let recoded = self.worker.coordinator().recode_paced(sealed, &wanted.profile, &pace).await;
        let of = format!("version {} of {}", sealed.version, sealed.seal.key);
        match recoded {
            Ok(Recoded::Replaced(new)) => {
                tracing::debug!(what = of, from = %sealed.seal.instance, to = %new.seal.instance, "re-encoded");
                One::Done
            }
            Ok(Recoded::Refused(why)) => {
                tracing::info!(what = of, %why, "the log refused a re-encoding");
                let text = format!("{of}: {why}");
                if matches!(why, Rejection::TooWeak { .. }) { One::TooWeak(text) } else { One::Failed(text) }
            }
            Err(_) if !self.leads(term) => One::Over,
            Err(fault) => {
                tracing::info!(what = of, code = fault.code, %fault, "cannot be re-encoded now");
                let text = format!("{of}: {} {fault}", fault.code);
                if matches!(fault.code, "PV-TOO-WEAK" | "PV-NO-VOLUMES") {
                    One::TooWeak(text)
                } else {
                    One::Failed(text)
                }
            }
            Ok(_) => One::Outdated,
        }
    }

    fn leads(&self, term: Term) -> bool {
        let status = self.parts.replica.status();
        status.leader == Some(status.node) && status.term == term
    }

    async fn read_catalog<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Fault> {
        let view = self.parts.replica.view();
        let made = blocking(self.parts.env.as_ref(), move || read(view.as_ref())).await;
        made.ok_or_else(stopping)?.map_err(|error| unreadable(&error))
    }
}

#[cfg(test)]
#[path = "recode_tests.rs"]
mod tests;
