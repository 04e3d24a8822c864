//! `muster coordinator …`

use std::time::{Duration, Instant};

use muster_proto::v1;

use super::{App, follow::Patience};
use crate::{
    args::CoordinatorCommand,
    client::Client,
    error::{CliError, Exit, Result},
    printer::{Block, Table, View, time},
    words,
};

/// Between two looks at what is at work.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(app: &App, command: CoordinatorCommand) -> Result<Exit> {
    let client = app.client().await?;
    let coordinator = match command {
        CoordinatorCommand::Get => get(&client).await.map_err(|s| client.error(&s))?,
        CoordinatorCommand::Drain { wait } => {
            let request = client.soon(v1::DrainCoordinatorRequest::default());
            let answer = client.coordinator().drain_coordinator(request).await.map_err(|s| client.error(&s))?;
            if wait { wait_for_rest(app, &client, answer.into_inner()).await? } else { answer.into_inner() }
        }
        CoordinatorCommand::Resume => {
            let request = client.soon(v1::ResumeCoordinatorRequest::default());
            let answer = client.coordinator().resume_coordinator(request).await.map_err(|s| client.error(&s))?;
            answer.into_inner()
        }
    };
    app.printer.data(&coordinator, view)?;
    Ok(Exit::Succeeded)
}

async fn get(client: &Client) -> Result<v1::Coordinator, tonic::Status> {
    let request = client.soon(v1::GetCoordinatorRequest {});
    client.coordinator().get_coordinator(request).await.map(tonic::Response::into_inner)
}

/// Until nothing is at work; what still is is said whenever it changes.
async fn wait_for_rest(app: &App, client: &Client, mut now: v1::Coordinator) -> Result<v1::Coordinator> {
    let (began, mut told, mut patience) = (Instant::now(), String::new(), Patience::default());
    loop {
        if now.state() != v1::coordinator::State::Draining {
            let message = "the coordinator serves again: somebody has ended the drain, or it was started again";
            return Err(CliError::failed("DRAIN_ENDED", message).hint("muster coordinator drain --wait"));
        }
        if now.at_work_count == 0 {
            return Ok(now);
        }
        let at_work = said(&now);
        if at_work != told {
            app.printer.note(&at_work);
            told = at_work;
        }
        let left = client.limit().map(|limit| limit.saturating_sub(began.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(CliError { exit: Exit::TimedOut, ..CliError::failed("TIMED_OUT", told) }.hint(
                "it goes on draining: wait again with muster coordinator drain --wait, or end that with resume",
            ));
        }
        tokio::time::sleep(left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY))).await;
        match get(client).await {
            Ok(seen) => {
                patience.restore();
                now = seen;
            }
            Err(status) => patience.spend(app, client, &status).await?,
        }
    }
}

/// `2 attempts are at work: step apply of run … (infra-1), …`
fn said(now: &v1::Coordinator) -> String {
    let count = match now.at_work_count {
        1 => "1 attempt is at work".to_owned(),
        count => format!("{count} attempts are at work"),
    };
    let named: Vec<String> = now.at_work.iter().take(5).map(one).collect();
    let more = if now.at_work_count as usize > named.len() { ", …" } else { "" };
    format!("{count}: {}{more}", named.join(", "))
}

fn one(at_work: &v1::AttemptAtWork) -> String {
    let v1::AttemptAtWork { step_id, attempt, agent_id, .. } = at_work;
    format!("attempt {attempt} of step {step_id} of run {} at {agent_id}", run_id(at_work))
}

fn run_id(at_work: &v1::AttemptAtWork) -> &str {
    at_work.run.rsplit('/').next().unwrap_or_default()
}

fn view(coordinator: &v1::Coordinator) -> View {
    let fields = vec![
        ("Cluster", coordinator.cluster.clone()),
        ("State", words::coordinator_state(coordinator.state())),
        ("Drained by", coordinator.drainer.clone()),
        ("Since", time(coordinator.drain_time.as_ref())),
        ("At work", coordinator.at_work_count.to_string()),
    ];
    let mut blocks = vec![Block::Fields(fields)];
    if !coordinator.at_work.is_empty() {
        let head = ["RUN", "STEP", "ATTEMPT", "AGENT", "SINCE"];
        blocks.push(Block::Table(Table::new(&head, "").rows(coordinator.at_work.iter().map(|a| {
            let since = time(a.assign_time.as_ref());
            vec![run_id(a).to_owned(), a.step_id.clone(), a.attempt.to_string(), a.agent_id.clone(), since]
        }))));
    }
    View::new(blocks)
}
