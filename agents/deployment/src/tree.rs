//! A folder of files, told apart from every other by one digest.
//!
//! The digest is that of the list `sha256sum` would write of all files, sorted by name as bytes, so that it can be had
//! without us: `(cd FOLDER && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum) | sha256sum`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use muster_agent::ActionError;
use muster_kit::{
    archive::{Limits, Package, digest_of, stop_unless},
    files::{self, failed},
};

/// Asked now and then; at `false` the work stops.
pub(crate) type GoOn<'a> = &'a dyn Fn() -> bool;

/// Begins the names of what we add to a folder; it is no part of the tree.
pub(crate) const OURS: &str = ".muster-release";

/// What is in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// As `sha256sum` would write it.
    pub(crate) list: String,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Tree {
    /// Reads everything in `folder`.
    ///
    /// # Errors
    /// Permanent when there is more than the limits allow, or anything but files and folders.
    pub(crate) fn of(folder: &Path, limits: Limits, go_on: GoOn<'_>) -> Result<Self, ActionError> {
        let mut tree = Self::default();
        for (name, entry) in entries(folder, limits)? {
            let Entry::File { .. } = entry else { continue };
            let path = folder.join(&name);
            let mut file = File::open(&path).map_err(|e| failed("read", &path, &e))?;
            let digested = digest_of(&mut file, go_on);
            stop_unless(go_on)?;
            let (bytes, sha256) = digested.map_err(|e| failed("read", &path, &e))?;
            // Never fails: it is memory.
            let _ = writeln!(tree.list, "{sha256}  {name}");
            tree.files += 1;
            tree.bytes += bytes;
        }
        Ok(tree)
    }

    /// The digest of all of it.
    pub(crate) fn sha256(&self) -> String {
        files::digest(self.list.as_bytes())
    }
}

/// The first file in which two lists differ, for people.
pub(crate) fn difference(was: &str, is: &str) -> Option<String> {
    let read = |list: &str| -> BTreeMap<String, String> {
        list.lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sha256, name)| (name.into(), sha256.into()))
            .collect()
    };
    let (was, is) = (read(was), read(is));
    let gone = was.keys().find(|name| !is.contains_key(*name)).map(|name| format!("{name} is gone"));
    let other = || {
        was.iter().find(|(name, sha256)| is.get(*name) != Some(sha256)).map(|(name, _)| format!("{name} was changed"))
    };
    let added = || is.keys().find(|name| !was.contains_key(*name)).map(|name| format!("{name} was added"));
    gone.or_else(other).or_else(added)
}

enum Entry {
    Folder,
    File { executable: bool },
}

/// Everything below `folder`, by its path in it, sorted as bytes.
fn entries(folder: &Path, limits: Limits) -> Result<BTreeMap<String, Entry>, ActionError> {
    let (mut all, mut open, mut bytes) = (BTreeMap::new(), vec![PathBuf::new()], 0_u64);
    while let Some(inner) = open.pop() {
        let path = folder.join(&inner);
        for entry in fs::read_dir(&path).map_err(|e| failed("read", &path, &e))? {
            let entry = entry.map_err(|e| failed("read", &path, &e))?;
            let (path, name) = (entry.path(), inner.join(entry.file_name()));
            let Some(name) = name.to_str().filter(|name| !name.chars().any(|c| c.is_control() || c == '\\')) else {
                return Err(ActionError::permanent(format!(
                    "{:?}: its name is not plain text; rename it",
                    path.display()
                )));
            };
            if inner.as_os_str().is_empty() && name.starts_with(OURS) {
                continue;
            }
            let meta = fs::symlink_metadata(&path).map_err(|e| failed("read", &path, &e))?;
            if meta.is_dir() {
                open.push(name.into());
                all.insert(name.to_owned(), Entry::Folder);
            } else if meta.is_file() {
                bytes = bytes.saturating_add(meta.len());
                all.insert(name.to_owned(), Entry::File { executable: meta.permissions().mode() & 0o100 != 0 });
            } else {
                let name = path.display();
                return Err(ActionError::permanent(format!("{name} is neither a file nor a folder; leave it out")));
            }
            if all.len() as u64 > limits.members || bytes > limits.unpacked_bytes {
                return Err(ActionError::permanent(format!(
                    "{} has more than {} members or {} bytes; that is its limit",
                    folder.display(),
                    limits.members,
                    limits.unpacked_bytes
                )));
            }
        }
    }
    Ok(all)
}

