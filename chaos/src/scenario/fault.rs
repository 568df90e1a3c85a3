//! Kinds of misfortune.
//!
//! **Invariants.** Every kind is drawn by some seeds, counted under its name when it strikes, and ends when the nemesis heals,
//! except for damage that people repair.

use std::{fmt, str::FromStr};

/// A kind of misfortune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One node's process dies; its machine keeps the page cache.
    Crash,
    /// One node loses power: what was not synced is lost, torn or reordered.
    PowerLoss,
    /// A node loses power at a drawn disk operation.
    PowerLossInOperation,
    /// A site loses power.
    SitePowerLoss,
    /// Two sites lose power.
    MajorityPowerLoss,
    /// All nodes lose power at once.
    TotalPowerLoss,
    /// One direction between two nodes.
    CutOneWay,
    /// A site sees nobody outside.
    IsolateSite,
    /// Two sites see each other only through the third.
    Bridge,
    /// Loss, repetition and long delays everywhere.
    Storm,
    /// One node's disks become slow.
    SlowDisk,
    /// The next sync of one volume fails.
    FailingVolumeSync,
    /// Bits of one volume's segments flip.
    BitRot,
    /// One volume's disk runs out of room for a while.
    FullVolume,
    /// The next sync of one node's log fails.
    FailingLogSync,
    /// One of the next changes of one node's state store fails.
    FailingStateStore,
    /// A wall clock jumps.
    ClockJump,
    /// Leadership is handed over.
    TransferLeader,
    /// A client stops in the middle of a write.
    ClientCrash,
    /// A client's process is stopped for seconds, and goes on with whatever it was doing.
    PausedClient,
    /// A client's wall clock is wrong for a while: by up to an hour, or so much that nothing it writes may be stored.
    ClientClock,
    /// A node is down for longer than repair waits.
    LongAbsence,
    /// The leader's process dies, or loses power.
    LeaderCrash,
    /// Somebody who takes part in a repair dies during it.
    CrashInRepair,
    /// A replica dies while it takes a snapshot.
    CrashInSnapshot,
    /// A machine loses all its data; another node takes its place.
    WipeNode,
    /// A disk is replaced by an empty one.
    ReplaceVolume,
    /// A volume is given up as lost while a client writes to its node; its disk is replaced later.
    FenceInWrite,
    /// A node is drained; then removed, or taken back.
    DrainNode,
    /// A volume is drained, and taken back later.
    DrainVolume,
    /// A node joins.
    AddNode,
    /// An operator has everything verified, and tries again what was set aside.
    ScrubNow,
    /// Sectors of one volume's segments cannot be read until they are written again.
    LatentErrors,
    /// A write of one volume lands at another place of its file, and is reported done.
    MisdirectedWrite,
    /// A write of one volume is reported done and synced, and lands nowhere.
    LostWrite,
    /// Regions of one volume read as they were before their last sync, for a while or for ever.
    StaleReads,
    /// Reads of some places of one volume get bytes of others, for a while.
    MisdirectedRead,
    /// Messages of a link, or between two sites, pile up, then arrive at once.
    HeldLink,
    /// A link, or two sites, are further apart for a while.
    SlowLink,
    /// Nodes of one site do not see each other; everybody else sees them.
    SplitInSite,
    /// One link comes and goes, again and again.
    FlappingLink,
    /// One site comes and goes.
    FlappingSite,
    /// Whichever site leads is cut off, until another leads; then that one.
    LeaderSiteFlap,
    /// A site is dark for longer than repair waits.
    SiteOutage,
    /// A node's process is stopped for seconds, and goes on.
    PausedNode,
    /// The leader's process is stopped for seconds, and goes on.
    PausedLeader,
    /// A node's monotonic clock runs far too fast or too slow for a while.
    ClockRate,
    /// A study is to be kept in another profile from now on, or in that of its writers again.
    ChangeProfile,
}

