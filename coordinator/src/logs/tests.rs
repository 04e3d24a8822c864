//! What is kept, what is lost and how that is said, and what is deleted.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use super::*;

const RUN: &str = "0199-a";

fn limits() -> Limits {
    Limits { reserve_bytes: 0, ..Limits::default() }
}

fn line(run: &str, step: &str, number: u64, text: &str) -> Line {
    let (run, step) = (run.into(), step.into());
    Line { run, step, attempt: 1, number, at_ms: 1_800_000_000_000, text: text.to_owned() }
}

async fn all(logs: &Logs) -> Vec<Entry> {
    logs.settled().await;
    logs.page(&RUN.into(), &Filter::default(), 0, usize::MAX).await.unwrap().entries
}

/// `step#line text`, or `step -missing why`.
fn told(entries: &[Entry]) -> Vec<String> {
    let tell = |e: &Entry| match e.lost {
        Some((count, why)) => format!("{} -{count} {why:?}", e.step),
        None => format!("{}#{} {}", e.step, e.number, e.text),
    };
    entries.iter().map(tell).collect()
}

/// The missing lines of one kind, over all entries.
fn lost(entries: &[Entry], kind: Lost) -> u64 {
    entries.iter().filter_map(|e| e.lost).filter(|(_, why)| *why == kind).map(|(count, _)| count).sum()
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..1_000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

#[tokio::test]
async fn lines_are_kept_in_the_order_in_which_they_come_and_gaps_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(&folder.path().join("logs"), limits()).unwrap();
    for (step, number) in [("a", 1), ("b", 3), ("a", 2), ("a", 2), ("a", 7)] {
        logs.take(line(RUN, step, number, "said"));
    }
    let entries = all(&logs).await;
    let expected = ["a#1 said", "b -2 OnTheWay", "b#3 said", "a#2 said", "a -4 OnTheWay", "a#7 said"];
    assert_eq!(told(&entries), expected);
    let only_b = Filter { step: Some("b".into()), attempt: Some(1) };
    let page = logs.page(&RUN.into(), &only_b, 0, 10).await.unwrap();
    assert_eq!(told(&page.entries), expected[1..3]);
    let other = Filter { attempt: Some(2), ..Filter::default() };
    assert_eq!(logs.page(&RUN.into(), &other, 0, 10).await.unwrap().entries, []);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let place = folder.path().join("logs");
    assert_eq!((mode(&place), mode(&place.join("0199-a.jsonl"))), (0o700, 0o600));
}

#[tokio::test]
async fn pages_go_on_where_they_ended() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    for number in 1..=5 {
        logs.take(line(RUN, "a", number, "x"));
    }
    let entries = all(&logs).await;
    let (mut position, mut seen) = (0, Vec::new());
    loop {
        let page = logs.page(&RUN.into(), &Filter::default(), position, 2).await.unwrap();
        position = page.position;
        seen.extend(page.entries);
        if page.at_end {
            break;
        }
    }
    assert_eq!(seen, entries);
    let nowhere = async |at| logs.page(&RUN.into(), &Filter::default(), at, 2).await;
    assert!(matches!(nowhere(position + 1).await, Err(PageError::Position(_))));
    assert!(matches!(nowhere(3).await, Err(PageError::Position(3))));
    let none = logs.page(&"0199-b".into(), &Filter::default(), 0, 2).await.unwrap();
    assert_eq!((none.entries.len(), none.at_end), (0, true));
}

#[tokio::test]
async fn a_restart_goes_on_in_the_same_file_after_what_was_torn() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    logs.take(line(RUN, "a", 1, "before"));
    logs.settled().await;
    drop(logs);
    let file = folder.path().join("0199-a.jsonl");
    let mut text = fs::read(&file).unwrap();
    text.extend_from_slice(br#"{"step":"a","attempt":1,"line":2,"at_"#);
    fs::write(&file, text).unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    logs.take(line(RUN, "a", 1, "before"));
    logs.take(line(RUN, "a", 3, "after"));
    assert_eq!(told(&all(&logs).await), ["a#1 before", "a -1 OnTheWay", "a#3 after"]);
}

#[tokio::test]
async fn what_a_machine_left_that_went_down_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0199-a.jsonl"), vec![0; 300_000]).unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    logs.take(line(RUN, "a", 1, "after"));
    assert_eq!(told(&all(&logs).await), ["a#1 after"]);
}

#[tokio::test]
async fn long_lines_are_cut_at_a_character() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    logs.take(line(RUN, "a", 1, &"ä".repeat(LINE_BYTES)));
    logs.take(line(RUN, "a", 2, &"\u{1}".repeat(2 * LINE_BYTES)));
    let entries = all(&logs).await;
    assert_eq!(entries.len(), 2, "what needs many escapes is read again, too");
    assert!(entries.iter().all(|e| e.text.len() <= LINE_BYTES && e.text.ends_with('…')), "{entries:?}");
}

#[tokio::test]
async fn an_attempt_over_its_limit_is_counted_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), Limits { attempt_bytes: 4_096, ..limits() }).unwrap();
    for number in 1..=1_000 {
        // Gaps, too: they must not fill the disk.
        logs.take(line(RUN, "a", 2 * number, "a line of some length, so that the limit is reached soon"));
    }
    logs.take(line(RUN, "b", 1, "still here"));
    let counted = until("all are counted", async || {
        let entries = all(&logs).await;
        let missing = lost(&entries, Lost::OverLimit) + lost(&entries, Lost::OnTheWay);
        let kept = entries.iter().filter(|e| e.step.as_str() == "a" && e.number > 0).count() as u64;
        (missing + kept == 2_000).then_some(entries)
    });
    let entries = counted.await;
    assert!(told(&entries).contains(&"b#1 still here".to_owned()));
    assert!(lost(&entries, Lost::OverLimit) > 1_800);
    let size = fs::metadata(folder.path().join("0199-a.jsonl")).unwrap().len();
    assert!(size < 8_192, "{size} bytes for an attempt that may have 4,096");
}

