//! The happy way of every method on playbooks, runs, milestones and agents.

use std::sync::Arc;

use muster_engine::run::{
    Command,
    event::{Observation, Outcome},
};
use muster_proto::v1::{
    self as pb, plan_playbook_request, run::State, start_run_request, wait_run_response::Outcome as Waited,
    waiting::WaitsOn,
};
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;
use tonic::Code;

use crate::{
    fake::AGENT,
    harness::{NAMESPACE, Served, get, reason, served, soon, start},
};

pub(crate) fn done(output: serde_json::Value) -> Outcome {
    Outcome::Succeeded { output: Arc::new(output), unchanged: false, observations: Vec::new(), truncated: false }
}

fn submit(yaml: &str) -> pb::SubmitPlaybookRequest {
    pb::SubmitPlaybookRequest { parent: NAMESPACE.to_owned(), yaml: yaml.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn playbooks_are_kept_by_revision() {
    let served: Served = served().await;
    let mut client = served.playbooks().await;
    let first = client.submit_playbook(submit("playbook hello\nstep a")).await.unwrap().into_inner();
    let second = client.submit_playbook(submit("playbook hello\nstep a\nstep b")).await.unwrap().into_inner();
    assert_eq!(first.name, format!("{NAMESPACE}/playbooks/hello@{}", first.revision));
    assert_eq!(first.creator, "person/dba-1");
    assert_ne!(first.revision, second.revision);

    let newest = format!("{NAMESPACE}/playbooks/hello");
    let found = client.get_playbook(pb::GetPlaybookRequest { name: newest }).await.unwrap().into_inner();
    assert_eq!(found.yaml, "playbook hello\nstep a\nstep b");
    let found = client.get_playbook(pb::GetPlaybookRequest { name: first.name }).await.unwrap().into_inner();
    assert_eq!(found.yaml, "playbook hello\nstep a");

    let mut dry = submit("playbook other\nstep a");
    dry.validate_only = true;
    client.submit_playbook(dry).await.unwrap();
    let list = pb::ListPlaybooksRequest { parent: NAMESPACE.to_owned(), ..Default::default() };
    let listed = client.list_playbooks(list).await.unwrap().into_inner();
    assert_eq!(listed.playbooks.len(), 1, "validate_only has stored something");
    assert_eq!(listed.playbooks[0].revision, second.revision);
    assert_eq!(listed.playbooks[0].yaml, "");
}

#[tokio::test]
async fn lint_tells_all_findings() {
    let served: Served = served().await;
    let yaml = "playbook hello\nstep a\nstop b\nstap c".to_owned();
    let request = pb::LintPlaybookRequest { parent: NAMESPACE.to_owned(), yaml };
    let findings = served.playbooks().await.lint_playbook(request).await.unwrap().into_inner().findings;
    let places: Vec<_> = findings.iter().map(|f| (f.line, f.column, f.code.as_str())).collect();
    assert_eq!(places, [(3, 1, "LINE_UNKNOWN"), (4, 1, "LINE_UNKNOWN")]);
}

#[tokio::test]
async fn a_plan_is_what_is_run() {
    let served: Served = served().await;
    let mut client = served.playbooks().await;
    client.submit_playbook(submit("playbook hello\nstep a\nstep b")).await.unwrap();
    let inputs = Struct { fields: [("replicas".to_owned(), Value { kind: Some(Kind::NumberValue(3.0)) })].into() };
    let name = format!("{NAMESPACE}/playbooks/hello");
    let request = pb::PlanPlaybookRequest {
        parent: NAMESPACE.to_owned(),
        source: Some(plan_playbook_request::Source::Playbook(name.clone())),
        inputs: Some(inputs.clone()),
    };
    let plan = client.plan_playbook(request).await.unwrap().into_inner();
    assert_eq!(plan.phases[0].steps[1].needs, ["a"]);
    assert_eq!(plan.phases[0].deadline.unwrap().seconds, 1_800);
    assert_eq!(plan.inputs, Some(inputs.clone()));

    let request = pb::StartRunRequest {
        parent: NAMESPACE.to_owned(),
        source: Some(start_run_request::Source::Playbook(name)),
        inputs: Some(inputs.clone()),
        plan_digest: plan.digest.clone(),
        ..Default::default()
    };
    let run = served.runs().await.start_run(request).await.unwrap().into_inner();
    assert_eq!(run.plan_digest, plan.digest);
    assert_eq!(run.inputs, Some(inputs));
}

#[tokio::test]
async fn a_run_shows_everything() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a\nstep b").await;
    assert_eq!(run.state(), State::Running);
    assert_eq!((run.owner.as_str(), run.note.as_str()), ("devops", "for a test"));
    let at = jiff::Timestamp::now();
    let latency = Observation {
        name: "latency_p95".to_owned(),
        value: 12.5,
        unit: "ms".to_owned(),
        samples: Some(100),
        at,
        source: "127.0.0.1:1".to_owned(),
    };
    let outcome = Outcome::Succeeded {
        output: Arc::new(json!({"days_left": 30})),
        unchanged: true,
        observations: vec![latency],
        truncated: false,
    };
    served.fake.work(&run.run_id, "a", outcome);

    let run = served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner();
    assert_eq!(run.creator, "person/dba-1");
    let (a, b) = (&run.steps[0], &run.steps[1]);
    assert_eq!(a.name, format!("{}/steps/a", run.name));
    assert_eq!((a.state(), b.state()), (pb::step::State::Succeeded, pb::step::State::Queued));
    assert_eq!(b.state_reason, "waits for an agent of role infra");
    assert!(b.next_time.is_some());
    let attempt = &a.attempts[0];
    assert_eq!((attempt.number, attempt.agent.as_str()), (1, "infra-1"));
    assert_eq!((attempt.state(), attempt.purpose()), (pb::attempt::State::Succeeded, pb::attempt::Purpose::Run));
    assert!(attempt.unchanged && attempt.end_time.is_some());
    assert_eq!(attempt.observations[0].samples, 100);
    assert!(a.output.is_some() && attempt.with.is_some());
    let milestone = run.phases[0].milestone.as_ref().unwrap();
    assert_eq!((milestone.state(), milestone.display_name.as_str()), (pb::milestone::State::Pending, "Ready"));

    served.fake.work(&run.run_id, "b", done(json!(null)));
    let run = served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner();
    assert_eq!(run.state(), State::Succeeded);
    assert!(run.end_time.is_some());
    assert_eq!(run.phases[0].milestone.as_ref().unwrap().state(), pb::milestone::State::Reached);
}

#[tokio::test]
async fn runs_are_listed_by_page_and_filter() {
    let served: Served = served().await;
    for n in 0..5 {
        let yaml = if n == 3 { "playbook other\nstep a" } else { "playbook hello\nstep a" };
        served.started(yaml).await;
    }
    served.fake.work("0199-0002", "a", done(json!(null)));
    let mut client = served.runs().await;
    let mut request = pb::ListRunsRequest { parent: NAMESPACE.to_owned(), page_size: 2, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = client.list_runs(request.clone()).await.unwrap().into_inner();
        assert!(page.runs.len() <= 2);
        seen.extend(page.runs.into_iter().map(|r| (r.run_id, r.creator)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[0], ("0199-0001".to_owned(), "person/dba-1".to_owned()));

    for (filter, count) in [
        ("state = SUCCEEDED", 1),
        ("state = RUNNING AND playbook = hello", 3),
        ("playbook = x", 0),
        ("waits_on = PERSON", 0),
        ("waits_on = PERSON OR waits_on = AGENT", 4),
        ("waits_on = AGENT AND playbook = other", 1),
    ] {
        let request =
            pb::ListRunsRequest { parent: NAMESPACE.to_owned(), filter: filter.to_owned(), ..Default::default() };
        assert_eq!(client.list_runs(request).await.unwrap().into_inner().runs.len(), count, "{filter}");
    }
}

#[tokio::test]
async fn a_signal_needs_a_step_that_waits_for_it_and_little_with_it() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    let signal = |payload: Option<&str>| pb::SignalRunRequest {
        name: run.name.clone(),
        signal: "approved".to_owned(),
        payload: payload.map(Into::into),
        ..Default::default()
    };
    let unknown = client.signal_run(signal(None)).await.unwrap_err();
    assert_eq!(reason(&unknown), "SIGNAL_NOT_FOUND", "{unknown:?}");
    let large = client.signal_run(signal(Some(&"x".repeat(70_000)))).await.unwrap_err();
    assert_eq!((large.code(), reason(&large).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
}

#[tokio::test]
async fn a_run_is_paused_resumed_and_cancelled() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    let pause = pb::PauseRunRequest { name: run.name.clone(), reason: "lunch".to_owned(), ..Default::default() };
    let paused = client.pause_run(pause).await.unwrap().into_inner();
    assert_eq!((paused.state(), paused.state_reason.as_str()), (State::Paused, "lunch"));
    assert!(paused.pause.is_some());
    let step = &paused.steps[0];
    assert_eq!((step.state_reason.as_str(), &step.next_time), ("waits for the run to go on", &None));
    let list = pb::ListRunsRequest { parent: "namespaces/default".to_owned(), ..Default::default() };
    let listed = client.list_runs(list).await.unwrap().into_inner().runs;
    assert_eq!((listed[0].state(), listed[0].state_reason.as_str()), (State::Paused, "lunch"));
    let waiting = listed[0].waiting.as_ref().expect("it has not ended");
    assert_eq!((waiting.waits_on(), waiting.waits_for.as_str()), (WaitsOn::Person, "the run is paused: lunch"));
    assert!(waiting.since.is_some() && !waiting.on_whom.is_empty(), "{waiting:?}");
    let resume = pb::ResumeRunRequest { name: run.name.clone(), reason: "back".to_owned(), ..Default::default() };
    assert_eq!(client.resume_run(resume).await.unwrap().into_inner().state(), State::Running);
    let cancel = pb::CancelRunRequest { name: run.name.clone(), reason: "wrong".to_owned(), ..Default::default() };
    let cancelled = client.cancel_run(cancel).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), State::Cancelled);
    assert_eq!(cancelled.steps[0].state(), pb::step::State::Cancelled);
    assert_eq!(cancelled.cancellation.unwrap().reason, "wrong");
}

#[tokio::test]
async fn nothing_of_a_run_that_has_ended_seems_to_go_on() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let assign = Command::Assign {
        step: "a".into(),
        agent: AGENT.into(),
        instance: "i1".into(),
        host: None,
        dispatch_until: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30),
    };
    served.fake.command(&run.run_id, &assign);
    let mut client = served.runs().await;
    let cancel =
        pb::CancelRunRequest { name: run.name.clone(), reason: "wrong".to_owned(), force: true, ..Default::default() };
    let ended = client.cancel_run(cancel).await.unwrap().into_inner();
    assert_eq!(ended.state(), State::Cancelled);
    let phase = &ended.phases[0];
    assert_eq!((phase.state(), phase.state_time), (pb::phase::State::Cancelled, ended.end_time));
    let step = &ended.steps[0];
    assert_eq!((step.state(), step.next_time), (pb::step::State::Active, None));
    assert_eq!(step.state_reason, "may still run at agent infra-1: the run has ended without it");
}

