//! Everything that is wrong with a playbook, all at once.
//!
//! The document has been decoded already; what could not be decoded is a hole in its tree, and is passed over in silence.

use std::collections::BTreeMap;

use super::{
    decode::nearest_word,
    findings::{Findings, Latest},
    schema::{API_VERSION, DurationText, KIND, Phase, Playbook, Step},
    tree::{Node, Path, Position},
};
use crate::plan::{Catalogue, graph::Graph};

mod actions;
mod expressions;
mod inputs;
mod steps;

/// Most phases of a playbook.
pub const MAX_PHASES: usize = 100;
/// Most steps of a playbook.
pub const MAX_STEPS: usize = 1000;
/// Most characters of an id.
const MAX_ID: usize = 63;
const DAY_MS: u64 = 86_400_000;

/// What an unknown action is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A warning: its agent may come later.
    Submit,
    /// An error: nobody could do it.
    Plan,
}

/// A document as written.
pub(crate) struct Document<'a> {
    pub(crate) tree: &'a Node,
    pub(crate) lines: Vec<&'a str>,
}

/// Adds everything that is wrong with a playbook to the findings.
pub(crate) fn lint(
    playbook: &Playbook,
    catalogue: &Catalogue,
    mode: Mode,
    document: Option<&Document<'_>>,
    findings: &mut Findings,
) {
    let mut lint = Lint { playbook, catalogue, mode, document, findings, steps: Vec::new(), by_id: BTreeMap::new() };
    lint.document();
    lint.inputs();
    lint.phases();
    let graph = lint.needs();
    lint.all_steps();
    lint.expressions(&graph);
}

/// A step with its place.
struct Placed<'a> {
    phase: usize,
    path: Path,
    /// As it is written.
    step: &'a Step,
    /// With the defaults that it is under.
    settled: Step,
}

struct Lint<'a> {
    playbook: &'a Playbook,
    catalogue: &'a Catalogue,
    mode: Mode,
    document: Option<&'a Document<'a>>,
    findings: &'a mut Findings,
    /// All steps in the order of the document.
    steps: Vec<Placed<'a>>,
    /// The first step of each id.
    by_id: BTreeMap<&'a str, usize>,
}

