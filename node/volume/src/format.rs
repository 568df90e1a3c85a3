//! Bytes on a volume. All numbers little endian; every reserved byte is written as zero and ignored when read.
//!
//! **Invariants.**
//! - Each structure begins with a magic, carries a format version and ends with a CRC32C of all its bytes before it.
//! - A segment's sequence number is never used twice on a volume, so it is the epoch of the file it names: a record names
//!   its volume, segment and offset, and a record of a former life of a reused file can never be taken for current.
//! - A record names the *life* that wrote it: 64 random bits, drawn at each open. A life is believed only from the header of
//!   its segment or from a mark that itself carries the life before. So neither the torn tail of an earlier life nor
//!   content that a client shaped like a record can enter the log.
//! - A batch (what one sync covers) begins on a 4 KiB boundary and is padded to one: no write ever touches a sector that
//!   holds an acknowledged record.
//!
//! `volume.id`, 4096 bytes:
//! ```text
//!   0  8 magic "PVSVOLID"    8 2 version   10 1 length of node name   11 5 reserved
//!  16 16 cluster id         32 16 volume id         48 16 incarnation of the node that formatted it
//!  64 64 node name         128 124 reserved        252 4 CRC32C of bytes 0..252        256.. zero
//! ```
//! `seg-<sequence, 16 hex digits>.pvs`: at 0 and again at 4096 a segment header, from 8192 records:
//! ```text
//!   0  8 magic "PVSSEGMT"    8 2 version   10 6 reserved   16 16 volume id   32 16 cluster id
//!  48  8 sequence           56 8 life      64 8 newest batch already durable when the segment began
//!  72 52 reserved          124 4 CRC32C of bytes 0..124
//! ```
//! Record, at a multiple of 512:
//! ```text
//!   0  8 magic "PVSRECRD"    8 2 version   10 1 kind   11 1 k   12 1 m   13 1 shard index   14 1 digests in Merkle path
//!  15  1 reserved           16 4 header bytes (H)      20 4 chunk checksums (c)
//!  24  8 span: bytes from here to the next record, header, payload and padding
//!  32 16 volume id          48 8 segment sequence      56 8 offset in the segment
//!  64  8 life               72 8 batch                 80 8 newest batch known durable when this was written
//!  88 16 instance id       104 4 stripe               108 4 reserved
//! 112  8 shard: content bytes of the stripe; tombstones: authorising log index; mark: next life
//! 120  8 payload bytes     128 32 BLAKE3 of the shard  160 32 reserved (encryption, encoding)
//! 192 32 × digests, then 4 × c: CRC32C of each 64 KiB of the payload, then 4: CRC32C of bytes 0..H-4
//!   H    payload, then zeros up to the span
//! ```
//! Kinds: 1 shard; 2 tombstones, payload of 40 bytes each: instance 16, stripe 4, shard 1, reserved 3, segment 8, offset 8;
//! 3 mark of a new life, payload of 16 bytes per void record: segment 8, offset 8; written twice; 4 end of a segment.

use pacsvault_core::{
    checksum::crc32c,
    ids::{ClusterId, Digest, Incarnation, InstanceId, LogIndex, NodeName, ShardIndex, StripeIndex, VolumeId},
    layout::profile::Code,
    limits::{CHUNK_BYTES, SHARDS_MAX},
    shard::{ShardHeader, ShardId},
};

/// Name of the identity file.
pub const IDENTITY_NAME: &str = "volume.id";
/// Records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 512;
/// Batches begin and end at multiples of this: the sector of the disks we trust to write one whole or not at all.
pub const SECTOR_BYTES: u64 = 4096;
/// Where the first record of a segment lies.
pub const RECORDS_START: u64 = 2 * SECTOR_BYTES;
/// Longest record header: 8 digests (2^8 shards) and 257 chunks (16 MiB and a rest) take 192 + 256 + 1028 + 4 bytes.
pub const HEADER_BYTES_MAX: usize = 1480;
/// Bytes of one tombstone.
pub const TOMBSTONE_BYTES: usize = 40;
/// Bytes of one void record in a mark.
pub const VOID_BYTES: usize = 16;

const VERSION: u16 = 1;
const IDENTITY_MAGIC: &[u8; 8] = b"PVSVOLID";
const SEGMENT_MAGIC: &[u8; 8] = b"PVSSEGMT";
/// First bytes of every record.
pub const RECORD_MAGIC: &[u8; 8] = b"PVSRECRD";
const IDENTITY_CRC_AT: usize = 252;
const SEGMENT_CRC_AT: usize = 124;
const FIXED_BYTES: usize = 192;
const PATH_MAX: usize = 8;
const CHUNKS_MAX: usize = 257;

