//! What the fuzz targets in `fuzz/` reach beyond the public API; compiled with `--cfg fuzzing`
//! alone. Randomness is a counter here, so that an input always does the same.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;

use crate::sentinel::control::Control;
use crate::sentinel::{Options, turn};
use crate::store::{self, Store};

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
    /// Which octet, modulo the length.
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

/// Octets that look random and are always the same after [`reset`].
pub(crate) fn random(out: &mut [u8]) {
    for octet in out {
        let count = COUNT.get() + 1;
        COUNT.set(count);
        *octet = (count.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    }
}

/// Applies the edits for the box that is sealed next.
pub(crate) fn tamper(plain: &mut [u8]) {
    let sealed = BOXES.get();
    BOXES.set(sealed + 1);
    EDITS.with_borrow(|edits| {
        for edit in edits.iter().filter(|edit| edit.sealed == sealed) {
            let size = plain.len().max(1);
            if let Some(octet) = plain.get_mut(edit.at % size) {
                *octet ^= edit.by;
            }
        }
    });
}

/// Panics where a socket's accounts do not agree with its peers.
pub fn check(socket: &crate::socket::Socket) {
    socket.check();
}

/// Parses words as each command's arguments; the error lines and help texts.
pub fn command_lines(words: &[OsString]) -> Vec<String> {
    crate::cli::parse_all(words)
}

/// A sentinel without its socket: control state and store, a turn at a time.
pub struct Sentinel {
    /// The store.
    pub store: Store,
    /// The control state.
    pub control: Control,
    options: Options,
    waiting_said: HashSet<String>,
    queue_changed: bool,
}

impl Sentinel {
    /// A sentinel at its start, over a database.
    pub fn open(path: &Path, control: Control, now_ms: i64) -> Result<Self, store::Error> {
        let mut store = Store::open(path, store::Open::Create)?;
        let endpoint = crate::reactor::Endpoint::IpcAbstract("fuzz".to_owned());
        let options = Options::new(endpoint, path.to_path_buf());
        turn::recover(&mut store, &options, now_ms)?;
        Ok(Sentinel {
            store,
            control,
            options,
            waiting_said: HashSet::new(),
            queue_changed: true,
        })
    }

    /// The transaction of a turn.
    pub fn turn(
        &mut self,
        expire: bool,
        now: std::time::Instant,
        now_ms: i64,
    ) -> Result<(), store::Error> {
        self.queue_changed |= self.store.changed()?;
        turn::Turn {
            store: &mut self.store,
            control: &mut self.control,
            options: &self.options,
            waiting_said: &mut self.waiting_said,
            now,
            now_ms,
        }
        .run(&mut self.queue_changed, expire)
    }
}