#[tokio::test]
async fn explain_says_who_is_waited_for() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let request = pb::ExplainRunRequest { name: run.name };
    let waiting = served.runs().await.explain_run(request).await.unwrap().into_inner().waiting;
    let step = waiting.iter().find(|w| w.subject == "step a").unwrap();
    assert!(!step.waits_for.is_empty() && !step.on_whom.is_empty() && step.since.is_some());
}

#[tokio::test]
async fn events_are_paged_with_what_happened() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    served.fake.work(&run.run_id, "a", done(json!({"x": 1})));
    let mut client = served.runs().await;
    let mut request = pb::ListRunEventsRequest { parent: run.name.clone(), page_size: 2, ..Default::default() };
    let mut events = Vec::new();
    loop {
        let page = client.list_run_events(request.clone()).await.unwrap().into_inner();
        events.extend(page.events);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let numbers: Vec<u64> = events.iter().map(|e| e.sequence).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!((events[0].r#type.as_str(), events[0].actor.as_str()), ("run_started", "person/dba-1"));
    assert!(!events[0].detail.as_ref().unwrap().fields.contains_key("plan"));
    let ended = events.iter().find(|e| e.r#type == "attempt_ended").unwrap();
    assert_eq!((ended.step.as_str(), ended.attempt, ended.actor.as_str()), ("a", 1, "agent/infra-1"));
    assert_eq!(ended.summary, "attempt 1 of step a succeeded; the step succeeded");
    assert_eq!(events.last().unwrap().r#type, "run_ended");
}

#[tokio::test]
async fn no_event_is_lost_on_the_largest_pages() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    for _ in 0..1_000 {
        served.fake.command(&run.run_id, &Command::Pause { reason: "stop".to_owned() });
        served.fake.command(&run.run_id, &Command::Resume { reason: "go".to_owned() });
    }
    let mut request = pb::ListRunEventsRequest { parent: run.name.clone(), page_size: i32::MAX, ..Default::default() };
    let mut numbers = Vec::new();
    loop {
        let page = client.list_run_events(request.clone()).await.unwrap().into_inner();
        assert!(page.events.len() <= 1_000);
        numbers.extend(page.events.iter().map(|e| e.sequence));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(numbers, (1..=served.fake.events_of(&run.run_id) as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn wait_answers_at_the_end() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a\nstep b").await;
    let mut client = served.runs().await;
    let request = pb::WaitRunRequest { name: run.name.clone(), ..Default::default() };
    let waiting = tokio::spawn(async move { client.wait_run(request).await });
    served.fake.work(&run.run_id, "a", done(json!(1)));
    served.fake.work(&run.run_id, "b", done(json!(1)));
    let answer = soon("the end of the wait", waiting).await.unwrap().unwrap().into_inner();
    assert_eq!(answer.outcome(), Waited::Ended);
    assert_eq!(answer.run.unwrap().state(), State::Succeeded);
}

#[tokio::test]
async fn a_wait_ends_when_a_person_is_needed() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    let request = pb::WaitRunRequest { name: run.name.clone(), ..Default::default() };
    let waiting = tokio::spawn(async move { client.wait_run(request).await });
    let pause = pb::PauseRunRequest { name: run.name.clone(), reason: "lunch".to_owned(), ..Default::default() };
    served.runs().await.pause_run(pause).await.unwrap();
    let answer = soon("the end of the wait", waiting).await.unwrap().unwrap().into_inner();
    assert_eq!(answer.outcome(), Waited::NeedsPerson);
}

#[tokio::test]
async fn a_wait_is_over_in_time_and_before_the_callers_deadline() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let mut client = served.runs().await;
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
    let request = pb::WaitRunRequest { name: run.name.clone(), timeout, only_end: true };
    let answer = soon("the end of the wait", client.wait_run(request)).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), Waited::TimedOut);

    let mut request = tonic::Request::new(pb::WaitRunRequest { name: run.name, ..Default::default() });
    request.set_timeout(std::time::Duration::from_millis(500));
    let answer = soon("the end of the wait", client.wait_run(request)).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), Waited::TimedOut);
}

