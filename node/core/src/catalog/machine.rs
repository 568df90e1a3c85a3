//! The state machine: applies log entries, in order, each once.
//!
//! **Invariants.**
//! - Same state and same entry give the same changes, outcomes and digest on every replica, however many entries share
//!   an overlay. Caches only spare reads; they never change an answer.
//! - `catalog_time` never goes back. Ids of nodes and placements count upwards and are never reused.
//! - After an [`Error`], or when an overlay is not written, the machine is ahead of its state: drop it and load again.
//!
//! Leaves to others: which entries are committed (`consensus`), when a batch is durable (`kv`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::command::{COMMANDS_VERSION, Command, Entry, Outcome, Rejection};
use super::seal::Judgements;
use super::sums::{Tally, are_stale};
use super::view::{Overlay, View};
use super::wire::{DigestMessage, FormatMessage, MetaMessage, frame, open_strict};
use super::wire_words::{NodeMessage, ProfileMessage, VolumeMessage, cluster_id, digest, text};
use super::{Error, keys};
use crate::ids::{
    ClusterId, Digest, LayoutVersion, LogIndex, NodeId, PlacementId, ProfileName, Term, VolumeId, WallMillis,
};
use crate::layout::{Layout, Node, Profile, Volume};

/// Entries whose digests are remembered: checkpoints compare every few seconds, and 4 096 entries of up to 512
/// commands cover minutes; 4 096 × 60 bytes of state.
pub(super) const DIGESTS_REMEMBERED: u64 = 4_096;
/// Interned placements kept in memory: a 100-node cluster draws from a few thousand; 4 096 × 32 × 16 bytes ≤ 2 MiB.
const PLACEMENTS_CACHED: usize = 4_096;
/// Rows read at once when loading.
const LOAD_ROWS: usize = 1_024;

/// Why a command goes no further: refused as its outcome, or the replica stops.
pub(super) enum Stop {
    Refuse(Rejection),
    Fail(Error),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Refuse(rejection)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

impl From<super::ViewError> for Stop {
    fn from(error: super::ViewError) -> Self {
        Self::Fail(error.into())
    }
}

/// The entry being applied.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub index: LogIndex,
    pub term: Term,
    /// Catalog time, this entry included.
    pub time: WallMillis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Meta {
    time: WallMillis,
    digest: Digest,
    applied: LogIndex,
    next_node: NodeId,
    next_placement: PlacementId,
}

/// The catalog's state machine. One per replica.
pub struct Machine {
    meta: Meta,
    pub(super) layout: Option<Arc<Layout>>,
    /// Every version of every profile.
    pub(super) profiles: BTreeMap<(ProfileName, u32), Profile>,
    placements: BTreeMap<Vec<VolumeId>, PlacementId>,
    pub(super) judgements: Judgements,
    pub(super) tally: Tally,
    /// See [`Machine::sums_remade`].
    pub(super) sums_remade: u64,
}

impl Machine {
    /// The machine of a stored state; of an empty one, a machine that waits for `InitCluster`.
    /// # Errors
    /// A record is unreadable or of a newer format: the replica must not start.
    pub fn load(view: &dyn View) -> Result<Self, Error> {
        let Some(bytes) = view.get(&keys::meta())? else { return Ok(Self::empty()) };
        let stored: MetaMessage = open_strict("meta record", &bytes)?;
        let mut machine = Self::empty();
        machine.meta = Meta {
            time: WallMillis(stored.time),
            digest: digest(&stored.digest)?,
            applied: LogIndex(stored.applied),
            next_node: NodeId(stored.next_node),
            next_placement: PlacementId(stored.next_placement),
        };
        machine.tally.stale = are_stale(view, machine.meta.applied)?;
        let Some(cluster) = stored.cluster else { return Ok(machine) };
        let mut layout = empty_layout(
            cluster_id(&cluster)?,
            text("default profile", &stored.default_profile)?,
            stored.layout_version,
        );
        layout.format = read_format(view)?;
        load_rows(view, keys::nodes(), |bytes| {
            let node = Node::try_from(open_strict::<NodeMessage>("node record", bytes)?)?;
            layout.nodes.insert(node.id, node);
            Ok(())
        })?;
        load_rows(view, keys::volumes(), |bytes| {
            let volume = Volume::try_from(open_strict::<VolumeMessage>("volume record", bytes)?)?;
            layout.volumes.insert(volume.id, volume);
            Ok(())
        })?;
        load_rows(view, keys::profiles(), |bytes| {
            let profile = Profile::try_from(open_strict::<ProfileMessage>("profile record", bytes)?)?;
            machine.profiles.insert((profile.name.clone(), profile.version), profile.clone());
            // Versions come in order, so the newest stays.
            layout.profiles.insert(profile.name.clone(), profile);
            Ok(())
        })?;
        if !layout.profiles.contains_key(&layout.default_profile) {
            return Err(Error::Inconsistent(format!("default profile {} is not stored", layout.default_profile)));
        }
        if let Some(volume) = layout.volumes.values().find(|volume| !layout.nodes.contains_key(&volume.node)) {
            return Err(Error::Inconsistent(format!("volume {} belongs to no node", volume.id)));
        }
        machine.layout = Some(Arc::new(layout));
        Ok(machine)
    }

