//! Who may call what: one table of all methods, and the caller of a request.

use std::collections::HashMap;

use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use muster_engine::ids::Actor;
use tonic::{Request, Status};

use crate::{
    api::{
        convert::names,
        error::{Reason, refuse, refuse_with},
        lease::Lease,
        token::{Denied, Principal, Role, Tokens},
    },
    control::Caller,
};

/// The least that a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No token at all.
    Public,
    /// This role of the ladder, or a higher one.
    Role(Role),
    /// As [`Self::Role`]; an agent's token does as well.
    RoleOrAgent(Role),
}

use Access::{Public, Role as Least, RoleOrAgent};
use Role::{Admin, Operator, Viewer};

/// Every method of the API. One that is not here does not exist.
pub const METHODS: &[(&str, Access)] = &[
    ("/muster.v1.PlaybookService/SubmitPlaybook", Least(Operator)),
    ("/muster.v1.PlaybookService/GetPlaybook", Least(Viewer)),
    ("/muster.v1.PlaybookService/ListPlaybooks", Least(Viewer)),
    ("/muster.v1.PlaybookService/LintPlaybook", Least(Viewer)),
    ("/muster.v1.PlaybookService/PlanPlaybook", Least(Viewer)),
    ("/muster.v1.RunService/StartRun", Least(Operator)),
    ("/muster.v1.RunService/GetRun", Least(Viewer)),
    ("/muster.v1.RunService/ListRuns", Least(Viewer)),
    ("/muster.v1.RunService/WatchRun", Least(Viewer)),
    ("/muster.v1.RunService/WaitRun", Least(Viewer)),
    ("/muster.v1.RunService/CancelRun", Least(Operator)),
    ("/muster.v1.RunService/PauseRun", Least(Operator)),
    ("/muster.v1.RunService/ResumeRun", Least(Operator)),
    ("/muster.v1.RunService/SignalRun", Least(Operator)),
    ("/muster.v1.RunService/ExplainRun", Least(Viewer)),
    ("/muster.v1.RunService/ListRunEvents", Least(Viewer)),
    ("/muster.v1.RunService/ListRunLogs", Least(Viewer)),
    ("/muster.v1.RunService/WatchRunLogs", Least(Viewer)),
    ("/muster.v1.RunService/RetryStep", Least(Operator)),
    ("/muster.v1.RunService/ResolveStep", Least(Operator)),
    ("/muster.v1.AgentService/ListAgents", RoleOrAgent(Viewer)),
    ("/muster.v1.AgentService/GetAgent", RoleOrAgent(Viewer)),
    ("/muster.v1.AgentService/DrainAgent", RoleOrAgent(Operator)),
    ("/muster.v1.AgentService/ForgetAgent", Least(Operator)),
    ("/muster.v1.MilestoneService/ListMilestones", Least(Viewer)),
    ("/muster.v1.MilestoneService/WatchMilestones", Least(Viewer)),
    ("/muster.v1.TokenService/CreateToken", Least(Admin)),
    ("/muster.v1.TokenService/RevokeToken", Least(Admin)),
    ("/muster.v1.TokenService/ListTokens", Least(Admin)),
    ("/muster.v1.CoordinatorService/GetCoordinator", Least(Viewer)),
    ("/muster.v1.CoordinatorService/DrainCoordinator", Least(Admin)),
    ("/muster.v1.CoordinatorService/ResumeCoordinator", Least(Admin)),
    ("/grpc.health.v1.Health/Check", Public),
    ("/grpc.health.v1.Health/List", Public),
    ("/grpc.health.v1.Health/Watch", Public),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", RoleOrAgent(Viewer)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", RoleOrAgent(Viewer)),
];

