//! `allow.toml`: what `command.run`, `tests.run` and `release.switch` may start. Off until somebody on the agent's own host has listed it by its digest.
//!
//! ```toml
//! [commands.rotate-logs]
//! path = "/usr/local/sbin/rotate-logs"
//! sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// By the name that a playbook uses.
    #[serde(default)]
    pub commands: BTreeMap<String, Pinned>,
}

/// A program, by place and content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Absolute.
    pub path: PathBuf,
    /// Of the file, in hex.
    pub sha256: String,
}

/// Why the list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AllowError {
    /// The file can't be read.
    #[error("can't read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what an `allow.toml` looks like.
    #[error("{path} is not an allow list")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// An entry is wrong.
    #[error("{path}: command {name}: {why}")]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Which command.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// Why a command is not started.
#[derive(Debug, thiserror::Error)]
pub enum NotAllowed {
    /// Not listed.
    #[error("command {0:?} is not in this agent's allow.toml; add its path and sha256 there, and restart the agent")]
    Unlisted(String),
    /// It can't be read.
    #[error("command {name:?}: can't read {path}")]
    Unreadable {
        /// Which command.
        name: String,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may write to it.
    #[error("command {name:?}: {path} can be written by its group or by everybody; take that away: chmod go-w {path}")]
    Writable {
        /// Which command.
        name: String,
        /// Where it is.
        path: PathBuf,
    },
    /// It is another file than the one that was listed.
    #[error("command {name:?}: {path} has sha256 {found}, not the one in allow.toml; if the change is wanted, list it")]
    Changed {
        /// Which command.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// What it has become.
        found: String,
    },
}

impl Allow {
    /// Read a list; every entry is checked for its form, not yet for its file.
    pub fn load(path: &Path) -> Result<Self, AllowError> {
        let text = fs::read_to_string(path).map_err(|source| AllowError::Read { path: path.to_owned(), source })?;
        let allow: Self =
            toml::from_str(&text).map_err(|source| AllowError::Parse { path: path.to_owned(), source })?;
        for (name, pinned) in &allow.commands {
            let why = if !pinned.path.is_absolute() {
                "its path is not absolute"
            } else if pinned.sha256.len() != 64 || !pinned.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                "its sha256 is not 64 hex digits; get it with: sha256sum FILE"
            } else {
                continue;
            };
            return Err(AllowError::Entry { path: path.to_owned(), name: name.clone(), why });
        }
        Ok(allow)
    }

    /// The program to start for `name`, whose content has just been compared with the list. Reads the file; blocks.
    pub fn verify(&self, name: &str) -> Result<PathBuf, NotAllowed> {
        let Some(pinned) = self.commands.get(name) else {
            return Err(NotAllowed::Unlisted(name.to_owned()));
        };
        let path = pinned.path.clone();
        let unreadable = |source| NotAllowed::Unreadable { name: name.to_owned(), path: path.clone(), source };
        let mut file = File::open(&path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.mode() & 0o022 != 0 {
            return Err(NotAllowed::Writable { name: name.to_owned(), path });
        }
        let found = sha256(&mut file).map_err(unreadable)?;
        if !found.eq_ignore_ascii_case(&pinned.sha256) {
            return Err(NotAllowed::Changed { name: name.to_owned(), path, found });
        }
        Ok(path)
    }
}

fn sha256(file: &mut File) -> io::Result<String> {
    use std::{fmt::Write, io::Read};
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        write!(hex, "{byte:02x}").map_err(io::Error::other)?;
    }
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_the_listed_content_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let list = folder.path().join("allow.toml");
        fs::write(&list, format!("[commands.p]\npath = {program:?}\nsha256 = \"{}\"\n", EMPTY.to_uppercase())).unwrap();
        let allow = Allow::load(&list).unwrap();
        assert_eq!(allow.verify("p").unwrap(), program);
        assert!(matches!(allow.verify("q"), Err(NotAllowed::Unlisted(_))));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(allow.verify("p"), Err(NotAllowed::Writable { .. })));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&program, "x").unwrap();
        assert!(matches!(allow.verify("p"), Err(NotAllowed::Changed { .. })));
        fs::remove_file(&program).unwrap();
        assert!(matches!(allow.verify("p"), Err(NotAllowed::Unreadable { .. })));
    }

    #[test]
    fn a_bad_list_is_said_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("allow.toml");
        for (text, why) in [
            (format!("[commands.p]\npath = \"bin/p\"\nsha256 = \"{EMPTY}\"\n"), "not absolute"),
            ("[commands.p]\npath = \"/bin/p\"\nsha256 = \"12\"\n".to_owned(), "64 hex digits"),
            ("[command.p]\n".to_owned(), "not an allow list"),
        ] {
            fs::write(&list, text).unwrap();
            let error = Allow::load(&list).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(matches!(Allow::load(&folder.path().join("none")), Err(AllowError::Read { .. })));
    }
}
