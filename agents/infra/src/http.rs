//! `http.check`: one request, and what came back.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Instant};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Context, Done};
use muster_bus::message::Observation;
use reqwest::{Client, Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use muster_kit::{
    bound::within,
    measure::{ms_since, observation},
    net, params,
};

/// Sends one request, follows no redirect, and says what came back. With `expect`, an answer that is not as expected is a
/// failure that may pass by itself; without, every answer is an output. No answer at all is always a failure.
pub struct Check;

/// Parameters of `http.check`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckParams {
    /// `http://` or `https://`; its host is the name that is asked for.
    pub url: String,
    /// Where to connect instead of the URL's host: `host:port`. A port in the URL goes before this one.
    #[serde(default)]
    pub connect: Option<String>,
    /// Absolute path of a PEM file with the authorities to trust; the system's when absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// `GET` or `HEAD`.
    #[serde(default)]
    pub method: CheckMethod,
    /// Headers to send.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Limit for the whole exchange, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// What the answer must be.
    #[serde(default)]
    pub expect: Expect,
}

/// How to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckMethod {
    /// With a body in the answer.
    #[default]
    Get,
    /// Without.
    Head,
}

/// What the answer must be; what is absent is not looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The status code.
    #[serde(default)]
    pub status: Option<u16>,
    /// The answer is a redirect (301, 302, 307, 308) to HTTPS on the same host.
    #[serde(default)]
    pub redirect_to_https: bool,
    /// Headers that must be there and contain this text (the empty one: just be there).
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Time to first byte must be below this, in milliseconds.
    #[serde(default)]
    pub ttfb_ms_below: Option<f64>,
    /// The body must contain this.
    #[serde(default)]
    pub body_contains: Option<String>,
}

fn five_seconds() -> u64 {
    5_000
}

/// Output of `http.check`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CheckOutput {
    /// The status code.
    pub status: u16,
    /// Where a redirect points.
    pub location: Option<String>,
    /// A redirect to HTTPS on the same host.
    pub redirects_to_https: bool,
    /// The answer's headers, lower-case names; several of one name joined by a comma. Cookies are left out.
    pub headers: BTreeMap<String, String>,
    /// From the start (connection and TLS included) to the head of the answer, in milliseconds.
    pub ttfb_ms: f64,
    /// Length of the body; counted up to 1 MiB.
    pub body_bytes: u64,
}

const BODY_LIMIT: usize = 1024 * 1024;
/// Headers that may carry a secret.
const HIDDEN: [&str; 3] = ["set-cookie", "authorization", "www-authenticate"];

#[async_trait]
impl Action for Check {
    fn spec(&self) -> ActionSpec {
        params::probe_spec::<CheckParams, CheckOutput>(
            "http.check",
            "Send one HTTP request: status, redirect, headers, time to first byte.",
        )
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with: CheckParams = params::read(with)?;
        let url = Url::parse(&with.url).map_err(|e| ActionError::permanent(format!("url {:?}: {e}", with.url)))?;
        let client = with.client(&url, ctx).await?;
        let what = with.connect.as_deref().unwrap_or(&with.url);
        let (output, body) = within(ctx, with.timeout_ms, what, with.ask(&client, &url)).await??;
        let output_json = params::output(&output);
        if let Some(wrong) = with.expect.wrong(&output, &body) {
            let message = format!("{}: {wrong}", with.url);
            return Err(ActionError::Retry { message, output: Some(output_json) });
        }
        Ok(Done { observations: observations(&output), output: output_json })
    }
}

fn observations(output: &CheckOutput) -> Vec<Observation> {
    vec![
        observation("http.check", "ttfb", output.ttfb_ms, "ms", Some(1)),
        observation("http.check", "status", f64::from(output.status), "code", None),
    ]
}

