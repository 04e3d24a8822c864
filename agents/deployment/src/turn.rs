//! Turning the requests from one side to the other, watched, and back.
//!
//! An unfinished turn is written down beside the upstream file before anything is changed, and struck out when it has been
//! watched to its end or taken back: an attempt that follows a crash watches again instead of finding all well.

use std::path::Path;

use muster_agent::{ActionError, Checked, Context, Done, allow::Allow};
use muster_kit::{
    bound::until,
    measure::{ms, observation},
    params, process,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    service::{Asking, Program, Service, Side, Wanted},
    upstream::Pending,
    watch::{Watch, Watched, look},
};

/// What is to be turned, and how.
pub(crate) struct Turn {
    pub(crate) name: &'static str,
    pub(crate) service: Service,
    pub(crate) wanted: Wanted,
    pub(crate) to: Option<Side>,
    pub(crate) start: Option<Start>,
    pub(crate) stop: Option<Program>,
    pub(crate) watch: Option<Watch>,
    pub(crate) allow: Allow,
}

/// How a side is started.
pub(crate) struct Start {
    pub(crate) program: Program,
    pub(crate) within_ms: u64,
}

/// Output of `release.switch` and `release.rollback`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TurnOutput {
    /// The side that takes the requests.
    pub side: Side,
    /// Where it listens.
    pub address: String,
    /// The other side, to which one could go back.
    pub standby: Side,
    /// It went to the other side, and back after a breach.
    pub switched_back: bool,
    /// What was seen while watching; null when nothing was watched in this attempt.
    pub watched: Option<Watched>,
}

/// What `undo` needs.
#[derive(Debug, Serialize, Deserialize)]
struct Prepared {
    /// The side to go back to.
    from: Side,
    /// The other side has to be started, and so stopped again.
    starts: bool,
}

/// How things are, and what follows from it.
struct Plan {
    active: Side,
    from: Side,
    to: Side,
    /// Why the side to go to is not ready.
    not_ready: Option<String>,
    starts: bool,
    unfinished: bool,
}

impl Turn {
    pub(crate) fn validate(&self) -> Result<(), ActionError> {
        self.watch.iter().try_for_each(Watch::validate)?;
        self.service.validate()
    }

    pub(crate) async fn check(&self, ctx: &Context) -> Result<Checked, ActionError> {
        let asking = self.service.asking(ctx).await?;
        let plan = self.plan(&asking).await?;
        let mut diff = Vec::new();
        if plan.unfinished {
            diff.push("an earlier attempt was not seen to its end".to_owned());
        }
        if plan.active != plan.to {
            let file = self.service.nginx.upstream_file.display();
            diff.push(format!("{file}:\n- server {}\n+ server {}", self.shown(plan.active), self.shown(plan.to)));
        }
        match &plan.not_ready {
            Some(why) if plan.starts => diff.push(format!("{} is started: {why}", plan.to.name())),
            Some(why) => diff.push(format!("{} is not ready: {why}", plan.to.name())),
            None => {}
        }
        if diff.is_empty() {
            match asking.arrived(&self.wanted).await {
                Ok(()) => return Ok(Checked::Satisfied(self.done(plan.to, None, Vec::new()))),
                Err(why) => diff.push(format!("nginx is reloaded: {why}")),
            }
        }
        Ok(Checked::Different { diff: diff.join("\n") })
    }

    pub(crate) async fn prepare(&self, ctx: &Context) -> Result<Value, ActionError> {
        let plan = self.plan(&self.service.asking(ctx).await?).await?;
        Ok(params::output(&Prepared { from: plan.from, starts: plan.starts }))
    }

