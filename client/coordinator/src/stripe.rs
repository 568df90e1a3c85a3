//! One stripe on its way to the volumes: encode, prove, place, send, and place again what failed.
//!
//! **Invariants.** A [`StripeSeal`] is returned only when the shards that volumes called durable survive at least the
//! required contract by `survives` on the layout used; a shard bit is set only for a [`DurableShard`] of that very volume.
//! Where a strict demand cannot be met nothing is sent: what was sent would be orphans on volumes that lack room already.
//! Every call is judged and holds the stripe's memory until it ended, also when nobody waits for it any more.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, channel::oneshot, future::Either, stream::FuturesUnordered};
use pacsvault_core::{
    catalog::StripeSeal,
    codec::Coder,
    ids::{Digest, InstanceId, ShardIndex, StripeIndex, VolumeId},
    layout::{
        Layout, Profile,
        placement::{self, Placer},
        survival::{Held, survives},
    },
    shard::{DurableShard, ShardHeader, headers_of},
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault, PutShard, Reply, Request},
};

use crate::{
    cluster::{Cluster, target_of},
    memory::WriteHold,
    unexpected,
};

/// Rounds of placing again before a stripe is given up: each round excludes at least one more volume.
const ROUNDS_MAX: usize = 6;
/// Reasons of refusal that a writer is told.
const REASONS_MAX: usize = 3;

/// A stripe ready to be sent.
pub struct Prepared {
    pub stripe_bytes: u64,
    pub root: Digest,
    pub shards: Vec<(ShardHeader, Bytes)>,
}

/// Encodes one stripe and computes every digest, checksum and proof. Pure and CPU-bound.
pub fn prepare(coder: &Coder, instance: InstanceId, stripe: StripeIndex, content: Bytes) -> Result<Prepared, Fault> {
    let stripe_bytes = content.len() as u64;
    let code = coder.code();
    let bug = |why: String| Fault::new(Class::Bug, "PV-BUG", why);
    let shards = coder.encode(content).map_err(|error| bug(format!("cannot encode stripe {stripe}: {error}")))?;
    let (root, headers) = headers_of(instance, stripe, code, stripe_bytes, &shards);
    Ok(Prepared { stripe_bytes, root, shards: headers.into_iter().zip(shards).collect() })
}

/// How strong the result must be.
pub struct Demand<'a> {
    pub profile: &'a Profile,
    pub strict: bool,
}

struct Sending {
    homes: Vec<VolumeId>,
    durable: Vec<bool>,
    /// Why volumes refused: the first few different reasons, for the writer.
    reasons: Vec<String>,
}

