//! The action: copy, check every file, restore, ask, and only then give the backup its name.

use std::{path::PathBuf, time::Instant};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_kit::{
    bound::{blocking, within},
    files,
    measure::{ms_since, observation},
    params::{self, absolute, plain},
    user::RunAs,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    place::{BackupOutput, Found, Place, manifest_checksum, size_bytes},
    programs::Programs,
    restore::{Question, leftovers, prove},
};
use crate::postgres::{Dsn, Target, refused_credentials, said};

/// Makes a base backup with `pg_basebackup`, checks it with `pg_verifybackup`, restores a copy of it and asks that a query.
///
/// The backup has its name only when all of that went well; `undo` removes the backup that this step made, and no other.
/// Tablespaces are not supported.
pub struct Backup;

/// Parameters of `backup.postgres`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupParams {
    /// The server, and a user with the right to replicate, who may also connect to the database that is named.
    pub source: Dsn,
    /// Absolute path of the folder of backups. It is there, and belongs to `run_as`.
    pub root: PathBuf,
    /// The backup's name in it: one for each backup, like the run's id.
    pub name: String,
    /// What shows that it can be restored.
    #[serde(default)]
    pub proof: Proof,
    /// The user that PostgreSQL's programs run as where this agent is root, which they refuse to be.
    #[serde(default = "postgres")]
    pub run_as: String,
    /// Absolute path of the folder of PostgreSQL's programs, of the server's major version; Debian's when absent.
    #[serde(default)]
    pub bin: Option<PathBuf>,
    /// Limit for one exchange with the server, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// Limit for each of copying, checking and restoring, in milliseconds.
    #[serde(default = "half_an_hour")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub limit_ms: u64,
}

/// What a restored copy is asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The query. The first column of its first row, up to 200 characters, is part of the output: not for secrets.
    #[serde(default = "count_tables")]
    pub query: String,
    /// What it must answer; anything when absent.
    #[serde(default)]
    pub expect: Option<String>,
    /// The database; that of `source` when absent.
    #[serde(default)]
    pub database: Option<String>,
    /// The user; that of `source` when absent.
    #[serde(default)]
    pub user: Option<String>,
}

impl Default for Proof {
    fn default() -> Self {
        Self { query: count_tables(), expect: None, database: None, user: None }
    }
}

fn count_tables() -> String {
    "select count(*) from pg_class where relkind = 'r'".into()
}

fn postgres() -> String {
    "postgres".into()
}

fn five_seconds() -> u64 {
    5_000
}

fn half_an_hour() -> u64 {
    1_800_000
}

/// What undo needs.
#[derive(Serialize, Deserialize)]
struct Former {
    /// Something had this name before.
    taken: bool,
}

/// What the server says of itself.
struct Source {
    version: u32,
    system_identifier: String,
    size_bytes: u64,
    tablespaces: u64,
}

const SOURCE: &str = "backup.postgres";
/// Beside the data: the write-ahead log of the time that the backup takes.
const SPARE_BYTES: u64 = 64 << 20;

