//! Arguments of what tries and measures a cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pacsvault_core::ids::{ProfileName, Uid};

use super::values::parse_size;

/// Synthetic study.
#[derive(Debug, Args)]
pub struct Sample {
    /// Folder for the files
    pub dir: PathBuf,
    /// CT slices of 512 KiB
    #[arg(long, default_value_t = 32)]
    pub slices: u32,
    /// Frames of 512 KiB in one multi-frame instance; 0 for none
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub frames: u32,
    /// Another number gives another study
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Interruption.
#[derive(Debug, Args)]
pub struct Probe {
    /// Study for the probe's documents
    #[arg(long, value_name = "UID")]
    pub study: Uid,
    /// Seconds [default: until told to stop]
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Pause between two writes, and between two reads, in milliseconds
    #[arg(long, default_value_t = 20)]
    pub every: u64,
}

/// Measurements.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Write random content
    #[command(
        after_help = "Examples:\n  pacsvault bench put --size 512KiB --clients 16 --seconds 10\n  pacsvault bench put --size 32MiB --clients 4 --count 64 --via-node --json"
    )]
    Put(Load),
    /// Read it back: writes some objects first (not counted), then reads them at random
    #[command(
        after_help = "Examples:\n  pacsvault bench get --size 512KiB --clients 16 --seconds 10\n  pacsvault bench get --size 32MiB --clients 4 --objects 8"
    )]
    Get(Load),
    /// Commit tiny log entries (a delete of a key that does not exist): the metadata plane alone
    #[command(after_help = "Example:\n  pacsvault bench metadata --clients 1,64,256 --seconds 5")]
    Metadata {
        /// Concurrent callers, one run for each number
        #[arg(long, value_delimiter = ',', default_value = "1,64,256", value_parser = clap::value_parser!(u16).range(1..=8192))]
        clients: Vec<u16>,
        /// Seconds of each run
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
}

/// What to do how often.
#[derive(Debug, Args)]
pub struct Load {
    /// Content bytes of an object: a number, with KiB, MiB or GiB
    #[arg(long, default_value = "512KiB", value_parser = parse_size)]
    pub size: u64,
    /// Concurrent transfers
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub clients: u16,
    /// How long [default: 10 seconds, unless --count is given]
    #[arg(long, conflicts_with = "count")]
    pub seconds: Option<u64>,
    /// How many transfers
    #[arg(long)]
    pub count: Option<u64>,
    /// Objects to read from
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub objects: u16,
    /// Study for the objects [default: a new one]
    #[arg(long, value_name = "UID")]
    pub study: Option<Uid>,
    /// Leave the objects there
    #[arg(long)]
    pub keep: bool,
    /// Profile [default: the cluster's]
    #[arg(long)]
    pub profile: Option<ProfileName>,
}
