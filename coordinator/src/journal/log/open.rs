//! Opening a log: making a new one, or finding out where the old one ends, before anything relies on it.

use std::{
    fs,
    io::{self, Read as _, Seek as _},
    path::Path,
    sync::Arc,
};

use super::{
    LogOptions, OpenError, Opening,
    commit::{Active, FRESH},
    disk::{Disk, DiskFile, fill},
    files::{self, Cluster, HEAD_SLOT_BYTES, HeadFile, Lock},
    format,
    index::{Index, Segment, Slot},
    pack::PACKING,
    packed::packed_file,
    spare::SPARE,
    walk::{Tail, Walked, walk},
};
use crate::journal::{
    Position,
    record::{Chain, NO_CHAIN},
};

/// A log that can be written on.
pub(crate) struct Opened {
    pub(crate) lock: Lock,
    pub(crate) index: Index,
    pub(crate) before: Vec<Slot>,
    pub(crate) active: Active,
    pub(crate) head: Box<dyn DiskFile>,
    pub(crate) opening: Opening,
}

pub(crate) fn open(data: &Path, options: &LogOptions) -> Result<Opened, OpenError> {
    let dir = files::log_dir(data);
    fs::create_dir_all(&dir).map_err(|source| OpenError::Io { path: dir.clone(), source })?;
    let lock = files::lock(data)?;
    let leftovers = [SPARE, FRESH, PACKING].map(|name| dir.join(name));
    for leftover in leftovers {
        match fs::remove_file(leftover) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(OpenError::Io { path: dir, source: e }),
            Err(_) | Ok(()) => {}
        }
    }
    let clusters = files::clusters(data)?;
    let head = if clusters.is_empty() { HeadFile::At { batch: 0, chain: NO_CHAIN } } else { files::read_head(data)? };
    let walked = walk(data, head, &mut |_| Ok(()))?;
    // The cluster file is the last thing that a new log gets: without it, nothing can have been answered.
    if clusters.is_empty() && walked.batches == 0 && walked.tail.is_none() {
        return Setup { data, options }.create(lock);
    }
    Setup { data, options }.take_over(lock, clusters, head, walked)
}

struct Setup<'a> {
    data: &'a Path,
    options: &'a LogOptions,
}

