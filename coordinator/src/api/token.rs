//! Tokens: who may call. Journalled in streams `principal/{id}` as hashes, held in a table in memory.
//!
//! A token is `muster_<id>_<secret>`: 12 hex digits that name it, 64 that nobody can guess. Only sha256 of the whole is
//! kept. A token that was created or revoked is so on disk before anybody is told.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, RwLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use muster_engine::ids::Actor;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use super::lease::Lease;
use crate::journal::{AppendError, Journal, NewRecord, Position, ReadError, Record, StreamAppend, StreamId};

const STREAM_PREFIX: &str = "principal/";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// What a token may do. Each role up to admin may do what the one before it may; agent stands beside the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See everything but tokens.
    Viewer,
    /// Submit, start, cancel, answer, drain.
    Operator,
    /// Make and revoke tokens.
    Admin,
    /// See agents, and drain the one of the token's own name.
    Agent,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Agent => "agent",
        })
    }
}

/// What happened to a token, as it is journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PrincipalEvent {
    /// It can be used from now on.
    TokenCreated {
        /// Names the token; the stream is `principal/{id}`.
        id: String,
        /// Whom it names.
        actor: Actor,
        /// What it may do.
        role: Role,
        /// sha256 of the token, in hex.
        hash: String,
        /// It is refused from then on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// It is refused from now on.
    TokenRevoked {
        /// Names the token.
        id: String,
    },
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Names it.
    pub id: String,
    /// Whom it names.
    pub actor: Actor,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: Actor,
    /// It is refused from then on.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What a new token shall be.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// `person/{id}` or `service/{id}`, the id `[a-z0-9][a-z0-9_.@-]{0,62}`.
    pub actor: Actor,
    /// What it may do.
    pub role: Role,
    /// It is refused after this time.
    pub ttl: Option<Duration>,
}

/// Who calls, once the token was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whom the token names.
    pub actor: Actor,
    /// What it may do.
    pub role: Role,
}

/// Why a token was not taken. Says nothing of what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is none of ours, or its secret is wrong: which of the two is not said.
    #[error("the token is not one of this coordinator's")]
    Invalid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
}

