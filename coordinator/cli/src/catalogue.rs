//! Which actions an agent of each role has.

use std::{path::Path, sync::Arc};

use muster_agent::{Action, Catalogue, allow::Allow, command::CommandRun, noop::Noop};
use muster_bus::message::{ActionOffer, Scope};
use muster_engine::plan::{self, ActionFacts, ActionScope, CatalogueEntry};

use crate::{
    args::Role,
    error::{CliError, Result, chain},
};

const COMMAND_RUN: &str = "command.run";

/// The actions of a role; programs are started only where `allow` names them.
pub(crate) fn of_role(role: Role, allow: Allow) -> Result<Catalogue> {
    let mut actions: Vec<Arc<dyn Action>> = match role {
        Role::Infra => muster_infra::actions(),
        Role::Integration => muster_integration::actions(&allow),
        Role::Deployment => muster_deployment::actions(&allow),
        Role::Bench => return catalogue(vec![Arc::new(Noop)]),
    };
    actions.push(Arc::new(CommandRun::new(allow)));
    catalogue(actions)
}

/// What plans may name though no agent offers it yet: every action that comes with this binary.
pub(crate) fn shipped() -> Result<Vec<ActionOffer>> {
    let mut offers = Vec::<ActionOffer>::new();
    for role in [Role::Infra, Role::Integration, Role::Deployment, Role::Bench] {
        // Several roles have command.run.
        let more = of_role(role, Allow::default())?.offers();
        offers.extend(more.into_iter().filter(|offer| role == Role::Infra || offer.name != COMMAND_RUN));
    }
    Ok(offers)
}

/// The same, as the engine needs to know it.
pub(crate) fn shipped_entries() -> Result<plan::Catalogue> {
    let entry = |offer: ActionOffer| {
        let facts = ActionFacts {
            idempotent: offer.idempotent,
            undoable: offer.undoable,
            checkable: offer.checkable,
            concurrent_safe: offer.concurrent_safe,
            read_only: offer.read_only,
            scope: match offer.scope {
                Scope::Host => ActionScope::Host,
                Scope::Target => ActionScope::Target,
            },
        };
        let entry = CatalogueEntry {
            version: offer.version,
            facts,
            params_schema: offer.params_schema,
            output_schema: offer.output_schema,
        };
        (offer.name.into(), entry)
    };
    Ok(shipped()?.into_iter().map(entry).collect())
}

/// What `command.run` may start; no file: nothing.
pub(crate) fn allow(path: &Path) -> Result<Allow> {
    if path.as_os_str().is_empty() {
        return Ok(Allow::default());
    }
    Allow::load(path).map_err(|e| CliError::usage("ALLOW_INVALID", chain(&e)))
}

fn catalogue(actions: Vec<Arc<dyn Action>>) -> Result<Catalogue> {
    Catalogue::new(actions).map_err(|e| CliError::failed("CATALOGUE_INVALID", chain(&e)))
}
