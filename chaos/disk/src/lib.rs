//! A disk in memory that behaves as badly as a real one may: [`SimDisk`] keeps, for every file, what is durable and
//! what was merely written, and after a crash decides by a seed which of the latter survived.
//!
//! **Invariants.**
//! - What a successful `sync_data` covered is there after every crash; a name that a successful `sync_names` covered,
//!   too. Nothing else is promised: each write not yet synced is kept, lost or torn on its own, out of order; each
//!   name not yet synced likewise.
//! - Sectors are [`SECTOR_BYTES`] long. With [`Options::torn_unit_bytes`] below that, a sector may tear inside.
//! - The same calls with the same options and seeds give the same bytes: no clock, no global randomness, no hash maps.
//! - A disk lies only when told to: [`SimDisk::lie_about_write`], [`SimDisk::read_stale_at`], [`SimDisk::misread_at`].
//! - Cost follows the bytes that are not zero: creating a large file or writing zeros allocates nothing.
//!
//! Every call that changes the disk has a number, from 1 upwards ([`SimDisk::ops`]). [`SimDisk::crash_at`] lets the
//! power fail *during* the call of that number, so that a test can enumerate them all: run a workload once, read
//! [`SimDisk::ops`], then run it again for each number, each time followed by [`SimDisk::crash`].

mod faults;
mod file;
mod random;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pacsvault_ports::disk::{Disk, DiskFile, Space};

pub use crate::faults::{Stale, Strike, WriteLie};
use crate::{
    faults::{Faults, Landing},
    file::Inode,
    random::Random,
};

/// Bytes that survive or vanish together, unless [`Options::torn_unit_bytes`] says less.
pub const SECTOR_BYTES: usize = 4096;
/// Most entries kept of the log of calls; a longer run keeps the newest half at least.
const LOG_ENTRIES_MAX: usize = 4096;

/// Kinds of calls, for faults, the log and the latency hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// `create`.
    Create,
    /// `write_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_names`.
    SyncNames,
    /// `read_at`; has no number, for it changes nothing.
    Read,
}

/// One call that changed the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Its number.
    pub number: u64,
    /// What it was.
    pub kind: OpKind,
    /// File name, when it was opened or created; empty for `sync_names`.
    pub name: String,
    /// Bytes written or allocated.
    pub bytes: u64,
}

/// Called with the kind and size of each call; may advance a simulated clock or block.
pub type Latency = Arc<dyn Fn(OpKind, u64) + Send + Sync>;

/// Called with each fault that really struck, while the disk may be locked: it must not call the disk.
pub type Struck = Arc<dyn Fn(Strike) + Send + Sync>;

/// What kind of disk.
#[derive(Clone)]
pub struct Options {
    /// Bytes that files may take together.
    pub capacity_bytes: u64,
    /// Finest unit in which an unsynced write may tear: a divisor of [`SECTOR_BYTES`].
    pub torn_unit_bytes: usize,
    /// Told of every call.
    pub latency: Option<Latency>,
    /// Told of every planned fault when it strikes.
    pub struck: Option<Struck>,
}

impl Default for Options {
    fn default() -> Self {
        Self { capacity_bytes: 1 << 40, torn_unit_bytes: SECTOR_BYTES, latency: None, struck: None }
    }
}

enum NameOp {
    Link(String, Arc<Inode>),
    Rename(String, String, Arc<Inode>),
    Unlink(String, Arc<Inode>),
}

struct State {
    names: BTreeMap<String, Arc<Inode>>,
    durable: BTreeMap<String, Arc<Inode>>,
    pending: Vec<NameOp>,
    ops: u64,
    log: Vec<Op>,
    faults: Faults,
    random: Random,
    dead: bool,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
}

/// What every error of a simulated disk says.
pub const SIMULATED: &str = "simulated";
/// What the error of a planned failure begins with.
pub const FAILURE: &str = "simulated failure";

/// The simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

