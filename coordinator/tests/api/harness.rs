//! A served door, and clients of it.

use std::{collections::BTreeMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use muster_coordinator::{
    api::{
        Limits, ServeError, ServerConfig, listen,
        token::{NewToken, Role, Tokens},
    },
    journal::{Journal, memory::MemoryJournal},
};
use muster_engine::{
    ids::{ActionName, Actor, Digest, PhaseId, StepId},
    plan::{
        ActionFacts, ActionScope, AgentSelector, OnCancel, OnFailure, OnLost, PinnedAction, Plan, PlanFacts,
        PlannedPhase, PlannedStep, PlannedUndo, Priority, RetryPolicy,
    },
};
use muster_proto::v1::{
    self as pb, agent_service_client::AgentServiceClient, coordinator_service_client::CoordinatorServiceClient,
    milestone_service_client::MilestoneServiceClient, playbook_service_client::PlaybookServiceClient,
    run_service_client::RunServiceClient, token_service_client::TokenServiceClient,
};
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::fake::Fake;

pub(crate) const NAMESPACE: &str = "namespaces/default";
const BOUND: Duration = Duration::from_secs(20);

/// Wait for something that has to happen, with a bound.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what} has not happened within {BOUND:?}"))
}

/// A server with a coordinator in memory behind it.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) fake: Arc<Fake>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
    pub(crate) channel: Channel,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.task.abort();
    }
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig { drain: Duration::from_secs(5), ..ServerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0))) }
}

pub(crate) async fn served() -> Served {
    served_with(config()).await
}

pub(crate) async fn served_within(limits: Limits) -> Served {
    served_with(ServerConfig { limits, ..config() }).await
}

pub(crate) async fn served_with(config: ServerConfig) -> Served {
    serve(config, None).await
}

pub(crate) async fn served_measured(config: ServerConfig, metrics: PrometheusHandle) -> Served {
    serve(config, Some(metrics)).await
}

async fn serve(config: ServerConfig, handle: Option<PrometheusHandle>) -> Served {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let tokens = Arc::new(Tokens::load(&journal).unwrap());
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let listening = listen(config).await.unwrap();
    let (address, metrics) = (listening.address(), listening.metrics_address());
    let serving = listening.serve(Arc::clone(&fake) as _, Arc::clone(&tokens), handle, shutdown.clone());
    let task = tokio::spawn(serving);
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    Served { address, metrics, fake, tokens, shutdown, task, channel }
}

/// Puts a token into every request.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub(crate) type Authed = InterceptedService<Channel, Bearer>;

impl Served {
    pub(crate) async fn token(&self, role: Role) -> String {
        let actor = match role {
            Role::Agent => Actor::from("service/infra-1"),
            Role::Viewer | Role::Operator | Role::Admin => Actor::from("person/dba-1"),
        };
        let new = NewToken { actor, role, ttl: None };
        let (_, secret) = self.tokens.create(&Actor::from("muster"), new).await.unwrap();
        secret.expose_secret().to_owned()
    }

    pub(crate) async fn bearer(&self, role: Role) -> Authed {
        let token = self.token(role).await;
        self.with_token(&token)
    }

    pub(crate) fn with_token(&self, token: &str) -> Authed {
        let bearer = Bearer(Some(format!("Bearer {token}").parse().unwrap()));
        InterceptedService::new(self.channel.clone(), bearer)
    }

    pub(crate) fn without_token(&self) -> Authed {
        InterceptedService::new(self.channel.clone(), Bearer(None))
    }

    pub(crate) async fn playbooks(&self) -> PlaybookServiceClient<Authed> {
        PlaybookServiceClient::new(self.bearer(Role::Operator).await)
    }

    pub(crate) async fn runs(&self) -> RunServiceClient<Authed> {
        RunServiceClient::new(self.bearer(Role::Operator).await)
    }

