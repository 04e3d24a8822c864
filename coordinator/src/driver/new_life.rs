//! After an accepted loss: what open runs did in the lost records is not known, so every one of them waits for a person.
//!
//! A record of the log's new life follows the last of them. A crash before it means that all are told again, which changes
//! nothing but the numbers that are left out; nobody is left untold.

use std::sync::Arc;

use muster_engine::{
    ids::{Actor, RunId},
    run::Command,
};
use serde_json::{json, value::to_raw_value};
use tracing::warn;

use super::{Clock, recovery::Recovered, run_task::stream_of, turn::Turn};
use crate::journal::{AppendError, Journal, NewRecord, ReadError, StreamAppend, StreamId};

/// Runs that are told in one append.
const CHUNK: usize = 500;

/// Why open runs could not be paused; nothing may be served then.
#[derive(Debug, thiserror::Error)]
pub enum NewLifeError {
    /// The journal takes no records.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The journal can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A run can't be paused, and must not go on.
    #[error("run {run} can't be paused: {why}")]
    Unpaused {
        /// Which.
        run: RunId,
        /// Why.
        why: String,
    },
}

/// Pause every open run with a question, unless that was done in this life of the log. True: records were appended that
/// what was recovered does not have.
///
/// # Errors
/// See [`NewLifeError`].
pub(super) async fn begin(
    journal: &dyn Journal,
    cluster: &str,
    recovered: &Recovered,
    clock: &Clock,
    ours: &Actor,
) -> Result<bool, NewLifeError> {
    let life = StreamId(format!("life/{cluster}").into());
    if !journal.read_stream(&life, 0, 1)?.is_empty() {
        return Ok(false);
    }
    let now = clock.now();
    for runs in recovered.runs.chunks(CHUNK) {
        let mut appends = Vec::with_capacity(runs.len());
        for run in runs {
            let run = Arc::new(run.clone());
            let mut turn = Turn::new(&run, now);
            let decided = turn.decide(&Command::AcceptLoss, ours).map_err(|rejection| rejection.to_string());
            let records = turn.appends(&stream_of(&run.id), ours);
            if let Some(why) = decided.err().or(turn.broken) {
                return Err(NewLifeError::Unpaused { run: run.id.clone(), why });
            }
            appends.extend(records);
        }
        append(journal, appends).await?;
    }
    let event = to_raw_value(&json!({ "type": "loss_accepted", "open_runs": recovered.runs.len() }))
        .map_err(|e| AppendError::Unavailable(e.to_string()))?;
    let record = NewRecord { at: now, by: ours.clone(), event };
    append(journal, vec![StreamAppend { stream: life, expected_seq: 0, records: vec![record] }]).await?;
    warn!(runs = recovered.runs.len(), "records of the journal are lost: every open run waits for a person");
    Ok(true)
}

async fn append(journal: &dyn Journal, appends: Vec<StreamAppend>) -> Result<(), AppendError> {
    match journal.append(appends).await {
        Ok(appended) => appended.map(drop),
        Err(_) => Err(AppendError::Unavailable("the journal has stopped".to_owned())),
    }
}
