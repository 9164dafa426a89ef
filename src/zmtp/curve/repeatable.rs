//! Randomness and edits of plaintexts under fuzzing, where an input always has the same effect.

use std::cell::{Cell, RefCell};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BOXES: Cell<usize> = const { Cell::new(0) };
    static EDITS: RefCell<Vec<Edit>> = const { RefCell::new(Vec::new()) };
}

/// A change of a plaintext before CURVE seals it, as a peer with the right keys could make it.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// Which box since [`reset`], counted from 0.
    pub sealed: usize,
    /// Which byte, modulo the length.
    pub at: usize,
    /// What it is changed by (exclusive or).
    pub by: u8,
}

/// Starts randomness and the count of boxes anew, with these edits to come.
pub fn reset(edits: Vec<Edit>) {
    COUNT.set(0);
    BOXES.set(0);
    EDITS.set(edits);
}

/// Bytes that look random and are always the same after [`reset`].
pub(super) fn random(out: &mut [u8]) {
    for byte in out {
        let count = COUNT.get() + 1;
        COUNT.set(count);
        *byte = (count.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    }
}

/// Applies the edits for the box that is sealed next.
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
