//! Erasure code.