#[async_trait]
impl Action for Backup {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<BackupParams, BackupOutput>(
            "backup.postgres",
            "Back up a PostgreSQL server, verify the backup, and prove by a restored copy that it is good.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = BackupParams::read(with)?;
        let place = with.place();
        let whole = place.whole();
        let found = blocking(move || place.found()).await?;
        let diff = match found {
            Found::Nothing => format!("{} is made", whole.display()),
            Found::Stranger => return Err(stranger(&whole)),
            Found::Backup(output) => {
                let programs = with.programs(ctx, output.server_version)?;
                match verify(&programs, &output.directory).await {
                    Ok(()) => return Ok(Checked::Satisfied(done(&output))),
                    Err(ActionError::Retry { message, .. }) if !ctx.cancelled.is_cancelled() => {
                        return Err(ActionError::needs_person(format!(
                            "the backup {} is damaged: {message}; move it away, or name another backup",
                            whole.display()
                        )));
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        Ok(Checked::Different { diff })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let place = BackupParams::read(with)?.place();
        let found = blocking(move || place.found()).await?;
        Ok(params::output(&Former { taken: !matches!(found, Found::Nothing) }))
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = BackupParams::read(with)?;
        let place = with.place();
        let asked = place.clone();
        if !matches!(blocking(move || asked.found()).await?, Found::Nothing) {
            return Err(ActionError::needs_person(format!(
                "{} is there already and is not replaced; move it away, or name another backup",
                place.whole().display()
            )));
        }
        let made = with.make(ctx, &place).await;
        if made.is_err() {
            // Best effort: the error that is returned is the one that matters, and the next run or undo clears, too.
            drop(blocking(move || place.clear()).await);
        }
        Ok(done(&made?))
    }

    async fn undo(&self, _ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let place = BackupParams::read(with)?.place();
        let former: Former = params::read(prepared)?;
        blocking(move || {
            place.clear()?;
            if former.taken {
                return Ok(());
            }
            match place.found()? {
                Found::Nothing => Ok(()),
                Found::Stranger => Err(stranger(&place.whole())),
                Found::Backup(_) => place.remove(),
            }
        })
        .await?;
        Ok(Done::default())
    }
}

fn stranger(whole: &std::path::Path) -> ActionError {
    ActionError::needs_person(format!(
        "{} is not a backup of this action and is left alone; move it away, or name another backup",
        whole.display()
    ))
}

#[expect(clippy::cast_precision_loss, reason = "a database is far below 2^52 bytes")]
fn done(output: &BackupOutput) -> Done {
    let observations = vec![
        observation(SOURCE, "size", output.size_bytes as f64, "bytes", None),
        observation(SOURCE, "backup", output.backup_ms, "ms", None),
        observation(SOURCE, "verify", output.verify_ms, "ms", None),
        observation(SOURCE, "restore", output.restore_ms, "ms", None),
    ];
    Done { output: params::output(output), observations }
}

async fn verify(programs: &Programs<'_>, data: &std::path::Path) -> Result<(), ActionError> {
    programs.run("pg_verifybackup", &["--quiet", "--exit-on-error", &data.display().to_string()], &[]).await
}

impl BackupParams {
    fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        absolute("root", &with.root)?;
        with.bin.as_deref().map_or(Ok(()), |bin| absolute("bin", bin))?;
        plain("root", &with.root.to_string_lossy(), "/._-+@")?;
        plain("name", &with.name, "._-")?;
        plain("run_as", &with.run_as, "_-")?;
        if with.name.starts_with('.') {
            return Err(ActionError::permanent("name: it must not begin with a dot"));
        }
        Ok(with)
    }

    fn place(&self) -> Place {
        Place::new(&self.root, &self.name)
    }

    fn programs<'a>(&self, ctx: &'a Context, server_version: u32) -> Result<Programs<'a>, ActionError> {
        Programs::of(ctx, RunAs::ordinary(&self.run_as)?, self.bin.as_deref(), server_version, self.limit_ms)
    }

    async fn make(&self, ctx: &Context, place: &Place) -> Result<BackupOutput, ActionError> {
        let target = self.source.target(ctx, self.timeout_ms)?;
        let source = self.look(ctx, &target).await?;
        let programs = self.programs(ctx, source.version)?;
        let (asked, needed) = (place.clone(), 2 * (source.size_bytes + SPARE_BYTES));
        blocking(move || {
            asked.clear()?;
            let free = files::free_bytes(asked.root())?;
            if free < needed {
                return Err(ActionError::needs_person(format!(
                    "{} has {free} bytes left; the backup and the copy that proves it need {needed}",
                    asked.root().display()
                )));
            }
            Ok(())
        })
        .await?;
        let work = place.work();
        programs.run("mkdir", &["-m", "0700", &work.display().to_string()], &[]).await?;

        ctx.progress("copying", Some(0));
        let (data, start) = (work.join("data"), Instant::now());
        self.copy(ctx, &programs, &data.display().to_string()).await?;
        let backup_ms = ms_since(start);

        ctx.progress("checking every file against the manifest", Some(50));
        let start = Instant::now();
        verify(&programs, &data).await?;
        let verify_ms = ms_since(start);

        ctx.progress("restoring a copy", Some(70));
        let question = Question {
            database: self.proof.database.as_deref().unwrap_or_else(|| target.database()),
            user: self.proof.user.as_deref().unwrap_or_else(|| target.user()),
            query: &self.proof.query,
        };
        let answer = prove(&programs, &work, &question, self.limit_ms).await?;
        if let Some(expect) = self.proof.expect.as_ref().filter(|expect| **expect != answer.text) {
            let message = format!("the restored copy answers {:?}, {expect:?} wanted", answer.text);
            return Err(ActionError::permanent(message));
        }
        let place = place.clone();
        blocking(move || {
            for left in leftovers(&work) {
                std::fs::remove_file(&left)
                    .map_err(|e| ActionError::retry(format!("{} can't be removed: {e}", left.display())))?;
            }
            let unread = || ActionError::retry("the backup's manifest can't be read any more");
            let output = BackupOutput {
                directory: place.data(),
                system_identifier: source.system_identifier,
                server_version: source.version,
                manifest_checksum: manifest_checksum(&data).ok_or_else(unread)?,
                size_bytes: size_bytes(&data).map_err(|_| unread())?,
                proof: answer.text,
                backup_ms,
                verify_ms,
                restore_ms: answer.restore_ms,
            };
            place.finish(&output)?;
            Ok(output)
        })
        .await
    }

    async fn copy(&self, ctx: &Context, programs: &Programs<'_>, data: &str) -> Result<(), ActionError> {
        let timeout_s = self.timeout_ms.div_ceil(1000).to_string();
        let password = self.source.password.get(ctx)?.unwrap_or_default();
        let args =
            ["-d", &self.source.dsn, "-D", data, "-X", "stream", "-c", "fast", "-w", "--manifest-checksums=SHA256"];
        let env = [("PGPASSWORD", password.as_str()), ("PGCONNECT_TIMEOUT", &timeout_s), ("PGAPPNAME", "muster")];
        let refused = ["authentication failed", "pg_hba.conf", "replication role"];
        programs.run("pg_basebackup", &args, &env).await.map_err(|e| match e {
            ActionError::Retry { message, .. } if refused.iter().any(|text| message.contains(text)) => {
                ActionError::needs_person(format!("{message}; mend the secret, the user's right or pg_hba.conf"))
            }
            e @ (ActionError::Retry { .. } | ActionError::Permanent { .. } | ActionError::NeedsPerson { .. }) => e,
        })
    }

    async fn look(&self, ctx: &Context, target: &Target) -> Result<Source, ActionError> {
        let sql = "select current_setting('server_version_num'), (select system_identifier from pg_control_system()), \
                   (select coalesce(sum(pg_database_size(oid)), 0)::bigint from pg_database), (select count(*) from \
                   pg_tablespace where spcname not in ('pg_default', 'pg_global'))";
        let asked = within(ctx, self.timeout_ms, "the database", async {
            let client = target.connect().await?;
            client.rows(sql).await
        });
        let rows = asked.await?.map_err(|e| {
            let message = format!("the database can't be asked: {}", said(&e));
            if refused_credentials(&e) {
                ActionError::needs_person(format!("{message}; mend the secret or the user's rights"))
            } else {
                ActionError::retry(message)
            }
        })?;
        let text = |column| rows.first().and_then(|row| row.get(column)).unwrap_or_default().to_owned();
        let number = |column| text(column).parse::<u64>().unwrap_or(0);
        let source = Source {
            version: u32::try_from(number(0)).unwrap_or(0),
            system_identifier: text(1),
            size_bytes: number(2),
            tablespaces: number(3),
        };
        if source.tablespaces > 0 {
            return Err(ActionError::permanent(format!(
                "the server has {} tablespaces, which this action can't back up",
                source.tablespaces
            )));
        }
        Ok(source)
    }
}
