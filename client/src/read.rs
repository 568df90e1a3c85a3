//! Content out, in order, proven.
//!
//! **Invariants.** After the last byte of a whole read, the content's BLAKE3 equals the catalog's, or the last item is an error.
//! In [`Mode::Direct`] the coordinator checks it; here only what a node handed over is hashed again.

use bytes::Bytes;
use pacsvault_coordinator::{Download, GetQuery};
use pacsvault_core::{catalog::SealedInstance, ids::Digest};
use pacsvault_ports::peer::{Class, Fault};

use crate::{Client, Mode, thin};

/// A read in progress.
pub struct Reading {
    way: Way,
}

enum Way {
    Direct(Box<Download>),
    ViaNode(Box<Handed>),
}

struct Handed {
    sealed: SealedInstance,
    pieces: thin::Pieces,
    left: u64,
    hasher: Option<blake3::Hasher>,
    over: bool,
}

impl Client {
    /// Begins a read.
    ///
    /// # Errors
    /// `NotFound`, or no node answers.
    pub async fn get(&self, query: GetQuery) -> Result<Reading, Fault> {
        if self.mode() == Mode::Direct {
            let download = self.coordinator().get(query).await?;
            return Ok(Reading { way: Way::Direct(Box::new(download)) });
        }
        let sealed = self.coordinator().lookup(&query.key, query.version, query.freshness).await?;
        let reading = self.read_via_node(sealed, query.offset_bytes, query.len_bytes).await;
        reading.map_err(|fault| match (fault.class, query.version) {
            // The version that was the newest is gone: that says nothing about others.
            (Class::NotFound, None) => {
                let text = format!("{} was changed while it was looked up; read again", query.key);
                Fault::new(Class::Retry, "PV-CHANGED", text)
            }
            _ => fault,
        })
    }

    async fn read_via_node(&self, sealed: SealedInstance, offset: u64, len: Option<u64>) -> Result<Reading, Fault> {
        let size = sealed.seal.size_bytes;
        if offset > size {
            let text = format!("range begins at byte {offset}, but {} has {size} bytes", sealed.seal.key);
            return Err(Fault::new(Class::Reject, "PV-RANGE", text));
        }
        let left = len.unwrap_or(u64::MAX).min(size - offset);
        let hasher = (left == size).then(blake3::Hasher::new);
        let pieces = thin::get(self, &sealed, offset, left).await?;
        Ok(Reading { way: Way::ViaNode(Box::new(Handed { sealed, pieces, left, hasher, over: false })) })
    }
}

impl Reading {
    /// What is being read.
    pub fn sealed(&self) -> &SealedInstance {
        match &self.way {
            Way::Direct(download) => download.sealed(),
            Way::ViaNode(handed) => &handed.sealed,
        }
    }

    /// The next bytes; `None` at the end. After an error the read is over.
    pub async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        match &mut self.way {
            Way::Direct(download) => download.next().await,
            Way::ViaNode(handed) => handed.next().await,
        }
    }

    /// All bytes at once: for content that fits in memory.
    ///
    /// # Errors
    /// Use none of the bytes.
    pub async fn bytes(mut self) -> Result<Bytes, Fault> {
        let mut pieces = Vec::new();
        while let Some(piece) = self.next().await {
            pieces.push(piece?);
        }
        if pieces.len() == 1 { Ok(pieces.swap_remove(0)) } else { Ok(pieces.concat().into()) }
    }
}

impl Handed {
    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        if self.over {
            return None;
        }
        match self.pieces.next().await {
            Some(Ok(piece)) if piece.len() as u64 <= self.left => {
                self.left -= piece.len() as u64;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&piece);
                }
                Some(Ok(piece))
            }
            Some(Ok(_)) => self.fail("PV-BUG", "sent more bytes than asked"),
            Some(Err(fault)) => {
                self.over = true;
                Some(Err(fault))
            }
            None if self.left > 0 => self.fail("PV-SHORT-READ", "ended before all bytes came; read again"),
            None => {
                self.over = true;
                let digest = self.hasher.take().map(|hasher| Digest(*hasher.finalize().as_bytes()))?;
                if digest == self.sealed.seal.digest {
                    return None;
                }
                self.fail("PV-CONTENT-DIGEST", "sent bytes with another BLAKE3: do not use them and report this")
            }
        }
    }

    fn fail(&mut self, code: &'static str, what: &str) -> Option<Result<Bytes, Fault>> {
        self.over = true;
        let class = if code == "PV-SHORT-READ" { Class::Retry } else { Class::Bug };
        Some(Err(Fault::new(class, code, format!("the node reading {} {what}", self.sealed.seal.key))))
    }
}
