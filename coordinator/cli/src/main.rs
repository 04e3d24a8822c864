//! The muster binary: the only composition root.

#[allow(clippy::doc_markdown, reason = "doc comments of arguments are what --help prints")]
mod args;
mod bench;
mod bus;
mod catalogue;
mod client;
mod commands;
mod config;
mod error;
mod printer;
#[cfg(test)]
mod reference;
mod signal;
mod telemetry;
mod words;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // An agent starts the programs of its actions through this binary again: before anything else, threads above all.
    if std::env::args_os().nth(1).is_some_and(|first| first == "guard") {
        std::process::exit(muster_agent::guard::run());
    }
    commands::main(args::Cli::parse()).into()
}
