//! The Peer port over tonic and the gRPC servers; the only room that names it