impl Sending {
    fn note(&mut self, fault: &Fault) {
        let reason = format!("{}: {fault}", fault.code);
        if self.reasons.len() < REASONS_MAX && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    fn held(&self) -> Vec<Held> {
        let pairs = self.homes.iter().zip(&self.durable).zip(0_u8..);
        let durable = pairs.filter(|((_, durable), _)| **durable);
        durable.map(|((volume, _), index)| Held { shard: ShardIndex(index), volume: *volume }).collect()
    }

    fn missing(&self) -> Vec<ShardIndex> {
        self.durable.iter().zip(0_u8..).filter(|(durable, _)| !**durable).map(|(_, index)| ShardIndex(index)).collect()
    }

    fn seal(&self, prepared: &Prepared) -> StripeSeal {
        let bits = self.durable.iter().enumerate().filter(|(_, durable)| **durable);
        StripeSeal {
            stripe_bytes: prepared.stripe_bytes,
            shard_root: prepared.root,
            placement: self.homes.clone(),
            persisted: bits.fold(0_u32, |set, (index, _)| set | 1 << index),
        }
    }
}

/// Sends all shards and returns once the persisted set meets the demand. Calls still under way then keep `memory`.
pub async fn persist(
    cluster: &Arc<Cluster>,
    prepared: Prepared,
    demand: &Demand<'_>,
    memory: &Arc<WriteHold>,
) -> Result<StripeSeal, Fault> {
    let profile = demand.profile;
    let id = prepared.shards[0].0.id;
    let mut layout = cluster.layout().await?;
    let mut avoid = cluster.avoided(&layout);
    let mut placer = cluster.placer(&layout, profile, &avoid);
    if !demand.strict && placer.as_ref().is_ok_and(|placer| placer.degraded()) {
        // The cached layout may be from a bad day that is over.
        layout = cluster.recent_layout().await?;
        avoid = cluster.avoided(&layout);
        placer = cluster.placer(&layout, profile, &avoid);
        if placer.as_ref().is_ok_and(|placer| !placer.degraded()) {
            pacsvault_core::sometimes!("recovery: write placed in full by a recent layout");
        }
    }
    if demand.strict && !placer.as_ref().is_ok_and(|placer| !placer.degraded()) {
        // The cached layout may be from before volumes came back.
        layout = cluster.true_layout().await?;
        avoid = cluster.avoided(&layout);
        placer = cluster.placer(&layout, profile, &avoid);
        if let Ok(degraded) = placer.as_ref()
            && degraded.degraded()
        {
            pacsvault_core::sometimes!("recovery: strict write refused before anything was sent");
            return Err(too_weak(profile, degraded));
        }
    }
    let homes = match placer {
        Ok(placer) => placer.place(id.instance, id.stripe),
        // Everything may only be suspected: ask for the truth once, and then trust the layout alone.
        Err(_) => {
            layout = cluster.true_layout().await?;
            avoid.clear();
            placement::place(&layout, profile, id.instance, id.stripe, &avoid).map_err(|error| {
                Fault::new(
                    Class::Retry,
                    "PV-NO-VOLUMES",
                    format!("cannot place a stripe of profile {}: {error}", profile.name),
                )
            })?
        }
    };
    let mut sending = Sending { durable: vec![false; homes.len()], homes, reasons: Vec::new() };
    let mut wanted = sending.missing();
    for round in 0..ROUNDS_MAX {
        let calls = wanted.iter().map(|shard| call(cluster, &layout, &prepared, &sending, *shard, memory)).collect();
        let failures = collect(cluster, &layout, &mut sending, profile, calls).await;
        if failures.is_empty() || meets(&sending, profile, &layout) {
            break;
        }
        pacsvault_core::sometimes!("recovery: shards of a write placed again");
        tracing::debug!(stripe = %id.stripe, round, failed = failures.len(), "placing shards again");
        avoid.extend(failures);
        avoid.extend(cluster.avoided(&layout));
        let Ok(moves) = placement::replace(&layout, profile, id.instance, id.stripe, &sending.held(), &avoid) else {
            break;
        };
        wanted = moves.iter().map(|(shard, _)| *shard).collect();
        for (shard, volume) in moves {
            sending.homes[usize::from(shard.0)] = volume;
        }
        if wanted.is_empty() {
            break;
        }
    }
    judge(&sending, demand, &layout)?;
    Ok(sending.seal(&prepared))
}

/// Refuses a strict write before anything of it was sent.
pub fn too_weak(profile: &Profile, placer: &Placer) -> Fault {
    let claims: Vec<String> = placer.claims().iter().map(ToString::to_string).collect();
    let text = format!(
        "the volumes that take shards now allow at most {}, which is less than the contract of profile {} ({}); nothing was \
         sent, write again when more volumes take shards (`pacsvault status`)",
        if claims.is_empty() { "nothing".to_owned() } else { claims.join("; ") },
        profile.name,
        profile.contract,
    );
    Fault::new(Class::Retry, "PV-TOO-WEAK", text)
}

fn meets(sending: &Sending, profile: &Profile, layout: &Layout) -> bool {
    survives(&sending.held(), profile.code.data(), &profile.contract, layout).is_ok()
}

/// The last word before a seal is proposed: at least the floor, or the whole contract when strict.
fn judge(sending: &Sending, demand: &Demand<'_>, layout: &Layout) -> Result<(), Fault> {
    let profile = demand.profile;
    let (least, word) = if demand.strict { (&profile.contract, "contract") } else { (&profile.floor, "floor") };
    survives(&sending.held(), profile.code.data(), least, layout).map_err(|breaks| {
        let reasons = if sending.reasons.is_empty() { String::new() } else { format!(" ({})", sending.reasons.join("; ")) };
        let text = format!(
            "stored on too few volumes for the {word} of profile {} ({least}): {breaks}{reasons}; nothing was acknowledged, write \
             again when more volumes take shards (`pacsvault status`)",
            profile.name
        );
        Fault::new(Class::Retry, "PV-TOO-WEAK", text)
    })
}

/// The answer of one volume: which shard, which volume, and what it said; nothing when this process is stopping.
type Answer = (usize, VolumeId, Result<Result<DurableShard, Fault>, oneshot::Canceled>);

/// Begins to send one shard to its home. The call runs on by itself, so that a volume that times out is noticed although
/// the stripe was long sealed without it.
fn call(
    cluster: &Arc<Cluster>,
    layout: &Arc<Layout>,
    prepared: &Prepared,
    sending: &Sending,
    shard: ShardIndex,
    memory: &Arc<WriteHold>,
) -> BoxFuture<'static, Answer> {
    let index = usize::from(shard.0);
    let (header, data) = prepared.shards[index].clone();
    let volume = sending.homes[index];
    let (done, answer) = oneshot::channel();
    let (task_cluster, layout, memory) = (cluster.clone(), layout.clone(), memory.clone());
    cluster.env.spawn(Box::pin(async move {
        let result = put_shard(&task_cluster, &layout, volume, header, data).await;
        if let Err(fault) = &result {
            task_cluster.note_failure(&layout, volume, fault);
        }
        drop(memory);
        // The upload may be gone by now; the shard is then an orphan for the sweeper.
        let _ = done.send(result);
    }));
    Box::pin(async move { (index, volume, answer.await) })
}

