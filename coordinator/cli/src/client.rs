//! How a coordinator is reached: a channel, TLS where the address says https, and the bearer token on every request.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::v1::{
    agent_service_client::AgentServiceClient, coordinator_service_client::CoordinatorServiceClient,
    milestone_service_client::MilestoneServiceClient, playbook_service_client::PlaybookServiceClient,
    run_service_client::RunServiceClient, token_service_client::TokenServiceClient,
};
use rustls::CertificateError;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};

use crate::{
    config::Settings,
    error::{CliError, Result, chain},
};

const USUAL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A plan or a run with many steps is larger than tonic's usual 4 MiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A connection to a coordinator.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Service,
    server: String,
    namespace: String,
    timeout: Option<Duration>,
}

type Service = InterceptedService<Channel, Bearer>;

/// Adds the token.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connect, with the token that was given or that lies beside a local server.
    pub(crate) async fn connect(settings: &Settings, token: Option<SecretString>) -> Result<Self> {
        let timeout = settings.timeout()?;
        let token = match token {
            Some(token) => Some(token),
            None => find_token(settings)?,
        };
        let bearer = token.as_ref().map(bearer).transpose()?;
        let endpoint = endpoint(settings)?;
        let channel = endpoint.connect().await.map_err(|e| unreachable(&settings.server, &e))?;
        Ok(Self {
            channel: InterceptedService::new(channel, Bearer(bearer)),
            server: settings.server.clone(),
            namespace: settings.namespace.clone(),
            timeout,
        })
    }

    /// Playbooks.
    pub(crate) fn playbooks(&self) -> PlaybookServiceClient<Service> {
        PlaybookServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Runs and steps.
    pub(crate) fn runs(&self) -> RunServiceClient<Service> {
        RunServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Agents.
    pub(crate) fn agents(&self) -> AgentServiceClient<Service> {
        AgentServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The coordinator itself.
    pub(crate) fn coordinator(&self) -> CoordinatorServiceClient<Service> {
        CoordinatorServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Milestones.
    pub(crate) fn milestones(&self) -> MilestoneServiceClient<Service> {
        MilestoneServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Tokens.
    pub(crate) fn tokens(&self) -> TokenServiceClient<Service> {
        TokenServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// A request that is answered soon.
    pub(crate) fn soon<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.soon_is());
        request
    }

    /// What the coordinator said, or why it could not be asked.
    pub(crate) fn error(&self, status: &Status) -> CliError {
        CliError::from_status(status, &self.server, self.soon_is())
    }

    /// Nothing came from it in the time that was given.
    pub(crate) fn unanswered(&self) -> CliError {
        CliError::unanswered(&self.server, self.soon_is())
    }

    fn soon_is(&self) -> Duration {
        self.timeout.unwrap_or(USUAL_TIMEOUT)
    }

    /// Longest time for what follows a run; none: without limit.
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.timeout
    }

    /// `namespaces/{ns}`
    pub(crate) fn parent(&self) -> String {
        format!("namespaces/{}", self.namespace)
    }

    /// `namespaces/{ns}/{kind}/{id}`; a whole name stays as it is.
    pub(crate) fn name(&self, kind: &str, id: &str) -> String {
        if id.starts_with("namespaces/") { id.to_owned() } else { format!("namespaces/{}/{kind}/{id}", self.namespace) }
    }
}

fn endpoint(settings: &Settings) -> Result<Endpoint> {
    let bad = |why: &str| {
        CliError::usage("SERVER_INVALID", format!("{:?} is no address of a server: {why}", settings.server))
            .hint("such as http://127.0.0.1:7400 or https://muster.example.org:7400")
    };
    let uri: Uri = settings.server.parse().map_err(|_| bad("it can't be read"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(_) | None => return Err(bad("it has to begin with http:// or https://")),
    };
    let endpoint = Endpoint::from(uri).connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    if !tls {
        return Ok(endpoint);
    }
    let config = if settings.ca.as_os_str().is_empty() {
        ClientTlsConfig::new().with_native_roots()
    } else {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&settings.ca)?))
    };
    endpoint.tls_config(config).map_err(|e| bad(&chain(&e)))
}

fn find_token(settings: &Settings) -> Result<Option<SecretString>> {
    if !settings.token_file.as_os_str().is_empty() {
        return read(&settings.token_file).map(Some).map(|t| t.map(|t| SecretString::from(t.trim())));
    }
    // As `serve` finds it, which commands that only ask do not: its folder is no option of theirs.
    let data_dir = std::env::var_os("MUSTER_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let beside = data_dir.unwrap_or_else(|| settings.serve.data_dir()).join("admin.token");
    if !is_local(&settings.server) || !beside.is_file() {
        return Ok(None);
    }
    // Another user's coordinator may answer here: its token file is not ours to read, and not an error.
    Ok(read(&beside).ok().map(|token| SecretString::from(token.trim())))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| CliError::file(path, "read", &e))
}

fn is_local(server: &str) -> bool {
    let Ok(uri) = server.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn bearer(token: &SecretString) -> Result<MetadataValue<Ascii>> {
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose_secret()))
        .map_err(|_| CliError::usage("TOKEN_INVALID", "the token has characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unreachable(server: &str, error: &tonic::transport::Error) -> CliError {
    // The outermost error says no more than "transport error".
    let why = std::error::Error::source(error).map_or_else(|| error.to_string(), chain);
    let (reason, hint) = match of_tls(error) {
        Some(rustls::Error::InvalidCertificate(fault)) => ("TLS_UNTRUSTED", hint_of(fault, "--server", "--ca")),
        Some(_) => ("TLS_FAILED", "use http:// if the server has no TLS".to_owned()),
        None => (
            "SERVER_UNREACHABLE",
            "start one with `muster serve`, or name another one with --server or MUSTER_SERVER".to_owned(),
        ),
    };
    CliError::failed(reason, why).at(server).hint(hint)
}

/// What to do about a certificate of a server; the options name it, and its authority.
pub(crate) fn hint_of(fault: &CertificateError, server: &str, ca: &str) -> String {
    use CertificateError as Fault;
    if matches!(fault, Fault::NotValidForName | Fault::NotValidForNameContext { .. }) {
        return format!("name the server with {server} as its certificate does");
    }
    let of_time = matches!(
        fault,
        Fault::Expired | Fault::ExpiredContext { .. } | Fault::NotValidYet | Fault::NotValidYetContext { .. }
    );
    if of_time {
        return "the server needs another certificate, or a clock is wrong".to_owned();
    }
    format!("{ca} FILE names the authority that signed it")
}

/// What TLS says, under an error of the transport. An I/O error hides its cause from its sources.
pub(crate) fn of_tls<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let hidden = |error: &'e (dyn std::error::Error + 'static)| {
        error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()
    };
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<rustls::Error>().or_else(|| hidden(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_local() {
        for local in ["http://127.0.0.1:7400", "http://localhost:1", "https://[::1]:7400"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["http://10.0.0.1:7400", "https://muster.example.org", "nonsense", "http://127.0.0.1.example.org"]
        {
            assert!(!is_local(remote), "{remote}");
        }
    }
}
