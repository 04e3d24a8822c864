//! How the value of a secret is looked for: in every form in which it may be written, made with nothing of the agent's code.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    process::Output,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// At both ends of each password that the lab makes: whatever is said of one is recognised, and so is what is left of it at a cut.
pub const LAB: &str = "CANARYk7QzW4tVn8RxB2mHs5";

/// A form, and its bytes.
pub type Needle = (&'static str, Vec<u8>);

/// Where something was seen, and what.
pub type Place = (String, Vec<u8>);

/// A password of the lab.
pub fn password() -> String {
    format!("{LAB}{}{LAB}", uuid::Uuid::new_v4().simple())
}

/// The forms of [`LAB`].
pub fn lab_needles() -> &'static [Needle] {
    static NEEDLES: OnceLock<Vec<Needle>> = OnceLock::new();
    NEEDLES.get_or_init(|| needles(LAB))
}

/// Everything that was seen, with where.
#[derive(Default)]
pub struct Seen(pub Vec<Place>);

impl Seen {
    /// What a program has printed.
    pub fn output(&mut self, what: &str, output: &Output) {
        self.0.push((format!("{what}: stdout"), output.stdout.clone()));
        self.0.push((format!("{what}: stderr"), output.stderr.clone()));
    }

    /// All files below a folder but these; one that is packed as what is in it.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn files(&mut self, folder: &Path, except: &[&Path]) -> Result<()> {
        for item in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
            let item = item?;
            let (path, kind) = (item.path(), item.file_type()?);
            if kind.is_dir() {
                self.files(&path, except)?;
            } else if kind.is_file() && !except.contains(&path.as_path()) {
                let content = content(&path).with_context(|| format!("{}", path.display()))?;
                self.0.push((path.display().to_string(), content));
            }
        }
        Ok(())
    }
}

/// What is in a file; of a gzip file what is packed in it, as far as it is whole.
///
/// # Errors
/// When it can't be read.
pub fn content(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut unpacked = bytes.clone();
    // A damaged one has been read up to its damage.
    let _ = MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked);
    Ok(unpacked)
}

/// How a gzip file begins.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Whether it is in there.
pub fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}

/// Fails when these bytes hold the canary of the lab's passwords.
///
/// # Errors
/// Names the form, and not the value.
pub fn nothing_of_the_lab(what: &str, bytes: &[u8]) -> Result<()> {
    let found = lab_needles().iter().find(|(_, needle)| holds(bytes, needle));
    ensure!(found.is_none(), "a password of the lab is in {what}: {}", found.map_or("", |(form, _)| form));
    Ok(())
}

/// The forms that are searched for; each once. The value has at least twelve bytes, all of them ASCII.
pub fn needles(value: &str) -> Vec<Needle> {
    let json = Value::from(value).to_string();
    let json = json.trim_matches('"').to_owned();
    let nested = Value::from(json.as_str()).to_string();
    let percent = |hex: fn(u8) -> String| -> String {
        value
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { char::from(b).to_string() } else { hex(b) })
            .collect()
    };
    let hex = value.bytes().fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
    let mut needles = vec![
        ("plain", value.as_bytes().to_vec()),
        ("its beginning", value.as_bytes()[..12].to_vec()),
        ("its end", value.as_bytes()[value.len() - 12..].to_vec()),
        ("JSON", json.into_bytes()),
        ("JSON in JSON", nested.trim_matches('"').as_bytes().to_vec()),
        ("percent", percent(|b| format!("%{b:02X}")).into_bytes()),
        ("percent, lower case", percent(|b| format!("%{b:02x}")).into_bytes()),
        ("hex, upper case", hex.to_uppercase().into_bytes()),
        ("hex", hex.into_bytes()),
    ];
    for (name, alphabet) in [("base64", *b"+/"), ("base64 of addresses", *b"-_")] {
        needles.extend((0..3).map(|offset| (name, base64(value, offset, alphabet))));
    }
    let mut seen = std::collections::BTreeSet::new();
    needles.retain(|(_, needle)| seen.insert(needle.clone()));
    needles
}

/// What of the value stands in base64 behind `offset` other bytes, whatever is around it.
fn base64(value: &str, offset: usize, last: [u8; 2]) -> Vec<u8> {
    let letters: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(last).collect();
    let bits: Vec<u8> = std::iter::repeat_n(0, offset)
        .chain(value.bytes())
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let whole = bits.chunks_exact(6).map(|six| letters[six.iter().fold(0, |n, bit| n * 2 + usize::from(*bit))]);
    whole.skip((offset * 8).div_ceil(6)).collect()
}
