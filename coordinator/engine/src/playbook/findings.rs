//! What was found, collected.

use super::{
    Finding, Level,
    tree::{Node, Path, Position},
};

/// Most findings of one document. Errors go before warnings; where there are more, the last one says so.
pub const MAX_FINDINGS: usize = 100;
/// Most errors kept until they are sorted by place: a hostile document could ask for any amount of memory.
const MAX_KEPT: usize = 10 * MAX_FINDINGS;

/// Findings in the making: positions are looked up at the end, when the document is at hand.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<(Finding, Path)>,
    errors: usize,
    hidden: Hidden,
}

/// What is not in the list.
#[derive(Clone, Copy, Debug, Default)]
struct Hidden {
    errors: usize,
    warnings: usize,
    /// Nobody looked at the rest of the document.
    unread: bool,
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

    /// A finding as it is; it counts as an error.
    pub(crate) fn push(&mut self, finding: Finding) {
        self.errors += 1;
        self.list.push((finding, Path::default()));
    }

    /// There are so many errors that further ones would not be shown.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= MAX_FINDINGS
    }

    /// What follows was not looked at.
    pub(crate) fn stop(&mut self) {
        self.hidden.unread = true;
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
        self.errors = self.list.iter().filter(|(finding, _)| finding.level == Level::Error).count();
    }

    /// All findings, in the order of the document, and whether none of them is an error.
    pub(crate) fn finish(self, tree: Option<&Node>) -> (Vec<Finding>, bool) {
        let sound = self.list.iter().all(|(finding, _)| finding.level == Level::Warning);
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
        let place = |finding: &Finding| (finding.line, finding.column, finding.level, finding.code);
        all.sort_by(|a, b| (place(a), &a.message).cmp(&(place(b), &b.message)));
        all.dedup();
        all.sort_by_key(|finding| finding.level);
        let mut hidden = self.hidden;
        if all.len() > MAX_FINDINGS || hidden.any() {
            for finding in all.drain((MAX_FINDINGS - 1).min(all.len())..) {
                hidden.add(finding.level);
            }
        }
        all.sort_by_key(place);
        all.extend(hidden.any().then(|| hidden.finding()));
        (all, sound)
    }

    fn add(&mut self, level: Level, at: Position, path: &Path, code: &'static str, message: &str) -> Latest<'_> {
        let (count, most) = match level {
            Level::Error => (self.errors, MAX_KEPT),
            Level::Warning => (self.list.len() - self.errors, MAX_FINDINGS),
        };
        if count >= most {
            self.hidden.add(level);
            return Latest(None);
        }
        self.errors += usize::from(level == Level::Error);
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

impl Hidden {
    fn add(&mut self, level: Level) {
        match level {
            Level::Error => self.errors += 1,
            Level::Warning => self.warnings += 1,
        }
    }

    fn any(self) -> bool {
        self.errors + self.warnings > 0 || self.unread
    }

    fn finding(self) -> Finding {
        let rest = "the rest of the document was not looked at";
        let message = match self.errors + self.warnings {
            0 => rest.to_owned(),
            more if self.unread => format!("and {} more; {rest}", grouped(more)),
            more => format!("and {} more", grouped(more)),
        };
        Finding {
            level: if self.errors > 0 || self.unread { Level::Error } else { Level::Warning },
            code: "MORE_FINDINGS",
            message,
            path: String::new(),
            line: 0,
            column: 0,
            hint: "mend these first, then look again".to_owned(),
        }
    }
}

/// `2,900`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
