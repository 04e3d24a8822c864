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
        let pass = match shared.drain.pass().await {
            Ok(pass) => pass,
            Err(drain) => {
                shared.runs.remove(&entry);
                let _ = answer.send(Err(errors::draining(&drain)));
                return;
            }
        };
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
        turn.pass = Some(pass);
        turn.requests.extend(request.append(turn.now, Some(&entry.id)));
        task.place(&mut turn, true);
        task.follow_wall_clock(&mut turn);
        let mut answer = Some(answer);
        let noting = shared.projector.begin();
        if !task.append_start(&mut turn, &request, &mut answer).await {
            task.leave_table();
            shared.runs.remove(&entry);
            return;
        }
        if let Some(answer) = answer {
            turn.answers.push(Pending::Taken(answer));
        }
        task.act(turn);
        drop(noting);
        if !task.departs().await {
            // The room for a start is not kept for the run's life.
            shared.tasks.spawn(task.serve());
        }
    }

    /// Append until it is known what has become of it. A caller is told at once when that is not known yet; the run is
    /// started nevertheless as soon as the journal stands. False: it is not started.
    async fn append_start(&mut self, turn: &mut Turn, request: &Request, answer: &mut Option<Answer>) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut tell = |result| {
            if let Some(answer) = answer.take() {
                let _ = answer.send(result);
            }
        };
        let mut pause = AGAIN_AFTER;
        loop {
            let appends = turn.appends(&self.stream, &shared.ours);
            if let Some(why) = &turn.broken {
                error!(run_id = %self.entry.id, "a new run can't be begun: {why}");
                tell(Err(errors::broken(why)));
                return false;
            }
            match shared.append(appends).await {
                Ok(_) => return true,
                Err(AppendError::Conflict { stream, .. }) if stream == self.stream => {
                    // An earlier append is there after all; that it is on disk, only reading says.
                    if shared.journal.read_stream(&self.stream, 0, 1).is_ok_and(|records| !records.is_empty()) {
                        return true;
                    }
                }
                Err(AppendError::Conflict { stream, .. }) if request.is_stream(&stream) => {
                    tell(shared.repeated_start(request));
                    return false;
                }
                Err(e @ AppendError::Unavailable(_)) => tell(Err(errors::append_failed(&e))),
                Err(
                    e @ (AppendError::Conflict { .. } | AppendError::TooLarge { .. } | AppendError::Damaged { .. }),
                ) => {
                    tell(Err(errors::append_failed(&e)));
                    return false;
                }
            }
            if shared.is_stopping() {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
    }
}
