//! Who can read and write what only the coordinator, or its user, should.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use super::Check;
use crate::config::Settings;

pub(super) fn look(settings: &Settings, data_dir: &Path, checks: &mut Vec<Check>) {
    if let Some(check) = folder(data_dir) {
        checks.push(check);
    }
    let admin = data_dir.join("admin.token");
    let serve = &settings.serve;
    let admin_is_named = settings.token_file == admin;
    let named =
        [("token_file", settings.token_file.as_path()), ("nats_nkey", &serve.nats_nkey), ("tls_key", &serve.tls_key)];
    for (name, path) in named.into_iter().filter(|(_, path)| !path.as_os_str().is_empty()) {
        checks.push(secret(name, path, false));
    }
    if !admin_is_named && admin.exists() {
        checks.push(secret("admin_token", &admin, true));
    }
}

fn folder(data_dir: &Path) -> Option<Check> {
    let name = "data_dir";
    let shown = data_dir.display();
    let meta = match fs::metadata(data_dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let hint = "look at owner and mode of the folder and of those above it";
            return Some(Check::problem(name, format!("{shown}: {error}"), hint));
        }
    };
    let mode = meta.permissions().mode() & 0o777;
    let tighten = format!("chmod 700 {shown}");
    Some(if mode & 0o022 != 0 {
        Check::problem(name, format!("others can write to {shown} (mode {mode:o})"), tighten)
    } else if mode & 0o077 != 0 {
        Check::warning(name, format!("others can look into {shown} (mode {mode:o})"), tighten)
    } else if meta.uid() == rustix::process::geteuid().as_raw() {
        Check::ok(name, format!("{shown} is for its owner alone"))
    } else {
        let message = format!("{shown} belongs to user {}, and doctor is run by another", meta.uid());
        Check::warning(name, message, "run doctor as the user that runs `muster serve`")
    })
}

/// The first token may be gone: it is there for whoever begins.
fn secret(name: &'static str, path: &Path, may_be_gone: bool) -> Check {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Check::problem(
            name,
            format!("others can read or write {shown} (mode {:o})", meta.permissions().mode() & 0o777),
            format!("chmod 600 {shown}\nif others may have read it, replace it"),
        ),
        Ok(_) => Check::ok(name, format!("{shown} is for its owner alone")),
        Err(error) if may_be_gone && error.kind() == io::ErrorKind::NotFound => {
            Check::ok(name, format!("{shown} is not there"))
        }
        Err(error) => Check::problem(name, format!("{shown}: {error}"), "name another file, or look at owner and mode"),
    }
}
