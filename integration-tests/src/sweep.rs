//! What a test leaves in its folders is searched for the passwords of its servers before it is removed: only the files that
//! have to hold one may. A find fails the test, and names file and form.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::canary::{GZIP, Needle, Seen, content, holds, lab_needles, needles};

/// What a file is called that has to hold a secret, and why. Nobody but its owner may read it.
const HOLDERS: [(&str, &str); 4] = [
    ("password", "steps name it as the file of their password"),
    ("redis.conf", "Redis reads its users from it"),
    ("users.txt", "PgBouncer reads its users from it"),
    ("postgresql.auto.conf", "a replica reads from it how it reaches its primary"),
];

/// The first token of a coordinator. It is a secret of its own, and so is all that ends with [`SEED`]: a key for NATS.
const TOKEN: &str = "admin.token";
const SEED: &str = "nk";

/// Below such a folder an action keeps a holder as it was, for its undo: its name goes on with a dot and a digest.
const KEPT: &str = ".muster-undo";

/// Names a file that gets a line for each search: program, folder, files, bytes.
const LEDGER: &str = "MUSTER_SWEPT";

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many files.
    pub files: u64,
    /// How large they are together.
    pub bytes: u64,
}

/// A temporary folder that is searched before it is removed.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// Takes over a folder.
    pub fn of(dir: TempDir) -> Self {
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        at_the_end(sweep(&[self.path()]));
    }
}

/// Fails the test with what a search has found. One that fails already is told of it, and goes on failing for its own reason.
pub(crate) fn at_the_end(swept: Result<Swept>) {
    let Err(error) = swept else { return };
    assert!(std::thread::panicking(), "{error:#}");
    // Nobody is left to be told when stderr is gone.
    let _ = writeln!(std::io::stderr(), "{error:#}");
}

/// Searches all files below these folders for the passwords of the lab, and for the first tokens of coordinators and the keys for
/// NATS that are there, too.
///
/// # Errors
/// Names each file that holds one and should not, with the form; and each that should, and that others may read.
pub fn sweep(folders: &[&Path]) -> Result<Swept> {
    let (mut files, mut swept) = (Vec::new(), Swept::default());
    for folder in folders {
        let below = files_below(folder, &mut files)?;
        note(folder, below)?;
        swept = Swept { files: swept.files + below.files, bytes: swept.bytes + below.bytes };
    }
    let own = files.iter().filter(|file| is_a_secret(file)).map(|file| if_there(fs::read_to_string(file)));
    let own: Vec<_> = own.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect();
    let mut all = lab_needles().to_vec();
    all.extend(own.iter().map(|secret| secret.trim()).filter(|secret| secret.len() >= 12).flat_map(needles));
    let (mut found, mut holding) = (Vec::new(), Vec::new());
    for folder in folders {
        holding.extend(find(folder, &all)?);
    }
    for (file, form) in holding {
        if !is_holder(&file) {
            found.push(format!("{}: {form}", file.display()));
            continue;
        }
        let Some(meta) = if_there(fs::metadata(&file))? else { continue };
        let mode = meta.permissions().mode();
        if mode & 0o077 != 0 {
            found.push(format!("{}: it holds a secret, and others may read it ({mode:o})", file.display()));
        }
    }
    ensure!(found.is_empty(), "secrets are in what the test has left:\n{}", found.join("\n"));
    Ok(swept)
}

/// The files below `folder` that hold one of these, packed ones too, each with the first form of it.
///
/// # Errors
/// When one can't be read.
pub fn find(folder: &Path, needles: &[Needle]) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut suspects = grep(folder, needles)?;
    let mut files = Vec::new();
    files_below(folder, &mut files)?;
    suspects.extend(files.into_iter().filter(|file| is_packed(file)));
    let mut found = Vec::new();
    for file in suspects {
        let Some(bytes) = if_there(content(&file)).with_context(|| format!("{}", file.display()))? else { continue };
        let form = needles.iter().find(|(_, needle)| holds(&bytes, needle)).map(|(form, _)| *form);
        found.extend(form.map(|form| (file, form)));
    }
    Ok(found)
}

