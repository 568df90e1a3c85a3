//! Proof of stored content by the nodes themselves: each reads its shards from its own disks, only findings travel.
//!
//! **Invariants.** A shard is called proven only when its node read it in this very run and found it sound and part of the
//! stripe that the catalog names by its root. Shards that were moved meanwhile are asked of where they are now. An object that
//! was deleted meanwhile is left out.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use pacsvault_coordinator::{ShardCheck, ShardFinding};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, ShardIndex, StripeIndex, VolumeId},
    layout::Layout,
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Fault, Freshness, Peer, Reply, Request, ShardProof};
use pacsvault_rpc::fault::{DENIED, NO_METHOD};
use pacsvault_security::Role;

use crate::{Client, Mode, client::target_of};

/// What was found of one object.
pub type Proven = (SealedInstance, Vec<ShardCheck>);

/// Bytes of shards that one request lets a node read: two seconds of a slow disk.
const BATCH_BYTES: u64 = 64 << 20;
/// Shards of one request.
const BATCH_SHARDS: usize = 256;
/// Volumes asked at once; one request at a time for each.
const VOLUMES_AT_ONCE: usize = 16;
/// How long one request may take.
const BATCH_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);
/// Times that an object is looked up again because its shards moved: a move ends within one, a second may follow it.
const RENEWALS_MAX: usize = 4;
/// Said by a node of before.
const UNSUPPORTED: &str = "PV-UNSUPPORTED";

/// One shard to ask for.
struct Wanted {
    /// Position of its object, and of its check.
    object: usize,
    check: usize,
    id: ShardId,
    root: Digest,
    bytes: u64,
}

impl Client {
    /// Re-reads and proves every shard of these objects. An operator lets the nodes do it on their disks; who may read shards
    /// (or only ask an older node) has the bytes sent and proves them here.
    ///
    /// # Errors
    /// The catalog cannot be asked, or a node refuses for good. That shards cannot be read is a finding, not an error.
    pub async fn prove(&self, found: &[SealedInstance]) -> Result<Vec<Proven>, Fault> {
        let operator = self.credentials().identity().role == Role::Operator;
        if operator && self.mode() == Mode::ViaNode {
            match self.prove_on_nodes(found).await {
                Err(fault) if matches!(fault.code, NO_METHOD | UNSUPPORTED) => {
                    tracing::info!(reason = %fault, "a node cannot prove shards yet; proving through another one");
                }
                other => return other,
            }
        }
        let mut proven = Vec::with_capacity(found.len());
        for sealed in found {
            proven.push((sealed.clone(), self.verify(sealed).await?));
        }
        Ok(proven)
    }

    /// Lets the nodes prove every shard of these objects from their disks. For operators and nodes.
    ///
    /// # Errors
    /// As [`Client::prove`].
    pub async fn prove_on_nodes(&self, found: &[SealedInstance]) -> Result<Vec<Proven>, Fault> {
        let mut proven = Vec::new();
        let mut open: Vec<SealedInstance> = found.to_vec();
        for round in 0..=RENEWALS_MAX {
            let mut moved = Vec::new();
            for (held, checks) in self.prove_once(open).await? {
                let doubtful = checks.iter().any(|check| !matches!(check.finding, ShardFinding::Proven));
                if !doubtful || round == RENEWALS_MAX {
                    proven.push((held, checks));
                    continue;
                }
                match self.renewed(&held).await? {
                    None => {}
                    Some(now) if now.seal == held.seal => proven.push((held, checks)),
                    Some(now) => moved.push(now),
                }
            }
            if moved.is_empty() {
                break;
            }
            open = moved;
        }
        Ok(proven)
    }

    /// The record as it is now; `None` when it was deleted.
    async fn renewed(&self, held: &SealedInstance) -> Result<Option<SealedInstance>, Fault> {
        let now = self.coordinator().lookup(&held.seal.key, Some(held.version), Freshness::Linearizable).await;
        match now {
            Err(fault) if fault.class == Class::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    async fn prove_once(&self, objects: Vec<SealedInstance>) -> Result<Vec<Proven>, Fault> {
        let layout = self.layout().await?;
        let mut proven: Vec<Proven> = objects
            .into_iter()
            .map(|sealed| {
                let checks = unproven(&sealed, &layout);
                (sealed, checks)
            })
            .collect();
        let mut volumes: BTreeMap<VolumeId, Vec<Wanted>> = BTreeMap::new();
        for (object, (sealed, checks)) in proven.iter().enumerate() {
            for wanted in wanted(object, sealed, checks) {
                volumes.entry(checks[wanted.check].volume).or_default().push(wanted);
            }
        }
        let asked = volumes.into_iter().map(|(volume, shards)| self.ask_volume(&layout, volume, shards));
        let mut answers = stream::iter(asked).buffer_unordered(VOLUMES_AT_ONCE);
        while let Some(findings) = answers.next().await {
            for (wanted, finding) in findings? {
                proven[wanted.object].1[wanted.check].finding = finding;
            }
        }
        drop(answers);
        Ok(proven)
    }

    async fn ask_volume(
        &self,
        layout: &Layout,
        volume: VolumeId,
        shards: Vec<Wanted>,
    ) -> Result<Vec<(Wanted, ShardFinding)>, Fault> {
        let Some(node) = layout.node_of(volume) else {
            let away = || ShardFinding::Away("no node of the layout has this volume".to_owned());
            return Ok(shards.into_iter().map(|wanted| (wanted, away())).collect());
        };
        let target = target_of(node);
        let mut findings = Vec::with_capacity(shards.len());
        for batch in batches(shards) {
            let ids = batch.iter().map(|wanted| wanted.id).collect();
            let reply = self.peer().call(&target, Request::VerifyShards { volume, shards: ids }, BATCH_WITHIN).await;
            findings.extend(judge(batch, reply)?);
        }
        Ok(findings)
    }
}

/// All shards of an object, with what is known without asking anybody.
fn unproven(sealed: &SealedInstance, layout: &Layout) -> Vec<ShardCheck> {
    let mut checks = Vec::new();
    for (stripe, number) in sealed.seal.stripes.iter().zip(0_u32..) {
        for (volume, shard) in stripe.placement.iter().zip(0_u8..) {
            let node = layout.node_of(*volume);
            let persisted = stripe.persisted >> shard & 1 == 1;
            let finding = if persisted { ShardFinding::Away("not asked".to_owned()) } else { ShardFinding::Missing };
            checks.push(ShardCheck {
                stripe: StripeIndex(number),
                shard: ShardIndex(shard),
                volume: *volume,
                node: node.map(|node| node.id),
                site: node.map(|node| node.site.clone()),
                finding,
            });
        }
    }
    checks
}

/// The shards of an object that are worth asking for.
fn wanted<'a>(
    object: usize,
    sealed: &'a SealedInstance,
    checks: &'a [ShardCheck],
) -> impl Iterator<Item = Wanted> + 'a {
    let k = sealed.seal.code.data() as u64;
    let stripes = checks.iter().enumerate().filter(|(_, check)| check.finding != ShardFinding::Missing);
    stripes.filter_map(move |(at, check)| {
        let stripe = sealed.seal.stripes.get(usize::try_from(check.stripe.0).ok()?)?;
        Some(Wanted {
            object,
            check: at,
            id: ShardId { instance: sealed.seal.instance, stripe: check.stripe, shard: check.shard },
            root: stripe.shard_root,
            bytes: stripe.stripe_bytes.div_ceil(k),
        })
    })
}

