//! A disk that is really full, under the store: the journal has its room already, sled has none.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_bus::LocalBus;
use muster_coordinator::{
    control::{Caller, Control as _, PlaybookSource},
    driver::{Config, Coordinator, OpenError},
    journal::{
        Journal as _,
        log::{LogJournal, LogOptions},
    },
    store::{Store, StoreError},
};
use muster_engine::ids::Namespace;

use crate::{full_disk::on_a_disk_of, this_program};

const WITHIN: Duration = Duration::from_secs(30);
const LITTLE: u64 = 48 << 10;

pub(crate) fn a_store_outlives_a_full_disk() {
    on_a_disk_of("32m", "full-store");
}

/// Without room kept free, so that sled itself meets the end of the disk: in its log, and, where a playbook is large, in a
/// file beside it, after which it waits for ever for whoever flushes or drops it.
///
/// Each life is a process of its own: a store that was given up keeps its lock until its process ends, and one that hangs
/// has to be killed.
pub(crate) fn run(place: &Path) {
    for playbook_bytes in [8 << 10, 160 << 10] {
        let house = House::at(place, playbook_bytes);
        a_life(place, "work", playbook_bytes);
        house.make_a_little_room();
        a_life(place, "refused", playbook_bytes);
        house.make_a_little_room();
        let (journal, _) = LogJournal::open(&house.data, options()).expect("nobody has it");
        let refused = Store::open(&house.data.join("store"), journal.cluster(), journal.head().position);
        assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{:?}", refused.err());
        drop(journal);
        house.make_room();
        a_life(place, "again", playbook_bytes);
        std::fs::remove_dir_all(&house.data).expect("nothing runs");
    }
}

fn a_life(place: &Path, life: &str, playbook_bytes: usize) {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &(3 * WITHIN.as_secs()).to_string()]).arg(this_program().get_program());
    let status = command.arg("full-store-life").arg(place).args([life, &playbook_bytes.to_string()]).status();
    let status = status.expect("there is a timeout");
    assert!(status.success(), "{life} with playbooks of {playbook_bytes} bytes: {status}");
}

/// One life of a coordinator.
pub(crate) fn live(place: &Path, life: &str, playbook_bytes: usize) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let house = House::at(place, playbook_bytes);
    runtime.block_on(async {
        match (life, house.open().await) {
            ("work", Ok(up)) => house.work(up).await,
            ("refused", Err(OpenError::Store(StoreError::Io(_)))) => {}
            ("again", Ok(up)) => {
                house.until_all_are_listed(&up, house.journalled()).await;
                up.shutdown().await;
            }
            (_, Ok(_)) => panic!("{life}: it serves"),
            (_, Err(e)) => panic!("{life}: {e:?}"),
        }
    });
    // As the binary does: a thread that is kept by sled must not keep the process.
    runtime.shutdown_background();
}

struct House {
    data: PathBuf,
    ballast: PathBuf,
    playbook_bytes: usize,
}

impl House {
    fn at(place: &Path, playbook_bytes: usize) -> Self {
        Self { data: place.join("data"), ballast: place.join("ballast"), playbook_bytes }
    }

    async fn open(&self) -> Result<Coordinator, OpenError> {
        let data = self.data.clone();
        let (journal, store) = blocking(move || {
            let (journal, _) = LogJournal::open(&data, options()).expect("it has its room already");
            let store = Store::open_keeping(0, &data.join("store"), journal.cluster(), journal.head().position);
            (journal, store)
        })
        .await;
        let cluster = journal.cluster().to_owned();
        Coordinator::open(Config::new(Arc::new(journal), Arc::new(store?.0), Arc::new(LocalBus::new()), cluster)).await
    }

    /// The disk is full, has room again, and is full when this ends.
    async fn work(&self, up: Coordinator) {
        let mut submitted = 0;
        self.until_lists_are_refused(&up, &mut submitted).await;
        let inline = PlaybookSource::Inline(self.playbook(0));
        let started = up.start_run(&ns(), &inline, serde_json::json!({}), "", None, false, &caller()).await;
        let run = started.expect("a start needs no store");
        up.run(&ns(), &run.id).await.expect("nor does a look at a run");
        self.make_room();
        self.until_all_are_listed(&up, submitted).await;

        self.until_lists_are_refused(&up, &mut submitted).await;
        for _ in 0..12 {
            self.submit(&up, &mut submitted).await;
        }
        in_time("the end on a full disk", up.shutdown()).await;
        // The store goes with the last who has it.
        in_time("letting go of a store on a full disk", blocking(move || drop(up))).await;
        assert_eq!(self.journalled(), submitted);
    }

    /// The disk is full, and work comes in, until sled can't hold any more of it.
    async fn until_lists_are_refused(&self, up: &Coordinator, submitted: &mut usize) {
        self.fill();
        for _ in 0..400 {
            self.submit(up, submitted).await;
            match in_time("a list", up.list_playbooks(&ns(), 1_000, "")).await {
                Ok(page) => assert_eq!(page.items.len(), *submitted, "never a list that is behind"),
                Err(e) => return assert_eq!(e.code, "STORE_UNAVAILABLE", "{e}"),
            }
        }
        panic!("the disk was not full");
    }

    async fn submit(&self, up: &Coordinator, submitted: &mut usize) {
        *submitted += 1;
        let taken = up.submit_playbook(&ns(), &self.playbook(*submitted), false, &caller()).await;
        taken.unwrap_or_else(|e| panic!("what is submitted needs no store: {e}"));
    }

    async fn until_all_are_listed(&self, up: &Coordinator, submitted: usize) {
        let began = Instant::now();
        loop {
            match up.list_playbooks(&ns(), 1_000, "").await {
                Ok(page) => return assert_eq!(page.items.len(), submitted),
                Err(e) => assert!(e.code == "STORE_UNAVAILABLE" && began.elapsed() < WITHIN, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How many playbooks are in the log.
    fn journalled(&self) -> usize {
        let mut log = Vec::new();
        for segment in std::fs::read_dir(self.data.join("log")).expect("it is there") {
            log.extend(std::fs::read(segment.expect("it is there").path()).expect("it can be read"));
        }
        String::from_utf8_lossy(&log).matches(r#""type":"playbook_submitted""#).count()
    }

    fn playbook(&self, n: usize) -> String {
        let name = "x".repeat(self.playbook_bytes);
        format!(
            "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: p{n}, owner: devops}}\nspec:\n  phases:\n    \
             - id: only\n      deadline: 5m\n      steps:\n        \
             - {{id: wait, wait: {{signal: go}}, name: {name}}}\n"
        )
    }

    fn fill(&self) {
        let mut ballast = File::create(&self.ballast).expect("there is room for a name");
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }

    /// Enough for the small files that a start writes, and not for what the store lacks.
    fn make_a_little_room(&self) {
        let ballast = File::options().write(true).open(&self.ballast).expect("it is there");
        let bytes = ballast.metadata().expect("it is there").len();
        ballast.set_len(bytes - LITTLE).expect("it becomes smaller");
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.ballast).expect("it is there");
    }
}

async fn in_time<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(WITHIN, done).await.unwrap_or_else(|_| panic!("{what} does not end"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: 6 << 20, ..LogOptions::default() }
}

fn ns() -> Namespace {
    "default".into()
}

fn caller() -> Caller {
    Caller { actor: "person/operator".into(), request_id: None }
}
