//! Events of a run as the journal has them: a page of them, or a stream of each with the run after it.

use std::{collections::VecDeque, sync::Arc};

use futures_util::{Stream, stream};
use muster_engine::{ids::RunId, run::Run};

use super::{errors, recovery::follow, run_task::stream_of};
use crate::{
    control::{ControlError, RunChange, RunEvent},
    journal::{Journal, Record, StreamId},
};

/// Records read at a time.
const CHUNK: usize = 500;

/// Events after a sequence number, at most so many.
pub(super) async fn page(
    journal: &Arc<dyn Journal>,
    id: &RunId,
    after_seq: u64,
    limit: usize,
) -> Result<Vec<RunEvent>, ControlError> {
    let records = read(journal, &stream_of(id), after_seq, limit).await?;
    let event_of = |record: Record| {
        let event = serde_json::from_str(record.event.get())
            .map_err(|e| errors::quarantined(id, &format!("record {} can't be read: {e}", record.seq)))?;
        Ok(RunEvent { seq: record.seq, at: record.at, by: record.by, event: Arc::new(event) })
    };
    records.into_iter().map(event_of).collect()
}

async fn read(
    journal: &Arc<dyn Journal>,
    stream: &StreamId,
    after_seq: u64,
    limit: usize,
) -> Result<Vec<Record>, ControlError> {
    let (journal, stream) = (Arc::clone(journal), stream.clone());
    let read = tokio::task::spawn_blocking(move || journal.read_stream(&stream, after_seq, limit)).await;
    read.map_err(|_| errors::stopping())?.map_err(|e| errors::read_failed(&e))
}

/// Events after one sequence number up to another, each with the run after it: which is folded from its first record on,
/// whatever is asked for.
pub(super) fn changes(
    journal: &Arc<dyn Journal>,
    id: &RunId,
    after_seq: u64,
    until_seq: u64,
) -> impl Stream<Item = Result<RunChange, ControlError>> + Send + use<> {
    let reader = Reader {
        journal: Arc::clone(journal),
        id: id.clone(),
        stream: stream_of(id),
        after_seq,
        until_seq,
        records: VecDeque::new(),
        rebuilt: None,
        failed: false,
    };
    stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await?;
        reader.failed = item.is_err();
        Some((item, reader))
    })
}

struct Reader {
    journal: Arc<dyn Journal>,
    id: RunId,
    stream: StreamId,
    after_seq: u64,
    until_seq: u64,
    records: VecDeque<Record>,
    rebuilt: Option<Run>,
    failed: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<RunChange, ControlError>> {
        loop {
            let seq = self.rebuilt.as_ref().map_or(0, |r| r.seq);
            if self.failed || seq >= self.until_seq {
                return None;
            }
            let Some(record) = self.records.pop_front() else {
                match read(&self.journal, &self.stream, seq, CHUNK).await {
                    Ok(records) if records.is_empty() => return None,
                    Ok(records) => self.records = records.into(),
                    Err(e) => return Some(Err(e)),
                }
                continue;
            };
            match self.fold(&record) {
                Ok(None) => {}
                Ok(Some(event)) => return Some(Ok(event)),
                Err(why) => return Some(Err(errors::quarantined(&self.id, &why))),
            }
        }
    }

    fn fold(&mut self, record: &Record) -> Result<Option<RunChange>, String> {
        let event = follow(&mut self.rebuilt, record)?;
        let (true, Some(rebuilt)) = (record.seq > self.after_seq, &self.rebuilt) else { return Ok(None) };
        let event = RunEvent { seq: record.seq, at: record.at, by: record.by.clone(), event: Arc::new(event) };
        Ok(Some(RunChange { event, run: Arc::new(rebuilt.clone()) }))
    }
}
