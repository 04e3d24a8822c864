//! Files that an action replaces: written whole, with what was there kept for `undo`.
//!
//! The order is: [`Before::of`] (in `prepare`, changes nothing, goes into the journal: digests and paths, no content),
//! [`Before::keep`] (in `run`, before the first write), [`write`], and for undo [`Before::restore`]. Each may be repeated
//! after a crash at any point.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use muster_agent::ActionError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Folder beside a replaced file that holds what it replaced.
const KEPT: &str = ".muster-undo";
/// No configuration or key is larger.
const LARGEST: u64 = 1024 * 1024;

/// A file as it was before the first change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    path: PathBuf,
    /// `None`: there was no file.
    was: Option<Was>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Was {
    sha256: String,
    mode: u32,
    kept: PathBuf,
}

impl Before {
    /// What is at `path` (behind a symbolic link: at its target). Changes nothing.
    pub fn of(path: &Path) -> Result<Self, ActionError> {
        let path = followed(path);
        let Some(content) = read(&path)? else { return Ok(Self { path, was: None }) };
        let meta = fs::metadata(&path).map_err(|e| failed("read", &path, &e))?;
        let sha256 = digest(&content);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = folder(&path).join(KEPT).join(format!("{name}.{}", &sha256[..16]));
        Ok(Self { was: Some(Was { sha256, mode: meta.mode() & 0o7777, kept }), path })
    }

    /// Makes the copy that [`Self::restore`] will use. Without effect once it is there.
    pub fn keep(&self) -> Result<(), ActionError> {
        let Some(was) = &self.was else { return Ok(()) };
        if matches!(read(&was.kept)?, Some(kept) if digest(&kept) == was.sha256) {
            return Ok(());
        }
        let Some(content) = read(&self.path)?.filter(|now| digest(now) == was.sha256) else {
            return Err(ActionError::retry(format!("{} was changed by somebody else meanwhile", self.path.display())));
        };
        let folder = folder(&was.kept);
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(|e| failed("create", folder, &e))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .map_err(|e| failed("protect", folder, &e))?;
            give_to_owner_of(folder, folder.parent().unwrap_or(folder))?;
        }
        write(&was.kept, &content, was.mode)
    }

    /// What is in the file at this moment, `None` where there is none.
    pub fn content(&self) -> Result<Option<Vec<u8>>, ActionError> {
        read(&self.path)
    }

    /// Puts the file back as it was, content and mode; `false` when it already is.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when the kept copy is gone or not what it was.
    pub fn restore(&self) -> Result<bool, ActionError> {
        let now = Self::of(&self.path)?;
        if now == *self {
            return Ok(false);
        }
        let Some(was) = &self.was else {
            fs::remove_file(&self.path).map_err(|e| failed("remove", &self.path, &e))?;
            sync_folder(&self.path)?;
            return Ok(true);
        };
        if now.was.as_ref().is_some_and(|now| now.sha256 == was.sha256) {
            let mode = fs::Permissions::from_mode(was.mode);
            fs::set_permissions(&self.path, mode).map_err(|e| failed("set the mode of", &self.path, &e))?;
            return Ok(true);
        }
        let Some(kept) = read(&was.kept)?.filter(|kept| digest(kept) == was.sha256) else {
            return Err(ActionError::needs_person(format!(
                "{} can't be put back: the kept copy {} is gone or was changed; restore it from a backup",
                self.path.display(),
                was.kept.display()
            )));
        };
        write(&self.path, &kept, was.mode)?;
        Ok(true)
    }
}

/// Puts all of them back; `true` when any was changed.
pub fn restore_all(files: &[Before]) -> Result<bool, ActionError> {
    files.iter().try_fold(false, |changed, file| Ok(changed | file.restore()?))
}

/// The content, `None` where there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, ActionError> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(ActionError::permanent(format!("{} is not a file", path.display())));
        }
        Ok(meta) if meta.len() > LARGEST => {
            return Err(ActionError::permanent(format!("{} is larger than {LARGEST} bytes", path.display())));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path, &e)),
    }
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path, &e)),
    }
}

/// The permission bits of a file.
pub fn mode(path: &Path) -> Result<u32, ActionError> {
    fs::metadata(path).map(|meta| meta.mode() & 0o7777).map_err(|e| failed("read", path, &e))
}

