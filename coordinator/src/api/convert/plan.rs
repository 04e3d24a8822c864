//! Playbooks, plans and findings as the API shows them.

use muster_engine::{
    plan::{AgentSelector, OnCancel, OnFailure, OnLost, Plan, PlannedPhase, PlannedStep, PlannedWait, Priority},
    playbook::{Finding, Level},
};
use muster_proto::v1 as pb;

use crate::{
    api::convert::{
        run::undo,
        value::{to_duration, to_struct, to_time, to_value},
    },
    control::{Planned, PlaybookRevision},
};

/// A stored revision, with the document or without.
pub fn playbook(revision: &PlaybookRevision, with_yaml: bool) -> pb::Playbook {
    pb::Playbook {
        name: format!("namespaces/{}/playbooks/{}@{}", revision.namespace, revision.name, revision.revision),
        playbook_id: revision.name.clone(),
        revision: revision.revision.to_string(),
        yaml: if with_yaml { revision.yaml.to_string() } else { String::new() },
        owner: revision.owner.clone(),
        create_time: Some(to_time(revision.submitted_at)),
        creator: revision.submitted_by.to_string(),
        warnings: revision.warnings.iter().map(finding).collect(),
    }
}

/// A finding.
pub fn finding(finding: &Finding) -> pb::Finding {
    pb::Finding {
        level: match finding.level {
            Level::Error => pb::finding::Level::Error,
            Level::Warning => pb::finding::Level::Warning,
        }
        .into(),
        code: finding.code.to_owned(),
        message: finding.message.clone(),
        path: finding.path.clone(),
        line: finding.line,
        column: finding.column,
        hint: finding.hint.clone(),
    }
}

/// A plan with its digest.
pub fn plan(planned: &Planned) -> pb::Plan {
    let plan = &*planned.plan;
    pb::Plan {
        digest: planned.digest.to_string(),
        playbook_id: plan.playbook.clone(),
        revision: plan.revision.to_string(),
        owner: plan.owner.clone(),
        inputs: to_struct(&plan.inputs),
        secrets: plan.secrets.clone(),
        undo_on_cancel: match plan.on_cancel {
            OnCancel::Keep => false,
            OnCancel::Undo => true,
        },
        phases: plan.phases.iter().map(|p| phase(plan, p)).collect(),
        outputs: plan.outputs.clone().into_iter().collect(),
        warnings: planned.warnings.iter().map(finding).collect(),
    }
}

pub(super) fn priority(priority: Priority) -> pb::Priority {
    match priority {
        Priority::Critical => pb::Priority::Critical,
        Priority::High => pb::Priority::High,
        Priority::Medium => pb::Priority::Medium,
        Priority::Low => pb::Priority::Low,
    }
}

pub(super) fn selector(selector: &AgentSelector) -> pb::AgentSelector {
    pb::AgentSelector {
        role: selector.role.clone(),
        labels: selector.labels.clone().into_iter().collect(),
        host: selector.host.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn phase(plan: &Plan, phase: &PlannedPhase) -> pb::PlannedPhase {
    let (success, failure) = match &phase.gate {
        Some(gate) => (gate.success_condition.clone(), gate.failure_condition.clone()),
        None => (Vec::new(), Vec::new()),
    };
    pb::PlannedPhase {
        id: phase.id.to_string(),
        display_name: phase.name.clone(),
        priority: priority(phase.priority).into(),
        deadline: phase.deadline_ms.map(to_duration),
        milestone: phase.milestone.clone().unwrap_or_default(),
        when: phase.when.clone().unwrap_or_default(),
        steps: phase.steps.iter().filter_map(|i| plan.steps.get(*i)).map(|s| step(plan, s)).collect(),
        success_conditions: success,
        failure_conditions: failure,
    }
}

fn wait(wait: &PlannedWait) -> String {
    match wait {
        PlannedWait::For { ms } => {
            format!("for {:#}", jiff::SignedDuration::from_millis(i64::try_from(*ms).unwrap_or(i64::MAX)))
        }
        PlannedWait::Until { moment } => format!("until {moment}"),
        PlannedWait::Signal { name, .. } => format!("signal {name}"),
    }
}

fn step(plan: &Plan, step: &PlannedStep) -> pb::PlannedStep {
    pb::PlannedStep {
        id: step.id.to_string(),
        display_name: step.name.clone(),
        needs: step.needs.iter().filter_map(|i| plan.steps.get(*i)).map(|s| s.id.to_string()).collect(),
        when: step.when.clone().unwrap_or_default(),
        agent: Some(selector(&step.agent)),
        action: step.action.name.to_string(),
        action_version: step.action.version.clone(),
        with: Some(to_value(&step.with)),
        timeout: match &step.wait {
            None => Some(to_duration(step.timeout_ms)),
            Some(PlannedWait::Signal { timeout_ms, .. }) => timeout_ms.map(to_duration),
            Some(PlannedWait::For { .. } | PlannedWait::Until { .. }) => None,
        },
        queue_timeout: step.queue_timeout_ms.map(to_duration),
        max_attempts: step.retry.max_attempts,
        on_lost: match step.on_lost {
            OnLost::Probe => "probe",
            OnLost::Retry => "retry",
            OnLost::Ask => "ask",
        }
        .to_owned(),
        on_failure: match step.on_failure {
            OnFailure::Undo => "undo",
            OnFailure::Pause => "pause",
            OnFailure::Continue => "continue",
        }
        .to_owned(),
        verify_action: step.verify.as_ref().map(|v| v.action.name.to_string()).unwrap_or_default(),
        verify_expect: step.verify.as_ref().map(|v| v.expect.clone()).unwrap_or_default(),
        undo: undo(&step.undo),
        critical: Some(step.critical),
        wait: step.wait.as_ref().map(wait).unwrap_or_default(),
    }
}
