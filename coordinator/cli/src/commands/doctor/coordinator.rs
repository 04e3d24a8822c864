//! Whether a coordinator has the data directory, whether one answers over NATS and at its address, and what the journal is like.

use std::path::Path;

use muster_coordinator::journal::{log::OpenError, tools};
use muster_proto::v1;

use super::{App, Check, bus::Heard, in_time};
use crate::{
    commands::serve::not_opened,
    error::{CliError, chain},
    printer::time,
};

/// Who has the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// A process that runs.
    InUse,
    /// Nobody, or it can't be told.
    Free,
}

/// Every record of a stopped server's journal; that of one that runs is its own business.
pub(super) async fn data_dir(folder: &Path, checks: &mut Vec<Check>) -> Here {
    let name = "journal";
    let shown = folder.display();
    if !folder.join("log").is_dir() {
        checks.push(Check::ok(name, format!("there is none in {shown} yet: `muster serve` begins one")));
        return Here::Free;
    }
    let path = folder.to_owned();
    let report = tokio::task::spawn_blocking(move || tools::verify(&path)).await;
    let check = match report {
        Ok(Ok(report)) if report.whole => Check::ok(name, format!("{} records, whole", report.records)),
        Ok(Ok(report)) => Check::problem(
            name,
            match report.losses.len() {
                1 => "it is not whole: 1 place is damaged".to_owned(),
                places => format!("it is not whole: {places} places are damaged"),
            },
            "see what is lost: muster journal verify\nrestore a backup, or go on without it: muster serve --accept-loss",
        ),
        Ok(Err(OpenError::InUse { .. })) => {
            checks.push(Check::ok(name, format!("a process has {shown} open")));
            return Here::InUse;
        }
        Ok(Err(error)) => Check::error(name, not_opened(&error)),
        Err(error) => Check::error(name, CliError::failed("INTERNAL", chain(&error))),
    };
    checks.push(check);
    Here::Free
}

/// Compare what was found with each other, and ask at the server's address.
pub(super) async fn look(app: &App, heard: Heard, here: Here, checks: &mut Vec<Check>) {
    let name = "coordinator";
    checks.push(match (heard, here) {
        (Heard::Answers, Here::InUse) => Check::ok(name, "one has this data directory, and one answers over NATS"),
        (Heard::Nobody, Here::Free) => Check::ok(name, "none runs, and one may be started"),
        (Heard::Answers, Here::Free) => Check::warning(
            name,
            "one answers over NATS that does not have this data directory: a second one will not start",
            "name the data directory of the one that runs, or another NATS for this one",
        ),
        (Heard::Nobody, Here::InUse) => Check::problem(
            name,
            "a process has this data directory, and no coordinator answers over this NATS",
            "name the NATS of that process with --nats, or look at its log: it may be starting, or cut off",
        ),
        (Heard::Unknown, Here::InUse) => {
            Check::warning(name, "a process has this data directory; NATS can't be asked about it", "mend NATS first")
        }
        (Heard::Unknown, Here::Free) => {
            Check::warning(name, "whether one runs elsewhere can't be told without NATS", "mend NATS first")
        }
    });
    let answer = asked(app).await;
    let seen = answer.as_ref().ok().map(drain);
    checks.push(match (answer, here) {
        (Ok(_), _) => Check::ok("api", format!("{} answers, and takes this token", app.settings.server)),
        (Err(error), Here::Free) if error.reason == "SERVER_UNREACHABLE" => {
            Check::ok("api", format!("nobody listens at {}", app.settings.server))
        }
        (Err(error), _) => Check::error("api", error),
    });
    checks.extend(seen);
}

/// Whether it gives anything out.
fn drain(coordinator: &v1::Coordinator) -> Check {
    if coordinator.state() != v1::coordinator::State::Draining {
        return Check::ok("drain", "the coordinator serves");
    }
    let v1::Coordinator { drainer, drain_time, .. } = coordinator;
    let message = format!("the coordinator is draining, by {drainer}, since {}", time(drain_time.as_ref()));
    Check::warning("drain", message, "nothing new begins until somebody ends that: muster coordinator resume")
}

async fn asked(app: &App) -> Result<v1::Coordinator, CliError> {
    let unanswered = || CliError::unanswered(&app.settings.server, super::WITHIN);
    let client = in_time(app.client()).await.ok_or_else(unanswered)??;
    let request = client.soon(v1::GetCoordinatorRequest {});
    let mut coordinator = client.coordinator();
    let answer = in_time(coordinator.get_coordinator(request)).await.ok_or_else(unanswered)?;
    answer.map(tonic::Response::into_inner).map_err(|status| client.error(&status))
}
