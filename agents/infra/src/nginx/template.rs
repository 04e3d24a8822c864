//! A site's configuration as text.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use muster_agent::ActionError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::server::{Nginx, plain_path};
use muster_kit::params::plain;

/// Parameters of `nginx.site`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteParams {
    /// Absolute path of the site's own file, which the main configuration includes in its `http` block.
    pub site: PathBuf,
    /// Absolute path of the main configuration.
    pub config: PathBuf,
    /// Absolute path of the running nginx' pid file.
    pub pid_file: PathBuf,
    /// Absolute path of the program.
    #[serde(default = "nginx")]
    pub binary: PathBuf,
    /// Its prefix (`-p`); the built-in one when absent.
    #[serde(default)]
    pub prefix: Option<PathBuf>,
    /// The host name of the site.
    pub server_name: String,
    /// Where to listen for HTTP: `80` or `127.0.0.1:8080`.
    #[serde(default)]
    pub listen_http: Option<String>,
    /// Where to listen for HTTPS: `443` or `127.0.0.1:8443`. Needs `cert` and `key`.
    #[serde(default)]
    pub listen_https: Option<String>,
    /// Absolute path of the certificate.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Absolute path of its key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// What it stands in front of: `host:port`, one or more, in turn.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub upstreams: Vec<String>,
    /// Instead of `upstreams`: the name of servers that `nginx.upstream` sets up.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Answer HTTP with 301 to HTTPS (where both are listened for).
    #[serde(default = "yes")]
    pub redirect_to_https: bool,
    /// The port in that redirect; the one of `listen_https` when absent. 443 is left out of the address.
    #[serde(default)]
    pub public_https_port: Option<u16>,
    /// Headers added to every answer over HTTPS (over HTTP where there is no HTTPS).
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How long a reload may take until the new configuration answers, in milliseconds.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1, max = 120_000))]
    pub settle_ms: u64,
}

fn nginx() -> PathBuf {
    "/usr/sbin/nginx".into()
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> u64 {
    10_000
}

/// Where the site says which configuration is at work.
pub(super) const MARK_PATH: &str = "/.well-known/muster-site";
/// What it says begins with this.
pub(super) const MARK: &str = "muster-site-";

/// The text of the site's file, and the mark that its answers at [`MARK_PATH`] carry.
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) mark: String,
}

impl SiteParams {
    /// Refuses what could break out of its place in the configuration, and what does not fit together.
    pub(super) fn validate(&self) -> Result<(), ActionError> {
        self.nginx().validate()?;
        let paths = [("site", Some(&self.site)), ("cert", self.cert.as_ref()), ("key", self.key.as_ref())];
        for (field, path) in paths {
            path.map_or(Ok(()), |path| plain_path(field, path))?;
        }
        plain("server_name", &self.server_name, ".-_")?;
        for listen in self.listen_http.iter().chain(&self.listen_https) {
            plain("listen", listen, ".:[]*")?;
        }
        if self.upstreams.is_empty() == self.upstream.is_none() || self.upstreams.len() > 64 {
            return Err(ActionError::permanent("upstreams: 1 to 64 are needed, or the name of an upstream"));
        }
        self.upstream.iter().try_for_each(|name| plain("upstream", name, "._-"))?;
        self.upstreams.iter().try_for_each(|upstream| plain("upstreams", upstream, ".:-_[]"))?;
        for (name, value) in &self.headers {
            plain("headers", name, "-_")?;
            plain("headers", value, " -_.,:;=/*()'+?&%@")?;
        }
        if self.listen_https.is_some() && (self.cert.is_none() || self.key.is_none()) {
            return Err(ActionError::permanent("listen_https needs cert and key"));
        }
        if self.listen_http.is_none() && self.listen_https.is_none() {
            return Err(ActionError::permanent("listen_http or listen_https is needed"));
        }
        Ok(())
    }

