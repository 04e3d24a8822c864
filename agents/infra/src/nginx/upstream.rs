//! The action: test, replace, reload, and ask until it is known who answers.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
};

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done};
use muster_bus::message::Observation;
use muster_kit::{
    bound::{blocking, until, within},
    files::Before,
    measure::{Errors, observation, percent},
    params, process,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{
    server::{ASK_MS, file_differs, get, mark_in},
    weights::{ANSWERED_BY, MARK, MARK_PATH, State, UpstreamParams},
};

/// Writes the servers of an upstream, reloads nginx, and asks through it who answers how often.
///
/// A server is drained by `state: down` and `drain_ms`: it gets no new request, and those it has are waited for. What nginx
/// refuses is taken back before the attempt ends; servers that do not answer as they should are a failure, which `undo`
/// takes back.
pub struct Upstream;

/// Output of `nginx.upstream`. Also given with the failure when the answers are not shared as they should.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamOutput {
    /// The upstream's file.
    pub file: PathBuf,
    /// What nginx answers at `/.well-known/muster-upstream` on the address `ask`.
    pub mark: String,
    /// How many times the servers were asked: fewer than wanted when five requests have failed.
    pub asked: u64,
    /// The share of answers with a status below 500, in percent.
    pub success_percent: f64,
    /// Who answered, by the server's address.
    pub servers: BTreeMap<String, Answered>,
    /// What went wrong, by text, with how often.
    pub errors: BTreeMap<String, u64>,
}

/// What a server got.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Answered {
    /// Requests.
    pub requests: u64,
    /// Their share, in percent.
    pub share_percent: f64,
    /// The share it should have, in percent.
    pub wanted_percent: f64,
}

const SOURCE: &str = "nginx.upstream";

