//! Starts the consensus replica of a machine on its simulated stores.
//!
//! **Invariants.** The options are those of production but for the knobs that the scenario draws.

use std::{sync::Arc, time::Duration};

use pacsvault_consensus::Replica;
use pacsvault_core::ids::NodeId;
use pacsvault_ports::{
    BoxFuture,
    env::SharedEnv,
    kv::Kv,
    peer::{Class, Fault, Peer},
};
use pacsvault_service::{Profile, ReplicaStarter};
use pacsvault_simkv::SimKvMedia;

use crate::{
    chronicle::Chronicle,
    faulty::LyingKv,
    machine::Fuse,
    runtime::SimRuntime,
    scenario::{PlantedBug, Scenario},
};

/// What a machine's replica is made of.
pub(super) struct Starter {
    pub(super) profile: Profile,
    pub(super) env: SharedEnv,
    pub(super) peer: Arc<dyn Peer>,
    pub(super) log: SimKvMedia,
    pub(super) state: SimKvMedia,
    pub(super) fuse: Arc<Fuse>,
    pub(super) chronicle: Arc<Chronicle>,
    pub(super) scenario: Scenario,
}

impl ReplicaStarter for Starter {
    fn start(&self, node: NodeId) -> BoxFuture<'static, Result<Arc<dyn Replica>, Fault>> {
        let lie = self.scenario.bug == Some(PlantedBug::LogAcksBeforeSync);
        let store = |inner: Arc<dyn Kv>, lie, chronicle| {
            let fuse = Arc::clone(&self.fuse);
            Arc::new(LyingKv { inner, fuse, lie, chronicle }) as Arc<dyn Kv>
        };
        let log = store(self.log.open(), lie, Some(Arc::clone(&self.chronicle)));
        let state = store(self.state.open(), false, None);
        let profile = &self.profile;
        let mut options = pacsvault_consensus::Options::new(
            node,
            profile.cluster,
            profile.incarnation,
            (profile.name.clone(), profile.site.clone()),
            profile.address.clone(),
        );
        options.snapshot_every = self.scenario.snapshot_every;
        options.log_keep = self.scenario.log_keep;
        options.deadline = Duration::from_secs(4);
        options.voter_grace = self.scenario.pace.voter_grace;
        options.preferred_site = self.scenario.pace.preferred_leader_site.clone();
        options.leader_settle = Duration::from_secs(2);
        let knobs = &self.scenario.knobs;
        options.payload_entries_max = knobs.payload_entries_max;
        options.snapshot_piece_bytes = knobs.snapshot_piece_bytes;
        options.cache_bytes_max = knobs.cache_bytes_max;
        options.linger = Duration::from_micros(knobs.linger_micros);
        options.compare_every = Duration::from_millis(knobs.compare_every_millis);
        let (env, peer) = (self.env.clone(), Arc::clone(&self.peer));
        Box::pin(async move {
            let started = pacsvault_consensus::start::<SimRuntime>(options, env, peer, log, state).await;
            let replica = started.map_err(|error| Fault::new(Class::Bug, "PV-CONSENSUS", error.to_string()))?;
            Ok(Arc::new(replica) as Arc<dyn Replica>)
        })
    }
}
