//! Why nobody takes a step, for people: every reason of every agent of the role, those that are nearest to taking it first.

use jiff::Timestamp;
use muster_engine::ids::{HostLabel, InstanceId, Namespace};

use super::{Availability, Instance, Misfit, Table, Wish};

/// So many agents are named; of the others, how many there are.
const NAMED: usize = 4;

impl Table {
    /// Why nobody can take a step right now. `silent_since`: when an instance was last heard.
    pub(crate) fn why_not(
        &self,
        namespace: &Namespace,
        wish: &Wish,
        silent_since: impl Fn(&InstanceId) -> Option<Timestamp>,
    ) -> String {
        let role = self.roles.get(&(namespace.clone(), wish.selector.role.clone()));
        let ids = role.map_or(&[][..], |r| &r.instances);
        if ids.is_empty() {
            return format!("no agent of role {} has registered", wish.selector.role);
        }
        let known = ids.iter().filter_map(|id| Some((id, self.instances.get(id)?)));
        let mut all: Vec<_> = known.map(|(id, at)| (at.misfits(id, wish).collect::<Vec<_>>(), id, at)).collect();
        // What ends by itself comes first, then what one change would mend.
        all.sort_by_key(|(misfits, _, _)| (misfits.len(), misfits.first().copied()));
        let more = all.len().saturating_sub(NAMED);
        let named = all.iter().take(NAMED).filter_map(|(misfits, id, at)| {
            let agent = &at.offer.as_ref()?.agent;
            Some(format!("{agent}: {}", at.say(misfits, wish, silent_since(id))))
        });
        let mut clauses: Vec<String> = named.collect();
        if more > 0 {
            clauses.push(format!("and {more} more"));
        }
        clauses.join("; ")
    }
}

impl Instance {
    fn say(&self, misfits: &[Misfit], wish: &Wish, silent_since: Option<Timestamp>) -> String {
        if misfits.is_empty() {
            let (taken, slots) = (self.taken(), self.slots());
            return if self.has_room() { "has a free slot".to_owned() } else { format!("{taken}/{slots} slots taken") };
        }
        let all: Vec<String> = misfits.iter().map(|one| self.say_one(*one, wish, silent_since)).collect();
        all.join(", ")
    }

    fn say_one(&self, misfit: Misfit, wish: &Wish, silent_since: Option<Timestamp>) -> String {
        let offer = self.offer.as_ref();
        let silent = silent_since.map(|at| format!(" since {at:.0}")).unwrap_or_default();
        match misfit {
            Misfit::Not(Availability::Open) => "may be asked".to_owned(),
            Misfit::Not(Availability::Away) => "has not registered since the coordinator started".to_owned(),
            Misfit::Not(Availability::Suspect) => format!("has not answered{silent}"),
            Misfit::Not(Availability::Lost) => format!("lost, silent{silent}"),
            Misfit::Not(Availability::Draining) => "is draining".to_owned(),
            Misfit::Not(Availability::Ended | Availability::Replaced) => "has ended".to_owned(),
            Misfit::Refused => "refused this step".to_owned(),
            Misfit::Host => {
                let wanted = wish.host.as_ref().map_or("", HostLabel::as_str);
                format!("host differs: wants {wanted}, is on {}", offer.map_or("", |o| o.host.as_str()))
            }
            Misfit::Labels => {
                let has = |name: &str| offer.and_then(|o| o.labels.get(name));
                let differ = || wish.selector.labels.iter().filter(|(name, value)| has(name) != Some(*value));
                let wants: Vec<String> = differ().map(|(name, value)| format!("{name}={value}")).collect();
                let found = |name: &str| has(name).map_or_else(|| format!("no {name}"), |it| format!("{name}={it}"));
                let has: Vec<String> = differ().map(|(name, _)| found(name)).collect();
                format!("labels differ: wants {}, has {}", wants.join(" "), has.join(" "))
            }
            Misfit::Action => format!("does not offer {}", wish.action.name),
            Misfit::Version => {
                let offered = offer.and_then(|o| o.actions.get(&wish.action.name)).map_or("", String::as_str);
                format!("offers {} {offered}, and the plan is made for {}", wish.action.name, wish.action.version)
            }
        }
    }
}
