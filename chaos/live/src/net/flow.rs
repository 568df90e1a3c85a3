//! One direction of one relayed connection: bytes wait until they are due.
//!
//! **Invariants.** Bytes leave in the order in which they came, none before its time. While its link is cut a flow neither
//! reads nor writes, so both ends see silence and nothing else. At most [`HELD_BYTES_MAX`] wait. What a packet network would
//! lose comes late, as TCP would bring it, or breaks the connection when it was lost too often.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{ReadHalf, WriteHalf},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    table::{Link, Table},
    tally::Tally,
};

/// Most bytes that wait in one direction of one connection: 1 Gbit/s for 128 ms.
const HELD_BYTES_MAX: usize = 16 << 20;
/// Most bytes read at once; what is delayed or lost together.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a TCP segment on a wide network, for the arithmetic of losses.
const SEGMENT_BYTES: usize = 1_460;
/// How long a slow link's queue may grow before the flow stops reading.
const SLOW_QUEUE: Duration = Duration::from_millis(50);
/// TCP's first timeout after which it sends again, doubled each time (RFC 6298 asks for a second, Linux takes 200 ms).
const RETRANSMIT: Duration = Duration::from_millis(200);
/// Losses in a row of the same piece after which the connection is given up.
const LOSSES_MAX: u32 = 8;

/// When the wire of each link is free again, by (from, to): connections share a link's bandwidth.
pub struct Meters {
    /// What has arrived.
    pub tally: Arc<Tally>,
    count: usize,
    free_at: Vec<Mutex<Instant>>,
}

impl Meters {
    /// Free ones for `count` hosts.
    pub fn new(count: usize) -> Self {
        let tally = Arc::new(Tally::new(count));
        Self { tally, count, free_at: (0..count * count).map(|_| Mutex::new(Instant::now())).collect() }
    }

    fn of(&self, way: Way) -> Option<&Mutex<Instant>> {
        Some(&self.free_at[way.from? * self.count + way.to?])
    }

    /// Takes the wire for `bytes` at `rate` and says when they are through.
    fn take(&self, way: Way, bytes: usize, rate: u64) -> Instant {
        let now = Instant::now();
        let Some(free_at) = self.of(way) else { return now };
        let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        *free_at = (*free_at).max(now) + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        *free_at
    }

    /// When more may be read for a link that has a rate.
    fn gate(&self, way: Way) -> Option<Instant> {
        let free_at = *self.of(way)?.lock().unwrap_or_else(PoisonError::into_inner);
        free_at.checked_sub(SLOW_QUEUE)
    }
}

/// From whom to whom, by number; `None` is an observer.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Who sends.
    pub from: Option<usize>,
    /// Who receives.
    pub to: Option<usize>,
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The sender was done and the receiver knows.
    Closed,
    /// The connection is broken; the other end is to be told by a reset.
    Broken,
}

enum What {
    Bytes(Bytes),
    Close,
    Break,
}

struct Piece {
    came: Instant,
    due: Instant,
    what: What,
}

/// Carries what `reader` brings to `writer` until either is done.
pub async fn carry(
    mut reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
    way: Way,
    mut table: watch::Receiver<Arc<Table>>,
    meters: &Meters,
) -> End {
    let mut held = Held { pieces: VecDeque::new(), bytes: 0, open: true };
    let mut buffer = BytesMut::new();
    let resets = table.borrow().link(way.from, way.to).resets;
    loop {
        let (link, round_trip) = {
            let table = table.borrow_and_update();
            (table.link(way.from, way.to).clone(), table.round_trip(way.from, way.to))
        };
        if link.resets != resets {
            return End::Broken;
        }
        let now = Instant::now();
        let gate = link.state.bytes_per_second.and_then(|_| meters.gate(way)).filter(|gate| *gate > now);
        let wants = !link.state.cut && held.open && held.bytes < HELD_BYTES_MAX;
        let due = held.pieces.front().map(|piece| piece.due).filter(|_| !link.state.cut);
        let ready = due.is_some_and(|due| due <= now);
        if ready {
            match held.pieces.front().map(|piece| &piece.what) {
                // The receiver may be gone already; then the other direction says so.
                Some(What::Close) => return writer.shutdown().await.map_or(End::Broken, |()| End::Closed),
                Some(What::Break) => return End::Broken,
                Some(What::Bytes(_)) | None => {}
            }
        }
        let alarm = [due.filter(|_| !ready), gate.filter(|_| wants)].into_iter().flatten().min();
        let room = piece_bytes(&link);
        if wants && gate.is_none() {
            buffer.reserve(room);
        }
        tokio::select! {
            changed = table.changed() => {
                if changed.is_err() {
                    return End::Broken;
                }
            }
            written = writer.write(held.first()), if ready => match written {
                Ok(bytes) => {
                    let under_way = held.pieces.front().map(|piece| piece.came.elapsed()).unwrap_or_default();
                    meters.tally.arrived(way.from, way.to, bytes, under_way);
                    held.wrote(bytes);
                }
                // The receiver's reset comes back by the other direction; nothing more can be carried in this one.
                Err(_) => return End::Closed,
            },
            read = read_some(&mut reader, &mut buffer, room), if wants && gate.is_none() => {
                // What was asked for before these bytes were sent holds for them, also when this task has not heard of it.
                let link = table.borrow().link(way.from, way.to).clone();
                let lateness = lateness(&link, round_trip, buffer.len());
                let through = match link.state.bytes_per_second {
                    Some(rate) => meters.take(way, buffer.len(), rate),
                    None => Instant::now(),
                };
                let due = through + link.delay + jitter(link.state.jitter) + lateness.unwrap_or_default();
                let what = match read {
                    _ if lateness.is_none() => What::Break,
                    Ok(0) => What::Close,
                    Ok(_) => What::Bytes(buffer.split().freeze()),
                    Err(_) => What::Break,
                };
                held.push(due, what);
            }
            () = sleep_until(alarm.unwrap_or(now)), if alarm.is_some() => {}
        }
    }
}

