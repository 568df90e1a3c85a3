//! Content in: where it comes from, and one attempt to write it.
//!
//! **Invariants.** The content of all attempts at a write is the same bytes under the same key. How often and how long it is
//! tried, and what all attempts together mean, is the coordinator's to say: [`pacsvault_coordinator::repeat`].

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use pacsvault_coordinator::{
    PutHeader,
    repeat::{Repeated, repeated},
};
use pacsvault_core::{limits::STRIPE_BYTES_MAX, receipt::Receipt};
use pacsvault_ports::peer::{Class, Fault};
use tokio::sync::mpsc;

use crate::{Client, Mode, thin};

/// Files up to this size are read whole: one piece as long as the declared size is encoded without a copy.
const WHOLE_BYTES_MAX: u64 = STRIPE_BYTES_MAX;
/// Piece for a node's endpoint: one gRPC message.
const PIECE_BYTES_VIA_NODE: u64 = 256 << 10;
/// Pieces read ahead of the upload.
const PIECES_AHEAD: usize = 1;

/// Where content comes from; can be read again from the start.
#[derive(Debug, Clone)]
pub enum Source {
    /// In memory.
    Bytes(Bytes),
    /// A file, with its size when it was looked at.
    File {
        /// Where.
        path: PathBuf,
        /// Its bytes; another count while reading is refused.
        size_bytes: u64,
    },
}

impl Source {
    /// A file as it is now.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn file(path: &Path) -> std::io::Result<Self> {
        Ok(Self::File { path: path.to_owned(), size_bytes: std::fs::metadata(path)?.len() })
    }

    /// Bytes that will come.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size_bytes, .. } => *size_bytes,
        }
    }

    /// Reads from the start, in pieces of `piece_bytes`, a little ahead of the receiver.
    pub(crate) fn pieces(&self, piece_bytes: u64) -> mpsc::Receiver<Result<Bytes, Fault>> {
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        match self {
            Self::Bytes(bytes) => {
                let (mut rest, piece) = (bytes.clone(), usize::try_from(piece_bytes).unwrap_or(usize::MAX));
                tokio::spawn(async move {
                    while !rest.is_empty() {
                        // A receiver that went away has given the write up.
                        let next = rest.split_to(rest.len().min(piece));
                        if sender.send(Ok(next)).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Self::File { path, .. } => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = read_pieces(&path, piece_bytes, &sender) {
                        let text = format!("cannot read {}: {error}", path.display());
                        let _ = sender.blocking_send(Err(Fault::new(Class::Reject, "PV-READ-FILE", text)));
                    }
                });
            }
        }
        receiver
    }
}

fn read_pieces(path: &Path, piece_bytes: u64, sender: &mpsc::Sender<Result<Bytes, Fault>>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let mut left = file.metadata()?.len();
    loop {
        let expected = usize::try_from(left.min(piece_bytes)).unwrap_or(0);
        let mut piece = Vec::with_capacity(expected.max(1));
        Read::by_ref(&mut file).take(piece_bytes).read_to_end(&mut piece)?;
        left = left.saturating_sub(piece.len() as u64);
        if piece.is_empty() || sender.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
}

/// An acknowledged write.
#[derive(Debug, Clone)]
pub struct Acked {
    /// What is promised.
    pub receipt: Receipt,
    /// The signed receipt, as a file for later.
    pub signed: Vec<u8>,
    /// False when an earlier attempt, or somebody else, had already stored the same content as the key's newest version.
    pub first: bool,
    /// Attempts it took.
    pub attempts: u32,
}

impl Client {
    /// Writes content. `watch` is told how many bytes of the present attempt were handed over.
    ///
    /// # Errors
    /// `Unknown`: it may have been stored; the same call again is safe. All others: nothing was stored.
    pub async fn put(&self, header: PutHeader, source: &Source, watch: &(dyn Fn(u64) + Sync)) -> Result<Acked, Fault> {
        let attempt = || {
            watch(0);
            self.put_once(header.clone(), source, watch)
        };
        let Repeated { acked, attempts } = repeated(self.env().as_ref(), &header.key, attempt).await?;
        Ok(Acked { attempts, ..acked })
    }

    /// One attempt of [`Client::put`], for callers that keep a record of every attempt.
    ///
    /// # Errors
    /// As there; nothing is repeated.
    pub async fn put_once(
        &self,
        mut header: PutHeader,
        source: &Source,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<Acked, Fault> {
        let size = source.size_bytes();
        header.declared_size_bytes = Some(size);
        if self.mode() == Mode::ViaNode {
            return thin::put(self, header, source.pieces(PIECE_BYTES_VIA_NODE), watch).await;
        }
        let mut upload = self.coordinator().begin_put(header);
        match source {
            Source::Bytes(bytes) => {
                upload.write(bytes.clone()).await?;
                watch(size);
            }
            Source::File { .. } => {
                // Whole stripes: the coordinator takes them as they are, without a copy.
                let mut pieces = source.pieces(WHOLE_BYTES_MAX);
                let mut sent = 0;
                while let Some(piece) = pieces.recv().await {
                    let piece = piece?;
                    sent += piece.len() as u64;
                    upload.write(piece).await?;
                    watch(sent);
                }
            }
        }
        let stored = upload.finish().await?;
        Ok(Acked { receipt: stored.receipt, signed: stored.signed, first: stored.first, attempts: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_again_from_its_first_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &content).expect("written");
        let source = Source::file(&path).expect("there");
        for _ in 0..2 {
            let mut pieces = source.pieces(65_536);
            let mut read = Vec::new();
            while let Some(piece) = pieces.recv().await {
                let piece = piece.expect("readable");
                assert!(piece.len() <= 65_536);
                read.extend_from_slice(&piece);
            }
            assert_eq!(read, content);
        }
    }
}
