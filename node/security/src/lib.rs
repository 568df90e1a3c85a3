//! Trust: who a peer is, who may talk, and what a signature proves.
//!
//! **Invariants.**
//! - Identity comes from a certificate and from nothing else: exactly one URI `pacsvault://<cluster>/<role>/<name>`.
//! - A peer of another cluster is refused during the handshake, even when the same key signed its certificate.
//! - Private keys are files of mode 0600, written once; nothing here overwrites a file.
//! - The cryptographic provider is passed explicitly everywhere: no process-wide default is read or set.
//! - No clock is read here, except rustls's own during a handshake: callers say what time it is.
//!
//! Rooms: [`identity`] (what a certificate says), [`pki`] (the development authority), [`credentials`] (files of this
//! process), [`tls`] (rustls settings), [`signature`] (signed receipts).

pub mod credentials;
mod error;
pub mod identity;
pub mod pki;
pub mod signature;
pub mod tls;

pub use credentials::Credentials;
pub use error::Error;
pub use identity::{Identity, Role, peer_identity};
pub use pki::Authority;
pub use signature::{SignedReceipt, Signer, verify_receipt};
