//! Answers to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, so that the usual NATS tools list agents (`nats micro ls`).
//! Nothing depends on it: without the permission for these subjects an agent works all the same.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream::select_all};
use serde_json::{Value, json};

use super::{Shared, WorkerError};

/// Of the answers' form, not of the agent.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answer as long as the worker lives.
pub(super) async fn answer(shared: Arc<Shared>) -> Result<(), WorkerError> {
    let name = format!("muster-{}", shared.config.role);
    let patterns = ["$SRV.*".to_owned(), format!("$SRV.*.{name}"), format!("$SRV.*.{name}.{}", shared.instance)];
    let mut asked = Vec::new();
    for pattern in &patterns {
        match shared.bus.subscribe(pattern).await {
            Ok(subscription) => asked.push(subscription),
            Err(error) => tracing::debug!(%error, pattern, "the NATS tools will not see this agent"),
        }
    }
    let started = jiff::Timestamp::now();
    let mut asked = select_all(asked);
    while let Some(delivery) = asked.next().await {
        let what = delivery.subject.split('.').nth(1).unwrap_or_default();
        if let (Some(reply), Some(answer)) = (delivery.reply, describe(&shared, &name, what, started)) {
            reply.send(Bytes::from(answer.to_string()));
        }
    }
    // Nobody will ask, and that is no reason to end.
    std::future::pending().await
}

fn describe(shared: &Shared, name: &str, what: &str, started: jiff::Timestamp) -> Option<Value> {
    let config = &shared.config;
    let endpoint = json!({
        "name": "task",
        "subject": shared.subjects.task(&config.agent, &shared.instance),
        "queue_group": "",
    });
    let (kind, extra) = match what {
        "PING" => ("ping", json!({})),
        "INFO" => ("info", json!({"description": config.software, "endpoints": [endpoint]})),
        "STATS" => {
            let tally = shared.book().tally();
            let mut endpoint = endpoint;
            endpoint["num_requests"] = json!(tally.started + tally.declined);
            endpoint["num_errors"] = json!(tally.declined);
            endpoint["last_error"] = json!("");
            endpoint["processing_time"] = json!(tally.work_ns);
            endpoint["average_processing_time"] = json!(tally.work_ns / tally.started.max(1));
            ("stats", json!({"started": started.to_string(), "endpoints": [endpoint]}))
        }
        _ => return None,
    };
    let mut answer = json!({
        "type": format!("io.nats.micro.v1.{kind}_response"),
        "name": name,
        "id": shared.instance,
        "version": VERSION,
        "metadata": {"agent": config.agent, "namespace": config.namespace, "role": config.role},
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        answer[key] = value.clone();
    }
    Some(answer)
}
