//! One ROUTER, peers that come, go, stall and misbehave by a seeded plan: every message is
//! delivered at most once, in order per peer, and none is lost on a connection that lived;
//! descriptors, memory and CPU time stay flat.
//!
//! `CASPARIAN_SOAK_MESSAGES` (default 60000 a run) and `CASPARIAN_SOAK_SEED` make it longer and
//! different: `CASPARIAN_SOAK_MESSAGES=50000000 cargo test --release --test soak -- --nocapture`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "../support/mod.rs"]
mod support;

mod peer;
mod random;
mod server;
mod strangers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use casparian::socket::curve::{Clients, SecretKey};
use casparian::socket::{Options, Router};

use random::Random;
use server::Server;
use support::*;

/// Peers that behave, in threads of so many.
const PEERS: u64 = 16;
const PEERS_PER_THREAD: u64 = 8;

/// What the threads share.
pub(crate) struct Shared {
    /// Messages received, and how many the plan has.
    received: AtomicU64,
    messages: u64,
    /// All peers have ended.
    over: AtomicBool,
    seed: u64,
}

impl Shared {
    pub(crate) fn is_done(&self) -> bool {
        self.received.load(Ordering::Relaxed) >= self.messages
    }
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

fn soak(name: &str, net: &Net, server: &Options, peer: &Options, mechanism: &str) {
    let shared = Arc::new(Shared {
        received: AtomicU64::new(0),
        messages: setting("CASPARIAN_SOAK_MESSAGES", 60_000),
        over: AtomicBool::new(false),
        seed: setting("CASPARIAN_SOAK_SEED", 1),
    });
    let fds_before = fds();
    let mut router = Router::new(server.clone()).unwrap();
    let bound = router.bind(&net.endpoint()).unwrap().to_string();
    let began = Instant::now();
    let (seen, peers, strangers) = std::thread::scope(|scope| {
        let serving = scope.spawn(|| Server::new(server, &bound, &shared).run(router));
        let peers: Vec<_> = (0..PEERS / PEERS_PER_THREAD)
            .map(|thread| {
                let numbers = thread * PEERS_PER_THREAD..(thread + 1) * PEERS_PER_THREAD;
                let (bound, shared) = (&bound, &shared);
                scope.spawn(move || peer::run(numbers, bound, peer, shared))
            })
            .collect();
        let strangers = scope.spawn(|| strangers::run(net, &bound, mechanism, &shared));
        let peers: Vec<_> = peers
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        shared.over.store(true, Ordering::SeqCst);
        (serving.join().unwrap(), peers, strangers.join().unwrap())
    });
    let sum = |field: fn(&peer::Report) -> u64| peers.iter().map(field).sum::<u64>();
    println!(
        "{name}: seed {}, {:.1} s, {} messages received, {} answers received; {} peers came, {} left with \
         everything acknowledged, {} went in the middle; connections: {} accepted, {} established, {} ended, \
         {} kicked, {} handed over, {} reconnects by peers; {} restarts of the server; {} strangers; \
         memory {} KiB after a quarter, {} KiB at the end; server CPU {:.1} s, {} ms for the first quarter of \
         the messages, {} ms for the last, {} ms in an idle half second",
        shared.seed,
        began.elapsed().as_secs_f64(),
        seen.received,
        sum(|report| report.answers),
        sum(|report| report.came),
        sum(|report| report.left),
        sum(|report| report.vanished),
        seen.accepted,
        seen.established,
        seen.ended,
        seen.kicked,
        seen.handed_over,
        sum(|report| report.reconnects),
        seen.restarts,
        strangers,
        seen.memory_early >> 10,
        seen.memory_late >> 10,
        seen.cpu.as_secs_f64(),
        seen.cpu_early.as_millis(),
        seen.cpu_late.as_millis(),
        seen.idle_cpu.as_millis(),
    );
    assert!(seen.received >= shared.messages);
    assert!(
        sum(|report| report.left) >= PEERS,
        "every last peer leaves in peace"
    );
    assert!(seen.restarts > 0 && seen.kicked > 0 && strangers > 0);
    assert!(
        seen.memory_late < seen.memory_early + (16 << 20),
        "memory grows: {} → {}",
        seen.memory_early,
        seen.memory_late
    );
    let slack = std::time::Duration::from_millis(200);
    assert!(
        seen.cpu_late < 3 * seen.cpu_early + slack,
        "CPU time grows: {:?} → {:?}",
        seen.cpu_early,
        seen.cpu_late
    );
    assert!(
        seen.idle_cpu.as_millis() < 100,
        "{:?} while idle",
        seen.idle_cpu
    );
    until("all descriptors are given back", || {
        (fds() <= fds_before).then_some(())
    });
}

/// Both runs in one test: memory and descriptors are the process's.
#[test]
fn peers_come_go_stall_and_misbehave() {
    let base = || {
        Options::new()
            .heartbeat_ivl(std::time::Duration::from_millis(500))
            .heartbeat_timeout(std::time::Duration::from_secs(20))
    };
    let server = || base().router_handover(true).max_handshakes(64);
    let peer = || {
        base()
            .reconnect_ivl(std::time::Duration::from_millis(1))
            .reconnect_ivl_max(std::time::Duration::from_millis(50))
    };
    soak(
        "NULL over tcp",
        &Net::new(Transport::Tcp),
        &server(),
        &peer(),
        "NULL",
    );
    let key = |byte| SecretKey::from_bytes([byte; 32]);
    soak(
        "CURVE over ipc",
        &Net::new(Transport::Ipc),
        &server().curve_server(key(1), Clients::Any),
        &peer().curve_client(key(2), key(1).public()),
        "CURVE",
    );
}
