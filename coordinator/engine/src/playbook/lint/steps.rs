//! Steps, one by one.

use jiff::Timestamp;

use super::{DAY_MS, Lint};
use crate::playbook::{
    schema::{Agent, Defaults, DurationText, OnFailure, Retry, Step, Wait},
    tree::Path,
};

/// Longest time of one attempt.
const MAX_TIMEOUT_MS: u64 = DAY_MS;
/// Longest wait that a playbook may ask for.
const MAX_WAIT_MS: u64 = 366 * DAY_MS;

impl Lint<'_> {
    pub(super) fn all_steps(&mut self) {
        for index in 0..self.steps.len() {
            let (step, path) = (self.steps[index].step, self.steps[index].path.clone());
            let settled = self.steps[index].settled.clone();
            self.unsupported_in_step(&path, step);
            if let Some(name) = &step.name {
                self.readable(&path.key("name"), name);
            }
            self.who_and_what(&path, step, &settled);
            self.failure(&path, &settled);
            if let Some(wait) = &step.wait {
                self.wait(&path, step, wait);
                continue;
            }
            self.times(&path, [&step.timeout, &step.queue_timeout, &step.status]);
            self.verify(&path, step);
            if let Some(retry) = &step.retry {
                self.retry(&path.key("retry"), retry);
            }
            if step.action.is_some() {
                self.action(&path, step, &settled);
            }
        }
    }

    fn wait(&mut self, path: &Path, step: &Step, wait: &Wait) {
        let without_meaning = [
            ("agent", step.agent.is_some()),
            ("with", step.with.is_some()),
            ("queueTimeout", step.queue_timeout.is_some()),
            ("status", step.status.is_some()),
            ("retry", step.retry.is_some()),
            ("onLost", step.on_lost.is_some()),
            ("verify", step.verify.is_some()),
            ("undo", step.undo.is_some()),
            ("timeout", step.timeout.is_some() && wait.signal.is_none()),
        ];
        for (key, _) in without_meaning.into_iter().filter(|(_, present)| *present) {
            let message = format!("a step that waits has no {key}");
            self.error(&path.key(key), "CONTRADICTION", message).hint("remove it; timeout is for a signal alone");
        }
        self.duration(&path.key("timeout"), step.timeout.as_ref(), 1, MAX_WAIT_MS);
        let path = path.key("wait");
        let kinds = [wait.duration.is_some(), wait.until.is_some(), wait.signal.is_some()];
        if kinds.iter().filter(|present| **present).count() != 1 {
            self.error(&path, "INVALID_VALUE", "a wait is for one of for, until and signal")
                .hint("wait: {for: 10m}; make several steps of several waits");
        }
        self.duration(&path.key("for"), wait.duration.as_ref(), 1, MAX_WAIT_MS);
        if let Some(signal) = &wait.signal {
            self.id(&path.key("signal"), signal, "a signal");
        }
        if let Some(until) = &wait.until
            && !until.contains("{{")
            && until.parse::<Timestamp>().is_err()
        {
            self.error(&path.key("until"), "INVALID_VALUE", format!("{until:?} is no moment"))
                .hint("write it as 2026-01-31T18:00:00Z or 2026-01-31T18:00:00+01:00");
        }
    }

    /// What is wrong with the values themselves; what they mean for a step is said there.
    pub(super) fn step_defaults(&mut self, path: &Path, defaults: Option<&Defaults>) {
        let Some(defaults) = defaults else {
            return;
        };
        let path = path.key("defaults");
        if let Some(agent) = &defaults.agent {
            self.agent(&path.key("agent"), agent);
        }
        self.times(&path, [&defaults.timeout, &defaults.queue_timeout, &defaults.status]);
        if let Some(retry) = &defaults.retry {
            self.retry(&path.key("retry"), retry);
        }
    }

    fn failure(&mut self, path: &Path, settled: &Step) {
        if settled.critical == Some(false) && settled.on_failure == Some(OnFailure::Undo) {
            self.error(
                &path.key("critical"),
                "CONTRADICTION",
                "a run is not walked back for a step that is not critical",
            )
            .hint("write onFailure: continue or pause, or take critical: false out");
        }
    }

    fn unsupported_in_step(&mut self, path: &Path, step: &Step) {
        self.unsupported(
            path,
            &[
                ("playbook", step.playbook.is_some()),
                ("forEach", step.for_each.is_some()),
                ("matrix", step.matrix.is_some()),
                ("maxParallel", step.max_parallel.is_some()),
            ],
        );
    }

    fn who_and_what(&mut self, path: &Path, step: &Step, settled: &Step) {
        let kinds = [step.action.is_some(), step.wait.is_some(), step.playbook.is_some()];
        match kinds.iter().filter(|present| **present).count() {
            0 => self
                .error(&path.key("action"), "MISSING_KEY", "\"action\" is missing")
                .hint("say what is to be done: action: command.run"),
            1 => {}
            _ => self
                .error(path, "INVALID_VALUE", "a step has one of action, wait and playbook")
                .hint("make several steps of it"),
        }
        if let Some(agent) = &step.agent {
            self.agent(&path.key("agent"), agent);
        } else if step.action.is_some() && settled.agent.is_none() {
            self.error(&path.key("agent"), "MISSING_KEY", "\"agent\" is missing")
                .hint("say who does it: agent: {role: infra}");
        }
    }

    fn agent(&mut self, path: &Path, agent: &Agent) {
        self.token(&path.key("role"), &agent.role);
        if let Some(host) = &agent.host {
            self.token(&path.key("host"), host);
        }
        for (name, value) in &agent.labels {
            let path = path.key("labels").key(name);
            if name.contains("{{") {
                let at = self.document.map(|document| document.tree.key_position(&path)).unwrap_or_default();
                self.misplaced(at, &path);
            }
            self.no_template(&path, value);
        }
    }

    /// A name as it stands in a subject.
    fn token(&mut self, path: &Path, token: &str) {
        if self.no_template(path, token) {
            return;
        }
        let fits = (1..=63).contains(&token.len())
            && token.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if !fits {
            self.error(path, "INVALID_ID", format!("{token:?} is no name here"))
                .hint("a to z, 0 to 9, _ and -, at most 63");
        }
    }

    fn times(&mut self, path: &Path, [timeout, queue_timeout, status]: [&Option<DurationText>; 3]) {
        let timeout = self.duration(&path.key("timeout"), timeout.as_ref(), 1, MAX_TIMEOUT_MS);
        self.duration(&path.key("queueTimeout"), queue_timeout.as_ref(), 1, 30 * DAY_MS);
        let status = self.duration(&path.key("status"), status.as_ref(), 1000, DAY_MS);
        if let (Some(status), Some(timeout)) = (status, timeout)
            && status > timeout
        {
            self.warning(
                &path.key("status"),
                "STATUS_AFTER_TIMEOUT",
                "the step has timed out before it would say anything",
            )
            .hint("let it say how it goes more often");
        }
    }

    fn verify(&mut self, path: &Path, step: &Step) {
        let Some(verify) = &step.verify else {
            return;
        };
        let path = path.key("verify");
        let within = self.duration(&path.key("within"), verify.within.as_ref(), 0, DAY_MS);
        let every = self.duration(&path.key("every"), verify.every.as_ref(), 100, DAY_MS);
        if let (Some(within), Some(every)) = (within, every)
            && every > within
        {
            self.warning(
                &path.key("every"),
                "VERIFY_ONCE",
                "it looks only once: the next look would be after \"within\"",
            )
            .hint("look more often, or remove both");
        }
        if verify.expect.is_empty() {
            self.error(&path.key("expect"), "EMPTY", "nothing is expected").hint("add a condition over output");
        }
    }

    fn retry(&mut self, path: &Path, retry: &Retry) {
        if let Some(attempts) = retry.max_attempts
            && !(1..=100).contains(&attempts)
        {
            self.error(&path.key("maxAttempts"), "INVALID_VALUE", format!("{attempts} is not between 1 and 100"))
                .hint("the first attempt counts too");
        }
        self.duration(&path.key("maxElapsed"), retry.max_elapsed.as_ref(), 1, 30 * DAY_MS);
        let Some(backoff) = &retry.backoff else {
            return;
        };
        let path = path.key("backoff");
        let initial = self.duration(&path.key("initial"), backoff.initial.as_ref(), 1, DAY_MS);
        let max = self.duration(&path.key("max"), backoff.max.as_ref(), 1, DAY_MS);
        if let (Some(initial), Some(max)) = (initial, max)
            && initial > max
        {
            self.error(&path.key("max"), "INVALID_VALUE", "the longest wait is shorter than the first one")
                .hint("raise max, or lower initial");
        }
        if let Some(factor) = backoff.factor
            && !(1.0..=10.0).contains(&factor)
        {
            self.error(&path.key("factor"), "INVALID_VALUE", format!("{factor} is not between 1 and 10"))
                .hint("2 doubles the wait each time");
        }
    }
}
