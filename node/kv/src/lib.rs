//! The kv port over RocksDB; the only room that names it
