//! `cluster`: making one, letting nodes in, moving leadership.

use std::time::Duration;

use pacsvault_client::{Client, config::check_endpoint};
use pacsvault_core::layout::{
    Profile,
    plan::{check_possible, defaults_for},
};
use pacsvault_ports::peer::{Class, Fault, Peer, Reply, Request, Target};
use serde_json::json;

use super::{Context, args::Cluster, failure::Failure, find, plan};

/// How long a change of membership may take: a join replicates the whole catalog's snapshot before it is answered.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);

/// Administers.
pub async fn run(context: &Context, command: Cluster) -> Result<(), Failure> {
    let client = context.connect()?;
    match command {
        Cluster::Init { sites, witness, profiles, node } => {
            let address = node.unwrap_or_else(|| client.config().endpoints[0].clone());
            let profiles = possible_profiles(&sites, witness, profiles.into_iter().map(|profile| profile.0).collect())?;
            let next = "next, for every other node: pacsvault cluster join ADDRESS --via";
            member(context, &client, &address, Request::InitCluster { profiles }, &format!("{next} {address}")).await
        }
        Cluster::Join { node, via } => {
            for seed in &via {
                check_endpoint(seed)?;
            }
            let seeds = via.into_iter().map(|address| Target { address, name: None }).collect();
            member(context, &client, &node, Request::JoinVia { seeds }, "").await
        }
        Cluster::SetProfile { profile, default } => {
            client.set_profile(profile.0, default).await?;
            done(context, "the profile holds for writes from now on");
            Ok(())
        }
        Cluster::FenceVolume { volume, yes: _ } => {
            client.fence_volume(volume).await?;
            done(context, "the volume is out of service; its shards are rebuilt elsewhere");
            Ok(())
        }
        Cluster::TransferLeader { node } => transfer(context, &client, &node).await,
    }
}

/// The profiles asked for, or the built-in ones; an impossible one is refused with the arithmetic before anything begins.
fn possible_profiles(sites: &[u8], witness: bool, asked: Vec<Profile>) -> Result<Vec<Profile>, Failure> {
    let topology = plan::topology(sites, witness)?;
    let profiles = if asked.is_empty() { defaults_for(&topology) } else { asked };
    if profiles.is_empty() {
        let text = "fewer than two storage nodes protect against nothing, so there is no built-in profile";
        return Err(Failure::failed("PV-NO-PROFILE", text).hint("name more nodes with --sites"));
    }
    for profile in &profiles {
        check_possible(profile, &topology).map_err(|impossible| {
            Failure::failed("PV-IMPOSSIBLE", impossible.to_string()).hint("`pacsvault plan` helps to choose")
        })?;
    }
    Ok(profiles)
}

fn done(context: &Context, words: &str) {
    context.out.either(&json!({"done": true}), || words.to_owned());
}

async fn member(
    context: &Context,
    client: &Client,
    address: &str,
    request: Request,
    next: &str,
) -> Result<(), Failure> {
    check_endpoint(address)?;
    let target = Target { address: address.to_owned(), name: None };
    match client.peer().call(&target, request, CHANGE_WITHIN).await? {
        Reply::Joined { node, cluster, incarnation } => {
            let value = json!({
                "node": node.0, "cluster": cluster.to_string(), "incarnation": incarnation.to_string(), "address": address,
            });
            context.out.either(&value, || {
                let text = format!("{address} is node {node} of cluster {cluster}");
                if next.is_empty() { text } else { format!("{text}\n{next}") }
            });
            Ok(())
        }
        _ => Err(Fault::new(Class::Bug, "PV-BUG", "the node answered something else").into()),
    }
}

async fn transfer(context: &Context, client: &Client, node: &str) -> Result<(), Failure> {
    let layout = client.layout().await?;
    let found = find::node(&layout, node)?;
    let status = client.status().await;
    // Only the leader can hand leadership over; whoever else is asked may not know where it is.
    let leader = status.nodes.iter().find(|view| view.name.is_some() && view.name == status.leader);
    let request = Request::TransferLeader { to: found.id };
    let reply = match leader {
        Some(view) => {
            let target = Target { address: view.address.clone(), name: view.name.clone() };
            client.peer().call(&target, request, CHANGE_WITHIN).await?
        }
        None => client.coordinator().ask(&request).await?,
    };
    match reply {
        Reply::Done => {
            let value = json!({"to": found.name.as_str(), "node": found.id.0});
            context.out.either(&value, || format!("leadership is handed to {}; see `pacsvault status`", found.name));
            Ok(())
        }
        _ => Err(Fault::new(Class::Bug, "PV-BUG", "the node answered something else").into()),
    }
}
