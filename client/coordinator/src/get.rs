//! One download: stripes fetched ahead of the reader, bytes out in order.
//!
//! **Invariants.** At most [`STRIPES_AHEAD`] stripes are fetched beyond the one being read. Bytes hold memory from before
//! they are asked for until the reader took them; a download waits for memory only while it holds none. When the whole
//! content was read its BLAKE3 equals the one in the catalog, or the last item is an error.
//!
//! Repair, drains and re-encoding move shards under a reader. When a stripe cannot be read and a volume denies to have
//! what the record says, or the layout changed, the record is looked up again and the download goes on at the same byte:
//! with the new places, or with another instance of the same version, digest and size.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::channel::oneshot;
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{Digest, LayoutVersion, StripeIndex},
};
use pacsvault_ports::peer::{Class, Fault};

use crate::{
    cluster::Cluster,
    fetch::{Unread, Wanted, fetch},
    lookup::RENEWALS_MAX,
    memory::ReadHold,
};

/// Stripes fetched ahead: one on its way while one is read.
const STRIPES_AHEAD: usize = 2;

type Fetched = Result<(Vec<Bytes>, ReadHold), Unread>;

/// A read in progress.
pub struct Download {
    cluster: Arc<Cluster>,
    sealed: Arc<SealedInstance>,
    /// The layout when `sealed` was looked up.
    layout: Option<LayoutVersion>,
    renewals: u32,
    range: Range<u64>,
    /// Where in the content the bytes after `pieces` begin.
    position: u64,
    todo: VecDeque<(StripeIndex, Range<u64>)>,
    ahead: VecDeque<oneshot::Receiver<Fetched>>,
    pieces: VecDeque<Bytes>,
    /// Memory of the pieces, and of the one handed out last.
    hold: Option<ReadHold>,
    hasher: Option<blake3::Hasher>,
}

