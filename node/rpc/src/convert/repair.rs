//! Signs of life, tasks of repair and proofs of shards on the wire.
//!
//! **Invariants.** As of [`crate::convert`]. A task that comes out moves at least one shard, each once, and only shards that
//! its placement has.

use pacsvault_core::{
    health::{
        Task,
        report::{Done, Heartbeat, ServedVolume},
    },
    ids::{Digest, Incarnation, InstanceId, NodeId, ShardIndex, StripeIndex, VolumeId},
    limits::{LIST_ROWS_MAX, SHARDS_MAX},
    shard::ShardId,
};
use pacsvault_ports::peer::ShardProof;
use pacsvault_proto::v1;

use super::{
    Parsed, fixed,
    health::{cause, cause_message, scrub_age, scrub_age_message, tier, tier_message},
    raw, required, shard_id, small, volume_state, volume_state_message,
};
use crate::fault::Invalid;

/// A sign of life from the wire.
pub fn heartbeat(message: v1::HeartbeatRequest) -> Parsed<Heartbeat> {
    let volumes = message.volumes.into_iter().map(|volume| {
        Ok(ServedVolume {
            volume: VolumeId(fixed("volumes.volume", &volume.volume)?),
            state: volume_state("volumes.state", volume.state)?,
            shards: volume.shards,
            used_bytes: volume.used_bytes,
            free_bytes: volume.free_bytes,
            scrub: scrub_age(volume.scrub).map_err(|error| error.within("volumes"))?,
        })
    });
    Ok(Heartbeat {
        node: NodeId(message.node),
        incarnation: Incarnation(fixed("incarnation", &message.incarnation)?),
        volumes: volumes.collect::<Parsed<_>>()?,
        tasks: message.tasks,
        allowed_bytes_per_s: message.allowed_bytes_per_s,
    })
}

/// A sign of life to the wire.
pub fn heartbeat_message(beat: &Heartbeat) -> v1::HeartbeatRequest {
    let volume = |volume: &ServedVolume| v1::ServedVolume {
        volume: raw(&volume.volume.0),
        state: volume_state_message(volume.state),
        shards: volume.shards,
        used_bytes: volume.used_bytes,
        free_bytes: volume.free_bytes,
        scrub: scrub_age_message(&volume.scrub),
    };
    v1::HeartbeatRequest {
        node: beat.node.0,
        incarnation: raw(&beat.incarnation.0),
        volumes: beat.volumes.iter().map(volume).collect(),
        tasks: beat.tasks,
        allowed_bytes_per_s: beat.allowed_bytes_per_s,
    }
}

/// A task from the wire.
pub fn task(message: v1::RepairRequest) -> Parsed<Task> {
    let count = message.expected.len();
    if !(2..=SHARDS_MAX).contains(&count) {
        return Err(Invalid::new("expected", format!("must name 2 to {SHARDS_MAX} volumes, names {count}")));
    }
    let expected = message.expected.iter().map(|volume| Ok(VolumeId(fixed("expected", volume)?)));
    let expected = expected.collect::<Parsed<Vec<_>>>()?;
    if u64::from(message.persisted) >> count != 0 {
        return Err(Invalid::new("persisted", "has bits beyond the placement"));
    }
    let moves = message.moves.iter().map(|one| {
        let (shard, volume) = (small("moves.shard", one.shard)?, VolumeId(fixed("moves.volume", &one.volume)?));
        Ok((ShardIndex(shard), volume))
    });
    let moves: Vec<(ShardIndex, VolumeId)> = moves.collect::<Parsed<_>>()?;
    let mut seen = 0_u64;
    for (shard, _) in &moves {
        if usize::from(shard.0) >= count || seen >> shard.0 & 1 == 1 {
            return Err(Invalid::new("moves.shard", "must name shards of the placement, each once"));
        }
        seen |= 1 << shard.0;
    }
    if moves.is_empty() {
        return Err(Invalid::new("moves", "must name at least one shard"));
    }
    Ok(Task {
        instance: InstanceId(fixed("instance", &message.instance)?),
        stripe: StripeIndex(message.stripe),
        expected,
        persisted: message.persisted,
        moves,
        cause: cause("cause", message.cause)?,
        tier: tier("tier", message.tier)?,
        write_bytes: message.write_bytes,
    })
}

