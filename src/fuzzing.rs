//! What the fuzz targets in `fuzz/` need beyond the public API. It is compiled only with `--cfg
//! fuzzing`. With it, randomness is derived from a counter, so that the same input always has the
//! same effect.

use std::ffi::OsString;

pub use crate::zmtp::curve::repeatable::{Edit, reset};

/// Panics if a socket's counters, lists or timers do not match its peers.
pub fn check(socket: &crate::socket::Socket) {
    socket.check();
}

/// Runs sockets, owners and faults that the input chooses, in virtual time. Panics if a promise of the sockets
/// does not hold.
pub fn sockets_in_virtual_time(bytes: &[u8]) {
    crate::socket::storm(bytes);
}

/// Parses words as the arguments of each command; returns the error lines and help texts.
pub fn command_lines(words: &[OsString]) -> Vec<String> {
    crate::cli::parse_all(words)
}