#[tokio::test]
async fn milestones_are_listed_and_watched() {
    let served: Served = served().await;
    let mut client = served.milestones().await;
    let first = served.started("playbook hello\nstep a").await;
    let all = pb::WatchMilestonesRequest { parent: NAMESPACE.to_owned() };
    let mut watch = client.watch_milestones(all).await.unwrap().into_inner();
    let second = served.started("playbook hello\nstep a").await;
    served.fake.work(&first.run_id, "a", done(json!(1)));
    for (run, state) in [(&second, pb::milestone::State::Pending), (&first, pb::milestone::State::Reached)] {
        let seen = soon("a change", watch.message()).await.unwrap().unwrap().milestone.unwrap();
        assert_eq!((&seen.run, seen.state()), (&run.name, state));
    }
    let states = |parent: String| {
        let mut client = client.clone();
        async move {
            let request = pb::ListMilestonesRequest { parent, ..Default::default() };
            let list = client.list_milestones(request).await.unwrap().into_inner().milestones;
            list.into_iter().map(|m| (m.name.clone(), m.state())).collect::<Vec<_>>()
        }
    };
    let reached = (format!("{}/milestones/critical", first.name), pb::milestone::State::Reached);
    let pending = (format!("{}/milestones/critical", second.name), pb::milestone::State::Pending);
    assert_eq!(states(first.name).await, std::slice::from_ref(&reached));
    assert_eq!(states(NAMESPACE.to_owned()).await, [reached, pending]);
}

