//! The page itself: nothing in it is untested, and it names what is there.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::process::checkout;

use crate::{SCENES, stage::blocks};

fn page() -> Result<String> {
    fs::read_to_string(checkout().join("docs/operations.md")).context("docs/operations.md")
}

#[test]
fn every_command_of_the_page_is_run_by_a_test() -> Result<()> {
    let of_page: BTreeSet<String> = blocks()?.into_iter().map(|block| block.scene).collect();
    let tested: BTreeSet<String> = SCENES.iter().map(|&scene| scene.to_owned()).collect();
    ensure!(of_page == tested, "on the page: {of_page:?}\ntested: {tested:?}");
    Ok(())
}

fn sources(folder: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Words in backticks behind `log: ` stand in a source file.
#[test]
fn lines_of_the_log_are_as_the_coordinator_writes_them() -> Result<()> {
    let (page, mut text) = (page()?, String::new());
    sources(&checkout().join("coordinator"), &mut text)?;
    let quoted: Vec<&str> = page.split("log: `").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    ensure!(quoted.len() >= 8, "only {quoted:?}");
    for line in quoted {
        ensure!(text.contains(line), "no log has {line:?}");
    }
    Ok(())
}

#[test]
fn alerts_are_set_on_figures_that_there_are() -> Result<()> {
    let source = fs::read_to_string(checkout().join("coordinator/src/metrics.rs"))?;
    let known: BTreeSet<&str> = source.split('"').filter(|word| word.starts_with("muster_")).collect();
    let page = page()?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named: BTreeSet<&str> =
        page.split(|c| !is_name(c)).filter(|word| word.starts_with("muster_") && word.len() > 10).collect();
    ensure!(named.len() >= 6, "only {named:?}");
    for name in named {
        let base = ["_sum", "_count", "_bucket"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        ensure!(known.contains(base), "there is no figure {name}");
    }
    Ok(())
}