/// Whose volume it is. Written once, when the directory is formatted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeName,
    /// Life of the node that formatted it.
    pub incarnation: Incarnation,
    /// The volume itself.
    pub volume: VolumeId,
}

/// Start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its volume.
    pub volume: VolumeId,
    /// Cluster of its volume.
    pub cluster: ClusterId,
    /// Its number, and so its epoch.
    pub sequence: u64,
    /// Life that began it.
    pub life: u64,
    /// Newest batch that was durable when the segment began.
    pub durable_batch: u64,
}

/// When and where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// On which volume.
    pub volume: VolumeId,
    /// In which segment.
    pub sequence: u64,
    /// Where in it.
    pub offset: u64,
    /// By which life.
    pub life: u64,
    /// In which batch; batches of a volume are numbered from 1 upwards.
    pub batch: u64,
    /// Newest batch known durable at that time.
    pub durable_batch: u64,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A shard; its bytes are the payload.
    Shard(ShardHeader),
    /// Shards that are deleted; [`Tombstone`]s are the payload.
    Tombstones {
        /// Log entry that allows it.
        authority: LogIndex,
    },
    /// From here on another life writes; the payload names records before it that are void.
    Mark {
        /// The new life.
        next_life: u64,
    },
    /// Nothing follows in this segment.
    End,
}

/// A record without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When and where.
    pub stamp: Stamp,
    /// Bytes to the next record.
    pub span_bytes: u64,
    /// Bytes of header on disk; the payload follows.
    pub header_bytes: usize,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// Checksums of the payload's chunks, for all kinds.
    pub chunk_crcs: Vec<u32>,
    /// What it says.
    pub body: Body,
}

/// One deletion: the record at this place no longer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Which shard.
    pub id: ShardId,
    /// Segment of its record.
    pub sequence: u64,
    /// Offset of its record.
    pub offset: u64,
}

/// `bytes` rounded up to a multiple of `unit`.
pub fn align(bytes: u64, unit: u64) -> u64 {
    bytes.div_ceil(unit) * unit
}

/// File name of segment `sequence`.
pub fn segment_name(sequence: u64) -> String {
    format!("seg-{sequence:016x}.pvs")
}

/// File name of spare `number`.
pub fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}.pvs")
}

/// The number in a name made by [`segment_name`] or [`spare_name`], whose `prefix` is `seg-` or `spare-`.
pub fn parse_name(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(".pvs")?;
    if digits.len() != 16 || digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

fn begin(len: usize, magic: &[u8; 8]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn check(bytes: &[u8], magic: &[u8; 8], crc_at: usize) -> Result<(), &'static str> {
    if bytes.len() < crc_at + 4 {
        return Err("it is too short");
    }
    if &bytes[..8] != magic {
        return Err("its magic is wrong");
    }
    let reader = Reader(bytes);
    if reader.u32(crc_at) != crc32c(&bytes[..crc_at]) {
        return Err("its checksum is wrong");
    }
    if reader.u16(8) != VERSION {
        return Err("its format version is unknown");
    }
    Ok(())
}

impl Identity {
    /// The bytes of the identity file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(usize::try_from(SECTOR_BYTES).unwrap_or(4096), IDENTITY_MAGIC);
        let name = self.node.as_str().as_bytes();
        bytes[10] = u8::try_from(name.len()).expect("names have at most 63 bytes");
        put(&mut bytes, 16, &self.cluster.0);
        put(&mut bytes, 32, &self.volume.0);
        put(&mut bytes, 48, &self.incarnation.0);
        put(&mut bytes, 64, name);
        let crc = crc32c(&bytes[..IDENTITY_CRC_AT]);
        put(&mut bytes, IDENTITY_CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Reads the identity file.
    /// # Errors
    /// Which check failed.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        check(bytes, IDENTITY_MAGIC, IDENTITY_CRC_AT)?;
        let reader = Reader(bytes);
        let name = bytes.get(64..64 + usize::from(bytes[10]).min(64)).ok_or("its node name is too long")?;
        let name = std::str::from_utf8(name).map_err(|_| "its node name is not text")?;
        Ok(Self {
            cluster: ClusterId(reader.bytes(16)),
            volume: VolumeId(reader.bytes(32)),
            incarnation: Incarnation(reader.bytes(48)),
            node: name.parse().map_err(|_| "its node name is malformed")?,
        })
    }
}

impl SegmentHeader {
    /// Both copies, as they lie at the start of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut one = begin(usize::try_from(SECTOR_BYTES).unwrap_or(4096), SEGMENT_MAGIC);
        put(&mut one, 16, &self.volume.0);
        put(&mut one, 32, &self.cluster.0);
        put(&mut one, 48, &self.sequence.to_le_bytes());
        put(&mut one, 56, &self.life.to_le_bytes());
        put(&mut one, 64, &self.durable_batch.to_le_bytes());
        let crc = crc32c(&one[..SEGMENT_CRC_AT]);
        put(&mut one, SEGMENT_CRC_AT, &crc.to_le_bytes());
        one.repeat(2)
    }

    /// Reads one copy.
    /// # Errors
    /// Which check failed.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        check(bytes, SEGMENT_MAGIC, SEGMENT_CRC_AT)?;
        let reader = Reader(bytes);
        Ok(Self {
            volume: VolumeId(reader.bytes(16)),
            cluster: ClusterId(reader.bytes(32)),
            sequence: reader.u64(48),
            life: reader.u64(56),
            durable_batch: reader.u64(64),
        })
    }
}

