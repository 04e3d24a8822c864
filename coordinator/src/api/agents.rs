//! `muster.v1.AgentService`.

use std::{collections::HashMap, sync::Arc};

use muster_engine::ids::AgentName;
use muster_proto::v1::{self as pb, agent_service_server::AgentService};
use tonic::{Request, Response, Status};

use crate::{
    api::{
        auth::{caller, principal},
        convert::{names, value::to_time},
        error::{Reason, from_control, refuse_with},
        token::{Principal, Role},
    },
    control::{AgentView, Control},
};

/// The service.
#[derive(Clone)]
pub(super) struct Agents {
    control: Arc<dyn Control>,
}

impl Agents {
    /// Over what does the work.
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self { control }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        let request = request.get_ref();
        let namespace = names::namespace("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let page = self.control.list_agents(&namespace, size, &request.page_token).await.map_err(from_control)?;
        let count = page.items.len();
        let agents = names::fitting(page.items.into_iter().map(agent));
        let last = agents.last().filter(|_| agents.len() < count).map(|agent| agent.agent_id.clone());
        let response = pb::ListAgentsResponse { next_page_token: last.unwrap_or(page.next_page_token), agents };
        Ok(Response::new(response))
    }

    async fn get_agent(&self, request: Request<pb::GetAgentRequest>) -> Result<Response<pb::Agent>, Status> {
        let (namespace, name) = names::agent("name", &request.get_ref().name)?;
        let view = self.control.agent(&namespace, &name).await.map_err(from_control)?;
        Ok(Response::new(agent(view)))
    }

    async fn drain_agent(&self, request: Request<pb::DrainAgentRequest>) -> Result<Response<pb::Agent>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let (namespace, name) = names::agent("name", &request.get_ref().name)?;
        only_itself(principal(&request)?, &name)?;
        let view = self.control.drain_agent(&namespace, &name, &caller).await.map_err(from_control)?;
        Ok(Response::new(agent(view)))
    }

    async fn forget_agent(&self, request: Request<pb::ForgetAgentRequest>) -> Result<Response<pb::Agent>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let (namespace, name) = names::agent("name", &request.get_ref().name)?;
        let view = self.control.forget_agent(&namespace, &name, &caller).await.map_err(from_control)?;
        Ok(Response::new(agent(view)))
    }
}

/// An agent's token drains the agent that it names, and no other.
fn only_itself(principal: &Principal, agent: &AgentName) -> Result<(), Status> {
    if principal.role != Role::Agent || principal.actor.as_str().strip_prefix("service/") == Some(agent.as_str()) {
        return Ok(());
    }
    Err(refuse_with(
        Reason::RoleTooLow,
        format!("{} has role agent and can drain itself alone, not {agent}", principal.actor),
        "ask an operator",
        HashMap::from([
            ("role".to_owned(), principal.role.to_string()),
            ("required".to_owned(), Role::Operator.to_string()),
        ]),
    ))
}

fn agent(view: AgentView) -> pb::Agent {
    pb::Agent {
        name: format!("namespaces/{}/agents/{}", view.namespace, view.name),
        agent_id: view.name.to_string(),
        role: view.role,
        labels: view.labels.into_iter().collect(),
        host: view.host,
        state: pb::agent::State::from_str_name(&format!("STATE_{}", view.state))
            .unwrap_or(pb::agent::State::Unspecified)
            .into(),
        instance: view.instance,
        slots: view.slots,
        busy: view.busy,
        busy_of_ended_runs: view.busy_of_ended_runs,
        last_beat_time: view.last_beat_at.map(to_time),
        actions: view.actions.into_iter().map(|(action, version)| pb::ActionVersion { action, version }).collect(),
        software: view.software,
    }
}
