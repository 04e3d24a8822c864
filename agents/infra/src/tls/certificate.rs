//! `tls.certificate`: a key and a certificate in their place.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use jiff::Timestamp;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    facts::{Facts, facts, judge},
    inspect::shown,
    issue,
};
use muster_kit::{
    bound::{blocking, until},
    files::{self, Before},
    measure::observation,
    net, params,
    process::Server,
};

/// Puts a key and a certificate from an authority of its own into place, and makes the authority if there is none.
///
/// Idempotent: with a valid chain, the right names, a key that fits and is readable by its owner alone, and
/// `renew_before_days` left, nothing is done. Key before certificate, each replaced whole; a crash between the two is found
/// by the check (they don't fit) and mended by the next run. `undo` puts all four files back.
pub struct Certificate;

/// Parameters of `tls.certificate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateParams {
    /// The name it is for, and its common name.
    pub domain: String,
    /// More names or IP addresses it is for.
    #[serde(default)]
    pub alt_names: Vec<String>,
    /// Absolute path of the certificate (PEM).
    pub cert: PathBuf,
    /// Absolute path of the private key (PEM, mode 0600).
    pub key: PathBuf,
    /// Absolute path of the authority's certificate (PEM).
    pub ca: PathBuf,
    /// Absolute path of the authority's private key (PEM, mode 0600).
    pub ca_key: PathBuf,
    /// Make an authority where there is none, or where it ends before the certificate would.
    #[serde(default = "yes")]
    pub make_ca: bool,
    /// How long a new certificate is valid, in days.
    #[serde(default = "ninety")]
    #[schemars(range(min = 1, max = 825))]
    pub days: u32,
    /// A certificate with fewer days left is replaced.
    #[serde(default = "thirty")]
    pub renew_before_days: u32,
    /// `host:port` where it has to be served. The check looks there, so that a server that has missed its reload is seen, and
    /// a run waits until it is served.
    #[serde(default)]
    pub served_at: Option<String>,
    /// Who has to read it again (SIGHUP), also after an undo.
    #[serde(default)]
    pub reload: Option<Server>,
}

fn yes() -> bool {
    true
}

fn ninety() -> u32 {
    90
}

fn thirty() -> u32 {
    30
}

/// Output of `tls.certificate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CertificateOutput {
    /// When the certificate ends.
    #[schemars(with = "String")]
    pub not_after: Timestamp,
    /// Whole days until then.
    pub days_left: i64,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// Where the certificate is.
    pub cert: PathBuf,
    /// Where the key is.
    pub key: PathBuf,
    /// Where the authority's certificate is.
    pub ca: PathBuf,
}

const CA_NAME: &str = "Muster internal CA";
const CA_DAYS: u32 = 3_650;
/// How long one look at the server may take.
const LOOK_MS: u64 = 2_000;
/// How long a server may take to serve a certificate that it was told to read.
const SERVED_MS: u64 = 10_000;

