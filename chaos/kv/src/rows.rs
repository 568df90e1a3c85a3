//! The one pseudo-file of a simulated checkpoint: for each row, in order, key length and value length as `u32`
//! little-endian, then key, then value.

use pacsvault_ports::kv::KvError;

use crate::{Content, error};

/// Its name.
pub(crate) const FILE: &str = "rows";

pub(crate) fn encode(content: &Content) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("simulated rows are small").to_le_bytes();
    let mut bytes = Vec::new();
    for (key, value) in content {
        for part in [&length(key)[..], &length(value)[..], key, value] {
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

pub(crate) fn decode(mut bytes: &[u8]) -> Result<Content, KvError> {
    let mut content = Content::new();
    while !bytes.is_empty() {
        let torn = || error("reading a checkpoint", "its rows end in the middle");
        let (lengths, rest) = bytes.split_first_chunk::<8>().ok_or_else(torn)?;
        let length = |at: usize| {
            let bytes = [lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]];
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let (key, rest) = rest.split_at_checked(length(0)).ok_or_else(torn)?;
        let (value, rest) = rest.split_at_checked(length(4)).ok_or_else(torn)?;
        content.insert(key.to_vec(), value.to_vec());
        bytes = rest;
    }
    Ok(content)
}
