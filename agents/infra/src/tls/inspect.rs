//! `tls.inspect`: what a server shows in a real handshake.

use std::path::PathBuf;

use async_trait::async_trait;
use jiff::Timestamp;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use rustls::{ClientConnection, ProtocolVersion};
use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::facts::{facts, judge};
use crate::{bound::within, measure::observation, net, params};

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
    let host = with.address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']));
    let host = host.ok_or_else(|| ActionError::permanent(format!("address {:?} is not host:port", with.address)))?;
    let name = with.server_name.as_deref().unwrap_or(host);
    let asked = ServerName::try_from(name.to_owned())
        .map_err(|e| ActionError::permanent(format!("server_name {name:?} is not a host name: {e}")))?;
    let roots = net::roots(with.ca_file.as_deref())?;
    let (config, shown) = net::looking();
    let what = format!("{} (TLS handshake)", with.address);
    let protocol = within(ctx, with.timeout_ms, &what, async {
        let stream = TcpStream::connect(&with.address).await.map_err(|e| format!("{} refuses: {e}", with.address))?;
        let connector = TlsConnector::from(std::sync::Arc::new(config));
        let stream =
            connector.connect(asked, stream).await.map_err(|e| format!("no TLS with {}: {e}", with.address))?;
        Ok::<_, String>(protocol(stream.get_ref().1))
    });
    let protocol = protocol.await?.map_err(ActionError::retry)?;
    let chain = shown.chain();
    let leaf = chain.first().ok_or_else(|| ActionError::retry(format!("{} shows no certificate", with.address)))?;
    let facts = facts(leaf).map_err(ActionError::permanent)?;
    let trust = judge(&chain, &roots, &[name]);
    Ok(InspectOutput {
        chain_valid: trust.chain.is_ok(),
        name_valid: trust.name.is_ok(),
        days_left: facts.days_left,
        not_after: facts.not_after,
        protocol,
        subject: facts.subject,
        issuer: facts.issuer,
        fingerprint: facts.fingerprint,
        error: trust.chain.err().or_else(|| trust.name.err()),
    })
}

fn protocol(connection: &ClientConnection) -> String {
    match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".into(),
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".into(),
        other => format!("{other:?}"),
    }
}
