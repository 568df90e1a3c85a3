//! Receipts, offline: what a file says, and whether it proves it.
//!
//! **Invariants.** [`prove`] needs nothing but the file and the cluster's CA certificate. What it returns was signed by a node
//! or gateway of that cluster, under the name written in it, with a certificate valid at the time written in it.

use pacsvault_core::receipt::Receipt;
use pacsvault_security::{Identity, SignedReceipt, signature::Claim, verify_receipt};

/// Why a file proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a signed receipt, or not trusted.
    #[error(transparent)]
    Trust(#[from] pacsvault_security::Error),
    /// The signed bytes are not a receipt.
    #[error("the receipt's content is not readable: {0}")]
    Payload(String),
}

/// Reads a receipt file without believing it.
///
/// # Errors
/// The file is not a signed receipt.
pub fn read(file: &[u8]) -> Result<(SignedReceipt, Receipt), Error> {
    let signed = SignedReceipt::decode(file)?;
    let receipt = Receipt::decode(&signed.payload).map_err(|error| Error::Payload(error.to_string()))?;
    Ok((signed, receipt))
}

/// Verifies a receipt file against a CA certificate; returns what is proven, and by whom.
///
/// # Errors
/// Believe nothing in the file.
pub fn prove(file: &[u8], ca_pem: &str) -> Result<(Receipt, Identity), Error> {
    let (signed, receipt) = read(file)?;
    let claim = Claim { cluster: receipt.cluster, coordinator: &receipt.coordinator, time: receipt.time };
    let identity = verify_receipt(&signed, ca_pem, claim)?;
    Ok((receipt, identity))
}
