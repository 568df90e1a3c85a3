//! The operations port: health for orchestrators, metrics for Prometheus. Plain HTTP, meant for a management network;
//! nothing about patients is on it.
//!
//! - `/healthz/live`: the process runs and its replica has not stopped for good.
//! - `/healthz/ready`: it is a member, knows a leader and has the layout, so that it can serve.
//! - `/metrics`: Prometheus text format.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use pacsvault_core::layout::VolumeState;
use pacsvault_ports::peer::VolumeStatus;
use pacsvault_rpc::server::Counters;
use pacsvault_service::Node;

/// What the handlers see.
#[derive(Clone)]
pub struct Ops {
    /// The node.
    pub node: Arc<Node>,
    /// The recorder of this process.
    pub metrics: PrometheusHandle,
    /// What happens on the gRPC port.
    pub connections: Arc<Counters>,
}

/// Serves the operations port until the process ends.
pub async fn serve(listen: SocketAddr, ops: Ops) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on ops_listen {listen}: {error}"))?;
    let router = Router::new()
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(ops);
    Ok(axum::serve(listener, router).await?)
}

async fn live(State(ops): State<Ops>) -> (StatusCode, String) {
    match ops.node.replica().and_then(|replica| replica.status().fatal) {
        None => (StatusCode::OK, "alive\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("the replica stopped: {why}\n")),
    }
}

async fn ready(State(ops): State<Ops>) -> (StatusCode, String) {
    let Some(replica) = ops.node.replica() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "not a member of a cluster yet\n".to_owned());
    };
    let status = replica.status();
    if status.leader.is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no leader known\n".to_owned());
    }
    if replica.layout().is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the catalog is not here yet\n".to_owned());
    }
    (StatusCode::OK, "ready\n".to_owned())
}

async fn metrics(State(ops): State<Ops>) -> String {
    observe(&ops.node);
    let counts = ops.connections.counts();
    metrics::counter!("pacsvault_connections_accepted_total").absolute(counts.accepted);
    metrics::counter!("pacsvault_connections_refused_total").absolute(counts.refused);
    metrics::counter!("pacsvault_handshakes_failed_total").absolute(counts.handshakes_failed);
    metrics::counter!("pacsvault_connections_broken_total").absolute(counts.broken);
    ops.metrics.run_upkeep();
    ops.metrics.render()
}

/// Sets the gauges that are states rather than events.
#[allow(clippy::cast_precision_loss, reason = "gauges are floating point; 53 bits of bytes are 8 PiB")]
fn observe(node: &Node) {
    if let Some(replica) = node.replica() {
        let status = replica.status();
        metrics::gauge!("pacsvault_raft_term").set(status.term.0 as f64);
        metrics::gauge!("pacsvault_raft_last_log_index").set(status.last_log.0 as f64);
        metrics::gauge!("pacsvault_raft_applied_index").set(status.applied.0 as f64);
        metrics::gauge!("pacsvault_raft_is_leader").set(f64::from(u8::from(status.leader == Some(status.node))));
        metrics::gauge!("pacsvault_raft_has_leader").set(f64::from(u8::from(status.leader.is_some())));
    }
    for volume in node.volume_statuses() {
        observe_volume(&volume);
    }
}

#[allow(clippy::cast_precision_loss, reason = "gauges are floating point; 53 bits of bytes are 8 PiB")]
fn observe_volume(status: &VolumeStatus) {
    // The volume label is bounded by the volumes of one node.
    let label = || status.volume.to_string();
    metrics::gauge!("pacsvault_volume_up", "volume" => label())
        .set(f64::from(u8::from(status.state == VolumeState::Up)));
    metrics::gauge!("pacsvault_volume_shards", "volume" => label()).set(status.shards as f64);
    metrics::gauge!("pacsvault_volume_used_bytes", "volume" => label()).set(status.used_bytes as f64);
    metrics::gauge!("pacsvault_volume_free_bytes", "volume" => label()).set(status.free_bytes as f64);
    metrics::gauge!("pacsvault_volume_capacity_bytes", "volume" => label()).set(status.capacity_bytes as f64);
}
