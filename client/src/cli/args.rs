//! Arguments: what can be asked, and help that teaches it.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use pacsvault_core::{
    ids::{DocumentName, ProfileName, Uid, VolumeId},
    layout::{Contract, Failures, Profile, profile::Code, profile::ReadPreference},
};
use pacsvault_security::Role;

const AFTER: &str = "\
Exit codes: 0 done, 1 failed, 2 asked wrongly, 3 outcome unknown (asking again is safe).

Where the cluster is and who you are comes from flags, then the environment
(PACSVAULT_ENDPOINTS, _CA, _CERT, _KEY, _SITE, _TENANT), then a TOML file:
$PACSVAULT_CONFIG, else ./pacsvault.toml, else ~/.config/pacsvault/config.toml:

  endpoints = [\"10.1.0.5:7400\", \"10.2.0.5:7400\"]
  ca = \"pki/ca.pem\"                 # paths count from the file's folder
  cert = \"pki/gateway-main.pem\"     # a gateway sends shards itself, an operator through a node
  key = \"pki/gateway-main.key\"
  site = \"east\"                     # read here first

Examples:
  pacsvault status                  who is there, who leads, how full
  pacsvault put ./study             store all DICOM files of a folder
  pacsvault ls                      the studies
  pacsvault get --study 1.2.3 --out ./back
  pacsvault verify --study 1.2.3    re-read and prove every shard";

/// Keeps medical studies safe over several sites: the command line of a pacsvault cluster.
#[derive(Debug, Parser)]
#[command(name = "pacsvault", version, after_help = AFTER, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Global {
    /// Nodes to ask first, separated by commas; the rest of the cluster is learned from them [PACSVAULT_ENDPOINTS]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// The cluster's CA certificate [PACSVAULT_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Own certificate [PACSVAULT_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key [PACSVAULT_KEY]
    #[arg(id = "key-file", long = "key", global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Own site: read and asked first [PACSVAULT_SITE]
    #[arg(long, global = true)]
    pub site: Option<String>,
    /// Owner of the studies [PACSVAULT_TENANT; default: main]
    #[arg(long, global = true)]
    pub tenant: Option<String>,
    /// Configuration file [PACSVAULT_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Send content through a node even when the certificate allows to send shards directly
    #[arg(long, global = true)]
    pub via_node: bool,
    /// Print JSON, one object per line
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Tell on standard error what happens; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a development certificate authority and certificates
    #[command(subcommand)]
    Pki(Pki),
    /// Make a cluster, let nodes in, move leadership
    #[command(subcommand)]
    Cluster(Cluster),
    /// Store DICOM files, folders of them, or a document of a study
    #[command(
        after_help = "Examples:\n  pacsvault put ct-0001.dcm\n  pacsvault put ./study --receipts ./receipts --jobs 8\n  pacsvault put report.pdf --study 1.2.840.1 --name report.pdf\n  pacsvault put ./study --strict --json\n\nA file is stored when its line is printed; the receipt proves it (`pacsvault receipt verify`).\nStoring the same content again is safe and gives the same version; other content under the\nsame UID becomes a new version."
    )]
    Put(Put),
    /// Read an instance, a document, a series or a study
    #[command(
        after_help = "Examples:\n  pacsvault get main/1.2/1.2.1/1.2.1.1 --out slice.dcm\n  pacsvault get --study 1.2 --out ./back\n  pacsvault get --study 1.2 --series 1.2.1 --out ./back\n  pacsvault get main/1.2/@/report.pdf --out - | pdftotext - -\n  pacsvault get main/1.2/1.2.1/1.2.1.1 --range 0-131 --out -\n\nA folder gets <series>/<instance>.dcm and documents/<name>. A file appears under its\nname only after its BLAKE3 was verified; until then it is named *.part."
    )]
    Get(Get),
    /// List studies, or what is stored in one
    #[command(after_help = "Examples:\n  pacsvault ls\n  pacsvault ls 1.2.840.1\n  pacsvault ls --json | jq -r .study")]
    Ls(Ls),
    /// Show everything known about one stored object, without its content
    #[command(
        after_help = "Examples:\n  pacsvault head main/1.2/1.2.1/1.2.1.1\n  pacsvault head main/1.2/@/report.pdf --version 1 --json"
    )]
    Head(Head),
    /// Re-read every shard from its disk and prove it; exit code 1 on damage
    #[command(
        after_help = "Examples:\n  pacsvault verify main/1.2/1.2.1/1.2.1.1\n  pacsvault verify --study 1.2 --json"
    )]
    Verify(Verify),
    /// Delete an object, or everything in a study, through the log
    #[command(
        after_help = "Examples:\n  pacsvault rm main/1.2/1.2.1/1.2.1.1 --yes\n  pacsvault rm main/1.2/@/report.pdf --version 1 --yes\n  pacsvault rm --study 1.2 --yes"
    )]
    Rm(Rm),
    /// Show, verify (offline) or fetch receipts
    #[command(subcommand)]
    Receipt(Receipt),
    /// Show nodes, sites, leader and volumes; exit code 1 when a node is away
    #[command(
        after_help = "Examples:\n  pacsvault status\n  pacsvault status --watch\n  pacsvault status --json | jq .leader"
    )]
    Status(Status),
    /// Say which failures profiles survive, with the arithmetic: for this cluster, or for one you think of
    #[command(
        after_help = "Examples:\n  pacsvault plan                          this cluster's profiles\n  pacsvault plan --sites 2,2,2            the built-in profiles for three sites of two nodes\n  pacsvault plan --sites 3,3 --witness    two data centres and a small third place\n  pacsvault plan --sites 2,2,2 --profile archive=8+4:\"1 site\""
    )]
    Plan(Plan),
    /// Write a synthetic study to try things with
    #[command(
        after_help = "Examples:\n  pacsvault sample ./study --slices 100 --frames 64 --seed 7\n  pacsvault put ./study"
    )]
    Sample(Sample),
    /// Write and read without pause, and measure the longest interruption
    #[command(
        after_help = "Examples:\n  pacsvault probe --study 2.25.99 --for 30 --json      # then switch a site off\n\nEnds when the time is over, on SIGTERM or SIGINT, or when standard input is a pipe and closes."
    )]
    Probe(Probe),
    /// Measure throughput and latency
    #[command(subcommand)]
    Bench(Bench),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  pacsvault completion bash > /etc/bash_completion.d/pacsvault\n  pacsvault completion zsh > \"${fpath[1]}/_pacsvault\"\n  pacsvault completion fish > ~/.config/fish/completions/pacsvault.fish"
    )]
    Completion {
        /// Which shell
        shell: Shell,
    },
}

