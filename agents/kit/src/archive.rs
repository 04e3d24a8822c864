//! Packages (`.tar`, `.tar.gz`, `.tgz`, `.zip`), read member by member and never further than the limits.
//!
//! What a package says of itself is not believed: sizes are counted while unpacking, and a member that is absolute, leads
//! out of its folder (`..`), comes twice or is neither file nor folder (a link, a device) is refused.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use muster_agent::ActionError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How much of a package is read. One that is larger is refused as a whole.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of the package's file, in bytes; 1 GiB when absent.
    #[serde(default = "one_gib")]
    #[schemars(range(min = 1, max = 68_719_476_736_u64))]
    pub packed_bytes: u64,
    /// Of all members together, unpacked, in bytes; 4 GiB when absent.
    #[serde(default = "four_gib")]
    #[schemars(range(min = 1, max = 274_877_906_944_u64))]
    pub unpacked_bytes: u64,
    /// Files and folders; 100 000 when absent.
    #[serde(default = "hundred_thousand")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub members: u64,
}

fn one_gib() -> u64 {
    1 << 30
}

fn four_gib() -> u64 {
    4 << 30
}

fn hundred_thousand() -> u64 {
    100_000
}

impl Default for Limits {
    fn default() -> Self {
        Self { packed_bytes: one_gib(), unpacked_bytes: four_gib(), members: hundred_thousand() }
    }
}

/// A file or folder in a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Relative, of normal parts alone: safe to join to a folder.
    pub path: PathBuf,
    /// A folder has no content.
    pub folder: bool,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// What was in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Files and folders.
    pub members: u64,
    /// Of all files, unpacked.
    pub unpacked_bytes: u64,
}

/// A package, opened once: what is read later is the file that was there then, whatever comes under its name.
#[derive(Debug)]
pub struct Package {
    path: PathBuf,
    file: File,
    kind: Kind,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tar,
    TarGz,
    Zip,
}

/// Of one header with a long name or with extensions.
const LONGEST_HEADER: u64 = 64 * 1024;

/// Takes each member with its content. The content is bounded; what is left unread is skipped.
pub type Visit<'a> = dyn FnMut(&Member, &mut dyn Read) -> Result<(), ActionError> + 'a;

