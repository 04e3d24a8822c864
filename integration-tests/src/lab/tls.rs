//! Certificates for the lab's faults.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::process::RunAs;

/// A folder with an authority (`ca.crt`, `ca.key`) and a server certificate (`site.crt`, `site.key`).
#[derive(Clone, Debug)]
pub struct Certificates {
    dir: PathBuf,
}

const DAY: Duration = Duration::from_secs(86_400);

impl Certificates {
    /// Makes them: the authority good for a year, the certificate for `name` until `days` from now; negative is the past.
    pub fn make(dir: &Path, run_as: &RunAs, name: &str, days: i64) -> Result<Self> {
        run_as.folder(dir)?;
        let made = Self { dir: dir.to_owned() };
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.distinguished_name.push(DnType::CommonName, "Lab authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.not_before = (SystemTime::now() - DAY * 400).into();
        ca.not_after = (SystemTime::now() + DAY * 365).into();
        let ca_key = KeyPair::generate()?;
        run_as.file(&made.ca(), &ca.self_signed(&ca_key)?.pem())?;
        secret(run_as, &made.ca_key(), &ca_key.serialize_pem())?;
        let mut site = CertificateParams::new(vec![name.to_owned()])?;
        site.distinguished_name.push(DnType::CommonName, name);
        site.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        site.not_before = (SystemTime::now() - DAY * 200).into();
        let distance = DAY * u32::try_from(days.unsigned_abs())?;
        let end = if days < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance };
        site.not_after = end.into();
        let key = KeyPair::generate()?;
        run_as.file(&made.cert(), &site.signed_by(&key, &Issuer::new(ca, ca_key))?.pem())?;
        secret(run_as, &made.key(), &key.serialize_pem())?;
        Ok(made)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The authority's key.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// The server's certificate.
    pub fn cert(&self) -> PathBuf {
        self.dir.join("site.crt")
    }

    /// The server's key.
    pub fn key(&self) -> PathBuf {
        self.dir.join("site.key")
    }
}

/// Writes a file that only its owner may read.
pub(super) fn secret(run_as: &RunAs, path: &Path, content: &str) -> Result<()> {
    run_as.file(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}
