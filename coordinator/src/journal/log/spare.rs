//! What need not be done on the hot path: the next segment's zeros, and the zeros of the last one.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use super::{
    Shared,
    disk::{DiskFile, fill},
    files,
};

/// In the log's directory: a file that is being filled with zeros, or has been.
pub(crate) const SPARE: &str = "spare";

/// A thread that does what need not be done on the hot path, and ends when the committer does: nobody else touches the log after
/// its lock is given back.
pub(crate) struct Spare {
    pub(super) orders: Sender<Order>,
    /// A file full of zeros; none: there could be none.
    pub(super) ready: Receiver<Option<Box<dyn DiskFile>>>,
    pub(super) ordered: bool,
    /// Below the channels, so that they are closed before it is waited for.
    _thread: Waited,
}

struct Waited(Option<thread::JoinHandle<()>>);

impl Drop for Waited {
    fn drop(&mut self) {
        // Nothing depends on what it did.
        let _ = self.0.take().map(thread::JoinHandle::join);
    }
}

pub(super) enum Order {
    /// Fill the next segment's file with zeros.
    Fill,
    /// Take the zeros off the end of a segment that is full, for pagers and `jq`.
    Trim(PathBuf, u64),
}

impl Spare {
    /// Starts the thread. What fails there is tried again when it is needed.
    pub(crate) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (orders, next) = channel();
        let (made, ready) = channel();
        let work = move || {
            while let Ok(order) = next.recv() {
                match order {
                    Order::Fill => {
                        let file = shared.fill_spare();
                        let file = file.inspect_err(|error| {
                            tracing::warn!(%error, "the log's next segment can't be prepared; syncs will be slower");
                        });
                        if made.send(file.ok()).is_err() {
                            return;
                        }
                    }
                    Order::Trim(path, bytes) => {
                        if let Err(error) = File::options().write(true).open(&path).and_then(|file| file.set_len(bytes))
                        {
                            tracing::warn!(%error, path = %path.display(), "zeros stay at the end of a full segment");
                        }
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("journal-spare".into()).spawn(work)?;
        Ok(Self { orders, ready, ordered: false, _thread: Waited(Some(thread)) })
    }
}

impl Shared {
    fn fill_spare(&self) -> io::Result<Box<dyn DiskFile>> {
        let mut file = self.disk.create(&files::log_dir(&self.data).join(SPARE))?;
        fill(&mut *file, self.segment_bytes)?;
        Ok(file)
    }
}
