//! Compaction in the background: gets back what deleted shards occupy, at the pace that clients leave.
//!
//! **Invariants.** Idle work while there is room: small steps, with pauses that are longer while clients ask. When new content
//! is refused for want of room, it goes on at full speed. What is damaged on the way is left and suspected.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use pacsvault_core::{ids::VolumeId, layout::VolumeState};
use pacsvault_volume::Compacted;

use crate::upkeep::{Kept, Upkeep};

/// Bytes copied in one step: writers wait for some 10 ms.
const STEP_BYTES: u64 = 4 << 20;
/// Pause after a step: some 40 MiB/s at most …
const PAUSE: Duration = Duration::from_millis(100);
/// … and 4 MiB/s while clients ask.
const PAUSE_BUSY: Duration = Duration::from_secs(1);
/// Pause after a step while there is no room for clients.
const PAUSE_HURRIED: Duration = Duration::from_millis(2);
/// How often a volume is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Dead bytes worth the work: one in five of those that live.
const DEAD_PERCENT: u64 = 20;

impl Upkeep {
    /// Compacts a volume whenever that is worth it, for ever.
    pub(crate) async fn keep_compact(self: Arc<Self>, id: VolumeId) {
        let Some(kept) = self.kept.get(&id) else { return };
        loop {
            self.env.sleep(LOOK_EVERY).await;
            while self.sound(id) && worth_it(kept) {
                match kept.volume.compact_step(STEP_BYTES).await {
                    Ok(done) => {
                        self.account(id, &done);
                        if !done.more {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(volume = %id, %error, "compaction put off");
                        break;
                    }
                }
                self.env.sleep(self.pause(kept)).await;
            }
        }
    }

    fn pause(&self, kept: &Kept) -> Duration {
        if kept.volume.status().state == VolumeState::ReadOnly {
            PAUSE_HURRIED
        } else if self.busy() {
            PAUSE_BUSY
        } else {
            PAUSE
        }
    }

    fn account(&self, id: VolumeId, done: &Compacted) {
        if done.moved_shards > 0 {
            pacsvault_core::sometimes!("recovery: compaction moved live shards");
        }
        if done.freed_segments > 0 {
            pacsvault_core::sometimes!("recovery: compaction freed a segment");
        }
        for shard in &done.damaged {
            self.suspect(id, *shard);
        }
        let label = id.to_string();
        counter!("pacsvault_compaction_moved_bytes_total", "volume" => label.clone()).increment(done.moved_bytes);
        counter!("pacsvault_compaction_moved_shards_total", "volume" => label.clone()).increment(done.moved_shards);
        counter!("pacsvault_compaction_freed_segments_total", "volume" => label).increment(done.freed_segments);
    }
}

/// Whether enough is dead, or room is short.
fn worth_it(kept: &Kept) -> bool {
    let status = kept.volume.status();
    // By the volume's own files: what others put on the same disk is nothing that compaction could get back.
    let dead = kept.volume.dead_bytes();
    gauge!("pacsvault_volume_dead_bytes", "volume" => status.volume.to_string()).set(dead as f64);
    status.state == VolumeState::ReadOnly || dead > status.used_bytes / 100 * DEAD_PERCENT
}
