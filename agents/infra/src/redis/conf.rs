//! Redis' configuration file, edited by directive: what is not set here stays as it is, comments included.

/// The lines of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conf(Vec<String>);

impl Conf {
    /// Reads a file's text.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }

    /// The file's text.
    pub(super) fn text(&self) -> String {
        self.0.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// All values of a directive, in the file's order; quotes around a word are taken off. Files that it includes are not
    /// read.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|line| entry(line))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
            .collect()
    }

    /// Whether an included file could say otherwise: it comes after the last line of the directive.
    pub(super) fn may_be_overruled(&self, name: &str) -> bool {
        self.last(name).is_some_and(|last| self.last("include").is_some_and(|include| include > last))
    }

    /// Writes a directive with these values, one line each, where its first line was; at the end where there was none or
    /// an included file comes after it.
    pub(super) fn set(&mut self, name: &str, values: &[String]) {
        let is = |line: &String| entry(line).is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        let first = self.0.iter().position(is).filter(|_| !self.may_be_overruled(name));
        self.0.retain(|line| !is(line));
        let place = first.unwrap_or(self.0.len());
        let lines = values.iter().map(|value| format!("{name} {}", if value.is_empty() { "\"\"" } else { value }));
        self.0.splice(place..place, lines);
    }

    fn last(&self, name: &str) -> Option<usize> {
        self.0.iter().rposition(|line| entry(line).is_some_and(|(n, _)| n.eq_ignore_ascii_case(name)))
    }
}

fn entry(line: &str) -> Option<(&str, String)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let words: Vec<_> = rest.split_whitespace().map(|word| word.trim_matches(['"', '\''])).collect();
    Some((name, words.join(" ").trim().to_owned()))
}

/// A memory size as Redis reads it (`100mb`, `1g`), in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: &str = "# as it was found\nport 6379\nSAVE 900 1\nsave 300 10\n\nappendonly \"no\"\n";

    #[test]
    fn only_the_named_lines_change() {
        let mut conf = Conf::parse(FOUND);
        conf.set("appendonly", &["yes".into()]);
        conf.set("maxmemory", &["100".into()]);
        assert_eq!(conf.text(), FOUND.replace("\"no\"", "yes") + "maxmemory 100\n");
        conf.set("save", &[String::new()]);
        assert_eq!(conf.text(), "# as it was found\nport 6379\nsave \"\"\n\nappendonly yes\nmaxmemory 100\n");
        assert_eq!(conf.all("save"), [""]);
    }

    #[test]
    fn a_file_that_is_included_later_has_not_the_last_word() {
        let mut conf = Conf::parse("appendonly yes\ninclude other.conf\n");
        assert!(conf.may_be_overruled("appendonly") && !conf.may_be_overruled("maxmemory"));
        conf.set("appendonly", &["yes".into()]);
        assert_eq!(conf.text(), "include other.conf\nappendonly yes\n");
        assert!(!conf.may_be_overruled("appendonly"));
    }

    #[test]
    fn sizes_are_read_as_redis_reads_them() {
        assert_eq!(["0", "1k", "1kb", "2MB", "1g"].map(bytes), [0, 1_000, 1_024, 2 << 20, 1_000_000_000].map(Some));
        assert_eq!(["", "mb", "1tb", "-1"].map(bytes), [None; 4]);
    }
}
