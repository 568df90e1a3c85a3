//! Shards over mutual TLS on loopback, both ends in this process: MB/s, and CPU seconds per GB of both ends together.
//!
//! `cargo run --release -p pacsvault-rpc --example rpc_bench [shard_KiB [concurrent [MiB]]]`
#![allow(clippy::unwrap_used, reason = "a benchmark may stop with a panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use pacsvault_core::{
    ids::{Digest, InstanceId, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::profile::Code,
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Caller, Class, Fault, GetShard, Peer, PutShard, Reply, Request, Service, ShardData, Target},
};
use pacsvault_rpc::{Server, ServerTls, TonicPeer};
use pacsvault_security::{Authority, Credentials, Role, pki};
use tokio::net::TcpListener;

/// Takes shards and forgets them; gives the same shard to all.
struct Null {
    shard: ShardData,
}

impl Service for Null {
    fn handle(&self, _: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        let reply = match request {
            Request::PutShard(put) => {
                let PutShard { volume, header, .. } = *put;
                Ok(Reply::Durable(DurableShard { id: header.id, volume, digest: header.digest }))
            }
            Request::GetShard(_) => Ok(Reply::Shard(Box::new(self.shard.clone()))),
            _ => Err(Fault::new(Class::Reject, "PV-NO-METHOD", "not in this benchmark")),
        };
        Box::pin(std::future::ready(reply))
    }
}

/// CPU seconds of this process so far, user and system, from `/proc/self/stat` (USER_HZ is 100 on Linux).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn credentials(authority: &Authority, role: Role, name: &str) -> Credentials {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let now = WallMillis(u64::try_from(millis).unwrap());
    let request = pki::Request { role, name, hosts: &[], now, days: 30 };
    let certified = authority.certify(&request).unwrap();
    Credentials::from_pem(authority.certificate_pem(), &certified.certificate_pem, &certified.key_pem, now).unwrap()
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let shard_bytes = arguments.next().unwrap_or(128) << 10;
    let concurrent = arguments.next().unwrap_or(96);
    let total_bytes = arguments.next().unwrap_or(4096) << 20;
    let calls = total_bytes / shard_bytes;

    let volume = VolumeId([7; 16]);
    let id = ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(0), shard: ShardIndex(2) };
    let header = ShardHeader {
        id,
        code: Code::new(4, 2).unwrap(),
        stripe_bytes: 4 * shard_bytes as u64,
        digest: Digest([3; 32]),
        merkle_path: vec![Digest([4; 32]); 3],
        chunk_crcs: vec![5; shard_bytes.div_ceil(64 << 10)],
    };
    let data = Bytes::from(vec![0x5a; shard_bytes]);

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let authority = Authority::draw(WallMillis(u64::try_from(now).unwrap())).unwrap();
    let tls = ServerTls::new(&credentials(&authority, Role::Node, "node-1")).unwrap();
    let shard = ShardData { header: header.clone(), offset_bytes: 0, data: data.clone() };
    let server = Server::new(tls, Arc::new(Null { shard }), None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target { address: listener.local_addr().unwrap().to_string(), name: Some("node-1".parse().unwrap()) };
    tokio::spawn(server.serve(listener, std::future::pending()));
    let peer = Arc::new(TonicPeer::new(Arc::new(credentials(&authority, Role::Gateway, "gateway-1"))));

    let put = Request::PutShard(Box::new(PutShard { volume, header, data, repair: false }));
    let get =
        Request::GetShard(GetShard { volume, id, offset_bytes: 0, len_bytes: shard_bytes as u64, background: false });
    for (name, request) in [("warm-up", &put), ("put", &put), ("get", &get), ("put", &put), ("get", &get)] {
        let (began, cpu) = (Instant::now(), cpu_seconds());
        stream::iter(0..calls)
            .map(|_| peer.call(&target, request.clone(), Duration::from_secs(30)))
            .buffer_unordered(concurrent)
            .for_each(|reply| {
                reply.unwrap();
                std::future::ready(())
            })
            .await;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let gigabytes = (calls * shard_bytes) as f64 / 1e9;
        println!(
            "{name:8} {:6.0} MB/s  {:.2} CPU s/GB  ({calls} x {} KiB, {concurrent} at once)",
            gigabytes * 1e3 / seconds,
            cpu / gigabytes,
            shard_bytes >> 10
        );
    }
}
