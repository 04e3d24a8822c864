//! The muster binary: the only composition root.

mod args;
mod client;
mod commands;
mod config;
mod error;
mod printer;
#[cfg(test)]
mod reference;
mod words;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    commands::main(args::Cli::parse()).into()
}
