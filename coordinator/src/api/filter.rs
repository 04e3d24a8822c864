//! `filter` of `ListRuns` and of logs: terms joined by AND; alternatives of `state` and of `waits_on` joined by OR.

use muster_engine::run::WaitsOn;
use tonic::Status;

use crate::{
    api::{
        convert::names::is_token,
        error::{Reason, bad_field},
    },
    control::RunFilter,
    logs,
};

const STATES: [&str; 10] = [
    "RUNNING",
    "WAITING",
    "PAUSED",
    "CANCELLING",
    "ROLLING_BACK",
    "FINISHING",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
    "QUARANTINED",
];
const MAX_LENGTH: usize = 1_000;

/// Read a filter. Empty: everything.
pub(super) fn runs(text: &str) -> Result<RunFilter, Status> {
    if text.len() > MAX_LENGTH {
        return Err(bad(&format!("it is longer than {MAX_LENGTH} bytes")));
    }
    let mut filter = RunFilter::default();
    if text.trim().is_empty() {
        return Ok(filter);
    }
    for term in split_words(text, "AND") {
        let alternatives: Vec<_> = split_words(&term, "OR").iter().map(|t| pair(t)).collect::<Result<_, _>>()?;
        match &alternatives[..] {
            [(field, value)] if field == "playbook" && filter.playbook.is_none() => {
                filter.playbook = Some(value.clone());
            }
            [(field, _)] if field == "playbook" => return Err(bad("it names a second playbook")),
            all if all.iter().all(|(field, _)| field == "state") && filter.states.is_empty() => {
                for (_, value) in all {
                    filter.states.push(state(value)?);
                }
            }
            all if all.iter().all(|(field, _)| field == "state") => {
                return Err(bad("a run is in one state: join states by OR"));
            }
            all if all.iter().all(|(field, _)| field == "waits_on") && filter.waits_on.is_empty() => {
                for (_, value) in all {
                    filter.waits_on.push(waits_on(value)?);
                }
            }
            all if all.iter().all(|(field, _)| field == "waits_on") => {
                return Err(bad("a run waits most urgently on one party: join alternatives by OR"));
            }
            all => {
                let fields: Vec<&str> = all.iter().map(|(f, _)| f.as_str()).collect();
                return Err(bad(&format!("it can't filter by {}", fields.join(" OR "))));
            }
        }
    }
    Ok(filter)
}

/// Read a filter of a run's log. Empty: everything.
pub(super) fn logs(text: &str) -> Result<logs::Filter, Status> {
    if text.len() > MAX_LENGTH {
        return Err(bad_log(&format!("it is longer than {MAX_LENGTH} bytes")));
    }
    let mut filter = logs::Filter::default();
    if text.trim().is_empty() {
        return Ok(filter);
    }
    for term in split_words(text, "AND") {
        let (field, value) = pair(&term).map_err(|_| bad_log(&format!("`{term}` is no comparison")))?;
        match field.as_str() {
            "step" if filter.step.is_none() && is_token(&value) => filter.step = Some(value.as_str().into()),
            "attempt" if filter.attempt.is_none() && value.parse::<u32>().is_ok() => {
                filter.attempt = value.parse().ok();
            }
            _ => return Err(bad_log(&format!("`{term}` can't be used, or not a second time"))),
        }
    }
    Ok(filter)
}

fn bad_log(what: &str) -> Status {
    bad_field(
        Reason::FilterInvalid,
        "filter",
        format!("the filter can't be used: {what}"),
        "such as `step = tls_certificate AND attempt = 2`",
    )
}

/// Split at a word that stands alone, outside of parentheses around the whole.
fn split_words(text: &str, word: &str) -> Vec<String> {
    let text = text.trim();
    let text = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
    let mut terms = vec![Vec::new()];
    for token in text.split_whitespace() {
        if token.eq_ignore_ascii_case(word) {
            terms.push(Vec::new());
        } else if let Some(last) = terms.last_mut() {
            last.push(token);
        }
    }
    terms.into_iter().map(|t| t.join(" ")).collect()
}