/// Shards in requests of bounded work.
fn batches(shards: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    let mut batches: Vec<Vec<Wanted>> = Vec::new();
    let mut bytes = 0;
    for wanted in shards {
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_SHARDS && bytes + wanted.bytes <= BATCH_BYTES => {
                bytes += wanted.bytes;
                batch.push(wanted);
            }
            _ => {
                bytes = wanted.bytes;
                batches.push(vec![wanted]);
            }
        }
    }
    batches
}

fn judge(batch: Vec<Wanted>, reply: Result<Reply, Fault>) -> Result<Vec<(Wanted, ShardFinding)>, Fault> {
    let proofs = match reply {
        Ok(Reply::Verified(proofs)) if proofs.len() == batch.len() => proofs,
        Ok(_) => return Err(Fault::new(Class::Bug, "PV-BUG", "a node answered a verification with something else")),
        Err(fault) if matches!(fault.code, NO_METHOD | UNSUPPORTED | DENIED) => return Err(fault),
        Err(fault) => {
            let away = || ShardFinding::Away(fault.message.clone());
            return Ok(batch.into_iter().map(|wanted| (wanted, away())).collect());
        }
    };
    let finding = |wanted: &Wanted, proof: ShardProof| match proof {
        ShardProof::Sound(root) if root == wanted.root => ShardFinding::Proven,
        ShardProof::Sound(_) => ShardFinding::Damaged("it belongs to another stripe".to_owned()),
        ShardProof::Missing => ShardFinding::Damaged("the volume does not have it".to_owned()),
        ShardProof::Damaged(why) => ShardFinding::Damaged(why),
    };
    let judged = batch.into_iter().zip(proofs).map(|(wanted, proof)| {
        let finding = finding(&wanted, proof);
        (wanted, finding)
    });
    Ok(judged.collect())
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::InstanceId;

    use super::*;

    fn wanted_of(bytes: u64) -> Wanted {
        let id = ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(0), shard: ShardIndex(0) };
        Wanted { object: 0, check: 0, id, root: Digest([1; 32]), bytes }
    }

    #[test]
    fn no_request_asks_for_more_than_its_bound() {
        let counts = |sizes: Vec<u64>| -> Vec<usize> {
            batches(sizes.into_iter().map(wanted_of).collect()).iter().map(Vec::len).collect()
        };
        assert_eq!(counts(vec![BATCH_BYTES / 2; 5]), [2, 2, 1]);
        assert_eq!(counts(vec![2 * BATCH_BYTES, 1]), [1, 1]);
        assert_eq!(counts(vec![1; BATCH_SHARDS + 1]), [BATCH_SHARDS, 1]);
        assert!(counts(vec![]).is_empty());
    }

    #[test]
    fn only_a_shard_of_the_right_stripe_is_proven() {
        let proofs = vec![
            ShardProof::Sound(Digest([1; 32])),
            ShardProof::Sound(Digest([2; 32])),
            ShardProof::Missing,
            ShardProof::Damaged("chunk 1".to_owned()),
        ];
        let batch = || (0..4).map(|_| wanted_of(1)).collect::<Vec<_>>();
        let judged = judge(batch(), Ok(Reply::Verified(proofs.clone()))).expect("an answer");
        let damaged = judged.iter().filter(|(_, finding)| matches!(finding, ShardFinding::Damaged(_))).count();
        assert_eq!((judged[0].1.clone(), damaged), (ShardFinding::Proven, 3));
        assert_eq!(judge(batch(), Ok(Reply::Verified(proofs[1..].to_vec()))).err().map(|it| it.code), Some("PV-BUG"));
        let away = judge(batch(), Err(Fault::new(Class::Retry, "PV-UNREACHABLE", "no answer"))).expect("a finding");
        assert!(away.iter().all(|(_, finding)| matches!(finding, ShardFinding::Away(_))));
        assert!(judge(batch(), Err(Fault::new(Class::Reject, DENIED, "no"))).is_err());
    }
}
