//! Wires the rooms together: stores, replica, coordinator, sockets.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use pacsvault_consensus::{Options, Replica, TokioRuntime};
use pacsvault_coordinator::{Coordinator, Options as CoordinatorOptions};
use pacsvault_core::ids::{Incarnation, NodeId};
use pacsvault_kv::RocksKv;
use pacsvault_ports::{
    BoxFuture,
    env::{SharedEnv, blocking},
    kv::Kv,
    peer::{Class, FAULTS_SUFFIX, Fault, Peer, Service, Target},
};
use pacsvault_rpc::{CertificateSigner, Server, ServerTls, TonicPeer};
use pacsvault_runtime::{TokioEnv, inject::Faults, wall_now};
use pacsvault_security::{Credentials, Signer, credentials::Files};
use pacsvault_service::{FORMAT_VERSION, Front, LocalFirst, Node, Profile, Registry, ReplicaStarter};
use tokio::net::TcpListener;

use crate::{
    config::Config,
    identity::IdentityFile,
    ops::{self, Ops},
    volumes,
};

/// How often the replica is asked whether it still works.
const FATAL_POLL: Duration = Duration::from_millis(500);

/// Opens the stores under the data directory and starts consensus on them.
struct Starter {
    config: Config,
    profile: Profile,
    env: SharedEnv,
    peer: Arc<dyn Peer>,
    identity: Arc<IdentityFile>,
}

impl ReplicaStarter for Starter {
    fn start(&self, node: NodeId) -> BoxFuture<'static, Result<Arc<dyn Replica>, Fault>> {
        let profile = &self.profile;
        let who = (profile.name.clone(), profile.site.clone());
        let mut options = Options::new(node, profile.cluster, profile.incarnation, who, profile.address.clone());
        options.heartbeat = Duration::from_millis(self.config.pace.heartbeat_ms);
        options.election_min = Duration::from_millis(self.config.pace.election_min_ms);
        options.election_max = Duration::from_millis(self.config.pace.election_max_ms);
        options.voter_grace = self.config.healing.voter_grace;
        options.preferred_site = self.config.healing.preferred_leader_site.clone();
        let (env, peer, dir) = (self.env.clone(), self.peer.clone(), self.config.data_dir.clone());
        let identity = self.identity.clone();
        Box::pin(async move {
            let stopping = || Fault::new(Class::Retry, "PV-STOPPING", "this node is stopping");
            let opened = blocking(env.as_ref(), move || open_stores(&dir, &identity)).await;
            let stores = opened.ok_or_else(stopping)??;
            let replica =
                pacsvault_consensus::start::<TokioRuntime>(options, env, peer, stores.log, stores.state).await;
            let replica = replica.map_err(|error| Fault::new(Class::Reject, "PV-STORE", chain(&error)))?;
            Ok(Arc::new(replica) as Arc<dyn Replica>)
        })
    }
}

/// The two stores of a replica.
struct Stores {
    log: Arc<dyn Kv>,
    state: Arc<dyn Kv>,
}

