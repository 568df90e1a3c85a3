//! Signed receipts: proof of an acknowledged write that needs nothing but the cluster's CA certificate.
//!
//! File format (`*.receipt`): one protobuf message, fields 1 `format` (`uint32`, now 1), 2 `payload` (`bytes`, the
//! encoded receipt), 3 `signature` (`bytes`, ASN.1 ECDSA), 4 `chain` (`repeated bytes`, DER, the signer's own first).
//! The signature is ECDSA P-256 with SHA-256 over `"pacsvault receipt v1\0"` followed by the payload: the same key also
//! signs TLS handshakes, and the prefix keeps one from ever passing for the other.
//!
//! **Invariants.** A receipt verifies only if its bytes are those signed by a node or gateway of the expected cluster,
//! under the name written in it, with a certificate that was valid at the time written in it.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1, EcdsaKeyPair, UnparsedPublicKey},
};
use pacsvault_core::ids::{ClusterId, WallMillis};
use prost::Message;
use rustls_pki_types::CertificateDer;

use crate::{
    Credentials, Error, Identity,
    credentials::{Authority, public_key_of},
};

/// The format written and read here.
pub const FORMAT: u32 = 1;
/// Most certificates in a chain; ours have one, a hospital's authority may add intermediates.
pub const CHAIN_MAX: usize = 8;

const CONTEXT: &[u8] = b"pacsvault receipt v1\0";

/// Signs receipts with the key of this process's certificate.
pub struct Signer {
    key: EcdsaKeyPair,
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    /// A signer with these credentials.
    ///
    /// # Errors
    /// [`Error::WrongRole`] unless they are a node's or a gateway's; [`Error::Malformed`] for an unusable key.
    pub fn new(credentials: &Credentials) -> Result<Self, Error> {
        let identity = credentials.identity().clone();
        expect_signer(&identity)?;
        Ok(Self { key: credentials.key_pair()?, identity, chain: credentials.chain().to_vec() })
    }

    /// Who signs; its name belongs into [`pacsvault_core::receipt::Receipt::coordinator`].
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Signature over an encoded receipt.
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&SystemRandom::new(), &contextual(payload));
        signature.expect("signing with a checked key fails only without memory or randomness").as_ref().to_vec()
    }

    /// An encoded receipt with its signature and certificates.
    pub fn seal(&self, payload: Vec<u8>) -> SignedReceipt {
        let chain = self.chain.iter().map(|certificate| certificate.to_vec()).collect();
        SignedReceipt { signature: self.sign(&payload), payload, chain }
    }
}

/// A receipt that travels: payload, signature, certificates. Proves nothing until [`verify_receipt`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    /// The encoded receipt.
    pub payload: Vec<u8>,
    /// Signature of [`Signer::sign`].
    pub signature: Vec<u8>,
    /// DER certificates, the signer's own first.
    pub chain: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    chain: Vec<Vec<u8>>,
}

impl SignedReceipt {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Self { payload, signature, chain } = self.clone();
        Wire { format: FORMAT, payload, signature, chain }.encode_to_vec()
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::UnknownFormat`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { what: "the signed receipt".to_owned(), reason };
        let wire = Wire::decode(bytes).map_err(|error| malformed(error.to_string()))?;
        match wire.format {
            FORMAT => {}
            0 => return Err(malformed("it has no format number; is it a receipt?".to_owned())),
            found => return Err(Error::UnknownFormat { found, known: FORMAT }),
        }
        if wire.payload.is_empty() || wire.signature.is_empty() {
            return Err(malformed("payload or signature is missing".to_owned()));
        }
        if wire.chain.is_empty() || wire.chain.len() > CHAIN_MAX {
            return Err(malformed(format!("it holds {} certificates, not 1 to {CHAIN_MAX}", wire.chain.len())));
        }
        Ok(Self { payload: wire.payload, signature: wire.signature, chain: wire.chain })
    }
}

/// What a receipt says of itself, to be held against its signature. Take it from the decoded payload, except `cluster`
/// when the reader knows which cluster it trusts.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The cluster that promises.
    pub cluster: ClusterId,
    /// Name of the signer.
    pub coordinator: &'a str,
    /// When it was sealed.
    pub time: WallMillis,
}

/// Verifies a signed receipt offline; returns who signed it.
///
/// The chain is checked at the *receipt's* time, not now: certificates live for months, receipts for decades, and one
/// signed while its certificate was valid stays true. Whoever steals a key could therefore date receipts back into its
/// validity; against that, the cluster's log has the term and index of every true one.
///
/// # Errors
/// [`Error::BadSignature`], [`Error::OtherCluster`], [`Error::WrongRole`], [`Error::WrongName`], [`Error::NotValidNow`],
/// [`Error::Untrusted`], and those of reading certificates. On any of them, believe nothing in the receipt.
pub fn verify_receipt(signed: &SignedReceipt, ca_pem: &str, claim: Claim<'_>) -> Result<Identity, Error> {
    let authority = Authority::parse(ca_pem, "the CA certificate")?;
    if authority.cluster != claim.cluster {
        return Err(Error::OtherCluster { expected: authority.cluster, found: claim.cluster });
    }
    let chain: Vec<CertificateDer<'_>> = signed.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let identity = authority.verify(&chain, claim.time)?;
    expect_signer(&identity)?;
    if identity.name != claim.coordinator {
        return Err(Error::WrongName { expected: claim.coordinator.to_owned(), found: identity.name });
    }
    let own = signed.chain.first().ok_or(Error::NoCertificate)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key_of(own)?)
        .verify(&contextual(&signed.payload), &signed.signature)
        .map_err(|_| Error::BadSignature)?;
    Ok(identity)
}

fn expect_signer(identity: &Identity) -> Result<(), Error> {
    if identity.role.may_sign_receipts() {
        return Ok(());
    }
    Err(Error::WrongRole { purpose: "signing receipts", needed: "node or gateway", found: identity.role })
}

fn contextual(payload: &[u8]) -> Vec<u8> {
    [CONTEXT, payload].concat()
}