/// Certificates.
#[derive(Debug, Subcommand)]
pub enum Pki {
    /// Draw a new cluster id and make its certificate authority
    #[command(
        after_help = "Example:\n  pacsvault pki init ./pki\n\nKeep ca.key off the nodes: whoever holds it can make any member."
    )]
    Init {
        /// Folder for ca.pem and ca.key
        dir: PathBuf,
    },
    /// Make a certificate and its key
    #[command(
        after_help = "Examples:\n  pacsvault pki issue ./pki --role node east-1 --host 10.1.0.5 --host east-1.hospital.example\n  pacsvault pki issue ./pki --role gateway main\n  pacsvault pki issue ./pki --role operator alice\n\nRoles: node (stores, votes), gateway (writes, reads, signs receipts), operator (administers),\nauditor (looks)."
    )]
    Issue {
        /// Folder with ca.pem and ca.key; the new files go there too
        dir: PathBuf,
        /// What the holder may do
        #[arg(long, value_parser = parse_role, value_name = "node|gateway|operator|auditor")]
        role: Role,
        /// Name of the holder: a node's name, a gateway's, a person's
        name: String,
        /// DNS name or address under which it is reached (for other tools; may be repeated)
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// Validity
        #[arg(long, default_value_t = pacsvault_security::pki::MEMBER_DAYS_DEFAULT)]
        days: u32,
    },
}

