//! `pacsvault bench metadata` against three fresh nodes: the other half of `tests/etcd_bench.sh`.
//!
//! usage: metadata_cluster DIR CLIENTS SECONDS; programs are taken from PACSVAULT_BIN_DIR or from beside this one.

use std::{path::Path, process::Command};

use anyhow::{Context, bail};
use pacsvault_harness::{Cluster, output};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, clients, seconds] = &arguments[..] else { bail!("usage: metadata_cluster DIR CLIENTS SECONDS") };
    let bin = pacsvault_tests::bed::bin_dir()?;
    let mut cluster = Cluster::prepare(&bin, Path::new(dir), 3, 1).context("cannot prepare the cluster")?;
    cluster.start(|_| true)?;
    cluster.form()?;
    let mut command: Command = cluster.client();
    command.args(["bench", "metadata", "--clients", clients, "--seconds", seconds]);
    print!("{}", output(&mut command)?);
    Ok(())
}
