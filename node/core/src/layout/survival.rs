//! Which failures persisted shards survive.
