//! The faults of one server: the armed ones, and which messages have met theirs already.

use std::collections::HashSet;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, UnknownFault};
use crate::hash::fnv;
use crate::script::directive::Directives;
use crate::sync::lock;

/// The body of `POST /sim/faults`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arming {
    /// The fault: `cut`, or with its figure `cut@20`.
    pub fault: String,
    /// The pieces before the fault; like the next two fields it overrides the figure in `fault`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_pieces: Option<u64>,
    /// Milliseconds, for `slow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// The status, for `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u64>,
    /// The number of requests that meet the fault (default 1).
    #[serde(default = "once")]
    pub times: u64,
    /// The model whose requests meet the fault, as they spell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The path whose requests meet the fault (default: `/api/chat` and `/api/generate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

fn once() -> u64 {
    1
}

impl Arming {
    /// Returns the fault that the body arms.
    pub fn fault(&self) -> Result<Fault, UnknownFault> {
        let mut fault: Fault = self.fault.parse()?;
        if let Some(figure) = self.after_pieces.or(self.ms).or(self.status) {
            fault.at = figure;
        }
        Ok(fault)
    }

    fn meets(&self, path: &str, model: &str) -> bool {
        let path_meets = self
            .path
            .as_deref()
            .map_or_else(|| matches!(path, "/api/chat" | "/api/generate"), |wanted| wanted == path);
        path_meets && self.model.as_deref().is_none_or(|wanted| wanted == model)
    }
}

/// A fault that is planned for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The fault.
    pub fault: Fault,
    once: Option<u64>,
}

#[derive(Default)]
struct State {
    armed: Vec<(Fault, Arming)>,
    fired: HashSet<u64>,
}

/// All faults of one server.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
}

impl Faults {
    /// Arms a fault for the next requests that it meets.
    pub fn arm(&self, arming: Arming) -> Result<(), UnknownFault> {
        let fault = arming.fault()?;
        lock(&self.state).armed.push((fault, arming));
        Ok(())
    }

    /// Returns the armed faults, with the times that are left.
    pub fn armed(&self) -> Vec<Arming> {
        let state = lock(&self.state);
        state.armed.iter().map(|(_, arming)| arming.clone()).collect()
    }

    /// Disarms everything, and forgets which messages have met their faults.
    pub fn clear(&self) {
        *lock(&self.state) = State::default();
    }

    /// Takes an armed fault for a request, if there is one.
    pub fn take_armed(&self, path: &str, model: &str) -> Option<Planned> {
        let mut state = lock(&self.state);
        let at = state.armed.iter().position(|(_, a)| a.meets(path, model))?;
        let (fault, arming) = state.armed.get_mut(at)?;
        let fault = *fault;
        arming.times = arming.times.saturating_sub(1);
        if arming.times == 0 {
            state.armed.remove(at);
        }
        Some(Planned { fault, once: None })
    }

    /// Plans the fault of one generation: an armed one first, else the first that the user's
    /// message names and has not met.
    pub fn plan(&self, path: &str, model: &str, user_message: &str) -> Option<Planned> {
        if let Some(armed) = self.take_armed(path, model) {
            return Some(armed);
        }
        let requested = Directives::parse(user_message).faults;
        if requested.is_empty() {
            return None;
        }
        let message = fnv(0xcbf2_9ce4_8422_2325, user_message.as_bytes());
        let state = lock(&self.state);
        requested.iter().zip(1_u64..).find_map(|(requested, number)| {
            let key = fnv(message, &number.to_le_bytes());
            if requested.always {
                Some(Planned { fault: requested.fault, once: None })
            } else {
                (!state.fired.contains(&key))
                    .then_some(Planned { fault: requested.fault, once: Some(key) })
            }
        })
    }

    /// Returns whether a planned fault strikes now; false if another request has met it meanwhile.
    /// A fault is marked as met here, and not when it is planned, so that a short probe with the
    /// same message does not use it up.
    pub fn strike(&self, planned: Planned) -> bool {
        planned.once.is_none_or(|key| lock(&self.state).fired.insert(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;

    #[test]
    fn a_message_meets_its_faults_one_after_another_and_then_none() {
        let faults = Faults::default();
        let message = "[[fault=cut@2 fault=busy]]";
        for kind in [FaultKind::Cut, FaultKind::Busy] {
            let planned = faults.plan("/api/chat", "m", message).expect("a fault");
            assert_eq!(planned.fault.kind, kind);
            assert!(faults.strike(planned));
            assert!(!faults.strike(planned));
        }
        assert_eq!(faults.plan("/api/chat", "m", message), None);
        assert!(faults.plan("/api/chat", "m", "[[fault=end!]]").is_some());
        assert!(faults.plan("/api/chat", "m", "[[fault=end!]]").is_some());
    }

    #[test]
    fn an_armed_fault_hits_only_what_it_was_armed_for() {
        let faults = Faults::default();
        let arming = r#"{"fault":"cut","after_pieces":20,"times":2,"model":"m"}"#;
        faults.arm(serde_json::from_str(arming).expect("valid")).expect("known");
        assert_eq!(faults.plan("/api/chat", "n", ""), None);
        assert_eq!(faults.take_armed("/api/tags", "m"), None);
        for _ in 0..2 {
            let planned = faults.plan("/api/generate", "m", "").expect("armed");
            assert_eq!(planned.fault.at, 20);
        }
        assert_eq!(faults.plan("/api/generate", "m", ""), None);
    }
}
