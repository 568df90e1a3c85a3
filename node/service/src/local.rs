//! A [`Peer`] that keeps what is meant for this very node inside the process: no socket, no TLS, no copy.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use pacsvault_core::ids::NodeName;
use pacsvault_ports::{
    BoxFuture,
    env::{SharedEnv, timeout},
    peer::{Caller, Class, Fault, Peer, Reply, Request, Service, Target},
};

/// Sends to other nodes through `remote` and to this node directly.
pub struct LocalFirst {
    name: NodeName,
    env: SharedEnv,
    service: OnceLock<Weak<dyn Service>>,
    remote: Arc<dyn Peer>,
}

impl LocalFirst {
    /// A peer for node `name`; until [`LocalFirst::attach`] everything goes out.
    pub fn new(name: NodeName, env: SharedEnv, remote: Arc<dyn Peer>) -> Arc<Self> {
        Arc::new(Self { name, env, service: OnceLock::new(), remote })
    }

    /// Gives it the node; only the first call counts.
    pub fn attach(&self, service: &Arc<dyn Service>) {
        // A second node under one name cannot exist in one process.
        let _ = self.service.set(Arc::downgrade(service));
    }
}

impl Peer for LocalFirst {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let own = target.name.as_ref() == Some(&self.name);
        let service = self.service.get().filter(|_| own).and_then(Weak::upgrade);
        let Some(service) = service else { return self.remote.call(target, request, deadline) };
        let env = self.env.clone();
        Box::pin(async move {
            let answer = timeout(env.as_ref(), deadline, service.handle(Caller::Local, request)).await;
            answer.unwrap_or_else(|| {
                let text = format!("this node did not answer itself within {} ms", deadline.as_millis());
                Err(Fault::new(Class::Unknown, "PV-DEADLINE", text))
            })
        })
    }
}
