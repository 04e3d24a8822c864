//! Signals of outsiders over the bus: taken as those of the API are, in the name that the subject ends in.

use std::sync::Arc;

use muster_bus::{
    Delivery,
    message::{PROTOCOL, Signal, SignalReply},
    subject,
};
use muster_engine::{
    ids::{Actor, Namespace, RunId},
    run::Command,
};
use serde_json::json;

use super::{Shared, report::reply};
use crate::control::{Caller, ControlError, ControlErrorKind, MAX_REASON_CHARS, MAX_SIGNAL_BYTES};

/// Where a signal goes, and whose it is.
struct Addressed {
    namespace: Namespace,
    run: RunId,
    name: String,
    sender: Actor,
}

impl Shared {
    /// What wants no answer, or wants it elsewhere than in the sender's inbox, is not taken: a server may have been made to send
    /// it, by somebody who may not.
    pub(super) fn take_signal(self: &Arc<Self>, mut delivery: Delivery) {
        let (Some(to), Some(parts)) = (delivery.reply.take(), subject::signal(&delivery.subject)) else { return };
        let addressed = Addressed {
            namespace: parts.namespace.into(),
            run: parts.run.into(),
            name: parts.name.to_owned(),
            sender: format!("signal/{}", parts.sender).into(),
        };
        let signal = match read(&delivery.payload) {
            Ok(signal) => signal,
            Err(refused) => return to.send(reply(&refused)),
        };
        let Ok(permit) = Arc::clone(&self.signal_intake).try_acquire_owned() else {
            return to.send(reply(&SignalReply::Retry { why: "too many signals come at once".to_owned() }));
        };
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            to.send(reply(&shared.signal(addressed, signal).await));
            drop(permit);
        });
    }

    async fn signal(self: &Arc<Self>, addressed: Addressed, signal: Signal) -> SignalReply {
        let Addressed { namespace, run, name, sender } = addressed;
        let caller = Caller { actor: sender, request_id: None };
        let Signal { payload, reason, .. } = signal;
        let payload = Arc::new(if payload.is_null() { json!({}) } else { payload });
        let command = Command::Signal { signal: name, payload, reason };
        match self.command(&namespace, &run, command, &caller).await {
            Ok(_) => SignalReply::Recorded,
            Err(ControlError { kind: ControlErrorKind::Unavailable, message, .. }) => {
                SignalReply::Retry { why: message }
            }
            Err(ControlError { code, message, .. }) => refused(code, message),
        }
    }
}

/// The signal, or why it is none.
fn read(message: &[u8]) -> Result<Signal, SignalReply> {
    if message.len() > MAX_SIGNAL_BYTES {
        return Err(refused("MESSAGE_TOO_LARGE", format!("a signal has at most {MAX_SIGNAL_BYTES} bytes")));
    }
    let said: Signal = serde_json::from_slice(message)
        .map_err(|_| refused("MESSAGE_INVALID", "a signal is a JSON object: {\"protocol\": 1, \"payload\": …}"))?;
    if said.protocol != PROTOCOL {
        let why = format!("this coordinator speaks protocol {PROTOCOL}, not {}", said.protocol);
        return Err(refused("MESSAGE_INVALID", why));
    }
    if said.reason.chars().count() > MAX_REASON_CHARS {
        return Err(refused("MESSAGE_INVALID", format!("`reason` is longer than {MAX_REASON_CHARS} characters")));
    }
    Ok(said)
}

fn refused(reason: &str, why: impl Into<String>) -> SignalReply {
    SignalReply::Refused { reason: reason.to_owned(), why: why.into() }
}
