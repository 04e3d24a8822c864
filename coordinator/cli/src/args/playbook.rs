//! `muster playbook …`

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};

use super::PageArgs;

/// Playbooks.
#[derive(Debug, Subcommand)]
pub(crate) enum PlaybookCommand {
    /// Store a revision. The same document again gives the same revision.
    Submit(SubmitArgs),
    /// Say everything that is wrong with a document, with line and column. Stores nothing.
    Lint(LintArgs),
    /// Resolve a playbook with inputs to a plan and its digest. Starts nothing.
    Plan(PlanArgs),
    /// List playbooks, the newest revision of each.
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Print a stored playbook.
    Get {
        /// Name, or name@sha256:… for one revision.
        #[arg(value_name = "NAME")]
        playbook: PlaybookName,
    },
}

/// `playbook submit`
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Documents; - is stdin.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Check everything, store nothing.
    #[arg(long)]
    pub(crate) validate_only: bool,
}

/// `playbook lint`
#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    /// Documents; - is stdin.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Without a coordinator: knows the shipped actions, not those of other agents.
    #[arg(long)]
    pub(crate) offline: bool,
    /// Warnings fail as errors do.
    #[arg(long)]
    pub(crate) strict: bool,
}

/// `playbook plan`
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A file (- is stdin), or the name of a stored playbook, or name@sha256:… for one revision.
    #[arg(value_name = "PLAYBOOK")]
    pub(crate) playbook: PlaybookRef,
    #[command(flatten)]
    pub(crate) inputs: InputArgs,
    /// Without a coordinator: files only, and only with the shipped actions.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Values for the playbook's inputs.
#[derive(Debug, Default, Args)]
pub(crate) struct InputArgs {
    /// One input: name=text, or name:=JSON for anything else than text.
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    pub(crate) input: Vec<String>,
    /// All inputs as a YAML or JSON object; --input wins over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: Option<PathBuf>,
}

/// A file, or a stored playbook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlaybookRef {
    /// A document; `-` is stdin.
    File(PathBuf),
    /// A stored one.
    Stored(PlaybookName),
}

/// A stored playbook, the newest revision unless one is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlaybookName {
    /// `metadata.name`.
    pub(crate) name: String,
    /// `sha256:…`.
    pub(crate) revision: Option<String>,
}

impl FromStr for PlaybookName {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once('@') {
            Some((name, revision)) => Self { name: name.to_owned(), revision: Some(revision.to_owned()) },
            None => Self { name: text.to_owned(), revision: None },
        })
    }
}

impl FromStr for PlaybookRef {
    type Err = Infallible;

    /// What has a folder or ends in .yaml, .yml or .json is a file; everything else is a name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let path = PathBuf::from(text);
        let is_document = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if text == "-" || text.contains('/') || is_document {
            return Ok(Self::File(path));
        }
        Ok(Self::Stored(text.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_names_are_told_apart() {
        let file = |text: &str| PlaybookRef::File(PathBuf::from(text));
        for text in ["hello.yaml", "./hello", "-", "a/b.yml"] {
            assert_eq!(text.parse::<PlaybookRef>().unwrap(), file(text), "{text}");
        }
        let stored = PlaybookName { name: "hello".into(), revision: Some("sha256:ab".into()) };
        assert_eq!("hello@sha256:ab".parse::<PlaybookRef>().unwrap(), PlaybookRef::Stored(stored));
        let newest = PlaybookName { name: "hello".into(), revision: None };
        assert_eq!("hello".parse::<PlaybookRef>().unwrap(), PlaybookRef::Stored(newest));
    }
}
