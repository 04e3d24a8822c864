//! What others wrote, made fit for a terminal: names, hosts and messages come from documents and agents.

use std::borrow::Cow;

use muster_engine::playbook::controls_display;

/// With everything escaped that a terminal obeys, or by which text reads otherwise than it is. Line ends and tabs stay.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if acts(c) && !(c == '\r' && rest.peek() == Some(&'\n')) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn acts(c: char) -> bool {
    controls_display(c) && !matches!(c, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_instead() {
        for (text, shown) in [
            ("plain ünïcode → ✓\n\tof two lines\n", "plain ünïcode → ✓\n\tof two lines\n"),
            ("\u{1b}[31mRED\u{7}", r"\u{1b}[31mRED\u{7}"),
            ("\u{9b}2J\u{7f}\0", r"\u{9b}2J\u{7f}\u{0}"),
            ("over\rwritten", r"over\u{d}written"),
            ("of Windows\r\n\u{8}", "of Windows\r\n\\u{8}"),
            ("a\u{202e}b\u{2066}c\u{2069}", r"a\u{202e}b\u{2066}c\u{2069}"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }
}
