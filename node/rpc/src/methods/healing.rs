//! The methods of healing and of growing and shrinking: how their requests and replies read on the wire.
//!
//! **Invariants.** As of [`crate::methods`], which comes here with what it does not know itself.

use pacsvault_core::{
    catalog::Command,
    ids::{NodeId, VolumeId},
    layout::NodeState,
};
use pacsvault_ports::peer::{Class, Fault, Reply, Request};
use pacsvault_proto::v1;

use super::{Method, accepted, read};
use crate::{
    convert::{self, fixed, health, raw, repair},
    fault::{Invalid, NO_METHOD},
    frames::{Frames, Payload},
};

/// A request as a method and its message. `NO_METHOD` for requests that do not travel.
pub fn encode_request(request: Request) -> Result<(Method, Payload), Fault> {
    Ok(match request {
        Request::Heartbeat(beat) => (Method::Heartbeat, Payload::of(&repair::heartbeat_message(&beat))),
        Request::Repair(task) => (Method::Repair, Payload::of(&repair::task_message(&task))),
        Request::Health => (Method::Health, Payload::of(&v1::HealthRequest {})),
        Request::WhatIf(loss) => {
            (Method::WhatIf, Payload::of(&v1::WhatIfRequest { loss: health::loss_message(&loss) }))
        }
        Request::DrainPlan(target) => {
            let target = health::drain_target_message(target);
            (Method::DrainPlan, Payload::of(&v1::DrainPlanRequest { target }))
        }
        Request::ScrubNow(volume) => {
            let volume = volume.map(|volume| raw(&volume.0)).unwrap_or_default();
            (Method::ScrubNow, Payload::of(&v1::ScrubNowRequest { volume }))
        }
        Request::VerifyShards { volume, shards } => {
            (Method::VerifyShards, Payload::of(&repair::shards_to_prove_message(volume, &shards)))
        }
        _ => return Err(Fault::new(Class::Reject, NO_METHOD, "this request has no form on the wire")),
    })
}

/// A received message of `method` as a request.
pub fn decode_request(method: Method, frames: Frames) -> Result<Request, Invalid> {
    Ok(match method {
        Method::Heartbeat => Request::Heartbeat(Box::new(repair::heartbeat(read(frames)?)?)),
        Method::Repair => Request::Repair(Box::new(repair::task(read(frames)?)?)),
        Method::Health => Request::Health,
        Method::WhatIf => Request::WhatIf(health::loss(read::<v1::WhatIfRequest>(frames)?.loss)?),
        Method::DrainPlan => Request::DrainPlan(health::drain_target(read::<v1::DrainPlanRequest>(frames)?.target)?),
        Method::ScrubNow => {
            let volume = read::<v1::ScrubNowRequest>(frames)?.volume;
            let volume = (!volume.is_empty()).then(|| fixed("volume", &volume).map(VolumeId)).transpose()?;
            Request::ScrubNow(volume)
        }
        Method::VerifyShards => {
            let (volume, shards) = repair::shards_to_prove(&read(frames)?)?;
            Request::VerifyShards { volume, shards }
        }
        Method::SetDrain => {
            let message: v1::SetDrainRequest = read(frames)?;
            let target = health::drain_target(message.target)?;
            proposal(Command::SetDrain { target, draining: message.draining })
        }
        Method::RemoveNode => {
            let node = NodeId(read::<v1::RemoveNodeRequest>(frames)?.node);
            proposal(Command::SetNodeState { node, state: NodeState::Removed })
        }
        Method::RetryAside => proposal(Command::RetryAside),
        Method::SetStudyProfile => {
            let message: v1::SetStudyProfileRequest = read(frames)?;
            proposal(Command::SetStudyProfile {
                tenant: convert::text("tenant", &message.tenant)?,
                study: convert::text("study", &message.study)?,
                profile: convert::optional_text("profile", &message.profile)?,
            })
        }
        other => return Err(Invalid::new("method", format!("{} is no method of healing", other.path()))),
    })
}

fn proposal(command: Command) -> Request {
    Request::Propose(vec![command])
}

/// What the service replied, as the message of `method`.
pub fn encode_reply(method: Method, reply: Reply) -> Result<Payload, Fault> {
    Ok(match (method, reply) {
        (Method::Heartbeat, Reply::Done) => Payload::of(&v1::HeartbeatReply {}),
        (Method::Repair, Reply::Repaired(done)) => Payload::of(&repair::done_message(done)),
        (Method::Health, Reply::Health(health)) => Payload::of(&health::health_message(&health)),
        (Method::WhatIf, Reply::WhatIf(what_if)) => Payload::of(&health::what_if_message(&what_if)),
        (Method::DrainPlan, Reply::DrainPlan(plan)) => Payload::of(&health::drain_plan_message(&plan)),
        (Method::ScrubNow, Reply::Done) => Payload::of(&v1::ScrubNowReply {}),
        (Method::VerifyShards, Reply::Verified(proofs)) => Payload::of(&repair::proofs_message(proofs)),
        (Method::SetDrain, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::SetDrainReply {})
        }
        (Method::RemoveNode, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::RemoveNodeReply {})
        }
        (Method::RetryAside, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::RetryAsideReply {})
        }
        (Method::SetStudyProfile, Reply::Outcomes(outcomes)) => {
            accepted(outcomes)?;
            Payload::of(&v1::SetStudyProfileReply {})
        }
        (method, _) => {
            let text = format!("{} was answered with something else", method.path());
            return Err(Fault::new(Class::Bug, "PV-BUG", text));
        }
    })
}

/// A received message of `method` as a reply.
pub fn parse_reply(method: Method, frames: Frames) -> Result<Reply, Invalid> {
    Ok(match method {
        Method::Heartbeat | Method::ScrubNow => Reply::Done,
        Method::Repair => Reply::Repaired(repair::done(read(frames)?)?),
        Method::Health => Reply::Health(Box::new(health::health(read(frames)?)?)),
        Method::WhatIf => Reply::WhatIf(Box::new(health::what_if(read(frames)?)?)),
        Method::DrainPlan => Reply::DrainPlan(Box::new(health::drain_plan(read(frames)?)?)),
        Method::VerifyShards => Reply::Verified(repair::proofs(read(frames)?)?),
        _ => return Err(Invalid::new("method", "is for other clients")),
    })
}
