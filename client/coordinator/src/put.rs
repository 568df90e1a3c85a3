//! One upload: bytes in, stripes out, a seal at the end.
//!
//! **Invariants.** At most [`STRIPES_IN_FLIGHT`] stripes are on their way besides the one being filled. The one being filled
//! holds memory for the bytes that came, not for those that may come; one on its way holds its share until the last call
//! about it ended, stragglers included. Stripes are sealed in content order. The content
//! digest covers exactly the bytes given to [`Upload::write`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::channel::oneshot;
use pacsvault_core::{
    catalog::{Command, Outcome, Seal, SealedInstance, StripeSeal, command::Reserved},
    codec::Coder,
    ids::{Digest, InstanceId, LogIndex, StripeIndex, Term, VersionNumber},
    layout::{Layout, Profile, profile::Code, survival::covers},
    limits::STRIPES_MAX,
};
use pacsvault_ports::{
    env::blocking,
    peer::{Class, Fault, Freshness},
};

use crate::{
    Coordinator, PutHeader, Stored,
    ask::in_doubt,
    memory::{WriteHold, room_for},
    rejected,
    stripe::{self, Demand, Prepared},
};

/// Stripes of one upload that may be on their way at once: one is encoded while the one before it is made durable.
const STRIPES_IN_FLIGHT: usize = 2;
/// Stripes up to this size are encoded inline: 256 KiB takes about 0.2 ms, less than a hand-over to another thread.
const INLINE_BYTES_MAX: usize = 1 << 20;

type Persisted = Result<StripeSeal, Fault>;

/// A write in progress.
pub struct Upload {
    coordinator: Coordinator,
    header: PutHeader,
    instance: InstanceId,
    plan: Option<(Arc<Profile>, Coder)>,
    hasher: blake3::Hasher,
    size_bytes: u64,
    filling: BytesMut,
    hold: WriteHold,
    next_stripe: u32,
    in_flight: VecDeque<oneshot::Receiver<Persisted>>,
    sealed_stripes: Vec<StripeSeal>,
}

impl Upload {
    pub(crate) fn new(coordinator: Coordinator, mut header: PutHeader, instance: InstanceId) -> Self {
        if pacsvault_core::probe::planted("strict-ignored") {
            // PLANTED BUG: what was to be refused below its contract is stored.
            header.strict = false;
        }
        Self {
            coordinator,
            header,
            instance,
            plan: None,
            hasher: blake3::Hasher::new(),
            size_bytes: 0,
            filling: BytesMut::new(),
            hold: WriteHold::default(),
            next_stripe: 0,
            in_flight: VecDeque::new(),
            sealed_stripes: Vec::new(),
        }
    }

