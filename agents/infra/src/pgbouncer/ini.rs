//! PgBouncer's configuration file, edited in place: what is not set here stays as it is, comments included.

/// The lines of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ini(Vec<String>);

impl Ini {
    /// Reads a file's text.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }

    /// The file's text.
    pub(super) fn text(&self) -> String {
        self.0.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// The value of a key; of several, the last one, as PgBouncer reads it.
    pub(super) fn get(&self, section: &str, key: &str) -> Option<&str> {
        let lines = self.section(section)?;
        lines.rev().find_map(|n| entry(&self.0[n]).filter(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v))
    }

    /// Sets a key: in place where it is, at the end of its section where it is not. Repetitions go away.
    pub(super) fn set(&mut self, section: &str, key: &str, value: &str) {
        let line = format!("{key} = {value}");
        let Some(lines) = self.section(section) else {
            if self.0.last().is_some_and(|last| !last.trim().is_empty()) {
                self.0.push(String::new());
            }
            self.0.extend([format!("[{section}]"), line]);
            return;
        };
        let is_key = |n: &usize| entry(&self.0[*n]).is_some_and(|(k, _)| k.eq_ignore_ascii_case(key));
        let found: Vec<usize> = lines.clone().filter(is_key).collect();
        if let Some((first, again)) = found.split_first() {
            if entry(&self.0[*first]).is_none_or(|(_, v)| v != value) {
                self.0[*first] = line;
            }
            again.iter().rev().for_each(|n| drop(self.0.remove(*n)));
        } else {
            let last = lines.clone().rev().find(|n| !self.0[*n].trim().is_empty());
            self.0.insert(last.map_or(lines.start, |n| n + 1), line);
        }
    }

    /// The line numbers between a section's head and the next one.
    fn section(&self, section: &str) -> Option<std::ops::Range<usize>> {
        let is_head = |line: &String| line.trim().starts_with('[');
        let head = self.0.iter().position(|line| line.trim().eq_ignore_ascii_case(&format!("[{section}]")))?;
        let end = self.0[head + 1..].iter().position(is_head).map_or(self.0.len(), |n| head + 1 + n);
        Some(head + 1..end)
    }
}

fn entry(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with([';', '#', '%', '[']) {
        return None;
    }
    line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "; head\n[databases]\n* = host=a\n\n[pgbouncer]\npool_mode = session\n; pool_mode = x\n\
                        logfile = /var/log/p.log\npool_mode = statement\n";

    #[test]
    fn the_last_of_several_counts_and_setting_leaves_one() {
        let mut ini = Ini::parse(FILE);
        assert_eq!(ini.get("pgbouncer", "pool_mode"), Some("statement"));
        ini.set("pgbouncer", "pool_mode", "transaction");
        assert_eq!(ini.text().matches("\npool_mode").count(), 1);
        assert_eq!(ini.get("pgbouncer", "POOL_MODE"), Some("transaction"));
        assert_eq!(ini.get("pgbouncer", "logfile"), Some("/var/log/p.log"));
        assert!(ini.text().contains("; pool_mode = x"));
    }

    #[test]
    fn new_keys_join_their_section_and_setting_twice_changes_nothing() {
        let mut ini = Ini::parse(FILE);
        ini.set("databases", "shop", "host=b port=1");
        ini.set("users", "app", "pool_mode=session");
        let once = ini.clone();
        ini.set("databases", "shop", "host=b port=1");
        ini.set("users", "app", "pool_mode=session");
        assert_eq!(ini, once);
        assert!(ini.text().contains("* = host=a\nshop = host=b port=1\n\n[pgbouncer]"), "{}", ini.text());
        assert!(ini.text().ends_with("\n\n[users]\napp = pool_mode=session\n"));
    }

    #[test]
    fn an_empty_file_grows() {
        let mut ini = Ini::parse("");
        ini.set("databases", "shop", "host=b");
        ini.set("pgbouncer", "pool_mode", "transaction");
        assert_eq!(ini.text(), "[databases]\nshop = host=b\n\n[pgbouncer]\npool_mode = transaction\n");
    }
}
