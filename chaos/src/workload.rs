//! Clients at work: they write, read, list and delete through the real coordinator, and tell the model what they saw.
//!
//! **Invariants.** What a client was told is what the model is told, no more: an abandoned or unknown operation stays open.
//! Clients stop at the end of the run, not at the first error.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    channel::oneshot,
    future::{Either, select},
};
use pacsvault_coordinator::{
    Coordinator, GetQuery, Options, PutHeader, ReceiptSigner, Stored,
    repeat::{ATTEMPTS_MAX, REPEAT_FOR, repeated, worth_repeating},
};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{LogIndex, ObjectKey, VersionNumber},
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::{
    env::SharedEnv,
    peer::{Caller, Class, Fault, Freshness, List},
};

use crate::{
    cluster::{ClientAt, Cluster, site_name},
    env::{SimEnv, WorkSpeed},
    exec::{ClockSkew, Life},
    machine::HEALTHY_MICROS,
    model::{Conclusion, Model, Question, Session},
    net::HostId,
    rng::SimRng,
    scenario::Fault as FaultKind,
};

mod clocks;

/// Share of writes whose client's clock is so wrong that they are about to expire, in 1,000.
const LATE_PER_MILLE: u64 = 25;
/// How long a client tries, unless it is impatient.
const PATIENCE: Duration = Duration::from_secs(6);
/// How old what a coordinator knows of the cluster may be: its layout two seconds, its suspicions less.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// Share of impatient clients, in 1,000.
const IMPATIENT_PER_MILLE: u64 = 350;
/// Share of writes that are tried again and again as the product's client does, in 1,000. The others are one attempt each.
const REPEATED_PER_MILLE: u64 = 400;

/// Figures of one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes told that nothing was stored.
    pub refused: u64,
    /// Writes with an unknown outcome.
    pub unknown: u64,
    /// Reads that returned bytes.
    pub reads: u64,
    /// Reads that found nothing.
    pub misses: u64,
    /// Listings.
    pub lists: u64,
    /// Deletes.
    pub deletes: u64,
    /// Longest time from the end of faults until everything was proven whole, in milliseconds.
    pub heal_millis: u64,
}

/// What clients share.
pub struct Work {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    model: Mutex<(Model, Figures)>,
    next_session: Mutex<Session>,
    /// Since when all members know and count each other; once they did.
    settled: OnceLock<Duration>,
}

/// Signs nothing: trust is tested elsewhere.
struct NoSignature;

impl ReceiptSigner for NoSignature {
    fn name(&self) -> String {
        "sim".to_owned()
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, String> {
        Ok(payload.to_vec())
    }
}

/// The key of number `key`: two studies of two series each.
pub fn key_name(key: usize) -> ObjectKey {
    let (study, series) = (key % 2 + 1, key / 2 % 2 + 1);
    let text = match key % 5 {
        4 => format!("main/1.2.{study}/@/report {key}.pdf"),
        _ => format!("main/1.2.{study}/1.2.{study}.{series}/1.2.{study}.{series}.{}", key + 1),
    };
    text.parse().expect("a valid key")
}

impl Work {
    /// Nothing done yet.
    pub fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        let work = Self { cluster, model: Mutex::default(), next_session: Mutex::new(0), settled: OnceLock::new() };
        if work.cluster.scenario.other.is_some() {
            work.model(Model::expect_other_encodings);
        }
        Arc::new(work)
    }

    fn both(&self) -> MutexGuard<'_, (Model, Figures)> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the model.
    pub fn model<T>(&self, work: impl FnOnce(&mut Model) -> T) -> T {
        work(&mut self.both().0)
    }

    /// Changes the figures.
    pub fn count(&self, work: impl FnOnce(&mut Figures)) {
        work(&mut self.both().1);
    }

    /// The figures.
    pub fn figures(&self) -> Figures {
        self.both().1
    }

