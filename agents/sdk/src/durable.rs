//! Small files that survive a crash.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Put `bytes` at `path`: after a crash it holds either what was there before or all of `bytes`. On disk at return.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}
