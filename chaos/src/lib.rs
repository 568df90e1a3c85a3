//! Deterministic whole-cluster simulation