/// Why something was not done to a token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The principal can't be named so.
    #[error(
        "`{0}` names nobody: a principal is `person/<id>` or `service/<id>`, the id of a-z, 0-9, `_`, `.`, `@` and `-`"
    )]
    BadActor(String),
    /// The time to live is out of range.
    #[error("a token can live for 1 second to 10 years")]
    BadTtl,
    /// There is no such token.
    #[error("there is no token {0}")]
    NotFound(String),
    /// The system gave no random bytes.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// The journal did not take it, or can't say.
    #[error("the token is not known to be in the journal")]
    Append(#[source] AppendError),
    /// The journal's answer did not come.
    #[error("the journal has stopped")]
    JournalStopped,
    /// The journal can't be read.
    #[error("the journal can't be read")]
    Read(#[source] ReadError),
    /// A record is not what it should be.
    #[error("record {seq} of {stream} is no event of a token")]
    BadRecord {
        /// Which stream.
        stream: String,
        /// Which record of it.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file could not be written or read.
    #[error("can't use {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

struct Entry {
    info: TokenInfo,
    hash: [u8; 32],
    seq: u64,
    /// Who holds something open with it is told.
    revoked: CancellationToken,
}

/// All tokens of a data directory.
pub struct Tokens {
    journal: Arc<dyn Journal>,
    table: RwLock<BTreeMap<String, Entry>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// An empty table, to be filled with [`Self::replay`] by whoever reads the journal anyway.
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, table: RwLock::default() }
    }

    /// The table of a journal, which is read through for it.
    ///
    /// # Errors
    /// A damaged stream of a token; damage elsewhere is passed over.
    pub fn load(journal: &Arc<dyn Journal>) -> Result<Self, TokenError> {
        let tokens = Self::new(Arc::clone(journal));
        let damaged = journal.damaged();
        for item in journal.read(Position(0)) {
            match item {
                Ok((_, record)) => {
                    tokens.replay(&record)?;
                }
                Err(ReadError::Damaged { place, what, streams })
                    if !streams.is_empty() && !damaged.iter().any(|s| s.0.starts_with(STREAM_PREFIX)) =>
                {
                    tracing::warn!(place, what, "passed over a damaged place of the journal");
                    // One that was there is carried by a later place.
                    for stream in streams.iter().filter(|s| s.0.starts_with(STREAM_PREFIX)) {
                        for record in journal.read_stream(stream, 0, usize::MAX).map_err(TokenError::Read)? {
                            tokens.replay(&record)?;
                        }
                    }
                }
                Err(error) => return Err(TokenError::Read(error)),
            }
        }
        Ok(tokens)
    }

    /// Take over a record of the journal; those of other streams are left alone. True: it was one of a token.
    pub fn replay(&self, record: &Record) -> Result<bool, TokenError> {
        if !record.stream.0.starts_with(STREAM_PREFIX) {
            return Ok(false);
        }
        let event = serde_json::from_str(record.event.get()).map_err(|source| TokenError::BadRecord {
            stream: record.stream.0.to_string(),
            seq: record.seq,
            source,
        })?;
        self.apply(record.at, &record.by, record.seq, event);
        Ok(true)
    }

    /// Make a token. The secret is in the answer alone.
    pub async fn create(&self, by: &Actor, new: NewToken) -> Result<(TokenInfo, SecretString), TokenError> {
        let secret = generate()?;
        let info = self.adopt(by, new, &secret).await?;
        Ok((info, secret))
    }

    /// Refuse a token from now on. Again is no error.
    pub async fn revoke(&self, by: &Actor, id: &str) -> Result<TokenInfo, TokenError> {
        let (info, seq) = self.get(id).ok_or_else(|| TokenError::NotFound(id.to_owned()))?;
        if info.revoked_at.is_some() {
            return Ok(info);
        }
        let event = PrincipalEvent::TokenRevoked { id: id.to_owned() };
        match self.append(by, id, seq, event).await {
            // An earlier revocation whose answer was lost.
            Err(TokenError::Append(AppendError::Conflict { stream, .. })) => {
                for record in self.journal.read_stream(&stream, seq, 10).map_err(TokenError::Read)? {
                    self.replay(&record)?;
                }
            }
            Err(other) => return Err(other),
            Ok(()) => {}
        }
        self.get(id).map(|(info, _)| info).ok_or_else(|| TokenError::NotFound(id.to_owned()))
    }

    /// All, by id, from behind one on.
    pub fn list(&self, after: &str, limit: usize) -> Vec<TokenInfo> {
        let table = self.table.read().expect("no holder of this lock panics");
        table.values().map(|e| &e.info).filter(|i| i.id.as_str() > after).take(limit).cloned().collect()
    }

    /// True once an admin's token was made, whatever became of it.
    pub fn has_admin(&self) -> bool {
        let table = self.table.read().expect("no holder of this lock panics");
        table.values().any(|e| e.info.role == Role::Admin)
    }

    /// Who calls. Takes the same time for a wrong secret and for an id that nobody knows.
    pub fn authenticate(&self, token: &str, now: Timestamp) -> Result<Principal, Denied> {
        self.admit(token, now).map(|(principal, _)| principal)
    }

    /// As [`Self::authenticate`], and how long that holds.
    pub(super) fn admit(&self, token: &str, now: Timestamp) -> Result<(Principal, Lease), Denied> {
        let sent = hash(token);
        let table = self.table.read().expect("no holder of this lock panics");
        let entry = token_id(token).and_then(|id| table.get(id));
        let known = entry.map_or([0; 32], |e| e.hash);
        let same = bool::from(sent.ct_eq(&known));
        let Some(entry) = entry.filter(|_| same) else { return Err(Denied::Invalid) };
        if entry.info.revoked_at.is_some() {
            return Err(Denied::Revoked);
        }
        if entry.info.expires_at.is_some_and(|at| at <= now) {
            return Err(Denied::Expired);
        }
        let lease = Lease { revoked: entry.revoked.clone(), expires_at: entry.info.expires_at };
        Ok((Principal { actor: entry.info.actor.clone(), role: entry.info.role }, lease))
    }

    /// Journal a secret that was made by [`generate`].
    pub(super) async fn adopt(
        &self,
        by: &Actor,
        new: NewToken,
        secret: &SecretString,
    ) -> Result<TokenInfo, TokenError> {
        check_actor(&new.actor)?;
        let expires_at = new.ttl.map(expiry).transpose()?;
        let id = token_id(secret.expose_secret()).ok_or(TokenError::NoRandomness)?.to_owned();
        let event = PrincipalEvent::TokenCreated {
            id: id.clone(),
            actor: new.actor,
            role: new.role,
            hash: to_hex(&hash(secret.expose_secret())),
            expires_at,
        };
        self.append(by, &id, 0, event).await?;
        self.get(&id).map(|(info, _)| info).ok_or(TokenError::NotFound(id))
    }

    /// Journal, then apply.
    async fn append(&self, by: &Actor, id: &str, seq: u64, event: PrincipalEvent) -> Result<(), TokenError> {
        let at = Timestamp::now();
        let stream = StreamId(format!("{STREAM_PREFIX}{id}").into());
        let line = serde_json::value::to_raw_value(&event).expect("strings and times always serialise");
        let records = vec![NewRecord { at, by: by.clone(), event: line }];
        let append = StreamAppend { stream, expected_seq: seq, records };
        let answer = self.journal.append(vec![append]).await.map_err(|_| TokenError::JournalStopped)?;
        answer.map_err(TokenError::Append)?;
        self.apply(at, by, seq + 1, event);
        Ok(())
    }

    fn apply(&self, at: Timestamp, by: &Actor, seq: u64, event: PrincipalEvent) {
        let mut table = self.table.write().expect("no holder of this lock panics");
        match event {
            PrincipalEvent::TokenCreated { id, actor, role, hash, expires_at } => {
                let info = TokenInfo {
                    id: id.clone(),
                    actor,
                    role,
                    created_at: at,
                    created_by: by.clone(),
                    expires_at,
                    revoked_at: None,
                };
                // A hash that can't be read matches nothing, since sha256 never gives zeros.
                let hash = from_hex(&hash).unwrap_or([0; 32]);
                table.insert(id, Entry { info, hash, seq, revoked: CancellationToken::new() });
            }
            PrincipalEvent::TokenRevoked { id } => {
                if let Some(entry) = table.get_mut(&id) {
                    entry.info.revoked_at.get_or_insert(at);
                    entry.seq = seq;
                    entry.revoked.cancel();
                }
            }
        }
    }

    fn get(&self, id: &str) -> Option<(TokenInfo, u64)> {
        let table = self.table.read().expect("no holder of this lock panics");
        table.get(id).map(|e| (e.info.clone(), e.seq))
    }
}

/// A new secret, known to nobody.
pub(super) fn generate() -> Result<SecretString, TokenError> {
    let mut bytes = [0; ID_BYTES + SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| TokenError::NoRandomness)?;
    let (id, secret) = bytes.split_at(ID_BYTES);
    Ok(SecretString::from(format!("muster_{}_{}", to_hex(id), to_hex(secret))))
}

/// The id in a token of the right form.
pub(super) fn token_id(token: &str) -> Option<&str> {
    let (id, secret) = token.strip_prefix("muster_")?.split_once('_')?;
    let is_hex = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES && is_hex(id) && is_hex(secret)).then_some(id)
}

fn check_actor(actor: &Actor) -> Result<(), TokenError> {
    let id = actor.as_str().strip_prefix("person/").or_else(|| actor.as_str().strip_prefix("service/"));
    let ok = id.is_some_and(|id| {
        (1..=63).contains(&id.len())
            && id.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'@' | b'-'))
    });
    if ok { Ok(()) } else { Err(TokenError::BadActor(actor.as_str().chars().take(100).collect())) }
}

fn expiry(ttl: Duration) -> Result<Timestamp, TokenError> {
    const TEN_YEARS: Duration = Duration::from_secs(3_652 * 24 * 3_600);
    if ttl < Duration::from_secs(1) || ttl > TEN_YEARS {
        return Err(TokenError::BadTtl);
    }
    let ttl = SignedDuration::try_from(ttl).map_err(|_| TokenError::BadTtl)?;
    Timestamp::now().checked_add(ttl).map_err(|_| TokenError::BadTtl)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}
