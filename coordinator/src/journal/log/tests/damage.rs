//! What is cut, flipped or taken away is found and named, never a panic, never silent.

use super::*;
use crate::journal::{ReadError, tools};

fn copy(from: &TempDir) -> TempDir {
    let to = scratch();
    fs::create_dir(to.path().join("log")).unwrap();
    for file in ["HEAD", "cluster"] {
        fs::copy(from.path().join(file), to.path().join(file)).unwrap();
    }
    for file in segment_files(from) {
        fs::copy(&file, to.path().join("log").join(file.file_name().unwrap())).unwrap();
    }
    to
}

fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).unwrap() + 1
}

fn batch_ends(bytes: &[u8]) -> Vec<usize> {
    let start = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
    scan::Scan::new(bytes, start)
        .map(|item| match item {
            scan::Item::Batch(batch) => batch.to,
            other @ (scan::Item::Damage { .. } | scan::Item::Tail { .. }) => panic!("{other:?}"),
        })
        .collect()
}

fn set_head(dir: &TempDir, batch: u64, chain: &record::Chain) {
    let mut bytes = files::head_slot(batch, chain).0;
    bytes.extend_from_within(..);
    fs::write(files::head_file(dir.path()), bytes).unwrap();
}

fn chain_of(bytes: &[u8], batch: u64) -> record::Chain {
    let commits = scan::readable_commits(bytes).into_iter().map(|(commit, _)| commit);
    let found = commits.filter(|commit| commit.batch == batch).map(|commit| record::unhex(&commit.chain).unwrap());
    found.last().unwrap()
}

/// Nothing is missing in it, so that only a person can know.
#[test]
fn a_backup_that_was_put_back_begins_a_new_life_each_time_it_is_said() {
    let backup = copy(&filled(6));
    let (journal, opening) = LogJournal::open(backup.path(), options()).unwrap();
    assert!(!opening.accepted_loss && !opening.after_loss, "{opening:?}");
    let old = opening.cluster;
    drop(journal);
    let restored = LogOptions { restored: true, ..options() };
    for again in 1..=2 {
        let (journal, opening) = LogJournal::open(backup.path(), restored.clone()).unwrap();
        assert!(opening.accepted_loss && opening.after_loss && opening.cluster != old, "{again}: {opening:?}");
        assert_eq!(journal.head().position, Position(6));
    }
    let (journal, opening) = LogJournal::open(backup.path(), options()).unwrap();
    assert!(!opening.accepted_loss && opening.after_loss && opening.losses.is_empty(), "{opening:?}");
    append(&journal, vec![to("run/new", 0, &["after"])]).unwrap();
    drop(journal);
    assert!(tools::verify(backup.path()).unwrap().whole);
    assert_eq!(files::clusters(backup.path()).unwrap().len(), 3);
}

/// What is missing besides still needs its own word.
#[test]
fn a_damaged_backup_is_not_put_back_without_its_loss_being_accepted() {
    let backup = copy(&filled(6));
    fs::remove_file(files::head_file(backup.path())).unwrap();
    let refused = LogJournal::open(backup.path(), LogOptions { restored: true, ..options() });
    assert!(matches!(refused, Err(OpenError::Loss { .. })), "{:?}", refused.err());
    assert_eq!(files::clusters(backup.path()).unwrap().len(), 1);
}

fn accepting() -> LogOptions {
    LogOptions { accept_loss: true, ..options() }
}

/// The last batch was not answered: whatever a crash has left of it, the log goes on with the one before.
#[test]
fn an_unanswered_batch_is_cut_at_every_byte() {
    let pristine = filled(6);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    set_head(&pristine, 5, &chain_of(&bytes, 5));
    for cut in ends[4]..ends[5] {
        for zeroed in [true, false] {
            let dir = copy(&pristine);
            let mut torn = bytes[..cut].to_vec();
            if zeroed {
                torn.resize(bytes.len(), 0);
            }
            fs::write(dir.path().join("log").join(file.file_name().unwrap()), &torn).unwrap();
            let (journal, opening) = open(&dir);
            assert!(opening.losses.is_empty(), "cut at {cut}: {opening:?}");
            assert_eq!(opening.cut_bytes, (cut - ends[4]) as u64);
            assert_eq!(journal.head().position, Position(5), "cut at {cut}");
            append(&journal, vec![to("run/2", 1, &["instead"])]).unwrap();
            drop(journal);
            let (journal, opening) = open(&dir);
            assert_eq!((opening.losses.len(), opening.cut_bytes), (0, 0));
            assert_eq!(all(&journal, 5)[0].3, "instead");
        }
    }
}

