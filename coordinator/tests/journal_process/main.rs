//! The journal in processes of its own: traced, killed, and out of room. No test harness: the same program is the one
//! that writes, the one that fills a disk, and the one that watches them.

mod full_disk;
mod full_store;
mod kill;
mod released;
mod trace;
mod writer;

use std::{
    env,
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitCode},
};

type Test = (&'static str, fn());

const TESTS: [Test; 6] = [
    ("every_answer_follows_the_sync_that_covers_it", trace::every_answer_follows_the_sync_that_covers_it),
    ("the_check_of_a_trace_finds_an_answer_without_a_sync", trace::the_check_finds_an_answer_without_a_sync),
    ("what_was_answered_outlives_twenty_kills", kill::what_was_answered_outlives_twenty_kills),
    ("logs_of_every_release_can_be_read", released::logs_of_every_release_can_be_read),
    ("a_full_disk_is_waited_for", full_disk::a_full_disk_is_waited_for),
    ("a_store_outlives_a_full_disk", full_store::a_store_outlives_a_full_disk),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["writer", data, appends] => {
            writer::run(Path::new(data), appends.parse().expect("a number"));
            return ExitCode::SUCCESS;
        }
        ["full-disk", place] => {
            full_disk::run(Path::new(place));
            return ExitCode::SUCCESS;
        }
        ["full-store", place] => {
            full_store::run(Path::new(place));
            return ExitCode::SUCCESS;
        }
        ["full-store-life", place, life, bytes] => {
            full_store::live(Path::new(place), life, bytes.parse().expect("a number"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let listing = args.iter().any(|arg| arg == "--list");
    let ignored = args.iter().any(|arg| arg == "--ignored");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| !ignored && (filters.is_empty() || filters.iter().any(|filter| name.contains(*filter)));
    for (name, test) in TESTS.into_iter().filter(|(name, _)| wanted(name)) {
        if listing {
            say(&format!("{name}: test"));
        } else {
            test();
            say(&format!("test {name} ... ok"));
        }
    }
    ExitCode::SUCCESS
}

fn say(line: &str) {
    writeln!(io::stdout(), "{line}").expect("standard output is open");
}

fn this_program() -> Command {
    Command::new(env::current_exe().expect("a test has a path"))
}
