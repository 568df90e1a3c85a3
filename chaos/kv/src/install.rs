//! Receiving a checkpoint into a simulated store.

use std::collections::BTreeMap;

use pacsvault_ports::kv::{CheckpointFile, Install, InstallError};

use crate::{SimKv, SimKvMedia, rows};

const STEP: &str = "installing a checkpoint";

/// Files received so far. A crash truncates them, and never mixes them with the content.
pub(crate) struct Incoming {
    pub(crate) id: String,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

pub(crate) struct SimInstall {
    store: SimKv,
    id: String,
}

impl SimInstall {
    pub(crate) fn new(media: SimKvMedia, life: u64, id: &str) -> Self {
        Self { store: SimKv { media, life }, id: id.to_owned() }
    }
}

fn superseded() -> InstallError {
    InstallError::Unfit("another install was begun".to_owned())
}

impl Install for SimInstall {
    fn received(&self, name: &str) -> Result<u64, InstallError> {
        let state = self.store.alive(STEP)?;
        let incoming = state.incoming.as_ref().filter(|incoming| incoming.id == self.id).ok_or_else(superseded)?;
        Ok(incoming.files.get(name).map_or(0, |bytes| bytes.len() as u64))
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), InstallError> {
        self.store.begin(STEP)?.change(STEP, |state| {
            let incoming = state.incoming.as_mut().filter(|incoming| incoming.id == self.id);
            let file = incoming.ok_or_else(superseded)?.files.entry(name.to_owned()).or_default();
            if file.len() as u64 != offset {
                return Err(InstallError::Unfit(format!("{name:?} has {} bytes, not {offset}", file.len())));
            }
            file.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn finish(self: Box<Self>, files: &[CheckpointFile]) -> Result<(), InstallError> {
        self.store.begin(STEP)?.change(STEP, |state| {
            let incoming = state.incoming.as_mut().filter(|incoming| incoming.id == self.id).ok_or_else(superseded)?;
            for file in files {
                let bytes = incoming.files.get(&file.name).map(Vec::as_slice).unwrap_or_default();
                if bytes.len() as u64 != file.len_bytes || blake3::hash(bytes).as_bytes() != &file.digest {
                    incoming.files.remove(&file.name);
                    let name = &file.name;
                    return Err(InstallError::Unfit(format!("{name:?} is not the file that was announced")));
                }
            }
            if files.len() != 1 || files[0].name != rows::FILE {
                return Err(InstallError::Unfit("not a checkpoint of a simulated store".to_owned()));
            }
            // An empty store is a file of no bytes, which nobody sends.
            let content = rows::decode(incoming.files.get(rows::FILE).map(Vec::as_slice).unwrap_or_default())?;
            // One step of the simulated disk: a crash finds the old content or the new.
            state.durable.clone_from(&content);
            state.visible = content;
            state.pending.clear();
            state.incoming = None;
            Ok(())
        })
    }
}
