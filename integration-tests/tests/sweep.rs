//! The search of what tests leave: it sees a password wherever it is, in whatever form, and lets those have it that have to.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use anyhow::{Result, ensure};
use flate2::{Compression, write::GzEncoder};
use muster_integration_tests::{
    canary::{LAB, lab_needles, password},
    lab::{self, Redis},
    sweep::{Swept, sweep},
    system::System,
};

/// Writes a file that only its owner may read.
fn plant(path: &Path, content: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o600))?)
}

fn said(swept: Result<Swept>) -> String {
    swept.map_or_else(|error| format!("{error:#}"), |swept| format!("nothing in {swept:?}"))
}

/// What a test that ends so fails with.
fn fails_with(test: impl FnOnce()) -> String {
    let failed = catch_unwind(AssertUnwindSafe(test));
    let why = failed.err().and_then(|why| why.downcast::<String>().ok());
    why.map_or_else(|| "it does not fail".to_owned(), |why| *why)
}

#[test]
fn each_form_is_found_in_whatever_file_and_named() -> Result<()> {
    let packed = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(bytes)?;
        Ok(gzip.finish()?)
    };
    ensure!(lab_needles().len() >= 8, "{:?}", lab_needles().iter().map(|(form, _)| form).collect::<Vec<_>>());
    for (form, needle) in lab_needles() {
        let dir = tempfile::tempdir()?;
        let around = [&b"\0\xff before\n "[..], needle, &b" after \0\xfe"[..]].concat();
        plant(&dir.path().join("deep/er/db.sst"), &around)?;
        plant(&dir.path().join("log/1.jsonl.gz"), &packed(&around)?)?;
        plant(&dir.path().join("clean"), b"CANARY")?;
        let said = said(sweep(&[dir.path()]));
        for file in ["deep/er/db.sst", "log/1.jsonl.gz"] {
            ensure!(said.contains(&format!("{file}: {form}")), "{form} in {file}: {said}");
        }
        ensure!(!said.contains("clean") && !said.contains(LAB), "{said}");
    }
    Ok(())
}

#[test]
fn who_has_to_hold_it_may_as_long_as_nobody_else_can_read_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let holders =
        ["a/password", "redis/redis.conf", "users.txt", "data/postgresql.auto.conf", ".muster-undo/redis.conf.0a1b"];
    for holder in holders {
        plant(&dir.path().join(holder), password().as_bytes())?;
    }
    let swept = sweep(&[dir.path()])?;
    ensure!(swept.files == 5 && swept.bytes == 5 * password().len() as u64, "{swept:?}");
    fs::set_permissions(dir.path().join("redis/redis.conf"), Permissions::from_mode(0o644))?;
    let said = said(sweep(&[dir.path()]));
    ensure!(said.contains("redis.conf: it holds a secret, and others may read it"), "{said}");
    Ok(())
}

#[test]
fn a_coordinators_first_token_and_keys_for_nats_are_searched_for() -> Result<()> {
    for secret in ["data/admin.token", "keys/seeds/infra-1.nk"] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        plant(&dir.path().join(secret), b"it-is-long-enough\n")?;
        sweep(&[dir.path(), other.path()])?;
        plant(&other.path().join("store/1.jsonl"), b"{\"with\":\"it-is-long-enough\"}")?;
        let said = said(sweep(&[dir.path(), other.path()]));
        ensure!(said.contains("1.jsonl: plain"), "{secret}: {said}");
    }
    Ok(())
}

#[test]
fn a_lab_and_a_system_that_leave_a_password_fail_their_test() -> Result<()> {
    let dir = lab::folder()?;
    let redis = Redis::start(&dir.path().join("redis"))?;
    fs::write(dir.path().join("redis/leaked.log"), format!("AUTH {}", redis.password()))?;
    let failed = fails_with(|| drop((redis, dir)));
    ensure!(failed.contains("redis/leaked.log: plain"), "{failed}");

    let system = System::start()?;
    fs::write(system.data_dir().join("leaked"), password())?;
    let failed = fails_with(|| drop(system));
    ensure!(failed.contains("data/leaked: plain"), "{failed}");

    let system = System::start()?;
    fs::write(system.nats.folder().join("leaked"), password())?;
    let failed = fails_with(|| drop(system));
    ensure!(failed.contains("leaked: plain"), "{failed}");
    Ok(())
}

#[test]
fn an_answer_that_holds_a_password_fails_its_test() -> Result<()> {
    let system = System::start()?;
    let asked = system.cli(&["run", "get", &password()]);
    let said = asked.map_or_else(|error| format!("{error:#}"), |_| "nothing".to_owned());
    ensure!(said.contains("a password of the lab is in what `muster"), "{said}");
    Ok(())
}

/// A test that fails already goes on failing for its own reason.
#[test]
fn a_find_after_a_panic_does_not_hide_it() -> Result<()> {
    let dir = lab::folder()?;
    let failed = fails_with(move || {
        // Not unwrapped: the panic below is the one that is looked for.
        drop(fs::write(dir.path().join("leaked"), password()));
        panic!("{}", "the test's own reason".to_owned());
    });
    ensure!(failed == "the test's own reason", "{failed}");
    Ok(())
}
