//! What a certificate says, and whether it can be trusted.

use jiff::Timestamp;
use rustls::{
    RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Valid until then.
    pub(super) not_after: Timestamp,
    /// Whole days until then; negative once it has passed.
    pub(super) days_left: i64,
    /// `CN=example.org`.
    pub(super) subject: String,
    /// Who signed it.
    pub(super) issuer: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub(super) fingerprint: String,
}

/// What the certificate says; an error in words where it can't be read.
pub(super) fn facts(der: &CertificateDer<'_>) -> Result<Facts, String> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| format!("the certificate can't be read: {e}"))?;
    let seconds = cert.validity().not_after.timestamp();
    let not_after = Timestamp::from_second(seconds).map_err(|e| format!("the certificate's end is no date: {e}"))?;
    Ok(Facts {
        not_after,
        days_left: (seconds - Timestamp::now().as_second()).div_euclid(86_400),
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        fingerprint: muster_kit::files::digest(der),
    })
}

/// Whether the chain leads to one of `roots` and is valid now, and whether the leaf is for all of `names`.
/// Each `Err` says why not.
pub(super) struct Trust {
    /// Signatures, dates, uses, up to a trusted root.
    pub(super) chain: Result<(), String>,
    /// The names.
    pub(super) name: Result<(), String>,
}

/// Judges a chain, leaf first.
pub(super) fn judge(chain: &[CertificateDer<'static>], roots: &RootCertStore, names: &[&str]) -> Trust {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return both("no certificate was shown");
    };
    let Ok(parsed) = ParsedCertificate::try_from(leaf) else {
        return both("the certificate can't be read");
    };
    let algorithms = muster_kit::net::provider().signature_verification_algorithms;
    let chain =
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, UnixTime::now(), algorithms.all)
            .map_err(|e| e.to_string());
    let name = names.iter().try_for_each(|name| {
        let wanted = ServerName::try_from(*name).map_err(|e| format!("{name}: {e}"))?;
        verify_server_name(&parsed, &wanted).map_err(|e| e.to_string())
    });
    Trust { chain, name }
}

fn both(why: &str) -> Trust {
    Trust { chain: Err(why.into()), name: Err(why.into()) }
}