    /// Everything was proven whole so long after the last fault.
    pub fn healed_within(&self, took: std::time::Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.count(|figures| figures.heal_millis = figures.heal_millis.max(millis));
    }

    /// Notes a violation.
    pub fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        self.cluster.sim.event("violation", &[], || text.clone());
        self.model(|model| model.violation(text));
    }

    /// Holds the whole history to what one object at a time could have answered.
    pub fn judge(&self) {
        let history = self.model(|model| model.history().clone());
        let verdict = pacsvault_judge::check(&history);
        verdict.violations.iter().for_each(|violation| self.violation(violation.to_string()));
        verdict.undecided.iter().for_each(|undecided| self.violation(format!("the judge came to no end: {undecided}")));
    }

    /// Notes when every replica knows of every member and volume, and counts on it: a member that is still catching up says
    /// nothing, and is not asked to store anything.
    pub async fn watch_settling(self: Arc<Self>) {
        let cluster = &self.cluster;
        let knows_all = |at: usize| {
            let Some(layout) = cluster.replica(at).and_then(|replica| replica.layout()) else { return false };
            let known = (layout.nodes.len(), layout.volumes.len()) == (cluster.count(), cluster.volumes());
            let up = layout.nodes.values().all(|node| node.state == NodeState::Up);
            known && up && layout.volumes.values().all(|volume| volume.state == VolumeState::Up)
        };
        while !(0..cluster.count()).all(knows_all) {
            cluster.sim.sleep(Life::HARNESS, Duration::from_millis(100)).await;
        }
        self.settled.get_or_init(|| cluster.sim.now());
    }

    /// Whether whoever asks now must be served: nothing happens to the cluster, and what coordinators know of it is not from
    /// before it settled.
    fn must_serve(&self) -> bool {
        let settled = self.settled.get().is_some_and(|at| self.cluster.sim.now() >= *at + KNOWN_WITHIN);
        settled && self.cluster.scenario.is_calm()
    }

    /// A new client at `site`.
    pub fn client(self: &Arc<Self>, site: usize) -> Client {
        let session = {
            let mut next = self.next_session.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let cluster = &self.cluster;
        let name = format!("client-{session}");
        let host = cluster.net.add_host(&name, site);
        let mut client = Client {
            work: Arc::clone(self),
            site,
            host,
            session,
            life: Life::HARNESS,
            env: None,
            coordinator: None,
            skew: ClockSkew::default(),
            rng: cluster.sim.random(SimRng::fork),
            unknown: None,
            patience: PATIENCE,
            is_due: false,
        };
        client.skew = crate::machine::draw_skew(&mut client.rng, &cluster.scenario);
        client.connect();
        client
    }
}

/// One client process.
pub struct Client {
    work: Arc<Work>,
    site: usize,
    host: HostId,
    session: Session,
    life: Life,
    env: Option<SharedEnv>,
    coordinator: Option<Coordinator>,
    rng: SimRng,
    /// How its clock is wrong.
    skew: ClockSkew,
    /// A write whose outcome was unknown, to be tried again with the same content.
    unknown: Option<(usize, Bytes)>,
    /// How long it tries.
    patience: Duration,
    /// Its present operation must be served.
    is_due: bool,
}

impl Client {
    fn connect(&mut self) {
        let cluster = &self.work.cluster;
        self.life = cluster.sim.begin_life(format!("client-{}", self.session), self.skew);
        let env: SharedEnv = Arc::new(SimEnv::new(cluster.sim.clone(), self.life, WorkSpeed::new(HEALTHY_MICROS)));
        self.env = Some(env.clone());
        let peer = cluster.net.peer(self.host, self.life, Caller::Gateway(format!("client-{}", self.session)));
        let first = self.rng.index(cluster.count());
        let seeds = (0..cluster.count()).map(|at| cluster.target((at + first) % cluster.count())).collect();
        let mut options = Options::new(seeds);
        options.site = Some(site_name(self.site));
        options.stripe_bytes = cluster.scenario.stripe_bytes;
        options.stripe_memory_bytes = 1 << 20;
        options.shard_deadline = Duration::from_secs(1);
        options.catalog_deadline = Duration::from_secs(2);
        options.operation_deadline = self.patience;
        self.coordinator = Some(Coordinator::new(options, env, peer, Arc::new(NoSignature)));
    }

