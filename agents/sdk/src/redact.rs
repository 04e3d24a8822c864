//! Takes the values of secrets out of everything that an attempt says: as they are, in the forms in which programs write
//! them, and what is left of them where a text was cut or split.

use std::{borrow::Cow, collections::BTreeMap, io::Write as _};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use muster_bus::message::Observation;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// Of a longer value so much is shown at most, in bytes: a part of this length at a cut is taken out.
const PART: usize = 8;
/// A form of a value that is shorter than this is too likely to stand for something else, in bytes.
const FORM: usize = 6;
/// A line of a value of several lines counts by itself from this length on, in bytes: keys are printed line by line.
const LINE: usize = 12;
/// Where a text was cut: our own mark, and what stands for a character that was cut in two.
const CUTS: [char; 2] = ['…', '\u{fffd}'];
/// What RFC 3986 leaves as it is.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What encoders leave as it is: all that RFC 3986 does, and with it the slash of a path, what JavaScript leaves in a component,
/// what may stand in the user part of a URL.
const KEPT: [&AsciiSet; 4] = [
    RESERVED,
    &RESERVED.remove(b'/'),
    &RESERVED.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')'),
    &RESERVED
        .remove(b'!')
        .remove(b'$')
        .remove(b'&')
        .remove(b'\'')
        .remove(b'(')
        .remove(b')')
        .remove(b'*')
        .remove(b'+')
        .remove(b',')
        .remove(b';')
        .remove(b'='),
];

/// Knows the values of an agent's secrets, to leave them out.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    all: Option<AhoCorasick>,
    /// The forms, and instead of what stands each.
    forms: Vec<(String, String)>,
}

impl Redactor {
    /// Of secrets by name. Empty values are none.
    pub fn new(secrets: &BTreeMap<String, String>) -> Self {
        let mut forms = BTreeMap::new();
        for (name, value) in secrets {
            for form in forms_of(value) {
                forms.entry(form).or_insert_with(|| format!("[secret {name}]"));
            }
        }
        let forms: Vec<(String, String)> = forms.into_iter().collect();
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostLongest);
        // Too large for the automaton is only what no folder of secrets holds; then nothing at all is said.
        let all = (!forms.is_empty()).then(|| builder.build(forms.iter().map(|(form, _)| form)));
        match all {
            Some(Err(error)) => {
                tracing::error!(%error, "secrets can't be told apart from other words");
                let everything = AhoCorasick::builder().build([""]).ok();
                Self { all: everything, forms: vec![(String::new(), "[withheld]".to_owned())] }
            }
            Some(Ok(all)) => Self { all: Some(all), forms },
            None => Self::default(),
        }
    }

    /// From now on panics of this process are told on stderr without the values of secrets: what an action says in one goes
    /// there past everything else.
    pub fn tell_panics(self) {
        std::panic::set_hook(Box::new(move |panic| {
            // Nobody is left to be told when stderr is gone.
            let _ = writeln!(std::io::stderr(), "{}", self.text(&panic.to_string()));
        }));
    }

    /// Without the values of secrets.
    pub fn text(&self, text: &str) -> String {
        let Some(all) = &self.all else { return text.to_owned() };
        let mut clean = Cow::Borrowed(text);
        if all.is_match(text) {
            let mut without = String::with_capacity(text.len());
            all.replace_all_with(text, &mut without, |found, _, without| {
                without.push_str(&self.forms[found.pattern().as_usize()].1);
                true
            });
            clean = Cow::Owned(without);
        }
        self.parts(&clean).unwrap_or_else(|| clean.into_owned())
    }

    /// The same for every string in `value`, names of fields included; and for a number that is a secret.
    pub fn value(&self, value: &mut Value) {
        if self.all.is_none() {
            return;
        }
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => {
                for value in values {
                    self.value(value);
                }
            }
            Value::Object(fields) => {
                for (key, mut value) in std::mem::take(fields) {
                    self.value(&mut value);
                    fields.insert(self.text(&key), value);
                }
            }
            Value::Number(number) => {
                let number = number.to_string();
                if let Some((_, instead)) = self.forms.iter().find(|(form, _)| *form == number) {
                    *value = Value::String(instead.clone());
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// The same for the words of a measurement.
    pub fn observation(&self, observation: &mut Observation) {
        for word in [&mut observation.name, &mut observation.unit, &mut observation.source] {
            *word = self.text(word);
        }
    }

    /// Without what is left of a value at an end of the text or at a cut in it; none when there is nothing of that.
    fn parts(&self, text: &str) -> Option<String> {
        let mut holes: Vec<(usize, usize, &str)> = Vec::new();
        let mut from = 0;
        for (at, cut) in text.match_indices(CUTS).map(|(at, cut)| (at, cut.len())).chain([(text.len(), 0)]) {
            let piece = &text[from..at];
            for (form, instead) in &self.forms {
                if let Some(end) = begins_with_an_end_of(piece, form) {
                    holes.push((from, from + end, instead));
                }
                if let Some(start) = ends_with_a_beginning_of(piece, form) {
                    holes.push((from + start, at, instead));
                }
            }
            from = at + cut;
        }
        if holes.is_empty() {
            return None;
        }
        holes.sort_by_key(|(start, end, _)| (*start, usize::MAX - end));
        let (mut clean, mut done) = (String::with_capacity(text.len()), 0);
        for (start, end, instead) in holes {
            if start >= done {
                clean.push_str(&text[done..start]);
                clean.push_str(instead);
            }
            done = done.max(end);
        }
        clean.push_str(&text[done..]);
        Some(clean)
    }
}

/// How a value is written: as it is, escaped, encoded; and its lines.
fn forms_of(value: &str) -> Vec<String> {
    if value.is_empty() {
        return Vec::new();
    }
    let mut forms = vec![value.to_owned()];
    let lines = value.lines().map(str::trim).filter(|line| line.len() >= LINE && !line.starts_with("-----"));
    forms.extend(lines.map(str::to_owned));
    let plain = forms.clone();
    for text in &plain {
        let json = escaped(text);
        forms.extend(json_of(&json));
        forms.extend([escaped(&json), json, text.escape_debug().to_string(), text.escape_default().to_string()]);
        forms.push(text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"));
        for left in KEPT {
            let percent = utf8_percent_encode(text, left).to_string();
            forms.extend([lower_hex(&percent), percent.replace("%20", "+"), percent]);
        }
        for between in ["", ":", " ", "%"] {
            let hex: Vec<String> = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            let hex = hex.join(between);
            forms.extend([hex.to_uppercase(), hex]);
        }
        forms.extend(base64_of(text.as_bytes()));
    }
    let mut wanted: Vec<String> = forms.split_off(plain.len());
    wanted.retain(|form| form.len() >= FORM);
    forms.extend(wanted);
    forms
}

/// As a JSON string, without its quotes.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// As encoders write it that also escape the slash, or what has a meaning in HTML.
fn json_of(json: &str) -> [String; 5] {
    let html = |json: &str| json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    let upper = |json: &str| json.replace("\\u003c", "\\u003C").replace("\\u003e", "\\u003E");
    let slash = json.replace('/', "\\/");
    [upper(&html(json)), html(json), upper(&html(&slash)), html(&slash), slash]
}

/// `%2F` as `%2f`.
fn lower_hex(percent: &str) -> String {
    let mut parts = percent.split('%');
    let mut lower = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (hex, rest) = part.split_at(2.min(part.len()));
        lower.push('%');
        lower.push_str(&hex.to_lowercase());
        lower.push_str(rest);
    }
    lower
}

/// Of the value wherever it stands in what was encoded: what its neighbours can't change, at each of three offsets.
fn base64_of(bytes: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for offset in 0..3_usize {
        let before = [&vec![0; offset][..], bytes].concat();
        let first = (offset * 8).div_ceil(6);
        let whole = before.len() * 8 / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&before);
            forms.extend(encoded.get(first..whole).map(str::to_owned));
        }
    }
    forms
}

