//! How a plan looks.

use muster_proto::v1;

use crate::{
    printer::{Block, Table, View, span},
    words,
};

pub(super) fn view(plan: &v1::Plan) -> View {
    let fields = vec![
        ("Playbook", plan.playbook_id.clone()),
        ("Revision", plan.revision.clone()),
        ("Digest", plan.digest.clone()),
        ("Owner", plan.owner.clone()),
        ("Secrets", plan.secrets.join(", ")),
        ("On cancel", if plan.undo_on_cancel { "undo" } else { "keep" }.to_owned()),
    ];
    View::new(vec![Block::Fields(fields), Block::Table(phases(plan)), Block::Table(steps(plan))])
}

fn phases(plan: &v1::Plan) -> Table {
    let head = ["PHASE", "PRIORITY", "STEPS", "DEADLINE", "GATE", "MILESTONE"];
    Table::new(&head, "no phases").rows(plan.phases.iter().map(|phase| {
        let criteria = phase.success_conditions.len() + phase.failure_conditions.len();
        vec![
            phase.id.clone(),
            words::priority(phase.priority()),
            phase.steps.len().to_string(),
            span(phase.deadline.as_ref()),
            if criteria == 0 { String::new() } else { counted(criteria) },
            phase.milestone.clone(),
        ]
    }))
}

fn steps(plan: &v1::Plan) -> Table {
    let head = ["STEP", "PHASE", "ACTION", "AGENT", "NEEDS", "TIMEOUT", "ATTEMPTS", "VERIFY", "ON FAILURE", "UNDO"];
    let rows = plan.phases.iter().flat_map(|phase| phase.steps.iter().map(|step| row(phase, step)));
    Table::new(&head, "no steps").rows(rows)
}

fn row(phase: &v1::PlannedPhase, step: &v1::PlannedStep) -> Vec<String> {
    vec![
        step.id.clone(),
        phase.id.clone(),
        if step.wait.is_empty() {
            format!("{}@{}", step.action, step.action_version)
        } else {
            format!("wait {}", step.wait)
        },
        step.agent.as_ref().map(selector).unwrap_or_default(),
        step.needs.join(","),
        span(step.timeout.as_ref()),
        step.max_attempts.to_string(),
        step.verify_action.clone(),
        if step.critical == Some(false) {
            format!("{}, not critical", step.on_failure)
        } else {
            step.on_failure.clone()
        },
        step.undo.clone(),
    ]
}

fn selector(agent: &v1::AgentSelector) -> String {
    let mut labels: Vec<String> = agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let host = if agent.host.is_empty() { String::new() } else { format!(" on {}", agent.host) };
    let labels = if labels.is_empty() { String::new() } else { format!(" {}", labels.join(",")) };
    format!("{}{labels}{host}", agent.role)
}

fn counted(criteria: usize) -> String {
    if criteria == 1 { "1 criterion".to_owned() } else { format!("{criteria} criteria") }
}
