//! What goes wrong with the disks of volumes.
//!
//! **Invariants.** Whatever may lose bytes is booked in the atlas before it happens, and its volume counts as hurt from then on:
//! for what lay there when it was struck, or for good where writes are lied about.
//! A volume's identity is spared: without it a volume is not one any more.

use std::sync::Arc;

use pacsvault_ports::disk::Disk as _;
use pacsvault_simdisk::{OpKind, SimDisk, Stale, WriteLie};
use pacsvault_volume::format::{Body, RECORDS_START, Record, SECTOR_BYTES};

use super::Nemesis;
use crate::{cluster::Guide, operator::Operator, rng::SimRng, scenario::Fault};

/// Bytes of a segment's head.
const HEAD_BYTES: u64 = 128;
/// How many write calls ahead a write is chosen to be lied about.
const WRITES_AHEAD: u64 = 12;
/// Most places looked at for one where something was written: segments are mostly room that no write has reached.
const DRAWS: usize = 8;
/// What was written lies in so many first bytes of a segment, mostly.
const WRITTEN_BYTES: u64 = 32 << 10;
/// A disk that rots through and through has a wrong bit every so many bytes, in so many first bytes of a segment.
const ROT_EVERY: usize = 700;
const ROTTEN_BYTES: u64 = 64 << 10;
/// Calls that change names, which is rare: when one is to fail, the first of any of these kinds does.
const NAMING: [OpKind; 4] = [OpKind::SyncNames, OpKind::Create, OpKind::Rename, OpKind::Remove];

impl Nemesis {
    /// The machine that damage goes to: now and then one beside those that are damaged already, where that is allowed.
    pub(super) fn aim(&self, at: usize, rng: &mut SimRng) -> usize {
        let near = self.cluster.atlas().next_to_damage();
        if near.is_empty() || rng.chance(500) { at } else { *rng.pick(&near) }
    }

    pub(super) fn hurt_volume(self: &Arc<Self>, at: usize, kind: Fault, rng: &mut SimRng) {
        let at = self.aim(at, rng);
        let (id, disk) = {
            let machines = self.cluster.machines();
            if machines[at].volumes.is_empty() {
                return;
            }
            let volume = rng.pick(&machines[at].volumes);
            (volume.id, volume.disk.clone())
        };
        if !self.cluster.may_damage_volume(at, id) {
            return;
        }
        let mut guides = Vec::new();
        let mut meet = |name: &str, offset: u64| guides.extend(guide_at(&disk, name, offset, kind));
        let done = match kind {
            Fault::BitRot => strike_sectors(&disk, rng, 12, |rng, name, offset| {
                meet(name, offset);
                disk.flip(name, offset, u8::try_from(rng.below(8)).unwrap_or(0))
            }),
            Fault::LatentErrors => strike_sectors(&disk, rng, 6, |_, name, offset| {
                meet(name, offset);
                disk.fail_reads_at(name, offset)
            }),
            Fault::StaleReads => {
                let lasts = *rng.pick(&[Stale::ForAWhile, Stale::ForEver]);
                let ends = rng.micros(100_000, 4_000_000);
                self.later(ends, move |nemesis| nemesis.each_disk(SimDisk::end_stale_reads));
                strike_sectors(&disk, rng, 40, |_, name, offset| {
                    meet(name, offset);
                    disk.read_stale_at(name, offset, lasts)
                })
            }
            Fault::MisdirectedRead => {
                let ends = rng.micros(1_000_000, 15_000_000);
                self.later(ends, move |nemesis| nemesis.each_disk(SimDisk::end_stale_reads));
                if rng.chance(500) {
                    // Clients may not read there for long.
                    self.operator.begin(Operator::scrub);
                }
                strike_sectors(&disk, rng, 20, |rng, name, offset| {
                    disk.misread_at(name, offset, rng.below(WRITTEN_BYTES))
                })
            }
            Fault::MisdirectedWrite => {
                disk.lie_about_write(rng.range(1, WRITES_AHEAD), WriteLie::Misdirected);
                true
            }
            Fault::LostWrite => {
                let lie = *rng.pick(&[WriteLie::Lost, WriteLie::OnlyCached]);
                disk.lie_about_write(rng.range(1, WRITES_AHEAD), lie);
                true
            }
            Fault::FullVolume => {
                disk.set_thin_full(true);
                let lasts = rng.micros(100_000, 3_000_000);
                self.later(lasts, move |nemesis| nemesis.each_disk(|disk| disk.set_thin_full(false)));
                true
            }
            _ => {
                if rng.chance(400) {
                    // Once one has failed nothing is changed any more, so that no other fails in that life.
                    NAMING.into_iter().for_each(|kind| disk.fail(kind, rng.range(1, 2), std::io::ErrorKind::Other));
                } else {
                    let failing = *rng.pick(&[OpKind::Sync, OpKind::Sync, OpKind::Write]);
                    disk.fail(failing, rng.range(1, 4), std::io::ErrorKind::Other);
                }
                true
            }
        };
        if !done {
            return;
        }
        match kind {
            Fault::BitRot | Fault::LatentErrors | Fault::StaleReads => self.cluster.strike(id, guides),
            // A full disk and a failing call lose nothing that was synced: what was durable there must stay so.
            Fault::FullVolume | Fault::FailingVolumeSync => {}
            _ => self.cluster.distrust(id),
        }
        self.cluster.struck();
        // What is yet to strike is counted by the disk.
        if matches!(kind, Fault::BitRot | Fault::LatentErrors | Fault::StaleReads) {
            self.cluster.sim.hit(kind.name());
        }
    }