impl Package {
    /// Opens it; its kind is told by its name.
    ///
    /// # Errors
    /// [`ActionError::Retry`] when it is not there, permanent when it is none or larger than the limit.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, ActionError> {
        let name = path.display();
        let kind = kind_of(path).ok_or_else(|| {
            ActionError::permanent(format!("{name} is no .tar, .tar.gz, .tgz or .zip; pack it as one of these"))
        })?;
        let file = File::open(path).map_err(|e| {
            if e.kind() == io::ErrorKind::PermissionDenied {
                ActionError::needs_person(format!("can't read {name}: {e}; let this agent's user read it"))
            } else {
                ActionError::retry(format!("can't read {name}: {e}; see whether it has been delivered"))
            }
        })?;
        let meta = file.metadata().map_err(|e| ActionError::retry(format!("can't read {name}: {e}")))?;
        if !meta.is_file() {
            return Err(ActionError::permanent(format!("{name} is not a file")));
        }
        let (bytes, most) = (meta.len(), limits.packed_bytes);
        if bytes > most {
            return Err(ActionError::permanent(format!("{name} has {bytes} bytes, more than the limit of {most}")));
        }
        Ok(Self { path: path.to_owned(), file, kind, limits })
    }

    /// Length of the file in bytes, and its sha256 in lower-case hex. `go_on` is asked now and then; at `false` it stops.
    pub fn digest(&self, go_on: &dyn Fn() -> bool) -> Result<(u64, String), ActionError> {
        let mut file = self.rewound()?.take(self.limits.packed_bytes + 1);
        let digested = digest_of(&mut file, go_on);
        stop_unless(go_on)?;
        let found = digested.map_err(|e| self.broken(&e))?;
        if found.0 > self.limits.packed_bytes {
            return Err(self.too_large("bytes, packed", self.limits.packed_bytes));
        }
        Ok(found)
    }

    /// Every member in turn. `go_on` is asked at each.
    ///
    /// # Errors
    /// Permanent when it is damaged, over a limit or has a member that is not allowed; whatever `visit` says.
    pub fn walk(&self, go_on: &dyn Fn() -> bool, visit: &mut Visit<'_>) -> Result<Total, ActionError> {
        let mut count = Count { package: self, seen: BTreeSet::new(), total: Total::default() };
        match self.kind {
            Kind::Tar => self.walk_tar(BufReader::new(self.rewound()?), go_on, &mut count, visit)?,
            Kind::TarGz => {
                let plain = flate2::read::MultiGzDecoder::new(BufReader::new(self.rewound()?));
                // Headers and padding of a tar are unpacked bytes, too: a bomb may be made of them alone.
                let most = self.limits.unpacked_bytes.saturating_add(self.limits.members.saturating_mul(4096));
                self.walk_tar(plain.take(most), go_on, &mut count, visit)?;
            }
            Kind::Zip => self.walk_zip(go_on, &mut count, visit)?,
        }
        Ok(count.total)
    }

    fn walk_tar(
        &self,
        reader: impl Read,
        go_on: &dyn Fn() -> bool,
        count: &mut Count<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(), ActionError> {
        let mut archive = tar::Archive::new(reader);
        let mut long_name = None;
        // Raw, since the library would read a long name into memory whole, and its length is the package's word.
        for entry in archive.entries().map_err(|e| self.broken(&e))?.raw(true) {
            stop_unless(go_on)?;
            let mut entry = entry.map_err(|e| self.broken(&e))?;
            let kind = entry.header().entry_type();
            if kind.is_pax_global_extensions() {
                continue;
            }
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                long_name = self.long_name(&mut entry, kind)?.or(long_name);
                continue;
            }
            let path = match long_name.take() {
                Some(path) => path,
                None => entry.path().map_err(|e| self.broken(&e))?.into_owned(),
            };
            if !kind.is_file() && !kind.is_dir() {
                return Err(self.refused(&path, "is neither a file nor a folder; leave links and devices out"));
            }
            let mode = entry.header().mode().map_err(|e| self.broken(&e))?;
            let Some(member) = count.add(&path, kind.is_dir(), mode & 0o100 != 0)? else { continue };
            count.visit(&member, &mut entry, visit)?;
        }
        Ok(())
    }

    /// The name that an entry before its member gives, if that is what it gives.
    fn long_name(&self, entry: &mut dyn Read, kind: tar::EntryType) -> Result<Option<PathBuf>, ActionError> {
        let mut bytes = Vec::new();
        entry.take(LONGEST_HEADER + 1).read_to_end(&mut bytes).map_err(|e| self.broken(&e))?;
        if bytes.len() as u64 > LONGEST_HEADER {
            return Err(self.too_large("bytes in one header", LONGEST_HEADER));
        }
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(PathBuf::from).map_err(|e| self.broken(&e));
        if kind.is_gnu_longname() {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            return text(&bytes[..end]).map(Some);
        }
        for extension in tar::PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|e| self.broken(&e))?;
            if extension.key_bytes() == b"path" {
                return text(extension.value_bytes()).map(Some);
            }
        }
        Ok(None)
    }

    fn walk_zip(
        &self,
        go_on: &dyn Fn() -> bool,
        count: &mut Count<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(), ActionError> {
        let mut archive = zip::ZipArchive::new(BufReader::new(self.rewound()?)).map_err(|e| self.broken(&e))?;
        if archive.len() as u64 > self.limits.members {
            return Err(self.too_large("members", self.limits.members));
        }
        for index in 0..archive.len() {
            stop_unless(go_on)?;
            let mut entry = archive.by_index(index).map_err(|e| self.broken(&e))?;
            let path = PathBuf::from(entry.name().map_err(|e| self.broken(&e))?.into_owned());
            // The upper half of what Unix wrote down is the kind of file; nothing at all is a file made elsewhere.
            let mode = entry.unix_mode().unwrap_or(0o644);
            if !matches!(mode & 0o170_000, 0 | 0o100_000 | 0o040_000) {
                return Err(self.refused(&path, "is neither a file nor a folder; leave links and devices out"));
            }
            let Some(member) = count.add(&path, entry.is_dir(), mode & 0o100 != 0)? else { continue };
            count.visit(&member, &mut entry, visit)?;
        }
        Ok(())
    }

    fn rewound(&self) -> Result<&File, ActionError> {
        (&self.file).seek(SeekFrom::Start(0)).map_err(|e| self.broken(&e))?;
        Ok(&self.file)
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> ActionError {
        ActionError::permanent(format!(
            "{} can't be read to its end: {why}; pack or fetch it again",
            self.path.display()
        ))
    }

    fn refused(&self, member: &Path, why: &str) -> ActionError {
        ActionError::permanent(format!("{}: member {:?} {why}", self.path.display(), member.display().to_string()))
    }

    fn too_large(&self, what: &str, most: u64) -> ActionError {
        ActionError::permanent(format!("{} has more than {most} {what}; that is its limit", self.path.display()))
    }
}

/// What has been seen so far.
struct Count<'a> {
    package: &'a Package,
    seen: BTreeSet<PathBuf>,
    total: Total,
}