    /// Its coordinator.
    pub fn coordinator(&self) -> Coordinator {
        self.coordinator.clone().expect("connected from the start")
    }

    fn env(&self) -> SharedEnv {
        self.env.clone().expect("connected from the start")
    }

    /// Its clock shows so much more than ours.
    pub fn set_clock(&mut self, ahead_millis: i64) {
        self.skew.wall_offset_millis = ahead_millis;
        self.work.cluster.sim.jump_wall(self.life, ahead_millis);
    }

    /// Its place in the cluster, as faults see it.
    fn place(&self) -> ClientAt {
        ClientAt { host: self.host, site: self.site, life: self.life, skew: self.skew }
    }

    /// One operation, as a task of the client's own process: when that is stopped, so is the operation. With `dies_after` the
    /// process dies so much later, unless the operation has ended: everything it was doing is dropped, and what it knew is gone.
    async fn operate(self, dies_after: Option<Duration>) -> Self {
        let (work, session, place) = (Arc::clone(&self.work), self.session, self.place());
        let sim = work.cluster.sim.clone();
        let (done, ended) = oneshot::channel();
        let mut client = self;
        let task = async move {
            client.step().await;
            client.work.cluster.sim.drew(&client.rng);
            // Who waits for it waits until it comes, or kills this task.
            drop(done.send(client));
        };
        sim.spawn(place.life, Box::pin(task));
        let returned = match dies_after {
            None => ended.await,
            Some(after) => match select(ended, sim.sleep(Life::HARNESS, after)).await {
                Either::Left((returned, _)) => returned,
                Either::Right(_) => Err(oneshot::Canceled),
            },
        };
        if let Ok(client) = returned {
            return client;
        }
        work.model(|model| model.died(session));
        work.cluster.leave(place.host);
        if sim.alive(place.life) {
            sim.hit(FaultKind::ClientCrash.name());
            sim.kill(place.life);
        }
        let next = work.client(place.site);
        work.cluster.enter(next.place());
        next
    }

    /// Works until `until`.
    pub async fn run(mut self, until: Duration) {
        let sim = self.work.cluster.sim.clone();
        if self.rng.chance(IMPATIENT_PER_MILLE) {
            // One that gives up soon is often told that the outcome is unknown.
            self.patience = self.rng.micros(150_000, 1_500_000);
            self.connect();
        }
        let cluster = Arc::clone(&self.work.cluster);
        cluster.enter(self.place());
        let crashes = cluster.scenario.has(FaultKind::ClientCrash);
        while sim.now() < until {
            self.is_due = self.patience == PATIENCE && self.work.must_serve();
            if self.is_due {
                sim.hit("operation that must be served");
            }
            let dies_after = (crashes && self.rng.chance(60)).then(|| self.rng.micros(100, 400_000));
            self = self.operate(dies_after).await;
            let pause = self.rng.micros(100, cluster.scenario.mix.pause_micros);
            sim.sleep(Life::HARNESS, pause).await;
        }
        self.is_due = false;
        cluster.leave(self.host);
    }

    /// The key of the next operation.
    fn key(&mut self) -> usize {
        let (keys, mix) = (self.work.cluster.scenario.keys, &self.work.cluster.scenario.mix);
        let documents: Vec<usize> = (0..keys).filter(|key| key % 5 == 4).collect();
        if self.rng.chance(mix.hot_per_mille) {
            0
        } else if self.rng.chance(mix.document_per_mille) && !documents.is_empty() {
            *self.rng.pick(&documents)
        } else {
            self.rng.index(keys)
        }
    }

