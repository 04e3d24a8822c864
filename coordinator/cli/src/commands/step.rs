//! `muster step …`

use muster_proto::v1;

use super::{App, run::changed};
use crate::{
    args::{Answer, ResolveArgs, StepCommand},
    client::Client,
    error::{Exit, Result},
    printer::message_of,
};

pub(super) async fn run(app: &App, command: StepCommand) -> Result<Exit> {
    let client = app.client().await?;
    match command {
        StepCommand::Retry { run, step, reason } => {
            let request =
                v1::RetryStepRequest { name: name(&client, &run, &step), reason, ..v1::RetryStepRequest::default() };
            let run = client.runs().retry_step(client.soon(request)).await.map_err(|s| client.error(&s))?;
            changed(app, run.get_ref())
        }
        StepCommand::Resolve(args) => resolve(app, &client, args).await,
    }
}

async fn resolve(app: &App, client: &Client, args: ResolveArgs) -> Result<Exit> {
    use v1::resolve_step_request::Resolution;
    let resolution = match args.answer {
        Answer::Succeeded => Resolution::Succeeded,
        Answer::Failed => Resolution::Failed,
        Answer::Retry => Resolution::Retry,
        Answer::Skip => Resolution::Skip,
    };
    let output = args.step_output.as_deref().map(|text| message_of("--step-output", text)).transpose()?;
    let request = v1::ResolveStepRequest {
        name: name(client, &args.run, &args.step),
        resolution: resolution.into(),
        reason: args.reason,
        output,
        ..v1::ResolveStepRequest::default()
    };
    let run = client.runs().resolve_step(client.soon(request)).await.map_err(|s| client.error(&s))?;
    changed(app, run.get_ref())
}

fn name(client: &Client, run: &str, step: &str) -> String {
    format!("{}/steps/{step}", client.name("runs", run))
}