fn power_lost() -> io::Error {
    io::Error::other("simulated power loss")
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "simulated disk is full")
}

impl SimDisk {
    /// An empty disk. `seed` decides what a failed sync leaves behind.
    pub fn new(options: Options, seed: u64) -> Self {
        assert!(
            options.torn_unit_bytes > 0 && SECTOR_BYTES.is_multiple_of(options.torn_unit_bytes),
            "sectors tear into whole units"
        );
        Self::with_files(options, BTreeMap::new(), Random::new(seed))
    }

    fn with_files(options: Options, files: BTreeMap<String, Arc<Inode>>, random: Random) -> Self {
        let state = State {
            names: files.clone(),
            durable: files,
            pending: Vec::new(),
            ops: 0,
            log: Vec::new(),
            faults: Faults::default(),
            random,
            dead: false,
        };
        Self { shared: Arc::new(Shared { options, state: Mutex::new(state) }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as found after the power failed now. The old disk answers every further call with an error.
    /// What was not synced is kept, lost or torn as `seed` decides.
    pub fn crash(&self, seed: u64) -> Self {
        let survivors = self.after_power_loss(seed, self.shared.options.clone());
        let mut state = self.state();
        state.dead = true;
        state.names.clear();
        state.durable.clear();
        state.pending.clear();
        survivors
    }

    /// A copy of the disk as a power failure now would leave it, by `seed`; this one goes on. For judges of durability:
    /// the copy tells nobody of its calls.
    pub fn survivors(&self, seed: u64) -> Self {
        self.after_power_loss(seed, Options { latency: None, struck: None, ..self.shared.options.clone() })
    }

    fn after_power_loss(&self, seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let state = self.state();
        let mut names = state.durable.clone();
        for op in &state.pending {
            if random.chance(1, 2) {
                apply(&mut names, op.share());
            }
        }
        let unit = self.shared.options.torn_unit_bytes;
        // One inode may have two names when half of a rename's parts survived; it crashes once.
        let mut crashed: Vec<(Arc<Inode>, Arc<Inode>)> = Vec::new();
        let mut files = BTreeMap::new();
        for (name, inode) in names {
            let survivor = match crashed.iter().find(|(old, _)| Arc::ptr_eq(old, &inode)) {
                Some((_, survivor)) => survivor.clone(),
                None => {
                    let survivor = Arc::new(inode.crash(&mut random, unit));
                    crashed.push((inode, survivor.clone()));
                    survivor
                }
            };
            files.insert(name, survivor);
        }
        drop(state);
        Self::with_files(options, files, random)
    }

    /// The disk as found after the process died but the power stayed: everything written is readable, but what was
    /// not synced may still be lost in a later [`SimDisk::crash`]. Numbers and planned faults go on. The old disk answers
    /// every call with an error.
    pub fn restart(&self) -> Self {
        let mut state = self.state();
        state.dead = true;
        let random = state.random.clone();
        let next = Self::with_files(self.shared.options.clone(), BTreeMap::new(), random);
        {
            let mut new = next.state();
            new.names = std::mem::take(&mut state.names);
            new.durable = std::mem::take(&mut state.durable);
            new.pending = std::mem::take(&mut state.pending);
            new.faults = std::mem::take(&mut state.faults);
            new.ops = state.ops;
            new.log = std::mem::take(&mut state.log);
            // Handles of the dead process must not reach the files any more.
            let mut copies: Vec<(Arc<Inode>, Arc<Inode>)> = Vec::new();
            let mut copy = |inode: &Arc<Inode>| match copies.iter().find(|(old, _)| Arc::ptr_eq(old, inode)) {
                Some((_, new)) => new.clone(),
                None => {
                    let new = Arc::new(inode.duplicate());
                    copies.push((inode.clone(), new.clone()));
                    new
                }
            };
            new.names.values_mut().for_each(|inode| *inode = copy(inode));
            new.durable.values_mut().for_each(|inode| *inode = copy(inode));
            for op in &mut new.pending {
                let (NameOp::Link(_, inode) | NameOp::Rename(_, _, inode) | NameOp::Unlink(_, inode)) = op;
                *inode = copy(inode);
            }
        }
        next
    }

    /// Calls so far that changed, or meant to change, the disk.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// The newest of those calls, oldest first.
    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// True once the power has failed.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Bytes that take memory: sectors that are not zero, counted once per version kept.
    pub fn resident_bytes(&self) -> u64 {
        self.state().names.values().map(|inode| inode.resident_bytes()).sum()
    }

    /// Counts a call and decides its fate: `Ok(true)` go on, `Ok(false)` the power fails during it.
    fn begin(&self, state: &mut State, kind: OpKind, name: &str, bytes: u64) -> io::Result<bool> {
        if state.dead {
            return Err(power_lost());
        }
        if kind != OpKind::Read {
            state.ops += 1;
            if state.log.len() >= LOG_ENTRIES_MAX {
                state.log.drain(..LOG_ENTRIES_MAX / 2);
            }
            state.log.push(Op { number: state.ops, kind, name: name.to_owned(), bytes });
            if state.faults.crash_at.is_some_and(|at| state.ops >= at) {
                state.dead = true;
                self.tell_struck(Strike::PowerLost);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn change_names(&self, kind: OpKind, name: &str, op: impl FnOnce(&State) -> io::Result<NameOp>) -> io::Result<()> {
        self.tell(kind, 0);
        let mut state = self.state();
        let lives = self.begin(&mut state, kind, name, 0)?;
        if let Some(error) = self.planted(&mut state, kind) {
            return Err(error);
        }
        let op = op(&state)?;
        apply(&mut state.names, op.share());
        state.pending.push(op);
        if lives { Ok(()) } else { Err(power_lost()) }
    }

    fn tell(&self, kind: OpKind, bytes: u64) {
        if let Some(latency) = &self.shared.options.latency {
            latency(kind, bytes);
        }
    }

    fn tell_struck(&self, strike: Strike) {
        if let Some(struck) = &self.shared.options.struck {
            struck(strike);
        }
    }

    fn handle(&self, name: &str, inode: Arc<Inode>) -> Arc<dyn DiskFile> {
        Arc::new(Handle { disk: self.clone(), name: name.to_owned(), inode })
    }
}

impl NameOp {
    fn share(&self) -> Self {
        match self {
            Self::Link(name, inode) => Self::Link(name.clone(), inode.clone()),
            Self::Rename(from, to, inode) => Self::Rename(from.clone(), to.clone(), inode.clone()),
            Self::Unlink(name, inode) => Self::Unlink(name.clone(), inode.clone()),
        }
    }
}

/// Applies `op` even if an earlier one it builds on was lost: a name appears or goes on its own.
fn apply(names: &mut BTreeMap<String, Arc<Inode>>, op: NameOp) {
    match op {
        NameOp::Link(name, inode) => {
            names.insert(name, inode);
        }
        NameOp::Rename(from, to, inode) => {
            if names.get(&from).is_some_and(|there| Arc::ptr_eq(there, &inode)) {
                names.remove(&from);
            }
            names.insert(to, inode);
        }
        NameOp::Unlink(name, inode) => {
            if names.get(&name).is_some_and(|there| Arc::ptr_eq(there, &inode)) {
                names.remove(&name);
            }
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.tell(OpKind::Create, len_bytes);
        let mut state = self.state();
        let lives = self.begin(&mut state, OpKind::Create, name, len_bytes)?;
        if let Some(error) = self.planted(&mut state, OpKind::Create) {
            return Err(error);
        }
        if state.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let used: u64 = state.names.values().map(|inode| inode.len()).sum();
        if used.saturating_add(len_bytes) > self.shared.options.capacity_bytes {
            return Err(full());
        }
        let inode = Arc::new(Inode::new(len_bytes));
        state.names.insert(name.to_owned(), inode.clone());
        state.pending.push(NameOp::Link(name.to_owned(), inode.clone()));
        if lives { Ok(self.handle(name, inode)) } else { Err(power_lost()) }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        if state.dead {
            return Err(power_lost());
        }
        let inode = state.names.get(name).cloned().ok_or_else(|| not_found(name))?;
        Ok(self.handle(name, inode))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        if state.dead {
            return Err(power_lost());
        }
        Ok(state.names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change_names(OpKind::Rename, from, |state| {
            let inode = state.names.get(from).cloned().ok_or_else(|| not_found(from))?;
            Ok(NameOp::Rename(from.to_owned(), to.to_owned(), inode))
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change_names(OpKind::Remove, name, |state| {
            let inode = state.names.get(name).cloned().ok_or_else(|| not_found(name))?;
            Ok(NameOp::Unlink(name.to_owned(), inode))
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.tell(OpKind::SyncNames, 0);
        let mut state = self.state();
        if !self.begin(&mut state, OpKind::SyncNames, "", 0)? {
            return Err(power_lost());
        }
        if let Some(error) = self.planted(&mut state, OpKind::SyncNames) {
            // Some of the names made it; the rest never will, although they can still be seen.
            for op in std::mem::take(&mut state.pending) {
                if state.random.chance(1, 2) {
                    apply(&mut state.durable, op);
                }
            }
            return Err(error);
        }
        for op in std::mem::take(&mut state.pending) {
            apply(&mut state.durable, op);
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state();
        if state.dead {
            return Err(power_lost());
        }
        let used: u64 = state.names.values().map(|inode| inode.len()).sum();
        let total_bytes = self.shared.options.capacity_bytes;
        let free_bytes = if state.faults.thin_full { 0 } else { total_bytes.saturating_sub(used) };
        Ok(Space { total_bytes, free_bytes })
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

struct Handle {
    disk: SimDisk,
    name: String,
    inode: Arc<Inode>,
}

impl DiskFile for Handle {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.tell(OpKind::Read, buffer.len() as u64);
        {
            let mut state = self.disk.state();
            self.disk.begin(&mut state, OpKind::Read, &self.name, 0)?;
            if let Some(error) = self.disk.planted(&mut state, OpKind::Read) {
                return Err(error);
            }
        }
        if self.inode.read(offset, buffer)? {
            self.disk.tell_struck(Strike::Misread);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        self.disk.tell(OpKind::Write, len);
        let mut state = self.disk.state();
        let lives = self.disk.begin(&mut state, OpKind::Write, &self.name, len)?;
        if state.faults.thin_full {
            self.disk.tell_struck(Strike::Full);
            return Err(full());
        }
        let error = self.disk.planted(&mut state, OpKind::Write);
        let lied =
            if lives && error.is_none() { self.disk.lied(&mut state, offset, len, self.inode.len()) } else { None };
        match lied {
            // A write that fails, or during which the power fails, may have reached the disk in any part.
            None => self.inode.write(offset, parts),
            Some(Landing::At(elsewhere)) => self.inode.write(elsewhere, parts),
            Some(Landing::Nowhere) => {}
            Some(Landing::Cache) => self.inode.write_cache(offset, parts),
        }
        match error {
            Some(error) => Err(error),
            None if lives => Ok(()),
            None => Err(power_lost()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.tell(OpKind::Sync, 0);
        let mut state = self.disk.state();
        if !self.disk.begin(&mut state, OpKind::Sync, &self.name, 0)? {
            return Err(power_lost());
        }
        if let Some(error) = self.disk.planted(&mut state, OpKind::Sync) {
            let unit = self.disk.shared.options.torn_unit_bytes;
            self.inode.fail_sync(&mut state.random, unit);
            return Err(error);
        }
        self.inode.sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        if self.disk.is_dead() { Err(power_lost()) } else { Ok(self.inode.len()) }
    }
}
