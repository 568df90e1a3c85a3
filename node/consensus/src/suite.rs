//! openraft's storage suite over our stores, for every crate that implements `Kv`.
//!
//! Needs a tokio runtime: the suite is openraft's own, and only the stores under it are ours.

use std::{any::Any, sync::Arc};

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use openraft_rt_tokio::TokioRuntime;
use pacsvault_ports::{env::SharedEnv, kv::Kv};

use crate::{
    log_store::{Bounds, LogStore},
    state::{State, StateMachine},
    types::Types,
};

/// Empty stores of one replica, and what must live as long as they do (a temporary directory).
pub struct Stores {
    /// For the log.
    pub log: Arc<dyn Kv>,
    /// For the catalog.
    pub state: Arc<dyn Kv>,
    /// Dropped after the stores.
    pub guard: Box<dyn Any + Send + Sync>,
}

struct Builder<F> {
    env: SharedEnv,
    make: F,
}

type Guard = Box<dyn Any + Send + Sync>;

impl<F: Fn() -> Stores + Send + Sync> StoreBuilder<Types<TokioRuntime>, LogStore, StateMachine, Guard> for Builder<F> {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError<Types<TokioRuntime>>> {
        let stores = (self.make)();
        let state = State::open(stores.state, self.env.clone()).expect("an empty state opens");
        // A small cache, so that reads go to the store too.
        let bounds = Bounds { cache_bytes_max: 64, payload_bytes_max: 64 };
        let log = LogStore::open(stores.log, self.env.clone(), state.clone(), bounds).expect("an empty log opens");
        Ok((stores.guard, log, StateMachine(state)))
    }
}

/// Runs openraft's storage suite. `make` gives fresh, empty stores each time.
/// # Errors
/// The first contract that does not hold; some are panics.
pub async fn storage_suite(env: SharedEnv, make: impl Fn() -> Stores + Send + Sync) -> Result<(), String> {
    Suite::test_all(Builder { env, make }).await.map_err(|error| error.to_string())
}
