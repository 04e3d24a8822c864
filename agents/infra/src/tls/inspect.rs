//! `tls.inspect`: what a server shows in a real handshake.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use rustls::{ClientConnection, ProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::facts::{facts, judge};
use muster_kit::{bound::within, measure::observation, net, params};

/// Looks at the certificate that a server shows. A certificate that is expired, for another name or from an unknown
/// authority is what it found, not an error; no TLS at all is one.
pub struct Inspect;

/// Parameters of `tls.inspect`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InspectParams {
    /// Where to connect: `host:port`.
    pub address: String,
    /// The name to ask for and to find in the certificate; the host of `address` when absent.
    #[serde(default)]
    pub server_name: Option<String>,
    /// Absolute path of a PEM file with the authorities to trust; the system's when absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Limit for connection and handshake together, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `tls.inspect`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InspectOutput {
    /// Signatures, dates and uses are right up to a trusted authority.
    pub chain_valid: bool,
    /// The certificate is for the asked name.
    pub name_valid: bool,
    /// Whole days until it ends; negative once it has.
    pub days_left: i64,
    /// When it ends.
    #[schemars(with = "String")]
    pub not_after: Timestamp,
    /// `TLSv1.2` or `TLSv1.3`.
    pub protocol: String,
    /// The certificate's subject.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// What is wrong with chain or name, if anything.
    pub error: Option<String>,
}

#[async_trait]
impl Action for Inspect {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<InspectParams, InspectOutput>(
            "tls.inspect",
            "Look at the certificate a server shows: chain, name, days left, protocol.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: InspectParams = params::read(with)?;
        let output = inspect(ctx, &with).await?;
        #[expect(clippy::cast_precision_loss, reason = "days are far below 2^52")]
        let days_left = output.days_left as f64;
        let seen = observation("tls.inspect", "certificate_days_left", days_left, "days", None);
        Ok(Done { output: params::output(&output), observations: vec![seen] })
    }
}

async fn inspect(ctx: &Context, with: &InspectParams) -> Result<InspectOutput, ActionError> {
    let roots = net::roots(with.ca_file.as_deref())?;
    let shown = shown(ctx, &with.address, with.server_name.as_deref(), with.timeout_ms).await?;
    let facts = facts(&shown.chain[0]).map_err(ActionError::permanent)?;
    let trust = judge(&shown.chain, &roots, &[shown.name.as_str()]);
    Ok(InspectOutput {
        chain_valid: trust.chain.is_ok(),
        name_valid: trust.name.is_ok(),
        days_left: facts.days_left,
        not_after: facts.not_after,
        protocol: shown.protocol,
        subject: facts.subject,
        issuer: facts.issuer,
        fingerprint: facts.fingerprint,
        error: trust.chain.err().or_else(|| trust.name.err()),
    })
}

/// What a server shows in a handshake.
pub(super) struct Shown {
    /// At least one, the leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The name that it was asked for.
    pub(super) name: String,
    protocol: String,
}

/// Makes a handshake that trusts anybody, and ends it. Without a `name`, the host of the address is asked for.
pub(super) async fn shown(
    ctx: &Context,
    address: &str,
    name: Option<&str>,
    timeout_ms: u64,
) -> Result<Shown, ActionError> {
    let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']));
    let host = host.ok_or_else(|| ActionError::permanent(format!("address {address:?} is not host:port")))?;
    let name = name.unwrap_or(host).to_owned();
    let asked = ServerName::try_from(name.clone())
        .map_err(|e| ActionError::permanent(format!("server_name {name:?} is not a host name: {e}")))?;
    let (config, shown) = net::looking();
    let what = format!("{address} (TLS handshake)");
    let protocol = within(ctx, timeout_ms, &what, async {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("{address} refuses: {e}"))?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(asked, stream).await.map_err(|e| format!("no TLS with {address}: {e}"))?;
        Ok::<_, String>(protocol(stream.get_ref().1))
    });
    let protocol = protocol.await?.map_err(ActionError::retry)?;
    let chain = shown.chain();
    if chain.is_empty() {
        return Err(ActionError::retry(format!("{address} shows no certificate")));
    }
    Ok(Shown { chain, name, protocol })
}

fn protocol(connection: &ClientConnection) -> String {
    match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".into(),
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".into(),
        other => format!("{other:?}"),
    }
}
