//! Lists, page by page. A page token is the key of the last item, so pages stay right while entries come and go.

use std::ops::Bound;

use muster_engine::ids::{Digest, Namespace, RunId};
use serde::de::DeserializeOwned;
use sled::{IVec, Tree};

use super::{AgentRow, MilestoneRow, PlaybookRow, RunRow, Store, StoreError, entry, key};
use crate::{control::Page, journal::record::hex};

impl Store {
    /// Runs of a namespace that are wanted, the newest first.
    pub fn list_runs(
        &self,
        namespace: &Namespace,
        wanted: impl Fn(&RunRow) -> bool,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<RunRow>, StoreError> {
        let prefix = key::runs_of(namespace);
        self.page(&prefix, Order::Forward, page_size, page_token, |tree, key, _| {
            let damaged = || StoreError::Damaged(format!("{} names no run", key.escape_ascii()));
            let id = key::run_of_list_key(namespace, key).ok_or_else(damaged)?;
            let row: RunRow = entry::get(tree, &key::run(&id))?.ok_or_else(damaged)?;
            Ok(wanted(&row).then_some(row))
        })
    }

    /// Milestones of one run or of all: the newest run first, its phases in order.
    pub fn list_milestones(
        &self,
        namespace: &Namespace,
        run: Option<&RunId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<MilestoneRow>, StoreError> {
        let prefix = run.map_or_else(|| key::milestones(namespace), |run| key::milestones_of(namespace, run));
        self.page(&prefix, Order::Backward, page_size, page_token, |_, key, entry| parsed(key, entry))
    }

    /// The newest revision of each playbook, by name.
    pub fn list_playbooks(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<PlaybookRow>, StoreError> {
        let prefix = key::newest_playbooks(namespace);
        self.page(&prefix, Order::Forward, page_size, page_token, |tree, key, entry| {
            let revision: Digest = entry::parse(key, entry)?;
            let name = String::from_utf8_lossy(&key[prefix.len()..]);
            entry::get(tree, &key::playbook(namespace, &name, &revision))
        })
    }

    /// Agents as they were last journalled, by name.
    pub fn list_agents(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<AgentRow>, StoreError> {
        let prefix = key::agents(namespace);
        self.page(&prefix, Order::Forward, page_size, page_token, |_, key, entry| parsed(key, entry))
    }

    fn page<T>(
        &self,
        prefix: &[u8],
        order: Order,
        page_size: usize,
        page_token: &str,
        row_of: impl Fn(&Tree, &[u8], &[u8]) -> Result<Option<T>, StoreError>,
    ) -> Result<Page<T>, StoreError> {
        let seen = key_of_token(prefix, page_token)?;
        let page_size = page_size.max(1);
        self.with(|tree| {
            let mut page = Page { items: Vec::new(), next_page_token: String::new() };
            let mut last = None;
            for entry in order.walk(tree, prefix, seen) {
                let (key, entry) = entry?;
                let Some(row) = row_of(tree, &key, &entry)? else { continue };
                if page.items.len() == page_size {
                    page.next_page_token = last.map(|key: IVec| hex(&key)).unwrap_or_default();
                    break;
                }
                page.items.push(row);
                last = Some(key);
            }
            Ok(page)
        })
    }
}

#[derive(Clone, Copy)]
enum Order {
    Forward,
    Backward,
}

impl Order {
    /// The entries under a prefix, behind the one that was seen last.
    fn walk(
        self,
        tree: &Tree,
        prefix: &[u8],
        seen: Option<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = sled::Result<(IVec, IVec)>>> {
        let start = Bound::Included(prefix.to_vec());
        let mut end = prefix.to_vec();
        // Every prefix ends in the separator 0; nothing of another prefix lies between it and 1.
        if let Some(last) = end.last_mut() {
            *last = 1;
        }
        let end = Bound::Excluded(end);
        match self {
            Self::Forward => Box::new(tree.range::<Vec<u8>, _>((seen.map_or(start, Bound::Excluded), end))),
            Self::Backward => Box::new(tree.range::<Vec<u8>, _>((start, seen.map_or(end, Bound::Excluded))).rev()),
        }
    }
}

fn parsed<T: DeserializeOwned>(key: &[u8], entry: &[u8]) -> Result<Option<T>, StoreError> {
    entry::parse(key, entry).map(Some)
}

fn key_of_token(prefix: &[u8], token: &str) -> Result<Option<Vec<u8>>, StoreError> {
    if token.is_empty() {
        return Ok(None);
    }
    let digits = token.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        (pair.len() == 2 && !pair.starts_with('+')).then(|| u8::from_str_radix(pair, 16).ok())?
    });
    let key: Option<Vec<u8>> = digits.collect();
    key.filter(|key| key.starts_with(prefix)).map(Some).ok_or(StoreError::BadPageToken)
}
