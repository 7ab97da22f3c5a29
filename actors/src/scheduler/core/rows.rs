//! Which rows of the metadata store hold the starts that have not ended.
//!
//! A burst would be thousands of rows, and thousands of deletions afterwards. Therefore the starts of one
//! request share rows, which are written again when some of their starts have ended: a row at most once
//! a tick, and one commit at a time, so that the memory for it is bounded.

use crate::{
    id::{RequestId, StartId},
    scheduler::records::{self, FunctionKey, StartRow},
    world::{BatchLimits, Write},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Pause after a commit that failed: a full or absent store is not helped by more attempts.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct StartRows {
    rows: BTreeMap<StartId, StartRow>,
    /// The row of each start that has not ended.
    row_of: BTreeMap<StartId, StartId>,
    /// Rows that the store has, or may have, with starts that have ended.
    stale: BTreeSet<StartId>,
    /// Rows on their way to the store.
    writing: Vec<StartId>,
    not_before: Option<Instant>,
}

impl StartRows {
    /// Divides the starts of one request.
    pub fn divide(
        key: &FunctionKey,
        starts: &[StartId],
        (accepted_at_ms, request): (u64, Option<&RequestId>),
        starts_per_row_max: usize,
    ) -> Vec<StartRow> {
        let row = |starts: &[StartId]| StartRow {
            id: starts[0].clone(),
            key: key.clone(),
            starts: starts.to_vec(),
            accepted_at_ms: Some(accepted_at_ms),
            request: request.cloned(),
        };
        starts.chunks(starts_per_row_max).map(row).collect()
    }

    /// The store has the row.
    pub fn insert(&mut self, row: StartRow) {
        self.row_of.extend(row.starts.iter().map(|start| (start.clone(), row.id.clone())));
        self.rows.insert(row.id.clone(), row);
    }

    /// The store may have the row, though its starts were refused.
    pub fn insert_refused(&mut self, row: StartRow) {
        self.stale.insert(row.id.clone());
        self.rows.insert(row.id.clone(), StartRow { starts: Vec::new(), ..row });
    }

    pub fn ended(&mut self, start: &StartId) {
        let Some(id) = self.row_of.remove(start) else { return };
        let row = self.rows.get_mut(&id).expect("rows outlive their starts");
        row.starts.retain(|other| other != start);
        self.stale.insert(id);
    }

    /// Rows that wait to be written.
    pub fn stale(&self) -> usize {
        self.stale.len()
    }

    /// What is to be written now, as much as the store takes at once. To be followed by `written`.
    pub fn take_writes(&mut self, limits: BatchLimits, now: Instant) -> Option<Vec<Write>> {
        let may = self.writing.is_empty() && self.not_before.is_none_or(|at| at <= now);
        if !may || self.stale.is_empty() {
            return None;
        }
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for id in &self.stale {
            let row = &self.rows[id];
            let write =
                if row.starts.is_empty() { records::delete_starts(id) } else { records::put_starts(row) };
            bytes += write.bytes();
            if !writes.is_empty() && (writes.len() == limits.operations_max || bytes > limits.bytes_max) {
                break;
            }
            self.writing.push(id.clone());
            writes.push(write);
        }
        for id in &self.writing {
            self.stale.remove(id);
        }
        Some(writes)
    }

    pub fn written(&mut self, is_durable: bool, now: Instant) {
        let written = std::mem::take(&mut self.writing);
        if !is_durable {
            self.stale.extend(written);
            self.not_before = Some(now + RETRY);
            return;
        }
        self.not_before = None;
        for id in written {
            if self.rows[&id].starts.is_empty() && !self.stale.contains(&id) {
                self.rows.remove(&id);
            }
        }
    }

    /// Starts that a later manager would find.
    #[cfg(test)]
    pub fn starts(&self) -> impl Iterator<Item = &StartId> {
        self.row_of.keys()
    }
}