/// All kinds.
pub const FAULTS: [Fault; 48] = [
    Fault::Crash,
    Fault::PowerLoss,
    Fault::PowerLossInOperation,
    Fault::SitePowerLoss,
    Fault::MajorityPowerLoss,
    Fault::TotalPowerLoss,
    Fault::CutOneWay,
    Fault::IsolateSite,
    Fault::Bridge,
    Fault::Storm,
    Fault::SlowDisk,
    Fault::FailingVolumeSync,
    Fault::BitRot,
    Fault::FullVolume,
    Fault::FailingLogSync,
    Fault::ClockJump,
    Fault::TransferLeader,
    Fault::ClientCrash,
    Fault::PausedClient,
    Fault::ClientClock,
    Fault::LongAbsence,
    Fault::LeaderCrash,
    Fault::CrashInRepair,
    Fault::CrashInSnapshot,
    Fault::WipeNode,
    Fault::ReplaceVolume,
    Fault::FenceInWrite,
    Fault::DrainNode,
    Fault::DrainVolume,
    Fault::AddNode,
    Fault::ScrubNow,
    Fault::LatentErrors,
    Fault::MisdirectedWrite,
    Fault::LostWrite,
    Fault::StaleReads,
    Fault::HeldLink,
    Fault::SlowLink,
    Fault::SplitInSite,
    Fault::FlappingLink,
    Fault::FlappingSite,
    Fault::LeaderSiteFlap,
    Fault::SiteOutage,
    Fault::PausedNode,
    Fault::PausedLeader,
    Fault::ClockRate,
    Fault::ChangeProfile,
    Fault::FailingStateStore,
    Fault::MisdirectedRead,
];

impl Fault {
    /// Its name in the coverage table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "fault: process crash",
            Self::PowerLoss => "fault: power loss of a node",
            Self::PowerLossInOperation => "fault: power loss at a disk operation",
            Self::SitePowerLoss => "fault: power loss of a site",
            Self::MajorityPowerLoss => "fault: power loss of two sites",
            Self::TotalPowerLoss => "fault: power loss of everything",
            Self::CutOneWay => "fault: one-way cut",
            Self::IsolateSite => "fault: site isolated",
            Self::Bridge => "fault: bridge topology",
            Self::Storm => "fault: lossy network",
            Self::SlowDisk => "fault: slow disks",
            Self::FailingVolumeSync => "fault: volume sync fails",
            Self::BitRot => "fault: bit rot",
            Self::FullVolume => "fault: volume full",
            Self::FailingLogSync => "fault: log sync fails",
            Self::FailingStateStore => "fault: state store fails",
            Self::ClockJump => "fault: wall clock jumps",
            Self::TransferLeader => "fault: leadership moved",
            Self::ClientCrash => "fault: client crash",
            Self::PausedClient => "fault: client paused",
            Self::ClientClock => "fault: client's clock wrong",
            Self::LongAbsence => "fault: node away for long",
            Self::LeaderCrash => "fault: leader crashes",
            Self::CrashInRepair => "fault: crash during a repair",
            Self::CrashInSnapshot => "fault: crash during a snapshot",
            Self::WipeNode => "fault: machine wiped",
            Self::ReplaceVolume => "fault: volume replaced",
            Self::FenceInWrite => "operator: gives up a volume during a write",
            Self::DrainNode => "operator: drains a node",
            Self::DrainVolume => "operator: drains a volume",
            Self::AddNode => "operator: adds a node",
            Self::ScrubNow => "operator: verifies everything",
            Self::LatentErrors => "fault: latent read errors",
            Self::MisdirectedWrite => "fault: misdirected write",
            Self::LostWrite => "fault: lost write",
            Self::StaleReads => "fault: stale reads",
            Self::MisdirectedRead => "fault: misdirected read",
            Self::HeldLink => "fault: link held and released",
            Self::SlowLink => "fault: link slower for a while",
            Self::SplitInSite => "fault: split within a site",
            Self::FlappingLink => "fault: flapping link",
            Self::FlappingSite => "fault: flapping site",
            Self::LeaderSiteFlap => "fault: leader's site flaps",
            Self::SiteOutage => "fault: site outage that lasts",
            Self::PausedNode => "fault: node paused",
            Self::PausedLeader => "fault: leader paused",
            Self::ClockRate => "fault: clock rate wrong",
            Self::ChangeProfile => "operator: changes the profile of a study",
        }
    }
}

/// `BitRot` is `bit-rot`, on the command line and in replay lines.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, letter) in format!("{self:?}").char_indices() {
            if letter.is_uppercase() && at > 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = FAULTS.into_iter().find(|fault| fault.to_string() == text);
        found.ok_or_else(|| {
            let names: Vec<String> = FAULTS.iter().map(ToString::to_string).collect();
            format!("there is no fault {text}; there are {}", names.join(", "))
        })
    }
}
