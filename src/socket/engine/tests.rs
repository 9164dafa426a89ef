//! Engines in virtual time: single scenarios, and random ones from seeds.

use std::time::Duration;

use super::simulation::{Choices, World};
use super::*;
use crate::socket::{DisconnectReason, Error, Options};

mod scenarios;
mod seeds;

const SECOND: Duration = Duration::from_secs(1);

fn named(routing_id: &[u8]) -> Options {
    Options::new().routing_id(routing_id)
}

fn number(parts: &[Vec<u8>]) -> u32 {
    u32::from_be_bytes(parts[0].as_slice().try_into().unwrap())
}
