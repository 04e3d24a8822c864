//! Lint and plan without a coordinator: the same engine, with the actions that come with this binary.

use std::sync::Arc;

use muster_coordinator::{api::convert, control::Planned};
use muster_engine::{
    plan,
    playbook::{self, Finding, Level},
};
use muster_proto::v1;
use serde_json::Value;

use crate::{
    args::PlaybookRef,
    catalogue,
    commands::read,
    error::{CliError, Found, Result},
};

/// Everything that is wrong with a document.
pub(super) fn findings(file: &str, yaml: &str) -> Result<Vec<Found>> {
    let reading = playbook::read(yaml.as_bytes(), &catalogue::shipped_entries()?);
    Ok(reading.findings.into_iter().map(|finding| Found::of(file, finding)).collect())
}

/// The plan of a document, and where that is.
pub(super) fn plan(playbook: &PlaybookRef, inputs: Value) -> Result<(String, v1::Plan)> {
    let PlaybookRef::File(path) = playbook else {
        return Err(CliError::usage(
            "PLAYBOOK_NOT_LOCAL",
            "a stored playbook can't be planned without its coordinator",
        )
        .hint("name a file, or leave --offline out"));
    };
    let (file, yaml, catalogue) = (path.display().to_string(), read(path)?, catalogue::shipped_entries()?);
    let reading = playbook::read(yaml.as_bytes(), &catalogue);
    let Some(playbook) = reading.playbook else { return Err(invalid(&file, reading.findings)) };
    let plan = plan::resolve(&playbook, playbook::revision(yaml.as_bytes()), inputs, &catalogue)
        .map_err(|findings| invalid(&file, findings))?;
    let warnings = reading.findings.into_iter().filter(|f| f.level == Level::Warning).collect();
    let planned = Planned { digest: plan.digest(), plan: Arc::new(plan), warnings };
    Ok((file, convert::plan::plan(&planned)))
}

fn invalid(file: &str, findings: Vec<Finding>) -> CliError {
    let errors = findings.iter().filter(|f| f.level == Level::Error).count();
    let message = format!("{errors} error{}", if errors == 1 { "" } else { "s" });
    let findings = findings.into_iter().map(|finding| Found::of(file, finding)).collect();
    CliError { findings, ..CliError::failed("PLAYBOOK_INVALID", message) }.at(file)
}