    pub(crate) async fn run(&self, ctx: &Context) -> Result<Done, ActionError> {
        let asking = self.service.asking(ctx).await?;
        // Before anything is touched: without nginx nothing could be turned.
        self.service.nginx.server().pid()?;
        let plan = self.plan(&asking).await?;
        if let Some(why) = &plan.not_ready {
            if plan.to == plan.active {
                return Err(self.useless(ctx, &asking, &plan, why).await);
            }
            self.start(ctx, &asking, &plan, why).await?;
        }
        self.pending(&plan).write(&self.service.nginx).await?;
        ctx.progress(&format!("turning the requests to {}", plan.to.name()), None);
        let start = Instant::now();
        if let Err(e) = self.turn_to(ctx, plan.to).await {
            self.take_back(ctx, &plan).await?;
            return Err(e);
        }
        let what = format!("{} through nginx", self.wanted.text());
        let settled = until(ctx, self.service.nginx.settle_ms, 50, &what, || asking.arrived(&self.wanted)).await;
        let reload = observation(self.name, "reload", ms(start.elapsed()), "ms", None);
        if let Err(e) = settled {
            if ctx.cancelled.is_cancelled() {
                return Err(e);
            }
            return Err(self.back(ctx, &asking, &plan, &e.to_string(), None).await);
        }
        let mut observations = vec![reload];
        let mut watched = None;
        if let Some(watch) = &self.watch {
            let (seen, breach) = look(watch, ctx, &asking.front, self.service.timeout_ms).await?;
            observations.extend(seen.observations(self.name));
            if let Some(breach) = breach {
                for observation in observations {
                    ctx.voice.observe(observation);
                }
                return Err(self.back(ctx, &asking, &plan, &breach, Some(seen)).await);
            }
            watched = Some(seen);
        }
        Pending::forget(&self.service.nginx).await?;
        Ok(self.done(plan.to, watched, observations))
    }

    pub(crate) async fn undo(&self, ctx: &Context, prepared: &Value) -> Result<Done, ActionError> {
        let prepared: Prepared = params::read(prepared)?;
        let nginx = &self.service.nginx;
        let active = nginx.active(&self.service.sides).await?;
        if active != prepared.from {
            let asking = self.service.asking(ctx).await?;
            asking.healthy(prepared.from).await.map_err(|why| {
                ActionError::needs_person(format!(
                    "{why}; going back would take the service down: start {} first, or leave it on {}",
                    prepared.from.name(),
                    active.name()
                ))
            })?;
        }
        let former = self.turn_to(ctx, prepared.from).await?;
        if let (true, Some(stop)) = (prepared.starts, &self.stop) {
            let side = prepared.from.other();
            // Workers of before the reload may still have requests on it; at the limit it is stopped nevertheless.
            let drained = until(ctx, nginx.settle_ms, 50, "the last requests", || std::future::ready(gone(&former)));
            if let Err(e) = drained.await {
                ctx.log(&e.to_string());
            }
            stop.run(ctx, &self.allow, (side, self.service.sides.address(side)), self.wanted.release()).await?;
        }
        Pending::forget(nginx).await?;
        Ok(Done::default())
    }

    async fn plan(&self, asking: &Asking<'_>) -> Result<Plan, ActionError> {
        let nginx = &self.service.nginx;
        let active = nginx.active(&self.service.sides).await?;
        let pending = Pending::read(nginx).await?.filter(|pending| pending.what == self.what());
        let to = match (&pending, self.to) {
            (_, Some(to)) => to,
            (Some(pending), None) => pending.from.other(),
            (None, None) if asking.ready(active, &self.wanted).await.is_ok() => active,
            (None, None) => active.other(),
        };
        let not_ready = asking.ready(to, &self.wanted).await.err();
        let starts = not_ready.is_some() && self.start.is_some() && to != active;
        Ok(Plan {
            active,
            from: pending.as_ref().map_or(active, |pending| pending.from),
            to,
            not_ready,
            starts: starts || pending.as_ref().is_some_and(|pending| pending.starts),
            unfinished: pending.is_some(),
        })
    }

    /// The side that takes the requests is the one that was to be turned to, and it is not what it should be.
    async fn useless(&self, ctx: &Context, asking: &Asking<'_>, plan: &Plan, why: &str) -> ActionError {
        if plan.unfinished {
            return self.back(ctx, asking, plan, why, None).await;
        }
        ActionError::permanent(format!(
            "{} takes the requests already, and {why}; a release is started on the side that takes none: leave `to` out",
            plan.to.name()
        ))
    }

    async fn start(&self, ctx: &Context, asking: &Asking<'_>, plan: &Plan, why: &str) -> Result<(), ActionError> {
        let Some(start) = &self.start else {
            return Err(ActionError::retry(format!("{why}; start it first, nothing was changed")));
        };
        let (side, address) = (plan.to, self.service.sides.address(plan.to));
        self.pending(plan).write(&self.service.nginx).await?;
        ctx.progress(&format!("starting {} at {address}", side.name()), None);
        start.program.run(ctx, &self.allow, (side, address), self.wanted.release()).await?;
        let ready = || asking.ready(side, &self.wanted);
        until(ctx, start.within_ms, 100, &format!("the started {}", side.name()), ready).await.map_err(|e| {
            ActionError::retry(format!(
                "{e}; {} takes the requests as before. What the start program leaves below itself ends with it: let it hand \
                 the service to a service manager",
                plan.from.name()
            ))
        })
    }

