//! Built-in profiles, refusals and plans, as an operator reads them.

use super::*;
use crate::ids::NodeId;
use crate::layout::testing::{cluster, profile, site};

fn topology(sites: &[usize]) -> Topology {
    Topology::with_nodes(sites.iter().enumerate().map(|(number, &nodes)| (site(number), nodes)))
}

fn standard(sites: &[usize]) -> String {
    let profiles = defaults_for(&topology(sites));
    profiles.first().map_or("none".to_owned(), |profile| format!("{} {}", profile.code, profile.contract))
}

#[test]
fn each_topology_has_its_default() {
    assert_eq!(standard(&[2, 2, 2]), "4+2 any one site");
    assert_eq!(standard(&[3, 3, 3]), "5+4 any one site and any one node more");
    assert_eq!(standard(&[3, 3, 0]), "3+3 any one site");
    assert_eq!(standard(&[4]), "2+2 any 2 nodes");
    assert_eq!(standard(&[1, 1, 1]), "2+1 any one site");
    assert_eq!(standard(&[1]), "none");
    assert_eq!(standard(&[]), "none");
    let hot = &defaults_for(&topology(&[2, 2, 2]))[1];
    assert_eq!(
        (hot.name.as_str(), hot.code.to_string(), hot.contract.to_string()),
        ("hot", "2+4".into(), "any 2 sites".into())
    );
    assert_eq!(hot.read_preference, ReadPreference::EverySite);
}

#[test]
fn every_topology_with_two_nodes_has_a_possible_default() {
    for (a, b, c, d) in
        (1..5).flat_map(|a| (0..5).flat_map(move |b| (0..4).flat_map(move |c| (0..3).map(move |d| (a, b, c, d)))))
    {
        let topology = topology(&[a, b, c, d]);
        let profiles = defaults_for(&topology);
        assert_eq!(profiles.is_empty(), a + b + c + d < 2, "{:?}", topology.nodes());
        assert!(profiles.is_empty() || profiles[0].name.as_str() == "standard", "{:?}", topology.nodes());
        assert!(profiles.iter().all(|profile| check_possible(profile, &topology).is_ok()));
    }
}

#[test]
fn an_impossible_contract_is_refused_with_the_arithmetic_and_what_would_help() {
    let error = check_possible(&profile("4+2", "1 site"), &topology(&[2, 2])).expect_err("two sites cannot");
    assert_eq!(
        error.to_string(),
        "profile tested cannot keep its contract: 4+2 over sites of 2,2 nodes: losing any one site leaves at most 3 \
         shards of the 4 needed; add 1 site of 2 storage nodes, or use 3+3, or use 4+4"
    );
    let error = check_possible(&profile("4+2", "1 site"), &topology(&[])).expect_err("nothing there");
    assert!(error.to_string().contains("no storage nodes: losing any one site leaves at most 0 shards"), "{error}");
    let error = check_possible(&profile("1+1", "1 node"), &topology(&[1])).expect_err("one node cannot");
    assert!(error.to_string().contains("one site of 1 node: losing any one node leaves at most 0"), "{error}");
}

#[test]
fn contracts_possible_one_by_one_but_not_together_are_refused_as_such() {
    // 4+4 over sites of 1 and 8 nodes: either site may fall at 4,4; four nodes only with at most one shard on the lone node.
    let both = profile("4+4", "1 site; 3 nodes");
    let error = check_possible(&both, &topology(&[1, 8])).expect_err("not together");
    assert_eq!(error.broken, None);
    assert!(error.to_string().contains("no one placement survives all of"), "{error}");
}

#[test]
fn a_plan_says_what_is_promised_and_what_would_be_refused() {
    let topology = Topology::of(&cluster(&[2, 2, 2], 1));
    let plan = Plan::of(&defaults_for(&topology)[0], &topology).expect("possible");
    assert_eq!(
        plan.to_string(),
        "standard v1: 4+2, 1.50 bytes stored per byte\n\
         \u{20} promises to survive   any one site\n\
         \u{20} survives              any one site; any 2 nodes\n\
         \u{20} shards by site        site-0 2 on 2 nodes, site-1 2 on 2 nodes, site-2 2 on 2 nodes\n\
         \u{20} new writes without any one node: accepted at full contract\n\
         \u{20} new writes without any one site: accepted, surviving only any one node\n\
         \u{20} new writes without any one site and any one node more: accepted, surviving only any one node"
    );
}

#[test]
fn a_topology_leaves_out_what_is_gone_for_good_only() {
    let mut layout = cluster(&[2, 1], 2);
    crate::layout::testing::take_down(&mut layout, 0);
    [2, 4, 5].into_iter().for_each(|volume| crate::layout::testing::fence(&mut layout, volume));
    assert_eq!(Topology::of(&layout).sites, [(site(0), vec![2, 1]), (site(1), vec![])].into());
    assert_eq!(Topology::staying(&layout), Topology::of(&layout), "who is down stays");
    layout.nodes.get_mut(&NodeId(0)).expect("a known node").draining = true;
    assert_eq!(Topology::staying(&layout).sites, [(site(0), vec![1]), (site(1), vec![])].into());
}
