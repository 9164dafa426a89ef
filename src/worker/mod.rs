//! Job slots: each runs one plugin process at a time and turns its batches into published output.
//!
//! [`slot`] decides (a state machine without I/O); [`Worker`] is the loop that runs the slots:
//! one thread for the control connection, the plugin processes' sockets, their output and exits; one
//! writer thread a running job; one thread for each environment that is being made.
//!
//! Backpressure reaches from the disk to the plugin: a writer's channel holds one frame; while
//! it is full the plugin process's socket is not read, and the plugin blocks in `publish`. Memory does
//! not grow with the output.
//!
//! What it does not do: it has no queue of its own beyond what the sentinel has dispatched, and
//! keeps nothing that a restart would need.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod cleaner;
mod control;
mod descriptors;
mod environments;
mod event;
mod exits;
mod health;
mod input;
mod interpreters;
mod job;
pub mod leases;
mod leftovers;
mod log_tail;
mod meter;
mod permit;
mod plugins;
mod processes;
mod publish;
mod receipt;
mod runtime;
mod sandbox;
mod scratch;
mod serve;
mod settling;
pub mod slot;
mod watchdog;
mod writer;

#[cfg(feature = "cli")]
pub(crate) use descriptors::raise_limit;
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use runtime::private_folder;
pub use sandbox::SandboxOptions;
pub use serve::{Error, Options, PluginStart, Worker};
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use settling::settled;
