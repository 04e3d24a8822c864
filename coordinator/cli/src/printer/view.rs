//! How data looks to people: fields, tables, text.

use std::fmt::{self, Write as _};

use comfy_table::{ContentArrangement, presets::NOTHING};
use prost_types::Timestamp;

/// What is printed for people, from top to bottom.
#[derive(Clone, Debug, Default)]
pub(crate) struct View(Vec<Block>);

/// A part of a view.
#[derive(Clone, Debug)]
pub(crate) enum Block {
    /// Names and values; empty values are left out.
    Fields(Vec<(&'static str, String)>),
    /// Rows under a head.
    Table(Table),
    /// A line.
    Text(String),
}

/// Rows under a head.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    none: &'static str,
}

impl View {
    /// Of these parts.
    pub(crate) fn new(blocks: Vec<Block>) -> Self {
        Self(blocks)
    }
}

impl From<Table> for View {
    fn from(table: Table) -> Self {
        Self(vec![Block::Table(table)])
    }
}

impl Table {
    /// Empty, with what is said if it stays so.
    pub(crate) fn new(head: &[&'static str], none: &'static str) -> Self {
        Self { head: head.to_vec(), rows: Vec::new(), none }
    }

    /// With these rows.
    pub(crate) fn rows(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.rows.extend(rows);
        self
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, block) in self.0.iter().enumerate() {
            if i > 0 && !matches!(block, Block::Text(_)) {
                f.write_char('\n')?;
            }
            block.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(fields) => write_fields(f, fields),
            Self::Table(table) => table.fmt(f),
            Self::Text(text) => writeln!(f, "{text}"),
        }
    }
}

fn write_fields(f: &mut fmt::Formatter<'_>, fields: &[(&'static str, String)]) -> fmt::Result {
    let shown = || fields.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    for (name, value) in shown() {
        writeln!(f, "{:width$} {}", format!("{name}:"), one_line(value))?;
    }
    Ok(())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return writeln!(f, "{}", self.none);
        }
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.head.clone());
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A time in UTC to the second; empty when there is none.
pub(crate) fn time(at: Option<&Timestamp>) -> String {
    at.and_then(|t| jiff::Timestamp::new(t.seconds, t.nanos).ok()).map(|t| format!("{t:.0}")).unwrap_or_default()
}

/// A span as people write it: `1h 30m`; empty when there is none.
pub(crate) fn span(span: Option<&prost_types::Duration>) -> String {
    span.map(|d| format!("{:#}", jiff::SignedDuration::new(d.seconds, d.nanos))).unwrap_or_default()
}

/// What programs say in several lines, on one.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