/// Pages of a write that was cut short reach the disk in any order.
#[test]
fn an_unanswered_batch_with_holes_is_cut() {
    let pristine = filled(6);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    set_head(&pristine, 5, &chain_of(&bytes, 5));
    for hole in ends[4]..ends[5] - 1 {
        let dir = copy(&pristine);
        let mut torn = bytes.clone();
        torn[ends[4]..=hole].fill(0);
        fs::write(dir.path().join("log").join(file.file_name().unwrap()), &torn).unwrap();
        let (journal, opening) = open(&dir);
        assert!(opening.losses.is_empty(), "hole to {hole}: {opening:?}");
        assert_eq!((journal.head().position, opening.cut_bytes > 0), (Position(5), true));
    }
}

/// The last batches were answered: no byte of them can go without a word.
#[test]
fn answered_batches_that_are_cut_are_not_served_without_consent() {
    let pristine = filled(6);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    for cut in ends[2]..ends[5] {
        let dir = copy(&pristine);
        let mut torn = bytes[..cut].to_vec();
        torn.resize(bytes.len(), 0);
        fs::write(dir.path().join("log").join(file.file_name().unwrap()), &torn).unwrap();
        let Err(OpenError::Loss { losses }) = LogJournal::open(dir.path(), options()).map(|_| ()) else {
            panic!("cut at {cut}: it was opened")
        };
        assert!(losses.iter().any(|loss| loss.what.contains("batch 6 was answered")), "{losses:?}");
        assert_eq!(fs::read(dir.path().join("log").join(file.file_name().unwrap())).unwrap(), torn, "nothing changes");
    }
}

#[test]
fn an_accepted_loss_begins_a_new_life_and_is_not_asked_for_again() {
    let dir = filled(6);
    let file = segment_files(&dir)[0].clone();
    let mut bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    bytes[ends[3]..].fill(0);
    fs::write(&file, &bytes).unwrap();
    let old = files::clusters(dir.path()).unwrap()[0].id.clone();
    let (journal, opening) = LogJournal::open(dir.path(), accepting()).unwrap();
    assert!(opening.accepted_loss && opening.after_loss && opening.cluster != old, "{opening:?}");
    assert_eq!(journal.head().position, Position(4));
    append(&journal, vec![to("run/1", 1, &["again"])]).unwrap();
    drop(journal);
    let (journal, opening) = open(&dir);
    assert!(!opening.accepted_loss && opening.after_loss && opening.losses.is_empty(), "{opening:?}");
    assert_eq!((journal.cluster(), all(&journal, 0).len()), (&*opening.cluster, 5));
    assert_eq!(files::clusters(dir.path()).unwrap().len(), 2);
}

/// Bytes all over a log of several segments, one bit each (that a batch is sealed against every bit is tested with its
/// format). Either it is refused, or the streams that lost something are named and all others are whole.
#[test]
fn no_flipped_bit_goes_unnoticed() {
    let pristine = filled(60);
    let (journal, _) = open(&pristine);
    let whole = all(&journal, 0);
    drop(journal);
    let files = segment_files(&pristine);
    assert!(files.len() >= 2);
    let (mut refused, mut named, mut cut) = (0, 0, 0);
    for (n, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        for at in (0..used(&bytes)).step_by(if n + 1 == files.len() { 31 } else { 67 }) {
            let dir = copy(&pristine);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(dir.path().join("log").join(file.file_name().unwrap()), &flipped).unwrap();
            match LogJournal::open(dir.path(), options()) {
                Err(OpenError::Loss { losses }) => {
                    assert!(!losses.is_empty());
                    refused += 1;
                }
                Err(other) => panic!("{at}: {other:?}"),
                Ok((journal, opening)) => {
                    assert!(!opening.losses.is_empty(), "byte {at} of {n} went unnoticed");
                    named += usize::from(opening.losses.iter().any(|loss| !loss.streams.is_empty()));
                    cut += opening.cut_bytes;
                    only_named_streams_lost(&journal, &opening, &whole);
                }
            }
        }
    }
    assert!(refused > 0 && named > 50 && cut == 0, "{refused} {named} {cut}");
}