impl Lint<'_> {
    fn error(&mut self, path: &Path, code: &'static str, message: impl Into<String>) -> Latest<'_> {
        self.findings.error(path, code, message)
    }

    fn warning(&mut self, path: &Path, code: &'static str, message: impl Into<String>) -> Latest<'_> {
        self.findings.warning(path, code, message)
    }

    fn document(&mut self) {
        let playbook = self.playbook;
        if playbook.api_version != API_VERSION {
            self.error(&Path::of("apiVersion"), "INVALID_VALUE", format!("{:?} is not known", playbook.api_version))
                .hint(format!("write {API_VERSION}"));
        }
        if playbook.kind != KIND {
            self.error(&Path::of("kind"), "INVALID_VALUE", format!("{:?} is not known", playbook.kind))
                .hint(format!("write {KIND}"));
        }
        let name = &playbook.metadata.name;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = name.len() <= MAX_ID
            && name.starts_with(plain)
            && name.ends_with(plain)
            && name.chars().all(|c| plain(c) || c == '-');
        if !fits {
            self.error(&Path::of("metadata.name"), "INVALID_ID", format!("{name:?} is no name of a playbook"))
                .hint("a to z, 0 to 9 and dashes between them, at most 63: revenue-engine-rollout");
        }
        if playbook.metadata.owner.trim().is_empty() {
            self.error(&Path::of("metadata.owner"), "INVALID_VALUE", "the owner is empty")
                .hint("name the team or role that is told when a run waits for a person");
        }
        self.readable(&Path::of("metadata.owner"), &playbook.metadata.owner);
        let secrets = Path::of("spec.secrets");
        for (index, secret) in playbook.spec.secrets.iter().enumerate() {
            self.id(&secrets.index(index), secret, "a secret");
            if playbook.spec.secrets[..index].contains(secret) {
                self.error(&secrets.index(index), "DUPLICATE_ID", format!("the secret {secret:?} is named twice"))
                    .hint("keep one");
            }
        }
        let spec = Path::of("spec");
        self.unsupported(&spec, &[("concurrency", playbook.spec.concurrency.is_some())]);
        self.step_defaults(&spec, playbook.spec.defaults.as_ref());
    }

    fn phases(&mut self) {
        let phases = &self.playbook.spec.phases;
        let top = Path::of("spec.phases");
        if phases.is_empty() {
            self.error(&top, "EMPTY", "there is no phase").hint("add one with at least one step");
        }
        if phases.len() > MAX_PHASES {
            let message = format!("there are {} phases, at most {MAX_PHASES} are allowed", phases.len());
            self.error(&top, "TOO_MANY", message).hint("split the playbook");
        }
        let mut last_deadline = 0;
        let mut seen = BTreeMap::new();
        let mut milestones = BTreeMap::new();
        for (index, phase) in phases.iter().enumerate() {
            let path = top.index(index);
            self.id(&path.key("id"), &phase.id, "a phase");
            if let Some(first) = seen.insert(phase.id.as_str(), index) {
                let message = format!("the id {:?} is taken by phase {} of the document", phase.id, first + 1);
                self.error(&path.key("id"), "DUPLICATE_ID", message).hint("give each phase an id of its own");
            }
            self.names(&path, phase);
            if let Some(name) = &phase.milestone
                && milestones.insert(name.as_str(), index).is_some()
            {
                self.error(&path.key("milestone"), "DUPLICATE_ID", format!("the milestone {name:?} stands twice"))
                    .hint("give each milestone a name of its own");
            }
            if phase.steps.is_empty() {
                self.error(&path.key("steps"), "EMPTY", "the phase has no step").hint("add one, or remove the phase");
            }
            last_deadline = self.deadline(&path, index, last_deadline);
            self.gate(&path, index);
            self.unsupported(&path, &[("handoff", phase.handoff.is_some())]);
            self.step_defaults(&path, phase.defaults.as_ref());
            for (place, step) in phase.steps.iter().enumerate() {
                let settled = step.settled(&self.playbook.spec, phase);
                self.steps.push(Placed { phase: index, path: path.item("steps", place), step, settled });
            }
        }
        if self.steps.len() > MAX_STEPS {
            let message = format!("there are {} steps, at most {MAX_STEPS} are allowed", self.steps.len());
            self.error(&top, "TOO_MANY", message).hint("split the playbook");
        }
    }

    fn names(&mut self, path: &Path, phase: &Phase) {
        if let Some(name) = &phase.name {
            self.readable(&path.key("name"), name);
        }
        let Some(milestone) = &phase.milestone else {
            return;
        };
        let path = path.key("milestone");
        if milestone.trim().is_empty() {
            self.error(&path, "EMPTY", "the milestone has no name").hint("name what is reached, or remove it");
        }
        self.readable(&path, milestone);
    }

    /// A text for people, who see it as it is.
    fn readable(&mut self, path: &Path, text: &str) {
        if let Some((offset, c)) = text.chars().enumerate().find(|(_, c)| super::controls_display(*c)) {
            let at = self.inside(path, text, offset);
            let message = format!("there is a {} in it, which controls how the rest is shown", c.escape_unicode());
            self.findings.error_at(at, path, "INVALID_VALUE", message).hint("write one line of plain text");
        }
        self.no_template(path, text);
    }

    /// Says so where a text is taken as it is, and looks as if it were not.
    fn no_template(&mut self, path: &Path, text: &str) -> bool {
        let Some(start) = text.find("{{") else {
            return false;
        };
        let at = self.inside(path, text, text[..start].chars().count());
        self.misplaced(at, path);
        true
    }

    fn misplaced(&mut self, at: Position, path: &Path) {
        self.findings
            .error_at(at, path, "TEMPLATE_MISPLACED", "no template is possible here")
            .hint("write out what is meant; templates can stand in with: alone");
    }

    /// Returns the deadline that the next phase's should not be before.
    fn deadline(&mut self, path: &Path, index: usize, last: u64) -> u64 {
        let phase = &self.playbook.spec.phases[index];
        let path = path.key("deadline");
        let Some(deadline) = self.duration(&path, phase.deadline.as_ref(), 1000, 366 * DAY_MS) else {
            return last;
        };
        if phase.milestone.is_none() {
            self.warning(&path, "DEADLINE_WITHOUT_MILESTONE", "nothing is missed when the deadline passes")
                .hint("name a milestone");
        }
        if deadline < last {
            self.warning(&path, "DEADLINE_TOO_SHORT", "an earlier phase has a later deadline")
                .hint("deadlines count from the start of the run, not of the phase");
        }
        let settled = phase.steps.iter().map(|step| step.settled(&self.playbook.spec, phase));
        let longest = settled.filter_map(|step| step.timeout.as_ref()?.ms().ok()).max();
        if longest.is_some_and(|longest| longest > deadline) {
            self.warning(&path, "DEADLINE_TOO_SHORT", "one attempt of a step may take longer than this")
                .hint("shorten the step's timeout, or move the deadline");
        }
        deadline.max(last)
    }

    fn gate(&mut self, path: &Path, index: usize) {
        let Some(gate) = &self.playbook.spec.phases[index].gate else {
            return;
        };
        let path = path.key("gate");
        self.unsupported(
            &path,
            &[
                ("interval", gate.interval.is_some()),
                ("count", gate.count.is_some()),
                ("failureLimit", gate.failure_limit.is_some()),
                ("inconclusiveLimit", gate.inconclusive_limit.is_some()),
                ("probes", gate.probes.is_some()),
                ("watchFor", gate.watch_for.is_some()),
                ("signOff", gate.sign_off.is_some()),
            ],
        );
        if gate.success_condition.is_empty() && gate.failure_condition.is_empty() && gate.sign_off.is_none() {
            self.error(&path, "EMPTY", "the gate has no condition").hint("add successCondition: [\"…\"]");
        }
    }

    /// Fills `by_id` and says what is wrong with `needs`.
    fn needs(&mut self) -> Graph {
        for index in 0..self.steps.len() {
            let (step, path) = (self.steps[index].step, self.steps[index].path.key("id"));
            self.id(&path, &step.id, "a step");
            match self.by_id.get(step.id.as_str()) {
                None => {
                    self.by_id.insert(&step.id, index);
                }
                Some(first) => {
                    let message = format!("the id {:?} is taken by {}", step.id, self.steps[*first].path);
                    self.error(&path, "DUPLICATE_ID", message)
                        .hint("ids are unique in the document, not only in a phase");
                }
            }
        }
        let mut graph = Graph::new(self.steps.len());
        for index in 0..self.steps.len() {
            for (place, need) in self.steps[index].step.needs.iter().enumerate() {
                if let Some(needed) = self.need(index, place, need) {
                    graph.add(index, needed);
                }
            }
        }
        let steps: Vec<_> = self.steps.iter().map(|placed| (placed.phase, placed.step)).collect();
        graph.add_unsaid(&steps);
        for cycle in graph.cycles() {
            let ids: Vec<&str> =
                cycle.iter().chain([&cycle[0]]).map(|index| self.steps[*index].step.id.as_str()).collect();
            let message = format!("the steps need each other: {}", ids.join(" → "));
            let path = self.steps[cycle[0]].path.key("needs");
            self.error(&path, "CYCLE", message).hint("take one of the needs out");
        }
        graph
    }

    /// The step that is needed, if an edge can be drawn to it.
    fn need(&mut self, index: usize, place: usize, need: &str) -> Option<usize> {
        let path = self.steps[index].path.item("needs", place);
        let Some(&needed) = self.by_id.get(need) else {
            let known: Vec<&str> = self.by_id.keys().copied().take(20).collect();
            let hint = nearest_word(need, &known);
            self.error(&path, "UNKNOWN_STEP", format!("there is no step {need:?}")).hint(hint);
            return None;
        };
        if self.steps[needed].phase > self.steps[index].phase {
            self.error(&path, "NEEDS_LATER_PHASE", format!("the step {need:?} is in a later phase"))
                .hint("phases run one after another; move one of the steps");
            return None;
        }
        if self.steps[index].step.needs[..place].iter().any(|other| other == need) {
            self.warning(&path, "DUPLICATE_NEED", format!("{need:?} is needed twice")).hint("keep one");
        }
        Some(needed)
    }

    /// The grammar of ids: a plain CEL name.
    fn id(&mut self, path: &Path, id: &str, what: &str) {
        const RESERVED: &[&str] = &[
            "as",
            "break",
            "const",
            "continue",
            "else",
            "false",
            "for",
            "function",
            "if",
            "import",
            "in",
            "let",
            "loop",
            "namespace",
            "null",
            "package",
            "return",
            "true",
            "var",
            "void",
            "while",
        ];
        let fits = id.len() <= MAX_ID
            && id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !fits {
            self.error(path, "INVALID_ID", format!("{id:?} is no id of {what}"))
                .hint("a to z first, then a to z, 0 to 9 and _, at most 63: tls_certificate");
        } else if RESERVED.contains(&id) {
            self.error(path, "INVALID_ID", format!("{id:?} is a word of CEL")).hint("take another id");
        }
    }

    /// A duration within bounds, in milliseconds.
    fn duration(&mut self, path: &Path, text: Option<&DurationText>, least: u64, most: u64) -> Option<u64> {
        match text?.ms() {
            Err(message) => {
                self.error(path, "INVALID_DURATION", message).hint("write a number and d, h, m, s or ms: 30m, 1h30m");
                None
            }
            Ok(ms) if ms < least || ms > most => {
                let message = format!("{} is not between {} and {}", words(ms), words(least), words(most));
                self.error(path, "DURATION_OUT_OF_RANGE", message).hint("nothing may be without a limit");
                None
            }
            Ok(ms) => Some(ms),
        }
    }

    fn unsupported(&mut self, path: &Path, keys: &[(&str, bool)]) {
        for (key, present) in keys {
            if *present {
                let at = self.document.map(|document| document.tree.key_position(&path.key(key))).unwrap_or_default();
                self.findings
                    .error_at(at, &path.key(key), "NOT_SUPPORTED_YET", format!("{key:?} is not supported yet"))
                    .hint("remove it");
            }
        }
    }
}

/// Milliseconds as a person would write them.
fn words(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(DAY_MS, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match UNITS.iter().find(|(size, _)| ms > 0 && ms.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", ms / size),
        None if ms == 0 => "0s".to_owned(),
        None => format!("{ms}ms"),
    }
}