/// Membership.
#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Make a new cluster of one node; the others join it
    #[command(
        after_help = "Examples:\n  pacsvault cluster init --endpoints 10.1.0.5:7400\n  pacsvault cluster init --sites 3,3 --witness\n  pacsvault cluster init --sites 3,3,3 --profile archive=6+3:\"1 site\"\n\nSay with --sites how many storage nodes each site will have: the built-in profiles are made for\nthem, and a profile that could not keep its contract there is refused (`pacsvault plan` shows the\narithmetic). The first profile is the default of writes that name none."
    )]
    Init {
        /// Storage nodes that each site will have
        #[arg(long, value_delimiter = ',', value_name = "NODES", default_value = "2,2,2", value_parser = clap::value_parser!(u8).range(1..=32))]
        sites: Vec<u8>,
        /// And one more site that only votes
        #[arg(long)]
        witness: bool,
        /// NAME=K+M:CONTRACT, as standard=4+2:"1 site" (may be repeated)
        #[arg(long = "profile", value_name = "PROFILE")]
        profiles: Vec<ProfileArg>,
        /// The node to begin with [default: the first endpoint]
        #[arg(long, value_name = "HOST:PORT")]
        node: Option<String>,
    },
    /// Let a node in: it asks the cluster behind SEED
    #[command(after_help = "Example:\n  pacsvault cluster join 10.2.0.5:7400 --via 10.1.0.5:7400")]
    Join {
        /// Address of the node that is not a member yet
        #[arg(value_name = "HOST:PORT")]
        node: String,
        /// Members of the cluster (may be repeated)
        #[arg(long, required = true, value_name = "HOST:PORT", value_delimiter = ',')]
        via: Vec<String>,
    },
    /// Add a profile, or change one for new writes; refused when this cluster cannot keep its contract
    #[command(after_help = "Example:\n  pacsvault cluster set-profile archive=4+2:\"1 site\" --default")]
    SetProfile {
        /// NAME=K+M:CONTRACT
        profile: ProfileArg,
        /// Use it for writes that name none
        #[arg(long)]
        default: bool,
    },
    /// Take a volume out of service for good: its shards count as lost
    #[command(
        after_help = "Example:\n  pacsvault status --json | jq -r '.nodes[].volumes[].id'\n  pacsvault cluster fence-volume 13fd2e242d1787ba5a623992e1784da1 --yes"
    )]
    FenceVolume {
        /// Id of the volume
        volume: VolumeId,
        /// Do it: there is no way back
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Hand leadership to another voter
    #[command(after_help = "Example:\n  pacsvault cluster transfer-leader west-1")]
    TransferLeader {
        /// Name or id of a node
        node: String,
    },
}

/// Content in.
#[derive(Debug, Args)]
pub struct Put {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Store files that are not DICOM as documents of this study
    #[arg(long, value_name = "UID")]
    pub study: Option<Uid>,
    /// Name of the document [default: the file's name]
    #[arg(long, requires = "study")]
    pub name: Option<DocumentName>,
    /// Media type of documents
    #[arg(long, default_value = "application/octet-stream")]
    pub media_type: String,
    /// Profile [default: the cluster's]
    #[arg(long)]
    pub profile: Option<ProfileName>,
    /// Refuse instead of storing below the profile's contract
    #[arg(long)]
    pub strict: bool,
    /// Keep the signed receipts here
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
    /// Files at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
}

/// Content out.
#[derive(Debug, Args)]
pub struct Get {
    /// tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
    #[arg(value_name = "KEY", required_unless_present_any = ["study", "series"], conflicts_with_all = ["study", "series"])]
    pub object: Option<String>,
    /// Everything in this study
    #[arg(long, value_name = "UID")]
    pub study: Option<Uid>,
    /// Everything in this series; with --study it is found faster
    #[arg(long, value_name = "UID")]
    pub series: Option<Uid>,
    /// File, folder, or - for standard output [default: the working directory]
    #[arg(long, short, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// An older version
    #[arg(long = "version", value_name = "N", requires = "object")]
    pub number: Option<u32>,
    /// Only these bytes, first and last, as 0-131; the last may be left out
    #[arg(long, value_name = "A-B", value_parser = parse_range, requires = "object")]
    pub range: Option<Range>,
    /// Files at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
}

