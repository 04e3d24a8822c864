//! TLS as a client: whom to trust, and what the other side shows.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use muster_agent::ActionError;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

/// The one TLS implementation used here; no process-wide default has to be installed.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Whom to trust: the certificates in `ca_file`, or the system's.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, ActionError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    crate::params::absolute("ca_file", path)?;
    let file = path.display();
    let pem = std::fs::read(path).map_err(|e| ActionError::retry(format!("the CA file {file} can't be read: {e}")))?;
    let (added, _) = roots.add_parsable_certificates(certificates(&pem));
    if added == 0 {
        return Err(ActionError::permanent(format!("the CA file {file} holds no certificate")));
    }
    Ok(roots)
}

/// The certificates in a PEM text, in its order; what is none is left out.
pub fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

/// A client that refuses whoever is not vouched for by `roots`.
pub fn trusting(roots: RootCertStore) -> ClientConfig {
    builder().with_root_certificates(roots).with_no_client_auth()
}

/// A client that refuses nobody, and what the other side showed it: for looking, never for sending anything.
pub fn looking() -> (ClientConfig, Arc<Shown>) {
    let shown = Arc::new(Shown::default());
    let config = builder().dangerous().with_custom_certificate_verifier(Arc::clone(&shown) as _).with_no_client_auth();
    (config, shown)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the ring provider has cipher suites for TLS 1.2 and 1.3")
}

/// The certificates that the other side showed.
#[derive(Debug, Default)]
pub struct Shown(Mutex<Vec<CertificateDer<'static>>>);

impl Shown {
    /// The leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