/// Unpacks a package into the empty folder `into`.
pub(crate) fn unpack(package: &Package, into: &Path, go_on: GoOn<'_>) -> Result<(), ActionError> {
    package.walk(go_on, &mut |member, content| {
        if member.path.components().count() == 1 && member.path.to_string_lossy().starts_with(OURS) {
            return Err(ActionError::permanent(format!(
                "a release may not hold {}; leave it out",
                member.path.display()
            )));
        }
        if member.folder {
            return make_folders(into, &member.path);
        }
        make_folders(into, member.path.parent().unwrap_or_else(|| Path::new("")))?;
        write(&into.join(&member.path), content, member.executable)
    })?;
    Ok(())
}

/// Copies what is in `from` into the empty folder `into`.
pub(crate) fn copy(from: &Path, into: &Path, limits: Limits, go_on: GoOn<'_>) -> Result<(), ActionError> {
    for (name, entry) in entries(from, limits)? {
        stop_unless(go_on)?;
        let Entry::File { executable } = entry else {
            make_folders(into, Path::new(&name))?;
            continue;
        };
        let path = from.join(&name);
        let file = File::open(&path).map_err(|e| failed("read", &path, &e))?;
        // One that grows meanwhile ends here, and its digest tells.
        write(&into.join(&name), &mut file.take(limits.unpacked_bytes), executable)?;
    }
    Ok(())
}

/// A folder for everybody to read, owned as the folder it lies in.
pub(crate) fn make_folder(path: &Path) -> Result<(), ActionError> {
    fs::create_dir(path).map_err(|e| failed("create", path, &e))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|e| failed("protect", path, &e))?;
    files::give_to_owner_of(path, path.parent().unwrap_or(path))
}

fn make_folders(into: &Path, relative: &Path) -> Result<(), ActionError> {
    let mut path = into.to_owned();
    for part in relative.components() {
        path.push(part);
        if !path.is_dir() {
            make_folder(&path)?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &mut dyn Read, executable: bool) -> Result<(), ActionError> {
    let mode = if executable { 0o755 } else { 0o644 };
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(mode).open(path).map_err(|e| failed("write", path, &e))?;
    io::copy(content, &mut file).map_err(|e| failed("write", path, &e))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|e| failed("protect", path, &e))?;
    files::give_to_owner_of(path, path.parent().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let lists = |was, is| difference(was, is);
        assert_eq!(lists("1  a\n2  b\n", "1  a\n2  b\n"), None);
        assert_eq!(lists("1  a\n2  b\n", "1  a\n"), Some("b is gone".into()));
        assert_eq!(lists("1  a\n2  b\n", "3  a\n2  b\n"), Some("a was changed".into()));
        assert_eq!(lists("1  a\n", "1  a\n2  b c\n"), Some("b c was added".into()));
    }

    #[test]
    fn a_link_in_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let error = Tree::of(dir.path(), Limits::default(), &|| true).unwrap_err();
        assert!(error.to_string().contains("neither a file nor a folder"), "{error}");
    }

    #[test]
    fn limits_hold_for_folders_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 100]).unwrap();
        fs::write(dir.path().join("b"), [0; 100]).unwrap();
        let limits = Limits { unpacked_bytes: 200, members: 2, ..Limits::default() };
        assert_eq!(Tree::of(dir.path(), limits, &|| true).unwrap().bytes, 200);
        assert!(Tree::of(dir.path(), Limits { members: 1, ..limits }, &|| true).is_err());
        assert!(Tree::of(dir.path(), Limits { unpacked_bytes: 199, ..limits }, &|| true).is_err());
    }
}
