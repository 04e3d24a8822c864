//! How it looks what a forced cancel has left at an agent.

use muster_engine::{
    ids::{AgentName, InstanceId},
    run::{
        Command, Fence,
        event::{FailureKind, Outcome},
    },
};
use muster_proto::v1::{self as pb, attempt::State as Tried, run::State, step::State as Stands};
use serde_json::json;

use crate::{
    fake::AGENT,
    harness::{Served, served},
    methods::done,
};

#[tokio::test]
async fn what_a_forced_cancel_left_is_shown_as_its_agent_has_reported_it_since() {
    let failed = Outcome::Failed { kind: FailureKind::Permanent, message: "exit code 1".to_owned(), output: None };
    let stopped = |may_have_changed| Outcome::Cancelled { may_have_changed };
    for (outcome, stands, tried, said) in [
        (done(json!({})), Stands::Succeeded, Tried::Succeeded, "that it is done"),
        (stopped(false), Stands::Cancelled, Tried::Cancelled, "that it has stopped"),
        (stopped(true), Stands::Cancelled, Tried::Cancelled, "that it has stopped, and may have changed something"),
        (failed, Stands::Failed, Tried::Failed, "that it failed: exit code 1"),
    ] {
        let served: Served = served().await;
        let run = served.started("playbook hello\nstep a").await;
        let (agent, instance) = (AgentName::from(AGENT), InstanceId::from("i1"));
        let assign = Command::Assign {
            step: "a".into(),
            agent: agent.clone(),
            instance: instance.clone(),
            host: None,
            dispatch_until: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30),
        };
        served.fake.command(&run.run_id, &assign);
        served.fake.command(&run.run_id, &Command::Cancel { reason: "wrong".to_owned(), force: true });
        let report = |instance: &str, outcome: &Outcome| {
            let instance = instance.into();
            let fence = Fence { step: "a".into(), attempt: 1, agent: agent.clone(), instance };
            served.fake.command(&run.run_id, &Command::Finish { fence, outcome: outcome.clone() });
        };
        let mut client = served.runs().await;
        let mut shown = async || {
            let run = client.get_run(pb::GetRunRequest { name: run.name.clone() }).await.unwrap().into_inner();
            assert_eq!(
                (run.state(), run.state_reason.as_str()),
                (State::Cancelled, "wrong (forced; not waited for: a)")
            );
            run.steps[0].clone()
        };
        report("i0", &done(json!({})));
        let step = shown().await;
        assert_eq!((step.state(), step.attempts[0].end_time), (Stands::Active, None), "no word of another process");
        report("i1", &outcome);
        report("i1", &stopped(true));
        let step = shown().await;
        assert_eq!((step.state(), step.attempts[0].state()), (stands, tried), "{}", step.state_reason);
        let at = step.attempts[0].end_time.expect("when it was reported");
        assert_eq!(step.state_time, Some(at));
        let reason = format!("the run ended without it; agent infra-1 has reported since {said}");
        assert_eq!(step.state_reason, reason);
        assert!(!step.done);
    }
}
