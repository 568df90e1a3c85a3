//! The erasure code: any `k` of `k + m` shards restore a stripe.
//!
//! Systematic Reed–Solomon over GF(2⁸) with polynomial 0x11D. The generator is the Vandermonde matrix rᶜ times the
//! inverse of its top square, so bytes are those of the `reed-solomon-erasure` crate, which judges ours.
//!
//! **Invariants.** Data shards are the stripe itself cut into `k` pieces of `ceil(len / k)` bytes, the last ones
//! padded with zeros. The same stripe and code give the same shards on every machine and with every kernel. Every column
//! of bytes stands alone, so equal ranges of `k` shards restore that range of the others.
//!
//! Deliberately absent: checking bytes. A shard that lies gives lies; callers check digests or CRCs before and after.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::ids::ShardIndex;
use crate::layout::profile::Code;
use crate::limits::{SHARDS_MAX, STRIPE_BYTES_MAX};

mod field;
mod kernel;
mod pool;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use kernel::KernelKind;

/// Bytes of each shard worked on at once. Two rows of sums and the inputs under way stay in a 32 KiB first-level
/// cache, and the widest code (31 inputs, 248 KiB) still stays in the second level while rows are made in groups.
const BLOCK_BYTES: usize = 8 << 10;
/// Most inverted matrices kept per coder: 256 × at most 961 bytes. A cluster meets as many as it has patterns of loss.
const INVERSES_MAX: usize = 256;

/// Why shards were not made. None changes by asking again with the same shards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Fewer than `k` shards are present. Fetch others; without them the stripe is lost.
    #[error("{have} shards are present, {need} are needed")]
    TooFewShards {
        /// Present.
        have: usize,
        /// `k`.
        need: usize,
    },
    /// Present shards differ in length: they are not of one stripe, or not the same range of it. A caller's bug.
    #[error("shard {shard} has {have} bytes where another has {want}")]
    UnequalLengths {
        /// The first shard that differs.
        shard: ShardIndex,
        /// Its length.
        have: usize,
        /// Length of the first present shard.
        want: usize,
    },
    /// A shard has no bytes. A caller's bug.
    #[error("shard {shard} is empty")]
    Empty {
        /// Which.
        shard: ShardIndex,
    },
    /// The list does not have `k + m` places. A caller's bug.
    #[error("{have} places for shards, the code has {want}")]
    WrongCount {
        /// As given.
        have: usize,
        /// `k + m`.
        want: usize,
    },
    /// A wanted shard is not of the code. A caller's bug.
    #[error("shard {shard} does not exist in code {code}")]
    NoSuchShard {
        /// As wanted.
        shard: ShardIndex,
        /// The code.
        code: Code,
    },
    /// A stripe exceeds [`STRIPE_BYTES_MAX`]. A caller's bug.
    #[error("stripe of {have} bytes exceeds the limit of {STRIPE_BYTES_MAX}")]
    StripeTooLong {
        /// Bytes given.
        have: usize,
    },
}

/// Makes and restores the shards of one code. Clones are cheap and share what is cached.
#[derive(Clone)]
pub struct Coder(Arc<Inner>);

struct Inner {
    code: Code,
    kind: KernelKind,
    kernel: Box<dyn kernel::Kernel>,
    generator: field::Matrix,
    /// Inverse of the generator's rows of `k` shards, by the set of those shards (bit `i` for shard `i`).
    inverses: Mutex<BTreeMap<u32, Arc<field::Matrix>>>,
    pool: pool::Pool,
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coder({} by {})", self.0.code, self.0.kind)
    }
}

impl Coder {
    /// A coder with the fastest kernel of this machine.
    pub fn new(code: Code) -> Self {
        Self::with_kernel(code, KernelKind::best()).expect("the best kernel is one that is available")
    }

