//! Reads the key and the indexed attributes of a DICOM Part 10 file, up to but not including its pixel data.

use std::path::Path;

use dicom_core::{Tag, dictionary::DataDictionary};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_object::{FileDicomObject, InMemDicomObject, OpenFileOptions};
use pacsvault_core::{
    catalog::command::Attribute,
    ids::{Leaf, ObjectKey, Tenant, Uid},
};

/// Attributes kept in the catalog: what DICOM queries at study, series and instance level ask for
/// (`SPEC: PS3.4 §C.6.2`), and what tells how to decode.
pub const INDEXED: [Tag; 31] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::STUDY_DATE,
    tags::SERIES_DATE,
    tags::STUDY_TIME,
    tags::SERIES_TIME,
    tags::ACCESSION_NUMBER,
    tags::MODALITY,
    tags::INSTITUTION_NAME,
    tags::REFERRING_PHYSICIAN_NAME,
    tags::STUDY_DESCRIPTION,
    tags::SERIES_DESCRIPTION,
    tags::MANUFACTURER,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::PATIENT_AGE,
    tags::BODY_PART_EXAMINED,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::STUDY_ID,
    tags::SERIES_NUMBER,
    tags::INSTANCE_NUMBER,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::BITS_ALLOCATED,
    tags::PERFORMED_PROCEDURE_STEP_START_DATE,
];
/// Under this pseudo-tag, of the file meta group, the transfer syntax is kept.
pub const TRANSFER_SYNTAX: Tag = tags::TRANSFER_SYNTAX_UID;
/// SOP class of a DICOMDIR (`SPEC: PS3.4 §I.4`, Media Storage Directory Storage).
const MEDIA_DIRECTORY: &str = "1.2.840.10008.1.3.10";
/// Most bytes of one value kept; longer ones are cut at a character, since the index serves search, not display.
const VALUE_BYTES_MAX: usize = 512;

/// What is wrong with a file that should have been DICOM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a Part 10 file, or damaged before its pixel data.
    #[error("not a readable DICOM Part 10 file: {0}")]
    Unreadable(String),
    /// A DICOMDIR: it lists other files of a medium, and belongs to no study itself.
    #[error("this is a DICOMDIR: it lists the other files of a medium and belongs to no study")]
    MediaDirectory,
    /// A UID that makes the key is absent or empty.
    #[error("the {name} {tag} is missing, so the file has no place in a study")]
    Missing {
        /// Keyword of the attribute.
        name: &'static str,
        /// Its tag.
        tag: Tag,
    },
    /// A UID that makes the key is malformed.
    #[error("the {name} is invalid: {source}")]
    Uid {
        /// Keyword of the attribute.
        name: &'static str,
        /// Which rule it breaks.
        source: pacsvault_core::ids::Error,
    },
}

/// What a file says of itself.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its key under `tenant`.
    pub key: ObjectKey,
    /// Attributes for the index.
    pub attributes: Vec<Attribute>,
}

/// True when the file begins as a Part 10 file does: 128 bytes of preamble, then `DICM` (`SPEC: PS3.10 §7.1`).
pub fn looks_like_dicom(path: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut head = [0_u8; 132];
    let mut file = std::fs::File::open(path)?;
    match file.read_exact(&mut head) {
        Ok(()) => Ok(&head[128..] == b"DICM"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Describes the file at `path`.
pub fn describe(path: &Path, tenant: &Tenant) -> Result<Described, Error> {
    let object = OpenFileOptions::new()
        .read_until(tags::PIXEL_DATA)
        .open_file(path)
        .map_err(|error| Error::Unreadable(chain(&error)))?;
    describe_object(&object, tenant)
}

fn describe_object(object: &FileDicomObject<InMemDicomObject>, tenant: &Tenant) -> Result<Described, Error> {
    if object.meta().media_storage_sop_class_uid().trim_end_matches(['\0', ' ']) == MEDIA_DIRECTORY {
        return Err(Error::MediaDirectory);
    }
    let study = uid(object, tags::STUDY_INSTANCE_UID, "Study Instance UID")?;
    let series = uid(object, tags::SERIES_INSTANCE_UID, "Series Instance UID")?;
    let instance = uid(object, tags::SOP_INSTANCE_UID, "SOP Instance UID")?;
    let mut attributes: Vec<Attribute> =
        INDEXED.iter().filter_map(|tag| Some(Attribute { tag: number(*tag), value: text(object, *tag)? })).collect();
    let syntax = object.meta().transfer_syntax().trim_end_matches(['\0', ' ']).to_owned();
    attributes.push(Attribute { tag: number(TRANSFER_SYNTAX), value: syntax });
    attributes.sort_by_key(|attribute| attribute.tag);
    Ok(Described {
        key: ObjectKey { tenant: tenant.clone(), study, leaf: Leaf::Instance { series, instance } },
        attributes,
    })
}

fn number(tag: Tag) -> u32 {
    u32::from(tag.group()) << 16 | u32::from(tag.element())
}

/// Keyword of an indexed attribute, or its tag in the standard form.
pub fn keyword(tag: u32) -> String {
    let group = u16::try_from(tag >> 16).unwrap_or_default();
    let element = u16::try_from(tag & 0xffff).unwrap_or_default();
    let tag = Tag(group, element);
    StandardDataDictionary.by_tag(tag).map_or_else(|| tag.to_string(), |entry| entry.alias.to_owned())
}

fn text(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    let element = object.element_opt(tag).ok().flatten()?;
    let value = element.to_str().ok()?;
    let value = value.trim_end_matches(['\0', ' ']);
    if value.is_empty() {
        return None;
    }
    let mut end = value.len().min(VALUE_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    Some(value[..end].to_owned())
}

fn uid(object: &InMemDicomObject, tag: Tag, name: &'static str) -> Result<Uid, Error> {
    let value = text(object, tag).ok_or(Error::Missing { name, tag })?;
    value.parse().map_err(|source| Error::Uid { name, source })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
