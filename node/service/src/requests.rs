//! One function per request: thin, because each room answers its own.

use std::sync::Arc;

use pacsvault_core::{
    catalog::{Command, query},
    health::report::Heartbeat,
    ids::{Digest, LogIndex, Term, VolumeId},
    layout::VolumeState,
    limits::LIST_ROWS_MAX,
    shard::ShardId,
};
use pacsvault_healing::{Upkeep, damage::proof};
use pacsvault_ports::{
    BoxFuture,
    peer::{
        Caller, Class, Fault, Freshness, GetShard, List, Lookup, NodeStatus, PutShard, Reply, Request, Service,
        ShardProof, VolumeStatus,
    },
};
use pacsvault_volume::{Error, Purpose, Volume};

use crate::Node;

/// The node as its peers and clients see it.
pub struct Front(pub Arc<Node>);

impl Service for Front {
    fn handle(&self, caller: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        let node = self.0.clone();
        Box::pin(async move { node.answer(caller, request).await })
    }
}

impl Node {
    async fn answer(self: Arc<Self>, caller: Caller, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::PutShard(put) => self.put_shard(*put).await,
            Request::GetShard(get) => self.get_shard(get).await,
            Request::Layout(freshness) => self.layout(freshness).await,
            Request::Lookup(lookup) => self.lookup(lookup).await,
            Request::List(list) => self.list(list).await,
            Request::Propose(commands) => self.propose(caller, commands).await,
            Request::Raft(message) => {
                let from = if let Caller::Node(name) = caller { Some(name) } else { None };
                self.member()?.handle(from, message).await.map(Reply::Raft)
            }
            Request::SnapshotFiles { id } => self.member()?.snapshot_files(&id).await.map(Reply::SnapshotFiles),
            Request::SnapshotRead { id, name, offset_bytes, len_bytes } => {
                self.member()?.snapshot_read(&id, &name, offset_bytes, len_bytes).await.map(Reply::Bytes)
            }
            Request::ReadIndex => self.member()?.read_index().await.map(Reply::ReadIndex),
            Request::Join(join) => match &caller {
                Caller::Node(name) if *name != join.name => {
                    let text = format!("the certificate names node {name}, the request node {}", join.name);
                    Err(Fault::new(Class::Reject, "PV-JOIN-REFUSED", text))
                }
                _ => self.admit(join).await,
            },
            Request::JoinVia { seeds } => {
                let node = self.join_via(&seeds).await?;
                Ok(Reply::Joined { node, cluster: self.profile.cluster, incarnation: self.profile.incarnation })
            }
            Request::InitCluster { profiles } => {
                let node = self.found(&profiles).await?;
                Ok(Reply::Joined { node, cluster: self.profile.cluster, incarnation: self.profile.incarnation })
            }
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::TransferLeader { to } => self.member()?.transfer_leader(to).await.map(|()| Reply::Done),
            Request::Heartbeat(beat) => {
                self.check_sender(&caller, &beat)?;
                self.healing()?.heartbeat(*beat).await.map(|()| Reply::Done)
            }
            Request::Repair(task) => self.healing()?.repair(*task).await.map(Reply::Repaired),
            Request::Health => {
                let healer = self.healing()?;
                let health = match caller {
                    // Already forwarded once: never in circles.
                    Caller::Node(_) => healer.health_here().await?,
                    Caller::Gateway(_) | Caller::Operator(_) | Caller::Local => healer.health().await?,
                };
                Ok(Reply::Health(Box::new(health)))
            }
            Request::WhatIf(loss) => {
                let healer = self.healing()?;
                let answer = match caller {
                    Caller::Node(_) => healer.what_if_here(loss).await?,
                    Caller::Gateway(_) | Caller::Operator(_) | Caller::Local => healer.what_if(loss).await?,
                };
                Ok(Reply::WhatIf(Box::new(answer)))
            }
            Request::DrainPlan(target) => {
                let healer = self.healing()?;
                let plan = match caller {
                    Caller::Node(_) => healer.drain_plan_here(target).await?,
                    Caller::Gateway(_) | Caller::Operator(_) | Caller::Local => healer.drain_plan(target).await?,
                };
                Ok(Reply::DrainPlan(Box::new(plan)))
            }
            Request::ScrubNow(volume) => self.keeping()?.scrub_now(volume).map(|()| Reply::Done),
            Request::VerifyShards { volume, shards } => self.prove(volume, shards).await.map(Reply::Verified),
            _ => Err(Fault::new(Class::Reject, "PV-UNSUPPORTED", "this node does not know that request; upgrade it")),
        }
    }

    fn keeping(&self) -> Result<Arc<Upkeep>, Fault> {
        self.member()?;
        self.upkeep().ok_or_else(|| Fault::new(Class::Retry, "PV-NOT-MEMBER", "this node is starting; ask again"))
    }

    /// Proves shards from the disk, one after the other.
    async fn prove(&self, id: VolumeId, shards: Vec<ShardId>) -> Result<Vec<ShardProof>, Fault> {
        if shards.len() > LIST_ROWS_MAX {
            let text = format!("{} shards are to be proven, at most {LIST_ROWS_MAX} are allowed at once", shards.len());
            return Err(Fault::new(Class::Reject, "PV-INVALID", text));
        }
        let volume = self.volume(id)?;
        let mut proofs = Vec::with_capacity(shards.len());
        for shard in shards {
            let proof = proof(volume, shard).await.map_err(Fault::from)?;
            if !matches!(proof, ShardProof::Sound(_)) {
                self.suspect(id, shard);
            }
            proofs.push(proof);
        }
        Ok(proofs)
    }

    /// A shard could not be read, or is not there: whether that is wrong is looked into beside.
    fn suspect(&self, volume: VolumeId, shard: ShardId) {
        if let Some(upkeep) = self.upkeep() {
            upkeep.suspect(volume, shard);
        }
    }

    fn volume(&self, id: VolumeId) -> Result<&Arc<Volume>, Fault> {
        self.volumes.get(&id).map(|own| &own.volume).ok_or_else(|| {
            let text = format!("volume {id} is not on node {}; refresh the layout", self.profile.name);
            Fault::new(Class::NotFound, "PV-NO-VOLUME", text)
        })
    }

    /// A node may speak for itself only.
    fn check_sender(&self, caller: &Caller, beat: &Heartbeat) -> Result<(), Fault> {
        let Caller::Node(name) = caller else { return Ok(()) };
        let layout = self.replica().and_then(|replica| replica.layout());
        match layout.as_ref().and_then(|layout| layout.nodes.get(&beat.node)) {
            Some(node) if node.name != *name => {
                let text = format!("the certificate names node {name}, the sign of life is of node {}", node.name);
                Err(Fault::new(Class::Reject, "PV-DENIED", text))
            }
            _ => Ok(()),
        }
    }

    async fn put_shard(self: &Arc<Self>, put: PutShard) -> Result<Reply, Fault> {
        let id = put.volume;
        let purpose = if put.repair { Purpose::Repair } else { Purpose::Client };
        if let Some(reason) = self.distrusted(id) {
            return Err(Error::Poisoned { volume: id, reason: reason.into() }.into());
        }
        let (shard, began) = (put.header.id, self.env.now().0);
        if self.stale.get(&id).is_some_and(|stale| !stale.touch(shard)) {
            pacsvault_core::sometimes!("recovery: write refused while an old copy is being deleted");
            let text = format!("an old copy of shard {shard} is being deleted from volume {id}; ask again");
            return Err(Fault::new(Class::Retry, "PV-VOLUME-BUSY", text));
        }
        let by_repair = put.repair;
        if !by_repair {
            self.client_asks();
        }
        match self.volume(id)?.put(put.header, put.data, purpose).await {
            Ok(durable) => {
                if !by_repair {
                    self.felt(began);
                }
                Ok(Reply::Durable(durable))
            }
            Err(error) => {
                if matches!(error, Error::Write { .. } | Error::Poisoned { .. }) {
                    self.fence(id, &error.to_string());
                }
                Err(error.into())
            }
        }
    }

    async fn get_shard(&self, get: GetShard) -> Result<Reply, Fault> {
        let began = self.env.now().0;
        if !get.background {
            self.client_asks();
        }
        let read = self.volume(get.volume)?.get(get.id, get.offset_bytes, get.len_bytes).await;
        // What repair waits for says nothing of clients. Nodes read for clients, too: whoever calls, the request tells.
        if read.is_ok() && !get.background {
            self.felt(began);
        }
        if let Err(Error::Corrupt { .. } | Error::Read { .. } | Error::NotFound { .. }) = &read {
            self.suspect(get.volume, get.id);
        }
        read.map(|shard| Reply::Shard(Box::new(shard))).map_err(Fault::from)
    }

    /// A client's request for a shard begins: scrubbing and compaction yield for a while.
    fn client_asks(&self) {
        if let Some(upkeep) = self.upkeep() {
            upkeep.client_asks();
        }
    }

    /// A client's request for a shard began then and is done: repair yields when that takes longer than usual.
    fn felt(&self, began: std::time::Duration) {
        if let Some(healer) = self.healer() {
            healer.foreground(self.env.now().0.saturating_sub(began));
        }
    }

    async fn layout(&self, freshness: Freshness) -> Result<Reply, Fault> {
        let replica = self.member()?;
        replica.wait(freshness).await?;
        replica.layout().map(Reply::Layout).ok_or_else(|| {
            Fault::new(Class::Retry, "PV-NOT-MEMBER", "this node has not heard of the cluster yet; ask another")
        })
    }

    async fn lookup(&self, lookup: Lookup) -> Result<Reply, Fault> {
        let replica = self.member()?;
        let mut applied = replica.wait(lookup.freshness).await?;
        let find = || {
            query::lookup(replica.view().as_ref(), &lookup.key, lookup.version).map_err(|error| catalog_fault(&error))
        };
        let mut found = find()?;
        // PLANTED BUG: what this replica does not know is not stored.
        let believed = pacsvault_core::probe::planted("miss-unproven");
        if found.is_none() && lookup.freshness != Freshness::Linearizable && !believed {
            // A replica that lags would deny what others have acknowledged: a miss is never answered from it alone.
            applied = replica.wait(Freshness::Linearizable).await?;
            found = find()?;
            if found.is_some() {
                pacsvault_core::sometimes!("recovery: lagging replica would have denied what is stored");
            } else {
                pacsvault_core::sometimes!("recovery: miss proven by the leader");
            }
        }
        Ok(Reply::Found { sealed: found.map(Box::new), applied })
    }

    async fn list(&self, list: List) -> Result<Reply, Fault> {
        let replica = self.member()?;
        replica.wait(list.freshness).await?;
        let view = replica.view();
        let (study, series) = (list.study.as_ref(), list.series.as_ref());
        let page =
            query::list(view.as_ref(), &list.tenant, study, series, list.studies_only, &list.page_token, list.rows_max);
        page.map(|page| Reply::Page(Box::new(page))).map_err(|error| catalog_fault(&error))
    }

    async fn propose(&self, caller: Caller, commands: Vec<Command>) -> Result<Reply, Fault> {
        let replica = self.member()?;
        let outcomes = match caller {
            // Already forwarded once: never in circles.
            Caller::Node(_) => replica.propose_local(commands).await?,
            Caller::Gateway(_) | Caller::Operator(_) | Caller::Local => replica.propose(commands).await?,
        };
        Ok(Reply::Outcomes(outcomes))
    }

    fn status(&self) -> NodeStatus {
        let replica = self.replica().map(|replica| replica.status());
        let volumes = self.volume_statuses();
        let profile = &self.profile;
        NodeStatus {
            node: replica.as_ref().map(|status| status.node),
            name: profile.name.clone(),
            site: profile.site.clone(),
            binary_version: profile.binary_version.clone(),
            cluster: profile.cluster,
            leader: replica.as_ref().and_then(|status| status.leader),
            term: replica.as_ref().map_or(Term(0), |status| status.term),
            last_log: replica.as_ref().map_or(LogIndex(0), |status| status.last_log),
            applied: replica.as_ref().map_or(LogIndex(0), |status| status.applied),
            state_digest: replica.as_ref().map_or(Digest([0; 32]), |status| status.digest),
            voters: replica.as_ref().map(|status| status.voters.clone()).unwrap_or_default(),
            learners: replica.map(|status| status.learners).unwrap_or_default(),
            volumes,
        }
    }

    /// How this node's volumes are.
    pub fn volume_statuses(&self) -> Vec<VolumeStatus> {
        self.volumes.iter().map(|(id, own)| self.volume_status(*id, own)).collect()
    }

    fn volume_status(&self, id: VolumeId, own: &crate::OwnVolume) -> VolumeStatus {
        let status = own.volume.status();
        let (state, reason) = match self.distrusted(id) {
            Some(reason) => (VolumeState::Fenced, reason),
            None => (status.state, status.reason),
        };
        VolumeStatus {
            volume: id,
            state,
            reason,
            shards: status.shards,
            used_bytes: status.used_bytes,
            free_bytes: status.free_bytes,
            capacity_bytes: own.capacity_bytes,
            scrub: self.upkeep().map(|upkeep| upkeep.scrub_age(id)).unwrap_or_default(),
        }
    }
}

fn catalog_fault(error: &pacsvault_core::catalog::Error) -> Fault {
    Fault::new(Class::Bug, "PV-CATALOG", format!("the catalog of this node cannot be read: {error}; ask another node"))
}
