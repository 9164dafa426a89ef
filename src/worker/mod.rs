//! Job slots: each runs one plugin process at a time, and publishes its batches as output.
//!
//! [`slot`] decides (a state machine without I/O). [`Worker`] is the event loop that runs the slots. One
//! thread serves the control connection, and the plugin processes' sockets, printed output and exits. There
//! is one writer thread for each running job, and one thread for each environment that is being created.
//!
//! Backpressure extends from the disk to the plugin: the channel to a writer has room for one frame. While it
//! is full, the plugin process's socket is not read, and the plugin blocks in `publish`. So memory does not
//! grow with the output.
//!
//! The worker has no queue except the jobs that the sentinel has dispatched, and keeps no state that a
//! restart would need.

mod cleaner;
mod descriptors;
mod ends;
mod environments;
mod event;
mod event_loop;
mod exits;
mod fork_servers;
mod health;
mod input;
mod job;
pub mod leases;
mod leftovers;
mod log_tail;
mod messages;
mod meter;
mod mounts;
mod permit;
mod plugins;
mod processes;
mod publish;
mod receipt;
mod runtime;
mod sandbox;
mod scratch;
mod settling;
pub mod slot;
mod watchdog;
mod writer;

#[cfg(feature = "cli")]
pub(crate) use descriptors::raise_limit;
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use ends::BEING_CREATED;
pub use event_loop::{Error, Options, PluginStart, Worker};
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use runtime::private_folder;
pub use sandbox::SandboxOptions;
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use settling::settled;