#[tokio::test]
async fn the_watch_of_a_runs_milestones_ends_with_it() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a").await;
    let request = pb::WatchMilestonesRequest { parent: run.name.clone() };
    let mut watch = served.milestones().await.watch_milestones(request).await.unwrap().into_inner();
    served.fake.work(&run.run_id, "a", done(json!(1)));
    assert!(soon("a change", watch.message()).await.unwrap().is_some());
    assert!(soon("the end", watch.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn agents_are_listed_and_drained() {
    let served: Served = served().await;
    let mut client = served.agents().await;
    let mut list = pb::ListAgentsRequest { parent: NAMESPACE.to_owned(), page_size: 1, ..Default::default() };
    let page = client.list_agents(list.clone()).await.unwrap().into_inner();
    assert_eq!(page.agents[0].agent_id, "infra-1");
    list.page_token = page.next_page_token;
    let page = client.list_agents(list).await.unwrap().into_inner();
    assert_eq!((page.agents[0].agent_id.as_str(), page.next_page_token.as_str()), ("infra-2", ""));

    let name = format!("{NAMESPACE}/agents/infra-1");
    let agent = client.get_agent(pb::GetAgentRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!((agent.state(), agent.slots, agent.busy), (pb::agent::State::Ready, 4, 1));
    assert_eq!(agent.actions[0].action, "tls.certificate");
    let drain = pb::DrainAgentRequest { name, ..Default::default() };
    assert_eq!(client.drain_agent(drain).await.unwrap().into_inner().state(), pb::agent::State::Draining);
    let forget = pb::ForgetAgentRequest { name: "namespaces/default/agents/infra-1".into(), ..Default::default() };
    let refused = client.forget_agent(forget).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn a_coordinator_is_drained_and_serves_again() {
    use pb::coordinator::State;
    let served: Served = served().await;
    let mut client = served.coordinator().await;
    let now = client.get_coordinator(pb::GetCoordinatorRequest {}).await.unwrap().into_inner();
    assert_eq!((now.state(), now.cluster.as_str(), now.drain_time), (State::Serving, "fake", None));
    let drained = client.drain_coordinator(pb::DrainCoordinatorRequest::default()).await.unwrap().into_inner();
    assert_eq!((drained.state(), drained.drain_time.is_some()), (State::Draining, true));
    assert!(drained.drainer.starts_with("person/"), "{drained:?}");
    let now = client.get_coordinator(pb::GetCoordinatorRequest {}).await.unwrap().into_inner();
    assert_eq!(now, drained);
    let resumed = client.resume_coordinator(pb::ResumeCoordinatorRequest::default()).await.unwrap().into_inner();
    assert_eq!((resumed.state(), resumed.drainer.as_str()), (State::Serving, ""));
    let bad = pb::DrainCoordinatorRequest { request_id: "7".to_owned() };
    assert_eq!(client.drain_coordinator(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_page_of_agents_that_say_much_ends_early_and_goes_on() {
    let served: Served = served().await;
    for n in 0..8 {
        served.fake.talkative(&format!("loud-{n}"), 300 * 1024);
    }
    let mut client = served.agents().await;
    let mut list = pb::ListAgentsRequest { parent: NAMESPACE.to_owned(), page_size: 100, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = client.list_agents(list.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() < 1024 * 1024 + 1024, "{} bytes", page.encoded_len());
        seen.extend(page.agents.into_iter().map(|a| a.agent_id));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    let all: Vec<_> = (1..=2).map(|n| format!("infra-{n}")).chain((0..8).map(|n| format!("loud-{n}"))).collect();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn a_quarantined_run_says_so_wherever_it_is_shown() {
    let served: Served = served().await;
    let run = served.started("playbook hello\nstep a\nstep b").await;
    let before = served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner();
    served.fake.quarantine(&run.run_id, "record 7 is damaged");
    let shown = served.runs().await.get_run(get(&run.name)).await.unwrap().into_inner();
    assert_eq!((shown.state(), shown.state_reason.as_str()), (pb::run::State::Quarantined, "record 7 is damaged"));
    assert_eq!((shown.steps, shown.sequence), (before.steps, before.sequence), "the rest is as it was");
}

#[tokio::test]
async fn validate_only_starts_nothing() {
    let served: Served = served().await;
    let mut client = served.runs().await;
    let request = pb::StartRunRequest { validate_only: true, ..start("playbook hello\nstep a") };
    let run = client.start_run(request).await.unwrap().into_inner();
    assert_eq!(run.steps.len(), 1);
    let list = pb::ListRunsRequest { parent: NAMESPACE.to_owned(), ..Default::default() };
    assert!(client.list_runs(list).await.unwrap().into_inner().runs.is_empty());
}