    /// In version 1 an attempt that was answered with another's record could still become a version of its own. That is
    /// history, and as it is; so where a run begins in version 1, no content is sent twice.
    fn repeats(&self) -> bool {
        !self.work.cluster.scenario.upgrade
    }

    async fn step(&mut self) {
        let (key, mix) = (self.key(), self.work.cluster.scenario.mix.clone());
        if let Some((key, content)) = self.unknown.take()
            && self.repeats()
            && self.rng.chance(mix.retry_per_mille)
        {
            self.work.cluster.sim.hit("unknown write tried again");
            self.put(key, content, false).await;
            return;
        }
        match self.rng.weighted(&mix.weights) {
            0 => {
                let (content, strict) = (self.content(key), self.rng.chance(mix.strict_per_mille));
                if self.repeats() && self.rng.chance(REPEATED_PER_MILLE) {
                    self.put_repeatedly(key, content, strict).await;
                } else {
                    self.put(key, content, strict).await;
                }
            }
            1 => self.get(key).await,
            2 => self.get_range(key).await,
            3 => self.list().await,
            _ => self.delete(key).await,
        }
    }

    /// New content, or what somebody put under this key before.
    fn content(&mut self, key: usize) -> Bytes {
        let mix = &self.work.cluster.scenario.mix;
        if self.repeats() && self.rng.chance(mix.again_per_mille) {
            let of_key = |model: &mut Model| -> Vec<Bytes> {
                let attempts = model.attempts().iter().filter(|attempt| attempt.key == key);
                attempts.map(|attempt| attempt.content.clone()).collect()
            };
            let known = self.work.model(of_key);
            if !known.is_empty() {
                self.work.cluster.sim.hit("content put again that somebody put before");
                return self.rng.pick(&known).clone();
            }
        }
        let len = match self.rng.weighted(&mix.sizes) {
            // Empty content is always the same.
            0 if self.repeats() => 0,
            0 | 1 => self.rng.range(8, 400),
            _ => self.rng.range(400, 6_000),
        };
        let len = usize::try_from(len).expect("a few thousand");
        Bytes::from(self.rng.bytes(len))
    }

    /// Writes `content` by one attempt. Answers the record when acknowledged.
    pub async fn put(&mut self, key: usize, content: Bytes, strict: bool) -> Option<Stored> {
        let mut rng = self.rng.fork();
        match self.attempt(key, content.clone(), strict, &mut rng).await.1 {
            Ok(stored) => return Some(stored),
            Err(fault) if fault.class == Class::Unknown => self.unknown = Some((key, content)),
            Err(_) => {}
        }
        None
    }

    /// Writes `content` by as many attempts as the product's client makes.
    async fn put_repeatedly(&mut self, key: usize, content: Bytes, strict: bool) {
        let (work, env) = (Arc::clone(&self.work), self.env());
        let (began, mut rng) = (env.now().0, self.rng.fork());
        let (client, tried) = (&*self, Mutex::new(Vec::new()));
        let attempt = || {
            let (mut own, content, tried) = (rng.fork(), content.clone(), &tried);
            async move {
                let (put, result) = client.attempt(key, content, strict, &mut own).await;
                tried.lock().unwrap_or_else(PoisonError::into_inner).push(put);
                result
            }
        };
        let result = repeated(env.as_ref(), &key_name(key), attempt).await;
        let puts = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
        if puts.len() > 1 {
            work.cluster.sim.hit("write of several attempts");
        }
        let conclusion = match result {
            Ok(_) => Conclusion::Acked,
            Err(fault) => {
                let tries_left = puts.len() < ATTEMPTS_MAX as usize && env.now().0.saturating_sub(began) < REPEAT_FOR;
                self.tell("told", key, || {
                    format!("put, all in all: {:?} {} {}", fault.class, fault.code, fault.message)
                });
                if fault.class == Class::Unknown {
                    work.cluster.sim.hit("write of unknown outcome after all its attempts");
                    self.unknown = Some((key, content));
                    Conclusion::Unknown
                } else {
                    if tries_left && worth_repeating(fault.class) {
                        work.violation(format!("a write was given up after {} attempts: {fault}", puts.len()));
                    }
                    Conclusion::Refused
                }
            }
        };
        work.model(|model| model.concluded(&puts, conclusion));
    }

