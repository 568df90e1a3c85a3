//! CRC32C of shard chunks: what a volume checks on every append and every read.
//!
//! **Invariants.** Polynomial Castagnoli (iSCSI, RFC 3720), one sum per [`CHUNK_BYTES`] of a shard from its start, the last
//! chunk possibly shorter. They find damage, not malice: against that stand BLAKE3 digests and [`crate::merkle`].

use crc_fast::{CrcAlgorithm, checksum};

use crate::limits::CHUNK_BYTES;

/// The CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, data)).expect("a 32-bit sum fits 32 bits")
}

/// The CRC32C of each chunk of a shard, in order: `ceil(len / CHUNK_BYTES)` sums.
pub fn chunk_crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(CHUNK_BYTES).map(crc32c).collect()
}

/// Checks whole chunks of a shard.
///
/// `data` begins at chunk `first_chunk` of the shard and ends at the end of a chunk or of the shard; `crcs` are those of
/// the whole shard ([`chunk_crcs`]).
/// # Errors
/// The shard's first chunk that does not match its sum, or has none. Read another shard and report this one.
pub fn verify_chunks(data: &[u8], first_chunk: usize, crcs: &[u32]) -> Result<(), usize> {
    for (at, bytes) in data.chunks(CHUNK_BYTES).enumerate() {
        let chunk = first_chunk.saturating_add(at);
        if crcs.get(chunk) != Some(&crc32c(bytes)) {
            return Err(chunk);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_gives_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA); // SPEC: RFC 3720 B.4
    }

    #[test]
    fn any_flipped_bit_names_its_chunk() {
        let mut shard = vec![7; 2 * CHUNK_BYTES + 100];
        let crcs = chunk_crcs(&shard);
        assert_eq!(crcs.len(), 3);
        assert_eq!(verify_chunks(&shard, 0, &crcs), Ok(()));
        assert_eq!(verify_chunks(&shard[CHUNK_BYTES..], 1, &crcs), Ok(()));
        for (at, chunk) in [(0, 0), (CHUNK_BYTES - 1, 0), (CHUNK_BYTES, 1), (2 * CHUNK_BYTES + 99, 2)] {
            shard[at] ^= 0x10;
            assert_eq!(verify_chunks(&shard, 0, &crcs), Err(chunk));
            shard[at] ^= 0x10;
        }
    }

    #[test]
    fn a_torn_or_overlong_shard_fails() {
        let shard = vec![7; CHUNK_BYTES + 100];
        let crcs = chunk_crcs(&shard);
        assert_eq!(verify_chunks(&shard[..CHUNK_BYTES + 99], 0, &crcs), Err(1));
        assert_eq!(verify_chunks(&shard, 1, &crcs), Err(1));
        assert_eq!(verify_chunks(&shard, 2, &crcs), Err(2));
        assert_eq!(verify_chunks(&shard, 0, &crcs[..1]), Err(1));
    }
}
