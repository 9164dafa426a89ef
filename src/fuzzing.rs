//! What the fuzz targets in `fuzz/` reach beyond the public API; compiled with `--cfg fuzzing`
//! alone. Randomness is a counter here, so that an input always does the same.

use std::ffi::OsString;

pub use crate::zmtp::curve::repeatable::{Edit, reset};

/// Panics where a socket's accounts do not agree with its peers.
pub fn check(socket: &crate::socket::Socket) {
    socket.check();
}

/// Parses words as each command's arguments; the error lines and help texts.
pub fn command_lines(words: &[OsString]) -> Vec<String> {
    crate::cli::parse_all(words)
}
