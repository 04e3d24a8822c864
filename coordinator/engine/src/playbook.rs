//! A playbook: what an operator writes. YAML → tree with positions → types → lint (all findings at once) → plan.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{ids::Digest, plan::Catalogue};

mod decode;
pub mod expr;
pub(crate) mod findings;
pub(crate) mod json_schema;
pub(crate) mod lint;
mod parse;
pub mod render;
pub mod schema;
mod scope;
pub(crate) mod tree;

pub use findings::MAX_FINDINGS;
pub use lint::{MAX_PHASES, MAX_STEPS};
pub use parse::{MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_NODES};
pub use scope::{Outputs, Scope};

/// Whether a character controls how the text around it is shown: what a terminal obeys (C0, DEL, C1), and what turns the order
/// of reading (Unicode's explicit bidirectional formatting, UAX #9).
pub fn controls_display(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What a document says, and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The playbook; none where any finding is an error.
    pub playbook: Option<schema::Playbook>,
    /// Everything that was found, in the order of the document; at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
}

/// Something that is wrong, or not good, with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// An error stops the document; a warning does not.
    pub level: Level,
    /// Stable, `UPPER_SNAKE_CASE`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where: `spec.phases[0].steps[1].timeout`.
    pub path: String,
    /// From 1; 0: not known.
    pub line: u32,
    /// From 1; 0: not known.
    pub column: u32,
    /// What to do.
    pub hint: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Stops the document.
    Error,
    /// Does not.
    Warning,
}

/// Reads a document and says everything that is wrong with it. Never panics, and takes bounded time, memory and stack
/// (it fits a thread of 2 MiB), whatever the bytes. An action that is not in the catalogue is a warning here.
pub fn read(document: &[u8], catalogue: &Catalogue) -> Reading {
    let mut findings = findings::Findings::default();
    let mut tree = match parse::parse(document) {
        Ok(tree) => tree,
        Err(finding) => {
            findings.push(finding);
            return Reading { playbook: None, findings: findings.finish(None).0 };
        }
    };
    let playbook: Option<schema::Playbook> = decode::decode(&mut tree, &mut findings);
    if let Some(playbook) = &playbook {
        let decoded = findings.len();
        let lines = std::str::from_utf8(document).unwrap_or_default().lines().collect();
        let document = lint::Document { tree: &tree, lines };
        lint::lint(playbook, catalogue, lint::Mode::Submit, Some(&document), &mut findings);
        findings.forget_holes(&tree, decoded);
    }
    let (findings, sound) = findings.finish(Some(&tree));
    Reading { playbook: playbook.filter(|_| sound), findings }
}

/// The content address of a document: sha256 of its bytes.
pub fn revision(document: &[u8]) -> Digest {
    digest_of(document)
}

/// The JSON Schema of the grammar, for editors. It is looser than lint: durations, ids and expressions are texts to it.
pub fn grammar() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    settings.into_generator().into_root_schema_for::<schema::Playbook>().to_value()
}

/// `sha256:` and 64 hex digits.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    use std::fmt::Write;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text.into()
}