/// Opens the stores in `dir`; makes them only for an identity that never relied on stores. Without its votes and its log a
/// replica could vote twice in one term and deny what it acknowledged, so under its old id it must not start without them.
fn open_stores(dir: &std::path::Path, identity: &IdentityFile) -> Result<Stores, Fault> {
    let made = identity.has_stores();
    let open = |name: &str, options| {
        let path: PathBuf = dir.join(name);
        let opened = if made { RocksKv::reopen(&path, options) } else { RocksKv::open(&path, options) };
        let store = opened.map_err(|error| {
            let advice = "mount or restore it and start again; a node that lost its log or state for good is removed from the \
                          cluster, and joins again as a new one from an empty data directory";
            let advice = if made { format!("; {advice}") } else { String::new() };
            Fault::new(Class::Reject, "PV-STORE", format!("cannot open {}: {error}{advice}", path.display()))
        })?;
        Ok::<Arc<dyn Kv>, Fault>(Arc::new(store))
    };
    let stores = Stores {
        log: open("log", pacsvault_kv::Options::log())?,
        state: open("state", pacsvault_kv::Options::state())?,
    };
    if !made {
        // Both are durably there and nothing was ever asked of them: a crash before this is known makes no difference.
        identity.remember_stores()?;
    }
    Ok(stores)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Loads and checks everything without starting: certificates fit, the data directory is ours.
///
/// Certificates are judged by the machine's clock, which the fault port does not step: rustls judges its peers by that clock
/// in any case, and a node that takes its own certificate for expired while everybody else accepts it would be a fault that
/// no real clock makes.
pub fn credentials(config: &Config) -> anyhow::Result<Arc<Credentials>> {
    let files = Files { ca: &config.tls.ca, certificate: &config.tls.cert, key: &config.tls.key };
    let credentials = Credentials::load(files, wall_now()).and_then(Credentials::expect_node)?;
    anyhow::ensure!(
        credentials.identity().name == config.name.as_str(),
        "the certificate {} is for node {}, the configuration for node {}: use the certificate of {}",
        config.tls.cert.display(),
        credentials.identity().name,
        config.name,
        config.name
    );
    Ok(Arc::new(credentials))
}

/// Refuses a source that is no address of this machine: no other node would ever be reached from it.
pub fn check_network(config: &Config) -> anyhow::Result<()> {
    config.source.map_or(Ok(()), pacsvault_rpc::check_source).map_err(|why| anyhow::anyhow!("network.source: {why}"))
}

/// Runs a node until it is told to stop or cannot go on.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    let faults = Faults::from_environment()?;
    let env: SharedEnv = TokioEnv::current();
    let env = faults.iter().fold(env, |env, faults| faults.env(env));
    if faults.is_some() {
        metrics::gauge!("pacsvault_faults_injected").set(1.0);
    }
    let credentials = credentials(&config)?;
    check_network(&config)?;
    let cluster = credentials.cluster();
    let fresh = u128::from(env.random()) << 64 | u128::from(env.random());
    let identity =
        Arc::new(IdentityFile::open(&config.data_dir, &config.name, cluster, Incarnation(fresh.to_be_bytes()))?);
    let profile = Profile {
        cluster,
        name: config.name.clone(),
        site: config.site.clone(),
        address: config.advertise.clone(),
        roles: config.roles,
        incarnation: identity.incarnation()?,
        join: config.join.iter().filter(|seed| seed.address != config.advertise).cloned().collect(),
        binary_version: format!("{}{}", env!("CARGO_PKG_VERSION"), faults.as_ref().map_or("", |_| FAULTS_SUFFIX)),
        format_version: FORMAT_VERSION,
    };
    // The port first: two nodes with one configuration must not both open the stores.
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let (opening, owner, volumes_env, injected) = (config.clone(), identity.clone(), env.clone(), faults.clone());
    let open = move || volumes::open_all(&opening, cluster, &owner, &volumes_env, injected.as_ref());
    let opened = blocking(env.as_ref(), open).await;
    let opened = opened.context("stopped while opening volumes")??;

    let remote = Arc::new(TonicPeer::dialling_from(config.source, credentials.clone()));
    let peer = LocalFirst::new(config.name.clone(), env.clone(), remote.clone());
    let starter = Arc::new(Starter {
        config: config.clone(),
        profile: profile.clone(),
        env: env.clone(),
        peer: peer.clone(),
        identity: identity.clone(),
    });
    let registry: Arc<dyn Registry> = identity;
    let pace = config.healing.clone();
    let node = Node::new(profile.clone(), env.clone(), peer.clone(), registry, starter, opened.volumes, pace);
    for (volume, reason) in &opened.failed {
        node.distrust(*volume, reason);
    }
    let front: Arc<dyn Service> = Arc::new(Front(node.clone()));
    peer.attach(&front);

    let own = Target { address: profile.address.clone(), name: Some(profile.name.clone()) };
    let mut options = CoordinatorOptions::new(vec![own]);
    options.site = Some(profile.site.clone());
    let signer = Arc::new(CertificateSigner(Signer::new(&credentials)?));
    let coordinator = Coordinator::new(options, env.clone(), peer, signer);
    let tls = ServerTls::new(&credentials)?;
    tokio::spawn(reload_on_hangup(config.clone(), tls.clone(), remote));
    let server = Server::new(tls, front, Some(coordinator))?;
    serve(&config, node, server, listener, metrics).await
}

async fn serve(
    config: &Config,
    node: Arc<Node>,
    server: Server,
    listener: TcpListener,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
) -> anyhow::Result<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let connections = server.counters();
    let serving = tokio::spawn(server.serve(listener, async {
        // Dropping the sender stops too.
        let _ = stopped.await;
    }));
    if let Some(listen) = config.ops_listen {
        let ops = Ops { node: node.clone(), metrics, connections };
        tokio::spawn(async move {
            if let Err(error) = ops::serve(listen, ops).await {
                tracing::error!(%error, "the operations port is closed");
            }
        });
    }
    tokio::spawn(node.clone().run_sweeper(Duration::from_secs(config.sweep_every_s)));
    let membership = tokio::spawn(node.clone().run());
    tracing::info!(name = %config.name, site = %config.site, listen = %config.listen, "node serves");
    let watched = node.clone();
    let fatal = move || watched.replica().and_then(|replica| replica.status().fatal);
    let reason = tokio::select! {
        () = told_to_stop() => None,
        why = stopped_for_good(fatal, membership) => Some(why),
    };
    // A receiver that is gone has stopped already.
    let _ = stop.send(());
    let drained = tokio::time::timeout(Duration::from_secs(10), serving).await;
    if drained.is_err() {
        tracing::warn!("some calls did not end within 10 s and are cut off");
    }
    if let Some(replica) = node.replica() {
        replica.stop().await;
    }
    match reason {
        None => Ok(()),
        Some(why) => Err(why),
    }
}

