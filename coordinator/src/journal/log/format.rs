//! The lines of a segment that are not records: its first line, and the commit line at the end of every batch.
//!
//! Each is sealed: its last member is a checksum over everything before it, for a commit line from the first byte of
//! its batch on, so that not a single byte of a batch can differ unnoticed.

use std::io::Write as _;

use serde::{Deserialize, Serialize};

use crate::journal::{
    StreamId,
    record::{Chain, write_hex, write_json_str},
};

/// Version of a segment that holds what every muster has written.
pub(crate) const SEGMENT_VERSION: u32 = 1;

/// Version of a segment that may hold carried batches: records that have been in the log before.
pub(crate) const CARRYING_VERSION: u32 = 2;

/// What a commit line begins with, and nothing else does.
pub(crate) const COMMIT_START: &[u8] = b"{\"batch\":";

const SEAL_START: &[u8] = b",\"crc32c\":\"";
const SEAL_BYTES: usize = SEAL_START.len() + 8 + 3;

/// The first line of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct SegmentLine {
    /// Version of the shape.
    pub(crate) segment: u32,
    /// Which log it belongs to.
    pub(crate) cluster: String,
    /// What follows this in the segment before is void.
    pub(crate) continues: Continues,
}

/// Where a segment begins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Continues {
    pub(crate) batch: u64,
    pub(crate) chain: String,
}

/// The last line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommitLine {
    pub(crate) batch: u64,
    pub(crate) records: usize,
    /// Of the records' lines.
    pub(crate) bytes: usize,
    pub(crate) chain: String,
    /// Of this batch.
    pub(crate) streams: Vec<StreamId>,
    /// Streams of the batch before, so that a damaged one still names its victims.
    pub(crate) before: Vec<StreamId>,
    /// Its records are copies of older ones: streams from their first record up to where they stand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) carried: bool,
}

/// What goes into a commit line.
pub(crate) struct Commit<'a, S, B> {
    pub(crate) batch: u64,
    pub(crate) records: usize,
    pub(crate) chain: &'a Chain,
    pub(crate) streams: S,
    pub(crate) before: B,
    pub(crate) carried: bool,
}

/// Ends the batch whose record lines are all of `out`.
pub(crate) fn write_commit<'a>(
    out: &mut Vec<u8>,
    commit: Commit<'_, impl Iterator<Item = &'a str>, impl Iterator<Item = &'a str>>,
) {
    let (bytes, Commit { batch, records, chain, streams, before, carried }) = (out.len(), commit);
    out.extend_from_slice(COMMIT_START);
    write!(out, "{batch},\"records\":{records},\"bytes\":{bytes},\"chain\":\"").expect("a Vec takes every write");
    write_hex(out, chain);
    out.extend_from_slice(b"\",\"streams\":[");
    write_names(out, streams);
    out.extend_from_slice(b"],\"before\":[");
    write_names(out, before);
    out.push(b']');
    if carried {
        out.extend_from_slice(b",\"carried\":true");
    }
    seal(out, 0);
}

/// The first line of a segment.
pub(crate) fn segment_line(version: u32, cluster: &str, batch: u64, chain: &Chain) -> Vec<u8> {
    let mut out = Vec::new();
    write!(out, "{{\"segment\":{version},\"cluster\":").expect("a Vec takes every write");
    write_json_str(&mut out, cluster);
    write!(out, ",\"continues\":{{\"batch\":{batch},\"chain\":\"").expect("a Vec takes every write");
    write_hex(&mut out, chain);
    out.extend_from_slice(b"\"}");
    seal(&mut out, 0);
    out
}

/// Ends a JSON object that is still open with a checksum over everything from `from` on, and the line with it.
pub(crate) fn seal(out: &mut Vec<u8>, from: usize) {
    let seal = seal_of(&out[from..]);
    out.extend_from_slice(&seal);
}

/// Whether the bytes end in their seal.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.len().checked_sub(SEAL_BYTES).is_some_and(|at| {
        let (sealed, seal) = bytes.split_at(at);
        // The fixed part first: a checksum over everything is only worth it where it can hold.
        seal.starts_with(SEAL_START) && seal == seal_of(sealed)
    })
}

fn seal_of(bytes: &[u8]) -> [u8; SEAL_BYTES] {
    let mut seal = [0; SEAL_BYTES];
    let mut text = &mut seal[..];
    text.write_all(SEAL_START).expect("it fits");
    writeln!(text, "{:08x}\"}}", crc32c::crc32c(bytes)).expect("it fits");
    seal
}

fn write_names<'a>(out: &mut Vec<u8>, names: impl Iterator<Item = &'a str>) {
    for (i, name) in names.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_json_str(out, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_sealed_batch_can_differ() {
        let mut batch = b"{\"v\":1}\n".to_vec();
        let commit = Commit {
            batch: 7,
            records: 1,
            chain: &[9; 32],
            streams: ["a"].into_iter(),
            before: [].into_iter(),
            carried: true,
        };
        write_commit(&mut batch, commit);
        assert!(is_sealed(&batch));
        for at in 0..batch.len() {
            for bit in 0..8 {
                let mut damaged = batch.clone();
                damaged[at] ^= 1 << bit;
                assert!(!is_sealed(&damaged), "bit {bit} of byte {at}");
            }
            assert!(!is_sealed(&batch[..at]));
        }
    }

    #[test]
    fn lines_read_back() {
        let line = segment_line(SEGMENT_VERSION, "c", 3, &[0xab; 32]);
        assert!(is_sealed(&line));
        let back: SegmentLine = serde_json::from_slice(&line).unwrap();
        assert_eq!((back.segment, back.continues.batch), (1, 3));
        assert_eq!(back.continues.chain, "ab".repeat(32));
        let mut batch = Vec::new();
        let streams = ["run/1", "run/\"2\""];
        let commit = Commit {
            batch: 4,
            records: 0,
            chain: &[1; 32],
            streams: streams.into_iter(),
            before: ["key/1"].into_iter(),
            carried: false,
        };
        write_commit(&mut batch, commit);
        let back: CommitLine = serde_json::from_slice(&batch).unwrap();
        assert_eq!(back.streams, streams.map(|s| StreamId(s.into())));
        assert_eq!((back.batch, back.bytes, back.before), (4, 0, vec![StreamId("key/1".into())]));
    }
}
