//! Playbooks and plans: what is submitted is journalled; what is planned again with the same inputs is planned once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_bus::message::{ActionOffer, Scope};
use muster_engine::{
    ids::{Digest, Namespace},
    plan::{ActionFacts, ActionScope, Catalogue, CatalogueEntry, Plan, resolve},
    playbook::{self, Finding, Level, schema::Playbook},
};
use serde_json::{Value, value::to_raw_value};

use super::{
    Shared, errors,
    recovery::{self, PlaybookEvent},
    requests::Request,
};
use crate::{
    control::{Caller, ControlError, Page, Planned, PlaybookRevision, PlaybookSource},
    journal::{AppendError, NewRecord, StreamAppend},
    store::PlaybookRow,
};

/// Entries of each cache; a full one is emptied.
const CACHED: usize = 256;

/// What was read or worked out lately. All of it can be worked out again.
#[derive(Default)]
pub(super) struct Planning {
    newest: Mutex<HashMap<(Namespace, String), Arc<PlaybookRow>>>,
    catalogues: Mutex<HashMap<Namespace, (u64, Arc<Catalogue>)>>,
    plans: Mutex<HashMap<PlanKey, (Value, Planned)>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PlanKey {
    namespace: Namespace,
    revision: Digest,
    inputs: String,
    generation: u64,
}

fn cached<K: std::hash::Hash + Eq, V>(cache: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= CACHED {
        cache.clear();
    }
    cache.insert(key, value);
}

impl Shared {
    /// All findings of a document.
    pub(super) fn lint(&self, namespace: &Namespace, yaml: &str) -> Vec<Finding> {
        playbook::read(yaml.as_bytes(), &self.catalogue(namespace).1).findings
    }

    /// Store a revision; the same document again is the same revision.
    pub(super) async fn submit(
        &self,
        namespace: &Namespace,
        yaml: &str,
        validate_only: bool,
        caller: &Caller,
    ) -> Result<PlaybookRevision, ControlError> {
        let (playbook, warnings) = self.read(namespace, yaml)?;
        let name = playbook.metadata.name;
        let at = self.clock.now();
        let row = PlaybookRow {
            namespace: namespace.clone(),
            name: name.clone(),
            revision: playbook::revision(yaml.as_bytes()),
            yaml: yaml.into(),
            owner: playbook.metadata.owner,
            submitted_at: at,
            submitted_by: caller.actor.clone(),
            warnings: Value::Null,
        };
        let request =
            Request::new(namespace, caller, || format!("submit_playbook {namespace} {name} {}", row.revision));
        if !validate_only && self.was_done(&request)? {
            let known = self.known(namespace, &name, Some(&row.revision)).await?;
            return Ok(revision_of(known.as_deref().unwrap_or(&row), warnings));
        }
        if let Some(known) = self.known(namespace, &name, Some(&row.revision)).await? {
            let is_newest = self.known(namespace, &name, None).await?.is_some_and(|n| n.revision == known.revision);
            if is_newest && !validate_only {
                self.take_id(&request, at).await?;
            }
            if is_newest || validate_only {
                return Ok(revision_of(&known, warnings));
            }
        }
        if validate_only {
            return Ok(revision_of(&row, warnings));
        }
        let noting = self.projector.begin();
        if !self.append_playbook(&row, &request).await? {
            return Ok(revision_of(&row, warnings));
        }
        let row = Arc::new(row);
        self.projector.submitted((*row).clone());
        cached(&self.planning.newest, (namespace.clone(), name), Arc::clone(&row));
        drop(noting);
        Ok(revision_of(&row, warnings))
    }

    /// False: the same request was appended meanwhile.
    async fn append_playbook(&self, row: &PlaybookRow, request: &Request) -> Result<bool, ControlError> {
        let event = PlaybookEvent::PlaybookSubmitted {
            revision: row.revision.clone(),
            owner: row.owner.clone(),
            yaml: Arc::clone(&row.yaml),
        };
        let event = to_raw_value(&event).map_err(|e| errors::unwritable(&e))?;
        let stream = recovery::playbook_stream(&row.namespace, &row.name);
        let mut expected_seq = 0;
        loop {
            let record = NewRecord { at: row.submitted_at, by: row.submitted_by.clone(), event: event.clone() };
            let append = StreamAppend { stream: stream.clone(), expected_seq, records: vec![record] };
            let with_id = [append].into_iter().chain(request.append(row.submitted_at, None)).collect();
            match self.append(with_id).await {
                Ok(_) => return Ok(true),
                Err(AppendError::Conflict { stream, .. }) if request.is_stream(&stream) => {
                    return self.was_done(request).map(|_| false);
                }
                Err(AppendError::Conflict { actual, .. }) => expected_seq = actual,
                Err(e) => return Err(errors::append_failed(&e)),
            }
        }
    }

