//! `release.prepare`: puts a verified release in place, whole or not at all.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_kit::{
    archive::{Limits, Package},
    bound::blocking,
    files::{self, failed},
    measure::observation,
    params,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tree::{self, GoOn, OURS, Tree};

/// Unpacks or copies into a hidden folder, compares digests, and gives it its name at the end, by one rename: a release is
/// there whole or not at all, also after a crash. A version that is there is never changed: with other content it is a
/// question to a person.
pub struct Prepare;

/// Parameters of `release.prepare`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepareParams {
    /// Absolute path of the folder of releases; it must be there.
    pub releases: PathBuf,
    /// The name of the release's folder in it: letters, digits and `._+-`.
    #[schemars(length(min = 1, max = 64))]
    pub version: String,
    /// Absolute path of a `.tar`, `.tar.gz`, `.tgz` or `.zip`; this or `folder`.
    #[serde(default)]
    pub package: Option<PathBuf>,
    /// Absolute path of a folder that is copied; this or `package`.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// In hex: of the package; of a folder: that of `sha256sum`'s list of all its files, sorted by name.
    pub sha256: String,
    /// How much of it is taken.
    #[serde(default)]
    pub limits: Limits,
}

/// Output of `release.prepare`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PrepareOutput {
    /// The release's folder.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
    /// That of `sha256sum`'s list of all its files, sorted by name.
    pub tree_sha256: String,
    /// How many.
    pub files: u64,
    /// Of all of them.
    pub bytes: u64,
}

/// What `undo` needs.
#[derive(Debug, Serialize, Deserialize)]
struct Prepared {
    /// The version was not there before.
    makes: bool,
}

/// Lies in a release, beside `sha256sum`'s list of its files.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: String,
    sha256: String,
    tree_sha256: String,
}

/// What is there under the version's name.
enum There {
    Nothing,
    Wanted(PrepareOutput),
    Other(String),
}

