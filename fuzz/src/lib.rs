//! The fuzz targets as functions of their input. They panic if they find a bug.
//!
//! `fuzz_targets/` passes them to libFuzzer; `replay` runs them over files without it.

use std::alloc::{GlobalAlloc, Layout, System};

pub mod bridge;
pub mod command_line;
pub mod commands;
mod connection;
pub mod connection_curve;
pub mod connection_null;
pub mod connection_plain;
pub mod curve_handshake;
mod curve_keys;
pub mod endpoint;
pub mod engine;
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

/// Maximum size of one allocation, in bytes. Inputs have a few KiB, so a larger allocation would
/// follow a declared size.
const ALLOCATION_MAX: usize = 64 << 20;

/// The system's allocator, with a crash at allocations above the limit.
struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(size: usize) {
    if size > ALLOCATION_MAX {
        eprintln!("ERROR: an allocation of {size} bytes, the limit is {ALLOCATION_MAX}");
        std::process::abort();
    }
}

// SAFETY: every call is passed unchanged to the system's allocator, which satisfies the contract.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller guarantees what `System` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// A target: its name, and the function that runs it on an input.
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
    ("engine", engine::run),
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

/// Creates a temporary folder, in memory if possible, because targets write in it for every input.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let base = std::path::Path::new("/dev/shm");
    match base.is_dir() {
        true => tempfile::tempdir_in(base).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Makes a write to a closed connection an error instead of a signal. Rust programs ignore SIGPIPE,
/// but libFuzzer's main program does not.
pub(crate) fn ignore_sigpipe() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let flag = std::sync::Arc::default();
        signal_hook::flag::register(signal_hook::consts::SIGPIPE, flag).unwrap();
    });
}
