//! Casparian runs Python plugins over files and writes Parquet.
//!
//! The modules, in the order in which data passes through them (each uses only modules above it):
//!
//! - [`zmtp`]: ZMTP 3.1 without I/O.
//! - [`reactor`]: parts of an event loop.
//! - [`socket`]: ROUTER and DEALER.
//! - `job`: the types that describe a job (feature `sentinel` or `worker`).
//! - [`protocol`]: control protocol v4.
//! - `store`: the SQLite queue, registry and catalogue (feature `sentinel`).
//! - `sentinel`: the control plane (feature `sentinel`).
//! - `sink`: writes Arrow batches to files (feature `worker`).
//! - `sandbox`: restrictions of plugin processes (feature `worker`).
//! - `plugin`: plugin processes (feature `worker`).
//! - `worker`: job slots (feature `worker`).
//! - `cli`: the command lines (feature `cli`).
//!
//! Without default features only `zmtp`, `reactor`, `socket` and the header of `protocol` remain: a
//! ROUTER/DEALER stack (NULL and PLAIN) on mio, socket2, byteorder, rustix, nix, log, subtle and zeroize.
//! Feature `curve` adds the CURVE mechanism.

// One system call has no safe wrapper; see reactor/rights.rs.
#![deny(unsafe_code)]

#[cfg(any(feature = "sentinel", feature = "worker"))]
mod beside;
#[cfg(all(feature = "cli", any(feature = "sentinel", feature = "worker")))]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "worker")]
mod descriptors;
#[cfg(feature = "worker")]
mod disk;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(feature = "worker")]
mod input_file;
#[cfg(feature = "json")]
#[doc(hidden)]
pub mod job;
#[cfg(any(feature = "worker", all(feature = "sentinel", feature = "cli")))]
mod keys_in_use;
#[doc(hidden)]
pub mod limits;
#[cfg(any(feature = "sentinel", feature = "worker"))]
mod lock_file;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod plugin;
#[cfg(feature = "worker")]
mod proc_file;
#[doc(hidden)]
pub mod protocol;
pub mod reactor;
#[cfg(feature = "worker")]
mod remover;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod sandbox;
#[cfg(feature = "sentinel")]
#[doc(hidden)]
pub mod sentinel;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod sink;
pub mod socket;
#[cfg(feature = "sentinel")]
#[doc(hidden)]
pub mod store;
mod thread;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod worker;
pub mod zmtp;
