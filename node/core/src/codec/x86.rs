//! Vector kernels for x86-64.
//!
//! **Invariants.** A kernel type is made only by its `detect`, which has seen the processor's features; that is what
//! makes the calls sound. Memory is reached through arrays of the vector's size only, so every index is checked
//! by the compiler or at run time, and `unsafe` is left with three things: the unaligned load, the unaligned store, and
//! the call into code compiled for the detected features.
//!
//! Multiplying by a constant is linear over bits. GFNI does it with an 8×8 bit matrix per constant (`vgf2p8affineqb`;
//! its multiply instruction is for another polynomial, 0x11B). AVX2 looks both halves of a byte up in two tables of 16.
#![allow(unsafe_code, reason = "vector loads and stores and calls into detected target features; nothing else")]

use core::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256, _mm512_gf2p8affine_epi64_epi8,
    _mm512_loadu_si512, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
};

use crate::codec::field::{LOW_BYTES, multiply};
use crate::codec::kernel::Kernel;
use crate::limits::SHARDS_MAX;

/// Most rows computed in one pass over the inputs: four rows of two vectors leave registers for the operands.
const ROWS_MAX: usize = 4;

/// Products of one constant with the low halves (first 16) and the high halves (last 16) of a byte.
type HalfTables = [u8; 32];

static HALVES: [HalfTables; 256] = {
    let mut tables = [[0; 32]; 256];
    let mut constant = 0;
    while constant < 256 {
        let mut half = 0;
        while half < 16 {
            tables[constant][half] = multiply(LOW_BYTES[constant], LOW_BYTES[half]);
            tables[constant][half + 16] = multiply(LOW_BYTES[constant], LOW_BYTES[half * 16]);
            half += 1;
        }
        constant += 1;
    }
    tables
};

/// One bit matrix per constant. Byte `7 - i` of a matrix selects the input bits whose sum is output bit `i`, so its
/// bit `j` is bit `i` of constant · 2ʲ.
static BIT_MATRICES: [i64; 256] = {
    let mut matrices = [0; 256];
    let mut constant = 0;
    while constant < 256 {
        let mut bytes = [0_u8; 8];
        let mut j = 0;
        while j < 8 {
            let product = multiply(LOW_BYTES[constant], 1 << j);
            let mut i = 0;
            while i < 8 {
                bytes[7 - i] |= ((product >> i) & 1) << j;
                i += 1;
            }
            j += 1;
        }
        matrices[constant] = i64::from_le_bytes(bytes);
        constant += 1;
    }
    matrices
};

/// 32 bytes at once by shuffles of half bytes.
pub(super) struct Avx2(());

/// 32 bytes at once by bit matrices.
pub(super) struct Gfni256(());

/// 64 bytes at once by bit matrices.
pub(super) struct Gfni512(());

impl Avx2 {
    /// The kernel, if the processor and the system support it.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl Gfni256 {
    /// The kernel, if the processor and the system support it.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2")).then_some(Self(()))
    }
}

impl Gfni512 {
    /// The kernel, if the processor and the system support it.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512f")).then_some(Self(()))
    }
}

impl Kernel for Avx2 {
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
        // SAFETY: `self` exists only after `detect` saw avx2.
        unsafe { avx2::combine(coefficients, inputs, width, output) }
    }
}

impl Kernel for Gfni256 {
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
        // SAFETY: `self` exists only after `detect` saw gfni and avx2.
        unsafe { gfni256::combine(coefficients, inputs, width, output) }
    }
}

impl Kernel for Gfni512 {
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
        // SAFETY: `self` exists only after `detect` saw gfni and avx512f.
        unsafe { gfni512::combine(coefficients, inputs, width, output) }
    }
}

