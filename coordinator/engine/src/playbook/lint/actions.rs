//! What steps do, against what agents say they can.

use serde_json::{Map, Value};

use super::{Lint, Mode};
use crate::{
    plan::{ActionFacts, CatalogueEntry},
    playbook::{
        decode::nearest_word,
        json_schema::Schema,
        render::has_template,
        schema::{OnFailure, OnLost, Step, Undo},
        tree::{Path, Segment},
    },
};

impl<'a> Lint<'a> {
    pub(super) fn action(&mut self, path: &Path, step: &'a Step, settled: &Step) {
        let Some(action) = &step.action else {
            return;
        };
        let entry = self.entry(&path.key("action"), action);
        if let Some(entry) = entry {
            self.params(&path.key("with"), path, step.with.as_ref(), entry);
            self.promises(path, settled, action, entry.facts);
        }
        if let Some(verify) = &step.verify {
            let path = path.key("verify");
            if let Some(entry) = self.entry(&path.key("action"), &verify.action) {
                self.params(&path.key("with"), &path, verify.with.as_ref(), entry);
                if !entry.facts.read_only {
                    self.error(&path.key("action"), "VERIFY_CHANGES", format!("{} changes something", verify.action))
                        .hint("verify with an action that only looks");
                }
            }
        }
        if let Some(Undo::Action(undo)) = &step.undo {
            let path = path.key("undo");
            if let Some(entry) = self.entry(&path.key("action"), &undo.action) {
                self.params(&path.key("with"), &path, undo.with.as_ref(), entry);
            }
        }
    }

    /// What is known of an action; says so if nothing is.
    fn entry(&mut self, path: &Path, action: &str) -> Option<&'a CatalogueEntry> {
        let word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if action.len() > 100 || !action.contains('.') || !action.split('.').all(word) {
            self.error(path, "INVALID_ID", format!("{action:?} is no name of an action"))
                .hint("<system>.<verb>: tls.certificate");
            return None;
        }
        let entry = self.catalogue.get(action);
        if entry.is_none() {
            let known: Vec<&str> = self.catalogue.keys().map(crate::ids::ActionName::as_str).collect();
            let hint = nearest_word(action, &known);
            let message = format!("no agent offers {action:?}");
            match self.mode {
                Mode::Submit => self.warning(path, "UNKNOWN_ACTION", message).hint(hint),
                Mode::Plan => self.error(path, "UNKNOWN_ACTION", message).hint(hint),
            }
        }
        entry
    }

    fn promises(&mut self, path: &Path, step: &Step, action: &str, facts: ActionFacts) {
        match step.on_lost {
            Some(OnLost::Retry) if !facts.idempotent => self
                .error(&path.key("onLost"), "RETRY_NOT_IDEMPOTENT", format!("{action} must not be done twice"))
                .hint("write onLost: probe, or ask"),
            Some(OnLost::Probe) if !facts.checkable => self
                .warning(
                    &path.key("onLost"),
                    "PROBE_NOT_POSSIBLE",
                    format!("{action} has no check: a loss becomes a question"),
                )
                .hint("write onLost: ask"),
            Some(OnLost::Probe | OnLost::Retry | OnLost::Ask) | None => {}
        }
        let undone = matches!(step.on_failure, None | Some(OnFailure::Undo));
        match &step.undo {
            Some(Undo::Auto) if !facts.undoable && !facts.read_only => self
                .error(&path.key("undo"), "UNDO_NOT_POSSIBLE", format!("{action} can't undo itself"))
                .hint("name an action that does, or write undo: irreversible"),
            None if !facts.undoable && !facts.read_only && undone => self
                .warning(path, "MISSING_UNDO", format!("{action} can't undo itself, and no other action does"))
                .hint("add undo: {action: …}, or undo: irreversible"),
            Some(Undo::Action(undo)) if facts.read_only => self
                .warning(
                    &path.key("undo"),
                    "UNDO_OF_NOTHING",
                    format!("{action} changes nothing, so {} is never done", undo.action),
                )
                .hint("take the undo out, or give it to the step that changes something"),
            Some(Undo::Auto | Undo::Irreversible | Undo::Action(_)) | None => {}
        }
    }

    /// Parameters against the action's schema, as far as they are written out.
    fn params(&mut self, path: &Path, owner: &Path, with: Option<&Map<String, Value>>, entry: &CatalogueEntry) {
        let Some(schema) = &entry.params_schema else {
            return;
        };
        // An agent's schema that can't be used is the agent's fault, and is found when it registers.
        let Ok(schema) = Schema::new(schema) else {
            return;
        };
        let value = Value::Object(with.cloned().unwrap_or_default());
        for misfit in schema.misfits(&value) {
            let open = at(&value, &misfit.path).is_some_and(has_template);
            if open && !misfit.about_keys {
                continue;
            }
            let mut place = if with.is_some() { path.clone() } else { owner.clone() };
            place.0.extend(misfit.path);
            self.error(&place, "INVALID_PARAMETER", misfit.message).hint("see the action's parameters");
        }
    }
}

fn at<'v>(value: &'v Value, path: &[Segment]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Key(name) => value.get(name),
        Segment::Index(index) => value.get(index),
    })
}