    /// The attempt's id.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Takes the next bytes of the content. Waits while memory or volumes are behind (back-pressure).
    ///
    /// # Errors
    /// The write cannot succeed any more; drop the upload. Nothing is visible.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Fault> {
        self.size_bytes += bytes.len() as u64;
        if let Some(declared) = self.header.declared_size_bytes
            && self.size_bytes > declared
        {
            let text = format!("the content is longer than the {declared} bytes declared; nothing was stored");
            return Err(Fault::new(Class::Reject, "PV-SIZE-MISMATCH", text));
        }
        let stripe_bytes = usize::try_from(self.coordinator.cluster.options.stripe_bytes).unwrap_or(usize::MAX);
        let code = self.plan().await?.0.code;
        while !bytes.is_empty() {
            let room = stripe_bytes - self.filling.len();
            let taken = bytes.split_to(room.min(bytes.len()));
            if self.filling.is_empty() && (taken.len() == stripe_bytes || self.declared_whole(taken.len())) {
                // A stripe in one piece, as small instances come: no copy.
                self.hold_for(code, taken.len(), taken.len()).await;
                self.send_stripe(taken).await?;
                continue;
            }
            let filled = self.filling.len() + taken.len();
            if filled > self.filling.capacity() {
                let most = self.header.declared_size_bytes.map_or(stripe_bytes as u64, |declared| {
                    // All that was given is counted already: what is to come of this stripe is left of it.
                    (declared - self.size_bytes).saturating_add((filled + bytes.len()) as u64)
                });
                let most = most.min(stripe_bytes as u64);
                let capacity = usize::try_from(room_for(filled as u64, most)).unwrap_or(stripe_bytes);
                self.hold_for(code, capacity, usize::try_from(most).unwrap_or(stripe_bytes)).await;
                self.filling.reserve(capacity - self.filling.len());
            }
            self.filling.extend_from_slice(&taken);
            if filled == stripe_bytes {
                let full = std::mem::take(&mut self.filling).freeze();
                self.send_stripe(full).await?;
            }
        }
        Ok(())
    }

    /// Holds memory for `content` bytes of a stripe that may come to have `most`, with its parity.
    async fn hold_for(&mut self, code: Code, content: usize, most: usize) {
        let coded = |content: usize| content as u64 * code.total() as u64 / code.data() as u64 + 1;
        self.coordinator.cluster.memory.grow(&mut self.hold, coded(content), coded(most)).await;
    }

    fn declared_whole(&self, len: usize) -> bool {
        self.next_stripe == 0 && self.header.declared_size_bytes == Some(len as u64)
    }

    /// Ends the content, waits for every stripe and seals. On `Ok` the write is durable, visible and proven.
    ///
    /// # Errors
    /// `Unknown`: it may have been stored; writing the same content again is safe. All others: nothing is visible.
    pub async fn finish(self) -> Result<Stored, Fault> {
        let coordinator = self.coordinator.clone();
        let (seal, layout) = self.complete().await?;
        coordinator.seal(seal, &layout).await
    }

    /// Ends the content and waits for every stripe: all is durable as [`Upload::finish`] demands it, and nothing of it
    /// visible until a command with this seal is applied.
    ///
    /// # Errors
    /// Nothing is visible.
    pub(crate) async fn complete(mut self) -> Result<(Seal, Arc<Layout>), Fault> {
        if let Some(declared) = self.header.declared_size_bytes
            && self.size_bytes != declared
        {
            let text = format!(
                "the content ended after {} of the {declared} bytes declared; nothing was stored",
                self.size_bytes
            );
            return Err(Fault::new(Class::Reject, "PV-SIZE-MISMATCH", text));
        }
        if !self.filling.is_empty() || self.next_stripe == 0 {
            let rest = std::mem::take(&mut self.filling).freeze();
            if self.hold.is_empty() {
                let code = self.plan().await?.0.code;
                self.hold_for(code, rest.len(), rest.len()).await;
            }
            self.send_stripe(rest).await?;
        }
        while !self.in_flight.is_empty() {
            self.await_oldest().await?;
        }
        let digest = Digest(*self.hasher.finalize().as_bytes());
        if let Some(declared) = self.header.declared_digest
            && declared != digest
        {
            let text = format!("the content has BLAKE3 {digest}, but {declared} was declared; nothing was stored");
            return Err(Fault::new(Class::Reject, "PV-DIGEST-MISMATCH", text));
        }
        let profile = self.plan().await?.0;
        let layout = self.coordinator.cluster.layout().await?;
        let seal = Seal {
            instance: self.instance,
            key: self.header.key,
            size_bytes: self.size_bytes,
            digest,
            profile: profile.name.clone(),
            profile_version: profile.version,
            code: profile.code,
            layout: layout.version,
            stripes: self.sealed_stripes,
            media_type: self.header.media_type,
            attributes: self.header.attributes,
            strict: self.header.strict,
            coordinator: self.coordinator.signer.name(),
            reserved: Reserved::default(),
        };
        Ok((seal, layout))
    }

    async fn plan(&mut self) -> Result<(Arc<Profile>, Coder), Fault> {
        if let Some(plan) = &self.plan {
            return Ok(plan.clone());
        }
        let layout = self.coordinator.cluster.layout().await?;
        let name = self.header.profile.as_ref().unwrap_or(&layout.default_profile);
        let profile = layout.profiles.get(name).cloned().ok_or_else(|| {
            let known: Vec<_> = layout.profiles.keys().map(ToString::to_string).collect();
            Fault::new(
                Class::Reject,
                "PV-NO-PROFILE",
                format!("there is no profile {name}; there are {}", known.join(", ")),
            )
        })?;
        let coder = self.coordinator.cluster.coder(profile.code);
        let plan = (Arc::new(profile), coder);
        self.plan = Some(plan.clone());
        Ok(plan)
    }

    async fn send_stripe(&mut self, content: Bytes) -> Result<(), Fault> {
        if self.next_stripe == STRIPES_MAX {
            let text = format!("an instance has at most {STRIPES_MAX} stripes of 16 MiB; split the content");
            return Err(Fault::new(Class::Reject, "PV-TOO-LARGE", text));
        }
        let (profile, coder) = self.plan().await?;
        while self.in_flight.len() >= STRIPES_IN_FLIGHT {
            self.await_oldest().await?;
        }
        let stripe = StripeIndex(self.next_stripe);
        self.next_stripe += 1;
        let hold = Arc::new(std::mem::take(&mut self.hold));
        let prepared = self.prepare(coder, stripe, content).await?;
        let (done, persisted) = oneshot::channel();
        let cluster = self.coordinator.cluster.clone();
        let strict = self.header.strict;
        self.coordinator.cluster.env.spawn(Box::pin(async move {
            let result = stripe::persist(&cluster, prepared, &Demand { profile: &profile, strict }, &hold).await;
            drop(hold);
            // An abandoned upload leaves orphans, which the sweeper collects.
            let _ = done.send(result);
        }));
        self.in_flight.push_back(persisted);
        Ok(())
    }

    async fn prepare(&mut self, coder: Coder, stripe: StripeIndex, content: Bytes) -> Result<Prepared, Fault> {
        let instance = self.instance;
        if content.len() <= INLINE_BYTES_MAX {
            self.hasher.update(&content);
            return stripe::prepare(&coder, instance, stripe, content);
        }
        let mut hasher = std::mem::take(&mut self.hasher);
        let work = move || {
            hasher.update(&content);
            (hasher, stripe::prepare(&coder, instance, stripe, content))
        };
        let stopping = || Fault::new(Class::Retry, "PV-STOPPING", "this process is stopping; write again elsewhere");
        let (hasher, prepared) = blocking(self.coordinator.cluster.env.as_ref(), work).await.ok_or_else(stopping)?;
        self.hasher = hasher;
        prepared
    }

    async fn await_oldest(&mut self) -> Result<(), Fault> {
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(()) };
        let stopping = |_| Fault::new(Class::Retry, "PV-STOPPING", "this process is stopping; write again elsewhere");
        let stripe = oldest.await.map_err(stopping)??;
        self.sealed_stripes.push(stripe);
        Ok(())
    }
}