/// The places of what was seen that hold one of these, each with the first form of it.
///
/// # Errors
/// When there is no room to write down what was seen.
pub fn find_in<'a>(seen: &'a Seen, needles: &[Needle]) -> Result<Vec<(&'a str, &'static str)>> {
    let dir = tempfile::tempdir()?;
    for (index, (_, bytes)) in seen.0.iter().enumerate() {
        fs::write(dir.path().join(index.to_string()), bytes)?;
    }
    let place = |file: &Path| -> Result<&'a str> {
        let index: usize = file.file_name().unwrap_or_default().to_string_lossy().parse()?;
        seen.0.get(index).map(|(place, _)| place.as_str()).context("a place for each file")
    };
    find(dir.path(), needles)?.into_iter().map(|(file, form)| Ok((place(&file)?, form))).collect()
}

fn is_a_secret(file: &Path) -> bool {
    file.ends_with(TOKEN) || file.extension().is_some_and(|end| end == SEED)
}

fn is_holder(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let kept = file.parent().is_some_and(|folder| folder.ends_with(KEPT));
    is_a_secret(file)
        || HOLDERS.iter().any(|(holder, _)| name == *holder || kept && name.starts_with(&format!("{holder}.")))
}

fn is_packed(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "gz") && fs::read(file).is_ok_and(|bytes| bytes.starts_with(&GZIP))
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<Swept> {
    let mut swept = Swept::default();
    let Some(items) = if_there(fs::read_dir(folder)).with_context(|| format!("{}", folder.display()))? else {
        return Ok(swept);
    };
    for item in items {
        let item = item?;
        let Some(meta) = if_there(item.metadata())? else { continue };
        if meta.is_dir() {
            let below = files_below(&item.path(), files)?;
            swept = Swept { files: swept.files + below.files, bytes: swept.bytes + below.bytes };
        } else if meta.is_file() {
            swept = Swept { files: swept.files + 1, bytes: swept.bytes + meta.len() };
            files.push(item.path());
        }
    }
    Ok(swept)
}

/// None: it has gone meanwhile. A process that the test has started beside the system may not have ended yet.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(there) => Ok(Some(there)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The files that hold one of them. By grep, since a folder with databases is large and tests are not optimised.
fn grep(folder: &Path, needles: &[Needle]) -> Result<Vec<PathBuf>> {
    let mut child = Command::new("grep")
        .args(["--recursive", "--text", "--fixed-strings", "--files-with-matches", "--null", "--file=-", "--"])
        .arg(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("grep does not start")?;
    let patterns: Vec<&[u8]> = needles.iter().map(|(_, needle)| needle.as_slice()).collect();
    child.stdin.take().context("it has an input")?.write_all(&patterns.join(&b'\n'))?;
    let ended = child.wait_with_output()?;
    // 1: nothing found; 2: something could not be read, too.
    let said = String::from_utf8_lossy(&ended.stderr);
    let only_gone = ended.status.code() == Some(2) && said.lines().all(|l| l.ends_with(": No such file or directory"));
    let whole = only_gone || matches!(ended.status.code(), Some(0 | 1));
    ensure!(whole, "{} can't be searched: {said}", folder.display());
    let files = ended.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    Ok(files.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path))).collect())
}

/// Says what was searched, to whoever wants to know that it was.
fn note(folder: &Path, swept: Swept) -> Result<()> {
    let Some(ledger) = std::env::var_os(LEDGER) else { return Ok(()) };
    let program = std::env::current_exe()?;
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let line = format!("{program}\t{}\t{}\t{}\n", folder.display(), swept.files, swept.bytes);
    // One write: others add their lines at the same time.
    File::options().create(true).append(true).open(&ledger)?.write_all(line.as_bytes())?;
    Ok(())
}
