//! Arguments of what keeps a cluster whole while it grows, shrinks and breaks.

use std::time::Duration;

use clap::{Args, Subcommand};
use pacsvault_core::ids::{ProfileName, Uid};

use super::values::parse_span;

/// Health.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again and again
    #[arg(long)]
    pub watch: bool,
    /// Pause between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span, requires = "watch")]
    pub every: Duration,
}

/// A loss to think of.
#[derive(Debug, Args)]
pub struct WhatIf {
    /// A whole site (may be repeated); elsewhere --site is your own one, here it never is
    // The id of the global flag on purpose: this one takes its place.
    #[arg(id = "site", long = "site", value_name = "NAME", value_delimiter = ',')]
    pub sites: Vec<String>,
    /// A node, by name or id (may be repeated)
    #[arg(long = "node", value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// A volume, by id or its first digits (may be repeated)
    #[arg(long = "volume", value_name = "ID", value_delimiter = ',')]
    pub volumes: Vec<String>,
}

/// A node or a volume.
#[derive(Debug, Args)]
pub struct Target {
    /// Name or id of a node
    #[arg(required_unless_present = "volume", conflicts_with = "volume")]
    pub node: Option<String>,
    /// One volume instead, by id or its first digits
    #[arg(long, value_name = "ID")]
    pub volume: Option<String>,
}

/// Emptying.
#[derive(Debug, Args)]
pub struct Drain {
    /// What
    #[command(flatten)]
    pub target: Target,
    /// Only say whether it is safe, how much moves and how long it takes
    #[arg(long, conflicts_with_all = ["yes", "wait"])]
    pub dry_run: bool,
    /// Do it
    #[arg(long)]
    pub yes: bool,
    /// Stay until it is empty
    #[arg(long)]
    pub wait: bool,
}

/// No more emptying.
#[derive(Debug, Args)]
pub struct Undrain {
    /// What
    #[command(flatten)]
    pub target: Target,
}

/// Retirement.
#[derive(Debug, Args)]
pub struct Remove {
    /// Name or id of a node
    pub node: String,
    /// Do it: there is no way back
    #[arg(long)]
    pub yes: bool,
    /// It burnt and never returns: fence its volumes, so that what they held is rebuilt elsewhere at once
    #[arg(long)]
    pub gone: bool,
    /// Stay until that is rebuilt, then retire it
    #[arg(long, requires_all = ["gone", "yes"])]
    pub wait: bool,
}

/// Repair.
#[derive(Debug, Subcommand)]
pub enum Repair {
    /// Show what is being repaired and moved, and which stripes were set aside, with the reasons
    #[command(
        after_help = "Examples:\n  pacsvault repair status\n  pacsvault repair status --json | jq '.aside[].reason'"
    )]
    Status,
    /// Try again what was set aside
    #[command(
        after_help = "Example:\n  pacsvault repair retry\n\nA stripe is set aside when fewer than k sound shards of it can be reached. It is tried again by itself\nwhen the cluster changes; this does it now, for instance after a disk was brought back."
    )]
    Retry,
}

/// Verification of disks.
#[derive(Debug, Args)]
pub struct Scrub {
    /// Look instead of acting
    #[command(subcommand)]
    pub command: Option<ScrubCommand>,
    /// Only this node, by name or id (may be repeated)
    #[arg(long = "node", value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Only this volume, by id or its first digits (may be repeated)
    #[arg(long = "volume", value_name = "ID", value_delimiter = ',')]
    pub volumes: Vec<String>,
    /// Stay until all is verified
    #[arg(long)]
    pub wait: bool,
}

/// Looks at verification.
#[derive(Debug, Subcommand)]
pub enum ScrubCommand {
    /// Show for each volume how long ago its shards were verified
    #[command(after_help = "Example:\n  pacsvault scrub status")]
    Status,
}

/// Profiles.
#[derive(Debug, Subcommand)]
pub enum Profile {
    /// List the profiles of this cluster
    #[command(after_help = "Example:\n  pacsvault profile list --json | jq -r .name")]
    List,
    /// Give what is stored in a study another profile; it is re-encoded in the background
    #[command(
        after_help = "Examples:\n  pacsvault profile set-study 1.2.840.1 archive\n  pacsvault profile set-study 1.2.840.1 --none      leave it as it is from now on\n\nContent, versions and keys stay as they are. `pacsvault head KEY` shows the profile an object has now."
    )]
    SetStudy {
        /// Study Instance UID
        study: Uid,
        /// Name of a profile of this cluster
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        profile: Option<ProfileName>,
        /// No wish any more: what is stored stays as it is
        #[arg(long)]
        none: bool,
    },
}
