//! Positions behind the skipped rows ([`super::change`]) at the head of each range of the claim, so that a
//! claim does not read these rows again.
//!
//! A position is valid until rows change. It becomes invalid by another program's commit, and by changes of
//! this connection: before a claim these may have queued rows, and after a rollback the rows that the
//! transaction has claimed are QUEUED again.

use std::collections::HashMap;

use rusqlite::types::Value;

use super::Transaction;

/// Priority and ID of the last skipped row.
pub(super) type Position = (Value, i64);

/// By plugin, and by whether the rows run alone.
type Positions = HashMap<(String, bool), Position>;

#[derive(Debug, Default)]
pub(super) struct Passed {
    positions: Positions,
    /// The positions before this transaction changed rows.
    before: Option<Positions>,
    /// The connection's number of changes up to which the positions are valid.
    changes: u64,
}

impl Passed {
    /// The position in a range.
    pub(super) fn get(&self, plugin: &str, runs_alone: bool) -> Option<&Position> {
        match self.positions.is_empty() {
            true => None,
            false => self.positions.get(&(plugin.to_owned(), runs_alone)),
        }
    }

    pub(super) fn set(&mut self, plugin: &str, runs_alone: bool, position: Position) {
        self.positions
            .insert((plugin.to_owned(), runs_alone), position);
    }

    pub(super) fn clear(&mut self) {
        self.positions.clear();
        self.before = None;
    }

    /// Called when a transaction begins. The last one may have been rolled back.
    pub(super) fn begin(&mut self, is_changed: bool, changes: u64) {
        if let Some(before) = self.before.take() {
            self.positions = before;
        }
        if is_changed {
            self.positions.clear();
        }
        self.changes = changes;
    }

    /// Called when a claim begins.
    fn claim(&mut self, changes: u64) {
        if changes != self.changes {
            self.keep(changes);
            self.positions.clear();
        }
    }

    /// Notes that the transaction has changed rows in a way that keeps the positions valid.
    fn keep(&mut self, changes: u64) {
        self.before.get_or_insert_with(|| self.positions.clone());
        self.changes = changes;
    }

    /// Called when the transaction is committed.
    pub(super) fn commit(&mut self, changes: u64) {
        if self.before.is_some() || changes != self.changes {
            self.clear();
        }
    }
}

impl Transaction<'_> {
    /// Must be called before a claim reads rows.
    pub(super) fn begin_claim(&mut self) {
        let changes = self.inner.total_changes();
        self.refused.passed.claim(changes);
    }

    /// Notes that a claim has changed a row. Positions stay valid, because the claim has read all rows before
    /// it.
    pub(super) fn note_claimed(&mut self) {
        let changes = self.inner.total_changes();
        self.refused.passed.keep(changes);
    }
}
