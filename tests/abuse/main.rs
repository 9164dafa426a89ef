//! Attackers on raw sockets, while a good peer on the same ROUTER goes on: what each attack can
//! cost at most in memory, descriptors and CPU time is asserted and printed
//! (`cargo test --test abuse -- --nocapture`).

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod descriptors;
mod greetings;
mod messages;
mod secrets;
