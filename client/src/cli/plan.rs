//! `plan`: what profiles survive, before anything is trusted to them.

use pacsvault_core::{
    ids::SiteName,
    layout::{
        Impossible, Plan, Profile, Topology,
        plan::{Writes, defaults_for},
    },
};
use serde_json::{Value, json};

use super::{Context, args, failure::Failure, output::failures};

/// Judges profiles on the topology that was named, or on the live one.
pub async fn run(context: &Context, args: args::Plan) -> Result<(), Failure> {
    let asked: Vec<Profile> = args.profiles.into_iter().map(|profile| profile.0).collect();
    let (topology, known) = if args.sites.is_empty() {
        let layout = context.connect()?.layout().await?;
        (Topology::of(&layout), layout.profiles.values().cloned().collect())
    } else {
        let topology = topology(&args.sites, args.witness)?;
        let defaults = defaults_for(&topology);
        (topology, defaults)
    };
    let profiles = if asked.is_empty() { known } else { asked };
    if profiles.is_empty() {
        let text = "fewer than two storage nodes protect against nothing, so there is no built-in profile";
        return Err(Failure::failed("PV-NO-PROFILE", text).hint("add a node, or better a site"));
    }
    let plans: Vec<Result<Plan, Impossible>> = profiles.iter().map(|profile| Plan::of(profile, &topology)).collect();
    if context.out.json {
        plans.iter().zip(&profiles).for_each(|(plan, profile)| context.out.value(&value(plan, profile)));
    } else {
        let texts: Vec<String> = plans
            .iter()
            .map(|plan| match plan {
                Ok(plan) => plan.to_string(),
                Err(impossible) => impossible.to_string(),
            })
            .collect();
        context.out.say(texts.join("\n\n"));
    }
    let impossible = plans.iter().filter(|plan| plan.is_err()).count();
    if impossible == 0 {
        return Ok(());
    }
    Err(Failure::failed(
        "PV-IMPOSSIBLE",
        format!("{impossible} of {} profiles cannot keep their contract here", plans.len()),
    ))
}

/// Sites `site-1`, `site-2`, …, and perhaps one that only votes.
pub fn topology(nodes: &[u8], witness: bool) -> Result<Topology, Failure> {
    let mut sites: Vec<(SiteName, usize)> = Vec::new();
    for (number, nodes) in (1..).zip(nodes) {
        sites.push((site(&format!("site-{number}"))?, usize::from(*nodes)));
    }
    if witness {
        sites.push((site("witness")?, 0));
    }
    Ok(Topology::with_nodes(sites))
}

fn site(name: &str) -> Result<SiteName, Failure> {
    name.parse().map_err(|error| Failure::usage(format!("{error}")))
}

fn value(plan: &Result<Plan, Impossible>, profile: &Profile) -> Value {
    let mut value = json!({
        "profile": profile.name.as_str(), "version": profile.version, "code": profile.code.to_string(),
        "contract": profile.contract.to_string(), "floor": profile.floor.to_string(), "possible": plan.is_ok(),
    });
    match plan {
        Err(impossible) => value["reason"] = json!(impossible.to_string()),
        Ok(plan) => {
            let shards: Vec<Value> = plan
                .shards
                .iter()
                .map(|(site, nodes, shards)| json!({"site": site.as_str(), "nodes": nodes, "shards": shards}))
                .collect();
            let away: Vec<Value> = plan
                .away
                .iter()
                .map(|(away, writes)| {
                    let (outcome, survives) = match writes {
                        Writes::Full => ("full", Vec::new()),
                        Writes::Degraded(claims) => ("degraded", failures(claims)),
                        Writes::Refused(claims) => ("refused", failures(claims)),
                    };
                    json!({"away": away.to_string(), "writes": outcome, "survives": survives})
                })
                .collect();
            value["overhead_percent"] = json!(plan.overhead_percent());
            value["survives"] = json!(failures(&plan.survives));
            value["shards"] = json!(shards);
            value["away"] = json!(away);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_sites_of_two_nodes_get_four_plus_two() {
        let topology = topology(&[2, 2, 2], false).expect("valid");
        let standard = &defaults_for(&topology)[0];
        let plan = Plan::of(standard, &topology);
        let value = value(&plan, standard);
        assert_eq!(value["code"], "4+2");
        assert_eq!(value["possible"], true);
        assert_eq!(value["contract"], "any one site");
    }

    #[test]
    fn a_witness_holds_no_shards() {
        let topology = topology(&[3, 3], true).expect("valid");
        assert_eq!(topology.nodes(), [3, 3]);
        assert_eq!(topology.sites.len(), 3);
    }
}
