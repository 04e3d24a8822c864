//! Resource names, pages, and the fields that every service checks alike.

use muster_engine::ids::{AgentName, Digest, Namespace, RunId, StepId};
use prost::Message;
use tonic::Status;
use uuid::Uuid;

use crate::{
    api::error::{Reason, bad_field},
    control::{MAX_REASON_CHARS, PlaybookSource},
};

/// Items on a page where the caller asks for none.
pub const DEFAULT_PAGE_SIZE: usize = 50;
/// Most items on a page.
pub const MAX_PAGE_SIZE: usize = 1_000;
/// A page ends early rather than be larger than this, in bytes: what others say of themselves may be long.
const PAGE_BYTES: usize = 1024 * 1024;
/// Longest page token, in bytes.
const MAX_PAGE_TOKEN: usize = 512;

/// `namespaces/{ns}`.
pub fn namespace(field: &str, name: &str) -> Result<Namespace, Status> {
    match parts(name)[..] {
        ["namespaces", ns] if is_token(ns) => Ok(Namespace::from(ns)),
        _ => Err(bad_name(field, name, "namespaces/{ns}")),
    }
}

/// `namespaces/{ns}/runs/{run}`.
pub fn run(field: &str, name: &str) -> Result<(Namespace, RunId), Status> {
    match parts(name)[..] {
        ["namespaces", ns, "runs", run] if is_token(ns) && is_token(run) => Ok((Namespace::from(ns), RunId::from(run))),
        _ => Err(bad_name(field, name, "namespaces/{ns}/runs/{run}")),
    }
}

/// `namespaces/{ns}/runs/{run}/steps/{step}`.
pub fn step(field: &str, name: &str) -> Result<(Namespace, RunId, StepId), Status> {
    match parts(name)[..] {
        ["namespaces", ns, "runs", run, "steps", step] if is_token(ns) && is_token(run) && is_token(step) => {
            Ok((Namespace::from(ns), RunId::from(run), StepId::from(step)))
        }
        _ => Err(bad_name(field, name, "namespaces/{ns}/runs/{run}/steps/{step}")),
    }
}

/// `namespaces/{ns}` or `namespaces/{ns}/runs/{run}`.
pub fn namespace_or_run(field: &str, name: &str) -> Result<(Namespace, Option<RunId>), Status> {
    if name.contains("/runs/") {
        run(field, name).map(|(ns, run)| (ns, Some(run)))
    } else {
        namespace(field, name).map(|ns| (ns, None))
    }
}

/// `namespaces/{ns}/agents/{agent}`.
pub fn agent(field: &str, name: &str) -> Result<(Namespace, AgentName), Status> {
    match parts(name)[..] {
        ["namespaces", ns, "agents", agent] if is_token(ns) && is_token(agent) => {
            Ok((Namespace::from(ns), AgentName::from(agent)))
        }
        _ => Err(bad_name(field, name, "namespaces/{ns}/agents/{agent}")),
    }
}

/// `tokens/{token}`.
pub fn token<'a>(field: &str, name: &'a str) -> Result<&'a str, Status> {
    match parts(name)[..] {
        ["tokens", id] if is_token(id) => Ok(id),
        _ => Err(bad_name(field, name, "tokens/{token}")),
    }
}

/// `namespaces/{ns}/playbooks/{playbook}`, with `@{revision}` or without.
pub fn playbook(field: &str, name: &str) -> Result<(Namespace, String, Option<Digest>), Status> {
    let error = || bad_name(field, name, "namespaces/{ns}/playbooks/{playbook} or …/{playbook}@{revision}");
    match parts(name)[..] {
        ["namespaces", ns, "playbooks", playbook] if is_token(ns) => {
            let (id, revision) = match playbook.split_once('@') {
                None => (playbook, None),
                Some((id, revision)) => (id, Some(digest(field, revision)?)),
            };
            if is_token(id) { Ok((Namespace::from(ns), id.to_owned(), revision)) } else { Err(error()) }
        }
        _ => Err(error()),
    }
}

/// A stored playbook of the namespace, or a document.
pub fn source(namespace: &Namespace, stored: Option<&str>, inline: Option<String>) -> Result<PlaybookSource, Status> {
    if let Some(yaml) = inline {
        return Ok(PlaybookSource::Inline(yaml));
    }
    let Some(stored) = stored else {
        return Err(bad_field(
            Reason::FieldRequired,
            "source",
            "neither a stored playbook nor a document is named",
            "set `playbook` or `yaml`",
        ));
    };
    let (ns, name, revision) = playbook("playbook", stored)?;
    if ns != *namespace {
        return Err(bad_field(
            Reason::FieldInvalid,
            "playbook",
            format!("{stored} is not in namespaces/{namespace}"),
            "name a playbook of the parent's namespace",
        ));
    }
    Ok(PlaybookSource::Stored { name, revision })
}

/// `sha256:<64 hex digits>`.
pub fn digest(field: &str, text: &str) -> Result<Digest, Status> {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(Digest::from(text));
    }
    Err(bad_field(Reason::FieldInvalid, field, "that is no digest", "a digest is `sha256:` and 64 hex digits"))
}

