//! Who may ask what: one table of request kinds and roles.
//!
//! **Invariants.** A request whose kind and role are not paired in [`ALLOWED`] never reaches the service. The role comes
//! from the caller's certificate, which the handshake has verified, and from nothing else. What commands a gateway
//! may propose is decided here too ([`check_commands`]).

use pacsvault_core::catalog::Command;
use pacsvault_ports::peer::{Caller, Class, Fault};
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
}

/// One row per kind: the roles that may. "Nodes all" keeps forwarding between nodes simple; a node's key can do
/// anything in its cluster anyway, since nodes apply the log.
const ALLOWED: [(Kind, &[Role], &str); 8] = [
    (Kind::Shards, &[Role::Node, Role::Gateway], "read or write shards"),
    (Kind::Catalog, &[Role::Node, Role::Gateway, Role::Operator], "read the catalog"),
    (Kind::Propose, &[Role::Node, Role::Gateway, Role::Operator], "change the catalog"),
    (Kind::Consensus, &[Role::Node], "take part in consensus"),
    (Kind::Status, &[Role::Node, Role::Gateway, Role::Operator], "see the cluster's status"),
    (Kind::Join, &[Role::Node], "join the cluster"),
    (Kind::Administer, &[Role::Node, Role::Operator], "administer the cluster"),
    (Kind::Archive, &[Role::Node, Role::Gateway, Role::Operator], "store or read studies"),
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
pub fn check_commands(caller: &Caller, commands: &[Command]) -> Result<(), Fault> {
    let gateway_may = |command: &Command| matches!(command, Command::Seal(_) | Command::Delete { .. });
    match caller {
        Caller::Gateway(name) if !commands.iter().all(gateway_may) => {
            let text = format!(
                "gateway {name} may seal and delete only; for other changes a certificate of role operator is needed"
            );
            Err(Fault::new(Class::Reject, DENIED, text))
        }
        Caller::Node(_) | Caller::Gateway(_) | Caller::Operator(_) | Caller::Local => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::ClusterId;

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
}
