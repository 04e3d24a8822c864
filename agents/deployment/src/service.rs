//! A service with two sides, blue and green: one takes the requests, the other is the next release or the last one.

use muster_agent::{ActionError, Context, allow::Allow, guard};
use muster_kit::{
    bound::within,
    http::{Answer, Asker, Target},
    params::plain,
    process,
};
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::upstream::Nginx;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one.
    Blue,
    /// The other.
    Green,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Blue, Self::Green];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

/// Where each side listens: `host:port`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sides {
    /// The one.
    pub blue: String,
    /// The other.
    pub green: String,
}

impl Sides {
    pub(crate) fn address(&self, side: Side) -> &str {
        match side {
            Side::Blue => &self.blue,
            Side::Green => &self.green,
        }
    }
}

/// The service and how it is asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The nginx in front of it.
    pub nginx: Nginx,
    /// Where its sides listen.
    pub sides: Sides,
    /// The way in through nginx; what it answers holds the release, as `release_path` does.
    pub front: Target,
    /// Asked of a side: the answer holds its release.
    #[serde(default = "version")]
    pub release_path: String,
    /// Asked of a side: 200 to 299 is healthy.
    #[serde(default = "health")]
    pub health_path: String,
    /// How long one answer may take, in milliseconds.
    #[serde(default = "two_seconds")]
    #[schemars(range(min = 1, max = 60_000))]
    pub timeout_ms: u64,
}

fn version() -> String {
    "/version".into()
}

fn health() -> String {
    "/health".into()
}

fn two_seconds() -> u64 {
    2_000
}

/// A program that this agent's host allows. In its arguments `{side}`, `{address}` and `{release}` stand for what they say.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its name in the agent's `allow.toml`.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// How long it may take, in milliseconds.
    #[serde(default = "thirty_seconds")]
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_ms: u64,
}

fn thirty_seconds() -> u64 {
    30_000
}

impl Program {
    /// Runs it to its end.
    pub(crate) async fn run(
        &self,
        ctx: &Context,
        allow: &Allow,
        at: (Side, &str),
        release: &str,
    ) -> Result<(), ActionError> {
        let (side, address) = (at.0.name(), at.1);
        let filled =
            |arg: &String| arg.replace("{side}", side).replace("{address}", address).replace("{release}", release);
        let args = self.args.iter().map(filled);
        let command = process::allowed(ctx, allow, &self.command).await?.args(args);
        let ended =
            within(ctx, self.timeout_ms, &format!("the command {:?}", self.command), command.output()).await??;
        if ended.code == 0 {
            return Ok(());
        }
        let ended = guard::ended(ended.code, &ended.stderr);
        Err(ActionError::permanent(format!("command {:?} for {side} {ended}", self.command)))
    }
}

/// What makes an answer the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// This release.
    Release(String),
    /// Any other than this.
    AwayFrom(String),
}

impl Wanted {
    pub(crate) fn fits(&self, answer: &Answer) -> bool {
        let good = (200..300).contains(&answer.status);
        match self {
            Self::Release(release) => good && says(&answer.body, release),
            Self::AwayFrom(release) => good && !says(&answer.body, release),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Release(release) => format!("release {release}"),
            Self::AwayFrom(release) => format!("another release than {release}"),
        }
    }

    pub(crate) fn release(&self) -> &str {
        match self {
            Self::Release(release) | Self::AwayFrom(release) => release,
        }
    }
}

/// Whether the release stands in the text as a whole: `1.4` does not stand in `1.4.1`.
fn says(body: &[u8], release: &str) -> bool {
    let text = String::from_utf8_lossy(body);
    let part = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    text.match_indices(release).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + release.len()..].chars().next().is_some_and(part)
    })
}

/// Asks the sides and the front.
pub(crate) struct Asking<'a> {
    service: &'a Service,
    pub(crate) front: Asker,
    release: [Asker; 2],
    health: [Asker; 2],
}

/// Of an answer that may say a release.
const KEEP: usize = 4096;