    /// One revision; the newest when none is named.
    pub(super) async fn playbook(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<PlaybookRevision, ControlError> {
        let row = self.known(namespace, name, revision).await?.ok_or_else(|| errors::playbook_not_found(name))?;
        let warnings = self.lint(namespace, &row.yaml);
        Ok(revision_of(&row, warnings))
    }

    /// The newest revision of each, by name.
    pub(super) async fn list_playbooks(
        &self,
        namespace: &Namespace,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<PlaybookRevision>, ControlError> {
        let (of, token) = (namespace.clone(), page_token.to_owned());
        let page = self.look_up(move |store| store.list_playbooks(&of, page_size, &token)).await?;
        let items = page.items.iter().map(|row| revision_of(row, Vec::new())).collect();
        Ok(Page { items, next_page_token: page.next_page_token })
    }

    /// Resolve a playbook and inputs to a plan.
    pub(super) async fn plan(
        &self,
        namespace: &Namespace,
        source: &PlaybookSource,
        inputs: Value,
    ) -> Result<Planned, ControlError> {
        let (yaml, revision): (Arc<str>, Digest) = match source {
            PlaybookSource::Stored { name, revision } => {
                let row = self.known(namespace, name, revision.as_ref()).await?;
                let row = row.ok_or_else(|| errors::playbook_not_found(name))?;
                (Arc::clone(&row.yaml), row.revision.clone())
            }
            PlaybookSource::Inline(yaml) => (yaml.as_str().into(), playbook::revision(yaml.as_bytes())),
        };
        let (generation, catalogue) = self.catalogue(namespace);
        let key = PlanKey { namespace: namespace.clone(), revision, inputs: inputs.to_string(), generation };
        let known = self.planning.plans.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((_, planned)) = known.filter(|(with, _)| *with == inputs) {
            return Ok(planned);
        }
        let (document, warnings) = self.read(namespace, &yaml)?;
        let plan: Plan = resolve(&document, key.revision.clone(), inputs.clone(), &catalogue)
            .map_err(|findings| errors::invalid("PLAN_INVALID", "the playbook can't be planned", findings))?;
        let digest = plan.digest();
        let planned = Planned { plan: Arc::new(plan), digest, warnings };
        cached(&self.planning.plans, key, (inputs, planned.clone()));
        Ok(planned)
    }

    fn read(&self, namespace: &Namespace, yaml: &str) -> Result<(Playbook, Vec<Finding>), ControlError> {
        let reading = playbook::read(yaml.as_bytes(), &self.catalogue(namespace).1);
        let Some(playbook) = reading.playbook else {
            let errors = reading.findings.iter().filter(|f| f.level == Level::Error).count();
            let message = format!("the playbook has {errors} error{}", if errors == 1 { "" } else { "s" });
            return Err(errors::invalid("PLAYBOOK_INVALID", message, reading.findings));
        };
        Ok((playbook, reading.findings))
    }

    async fn known(
        &self,
        namespace: &Namespace,
        name: &str,
        revision: Option<&Digest>,
    ) -> Result<Option<Arc<PlaybookRow>>, ControlError> {
        let key = (namespace.clone(), name.to_owned());
        let newest = self.planning.newest.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(row) = newest.filter(|row| revision.is_none_or(|wanted| *wanted == row.revision)) {
            return Ok(Some(row));
        }
        let (of, called, wanted) = (namespace.clone(), name.to_owned(), revision.cloned());
        let row = match self.look_up(move |store| store.playbook(&of, &called, wanted.as_ref())).await {
            Err(e) if e.code == errors::STORE_UNAVAILABLE => self.journalled(&key, revision).await?,
            other => other?,
        };
        let row = row.map(Arc::new);
        if revision.is_none()
            && let Some(row) = &row
        {
            cached(&self.planning.newest, key, Arc::clone(row));
        }
        Ok(row)
    }

    /// Starts need no store: what it can't say is read from the journal.
    async fn journalled(
        &self,
        (namespace, name): &(Namespace, String),
        revision: Option<&Digest>,
    ) -> Result<Option<PlaybookRow>, ControlError> {
        let (journal, of, called, wanted) =
            (Arc::clone(&self.journal), namespace.clone(), name.clone(), revision.cloned());
        let read = move || recovery::playbook(&*journal, &of, &called, wanted.as_ref());
        let row = tokio::task::spawn_blocking(read).await.map_err(|_| errors::stopping())?;
        row.map_err(|e| errors::read_failed(&e))
    }

    /// The shipped actions as they are shipped, whatever an agent says of them, and what agents of the namespace offer
    /// besides, in the newest version each.
    fn catalogue(&self, namespace: &Namespace) -> (u64, Arc<Catalogue>) {
        let generation = self.registry.generation();
        let known = self.planning.catalogues.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
        if let Some(known) = known.filter(|(of, _)| *of == generation) {
            return known;
        }
        let mut catalogue = Catalogue::new();
        for offer in self.registry.offers(namespace) {
            let newer = catalogue
                .get(offer.name.as_str())
                .is_none_or(|known| version(&known.version) < version(&offer.version));
            if newer {
                catalogue.insert(offer.name.as_str().into(), entry_of(&offer));
            }
        }
        catalogue.extend(self.shipped.iter().map(|s| (s.name.as_str().into(), entry_of(s))));
        let known = (generation, Arc::new(catalogue));
        cached(&self.planning.catalogues, namespace.clone(), known.clone());
        known
    }
}

fn version(text: &str) -> Vec<u64> {
    text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect()
}

fn entry_of(offer: &ActionOffer) -> CatalogueEntry {
    CatalogueEntry {
        version: offer.version.clone(),
        facts: ActionFacts {
            idempotent: offer.idempotent,
            undoable: offer.undoable,
            checkable: offer.checkable,
            concurrent_safe: offer.concurrent_safe,
            read_only: offer.read_only,
            scope: match offer.scope {
                Scope::Host => ActionScope::Host,
                Scope::Target => ActionScope::Target,
            },
        },
        params_schema: offer.params_schema.clone(),
        output_schema: offer.output_schema.clone(),
    }
}

fn revision_of(row: &PlaybookRow, warnings: Vec<Finding>) -> PlaybookRevision {
    PlaybookRevision {
        namespace: row.namespace.clone(),
        name: row.name.clone(),
        revision: row.revision.clone(),
        yaml: Arc::clone(&row.yaml),
        owner: row.owner.clone(),
        submitted_at: row.submitted_at,
        submitted_by: row.submitted_by.clone(),
        warnings,
    }
}
