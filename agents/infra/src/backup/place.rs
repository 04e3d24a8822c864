//! Where a backup lies, and what is there: whole and proven under its name, or not there at all.
//!
//! It is made under another name in the same folder and gets its own when it is proven; it loses it before it is removed.
//! So whatever bears its name is whole, whenever the agent died.

use std::path::{Path, PathBuf};

use muster_agent::ActionError;
use muster_kit::{files, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The folder of one backup, by name.
#[derive(Clone, Debug)]
pub(super) struct Place {
    root: PathBuf,
    name: String,
}

/// Output of `backup.postgres`; also written into the backup's folder, as `muster.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupOutput {
    /// The data folder in the backup; a server can be started on a copy of it.
    pub directory: PathBuf,
    /// Which cluster it is of.
    pub system_identifier: String,
    /// PostgreSQL's version number, like 150020.
    pub server_version: u32,
    /// The checksum that its manifest ends with.
    pub manifest_checksum: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What the restored server answered to the proof's query.
    pub proof: String,
    /// How long copying took, in milliseconds.
    pub backup_ms: f64,
    /// How long checking every file against the manifest took, in milliseconds.
    pub verify_ms: f64,
    /// How long it took from the start of the copy's server to its answer, in milliseconds.
    pub restore_ms: f64,
}

/// What is there.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// Something that this action has not made.
    Stranger,
    /// A backup that was proven; whether it is still good is another question.
    Backup(Box<BackupOutput>),
}

const RECORD: &str = "muster.json";

impl Place {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { root: root.to_owned(), name: name.to_owned() }
    }

    /// The folder of backups.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The backup.
    pub(super) fn whole(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The data folder in it.
    pub(super) fn data(&self) -> PathBuf {
        self.whole().join("data")
    }

    /// Where it is made and proven.
    pub(super) fn work(&self) -> PathBuf {
        self.root.join(format!(".{}.muster-new", self.name))
    }

    fn leaving(&self) -> PathBuf {
        self.root.join(format!(".{}.muster-gone", self.name))
    }

    pub(super) fn found(&self) -> Result<Found, ActionError> {
        let whole = self.whole();
        if std::fs::symlink_metadata(&whole).is_err() {
            return Ok(Found::Nothing);
        }
        let Ok(Some(record)) = files::read(&whole.join(RECORD)) else { return Ok(Found::Stranger) };
        let Ok(record) = serde_json::from_slice::<BackupOutput>(&record) else { return Ok(Found::Stranger) };
        if manifest_checksum(&self.data()).as_deref() != Some(record.manifest_checksum.as_str()) {
            return Err(ActionError::needs_person(format!(
                "the backup {} was changed: its manifest is another one or gone; move it away, or name another backup",
                whole.display()
            )));
        }
        Ok(Found::Backup(Box::new(record)))
    }

    /// What makes a backup in the work folder whole.
    pub(super) fn finish(&self, output: &BackupOutput) -> Result<(), ActionError> {
        let record = serde_json::to_vec_pretty(&params::output(output)).unwrap_or_default();
        files::write(&self.work().join(RECORD), &record, 0o600)?;
        files::rename(&self.work(), &self.whole())
    }

    /// Removes what a run that died has left; `true` when there was something.
    pub(super) fn clear(&self) -> Result<bool, ActionError> {
        Ok(files::remove_folder(&self.work())? | files::remove_folder(&self.leaving())?)
    }

    /// Removes the backup.
    pub(super) fn remove(&self) -> Result<(), ActionError> {
        files::rename(&self.whole(), &self.leaving())?;
        files::remove_folder(&self.leaving()).map(drop)
    }
}

/// The checksum that the manifest of a data folder ends with.
pub(super) fn manifest_checksum(data: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    // A manifest names every file: it may be long, and this is its last line.
    let mut manifest = std::fs::File::open(data.join("backup_manifest")).ok()?;
    let length = manifest.metadata().ok()?.len();
    manifest.seek(SeekFrom::Start(length.saturating_sub(200))).ok()?;
    let mut end = String::new();
    manifest.read_to_string(&mut end).ok()?;
    let checksum = end.rsplit_once("\"Manifest-Checksum\": \"")?.1.split('"').next()?;
    (checksum.len() == 64).then(|| checksum.to_owned())
}

/// The size of all files in a folder, in bytes.
pub(super) fn size_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        size += if about.is_dir() { size_bytes(&entry.path())? } else { about.len() };
    }
    Ok(size)
}