    /// One attempt at a write, in up to three pieces: its number in the model, and what it was told.
    async fn attempt(
        &self,
        key: usize,
        content: Bytes,
        strict: bool,
        rng: &mut SimRng,
    ) -> (usize, Result<Stored, Fault>) {
        let work = Arc::clone(&self.work);
        let name = key_name(key);
        let mut header = PutHeader::new(name.clone(), "application/dicom");
        header.strict = strict;
        if rng.chance(500) {
            header.declared_size_bytes = Some(content.len() as u64);
        }
        let late = rng.chance(LATE_PER_MILLE);
        let usual = work.cluster.sim.wall_offset(self.life);
        let expired = late && self.date_back(rng);
        let mut upload = self.coordinator().begin_put(header);
        work.cluster.sim.jump_wall(self.life, usual);
        let instance = upload.instance();
        work.cluster.begins(instance);
        let astray = !late && self.is_astray(instance.time().0);
        let put = work.model(|model| model.begin_put(self.session, (key, &name), content.clone(), instance));
        self.tell("call", key, || format!("put {} bytes as {instance}", content.len()));
        let cut = rng.index(content.len() + 1);
        let pieces = [content.slice(..cut), content.slice(cut..)];
        let result = async {
            for piece in pieces {
                upload.write(piece).await?;
            }
            upload.finish().await
        };
        let result = result.await;
        match &result {
            Ok(stored) => {
                if (expired || astray) && stored.first {
                    let why = if expired { "had expired before it began" } else { "began more than a day off" };
                    work.violation(format!("attempt {} {why}, and was sealed", stored.sealed.seal.instance));
                }
                if self.is_due && stored.sealed.degraded {
                    work.violation(format!("without any fault attempt {instance} was acknowledged below its contract"));
                }
                if strict && stored.sealed.degraded {
                    work.violation(format!("attempt {instance}, a strict one, was acknowledged below its contract"));
                }
                self.trace_ack(stored);
                work.model(|model| model.acked(put, &stored.sealed, stored.first));
                work.count(|figures| figures.acked += 1);
                if !stored.first {
                    work.cluster.sim.hit("write answered with an earlier receipt");
                }
                if stored.sealed.degraded {
                    work.cluster.sim.hit("write acknowledged below its contract");
                }
                if stored.sealed.seal.stripes.len() > 1 {
                    work.cluster.sim.hit("write of several stripes");
                }
                crate::audit::check_receipt(&work, key, stored);
            }
            Err(fault) if fault.class == Class::Unknown => {
                self.tell("told", key, || format!("put: outcome unknown, {}", fault.message));
                work.model(|model| model.put_unknown(put));
                work.count(|figures| figures.unknown += 1);
                work.cluster.sim.hit("write with unknown outcome");
                if !late && !astray {
                    self.judge("put", fault);
                }
            }
            Err(fault) if late && fault.code == "PV-WINDOW-CLOSED" => {
                work.cluster.sim.hit("write refused: its client's clock is a day behind");
                work.model(|model| model.put_refused(put));
                work.count(|figures| figures.refused += 1);
            }
            Err(fault) if astray && matches!(fault.code, "PV-WINDOW-CLOSED" | "PV-REJECTED") => {
                work.cluster.sim.hit("write refused: its client's clock is more than a day wrong");
                work.model(|model| model.put_refused(put));
                work.count(|figures| figures.refused += 1);
            }
            // It was stored, and deleted before the answer arrived.
            Err(fault) if fault.code == "PV-DELETED" => {
                work.model(|model| model.put_deleted(put));
                work.cluster.sim.hit("write deleted before its answer");
            }
            Err(fault) => {
                self.tell("told", key, || format!("put: {:?} {} {}", fault.class, fault.code, fault.message));
                self.judge("put", fault);
                work.model(|model| model.put_refused(put));
                work.count(|figures| figures.refused += 1);
            }
        }
        (put, result)
    }

