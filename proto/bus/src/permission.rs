//! Who may say what on a NATS server that knows its clients by their keys. NATS gives no sender, so subjects do: what an agent
//! may publish ends in its name, and what it may hear is its own.

use crate::{
    event::{EVENT_SUBJECTS, EVENTS},
    subject::{AgentSubject, CHECK, COORDINATOR_INBOX, Subjects, agent_inbox},
};

/// The subjects of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// What it may publish, requests included.
    pub publish: Vec<String>,
    /// What it may subscribe to.
    pub subscribe: Vec<String>,
    /// It may answer each message it gets, once, for as long as [`ANSWER_WITHIN_S`].
    pub answers: bool,
}

/// How long a message may be answered, in seconds. Whoever has no answer by then has asked again.
pub const ANSWER_WITHIN_S: u32 = 120;

impl Permissions {
    /// Of an agent in a namespace; both are tokens. It can neither speak for another agent nor hear what is said to one, as
    /// long as no other agent of any namespace has its name: inboxes know no namespaces.
    pub fn of_agent(namespace: &str, agent: &str) -> Self {
        let subjects = Subjects::new(namespace);
        let inbox = agent_inbox(agent);
        Self {
            publish: vec![
                subjects.register(agent),
                subjects.reports(agent),
                subjects.beat(agent),
                subjects.status(agent),
                subjects.log(agent),
                probe(&inbox),
            ],
            // The last one: what the NATS tools ask all agents (`nats micro ls`).
            subscribe: vec![subjects.tasks(agent), format!("{inbox}.>"), "$SRV.>".to_owned()],
            answers: true,
        }
    }

    /// Of an outsider who may signal the runs of a namespace, in its own name; both are tokens. It hears the answers, and nothing else.
    pub fn of_signaller(namespace: &str, name: &str) -> Self {
        Self {
            publish: vec![Subjects::new(namespace).signals(name)],
            subscribe: vec![format!("{}.>", agent_inbox(name))],
            answers: false,
        }
    }

    /// Of an outsider who reads the stream of events, of all namespaces, through one consumer that is called as he is. He may make and
    /// delete that consumer and acknowledge what it gives him; he can change nothing in the stream.
    pub fn of_reader(name: &str) -> Self {
        let of_consumer = |what: &str| format!("$JS.API.CONSUMER.{what}.{EVENTS}.{name}");
        Self {
            publish: vec![
                format!("$JS.API.STREAM.INFO.{EVENTS}"),
                of_consumer("CREATE"),
                // With what it is to be given, which clients put into the subject.
                format!("{}.>", of_consumer("CREATE")),
                of_consumer("DURABLE.CREATE"),
                of_consumer("INFO"),
                of_consumer("MSG.NEXT"),
                of_consumer("DELETE"),
                format!("$JS.ACK.{EVENTS}.{name}.>"),
                format!("$JS.FC.{EVENTS}.{name}.>"),
            ],
            subscribe: vec![format!("{}.>", agent_inbox(name))],
            answers: false,
        }
    }

    /// Of the coordinator, for all namespaces: the mirror image. Of JetStream it may make the stream of events and look at it; it
    /// can delete, purge and read nothing there.
    pub fn of_coordinator() -> Self {
        let heard = [
            AgentSubject::Register,
            AgentSubject::Report,
            AgentSubject::Beat,
            AgentSubject::Status,
            AgentSubject::Log,
            AgentSubject::Signal,
        ];
        let heard = heard.into_iter().map(|kind| Subjects::all(kind).to_owned());
        Self {
            publish: vec![
                "muster.v1.*.task.*.*".to_owned(),
                CHECK.to_owned(),
                probe(COORDINATOR_INBOX),
                EVENT_SUBJECTS.to_owned(),
                format!("$JS.API.STREAM.INFO.{EVENTS}"),
                format!("$JS.API.STREAM.CREATE.{EVENTS}"),
            ],
            subscribe: heard.chain([format!("{COORDINATOR_INBOX}.>")]).collect(),
            answers: true,
        }
    }
}

