//! Limits: every bound in one place, each with the arithmetic that justifies it.

/// Most content bytes in one stripe. 16 MiB / 4 data shards = 4 MiB per shard: one sequential disk write of a
/// few milliseconds, and sixteen clients hold 16 × 16 MiB × 1.5 = 384 MiB of stripes in memory at worst.
pub const STRIPE_BYTES_MAX: u64 = 16 << 20;
/// Most stripes in one instance: 65 536 × 16 MiB = 1 TiB, two orders above the largest whole-slide image seen.
pub const STRIPES_MAX: u32 = 65_536;
/// Bytes covered by one stored CRC32C. A range read verifies at most 64 KiB more than asked at each end.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Most shards in one stripe. GF(2⁸) allows 256; 32 keeps every failure set enumerable in microseconds.
pub const SHARDS_MAX: usize = 32;
/// Largest message on any port: one shard of the widest stripe (`k = 1`: 16 MiB) and 1 MiB of headers.
pub const MESSAGE_BYTES_MAX: usize = (16 << 20) + (1 << 20);
/// How long after an attempt began it may still be sealed, in milliseconds (24 h). A longer window keeps orphans
/// longer; a shorter one refuses slow uploads.
pub const WRITE_WINDOW_MILLIS: u64 = 24 * 3_600_000;
/// How long after the catalog time at which a mover began to write a reseat may still be applied, in milliseconds (2 min): the
/// bytes of one stripe are written within a minute, and an election passes well within the rest. A longer window keeps stale
/// copies longer.
pub const RESEAT_WINDOW_MILLIS: u64 = 120_000;
/// Most bytes of DICOM attributes that one instance keeps in the catalog.
pub const ATTRIBUTES_BYTES_MAX: usize = 16 << 10;
/// Most commands in one log entry: 512 × ~600 bytes ≈ 300 KiB, one fsync.
pub const COMMANDS_PER_ENTRY_MAX: usize = 512;
/// Most rows in one page of a listing.
pub const LIST_ROWS_MAX: usize = 1_000;
