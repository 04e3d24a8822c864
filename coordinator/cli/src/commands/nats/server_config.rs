//! `nats.conf`: who may say what, in the words of nats-server.

use std::fmt::{self, Write as _};

use muster_bus::permission::{ANSWER_WITHIN_S, Permissions};

use super::users::{Kind, Users};
use crate::error::{CliError, Result};

/// The whole file. It works from nats-server 2.9 on.
pub(super) fn text(users: &Users) -> Result<String> {
    let mut text = String::new();
    render(&mut text, users).map_err(|e| CliError::failed("INTERNAL", e.to_string()))?;
    Ok(text)
}

fn render(text: &mut String, users: &Users) -> fmt::Result {
    writeln!(text, "# `muster nats config` writes this from users.toml; what is changed here is lost.")?;
    writeln!(text, "listen: \"{}\"", users.listen)?;
    if users.has_tls() {
        let (cert, key) = (users.tls_cert.display(), users.tls_key.display());
        writeln!(text, "tls {{\n  cert_file: \"{cert}\"\n  key_file: \"{key}\"\n}}")?;
    }
    writeln!(text, "authorization {{\n  users = [")?;
    user(text, "the coordinator", &users.coordinator.key, &Permissions::of_coordinator())?;
    for (kind, name, given) in users.all() {
        let (who, permissions) = match kind {
            Kind::Coordinator => continue,
            Kind::Agent => (
                format!("agent {name} of namespace {}", given.namespace),
                Permissions::of_agent(&given.namespace, name),
            ),
            Kind::Signaller => (
                format!("{name}, who may signal runs of namespace {}", given.namespace),
                Permissions::of_signaller(&given.namespace, name),
            ),
            Kind::Reader => (format!("{name}, who may read events"), Permissions::of_reader(name)),
        };
        user(text, &who, &given.key, &permissions)?;
    }
    writeln!(text, "  ]\n}}")
}

fn user(text: &mut String, who: &str, key: &str, permissions: &Permissions) -> fmt::Result {
    writeln!(text, "    # {who}\n    {{\n      nkey: \"{key}\"\n      permissions: {{")?;
    list(text, "publish", &permissions.publish)?;
    list(text, "subscribe", &permissions.subscribe)?;
    if permissions.answers {
        writeln!(text, "        allow_responses: {{max: 1, expires: \"{ANSWER_WITHIN_S}s\"}}")?;
    }
    writeln!(text, "      }}\n    }}")
}

fn list(text: &mut String, what: &str, subjects: &[String]) -> fmt::Result {
    writeln!(text, "        {what}: {{allow: [")?;
    for subject in subjects {
        writeln!(text, "          \"{subject}\"")?;
    }
    writeln!(text, "        ]}}")
}
