//! The same work with coordinator and agent in one process: a real log on the disk, the in-process bus, no gRPC.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use muster_agent::{Worker, WorkerConfig, allow::Allow};
use muster_bus::{Bus, LocalBus};
use muster_coordinator::{
    control::{Caller, Control, PlaybookSource},
    driver::{Config, Coordinator},
    journal::{
        Journal,
        log::{LogJournal, LogOptions},
    },
    store::Store,
};
use muster_engine::{ids::Namespace, run::state::MilestoneState};
use tokio_util::sync::CancellationToken;

use super::{STEPS_PER_RUN, cluster, limits, load::Arrivals};
use crate::{args::Role, catalogue};

const NAMESPACE: &str = "default";
const REGISTERED_WITHIN: Duration = Duration::from_secs(10);

/// Steps per second with `width` runs under way.
pub(crate) async fn steps_per_second(dir: &Path, width: usize, time: Duration) -> anyhow::Result<f64> {
    let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
    let (journal, opening) = LogJournal::open(&dir.join("data"), LogOptions::default())?;
    let (store, _) = Store::open(&dir.join("store"), &opening.cluster, journal.head().position)?;
    let mut config = Config::new(Arc::new(journal), Arc::new(store), Arc::clone(&bus), opening.cluster);
    config.shipped = catalogue::shipped().map_err(|e| anyhow::anyhow!(e.message))?;
    let coordinator = Arc::new(Coordinator::open(config).await?);
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn(worker(bus)?.run(shutdown.clone()));

    let namespace = Namespace::from(NAMESPACE);
    let caller = Caller { actor: "service/bench".into(), request_id: None };
    coordinator.submit_playbook(&namespace, &cluster::playbook(), false, &caller).await?;
    cluster::until(REGISTERED_WITHIN, "the agent registers", async || {
        let agents =
            coordinator.list_agents(&namespace, 10, "").await.map_err(|e| tonic::Status::internal(e.message))?;
        Ok(agents.items.iter().any(|a| a.state == "READY"))
    })
    .await?;
    let arrivals = Arc::new(Arrivals::default());
    let watcher = tokio::spawn(watch(Arc::clone(&coordinator), namespace.clone(), Arc::clone(&arrivals)));
    let control = Arc::clone(&coordinator);
    let runs = limits::per_second(width, time, move |_| {
        one_run(Arc::clone(&control), namespace.clone(), caller.clone(), Arc::clone(&arrivals))
    })
    .await?;
    watcher.abort();
    shutdown.cancel();
    agent.await??;
    coordinator.shutdown().await;
    #[expect(clippy::cast_precision_loss, reason = "ten")]
    Ok(runs * STEPS_PER_RUN as f64)
}

async fn one_run(
    control: Arc<Coordinator>,
    namespace: Namespace,
    caller: Caller,
    arrivals: Arc<Arrivals>,
) -> anyhow::Result<()> {
    let source = PlaybookSource::Stored { name: "bench".into(), revision: None };
    let inputs = serde_json::Value::Object(serde_json::Map::new());
    let run = control.start_run(&namespace, &source, inputs, "", None, false, &caller).await?;
    arrivals.of(run.id.as_str()).await
}

async fn watch(control: Arc<Coordinator>, namespace: Namespace, arrivals: Arc<Arrivals>) {
    match control.watch_milestones(&namespace, None).await {
        Ok(mut changes) => {
            while let Some(Ok(change)) = changes.next().await {
                if change.state == MilestoneState::Reached {
                    arrivals.seen(change.run.as_str().to_owned());
                }
            }
        }
        Err(e) => tracing::error!("the bench's watcher can't begin: {}", e.message),
    }
}

fn worker(bus: Arc<dyn Bus>) -> anyhow::Result<Worker> {
    let catalogue = catalogue::of_role(Role::Bench, Allow::default()).map_err(|e| anyhow::anyhow!(e.message))?;
    let config = WorkerConfig {
        namespace: NAMESPACE.into(),
        agent: "bench-1".into(),
        role: "bench".into(),
        labels: BTreeMap::new(),
        host: None,
        slots: 4_000,
        data_dir: None,
        software: "muster bench".into(),
    };
    Ok(Worker::new(config, catalogue, bus))
}
