//! What a registration may say of an agent: everything in it is kept, journalled and shown, so everything has a limit.

use muster_bus::{
    message::{ActionOffer, PROTOCOL, Register},
    subject::is_token,
};
use muster_engine::playbook::controls_display;

/// New names are refused above it.
pub(super) const MAX_AGENTS: usize = 10_000;
const MAX_SLOTS: u32 = 65_536;
const MAX_ACTIONS: usize = 256;
const MAX_LABELS: usize = 64;
/// Of a host, a label's value, a version, the name of a program: in bytes.
const MAX_TEXT: usize = 256;
/// Of an action's summary.
const MAX_SUMMARY: usize = 2_048;

/// Whether a registration is within the limits; `known` says how many agents there are besides, for one that is new.
///
/// # Errors
/// A sentence for whoever wrote the agent.
pub(super) fn check(register: &Register, known: usize) -> Result<(), String> {
    if register.protocol != PROTOCOL {
        return Err(format!("this coordinator speaks protocol {PROTOCOL}, not {}", register.protocol));
    }
    if known >= MAX_AGENTS {
        return Err(format!(
            "there are {MAX_AGENTS} agents already: forget those that are gone (`muster agent forget`)"
        ));
    }
    for (what, token) in [("instance", &register.instance), ("role", &register.role)] {
        if !is_token(token) {
            return Err(format!("the {what} must be 1 to 63 of a-z, 0-9, _ and -"));
        }
    }
    if !(1..=MAX_SLOTS).contains(&register.slots) {
        return Err(format!("an agent has 1 to {MAX_SLOTS} slots"));
    }
    text("the host", register.host.as_deref().unwrap_or("-"), MAX_TEXT)?;
    if !register.software.is_empty() {
        text("`software`", &register.software, MAX_TEXT)?;
    }
    if register.labels.len() > MAX_LABELS {
        return Err(format!("an agent has at most {MAX_LABELS} labels"));
    }
    for (key, value) in &register.labels {
        text("a label's key", key, MAX_TEXT)?;
        text(&format!("label {key}"), value, MAX_TEXT)?;
    }
    if register.actions.len() > MAX_ACTIONS {
        return Err(format!("an agent offers at most {MAX_ACTIONS} actions"));
    }
    register.actions.iter().try_for_each(action)
}

fn action(offer: &ActionOffer) -> Result<(), String> {
    let is_name = offer.name.split_once('.').is_some_and(|(system, verb)| is_token(system) && is_token(verb));
    if !is_name {
        return Err("an action's name is <system>.<verb>, each 1 to 63 of a-z, 0-9, _ and -".to_owned());
    }
    let numbers = offer.version.split(['-', '+']).next().unwrap_or_default();
    let is_version = numbers.split('.').count() == 3 && numbers.split('.').all(|n| n.parse::<u32>().is_ok());
    if !is_version || text("a version", &offer.version, MAX_TEXT).is_err() {
        return Err(format!("the version of {} is not one like 1.0.0", offer.name));
    }
    if offer.summary.len() > MAX_SUMMARY {
        return Err(format!("the summary of {} is over {MAX_SUMMARY} bytes", offer.name));
    }
    Ok(())
}

fn text(what: &str, text: &str, limit: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > limit || text.chars().any(controls_display) {
        return Err(format!("{what} must be 1 to {limit} bytes without control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::registry::{Admission, Leases, Registry};

    fn register(change: serde_json::Value) -> Register {
        let mut message = json!({
            "protocol": 1, "agent": "infra-1", "instance": "i-1", "role": "infra", "slots": 4,
            "host": "db-1.example", "labels": {"site": "eu"},
            "actions": [{"name": "greet.say", "version": "1.0.0-rc.1"}],
        });
        let (serde_json::Value::Object(all), serde_json::Value::Object(change)) = (&mut message, change) else {
            panic!("objects")
        };
        all.extend(change);
        serde_json::from_value(message).unwrap()
    }

    #[test]
    fn what_is_within_the_limits_is_welcome() {
        assert_eq!(check(&register(json!({})), 0), Ok(()));
    }

    #[test]
    fn everything_has_a_limit() {
        let many: Vec<_> = (0..300).map(|n| json!({"name": format!("a.b{n}"), "version": "1.0.0"})).collect();
        let labels: serde_json::Map<_, _> = (0..65).map(|n| (n.to_string(), json!("x"))).collect();
        for (change, why) in [
            (json!({"protocol": 2}), "protocol"),
            (json!({"instance": ""}), "instance"),
            (json!({"role": "In fra"}), "role"),
            (json!({"slots": 0}), "slots"),
            (json!({"slots": u32::MAX}), "slots"),
            (json!({"host": "\u{1b}[2J"}), "host"),
            (json!({"software": "x".repeat(257)}), "software"),
            (json!({"labels": {"k": "x".repeat(100_000)}}), "label k"),
            (json!({"labels": {"": "x"}}), "key"),
            (json!({"labels": labels}), "labels"),
            (json!({"actions": many}), "actions"),
            (json!({"actions": [{"name": "NOT AN ACTION \0", "version": "1.0.0"}]}), "name"),
            (json!({"actions": [{"name": "a.b", "version": "zork"}]}), "version"),
            (json!({"actions": [{"name": "a.b", "version": "1.0.0", "summary": "x".repeat(3_000)}]}), "summary"),
        ] {
            let refused = check(&register(change.clone()), 0).expect_err(&change.to_string());
            assert!(refused.contains(why), "{refused}");
        }
        assert!(check(&register(json!({})), MAX_AGENTS).is_err());
    }

    #[test]
    fn a_flood_of_new_names_shuts_out_none_that_was_here_before() {
        let registry = Registry::new(Leases { suspect_after_ms: 15_000, lost_after_ms: 30_000 });
        let (namespace, now) = ("default".into(), Timestamp::UNIX_EPOCH);
        let named = |name: &str, instance: &str| register(json!({"agent": name, "instance": instance}));
        registry.admit(&namespace, &named("infra-1", "i-1"), Some(1), now);
        for n in 0..MAX_AGENTS {
            registry.admit(&namespace, &named(&format!("flood-{n}"), &format!("f-{n}")), Some(1), now);
        }
        assert!(
            matches!(registry.consider(&namespace, &named("new", "n-1")), Admission::Refused(why) if why.contains("forget"))
        );
        assert!(matches!(
            registry.consider(&namespace, &named("infra-1", "i-1")),
            Admission::Welcome { journal: None }
        ));
        assert_eq!(registry.sweep(Timestamp::from_second(60).unwrap()).len(), MAX_AGENTS + 1, "all are lost");
        let again = registry.consider(&namespace, &named("infra-1", "i-2"));
        assert!(matches!(again, Admission::Welcome { journal: Some((1, _)) }), "its next process");
    }
}
