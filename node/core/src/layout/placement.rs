//! Placement of shards on volumes.