impl Service {
    pub(crate) fn validate(&self) -> Result<(), ActionError> {
        self.nginx.validate()?;
        for side in Side::BOTH {
            plain("sides", self.sides.address(side), ".:-_[]")?;
        }
        if self.sides.blue == self.sides.green {
            return Err(ActionError::permanent("sides: blue and green have the same address"));
        }
        for (field, path) in [("release_path", &self.release_path), ("health_path", &self.health_path)] {
            if !path.starts_with('/') {
                return Err(ActionError::permanent(format!("{field}: {path:?} does not begin with /")));
            }
        }
        if self.timeout_ms == 0 || self.timeout_ms > 60_000 {
            return Err(ActionError::permanent("timeout_ms: it is not within 1 to 60000"));
        }
        Ok(())
    }

    pub(crate) async fn asking(&self, ctx: &Context) -> Result<Asking<'_>, ActionError> {
        let [blue, green] = Side::BOTH.map(|side| self.sides.address(side));
        let (release, health) = (&self.release_path, &self.health_path);
        // A connection of its own for each question: one that is kept open may lead to a worker of before a reload.
        Ok(Asking {
            service: self,
            front: self.front.asker(ctx, false).await?,
            release: [
                Target::at(blue, release).asker(ctx, false).await?,
                Target::at(green, release).asker(ctx, false).await?,
            ],
            health: [
                Target::at(blue, health).asker(ctx, false).await?,
                Target::at(green, health).asker(ctx, false).await?,
            ],
        })
    }
}

impl Asking<'_> {
    /// Whether the side is healthy; why it is not.
    pub(crate) async fn healthy(&self, side: Side) -> Result<(), String> {
        let health = self.ask(pick(&self.health, side)).await;
        let name = self.named(side);
        match health {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
            Ok(answer) => Err(format!("{name} says {} at {}", answer.status, self.service.health_path)),
            Err(why) => Err(format!("{name} does not answer: {why}")),
        }
    }

    /// Whether the side is healthy and has what is wanted; why it has not.
    pub(crate) async fn ready(&self, side: Side, wanted: &Wanted) -> Result<(), String> {
        self.healthy(side).await?;
        let name = self.named(side);
        match self.ask(pick(&self.release, side)).await {
            Ok(answer) if wanted.fits(&answer) => Ok(()),
            Ok(answer) => Err(format!("{name} answers {}, not {}", shown(&answer), wanted.text())),
            Err(why) => Err(format!("{name} does not answer: {why}")),
        }
    }

    /// Whether what is wanted comes through the front; why it does not.
    pub(crate) async fn arrived(&self, wanted: &Wanted) -> Result<(), String> {
        match self.ask(&self.front).await {
            Ok(answer) if wanted.fits(&answer) => Ok(()),
            Ok(answer) => Err(format!("the front answers {}, not {}", shown(&answer), wanted.text())),
            Err(why) => Err(format!("the front does not answer: {why}")),
        }
    }

    async fn ask(&self, asker: &Asker) -> Result<Answer, String> {
        asker.ask(Method::GET, self.service.timeout_ms, KEEP).await
    }

    fn named(&self, side: Side) -> String {
        format!("{} ({})", side.name(), self.service.sides.address(side))
    }
}

fn pick(askers: &[Asker; 2], side: Side) -> &Asker {
    match side {
        Side::Blue => &askers[0],
        Side::Green => &askers[1],
    }
}

/// The status and the begin of the body, for messages.
fn shown(answer: &Answer) -> String {
    let body = String::from_utf8_lossy(&answer.body);
    let line: String = body.lines().next().unwrap_or_default().chars().take(80).collect();
    format!("{} {line:?}", answer.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_not_found_in_a_longer_one() {
        assert!(says(b"{\"version\":\"1.4\"}", "1.4"));
        assert!(says(b"1.4", "1.4"));
        assert!(says(b"1.4.1 1.4", "1.4"));
        for other in ["1.4.1", "11.4", "1.4-rc1", "1.40", "v1.4"] {
            assert!(!says(other.as_bytes(), "1.4"), "{other}");
        }
    }

    #[test]
    fn an_error_page_is_no_release() {
        let answer = |status, body: &str| Answer { status, body: body.into(), ..Answer::default() };
        let [is, not] = [Wanted::Release("1.4".into()), Wanted::AwayFrom("1.4".into())];
        assert!(is.fits(&answer(200, "1.4")) && !is.fits(&answer(200, "1.5")) && !is.fits(&answer(503, "1.4")));
        assert!(not.fits(&answer(200, "1.5")) && !not.fits(&answer(200, "1.4")) && !not.fits(&answer(503, "1.5")));
    }
}