    /// The nginx that serves it.
    pub(super) fn nginx(&self) -> Nginx<'_> {
        Nginx {
            config: &self.config,
            pid_file: &self.pid_file,
            binary: &self.binary,
            prefix: self.prefix.as_ref(),
            settle_ms: self.settle_ms,
        }
    }

    /// The configuration. Same parameters, same text.
    pub(super) fn render(&self) -> Rendered {
        let mark = format!("{MARK}{}", &muster_kit::files::digest(self.text("").as_bytes())[..16]);
        Rendered { text: self.text(&mark), mark }
    }

    fn text(&self, mark: &str) -> String {
        let mut text = String::from("# Written by muster (nginx.site); changes made by hand are overwritten.\n");
        let own = || format!("muster_{}", self.server_name.replace(['.', '-'], "_"));
        let pool = self.upstream.clone().unwrap_or_else(own);
        let servers = self.upstreams.iter().fold(String::new(), |all, upstream| all + "    server " + upstream + ";\n");
        if self.upstream.is_none() {
            push(&mut text, format_args!("upstream {pool} {{\n{servers}}}\n"));
        }
        if let Some(listen) = &self.listen_http {
            let redirect = self.redirect_target().map(|target| format!("return 301 {target};"));
            self.block(&mut text, listen, mark, &self.content(&pool, redirect.as_deref()));
        }
        if let (Some(listen), Some(cert), Some(key)) = (&self.listen_https, &self.cert, &self.key) {
            let tls = format!(
                "    ssl_certificate {};\n    ssl_certificate_key {};\n    ssl_protocols TLSv1.2 TLSv1.3;\n",
                cert.display(),
                key.display()
            );
            let body = format!("{tls}{}", self.content(&pool, None));
            self.block(&mut text, &format!("{listen} ssl"), mark, &body);
        }
        text
    }

    fn block(&self, text: &mut String, listen: &str, mark: &str, body: &str) {
        push(
            text,
            format_args!(
                "server {{\n    listen {listen};\n    server_name {};\n{body}    location = {MARK_PATH} {{\n        \
                 default_type text/plain;\n        return 200 \"{mark}\";\n    }}\n}}\n",
                self.server_name
            ),
        );
    }

    fn content(&self, pool: &str, redirect: Option<&str>) -> String {
        if let Some(redirect) = redirect {
            return format!("    location / {{\n        {redirect}\n    }}\n");
        }
        let mut content = String::new();
        for (name, value) in &self.headers {
            push(&mut content, format_args!("    add_header {name} \"{value}\" always;\n"));
        }
        push(
            &mut content,
            format_args!(
                "    location / {{\n        proxy_pass http://{pool};\n        proxy_http_version 1.1;\n        \
                 proxy_set_header Host $host;\n        proxy_set_header X-Forwarded-Proto $scheme;\n        \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        proxy_connect_timeout 2s;\n    \
                 }}\n"
            ),
        );
        content
    }

    fn redirect_target(&self) -> Option<String> {
        let https = self.listen_https.as_ref().filter(|_| self.redirect_to_https)?;
        let port = self.public_https_port.or_else(|| https.rsplit(':').next().and_then(|port| port.parse().ok()));
        Some(match port {
            None | Some(443) => "https://$host$request_uri".into(),
            Some(port) => format!("https://$host:{port}$request_uri"),
        })
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn site(change: &serde_json::Value) -> SiteParams {
        let mut with = json!({
            "site": "/etc/nginx/sites/shop.conf", "config": "/etc/nginx/nginx.conf", "pid_file": "/run/nginx.pid",
            "server_name": "shop.example.org", "listen_http": "80", "listen_https": "443",
            "cert": "/etc/tls/shop.crt", "key": "/etc/tls/shop.key", "upstreams": ["127.0.0.1:8080"],
        });
        with.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(with).unwrap()
    }

    #[test]
    fn the_mark_follows_the_content() {
        let (one, same, other) =
            (site(&json!({})).render(), site(&json!({})).render(), site(&json!({"listen_http": "81"})).render());
        assert_eq!((one.text.as_str(), &one.mark), (same.text.as_str(), &same.mark));
        assert_ne!(one.mark, other.mark);
        assert!(one.text.contains(&one.mark) && one.text.contains("return 301 https://$host$request_uri;"));
    }

    #[test]
    fn another_port_is_part_of_the_redirect() {
        let text = site(&json!({"listen_https": "127.0.0.1:8443"})).render().text;
        assert!(text.contains("https://$host:8443$request_uri"));
        let text = site(&json!({"listen_https": "127.0.0.1:8443", "public_https_port": 443})).render().text;
        assert!(text.contains("https://$host$request_uri"));
    }

    #[test]
    fn nothing_breaks_out_of_its_place() {
        for change in [
            json!({"server_name": "a; return 200"}),
            json!({"server_name": ""}),
            json!({"upstreams": ["a:1;}"]}),
            json!({"upstreams": []}),
            json!({"headers": {"X": "a\"; b"}}),
            json!({"headers": {"X": "$http_cookie"}}),
            json!({"headers": {"X y": "a"}}),
            json!({"cert": "/etc/a b.crt"}),
            json!({"cert": "relative.crt"}),
            json!({"listen_http": "80 default_server"}),
            json!({"key": null}),
            json!({"listen_http": null, "listen_https": null}),
        ] {
            let site = site(&change);
            assert!(matches!(site.validate(), Err(ActionError::Permanent { .. })), "{change}");
        }
        site(&json!({"headers": {"Strict-Transport-Security": "max-age=31536000; includeSubDomains"}}))
            .validate()
            .unwrap();
    }
}
