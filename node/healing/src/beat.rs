//! Signs of life: sent by every node to the leader, heard by the leader.
//!
//! **Invariants.** A beat tells all volumes that the node serves, as they are at that moment. A beat that could not be
//! delivered is not repeated: the next one says more. Only beats of members in their present life are heard.

use std::{sync::Arc, time::Duration};

use pacsvault_core::health::report::{Heartbeat, ServedVolume};
use pacsvault_ports::peer::{Class, Fault, Request};

use crate::{Healer, conductor::target_of, telemetry};

/// Longest wait for a beat to arrive: a leader that is slower hears the next one.
const BEAT_DEADLINE: Duration = Duration::from_secs(2);

impl Healer {
    /// Beats for ever. A beat is not waited for longer than until the next.
    pub(crate) async fn beat(self: Arc<Self>) {
        let every = self.parts.pace.heartbeat;
        loop {
            let healer = self.clone();
            let beat = Box::pin(async move {
                if let Err(fault) = healer.beat_once().await {
                    tracing::debug!(code = fault.code, %fault, "no leader heard this sign of life");
                }
            });
            self.parts.env.spawn(beat);
            self.parts.env.sleep(every).await;
        }
    }

    async fn beat_once(&self) -> Result<(), Fault> {
        let status = self.parts.replica.status();
        let nobody = || Fault::new(Class::Retry, "PV-NO-LEADER", "no leader is known");
        let leader = status.leader.ok_or_else(nobody)?;
        let beat = self.state_of_node(status.node);
        telemetry::allowed(beat.allowed_bytes_per_s);
        if leader == status.node {
            return self.heartbeat(beat).await;
        }
        let target = self.parts.replica.layout().and_then(|layout| target_of(&layout, leader)).ok_or_else(nobody)?;
        let deadline = BEAT_DEADLINE.min(self.parts.pace.suspect_after);
        self.parts.peer.call(&target, Request::Heartbeat(Box::new(beat)), deadline).await.map(|_| ())
    }

    fn state_of_node(&self, node: pacsvault_core::ids::NodeId) -> Heartbeat {
        let volumes = self.parts.served.volumes().into_iter().map(|status| ServedVolume {
            volume: status.volume,
            state: status.state,
            shards: status.shards,
            used_bytes: status.used_bytes,
            free_bytes: status.free_bytes,
            scrub: status.scrub,
        });
        Heartbeat {
            node,
            incarnation: self.parts.incarnation,
            volumes: volumes.collect(),
            tasks: u32::try_from(self.worker.tasks()).unwrap_or(u32::MAX),
            allowed_bytes_per_s: self.worker.allowed(),
        }
    }

    /// A node gives a sign of life.
    ///
    /// # Errors
    /// This node does not lead, or the sender is not who the cluster knows.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<(), Fault> {
        let unknown = |text: String| Err(Fault::new(Class::Reject, "PV-NOT-MEMBER", text));
        if let Some(node) = self.parts.replica.layout().and_then(|layout| layout.nodes.get(&beat.node).cloned())
            && node.incarnation != beat.incarnation
        {
            return unknown(format!("node {} ({}) was known with other data", node.id, node.name));
        }
        let now = self.parts.env.now().0;
        let heard = self.reign(|reign| reign.liveness.heard(now, &beat));
        heard.ok_or_else(|| Fault::new(Class::Retry, "PV-NOT-LEADER", "this node does not lead; tell the leader"))
    }
}
