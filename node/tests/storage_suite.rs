//! openraft's storage suite over the stores that a node really opens, where SimKv (in `consensus`) cannot differ from
//! RocksDB unnoticed.

use std::sync::Arc;

use pacsvault_consensus::suite::{Stores, storage_suite};
use pacsvault_kv::{Options, RocksKv};
use pacsvault_runtime::TokioEnv;

/// Small, since the suite opens dozens of stores and writes little.
const CACHE_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes_on_rocksdb() {
    let make = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |name: &str, options: Options| {
            let store = RocksKv::open(&dir.path().join(name), options.with_block_cache_bytes(CACHE_BYTES));
            Arc::new(store.expect("a new store opens"))
        };
        Stores { log: open("log", Options::log()), state: open("state", Options::state()), guard: Box::new(dir) }
    };
    storage_suite(TokioEnv::current(), make).await.expect("every contract holds");
}
