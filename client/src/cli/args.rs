//! Arguments: what can be asked, and help that teaches it.

mod content;
mod healing;
mod measure;
mod members;
mod values;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::{
    content::{Get, Head, Ls, Put, Receipt, Rm, Verify},
    healing::{Drain, Profile, Remove, Repair, Scrub, ScrubCommand, Status, Target, Undrain, WhatIf},
    measure::{Bench, Load, Probe, Sample},
    members::{Cluster, Pki, Plan},
    values::Range,
};

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
  pacsvault status                  who is there, who leads, how full, how far from loss
  pacsvault put ./study             store all DICOM files of a folder
  pacsvault ls                      the studies
  pacsvault get --study 1.2.3 --out ./back
  pacsvault verify 1.2.3            re-read and prove every shard of a study
  pacsvault what-if --site east     what would be if that were lost
  pacsvault drain east-1            what emptying that node would mean";

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
#[derive(Debug, Clone, Args)]
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
        after_help = "Examples:\n  pacsvault put ct-0001.dcm\n  pacsvault put ./study --receipts ./receipts --jobs 8\n  pacsvault put report.pdf --study 1.2.840.1 --name report.pdf\n  pacsvault put ./study --strict --json\n\nA file is stored when its line is printed; the receipt proves it (`pacsvault receipt verify`).\nStoring the same content again is safe: it gives the newest version, if that has this content\nand still keeps its contract; a degraded one may be stored again, better.\nOther content under the same UID, also an older version's, becomes a new version.\nFiles that cannot be read fail alone; a DICOMDIR in a folder is skipped."
    )]
    Put(Put),
    /// Read an instance, a document, a series or a study
    #[command(
        after_help = "Examples:\n  pacsvault get main/1.2/1.2.1/1.2.1.1 --out slice.dcm\n  pacsvault get --study 1.2 --out ./back\n  pacsvault get --study 1.2 --series 1.2.1 --out ./back\n  pacsvault get main/1.2/@/report.pdf --out - | pdftotext - -\n  pacsvault get main/1.2/1.2.1/1.2.1.1 --range 0-131 --out -\n\nA folder gets <series>/<instance>.dcm and documents/<name>. A file appears under its\nname only after its BLAKE3 was verified; until then it is named *.part."
    )]
    Get(Get),
    /// List studies, or what is stored in one
    #[command(
        after_help = "Examples:\n  pacsvault ls\n  pacsvault ls 1.2.840.1\n  pacsvault ls 1.2.840.1 --versions\n  pacsvault ls --json | jq -r .study"
    )]
    Ls(Ls),
    /// Show everything known about one stored object, without its content
    #[command(
        after_help = "Examples:\n  pacsvault head main/1.2/1.2.1/1.2.1.1\n  pacsvault head main/1.2/@/report.pdf --version 1 --json\n  pacsvault head main/1.2/@/report.pdf --versions"
    )]
    Head(Head),
    /// Re-read every shard from its disk and prove it; exit code 0 only when all objects are whole
    #[command(
        after_help = "Examples:\n  pacsvault verify 1.2.840.1\n  pacsvault verify main/1.2/1.2.1/1.2.1.1\n  pacsvault verify --study 1.2 --json\n\nWith an operator's certificate every node proves its own shards on its disks; with a gateway's the\nshards are sent and proven here.\n\nExit code 0: every shard of every object was read back and proven. 1: some are damaged or unreadable\n(PV-DAMAGED), or none is but some could not be proven, since their volumes are away or they are still\nto be repaired (PV-NOT-WHOLE). \"survives\" counts proven shards only."
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
    /// Show nodes, volumes, how close to loss content is and what is done about it; exit code 1 when a node is away
    #[command(
        after_help = "Examples:\n  pacsvault status\n  pacsvault status --watch --every 2s\n  pacsvault status --json | jq .health.by_tier\n  pacsvault status --watch --json | jq -c '[.health.rate_bytes_per_s, .health.eta_s]'\n\n\"distance N\": so many further nodes may fail, whichever they are; at distance 0 the next one may\nlose content. With --watch the screen is redrawn; without a terminal looks follow one another, with\n--json one object per line."
    )]
    Status(Status),
    /// Say which failures profiles survive, with the arithmetic: for this cluster, or for one you think of
    #[command(
        after_help = "Examples:\n  pacsvault plan                          this cluster's profiles\n  pacsvault plan --sites 2,2,2            the built-in profiles for three sites of two nodes\n  pacsvault plan --sites 3,3 --witness    two data centres and a small third place\n  pacsvault plan --sites 2,2,2 --profile archive=8+4:\"1 site\""
    )]
    Plan(Plan),
    /// Say what would stay readable and writable if sites, nodes or volumes were lost now; nothing is touched
    #[command(
        after_help = "Examples:\n  pacsvault what-if --site east\n  pacsvault what-if --node east-1 --node west-2\n  pacsvault what-if --site east --volume 13fd2e24 --json | jq .all_readable\n\nExit code 0: every stored byte could still be read. 1 with PV-WOULD-BE-UNREADABLE: some could not until\nsomething returns. Exit code 2 is kept for questions that make no sense, such as an unknown name."
    )]
    WhatIf(WhatIf),
    /// Empty a node or a volume; says beforehand whether that is safe, how much moves and how long it takes
    #[command(
        after_help = "Examples:\n  pacsvault drain east-1                    only the plan\n  pacsvault drain east-1 --yes --wait       and stay until it is empty\n  pacsvault drain --volume 13fd2e24 --yes\n\nWhat would break a profile's contract is refused with the arithmetic (PV-IMPOSSIBLE). The contract\nis kept on the way: a shard leaves its place when its new one is durable. Afterwards:\n`pacsvault remove NODE`, or `pacsvault undrain NODE` to use it again."
    )]
    Drain(Drain),
    /// Stop emptying a node or a volume and use it again
    #[command(after_help = "Examples:\n  pacsvault undrain east-1\n  pacsvault undrain --volume 13fd2e24")]
    Undrain(Undrain),
    /// Retire an empty node for good, or one that burnt
    #[command(
        after_help = "Examples:\n  pacsvault drain east-1 --yes --wait && pacsvault remove east-1 --yes\n  pacsvault remove east-1 --gone --yes --wait\n\nRefused while the node holds anything (PV-NODE-NOT-EMPTY). Its id is never used again."
    )]
    Remove(Remove),
    /// Look at repair, or try again what was set aside
    #[command(subcommand)]
    Repair(Repair),
    /// Verify all shards on their disks now instead of within the usual two weeks
    #[command(
        after_help = "Examples:\n  pacsvault scrub --wait\n  pacsvault scrub --node east-1\n  pacsvault scrub --volume 13fd2e24 --wait\n  pacsvault scrub status\n\nWhat is found damaged is repaired by itself. With --wait: exit code 1 (PV-DAMAGED) if there was any."
    )]
    Scrub(Scrub),
    /// List profiles, or give a study another one
    #[command(subcommand)]
    Profile(Profile),
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
            "pacsvault ls 1.2 --versions",
            "pacsvault head main/1.2/@/report.pdf --versions",
            "pacsvault receipt verify slice.receipt --ca ca.pem",
            "pacsvault plan --sites 3,3 --witness",
            "pacsvault pki issue ./pki --role node east-1 --host 10.1.0.5",
            "pacsvault cluster join 10.2.0.5:7400 --via 10.1.0.5:7400",
            "pacsvault cluster init --profile standard=4+2:any\u{a0}one\u{a0}site",
            "pacsvault status --watch --every 2s --json",
            "pacsvault verify 1.2.840.1",
            "pacsvault what-if --node east-1 --node west-2",
            "pacsvault what-if --site east --volume 13fd2e24 --json",
            "pacsvault drain east-1",
            "pacsvault drain east-1 --yes --wait",
            "pacsvault drain --volume 13fd2e24 --dry-run",
            "pacsvault undrain --volume 13fd2e24",
            "pacsvault remove east-1 --yes",
            "pacsvault remove east-1 --gone --yes --wait",
            "pacsvault repair status --json",
            "pacsvault repair retry",
            "pacsvault scrub",
            "pacsvault scrub --node east-1,west-1 --wait",
            "pacsvault --json scrub status",
            "pacsvault profile list",
            "pacsvault profile set-study 1.2.840.1 archive",
            "pacsvault profile set-study 1.2.840.1 --none",
            "pacsvault bench put --size 512KiB --clients 16 --seconds 10 --via-node --json",
            "pacsvault bench metadata --clients 1,64,256",
            "pacsvault probe --study 2.25.99 --for 30 --json --key k.pem",
        ] {
            let parsed = Cli::try_parse_from(line.split(' ').map(|word| word.replace('\u{a0}', " ")));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn a_lost_site_is_not_mistaken_for_the_own_one() {
        let parsed = Cli::try_parse_from(["pacsvault", "what-if", "--site", "east", "--site", "west,north"]);
        let Ok(Cli { command: Command::WhatIf(lost), .. }) = parsed else { panic!("parses: {parsed:?}") };
        assert_eq!(lost.sites, ["east", "west", "north"]);
        let parsed = Cli::try_parse_from(["pacsvault", "status", "--site", "east"]).expect("parses");
        assert_eq!(parsed.global.site.as_deref(), Some("east"));
        let bare = Cli::try_parse_from(["pacsvault", "what-if", "--node", "n1"]).expect("parses");
        let Command::WhatIf(lost) = bare.command else { panic!("a what-if") };
        assert!(lost.sites.is_empty() && lost.nodes == ["n1"]);
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "pacsvault drain",
            "pacsvault drain east-1 --volume 13fd2e24",
            "pacsvault drain east-1 --dry-run --yes",
            "pacsvault remove",
            "pacsvault remove east-1 --yes --wait",
            "pacsvault status --every 2s",
            "pacsvault profile set-study 1.2",
            "pacsvault profile set-study 1.2 archive --none",
            "pacsvault repair",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
