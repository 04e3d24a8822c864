//! Finds the batches in bytes, and finds its way again behind damage.

use super::format::{COMMIT_START, CommitLine, is_sealed};

/// A batch whose every byte is what was written.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    /// Where it begins.
    pub(crate) from: usize,
    /// Where the next one begins.
    pub(crate) to: usize,
    /// The lines of its records.
    pub(crate) lines: &'a [u8],
    pub(crate) commit: CommitLine,
}

impl<'a> Batch<'a> {
    /// Each record's offset and line, without the line end.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let (mut at, from, all) = (0, self.from, self.lines);
        memchr::memchr_iter(b'\n', all).map(move |end| {
            let line = (from + at, &all[at..end]);
            at = end + 1;
            line
        })
    }
}

/// What is found next.
#[derive(Debug)]
pub(crate) enum Item<'a> {
    Batch(Batch<'a>),
    /// Bytes that are no batch; an intact one follows.
    Damage {
        from: usize,
        to: usize,
    },
    /// Bytes that are no batch, up to the last one that is not zero; nothing intact follows.
    Tail {
        from: usize,
        to: usize,
    },
}

/// Goes through bytes that begin where a batch begins, and end where one ends or in zeros.
pub(crate) struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(bytes: &'a [u8], from: usize) -> Self {
        Self { bytes: &bytes[..used(bytes)], at: from }
    }

    /// Where the next item begins.
    pub(crate) fn at(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let from = self.at;
        if from >= self.bytes.len() {
            return None;
        }
        let commits = || commit_lines(self.bytes, from);
        if let Some(batch) = commits().next().and_then(|line| batch_ending(self.bytes, from, line, Some(from))) {
            self.at = batch.to;
            return Some(Item::Batch(batch));
        }
        let intact = commits().find_map(|line| batch_ending(self.bytes, from, line, None));
        self.at = intact.as_ref().map_or(self.bytes.len(), |batch| batch.from);
        Some(match intact {
            Some(batch) => Item::Damage { from, to: batch.from },
            None => Item::Tail { from, to: self.bytes.len() },
        })
    }
}

/// Up to where there is something else than zeros.
fn used(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    while let Some(last) = bytes[..end].last_chunk::<4096>() {
        if *last != ZEROS {
            break;
        }
        end -= ZEROS.len();
    }
    bytes[..end].iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)
}

/// Commit lines in damaged bytes that can still be read, with where each ends. They are hints: nothing vouches for them.
pub(crate) fn readable_commits(bytes: &[u8]) -> Vec<(CommitLine, usize)> {
    let lines = commit_lines(bytes, 0);
    lines.filter_map(|(from, to)| Some((serde_json::from_slice(bytes.get(from..to)?).ok()?, to))).collect()
}

/// Where lines begin and end that look like commit lines.
fn commit_lines(bytes: &[u8], from: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    memchr::memmem::find_iter(&bytes[from..], COMMIT_START).filter_map(move |at| {
        let at = from + at;
        let to = at + memchr::memchr(b'\n', &bytes[at..])? + 1;
        (at == from || bytes[at - 1] == b'\n').then_some((at, to))
    })
}

/// The batch that ends in this line, if it is intact, and begins where it should (or anywhere from `low` on).
fn batch_ending(bytes: &[u8], low: usize, (line, to): (usize, usize), expected: Option<usize>) -> Option<Batch<'_>> {
    let commit: CommitLine = serde_json::from_slice(&bytes[line..to]).ok()?;
    let from = line.checked_sub(commit.bytes).filter(|from| *from >= low)?;
    let fits = expected.is_none_or(|expected| expected == from) && is_sealed(&bytes[from..to]);
    let lines = &bytes[from..line];
    (fits && memchr::memchr_iter(b'\n', lines).count() == commit.records).then_some(Batch { from, to, lines, commit })
}