impl Setup<'_> {
    fn create(&self, lock: Lock) -> Result<Opened, OpenError> {
        let cluster = Cluster::new(0, &NO_CHAIN, Vec::new());
        let head = self.write_head(0, &NO_CHAIN)?;
        let mut index = Index::default();
        let active = self.begin_segment(&mut index, &cluster.id)?;
        let opening = Opening { created: true, cluster: cluster.id.clone(), ..Opening::default() };
        files::write_clusters(self.data, &[cluster])?;
        Ok(Opened { lock, index, before: Vec::new(), active, head, opening })
    }

    fn take_over(
        &self,
        lock: Lock,
        mut clusters: Vec<Cluster>,
        head: HeadFile,
        walked: Walked,
    ) -> Result<Opened, OpenError> {
        let mut losses = walked.losses;
        if clusters.is_empty() {
            losses.push(super::Loss::no_cluster());
        }
        let accepted = |key: &String| clusters.iter().any(|cluster| cluster.accepted.contains(key));
        let refused: Vec<_> = losses.iter().filter(|loss| !loss.all_named && !accepted(&loss.key())).cloned().collect();
        if !refused.is_empty() && !self.options.accept_loss {
            return Err(OpenError::Loss { losses: refused });
        }
        for loss in &losses {
            tracing::error!(%loss, "records were lost");
        }
        let mut index = walked.index;
        let (position, chain) = (index.position, index.chain);
        let accepted_loss = !refused.is_empty() || self.options.restored;
        if accepted_loss {
            let mut keys: Vec<_> = refused.iter().map(super::Loss::key).collect();
            if self.options.restored {
                keys.push(format!("what came after batch {} of a backup", position.0));
            }
            clusters.push(Cluster::new(position.0, &chain, keys));
        }
        let cluster = clusters.last().map(|c| c.id.clone()).unwrap_or_default();
        let after_loss = clusters.last().is_some_and(|c| !c.accepted.is_empty());
        let cut_bytes = walked.tail.map_or(0, |tail| tail.to - tail.from);
        let active = if accepted_loss || index.segments.is_empty() {
            // What is left of the old life stays as it is, for whoever wants to find out.
            self.keep_aside(position.0 + 1)?;
            self.begin_segment(&mut index, &cluster)?
        } else {
            self.go_on(&mut index, walked.tail, head, walked.unvouched_from)?
        };
        let head = self.write_head(position.0, &chain)?;
        if losses.is_empty() {
            // Where something is damaged, the only good copy may be among these.
            self.finish_letting_go(&mut index, walked.may_begin_at)?;
            self.finish_packing()?;
        }
        if accepted_loss {
            files::write_clusters(self.data, &clusters)?;
        }
        let records = walked.records;
        let opening = Opening { created: false, cluster, losses, accepted_loss, after_loss, cut_bytes, records };
        Ok(Opened { lock, index, before: walked.last_streams, active, head, opening })
    }

    /// A crash may have come between the word that segments may go, and their end.
    fn finish_letting_go(&self, index: &mut Index, may_begin_at: u64) -> Result<(), OpenError> {
        let segments = index.segments.partition_point(|segment| segment.first < may_begin_at);
        if segments == 0 {
            return Ok(());
        }
        let paths: Vec<_> = index.segments[..segments].iter().map(|segment| segment.path.clone()).collect();
        tracing::info!(segments, "segments that were let go are removed");
        files::remove(&paths).map_err(|source| OpenError::Io { path: files::log_dir(self.data), source })?;
        self.sync_dirs()?;
        let whole = index.streams_in_first(segments).into_iter().filter(|(_, is_whole)| *is_whole);
        let whole: Vec<_> = whole.map(|(stream, _)| stream).collect();
        index.let_go(segments, &whole);
        Ok(())
    }

    /// A crash may have come before a packed segment took the plain one's place: it is packed again.
    fn finish_packing(&self) -> Result<(), OpenError> {
        for (_, plain) in files::segments(self.data)? {
            let packed = packed_file(&plain);
            if plain.exists() && packed.exists() {
                fs::remove_file(&packed).map_err(|source| OpenError::Io { path: packed, source })?;
            }
        }
        Ok(())
    }

    /// Makes the end of the last segment one to go on from: the cut tail is zeros, and the batches that `HEAD` does not
    /// vouch for are on the disk. They are written again, since a sync that failed before the crash has left pages that
    /// look clean and are nowhere but in memory.
    fn go_on(
        &self,
        index: &mut Index,
        tail: Option<Tail>,
        head: HeadFile,
        unvouched_from: Option<u64>,
    ) -> Result<Active, OpenError> {
        let segment = index.segments.last().expect("there is one");
        let (path, end) = (segment.path.clone(), segment.end);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let mut file = self.disk().open(&path).map_err(io)?;
        if let Some(from) = unvouched_from {
            let bytes = read_range(&path, from, end).map_err(io)?;
            file.write_at(&bytes, from).map_err(io)?;
            tracing::info!(?head, end = index.position.0, "batches behind HEAD are taken");
        }
        if let Some(Tail { from, to }) = tail {
            tracing::warn!(path = %path.display(), from, to, "a torn tail that nobody was answered for is cut off");
            let zeros = vec![0; usize::try_from(to - from).expect("it was read into memory")];
            file.write_at(&zeros, from).map_err(io)?;
        }
        file.sync().map_err(io)?;
        self.sync_dirs()?;
        let (empty, version) = (segment.first == index.position.0 + 1, segment.version);
        Ok(Active { file, end, empty, version })
    }

    /// A segment of which nothing is left that counts makes room for another one of its name.
    fn keep_aside(&self, first: u64) -> Result<(), OpenError> {
        let plain = files::segment_file(self.data, first);
        for path in [packed_file(&plain), plain] {
            match fs::rename(&path, path.with_extension("lost")) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(OpenError::Io { path, source }),
                Err(_) | Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Begins a segment behind the last batch.
    fn begin_segment(&self, index: &mut Index, cluster: &str) -> Result<Active, OpenError> {
        let first = index.position.0 + 1;
        let (made, path) = (files::log_dir(self.data).join(FRESH), files::segment_file(self.data, first));
        let version = format::SEGMENT_VERSION;
        let line = format::segment_line(version, cluster, first - 1, &index.chain);
        let end = line.len() as u64;
        let begin = || -> io::Result<Box<dyn DiskFile>> {
            let mut file = self.disk().create(&made)?;
            fill(&mut *file, self.options.segment_bytes)?;
            file.write_at(&line, 0)?;
            file.sync()?;
            self.disk().rename(&made, &path)?;
            Ok(file)
        };
        let file = begin().map_err(|source| OpenError::Io { path: path.clone(), source })?;
        self.sync_dirs()?;
        index.segments.retain(|segment| segment.first != first);
        let marks = vec![(Position(first), end)];
        index.segments.push(Segment { path, version, first, end, marks, newest: None });
        Ok(Active { file, end, empty: true, version })
    }

    /// Both slots, so that none names a batch that is lost.
    fn write_head(&self, batch: u64, chain: &Chain) -> Result<Box<dyn DiskFile>, OpenError> {
        let path = files::head_file(self.data);
        let made = path.with_extension("new");
        let write = || -> io::Result<Box<dyn DiskFile>> {
            let mut file = self.disk().create(&made)?;
            let (slot, _) = files::head_slot(batch, chain);
            file.write_at(&slot, 0)?;
            file.write_at(&slot, HEAD_SLOT_BYTES as u64)?;
            file.sync()?;
            self.disk().rename(&made, &path)?;
            Ok(file)
        };
        let file = write().map_err(|source| OpenError::Io { path: path.clone(), source })?;
        self.sync_dirs()?;
        Ok(file)
    }

    fn sync_dirs(&self) -> Result<(), OpenError> {
        let dir = files::log_dir(self.data);
        let sync = self.disk().sync_dir(&dir).and_then(|()| self.disk().sync_dir(self.data));
        sync.map_err(|source| OpenError::Io { path: dir, source })
    }

    fn disk(&self) -> &Arc<dyn Disk> {
        &self.options.disk
    }
}

fn read_range(path: &Path, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    file.seek(io::SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(to - from).read_to_end(&mut bytes)?;
    Ok(bytes)
}
