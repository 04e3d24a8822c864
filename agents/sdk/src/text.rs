//! Text for people, bounded.

use std::error::Error;

/// An error and its sources on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The first `limit` bytes at most, whole characters, with a mark where something is missing.
pub(crate) fn head(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// The last `limit` bytes at most, in the same way.
pub(crate) fn tail(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut start = text.len() - limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("…{}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_characters() {
        assert_eq!((head("abc", 3), tail("abc", 3)), ("abc".to_owned(), "abc".to_owned()));
        assert_eq!((head("äöüäöü", 8), tail("äöüäöü", 8)), ("äö…".to_owned(), "…öü".to_owned()));
        assert_eq!((head("abcd", 0).len(), tail("abcd", 0).len()), ('…'.len_utf8(), '…'.len_utf8()));
    }
}
