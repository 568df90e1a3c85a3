//! Ports: what pacsvault needs from the outside, as traits. Each has one implementation for production and one for
//! the simulator; nothing in this crate touches a clock, a disk or a socket itself.
//!
//! **Invariants.** Traits are object safe and `Send + Sync`; one process (or simulated node) builds them once and
//! shares them by `Arc`. Everything that may take time is either async or runs under [`env::Env::run_blocking`].

pub mod crash;
pub mod disk;
pub mod env;
pub mod kv;
pub mod peer;

/// A boxed, sendable future: the return type of async methods of object-safe traits.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
