//! The programs as their users meet them: command lines, real SQLite files, real Python
//! environments, live libzmq peers, real kills.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod bad_plugins;
mod commands;
mod common;
mod content;
mod crash;
mod curve;
mod deadlines;
mod deploy;
mod descriptors;
mod dispatcher;
mod env_cache;
mod env_sources;
mod environments;
mod failures;
#[allow(dead_code)]
#[path = "../chaos/faults.rs"]
mod faults;
mod fsck;
mod hangs;
mod interop;
mod killers;
mod layout;
mod manifest;
#[path = "../support/memory.rs"]
mod memory;
mod mistakes;
mod moved_output;
mod moves;
mod old_system;
mod operate;
mod parameters;
mod plugin_folders;
mod preloads;
mod prepare;
mod real;
mod returns;
mod run;
mod run_again;
mod run_drift;
mod run_ends;
mod run_jobs;
mod run_missing;
mod run_replaced;
mod run_sinks;
mod run_waits;
mod scratch;
mod secrets;
mod settlement;
mod signals;
mod silent_inputs;
mod sink_locations;
mod stderr;
mod strangers;
mod types;
mod work;
