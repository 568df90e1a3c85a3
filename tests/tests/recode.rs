//! Profiles change, with real processes under load: a study becomes hot while it is read, written and deleted, and cold again
//! later. Every promise is kept, and what the catalog says is proven from the volumes.
//!
//! Short by default; `PACSVAULT_LONG=1` runs each load ten times as long. `PACSVAULT_TEST_SEED` repeats a run's choices.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use pacsvault_core::{
    catalog::{Command, SealedInstance},
    ids::{Digest, InstanceId, ProfileName, StripeIndex, Tenant, Uid},
    layout::{
        Contract, Failures, Profile,
        profile::{Code, ReadPreference},
    },
};
use pacsvault_security::Authority;
use pacsvault_tests::{
    Shape,
    proof::Inventory,
    scene::{HASTE, Scene, moments},
};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// How long re-encoding one study may take here; it takes seconds once writers rest.
const RECODED_WITHIN: Duration = Duration::from_secs(180);
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// The study of the load's first writer.
const STUDY: &str = "1.2.826.0.1.1";

fn scene() -> anyhow::Result<Scene> {
    let shape = Shape { bytes_max: 128 << 20, large_per_mille: 4, ..Shape::default() };
    Scene::set(TMP, 3, 2, HASTE, shape)
}

/// Two shards per site of which any two suffice: readable at every site by itself.
fn near() -> anyhow::Result<Profile> {
    Ok(Profile {
        name: "near".parse()?,
        version: 1,
        code: Code::new(2, 4).context("a code")?,
        contract: Contract::one(Failures { sites: 2, nodes: 0 }),
        floor: Contract::one(Failures { sites: 1, nodes: 0 }),
        read_preference: ReadPreference::EverySite,
    })
}

fn want(scene: &Scene, profile: Option<ProfileName>) -> anyhow::Result<()> {
    let (tenant, study): (Tenant, Uid) = ("main".parse()?, STUDY.parse()?);
    scene.order(&Command::SetStudyProfile { tenant, study, profile })
}

/// All live versions of a study, by the catalog.
fn versions(scene: &Scene, study: &Uid) -> anyhow::Result<Vec<SealedInstance>> {
    let client = &scene.clients[0];
    scene.bed.runtime.block_on(async {
        let (mut all, mut token) = (Vec::new(), Vec::new());
        loop {
            let page = client.list(Some(study.clone()), None, token).await?;
            for newest in &page.instances {
                all.extend(client.versions_of(newest).await?);
            }
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    })
}

/// Waits until every live version of the study is of this profile, and says how many there are.
fn until_all(scene: &Scene, profile: &Profile) -> anyhow::Result<usize> {
    let study: Uid = STUDY.parse()?;
    let mut count = 0;
    scene.bed.until(RECODED_WITHIN, "every version of the study to be re-encoded", || {
        let all = versions(scene, &study)?;
        let fits = |one: &&SealedInstance| one.seal.profile == profile.name && one.seal.code == profile.code;
        let done = all.iter().filter(fits).count();
        ensure!(!all.is_empty(), "the study is empty");
        ensure!(done == all.len(), "{done} of {}, held back: {:?}", all.len(), scene.health()?.held_back);
        count = all.len();
        Ok(true)
    })?;
    eprintln!("all {count} versions of the study are {}", profile.name);
    Ok(count)
}

/// Checks every promise, then stops all nodes and proves from the volumes what the catalog says of every study.
fn proven(scene: &mut Scene) -> anyhow::Result<()> {
    scene.until_healed(HEALED_WITHIN)?;
    scene.check()?;
    let (study, near) = (STUDY.parse()?, near()?);
    let hot = versions(scene, &study)?;
    ensure!(hot.iter().all(|one| one.seal.profile == near.name && !one.degraded), "not as it was");
    let mut all = hot.clone();
    let studies = scene.bed.runtime.block_on(scene.clients[0].list(None, None, Vec::new()))?.studies;
    for row in studies.iter().filter(|row| row.study != study) {
        all.extend(versions(scene, &row.study)?);
    }
    let expected: BTreeMap<InstanceId, (u64, Digest)> =
        all.iter().map(|one| (one.seal.instance, (one.seal.size_bytes, one.seal.digest))).collect();
    let cluster = Authority::open(&scene.bed.pki())?.cluster();
    scene.bed.cluster.stop(Duration::from_secs(30), |_| true)?;
    let inventory = Inventory::read(&scene.bed.cluster, cluster)?;
    let proof = inventory.prove(&expected)?;
    ensure!(inventory.damaged.is_empty(), "damaged shards are left: {:?}", inventory.damaged);
    eprintln!("proven from the volumes: {proof:?}");
    for one in &hot {
        let range = (one.seal.instance, StripeIndex(0))..=(one.seal.instance, StripeIndex(u32::MAX));
        for ((instance, index), stripe) in inventory.stripes.range(range) {
            let mut by_site: BTreeMap<&str, usize> = BTreeMap::new();
            for place in stripe.shards.values().flatten() {
                *by_site.entry(&place.site).or_default() += 1;
            }
            ensure!(
                stripe.code == near.code && by_site.len() == 3 && by_site.values().all(|shards| *shards >= 2),
                "{instance}/{index} is {} with shards {by_site:?}: two sites cannot be lost",
                stripe.code
            );
        }
    }
    Ok(())
}

#[test]
fn a_study_under_load_is_re_encoded_version_by_version_and_nothing_is_lost() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let near = near()?;
            scene.order(&Command::SetProfile { profile: near.clone(), make_default: false })?;
            want(scene, Some(near.name.clone()))?;
            scene.load().run_for(moments(5));
            scene.load().until_acked(10, Duration::from_secs(30), "while a study is re-encoded")?;
            scene.quiet()?;
            until_all(scene, &near).map(drop)
        },
        proven,
    )
}

#[test]
fn another_leader_goes_on_and_the_way_back_is_the_same() -> anyhow::Result<()> {
    scene()?.play(
        |scene| {
            let near = near()?;
            scene.load().run_for(moments(2));
            scene.quiet()?;
            scene.order(&Command::SetProfile { profile: near.clone(), make_default: false })?;
            want(scene, Some(near.name.clone()))?;
            // In the middle of it, or before or after: the next leader counts again.
            std::thread::sleep(moments(3));
            let (_, leader) = scene.bed.leader()?;
            scene.bed.cluster.kill(|node| node.name == leader)?;
            scene.bed.cluster.start(|_| true)?;
            scene.bed.until_whole(Duration::from_secs(60))?;
            let count = until_all(scene, &near)?;
            let layout = scene.bed.layout()?;
            let standard = layout.profiles.get(&layout.default_profile).context("the default profile")?;
            want(scene, Some(standard.name.clone()))?;
            ensure!(until_all(scene, standard)? == count, "versions came or went");
            scene.check()?;
            want(scene, Some(near.name.clone()))?;
            ensure!(until_all(scene, &near)? == count, "versions came or went");
            Ok(())
        },
        proven,
    )
}
