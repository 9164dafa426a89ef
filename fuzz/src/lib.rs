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
pub mod payloads;
pub mod protocol;
pub mod router;
pub mod schema;
pub mod sentinel;
pub mod sink_uri;
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
    ("payloads", payloads::run),
    ("protocol", protocol::run),
    ("router", router::run),
    ("schema", schema::run),
    ("sentinel", sentinel::run),
    ("sink_uri", sink_uri::run),
];
