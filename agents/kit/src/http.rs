//! HTTP as a client: where to ask, and one question with its times.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use muster_agent::{ActionError, Context};
use reqwest::{Client, ClientBuilder, Method, Url};
use rustls::RootCertStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{bound::within, measure::ms_since, net};

/// Where to ask.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `http://` or `https://`; its host is the name that is asked for.
    pub url: String,
    /// Where to connect instead of the URL's host: `host:port`. A port in the URL goes before this one.
    #[serde(default)]
    pub connect: Option<String>,
    /// Absolute path of a PEM file with the authorities to trust; the system's when absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Headers to send.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// From the start (connection and TLS included, where one is made) to the head of the answer, in milliseconds.
    pub ttfb_ms: f64,
    /// To the end of the body, in milliseconds.
    pub total_ms: f64,
    /// The body's length.
    pub body_bytes: u64,
    /// Its begin, as much as was asked for.
    pub body: Vec<u8>,
}

/// How long finding an address may take, in milliseconds.
const RESOLVE_MS: u64 = 5_000;

impl Target {
    /// A plain address on this host or beside it: `http://{address}{path}`.
    pub fn at(address: &str, path: &str) -> Self {
        Self { url: format!("http://{address}{path}"), ..Self::default() }
    }

    /// Something to ask with: no proxy, no redirect, no other authority than was named. `reuse`: keep connections open.
    ///
    /// # Errors
    /// Permanent when the parameters are wrong, [`ActionError::Retry`] when `connect` can't be resolved.
    pub async fn asker(&self, ctx: &Context, reuse: bool) -> Result<Asker, ActionError> {
        let url = Url::parse(&self.url).map_err(|e| ActionError::permanent(format!("url {:?}: {e}", self.url)))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ActionError::permanent(format!("url {:?}: http:// or https:// is needed", self.url)));
        }
        let plain = url.scheme() == "http" && self.ca_file.is_none();
        let roots = if plain { RootCertStore::empty() } else { net::roots(self.ca_file.as_deref())? };
        let tls = net::trusting(roots);
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A failed request has to be seen, not repeated.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(if reuse { usize::MAX } else { 0 });
        let client = self.connected(ctx, &url, client).await?;
        let client = client.build().map_err(|e| ActionError::permanent(format!("no HTTP client: {}", chain(&e))))?;
        let asker = Asker { client, url, headers: self.headers.clone() };
        asker.request(Method::GET).build().map_err(|e| ActionError::permanent(format!("headers: {}", chain(&e))))?;
        Ok(asker)
    }

    async fn connected(&self, ctx: &Context, url: &Url, client: ClientBuilder) -> Result<ClientBuilder, ActionError> {
        let Some(connect) = &self.connect else { return Ok(client) };
        let Some(host) = url.domain() else {
            return Err(ActionError::permanent(format!("connect needs a host name in the url, not {:?}", self.url)));
        };
        let found = within(ctx, RESOLVE_MS, "name resolution", tokio::net::lookup_host(connect)).await?;
        let found: Vec<SocketAddr> =
            found.map_err(|e| ActionError::retry(format!("connect {connect:?}: {e}")))?.collect();
        Ok(client.resolve_to_addrs(host, &found))
    }
}

/// Asks one target again and again. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Asker {
    client: Client,
    url: Url,
    headers: BTreeMap<String, String>,
}

impl Asker {
    /// One question; the body is read to its end, and its first `keep` bytes are kept. The error says why there was no whole
    /// answer within `limit_ms`.
    pub async fn ask(&self, method: Method, limit_ms: u64, keep: usize) -> Result<Answer, String> {
        let asked = tokio::time::timeout(Duration::from_millis(limit_ms), self.exchange(method, keep)).await;
        asked.unwrap_or_else(|_| Err(format!("no whole answer within {limit_ms} ms")))
    }

    async fn exchange(&self, method: Method, keep: usize) -> Result<Answer, String> {
        let start = Instant::now();
        let mut response = self.request(method).send().await.map_err(|e| chain(&e))?;
        let mut answer = Answer { status: response.status().as_u16(), ttfb_ms: ms_since(start), ..Answer::default() };
        while let Some(chunk) = response.chunk().await.map_err(|e| format!("broke off: {}", chain(&e)))? {
            answer.body_bytes += chunk.len() as u64;
            let room = keep.saturating_sub(answer.body.len()).min(chunk.len());
            answer.body.extend_from_slice(&chunk[..room]);
        }
        answer.total_ms = ms_since(start);
        Ok(answer)
    }

    fn request(&self, method: Method) -> reqwest::RequestBuilder {
        let request = self.client.request(method, self.url.clone());
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }
}

/// An error with all its sources: reqwest's own text says little. Without the URL, which may hold what is not for all.
fn chain(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut text = match source {
        Some(inner) => inner.to_string(),
        None => error.to_string(),
    };
    while let Some(inner) = source.and_then(std::error::Error::source) {
        text = format!("{text}: {inner}");
        source = Some(inner);
    }
    text
}
