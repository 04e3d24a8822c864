//! The subjects: `muster.v1.{namespace}.…`. NATS gives no sender, so every subject to the coordinator ends in the sender's
//! name, and permissions bind the name to the sender's key.

use std::fmt;

/// How many shards the reports are spread over. A shard belongs to a run, never to a process.
pub const SHARDS: u16 = 256;

/// First part of the subjects on which the replies to a client come that has no key.
pub const INBOX: &str = "_INBOX";

/// First part of the subjects on which the replies to a coordinator come. It answers nobody there: an agent that could have its
/// answer sent there would have it taken for another agent's.
pub const COORDINATOR_INBOX: &str = "_MUSTER_INBOX";

/// Where a coordinator asks, before it serves, whether another one answers: the beat of an agent that none can know.
pub const CHECK: &str = "muster.v1.default.beat.muster";

/// First part of the subjects on which the replies to an agent come: permissions bind it to the agent's key.
pub fn agent_inbox(agent: &str) -> String {
    format!("{INBOX}_{agent}")
}

/// Whether `token` can stand in a subject: `[a-z0-9_-]{1,63}`.
pub fn is_token(token: &str) -> bool {
    (1..=63).contains(&token.len())
        && token.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// Whether messages can be sent to `subject`: tokens without blanks and wildcards, joined by dots.
pub fn is_subject(subject: &str) -> bool {
    is_pattern(subject) && !subject.bytes().any(|b| b == b'*' || b == b'>')
}

/// Whether `pattern` can be subscribed to: as a subject, with `*` for one token and `>` for one or more at the end.
pub fn is_pattern(pattern: &str) -> bool {
    !pattern.is_empty()
        && !pattern.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
        && !pattern.starts_with('.')
        && !pattern.ends_with('.')
        && !pattern.contains("..")
}

/// Whether a subscription to `pattern` gets what is sent to `subject`.
pub fn matches(pattern: &str, subject: &str) -> bool {
    let mut wanted = pattern.as_bytes().split(|b| *b == b'.');
    let mut given = subject.as_bytes().split(|b| *b == b'.');
    loop {
        match (wanted.next(), given.next()) {
            (Some(b">"), Some(_)) | (None, None) => return true,
            (Some(b"*"), Some(_)) => {}
            (Some(token), Some(given)) if token == given => {}
            (Some(_) | None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// The shard of a run: FNV-1a of its id, modulo [`SHARDS`].
pub fn shard_of(run: &str) -> u16 {
    let hash = run.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    u16::try_from(hash % u64::from(SHARDS)).unwrap_or(0)
}

/// The subjects of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subjects {
    namespace: String,
}

impl Subjects {
    /// Of a namespace, which must be a token.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    fn join(&self, rest: fmt::Arguments<'_>) -> String {
        format!("muster.v1.{}.{rest}", self.namespace)
    }

    /// Request, agent → coordinator: [`crate::message::Register`].
    pub fn register(&self, agent: &str) -> String {
        self.join(format_args!("register.{agent}"))
    }

    /// Request, coordinator → one process of an agent: [`crate::message::Task`].
    pub fn task(&self, agent: &str, instance: &str) -> String {
        self.join(format_args!("task.{agent}.{instance}"))
    }

    /// What an agent subscribes to, whichever process of it.
    pub fn tasks(&self, agent: &str) -> String {
        self.join(format_args!("task.{agent}.*"))
    }

    /// All subjects of an agent's reports.
    pub fn reports(&self, agent: &str) -> String {
        self.join(format_args!("report.*.{agent}"))
    }

    /// Request, agent → coordinator: [`crate::message::Report`].
    pub fn report(&self, shard: u16, agent: &str) -> String {
        self.join(format_args!("report.{shard}.{agent}"))
    }

    /// Request, agent → coordinator, every few seconds: [`crate::message::Beat`].
    pub fn beat(&self, agent: &str) -> String {
        self.join(format_args!("beat.{agent}"))
    }

    /// Request, agent → coordinator, every few minutes and at change: [`crate::message::Status`].
    pub fn status(&self, agent: &str) -> String {
        self.join(format_args!("status.{agent}"))
    }

    /// Published: [`crate::message::LogLine`].
    pub fn log(&self, agent: &str) -> String {
        self.join(format_args!("log.{agent}"))
    }

    /// Request, outsider → coordinator: [`crate::message::Signal`]. All parts are tokens.
    pub fn signal(&self, run: &str, name: &str, sender: &str) -> String {
        self.join(format_args!("signal.{run}.{name}.{sender}"))
    }

    /// All subjects of an outsider's signals.
    pub fn signals(&self, sender: &str) -> String {
        self.join(format_args!("signal.*.*.{sender}"))
    }

    /// Put into the stream [`crate::event::EVENTS`]: [`crate::event::CloudEvent`].
    pub fn event(&self, kind: &str) -> String {
        self.join(format_args!("event.{kind}"))
    }

    /// What a coordinator subscribes to: everything that agents and outsiders send in every namespace, by kind.
    pub fn all(kind: AgentSubject) -> &'static str {
        match kind {
            AgentSubject::Register => "muster.v1.*.register.*",
            AgentSubject::Report => "muster.v1.*.report.*.*",
            AgentSubject::Beat => "muster.v1.*.beat.*",
            AgentSubject::Status => "muster.v1.*.status.*",
            AgentSubject::Log => "muster.v1.*.log.*",
            AgentSubject::Signal => "muster.v1.*.signal.*.*.*",
        }
    }
}

/// The kinds of subjects on which a coordinator is told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentSubject {
    /// `register.{agent}`
    Register,
    /// `report.{shard}.{agent}`
    Report,
    /// `beat.{agent}`
    Beat,
    /// `status.{agent}`
    Status,
    /// `log.{agent}`
    Log,
    /// `signal.{run}.{name}.{sender}`
    Signal,
}

/// Which signal a subject is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalSubject<'a> {
    /// Of which namespace.
    pub namespace: &'a str,
    /// To which run.
    pub run: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Who sends it.
    pub sender: &'a str,
}

