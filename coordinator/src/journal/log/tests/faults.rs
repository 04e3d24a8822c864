//! A disk that fails where it is told to.

use std::{sync::mpsc, time::Duration};

use super::*;
use crate::journal::log::disk::DiskFile;

/// Fails what it is told to fail, in all files of a journal.
#[derive(Clone, Default)]
struct FaultyDisk {
    faults: Arc<Mutex<Faults>>,
}

#[derive(Default)]
struct Faults {
    /// The next writes of segments fail, this many of them, after half of the bytes.
    writes: usize,
    /// The next syncs of segments fail, this many of them.
    syncs: usize,
    /// The next syncs of directories fail, this many of them.
    dirs: usize,
    /// With what.
    errno: i32,
    /// Told of every failure.
    told: Option<mpsc::Sender<()>>,
}

impl FaultyDisk {
    fn set(&self, writes: usize, syncs: usize, errno: i32) -> mpsc::Receiver<()> {
        let (told, failures) = mpsc::channel();
        *self.faults.lock().unwrap() = Faults { writes, syncs, dirs: 0, errno, told: Some(told) };
        failures
    }

    fn fails(&self, which: fn(&mut Faults) -> &mut usize) -> io::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        let left = which(&mut faults);
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        if let Some(told) = &faults.told {
            let _ = told.send(());
        }
        Err(io::Error::from_raw_os_error(faults.errno))
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    file: Box<dyn DiskFile>,
    is_segment: bool,
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let is_segment = !path.ends_with("spare") && !path.ends_with("HEAD.new");
        Ok(Box::new(FaultyFile { disk: self.clone(), file: RealDisk.create(path)?, is_segment }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile { disk: self.clone(), file: RealDisk.open(path)?, is_segment: true }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fails(|faults| &mut faults.dirs)?;
        RealDisk.sync_dir(path)
    }
}

/// That it may go is on the disk before it goes.
#[test]
fn nothing_goes_while_its_record_is_not_on_the_disk() {
    let dir = filled(120);
    let (journal, _) = open(&dir);
    let old = journal.old(Timestamp::now()).unwrap().unwrap();
    let keep = [id("run/0"), id("run/1"), id("run/2")];
    journal.carry(&old, &keep).unwrap();
    drop(journal);
    let disk = FaultyDisk::default();
    let (journal, _) = LogJournal::open(dir.path(), LogOptions { disk: Arc::new(disk.clone()), ..options() }).unwrap();
    let before = segment_files(&dir);
    let _failures = disk.set(0, usize::MAX, 5);
    assert!(journal.let_go(&old, &keep, Timestamp::now(), &"muster".into()).is_err());
    drop(journal);
    assert!(before.iter().all(|path| path.exists()), "{before:?}");
}

/// What is not known to be gone must not be met again under a name that begins anew: nothing is written before the next start.
#[test]
fn old_segments_that_do_not_go_end_the_log_and_the_next_start_removes_them() {
    let dir = filled(120);
    let disk = FaultyDisk::default();
    let (journal, _) = LogJournal::open(dir.path(), LogOptions { disk: Arc::new(disk.clone()), ..options() }).unwrap();
    let old = journal.old(Timestamp::now()).unwrap().unwrap();
    let keep = [id("run/0"), id("run/1"), id("run/2")];
    journal.carry(&old, &keep).unwrap();
    let left = segment_files(&dir).len();
    disk.faults.lock().unwrap().dirs = usize::MAX;
    disk.faults.lock().unwrap().errno = 5;
    assert!(journal.let_go(&old, &keep, Timestamp::now(), &"muster".into()).is_err());
    assert!(matches!(*journal.health().borrow(), Health::Ended { .. }));
    assert!(matches!(append(&journal, vec![to("run/9", 0, &["x"])]), Err(AppendError::Unavailable(_))));
    drop(journal);
    let (journal, opening) = open(&dir);
    assert_eq!(opening.losses, []);
    assert!(journal.begins().0 + 1 >= old.before.0 && segment_files(&dir).len() < left);
    assert_eq!(journal.read_stream(&id("run/1"), 0, 100).unwrap().len(), 40);
}

impl DiskFile for FaultyFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.is_segment
            && let Err(e) = self.disk.fails(|faults| &mut faults.writes)
        {
            self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(e);
        }
        self.file.write_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.is_segment {
            self.disk.fails(|faults| &mut faults.syncs)?;
        }
        self.file.sync()
    }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn open_faulty(dir: &TempDir) -> (LogJournal, FaultyDisk) {
    let disk = FaultyDisk::default();
    let options = LogOptions { disk: Arc::new(disk.clone()), ..options() };
    (LogJournal::open(dir.path(), options).unwrap().0, disk)
}

