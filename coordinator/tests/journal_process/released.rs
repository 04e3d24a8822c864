//! A log of every released shape can be read for ever.

use std::path::{Path, PathBuf};

use muster_coordinator::journal::{Position, StreamId, tools};

use crate::writer;

pub(crate) fn logs_of_every_release_can_be_read() {
    let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journal_process/released");
    let logs: Vec<PathBuf> =
        released.read_dir().expect("they are there").map(|entry| entry.expect("it can be read").path()).collect();
    assert!(!logs.is_empty());
    for data in logs {
        let mut records = Vec::new();
        let report = tools::export(&data, Some(&StreamId("run/2".into())), &mut records).expect("it can be read");
        assert!(report.whole && report.torn_bytes == 0, "{}: {report:?}", data.display());
        assert_eq!((report.records, report.streams), (12, 4));
        assert!(report.head.position > Position(0));
        let lines = String::from_utf8(records).expect("it is text");
        for (line, seq) in lines.lines().zip(1..=3) {
            let event = writer::record(&StreamId("run/2".into()), seq).event;
            assert!(line.ends_with(&format!(",\"event\":{}}}", event.get())), "{line}");
        }
        assert_eq!(lines.lines().count(), 3);
    }
}