/// The parts of a signal's subject, if it is one.
pub fn signal(subject: &str) -> Option<SignalSubject<'_>> {
    let (namespace, sender) = sender(subject)?;
    let [kind, run, name] = subject.split('.').skip(3).take(3).collect::<Vec<_>>().try_into().ok()?;
    (kind == "signal" && is_token(run) && is_token(name)).then_some(SignalSubject { namespace, run, name, sender })
}

/// Namespace and sender of a subject on which a coordinator is told something, if it is one.
pub fn sender(subject: &str) -> Option<(&str, &str)> {
    let mut tokens = subject.strip_prefix("muster.v1.")?.split('.');
    let namespace = tokens.next()?;
    let kind = tokens.next()?;
    let between = match kind {
        "signal" => 2,
        "report" => 1,
        _ => 0,
    };
    for _ in 0..between {
        tokens.next()?;
    }
    let agent = tokens.next()?;
    (tokens.next().is_none() && is_token(namespace) && is_token(agent)).then_some((namespace, agent))
}

/// Whether the reply to a message on `asked` may go to `reply`. A server checks where a client publishes, not where it wants
/// its answers: without this an agent could let the coordinator speak on a subject that is closed to the agent itself.
pub fn may_answer(asked: &str, reply: &str) -> bool {
    if asked == CHECK && reply.strip_prefix(COORDINATOR_INBOX).is_some_and(|rest| rest.starts_with('.')) {
        return true;
    }
    let Some((_, agent)) = sender(asked) else { return true };
    let Some(rest) = reply.strip_prefix(INBOX) else { return false };
    let of_agent = rest.strip_prefix('_').and_then(|rest| rest.strip_prefix(agent));
    of_agent.unwrap_or(rest).starts_with('.')
}
