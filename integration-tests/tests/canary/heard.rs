//! Everything that goes over the wire: messages on NATS, the stream of events, answers of the API.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use muster_integration_tests::{
    canary::Place,
    events::{self, STREAM},
};

type Heard = Arc<Mutex<Vec<Place>>>;

fn taken(heard: &Heard) -> Vec<Place> {
    std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Records every message on a server.
pub(crate) struct Listener {
    heard: Heard,
    runtime: tokio::runtime::Runtime,
    url: String,
}

impl Listener {
    pub(crate) fn start(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let heard = Heard::default();
        let client = runtime.block_on(async_nats::connect(url))?;
        let mut all = runtime.block_on(client.subscribe(">"))?;
        runtime.block_on(client.flush())?;
        let into = Arc::clone(&heard);
        runtime.spawn(async move {
            // Lives as long as it listens.
            let _client = client;
            while let Some(message) = all.next().await {
                let mut bytes = message.payload.to_vec();
                bytes.extend_from_slice(format!("{:?} {:?}", message.headers, message.reply).as_bytes());
                if let Ok(mut heard) = into.lock() {
                    heard.push((format!("NATS {}", message.subject), bytes));
                }
            }
        });
        Ok(Self { heard, runtime, url: url.to_owned() })
    }

    /// Every message of the stream of events as it is kept, with its headers. Waits until it says that this run has ended.
    pub(crate) fn stream(&self, run: &str) -> Result<Vec<Place>> {
        self.runtime.block_on(async {
            let context = events::connect(&self.url).await?;
            events::wait(&context, "the run's end", |events| events::has(events, "run_ended", run)).await?;
            let mut stream = context.get_stream(STREAM).await?;
            let state = stream.info().await?.state.clone();
            let mut kept = Vec::new();
            for seq in state.first_sequence.max(1)..=state.last_sequence {
                let message = stream.get_raw_message(seq).await.with_context(|| format!("message {seq}"))?;
                let mut bytes = message.payload.to_vec();
                bytes.extend_from_slice(format!("{:?}", message.headers).as_bytes());
                kept.push((format!("{STREAM} {seq}: {}", message.subject), bytes));
            }
            Ok(kept)
        })
    }

    pub(crate) fn end(self) -> Vec<Place> {
        self.runtime.shutdown_background();
        taken(&self.heard)
    }
}

/// Passes calls on to the API, and records each answer as it goes over the wire.
pub(crate) struct Wire {
    address: String,
    heard: Heard,
}

impl Wire {
    /// It serves until the test ends.
    pub(crate) fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, heard) = (listener.local_addr()?.to_string(), Heard::default());
        let (target, into) = (target.to_owned(), Arc::clone(&heard));
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let (target, into) = (target.clone(), Arc::clone(&into));
                // Who goes away ends the talk; nothing is to be done about it.
                thread::spawn(move || drop(record(&caller, &target, &into)));
            }
        });
        Ok(Self { address, heard })
    }

    /// Where it listens: `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn end(&self) -> Vec<Place> {
        taken(&self.heard)
    }
}

fn record(mut caller: &TcpStream, target: &str, into: &Heard) -> Result<()> {
    let mut server = TcpStream::connect(target)?;
    let (mut from, mut to) = (caller.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        // The server may have closed it already.
        let _ = to.shutdown(Shutdown::Both);
    });
    let index = {
        let mut heard = into.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push(("an answer of the API, as it came".to_owned(), Vec::new()));
        heard.len() - 1
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = server.read(&mut buffer)?;
        if count == 0 {
            return Ok(caller.shutdown(Shutdown::Both)?);
        }
        if let Some((_, bytes)) = into.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            bytes.extend_from_slice(&buffer[..count]);
        }
        caller.write_all(&buffer[..count])?;
    }
}