/// Empty, or a UUID, in its usual form.
pub fn request_id(text: &str) -> Result<Option<String>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    match Uuid::try_parse(text) {
        Ok(id) => Ok(Some(id.to_string())),
        Err(_) => Err(bad_field(
            Reason::RequestIdInvalid,
            "request_id",
            "`request_id` is not a UUID",
            "send a new UUID with each new request, and the same one when you send that request again",
        )),
    }
}

/// The page asked for, cut to what is allowed.
pub fn page(size: i32, token: &str) -> Result<usize, Status> {
    if token.len() > MAX_PAGE_TOKEN {
        return Err(bad_field(
            Reason::FieldInvalid,
            "page_token",
            "that is no page token",
            "give `next_page_token` back as it came",
        ));
    }
    match usize::try_from(size) {
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => Err(bad_field(
            Reason::FieldInvalid,
            "page_size",
            "`page_size` is negative",
            "leave it out, or ask for 1 to 1000",
        )),
    }
}

/// The first of the items, as many as a page has bytes for; at least one.
pub fn fitting<T: Message>(items: impl Iterator<Item = T>) -> Vec<T> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        if bytes > PAGE_BYTES && !page.is_empty() {
            break;
        }
        page.push(item);
    }
    page
}

/// Why something is asked for; has to be there.
pub fn reason(text: String) -> Result<String, Status> {
    if text.trim().is_empty() {
        return Err(bad_field(
            Reason::FieldRequired,
            "reason",
            "`reason` is empty",
            "say why; it is kept with what you do",
        ));
    }
    short_text("reason", text)
}

/// A text of people, within the limit.
pub fn short_text(field: &str, text: String) -> Result<String, Status> {
    if text.chars().count() > MAX_REASON_CHARS {
        return Err(bad_field(
            Reason::FieldInvalid,
            field,
            format!("`{field}` is longer than {MAX_REASON_CHARS} characters"),
            "say it shorter",
        ));
    }
    Ok(text)
}

fn parts(name: &str) -> Vec<&str> {
    name.splitn(8, '/').collect()
}

/// `[a-z0-9_-]{1,63}`.
pub(crate) fn is_token(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

fn bad_name(field: &str, name: &str, form: &str) -> Status {
    let shown: String = name.chars().take(100).collect();
    let message = format!("`{shown}` is not of the form {form}");
    bad_field(Reason::NameInvalid, field, message, "each part is of a-z, 0-9, `_` and `-`, at most 63 characters")
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn reason_of(status: &Status) -> String {
        status.get_error_details().error_info().unwrap().reason.clone()
    }

    #[test]
    fn names_are_read_whole() {
        assert_eq!(namespace("parent", "namespaces/default").unwrap().as_str(), "default");
        let (ns, run, step) = step("name", "namespaces/a/runs/0199-b/steps/tls_certificate").unwrap();
        assert_eq!((ns.as_str(), run.as_str(), step.as_str()), ("a", "0199-b", "tls_certificate"));
        let revision = format!("sha256:{}", "0f".repeat(32));
        let (_, id, rev) = playbook("name", &format!("namespaces/a/playbooks/hello@{revision}")).unwrap();
        assert_eq!((id.as_str(), rev.unwrap().as_str()), ("hello", revision.as_str()));
        assert!(playbook("name", "namespaces/a/playbooks/hello").unwrap().2.is_none());
        assert!(namespace_or_run("parent", "namespaces/a").unwrap().1.is_none());
        assert_eq!(namespace_or_run("parent", "namespaces/a/runs/b").unwrap().1.unwrap().as_str(), "b");
    }

    #[test]
    fn other_names_are_refused() {
        for bad in ["", "default", "namespaces/", "namespaces/A", "namespaces/a/", "namespaces/a/runs/b", "x/a"] {
            let status = namespace("parent", bad).unwrap_err();
            assert_eq!(reason_of(&status), "NAME_INVALID", "{bad}");
        }
        for bad in ["namespaces/a/runs/", "namespaces/a/runs/b/steps/c", "namespaces/a/runs/b c", "namespaces/a/runs/ä"]
        {
            assert!(run("name", bad).is_err(), "{bad}");
        }
        assert!(playbook("name", "namespaces/a/playbooks/hello@latest").is_err());
        let long = "x".repeat(100_000);
        assert!(run("name", &long).unwrap_err().message().len() < 300);
    }

    #[test]
    fn pages_have_limits() {
        assert_eq!(page(0, "").unwrap(), DEFAULT_PAGE_SIZE);
        assert_eq!(page(7, "").unwrap(), 7);
        assert_eq!(page(i32::MAX, "").unwrap(), MAX_PAGE_SIZE);
        let long = |n: usize| (0..n).map(|_| "x".repeat(PAGE_BYTES / 4));
        assert_eq!(
            (fitting(long(3)).len(), fitting(long(9)).len()),
            (3, 3),
            "a quarter and its head, four times, is too much"
        );
        assert_eq!(
            fitting(std::iter::once("x".repeat(2 * PAGE_BYTES))).len(),
            1,
            "one always fits, or nobody comes past it"
        );
        assert!(page(-1, "").is_err());
        assert!(page(0, &"t".repeat(10_000)).is_err());
    }

    #[test]
    fn request_ids_are_uuids() {
        assert_eq!(request_id("").unwrap(), None);
        let id = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8";
        assert_eq!(request_id(id).unwrap().unwrap(), id.to_lowercase());
        assert_eq!(reason_of(&request_id("again").unwrap_err()), "REQUEST_ID_INVALID");
    }
}