impl Download {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        sealed: SealedInstance,
        offset_bytes: u64,
        len_bytes: Option<u64>,
    ) -> Result<Self, Fault> {
        let size = sealed.seal.size_bytes;
        if offset_bytes > size {
            let text = format!("range begins at byte {offset_bytes}, but {} has {size} bytes", sealed.seal.key);
            return Err(Fault::new(Class::Reject, "PV-RANGE", text));
        }
        let mut end = len_bytes.map_or(size, |len| size.min(offset_bytes.saturating_add(len)));
        if pacsvault_core::probe::planted("range-clipped") && len_bytes.is_some() && end > offset_bytes {
            // PLANTED BUG: the last byte is not a part of a range.
            end -= 1;
        }
        let range = offset_bytes..end;
        let hasher = (range == (0..size)).then(blake3::Hasher::new);
        Ok(Self {
            layout: cluster.layout_version(),
            todo: parts_of(&sealed, &range),
            cluster,
            sealed: Arc::new(sealed),
            renewals: 0,
            position: range.start,
            range,
            ahead: VecDeque::new(),
            pieces: VecDeque::new(),
            hold: None,
            hasher,
        })
    }

    /// What is being read.
    pub fn sealed(&self) -> &SealedInstance {
        &self.sealed
    }

    /// Content bytes that will come.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The next bytes in order; `None` at the end. After an error the download is over.
    pub async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                let held: usize = self.pieces.iter().map(Bytes::len).sum::<usize>() + piece.len();
                if let Some(hold) = &mut self.hold {
                    hold.shrink_to(held as u64);
                }
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&piece);
                }
                self.fetch_ahead();
                return Some(Ok(piece));
            }
            self.hold = None;
            if self.ahead.is_empty()
                && let Some((_, range)) = self.todo.front()
            {
                let hold = self.cluster.memory.read(self.cost(range)).await;
                self.begin(hold);
            }
            self.fetch_ahead();
            let Some(fetched) = self.ahead.front_mut() else {
                return self.check_digest().err().map(Err);
            };
            let fetched = fetched.await;
            self.ahead.pop_front();
            match fetched {
                Ok(Ok((pieces, hold))) => {
                    self.position += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
                    self.pieces.extend(pieces);
                    self.hold = Some(hold);
                }
                Ok(Err(unread)) => {
                    if let Err(fault) = self.renew(unread).await {
                        return Some(Err(self.end(fault)));
                    }
                }
                Err(_) => {
                    let fault =
                        Fault::new(Class::Retry, "PV-STOPPING", "this process is stopping; read again elsewhere");
                    return Some(Err(self.end(fault)));
                }
            }
        }
    }

    /// All bytes at once: for content that fits in memory.
    pub async fn bytes(mut self) -> Result<Bytes, Fault> {
        let mut pieces = Vec::new();
        while let Some(piece) = self.next().await {
            pieces.push(piece?);
        }
        if pieces.len() == 1 { Ok(pieces.swap_remove(0)) } else { Ok(pieces.concat().into()) }
    }

    /// Looks the instance up again and continues where the last piece ended, if that may help.
    async fn renew(&mut self, unread: Unread) -> Result<(), Fault> {
        // Whoever drops this future here finds the download where it was.
        self.restart();
        let moved = unread.outdated || (self.layout.is_some() && self.layout != self.cluster.layout_version());
        if !moved || self.renewals == RENEWALS_MAX {
            return Err(unread.fault);
        }
        self.renewals += 1;
        match self.cluster.renewed(&self.sealed).await {
            Ok(Some(sealed)) => {
                pacsvault_core::sometimes!("recovery: reader found moved shards where they are now");
                tracing::info!(key = %sealed.seal.key, "shards were moved; reading on from their new places");
                self.sealed = Arc::new(sealed);
                self.layout = self.cluster.layout_version();
                self.restart();
                Ok(())
            }
            // Deleted meanwhile, or not the same content: that is the reason.
            Err(fault) if matches!(fault.class, Class::NotFound | Class::Bug) => Err(fault),
            Ok(None) | Err(_) => Err(unread.fault),
        }
    }

    fn restart(&mut self) {
        self.ahead.clear();
        self.todo = parts_of(&self.sealed, &(self.position..self.range.end));
    }

    fn end(&mut self, fault: Fault) -> Fault {
        self.todo.clear();
        self.ahead.clear();
        self.hasher = None;
        fault
    }

    /// The content, and as much as can be rebuilt of it.
    fn cost(&self, range: &Range<u64>) -> u64 {
        let code = self.sealed.seal.code;
        let (data, parity) = (code.data() as u64, (code.total() - code.data()) as u64);
        let content = range.end - range.start;
        content + content * parity.min(data) / data + 1024
    }

    fn fetch_ahead(&mut self) {
        while self.ahead.len() < STRIPES_AHEAD {
            let Some((_, range)) = self.todo.front() else { return };
            let Some(hold) = self.cluster.memory.try_read(self.cost(range)) else { return };
            self.begin(hold);
        }
    }

    /// Begins to fetch the next stripe.
    fn begin(&mut self, hold: ReadHold) {
        let Some((stripe, range)) = self.todo.pop_front() else { return };
        let (done, fetched) = oneshot::channel();
        let (cluster, sealed) = (self.cluster.clone(), self.sealed.clone());
        self.cluster.env.spawn(Box::pin(async move {
            let (content, work) = hold.split_at(range.end - range.start);
            let wanted = Wanted { sealed: &sealed, stripe, range, work: Arc::new(work) };
            let result = fetch(&cluster, &wanted).await.map(|pieces| (pieces, content));
            // The reader may be gone.
            let _ = done.send(result);
        }));
        self.ahead.push_back(fetched);
    }

    fn check_digest(&mut self) -> Result<(), Fault> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let digest = Digest(*hasher.finalize().as_bytes());
        let expected = self.sealed.seal.digest;
        if digest == expected {
            return Ok(());
        }
        let key = &self.sealed.seal.key;
        let text =
            format!("{key} reads as BLAKE3 {digest} instead of {expected}: do not use these bytes and report this");
        Err(Fault::new(Class::Bug, "PV-CONTENT-DIGEST", text))
    }
}

/// Stripes of `sealed` that hold `range` of its content, and which part of each.
fn parts_of(sealed: &SealedInstance, range: &Range<u64>) -> VecDeque<(StripeIndex, Range<u64>)> {
    let mut parts = VecDeque::new();
    let mut start = 0;
    for (stripe, index) in sealed.seal.stripes.iter().zip(0_u32..) {
        let stop = start + stripe.stripe_bytes;
        let (from, to) = (range.start.max(start), range.end.min(stop));
        if from < to {
            parts.push_back((StripeIndex(index), from - start..to - start));
        }
        start = stop;
    }
    parts
}
