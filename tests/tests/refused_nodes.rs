//! Nodes that must not start: wrong certificates, typing errors, disks of others, disks that are not mounted, ports and
//! directories in use. Each says what is wrong and what to do.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use pacsvault_runtime::wall_now;
use pacsvault_security::Authority;
use pacsvault_tests::{
    Bed, bed,
    refusal::{refused, says},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// One prepared node with a copy of its configuration in which `from` is replaced.
fn changed(bed: &Bed, from: &str, to: &str) -> anyhow::Result<PathBuf> {
    let config = &bed.cluster.nodes[0].config;
    let text = fs::read_to_string(config)?;
    anyhow::ensure!(text.contains(from), "the configuration has no {from:?}:\n{text}");
    let path = config.with_file_name("changed.toml");
    fs::write(&path, text.replace(from, to))?;
    Ok(path)
}

fn refused_with(bed: &Bed, from: &str, to: &str, words: &[&str]) -> anyhow::Result<()> {
    says(&refused(&bed.cluster.bin, &changed(bed, from, to)?)?, words)
}

/// A certificate of this cluster's CA with any identity at all.
fn certify(pki: &Path, uri: &str, stem: &str) -> anyhow::Result<()> {
    let ca_key = KeyPair::from_pem(&fs::read_to_string(pki.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(pki.join("ca.pem"))?, &ca_key)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    fs::write(pki.join(format!("{stem}.pem")), params.signed_by(&key, &issuer)?.pem())?;
    Ok(fs::write(pki.join(format!("{stem}.key")), key.serialize_pem())?)
}

#[test]
fn a_node_with_wrong_certificates_says_which_are_needed() -> anyhow::Result<()> {
    Bed::prepared(TMP, 1, 1)?.run(|bed| {
        let other = bed.cluster.dir.join("other");
        let stranger = Authority::create(&other, wall_now())?;
        bed::issue(&stranger, &other, "node", "a1")?;
        // The CA of another cluster beside our certificate, and the reverse.
        let words = ["belongs to cluster", "use certificates and ca of one cluster"];
        refused_with(bed, "../pki/ca.pem", "../other/ca.pem", &words)?;
        refused_with(bed, "../pki/node-a1.", "../other/node-a1.", &words)?;
        // A member's certificate where the CA's should be; a missing file; the key of another certificate.
        refused_with(bed, "../pki/ca.pem", "../pki/node-a1.pem", &["is it a member's certificate?"])?;
        refused_with(bed, "../pki/ca.pem", "../pki/none.pem", &["none.pem", "pacsvault pki issue"])?;
        refused_with(bed, "../pki/node-a1.key", "../other/node-a1.key", &["private key does not belong"])?;
        // Roles.
        refused_with(bed, "../pki/node-a1.", "../pki/operator-admin.", &["needs a node certificate", "operator"])?;
        let cluster = Authority::open(&bed.pki())?.cluster();
        certify(&bed.pki(), &format!("pacsvault://{cluster}/janitor/a1"), "janitor-a1")?;
        refused_with(bed, "../pki/node-a1.", "../pki/janitor-a1.", &["janitor", "roles are node, gateway, operator"])?;
        // Signed by nobody we trust, though it names our cluster: a forged identity.
        certify(&other, &format!("pacsvault://{cluster}/node/a1"), "forged-a1")?;
        refused_with(
            bed,
            "../pki/node-a1.",
            "../other/forged-a1.",
            &["not signed by this cluster's ca", "check that ca.pem"],
        )?;
        // The right role, another node's name.
        let authority = Authority::open(&bed.pki())?;
        bed::issue(&authority, &bed.pki(), "node", "b9")?;
        refused_with(bed, "../pki/node-a1.", "../pki/node-b9.", &["is for node b9", "use the certificate of a1"])
    })
}

#[test]
fn a_typing_error_in_the_configuration_is_refused_with_its_place() -> anyhow::Result<()> {
    Bed::prepared(TMP, 1, 1)?.run(|bed| {
        refused_with(bed, "site = ", "sight = ", &["sight", "line 2", "unknown field"])?;
        refused_with(bed, "capacity = ", "capacty = ", &["capacty", "unknown field"])?;
        refused_with(bed, "64GiB", "64 bananas", &["volumes.capacity", "bananas", "GiB"])?;
        refused_with(bed, "\"127.0.0.1:", "\"127.0.0.1.", &["127.0.0.1.", "line 4"])?;
        let missing = bed.cluster.dir.join("nowhere/node.toml");
        fs::create_dir_all(missing.parent().unwrap_or(Path::new("/")))?;
        says(&refused(&bed.cluster.bin, &missing)?, &["cannot read configuration", "nowhere/node.toml"])
    })
}

#[test]
fn disks_that_are_not_this_nodes_are_refused_and_left_alone() -> anyhow::Result<()> {
    Bed::prepared(TMP, 2, 1)?.run(|bed| {
        bed.cluster.start(|_| true)?;
        bed.form()?;
        bed.cluster.stop(Duration::from_secs(20), |_| true)?;
        let homes: Vec<PathBuf> =
            bed.cluster.nodes.iter().filter_map(|node| Some(node.config.parent()?.to_path_buf())).collect();
        let (own, aside) = (homes[0].join("volume"), homes[0].join("aside"));
        let refused = |bed: &Bed| refused(&bed.cluster.bin, &bed.cluster.nodes[0].config);

        // The disk is not mounted: an empty directory where a volume was.
        fs::rename(&own, &aside)?;
        fs::create_dir(&own)?;
        says(&refused(bed)?, &["was here and is not", "mount its disk"])?;
        anyhow::ensure!(fs::read_dir(&own)?.next().is_none(), "the empty mount point was written to");
        fs::remove_dir(&own)?;

        // The disk of another node of the same cluster.
        fs::rename(homes[1].join("volume"), &own)?;
        says(&refused(bed)?, &["belongs to node b1", "not to this node"])?;
        fs::rename(&own, homes[1].join("volume"))?;

        // A directory with somebody's files, under a path that never was a volume.
        fs::rename(&aside, &own)?;
        let text = fs::read_to_string(&bed.cluster.nodes[0].config)?;
        fs::create_dir(homes[0].join("letters"))?;
        fs::write(homes[0].join("letters/mother.txt"), "dear")?;
        fs::write(&bed.cluster.nodes[0].config, format!("{text}\n[[volumes]]\npath = \"letters\"\n"))?;
        says(&refused(bed)?, &["letters", "mother.txt", "name an empty directory"])?;
        anyhow::ensure!(
            fs::read_to_string(homes[0].join("letters/mother.txt"))? == "dear",
            "somebody's file was changed"
        );
        fs::write(&bed.cluster.nodes[0].config, text)?;

        // Its identity is gone while its stores are there.
        fs::rename(homes[0].join("data/identity.toml"), homes[0].join("identity.aside"))?;
        says(&refused(bed)?, &["identity.toml", "restore the file from a backup"])?;
        fs::rename(homes[0].join("identity.aside"), homes[0].join("data/identity.toml"))?;

        // After all that, with everything back in its place, the cluster is whole.
        bed.cluster.start(|_| true)?;
        bed.until_whole(Duration::from_secs(60))
    })
}

#[test]
fn a_volume_of_another_cluster_is_refused() -> anyhow::Result<()> {
    Bed::prepared(TMP, 1, 1)?.run(|bed| {
        bed.cluster.start(|_| true)?;
        let volume = bed.cluster.dir.join("a1/volume");
        bed.until(Duration::from_secs(20), "the volume to be formatted", || Ok(volume.join("volume.id").exists()))?;
        bed.cluster.stop(Duration::from_secs(20), |_| true)?;
        // Another cluster, whose node has the same name.
        let other = bed.cluster.dir.join("other");
        let stranger = Authority::create(&other, wall_now())?;
        bed::issue(&stranger, &other, "node", "a1")?;
        let text = fs::read_to_string(&bed.cluster.nodes[0].config)?;
        let path = bed.cluster.nodes[0].config.with_file_name("stranger.toml");
        fs::write(&path, text.replace("../pki/", "../other/").replace("\"data\"", "\"data-of-stranger\""))?;
        says(&refused(&bed.cluster.bin, &path)?, &["belongs to node a1 of cluster", "not to this node"])?;
        // And the data directory of the other cluster.
        fs::write(&path, text.replace("../pki/", "../other/"))?;
        says(&refused(&bed.cluster.bin, &path)?, &["identity.toml belongs to node a1 of cluster", "check data_dir"])
    })
}

#[test]
fn what_is_in_use_is_not_shared() -> anyhow::Result<()> {
    Bed::prepared(TMP, 1, 1)?.run(|bed| {
        bed.cluster.start(|_| true)?;
        bed.form()?;
        let node = &bed.cluster.nodes[0];
        // The port.
        let same = node.config.with_file_name("same.toml");
        fs::copy(&node.config, &same)?;
        says(&refused(&bed.cluster.bin, &same)?, &["cannot listen on", &node.address, "in use"])?;
        // The directories, under other ports.
        let text =
            fs::read_to_string(&node.config)?.replace(&node.address, "127.0.0.1:1").replace(&node.ops, "127.0.0.1:2");
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let path = node.config.with_file_name("second.toml");
        fs::write(&path, text.replace("listen = \"127.0.0.1:1\"", &format!("listen = \"{free}\"")))?;
        says(&refused(&bed.cluster.bin, &path)?, &["another process", "volume"])?;
        // Only the data directory is shared: the volume is elsewhere.
        fs::write(&path, fs::read_to_string(&path)?.replace("path = \"volume\"", "path = \"volume-two\""))?;
        says(&refused(&bed.cluster.bin, &path)?, &["data", "another process"])?;
        // Nothing of this has hurt the first.
        bed.until_whole(Duration::from_secs(20))
    })
}
