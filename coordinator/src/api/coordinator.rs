//! `muster.v1.CoordinatorService`.

use std::sync::Arc;

use muster_proto::v1::{self as pb, coordinator_service_server::CoordinatorService};
use tonic::{Request, Response, Status};

use crate::{
    api::{auth::caller, convert::value::to_time, error::from_control},
    control::{AtWork, Control, CoordinatorView},
};

/// The service.
#[derive(Clone)]
pub(super) struct CoordinatorApi {
    control: Arc<dyn Control>,
}

impl CoordinatorApi {
    /// Over what does the work.
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self { control }
    }
}

#[tonic::async_trait]
impl CoordinatorService for CoordinatorApi {
    async fn get_coordinator(
        &self,
        _: Request<pb::GetCoordinatorRequest>,
    ) -> Result<Response<pb::Coordinator>, Status> {
        Ok(Response::new(coordinator(self.control.coordinator())))
    }

    async fn drain_coordinator(
        &self,
        request: Request<pb::DrainCoordinatorRequest>,
    ) -> Result<Response<pb::Coordinator>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let view = self.control.drain_coordinator(&caller).await.map_err(from_control)?;
        Ok(Response::new(coordinator(view)))
    }

    async fn resume_coordinator(
        &self,
        request: Request<pb::ResumeCoordinatorRequest>,
    ) -> Result<Response<pb::Coordinator>, Status> {
        let caller = caller(&request, &request.get_ref().request_id)?;
        let view = self.control.resume_coordinator(&caller).await.map_err(from_control)?;
        Ok(Response::new(coordinator(view)))
    }
}

fn coordinator(view: CoordinatorView) -> pb::Coordinator {
    let state = if view.drain.is_some() { pb::coordinator::State::Draining } else { pb::coordinator::State::Serving };
    pb::Coordinator {
        cluster: view.cluster,
        state: state.into(),
        drainer: view.drain.as_ref().map(|drain| drain.by.to_string()).unwrap_or_default(),
        drain_time: view.drain.as_ref().map(|drain| to_time(drain.since)),
        at_work_count: u32::try_from(view.at_work_count).unwrap_or(u32::MAX),
        at_work: view.at_work.iter().map(at_work).collect(),
    }
}

fn at_work(at_work: &AtWork) -> pb::AttemptAtWork {
    pb::AttemptAtWork {
        run: format!("namespaces/{}/runs/{}", at_work.namespace, at_work.run),
        step_id: at_work.step.to_string(),
        attempt: at_work.attempt,
        agent_id: at_work.agent.to_string(),
        assign_time: Some(to_time(at_work.since)),
    }
}
