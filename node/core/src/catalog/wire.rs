//! Bytes of entries, of stored records and of values that travel between nodes: a format byte, then protobuf.
//!
//! **Invariants.** What is applied or stored is read *strictly*: an unknown format, tag, command or field is an error,
//! because a replica that skips what it does not know diverges. What only travels (outcomes, layouts, pages) is read
//! leniently: unknown fields are skipped, so that nodes of neighbouring versions understand each other. Encoding
//! is deterministic. Formats and tags are never reused; golden files hold one of each.

use prost::Message;

use super::Error;
use super::command::{Command, Entry, JoinNode, Outcome, SealedInstance};
use super::query::{Page, StudyRow};
use super::wire_command::{CommandMessage, EntryMessage, OutcomeMessage, command_message, outcome_message};
use super::wire_seal::{Placed, SealedMessage, no_placements, sealed, sealed_message};
use super::wire_words::{JoinMessage, LayoutMessage, ProfileMessage, text, unreadable};
use crate::layout::{Layout, Profile};

/// Format of everything written by this version. A reader may know several.
const FORMAT: u8 = 1;

/// Meta record: what the machine keeps besides the layout.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetaMessage {
    /// Absent before `InitCluster`.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub cluster: Option<Vec<u8>>,
    #[prost(string, tag = "2")]
    pub default_profile: String,
    #[prost(uint64, tag = "3")]
    pub layout_version: u64,
    #[prost(uint64, tag = "4")]
    pub time: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub digest: Vec<u8>,
    #[prost(uint64, tag = "6")]
    pub next_node: u64,
    #[prost(uint64, tag = "7")]
    pub next_placement: u64,
    #[prost(uint64, tag = "8")]
    pub applied: u64,
}

/// State digest after one entry.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DigestMessage {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
}

/// Newest state of one key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectMessage {
    /// Newest version ever given, deleted ones included.
    #[prost(uint32, tag = "1")]
    pub newest: u32,
    /// Newest version that is not deleted.
    #[prost(message, optional, tag = "2")]
    pub live: Option<SealedMessage>,
}

/// Sum over a study's newest live versions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StudyMessage {
    #[prost(uint64, tag = "1")]
    pub objects: u64,
    #[prost(uint64, tag = "2")]
    pub size_bytes: u64,
}

/// Where the record of an attempt is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InstanceMessage {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub object: Vec<u8>,
}

/// An interned placement.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PlacementMessage {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub volumes: Vec<u8>,
}

/// Shards of a stripe that are durable; the others are to be repaired.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MissingMessage {
    #[prost(uint32, tag = "1")]
    pub persisted: u32,
}

/// Version of commands and formats in force.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FormatMessage {
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// Sums over the stripes of a group.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SumsMessage {
    #[prost(uint64, tag = "1")]
    pub stripes: u64,
    #[prost(uint64, tag = "2")]
    pub content_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub shard_bytes: u64,
}

/// Up to where the sums are right.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SumsAppliedMessage {
    #[prost(uint64, tag = "1")]
    pub applied: u64,
}

/// Why and when a stripe was set aside.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AsideRowMessage {
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(uint64, tag = "2")]
    pub since: u64,
    #[prost(uint64, tag = "3")]
    pub layout: u64,
}

/// The profile that a study is to have.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WantedProfileMessage {
    #[prost(string, tag = "1")]
    pub profile: String,
}

#[derive(Clone, PartialEq, Message)]
struct StudyRowMessage {
    #[prost(string, tag = "1")]
    study: String,
    #[prost(uint64, tag = "2")]
    objects: u64,
    #[prost(uint64, tag = "3")]
    size_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PageMessage {
    #[prost(message, repeated, tag = "1")]
    studies: Vec<StudyRowMessage>,
    #[prost(message, repeated, tag = "2")]
    instances: Vec<SealedMessage>,
    #[prost(bytes = "vec", tag = "3")]
    next_page_token: Vec<u8>,
}

/// Format byte and message.
pub(crate) fn frame(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    // Encoding into a Vec has no limit to meet.
    message.encode_raw(&mut bytes);
    bytes
}

/// Reads what [`frame`] wrote, skipping fields of newer versions.
pub(crate) fn open_lenient<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, Error> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => M::decode(body).map_err(|error| unreadable(what, error)),
        Some((&format, _)) => Err(Error::Format { what, format }),
        None => Err(unreadable(what, "it is empty")),
    }
}

/// Reads what [`frame`] wrote; a field that we do not know is an error.
pub(crate) fn open_strict<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, Error> {
    let message: M = open_lenient(what, bytes)?;
    // Everything known is written back in full, so a difference in length is something unknown (or not ours).
    if message.encoded_len() + 1 == bytes.len() {
        Ok(message)
    } else {
        Err(unreadable(what, "it has fields that this version does not know"))
    }
}

