//! `docs/reference/cli.md`, generated from the command line's own definition.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use crate::args::Cli;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");

#[test]
fn the_reference_is_up_to_date() {
    let mut text = String::from(
        "# Command line\n\nGenerated from the definition of the command line by `UPDATE=1 cargo test -p muster reference`.\n",
    );
    let mut command = Cli::command().term_width(100);
    command.build();
    section(&mut text, &mut command);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, &text).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(written == text, "{PATH} is not up to date: UPDATE=1 cargo test -p muster reference");
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

fn section(text: &mut String, command: &mut Command) {
    let path = command.get_bin_name().unwrap_or("muster").to_owned();
    let help = command.render_long_help().to_string();
    let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.trim_end()).unwrap();
    // Said once, at the top.
    for inner in command.get_subcommands_mut().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let globals: Vec<clap::Id> =
            inner.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().clone()).collect();
        for global in globals {
            *inner = std::mem::take(inner).mut_arg(global, |a| a.hide(true));
        }
        section(text, inner);
    }
}