    fn empty() -> Self {
        Self {
            meta: Meta {
                time: WallMillis(0),
                digest: Digest([0; 32]),
                applied: LogIndex(0),
                next_node: NodeId(1),
                next_placement: PlacementId(1),
            },
            layout: None,
            profiles: BTreeMap::new(),
            placements: BTreeMap::new(),
            judgements: Judgements::default(),
            tally: Tally::default(),
            sums_remade: 0,
        }
    }

    /// The layout; `None` before `InitCluster`.
    pub fn layout(&self) -> Option<Arc<Layout>> {
        self.layout.clone()
    }

    /// Catalog time: the largest clock of all applied entries.
    pub fn time(&self) -> WallMillis {
        self.meta.time
    }

    /// Rolling digest of everything applied.
    pub fn digest(&self) -> Digest {
        self.meta.digest
    }

    /// Index of the last entry applied here; 0 before the first. Entries that are not the catalog's do not count.
    pub fn applied(&self) -> LogIndex {
        self.meta.applied
    }

    /// Applies one entry on top of `overlay`; several entries may share an overlay, which is one atomic batch.
    /// Returns one outcome per command, in order.
    /// # Errors
    /// The replica must stop: the state is unreadable, inconsistent or has diverged, or entries are out of order.
    pub fn apply(
        &mut self,
        overlay: &mut Overlay<'_>,
        index: LogIndex,
        term: Term,
        entry: &Entry,
    ) -> Result<Vec<Outcome>, Error> {
        if index <= self.meta.applied {
            return Err(Error::Order { index, applied: self.meta.applied });
        }
        if self.tally.stale {
            self.rebuild_sums(overlay)?;
        }
        self.meta.time = self.meta.time.max(entry.time);
        let mut journal = blake3::Hasher::new();
        journal.update(&self.meta.digest.0).update(&index.0.to_be_bytes()).update(&self.meta.time.0.to_be_bytes());
        overlay.begin_entry(journal);
        let at = At { index, term, time: self.meta.time };
        let mut outcomes = Vec::with_capacity(entry.commands.len());
        for command in &entry.commands {
            outcomes.push(match self.command(overlay, at, command) {
                Ok(outcome) => outcome,
                Err(Stop::Refuse(rejection)) => Outcome::Rejected(rejection),
                Err(Stop::Fail(error)) => return Err(error),
            });
        }
        self.meta.applied = index;
        self.meta.digest = Digest(*overlay.entry_digest().as_bytes());
        self.settle_sums(overlay)?;
        self.mark_sums(overlay);
        self.store_meta(overlay);
        Ok(outcomes)
    }

    /// INVARIANT: a command that is refused has changed nothing, neither overlay nor machine.
    fn command(&mut self, overlay: &mut Overlay<'_>, at: At, command: &Command) -> Result<Outcome, Stop> {
        let needed = command.version();
        if needed > 1 {
            let present = self.initialised()?.format;
            if present < needed {
                return Err(Rejection::UpgradePending { needed, present }.into());
            }
        }
        match command {
            Command::InitCluster { cluster, profiles, default_profile } => {
                self.init_cluster(overlay, *cluster, profiles, default_profile)
            }
            Command::JoinNode(join) => self.join_node(overlay, join),
            Command::SetNodeState { node, state } => self.set_node_state(overlay, *node, *state),
            Command::AddVolume { node, volume, capacity_bytes } => {
                self.add_volume(overlay, *node, *volume, *capacity_bytes)
            }
            Command::SetVolumeState { volume, state } => self.set_volume_state(overlay, *volume, *state),
            Command::SetProfile { profile, make_default } => self.set_profile(overlay, profile, *make_default),
            Command::Seal(seal) => self.seal(overlay, at, seal),
            Command::Delete { key, version } => self.delete(overlay, at, key, *version),
            Command::CompareDigest { index, digest } => compare_digest(overlay, *index, *digest),
            Command::Activate { version } => self.activate(overlay, *version),
            Command::Reseat(reseat) => self.reseat(overlay, at, reseat),
            Command::ReportDamage { volume, shards } => self.report_damage(overlay, *volume, shards),
            Command::SetAside { instance, stripe, reason } => self.set_aside(overlay, at, *instance, *stripe, reason),
            Command::RetryAside => self.retry_aside(overlay),
            Command::Replace(replace) => self.replace(overlay, at, replace),
            Command::SetStudyProfile { tenant, study, profile } => {
                self.set_study_profile(overlay, tenant, study, profile.as_ref())
            }
            Command::SetDrain { target, draining } => self.set_drain(overlay, *target, *draining),
        }
    }

    pub(super) fn initialised(&self) -> Result<Arc<Layout>, Rejection> {
        self.layout.clone().ok_or_else(|| Rejection::ClusterState("not yet initialised".to_owned()))
    }