impl CheckParams {
    async fn client(&self, url: &Url, ctx: &Context) -> Result<Client, ActionError> {
        let tls = net::trusting(net::roots(self.ca_file.as_deref())?);
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0);
        if let Some(connect) = &self.connect {
            let Some(host) = url.domain() else {
                return Err(ActionError::permanent(format!(
                    "connect needs a host name in the url, not {:?}",
                    self.url
                )));
            };
            let found = within(ctx, self.timeout_ms, "name resolution", tokio::net::lookup_host(connect)).await?;
            let found: Vec<SocketAddr> =
                found.map_err(|e| ActionError::retry(format!("connect {connect:?}: {e}")))?.collect();
            client = client.resolve_to_addrs(host, &found);
        }
        client.build().map_err(|e| ActionError::permanent(format!("no HTTP client: {}", chain(&e))))
    }

    async fn ask(&self, client: &Client, url: &Url) -> Result<(CheckOutput, Vec<u8>), ActionError> {
        let method = match self.method {
            CheckMethod::Get => Method::GET,
            CheckMethod::Head => Method::HEAD,
        };
        let start = Instant::now();
        let request = self.headers.iter().fold(client.request(method, url.clone()), |r, (k, v)| r.header(k, v));
        let mut answer = request.send().await.map_err(|e| {
            if e.is_builder() {
                ActionError::permanent(format!("{}: {}", self.url, chain(&e)))
            } else {
                ActionError::retry(format!("{} does not answer: {}", self.url, chain(&e)))
            }
        })?;
        let ttfb_ms = ms_since(start);
        let mut body = Vec::new();
        while body.len() < BODY_LIMIT {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(e) => return Err(ActionError::retry(format!("{} broke off: {}", self.url, chain(&e)))),
            }
        }
        body.truncate(BODY_LIMIT);
        let headers = headers(answer.headers());
        let location = headers.get("location").cloned();
        let status = answer.status().as_u16();
        let redirects_to_https = matches!(status, 301 | 302 | 307 | 308)
            && location
                .as_deref()
                .and_then(|l| Url::parse(l).ok())
                .is_some_and(|target| target.scheme() == "https" && target.host_str() == url.host_str());
        let body_bytes = body.len() as u64;
        Ok((CheckOutput { status, location, redirects_to_https, headers, ttfb_ms, body_bytes }, body))
    }
}

impl Expect {
    /// What is not as expected, if anything.
    fn wrong(&self, output: &CheckOutput, body: &[u8]) -> Option<String> {
        if let Some(status) = self.status.filter(|status| *status != output.status) {
            return Some(format!("status {} instead of {status}", output.status));
        }
        if self.redirect_to_https && !output.redirects_to_https {
            let there = output.location.as_deref().unwrap_or("no redirect");
            return Some(format!("no redirect to HTTPS: status {}, {there}", output.status));
        }
        for (name, part) in &self.headers {
            match output.headers.get(&name.to_ascii_lowercase()) {
                None => return Some(format!("no header {name}")),
                Some(value) if !value.contains(part) => return Some(format!("header {name} is {value:?}")),
                Some(_) => {}
            }
        }
        if let Some(limit) = self.ttfb_ms_below.filter(|limit| output.ttfb_ms >= *limit) {
            return Some(format!("time to first byte {} ms, below {limit} ms wanted", output.ttfb_ms));
        }
        let wanted = self.body_contains.as_ref()?;
        let found = String::from_utf8_lossy(body).contains(wanted.as_str());
        (!found).then(|| format!("the body does not contain {wanted:?}"))
    }
}

fn headers(all: &reqwest::header::HeaderMap) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in all {
        if HIDDEN.contains(&name.as_str()) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|joined| {
                joined.push_str(", ");
                joined.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    headers
}

/// An error with all its sources: reqwest's own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> CheckOutput {
        CheckOutput {
            status: 200,
            location: None,
            redirects_to_https: false,
            headers: BTreeMap::from([("x-version".into(), "1.2.3".into())]),
            ttfb_ms: 20.0,
            body_bytes: 2,
        }
    }

    #[test]
    fn each_expectation_can_fail_and_can_pass() {
        let expect = |e: serde_json::Value| serde_json::from_value::<Expect>(e).unwrap().wrong(&answer(), b"ok");
        for (good, bad) in [
            (serde_json::json!({"status": 200}), serde_json::json!({"status": 301})),
            (serde_json::json!({"headers": {"X-Version": "1.2"}}), serde_json::json!({"headers": {"X-Version": "9"}})),
            (serde_json::json!({"headers": {"x-version": ""}}), serde_json::json!({"headers": {"x-other": ""}})),
            (serde_json::json!({"ttfb_ms_below": 21}), serde_json::json!({"ttfb_ms_below": 20})),
            (serde_json::json!({"body_contains": "k"}), serde_json::json!({"body_contains": "failing"})),
            (serde_json::json!({}), serde_json::json!({"redirect_to_https": true})),
        ] {
            assert_eq!(expect(good.clone()), None, "{good}");
            assert!(expect(bad.clone()).is_some(), "{bad}");
        }
    }
}
