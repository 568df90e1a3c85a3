//! The field GF(2⁸) with polynomial 0x11D and generator 2, and small matrices over it.
//!
//! **Invariants.** Addition is XOR. [`generator`] equals the matrix of the `reed-solomon-erasure` crate cell by cell:
//! its first `k` rows are the identity and any `k` of its rows are invertible. Bytes on disk depend on both, so
//! nothing in this file may change once a shard is stored; the golden vectors hold it still.

use crate::layout::profile::Code;

/// x⁸ + x⁴ + x³ + x² + 1 without its leading term.
const POLYNOMIAL: u8 = 0x1D;

struct Logarithms {
    /// `powers[i]` = 2^i, twice around so that a sum of two logarithms needs no modulus.
    powers: [u8; 510],
    /// Inverse of `powers`; the entry of 0 is meaningless.
    logs: [u8; 256],
}

const LOGARITHMS: Logarithms = logarithms();

const fn logarithms() -> Logarithms {
    let mut tables = Logarithms { powers: [0; 510], logs: [0; 256] };
    let mut value = 1_u8;
    let mut exponent = 0_u8;
    while exponent < 255 {
        tables.powers[exponent as usize] = value;
        tables.powers[exponent as usize + 255] = value;
        tables.logs[value as usize] = exponent;
        let carry = value & 0x80 != 0;
        value <<= 1;
        if carry {
            value ^= POLYNOMIAL;
        }
        exponent += 1;
    }
    tables
}

/// The product of two field elements.
pub(super) const fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let tables = &LOGARITHMS;
    tables.powers[tables.logs[a as usize] as usize + tables.logs[b as usize] as usize]
}

/// The element whose product with `a` is 1. `a` must not be 0.
fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    let tables = &LOGARITHMS;
    tables.powers[255 - usize::from(tables.logs[usize::from(a)])]
}

fn power(base: u8, exponent: usize) -> u8 {
    (0..exponent).fold(1, |product, _| multiply(product, base))
}

/// `PRODUCTS[a][b]` = a · b: 64 KiB, of which one code touches `m · k` rows of 256 bytes.
pub(super) static PRODUCTS: [[u8; 256]; 256] = products();

const fn products() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut a = 0;
    while a < 256 {
        let mut b = 0_u8;
        loop {
            table[a][b as usize] = multiply(LOW_BYTES[a], b);
            if b == 255 {
                break;
            }
            b += 1;
        }
        a += 1;
    }
    table
}

/// Every byte at its own index, because a constant function may not convert checked.
pub(super) const LOW_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0_u8;
    while byte < 255 {
        byte += 1;
        bytes[byte as usize] = byte;
    }
    bytes
};

/// A matrix over the field, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    /// The matrix with `cell(row, column)` at each place.
    pub(super) fn from_fn(rows: usize, columns: usize, cell: impl Fn(usize, usize) -> u8) -> Self {
        let cells = (0..rows * columns).map(|at| cell(at / columns, at % columns)).collect();
        Self { columns, cells }
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..][..self.columns]
    }

    /// All rows from `row` on, one after the other.
    pub(super) fn rows_from(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..]
    }

    /// The matrix of the named rows, in that order.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        Self::from_fn(rows.len(), self.columns, |row, column| self.row(rows[row])[column])
    }

    /// `row · self`.
    pub(super) fn left_multiplied(&self, row: &[u8]) -> Vec<u8> {
        let cell = |column| row.iter().enumerate().fold(0, |sum, (at, &c)| sum ^ multiply(c, self.row(at)[column]));
        (0..self.columns).map(cell).collect()
    }

    /// The inverse, by Gauss and Jordan; `None` when the matrix is singular.
    pub(super) fn inverted(&self) -> Option<Self> {
        let size = self.columns;
        assert_eq!(self.cells.len(), size * size, "only square matrices have inverses");
        let mut left: Vec<Vec<u8>> = (0..size).map(|row| self.row(row).to_vec()).collect();
        let mut right: Vec<Vec<u8>> = (0..size).map(|row| (0..size).map(|at| u8::from(at == row)).collect()).collect();
        for pivot in 0..size {
            let found = (pivot..size).find(|&row| left[row][pivot] != 0)?;
            left.swap(pivot, found);
            right.swap(pivot, found);
            let scale = inverse(left[pivot][pivot]);
            for cell in left[pivot].iter_mut().chain(&mut right[pivot]) {
                *cell = multiply(*cell, scale);
            }
            let (pivot_left, pivot_right) = (left[pivot].clone(), right[pivot].clone());
            for row in (0..size).filter(|&row| row != pivot) {
                let factor = left[row][pivot];
                add_scaled(&mut left[row], factor, &pivot_left);
                add_scaled(&mut right[row], factor, &pivot_right);
            }
        }
        Some(Self { columns: size, cells: right.concat() })
    }
}

fn add_scaled(row: &mut [u8], factor: u8, other: &[u8]) {
    for (cell, &add) in row.iter_mut().zip(other) {
        *cell ^= multiply(factor, add);
    }
}

/// The `k + m` by `k` matrix that turns data shards into all shards: Vandermonde (row ʳ, column ᶜ hold rᶜ)
/// times the inverse of its own top square, so that data shards come out unchanged.
pub(super) fn generator(code: Code) -> Matrix {
    let (total, data) = (code.total(), code.data());
    let vandermonde = Matrix::from_fn(total, data, |row, column| power(LOW_BYTES[row], column));
    let top: Vec<usize> = (0..data).collect();
    let inverse = vandermonde.select(&top).inverted().expect("a Vandermonde matrix of distinct points is invertible");
    let rows: Vec<Vec<u8>> = (0..total).map(|row| inverse.left_multiplied(vandermonde.row(row))).collect();
    Matrix::from_fn(total, data, |row, column| rows[row][column])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_reference_crate() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let product = multiply(a, b);
                assert_eq!(product, reed_solomon_erasure::galois_8::mul(a, b), "{a} times {b}");
                assert_eq!(product, PRODUCTS[usize::from(a)][usize::from(b)]);
            }
        }
    }

    #[test]
    fn inverses_multiply_to_one() {
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1);
        }
    }

    #[test]
    fn the_first_k_rows_of_every_generator_are_the_identity() {
        for data in 1..32 {
            let code = Code::new(data, 32 - data).expect("within the limit");
            let matrix = generator(code);
            for row in 0..code.data() {
                let identity: Vec<u8> = (0..code.data()).map(|column| u8::from(column == row)).collect();
                assert_eq!(matrix.row(row), identity);
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_no_inverse() {
        assert_eq!(Matrix::from_fn(2, 2, |_, _| 7).inverted(), None);
    }
}
