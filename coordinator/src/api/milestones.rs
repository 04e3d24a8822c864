//! `muster.v1.MilestoneService`.

use std::sync::Arc;

use muster_engine::ids::{Namespace, RunId};
use muster_proto::v1::{self as pb, milestone_service_server::MilestoneService};
use tonic::{Request, Response, Status, codegen::BoxStream};

use crate::{
    api::{
        convert::{names, run::milestone},
        door::Gate,
        error::from_control,
        watch::respond,
    },
    control::{Control, ControlErrorKind},
};

/// The service.
#[derive(Clone)]
pub(super) struct Milestones {
    control: Arc<dyn Control>,
    gate: Gate,
}

impl Milestones {
    /// Over what does the work.
    pub(super) fn new(control: Arc<dyn Control>, gate: Gate) -> Self {
        Self { control, gate }
    }

    /// A run that is not there has no milestones, but nobody should take it for one that has none. One in quarantine is there.
    async fn exists(&self, namespace: &Namespace, run: Option<&RunId>) -> Result<(), Status> {
        let Some(run) = run else { return Ok(()) };
        match self.control.run(namespace, run).await {
            Err(error) if error.kind == ControlErrorKind::NotFound => Err(from_control(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl MilestoneService for Milestones {
    async fn list_milestones(
        &self,
        request: Request<pb::ListMilestonesRequest>,
    ) -> Result<Response<pb::ListMilestonesResponse>, Status> {
        let request = request.get_ref();
        let (namespace, run) = names::namespace_or_run("parent", &request.parent)?;
        let size = names::page(request.page_size, &request.page_token)?;
        let page = self
            .control
            .list_milestones(&namespace, run.as_ref(), size, &request.page_token)
            .await
            .map_err(from_control)?;
        if page.items.is_empty() {
            self.exists(&namespace, run.as_ref()).await?;
        }
        Ok(Response::new(pb::ListMilestonesResponse {
            milestones: page.items.iter().map(|m| milestone(&namespace, m)).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    type WatchMilestonesStream = BoxStream<pb::WatchMilestonesResponse>;

    async fn watch_milestones(
        &self,
        request: Request<pb::WatchMilestonesRequest>,
    ) -> Result<Response<Self::WatchMilestonesStream>, Status> {
        let (namespace, run) = names::namespace_or_run("parent", &request.get_ref().parent)?;
        self.exists(&namespace, run.as_ref()).await?;
        let watch = self.control.watch_milestones(&namespace, run.as_ref()).await.map_err(from_control)?;
        let stream = respond(&self.gate, watch, move |view| pb::WatchMilestonesResponse {
            milestone: Some(milestone(&namespace, &view)),
        })?;
        Ok(Response::new(stream))
    }
}