fn only_named_streams_lost(journal: &LogJournal, opening: &Opening, whole: &[(u64, String, u64, String)]) {
    let victims: Vec<_> = opening.losses.iter().flat_map(|loss| &loss.streams).collect();
    let is_victim = |stream: &str| victims.iter().any(|victim| &*victim.0 == stream);
    let mut found = Vec::new();
    let mut errors = 0;
    for record in journal.read(Position(0)) {
        match record {
            Ok((position, record)) => {
                found.push((position.0, record.stream.0.to_string(), record.seq, conformance::text(&record)));
            }
            Err(ReadError::Damaged { streams, .. }) => {
                errors += 1;
                assert!(victims.iter().all(|victim| streams.contains(victim)), "{streams:?} {victims:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(errors > 0, !victims.is_empty(), "a reader is told where something is missing");
    let missing: Vec<_> = whole.iter().filter(|record| !found.contains(record)).collect();
    assert!(found.iter().all(|record| whole.contains(record)));
    assert!(missing.iter().all(|record| is_victim(&record.1)), "{missing:?} {victims:?}");
    for n in 0..3 {
        let stream = id(&format!("run/{n}"));
        if is_victim(&stream.0) {
            assert!(matches!(journal.read_stream(&stream, 0, 99), Err(ReadError::Damaged { .. })));
            let refused = append(journal, vec![to(&stream.0, 20, &["x"])]);
            assert!(matches!(refused, Err(AppendError::Damaged { .. })), "{refused:?}");
        } else {
            assert_eq!(journal.read_stream(&stream, 0, 99).unwrap().len(), 20);
            append(journal, vec![to(&stream.0, 20, &["x"])]).unwrap();
        }
    }
}

#[test]
fn a_flip_while_it_is_open_is_found_by_the_reader() {
    let dir = filled(6);
    let (journal, _) = open(&dir);
    let file = segment_files(&dir)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    let start = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
    for at in start..ends[5] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        fs::write(&file, &flipped).unwrap();
        let results: Vec<_> = journal.read(Position(0)).collect();
        assert!(results.iter().any(|r| matches!(r, Err(ReadError::Damaged { .. }))), "byte {at}");
        assert!(results.iter().filter(|r| r.is_ok()).count() >= 4);
        let whole = (0..3).filter(|n| journal.read_stream(&id(&format!("run/{n}")), 0, 9).is_ok()).count();
        let is_commit_line =
            bytes[..at].iter().rposition(|b| *b == b'\n').is_some_and(|end| bytes[end + 1..].starts_with(b"{\"b"));
        assert!(whole == 2 || is_commit_line && whole == 3, "byte {at}: {whole}");
    }
}

#[test]
fn head_that_is_gone_or_damaged_is_not_served_without_consent() {
    let pristine = filled(3);
    let head = fs::read(files::head_file(pristine.path())).unwrap();
    let dir = copy(&pristine);
    fs::remove_file(files::head_file(dir.path())).unwrap();
    assert!(matches!(LogJournal::open(dir.path(), options()), Err(OpenError::Loss { .. })));
    fs::write(files::head_file(dir.path()), b"").unwrap();
    assert!(matches!(LogJournal::open(dir.path(), options()), Err(OpenError::Loss { .. })));
    let (_, opening) = LogJournal::open(dir.path(), accepting()).unwrap();
    assert!(opening.accepted_loss);
    assert!(!open(&dir).1.accepted_loss);
    // One slot may be torn by a crash; the other one stands, and says less.
    for slot in 0..2 {
        let dir = copy(&pristine);
        let mut torn = head.clone();
        torn[slot * files::HEAD_SLOT_BYTES + 12] ^= 1;
        fs::write(files::head_file(dir.path()), torn).unwrap();
        assert_eq!(all(&open(&dir).0, 0).len(), 3);
    }
}

#[test]
fn a_segment_or_the_cluster_file_that_is_gone_is_not_served_without_consent() {
    let pristine = filled(120);
    for (n, gone) in segment_files(&pristine).into_iter().enumerate() {
        let dir = copy(&pristine);
        fs::remove_file(dir.path().join("log").join(gone.file_name().unwrap())).unwrap();
        let result = LogJournal::open(dir.path(), options()).map(|(_, opening)| opening);
        assert!(matches!(result, Err(OpenError::Loss { .. })), "segment {n}: {result:?}");
        let (_, opening) = LogJournal::open(dir.path(), accepting()).unwrap();
        assert!(opening.accepted_loss && !opening.losses.is_empty());
        let (_, opening) = open(&dir);
        assert!(!opening.accepted_loss, "it was accepted: {opening:?}");
    }
    fs::remove_file(files::cluster_file(pristine.path())).unwrap();
    assert!(matches!(LogJournal::open(pristine.path(), options()), Err(OpenError::Loss { .. })));
}

/// Two damaged batches side by side: the first one's victims are known only from damaged lines, and count if two agree.
#[test]
fn victims_of_neighbouring_damage_count_where_two_lines_agree() {
    let pristine = filled(6);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    let damage = |places: &[usize]| {
        let dir = copy(&pristine);
        let mut damaged = bytes.clone();
        for at in places {
            damaged[*at] ^= 1;
        }
        fs::write(dir.path().join("log").join(file.file_name().unwrap()), damaged).unwrap();
        dir
    };
    let in_batch = |n: usize, text: &str| {
        let batch = &bytes[ends[n - 2]..ends[n - 1]];
        ends[n - 2] + memchr::memmem::find(batch, text.as_bytes()).unwrap()
    };
    let (third, fourth) = (in_batch(3, "text 2"), in_batch(4, "text 3"));
    let (_, opening) = open(&damage(&[third, fourth]));
    let loss = &opening.losses[0];
    assert_eq!((loss.streams.clone(), loss.all_named), (vec![id("run/0"), id("run/2")], true), "{loss}");
    assert!(loss.what.contains("batches 3 to 4"), "{loss}");

    let name = in_batch(3, "\"streams\":[\"run/2\"") + "\"streams\":[\"run/".len();
    let dir = damage(&[name, fourth]);
    assert!(matches!(LogJournal::open(dir.path(), options()), Err(OpenError::Loss { .. })));
}

/// After a power cut `HEAD` may be an older one: what it does not vouch for is still not cut off if it had been synced.
#[test]
fn damage_behind_an_old_head_is_no_torn_tail_if_more_was_written_after_it() {
    let pristine = filled(6);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let ends = batch_ends(&bytes);
    set_head(&pristine, 2, &chain_of(&bytes, 2));
    let damage = |keep: usize| {
        let dir = copy(&pristine);
        let mut damaged = bytes.clone();
        damaged[ends[3] + 20] ^= 1;
        damaged[keep..].fill(0);
        fs::write(dir.path().join("log").join(file.file_name().unwrap()), damaged).unwrap();
        dir
    };
    let (_, opening) = open(&damage(ends[5]));
    assert_eq!((opening.losses[0].streams.clone(), opening.cut_bytes), (vec![id("run/1")], 0));
    let dir = damage(ends[4] + 30);
    assert!(matches!(LogJournal::open(dir.path(), options()), Err(OpenError::Loss { .. })));
    let (journal, opening) = open(&damage(ends[4]));
    assert_eq!((journal.head().position, opening.losses.len()), (Position(4), 0), "nothing tells it from a torn one");
}

/// The batches around a damaged one are whole: who stands in them has lost nothing.
#[test]
fn a_reader_names_the_victims_and_nobody_else() {
    let pristine = filled(7);
    let file = segment_files(&pristine)[0].clone();
    let bytes = fs::read(&file).unwrap();
    let mut ends = batch_ends(&bytes);
    ends.insert(0, bytes.windows(5).position(|w| w == b"{\"v\":").unwrap());
    for (from, to) in [(1, 1), (2, 2), (5, 5), (3, 4), (1, 3)] {
        let dir = copy(&pristine);
        let mut torn = bytes.clone();
        for batch in from..=to {
            torn[ends[batch - 1] + 20] ^= 1;
        }
        fs::write(dir.path().join("log").join(file.file_name().unwrap()), &torn).unwrap();
        let (journal, opening) = open(&dir);
        let mut expected: Vec<_> = (from..=to).map(|batch| id(&format!("run/{}", (batch - 1) % 3))).collect();
        expected.sort();
        let read: Vec<_> = journal.read(Position(0)).filter_map(Result::err).collect();
        let [ReadError::Damaged { streams, .. }] = &read[..] else { panic!("{from} to {to}: {read:?}") };
        assert_eq!(*streams, expected, "{from} to {to}");
        assert_eq!(opening.losses[0].streams, expected, "{from} to {to}");
        let after = Position(u64::try_from(from).unwrap() - 1);
        let again: Vec<_> = journal.read(after).filter_map(Result::err).collect();
        assert_eq!(again.len(), 1, "{from} to {to}: {again:?}");
    }
}
