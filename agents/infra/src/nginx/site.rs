//! The action: test, replace, reload, wait until it answers.

use std::sync::Arc;

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_bus::message::Observation;
use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;

use super::{
    server::{ASK_MS, file_differs, get, mark_in, reachable},
    template::{MARK, MARK_PATH, SiteParams},
};
use muster_kit::{
    bound::{blocking, within},
    files::Before,
    measure::{ms, observation},
    net, params,
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
        if let Some(diff) = file_differs(&with.site, &wanted.text).await? {
            return Ok(different(diff));
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
        let former = with.nginx().put(ctx, &with.site, wanted.text).await?;
        let start = Instant::now();
        with.nginx().settled(ctx, (MARK, Some(&wanted.mark)), &former, || with.ask()).await?;
        let took = observation("nginx.site", "reload", ms(start.elapsed()), "ms", None);
        Ok(with.done(wanted.mark, vec![took]))
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = SiteParams::read(with)?;
        let before: Before = params::read(prepared)?;
        if let Some((former, there)) = with.nginx().take_back(ctx, before).await? {
            let mark = mark_in(&there, MARK);
            with.nginx().settled(ctx, (MARK, mark.as_deref()), &former, || with.ask()).await?;
        }
        Ok(Done::default())
    }
}

fn different(diff: String) -> Checked {
    Checked::Different { diff }
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

    /// What the site answers at [`MARK_PATH`], headers included; at most 4 KiB.
    async fn ask(&self) -> Result<String, String> {
        let listen = self.listen_http.as_ref().or(self.listen_https.as_ref()).expect("validated: one of the two");
        let address = reachable(listen);
        let stream = TcpStream::connect(&address).await.map_err(|e| format!("{address}: {e}"))?;
        if self.listen_http.is_some() {
            return get(stream, &self.server_name, MARK_PATH).await.map_err(|e| format!("{address}: {e}"));
        }
        let name = ServerName::try_from(self.server_name.clone()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::new(net::looking().0));
        let stream = connector.connect(name, stream).await.map_err(|e| format!("{address}: {e}"))?;
        get(stream, &self.server_name, MARK_PATH).await.map_err(|e| format!("{address}: {e}"))
    }
}
