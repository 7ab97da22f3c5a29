//! What the manager must hear in the end, although sessions and actors on the way may end.

use crate::{id::StartId, wire::control::ToManager};
use std::collections::VecDeque;

/// How starts became ready and how instances ended, the newest of them: said again on each new session,
/// because nobody knows what of the one before was heard. The manager takes each of them twice.
pub struct Told {
    kept: VecDeque<ToManager>,
    kept_max: usize,
}

impl Told {
    pub fn new(kept_max: usize) -> Self {
        Self { kept: VecDeque::new(), kept_max }
    }

    pub fn note(&mut self, message: &ToManager) {
        let Some(about) = start_of(message) else { return };
        // The end of an instance says all that its beginning did.
        self.kept.retain(|known| start_of(known) != Some(about));
        if self.kept.len() == self.kept_max {
            self.kept.pop_front();
        }
        self.kept.push_back(message.clone());
    }

    pub fn iter(&self) -> impl Iterator<Item = &ToManager> {
        self.kept.iter()
    }
}

fn start_of(message: &ToManager) -> Option<&StartId> {
    match message {
        ToManager::Ready { start, .. } | ToManager::Ended { start, .. } => Some(start),
        ToManager::Hello(_)
        | ToManager::Heartbeat { .. }
        | ToManager::Progress { .. }
        | ToManager::Recorded { .. }
        | ToManager::Renew { .. }
        | ToManager::UpstreamLost { .. }
        | ToManager::OriginWanted { .. }
        | ToManager::Cold { .. }
        | ToManager::RoomWanted { .. }
        | ToManager::Observed { .. }
        | ToManager::Yield => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::{EndReason, StartReport, Step};

    #[test]
    fn the_last_word_about_each_of_the_newest_starts_is_kept() {
        let start = |name: &str| -> StartId { name.parse().expect("valid") };
        let report = StartReport::default;
        let ready = |name| ToManager::Ready { start: start(name), report: report() };
        let reason = EndReason::Stopped;
        let ended = |name| ToManager::Ended { start: start(name), reason: reason.clone(), report: report() };
        let mut told = Told::new(2);
        told.note(&ready("a"));
        told.note(&ToManager::Progress { start: start("a"), step: Step::Run, elapsed_us: 1 });
        told.note(&ended("a"));
        assert_eq!(told.iter().cloned().collect::<Vec<_>>(), [ended("a")]);
        told.note(&ready("b"));
        told.note(&ready("c"));
        assert_eq!(told.iter().cloned().collect::<Vec<_>>(), [ready("b"), ready("c")]);
    }
}