/// What a client asks in its own inbox, where nobody answers, to see that the server has taken a subscription.
pub(crate) fn probe(inbox: &str) -> String {
    format!("{inbox}.subscribed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::{SignalSubject, matches, may_answer, signal};

    fn allows(patterns: &[String], subject: &str) -> bool {
        patterns.iter().any(|pattern| matches(pattern, subject))
    }

    #[test]
    fn what_one_may_publish_another_hears_and_nobody_else() {
        let subjects = Subjects::new("blue");
        let (agent, coordinator) = (Permissions::of_agent("blue", "infra-1"), Permissions::of_coordinator());
        let own = [
            subjects.register("infra-1"),
            subjects.report(255, "infra-1"),
            subjects.beat("infra-1"),
            subjects.status("infra-1"),
            subjects.log("infra-1"),
        ];
        for subject in own {
            assert!(allows(&agent.publish, &subject) && allows(&coordinator.subscribe, &subject), "{subject}");
            assert!(!allows(&Permissions::of_agent("blue", "infra-2").publish, &subject), "{subject}");
            assert!(!allows(&Permissions::of_agent("red", "infra-1").publish, &subject), "{subject}");
            assert!(!allows(&agent.subscribe, &subject), "{subject}");
        }
        let task = subjects.task("infra-1", "i-1");
        assert!(allows(&coordinator.publish, &task) && allows(&agent.subscribe, &task));
        assert!(!allows(&Permissions::of_agent("blue", "infra-2").subscribe, &task));
    }

    #[test]
    fn events_come_from_the_coordinator_alone_and_it_can_not_take_them_back() {
        let (agent, coordinator) = (Permissions::of_agent("blue", "infra-1"), Permissions::of_coordinator());
        let event = Subjects::new("blue").event("run_started");
        assert!(allows(&coordinator.publish, &event) && !allows(&agent.publish, &event));
        assert!(!allows(&agent.subscribe, &event));
        for may in ["INFO.MUSTER_EVENTS", "CREATE.MUSTER_EVENTS"] {
            assert!(allows(&coordinator.publish, &format!("$JS.API.STREAM.{may}")), "{may}");
        }
        for never in ["DELETE.MUSTER_EVENTS", "PURGE.MUSTER_EVENTS", "UPDATE.MUSTER_EVENTS", "CREATE.OTHER", "NAMES"] {
            assert!(!allows(&coordinator.publish, &format!("$JS.API.STREAM.{never}")), "{never}");
        }
    }

    #[test]
    fn who_may_signal_says_that_in_his_own_name_alone() {
        let subjects = Subjects::new("blue");
        let (ci, coordinator) = (Permissions::of_signaller("blue", "ci"), Permissions::of_coordinator());
        let own = subjects.signal("0199c1d2-0000-7000-8000-000000000001", "approved", "ci");
        assert!(allows(&ci.publish, &own) && allows(&coordinator.subscribe, &own));
        assert_eq!(
            signal(&own),
            Some(SignalSubject {
                namespace: "blue",
                run: "0199c1d2-0000-7000-8000-000000000001",
                name: "approved",
                sender: "ci"
            })
        );
        for other in [subjects.signal("r", "approved", "cd"), Subjects::new("red").signal("r", "approved", "ci")] {
            assert!(!allows(&ci.publish, &other), "{other}");
        }
        for never in [subjects.report(1, "ci"), subjects.beat("ci"), subjects.register("ci"), subjects.log("ci")] {
            assert!(!allows(&ci.publish, &never), "{never}");
        }
        assert!(!allows(&Permissions::of_agent("blue", "ci").publish, &own), "an agent is no outsider");
        for none in ["muster.v1.blue.signal.r.ci", "muster.v1.blue.signal.r.a.b.ci", "muster.v1.blue.report.r.ci"] {
            assert_eq!(signal(none), None, "{none}");
        }
    }

    #[test]
    fn a_reader_has_one_consumer_and_nothing_of_the_stream() {
        let reader = Permissions::of_reader("tickets");
        for may in [
            "$JS.API.CONSUMER.CREATE.MUSTER_EVENTS.tickets.muster.v1.*.event.>",
            "$JS.API.CONSUMER.MSG.NEXT.MUSTER_EVENTS.tickets",
            "$JS.ACK.MUSTER_EVENTS.tickets.1.2.3.4.5",
        ] {
            assert!(allows(&reader.publish, may), "{may}");
        }
        for never in [
            "$JS.API.CONSUMER.MSG.NEXT.MUSTER_EVENTS.others",
            "$JS.API.CONSUMER.CREATE.OTHER.tickets",
            "$JS.ACK.MUSTER_EVENTS.others.1.2.3.4.5",
            "$JS.API.STREAM.DELETE.MUSTER_EVENTS",
            "muster.v1.default.event.run_ended",
        ] {
            assert!(!allows(&reader.publish, never), "{never}");
        }
    }

    #[test]
    fn an_answer_goes_to_who_asked() {
        let asked = Subjects::new("default").report(7, "infra-1");
        for own in ["_INBOX_infra-1.a.1", "_INBOX.a.1"] {
            assert!(may_answer(&asked, own), "{own}");
        }
        let others = [
            "_INBOX_infra-2.a.1",
            "_INBOX_infra-10.a",
            "_INBOX_infra-1",
            "_INBOXES.a",
            "_MUSTER_INBOX.a.1",
            "muster.v1.default.task.infra-2.i",
            "$JS.API.STREAM.PURGE.X",
        ];
        for other in others {
            assert!(!may_answer(&asked, other), "{other}");
        }
        let of_task = may_answer("muster.v1.default.task.infra-1.i", "_MUSTER_INBOX.x");
        assert!(of_task, "a task is asked by the coordinator alone");
        assert!(may_answer(CHECK, "_MUSTER_INBOX.x"), "one coordinator asks for another");
        assert!(!may_answer(CHECK, "_MUSTER_INBOXES.x"));
    }
}
