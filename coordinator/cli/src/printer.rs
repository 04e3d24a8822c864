//! The only place that prints. Data goes to stdout, everything else to stderr.
//!
//! A reader that goes away (`muster run list | head -1`) ends the printing, not with an error.

use std::io::{self, IsTerminal as _, Write};

use indicatif::MultiProgress;
use serde::Serialize;
use serde_json::Value;

use crate::{
    args::Format,
    error::{CliError, Found, Result},
};

mod json;
mod view;
mod visible;

pub(crate) use json::{Described, compact, message_of, to_message};
pub(crate) use view::{Block, Table, View, one_line, span, time};
use visible::visible;

/// Prints, in the format that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    format: Format,
    colour: bool,
    live: Option<MultiProgress>,
}

/// What a word means; shown by its colour on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// Done.
    Good,
    /// Needs a look.
    Warn,
    /// Failed.
    Bad,
    /// Less important.
    Faint,
}

impl Printer {
    /// Colours and bars only where a person looks, and never with `NO_COLOR`.
    pub(crate) fn new(format: Format) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let terminal = io::stderr().is_terminal() && std::env::var("TERM").as_deref() != Ok("dumb");
        Self { format, colour: terminal && !no_color, live: terminal.then(MultiProgress::new) }
    }

    /// The bars, when stderr is a terminal.
    pub(crate) fn live(&self) -> Option<&MultiProgress> {
        self.live.as_ref()
    }

    /// One message, or one page: a table for people, or one document.
    pub(crate) fn data<M: Described>(&self, message: &M, view: impl FnOnce(&M) -> View) -> Result<()> {
        match self.format {
            Format::Table => self.stdout(&visible(&view(message).to_string())),
            Format::Json => self.stdout(&pretty(&message.described()?)?),
            Format::Yaml => self.stdout(&yaml(&message.described()?)?),
        }
    }

    /// One message of a stream: a line for people, one JSON object on one line, or one YAML document.
    pub(crate) fn item<M: Described>(&self, message: &M, line: impl FnOnce(&M) -> String) -> Result<()> {
        match self.format {
            Format::Table => self.stdout(&visible(&format!("{}\n", line(message)))),
            Format::Json => self.stdout(&line_of(&message.described()?)?),
            Format::Yaml => self.stdout(&format!("---\n{}", yaml(&message.described()?)?)),
        }
    }

    /// Data that is no message of the API.
    pub(crate) fn value(&self, value: &Value, view: impl FnOnce() -> View) -> Result<()> {
        match self.format {
            Format::Table => self.stdout(&visible(&view().to_string())),
            Format::Json => self.stdout(&pretty(value)?),
            Format::Yaml => self.stdout(&yaml(value)?),
        }
    }

    /// Text as it is, whatever the format.
    pub(crate) fn text(&self, text: &str) -> Result<()> {
        self.stdout(text)
    }

    /// Stdout itself, for what is too much to be held.
    pub(crate) fn raw() -> impl Write {
        io::BufWriter::new(io::stdout())
    }

    /// A line of progress, above the bars if there are any.
    pub(crate) fn note(&self, line: &str) {
        self.say(&[(line, Tone::Plain)]);
    }

    /// The same with words in colour.
    pub(crate) fn say(&self, words: &[(&str, Tone)]) {
        let line = self.painted(words);
        if let Some(live) = &self.live {
            live.suspend(|| stderr(&line));
        } else {
            stderr(&line);
        }
    }

    /// Findings, each with its place.
    pub(crate) fn findings(&self, findings: &[Found]) {
        for line in findings.iter().flat_map(Found::lines) {
            self.note(&line);
        }
    }

    /// Why the command was not done.
    pub(crate) fn error(&self, error: &CliError) {
        self.findings(&error.findings);
        self.say(&[("error:", Tone::Bad), (&format!(" {} {}", error.reason, one_line(&error.message)), Tone::Plain)]);
        if let Some(place) = &error.place {
            self.say(&[("  at:", Tone::Faint), (&format!(" {place}"), Tone::Plain)]);
        }
        for hint in error.hint.iter().flat_map(|hint| hint.lines()) {
            self.say(&[("  hint:", Tone::Faint), (&format!(" {hint}"), Tone::Plain)]);
        }
    }

    /// Words in their colours, for stderr. The only escape sequences are those of the colours.
    pub(crate) fn painted(&self, words: &[(&str, Tone)]) -> String {
        words.iter().map(|(word, tone)| self.tone(&visible(word), *tone)).collect()
    }

    fn tone(&self, word: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return word.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if self.colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
    }

    fn stdout(&self, text: &str) -> Result<()> {
        let write = || {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        };
        match self.live.as_ref().map_or_else(write, |live| live.suspend(write)) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::failed("OUTPUT_FAILED", format!("can't write to stdout: {error}")))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn stderr(line: &str) {
    // Nobody is left to be told when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn pretty(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| unprintable("JSON", &e))
}

fn line_of(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map(|text| text + "\n").map_err(|e| unprintable("JSON", &e))
}

fn yaml(value: &impl Serialize) -> Result<String> {
    let text = serde_saphyr::to_string(value).map_err(|e| unprintable("YAML", &e))?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

fn unprintable(format: &str, error: &impl std::fmt::Display) -> CliError {
    CliError::failed("OUTPUT_FAILED", format!("can't be written as {format}: {error}"))
}
