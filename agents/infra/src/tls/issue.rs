//! Making keys and certificates (ECDSA P-256).

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its private key, both PEM.
pub(super) struct Issued {
    pub(super) cert: String,
    pub(super) key: String,
}

const DAY: Duration = Duration::from_secs(86_400);
/// Certificates are valid from a little earlier, for clocks that are behind, and until a little later, so that a new one has
/// all its days left.
const SLACK: Duration = Duration::from_secs(3_600);

/// A new certificate authority.
pub(super) fn authority(name: &str, days: u32) -> Result<Issued, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, days);
    let key = KeyPair::generate()?;
    Ok(Issued { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A new server certificate for `names` (the first is its common name), signed by the authority.
pub(super) fn server(names: &[String], days: u32, ca_cert: &str, ca_key: &str) -> Result<Issued, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(ca_cert, KeyPair::from_pem(ca_key)?)?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names[0].as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days);
    let key = KeyPair::generate()?;
    Ok(Issued { cert: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - SLACK).into();
    params.not_after = (now + DAY * days + SLACK).into();
}