/// The loop around one instruction set. The module that calls it provides `Vector`, `VECTOR_BYTES`, `STEP_VECTORS`
/// (vectors of one shard taken at once), `Factor`, `FACTORS`, `Split` and the functions `load`, `store`, `zero`, `add`,
/// `split` (what of an input vector is shared by all its products) and `product`.
macro_rules! combine_with {
    ($features:literal) => {
        /// Bytes of each shard taken at once.
        const STEP_BYTES: usize = STEP_VECTORS * VECTOR_BYTES;

        /// See [`Kernel::combine`].
        #[target_feature(enable = $features)]
        pub(super) fn combine(coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
            let groups = coefficients.chunks(ROWS_MAX * inputs.len());
            for (coefficients, output) in groups.zip(output.chunks_mut(ROWS_MAX * width)) {
                match coefficients.len() / inputs.len() {
                    1 => rows::<1>(coefficients, inputs, width, output),
                    2 => rows::<2>(coefficients, inputs, width, output),
                    3 => rows::<3>(coefficients, inputs, width, output),
                    _ => rows::<ROWS_MAX>(coefficients, inputs, width, output),
                }
            }
        }

        #[target_feature(enable = $features)]
        fn rows<const R: usize>(coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
            let count = inputs.len();
            let mut factors = [[FACTORS[0]; R]; SHARDS_MAX];
            let mut wholes: [&[[u8; STEP_BYTES]]; SHARDS_MAX] = [&[]; SHARDS_MAX];
            for (at, input) in inputs.iter().enumerate() {
                factors[at] = std::array::from_fn(|row| FACTORS[usize::from(coefficients[row * count + at])]);
                wholes[at] = input.as_chunks().0;
            }
            let mut split_rows = output.chunks_exact_mut(width).map(|row| row.as_chunks_mut());
            let mut outputs: [(&mut [[u8; STEP_BYTES]], &mut [u8]); R] =
                std::array::from_fn(|_| split_rows.next().expect("output holds one row per row of coefficients"));
            steps(&factors[..count], &wholes[..count], outputs.each_mut().map(|(whole, _)| &mut **whole));
            let tail_bytes = width % STEP_BYTES;
            if tail_bytes == 0 {
                return;
            }
            let mut tails = [[0; STEP_BYTES]; SHARDS_MAX];
            for (tail, input) in tails.iter_mut().zip(inputs) {
                tail[..tail_bytes].copy_from_slice(&input[width - tail_bytes..]);
            }
            let tail_inputs: [&[[u8; STEP_BYTES]]; SHARDS_MAX] = tails.each_ref().map(std::slice::from_ref);
            let mut sums = [[[0; STEP_BYTES]; 1]; R];
            steps(&factors[..count], &tail_inputs[..count], sums.each_mut().map(|sum| &mut sum[..]));
            for ((_, tail), [sum]) in outputs.iter_mut().zip(&sums) {
                tail.copy_from_slice(&sum[..tail_bytes]);
            }
        }

        /// Sums stay in registers over all inputs, so each input is read once and each output written once.
        #[target_feature(enable = $features)]
        fn steps<const R: usize>(
            factors: &[[Factor; R]],
            inputs: &[&[[u8; STEP_BYTES]]],
            outputs: [&mut [[u8; STEP_BYTES]]; R],
        ) {
            for step in 0..outputs[0].len() {
                let mut sums = [[zero(); STEP_VECTORS]; R];
                for (factors, input) in factors.iter().zip(inputs) {
                    let vectors = input[step].as_chunks::<VECTOR_BYTES>().0;
                    let splits: [Split; STEP_VECTORS] = std::array::from_fn(|at| split(load(&vectors[at])));
                    for row in 0..R {
                        for at in 0..STEP_VECTORS {
                            sums[row][at] = add(sums[row][at], product(splits[at], &factors[row]));
                        }
                    }
                }
                for row in 0..R {
                    let vectors = outputs[row][step].as_chunks_mut::<VECTOR_BYTES>().0;
                    for at in 0..STEP_VECTORS {
                        store(&mut vectors[at], sums[row][at]);
                    }
                }
            }
        }
    };
}

mod avx2 {
    use super::*;

    type Vector = __m256i;
    type Factor = HalfTables;
    type Split = (Vector, Vector);
    const VECTOR_BYTES: usize = 32;
    const STEP_VECTORS: usize = 1;
    static FACTORS: &[Factor; 256] = &HALVES;

    combine_with!("avx2");

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> Vector {
        // SAFETY: the reference covers the 32 bytes read; the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(bytes: &mut [u8; VECTOR_BYTES], vector: Vector) {
        // SAFETY: the exclusive reference covers the 32 bytes written; the store needs no alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_half(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: the reference covers the 16 bytes read; the load needs no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Vector {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(a: Vector, b: Vector) -> Vector {
        _mm256_xor_si256(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn split(input: Vector) -> Split {
        let low_bits = _mm256_set1_epi8(0x0F);
        (_mm256_and_si256(input, low_bits), _mm256_and_si256(_mm256_srli_epi64::<4>(input), low_bits))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn product((low, high): Split, tables: &Factor) -> Vector {
        let [low_table, high_table] = tables.as_chunks::<16>().0 else { unreachable!("32 bytes are two halves") };
        let low_table = _mm256_broadcastsi128_si256(load_half(low_table));
        let high_table = _mm256_broadcastsi128_si256(load_half(high_table));
        _mm256_xor_si256(_mm256_shuffle_epi8(low_table, low), _mm256_shuffle_epi8(high_table, high))
    }
}

mod gfni256 {
    use super::*;

    type Vector = __m256i;
    type Factor = i64;
    type Split = Vector;
    const VECTOR_BYTES: usize = 32;
    const STEP_VECTORS: usize = 2;
    static FACTORS: &[Factor; 256] = &BIT_MATRICES;

    combine_with!("gfni,avx2");

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> Vector {
        // SAFETY: the reference covers the 32 bytes read; the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn store(bytes: &mut [u8; VECTOR_BYTES], vector: Vector) {
        // SAFETY: the exclusive reference covers the 32 bytes written; the store needs no alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn zero() -> Vector {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn add(a: Vector, b: Vector) -> Vector {
        _mm256_xor_si256(a, b)
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn split(input: Vector) -> Split {
        input
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn product(input: Split, matrix: &Factor) -> Vector {
        _mm256_gf2p8affine_epi64_epi8::<0>(input, _mm256_set1_epi64x(*matrix))
    }
}

mod gfni512 {
    use super::*;

    type Vector = __m512i;
    type Factor = i64;
    type Split = Vector;
    const VECTOR_BYTES: usize = 64;
    const STEP_VECTORS: usize = 2;
    static FACTORS: &[Factor; 256] = &BIT_MATRICES;

    combine_with!("gfni,avx512f");

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> Vector {
        // SAFETY: the reference covers the 64 bytes read; the load needs no alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn store(bytes: &mut [u8; VECTOR_BYTES], vector: Vector) {
        // SAFETY: the exclusive reference covers the 64 bytes written; the store needs no alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn zero() -> Vector {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn add(a: Vector, b: Vector) -> Vector {
        _mm512_xor_si512(a, b)
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn split(input: Vector) -> Split {
        input
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn product(input: Split, matrix: &Factor) -> Vector {
        _mm512_gf2p8affine_epi64_epi8::<0>(input, _mm512_set1_epi64(*matrix))
    }
}
