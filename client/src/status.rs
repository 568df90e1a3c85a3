//! The cluster as all its nodes see it, asked at once.
//!
//! **Invariants.** A node that does not answer in time is `Away` with the reason; nothing is guessed about it. Roles and leader
//! are those of the answer with the highest term.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use pacsvault_core::{
    ids::{ClusterId, NodeId, NodeName, SiteName},
    layout::{Layout, NodeState},
};
use pacsvault_ports::peer::{Fault, NodeStatus, Reply, Request, Target};

use crate::{Client, client::target_of};

/// How long a node has to answer: a round trip around the world and a pause of its disk.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

/// What a node does in consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftRole {
    /// Orders the log.
    Leader,
    /// Votes.
    Voter,
    /// Follows.
    Learner,
    /// Not a member, or nobody who answers knows.
    None,
}

impl RaftRole {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::None => "none",
        }
    }
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its name; an endpoint that did not answer and is not in the layout has none.
    pub name: Option<NodeName>,
    /// Its site.
    pub site: Option<SiteName>,
    /// Its id, once it is a member.
    pub id: Option<NodeId>,
    /// Where it is reached.
    pub address: String,
    /// What the layout says of it.
    pub state: Option<NodeState>,
    /// Its role.
    pub role: RaftRole,
    /// Its own words, or why there are none.
    pub answer: Result<Box<NodeStatus>, Fault>,
}

/// The whole cluster.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// Which.
    pub cluster: ClusterId,
    /// The layout, when anybody could tell it.
    pub layout: Result<Arc<Layout>, Fault>,
    /// Who leads, as far as the answers tell.
    pub leader: Option<NodeName>,
    /// All nodes not removed; before there is a layout, the endpoints.
    pub nodes: Vec<NodeView>,
}

impl Client {
    /// Asks every node how it is.
    pub async fn status(&self) -> ClusterView {
        let own: Vec<Asked> = self.seeds().into_iter().map(|target| Asked { target, node: None }).collect();
        // A cluster that was never made has no layout, and nobody should wait half a minute to learn that.
        let layout = tokio::time::timeout(ANSWER_WITHIN * 2, self.layout()).await.unwrap_or_else(|_| {
            let text = "no node told the layout in time: not initialised yet, or no majority of voters answers";
            Err(Fault::new(pacsvault_ports::peer::Class::Retry, "PV-UNAVAILABLE", text))
        });
        let asked: Vec<Asked> = match &layout {
            Ok(layout) => {
                let members = layout.nodes.values().filter(|node| node.state != NodeState::Removed);
                members.map(|node| Asked { target: target_of(node), node: Some(node.id) }).collect()
            }
            Err(_) => own,
        };
        let peer = self.shared_peer();
        let answers = join_all(asked.into_iter().map(|asked| {
            let call = peer.call(&asked.target, Request::Status, ANSWER_WITHIN);
            async move { (asked, status_of(call.await)) }
        }))
        .await;
        self.assemble(layout, answers)
    }

    fn assemble(&self, layout: Result<Arc<Layout>, Fault>, answers: Vec<(Asked, Answer)>) -> ClusterView {
        let newest = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        let newest = newest.max_by_key(|status| (status.term, status.leader.is_some(), status.applied)).cloned();
        // Who does not answer may still be held for the leader by the others, but leads nobody that we can see.
        let role_of = |id: Option<NodeId>, answers: bool| match (&newest, id) {
            (Some(status), Some(id)) if status.leader == Some(id) && answers => RaftRole::Leader,
            (Some(status), Some(id)) if status.voters.contains(&id) => RaftRole::Voter,
            (Some(status), Some(id)) if status.learners.contains(&id) => RaftRole::Learner,
            _ => RaftRole::None,
        };
        let known = layout.as_ref().ok();
        let view = |(asked, answer): (Asked, Answer)| {
            let member = asked.node.and_then(|id| known?.nodes.get(&id));
            let said = answer.as_ref().ok();
            let id = asked.node.or_else(|| said?.node);
            NodeView {
                name: member.map(|node| node.name.clone()).or_else(|| Some(said?.name.clone())),
                site: member.map(|node| node.site.clone()).or_else(|| Some(said?.site.clone())),
                id,
                address: asked.target.address,
                state: member.map(|node| node.state),
                role: role_of(id, answer.is_ok()),
                answer,
            }
        };
        let nodes: Vec<NodeView> = answers.into_iter().map(view).collect();
        let leader = nodes.iter().find(|node| node.role == RaftRole::Leader).and_then(|node| node.name.clone());
        ClusterView { cluster: self.credentials().cluster(), layout, leader, nodes }
    }
}

type Answer = Result<Box<NodeStatus>, Fault>;

struct Asked {
    target: Target,
    node: Option<NodeId>,
}

fn status_of(answer: Result<Reply, Fault>) -> Answer {
    match answer? {
        Reply::Status(status) => Ok(status),
        _ => Err(Fault::new(
            pacsvault_ports::peer::Class::Bug,
            "PV-BUG",
            "the node answered something else than its status",
        )),
    }
}