#[async_trait]
impl Action for Prepare {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<PrepareParams, PrepareOutput>(
            "release.prepare",
            "Put a release in place under its version, from a package or folder of a known digest.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = PrepareParams::read(with)?;
        let path = with.path();
        Ok(match with.on_files(ctx, PrepareParams::there).await? {
            There::Nothing => Checked::Different { diff: format!("{} is not there yet", path.display()) },
            There::Wanted(output) => Checked::Satisfied(done(&output)),
            There::Other(diff) => Checked::Different { diff },
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = PrepareParams::read(with)?;
        blocking(move || Ok(params::output(&Prepared { makes: !exists(&with.path())? }))).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = PrepareParams::read(with)?;
        ctx.progress(&format!("putting {} in place", with.version), None);
        let output = with.on_files(ctx, |with, go_on| {
            match with.there(go_on)? {
                There::Nothing => with.put(go_on)?,
                There::Wanted(_) => {}
                There::Other(why) => {
                    return Err(ActionError::needs_person(format!(
                        "{why}; it may be in use: give this release a new version, or remove that folder"
                    )));
                }
            }
            match with.there(go_on)? {
                There::Wanted(output) => Ok(output),
                There::Nothing => Err(ActionError::retry("the release was removed by somebody else meanwhile")),
                There::Other(why) => Err(ActionError::retry(format!("somebody else was at it meanwhile: {why}"))),
            }
        });
        Ok(done(&output.await?))
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = PrepareParams::read(with)?;
        let prepared: Prepared = params::read(prepared)?;
        with.on_files(ctx, move |with, _| with.remove(prepared.makes)).await?;
        Ok(Done::default())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a release of 2^53 bytes is over every limit")]
fn done(output: &PrepareOutput) -> Done {
    let observations = vec![
        observation("release.prepare", "files", output.files as f64, "count", None),
        observation("release.prepare", "size", output.bytes as f64, "bytes", None),
    ];
    Done { output: params::output(output), observations }
}

impl PrepareParams {
    fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        params::absolute("releases", &with.releases)?;
        params::plain("version", &with.version, "._+-")?;
        if with.version.starts_with(['.', '-']) || with.version.len() > 64 {
            return Err(ActionError::permanent(format!(
                "version: {:?} is hidden, looks like an option or is too long",
                with.version
            )));
        }
        if with.sha256.len() != 64 || !with.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ActionError::permanent("sha256: 64 hex digits are needed; get them with: sha256sum FILE"));
        }
        match (&with.package, &with.folder) {
            (Some(package), None) => params::absolute("package", package)?,
            (None, Some(folder)) => params::absolute("folder", folder)?,
            _ => return Err(ActionError::permanent("package or folder is needed, and not both")),
        }
        Ok(with)
    }

    /// Does the work on files off the async threads; it stops when the attempt is cancelled.
    async fn on_files<T: Send + 'static>(
        self,
        ctx: &Context,
        work: impl FnOnce(&Self, GoOn<'_>) -> Result<T, ActionError> + Send + 'static,
    ) -> Result<T, ActionError> {
        let cancelled = ctx.cancelled.clone();
        blocking(move || work(&self, &|| !cancelled.is_cancelled())).await
    }

    fn path(&self) -> PathBuf {
        self.releases.join(&self.version)
    }

    /// A folder that is not yet, or no longer, a release.
    fn hidden(&self, kind: &str) -> PathBuf {
        self.releases.join(format!(".{}.muster-{kind}", self.version))
    }

    fn there(&self, go_on: GoOn<'_>) -> Result<There, ActionError> {
        let path = self.path();
        if !exists(&path)? {
            return Ok(There::Nothing);
        }
        let name = path.display();
        let Some(mark) = mark(&path)? else {
            return Ok(There::Other(format!("{name} is there, but was not put there by release.prepare")));
        };
        if !mark.sha256.eq_ignore_ascii_case(&self.sha256) {
            return Ok(There::Other(format!("{name} is there, from a package or folder of sha256 {}", mark.sha256)));
        }
        let tree = Tree::of(&path, self.limits, go_on)?;
        if tree.sha256() != mark.tree_sha256 {
            let was = fs::read_to_string(list_in(&path)).unwrap_or_default();
            let what = tree::difference(&was, &tree.list).unwrap_or_else(|| "its own list was changed".into());
            return Ok(There::Other(format!("{name} is not as it was put there: {what}")));
        }
        let (files, bytes) = (tree.files, tree.bytes);
        let version = self.version.clone();
        Ok(There::Wanted(PrepareOutput { path, version, tree_sha256: mark.tree_sha256, files, bytes }))
    }

    /// Everything up to the rename happens in a hidden folder, which an attempt that broke off may have left.
    fn put(&self, go_on: GoOn<'_>) -> Result<(), ActionError> {
        let new = self.hidden("new");
        remove(&new)?;
        tree::make_folder(&new)?;
        let put = self.fill(&new, go_on).and_then(|()| {
            let path = self.path();
            fs::rename(&new, &path).map_err(|e| failed("give its name to", &path, &e))?;
            files::sync_folder(&path)
        });
        if put.is_err() {
            // Best effort: the error that is returned is the one that matters.
            drop(remove(&new));
        }
        put
    }

    fn fill(&self, new: &Path, go_on: GoOn<'_>) -> Result<(), ActionError> {
        if let Some(package) = &self.package {
            let opened = Package::open(package, self.limits)?;
            self.compare(package, &opened.digest(go_on)?.1)?;
            tree::unpack(&opened, new, go_on)?;
            // Who wrote into it meanwhile is found out here.
            self.compare(package, &opened.digest(go_on)?.1)?;
        }
        if let Some(folder) = &self.folder {
            tree::copy(folder, new, self.limits, go_on)?;
        }
        let tree = Tree::of(new, self.limits, go_on)?;
        let tree_sha256 = tree.sha256();
        if let Some(folder) = &self.folder {
            self.compare(folder, &tree_sha256)?;
        }
        let mark = Mark { version: self.version.clone(), sha256: self.sha256.to_ascii_lowercase(), tree_sha256 };
        files::write(&list_in(new), tree.list.as_bytes(), 0o644)?;
        files::write(&mark_in(new), params::output(&mark).to_string().as_bytes(), 0o644)?;
        let opened = File::open(new).map_err(|e| failed("sync", new, &e))?;
        // One sync of the whole file system is cheaper than one for each of many files.
        rustix::fs::syncfs(opened).map_err(|e| failed("sync", new, &e.into()))
    }

    fn compare(&self, source: &Path, found: &str) -> Result<(), ActionError> {
        if found.eq_ignore_ascii_case(&self.sha256) {
            return Ok(());
        }
        let (name, wanted) = (source.display(), &self.sha256);
        Err(ActionError::permanent(format!("{name} has sha256 {found}, wanted is {wanted}; deliver what was built")))
    }

    /// Only what was made here goes away.
    fn remove(&self, makes: bool) -> Result<(), ActionError> {
        let (path, gone) = (self.path(), self.hidden("gone"));
        remove(&self.hidden("new"))?;
        remove(&gone)?;
        if !makes || !exists(&path)? {
            return Ok(());
        }
        if mark(&path)?.is_none_or(|mark| !mark.sha256.eq_ignore_ascii_case(&self.sha256)) {
            return Err(ActionError::needs_person(format!(
                "{} was put there by somebody else meanwhile; it stays, remove it yourself if it is not wanted",
                path.display()
            )));
        }
        fs::rename(&path, &gone).map_err(|e| failed("remove", &path, &e))?;
        files::sync_folder(&path)?;
        remove(&gone)
    }
}

fn mark_in(release: &Path) -> PathBuf {
    release.join(format!("{OURS}.json"))
}

fn list_in(release: &Path) -> PathBuf {
    release.join(format!("{OURS}.sha256"))
}

/// What says that we put it there; `None` when nothing does.
fn mark(release: &Path) -> Result<Option<Mark>, ActionError> {
    if !release.is_dir() {
        return Ok(None);
    }
    Ok(files::read(&mark_in(release))?.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn exists(path: &Path) -> Result<bool, ActionError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("read", path, &e)),
    }
}

fn remove(folder: &Path) -> Result<(), ActionError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", folder, &e)),
        _ => Ok(()),
    }
}