#[async_trait]
impl Action for Upstream {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<UpstreamParams, UpstreamOutput>(
            "nginx.upstream",
            "Set the servers behind nginx with weights, take some out, and verify who answers.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        let with = UpstreamParams::read(with)?;
        let (text, mark) = with.render();
        if let Some(diff) = file_differs(&with.file, &text).await? {
            return Ok(Checked::Different { diff });
        }
        let answered = within(ctx, ASK_MS, "nginx", with.get(MARK_PATH)).await.unwrap_or_else(|e| Err(e.to_string()));
        let different = match answered {
            Ok(answer) if answer.contains(&mark) => with.not_drained(),
            Ok(_) => Some("the file is right, but nginx works with another configuration; it is reloaded".into()),
            Err(why) => Some(format!("the file is right, but nginx does not answer: {why}")),
        };
        if let Some(diff) = different {
            return Ok(Checked::Different { diff });
        }
        let output = with.distribution(ctx, mark).await?;
        Ok(match with.wrong(&output) {
            Some(wrong) => Checked::Different { diff: format!("the file is right, but {wrong}") },
            None => Checked::Satisfied(done(&output)),
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        let with = UpstreamParams::read(with)?;
        blocking(move || Ok(params::output(&Before::of(&with.file)?))).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        let with = UpstreamParams::read(with)?;
        let (text, mark) = with.render();
        let former = with.nginx().put(ctx, &with.file, text).await?;
        with.nginx().settled(ctx, (MARK, Some(&mark)), &former, || with.get(MARK_PATH)).await?;
        if with.drain_ms > 0 {
            ctx.progress("waiting for the answers to earlier requests", None);
            let what = "the last request through the former configuration";
            let ended =
                || std::future::ready(if process::still_there(&former).is_empty() { Ok(()) } else { Err(BUSY.into()) });
            until(ctx, with.drain_ms, 50, what, ended).await?;
        }
        ctx.progress("asking who answers", None);
        let output = with.distribution(ctx, mark).await?;
        match with.wrong(&output) {
            Some(message) => Err(ActionError::Retry { message, output: Some(params::output(&output)) }),
            None => Ok(done(&output)),
        }
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        let with = UpstreamParams::read(with)?;
        let before: Before = params::read(prepared)?;
        if let Some((former, there)) = with.nginx().take_back(ctx, before).await? {
            // The former file may have listened elsewhere.
            let mark = mark_in(&there, MARK).filter(|_| there.contains(&format!("listen {};", with.ask)));
            with.nginx().settled(ctx, (MARK, mark.as_deref()), &former, || with.get(MARK_PATH)).await?;
        }
        Ok(Done::default())
    }
}

/// After so many it is known that something is wrong, and each may have taken its whole limit.
const ENOUGH_FAILED: u32 = 5;
const BUSY: &str = "it is not answered yet";

fn done(output: &UpstreamOutput) -> Done {
    let mut observations = vec![observation(SOURCE, "success", output.success_percent, "percent", Some(output.asked))];
    let share = |(address, answered): (&String, &Answered)| -> Observation {
        observation(&format!("{SOURCE}/{address}"), "share", answered.share_percent, "percent", Some(output.asked))
    };
    observations.extend(output.servers.iter().map(share));
    Done { output: params::output(output), observations }
}

impl UpstreamParams {
    fn not_drained(&self) -> Option<String> {
        let leaving = process::leaving(&self.nginx().server().children()).len();
        (self.drain_ms > 0 && leaving > 0).then(|| format!("{leaving} former workers still answer earlier requests"))
    }

    /// Asks, one request after the other, and counts who answers.
    async fn distribution(&self, ctx: &Context, mark: String) -> Result<UpstreamOutput, ActionError> {
        let who = self.by_socket(ctx).await?;
        let (mut servers, mut errors, mut succeeded) = (BTreeMap::<String, Answered>::new(), Errors::default(), 0);
        for server in &self.servers {
            let answered = Answered { wanted_percent: self.share(server), ..Answered::default() };
            servers.insert(server.address.clone(), answered);
        }
        let (mut asked, mut failed) = (0, 0);
        while asked < u64::from(self.requests) && failed < ENOUGH_FAILED {
            asked += 1;
            failed += 1;
            let answer =
                within(ctx, ASK_MS, "nginx", self.get(&self.path)).await.unwrap_or_else(|e| Err(e.to_string()));
            if ctx.cancelled.is_cancelled() {
                return Err(ActionError::retry("stopped: the attempt was cancelled"));
            }
            let (status, by) = match answer.map(|answer| status_and_server(&answer)) {
                Ok(Some(said)) => said,
                Ok(None) => {
                    errors.add("an answer that is no HTTP".into());
                    continue;
                }
                Err(why) => {
                    errors.add(why);
                    continue;
                }
            };
            let address = by.parse().ok().and_then(|socket: SocketAddr| who.get(&socket)).cloned();
            if let Some(answered) = address.as_ref().and_then(|address| servers.get_mut(address)) {
                answered.requests += 1;
            }
            if status < 500 {
                succeeded += 1;
                failed -= 1;
            } else {
                errors.add(format!("{}: status {status}", address.unwrap_or(by)));
            }
        }
        for answered in servers.values_mut() {
            answered.share_percent = percent(answered.requests, asked);
        }
        let (file, success_percent) = (self.file.clone(), percent(succeeded, asked));
        Ok(UpstreamOutput { file, mark, asked, success_percent, servers, errors: errors.into_map() })
    }

    /// What is not as it should be with the answers, if anything.
    fn wrong(&self, output: &UpstreamOutput) -> Option<String> {
        let mut wrong: Vec<_> = output.errors.iter().map(|(what, count)| format!("{what} ({count} times)")).collect();
        for server in &self.servers {
            let Some(answered) = output.servers.get(&server.address) else { continue };
            let (share, wanted) = (answered.share_percent, answered.wanted_percent);
            let off = (share - wanted).abs() > self.tolerance_percent;
            if off || server.state == State::Down && answered.requests > 0 {
                wrong.push(format!("{} got {share} % of the requests, {wanted} % wanted", server.address));
            }
        }
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    /// The servers by the addresses that nginx shows them under.
    async fn by_socket(&self, ctx: &Context) -> Result<HashMap<SocketAddr, String>, ActionError> {
        let mut who = HashMap::new();
        for server in &self.servers {
            let what = format!("the address of {}", server.address);
            let sockets = within(ctx, ASK_MS, &what, tokio::net::lookup_host(server.address.clone())).await?;
            let sockets = sockets.map_err(|e| ActionError::retry(format!("{what} can't be found: {e}")))?;
            who.extend(sockets.map(|socket| (socket, server.address.clone())));
        }
        Ok(who)
    }

    /// What nginx answers on the address `ask`.
    async fn get(&self, path: &str) -> Result<String, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.ask);
        let stream = TcpStream::connect(&self.ask).await.map_err(failed)?;
        get(stream, &self.host, path).await.map_err(failed)
    }
}

fn status_and_server(answer: &str) -> Option<(u16, String)> {
    let mut lines = answer.lines();
    let status = lines.next()?.split_whitespace().nth(1)?.parse().ok()?;
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':'));
    let by = headers.filter(|(name, _)| name.eq_ignore_ascii_case(ANSWERED_BY)).map(|(_, by)| by.trim().to_owned());
    Some((status, by.last().unwrap_or_default()))
}