/// What waits.
struct Held {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Nothing ended yet.
    open: bool,
}

impl Held {
    fn push(&mut self, due: Instant, what: What) {
        let last = self.pieces.back().map_or(due, |piece| piece.due);
        match &what {
            What::Bytes(bytes) => self.bytes += bytes.len(),
            What::Close | What::Break => self.open = false,
        }
        self.pieces.push_back(Piece { came: Instant::now(), due: due.max(last), what });
    }

    fn first(&self) -> &[u8] {
        match self.pieces.front() {
            Some(Piece { what: What::Bytes(bytes), .. }) => bytes,
            _ => &[],
        }
    }

    fn wrote(&mut self, count: usize) {
        self.bytes -= count;
        if let Some(Piece { what: What::Bytes(bytes), .. }) = self.pieces.front_mut() {
            bytes.advance(count);
            if bytes.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

/// Reads at most `room` bytes; nothing is lost when this is dropped before it is done.
async fn read_some(reader: &mut ReadHalf<'_>, buffer: &mut BytesMut, room: usize) -> std::io::Result<usize> {
    reader.take(u64::try_from(room).unwrap_or(u64::MAX)).read_buf(buffer).await
}

/// On a slow link pieces are small enough to be smooth: 20 ms each.
fn piece_bytes(link: &Link) -> usize {
    let Some(rate) = link.state.bytes_per_second else { return PIECE_BYTES_MAX };
    usize::try_from(rate / 50).unwrap_or(PIECE_BYTES_MAX).clamp(SEGMENT_BYTES, PIECE_BYTES_MAX)
}

/// A part of `most`.
pub fn jitter(most: Duration) -> Duration {
    if most.is_zero() { most } else { rand::rng().random_range(Duration::ZERO..=most) }
}

/// By how much losses delay `bytes`: a round trip for what TCP notices at once, timeouts for what is lost again. `None`: it is
/// lost too often.
pub fn lateness(link: &Link, round_trip: Duration, bytes: usize) -> Option<Duration> {
    let loss = f64::from(link.state.loss_per_mille) / 1_000.0;
    if loss <= 0.0 {
        return Some(Duration::ZERO);
    }
    let mut rng = rand::rng();
    let segments = i32::try_from(bytes.div_ceil(SEGMENT_BYTES).max(1)).unwrap_or(i32::MAX);
    if !rng.random_bool(1.0 - (1.0 - loss).powi(segments)) {
        return Some(Duration::ZERO);
    }
    let mut late = round_trip;
    for again in 0..LOSSES_MAX {
        if !rng.random_bool(loss) {
            return Some(late);
        }
        late += RETRANSMIT.max(round_trip) * 2_u32.pow(again);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::LinkState;

    fn lossy(per_mille: u16) -> Link {
        Link { state: LinkState { loss_per_mille: per_mille, ..LinkState::default() }, ..Link::default() }
    }

    #[test]
    fn losses_make_late_and_a_dead_link_breaks() {
        let trip = Duration::from_millis(40);
        assert_eq!(lateness(&lossy(0), trip, 1 << 20), Some(Duration::ZERO));
        assert_eq!(lateness(&lossy(1_000), trip, 1), None);
        let late: Vec<_> = (0..2_000).map(|_| lateness(&lossy(100), trip, 1)).collect();
        let hit = late.iter().filter(|late| late.is_none_or(|late| late >= trip)).count();
        assert!((100..400).contains(&hit), "about a tenth of small pieces: {hit}");
    }

    #[test]
    fn the_order_stays_whatever_each_piece_would_wait() {
        let now = Instant::now();
        let mut held = Held { pieces: VecDeque::new(), bytes: 0, open: true };
        held.push(now + Duration::from_millis(9), What::Bytes(Bytes::from_static(b"first")));
        held.push(now, What::Bytes(Bytes::from_static(b"second")));
        assert!(held.pieces[1].due >= held.pieces[0].due);
        held.wrote(3);
        assert_eq!((held.first(), held.bytes), (&b"st"[..], 8));
        held.wrote(2);
        assert_eq!(held.first(), b"second");
        held.push(now, What::Close);
        assert!(!held.open);
    }
}
