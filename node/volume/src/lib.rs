//! The shard store of one volume: segment files, group commit, recovery