/// Awaits the answers. Returns the volumes that failed. Comes back early when the contract is met and the rest did not
/// arrive within the grace; the stragglers go on in the background and count as missing.
async fn collect(
    cluster: &Arc<Cluster>,
    layout: &Arc<Layout>,
    sending: &mut Sending,
    profile: &Profile,
    mut calls: FuturesUnordered<BoxFuture<'static, Answer>>,
) -> Vec<VolumeId> {
    let mut failures = Vec::new();
    let mut grace = None;
    while !calls.is_empty() {
        let next = match grace.take() {
            None => calls.next().await,
            Some(pause) => match futures::future::select(calls.next(), pause).await {
                Either::Left((next, pause)) => {
                    grace = Some(pause);
                    next
                }
                Either::Right(_) => {
                    pacsvault_core::sometimes!("recovery: write sealed without its stragglers");
                    break;
                }
            },
        };
        let Some((index, volume, answer)) = next else { break };
        match answer {
            Ok(Ok(_)) => sending.durable[index] = true,
            // PLANTED BUG: an answer is an answer.
            Ok(Err(_)) if pacsvault_core::probe::planted("weak-quorum") => sending.durable[index] = true,
            Ok(Err(fault)) => {
                sending.note(&fault);
                failures.push(volume);
            }
            Err(_) => failures.push(volume),
        }
        if grace.is_none() && !calls.is_empty() && meets(sending, profile, layout) {
            grace = Some(cluster.env.sleep(cluster.options.straggler_grace));
        }
    }
    failures
}

/// Sends one shard; the answer is the volume's own word that this very shard is durable.
async fn put_shard(
    cluster: &Cluster,
    layout: &Layout,
    volume: VolumeId,
    header: ShardHeader,
    data: Bytes,
) -> Result<DurableShard, Fault> {
    let node = layout
        .node_of(volume)
        .ok_or_else(|| Fault::new(Class::Bug, "PV-BUG", format!("volume {volume} has no node in the layout")))?;
    let expected = DurableShard { id: header.id, volume, digest: header.digest };
    let request = Request::PutShard(Box::new(PutShard { volume, header, data, repair: false }));
    match cluster.peer.call(&target_of(node), request, cluster.options.shard_deadline).await? {
        Reply::Durable(durable) if durable == expected => Ok(durable),
        Reply::Durable(_) => {
            Err(Fault::new(Class::Corrupt, "PV-WRONG-SHARD", format!("{} confirmed another shard", node.name)))
        }
        other => Err(unexpected(&other)),
    }
}
