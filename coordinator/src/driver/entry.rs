//! The handle of a run in memory: its mailbox, what pokes it, and the view of it that everybody may read.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU8, Ordering},
};

use muster_bus::{bus::ReplyTo, message};
use muster_engine::{
    ids::{AgentName, HostLabel, InstanceId, Namespace, RunId, StepId},
    run::{
        Command, Run,
        command::Fence,
        event::{NotStarted, StatusNote},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{requests::Request, watch::Watcher};
use crate::control::ControlError;

/// How many messages wait for a run at most; senders over it are told to try again.
pub(super) const MAILBOX: usize = 256;

/// Something said to a run's task.
pub(super) enum Message {
    /// By a person or a service.
    Command { command: Box<Command>, request: Box<Request>, answer: Answer },
    /// By an agent; answered after the sync.
    Report { agent: AgentName, report: Box<message::Report>, reply: Option<ReplyTo> },
    /// By an agent.
    Status { fence: Fence, status: Box<StatusNote> },
    /// By an agent's answer to a task.
    Deny { fence: Fence, why: NotStarted },
    /// By the registry.
    Lost { instance: InstanceId },
    /// By the registry: the instance answers, and these are the attempts of this run it holds or has a report of.
    Found { agent: AgentName, instance: InstanceId, holds: Vec<(StepId, u32)> },
    /// By the registry: an instance is proven dead.
    Buried(Box<Burial>),
    /// Time has jumped.
    RestartClocks,
    /// Events from now on go there; answered with the run as it is.
    Watch { watcher: Watcher, reply: oneshot::Sender<Arc<Run>> },
    /// Look at what has changed around the run.
    Poke,
}

/// An instance that is proven dead, with all that it had started.
#[derive(Clone)]
pub(super) struct Burial {
    pub(super) instance: InstanceId,
    /// Whose it was, and who says so.
    pub(super) agent: AgentName,
    /// Where it was, and where that was found out.
    pub(super) host: HostLabel,
    /// Reports of these attempts are still to come.
    pub(super) spooled: Vec<(StepId, u32)>,
}

/// Where the answer to a command goes.
pub(super) type Answer = oneshot::Sender<Result<Arc<Run>, ControlError>>;

const TIMER: u8 = 1;
const SEAT: u8 = 2;
const RETIRE: u8 = 4;
const POKED: u8 = 8;

/// A run in memory.
pub(crate) struct RunEntry {
    /// Unique in this process; cheaper than the id.
    pub(crate) key: u64,
    /// Its id.
    pub(crate) id: RunId,
    /// Its namespace.
    pub(crate) namespace: Namespace,
    mailbox: mpsc::Sender<Message>,
    signals: AtomicU8,
    view: RwLock<View>,
}

/// What may be known of a run: what is on disk, never more.
#[derive(Clone)]
pub(super) struct View {
    /// None until its start is on disk.
    pub(super) run: Option<Arc<Run>>,
    /// Why its records can't be believed.
    pub(super) quarantine: Option<Arc<str>>,
}

/// What has happened around a run since its last turn.
#[derive(Clone, Copy)]
pub(super) struct Signals(u8);

impl Signals {
    /// Nothing.
    pub(super) fn nothing(self) -> bool {
        self.0 & !POKED == 0
    }

    /// Its wake-up has come, and is no longer registered.
    pub(super) fn timer(self) -> bool {
        self.0 & TIMER != 0
    }

    /// It shall leave memory if it has ended.
    pub(super) fn retire(self) -> bool {
        self.0 & RETIRE != 0
    }
}

impl RunEntry {
    /// A handle, and the mailbox for its task.
    pub(super) fn new(
        key: u64,
        id: RunId,
        namespace: Namespace,
        run: Option<Arc<Run>>,
    ) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (mailbox, receiver) = mpsc::channel(MAILBOX);
        let view = RwLock::new(View { run, quarantine: None });
        (Arc::new(Self { key, id, namespace, mailbox, signals: AtomicU8::new(0), view }), receiver)
    }

    /// Hand it a message if there is room; gives it back otherwise.
    pub(super) fn offer(&self, message: Message) -> Result<(), mpsc::error::TrySendError<Message>> {
        self.mailbox.try_send(message)
    }

    /// Hand it a message as soon as there is room; gives it back when the run has left memory.
    pub(super) async fn tell(&self, message: Message) -> Result<(), Message> {
        self.mailbox.send(message).await.map_err(|e| e.0)
    }

    /// Its wake-up has come.
    pub(super) fn timer_fired(&self) {
        self.poke(TIMER);
    }

    /// A seat has been reserved for one of its steps.
    pub(crate) fn seat_reserved(&self) {
        self.poke(SEAT);
    }

    /// Look at everything, not only at what has changed.
    pub(super) fn look_again(&self) {
        self.poke(SEAT);
    }

    /// It shall leave memory if it has ended.
    pub(super) fn retire(&self) {
        self.poke(RETIRE);
    }

    /// What has happened since the last call.
    pub(super) fn take_signals(&self) -> Signals {
        Signals(self.signals.swap(0, Ordering::AcqRel))
    }

    fn poke(&self, signal: u8) {
        let before = self.signals.fetch_or(signal | POKED, Ordering::AcqRel);
        if before & POKED == 0 {
            // A full mailbox means that a turn is coming, and every turn takes the signals.
            let _ = self.mailbox.try_send(Message::Poke);
        }
    }

    /// The run as it is on disk.
    pub(super) fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The run as it is on disk.
    pub(super) fn run(&self) -> Option<Arc<Run>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).run.clone()
    }

    /// Publish what is on disk.
    pub(super) fn publish(&self, run: &Arc<Run>) {
        self.view.write().unwrap_or_else(PoisonError::into_inner).run = Some(Arc::clone(run));
    }

    /// Its records can't be believed: nothing is done for it any more.
    pub(super) fn quarantine(&self, why: &str) {
        self.view.write().unwrap_or_else(PoisonError::into_inner).quarantine = Some(why.into());
    }
}
