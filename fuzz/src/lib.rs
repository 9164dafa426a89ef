//! The fuzz targets as functions of their input: a bug panics.
//!
//! `fuzz_targets/` hands them to libFuzzer; `replay` runs them over files without it.

pub mod bridge;
pub mod command_line;
pub mod commands;
mod connection;
pub mod connection_curve;
pub mod connection_null;
pub mod connection_plain;
pub mod curve_handshake;
pub mod endpoint;
pub mod frames;
pub mod greeting;
pub mod keys;
pub mod manifest;
pub mod payloads;
pub mod protocol;
pub mod router;
pub mod schema;
pub mod sentinel;
pub mod sink_uri;
pub mod socket;
mod wire;

/// A target: its name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("bridge", bridge::run),
    ("command_line", command_line::run),
    ("commands", commands::run),
    ("connection_curve", connection_curve::run),
    ("connection_null", connection_null::run),
    ("connection_plain", connection_plain::run),
    ("curve_handshake", curve_handshake::run),
    ("endpoint", endpoint::run),
    ("frames", frames::run),
    ("greeting", greeting::run),
    ("keys", keys::run),
    ("manifest", manifest::run),
    ("payloads", payloads::run),
    ("protocol", protocol::run),
    ("router", router::run),
    ("schema", schema::run),
    ("sentinel", sentinel::run),
    ("sink_uri", sink_uri::run),
    ("socket", socket::run),
];

/// A folder in memory where there is such a thing: targets write in it for every input.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let base = std::path::Path::new("/dev/shm");
    match base.is_dir() {
        true => tempfile::tempdir_in(base).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// A Rust program ignores SIGPIPE, libFuzzer's does not: a write to a peer that has gone must be
/// an error there as well.
pub(crate) fn ignore_sigpipe() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let flag = std::sync::Arc::default();
        signal_hook::flag::register(signal_hook::consts::SIGPIPE, flag).unwrap();
    });
}
