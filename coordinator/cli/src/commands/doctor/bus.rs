//! NATS: whether it answers, what it is, how far away, and who else answers over it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use muster_bus::{
    Bus, BusError, NatsBus,
    bus::MAX_PAYLOAD,
    message::{Beat, BeatReply},
    subject::CHECK,
};

use super::{Check, WITHIN, in_time};
use crate::{bus::not_connected, config::ServeSettings, error::CliError};

/// Longest round trip that is usual between machines of one place.
const FAR: Duration = Duration::from_millis(50);
/// A task has to be answered within about a second.
const TOO_FAR: Duration = Duration::from_millis(500);
const ROUND_TRIPS: usize = 9;
/// A task is refused as too old after five seconds, by the coordinator's clock, which agents learn from its answers.
const CLOCK_OFF: Duration = Duration::from_secs(2);

/// Whether a coordinator answers over NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// One does.
    Answers,
    /// None does.
    Nobody,
    /// NATS can't be asked.
    Unknown,
}

pub(super) async fn look(settings: &ServeSettings, checks: &mut Vec<Check>) -> Heard {
    let Some(bus) = connect(settings, checks).await else { return Heard::Unknown };
    checks.push(limit(bus.max_payload()));
    checks.push(distance(&bus).await);
    let (heard, clock) = others(&bus).await;
    checks.push(clock);
    heard
}

async fn connect(settings: &ServeSettings, checks: &mut Vec<Check>) -> Option<NatsBus> {
    let options = match settings.access().options(None) {
        Ok(options) => options,
        Err(error) => {
            checks.push(Check::error("nats", error));
            return None;
        }
    };
    let connected = in_time(Box::pin(NatsBus::connect(options))).await;
    let (check, bus) = match connected {
        Some(Ok(bus)) => {
            let version = bus.server_version();
            (Check::ok("nats", format!("{} answers: nats-server {version}", settings.access().shown())), Some(bus))
        }
        Some(Err(error)) => (Check::error("nats", not_connected(&error)), None),
        None => (Check::error("nats", CliError::unanswered(&settings.access().shown(), WITHIN)), None),
    };
    checks.push(check);
    bus
}

fn limit(bytes: usize) -> Check {
    let name = "nats_max_payload";
    if bytes >= MAX_PAYLOAD {
        return Check::ok(name, format!("messages may have {} KiB", MAX_PAYLOAD / 1024));
    }
    let message = format!("messages may have no more than {} KiB: larger plans and outputs are refused", bytes / 1024);
    let hint = "max_payload: 1MB in the configuration of nats-server";
    if bytes < 32 * 1024 { Check::problem(name, message, hint) } else { Check::warning(name, message, hint) }
}

async fn distance(bus: &NatsBus) -> Check {
    let name = "nats_round_trip";
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        match bus.round_trip().await {
            Ok(time) => times.push(time),
            Err(error) => return Check::problem(name, error.to_string(), "look at the log of nats-server"),
        }
        // A slow one needs no more of them.
        if times.iter().sum::<Duration>() > WITHIN {
            break;
        }
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let message = format!("{:.1} ms", median.as_secs_f64() * 1e3);
    let hint = "run nats-server near the coordinator, and look at the network between them";
    match median {
        _ if median >= TOO_FAR => Check::problem(name, message, hint),
        _ if median >= FAR => Check::warning(name, message, hint),
        _ => Check::ok(name, message),
    }
}

/// NATS tells no time; a coordinator does, in its answer to the beat of an agent that it can't know.
async fn others(bus: &NatsBus) -> (Heard, Check) {
    let beat = Beat {
        cluster: String::new(),
        instance: "doctor".to_owned(),
        holds: Vec::new(),
        draining: false,
        ending: false,
    };
    let payload = serde_json::to_vec(&beat).unwrap_or_default();
    let (asked, begun) = (Timestamp::now(), Instant::now());
    match bus.request(CHECK, payload.into(), Duration::from_secs(2)).await {
        Ok(reply) => (Heard::Answers, clock(&reply, asked, begun.elapsed())),
        Err(BusError::NoResponders(_)) => {
            (Heard::Nobody, Check::ok("clock", "not compared: no coordinator is there to tell the time"))
        }
        Err(error) => {
            let message = format!("not compared: whether a coordinator answers can't be told: {error}");
            (Heard::Unknown, Check::warning("clock", message, "look at the permissions of this login on NATS"))
        }
    }
}

fn clock(reply: &[u8], asked: Timestamp, took: Duration) -> Check {
    let name = "clock";
    let Ok(reply) = serde_json::from_slice::<BeatReply>(reply) else {
        let hint = "compare `muster --version` on both sides";
        return Check::warning(name, "not compared: the coordinator answers what this version can't read", hint);
    };
    let ours_ms = asked.as_millisecond() + i64::try_from(took.as_millis() / 2).unwrap_or(0);
    let off_ms = reply.now_ms - ours_ms;
    let (sign, off) = (if off_ms < 0 { "-" } else { "+" }, off_ms.unsigned_abs());
    let message = format!("the coordinator's is at {sign}{}.{:03} s", off / 1_000, off % 1_000);
    if off > u64::try_from(CLOCK_OFF.as_millis() + took.as_millis()).unwrap_or(u64::MAX) {
        return Check::warning(name, message, "let both machines keep their clocks by NTP");
    }
    Check::ok(name, message)
}
