//! PostgreSQL's own programs: where they are, and one of them run to its end.

use std::path::{Path, PathBuf};

use muster_agent::{ActionError, Context};
use muster_kit::{bound::within, user::RunAs};

/// The programs of one major version, and whom they run as: most of them refuse to be root.
pub(super) struct Programs<'a> {
    pub(super) ctx: &'a Context,
    pub(super) run_as: RunAs,
    bin: PathBuf,
    limit_ms: u64,
}

/// So much of what a program says goes into an error, in bytes.
const SAID_BYTES: usize = 1024;

impl<'a> Programs<'a> {
    /// Those in `bin`, or where Debian puts those of this version.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when they are not installed.
    pub(super) fn of(
        ctx: &'a Context,
        run_as: RunAs,
        bin: Option<&Path>,
        server_version: u32,
        limit_ms: u64,
    ) -> Result<Self, ActionError> {
        let major = server_version / 10_000;
        let debian = || PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let bin = bin.map_or_else(debian, Path::to_owned);
        if let Some(missing) =
            ["pg_basebackup", "pg_verifybackup", "postgres", "pg_ctl"].iter().find(|name| !bin.join(name).is_file())
        {
            return Err(ActionError::needs_person(format!(
                "there is no {missing} in {}: install the server's package for PostgreSQL {major} on this host, or name \
                 its folder in `bin`",
                bin.display()
            )));
        }
        Ok(Self { ctx, run_as, bin, limit_ms })
    }

    /// The path of one.
    pub(super) fn path(&self, name: &str) -> String {
        self.bin.join(name).display().to_string()
    }

    /// Runs a program to its end, for at most the limit; an error with its last words when it fails.
    pub(super) async fn run(&self, name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<(), ActionError> {
        let path = if self.bin.join(name).is_file() { self.path(name) } else { name.to_owned() };
        // Their words decide what is to be done about a failure.
        let mut command = self.run_as.command(self.ctx, path).args(args.iter().copied()).env("LC_ALL", "C.UTF-8");
        for (name, value) in env {
            command = command.env(*name, *value);
        }
        let ended = within(self.ctx, self.limit_ms, name, command.output()).await??;
        if ended.code == 0 {
            return Ok(());
        }
        let said = format!("{}{}", ended.stdout, ended.stderr);
        Err(ActionError::retry(format!("{name} failed: {}", last_words(&said))))
    }
}

/// The end of what a program said.
pub(super) fn last_words(said: &str) -> &str {
    let said = said.trim();
    let mut start = said.len().saturating_sub(SAID_BYTES);
    while !said.is_char_boundary(start) {
        start += 1;
    }
    &said[start..]
}
