//! Certificates, identities, roles, TLS settings and receipt signatures