/// Listing.
#[derive(Debug, Args)]
pub struct Ls {
    /// Study Instance UID; without it, the studies are listed
    pub study: Option<Uid>,
    /// Only this series
    #[arg(long, value_name = "UID", requires = "study")]
    pub series: Option<Uid>,
}

/// One object.
#[derive(Debug, Args)]
pub struct Head {
    /// tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
    #[arg(value_name = "KEY")]
    pub object: String,
    /// An older version
    #[arg(long = "version", value_name = "N")]
    pub number: Option<u32>,
}

/// One object, or a study.
#[derive(Debug, Args)]
pub struct Verify {
    /// tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
    #[arg(value_name = "KEY", required_unless_present = "study", conflicts_with = "study")]
    pub object: Option<String>,
    /// Everything in this study
    #[arg(long, value_name = "UID")]
    pub study: Option<Uid>,
}

/// Deletion.
#[derive(Debug, Args)]
pub struct Rm {
    /// tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
    #[arg(value_name = "KEY", required_unless_present = "study", conflicts_with = "study")]
    pub object: Option<String>,
    /// Everything in this study
    #[arg(long, value_name = "UID")]
    pub study: Option<Uid>,
    /// Only this version; all when absent
    #[arg(long = "version", value_name = "N", conflicts_with = "study")]
    pub number: Option<u32>,
    /// Yes, delete
    #[arg(long)]
    pub yes: bool,
}

/// Receipts.
#[derive(Debug, Subcommand)]
pub enum Receipt {
    /// Show what a receipt file says, without proof
    #[command(after_help = "Example:\n  pacsvault receipt show slice.receipt")]
    Show {
        /// Receipt file
        file: PathBuf,
    },
    /// Prove a receipt file with the cluster's CA certificate; needs no cluster
    #[command(
        after_help = "Example:\n  pacsvault receipt verify slice.receipt --ca ca.pem\n\nExit code 0 only when the receipt was signed by a node or gateway of this cluster."
    )]
    Verify {
        /// Receipt file
        file: PathBuf,
    },
    /// Fetch a freshly signed receipt of a stored object
    #[command(after_help = "Example:\n  pacsvault receipt fetch main/1.2/1.2.1/1.2.1.1 --out slice.receipt")]
    Fetch {
        /// tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
        #[arg(value_name = "KEY")]
        object: String,
        /// An older version
        #[arg(long = "version", value_name = "N")]
        number: Option<u32>,
        /// Where to
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Health.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again every second
    #[arg(long)]
    pub watch: bool,
}

/// Arithmetic.
#[derive(Debug, Args)]
pub struct Plan {
    /// Storage nodes of each site, as 2,2,2; without it, this cluster
    #[arg(long, value_delimiter = ',', value_name = "NODES", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub sites: Vec<u8>,
    /// And one more site that only votes
    #[arg(long, requires = "sites")]
    pub witness: bool,
    /// Judge this profile instead, as archive=8+4:"1 site" (may be repeated)
    #[arg(long = "profile", value_name = "PROFILE")]
    pub profiles: Vec<ProfileArg>,
}

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

/// Bytes from first to last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First.
    pub first: u64,
    /// Last; to the end when absent.
    pub last: Option<u64>,
}

fn parse_range(text: &str) -> Result<Range, String> {
    let wrong = || format!("{text:?} must read A-B, first and last byte, such as 0-131, or A-");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first = first.parse().map_err(|_| wrong())?;
    let last = if last.is_empty() { None } else { Some(last.parse().map_err(|_| wrong())?) };
    if last.is_some_and(|last| last < first) {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(Range { first, last })
}

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} must be a number of bytes, optionally with KiB, MiB or GiB");
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(end);
    let scale: u64 = match unit.trim() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(wrong)?;
    if size == 0 { Err("the size must be at least one byte".to_owned()) } else { Ok(size) }
}