fn wait_for(journal: &LogJournal, wanted: impl FnMut(&Health) -> bool) -> Health {
    let mut health = journal.health();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let found = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), health.wait_for(wanted)).await.map(|found| found.unwrap().clone())
    });
    found.expect("the log's health changes within 20 s")
}

#[test]
fn after_a_failed_sync_or_write_the_batch_goes_into_a_fresh_segment() {
    for (writes, syncs) in [(0, 1), (1, 0)] {
        let dir = scratch();
        let (journal, disk) = open_faulty(&dir);
        append(&journal, vec![to("run/1", 0, &["before"])]).unwrap();
        let failures = disk.set(writes, syncs, EIO);
        assert_eq!(append(&journal, vec![to("run/1", 1, &["during"])]), Ok(Position(2)));
        assert_eq!(failures.try_iter().count(), 1);
        assert_eq!(*journal.health().borrow(), Health::Standing);
        append(&journal, vec![to("run/1", 2, &["after"])]).unwrap();
        assert_eq!(segment_files(&dir).len(), 2);
        let before = all(&journal, 0);
        assert_eq!(before.len(), 3);
        assert_eq!(journal.read_stream(&id("run/1"), 0, 9).unwrap().len(), 3);
        drop(journal);
        let (journal, opening) = open(&dir);
        assert_eq!((opening.losses.len(), opening.cut_bytes), (0, 0));
        assert_eq!(all(&journal, 0), before, "what the old segment holds of the failed batch is void");
    }
}

#[test]
fn a_segment_whose_first_batch_fails_is_replaced() {
    let dir = scratch();
    let (journal, disk) = open_faulty(&dir);
    disk.set(0, 1, EIO);
    append(&journal, vec![to("run/1", 0, &["a"])]).unwrap();
    append(&journal, vec![to("run/1", 1, &["b"])]).unwrap();
    assert_eq!(segment_files(&dir).len(), 1);
    drop(journal);
    let (journal, opening) = open(&dir);
    assert!(opening.losses.is_empty());
    assert_eq!(all(&journal, 0).len(), 2);
}

#[test]
fn a_full_disk_is_waited_for_and_said() {
    let dir = scratch();
    let (journal, disk) = open_faulty(&dir);
    append(&journal, vec![to("run/1", 0, &["before"])]).unwrap();
    disk.set(usize::MAX, 0, ENOSPC);
    let mut first = journal.append(vec![to("run/1", 1, &["during"])]);
    let Health::WaitingForRoom { why } = wait_for(&journal, |h| matches!(h, Health::WaitingForRoom { .. })) else {
        panic!("it waits for room")
    };
    assert!(why.contains("KiB are free"), "{why}");
    let second = journal.append(vec![to("run/2", 0, &["queued"])]);
    assert!(first.try_recv().is_err(), "nobody is answered before it is on disk");
    assert_eq!(all(&journal, 0).len(), 1);
    disk.set(0, 0, 0);
    first.blocking_recv().unwrap().unwrap();
    second.blocking_recv().unwrap().unwrap();
    assert_eq!(*journal.health().borrow(), Health::Standing);
    drop(journal);
    assert_eq!(all(&open(&dir).0, 0).len(), 3);
}

#[test]
fn a_disk_that_keeps_failing_ends_the_log_with_a_clear_word() {
    let dir = scratch();
    let (journal, disk) = open_faulty(&dir);
    append(&journal, vec![to("run/1", 0, &["before"])]).unwrap();
    disk.set(0, usize::MAX, EIO);
    let unavailable = append(&journal, vec![to("run/1", 1, &["lost or not"])]);
    assert!(matches!(unavailable, Err(AppendError::Unavailable(_))), "{unavailable:?}");
    let Health::Ended { why } = wait_for(&journal, |h| matches!(h, Health::Ended { .. })) else { panic!("it ends") };
    assert!(why.contains("start again"), "{why}");
    assert!(matches!(append(&journal, vec![to("run/1", 1, &["x"])]), Err(AppendError::Unavailable(_))));
    drop(journal);
    let (journal, opening) = open(&dir);
    assert!(opening.losses.is_empty());
    let found = all(&journal, 0);
    assert!(found.len() <= 2 && found[0].3 == "before", "{found:?}");
}

#[test]
fn a_disk_that_stays_full_does_not_keep_the_journal_from_closing() {
    let dir = scratch();
    let (journal, disk) = open_faulty(&dir);
    disk.set(usize::MAX, 0, ENOSPC);
    let answer = journal.append(vec![to("run/1", 0, &["a"])]);
    wait_for(&journal, |h| matches!(h, Health::WaitingForRoom { .. }));
    drop(journal);
    assert!(matches!(answer.blocking_recv().unwrap(), Err(AppendError::Unavailable(_))));
}