    /// A row of the trace.
    fn tell(&self, kind: &'static str, key: usize, what: impl FnOnce() -> String) {
        let sim = &self.work.cluster.sim;
        sim.event(kind, &[self.session, key as u64], || {
            format!("client-{} {} {}", self.session, key_name(key), what())
        });
    }

    fn trace_ack(&self, stored: &Stored) {
        let cluster = &self.work.cluster;
        let sealed = &stored.sealed;
        cluster.sim.event("acked", &[u64::from(sealed.version.0), sealed.index.0], || {
            let homes = crate::audit::homes(cluster);
            let of = |stripe: &pacsvault_core::catalog::StripeSeal| {
                crate::audit::persisted(stripe).map(|(shard, volume)| (shard, homes[&volume].0)).collect::<Vec<_>>()
            };
            let shards: Vec<_> = sealed.seal.stripes.iter().map(of).collect();
            format!(
                "client-{} {} {} (shard, machine) {shards:?} survives {:?}",
                self.session, sealed.seal.key, sealed.seal.instance, sealed.survives
            )
        });
    }

    /// Faults that no fault of ours explains are violations.
    fn judge(&self, what: &str, fault: &Fault) {
        match fault.class {
            Class::Bug | Class::Corrupt => {
                self.work.violation(format!("{what} met a broken invariant: {} {}", fault.code, fault.message));
            }
            Class::Reject => {
                self.work.violation(format!("{what} was rejected for good: {} {}", fault.code, fault.message));
            }
            Class::Retry | Class::Unknown | Class::Exhausted if self.is_due => {
                let (code, text) = (fault.code, &fault.message);
                self.work.violation(format!("{what} was not served, without any fault: {code} {text}"));
            }
            Class::Retry | Class::Unknown | Class::NotFound | Class::Exhausted => {}
        }
    }

    /// How fresh a read is to be, and whether that is linearizable.
    fn freshness(&mut self) -> (Freshness, bool) {
        if self.rng.chance(400) { (Freshness::Linearizable, true) } else { (Freshness::AtLeast(LogIndex(0)), false) }
    }

    fn asks(&self, key: usize, linearizable: bool) -> Question {
        let started = self.work.model(Model::tick);
        Question { session: self.session, key: key_name(key), version: None, linearizable, started }
    }

    async fn get(&mut self, key: usize) {
        self.read(key, None).await;
    }

    async fn get_range(&mut self, key: usize) {
        let (offset, len) = (self.rng.below(600), self.rng.range(1, 900));
        self.read(key, Some((offset, len))).await;
    }

