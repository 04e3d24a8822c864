//! What was found, collected.

use super::{
    Finding, Level,
    tree::{Node, Path, Position},
};

/// Most findings of one document; what is found after that is dropped.
pub const MAX_FINDINGS: usize = 100;

/// Findings in the making: positions are looked up at the end, when the document is at hand.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<(Finding, Path)>,
}

/// The last finding, to add a hint to.
pub(crate) struct Latest<'a>(Option<&'a mut Finding>);

impl Findings {
    pub(crate) fn error(&mut self, path: &Path, code: &'static str, message: impl Into<String>) -> Latest<'_> {
        self.add(Level::Error, Position::default(), path, code, &message.into())
    }

    pub(crate) fn warning(&mut self, path: &Path, code: &'static str, message: impl Into<String>) -> Latest<'_> {
        self.add(Level::Warning, Position::default(), path, code, &message.into())
    }

    /// An error at a place that is not the value at the path: a key, or a character inside a text.
    pub(crate) fn error_at(
        &mut self,
        at: Position,
        path: &Path,
        code: &'static str,
        message: impl Into<String>,
    ) -> Latest<'_> {
        self.add(Level::Error, at, path, code, &message.into())
    }

    /// A warning at such a place.
    pub(crate) fn warning_at(
        &mut self,
        at: Position,
        path: &Path,
        code: &'static str,
        message: impl Into<String>,
    ) -> Latest<'_> {
        self.add(Level::Warning, at, path, code, &message.into())
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        self.list.push((finding, Path::default()));
    }

    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_FINDINGS
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Drops what lint says about places that are already reported as wrong.
    pub(crate) fn forget_holes(&mut self, tree: &Node, from: usize) {
        let mut index = 0;
        self.list.retain(|(_, path)| {
            index += 1;
            index <= from || !tree.is_hole(path)
        });
    }

    /// All findings, in the order of the document.
    pub(crate) fn finish(self, tree: Option<&Node>) -> Vec<Finding> {
        let mut all: Vec<Finding> = self
            .list
            .into_iter()
            .map(|(mut finding, path)| {
                if let (0, Some(tree)) = (finding.line, tree) {
                    let at = tree.nearest(&path).at;
                    (finding.line, finding.column) = (at.line, at.column);
                }
                finding
            })
            .collect();
        all.sort_by(|a, b| {
            (a.line, a.column, a.level, a.code, &a.message).cmp(&(b.line, b.column, b.level, b.code, &b.message))
        });
        all.dedup();
        all.truncate(MAX_FINDINGS);
        all
    }

    fn add(&mut self, level: Level, at: Position, path: &Path, code: &'static str, message: &str) -> Latest<'_> {
        // Beyond this many nothing is kept: a hostile document could ask for any amount of memory.
        if self.list.len() >= 10 * MAX_FINDINGS {
            return Latest(None);
        }
        let finding = Finding {
            level,
            code,
            message: one_line(message),
            path: path.to_string(),
            line: at.line,
            column: at.column,
            hint: String::new(),
        };
        self.list.push((finding, path.clone()));
        Latest(self.list.last_mut().map(|(finding, _)| finding))
    }
}

/// Messages of libraries may have several lines, and documents any character.
fn one_line(message: &str) -> String {
    message.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

impl Latest<'_> {
    pub(crate) fn hint(self, hint: impl Into<String>) {
        if let Some(finding) = self.0 {
            finding.hint = hint.into();
        }
    }
}
