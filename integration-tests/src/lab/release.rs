//! A release as a package, and the tests that are run on it when it is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{
    process::{RunAs, program, run},
    service::beside,
    sides::script,
};

/// A package of the sample service, and a suite of smoke tests.
#[derive(Debug)]
pub struct Release {
    dir: PathBuf,
}

const VERSION: &str = "1.2.0";

/// Four looks at the front: each writes down whether it saw what it should.
const SMOKE: &str = r#"set -u
report=$1 front=$2 release=$3
try() { # NAME PATH WANTED
  case $(curl -s --noproxy '*' -m 5 "http://$front$2") in
    *"$3"*) failure= ;;
    *) failure='<failure message="another answer than wanted"/>' ;;
  esac
  cases="$cases<testcase classname=\"smoke\" name=\"$1\">$failure</testcase>"
}
cases=
try home / "$release"
try version /version "\"$release\""
try health /health '"ok"'
try quote /quotes/1 '"quote"'
printf '<testsuites><testsuite name="smoke">%s</testsuite></testsuites>' "$cases" >"$report""#;

impl Release {
    /// Makes them in `dir`. The package holds a program that hands on to the service's: a package of a moment, not of minutes.
    ///
    /// # Errors
    /// When tar is missing, or the sample service is not built.
    pub fn make(dir: &Path) -> Result<Self> {
        let content = dir.join("content");
        fs::create_dir_all(&content)?;
        let service = beside("sample-service")?.display().to_string();
        script(&content.join("sample-service"), &format!("exec '{service}' \"$@\""), Path::new("."))?;
        let made = Self { dir: dir.to_owned() };
        let package = made.package().display().to_string();
        let args = ["-czf", &package, "-C", &content.display().to_string(), "sample-service"];
        run(&RunAs::same(), dir, &program("tar", "tar")?, &args)?;
        script(&made.smoke_suite(), SMOKE, dir)?;
        Ok(made)
    }

    /// What it says it is.
    pub fn version(&self) -> &str {
        VERSION
    }

    /// The package.
    pub fn package(&self) -> PathBuf {
        self.dir.join(format!("revenue-engine-{VERSION}.tar.gz"))
    }

    /// The package's digest.
    ///
    /// # Errors
    /// When it is gone.
    pub fn sha256(&self) -> Result<String> {
        sha256(&self.package())
    }

    /// Takes the path of its report, the front and the release.
    pub fn smoke_suite(&self) -> PathBuf {
        self.dir.join("smoke-suite")
    }
}

/// The lines of an `allow.toml` for a program.
pub(super) fn allowed(program: &Path) -> Result<String> {
    let name = program.file_name().unwrap_or_default().display();
    Ok(format!("[commands.{name}]\npath = \"{}\"\nsha256 = \"{}\"\n", program.display(), sha256(program)?))
}

fn sha256(path: &Path) -> Result<String> {
    let content = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    Ok(Sha256::digest(content).iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}")))
}
