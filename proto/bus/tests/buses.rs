//! The conformance suite on both buses, and what only NATS can do: go away and come back.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use muster_bus::{
    Bus, BusError, LocalBus, NatsBus, NatsOptions,
    bus::MAX_PAYLOAD,
    conformance::{self, Ends},
    nats::NatsError,
    testkit::{Faults, FaultyBus, NatsServer},
};
use tokio::time::timeout;

/// `integration-tests/scripts/install.sh` puts it there.
const NEWEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/newest/bin/nats-server");
const SOON: Duration = Duration::from_secs(20);

async fn connect(server: &NatsServer) -> Arc<dyn Bus> {
    Arc::new(NatsBus::connect(NatsOptions::new([server.url()], "test")).await.expect("nats-server answers"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_bus_conforms() {
    let bus = LocalBus::new();
    conformance::all(&Ends { here: Arc::new(bus.clone()), there: Arc::new(bus) }, "c").await;
}

/// The version of the distribution: the oldest that is needed is a little older.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_bus_conforms() {
    let server = NatsServer::start().unwrap();
    conforms(&server).await;
}

/// The latest release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_bus_conforms_on_the_newest_server() {
    let server = NatsServer::start_program(Path::new(NEWEST), &[]).unwrap();
    let version = conforms(&server).await;
    let minor = version.strip_prefix("2.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    assert!(version.starts_with(char::is_numeric) && minor.is_none_or(|minor| minor >= 12), "{version} is not new");
}

async fn conforms(server: &NatsServer) -> String {
    let ends = Ends { here: connect(server).await, there: connect(server).await };
    assert_eq!(ends.here.max_payload(), MAX_PAYLOAD);
    conformance::all(&ends, "c").await;
    let bus = NatsBus::connect(NatsOptions::new([server.url()], "version")).await.expect("nats-server answers");
    bus.server_version()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_server_lowers_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats.conf");
    std::fs::write(&config, "max_payload: 65536\n").unwrap();
    let server = NatsServer::start_with(&["-c", config.to_str().unwrap()]).unwrap();
    let ends = Ends { here: connect(&server).await, there: connect(&server).await };
    assert_eq!(ends.here.max_payload(), 65536 - 16 * 1024);
    conformance::refuses_what_is_too_large(&ends, "c").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_gets_its_subscriptions_back() {
    let mut server = NatsServer::start().unwrap();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let mut requests = there.subscribe("s.*").await.unwrap();
    server.kill().unwrap();
    timeout(SOON, async {
        while here.is_connected() || there.is_connected() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the loss is noticed");
    let lost = here.request("s.a", Bytes::new(), SOON).await;
    assert!(matches!(lost, Err(BusError::Disconnected(_))), "{lost:?}");
    server.start_again().unwrap();
    tokio::spawn(async move {
        while let Some(delivery) = requests.next().await {
            delivery.reply.unwrap().send(delivery.payload);
        }
    });
    let again = async {
        loop {
            match here.request("s.a", Bytes::from_static(b"x"), Duration::from_millis(500)).await {
                Ok(reply) => break reply,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert_eq!(timeout(SOON, again).await.expect("it comes back"), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_replies_come_on_its_own_inbox() {
    let server = NatsServer::start().unwrap();
    let there = connect(&server).await;
    let here = NatsBus::connect(NatsOptions::for_agent([server.url()], "infra-1")).await.unwrap();
    let mut inboxes = there.subscribe("_INBOX_infra-1.>").await.unwrap();
    let mut requests = there.subscribe("ask").await.unwrap();
    let answer = async { requests.next().await.unwrap().reply.unwrap().send(Bytes::from_static(b"yes")) };
    let (reply, ()) = tokio::join!(here.request("ask", Bytes::new(), SOON), answer);
    assert_eq!(reply, Ok(Bytes::from_static(b"yes")));
    assert_eq!(timeout(SOON, inboxes.next()).await.unwrap().unwrap().payload, "yes");
}

/// The server lets the coordinator answer wherever a request says; the coordinator does not let itself be used for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_can_not_choose_who_gets_its_answer() {
    let server = NatsServer::start().unwrap();
    let there = connect(&server).await;
    let mut beats = there.subscribe("muster.v1.*.beat.*").await.unwrap();
    let agent = async_nats::connect(server.url()).await.unwrap();
    for (reply, may) in [("_INBOX_infra-2.x", false), ("_INBOX_infra-1.x", true), ("muster.v1.b.task.c.d", false)] {
        agent.publish_with_reply("muster.v1.default.beat.infra-1", reply, Bytes::new()).await.unwrap();
        let beat = timeout(SOON, beats.next()).await.unwrap().unwrap();
        assert_eq!(beat.reply.is_some(), may, "{reply}");
    }
}

#[tokio::test]
async fn a_missing_server_is_said_at_once_and_waited_for_when_asked() {
    let mut server = NatsServer::start().unwrap();
    server.kill().unwrap();
    let options = NatsOptions::new([server.url()], "test");
    let error = NatsBus::connect(options.clone()).await.err().unwrap();
    assert!(matches!(error, NatsError::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&server.url()), "{error}");
    let waiting = tokio::spawn(NatsBus::connect(NatsOptions { wait_for_server: true, ..options }));
    server.start_again().unwrap();
    assert!(timeout(SOON, waiting).await.unwrap().unwrap().unwrap().is_connected());
}

#[tokio::test(start_paused = true)]
async fn faults_follow_the_seed() {
    let bus = LocalBus::new();
    let mut requests = bus.subscribe("f").await.unwrap();
    let counter = tokio::spawn(async move {
        let mut count = 0;
        while let Some(delivery) = requests.next().await {
            count += 1;
            match delivery.reply {
                Some(reply) => reply.send(delivery.payload),
                None => return count,
            }
        }
        count
    });
    let faults = Faults { seed: 7, lose: 200, lose_reply: 200, repeat: 200, delay: 200, delay_at_most: SOON };
    let lossy = FaultyBus::new(Arc::new(bus.clone()), faults);
    let mut answered = 0;
    for _ in 0..1000 {
        answered += usize::from(lossy.request("f", Bytes::new(), SOON).await.is_ok());
    }
    assert!((550..750).contains(&answered), "{answered} of 1000 answered");
    lossy.cut(true);
    assert!(!lossy.is_connected());
    assert!(matches!(lossy.request("f", Bytes::new(), SOON).await, Err(BusError::Disconnected(_))));
    bus.publish("f", Bytes::new()).await.unwrap();
    let delivered: u32 = counter.await.unwrap();
    assert!((850..1100).contains(&delivered), "{delivered} delivered: some lost, some twice");
}
