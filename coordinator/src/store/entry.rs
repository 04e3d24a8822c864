//! Entries carry their own checksum, and the store a census over all of them: sled alone would lose a tail, or give an
//! old page, without a word.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::{Batch, Tree};

use super::{StoreError, key};
use crate::journal::Position;

/// Where the store stands, and what must be in it: written in the same batch as the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// The shape of keys and rows; a store of another version is rebuilt.
    pub(super) v: u32,
    /// Everything up to this batch of the log is in the store.
    pub(super) position: Position,
    /// How many entries there are.
    entries: u64,
    /// Sum of their checksums.
    sum: u64,
}

pub(super) const STORE_VERSION: u32 = 4;

impl Meta {
    fn count(&mut self, entry: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(u64::from(checksum_of(entry)));
    }

    fn uncount(&mut self, entry: &[u8]) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(checksum_of(entry)));
    }
}

/// Changes that are not in the tree yet; a later one sees the earlier ones.
pub(super) struct Staged<'a> {
    tree: &'a Tree,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Staged<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree, changes: BTreeMap::new() }
    }

    pub(super) fn put(&mut self, key: Vec<u8>, payload: &[u8]) {
        let entry = seal(&key, payload);
        self.changes.insert(key, Some(entry));
    }

    pub(super) fn put_json(&mut self, key: Vec<u8>, row: &impl Serialize) -> Result<(), StoreError> {
        let payload =
            serde_json::to_vec(row).map_err(|e| StoreError::Damaged(format!("a row can't be written: {e}")))?;
        self.put(key, &payload);
        Ok(())
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// What is in the tree, before the changes.
    pub(super) fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        get(self.tree, key)
    }

    /// Everything in the tree whose key begins so.
    pub(super) fn remove_all(&mut self, prefix: &[u8]) -> Result<(), StoreError> {
        for key in self.tree.scan_prefix(prefix).keys() {
            self.remove(key?.to_vec());
        }
        Ok(())
    }

    /// Writes everything, and the position with it, or nothing.
    pub(super) fn commit(self, meta: &Meta, position: Position) -> Result<Meta, StoreError> {
        let mut meta = Meta { v: STORE_VERSION, position, ..meta.clone() };
        let mut batch = Batch::default();
        for (key, change) in self.changes {
            if let Some(old) = self.tree.get(&key)? {
                meta.uncount(&old);
            }
            match change {
                Some(entry) => {
                    meta.count(&entry);
                    batch.insert(key, entry);
                }
                None => batch.remove(key),
            }
        }
        let payload = serde_json::to_vec(&meta).expect("numbers are always JSON");
        batch.insert(key::META, seal(key::META, &payload));
        self.tree.apply_batch(batch)?;
        Ok(meta)
    }
}

/// Reads every entry and compares the census.
pub(super) fn read_through(tree: &Tree) -> Result<Meta, StoreError> {
    let meta: Meta = match tree.get(key::META)? {
        Some(entry) => parse(key::META, &entry)?,
        None if tree.is_empty() => return Ok(Meta { v: STORE_VERSION, ..Meta::default() }),
        None => return Err(StoreError::Damaged("its position is missing".into())),
    };
    if meta.v != STORE_VERSION {
        return Err(StoreError::Damaged(format!("it is of version {}, not {STORE_VERSION}", meta.v)));
    }
    let mut found = Meta { v: meta.v, position: meta.position, ..Meta::default() };
    for entry in tree {
        let (key, entry) = entry?;
        payload(&key, &entry)?;
        if key != key::META {
            found.count(&entry);
        }
    }
    if found != meta {
        let (is, was) = (found.entries, meta.entries);
        return Err(StoreError::Damaged(format!("{is} entries are not the {was} that were written")));
    }
    Ok(meta)
}

pub(super) fn get<T: DeserializeOwned>(tree: &Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
    match tree.get(key)? {
        Some(entry) => parse(key, &entry).map(Some),
        None => Ok(None),
    }
}

pub(super) fn parse<T: DeserializeOwned>(key: &[u8], entry: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(payload(key, entry)?)
        .map_err(|e| StoreError::Damaged(format!("entry {} is no row of ours: {e}", key.escape_ascii())))
}

pub(super) fn payload<'e>(key: &[u8], entry: &'e [u8]) -> Result<&'e [u8], StoreError> {
    match entry.split_first_chunk::<4>() {
        Some((sum, payload)) if u32::from_le_bytes(*sum) == checksum(key, payload) => Ok(payload),
        Some(_) | None => Err(StoreError::Damaged(format!("entry {} has a wrong checksum", key.escape_ascii()))),
    }
}

fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(4 + payload.len());
    entry.extend_from_slice(&checksum(key, payload).to_le_bytes());
    entry.extend_from_slice(payload);
    entry
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), payload)
}

fn checksum_of(entry: &[u8]) -> u32 {
    entry.first_chunk().map_or(0, |sum| u32::from_le_bytes(*sum))
}