    /// Makes `layout` the present one, under the next version.
    pub(super) fn publish(&mut self, mut layout: Layout) {
        layout.version.0 += 1;
        self.layout = Some(Arc::new(layout));
        if crate::probe::planted("judgements-kept") {
            // PLANTED BUG: what shards were worth by an older layout is believed by whoever has not been restarted since.
            return;
        }
        self.judgements.clear();
    }

    pub(super) fn next_node(&mut self) -> NodeId {
        let id = self.meta.next_node;
        self.meta.next_node.0 += 1;
        id
    }

    /// The id of an ordered list of volumes, given now if it is new.
    pub(super) fn intern(&mut self, overlay: &mut Overlay<'_>, volumes: &[VolumeId]) -> Result<PlacementId, Error> {
        if let Some(id) = self.placements.get(volumes) {
            return Ok(*id);
        }
        let id = match find_placement(overlay, volumes)? {
            // PLANTED BUG: what a replica has forgotten by a restart, it makes anew.
            Some(id) if !crate::probe::planted("apply-by-memory") => id,
            _ => self.create_placement(overlay, volumes),
        };
        if self.placements.len() >= PLACEMENTS_CACHED {
            self.placements.clear();
        }
        self.placements.insert(volumes.to_vec(), id);
        Ok(id)
    }

    fn create_placement(&mut self, overlay: &mut Overlay<'_>, volumes: &[VolumeId]) -> PlacementId {
        let id = self.meta.next_placement;
        self.meta.next_placement.0 += 1;
        let record =
            frame(&super::wire::PlacementMessage { id: id.0, volumes: super::wire_words::volume_bytes(volumes) });
        overlay.put(keys::placement(id), record.clone());
        overlay.put(keys::placement_of(volumes), record);
        for volume in volumes {
            overlay.put(keys::volume_placement(*volume, id), Vec::new());
        }
        id
    }

    /// Outside the digest, because it holds the digest; every other field of it follows from journalled changes.
    fn store_meta(&self, overlay: &mut Overlay<'_>) {
        let layout = self.layout.as_deref();
        let meta = MetaMessage {
            cluster: layout.map(|layout| layout.cluster.0.to_vec()),
            default_profile: layout.map(|layout| layout.default_profile.to_string()).unwrap_or_default(),
            layout_version: layout.map_or(0, |layout| layout.version.0),
            time: self.meta.time.0,
            digest: self.meta.digest.0.to_vec(),
            next_node: self.meta.next_node.0,
            next_placement: self.meta.next_placement.0,
            applied: self.meta.applied.0,
        };
        overlay.put_outside_digest(keys::meta(), frame(&meta));
        let remembered = DigestMessage { index: self.meta.applied.0, digest: self.meta.digest.0.to_vec() };
        overlay.put_outside_digest(keys::digest(self.meta.applied.0 % DIGESTS_REMEMBERED), frame(&remembered));
    }
}

/// A layout without nodes, volumes and profiles.
pub(super) fn empty_layout(cluster: ClusterId, default_profile: ProfileName, version: u64) -> Layout {
    Layout {
        cluster,
        version: LayoutVersion(version),
        format: 1,
        nodes: BTreeMap::new(),
        volumes: BTreeMap::new(),
        profiles: BTreeMap::new(),
        default_profile,
    }
}

/// Passes each value of a range to `read`.
pub(super) fn load_rows(
    view: &dyn View,
    range: keys::Range,
    mut read: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut from, to) = range;
    loop {
        let rows = view.scan(&from, &to, LOAD_ROWS)?;
        for (_, value) in &rows {
            read(value)?;
        }
        match rows.into_iter().nth(LOAD_ROWS - 1) {
            Some((last, _)) => from = keys::after(last),
            None => return Ok(()),
        }
    }
}

fn read_format(view: &dyn View) -> Result<u32, Error> {
    let Some(bytes) = view.get(&keys::format())? else { return Ok(1) };
    let FormatMessage { version } = open_strict("version record", &bytes)?;
    if version > COMMANDS_VERSION {
        Err(Error::UnknownTag { what: "version of the cluster", tag: version })
    } else {
        Ok(version)
    }
}

fn find_placement(view: &dyn View, volumes: &[VolumeId]) -> Result<Option<PlacementId>, Error> {
    let Some(bytes) = view.get(&keys::placement_of(volumes))? else { return Ok(None) };
    let record: super::wire::PlacementMessage = open_strict("placement record", &bytes)?;
    Ok(Some(PlacementId(record.id)))
}

fn compare_digest(view: &dyn View, index: LogIndex, theirs: Digest) -> Result<Outcome, Stop> {
    let Some(bytes) = view.get(&keys::digest(index.0 % DIGESTS_REMEMBERED))? else { return Ok(Outcome::Done) };
    let remembered: DigestMessage = open_strict("digest record", &bytes)?;
    let ours = digest(&remembered.digest)?;
    if remembered.index == index.0 && ours != theirs {
        return Err(Stop::Fail(Error::Diverged { index, ours, theirs }));
    }
    Ok(Outcome::Done)
}
