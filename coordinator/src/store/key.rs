//! Keys: one tree, since only a batch within one tree of sled is atomic; the first byte says which kind of entry it is.

use jiff::Timestamp;
use muster_engine::ids::{AgentName, Digest, Namespace, RunId};

/// Position and census.
pub(super) const META: &[u8] = b"!";

/// All runs.
pub(super) const RUNS: &[u8] = b"r";

/// A run by its id.
pub(super) fn run(id: &RunId) -> Vec<u8> {
    join(b'r', &[id.as_str()])
}

/// All runs of a namespace, the newest first.
pub(super) fn runs_of(namespace: &Namespace) -> Vec<u8> {
    let mut key = join(b'i', &[namespace.as_str()]);
    key.push(0);
    key
}

/// A run in the list of its namespace.
pub(super) fn run_by_start(namespace: &Namespace, started_at: Timestamp, id: &RunId) -> Vec<u8> {
    let mut key = runs_of(namespace);
    // Flipping the sign bit orders negative before positive; the complement puts the newest first.
    let ordered = started_at.as_microsecond().cast_unsigned() ^ (1 << 63);
    key.extend_from_slice(&(!ordered).to_be_bytes());
    key.extend_from_slice(id.as_str().as_bytes());
    key
}

/// The run id in a key of [`run_by_start`].
pub(super) fn run_of_list_key(namespace: &Namespace, key: &[u8]) -> Option<RunId> {
    let id = key.get(runs_of(namespace).len() + 8..)?;
    Some(RunId::from(std::str::from_utf8(id).ok()?))
}

/// All runs that have not ended.
pub(super) const OPEN_RUNS: &[u8] = b"o";

/// A run that has not ended.
pub(super) fn open_run(id: &RunId) -> Vec<u8> {
    join(b'o', &[id.as_str()])
}

/// A run's snapshot.
pub(super) fn snapshot(id: &RunId) -> Vec<u8> {
    join(b's', &[id.as_str()])
}

/// All milestones of a namespace.
pub(super) fn milestones(namespace: &Namespace) -> Vec<u8> {
    let mut key = join(b't', &[namespace.as_str()]);
    key.push(0);
    key
}

/// All milestones of a run.
pub(super) fn milestones_of(namespace: &Namespace, run: &RunId) -> Vec<u8> {
    let mut key = join(b't', &[namespace.as_str(), run.as_str()]);
    key.push(0);
    key
}

/// A milestone. The complement of the ordinal: read backwards, the newest run comes first with its phases in order.
pub(super) fn milestone(namespace: &Namespace, run: &RunId, ordinal: u32) -> Vec<u8> {
    let mut key = milestones_of(namespace, run);
    key.extend_from_slice(&(!ordinal).to_be_bytes());
    key
}

/// A revision of a playbook.
pub(super) fn playbook(namespace: &Namespace, name: &str, revision: &Digest) -> Vec<u8> {
    join(b'p', &[namespace.as_str(), name, revision.as_str()])
}

/// The newest revisions of all playbooks of a namespace.
pub(super) fn newest_playbooks(namespace: &Namespace) -> Vec<u8> {
    let mut key = join(b'n', &[namespace.as_str()]);
    key.push(0);
    key
}

/// The newest revision of a playbook.
pub(super) fn newest_playbook(namespace: &Namespace, name: &str) -> Vec<u8> {
    join(b'n', &[namespace.as_str(), name])
}

/// A request.
pub(super) fn request(id: &str) -> Vec<u8> {
    join(b'q', &[id])
}

/// How far the events for outsiders are published.
pub(super) const EVENTS: &[u8] = b"e";

/// All agents.
pub(super) const AGENTS: &[u8] = b"a";

/// All agents of a namespace.
pub(super) fn agents(namespace: &Namespace) -> Vec<u8> {
    let mut key = join(b'a', &[namespace.as_str()]);
    key.push(0);
    key
}

/// An agent.
pub(super) fn agent(namespace: &Namespace, name: &AgentName) -> Vec<u8> {
    join(b'a', &[namespace.as_str(), name.as_str()])
}

fn join(kind: u8, parts: &[&str]) -> Vec<u8> {
    let mut key = vec![kind];
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            key.push(0);
        }
        key.extend_from_slice(part.as_bytes());
    }
    key
}
