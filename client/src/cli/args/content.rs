//! Arguments about content: in, out, looked at, proven, deleted.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pacsvault_core::ids::{DocumentName, ProfileName, Uid};

use super::values::{Range, parse_range};

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
    /// Every version that is still stored, oldest first, not only the newest
    #[arg(long, requires = "study")]
    pub versions: bool,
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
    /// List every version that is still stored, oldest first
    #[arg(long, conflicts_with = "number")]
    pub versions: bool,
}

/// One object, or a study.
#[derive(Debug, Args)]
pub struct Verify {
    /// A study's UID, or tenant/study/series/instance or tenant/study/@/document; the tenant may be left out
    #[arg(value_name = "STUDY|KEY", required_unless_present = "study", conflicts_with = "study")]
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