/// How long a part of a form has to be.
fn least(form: &str) -> usize {
    let mut least = PART.min((form.len() / 2).max(3));
    while !form.is_char_boundary(least.min(form.len())) {
        least += 1;
    }
    least
}

fn ends_with_a_beginning_of(text: &str, form: &str) -> Option<usize> {
    let least = least(form);
    let anchor = form.get(..least).filter(|_| least < form.len())?;
    let mut from = text.len().saturating_sub(form.len());
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    text[from..].match_indices(anchor).map(|(at, _)| from + at).find(|at| form.starts_with(&text[*at..]))
}

fn begins_with_an_end_of(text: &str, form: &str) -> Option<usize> {
    let mut start = form.len().checked_sub(least(form)).filter(|start| *start > 0)?;
    while !form.is_char_boundary(start) {
        start -= 1;
    }
    let anchor = form.get(start..).filter(|_| start > 0)?;
    let mut until = text.len().min(form.len());
    while !text.is_char_boundary(until) {
        until += 1;
    }
    text[..until].rmatch_indices(anchor).map(|(at, _)| at + anchor.len()).find(|end| form.ends_with(&text[..*end]))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    const VALUE: &str = "kX9\"/w+ä~7Qm2_pRz4!tN8";

    fn redactor(value: &str) -> Redactor {
        Redactor::new(&[("token".to_owned(), value.to_owned())].into())
    }

    fn clean(text: &str) -> String {
        redactor(VALUE).text(text)
    }

    #[test]
    fn a_value_is_found_in_every_form_and_the_words_around_it_stay() {
        let json = json!({"password": VALUE}).to_string();
        let nested = json!({"body": json}).to_string();
        let percent = utf8_percent_encode(VALUE, NON_ALPHANUMERIC).to_string();
        let hex = VALUE.bytes().fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
        for text in [VALUE, &json, &nested, &format!("{VALUE:?}"), &hex, &hex.to_uppercase()] {
            let clean = clean(&format!("before {text} after"));
            assert!(clean.starts_with("before ") && clean.ends_with(" after"), "{clean}");
            assert!(clean.contains("[secret token]"), "{text}: {clean}");
        }
        let rfc3986 = percent.replace("%5F", "_").replace("%7E", "~");
        for text in [
            rfc3986.to_lowercase().replace("kx9", "kX9").replace("7qm2_prz4", "7Qm2_pRz4").replace("tn8", "tN8"),
            rfc3986,
        ] {
            assert_eq!(clean(&format!("?t={text}&x")), "?t=[secret token]&x");
        }
    }

    #[test]
    fn what_other_languages_write_is_found() {
        let value = "Sup3r/S3cr+t&Val?ue<9>";
        let written = [
            (r"Sup3r/S3cr+t\u0026Val?ue\u003c9\u003e", "Go's JSON"),
            (r"Sup3r\/S3cr+t&Val?ue<9>", "PHP's JSON"),
            (r"Sup3r\/S3cr+t\u0026Val?ue\u003C9\u003E", "with all its flags"),
            ("Sup3r/S3cr%2Bt%26Val%3Fue%3C9%3E", "quote of Python"),
            ("Sup3r%2FS3cr%2Bt%26Val%3Fue%3C9%3E", "encodeURIComponent"),
            ("Sup3r/S3cr+t&amp;Val?ue&lt;9&gt;", "HTML"),
            ("53:75:70:33:72:2f:53:33:63:72:2b:74:26:56:61:6c:3f:75:65:3c:39:3e", "a dump"),
            ("53%75%70%33%72%2F%53%33%63%72%2B%74%26%56%61%6C%3F%75%65%3C%39%3E", "every byte"),
        ];
        for (text, whose) in written {
            let clean = redactor(value).text(&format!("before {text} after"));
            assert!(clean.contains("[secret token]") && !clean.contains("S3cr"), "{whose}: {clean}");
        }
    }

    #[test]
    fn base64_is_found_wherever_the_value_stands_in_it() {
        for before in ["", "a", "ab", "abc", "user:"] {
            for after in ["", "z", "zz", "\n"] {
                let encoded = STANDARD.encode(format!("{before}{VALUE}{after}"));
                let clean = clean(&encoded);
                assert!(clean.contains("[secret token]"), "{before}…{after}: {clean}");
                let left: String = clean.replace("[secret token]", "");
                assert!(left.len() <= encoded.len() - VALUE.len(), "{clean}");
            }
        }
    }

    #[test]
    fn what_is_left_at_a_cut_is_taken_out() {
        for cut in VALUE.char_indices().map(|(at, _)| at).filter(|at| *at >= PART && VALUE.len() - at >= PART) {
            let (first, second) = VALUE.split_at(cut);
            assert_eq!(clean(&format!("said {first}")), "said [secret token]");
            assert_eq!(clean(&format!("{second} was said")), "[secret token] was said");
            assert_eq!(
                clean(&format!("exit 1: …{second} x {first}… y")),
                "exit 1: …[secret token] x [secret token]… y"
            );
            assert_eq!(clean(&format!("said {first}\u{fffd}")), "said [secret token]\u{fffd}");
        }
        assert_eq!(clean("kX9 is no secret, tN8"), "kX9 is no secret, tN8");
        assert_eq!(redactor("hunter2").text("the hunt"), "the [secret token]");
    }

    #[test]
    fn lines_of_a_key_count_by_themselves_and_its_head_does_not() {
        let key = "-----BEGIN KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1\nduRSxKtLYX5CB04fSeQ6tF1a\n-----END KEY-----";
        let redactor = redactor(key);
        assert_eq!(redactor.text("duRSxKtLYX5CB04fSeQ6tF1a"), "[secret token]");
        assert_eq!(redactor.text("-----BEGIN KEY----- is expected"), "-----BEGIN KEY----- is expected");
        assert_eq!(redactor.text(key), "[secret token]");
    }

    #[test]
    fn values_are_clean_to_their_last_field() {
        let mut value = json!({VALUE: [1, {"deep": format!("is {VALUE}")}], "n": 123_456_789, "m": 12});
        let secrets = [("pin".to_owned(), "123456789".to_owned()), ("token".to_owned(), VALUE.to_owned())].into();
        Redactor::new(&secrets).value(&mut value);
        assert_eq!(value, json!({"[secret token]": [1, {"deep": "is [secret token]"}], "n": "[secret pin]", "m": 12}));
    }

    #[test]
    fn without_secrets_nothing_changes() {
        assert_eq!(Redactor::new(&BTreeMap::new()).text(VALUE), VALUE);
        assert_eq!(redactor("").text("x"), "x");
        assert_eq!(redactor("ü").text("grün"), "gr[secret token]n");
        assert_eq!(redactor("ab").text("abab b a"), "[secret token][secret token] b a");
    }
}