    pub(crate) async fn agents(&self) -> AgentServiceClient<Authed> {
        AgentServiceClient::new(self.bearer(Role::Operator).await)
    }

    pub(crate) async fn milestones(&self) -> MilestoneServiceClient<Authed> {
        MilestoneServiceClient::new(self.bearer(Role::Viewer).await)
    }

    pub(crate) async fn token_service(&self) -> TokenServiceClient<Authed> {
        TokenServiceClient::new(self.bearer(Role::Admin).await)
    }

    pub(crate) async fn coordinator(&self) -> CoordinatorServiceClient<Authed> {
        CoordinatorServiceClient::new(self.bearer(Role::Admin).await)
    }

    /// A started run of these lines.
    pub(crate) async fn started(&self, yaml: &str) -> pb::Run {
        self.runs().await.start_run(start(yaml)).await.unwrap().into_inner()
    }
}

pub(crate) fn start(yaml: &str) -> pb::StartRunRequest {
    pb::StartRunRequest {
        parent: NAMESPACE.to_owned(),
        source: Some(pb::start_run_request::Source::Yaml(yaml.to_owned())),
        note: "for a test".to_owned(),
        ..pb::StartRunRequest::default()
    }
}

pub(crate) fn get(name: &str) -> pb::GetRunRequest {
    pb::GetRunRequest { name: name.to_owned() }
}

/// The details of an error; fails where there is no `ErrorInfo` of ours with a hint.
pub(crate) fn details(status: &Status) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "muster.dev", "{status:?}");
    assert!(info.metadata.get("hint").is_some_and(|h| !h.is_empty()), "no hint in {status:?}");
    details
}

pub(crate) fn reason(status: &Status) -> String {
    details(status).error_info().unwrap().reason.clone()
}

/// Steps one after another in one phase with a milestone; with true, a failure asks a person.
pub(crate) fn plan_of(name: &str, revision: &Digest, steps: &[(&str, bool)]) -> Plan {
    Plan {
        playbook: name.to_owned(),
        revision: revision.clone(),
        owner: "devops".to_owned(),
        inputs: json!({}),
        secrets: Vec::new(),
        on_cancel: OnCancel::Keep,
        phases: vec![PlannedPhase {
            id: PhaseId::from("critical"),
            name: "Critical".to_owned(),
            priority: Priority::Critical,
            deadline_ms: Some(1_800_000),
            milestone: Some("Ready".to_owned()),
            when: None,
            steps: (0..steps.len()).collect(),
            gate: None,
        }],
        steps: steps.iter().enumerate().map(|(index, (id, ask))| step_of(index, id, *ask)).collect(),
        outputs: BTreeMap::new(),
        facts: PlanFacts::default(),
    }
}

fn step_of(index: usize, id: &str, ask: bool) -> PlannedStep {
    let facts = ActionFacts {
        idempotent: true,
        undoable: false,
        checkable: false,
        concurrent_safe: true,
        read_only: false,
        scope: ActionScope::Target,
    };
    PlannedStep {
        id: StepId::from(id),
        name: format!("Step {id}"),
        phase: 0,
        needs: index.checked_sub(1).into_iter().collect(),
        when: None,
        agent: AgentSelector { role: "infra".to_owned(), ..AgentSelector::default() },
        action: PinnedAction { name: ActionName::from("test.noop"), version: "1.0.0".to_owned(), facts },
        with: json!({"n": index, "deep": {"list": [1, 2.5, "x", null]}}),
        timeout_ms: 60_000,
        queue_timeout_ms: None,
        status_ms: 180_000,
        retry: RetryPolicy { max_attempts: 1, initial_ms: 100, max_ms: 1_000, factor: 2.0, max_elapsed_ms: None },
        on_lost: OnLost::Ask,
        on_failure: if ask { OnFailure::Pause } else { OnFailure::Undo },
        critical: true,
        always: false,
        wait: None,
        verify: None,
        undo: PlannedUndo::Irreversible,
    }
}
