//! `muster milestone …`

use muster_proto::v1;

use super::{App, goes_on, note_rest, page_size};
use crate::{
    args::{MilestoneCommand, PageArgs},
    error::{Exit, Result},
    printer::{Table, time},
    words,
};

pub(super) async fn run(app: &App, command: MilestoneCommand) -> Result<Exit> {
    match command {
        MilestoneCommand::List { run, page } => list(app, run.as_deref(), &page).await,
    }
}

async fn list(app: &App, run: Option<&str>, page: &PageArgs) -> Result<Exit> {
    let client = app.client().await?;
    let mut all = v1::ListMilestonesResponse::default();
    loop {
        let request = v1::ListMilestonesRequest {
            parent: run.map_or_else(|| client.parent(), |run| client.name("runs", run)),
            page_size: page_size(page.limit, all.milestones.len()),
            page_token: all.next_page_token.clone(),
        };
        let next = client.milestones().list_milestones(client.soon(request)).await.map_err(|s| client.error(&s))?;
        let next = next.into_inner();
        all.milestones.extend(next.milestones);
        all.next_page_token = next.next_page_token;
        if !goes_on(page.limit, all.milestones.len(), &all.next_page_token) {
            break;
        }
    }
    app.printer.data(&all, |all| milestones(&all.milestones).into())?;
    note_rest(app, &all.next_page_token);
    Ok(Exit::Succeeded)
}

fn milestones(milestones: &[v1::Milestone]) -> Table {
    let head = ["MILESTONE", "STATE", "SINCE", "DUE", "PLAYBOOK", "RUN"];
    Table::new(&head, "no milestones").rows(milestones.iter().map(|m| {
        vec![
            m.display_name.clone(),
            words::milestone_state(m.state()),
            time(m.state_time.as_ref()),
            time(m.due_time.as_ref()),
            m.playbook_id.clone(),
            m.run.rsplit('/').next().unwrap_or_default().to_owned(),
        ]
    }))
}