    async fn read(&mut self, key: usize, range: Option<(u64, u64)>) {
        let work = Arc::clone(&self.work);
        let (freshness, linearizable) = self.freshness();
        let mut query = GetQuery::whole(key_name(key));
        query.freshness = freshness;
        if let Some((offset, len)) = range {
            query.offset_bytes = offset;
            query.len_bytes = Some(len);
        }
        let mut question = self.asks(key, linearizable);
        self.tell("call", key, || format!("get {range:?} {freshness:?}"));
        match self.coordinator().get(query).await {
            Ok(download) => {
                let sealed = download.sealed().clone();
                self.tell("told", key, || format!("get: version {} {}", sealed.version, sealed.seal.instance));
                work.model(|model| model.answered(question, Some(&sealed)));
                match download.bytes().await {
                    Ok(bytes) => {
                        work.count(|figures| figures.reads += 1);
                        let asked = range.map_or(0..u64::MAX, |(offset, len)| offset..offset + len);
                        work.model(|model| model.observe_bytes(key, &sealed, asked, &bytes));
                    }
                    Err(fault) => self.judge("reading", &fault),
                }
            }
            Err(fault) if fault.class == Class::NotFound => {
                self.tell("told", key, || "get: there is none".to_owned());
                // A miss is always checked against the leader.
                question.linearizable = true;
                work.model(|model| model.answered(question, None));
                work.count(|figures| figures.misses += 1);
            }
            Err(fault) if fault.code == "PV-RANGE" && range.is_some() => {
                let offset = range.map_or(0, |(offset, _)| offset);
                work.model(|model| model.ends_before(key, offset));
            }
            Err(fault) => self.judge("get", &fault),
        }
    }

    async fn list(&mut self) {
        let work = Arc::clone(&self.work);
        let study = self.rng.index(2);
        let (freshness, linearizable) = self.freshness();
        let question = self.asks(study, linearizable);
        let mut found: Vec<SealedInstance> = Vec::new();
        let mut page_token = Vec::new();
        loop {
            let list = List {
                tenant: key_name(0).tenant,
                study: Some(key_name(study).study),
                series: None,
                studies_only: false,
                page_token,
                rows_max: 2,
                freshness,
            };
            match self.coordinator().list(list).await {
                Ok(page) => {
                    found.extend(page.instances);
                    page_token = page.next_page_token;
                }
                Err(fault) => return self.judge("list", &fault),
            }
            if page_token.is_empty() {
                break;
            }
        }
        work.count(|figures| figures.lists += 1);
        for key in (0..work.cluster.scenario.keys).filter(|key| key % 2 == study) {
            let name = key_name(key);
            let sealed = found.iter().find(|sealed| sealed.seal.key == name);
            if let Some(sealed) = sealed {
                work.model(|model| model.observe(key, sealed));
            }
            let question = Question { key: name, ..question.clone() };
            work.model(|model| model.answered(question, sealed));
        }
    }

    async fn delete(&mut self, key: usize) {
        let work = Arc::clone(&self.work);
        let newest = work.model(|model| model.newest_seen(key));
        let version = (self.rng.chance(500) && newest > 0).then_some(newest);
        let name = key_name(key);
        let delete = work.model(|model| model.begin_delete(self.session, (key, &name), version));
        work.count(|figures| figures.deletes += 1);
        self.tell("call", key, || format!("delete version {version:?}"));
        match self.coordinator().delete(name, version.map(VersionNumber)).await {
            Ok(versions) => {
                self.tell("told", key, || format!("delete: {versions:?}"));
                let versions = versions.into_iter().map(|version| version.0).collect();
                work.model(|model| model.deleted(delete, Some(versions)));
            }
            Err(fault) if fault.class == Class::NotFound => work.model(|model| model.deleted(delete, None)),
            Err(fault) if fault.class == Class::Unknown => {
                self.judge("delete", &fault);
                work.model(|model| model.delete_unknown(delete));
            }
            Err(fault) => {
                self.judge("delete", &fault);
                work.model(|model| model.delete_refused(delete));
            }
        }
    }
}

/// Starts the scenario's clients; each works until `until`.
pub fn start_clients(work: &Arc<Work>, until: Duration) -> Vec<oneshot::Receiver<()>> {
    let sim = &work.cluster.sim;
    let clients = (0..work.cluster.scenario.clients).map(|number| {
        let client = work.client(number % work.cluster.scenario.sites);
        let (done, ended) = oneshot::channel();
        sim.spawn(
            Life::HARNESS,
            Box::pin(async move {
                client.run(until).await;
                drop(done);
            }),
        );
        ended
    });
    clients.collect()
}