#[tokio::test]
async fn a_run_has_a_limit_over_all_its_attempts() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), Limits { run_bytes: 4_096, ..limits() }).unwrap();
    for attempt in 1..=100 {
        logs.take(Line { attempt, ..line(RUN, "a", 1, &"x".repeat(500)) });
    }
    logs.take(line("0199-b", "a", 1, "another run"));
    let entries = all(&logs).await;
    let kept = entries.iter().filter(|e| e.number > 0).count();
    assert!((3..8).contains(&kept), "{kept}");
    let other = logs.page(&"0199-b".into(), &Filter::default(), 0, 9).await.unwrap();
    assert_eq!(told(&other.entries), ["a#1 another run"]);
}

#[tokio::test]
async fn for_new_lines_the_oldest_files_are_deleted_and_never_one_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, age_s) in [("old.jsonl", 300), ("older.jsonl", 600), ("stranger.txt", 900)] {
        fs::write(at(name), vec![b'\n'; 40_000]).unwrap();
        let then = SystemTime::now() - Duration::from_secs(age_s);
        File::options().write(true).open(at(name)).unwrap().set_modified(then).unwrap();
    }
    let logs = Logs::open(folder.path(), Limits { total_bytes: 100_000, ..limits() }).unwrap();
    for number in 1..=40 {
        logs.take(line(RUN, "a", number, &"x".repeat(1_000)));
    }
    // Not twice within a second: lines that come meanwhile are lost, and counted.
    let next = AtomicUsize::new(41);
    until("the oldest is deleted", async || {
        let number = next.fetch_add(1, Ordering::Relaxed) as u64;
        logs.take(line(RUN, "a", number, &"x".repeat(1_000)));
        logs.settled().await;
        (!at("older.jsonl").exists()).then_some(())
    })
    .await;
    assert!(at("old.jsonl").exists() && at("stranger.txt").exists() && at("0199-a.jsonl").exists());
}

#[tokio::test]
async fn what_is_too_old_is_deleted_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for (name, age_s) in [("old.jsonl", 120), ("young.jsonl", 30)] {
        let file = File::create(folder.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
    }
    let logs = Logs::open(folder.path(), Limits { max_age_ms: 60_000, ..limits() }).unwrap();
    logs.settled().await;
    assert!(!folder.path().join("old.jsonl").exists() && folder.path().join("young.jsonl").exists());
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_lines_and_is_counted_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("0199-a.jsonl");
    fs::create_dir(&file).unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    for number in 1..=3 {
        logs.take(line(RUN, "a", number, "nobody keeps this"));
        logs.settled().await;
    }
    fs::remove_dir(&file).unwrap();
    until("it is told", async || {
        let entries = all(&logs).await;
        (lost(&entries, Lost::NotWritten) == 3).then_some(())
    })
    .await;
    logs.take(line(RUN, "a", 4, "back"));
    assert_eq!(told(&all(&logs).await).last().unwrap(), "a#4 back");
}

#[tokio::test]
async fn the_last_room_of_the_disk_is_left_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), Limits { reserve_bytes: u64::MAX, ..limits() }).unwrap();
    logs.take(line(RUN, "a", 1, "x"));
    assert_eq!(all(&logs).await, []);
    assert!(!folder.path().join("0199-a.jsonl").exists());
}

#[tokio::test]
async fn nothing_is_kept_where_nothing_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), Limits { total_bytes: 0, ..limits() }).unwrap();
    logs.take(line(RUN, "a", 2, "x"));
    logs.settled().await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_follower_hears_of_its_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    let mut follower = logs.follow(&RUN.into());
    logs.take(line("0199-b", "a", 1, "x"));
    logs.settled().await;
    assert!(tokio::time::timeout(Duration::from_millis(50), follower.more()).await.is_err());
    logs.take(line(RUN, "a", 1, "x"));
    tokio::time::timeout(Duration::from_secs(10), follower.more()).await.unwrap();
    drop(follower);
    assert!(logs.0.followers.table().is_empty());
}

#[tokio::test]
async fn a_flood_is_bounded_in_memory_and_the_gap_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::open(folder.path(), limits()).unwrap();
    let count = 3 * QUEUE_LINES as u64;
    for number in 1..=count {
        logs.take(line(RUN, "a", number, "x"));
        assert!(logs.0.queued_bytes.load(Ordering::Acquire) <= QUEUE_BYTES);
    }
    logs.settled().await;
    logs.take(line(RUN, "a", count + 1, "last"));
    logs.settled().await;
    let (mut position, mut entries) = (0, Vec::new());
    loop {
        let page = logs.page(&RUN.into(), &Filter::default(), position, usize::MAX).await.unwrap();
        position = page.position;
        entries.extend(page.entries);
        if page.at_end {
            break;
        }
    }
    let kept = entries.iter().filter(|e| e.number > 0).count() as u64;
    assert_eq!(kept + lost(&entries, Lost::OnTheWay), count + 1);
    assert_eq!(logs.0.queued_bytes.load(Ordering::Acquire), 0);
}
