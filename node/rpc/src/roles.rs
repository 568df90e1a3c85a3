//! Who may ask what: one table of request kinds and roles.
//!
//! **Invariants.** A request whose kind and role are not paired in [`ALLOWED`] never reaches the service. The role comes
//! from the caller's certificate, which the handshake has verified, and from nothing else. What commands a gateway
//! may propose is decided here too ([`check_commands`]).
//!
//! **What a gateway is trusted with.** A gateway hashes, encodes and sends the shards itself, and its seal is believed as
//! far as nobody else can check it: that the shards it names as persisted are persisted, and that they are the content of
//! the digest it names. A stolen gateway key can so seal a digest for which no shards exist, and as long as that record is
//! the newest of its key, an honest gateway that writes the same content is answered with it and drops its own shards
//! (sealing is idempotent by content). Scrubbing and `verify` find such a record, its `coordinator` names the culprit's
//! certificate, and deleting it lets the content be written again; that name is therefore taken from the certificate and
//! cannot be another's. A gateway cannot make content undeletable, nor fence, join or stop nodes.
//!
//! **What an operator is not trusted with.** What nodes find out themselves (that one is silent, that a shard is damaged,
//! where a stripe has been brought to) is not taken from people: a slip there would count shards that are not there.

use pacsvault_core::{
    catalog::Command,
    layout::{NodeState, VolumeState},
};
use pacsvault_ports::peer::{Caller, Class, Fault, Request};
use pacsvault_security::{Identity, Role};

use crate::fault::DENIED;

/// Kinds of requests that are allowed or refused together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Write and read shards.
    Shards,
    /// Look up, list.
    Catalog,
    /// Propose commands.
    Propose,
    /// Raft messages, snapshots, read index.
    Consensus,
    /// Status of the node, layout.
    Status,
    /// Ask to become a member.
    Join,
    /// Initialise a cluster, change volumes and profiles, move leadership.
    Administer,
    /// The thin clients' service.
    Archive,
    /// Signs of life, tasks of repair.
    Healing,
    /// Prove shards from the disk.
    Prove,
}

/// One row per kind: the roles that may. "Nodes all" keeps forwarding between nodes simple; a node's key can do
/// anything in its cluster anyway, since nodes apply the log.
const ALLOWED: [(Kind, &[Role], &str); 10] = [
    (Kind::Shards, &[Role::Node, Role::Gateway], "read or write shards"),
    (Kind::Catalog, &[Role::Node, Role::Gateway, Role::Operator], "read the catalog"),
    (Kind::Propose, &[Role::Node, Role::Gateway, Role::Operator], "change the catalog"),
    (Kind::Consensus, &[Role::Node], "take part in consensus"),
    (Kind::Status, &[Role::Node, Role::Gateway, Role::Operator], "see the cluster's status"),
    (Kind::Join, &[Role::Node], "join the cluster"),
    (Kind::Administer, &[Role::Node, Role::Operator], "administer the cluster"),
    (Kind::Archive, &[Role::Node, Role::Gateway, Role::Operator], "store or read studies"),
    (Kind::Healing, &[Role::Node], "take part in healing"),
    (Kind::Prove, &[Role::Node, Role::Operator], "have shards proven from the disk"),
];

/// Who a verified peer is, as the service sees it. `None` for roles that call no service yet (auditors).
pub fn caller_of(identity: &Identity) -> Option<Caller> {
    match identity.role {
        Role::Node => identity.name.parse().ok().map(Caller::Node),
        Role::Gateway => Some(Caller::Gateway(identity.name.clone())),
        Role::Operator => Some(Caller::Operator(identity.name.clone())),
        Role::Auditor => None,
    }
}

/// The caller, if `identity` may ask for `kind`.
pub fn check(identity: &Identity, kind: Kind) -> Result<Caller, Fault> {
    let (_, roles, what) = ALLOWED.iter().find(|row| row.0 == kind).expect("the table has a row for every kind");
    let allowed = roles.contains(&identity.role).then(|| caller_of(identity)).flatten();
    allowed.ok_or_else(|| {
        let needed: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let text = format!(
            "to {what}, a certificate of role {} is needed; the one shown is of {identity}",
            needed.join(" or ")
        );
        Fault::new(Class::Reject, DENIED, text)
    })
}

/// Refuses commands that `caller` may not propose.
///
/// Digests of states are compared by the leader's own proposals alone, which do not come this way: a replica that
/// differs from one stops, so a wrong one from outside would stop them all.
pub fn check_commands(caller: &Caller, commands: &[Command]) -> Result<(), Fault> {
    if commands.iter().any(|command| matches!(command, Command::CompareDigest { .. })) {
        return Err(denied("only the leader itself proposes to compare digests".to_owned()));
    }
    match caller {
        Caller::Gateway(name) => commands.iter().try_for_each(|command| check_gateway(name, command)),
        Caller::Operator(name) => commands.iter().try_for_each(|command| check_operator(name, command)),
        // A node proposes what healing needs, and forwards what others proposed to it.
        Caller::Node(_) | Caller::Local => Ok(()),
    }
}

