//! What lists say of runs that wait: for what, on whom, since when; and lists of those that are stuck.

use std::{collections::BTreeSet, time::Duration};

use muster_bus::message::{FailureKind, Outcome, ReportBody, TaskReply};
use muster_coordinator::control::{Control as _, MostUrgent, RunFilter};
use muster_engine::{
    ids::RunId,
    run::{WaitsOn, state::StepState},
};

use crate::harness::{House, chain, ns, playbook};

const SIGNAL: &str = "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: waits, owner: devops}\nspec:\n  phases:\n    - id: only\n      milestone: Done\n      steps:\n        - {id: w, wait: {signal: go}}\n";

async fn listed(house: &House, on: &[WaitsOn]) -> Vec<(RunId, MostUrgent)> {
    let filter = RunFilter { waits_on: on.to_vec(), ..RunFilter::default() };
    let page = house.up.list_runs(&ns(), &filter, 100, "").await.unwrap();
    page.items.into_iter().map(|run| (run.id, run.waiting.expect("it has not ended"))).collect()
}

async fn of(house: &House, id: &RunId) -> MostUrgent {
    listed(house, &[]).await.into_iter().find(|(run, _)| run == id).expect("it is listed").1
}

#[tokio::test(start_paused = true)]
async fn every_open_run_says_for_what_it_waits_and_the_stuck_ones_can_be_listed_alone() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let nobody = house.start(&chain(1).replace("role: infra", "role: nobody")).await;
    let signal = house.start(SIGNAL).await;
    let asks = house.start(&playbook(&["id: s0, action: test.work, onFailure: pause"], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    let outcome = Outcome::Failed { error: FailureKind::Permanent, message: "no room".into(), output: None };
    agent.report(&task, ReportBody::Finished { outcome }).await;
    house.until(&asks.id, "it asks", |r| matches!(r.steps[0].state, StepState::Asking { .. })).await;
    let works = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(house.up.runs_in_memory() < 4, "some are not in memory");

    let said = of(&house, &nobody.id).await;
    assert_eq!((said.on, said.on_whom.as_str()), (WaitsOn::Agent, "agents of role nobody"));
    assert!(said.waits_for.contains("no agent of role nobody has registered"), "{said:?}");
    let said = of(&house, &signal.id).await;
    assert_eq!((said.on, said.waits_for.as_str()), (WaitsOn::Signal, "signal go"));
    let said = of(&house, &asks.id).await;
    assert_eq!((said.on, said.subject.as_str(), said.on_whom.as_str()), (WaitsOn::Person, "step s0", "devops"));
    assert!(said.waits_for.contains("no room"), "{said:?}");
    let said = of(&house, &works.id).await;
    assert_eq!((said.on, said.on_whom.as_str()), (WaitsOn::Work, "agent infra-1"));

    let stuck = [WaitsOn::Person, WaitsOn::Agent];
    let ids = |all: Vec<(RunId, MostUrgent)>| all.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>();
    assert_eq!(ids(listed(&house, &stuck).await), BTreeSet::from([asks.id.clone(), nobody.id.clone()]));
    assert_eq!(ids(listed(&house, &[WaitsOn::Signal]).await), BTreeSet::from([signal.id.clone()]));

    agent.fall_silent();
    tokio::time::sleep(Duration::from_secs(35)).await;
    let three = BTreeSet::from([works.id.clone(), asks.id.clone(), nobody.id.clone()]);
    assert_eq!(ids(listed(&house, &stuck).await), three);
    let said = of(&house, &works.id).await;
    assert!(said.on == WaitsOn::Agent && said.waits_for.contains("lost"), "{said:?}");

    let before = [of(&house, &asks.id).await, of(&house, &signal.id).await];
    let house = house.crash_and_reopen_with_its_store().await;
    let after = [of(&house, &asks.id).await, of(&house, &signal.id).await];
    assert_eq!(after, before, "those that a start does not read say the same");
}