/// The methods of [`METHODS`] whose calls may last: they end with the caller's token.
pub(super) const LASTING: &[&str] = &[
    "/muster.v1.RunService/WatchRun",
    "/muster.v1.RunService/WaitRun",
    "/muster.v1.RunService/WatchRunLogs",
    "/muster.v1.MilestoneService/WatchMilestones",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Who was let in.
pub(super) struct Admitted {
    pub(super) principal: Principal,
    /// How long that holds; none: as long as the server.
    pub(super) lease: Option<Lease>,
}

/// How callers are known.
#[derive(Debug)]
pub enum Authority {
    /// Everybody is an admin: `--insecure` was typed.
    Nobody,
    /// By bearer tokens.
    Tokens(std::sync::Arc<Tokens>),
}

impl Authority {
    /// Who calls, or why nobody may. What was sent is in no message and in no log.
    pub(super) fn admit(&self, path: &str, access: Access, headers: &HeaderMap) -> Result<Option<Admitted>, Status> {
        let (least, agent) = match access {
            Access::Public => return Ok(None),
            Access::Role(least) => (least, false),
            Access::RoleOrAgent(least) => (least, true),
        };
        let (principal, good_for) = match self {
            Self::Nobody => (Principal { actor: Actor::from("person/anonymous"), role: Role::Admin }, None),
            Self::Tokens(tokens) => {
                let token = bearer(headers)?;
                let (principal, good_for) = tokens.admit(token, Timestamp::now()).map_err(denied)?;
                (principal, Some(good_for))
            }
        };
        let enough = match principal.role {
            Role::Agent => agent,
            Role::Viewer | Role::Operator | Role::Admin => principal.role >= least,
        };
        if enough {
            return Ok(Some(Admitted { principal, lease: good_for }));
        }
        Err(refuse_with(
            Reason::RoleTooLow,
            format!("{} has role {}, and {path} needs {least}", principal.actor, principal.role),
            "ask an admin for a token of that role: muster token create",
            HashMap::from([
                ("role".to_owned(), principal.role.to_string()),
                ("required".to_owned(), least.to_string()),
            ]),
        ))
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Status> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Err(refuse(Reason::TokenMissing, "no token was sent", "send `authorization: Bearer <token>`"));
    };
    let scheme = value.to_str().ok().and_then(|v| v.split_once(' '));
    match scheme {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(refuse(
            Reason::TokenMissing,
            "the authorization header holds no bearer token",
            "send `authorization: Bearer <token>`",
        )),
    }
}

/// What somebody is told whose token is not taken, or no longer.
pub(super) fn denied(why: Denied) -> Status {
    match why {
        Denied::Invalid => {
            refuse(Reason::TokenInvalid, why.to_string(), "check which coordinator the token was made for")
        }
        Denied::Expired => refuse(Reason::TokenExpired, why.to_string(), "ask an admin for another token"),
        Denied::Revoked => refuse(Reason::TokenRevoked, why.to_string(), "ask an admin for another token"),
    }
}

/// Who asks, for what is journalled.
pub(super) fn caller<T>(request: &Request<T>, request_id: &str) -> Result<Caller, Status> {
    Ok(Caller { actor: principal(request)?.actor.clone(), request_id: names::request_id(request_id)? })
}

/// Who asks.
pub(super) fn principal<T>(request: &Request<T>) -> Result<&Principal, Status> {
    request.extensions().get::<Principal>().ok_or_else(|| {
        refuse(Reason::TokenMissing, "the request came past the door", "send `authorization: Bearer <token>`")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_contract_is_in_the_table_once() {
        let set = prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut contract = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    contract.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        assert!(contract.len() >= 25, "the contract has lost methods: {contract:?}");
        let ours: Vec<String> =
            METHODS.iter().map(|(p, _)| (*p).to_owned()).filter(|p| p.starts_with("/muster.")).collect();
        assert_eq!(ours.len(), ours.iter().collect::<BTreeSet<_>>().len());
        assert_eq!(ours.into_iter().collect::<BTreeSet<_>>(), contract);
    }

    #[test]
    fn every_stream_of_the_contract_ends_with_its_token() {
        let set = prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
        for file in &set.file {
            for service in &file.service {
                for method in service.method.iter().filter(|m| m.server_streaming() || m.client_streaming()) {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert!(LASTING.contains(&path.as_str()), "{path} may outlive its token");
                }
            }
        }
        assert!(LASTING.iter().all(|path| METHODS.iter().any(|(known, _)| known == path)));
    }

    #[test]
    fn only_health_is_public() {
        for (path, access) in METHODS {
            assert_eq!(*access == Access::Public, path.starts_with("/grpc.health."), "{path}");
        }
    }

    #[test]
    fn the_comments_say_the_role_that_the_table_asks_for() {
        let set = prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
        for file in set.file.iter().filter(|f| f.package() == "muster.v1") {
            let Some(info) = &file.source_code_info else { panic!("no comments in {}", file.name()) };
            for (s, service) in file.service.iter().enumerate() {
                for (m, method) in service.method.iter().enumerate() {
                    let place = [6, i32::try_from(s).unwrap(), 2, i32::try_from(m).unwrap()];
                    let comment = info.location.iter().find(|l| l.path == place).unwrap().leading_comments();
                    let path = format!("/muster.v1.{}/{}", service.name(), method.name());
                    let (_, access) = METHODS.iter().find(|(p, _)| *p == path).unwrap();
                    let (Access::Role(role) | Access::RoleOrAgent(role)) = access else { panic!("{path} is public") };
                    let comment = comment.replace("\n ", " ");
                    assert!(comment.contains(&format!("Role: {role}")), "{path} asks for {role}: {comment}");
                }
            }
        }
    }
}