    /// A coder with this kernel; `None` when the machine cannot run it.
    pub fn with_kernel(code: Code, kind: KernelKind) -> Option<Self> {
        let kernel = kernel::kernel(kind)?;
        let generator = field::generator(code);
        Some(Self(Arc::new(Inner {
            code,
            kind,
            kernel,
            generator,
            inverses: Mutex::default(),
            pool: pool::Pool::default(),
        })))
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The kernel that does the work.
    pub fn kernel(&self) -> KernelKind {
        self.0.kind
    }

    /// Splits `stripe` into `k` data shards and adds `m` parity shards.
    ///
    /// `stripe`: up to [`STRIPE_BYTES_MAX`] bytes; an empty one counts as a single zero byte. Returns `k + m` shards of
    /// [`Code::shard_bytes`] each, in order. Data shards share the memory of `stripe`, except those that need padding.
    /// # Errors
    /// [`Error::StripeTooLong`].
    pub fn encode(&self, stripe: Bytes) -> Result<Vec<Bytes>, Error> {
        let Inner { code, generator, .. } = &*self.0;
        let too_long = || Error::StripeTooLong { have: stripe.len() };
        let stripe_bytes = u64::try_from(stripe.len()).map_err(|_| too_long())?;
        if stripe_bytes > STRIPE_BYTES_MAX {
            return Err(too_long());
        }
        let width = usize::try_from(code.shard_bytes(stripe_bytes)).map_err(|_| too_long())?;
        let mut shards = self.split(&stripe, width);
        let inputs: Vec<&[u8]> = shards.iter().map(|shard| &shard[..]).collect();
        let parity = self.combine(generator.rows_from(code.data()), &inputs, width);
        shards.extend(parity);
        assert_eq!(shards.len(), code.total(), "one shard per place of the code");
        Ok(shards)
    }

    /// The `k` data shards in order, restored from any `k` that are present.
    ///
    /// `shards`: `k + m` places, or the same range of bytes of each. Present data shards are passed through without copying.
    /// # Errors
    /// [`Error::TooFewShards`] if fewer than `k` are present; other variants for a caller's bug.
    pub fn data_shards(&self, shards: &[Option<Bytes>]) -> Result<Vec<Bytes>, Error> {
        let wanted: Vec<ShardIndex> = (0..self.0.code.data_u8()).map(ShardIndex).collect();
        self.rebuild(shards, &wanted)
    }

    /// The wanted shards, data or parity, in the order wanted, restored from any `k` that are present.
    ///
    /// `shards`: `k + m` places, or the same range of bytes of each. Present ones are passed through without copying.
    /// # Errors
    /// [`Error::TooFewShards`] if one is missing and fewer than `k` are present; other variants for a caller's bug.
    pub fn rebuild(&self, shards: &[Option<Bytes>], wanted: &[ShardIndex]) -> Result<Vec<Bytes>, Error> {
        let code = self.0.code;
        let width = checked_width(code, shards)?;
        let mut missing: Vec<ShardIndex> = Vec::new();
        for &shard in wanted {
            let place = shards.get(usize::from(shard.0)).ok_or(Error::NoSuchShard { shard, code })?;
            if place.is_none() && !missing.contains(&shard) {
                missing.push(shard);
            }
        }
        let rebuilt = if missing.is_empty() { Vec::new() } else { self.restore(shards, &missing, width)? };
        let restored = |shard| missing.iter().position(|&other| other == shard).map(|at| rebuilt[at].clone());
        let answer = |&shard: &ShardIndex| {
            let present = shards[usize::from(shard.0)].clone();
            present.or_else(|| restored(shard)).expect("a wanted shard is present or was restored")
        };
        Ok(wanted.iter().map(answer).collect())
    }

    fn restore(&self, shards: &[Option<Bytes>], missing: &[ShardIndex], width: usize) -> Result<Vec<Bytes>, Error> {
        let Inner { code, generator, .. } = &*self.0;
        let present = shards.iter().enumerate().filter_map(|(at, shard)| Some((at, &shard.as_ref()?[..])));
        let (sources, inputs): (Vec<usize>, Vec<&[u8]>) = present.take(code.data()).unzip();
        if sources.len() < code.data() {
            return Err(Error::TooFewShards { have: sources.len(), need: code.data() });
        }
        let inverse = self.inverse(&sources);
        let row = |shard: &ShardIndex| inverse.left_multiplied(generator.row(usize::from(shard.0)));
        let coefficients: Vec<u8> = missing.iter().flat_map(row).collect();
        Ok(self.combine(&coefficients, &inputs, width))
    }

    /// The matrix that makes data shards of the shards `sources`.
    fn inverse(&self, sources: &[usize]) -> Arc<field::Matrix> {
        let set = sources.iter().fold(0_u32, |set, &at| set | 1 << at);
        // A panic while the lock was held cannot have left a half-made matrix: only whole ones are inserted.
        let mut inverses = self.0.inverses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inverse) = inverses.get(&set) {
            return Arc::clone(inverse);
        }
        let inverse = self.0.generator.select(sources).inverted().expect("any k rows of the generator are independent");
        let inverse = Arc::new(inverse);
        if inverses.len() >= INVERSES_MAX {
            inverses.pop_first();
        }
        inverses.insert(set, Arc::clone(&inverse));
        inverse
    }

