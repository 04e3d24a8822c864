//! The action: test, replace, reload, wait until it answers.

use std::sync::Arc;

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_bus::message::Observation;
use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::template::{MARK, MARK_PATH, SiteParams};
use muster_kit::{
    bound::{blocking, until, within},
    files::{self, Before},
    measure::{ms, observation},
    net, params, process,
    process::Server,
};

/// Writes one site's file, tests the whole configuration, reloads nginx by signal and waits until the new one answers.
///
/// A configuration that nginx refuses is taken back before the attempt ends. Whether the new one is at work is asked of the
/// site itself: each site answers `/.well-known/muster-site` with a digest of its configuration.
pub struct Site;

/// Output of `nginx.site`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SiteOutput {
    /// The site's file.
    pub site: std::path::PathBuf,
    /// What the site answers at `/.well-known/muster-site`.
    pub mark: String,
}

/// How long one question to the site may take.
const ASK_MS: u64 = 2_000;
const TEST_MS: u64 = 30_000;

#[async_trait]
impl Action for Site {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<SiteParams, SiteOutput>(
            "nginx.site",
            "Write a site's configuration, test it, reload nginx and wait until it answers.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = SiteParams::read(with)?;
        let wanted = with.render();
        let path = with.site.clone();
        match blocking(move || files::read(&path)).await? {
            None => return Ok(different(format!("{} is not there yet", with.site.display()))),
            Some(there) if there != wanted.text.as_bytes() => {
                return Ok(different(diff(&String::from_utf8_lossy(&there), &wanted.text)));
            }
            Some(_) => {}
        }
        let answered = within(ctx, ASK_MS, "the site", with.ask()).await.unwrap_or_else(|e| Err(e.to_string()));
        Ok(match answered {
            Ok(answer) if answer.contains(&wanted.mark) => Checked::Satisfied(with.done(wanted.mark, Vec::new())),
            Ok(_) => different("the file is right, but nginx works with another configuration; it is reloaded".into()),
            Err(why) => different(format!("the file is right, but the site does not answer: {why}")),
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = SiteParams::read(with)?;
        blocking(move || Ok(params::output(&Before::of(&with.site)?))).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = SiteParams::read(with)?;
        let wanted = with.render();
        // Before the file is touched: without nginx the site could not be put to work.
        with.server().pid()?;
        let (path, text) = (with.site.clone(), wanted.text);
        let before = blocking(move || {
            let before = Before::of(&path)?;
            before.keep()?;
            files::write(&path, text.as_bytes(), 0o644)?;
            Ok(before)
        })
        .await?;
        ctx.progress("testing the configuration", None);
        if let Err(e) = with.test(ctx).await {
            blocking(move || before.restore()).await?;
            return Err(e);
        }
        ctx.progress("reloading nginx", None);
        let (start, former) = (Instant::now(), with.server().children());
        with.server().reload()?;
        with.settled(ctx, Some(wanted.mark.clone()), &former).await?;
        let took = observation("nginx.site", "reload", ms(start.elapsed()), "ms", None);
        Ok(with.done(wanted.mark, vec![took]))
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = SiteParams::read(with)?;
        let before: Before = params::read(prepared)?;
        let there = blocking(move || {
            before.restore()?;
            before.content()
        })
        .await?;
        let former = with.server().children();
        if with.server().reload_if_running()? {
            let there = there.map(|there| String::from_utf8_lossy(&there).into_owned());
            with.settled(ctx, there.as_deref().and_then(mark_in), &former).await?;
        }
        Ok(Done::default())
    }
}

fn different(diff: String) -> Checked {
    Checked::Different { diff }
}

/// The first line that is different, for people.
fn diff(there: &str, wanted: &str) -> String {
    let mut lines = there.lines();
    for (number, wanted) in wanted.lines().enumerate() {
        let there = lines.next().unwrap_or("(end of file)");
        if there != wanted {
            return format!("line {}:\n- {there}\n+ {wanted}", number + 1);
        }
    }
    "lines at the end go away".into()
}

fn mark_in(text: &str) -> Option<String> {
    let start = text.find(MARK)?;
    let end = text[start..].find('"').map_or(text.len(), |len| start + len);
    Some(text[start..end].to_owned())
}

impl SiteParams {
    fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        with.validate()?;
        Ok(with)
    }

    fn done(&self, mark: String, observations: Vec<Observation>) -> Done {
        Done { output: params::output(&SiteOutput { site: self.site.clone(), mark }), observations }
    }

    fn server(&self) -> Server {
        Server { pid_file: self.pid_file.clone(), process: "nginx".into() }
    }

    async fn test(&self, ctx: &Context) -> Result<(), ActionError> {
        let mut args = vec!["-t".into(), "-q".into(), "-c".into(), self.config.display().to_string()];
        if let Some(prefix) = &self.prefix {
            args.extend(["-p".into(), prefix.display().to_string()]);
        }
        args.extend(["-e".into(), "stderr".into()]);
        let tested = process::run(ctx, TEST_MS, &self.binary, &args).await?;
        if tested.good {
            return Ok(());
        }
        Err(ActionError::permanent(format!("nginx refuses the configuration, it was taken back: {}", tested.text)))
    }

    /// Waits until none of the `former` workers takes connections, and the site answers with `mark`; with `None`, until no
    /// site of ours answers there.
    async fn settled(&self, ctx: &Context, mark: Option<String>, former: &[u32]) -> Result<(), ActionError> {
        until(ctx, self.settle_ms, 50, "the reloaded site", || async {
            if !process::have_left(former) {
                return Err(process::KEPT_WORKERS.into());
            }
            let limit = std::time::Duration::from_millis(ASK_MS);
            let answer = match tokio::time::timeout(limit, self.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {ASK_MS} ms")),
            };
            match (&mark, answer) {
                (Some(mark), Ok(answer)) if answer.contains(mark.as_str()) => Ok(()),
                (Some(_), Ok(_)) => Err("the former configuration still answers".into()),
                (Some(_), Err(why)) => Err(why),
                (None, Ok(answer)) if answer.contains(MARK) => Err("the former configuration still answers".into()),
                (None, Ok(_) | Err(_)) => Ok(()),
            }
        })
        .await
    }

    /// What the site answers at [`MARK_PATH`], headers included; at most 4 KiB.
    async fn ask(&self) -> Result<String, String> {
        let listen = self.listen_http.as_ref().or(self.listen_https.as_ref()).expect("validated: one of the two");
        let address = reachable(listen);
        let stream = TcpStream::connect(&address).await.map_err(|e| format!("{address}: {e}"))?;
        if self.listen_http.is_some() {
            return self.exchange(stream).await.map_err(|e| format!("{address}: {e}"));
        }
        let name = ServerName::try_from(self.server_name.clone()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::new(net::looking().0));
        let stream = connector.connect(name, stream).await.map_err(|e| format!("{address}: {e}"))?;
        self.exchange(stream).await.map_err(|e| format!("{address}: {e}"))
    }

    async fn exchange(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
        let request = format!("GET {MARK_PATH} HTTP/1.0\r\nHost: {}\r\n\r\n", self.server_name);
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Where this host reaches what listens on `listen`.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        None => format!("127.0.0.1:{listen}"),
        Some(("*" | "0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        Some(_) => listen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        assert_eq!(reachable("80"), "127.0.0.1:80");
        assert_eq!(reachable("*:81"), "127.0.0.1:81");
        assert_eq!(reachable("[::]:82"), "[::1]:82");
        assert_eq!(reachable("10.0.0.1:83"), "10.0.0.1:83");
    }

    #[test]
    fn the_first_different_line_is_shown() {
        assert_eq!(diff("a\nb\n", "a\nc\n"), "line 2:\n- b\n+ c");
        assert_eq!(diff("a\n", "a\nc\n"), "line 2:\n- (end of file)\n+ c");
        assert_eq!(diff("a\nb\n", "a\n"), "lines at the end go away");
    }
}