impl Count<'_> {
    /// `None`: the root itself, which is no member.
    fn add(&mut self, path: &Path, folder: bool, executable: bool) -> Result<Option<Member>, ActionError> {
        let Some(path) = normal(path) else {
            return Err(self.package.refused(path, "leads out of the package; pack it with relative names"));
        };
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        self.total.members += 1;
        if self.total.members > self.package.limits.members {
            return Err(self.package.too_large("members", self.package.limits.members));
        }
        if !self.seen.insert(path.clone()) && !folder {
            return Err(self.package.refused(&path, "comes twice"));
        }
        Ok(Some(Member { path, folder, executable }))
    }

    fn visit(&mut self, member: &Member, content: &mut dyn Read, visit: &mut Visit<'_>) -> Result<(), ActionError> {
        if member.folder {
            return visit(member, &mut io::empty());
        }
        let most = self.package.limits.unpacked_bytes;
        let mut bounded = content.take(most - self.total.unpacked_bytes + 1);
        let room = bounded.limit();
        let visited = visit(member, &mut bounded);
        // Who stopped in the middle of it says so, and not that the rest is missing.
        if matches!(visited, Err(ActionError::Retry { .. })) {
            return visited;
        }
        // Also what nobody read has to be counted, and a package that breaks off here is broken.
        let rest = io::copy(&mut bounded, &mut io::sink());
        let over = bounded.limit() == 0;
        self.total.unpacked_bytes += room - bounded.limit();
        if over {
            return Err(self.package.too_large("bytes, unpacked", most));
        }
        rest.map_err(|e| self.package.broken(&e))?;
        visited
    }
}

/// An error once `go_on` says `false`: it may pass by itself, since nothing was wrong with what was read.
pub fn stop_unless(go_on: &dyn Fn() -> bool) -> Result<(), ActionError> {
    if go_on() { Ok(()) } else { Err(ActionError::retry("stopped while reading a package: the attempt was cancelled")) }
}

fn kind_of(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let ends = |end: &str| name.ends_with(end);
    match () {
        () if ends(".tar.gz") || ends(".tgz") => Some(Kind::TarGz),
        () if ends(".tar") => Some(Kind::Tar),
        () if ends(".zip") => Some(Kind::Zip),
        () => None,
    }
}

