//! What comes in at the front: through which doors, and from which release. By curl.

use std::process::Command;

use anyhow::Result;

use super::{Seen, output};
use crate::lab::{Inputs, SECOND_DOOR, program};

const REQUESTS: usize = 20;

/// Whether requests to the site are shared among both doors.
pub(super) fn doors(inputs: &Inputs) -> Result<Seen> {
    let (mut first, mut second) = (0, 0);
    for _ in 0..REQUESTS {
        let said = get(inputs, "/health", &["-D", "-", "-o", "/dev/null"])?;
        let head = said.to_ascii_lowercase();
        if head.contains(&SECOND_DOOR.to_ascii_lowercase()) {
            second += 1;
        } else if head.lines().next().is_some_and(|status| status.contains(" 200")) {
            first += 1;
        }
    }
    let ok = first > 0 && second > 0 && first + second == REQUESTS;
    Ok(Seen { ok, said: format!("of {REQUESTS} requests {first} through the first door, {second} through the second") })
}

/// Whether the site answers with the release that is to be brought.
pub(super) fn release(inputs: &Inputs) -> Result<Seen> {
    let said = get(inputs, "/version", &[])?.trim().to_owned();
    let ok = said.contains(&format!("\"{}\"", inputs.release));
    Ok(Seen { ok, said: if said.is_empty() { "no answer".into() } else { said } })
}

/// What curl gets from the site by HTTPS. The certificate is another probe's matter.
pub(super) fn get(inputs: &Inputs, path: &str, more: &[&str]) -> Result<String> {
    let there = format!("::{}", inputs.https_address);
    let url = format!("https://{}{path}", inputs.domain);
    let mut curl = Command::new(program("curl", "curl")?);
    curl.args(["-s", "-k", "--noproxy", "*", "-m", "5", "--connect-to", &there]).args(more).arg(&url);
    output(&mut curl, "")
}
