//! The pages about the API say what is so.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use muster_coordinator::api::{
    auth::{Access, METHODS},
    error::Reason,
    token::Role,
};
use tonic::Code;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The part between `<!-- name: …` and `<!-- /name -->`, or the page with another one in its place.
fn section(page: &str, name: &str, wanted: &str) -> (String, String) {
    let start = page.find(&format!("<!-- {name}:")).unwrap();
    let start = start + page[start..].find('\n').unwrap() + 1;
    let end = page.find(&format!("<!-- /{name} -->")).unwrap();
    (page[start..end].to_owned(), format!("{}{wanted}{}", &page[..start], &page[end..]))
}

fn methods() -> String {
    let mut table = "\n| method | least role |\n|---|---|\n".to_owned();
    for (path, access) in METHODS {
        let role = match access {
            Access::Public => "none".to_owned(),
            Access::Role(role) => format!("`{role}`"),
            Access::RoleOrAgent(role) => format!("`{role}`, or `agent`"),
        };
        writeln!(table, "| `{}` | {role} |", path.trim_start_matches('/')).unwrap();
    }
    table + "\n"
}

fn reasons() -> String {
    let mut table = "\n| reason | code |\n|---|---|\n".to_owned();
    for reason in Reason::ALL {
        let code = match reason.code() {
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Unauthenticated => "UNAUTHENTICATED",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::Unavailable => "UNAVAILABLE",
            Code::NotFound => "NOT_FOUND",
            Code::Internal => "INTERNAL",
            other @ (Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::DataLoss) => panic!("give {other:?} its word here"),
        };
        writeln!(table, "| `{}` | `{code}` |", reason.as_str()).unwrap();
    }
    table + "\n"
}

/// What each role may call, in the words of a table: a row for each method, a column for each role.
fn roles() -> String {
    let mut table = "\n| | viewer | operator | admin | agent |\n|---|---|---|---|---|\n".to_owned();
    let yes = |holds: bool| if holds { "yes" } else { "" };
    for (path, access) in METHODS {
        let (least, agent) = match access {
            Access::Public => continue,
            Access::Role(least) => (*least, false),
            Access::RoleOrAgent(least) => (*least, true),
        };
        // Reflection is no deed.
        let Some(method) = path.strip_prefix("/muster.v1.") else { continue };
        let may = |role: Role| yes(role >= least);
        let (viewer, operator, admin) = (may(Role::Viewer), may(Role::Operator), may(Role::Admin));
        // It is of its own name alone.
        let agent = if agent && method.ends_with("/DrainAgent") { "itself" } else { yes(agent) };
        let method = method.replace("Service/", ": ");
        writeln!(table, "| {method} | {viewer} | {operator} | {admin} | {agent} |").unwrap();
    }
    table + "\n"
}

#[test]
fn the_table_of_roles_for_operators_is_up_to_date() {
    let page = read("docs/operations.md");
    let (found, updated) = section(&page, "roles", &roles());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join("docs/operations.md"), updated).unwrap();
        return;
    }
    assert_eq!(found, roles(), "UPDATE=1 cargo test -p muster-coordinator --test api docs");
}

#[test]
fn the_tables_of_methods_and_reasons_are_up_to_date() {
    let page = read("docs/api.md");
    let (found_methods, updated) = section(&page, "methods", &methods());
    let (found_reasons, updated) = section(&updated, "reasons", &reasons());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join("docs/api.md"), updated).unwrap();
        return;
    }
    assert_eq!(found_methods, methods(), "UPDATE=1 cargo test -p muster-coordinator --test api docs");
    assert_eq!(found_reasons, reasons(), "UPDATE=1 cargo test -p muster-coordinator --test api docs");
}

#[test]
fn every_reason_of_the_coordinator_is_on_the_page() {
    let page = read("docs/api.md");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("coordinator/src/driver")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Where errors are made, and nowhere else: the code stands in quotes on the line that says the kind, or after `code:`.
        for line in text.lines().filter(|l| l.contains("ControlErrorKind::") || l.contains("code: \"")) {
            let words = line.split('"').skip(1).step_by(2);
            let is_reason = |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            found.extend(words.filter(is_reason).map(str::to_owned));
        }
    }
    assert!(found.len() > 10, "only {found:?} were found");
    let missing: Vec<_> = found.iter().filter(|r| !page.contains(&format!("`{r}`"))).collect();
    assert!(missing.is_empty(), "docs/api.md does not say {missing:?}");
}

#[test]
fn the_worked_example_is_what_the_files_say() {
    let page = read("docs/examples/add-an-rpc.md");
    let mut blocks = 0;
    let mut rest = page.as_str();
    while let Some(start) = rest.find(" file=") {
        let (file, after) = rest[start + 6..].split_once('\n').unwrap();
        let (block, after) = after.split_once("```").unwrap();
        assert!(read(file).contains(block), "{file} does not hold this part of the example:\n{block}");
        blocks += 1;
        rest = after;
    }
    assert_eq!(blocks, 6);
}
