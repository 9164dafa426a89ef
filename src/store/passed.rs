//! How far the claim's ranges begin with rows that are given up ([`super::change`]), so that a claim
//! does not read them again.
//!
//! Such a position is valid until rows change. Another program's commit ends it, and so do our
//! own changes: before a claim they may have queued rows, and when the transaction is rolled back
//! the rows that it took are there again.

use std::collections::HashMap;

use rusqlite::types::Value;

use super::Transaction;

/// Priority and ID of the last row that is passed over.
pub(super) type Position = (Value, i64);

/// By plugin, and by whether the rows run alone.
type Positions = HashMap<(String, bool), Position>;

#[derive(Debug, Default)]
pub(super) struct Passed {
    positions: Positions,
    /// Those before this transaction changed rows.
    before: Option<Positions>,
    /// Changes of the connection that they take into account.
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

    /// A transaction begins. The last one may not have been committed.
    pub(super) fn begin(&mut self, is_changed: bool, changes: u64) {
        if let Some(before) = self.before.take() {
            self.positions = before;
        }
        if is_changed {
            self.positions.clear();
        }
        self.changes = changes;
    }

    /// A claim begins.
    fn claim(&mut self, changes: u64) {
        if changes != self.changes {
            self.keep(changes);
            self.positions.clear();
        }
    }

    /// The transaction has changed rows.
    fn keep(&mut self, changes: u64) {
        self.before.get_or_insert_with(|| self.positions.clone());
        self.changes = changes;
    }

    /// The transaction is committed.
    pub(super) fn commit(&mut self, changes: u64) {
        if self.before.is_some() || changes != self.changes {
            self.clear();
        }
    }
}

impl Transaction<'_> {
    /// To be called before a claim reads rows.
    pub(super) fn begin_claim(&mut self) {
        let changes = self.inner.total_changes();
        self.refused.passed.claim(changes);
    }

    /// A claim has changed a row: it is before no row that the claim has not read.
    pub(super) fn note_claimed(&mut self) {
        let changes = self.inner.total_changes();
        self.refused.passed.keep(changes);
    }
}
