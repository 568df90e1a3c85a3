//! Kernels: the inner loop of the code, once per instruction set.
//!
//! A kernel computes sums of products, `output[r] = Σ coefficient[r][i] · input[i]`, byte by byte. Everything else
//! (matrices, padding, which shards to use) is decided above it, so that kernels differ in nothing but speed.
//!
//! **Invariants.** Every kernel gives the same bytes. A kernel exists only on a machine that can run it.

use std::fmt;

use crate::codec::field::PRODUCTS;

/// Which inner loop does the work. Output is the same for all; slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelKind {
    /// The multiplication of the `reed-solomon-erasure` crate: the judge of the others, and the fallback to turn to.
    Reference,
    /// Our own table look-ups; runs anywhere.
    Scalar,
    /// 32 bytes at once by shuffles of half bytes (AVX2).
    Avx2,
    /// 32 bytes at once by bit matrices (GFNI with AVX2).
    Gfni256,
    /// 64 bytes at once by bit matrices (GFNI with AVX-512).
    Gfni512,
}

impl KernelKind {
    /// All kinds, slowest first.
    pub const ALL: [Self; 5] = [Self::Reference, Self::Scalar, Self::Avx2, Self::Gfni256, Self::Gfni512];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        kernel(self).is_some()
    }

    /// The fastest that this machine can run.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|kind| kind.is_available()).expect("the scalar kernel runs anywhere")
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Gfni256 => "gfni256",
            Self::Gfni512 => "gfni512",
        })
    }
}

/// Sums of products over the field.
pub(super) trait Kernel: Send + Sync {
    /// Sets row `r` of `output` to the sum over `i` of `coefficients[r · inputs.len() + i] · inputs[i]`.
    ///
    /// All inputs have `width` bytes; `output` holds the rows of `width` bytes one after the other. At least one
    /// input and at most `SHARDS_MAX`; `width` at least 1. What `output` held before does not matter.
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]);
}

/// The kernel of this kind, if this machine can run it.
pub(super) fn kernel(kind: KernelKind) -> Option<Box<dyn Kernel>> {
    match kind {
        KernelKind::Reference => Some(Box::new(Reference)),
        KernelKind::Scalar => Some(Box::new(Scalar)),
        #[cfg(target_arch = "x86_64")]
        KernelKind::Avx2 => Some(Box::new(super::x86::Avx2::detect()?)),
        #[cfg(target_arch = "x86_64")]
        KernelKind::Gfni256 => Some(Box::new(super::x86::Gfni256::detect()?)),
        #[cfg(target_arch = "x86_64")]
        KernelKind::Gfni512 => Some(Box::new(super::x86::Gfni512::detect()?)),
        #[cfg(not(target_arch = "x86_64"))]
        KernelKind::Avx2 | KernelKind::Gfni256 | KernelKind::Gfni512 => None,
    }
}

struct Reference;

impl Kernel for Reference {
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
        for (row, coefficients) in output.chunks_exact_mut(width).zip(coefficients.chunks_exact(inputs.len())) {
            reed_solomon_erasure::galois_8::mul_slice(coefficients[0], inputs[0], row);
            for (&coefficient, input) in coefficients.iter().zip(inputs).skip(1) {
                reed_solomon_erasure::galois_8::mul_slice_xor(coefficient, input, row);
            }
        }
    }
}

struct Scalar;

impl Kernel for Scalar {
    fn combine(&self, coefficients: &[u8], inputs: &[&[u8]], width: usize, output: &mut [u8]) {
        for (row, coefficients) in output.chunks_exact_mut(width).zip(coefficients.chunks_exact(inputs.len())) {
            row.fill(0);
            for (&coefficient, input) in coefficients.iter().zip(inputs) {
                let products = &PRODUCTS[usize::from(coefficient)];
                for (byte, &factor) in row.iter_mut().zip(*input) {
                    *byte ^= products[usize::from(factor)];
                }
            }
        }
    }
}