/// Bytes of a record header with so many digests and chunks.
pub fn header_bytes(path: usize, chunks: usize) -> usize {
    FIXED_BYTES + 32 * path + 4 * chunks + 4
}

/// Chunks of a payload.
pub fn chunk_count(payload_bytes: u64) -> u64 {
    payload_bytes.div_ceil(CHUNK_BYTES as u64)
}

impl Record {
    /// A record of `body` with a payload of `payload_bytes` and these checksums, with the smallest span and no stamp yet
    /// (its place is the caller's to fill in).
    pub fn new(volume: VolumeId, body: Body, payload_bytes: u64, chunk_crcs: Vec<u32>) -> Self {
        let path = if let Body::Shard(header) = &body { header.merkle_path.len() } else { 0 };
        let header_bytes = header_bytes(path, chunk_crcs.len());
        let span_bytes = align(header_bytes as u64 + payload_bytes, RECORD_ALIGN);
        let stamp = Stamp { volume, sequence: 0, offset: 0, life: 0, batch: 0, durable_batch: 0 };
        Self { stamp, span_bytes, header_bytes, payload_bytes, chunk_crcs, body }
    }

    /// The header's bytes, without padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(self.header_bytes, RECORD_MAGIC);
        bytes[10] = match self.body {
            Body::Shard(_) => 1,
            Body::Tombstones { .. } => 2,
            Body::Mark { .. } => 3,
            Body::End => 4,
        };
        let number = |count: usize| u32::try_from(count).expect("headers are far below 4 GiB").to_le_bytes();
        put(&mut bytes, 16, &number(self.header_bytes));
        put(&mut bytes, 20, &number(self.chunk_crcs.len()));
        put(&mut bytes, 24, &self.span_bytes.to_le_bytes());
        put(&mut bytes, 32, &self.stamp.volume.0);
        put(&mut bytes, 48, &self.stamp.sequence.to_le_bytes());
        put(&mut bytes, 56, &self.stamp.offset.to_le_bytes());
        put(&mut bytes, 64, &self.stamp.life.to_le_bytes());
        put(&mut bytes, 72, &self.stamp.batch.to_le_bytes());
        put(&mut bytes, 80, &self.stamp.durable_batch.to_le_bytes());
        put(&mut bytes, 120, &self.payload_bytes.to_le_bytes());
        let mut at = FIXED_BYTES;
        match &self.body {
            Body::Shard(header) => {
                let small = |count: usize| u8::try_from(count).expect("codes have at most 32 shards");
                bytes[11] = small(header.code.data());
                bytes[12] = small(header.code.parity());
                bytes[13] = header.id.shard.0;
                bytes[14] = small(header.merkle_path.len());
                put(&mut bytes, 88, &header.id.instance.0);
                put(&mut bytes, 104, &header.id.stripe.0.to_le_bytes());
                put(&mut bytes, 112, &header.stripe_bytes.to_le_bytes());
                put(&mut bytes, 128, &header.digest.0);
                for digest in &header.merkle_path {
                    put(&mut bytes, at, &digest.0);
                    at += 32;
                }
            }
            Body::Tombstones { authority } => put(&mut bytes, 112, &authority.0.to_le_bytes()),
            Body::Mark { next_life } => put(&mut bytes, 112, &next_life.to_le_bytes()),
            Body::End => {}
        }
        for crc in &self.chunk_crcs {
            put(&mut bytes, at, &crc.to_le_bytes());
            at += 4;
        }
        let crc = crc32c(&bytes[..at]);
        put(&mut bytes, at, &crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`, which need not hold the payload.
    /// # Errors
    /// Which check failed.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < FIXED_BYTES + 4 || &bytes[..8] != RECORD_MAGIC {
            return Err("no record begins here");
        }
        let reader = Reader(bytes);
        let path = usize::from(bytes[14]);
        let chunks = usize::try_from(reader.u32(20)).unwrap_or(usize::MAX);
        if path > PATH_MAX || chunks > CHUNKS_MAX {
            return Err("its lengths are impossible");
        }
        let len = header_bytes(path, chunks);
        check(bytes, RECORD_MAGIC, len - 4)?;
        let payload_bytes = reader.u64(120);
        let span_bytes = reader.u64(24);
        let least = (len as u64).checked_add(payload_bytes).ok_or("its lengths are impossible")?;
        if reader.u32(16) as u64 != len as u64
            || chunk_count(payload_bytes) != chunks as u64
            || span_bytes < least
            || !span_bytes.is_multiple_of(RECORD_ALIGN)
        {
            return Err("its lengths disagree");
        }
        let crcs_at = FIXED_BYTES + 32 * path;
        let chunk_crcs: Vec<u32> = (0..chunks).map(|chunk| reader.u32(crcs_at + 4 * chunk)).collect();
        let stamp = Stamp {
            volume: VolumeId(reader.bytes(32)),
            sequence: reader.u64(48),
            offset: reader.u64(56),
            life: reader.u64(64),
            batch: reader.u64(72),
            durable_batch: reader.u64(80),
        };
        let body = match bytes[10] {
            1 => Body::Shard(shard_header(bytes, path, payload_bytes, &chunk_crcs)?),
            2 => Body::Tombstones { authority: LogIndex(reader.u64(112)) },
            3 => Body::Mark { next_life: reader.u64(112) },
            4 => Body::End,
            _ => return Err("its kind is unknown"),
        };
        Ok(Self { stamp, span_bytes, header_bytes: len, payload_bytes, chunk_crcs, body })
    }
}

fn shard_header(bytes: &[u8], path: usize, payload_bytes: u64, crcs: &[u32]) -> Result<ShardHeader, &'static str> {
    let reader = Reader(bytes);
    let code = Code::new(bytes[11], bytes[12]).ok_or("its code is impossible")?;
    let header = ShardHeader {
        id: ShardId {
            instance: InstanceId(reader.bytes(88)),
            stripe: StripeIndex(reader.u32(104)),
            shard: ShardIndex(bytes[13]),
        },
        code,
        stripe_bytes: reader.u64(112),
        digest: Digest(reader.bytes(128)),
        merkle_path: (0..path).map(|level| Digest(reader.bytes(FIXED_BYTES + 32 * level))).collect(),
        chunk_crcs: crcs.to_vec(),
    };
    check_shard(&header)?;
    if header.shard_bytes() != payload_bytes {
        return Err("its shard and payload lengths disagree");
    }
    Ok(header)
}

/// Whether `header` can be recorded at all.
/// # Errors
/// Which rule it breaks.
pub fn check_shard(header: &ShardHeader) -> Result<(), &'static str> {
    use pacsvault_core::limits::STRIPE_BYTES_MAX;
    if header.stripe_bytes > STRIPE_BYTES_MAX {
        return Err("its stripe is longer than 16 MiB");
    }
    let shards = header.code.data() + header.code.parity();
    if shards > SHARDS_MAX || usize::from(header.id.shard.0) >= shards {
        return Err("its shard index is beyond its code");
    }
    if header.merkle_path.len() > PATH_MAX {
        return Err("its Merkle path is too long");
    }
    if chunk_count(header.shard_bytes()) != header.chunk_crcs.len() as u64 {
        return Err("it has not one checksum per 64 KiB");
    }
    Ok(())
}

impl Tombstone {
    /// Appends this tombstone's bytes to a payload.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        payload.extend_from_slice(&self.id.instance.0);
        payload.extend_from_slice(&self.id.stripe.0.to_le_bytes());
        payload.extend_from_slice(&[self.id.shard.0, 0, 0, 0]);
        payload.extend_from_slice(&self.sequence.to_le_bytes());
        payload.extend_from_slice(&self.offset.to_le_bytes());
    }

    /// All tombstones of a payload.
    pub fn decode_all(payload: &[u8]) -> impl Iterator<Item = Self> {
        payload.chunks_exact(TOMBSTONE_BYTES).map(|bytes| {
            let reader = Reader(bytes);
            Self {
                id: ShardId {
                    instance: InstanceId(reader.bytes(0)),
                    stripe: StripeIndex(reader.u32(16)),
                    shard: ShardIndex(bytes[20]),
                },
                sequence: reader.u64(24),
                offset: reader.u64(32),
            }
        })
    }
}

/// Payload of a mark.
pub fn encode_voids(voids: &[(u64, u64)]) -> Vec<u8> {
    voids.iter().flat_map(|(sequence, offset)| [sequence.to_le_bytes(), offset.to_le_bytes()]).flatten().collect()
}

/// Void records named by a mark: (segment, offset).
pub fn decode_voids(payload: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    payload.chunks_exact(VOID_BYTES).map(|bytes| (Reader(bytes).u64(0), Reader(bytes).u64(8)))
}
