//! Segments that nobody writes any more, compressed: a gzip file (`zcat` reads it) of one member for each hundred KiB or so of whole
//! batches. The comment of each member says in plain text what is in it, and in the one before, so that a damaged member still
//! names its victims; the last member is empty.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, Crc, read::GzDecoder, write::DeflateEncoder};
use serde::{Deserialize, Serialize};

use super::{
    format,
    scan::{Item, Scan},
};
use crate::journal::StreamId;

/// So much is in a member, and what is left of its last batch.
const MEMBER_BYTES: usize = 128 << 10;

/// gzip, deflate, with a comment, no time, of any system (RFC 1952).
const MAGIC: &[u8] = &[0x1f, 0x8b, 8, 16, 0, 0, 0, 0, 0, 255];

/// Stands for each byte that is missing: part of no record, and not a zero, which would say that nothing was written.
const MISSING: u8 = b'?';

/// What comes behind the compressed bytes: their checksum and length.
const TRAILER_BYTES: usize = 8;

/// The file of a segment when it is packed.
pub(crate) fn packed_file(segment: &Path) -> PathBuf {
    segment.with_extension("jsonl.gz")
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Comment {
    member: u64,
    /// Where its bytes are in the segment's text, and how many they are.
    at: usize,
    bytes: usize,
    /// How many they are here.
    packed: usize,
    #[serde(flatten)]
    own: Named,
    /// Of the member before.
    before: Named,
}

/// What is in a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    /// The first batch, and the last one; both 0: none.
    pub(crate) batches: (u64, u64),
    /// Whose records.
    pub(crate) streams: Vec<StreamId>,
}

/// A piece of a segment's text that can't be had from its packed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Where it begins in the text.
    pub(crate) from: usize,
    /// Where it ends; where it begins, if nobody knows.
    pub(crate) to: usize,
    /// None: not known.
    pub(crate) what: Option<Named>,
}

/// Packs a segment's text, which begins with its first line; none: it is not whole.
pub(crate) fn pack(text: &[u8], start: usize) -> Option<Vec<u8>> {
    let (mut out, mut number, mut before) = (Vec::new(), 0, Named::default());
    let (mut from, mut own) = (0, Named::default());
    for item in Scan::new(text, start) {
        let Item::Batch(batch) = item else { return None };
        own.streams.extend(batch.commit.streams);
        own.batches = (if own.batches.0 == 0 { batch.commit.batch } else { own.batches.0 }, batch.commit.batch);
        if batch.to - from >= MEMBER_BYTES {
            let named = std::mem::take(&mut own).sorted();
            write_member(&mut out, (number, from), &text[from..batch.to], &named, &before);
            (number, from, before) = (number + 1, batch.to, named);
        }
    }
    if from < text.len() {
        let named = own.sorted();
        write_member(&mut out, (number, from), &text[from..], &named, &before);
        (number, before) = (number + 1, named);
    }
    write_member(&mut out, (number, text.len()), &[], &Named::default(), &before);
    Some(out)
}

fn write_member(out: &mut Vec<u8>, (member, at): (u64, usize), text: &[u8], own: &Named, before: &Named) {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
    let packed = deflate.write_all(text).and_then(|()| deflate.finish()).expect("a Vec takes every write");
    let comment =
        Comment { member, at, bytes: text.len(), packed: packed.len(), own: own.clone(), before: before.clone() };
    out.extend_from_slice(MAGIC);
    let begin = out.len();
    serde_json::to_writer(&mut *out, &comment).expect("a Vec takes every write");
    out.pop();
    format::seal(out, begin);
    out.push(0);
    out.extend_from_slice(&packed);
    let mut crc = Crc::new();
    crc.update(text);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&crc.amount().to_le_bytes());
}

impl Named {
    fn sorted(mut self) -> Self {
        self.streams.sort_unstable();
        self.streams.dedup();
        self
    }
}

/// A packed segment, in memory.
pub(crate) struct Packed {
    bytes: Vec<u8>,
    members: Vec<Member>,
    /// Where the text ends, as far as it is known.
    text_end: usize,
    missing: Vec<Missing>,
    /// The member that was read last, and its text.
    open: Option<(usize, Vec<u8>)>,
}