/// Writes the file whole: at any moment, also after a crash, a reader sees the old content or the new one. The file keeps
/// its owner; a new one gets its folder's owner where this process may give it away.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), ActionError> {
    let path = followed(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = folder(&path).join(format!(".{name}.muster-new"));
    if let Err(e) = fs::remove_file(&temporary)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(failed("remove", &temporary, &e));
    }
    let model = if path.exists() { path.clone() } else { folder(&path).to_owned() };
    let written = write_new(&temporary, content, mode).map_err(|e| failed("write", &temporary, &e));
    let moved = written
        .and_then(|()| give_to_owner_of(&temporary, &model))
        .and_then(|()| fs::rename(&temporary, &path).map_err(|e| failed("replace", &path, &e)));
    if moved.is_err() {
        // Best effort: the error that is returned is the one that matters.
        drop(fs::remove_file(&temporary));
    }
    moved?;
    sync_folder(&path)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Gives a file or folder to the owner of `model`, where this process may give it away (root alone).
pub fn give_to_owner_of(path: &Path, model: &Path) -> Result<(), ActionError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(model).map_err(|e| failed("read", model, &e))?;
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).map_err(|e| failed("give away", path, &e))
}

/// Makes what was done to the name `path` last, also after a crash: its folder is synced.
pub fn sync_folder(path: &Path) -> Result<(), ActionError> {
    let folder = folder(path);
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("sync", folder, &e))
}

fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// How much may still be written where `path` is, in bytes.
pub fn free_bytes(path: &Path) -> Result<u64, ActionError> {
    let about = rustix::fs::statvfs(path).map_err(|e| failed("look at", path, &e.into()))?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Removes a folder with all that is in it; `false` when there is none.
pub fn remove_folder(path: &Path) -> Result<bool, ActionError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", path, &e)),
    }
}

/// Gives a file or folder another name in the same folder; lasting when this returns.
pub fn rename(from: &Path, to: &Path) -> Result<(), ActionError> {
    fs::rename(from, to).map_err(|e| failed("rename", from, &e))?;
    sync_folder(to)
}

/// SHA-256 in lower-case hex.
pub fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// What can't be done to a file, as the kind of error that says what to do about it.
pub fn failed(verb: &str, path: &Path, e: &io::Error) -> ActionError {
    let message = format!("can't {verb} {}: {e}", path.display());
    if e.kind() == io::ErrorKind::PermissionDenied {
        ActionError::needs_person(format!("{message}; let this agent's user own it and its folder"))
    } else if e.kind() == io::ErrorKind::NotFound {
        ActionError::permanent(format!("{message}; make the folder first"))
    } else {
        ActionError::retry(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_replaced_file_comes_back_with_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.key");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let before = Before::of(&path).unwrap();
        before.keep().unwrap();
        write(&path, b"new", 0o600).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o600));
        before.keep().unwrap();
        assert!(before.restore().unwrap());
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"old".to_vec(), 0o640));
        assert!(!before.restore().unwrap(), "the second time there is nothing to do");
    }

    #[test]
    fn a_new_file_goes_away_again_and_no_temporary_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.conf");
        let before = Before::of(&path).unwrap();
        before.keep().unwrap();
        write(&path, b"new", 0o644).unwrap();
        assert!(before.restore().unwrap());
        assert!(!before.restore().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn undo_before_anything_was_done_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.conf");
        fs::write(&path, "old").unwrap();
        let before = Before::of(&path).unwrap();
        assert!(!before.restore().unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_kept_copy_that_is_gone_is_a_question_and_not_a_guess() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.conf");
        fs::write(&path, "old").unwrap();
        let before = Before::of(&path).unwrap();
        before.keep().unwrap();
        write(&path, b"new", 0o644).unwrap();
        fs::remove_dir_all(dir.path().join(KEPT)).unwrap();
        assert!(matches!(before.restore(), Err(ActionError::NeedsPerson { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_left_over_temporary_file_and_a_symbolic_link_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.conf"), dir.path().join("link.conf"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        fs::write(dir.path().join(".real.conf.muster-new"), "half").unwrap();
        write(&link, b"new", 0o644).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
