//! Tasks in the answers to reports: for whom takes them there, and only as a first copy.

use std::time::Duration;

use muster_bus::message::{ReportReply, Task, TaskReply};
use serde_json::json;

use crate::harness::{Agent, House, chain, playbook, succeeded};

/// A little less than what a task in an answer is given before it is asked about.
const BEFORE_IT_IS_ASKED: Duration = Duration::from_millis(240);

async fn agent(house: &House) -> Agent {
    Agent::start(house.bus.clone(), "infra-1", "i1", |register| register.tasks_in_answers = true).await
}

async fn report(agent: &Agent, task: &Task) -> Option<Task> {
    match agent.report(task, succeeded(json!({}))).await {
        ReportReply::Recorded { orders, task } => {
            assert_eq!(orders, []);
            task.map(|task| *task)
        }
        other @ (ReportReply::Stale | ReportReply::Conflict | ReportReply::Gone | ReportReply::Retry { .. }) => {
            panic!("{other:?}")
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_task_comes_with_the_answer_and_nowhere_else() {
    let house = House::open().await;
    let mut agent = agent(&house).await;
    let run = house.start(&chain(3)).await;
    let first = agent.next(TaskReply::Accepted).await;
    let second = report(&agent, &first).await.expect("a task");
    assert_eq!((second.key.step.as_str(), second.with["n"].as_i64()), ("s1", Some(1)));
    assert!(agent.gets_nothing_for(BEFORE_IT_IS_ASKED).await);
    let third = report(&agent, &second).await.expect("a task");
    assert_eq!(report(&agent, &third).await, None, "there is nothing more");
    house.ended(&run.id).await;
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_answer_is_lost_comes_where_tasks_come() {
    let house = House::open().await;
    let mut agent = agent(&house).await;
    let run = house.start(&chain(2)).await;
    let first = agent.next(TaskReply::Accepted).await;
    let lost = report(&agent, &first).await.expect("a task");
    assert_eq!(report(&agent, &first).await, None, "what is repeated is recorded, and that is all");
    let copy = agent.next(TaskReply::Accepted).await;
    assert_eq!(copy.key, lost.key);
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await, "it is accepted");
    report(&agent, &copy).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn who_will_not_start_it_says_so_to_the_next_copy() {
    let house = House::open().await;
    let mut agent = agent(&house).await;
    let run = house.start(&chain(2)).await;
    let first = agent.next(TaskReply::Accepted).await;
    let declined = report(&agent, &first).await.expect("a task");
    let copy = agent.next(TaskReply::Busy).await;
    assert_eq!(copy.key, declined.key);
    let again = agent.next(TaskReply::Accepted).await;
    assert_eq!((again.key.step.as_str(), again.key.attempt), ("s1", 2));
    report(&agent, &again).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_to_the_same_instance_takes_a_task_along() {
    let house = House::open().await;
    let mut infra = agent(&house).await;
    let mut other = Agent::start(house.bus.clone(), "other-1", "i2", |register| {
        register.role = "other".to_owned();
        register.tasks_in_answers = true;
    })
    .await;
    let steps = [
        "id: s0, action: test.work, with: {n: 0}",
        "id: s1, needs: [s0], action: test.work, with: {n: 1}",
        "id: s2, needs: [s1], action: test.work, with: {n: 2}",
    ];
    let yaml = playbook(&steps, "").replace("with: {n: 1}, agent: {role: infra}", "with: {n: 1}, agent: {role: other}");
    let run = house.start(&yaml).await;
    let first = infra.next(TaskReply::Accepted).await;
    assert_eq!(report(&infra, &first).await, None);
    let second = other.next(TaskReply::Accepted).await;
    assert_eq!(report(&other, &second).await, None);
    let third = infra.next(TaskReply::Accepted).await;
    report(&infra, &third).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_before_is_not_sent_again_with_an_answer() {
    let house = House::open().await;
    let mut agent = agent(&house).await;
    let steps = [
        "id: s0, action: test.work, with: {n: 0}",
        "id: s1, action: test.work, with: {n: 1}",
        "id: s2, needs: [s0], action: test.work, with: {n: 2}",
        "id: s3, needs: [s0], action: test.work, with: {n: 3}",
    ];
    let run = house.start(&playbook(&steps, "")).await;
    let (first, second) = (agent.next(TaskReply::Accepted).await, agent.next(TaskReply::Accepted).await);
    let (first, second) = if first.key.step == "s0" { (first, second) } else { (second, first) };
    let third = report(&agent, &first).await.expect("one of two");
    let fourth = agent.next(TaskReply::Accepted).await;
    assert_ne!(third.key.step, fourth.key.step, "an answer takes one task along");
    assert_eq!(report(&agent, &second).await, None);
    for task in [third, fourth] {
        report(&agent, &task).await;
    }
    assert!(house.ended(&run.id).await.steps.iter().all(|step| step.attempts.len() == 1));
}

/// Who had the id of an instance before is not who has it now.
#[tokio::test(start_paused = true)]
async fn a_task_goes_to_the_agent_of_the_instance_and_not_to_who_had_its_id_before() {
    let house = House::open().await;
    let other = |register: &mut muster_bus::message::Register| {
        register.role = "other".to_owned();
        register.host = Some("host-2".to_owned());
        register.tasks_in_answers = true;
    };
    let mut first = Agent::start(house.bus.clone(), "other-1", "x", other).await;
    let steps = ["id: s0, action: test.work, with: {n: 0}", "id: s1, needs: [s0], action: test.work, with: {n: 1}"];
    let yaml = playbook(&steps, "").replace("with: {n: 0}, agent: {role: infra}", "with: {n: 0}, agent: {role: other}");
    house.start(&yaml).await;
    let task = first.next(TaskReply::Accepted).await;
    first.fall_silent();
    let key = task.key.clone();
    let _second = Agent::start(house.bus.clone(), "other-1", "y", |register| {
        other(register);
        (register.dead, register.spooled) = (vec!["x".to_owned()], vec![key]);
    })
    .await;
    let mut infra = Agent::start(house.bus.clone(), "infra-1", "x", |register| register.tasks_in_answers = true).await;
    assert_eq!(report(&first, &task).await, None, "a task of infra-1 is told to other-1");
    infra.next(TaskReply::Accepted).await;
}

/// A process that has slept through its end and is woken is not the one that has its name now: it would do the task as well.
#[tokio::test(start_paused = true)]
async fn a_task_goes_to_the_process_that_has_the_name_now() {
    let house = House::open().await;
    let mut old = agent(&house).await;
    let run = house.start(&chain(2)).await;
    let task = old.next(TaskReply::Accepted).await;
    old.fall_silent();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let mut new = Agent::start(house.bus.clone(), "infra-1", "i2", |register| register.tasks_in_answers = true).await;
    assert_eq!(report(&old, &task).await, None, "a task of the new process is told to the old one");
    let next = new.next(TaskReply::Accepted).await;
    assert_eq!(next.key.step, "s1");
    assert_eq!(report(&new, &next).await, None);
    house.ended(&run.id).await;
}