struct Member {
    at: usize,
    bytes: usize,
    /// Where it is in the file, with its header and trailer.
    from: usize,
    to: usize,
    own: Named,
}

impl Packed {
    /// What is in the file, without a look at what is compressed. Behind damage it goes on with the next member that says what it is.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let mut packed = Self { bytes, members: Vec::new(), text_end: 0, missing: Vec::new(), open: None };
        let (mut from, mut number, mut is_whole) = (0, 0, false);
        while let Some((at, comment, begin)) = packed.next_comment(from) {
            if comment.at < packed.text_end {
                from = at + 1;
                continue;
            }
            if comment.at > packed.text_end {
                let what = (comment.member == number + 1).then(|| comment.before.clone());
                packed.missing.push(Missing { from: packed.text_end, to: comment.at, what });
            }
            number = comment.member + 1;
            packed.text_end = comment.at + comment.bytes;
            is_whole = comment.bytes == 0;
            if is_whole {
                break;
            }
            let to = begin + comment.packed + TRAILER_BYTES;
            packed.members.push(Member { at: comment.at, bytes: comment.bytes, from: at, to, own: comment.own });
            // A length that is right leads to the next one; a wrong one can't be under the seal.
            from = to;
        }
        if !is_whole {
            packed.missing.push(Missing { from: packed.text_end, to: packed.text_end, what: None });
        }
        packed
    }

    /// Of a file.
    pub(crate) fn open(segment: &Path) -> io::Result<Self> {
        fs::read(packed_file(segment)).map(Self::new)
    }

    /// The next readable comment from here on: where its member begins, and where its compressed bytes do.
    fn next_comment(&self, from: usize) -> Option<(usize, Comment, usize)> {
        let rest = self.bytes.get(from..)?;
        memchr::memmem::find_iter(rest, MAGIC).find_map(|at| {
            let begin = from + at + MAGIC.len();
            let end = begin + memchr::memchr(0, &self.bytes[begin..])?;
            let comment = &self.bytes[begin..end];
            let comment = format::is_sealed(comment).then(|| serde_json::from_slice(comment).ok()).flatten()?;
            Some((from + at, comment, end + 1))
        })
    }

    /// All of the text, with [`MISSING`] for what is missing.
    pub(crate) fn text(&mut self) -> (Vec<u8>, Vec<Missing>) {
        let (mut text, mut missing) = (vec![MISSING; self.text_end], self.missing.clone());
        for member in &self.members {
            match self.unpack(member) {
                Some(bytes) => text[member.at..member.at + member.bytes].copy_from_slice(&bytes),
                None => missing.push(Missing {
                    from: member.at,
                    to: member.at + member.bytes,
                    what: Some(member.own.clone()),
                }),
            }
        }
        missing.sort_by_key(|missing| missing.from);
        (text, missing)
    }

    /// A piece of the text: fewer bytes where it ends, [`MISSING`] for what is missing.
    pub(crate) fn read_at(&mut self, offset: usize, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.text_end);
        let mut text = vec![MISSING; end.saturating_sub(offset)];
        let first = self.members.partition_point(|member| member.at + member.bytes <= offset);
        for i in first..self.members.len() {
            let (at, bytes) = (self.members[i].at, self.members[i].bytes);
            if at >= end {
                break;
            }
            if self.open.as_ref().is_none_or(|(open, _)| *open != i) {
                self.open = self.unpack(&self.members[i]).map(|text| (i, text));
            }
            if let Some((_, member)) = self.open.as_ref().filter(|(open, _)| *open == i) {
                let (from, to) = (at.max(offset), (at + bytes).min(end));
                text[from - offset..to - offset].copy_from_slice(&member[from - at..to - at]);
            }
        }
        text
    }

    /// The streams of what is missing in this piece of the text, as far as they are known.
    pub(crate) fn victims(&self, from: usize, to: usize) -> Vec<StreamId> {
        let damaged = self.members.iter().filter(|member| member.at < to && member.at + member.bytes > from);
        let damaged = damaged.filter(|member| self.unpack(member).is_none()).map(|member| &member.own);
        let missing = self.missing.iter().filter(|missing| missing.from < to && missing.to > from);
        let named = damaged.chain(missing.filter_map(|missing| missing.what.as_ref()));
        named.flat_map(|named| named.streams.iter().cloned()).collect()
    }

    /// None: it is damaged.
    fn unpack(&self, member: &Member) -> Option<Vec<u8>> {
        let packed = self.bytes.get(member.from..member.to)?;
        let mut text = Vec::with_capacity(member.bytes);
        // No more than it says: what is damaged may be of any length.
        let mut decoder = GzDecoder::new(packed).take(member.bytes as u64 + 1);
        decoder.read_to_end(&mut text).ok()?;
        (text.len() == member.bytes).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{log::format::Commit, record};

    /// Batches of one record each, in segments' form, and where they begin.
    fn text(batches: u64) -> (Vec<u8>, usize) {
        let mut text = format::segment_line(format::SEGMENT_VERSION, "c", 0, &record::NO_CHAIN);
        let start = text.len();
        for number in 1..=batches {
            let mut batch = format!("{{\"v\":1,\"pad\":\"{}\"}}\n", "x".repeat(3_000)).into_bytes();
            let (name, last) = (format!("run/{number}"), format!("run/{}", number - 1));
            let commit = Commit {
                batch: number,
                records: 1,
                chain: &record::NO_CHAIN,
                streams: [name.as_str()].into_iter(),
                before: [last.as_str()].into_iter(),
                carried: false,
            };
            format::write_commit(&mut batch, commit);
            text.extend_from_slice(&batch);
        }
        (text, start)
    }

    #[test]
    fn what_was_packed_comes_back_and_gzip_reads_it() {
        let (text, start) = text(200);
        let bytes = pack(&text, start).unwrap();
        assert!(bytes.len() * 4 < text.len(), "{} of {}", bytes.len(), text.len());
        let mut by_gzip = Vec::new();
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut by_gzip).unwrap();
        assert_eq!(by_gzip, text);
        let mut packed = Packed::new(bytes);
        assert!(packed.members.len() > 3);
        assert_eq!(packed.text(), (text.clone(), vec![]));
        for (offset, len) in [(0, 10), (5, 300_000), (131_000, 3_000), (text.len() - 7, 100), (text.len() + 5, 3)] {
            let end = (offset + len).min(text.len());
            assert_eq!(packed.read_at(offset, len), text.get(offset..end).unwrap_or_default(), "{offset}, {len}");
        }
        assert_eq!(packed.victims(0, text.len()), []);
    }

    #[test]
    fn what_is_not_whole_is_not_packed() {
        let (mut text, start) = text(10);
        text[start + 200] ^= 1;
        assert!(pack(&text, start).is_none());
    }

    #[test]
    fn whatever_byte_is_damaged_the_rest_comes_back_and_the_victims_are_named() {
        let (text, start) = text(200);
        let whole = pack(&text, start).unwrap();
        let members = Packed::new(whole.clone()).members.len();
        for at in (0..whole.len()).step_by(11) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let (found, missing) = Packed::new(bytes).text();
            let is_last = missing.iter().all(|missing| missing.from == text.len());
            if missing.is_empty() {
                // A trailer's length, or a byte of a header that says nothing: gzip may not care.
                assert_eq!(found, text, "byte {at}");
                continue;
            }
            assert_eq!(missing.len(), 1, "byte {at}: {missing:?}");
            let Missing { from, to, what } = &missing[0];
            assert_eq!((&found[..*from], &found[*to..]), (&text[..*from], &text[*to..]), "byte {at}");
            assert!(what.is_some() || is_last, "byte {at}: {missing:?}");
            if let Some(what) = what {
                let count = usize::try_from(what.batches.1 - what.batches.0 + 1).unwrap();
                assert_eq!(what.streams.len(), count, "byte {at}");
                assert!(count < 200 / (members - 1) * 2, "byte {at}: no more than a member");
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_says_so() {
        let (text, start) = text(200);
        let whole = pack(&text, start).unwrap();
        for end in (0..whole.len()).step_by(97) {
            let (found, missing) = Packed::new(whole[..end].to_vec()).text();
            assert!(!missing.is_empty(), "cut at {end}");
            let good = missing[0].from;
            assert_eq!(found[..good], text[..good]);
        }
    }
}
