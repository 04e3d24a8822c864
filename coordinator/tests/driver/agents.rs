//! Agents that are busy, gone, lost, replaced or drained.

use std::time::Duration;

use muster_bus::message::{
    ActionOffer, AttemptKey, Order, Outcome, Purpose, Register, RegisterReply, ReportBody, ReportReply, TaskReply,
};
use muster_coordinator::control::{Control, RunFilter};
use muster_engine::run::{
    Command, Event,
    event::{AttemptEnd, EndedBy, NotStarted},
    state::StepState,
};
use serde_json::json;

use crate::harness::{Agent, House, chain, ns, offer, operator, playbook, succeeded};

const SHORT: &str = "id: s0, action: test.work, timeout: 1m";

#[tokio::test(start_paused = true)]
async fn a_busy_agent_is_asked_again_and_a_refusal_goes_elsewhere() {
    let house = House::open().await;
    let mut first = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    first.next(TaskReply::Busy).await;
    first.next(TaskReply::Refused { why: "not allowed here".into() }).await;
    let refused = house.until(&run.id, "refused", |r| !r.steps[0].excluded.is_empty()).await;
    assert!(matches!(&refused.steps[0].state, StepState::Queued { .. }));
    assert!(first.gets_nothing_for(Duration::from_secs(60)).await, "who refused is not asked again");
    let mut second = Agent::start(house.bus.clone(), "infra-2", "i2", |_| {}).await;
    second.succeed(1).await;
    let run = house.ended(&run.id).await;
    let ends: Vec<_> = run.steps[0].attempts.iter().map(|a| a.end.clone().unwrap().1).collect();
    assert_eq!(ends[0], AttemptEnd::NotStarted { why: NotStarted::Busy });
    assert_eq!(run.steps[0].attempts.len(), 3);
    assert_eq!(run.steps[0].attempts[2].agent.as_str(), "infra-2");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_late_may_be_of_the_age_alone_and_excludes_nobody() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let first = agent.swallow().await;
    while house.up.run(&ns(), &run.id).await.unwrap().steps[0].attempts[0].end.is_none() {
        // An agent that stood still finds copies of all ages, and repeats what it answered the oldest.
        let copy = agent.swallow().await;
        assert_eq!(copy.key, first.key);
        if copy.sent_at_ms - first.sent_at_ms > 6_000 {
            agent.next(TaskReply::Refused { why: "too old".into() }).await;
            break;
        }
    }
    agent.succeed(1).await;
    let run = house.ended(&run.id).await;
    let step = &run.steps[0];
    assert_eq!((step.attempts.len(), step.excluded.len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_is_sent_again_until_it_is_answered() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    // The first copies are swallowed: their answers are never given.
    let first = agent.swallow().await;
    let second = agent.swallow().await;
    assert_eq!(first.key, second.key);
    assert!(second.sent_at_ms > first.sent_at_ms);
    agent.succeed(1).await;
    assert_eq!(house.ended(&run.id).await.steps[0].attempts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_not_answered_for_a_while_gets_nothing_new() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    agent.fall_silent();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let run = house.start(&chain(1)).await;
    let why = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(why[0].waits_for.contains("infra-1: has not answered since "), "{why:?}");
    assert!(agent.gets_nothing_for(Duration::from_secs(5)).await);
    agent.speak_again();
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_is_not_sent_any_more_when_its_time_is_over() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let until = run.steps[0].attempts[0].dispatch_until.as_millisecond();
    let mut copies = 0;
    while let Ok(task) = tokio::time::timeout(Duration::from_secs(60), agent.swallow()).await {
        assert!(task.sent_at_ms < until);
        copies += 1;
    }
    assert!(copies > 5, "{copies}");
}

#[tokio::test(start_paused = true)]
async fn slots_bound_what_an_agent_gets_and_a_freed_one_goes_to_the_next() {
    let house = House::open().await;
    let mut agent = Agent::start(house.bus.clone(), "infra-1", "i1", |r| r.slots = 2).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(house.start(&chain(2)).await);
    }
    let held = [agent.next(TaskReply::Accepted).await, agent.next(TaskReply::Accepted).await];
    assert!(agent.gets_nothing_for(Duration::from_secs(5)).await);
    let why = house.up.explain_run(&ns(), &runs[4].id).await.unwrap();
    assert!(why[0].waits_for.contains("infra-1: 2/2 slots taken"), "{why:?}");
    for task in held {
        assert_eq!(agent.report(&task, succeeded(json!({}))).await, ReportReply::recorded());
    }
    agent.succeed(8).await;
    for run in runs {
        house.ended(&run.id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_agent_is_not_a_stopped_one_and_a_probe_finds_out() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&playbook(&[SHORT], "")).await;
    agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    let lost = house.until(&run.id, "lost", |r| r.steps[0].attempts[0].lost_at.is_some()).await;
    assert_eq!(lost.steps[0].state, StepState::Active, "nothing new starts: lost is not stopped");
    // Nobody held it past its clock, so its clock ends it; another agent checks.
    let mut other = Agent::start(house.bus.clone(), "infra-2", "i2", |_| {}).await;
    let probe = other.next(TaskReply::Accepted).await;
    assert_eq!(probe.purpose, Purpose::Probe);
    let run_now = house.run(&run.id).await;
    let (_, end) = run_now.steps[0].attempts[0].end.clone().unwrap();
    assert_eq!(end, AttemptEnd::Unknown { ended_by: EndedBy::Clock });
    other.report(&probe, succeeded(json!({"found": true}))).await;
    let run = house.ended(&run.id).await;
    assert_eq!(run.steps[0].state, StepState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_holds_its_attempt_is_believed_past_the_clock() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&playbook(&[SHORT], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(house.run(&run.id).await.steps[0].state, StepState::Active);
    agent.report(&task, succeeded(json!({}))).await;
    assert_eq!(house.ended(&run.id).await.steps[0].attempts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_agent_that_answers_again_goes_on() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    house.until(&run.id, "lost", |r| r.steps[0].attempts[0].lost_at.is_some()).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    agent.speak_again();
    house.until(&run.id, "found", |r| r.steps[0].attempts[0].lost_at.is_none()).await;
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_proven_dead_instance_ends_its_attempts_unless_their_reports_are_spooled() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let lost = house.start(&playbook(&["id: s0, action: test.work, retry: {maxAttempts: 2}"], "")).await;
    agent.next(TaskReply::Accepted).await;
    let spooled = house.start(&chain(1)).await;
    let told = agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    let mut next = Agent::start(house.bus.clone(), "infra-1", "i2", |r| {
        r.dead = vec!["i1".into()];
        r.spooled = vec![told.key.clone()];
    })
    .await;
    let probe = next.next(TaskReply::Accepted).await;
    assert_eq!((probe.purpose, &*probe.key.run), (Purpose::Probe, lost.id.as_str()));
    let (_, end) = house.run(&lost.id).await.steps[0].attempts[0].end.clone().unwrap();
    assert_eq!(end, AttemptEnd::Unknown { ended_by: EndedBy::InstanceGone });
    assert_eq!(house.run(&spooled.id).await.steps[0].state, StepState::Active, "its report is still to come");
    let recorded = ReportReply::recorded();
    assert_eq!(next.report_as("i1", &told, succeeded(json!({}))).await, recorded);
    assert_eq!(house.ended(&spooled.id).await.steps[0].attempts.len(), 1);
    let outcome = Outcome::NotSatisfied { diff: "nothing there".into() };
    next.report(&probe, ReportBody::Finished { outcome }).await;
    next.succeed(1).await;
    house.ended(&lost.id).await;
}

#[tokio::test(start_paused = true)]
async fn only_the_same_agent_on_the_same_host_can_bury_an_instance() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let _stranger = Agent::start(house.bus.clone(), "infra-2", "i2", |r| r.dead = vec!["i1".into()]).await;
    agent.fall_silent();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let _moved = Agent::start(house.bus.clone(), "infra-1", "i3", |r| {
        r.host = Some("host-2".into());
        r.dead = vec!["i1".into()];
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(house.run(&run.id).await.steps[0].state, StepState::Active);
    assert_eq!(agent.report(&task, succeeded(json!({}))).await, ReportReply::recorded());
    assert_eq!(house.ended(&run.id).await.steps[0].attempts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_process_waits_while_the_first_answers() {
    let house = House::open().await;
    let first = house.agent("infra-1").await;
    let (answer, _) = Agent::try_start(house.bus.clone(), "infra-1", "i2", |_| {}).await;
    assert_eq!(answer, RegisterReply::IdInUse { instance: "i1".into() });
    first.fall_silent();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (answer, _) = Agent::try_start(house.bus.clone(), "infra-1", "i2", |_| {}).await;
    assert!(matches!(answer, RegisterReply::Registered { .. }), "{answer:?}");
    let refused = Agent::try_start(house.bus.clone(), "infra-2", "i3", |r| r.protocol = 2).await.0;
    assert!(matches!(refused, RegisterReply::Refused { .. }));
    let (answer, _) = Agent::try_start(house.bus.clone(), "infra-2", "i2", |_| {}).await;
    assert!(matches!(answer, RegisterReply::Refused { .. }), "an instance id belongs to one agent: {answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drained_agent_gets_nothing_new_even_after_a_restart() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let view = house.up.drain_agent(&ns(), &"infra-1".into(), &operator()).await.unwrap();
    assert_eq!(view.state, "DRAINING");
    let run = house.start(&chain(1)).await;
    assert!(agent.gets_nothing_for(Duration::from_secs(30)).await);
    assert!(agent.heard.lock().unwrap().last().unwrap().orders.contains(&Order::Drain));
    house.crash_and_reopen().await;
    let view = house.up.agent(&ns(), &"infra-1".into()).await.unwrap();
    assert_eq!((view.state, view.last_beat_at), ("DRAINING", None), "it has not answered this coordinator yet");
    agent.register_again().await;
    assert!(agent.gets_nothing_for(Duration::from_secs(30)).await);
    agent.fall_silent();
    // The next process of it is not the one that was to be drained.
    let mut next = Agent::start(house.bus.clone(), "infra-1", "i2", |r| r.dead = vec!["i1".into()]).await;
    next.succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_holds_what_the_journal_lacks_quarantines_that_run_alone() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let other = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;
    let task = agent.next(TaskReply::Accepted).await;
    let unheard = AttemptKey { run: run.id.as_str().into(), step: "s0".into(), attempt: 9 };
    agent.register_with(|r| r.holds = vec![unheard, task.key.clone()]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pause = Command::Pause { reason: "look".into() };
    let refused = house.up.command_run(&ns(), &run.id, pause, &operator()).await;
    assert_eq!(refused.unwrap_err().code, "RUN_QUARANTINED");
    assert!(house.up.quarantine(&run.id).is_some_and(|why| why.contains("attempt 9")));
    assert_eq!(house.up.quarantine(&other.id), None);
    let explained = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(explained[0].waits_for.contains("attempt 9 of step s0"), "{explained:?}");
    assert!(explained[0].hint.starts_with("stop the coordinator;"), "{explained:?}");
    let reminded_at = explained[0].next_at.expect("it is told of again");
    assert_eq!(reminded_at.duration_since(explained[0].since), jiff::SignedDuration::from_mins(15));
    let filter = RunFilter { states: vec!["QUARANTINED".into()], ..RunFilter::default() };
    let listed = house.up.list_runs(&ns(), &filter, 10, "").await.unwrap();
    assert_eq!(listed.items.iter().map(|r| &r.id).collect::<Vec<_>>(), [&run.id]);
    assert!(listed.items[0].state_reason.contains("attempt 9"), "{listed:?}");
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&other.id).await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    let later = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(later[0].next_at.is_some_and(|at| at > reminded_at) && later[0].since == explained[0].since, "{later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_wall_clock_gives_attempts_their_time_again() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&playbook(&[SHORT], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    // Behind the time in which its task could be sent.
    tokio::time::sleep(Duration::from_secs(40)).await;
    house.wall_offset_ms.fetch_sub(3_600_000, std::sync::atomic::Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let events = house.up.run_events(&ns(), &run.id, 0, 100).await.unwrap();
    assert!(events.iter().any(|e| matches!(&*e.event, Event::AttemptExtended { .. })), "{events:?}");
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn runs_take_turns_and_what_is_urgent_goes_first() {
    let house = House::open().await;
    let wide = playbook(
        &[
            "id: a, action: test.work",
            "id: b, action: test.work",
            "id: c, action: test.work",
            "id: d, action: test.work",
        ],
        "",
    );
    let many = house.start(&wide).await;
    let one = house.start(&chain(1)).await;
    let urgent = house.start(&chain(1).replace("- id: only\n", "- id: only\n      priority: critical\n")).await;
    let mut agent = Agent::start(house.bus.clone(), "infra-1", "i1", |r| r.slots = 1).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        let task = agent.next(TaskReply::Accepted).await;
        agent.report(&task, succeeded(json!({}))).await;
        order.push(task.key.run);
    }
    let (many, one, urgent) = (many.id.as_str(), one.id.as_str(), urgent.id.as_str());
    assert_eq!(order, [urgent, many, one, many, many, many]);
}

#[tokio::test(start_paused = true)]
async fn placement_says_for_each_agent_why_it_is_not_asked() {
    let house = House::open().await;
    let _plain = house.agent("infra-1").await;
    let _other = Agent::start(house.bus.clone(), "infra-2", "i2", |r| {
        r.labels = [("site".to_owned(), "us".to_owned())].into();
        r.actions.clear();
    })
    .await;
    let _newer = Agent::start(house.bus.clone(), "infra-3", "i3", |r| {
        r.labels = [("site".to_owned(), "us".to_owned())].into();
        r.actions[0].version = "2.0.0".to_owned();
    })
    .await;
    let yaml = chain(1).replace("role: infra", "role: infra, labels: {site: us}");
    let run = house.start(&yaml).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    let said = &waits[0].waits_for;
    assert!(said.contains("infra-1: labels differ: wants site=us, has site=eu"), "{said}");
    assert!(said.contains("infra-2: does not offer test.work"), "{said}");
    assert!(said.contains("infra-3: offers test.work 2.0.0, and the plan is made for 1.0.0"), "{said}");
    assert_eq!(waits[0].hint, "start an agent of role infra, site=us, or resolve the step");
    let yaml = chain(1).replace("role: infra", "role: infra, host: host-2");
    let run = house.start(&yaml).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(waits[0].waits_for.contains("infra-1: host differs: wants host-2, is on host-1"), "{waits:?}");
    assert_eq!(waits[0].hint, "start an agent of role infra, on host host-2, or resolve the step");
}

#[tokio::test(start_paused = true)]
async fn placement_says_every_reason_and_names_those_agents_first_that_are_nearest_to_taking_it() {
    let house = House::open().await;
    let site = |site: &str| [("site".to_owned(), site.to_owned())].into();
    let mut agents = Vec::new();
    for n in 1..=5 {
        let (name, instance) = (format!("infra-{n}"), format!("i{n}"));
        let change = |r: &mut Register| r.labels = site("eu");
        agents.push(Agent::start(house.bus.clone(), &name, &instance, change).await);
    }
    let mut busy = Agent::start(house.bus.clone(), "infra-6", "i6", |r| {
        r.labels = site("us");
        r.slots = 1;
    })
    .await;
    agents[0].fall_silent();
    tokio::time::sleep(Duration::from_secs(35)).await;
    let yaml = chain(1).replace("role: infra", "role: infra, labels: {site: us}");
    house.start(&yaml).await;
    busy.next(TaskReply::Accepted).await;
    let run = house.start(&yaml).await;
    let said = house.up.explain_run(&ns(), &run.id).await.unwrap()[0].waits_for.clone();
    let (_, why) = said.split_once(": ").unwrap();
    let parts: Vec<&str> = why.split("; ").collect();
    assert_eq!((parts.len(), parts[0], parts[4]), (5, "infra-6: 1/1 slots taken", "and 2 more"), "{said}");
    assert_eq!(parts[1], "infra-2: labels differ: wants site=us, has site=eu", "{said}");
    // The others can't take it: what is wrong with the lost one besides is said, too.
    for agent in &mut agents[1..] {
        let name = agent.name.as_str().into();
        agent.fall_silent();
        tokio::time::sleep(Duration::from_secs(35)).await;
        house.up.forget_agent(&ns(), &name, &operator()).await.unwrap();
    }
    let said = house.up.explain_run(&ns(), &run.id).await.unwrap()[0].waits_for.clone();
    let lost = said.split("; ").find(|part| part.starts_with("infra-1: ")).expect("it is named");
    assert!(lost.starts_with("infra-1: lost, silent since "), "{said}");
    assert!(lost.ends_with(", labels differ: wants site=us, has site=eu"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_agent_is_forgotten_over_a_restart_and_known_again_when_it_comes_back() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let name = "infra-1".into();
    let refused = house.up.forget_agent(&ns(), &name, &operator()).await.unwrap_err();
    assert_eq!(refused.code, "AGENT_ANSWERS");
    let run = house.start(&playbook(&[SHORT], "")).await;
    agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let refused = house.up.forget_agent(&ns(), &name, &operator()).await.unwrap_err();
    assert_eq!(refused.code, "AGENT_MAY_BE_AT_WORK");
    assert!(refused.message.contains(run.id.as_str()), "{}", refused.message);
    house
        .up
        .command_run(&ns(), &run.id, Command::Cancel { reason: "enough".into(), force: true }, &operator())
        .await
        .unwrap();
    let id = Some("5a1c1b3e-6a55-4f0f-8d5c-0a6c1f7f2a10".to_owned());
    let caller = muster_coordinator::control::Caller { request_id: id, ..operator() };
    for _ in 0..2 {
        let forgotten = house.up.forget_agent(&ns(), &name, &caller).await.unwrap();
        assert_eq!((forgotten.name.as_str(), forgotten.state), ("infra-1", "LOST"));
    }
    assert_eq!(house.up.forget_agent(&ns(), &name, &operator()).await.unwrap_err().code, "AGENT_NOT_FOUND");
    for _ in 0..2 {
        assert_eq!(house.up.agent(&ns(), &name).await.unwrap_err().code, "AGENT_NOT_FOUND");
        assert!(house.up.list_agents(&ns(), 10, "").await.unwrap().items.is_empty());
        house.crash_and_reopen().await;
    }
    agent.speak_again();
    agent.register_again().await;
    assert_eq!(house.up.agent(&ns(), &name).await.unwrap().state, "READY");
    let next = house.start(&playbook(&[SHORT], "")).await;
    agent.succeed(1).await;
    house.ended(&next.id).await;
    house.crash_and_reopen().await;
    assert_eq!(house.up.agent(&ns(), &name).await.unwrap().name, name);
}

#[tokio::test(start_paused = true)]
async fn a_newer_compatible_version_stands_for_the_planned_one_and_no_other_does() {
    let cases =
        [("1.2.0", true), ("1.4.2", true), ("1.2.0+b7", true), ("1.1.9", false), ("2.0.0", false), ("0.9.0", false)];
    for (offered, takes) in cases {
        let house = House::open().await;
        // Not one of the shipped actions, whose version no agent decides.
        let offering = |version: &'static str| {
            move |r: &mut Register| r.actions = vec![ActionOffer { version: version.into(), ..offer("other.work") }]
        };
        let old = Agent::start(house.bus.clone(), "infra-1", "i1", offering("1.2.0")).await;
        old.fall_silent();
        // It is asked for nothing more, and its version is the newest that was offered.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let run = house.start(&playbook(&["id: s0, action: other.work"], "")).await;
        let mut other = Agent::start(house.bus.clone(), "infra-2", "i2", offering(offered)).await;
        if takes {
            other.succeed(1).await;
            house.ended(&run.id).await;
        } else {
            assert!(other.gets_nothing_for(Duration::from_secs(60)).await, "{offered}");
            let why = house.up.explain_run(&ns(), &run.id).await.unwrap();
            assert!(why[0].waits_for.contains(&format!("offers other.work {offered}")), "{why:?}");
        }
    }
}

async fn named(house: &House) -> String {
    house.up.agent(&ns(), &"infra-1".into()).await.unwrap().state.to_owned()
}

#[tokio::test(start_paused = true)]
async fn who_says_goodbye_has_ended_also_after_a_restart_and_is_replaced_at_once() {
    let mut house = House::open().await;
    let agent = house.agent("infra-1").await;
    assert!(!agent.say_goodbye().await.register_again);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(named(&house).await, "ENDED");
    let run = house.start(&playbook(&[SHORT], "")).await;
    let why = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(why[0].waits_for.contains("infra-1: has ended"), "{why:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(named(&house).await, "ENDED", "it is not lost");
    house.crash_and_reopen().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(named(&house).await, "ENDED", "it is not lost after a restart");
    let mut next = Agent::start(house.bus.clone(), "infra-1", "i2", |_| {}).await;
    assert!(agent.say_goodbye().await.register_again, "a late word of the old process");
    next.succeed(1).await;
    house.ended(&run.id).await;
    assert_eq!(named(&house).await, "READY");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_with_work_in_its_hands_is_a_silence_and_proves_nothing() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&playbook(&["id: s0, action: test.work, timeout: 10m"], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    agent.say_goodbye().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(named(&house).await, "DRAINING");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(named(&house).await, "LOST");
    let step = &house.run(&run.id).await.steps[0];
    let (_, attempt) = step.live_attempt().expect("nothing says that it has ended");
    assert!(attempt.lost_at.is_some());
}
