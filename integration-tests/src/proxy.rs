//! A TCP proxy on loopback that can be cut, made slow, and made to refuse, while connections go through it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How soon a thread sees that it is cut, or that its proxy has gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// See the module. Everything ends with it.
pub struct Proxy {
    address: String,
    state: Arc<State>,
}

struct State {
    target: String,
    cut: AtomicBool,
    gone: AtomicBool,
    delay_ms: AtomicU64,
    refusing: AtomicBool,
}

impl Proxy {
    /// Pass on to `target` (`host:port`).
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let [cut, gone, refusing] = [const { AtomicBool::new(false) }; 3];
        let state = Arc::new(State { target: target.to_owned(), cut, gone, delay_ms: AtomicU64::new(0), refusing });
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(&listener, &shared));
        Ok(Self { address, state })
    }

    /// Where it listens: `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on nothing passes, and nobody is told: no connection ends, none is taken.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
    }

    /// Pass on again; what was held back comes late.
    pub fn heal(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// From now on every second connection is taken and ended at once, the first of them, too. Those that are there stay.
    pub fn refuse_every_second(&self) {
        self.state.refusing.store(true, Ordering::SeqCst);
    }

    /// Hold back each piece for so long.
    pub fn delay(&self, time: Duration) {
        self.state.delay_ms.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.gone.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Wait while it is cut; false: it has gone.
    fn passes(&self) -> bool {
        while self.cut.load(Ordering::SeqCst) && !self.is_gone() {
            thread::sleep(LOOK_EVERY);
        }
        !self.is_gone()
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    let mut refused_last = false;
    while state.passes() {
        match listener.accept() {
            Ok((client, _)) => {
                refused_last = !refused_last && state.refusing.load(Ordering::SeqCst);
                if refused_last {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&state.target) else { continue };
                let both = (client.try_clone(), server.try_clone());
                if let (Ok(from_client), Ok(from_server)) = both {
                    let (up, down) = (Arc::clone(state), Arc::clone(state));
                    thread::spawn(move || pump(from_client, server, &up));
                    thread::spawn(move || pump(from_server, client, &down));
                }
            }
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; 64 * 1024];
    let ready = from.set_nonblocking(false).and_then(|()| from.set_read_timeout(Some(LOOK_EVERY)));
    while ready.is_ok() && !state.is_gone() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                thread::sleep(Duration::from_millis(state.delay_ms.load(Ordering::SeqCst)));
                if !state.passes() || to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // Whoever still reads sees the end.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
