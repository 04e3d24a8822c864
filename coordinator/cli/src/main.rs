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

/// A run's task allocates on one thread and is freed on another, again and again; the system's allocator takes locks for
/// that, and a fifth of all time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An agent starts the programs of its actions through this binary again: before anything else, threads above all.
    if std::env::args_os().nth(1).is_some_and(|first| first == "guard") {
        std::process::exit(muster_agent::guard::run());
    }
    commands::main(args::Cli::parse()).into()
}