    /// One shard per row of `coefficients`: the sum of `inputs`, each times its coefficient.
    ///
    /// Works through blocks in a small buffer, so that sums are made in the cache and memory is written once, never cleared.
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize) -> Vec<Bytes> {
        assert!((1..=SHARDS_MAX).contains(&inputs.len()), "between one and SHARDS_MAX inputs");
        assert!(inputs.iter().all(|input| input.len() == width), "inputs of one length");
        let rows = coefficients.len() / inputs.len();
        assert_eq!(coefficients.len(), rows * inputs.len(), "whole rows of coefficients");
        let mut outputs: Vec<Vec<u8>> = (0..rows).map(|_| self.0.pool.take(width)).collect();
        let mut sums = vec![0; rows * width.min(BLOCK_BYTES)];
        let mut blocks: Vec<&[u8]> = Vec::with_capacity(inputs.len());
        for start in (0..width).step_by(BLOCK_BYTES) {
            let block_bytes = BLOCK_BYTES.min(width - start);
            blocks.clear();
            blocks.extend(inputs.iter().map(|input| &input[start..][..block_bytes]));
            let sums = &mut sums[..rows * block_bytes];
            self.0.kernel.combine(coefficients, &blocks, block_bytes, sums);
            for (output, sum) in outputs.iter_mut().zip(sums.chunks_exact(block_bytes)) {
                output.extend_from_slice(sum);
            }
        }
        outputs.into_iter().map(|output| self.0.pool.shard(output)).collect()
    }

    /// Cuts `stripe` into `k` pieces of `width` bytes; those that reach beyond its end are copied and padded with zeros.
    fn split(&self, stripe: &Bytes, width: usize) -> Vec<Bytes> {
        let piece = |at: usize| {
            let start = stripe.len().min(at * width);
            let end = stripe.len().min(start + width);
            if end - start == width {
                return stripe.slice(start..end);
            }
            let mut padded = self.0.pool.take(width);
            padded.extend_from_slice(&stripe[start..end]);
            padded.resize(width, 0);
            self.0.pool.shard(padded)
        };
        (0..self.0.code.data()).map(piece).collect()
    }
}

/// The length that all present shards have; 0 when none is present.
fn checked_width(code: Code, shards: &[Option<Bytes>]) -> Result<usize, Error> {
    if shards.len() != code.total() {
        return Err(Error::WrongCount { have: shards.len(), want: code.total() });
    }
    let mut width = None;
    for (shard, bytes) in (0..=u8::MAX).map(ShardIndex).zip(shards) {
        let Some(bytes) = bytes else { continue };
        let want = *width.get_or_insert(bytes.len());
        if bytes.is_empty() {
            return Err(Error::Empty { shard });
        }
        if bytes.len() != want {
            return Err(Error::UnequalLengths { shard, have: bytes.len(), want });
        }
    }
    Ok(width.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_inverses_stays_bounded_and_right() {
        let coder = Coder::new(Code::new(8, 8).expect("within the limit"));
        let shards = coder.encode(Bytes::from_static(b"every pattern of loss of a wide code")).expect("short enough");
        let patterns = (0..1_u32 << 16).filter(|set| set.count_ones() == 8).step_by(7).take(2 * INVERSES_MAX);
        for set in patterns {
            let left: Vec<_> =
                shards.iter().enumerate().map(|(at, shard)| (set >> at & 1 == 1).then(|| shard.clone())).collect();
            assert_eq!(coder.data_shards(&left).expect("k are left"), shards[..8]);
        }
        assert_eq!(coder.0.inverses.lock().expect("not poisoned").len(), INVERSES_MAX);
    }
}