    /// File, test, reload; at return only new workers take connections. The workers of before are the answer.
    async fn turn_to(&self, ctx: &Context, side: Side) -> Result<Vec<u32>, ActionError> {
        let nginx = &self.service.nginx;
        let before = nginx.name(&self.service.sides, side).await?;
        if let Err(ActionError::Retry { .. }) = nginx.server().pid() {
            // It reads the file when it starts. (A test now would make a pid file, which it could then not open.)
            return Ok(Vec::new());
        }
        let refused = match nginx.test(ctx).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(ActionError::permanent(format!("nginx refuses its configuration: {why}"))),
            Err(e) => Some(e),
        };
        if let Some(refused) = refused {
            if let Some(text) = before {
                nginx.write(text).await?;
                Pending::forget(nginx).await?;
            }
            return Err(refused);
        }
        let former = nginx.server().children();
        if nginx.server().reload_if_running()? {
            let left = || {
                std::future::ready(if process::have_left(&former) { Ok(()) } else { Err(process::KEPT_WORKERS.into()) })
            };
            until(ctx, nginx.settle_ms, 20, "the reloaded nginx", left).await?;
        }
        Ok(former)
    }

    /// After a reload that did not come about: the file names again what nginx works with, whenever it reads it.
    async fn take_back(&self, ctx: &Context, plan: &Plan) -> Result<(), ActionError> {
        let nginx = &self.service.nginx;
        if ctx.cancelled.is_cancelled() || plan.active == plan.to {
            return Ok(());
        }
        if nginx.name(&self.service.sides, plan.active).await?.is_some() {
            nginx.server().reload_if_running()?;
        }
        Pending::forget(nginx).await
    }

    /// Goes back, where there is a side to go back to; what happened, as the error that ends the attempt.
    async fn back(
        &self,
        ctx: &Context,
        asking: &Asking<'_>,
        plan: &Plan,
        why: &str,
        watched: Option<Watched>,
    ) -> ActionError {
        let (from, to) = (plan.from, plan.to.name());
        if from == plan.to {
            return ActionError::needs_person(format!("{why}; {to} took the requests before, too: look at it now"));
        }
        if let Err(also) = asking.healthy(from).await {
            return ActionError::needs_person(format!(
                "{why}; and {also}, so the requests stay on {to}: look at both now"
            ));
        }
        ctx.progress(&format!("going back to {}: {why}", from.name()), None);
        let gone_back = async {
            self.turn_to(ctx, from).await?;
            Pending::forget(&self.service.nginx).await
        };
        if let Err(e) = gone_back.await {
            return ActionError::needs_person(format!("{why}; and going back to {} failed: {e}", from.name()));
        }
        let output = TurnOutput { switched_back: true, ..self.output(from, watched) };
        let message = format!("{why}; the requests go to {} again, {to} is left for a look", self.shown(from));
        ActionError::Permanent { message, output: Some(params::output(&output)) }
    }

    fn pending(&self, plan: &Plan) -> Pending {
        Pending { what: self.what(), from: plan.from, starts: plan.starts }
    }

    fn what(&self) -> String {
        format!("{} to {}", self.name, self.wanted.text())
    }

    fn shown(&self, side: Side) -> String {
        format!("{} ({})", self.service.sides.address(side), side.name())
    }

    fn output(&self, side: Side, watched: Option<Watched>) -> TurnOutput {
        let address = self.service.sides.address(side).to_owned();
        TurnOutput { side, address, standby: side.other(), switched_back: false, watched }
    }

    fn done(&self, side: Side, watched: Option<Watched>, observations: Vec<muster_bus::message::Observation>) -> Done {
        Done { output: params::output(&self.output(side, watched)), observations }
    }
}

fn gone(former: &[u32]) -> Result<(), String> {
    let left = former.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
    if left == 0 { Ok(()) } else { Err(format!("{left} former nginx workers still answer requests")) }
}
