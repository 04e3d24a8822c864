//! A new run: its first append, and everything that hangs on it.

use std::sync::Arc;

use muster_engine::run::RunStarted;
use tokio::sync::mpsc;
use tracing::error;

use super::{
    Shared,
    entry::{Answer, Message, RunEntry},
    errors,
    requests::Request,
    run_task::{AGAIN_AFTER, AGAIN_AT_MOST, RunTask},
    turn::{Pending, Turn},
};
use crate::journal::AppendError;

impl RunTask {
    /// Start a new run; the task ends at once if it can't be started.
    pub(super) async fn start(
        shared: Arc<Shared>,
        entry: Arc<RunEntry>,
        inbox: mpsc::Receiver<Message>,
        started: RunStarted,
        request: Request,
        answer: Answer,
    ) {
        let now = shared.clock.now();
        let mut turn = match Turn::begin(started, &request.actor, now) {
            Ok(turn) => turn,
            Err(rejection) => {
                shared.runs.remove(&entry);
                let _ = answer.send(Err(errors::rejected(&rejection)));
                return;
            }
        };
        let run = Arc::new(turn.run().clone());
        let mut task = Self::new(&shared, &entry, inbox, run);
        turn.requests.extend(request.append(turn.now, &entry.id));
        task.place(&mut turn, true);
        let mut answer = Some(answer);
        let mut pause = AGAIN_AFTER;
        let noting = shared.projector.begin();
        loop {
            let appends = turn.appends(&task.stream, &shared.ours);
            let failed = match turn.broken.take() {
                Some(why) => {
                    error!(run_id = %entry.id, "a new run can't be begun: {why}");
                    AppendError::Unavailable(why)
                }
                None => match shared.append(appends).await {
                    Ok(_) => break,
                    Err(e) => e,
                },
            };
            if let AppendError::Conflict { stream, .. } = &failed
                && *stream == task.stream
            {
                // The append whose outcome was not known is on disk after all.
                break;
            }
            let error = match &failed {
                AppendError::Conflict { stream, .. } if request.is_stream(stream) => shared.repeated_start(&request),
                other @ (AppendError::Conflict { .. }
                | AppendError::TooLarge { .. }
                | AppendError::Damaged { .. }
                | AppendError::Unavailable(_)) => Err(errors::append_failed(other)),
            };
            if let Some(answer) = answer.take() {
                let _ = answer.send(error);
            }
            if !matches!(failed, AppendError::Unavailable(_)) || shared.is_stopping() {
                task.leave_table();
                shared.runs.remove(&entry);
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
        if let Some(answer) = answer {
            turn.answers.push(Pending::Taken(answer));
        }
        task.act(turn);
        drop(noting);
        task.serve().await;
    }
}
