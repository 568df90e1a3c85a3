//! The wire: pacsvault.v1 gRPC services and messages
