//! The coordinator's port for signing receipts, with the key of a certificate.

use pacsvault_coordinator::ReceiptSigner;
use pacsvault_security::Signer;

/// Signs with the key of this process's certificate.
pub struct CertificateSigner(pub Signer);

impl ReceiptSigner for CertificateSigner {
    fn name(&self) -> String {
        self.0.identity().name.clone()
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.0.seal(payload.to_vec()).encode())
    }
}