/// A task to the wire.
pub fn task_message(task: &Task) -> v1::RepairRequest {
    let moves = task.moves.iter();
    let moves = moves.map(|(shard, volume)| v1::ShardMove { shard: shard.0.into(), volume: raw(&volume.0) });
    v1::RepairRequest {
        instance: raw(&task.instance.0),
        stripe: task.stripe.0,
        expected: task.expected.iter().map(|volume| raw(&volume.0)).collect(),
        persisted: task.persisted,
        moves: moves.collect(),
        cause: cause_message(task.cause),
        tier: Some(tier_message(task.tier)),
        write_bytes: task.write_bytes,
    }
}

/// What a worker did, from the wire.
pub fn done(message: v1::RepairReply) -> Parsed<Done> {
    Ok(match required("ended", message.ended)? {
        v1::repair_reply::Ended::Reseated(cost) => {
            Done::Reseated { written_bytes: cost.written_bytes, read_bytes: cost.read_bytes, wan_bytes: cost.wan_bytes }
        }
        v1::repair_reply::Ended::Outdated(true) => Done::Outdated,
        v1::repair_reply::Ended::Outdated(false) => return Err(Invalid::new("outdated", "must be true when set")),
        v1::repair_reply::Ended::Irreparable(why) => Done::Irreparable(why),
    })
}

/// What a worker did, to the wire.
pub fn done_message(done: Done) -> v1::RepairReply {
    let ended = match done {
        Done::Reseated { written_bytes, read_bytes, wan_bytes } => {
            v1::repair_reply::Ended::Reseated(v1::Reseated { written_bytes, read_bytes, wan_bytes })
        }
        Done::Outdated => v1::repair_reply::Ended::Outdated(true),
        Done::Irreparable(why) => v1::repair_reply::Ended::Irreparable(why),
    };
    v1::RepairReply { ended: Some(ended) }
}

/// Shards to prove, from the wire.
pub fn shards_to_prove(message: &v1::VerifyShardsRequest) -> Parsed<(VolumeId, Vec<ShardId>)> {
    let count = message.shards.len();
    if count == 0 || count > LIST_ROWS_MAX {
        return Err(Invalid::new("shards", format!("must be 1 to {LIST_ROWS_MAX} shards, are {count}")));
    }
    let shards = message.shards.iter().map(|name| shard_id(&name.instance, name.stripe, name.shard));
    let shards = shards.collect::<Parsed<_>>().map_err(|error| error.within("shards"))?;
    Ok((VolumeId(fixed("volume", &message.volume)?), shards))
}

/// Shards to prove, to the wire.
pub fn shards_to_prove_message(volume: VolumeId, shards: &[ShardId]) -> v1::VerifyShardsRequest {
    let name =
        |id: &ShardId| v1::ShardName { instance: raw(&id.instance.0), stripe: id.stripe.0, shard: id.shard.0.into() };
    v1::VerifyShardsRequest { volume: raw(&volume.0), shards: shards.iter().map(name).collect() }
}

/// Findings from the wire.
pub fn proofs(message: v1::VerifyShardsReply) -> Parsed<Vec<ShardProof>> {
    let proof = |message: v1::ShardProof| {
        Ok(match required("proofs.found", message.found)? {
            v1::shard_proof::Found::Sound(root) => ShardProof::Sound(Digest(fixed("proofs.sound", &root)?)),
            v1::shard_proof::Found::Missing(true) => ShardProof::Missing,
            v1::shard_proof::Found::Missing(false) => {
                return Err(Invalid::new("proofs.missing", "must be true when set"));
            }
            v1::shard_proof::Found::Damaged(why) => ShardProof::Damaged(why),
        })
    };
    message.proofs.into_iter().map(proof).collect()
}