/// A log entry as bytes.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let commands = entry.commands.iter().map(command_message).collect();
    frame(&EntryMessage { time: entry.time.0, commands })
}

/// Reads a log entry.
/// # Errors
/// Anything unknown to this version: the replica must stop and be upgraded.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, Error> {
    open_strict::<EntryMessage>("log entry", bytes)?.try_into()
}

/// A command as bytes, for forwarding to the leader.
pub fn encode_command(command: &Command) -> Vec<u8> {
    frame(&command_message(command))
}

/// Reads a command.
/// # Errors
/// Anything unknown to this version: do not propose it.
pub fn decode_command(bytes: &[u8]) -> Result<Command, Error> {
    open_strict::<CommandMessage>("command", bytes)?.try_into()
}

/// An outcome as bytes.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    frame(&outcome_message(outcome))
}

/// Reads an outcome.
/// # Errors
/// Unknown format or tag.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, Error> {
    open_lenient::<OutcomeMessage>("outcome", bytes)?.try_into()
}

/// A sealed instance as bytes, with its volumes.
pub fn encode_sealed(instance: &SealedInstance) -> Vec<u8> {
    frame(&sealed_message(instance, &Placed::ByVolumes))
}

/// Reads a sealed instance.
/// # Errors
/// Unknown format or tag, or bytes that are not ours.
pub fn decode_sealed(bytes: &[u8]) -> Result<SealedInstance, Error> {
    sealed(open_lenient("sealed instance", bytes)?, &mut no_placements)
}

/// A layout as bytes.
pub fn encode_layout(layout: &Layout) -> Vec<u8> {
    frame(&LayoutMessage::from(layout))
}

/// Reads a layout.
/// # Errors
/// Unknown format or tag, or bytes that are not ours.
pub fn decode_layout(bytes: &[u8]) -> Result<Layout, Error> {
    open_lenient::<LayoutMessage>("layout", bytes)?.try_into()
}

/// A profile as bytes.
pub fn encode_profile(profile: &Profile) -> Vec<u8> {
    frame(&ProfileMessage::from(profile))
}

/// Reads a profile.
/// # Errors
/// Unknown format or tag, or bytes that are not ours.
pub fn decode_profile(bytes: &[u8]) -> Result<Profile, Error> {
    open_lenient::<ProfileMessage>("profile", bytes)?.try_into()
}

/// A join request as bytes.
pub fn encode_join(join: &JoinNode) -> Vec<u8> {
    frame(&JoinMessage::from(join))
}

/// Reads a join request.
/// # Errors
/// Unknown format or tag, or bytes that are not ours.
pub fn decode_join(bytes: &[u8]) -> Result<JoinNode, Error> {
    open_lenient::<JoinMessage>("join request", bytes)?.try_into()
}

fn row_message(row: &StudyRow) -> StudyRowMessage {
    StudyRowMessage { study: row.study.to_string(), objects: row.objects, size_bytes: row.size_bytes }
}

fn row(message: &StudyRowMessage) -> Result<StudyRow, Error> {
    let study = text("study UID", &message.study)?;
    Ok(StudyRow { study, objects: message.objects, size_bytes: message.size_bytes })
}

/// A study row as bytes.
pub fn encode_study_row(study_row: &StudyRow) -> Vec<u8> {
    frame(&row_message(study_row))
}

/// Reads a study row.
/// # Errors
/// Unknown format, or bytes that are not ours.
pub fn decode_study_row(bytes: &[u8]) -> Result<StudyRow, Error> {
    row(&open_lenient("study row", bytes)?)
}

/// A page of a listing as bytes.
pub fn encode_page(page: &Page) -> Vec<u8> {
    frame(&PageMessage {
        studies: page.studies.iter().map(row_message).collect(),
        instances: page.instances.iter().map(|one| sealed_message(one, &Placed::ByVolumes)).collect(),
        next_page_token: page.next_page_token.clone(),
    })
}

/// Reads a page of a listing.
/// # Errors
/// Unknown format or tag, or bytes that are not ours.
pub fn decode_page(bytes: &[u8]) -> Result<Page, Error> {
    let message: PageMessage = open_lenient("page", bytes)?;
    let instances = message.instances.into_iter().map(|one| sealed(one, &mut no_placements));
    Ok(Page {
        studies: message.studies.iter().map(row).collect::<Result<_, _>>()?,
        instances: instances.collect::<Result<_, _>>()?,
        next_page_token: message.next_page_token,
    })
}
