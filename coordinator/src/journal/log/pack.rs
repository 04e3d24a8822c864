//! Packing: a full segment is compressed beside itself, unpacked again and compared, synced, and only then takes the plain one's place. A crash leaves
//! one of them, or both; then the plain one counts.

use std::{fs, io};

use jiff::Timestamp;

use super::{
    Shared, files,
    index::Segment,
    packed::{self, Packed, packed_file},
    retain,
};
use crate::journal::ReadError;

/// In the log's directory: a packed segment that is not whole yet.
pub(crate) const PACKING: &str = "packing";

/// See [`crate::journal::Journal::pack`].
pub(crate) fn pack(shared: &Shared, until: Timestamp) -> Result<usize, ReadError> {
    let segments = {
        let index = shared.index();
        index.segments[..index.segments.len().saturating_sub(1)].to_vec()
    };
    let mut done = 0;
    for segment in segments.iter().filter(|segment| segment.path.exists()) {
        let io = |e: io::Error| ReadError::Io { place: segment.path.display().to_string(), what: e.to_string() };
        // A damaged one stays as it is, for whoever wants to find out.
        let Some(newest) = retain::newest_of(segment)? else { continue };
        if newest >= until {
            break;
        }
        done += usize::from(pack_one(shared, segment).map_err(io)?);
    }
    Ok(done)
}

fn pack_one(shared: &Shared, segment: &Segment) -> io::Result<bool> {
    let mut text = fs::read(&segment.path)?;
    text.truncate(usize::try_from(segment.end).map_err(io::Error::other)?);
    let start = segment.marks.first().map_or(0, |(_, at)| usize::try_from(*at).unwrap_or(0));
    let Some(bytes) = packed::pack(&text, start) else { return Ok(false) };
    if Packed::new(bytes.clone()).text() != (text, Vec::new()) {
        return Err(io::Error::other("what was compressed is not what comes back"));
    }
    let dir = files::log_dir(&shared.data);
    let made = dir.join(PACKING);
    let write = || -> io::Result<()> {
        let mut file = shared.disk.create(&made)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        shared.disk.rename(&made, &packed_file(&segment.path))
    };
    if let Err(error) = write() {
        // Half of it only takes room; the next start removes what can't be removed now.
        let _ = fs::remove_file(&made);
        return Err(error);
    }
    shared.disk.sync_dir(&dir)?;
    // Who has it open reads on; who opens it now finds the packed one.
    fs::remove_file(&segment.path)?;
    shared.disk.sync_dir(&dir)?;
    Ok(true)
}
