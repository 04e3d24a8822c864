//! The first playbook by an agent whose programs fail, say too little, or nothing.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use muster_integration_tests::system::{System, path};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    gates::{HELLO, Red, closed, refused},
    shipped, start,
};

/// What the faults of these programs turn red: `uname` fails, `date` and `echo` say nothing.
pub(crate) const CLOSES: [&str; 3] = [
    "steps.kernel.output.exit_code == 0",
    "size(steps.clock.output.stdout) >= 10",
    "steps.greet.output.stdout.contains(inputs.name)",
];

/// The real program, unless the file `broken` has its name; its lines of an `allow.toml`.
fn program(dir: &Path, name: &str, code: i32) -> Result<String> {
    let (file, broken) = (dir.join(name), dir.join("broken"));
    let script =
        format!("#!/bin/sh\n[ \"$(cat {})\" = {name} ] && exit {code}\nexec /bin/{name} \"$@\"\n", broken.display());
    fs::write(&file, &script)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let digest = Sha256::digest(script).iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}"));
    Ok(format!("[commands.{name}]\npath = \"{}\"\nsha256 = \"{digest}\"\n", file.display()))
}

fn each_closes(system: &mut System, dir: &Path) -> Result<()> {
    let programs = [("uname", 3), ("date", 0), ("echo", 0)];
    let allow = programs.map(|(name, code)| program(dir, name, code)).into_iter().collect::<Result<String>>()?;
    fs::write(dir.join("allow.toml"), allow)?;
    system.start_agent("infra-1", "infra", &["--allow", path(&dir.join("allow.toml"))?])?;
    system.submit(&shipped(HELLO))?;
    for ((broken, _), part) in programs.into_iter().zip(CLOSES) {
        fs::write(dir.join("broken"), broken)?;
        let run = start(system, HELLO, &json!({}))?;
        let red: Result<Red> = match broken {
            "uname" => refused(system, HELLO, &run, "kernel", "exit code 3"),
            "date" => closed(system, HELLO, &run, "look"),
            _ => closed(system, HELLO, &run, "greet"),
        };
        let red = red.with_context(|| format!("by a broken {broken}"))?;
        ensure!(red == [part], "by a broken {broken}: {red:?} is red, not {part:?} alone");
    }
    Ok(())
}

#[test]
fn each_gate_of_the_first_playbook_is_closed_by_a_program_that_fails_or_says_too_little() {
    let (mut system, dir) = (System::start().unwrap(), tempfile::tempdir().unwrap());
    each_closes(&mut system, dir.path()).unwrap();
}