/// The path without `.`; `None` when it is absolute, leads upwards or is not plain text.
fn normal(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    if text.chars().any(|c| c.is_control() || c == '\\') {
        return None;
    }
    path.components().try_fold(PathBuf::new(), |all, part| match part {
        Component::Normal(name) => Some(all.join(name)),
        Component::CurDir => Some(all),
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

/// How many bytes came, and their sha256 in lower-case hex. `go_on` is asked now and then; at `false` it is an error.
pub fn digest_of(reader: &mut dyn Read, go_on: &dyn Fn() -> bool) -> io::Result<(u64, String)> {
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        if !go_on() {
            return Err(io::Error::other("the attempt was cancelled"));
        }
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok((bytes, crate::files::hex(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FEW: Limits = Limits { packed_bytes: 1 << 20, unpacked_bytes: 4096, members: 3 };

    fn tar(dir: &Path, members: &[(&str, tar::EntryType, &[u8])]) -> PathBuf {
        let path = dir.join("package.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            // Past the builder's own refusal of bad names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.finish().unwrap();
        path
    }

    fn walked(path: &Path, limits: Limits) -> Result<(Total, Vec<String>), ActionError> {
        let mut names = Vec::new();
        let total = Package::open(path, limits)?.walk(&|| true, &mut |member, _| {
            names.push(member.path.display().to_string());
            Ok(())
        })?;
        Ok((total, names))
    }

    #[test]
    fn members_are_counted_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = tar::EntryType::Regular;
        let path =
            tar(dir.path(), &[("./", tar::EntryType::Directory, b""), ("./bin/app", file, b"app"), ("b", file, b"")]);
        let (total, names) = walked(&path, FEW).unwrap();
        assert_eq!((total.members, total.unpacked_bytes), (2, 3));
        assert_eq!(names, ["bin/app", "b"]);
    }

    #[test]
    fn what_leads_out_comes_twice_or_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = tar::EntryType::Regular;
        for (members, why) in [
            (vec![("../x", file, b"x".as_slice())], "leads out"),
            (vec![("/etc/x", file, b"x")], "leads out"),
            (vec![("a/../../x", file, b"x")], "leads out"),
            (vec![("x", file, b"1"), ("./x", file, b"2")], "comes twice"),
            (vec![("x", tar::EntryType::Symlink, b"")], "neither a file nor a folder"),
            (vec![("x", tar::EntryType::Link, b"")], "neither a file nor a folder"),
            (vec![("1", file, b""), ("2", file, b""), ("3", file, b""), ("4", file, b"")], "more than 3 members"),
            (vec![("1", file, [0; 4097].as_slice())], "more than 4096 bytes"),
        ] {
            let error = walked(&tar(dir.path(), &members), FEW).unwrap_err();
            assert!(matches!(error, ActionError::Permanent { .. }) && error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn long_names_are_read_and_endless_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{}/app", "folder".repeat(30));
        let path = dir.path().join("long.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        builder.append_data(&mut header, &name, b"app".as_slice()).unwrap();
        builder.append_pax_extensions([("path", b"../out".as_slice())]).unwrap();
        builder.append_data(&mut header, "in", b"app".as_slice()).unwrap();
        builder.finish().unwrap();
        let mut names = Vec::new();
        let error = Package::open(&path, FEW).unwrap().walk(&|| true, &mut |member, _| {
            names.push(member.path.display().to_string());
            Ok(())
        });
        assert_eq!(names, [name]);
        assert!(error.unwrap_err().to_string().contains("leads out"), "the name in the extension counts");
        let endless = tar(dir.path(), &[("L", tar::EntryType::GNULongName, &vec![b'a'; 70_000])]);
        let error = walked(&endless, FEW).unwrap_err();
        assert!(error.to_string().contains("in one header"), "{error}");
    }

    #[test]
    fn a_bomb_goes_off_at_the_limit_and_not_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file("zeros", options).unwrap();
        io::copy(&mut io::repeat(0).take(64 << 20), &mut writer).unwrap();
        writer.finish().unwrap();
        assert!(fs::metadata(&path).unwrap().len() < FEW.packed_bytes);
        let error = walked(&path, FEW).unwrap_err();
        assert!(error.to_string().contains("more than 4096 bytes, unpacked"), "{error}");
    }

    #[test]
    fn a_package_that_breaks_off_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let whole = tar(dir.path(), &[("x", tar::EntryType::Regular, &[1; 2000])]);
        fs::write(dir.path().join("cut.tar"), &fs::read(whole).unwrap()[..1024]).unwrap();
        let error = walked(&dir.path().join("cut.tar"), FEW).unwrap_err();
        assert!(error.to_string().contains("can't be read to its end"), "{error}");
        fs::write(dir.path().join("none.zip"), "no zip").unwrap();
        assert!(walked(&dir.path().join("none.zip"), FEW).is_err());
        assert!(matches!(walked(&dir.path().join("gone.zip"), FEW), Err(ActionError::Retry { .. })));
    }
}