/// Refuses what only some callers may ask for in a request that is open to them.
pub fn check_request(caller: &Caller, request: &Request) -> Result<(), Fault> {
    match (caller, request) {
        (_, Request::Propose(commands)) => check_commands(caller, commands),
        (Caller::Gateway(name) | Caller::Operator(name), Request::PutShard(put)) if put.repair => {
            Err(denied(format!("{name} may not write into the room kept for repair; only nodes repair")))
        }
        _ => Ok(()),
    }
}

/// Refuses what the operator `name` may not propose.
fn check_operator(name: &str, command: &Command) -> Result<(), Fault> {
    let refused = match command {
        Command::SetNodeState { state: NodeState::Removed, .. }
        | Command::SetVolumeState { state: VolumeState::Fenced, .. }
        | Command::InitCluster { .. }
        | Command::JoinNode(_)
        | Command::AddVolume { .. }
        | Command::SetProfile { .. }
        | Command::Seal(_)
        | Command::Delete { .. }
        | Command::RetryAside
        | Command::SetStudyProfile { .. }
        | Command::SetDrain { .. } => return Ok(()),
        Command::SetNodeState { .. } => "say whether a node is up; the leader listens for that. It may remove nodes",
        Command::SetVolumeState { .. } => {
            "say whether a volume is up; its node does. It may fence volumes for good, or drain them"
        }
        // Refused until someone decides otherwise, also what a later version adds.
        _ => "propose what nodes find out and repair themselves",
    };
    Err(denied(format!("operator {name} may not {refused}")))
}

/// Refuses what the gateway `name` may not propose.
fn check_gateway(name: &str, command: &Command) -> Result<(), Fault> {
    match command {
        Command::Delete { .. } => Ok(()),
        Command::Seal(seal) if seal.coordinator != name => {
            Err(denied(format!("gateway {name} may not seal in the name of {:?}", seal.coordinator)))
        }
        // Until there is a policy of who may retain what: nobody could delete it.
        Command::Seal(seal) if seal.reserved.retain_until.is_some() => {
            Err(denied(format!("gateway {name} may not set how long content must be retained")))
        }
        Command::Seal(_) => Ok(()),
        // Refused until someone decides otherwise, also what a later version adds.
        _ => Err(denied(format!(
            "gateway {name} may seal and delete only; for other changes a certificate of role operator is needed"
        ))),
    }
}

fn denied(text: String) -> Fault {
    Fault::new(Class::Reject, DENIED, text)
}

#[cfg(test)]
mod tests {
    use pacsvault_core::{
        catalog::{
            Seal,
            command::{DrainTarget, Reseat, Reserved, StripeSeal},
        },
        ids::{
            ClusterId, Digest, InstanceId, LayoutVersion, LogIndex, NodeId, ShardIndex, StripeIndex, VolumeId,
            WallMillis,
        },
        layout::profile::Code,
    };

    use super::*;

    fn identity(role: Role) -> Identity {
        Identity::new(ClusterId([7; 16]), role, "someone").expect("a valid name")
    }

