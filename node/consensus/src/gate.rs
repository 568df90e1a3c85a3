//! Which commands may enter the log: none that a member of the cluster could not read.
//!
//! **Invariants.** A command of a version that is not in force, or an activation that a member does not understand, never
//! reaches the log: a replica of an older release would stop at it. What is refused here is refused by what was committed
//! when it was asked, and changes nothing. The version in force never goes down, so what passes stays allowed.
//!
//! One gap is left to `apply`, which refuses as well: a node of an older release that joins while an activation is under
//! way stops at that entry, and is told why when it joins again.

use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, command::COMMANDS_VERSION},
    layout::{Layout, NodeState},
};

/// What is refused of `commands`, by position; `None` when nothing is, which is nearly always.
pub(crate) fn refused(commands: &[Command], layout: Option<&Layout>) -> Option<Vec<Option<Rejection>>> {
    if commands.iter().all(|command| refusal(command, layout).is_none()) {
        return None;
    }
    Some(commands.iter().map(|command| refusal(command, layout)).collect())
}

fn refusal(command: &Command, layout: Option<&Layout>) -> Option<Rejection> {
    let present = layout.map_or(1, |layout| layout.format);
    let pending = |needed| Some(Rejection::UpgradePending { needed, present });
    match command {
        Command::Activate { version } if *version > COMMANDS_VERSION => pending(*version),
        Command::Activate { version } if *version > present && !understood(layout, *version) => pending(*version),
        other if other.version() > present => pending(other.version()),
        _ => None,
    }
}

/// True when every member that may still apply entries understands `version`.
pub(crate) fn understood(layout: Option<&Layout>, version: u32) -> bool {
    let Some(layout) = layout else { return false };
    let mut members = layout.nodes.values().filter(|node| node.state != NodeState::Removed).peekable();
    let ignored = pacsvault_core::probe::planted("gate-ignored");
    members.peek().is_some() && members.all(|node| node.version >= version || ignored)
}

/// The commands that are not refused.
pub(crate) fn admitted(commands: Vec<Command>, refused: &[Option<Rejection>]) -> Vec<Command> {
    commands.into_iter().zip(refused).filter(|(_, refused)| refused.is_none()).map(|(command, _)| command).collect()
}

/// One outcome per command again: the refusals, and between them what became of those that were admitted.
pub(crate) fn merged(refused: Vec<Option<Rejection>>, outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let mut outcomes = outcomes.into_iter();
    refused.into_iter().filter_map(|refused| refused.map(Outcome::Rejected).or_else(|| outcomes.next())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pacsvault_core::{
        catalog::Reseat,
        ids::{ClusterId, Incarnation, InstanceId, LayoutVersion, NodeId, StripeIndex, VolumeId, WallMillis},
        layout::{Node, Roles, VolumeState},
    };

    use super::*;

    fn layout(format: u32, versions: &[u32]) -> Layout {
        let node = |(index, version): (usize, &u32)| {
            let id = NodeId(index as u64 + 1);
            let node = Node {
                id,
                name: format!("n{id}").parse().expect("a name"),
                site: "a".parse().expect("a name"),
                address: "x:1".to_owned(),
                roles: Roles { storage: true, voter: true },
                state: NodeState::Up,
                incarnation: Incarnation([0; 16]),
                version: *version,
                draining: false,
            };
            (id, node)
        };
        Layout {
            cluster: ClusterId([0; 16]),
            version: LayoutVersion(1),
            format,
            nodes: versions.iter().enumerate().map(node).collect(),
            volumes: BTreeMap::new(),
            profiles: BTreeMap::new(),
            default_profile: "standard".parse().expect("a name"),
        }
    }

    fn pending(needed: u32, present: u32) -> Option<Rejection> {
        Some(Rejection::UpgradePending { needed, present })
    }

    #[test]
    fn commands_of_version_2_wait_until_it_is_in_force() {
        let reseat = Command::Reseat(Reseat {
            instance: InstanceId([0; 16]),
            stripe: StripeIndex(0),
            expected: Vec::new(),
            persisted: 0,
            moves: Vec::new(),
            not_after: WallMillis(0),
        });
        let away = Command::SetVolumeState { volume: VolumeId([1; 16]), state: VolumeState::Away };
        let fence = Command::SetVolumeState { volume: VolumeId([1; 16]), state: VolumeState::Fenced };
        let commands = [fence.clone(), reseat, away, fence.clone()];
        let old = layout(1, &[2, 1]);
        let found = refused(&commands, Some(&old)).expect("two are refused");
        assert_eq!(found, vec![None, pending(2, 1), pending(2, 1), None]);
        assert_eq!(admitted(commands.to_vec(), &found), vec![fence.clone(), fence]);
        let merged = merged(found, vec![Outcome::Done, Outcome::Done]);
        assert!(matches!(
            merged.as_slice(),
            [Outcome::Done, Outcome::Rejected(_), Outcome::Rejected(_), Outcome::Done]
        ));
        assert_eq!(refused(&commands, Some(&layout(2, &[2, 2]))), None);
    }

    #[test]
    fn an_activation_waits_for_the_last_member_and_for_this_build() {
        let activate = |version| [Command::Activate { version }];
        let of = |version, layout: &Layout| refused(&activate(version), Some(layout)).and_then(|mut all| all.remove(0));
        assert_eq!(of(2, &layout(1, &[2, 2, 1])), pending(2, 1));
        assert_eq!(of(2, &layout(1, &[2, 2, 2])), None);
        assert_eq!(of(COMMANDS_VERSION + 1, &layout(2, &[9, 9])), pending(COMMANDS_VERSION + 1, 2));
        // A repetition, and what is in force anyway, is for `apply` to answer.
        assert_eq!(of(1, &layout(2, &[2])), None);
        let mut removed = layout(1, &[2, 1]);
        removed.nodes.get_mut(&NodeId(2)).expect("known").state = NodeState::Removed;
        assert_eq!(of(2, &removed), None);
        assert_eq!(refused(&activate(2), None), Some(vec![pending(2, 1)]));
    }
}