fn parse_role(text: &str) -> Result<Role, String> {
    let known = Role::ALL.iter().find(|role| role.as_str() == text);
    known.copied().ok_or_else(|| format!("{text:?} is not a role: node, gateway, operator or auditor"))
}

/// A profile as text: `NAME=K+M:CONTRACT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileArg(pub Profile);

impl std::str::FromStr for ProfileArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} must read NAME=K+M:CONTRACT, such as standard=4+2:\"1 site\"");
        let (name, rest) = text.split_once('=').ok_or_else(shape)?;
        let (code, contract) = rest.split_once(':').ok_or_else(shape)?;
        let name: ProfileName = name.parse().map_err(|error| format!("{error}"))?;
        let code: Code = code.parse().map_err(|error| format!("{error}"))?;
        let contract: Contract = contract.parse().map_err(|error| format!("{error}"))?;
        let floor = Contract::one(Failures { sites: 0, nodes: 1 });
        Ok(Self(Profile { name, version: 1, code, contract, floor, read_preference: ReadPreference::OwnSite }))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &mut clap::Command, path: &str) {
            let has_children = command.get_subcommands().any(|child| child.get_name() != "help");
            let help = command.render_long_help().to_string();
            if !has_children {
                assert!(help.contains("Example"), "{path} teaches no example:\n{help}");
            }
            assert!(command.get_about().is_some(), "{path} says not what it does");
            for child in command.get_subcommands_mut().filter(|child| child.get_name() != "help") {
                let path = format!("{path} {}", child.get_name());
                check(child, &path);
            }
        }
        let mut root = Cli::command();
        root.build();
        check(&mut root, "pacsvault");
    }

    #[test]
    fn the_shown_examples_parse() {
        for line in [
            "pacsvault status",
            "pacsvault put ./study --receipts ./receipts --jobs 8",
            "pacsvault put report.pdf --study 1.2.840.1 --name report.pdf",
            "pacsvault get main/1.2/1.2.1/1.2.1.1 --range 0-131 --out -",
            "pacsvault get --study 1.2 --series 1.2.1 --out ./back",
            "pacsvault rm main/1.2/@/report.pdf --version 1 --yes",
            "pacsvault receipt verify slice.receipt --ca ca.pem",
            "pacsvault plan --sites 3,3 --witness",
            "pacsvault pki issue ./pki --role node east-1 --host 10.1.0.5",
            "pacsvault cluster join 10.2.0.5:7400 --via 10.1.0.5:7400",
            "pacsvault cluster init --profile standard=4+2:any\u{a0}one\u{a0}site",
            "pacsvault bench put --size 512KiB --clients 16 --seconds 10 --via-node --json",
            "pacsvault bench metadata --clients 1,64,256",
            "pacsvault probe --study 2.25.99 --for 30 --json --key k.pem",
        ] {
            let parsed = Cli::try_parse_from(line.split(' ').map(|word| word.replace('\u{a0}', " ")));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn sizes_ranges_and_profiles_read_as_documented() {
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("32 MiB"), Ok(32 << 20));
        assert_eq!(parse_size("7"), Ok(7));
        for text in ["", "KiB", "0", "5 parsecs", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_range("0-131"), Ok(Range { first: 0, last: Some(131) }));
        assert_eq!(parse_range("5-"), Ok(Range { first: 5, last: None }));
        assert!(parse_range("9-5").is_err() && parse_range("-5").is_err() && parse_range("x").is_err());
        let profile = "archive=8+4:1 site".parse::<ProfileArg>().expect("valid").0;
        assert_eq!((profile.name.as_str(), profile.code.to_string()), ("archive", "8+4".to_owned()));
        assert!("archive=8+4".parse::<ProfileArg>().is_err());
    }
}
