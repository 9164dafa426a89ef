//! Attacks: a plugin, a peer, a local user, a folder or a row that wants more than is its own, on
//! the built programs. One file a theme.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod builds;
#[allow(dead_code)]
#[path = "../it/common.rs"]
mod common;
mod descendants;
mod folders;
mod limits;
mod memory;
mod modes;
mod mounts;
mod peers;
mod preloads;
mod processes;
mod programs;
mod sandbox;
mod shared;
mod sinks;

/// Copies a program by another process: a child of another test may inherit a descriptor that is open for writing,
/// and then the copy cannot be run (ETXTBSY).
fn copy_program(from: impl AsRef<std::ffi::OsStr>, to: impl AsRef<std::ffi::OsStr>) {
    let copied = std::process::Command::new("cp").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