    #[test]
    fn nodes_may_all_and_auditors_nothing_yet() {
        for (kind, ..) in ALLOWED {
            assert!(check(&identity(Role::Node), kind).is_ok(), "{kind:?}");
            assert!(check(&identity(Role::Auditor), kind).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_says_which_certificate_is_needed() {
        let fault = check(&identity(Role::Gateway), Kind::Administer).expect_err("gateways do not administer");
        assert_eq!(fault.code, DENIED);
        assert!(fault.message.contains("node or operator"), "{}", fault.message);
        assert!(fault.message.contains("gateway/someone"), "{}", fault.message);
        assert!(check(&identity(Role::Operator), Kind::Shards).is_err());
        assert!(check(&identity(Role::Gateway), Kind::Consensus).is_err());
    }

    #[test]
    fn a_gateway_may_delete_but_not_fence_a_volume() {
        let key = "main/1.2/1.3/1.4".parse().expect("a key");
        let delete = Command::Delete { key, version: None };
        let volume = pacsvault_core::ids::VolumeId([1; 16]);
        let fence = Command::SetVolumeState { volume, state: pacsvault_core::layout::VolumeState::Fenced };
        let gateway = Caller::Gateway("g".to_owned());
        assert!(check_commands(&gateway, std::slice::from_ref(&delete)).is_ok());
        assert!(check_commands(&gateway, &[delete, fence.clone()]).is_err());
        assert!(check_commands(&Caller::Operator("o".to_owned()), &[fence]).is_ok());
    }

    #[test]
    fn an_operator_removes_and_drains_but_says_nothing_that_nodes_find_out() {
        let operator = Caller::Operator("o".to_owned());
        let node = Caller::Node("n".parse().expect("a name"));
        let gateway = Caller::Gateway("g".to_owned());
        let (id, volume) = (NodeId(3), VolumeId([1; 16]));
        let target = DrainTarget::Node(id);
        let study = "1.2.3".parse().expect("a UID");
        let tenant = "main".parse().expect("a name");
        let state = |state| Command::SetVolumeState { volume, state };
        for allowed in [
            Command::SetNodeState { node: id, state: NodeState::Removed },
            state(VolumeState::Fenced),
            Command::SetDrain { target, draining: true },
            Command::RetryAside,
            Command::SetStudyProfile { tenant, study, profile: None },
        ] {
            assert!(check_commands(&operator, std::slice::from_ref(&allowed)).is_ok(), "{allowed:?}");
            assert!(check_commands(&gateway, std::slice::from_ref(&allowed)).is_err(), "{allowed:?}");
            assert!(check_commands(&node, &[allowed]).is_ok(), "forwarded by a node");
        }
        let instance = InstanceId([1; 16]);
        let stripe = StripeIndex(0);
        let reseat = Reseat {
            instance,
            stripe,
            expected: vec![volume; 3],
            persisted: 7,
            moves: vec![(ShardIndex(0), volume)],
            not_after: WallMillis(1),
        };
        for refused in [
            Command::SetNodeState { node: id, state: NodeState::Up },
            Command::SetNodeState { node: id, state: NodeState::Down },
            state(VolumeState::Up),
            state(VolumeState::ReadOnly),
            state(VolumeState::Away),
            Command::Reseat(reseat),
            Command::ReportDamage { volume, shards: Vec::new() },
            Command::SetAside { instance, stripe, reason: String::new() },
            Command::Activate { version: 2 },
        ] {
            let fault = check_commands(&operator, std::slice::from_ref(&refused)).expect_err("is refused");
            assert_eq!((fault.class, fault.code), (Class::Reject, DENIED), "{refused:?}");
            assert!(check_commands(&gateway, std::slice::from_ref(&refused)).is_err(), "{refused:?}");
            assert!(check_commands(&node, &[refused]).is_ok(), "healing needs it");
        }
    }

    fn seal_by(coordinator: &str, retain_until: Option<WallMillis>) -> Command {
        let digest = Digest::of(b"");
        let stripe = StripeSeal { stripe_bytes: 0, shard_root: digest, placement: Vec::new(), persisted: 0 };
        Command::Seal(Box::new(Seal {
            instance: InstanceId::new(WallMillis(1), 1),
            key: "main/1.2/1.3/1.4".parse().expect("a key"),
            size_bytes: 0,
            digest,
            profile: "standard".parse().expect("a name"),
            profile_version: 1,
            code: Code::new(2, 1).expect("a code"),
            layout: LayoutVersion(1),
            stripes: vec![stripe],
            media_type: String::new(),
            attributes: Vec::new(),
            strict: false,
            coordinator: coordinator.to_owned(),
            reserved: Reserved { retain_until, ..Reserved::default() },
        }))
    }

    #[test]
    fn a_gateway_seals_in_its_own_name_and_retains_nothing() {
        let gateway = Caller::Gateway("g".to_owned());
        assert!(check_commands(&gateway, &[seal_by("g", None)]).is_ok());
        let fault = check_commands(&gateway, &[seal_by("g", None), seal_by("h", None)]).expect_err("another's name");
        assert_eq!((fault.class, fault.code), (Class::Reject, DENIED));
        assert!(check_commands(&gateway, &[seal_by("g", Some(WallMillis(u64::MAX)))]).is_err());
        // A node forwards what gateways proposed to it.
        let node = Caller::Node("n".parse().expect("a name"));
        assert!(check_commands(&node, &[seal_by("g", None)]).is_ok());
    }

    #[test]
    fn nobody_from_outside_compares_digests() {
        let compare = [Command::CompareDigest { index: LogIndex(1), digest: Digest::of(b"?") }];
        let callers = [
            Caller::Node("n".parse().expect("a name")),
            Caller::Gateway("g".to_owned()),
            Caller::Operator("o".to_owned()),
            Caller::Local,
        ];
        for caller in callers {
            assert!(check_commands(&caller, &compare).is_err(), "{caller:?}");
        }
    }
}
