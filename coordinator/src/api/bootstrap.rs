//! The first admin token, for a data directory that has none.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use muster_engine::ids::Actor;
use secrecy::{ExposeSecret as _, SecretString};

use crate::api::token::{NewToken, Role, TokenError, Tokens, generate, token_id};

/// The file in the data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";

/// Write a first admin token to `admin.token`, mode 0600, unless an admin's token was ever made. The path: it was
/// written, and is valid.
///
/// The file comes first, the journal second: a crash between the two leaves a file with a token that nobody honours, and
/// the next start takes it up. So the token in the file is always the one that counts.
pub async fn bootstrap_token(tokens: &Tokens, data_dir: &Path) -> Result<Option<PathBuf>, TokenError> {
    if tokens.has_admin() {
        return Ok(None);
    }
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    let failed = |source| TokenError::File { path: path.display().to_string(), source };
    let secret = if let Some(secret) = left_over(&path).map_err(failed)? {
        secret
    } else {
        let secret = generate()?;
        write(data_dir, &path, &secret).map_err(failed)?;
        secret
    };
    let new = NewToken { actor: Actor::from("person/admin"), role: Role::Admin, ttl: None };
    tokens.adopt(&Actor::from("muster"), new, &secret).await?;
    Ok(Some(path))
}

/// A token that was written before a crash and that nobody else could read.
fn left_over(path: &Path) -> std::io::Result<Option<SecretString>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.permissions().mode() & 0o077 != 0 || meta.len() > 1_024 {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let text = text.trim();
    Ok(token_id(text).map(|_| SecretString::from(text)))
}

/// Whole, or not at all, and on disk.
fn write(data_dir: &Path, path: &Path, secret: &SecretString) -> std::io::Result<()> {
    let new = data_dir.join(format!("{ADMIN_TOKEN_FILE}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    writeln!(file, "{}", secret.expose_secret())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(data_dir)?.sync_all()
}
