//! The control plane: workers, leases, dispatch.
//!
//! [`control`] decides (a state machine without I/O). [`Sentinel`] is the event loop that runs it:
//! one thread, one ROUTER socket, one writing database connection.
//!
//! Invariant: one iteration of the event loop is one transaction. Every ready message is applied, free
//! slots are filled, the transaction is committed (fsync), and only then DISPATCH and
//! acknowledgements are sent. So nothing is sent that a crash could undo. Under load a transaction has more
//! changes. Leases are renewed in memory, also while the database fails.
//!
//! The sentinel never runs a plugin, reads an input or writes output.

pub(crate) mod clock;
pub mod control;
mod deployments;
mod event_loop;
mod outcome;
pub mod publishers;
mod round;
pub mod scheduler;
mod transaction;

pub use event_loop::{Error, Options, Sentinel};
pub use outcome::JobEnd;
