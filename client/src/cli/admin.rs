//! `cluster`: making one, letting nodes in, moving leadership.

use std::time::Duration;

use pacsvault_client::{Client, config::check_endpoint};
use pacsvault_core::{
    catalog::{Command, Outcome},
    ids::NodeId,
    layout::{
        Profile, VolumeState,
        plan::{check_possible, defaults_for},
    },
};
use pacsvault_ports::peer::{Class, Fault, Peer, Reply, Request, Target};
use serde_json::json;

use super::{Context, args::Cluster, failure::Failure, plan};

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
            let command = Command::SetProfile { profile: profile.0, make_default: default };
            change(context, &client, command, "the profile holds for writes from now on").await
        }
        Cluster::FenceVolume { volume, yes: _ } => {
            let command = Command::SetVolumeState { volume, state: VolumeState::Fenced };
            change(context, &client, command, "the volume is out of service").await
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

/// Proposes one change of the cluster.
async fn change(context: &Context, client: &Client, command: Command, done: &str) -> Result<(), Failure> {
    let outcomes = client.coordinator().propose(vec![command]).await?;
    match outcomes.into_iter().next() {
        Some(Outcome::Done) => {
            context.out.either(&json!({"done": true}), || done.to_owned());
            Ok(())
        }
        Some(Outcome::Rejected(why)) => Err(Fault::new(Class::Reject, "PV-REJECTED", why.to_string()).into()),
        _ => Err(Fault::new(Class::Bug, "PV-BUG", "the cluster answered something else").into()),
    }
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
    let wanted = node.parse().ok().map(NodeId);
    let found = layout.nodes.values().find(|known| known.name.as_str() == node || Some(known.id) == wanted);
    let found = found.ok_or_else(|| {
        let names: Vec<&str> = layout.nodes.values().map(|known| known.name.as_str()).collect();
        Failure::usage(format!("{node} is not a node of this cluster")).hint(format!("nodes: {}", names.join(", ")))
    })?;
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
