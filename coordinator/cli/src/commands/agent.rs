//! `muster agent …`

use muster_proto::v1;

use super::{App, agent_run, goes_on, note_rest, page_size};
use crate::{
    args::{AgentCommand, PageArgs},
    error::{Exit, Result},
    printer::{Block, Table, View, time},
    words,
};

pub(super) async fn run(app: &App, command: AgentCommand) -> Result<Exit> {
    match command {
        AgentCommand::Run(_) => agent_run::run(app).await,
        AgentCommand::List { page } => list(app, &page).await,
        AgentCommand::Get { agent } => get(app, &agent).await,
        AgentCommand::Drain { agent } => drain(app, &agent).await,
        AgentCommand::Forget { agent } => forget(app, &agent).await,
    }
}

async fn list(app: &App, page: &PageArgs) -> Result<Exit> {
    let client = app.client().await?;
    let mut all = v1::ListAgentsResponse::default();
    loop {
        let request = v1::ListAgentsRequest {
            parent: client.parent(),
            page_size: page_size(page.limit, all.agents.len()),
            page_token: all.next_page_token.clone(),
        };
        let next = client.agents().list_agents(client.soon(request)).await.map_err(|s| client.error(&s))?.into_inner();
        all.agents.extend(next.agents);
        all.next_page_token = next.next_page_token;
        if !goes_on(page.limit, all.agents.len(), &all.next_page_token) {
            break;
        }
    }
    app.printer.data(&all, |all| agents(&all.agents).into())?;
    note_rest(app, &all.next_page_token);
    Ok(Exit::Succeeded)
}

async fn get(app: &App, agent: &str) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::GetAgentRequest { name: client.name("agents", agent) };
    let answer = client.agents().get_agent(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), one)?;
    Ok(Exit::Succeeded)
}

async fn drain(app: &App, agent: &str) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::DrainAgentRequest { name: client.name("agents", agent), ..v1::DrainAgentRequest::default() };
    let answer = client.agents().drain_agent(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), |agent| agents(std::slice::from_ref(agent)).into())?;
    Ok(Exit::Succeeded)
}

async fn forget(app: &App, agent: &str) -> Result<Exit> {
    let client = app.client().await?;
    let request = v1::ForgetAgentRequest { name: client.name("agents", agent), ..v1::ForgetAgentRequest::default() };
    let answer = client.agents().forget_agent(client.soon(request)).await.map_err(|s| client.error(&s))?;
    app.printer.data(&answer.into_inner(), |agent| agents(std::slice::from_ref(agent)).into())?;
    Ok(Exit::Succeeded)
}

fn agents(agents: &[v1::Agent]) -> Table {
    let head = ["AGENT", "ROLE", "STATE", "BUSY", "HOST", "LABELS", "LAST BEAT"];
    Table::new(&head, "no agents").rows(agents.iter().map(|agent| {
        vec![
            agent.agent_id.clone(),
            agent.role.clone(),
            words::agent_state(agent.state()),
            format!("{}/{}{}", agent.busy, agent.slots, of_ended_runs(agent)),
            agent.host.clone(),
            labels(agent),
            if agent.last_beat_time.is_none() { "-".to_owned() } else { last_beat(agent) },
        ]
    }))
}

fn one(agent: &v1::Agent) -> View {
    let fields = vec![
        ("Agent", agent.agent_id.clone()),
        ("Role", agent.role.clone()),
        ("State", words::agent_state(agent.state())),
        ("Busy", format!("{} of {} slots{}", agent.busy, agent.slots, of_ended_runs(agent))),
        ("Host", agent.host.clone()),
        ("Labels", labels(agent)),
        ("Instance", agent.instance.clone()),
        ("Last beat", last_beat(agent)),
        ("Software", agent.software.clone()),
    ];
    let actions = Table::new(&["ACTION", "VERSION"], "no actions")
        .rows(agent.actions.iter().map(|a| vec![a.action.clone(), a.version.clone()]));
    View::new(vec![Block::Fields(fields), Block::Table(actions)])
}

/// When it was heard last; a beat outlives no coordinator.
fn last_beat(agent: &v1::Agent) -> String {
    match &agent.last_beat_time {
        Some(at) => time(Some(at)),
        None => "- (not heard since the coordinator was started, and beats of before that are not kept)".to_owned(),
    }
}

/// What is at work though nobody waits for it.
fn of_ended_runs(agent: &v1::Agent) -> String {
    match agent.busy_of_ended_runs {
        0 => String::new(),
        1 => " (1 of an ended run)".to_owned(),
        many => format!(" ({many} of ended runs)"),
    }
}

fn labels(agent: &v1::Agent) -> String {
    let mut labels: Vec<String> = agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    labels.join(",")
}
