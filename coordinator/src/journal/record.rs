//! How a record is written as a line, and how lines are hashed: shared by all journals, so that their records are equal.

use std::io::Write as _;

use sha2::{Digest as _, Sha256};

use super::{NewRecord, StreamId};

/// Version of the record's shape.
pub(crate) const RECORD_VERSION: u32 = 1;

/// sha256 of a record's line, without the line end.
pub(crate) type LineHash = [u8; 32];

/// The part of a line's hash that the next record of the stream carries as `prev`: the first 128 bits.
pub(crate) type PrevHash = [u8; 16];

/// sha256 over everything up to a batch.
pub(crate) type Chain = [u8; 32];

/// The chain before the first batch.
pub(crate) const NO_CHAIN: Chain = [0; 32];

/// Writes the record's line with its line end; gives the hash of the line.
pub(crate) fn write_line(
    out: &mut Vec<u8>,
    stream: &StreamId,
    seq: u64,
    record: &NewRecord,
    prev: &PrevHash,
) -> LineHash {
    let start = out.len();
    out.extend_from_slice(b"{\"v\":1,\"stream\":");
    write_json_str(out, &stream.0);
    write!(out, ",\"seq\":{seq},\"at\":\"{}\",\"by\":", record.at).expect("a Vec takes every write");
    write_json_str(out, record.by.as_str());
    out.extend_from_slice(b",\"prev\":\"");
    if seq > 1 {
        write_hex(out, prev);
    }
    out.extend_from_slice(b"\",\"event\":");
    write_one_line(out, record.event.get().as_bytes());
    out.push(b'}');
    let hash = hash_line(&out[start..]);
    out.push(b'\n');
    hash
}

/// An upper bound of the bytes of the record's line, for names without characters that JSON escapes.
pub(crate) fn line_bound(stream: &StreamId, record: &NewRecord) -> usize {
    160 + stream.0.len() + record.by.as_str().len() + record.event.get().len()
}

/// sha256 of a line.
pub(crate) fn hash_line(line: &[u8]) -> LineHash {
    Sha256::digest(line).into()
}

/// The part of a line's hash that the stream's next record carries.
pub(crate) fn prev_of(hash: &LineHash) -> PrevHash {
    let mut prev = [0; 16];
    prev.copy_from_slice(&hash[..16]);
    prev
}

/// The next link of the chain. It covers the lines by their hashes, so that no byte is hashed twice.
pub(crate) fn next_chain<'a>(chain: &Chain, batch: u64, lines: impl Iterator<Item = &'a LineHash>) -> Chain {
    let mut hasher = Sha256::new();
    hasher.update(chain);
    hasher.update(batch.to_be_bytes());
    for line in lines {
        hasher.update(line);
    }
    hasher.finalize().into()
}

/// Bytes as lowercase hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    write_hex(&mut out, bytes);
    String::from_utf8(out).expect("hex digits are ASCII")
}

/// The bytes of `2 * N` lowercase hex digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(out)
}

pub(crate) fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

pub(crate) fn write_json_str(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a Vec takes every write, and a string is always JSON");
}

/// JSON may have line ends between its tokens, never inside a string (there they are escaped): a space says the same.
fn write_one_line(out: &mut Vec<u8>, json: &[u8]) {
    if memchr::memchr2(b'\n', b'\r', json).is_some() {
        out.extend(json.iter().map(|&b| if b == b'\n' || b == b'\r' { b' ' } else { b }));
    } else {
        out.extend_from_slice(json);
    }
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::{super::Record, *};

    fn record(event: &str) -> NewRecord {
        NewRecord {
            at: "2026-01-07T10:00:00.5Z".parse().unwrap(),
            by: "person/dba-1".into(),
            event: RawValue::from_string(event.into()).unwrap(),
        }
    }

    #[test]
    fn a_line_is_one_line_and_reads_back() {
        let mut out = Vec::new();
        let stream = StreamId("run/\"quoted\"".into());
        let hash = write_line(&mut out, &stream, 2, &record("{\n \"a\": \"x\\ny\"\r\n}"), &[0xab; 16]);
        assert_eq!(out.iter().position(|b| *b == b'\n'), Some(out.len() - 1));
        assert_eq!(hash, hash_line(&out[..out.len() - 1]));
        let back: Record = serde_json::from_slice(&out).unwrap();
        assert_eq!((back.v, back.seq, &back.stream), (RECORD_VERSION, 2, &stream));
        assert_eq!(back.prev, "ab".repeat(16));
        let event: serde_json::Value = serde_json::from_str(back.event.get()).unwrap();
        assert_eq!(event["a"], "x\ny");
    }

    #[test]
    fn the_first_record_names_no_previous_one() {
        let mut out = Vec::new();
        write_line(&mut out, &StreamId("run/1".into()), 1, &record("{}"), &[1; 16]);
        assert_eq!(serde_json::from_slice::<Record>(&out).unwrap().prev, "");
    }

    #[test]
    fn hex_goes_both_ways_and_refuses_everything_else() {
        assert_eq!(unhex::<2>("0fa0"), Some([0x0f, 0xa0]));
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
        for bad in ["0FA0", "0fa", "0fa00", "0fg0", ""] {
            assert_eq!(unhex::<2>(bad), None);
        }
    }
}
