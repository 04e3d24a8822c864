//! How many request/replies per second a bus carries: `round_trips [local | nats://host:port] [width] [seconds]`.
#![expect(clippy::print_stdout, reason = "a tool that prints its figure")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use muster_bus::{Bus, LocalBus, NatsBus, NatsOptions};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().unwrap_or_else(|| "local".to_owned());
    let width: usize = arguments.next().and_then(|w| w.parse().ok()).unwrap_or(64);
    let seconds: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(3);
    let (here, there): (Arc<dyn Bus>, Arc<dyn Bus>) = if place == "local" {
        let bus = LocalBus::new();
        (Arc::new(bus.clone()), Arc::new(bus))
    } else {
        let connect = || NatsBus::connect(NatsOptions::new([place.clone()], "round-trips"));
        (Arc::new(connect().await.expect("connects")), Arc::new(connect().await.expect("connects")))
    };
    let mut requests = there.subscribe("round.trip").await.expect("subscribes");
    tokio::spawn(async move {
        while let Some(delivery) = requests.next().await {
            if let Some(reply) = delivery.reply {
                reply.send(delivery.payload);
            }
        }
    });
    let count = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let askers = (0..width).map(|_| {
        let (bus, count) = (here.clone(), count.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let asked = Instant::now();
                bus.request("round.trip", Bytes::from_static(&[b'x'; 300]), Duration::from_secs(5))
                    .await
                    .expect("answers");
                times.push(asked.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            times
        })
    });
    let mut times: Vec<Duration> = futures_util::future::join_all(askers.collect::<Vec<_>>())
        .await
        .into_iter()
        .flat_map(|asker| asker.expect("ends"))
        .collect();
    times.sort_unstable();
    let total = count.load(Ordering::Relaxed);
    let rate = u128::from(total) * 1000 / started.elapsed().as_millis();
    println!(
        "{place} width {width}: {rate} /s, p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}