/// Findings to the wire.
pub fn proofs_message(proofs: Vec<ShardProof>) -> v1::VerifyShardsReply {
    let proof = |proof: ShardProof| {
        let found = match proof {
            ShardProof::Sound(root) => v1::shard_proof::Found::Sound(raw(&root.0)),
            ShardProof::Missing => v1::shard_proof::Found::Missing(true),
            ShardProof::Damaged(why) => v1::shard_proof::Found::Damaged(why),
        };
        v1::ShardProof { found: Some(found) }
    };
    v1::VerifyShardsReply { proofs: proofs.into_iter().map(proof).collect() }
}

#[cfg(test)]
mod tests {
    use pacsvault_core::health::{Cause, Tier};

    use super::*;

    fn task_in() -> Task {
        Task {
            instance: InstanceId([1; 16]),
            stripe: StripeIndex(7),
            expected: (0..6).map(|number| VolumeId([number; 16])).collect(),
            persisted: 0b10_1111,
            moves: vec![(ShardIndex(4), VolumeId([9; 16])), (ShardIndex(0), VolumeId([8; 16]))],
            cause: Cause::Respread,
            tier: Tier::Distance(0),
            write_bytes: 99,
        }
    }

    #[test]
    fn tasks_come_back_as_they_were_sent() {
        for tier in [Tier::Unreadable, Tier::Distance(3)] {
            let sent = Task { tier, ..task_in() };
            assert_eq!(task(task_message(&sent)), Ok(sent));
        }
    }

    #[test]
    fn a_task_that_contradicts_itself_is_refused() {
        let good = task_message(&task_in());
        let one = |shard| v1::ShardMove { shard, volume: raw(&[9; 16]) };
        for (bad, field) in [
            (v1::RepairRequest { moves: vec![], ..good.clone() }, "moves"),
            (v1::RepairRequest { moves: vec![one(1), one(1)], ..good.clone() }, "moves.shard"),
            (v1::RepairRequest { moves: vec![one(6)], ..good.clone() }, "moves.shard"),
            (v1::RepairRequest { moves: vec![one(70)], ..good.clone() }, "moves.shard"),
            (v1::RepairRequest { moves: vec![one(300)], ..good.clone() }, "moves.shard"),
            (v1::RepairRequest { persisted: 1 << 6, ..good.clone() }, "persisted"),
            (v1::RepairRequest { expected: vec![raw(&[1; 16])], ..good.clone() }, "expected"),
            (v1::RepairRequest { tier: None, ..good.clone() }, "tier"),
            (v1::RepairRequest { cause: 0, ..good }, "cause"),
        ] {
            assert_eq!(task(bad).expect_err("must be refused").field, field);
        }
    }

    #[test]
    fn every_end_of_a_task_and_every_proof_comes_back() {
        for sent in [
            Done::Reseated { written_bytes: 1, read_bytes: 2, wan_bytes: 3 },
            Done::Outdated,
            Done::Irreparable("fewer than 4 shards".to_owned()),
        ] {
            assert_eq!(done(done_message(sent.clone())), Ok(sent));
        }
        assert_eq!(done(v1::RepairReply { ended: None }).expect_err("says nothing").field, "ended");
        let sent =
            vec![ShardProof::Sound(Digest([3; 32])), ShardProof::Missing, ShardProof::Damaged("chunk 2".to_owned())];
        assert_eq!(proofs(proofs_message(sent.clone())), Ok(sent));
    }

    #[test]
    fn nobody_proves_nothing_or_too_much_at_once() {
        let id = ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(0), shard: ShardIndex(1) };
        let volume = VolumeId([2; 16]);
        assert_eq!(shards_to_prove(&shards_to_prove_message(volume, &[id])), Ok((volume, vec![id])));
        for count in [0, LIST_ROWS_MAX + 1] {
            let refused = shards_to_prove(&shards_to_prove_message(volume, &vec![id; count]));
            assert_eq!(refused.expect_err("must be refused").field, "shards");
        }
    }
}