#[async_trait]
impl Action for Certificate {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<CertificateParams, CertificateOutput>(
            "tls.certificate",
            "Put a key and a certificate from an own authority into place; renew in time.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = Arc::new(CertificateParams::read(with)?);
        let files = Arc::clone(&with);
        let facts = match blocking(move || files.in_place()).await? {
            Ok(facts) => facts,
            Err(diff) => return Ok(Checked::Different { diff }),
        };
        Ok(match with.served(ctx, &facts.fingerprint).await {
            Ok(()) => Checked::Satisfied(done(&with, facts)),
            Err(diff) => Checked::Different { diff },
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = CertificateParams::read(with)?;
        blocking(move || Ok(params::output(&with.before()?))).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = Arc::new(CertificateParams::read(with)?);
        ctx.progress(&format!("issuing a certificate for {}", with.domain), None);
        let files = Arc::clone(&with);
        let facts = blocking(move || {
            for file in files.before()? {
                file.keep()?;
            }
            files.issue()?;
            files.in_place()?.map_err(|why| {
                ActionError::permanent(format!("the new certificate is not as wanted: {why}; see the parameters"))
            })
        })
        .await?;
        if let Some(server) = &with.reload
            && !server.reload_and_wait(ctx).await?
        {
            let name = &server.process;
            return Err(ActionError::retry(format!("the certificate is in place, but {name} does not run; start it")));
        }
        until(ctx, SERVED_MS, 100, "the new certificate", || with.served(ctx, &facts.fingerprint)).await?;
        Ok(done(&with, facts))
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = CertificateParams::read(with)?;
        let files: Vec<Before> = params::read(prepared)?;
        blocking(move || files::restore_all(&files)).await?;
        // Also when nothing had to be put back: the undo before this one may have died before the signal.
        if let Some(server) = &with.reload {
            server.reload_and_wait(ctx).await?;
        }
        Ok(Done::default())
    }
}

fn done(with: &CertificateParams, facts: Facts) -> Done {
    #[expect(clippy::cast_precision_loss, reason = "days are far below 2^52")]
    let left = observation("tls.certificate", "certificate_days_left", facts.days_left as f64, "days", None);
    let output = CertificateOutput {
        not_after: facts.not_after,
        days_left: facts.days_left,
        fingerprint: facts.fingerprint,
        cert: with.cert.clone(),
        key: with.key.clone(),
        ca: with.ca.clone(),
    };
    Done { output: params::output(&output), observations: vec![left] }
}

impl CertificateParams {
    fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        for (field, path) in with.paths() {
            params::absolute(field, path)?;
        }
        for name in with.names() {
            params::plain("domain", &name, ".-:")?;
        }
        if !(1..=825).contains(&with.days) || with.renew_before_days >= with.days {
            return Err(ActionError::permanent(format!(
                "days ({}) must be 1 to 825 and more than renew_before_days ({})",
                with.days, with.renew_before_days
            )));
        }
        Ok(with)
    }

    fn paths(&self) -> [(&'static str, &Path); 4] {
        [("ca", &self.ca), ("ca_key", &self.ca_key), ("key", &self.key), ("cert", &self.cert)]
    }

    fn names(&self) -> Vec<String> {
        std::iter::once(&self.domain).chain(&self.alt_names).cloned().collect()
    }

    /// Whether the server shows this certificate; yes where none is named.
    async fn served(&self, ctx: &Context, fingerprint: &str) -> Result<(), String> {
        let Some(address) = &self.served_at else { return Ok(()) };
        let shown = shown(ctx, address, Some(&self.domain), LOOK_MS).await.map_err(|e| e.to_string())?;
        if files::digest(&shown.chain[0]) == fingerprint {
            return Ok(());
        }
        Err(format!("{address} still serves another certificate"))
    }

    fn before(&self) -> Result<Vec<Before>, ActionError> {
        self.paths().iter().map(|(_, path)| Before::of(path)).collect()
    }

    /// What is there; `Err` says what is different.
    fn in_place(&self) -> Result<Result<Facts, String>, ActionError> {
        let (Some(cert), Some(key), Some(ca)) =
            (files::read(&self.cert)?, files::read(&self.key)?, files::read(&self.ca)?)
        else {
            return Ok(Err(format!("no certificate for {} yet; a new one is issued", self.domain)));
        };
        let mode = files::mode(&self.key)?;
        Ok(self.judge(&cert, &key, &ca, mode))
    }

    fn judge(&self, cert: &[u8], key: &[u8], ca: &[u8], mode: u32) -> Result<Facts, String> {
        if mode & 0o077 != 0 {
            return Err(format!("the key may be read by others (mode {mode:04o}); key and certificate are replaced"));
        }
        let chain = net::certificates(cert);
        let facts = facts(chain.first().ok_or("the certificate file holds none")?)?;
        if facts.days_left < i64::from(self.renew_before_days) {
            return Err(format!("{} days left, {} wanted; it is renewed", facts.days_left, self.renew_before_days));
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(net::certificates(ca));
        let names = self.names();
        let trust = judge(&chain, &roots, &names.iter().map(String::as_str).collect::<Vec<_>>());
        trust.chain.map_err(|why| format!("the authority does not vouch for it: {why}"))?;
        trust.name.map_err(|why| format!("it is not for all names: {why}"))?;
        fits(chain, key)?;
        Ok(facts)
    }

    /// Writes what is missing: authority (if need be), key, certificate.
    fn issue(&self) -> Result<(), ActionError> {
        let (ca, ca_key) = self.authority()?;
        let issued = issue::server(&self.names(), self.days, &ca, &ca_key)
            .map_err(|e| ActionError::permanent(format!("no certificate for {} can be made: {e}", self.domain)))?;
        files::write(&self.key, issued.key.as_bytes(), 0o600)?;
        files::write(&self.cert, issued.cert.as_bytes(), 0o644)
    }

    fn authority(&self) -> Result<(String, String), ActionError> {
        let read = |path: &Path| files::read(path).map(|c| c.and_then(|c| String::from_utf8(c).ok()));
        if let (Some(cert), Some(key)) = (read(&self.ca)?, read(&self.ca_key)?) {
            let der = net::certificates(cert.as_bytes());
            let left = der.first().and_then(|der| facts(der).ok()).map_or(0, |facts| facts.days_left);
            if left >= i64::from(self.days) && fits(der, key.as_bytes()).is_ok() {
                return Ok((cert, key));
            }
        }
        if !self.make_ca {
            return Err(ActionError::needs_person(format!(
                "the authority {} is missing, does not fit its key, or ends within {} days; renew it",
                self.ca.display(),
                self.days
            )));
        }
        let made = issue::authority(CA_NAME, CA_DAYS)
            .map_err(|e| ActionError::permanent(format!("no authority can be made: {e}")))?;
        files::write(&self.ca_key, made.key.as_bytes(), 0o600)?;
        files::write(&self.ca, made.cert.as_bytes(), 0o644)?;
        Ok((made.cert, made.key))
    }
}

fn fits(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<(), String> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key can't be read: {e}"))?;
    let pair =
        CertifiedKey::from_der(chain, key, &net::provider()).map_err(|e| format!("the key does not fit: {e}"))?;
    pair.keys_match().map_err(|e| format!("the key does not fit: {e}"))
}
