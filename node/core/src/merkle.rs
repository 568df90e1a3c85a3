//! Merkle tree over shard digests.
