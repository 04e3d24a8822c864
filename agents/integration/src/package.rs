//! `package.verify`: is a package the one that was built, whole, and with all that it must hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_kit::{
    archive::{Limits, Member, Package, digest_of, stop_unless},
    bound::blocking,
    measure::observation,
    params,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Reads a package to its end: its digest, its members, theirs. What is not as wanted is a permanent failure that names it;
/// so are a damaged package, one over its limits, and one whose members lead out of their folder.
pub struct Verify;

/// Parameters of `package.verify`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyParams {
    /// Absolute path of a `.tar`, `.tar.gz`, `.tgz` or `.zip`.
    pub package: PathBuf,
    /// What its sha256 must be, in hex; not compared when absent.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Members that must be there with this sha256.
    #[serde(default)]
    #[schemars(length(max = 10_000))]
    pub members: BTreeMap<String, String>,
    /// Members that must be there: `bin/app`, or `assets/` for a folder with something in it.
    #[serde(default)]
    #[schemars(length(max = 10_000))]
    pub contains: Vec<String>,
    /// How much of it is read.
    #[serde(default)]
    pub limits: Limits,
}

/// Output of `package.verify`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VerifyOutput {
    /// Of the file, in hex.
    pub sha256: String,
    /// Of the file.
    pub packed_bytes: u64,
    /// Of all its files.
    pub unpacked_bytes: u64,
    /// Files and folders.
    pub members: u64,
    /// Wanted and not there; at most 100.
    pub missing: Vec<String>,
    /// There with another digest than wanted, `name: digest`; at most 100.
    pub mismatched: Vec<String>,
}

const NAMED: usize = 100;

#[async_trait]
impl Action for Verify {
    fn spec(&self) -> ActionSpec {
        // The file is on the agent's own host.
        ActionSpec {
            scope: muster_bus::message::Scope::Host,
            ..params::probe_spec::<VerifyParams, VerifyOutput>(
                "package.verify",
                "Read a package to its end: its digest, its members, what is missing or different.",
            )
        }
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: VerifyParams = params::read(with)?;
        params::absolute("package", &with.package)?;
        let digests = with.sha256.iter().map(|digest| ("sha256", digest));
        digests.chain(with.members.values().map(|digest| ("members", digest))).try_for_each(|(f, d)| hex(f, d))?;
        ctx.progress(&format!("reading {}", with.package.display()), None);
        let cancelled = ctx.cancelled.clone();
        let (with, output) = blocking(move || {
            let output = with.look(&|| !cancelled.is_cancelled())?;
            Ok((with, output))
        })
        .await?;
        match with.wrong(&output) {
            None => Ok(done(&output)),
            Some(message) => Err(ActionError::Permanent { message, output: Some(params::output(&output)) }),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a package of 2^53 bytes is over every limit")]
fn done(output: &VerifyOutput) -> Done {
    let observations = vec![
        observation("package.verify", "packed", output.packed_bytes as f64, "bytes", None),
        observation("package.verify", "unpacked", output.unpacked_bytes as f64, "bytes", None),
        observation("package.verify", "members", output.members as f64, "count", None),
    ];
    Done { output: params::output(output), observations }
}

impl VerifyParams {
    fn look(&self, go_on: &dyn Fn() -> bool) -> Result<VerifyOutput, ActionError> {
        let package = Package::open(&self.package, self.limits)?;
        let (packed_bytes, sha256) = package.digest(go_on)?;
        let mut output = VerifyOutput { sha256, packed_bytes, ..VerifyOutput::default() };
        if self.other_package(&output) {
            // Another package than the one that is meant: nothing in it counts.
            return Ok(output);
        }
        let mut wanted: BTreeSet<&str> = self.members.keys().chain(&self.contains).map(String::as_str).collect();
        let total = package.walk(go_on, &mut |member, content| {
            let name = member.path.to_string_lossy();
            wanted.retain(|want| !meant(want, member));
            let Some(want) = self.members.iter().find(|(want, _)| meant(want, member)) else { return Ok(()) };
            let digested = digest_of(content, go_on);
            stop_unless(go_on)?;
            let found = digested
                .map_err(|e| ActionError::permanent(format!("member {name:?} can't be read to its end: {e}")))?;
            if !found.1.eq_ignore_ascii_case(want.1) && output.mismatched.len() < NAMED {
                output.mismatched.push(format!("{name}: {}", found.1));
            }
            Ok(())
        })?;
        output.missing = wanted.into_iter().take(NAMED).map(str::to_owned).collect();
        (output.members, output.unpacked_bytes) = (total.members, total.unpacked_bytes);
        Ok(output)
    }

    fn other_package(&self, output: &VerifyOutput) -> bool {
        self.sha256.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&output.sha256))
    }

    /// What is not as wanted, if anything.
    fn wrong(&self, output: &VerifyOutput) -> Option<String> {
        let name = self.package.display();
        if self.other_package(output) {
            let wanted = self.sha256.as_deref().unwrap_or_default();
            let found = &output.sha256;
            return Some(format!("{name} has sha256 {found}, wanted is {wanted}; deliver the package that was built"));
        }
        let mut faults = Vec::new();
        if !output.missing.is_empty() {
            faults.push(format!("it lacks {}", listed(&output.missing)));
        }
        if !output.mismatched.is_empty() {
            faults.push(format!("of another digest than wanted: {}", listed(&output.mismatched)));
        }
        (!faults.is_empty()).then(|| format!("{name}: {}; build it again", faults.join("; ")))
    }
}

/// Whether `wanted` means this member: by its path, or with a `/` at the end by its folder.
fn meant(wanted: &str, member: &Member) -> bool {
    let path = &member.path;
    match wanted.strip_suffix('/') {
        Some(folder) => !member.folder && path.starts_with(folder),
        None => !member.folder && path == Path::new(wanted),
    }
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(5);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

fn hex(field: &str, digest: &str) -> Result<(), ActionError> {
    if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(ActionError::permanent(format!("{field}: {digest:?} is no sha256 in hex; get it with: sha256sum FILE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_when_a_file_is_in_it() {
        let member = |path: &str, folder| Member { path: path.into(), folder, executable: false };
        assert!(meant("bin/app", &member("bin/app", false)));
        assert!(!meant("bin/app", &member("bin/app", true)), "a folder is no file");
        assert!(meant("assets/", &member("assets/logo.svg", false)));
        assert!(!meant("assets/", &member("assets", true)), "an empty folder");
        assert!(!meant("assets/", &member("assets2/logo.svg", false)));
        assert!(!meant("app", &member("bin/app", false)));
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(listed(&names), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!(listed(&names[..1]), "0");
    }
}
