//! `muster.v1.PlaybookService`.

use std::sync::Arc;

use muster_proto::v1::{self as pb, plan_playbook_request::Source, playbook_service_server::PlaybookService};
use serde_json::{Map, Value};
use tonic::{Request, Response, Status};

use crate::{
    api::{
        auth::caller,
        convert::{names, plan, value::from_struct},
        error::from_control,
    },
    control::Control,
};

/// The service.
#[derive(Clone)]
pub(super) struct Playbooks {
    control: Arc<dyn Control>,
}

impl Playbooks {
    /// Over what does the work.
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self { control }
    }
}

#[tonic::async_trait]
impl PlaybookService for Playbooks {
    async fn submit_playbook(
        &self,
        request: Request<pb::SubmitPlaybookRequest>,
    ) -> Result<Response<pb::Playbook>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let namespace = names::namespace("parent", &request.parent)?;
        let revision = self
            .control
            .submit_playbook(&namespace, &request.yaml, request.validate_only, &caller)
            .await
            .map_err(from_control)?;
        Ok(Response::new(plan::playbook(&revision, true)))
    }

    async fn get_playbook(&self, request: Request<pb::GetPlaybookRequest>) -> Result<Response<pb::Playbook>, Status> {
        let (namespace, name, revision) = names::playbook("name", &request.get_ref().name)?;
        let revision = self.control.playbook(&namespace, &name, revision.as_ref()).await.map_err(from_control)?;
        Ok(Response::new(plan::playbook(&revision, true)))
    }

    async fn list_playbooks(
        &self,
        request: Request<pb::ListPlaybooksRequest>,
    ) -> Result<Response<pb::ListPlaybooksResponse>, Status> {
        let request = request.get_ref();
        let namespace = names::namespace("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let page = self.control.list_playbooks(&namespace, size, &request.page_token).await.map_err(from_control)?;
        Ok(Response::new(pb::ListPlaybooksResponse {
            playbooks: page.items.iter().map(|p| plan::playbook(p, false)).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn lint_playbook(
        &self,
        request: Request<pb::LintPlaybookRequest>,
    ) -> Result<Response<pb::LintPlaybookResponse>, Status> {
        let request = request.get_ref();
        let namespace = names::namespace("parent", &request.parent)?;
        let findings = self.control.lint(&namespace, &request.yaml).await;
        Ok(Response::new(pb::LintPlaybookResponse { findings: findings.iter().map(plan::finding).collect() }))
    }

    async fn plan_playbook(&self, request: Request<pb::PlanPlaybookRequest>) -> Result<Response<pb::Plan>, Status> {
        let request = request.into_inner();
        let namespace = names::namespace("parent", &request.parent)?;
        let source = match request.source {
            Some(Source::Playbook(name)) => names::source(&namespace, Some(&name), None)?,
            Some(Source::Yaml(yaml)) => names::source(&namespace, None, Some(yaml))?,
            None => names::source(&namespace, None, None)?,
        };
        let inputs = inputs(request.inputs);
        let planned = self.control.plan(&namespace, &source, inputs).await.map_err(from_control)?;
        Ok(Response::new(plan::plan(&planned)))
    }
}

/// None are an empty object.
pub(super) fn inputs(inputs: Option<prost_types::Struct>) -> Value {
    inputs.map_or_else(|| Value::Object(Map::new()), from_struct)
}
