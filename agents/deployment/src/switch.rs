//! `release.switch` and `release.rollback`: to the side with a release, and away from a release.

use async_trait::async_trait;
use muster_agent::{Action, ActionError, ActionSpec, Checked, Context, Done, allow::Allow};
use muster_kit::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::turn::TurnOutput;
use crate::{
    service::{Program, Service, Side, Wanted},
    turn::{Start, Turn},
    watch::Watch,
};

/// Starts the side that takes no requests with the release (where it is not up already), probes it, makes nginx send it the
/// requests, watches, and goes back by itself on a breach. The former side goes on running: going back is one reload.
pub struct Switch {
    allow: Allow,
}

/// Makes nginx send the requests to the other side, which must be up, healthy and of another release; by the same rules.
pub struct Rollback;

/// Parameters of `release.switch`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchParams {
    /// The service.
    pub service: Service,
    /// The release that is to take the requests, as it stands in what a side answers.
    #[schemars(length(min = 1, max = 64))]
    pub release: String,
    /// The side to switch to; when absent the one that does not take the requests.
    #[serde(default)]
    pub to: Option<Side>,
    /// Starts a side with the release, or starts it again. It must hand the side to the host's service manager: what is left
    /// below this program ends with it. When absent the side must be up already.
    #[serde(default)]
    pub start: Option<Program>,
    /// How long a started side may take until it is healthy, in milliseconds.
    #[serde(default = "sixty_seconds")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub start_within_ms: u64,
    /// Stops a side; used by undo, for a side that had to be started. When absent it goes on running.
    #[serde(default)]
    pub stop: Option<Program>,
    /// A look at what comes through the front afterwards; none when absent.
    #[serde(default)]
    pub watch: Option<Watch>,
}

/// Parameters of `release.rollback`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackParams {
    /// The service.
    pub service: Service,
    /// The release that is to take no more requests, as it stands in what a side answers.
    #[schemars(length(min = 1, max = 64))]
    pub away_from: String,
    /// A look at what comes through the front afterwards; none when absent.
    #[serde(default)]
    pub watch: Option<Watch>,
}

fn sixty_seconds() -> u64 {
    60_000
}

/// A release's name is handed to programs that make a path of it.
fn named(field: &str, release: &str) -> Result<(), ActionError> {
    params::plain(field, release, "._+-")?;
    if release.starts_with(['.', '-']) || release.len() > 64 {
        return Err(ActionError::permanent(format!(
            "{field}: {release:?} is hidden, looks like an option or is too long"
        )));
    }
    Ok(())
}

impl Switch {
    /// May start and stop sides by what `allow` lists.
    pub fn new(allow: Allow) -> Self {
        Self { allow }
    }

    fn turn(&self, with: &Value) -> Result<Turn, ActionError> {
        let with: SwitchParams = params::read(with)?;
        named("release", &with.release)?;
        let (start_within_ms, most) = (with.start_within_ms, 3_600_000);
        if start_within_ms == 0 || start_within_ms > most {
            return Err(ActionError::permanent(format!("start_within_ms: it is not within 1 to {most}")));
        }
        let turn = Turn {
            name: "release.switch",
            service: with.service,
            wanted: Wanted::Release(with.release),
            to: with.to,
            start: with.start.map(|program| Start { program, within_ms: with.start_within_ms }),
            stop: with.stop,
            watch: with.watch,
            allow: self.allow.clone(),
        };
        turn.validate()?;
        Ok(turn)
    }
}

impl Rollback {
    fn turn(with: &Value) -> Result<Turn, ActionError> {
        let with: RollbackParams = params::read(with)?;
        named("away_from", &with.away_from)?;
        let turn = Turn {
            name: "release.rollback",
            service: with.service,
            wanted: Wanted::AwayFrom(with.away_from),
            to: None,
            start: None,
            stop: None,
            watch: with.watch,
            allow: Allow::default(),
        };
        turn.validate()?;
        Ok(turn)
    }
}

#[async_trait]
impl Action for Switch {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<SwitchParams, TurnOutput>(
            "release.switch",
            "Start a release on the idle side, make nginx send it the requests, watch, and go back on a breach.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        self.turn(with)?.check(ctx).await
    }

    async fn prepare(&self, ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        self.turn(with)?.prepare(ctx).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        Box::pin(self.turn(with)?.run(ctx)).await
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        self.turn(with)?.undo(ctx, prepared).await
    }
}

#[async_trait]
impl Action for Rollback {
    fn spec(&self) -> ActionSpec {
        params::change_spec::<RollbackParams, TurnOutput>(
            "release.rollback",
            "Make nginx send the requests to the other side, away from a release.",
        )
    }

    async fn check(&self, ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        Self::turn(with)?.check(ctx).await
    }

    async fn prepare(&self, ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        Self::turn(with)?.prepare(ctx).await
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        Box::pin(Self::turn(with)?.run(ctx)).await
    }

    async fn undo(&self, ctx: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        Self::turn(with)?.undo(ctx, prepared).await
    }
}