/// `field = value`.
fn pair(text: &str) -> Result<(String, String), Status> {
    let Some((field, value)) = text.split_once('=') else {
        return Err(bad(&format!("`{text}` is no comparison")));
    };
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    let plain = |s: &str| !s.is_empty() && !s.contains(['"', '=', '(', ')', ' ', '!', '<', '>']);
    let field = field.trim();
    if plain(field) && plain(value) {
        Ok((field.to_owned(), value.to_owned()))
    } else {
        Err(bad(&format!("`{text}` is no comparison")))
    }
}

fn state(value: &str) -> Result<String, Status> {
    let word = value.strip_prefix("STATE_").unwrap_or(value).to_ascii_uppercase();
    if STATES.contains(&word.as_str()) { Ok(word) } else { Err(bad(&format!("`{value}` is no state of a run"))) }
}

fn waits_on(value: &str) -> Result<WaitsOn, Status> {
    let word = value.strip_prefix("WAITS_ON_").unwrap_or(value).to_ascii_uppercase();
    match word.as_str() {
        "PERSON" => Ok(WaitsOn::Person),
        "AGENT" => Ok(WaitsOn::Agent),
        "SIGNAL" => Ok(WaitsOn::Signal),
        "TIME" => Ok(WaitsOn::Time),
        "WORK" => Ok(WaitsOn::Work),
        _ => Err(bad(&format!("`{value}` is none of PERSON, AGENT, SIGNAL, TIME and WORK"))),
    }
}

fn bad(what: &str) -> Status {
    bad_field(
        Reason::FilterInvalid,
        "filter",
        format!("the filter can't be used: {what}"),
        "such as `state = RUNNING OR state = WAITING AND playbook = hello`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let f = runs("state = RUNNING OR state=\"waiting\" AND playbook = hello").unwrap();
        assert_eq!(f.states, ["RUNNING", "WAITING"]);
        assert_eq!(f.playbook.as_deref(), Some("hello"));
        let f = runs("(state = STATE_FAILED)").unwrap();
        assert_eq!(f.states, ["FAILED"]);
        let f = runs("state = RUNNING AND waits_on = PERSON OR waits_on = WAITS_ON_AGENT").unwrap();
        assert_eq!((f.waits_on, f.states), (vec![WaitsOn::Person, WaitsOn::Agent], vec!["RUNNING".to_owned()]));
        let f = runs("  ").unwrap();
        assert!(f.states.is_empty() && f.playbook.is_none());
    }

    #[test]
    fn filters_of_logs_are_read_or_refused() {
        let f = logs("step = \"pool\" AND attempt = 2").unwrap();
        assert_eq!((f.step.unwrap().as_str(), f.attempt), ("pool", Some(2)));
        assert_eq!(logs(" ").unwrap(), logs::Filter::default());
        for text in [
            "step",
            "step = ../x",
            "attempt = two",
            "attempt = -1",
            "step = a OR step = b",
            "step = a AND step = b",
            "attempt = 1 AND attempt = 2",
            "line = 1",
            "step != a",
            "AND",
        ] {
            assert!(logs(text).is_err(), "{text}");
        }
        assert!(logs(&"x".repeat(100_000)).is_err());
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for text in [
            "state",
            "state = LAZY",
            "owner = x",
            "playbook = a AND playbook = b",
            "playbook = a OR playbook = b",
            "state = RUNNING OR playbook = a",
            "state = RUNNING AND state = FAILED",
            "state != RUNNING",
            "waits_on = NOBODY",
            "waits_on = PERSON AND waits_on = AGENT",
            "waits_on = PERSON OR state = RUNNING",
            "AND",
            "playbook = \"",
            "playbook = a b",
        ] {
            assert!(runs(text).is_err(), "{text}");
        }
        assert!(runs(&"x".repeat(100_000)).is_err());
    }
}
