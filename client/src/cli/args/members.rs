//! Arguments about who belongs to a cluster and what it promises: certificates, membership, profiles.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pacsvault_core::ids::VolumeId;
use pacsvault_security::Role;

use super::values::{ProfileArg, parse_role};

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