/// Resolves when the node cannot go on: it was refused, or its replica stopped. The replica is watched from the start,
/// for it may die while membership still waits for an answer that only a living replica could give.
async fn stopped_for_good(
    fatal: impl Fn() -> Option<String>,
    membership: tokio::task::JoinHandle<Result<(), Fault>>,
) -> anyhow::Error {
    let refused = async {
        match membership.await {
            Ok(Ok(())) => std::future::pending().await,
            Ok(Err(fault)) => anyhow::Error::new(fault),
            Err(error) => anyhow::Error::new(error),
        }
    };
    let died = async {
        loop {
            tokio::time::sleep(FATAL_POLL).await;
            if let Some(why) = fatal() {
                return anyhow::anyhow!("the replica stopped and must recover by a restart: {why}");
            }
        }
    };
    tokio::select! {
        why = refused => why,
        why = died => why,
    }
}

/// SIGHUP: reads the certificate files again and uses them for connections from then on. Bad files change nothing.
async fn reload_on_hangup(config: Config, tls: Arc<ServerTls>, peer: Arc<TonicPeer>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        let reloaded = credentials(&config).and_then(|fresh| {
            tls.reload(&fresh)?;
            peer.reload(fresh);
            Ok(())
        });
        match reloaded {
            Ok(()) => tracing::info!("certificates reloaded; receipts are signed with the old key until a restart"),
            Err(error) => tracing::error!("certificates not reloaded, the old ones stay in use: {error:#}"),
        }
    }
}

async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the default action of both signals ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop");
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pacsvault_core::ids::ClusterId;
    use pacsvault_ports::kv::{Batch, Durability};

    use super::*;

    #[test]
    fn a_node_does_not_start_with_a_source_of_another_machine() {
        let config = |source: &str| {
            let text = format!(
                "name = \"a1\"\nsite = \"a\"\ndata_dir = \"d\"\nlisten = \"127.0.0.1:7400\"\n[network]\n\
                 source = \"{source}\"\n[tls]\nca = \"c\"\ncert = \"c\"\nkey = \"k\"\n[[volumes]]\npath = \"v\"\n"
            );
            Config::parse(&text, std::path::Path::new("/etc/node.toml")).expect("valid")
        };
        check_network(&config("127.20.1.1")).expect("all of 127.0.0.0/8 is this machine");
        // Reserved for documentation: nobody's.
        let why = check_network(&config("203.0.113.9")).expect_err("refused").to_string();
        assert!(why.contains("network.source") && why.contains("203.0.113.9 is no address of this machine"), "{why}");
    }

    fn identity(dir: &std::path::Path) -> IdentityFile {
        let name = "a1".parse().expect("a name");
        IdentityFile::open(dir, &name, ClusterId([7; 16]), Incarnation([1; 16])).expect("an identity")
    }

    #[test]
    fn a_node_that_lost_a_store_does_not_start_under_its_old_id() {
        for lost in ["log", "state"] {
            let dir = tempfile::tempdir().expect("a directory");
            drop(open_stores(dir.path(), &identity(dir.path())).expect("made"));
            drop(open_stores(dir.path(), &identity(dir.path())).expect("opened again"));
            fs::remove_dir_all(dir.path().join(lost)).expect("removed");
            let gone = open_stores(dir.path(), &identity(dir.path())).err().expect("refused");
            assert_eq!((gone.class, gone.code), (Class::Reject, "PV-STORE"));
            assert!(gone.message.contains("joins again as a new one"), "{gone}");
            assert!(!dir.path().join(lost).exists(), "nothing was made where {lost} was");
            // An empty mount point is no store either.
            fs::create_dir(dir.path().join(lost)).expect("made");
            assert!(open_stores(dir.path(), &identity(dir.path())).is_err(), "{lost}");
            assert_eq!(fs::read_dir(dir.path().join(lost)).expect("readable").count(), 0);
        }
    }

    #[test]
    fn stores_of_a_start_that_was_cut_short_are_used() {
        let dir = tempfile::tempdir().expect("a directory");
        // The log was made, then the power went: nobody had voted on it.
        drop(RocksKv::open(&dir.path().join("log"), pacsvault_kv::Options::log()).expect("made"));
        fs::write(
            dir.path().join("identity.toml"),
            format!(
                "format = 1\nname = \"a1\"\ncluster = \"{}\"\nincarnation = \"{}\"\nnode = 4\n",
                ClusterId([7; 16]),
                Incarnation([1; 16])
            ),
        )
        .expect("written");
        let stores = open_stores(dir.path(), &identity(dir.path())).expect("opened");
        let mut batch = Batch::default();
        batch.put(b"vote".to_vec(), b"kept".to_vec());
        stores.log.write(batch, Durability::Synced).expect("written");
        drop(stores);
        let stores = open_stores(dir.path(), &identity(dir.path())).expect("opened");
        assert_eq!(stores.log.get(b"vote").expect("read"), Some(b"kept".to_vec()));
    }

    #[tokio::test]
    async fn a_replica_that_dies_while_the_node_introduces_itself_ends_the_process() {
        let membership = tokio::spawn(std::future::pending());
        let died = stopped_for_good(|| Some("its disk failed".to_owned()), membership);
        let why = tokio::time::timeout(Duration::from_secs(60), died).await.expect("it ends");
        assert!(why.to_string().contains("its disk failed"), "{why}");
    }
}
