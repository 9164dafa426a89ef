//! Deterministic randomness and edits of plaintexts, for fuzzing: the same input always has the
//! same effect.

use std::cell::{Cell, RefCell};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BOXES: Cell<usize> = const { Cell::new(0) };
    static EDITS: RefCell<Vec<Edit>> = const { RefCell::new(Vec::new()) };
}

/// A change of a plaintext before CURVE seals it. A malicious peer with the right keys could make
/// it.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// The index of the box since [`reset`], from 0.
    pub sealed: usize,
    /// The index of the byte, modulo the length of the plaintext.
    pub at: usize,
    /// The mask by which the byte is changed (exclusive or).
    pub by: u8,
}

/// Resets the random sequence and the count of boxes, and sets the edits for the boxes that follow.
pub fn reset(edits: Vec<Edit>) {
    COUNT.set(0);
    BOXES.set(0);
    EDITS.set(edits);
}

/// Fills `out` with pseudorandom bytes; the sequence after [`reset`] is always the same.
pub(super) fn random(out: &mut [u8]) {
    for byte in out {
        let count = COUNT.get() + 1;
        COUNT.set(count);
        *byte = (count.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    }
}

/// Applies the edits for the next box to its plaintext.
pub(super) fn tamper(plain: &mut [u8]) {
    let sealed = BOXES.get();
    BOXES.set(sealed + 1);
    EDITS.with_borrow(|edits| {
        for edit in edits.iter().filter(|edit| edit.sealed == sealed) {
            let size = plain.len().max(1);
            if let Some(byte) = plain.get_mut(edit.at % size) {
                *byte ^= edit.by;
            }
        }
    });
}