    /// Lets bits rot all over the segments of the volumes of machine `at`, heads apart, where the promise covers that; true when
    /// any did.
    pub(crate) fn rot_disks_of(&self, at: usize) -> bool {
        let volumes: Vec<_> = {
            let machines = self.cluster.machines();
            machines[at].volumes.iter().map(|volume| (volume.id, volume.disk.clone())).collect()
        };
        let mut done = false;
        for (id, disk) in volumes {
            if !self.cluster.may_damage_volume(at, id) {
                continue;
            }
            let mut guides = Vec::new();
            done |= rot_through(&disk, RECORDS_START, |name, offset| {
                guides.extend(guide_at(&disk, name, offset, Fault::BitRot));
            });
            self.cluster.strike(id, guides);
            self.cluster.struck();
        }
        done
    }

    pub(super) fn each_disk(&self, work: impl Fn(&SimDisk)) {
        self.cluster.machines().iter().flat_map(|machine| &machine.volumes).for_each(|volume| work(&volume.disk));
    }
}

/// Flips a bit every few hundred bytes in what was written to segments, from this offset on; true when it flipped any. What it
/// is about to hit is told.
pub(crate) fn rot_through(disk: &SimDisk, from: u64, mut meet: impl FnMut(&str, u64)) -> bool {
    let mut done = false;
    for name in disk.names().unwrap_or_default().iter().filter(|name| name.starts_with("seg-")) {
        let len = disk.open(name).and_then(|file| file.len()).unwrap_or(0).min(ROTTEN_BYTES);
        for offset in (from..len).step_by(ROT_EVERY).filter(|at| disk.is_written_at(name, *at)) {
            meet(name, offset);
            done |= disk.flip(name, offset, 3);
        }
    }
    done
}

/// What leads recovery to other records, if it lies here.
fn guide_at(disk: &SimDisk, name: &str, offset: u64, kind: Fault) -> Option<Guide> {
    let sector = offset / SECTOR_BYTES;
    if offset < RECORDS_START {
        // A flipped bit hurts a head alone; other faults hurt the sector that it begins.
        let hurts = kind != Fault::BitRot || offset % SECTOR_BYTES < HEAD_BYTES;
        return hurts.then(|| Guide::Head(name.to_owned(), sector));
    }
    let mut bytes = vec![0; usize::try_from(SECTOR_BYTES).ok()?];
    disk.open(name).ok()?.read_at(sector * SECTOR_BYTES, &mut bytes).ok()?;
    matches!(Record::decode(&bytes).ok()?.body, Body::Mark { .. }).then_some(Guide::Mark)
}

/// Strikes up to `most` places of segments, here and there, mostly where something was written; true when one was hit.
pub(crate) fn strike_sectors(
    disk: &SimDisk,
    rng: &mut SimRng,
    most: u64,
    mut strike: impl FnMut(&mut SimRng, &str, u64) -> bool,
) -> bool {
    let segments = disk.names().unwrap_or_default();
    let segments: Vec<String> = segments.into_iter().filter(|name| !name.starts_with("volume.")).collect();
    if segments.is_empty() {
        return false;
    }
    let mut done = false;
    for _ in 0..rng.range(1, most) {
        let name = rng.pick(&segments);
        let len = disk.open(name).and_then(|file| file.len()).unwrap_or(0);
        let mut draw = || if rng.chance(700) { rng.below(len.min(WRITTEN_BYTES)) } else { rng.below(len) };
        let drawn = draw();
        let written = |offset: &u64| disk.is_written_at(name, *offset);
        let offset = std::iter::once(drawn).chain((1..DRAWS).map(|_| draw())).find(written).unwrap_or(drawn);
        done |= strike(rng, name, offset);
    }
    done
}