/// Whether the record says that it survives the least that its profile asks of any write.
fn keeps_floor(sealed: &SealedInstance, layout: &Layout) -> bool {
    layout.profiles.get(&sealed.seal.profile).is_some_and(|profile| covers(&sealed.survives, &profile.floor))
}

impl Coordinator {
    async fn seal(&self, seal: Seal, layout: &Layout) -> Result<Stored, Fault> {
        if pacsvault_core::probe::planted("ack-early") {
            return self.seal_early(seal, layout).await;
        }
        let strict = seal.strict;
        let outcomes = self.propose(vec![Command::Seal(Box::new(seal))]).await?;
        match outcomes.into_iter().next() {
            Some(Outcome::Sealed { sealed, .. }) if sealed.deleted.is_some() => {
                let text = format!(
                    "{} was written by this attempt and deleted since; write it again as a new attempt",
                    sealed.seal.key
                );
                Err(Fault::new(Class::Reject, "PV-DELETED", text))
            }
            // Sealed by an earlier try of this attempt; since then shards were lost, or brought together while sites were away.
            Some(Outcome::Sealed { sealed, first: false })
                if (strict && sealed.degraded) || !keeps_floor(&sealed, layout) =>
            {
                pacsvault_core::sometimes!("recovery: repeated write worth too little by now");
                let text =
                    format!("{} is stored, and survives less than it must for now; write it again", sealed.seal.key);
                Err(Fault::new(Class::Unknown, "PV-BELOW-CONTRACT", text))
            }
            Some(Outcome::Sealed { sealed, first }) => {
                if !first {
                    pacsvault_core::sometimes!("recovery: write answered with an earlier record");
                }
                self.cluster.wrote(&sealed.seal.key, sealed.index);
                // It is stored, whether or not that can be proven.
                let (receipt, signed) = self.sign(&sealed, layout).map_err(|fault| in_doubt(&fault))?;
                Ok(Stored { sealed: *sealed, receipt, signed, first })
            }
            Some(Outcome::Rejected(rejection)) => {
                // The catalog knows better than the cached layout: see it before the next try.
                let _ = self.cluster.refresh_layout().await;
                Err(rejected(&rejection))
            }
            _ => Err(in_doubt(&Fault::new(Class::Bug, "PV-BUG", "a seal answered something else"))),
        }
    }

    /// PLANTED BUG: what is about to be proposed is as good as applied.
    async fn seal_early(&self, seal: Seal, layout: &Layout) -> Result<Stored, Fault> {
        let newest = self.cluster.lookup(&seal.key, None, Freshness::Linearizable).await;
        let version = newest.map_or(0, |newest| newest.version.0) + 1;
        let gone = || Fault::new(Class::Bug, "PV-BUG", "the profile is gone");
        let contract = layout.profiles.get(&seal.profile).ok_or_else(gone)?.contract.clone();
        let sealed = SealedInstance {
            degraded: false,
            survives: contract.failures().to_vec(),
            contract,
            seal: seal.clone(),
            version: VersionNumber(version),
            term: Term(0),
            index: LogIndex(0),
            time: self.cluster.env.wall(),
            deleted: None,
            moved: BTreeMap::new(),
        };
        let coordinator = self.clone();
        self.cluster.env.spawn(Box::pin(async move {
            // Nobody waits for what becomes of it.
            drop(coordinator.propose(vec![Command::Seal(Box::new(seal))]).await);
        }));
        let (receipt, signed) = self.sign(&sealed, layout)?;
        Ok(Stored { sealed, receipt, signed, first: true })
    }
}
