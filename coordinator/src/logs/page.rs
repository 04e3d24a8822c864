//! Pages of a run's file, from any position at which an entry begins.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::{
    Filter,
    record::{Entry, Record},
};

/// One page looks through no more than this, in bytes.
const LOOK_BYTES: u64 = 8 << 20;
/// No page has more text than this, in bytes.
const TEXT_BYTES: usize = 512 * 1024;
/// No line in a file of ours is longer, in bytes: escapes make a text up to six times as long.
const RECORD_BYTES: u64 = 64 * 1024;

/// Entries, and how far was looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order in which they came.
    pub entries: Vec<Entry>,
    /// Read on from here.
    pub position: u64,
    /// There was nothing after `position` when it was read.
    pub at_end: bool,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// No entry begins there: it was never one, or the file it was of is deleted.
    #[error("no line begins at position {0}; the file may have been deleted since")]
    Position(u64),
    /// The file can't be read.
    #[error("the log can't be read")]
    Io(#[from] io::Error),
}

pub(super) fn read(path: &Path, filter: &Filter, after: u64, limit: usize) -> Result<Page, PageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && after == 0 => {
            return Ok(Page { at_end: true, ..Page::default() });
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(PageError::Position(after)),
        Err(e) => return Err(e.into()),
    };
    let length = file.metadata()?.len();
    let mut from = begin(file, after)?;
    let mut page = Page { entries: Vec::new(), position: after, at_end: false };
    let (mut text_bytes, mut line) = (0, Vec::new());
    while page.entries.len() < limit && page.position - after < LOOK_BYTES && text_bytes < TEXT_BYTES {
        line.clear();
        let mut size = (&mut from).take(RECORD_BYTES).read_until(b'\n', &mut line)?;
        let mut whole = line.last() == Some(&b'\n');
        if !whole && line.len() as u64 == RECORD_BYTES {
            // Not ours: what a machine left that went down while it wrote.
            size += from.skip_until(b'\n')?;
            whole = !from.fill_buf()?.is_empty();
        }
        if !whole {
            // Nothing more, or a line that is just being written.
            page.at_end = true;
            break;
        }
        page.position += size as u64;
        let Some(record) = Record::of(&line).filter(|r| wanted(filter, r)) else { continue };
        text_bytes += record.text.len();
        page.entries.push(record.into_entry(page.position));
    }
    page.at_end |= page.position >= length;
    Ok(page)
}

/// At a position at which a line begins.
fn begin(mut file: File, after: u64) -> Result<BufReader<File>, PageError> {
    if after > 0 {
        let mut before = [0];
        file.seek(SeekFrom::Start(after - 1))?;
        if file.read(&mut before)? == 0 || before != *b"\n" {
            return Err(PageError::Position(after));
        }
    }
    Ok(BufReader::with_capacity(64 * 1024, file))
}

fn wanted(filter: &Filter, record: &Record) -> bool {
    filter.step.as_ref().is_none_or(|step| *step == record.step)
        && filter.attempt.is_none_or(|attempt| attempt == record.attempt)
}
