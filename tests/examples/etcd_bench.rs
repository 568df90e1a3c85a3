//! Puts into etcd, measured as `pacsvault bench metadata` measures its commits: N clients, each waiting for its answer
//! before it sends the next. See `tests/etcd_bench.sh`, which starts the members.
//!
//! usage: etcd_bench ENDPOINTS CLIENTS SECONDS, as in `http://127.0.0.1:2379 1,64,256 10`
#![allow(clippy::cast_precision_loss, reason = "rates are shown without decimals")]

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::{
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Bytes of a value: those of a sealed record of one stripe.
const VALUE_BYTES: usize = 600;
/// Clients that share a connection, as etcd's own benchmark advises for many clients.
const CLIENTS_PER_CONNECTION: usize = 16;

/// `etcdserverpb.PutRequest`, the fields used here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`, of which nothing is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoints, clients, seconds] = &arguments[..] else { bail!("usage: etcd_bench ENDPOINTS CLIENTS SECONDS") };
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let seconds: u64 = seconds.parse().context("SECONDS must be a number")?;
    println!("{:>8} {:>10} {:>9} {:>9}", "clients", "puts/s", "p50 ms", "p99 ms");
    for clients in clients.split(',') {
        let clients: usize = clients.parse().context("CLIENTS must be numbers")?;
        // The first second warms up and is not counted.
        measure(&endpoints, clients, Duration::from_secs(1)).await?;
        let (mut latencies, took) = measure(&endpoints, clients, Duration::from_secs(seconds)).await?;
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let rate = latencies.len() as f64 / took.as_secs_f64();
        println!("{clients:>8} {rate:>10.0} {:>9.2} {:>9.2}", at(50), at(99));
    }
    Ok(())
}

async fn measure(endpoints: &[&str], clients: usize, length: Duration) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let mut channels = Vec::new();
    for number in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
        let endpoint = Endpoint::from_shared(endpoints[number % endpoints.len()].to_owned())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.context("cannot connect to etcd")?);
    }
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..clients)
        .map(|client| tokio::spawn(put_until(channels[client % channels.len()].clone(), next.clone(), began + length)))
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    anyhow::ensure!(!latencies.is_empty(), "nothing was put");
    Ok((latencies, began.elapsed()))
}

async fn put_until(channel: Channel, next: Arc<AtomicU64>, end: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut grpc = Grpc::new(channel);
    let value = Bytes::from(vec![0x5A; VALUE_BYTES]);
    let mut latencies = Vec::new();
    while Instant::now() < end {
        // Keys as long as ours: tenant, study, series and instance.
        let number = next.fetch_add(1, Ordering::Relaxed);
        let key =
            Bytes::from(format!("main/1.2.826.0.1.3680043.2.1125.1/1.2.826.0.1.3680043.2.1125.2/1.2.826.0.1.{number}"));
        let began = Instant::now();
        grpc.ready().await.context("the connection is closed")?;
        let request = tonic::Request::new(PutRequest { key, value: value.clone() });
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let _: tonic::Response<PutResponse> = grpc.unary(request, path, ProstCodec::default()).await?;
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}
