//! Random sockets, owners and faults, with what must hold at every step and at the end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::World;
use crate::socket::{Counters, Options, PeerId};
use crate::zmtp::SocketType;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Ledger {
    /// The first nodes are ROUTERs.
    routers: usize,
    /// Messages that a node has sent to another: sender, number.
    sent: u64,
    seen: HashSet<(u32, u32)>,
    /// The last number of a sender that a node has received. Two ROUTERs may have two connections at a time, of
    /// which only each is in order.
    last: HashMap<(usize, Option<PeerId>, u32), u32>,
}

impl Ledger {
    fn receive(&mut self, node: usize, id: PeerId, parts: &[Vec<u8>]) {
        let of = |index: usize| u32::from_be_bytes(parts[index].as_slice().try_into().unwrap());
        let (sender, number) = (of(0), of(1));
        assert_eq!(parts[2].len(), body_size(number), "a message is complete");
        assert!(parts[2].iter().all(|byte| *byte == number as u8));
        assert!(
            self.seen.insert((sender, number)),
            "{sender} {number} twice"
        );
        let are_routers = node < self.routers && (sender as usize) < self.routers;
        let connection = are_routers.then_some(id);
        let before = self.last.insert((node, connection, sender), number);
        assert!(before.is_none_or(|before| before < number), "in order");
    }
}

fn body_size(number: u32) -> usize {
    match number % 17 {
        0 => 6_000,
        small => small as usize * 13,
    }
}

#[cfg(feature = "curve")]
fn encrypted(options: Options, is_server: bool) -> Options {
    use crate::zmtp::curve::{Clients, SecretKey};
    let server = SecretKey::from_bytes([1; 32]);
    match is_server {
        true => options.curve_server(server, Clients::Any),
        false => options.curve_client(SecretKey::from_bytes([2; 32]), server.public()),
    }
}

/// Runs random sockets, owners and faults of a world without nodes. Panics if an invariant or a promise of the
/// sockets does not hold.
pub(crate) fn run(mut world: World) {
    let delay_us = [0, 100, 5000, 100_000][world.random(4) as usize];
    world.network.delay_max = Duration::from_micros(delay_us);
    world.network.chunk_max = [0, 0, 1000, 100][world.random(4) as usize];
    world.network.capacity = [256 << 10, 1000, 16 << 10][world.random(3) as usize];
    let has_faults = world.random(3) != 0;
    let heartbeats = |options: Options, on: bool| match on {
        true => options
            .heartbeat_ivl(SECOND)
            .heartbeat_timeout(SECOND * 20)
            .heartbeat_ttl(SECOND * 30),
        false => options,
    };
    #[cfg(feature = "curve")]
    let is_encrypted = world.random(8) == 0;
    let routers = 1 + world.random(2) as usize;
    let count = routers + 1 + world.random(4) as usize;
    for node in 0..count {
        let mut options = Options::new()
            .routing_id(format!("n{node}"))
            .reconnect_ivl(Duration::from_millis(20))
            .router_handover(world.random(2) == 0)
            .sndhwm([0, 3, 1000][world.random(3) as usize])
            .rcvhwm([0, 0, 1, 5][world.random(4) as usize]);
        options = heartbeats(options, world.random(2) == 0);
        #[cfg(feature = "curve")]
        if is_encrypted {
            options = encrypted(options, node < routers);
        }
        let socket_type = match node < routers {
            true => SocketType::Router,
            false => SocketType::Dealer,
        };
        world.add(socket_type, options);
        if node < routers {
            world.bind(node, &format!("n{node}"));
        }
    }
    for node in routers..count {
        for router in 0..routers {
            if router == 0 || world.random(2) == 0 {
                world.connect(node, &format!("n{router}"));
            }
        }
    }
    // With CURVE one of them would be a client.
    #[cfg(feature = "curve")]
    let may_cross = !is_encrypted;
    #[cfg(not(feature = "curve"))]
    let may_cross = true;
    if routers == 2 && may_cross {
        world.connect(0, "n1");
        if world.random(2) == 0 {
            world.connect(1, "n0");
        }
    }
    let mut ledger = Ledger {
        routers,
        ..Ledger::default()
    };
    let mut next = vec![0u32; count];
    let mut asleep_until = vec![world.now; count];
    let faults_end = world.now + SECOND / 2;
    let end = world.now + SECOND * 60;
    let mut cuts = 0;
    while world.now < end {
        let is_quiet = world.now >= faults_end;
        let mut was_busy = false;
        for (node, asleep_until) in asleep_until.iter_mut().enumerate() {
            if *asleep_until > world.now && !is_quiet {
                continue;
            }
            was_busy |= world.is_busy(node);
            iterate(&mut world, node, count, &mut ledger, &mut next, is_quiet);
            if !is_quiet && world.random(50) == 0 {
                let pause = Duration::from_millis(world.random(300));
                *asleep_until = world.now + pause;
            }
        }
        if has_faults && !is_quiet && world.random(60) == 0 {
            let (node, choice) = (world.random(count as u64) as usize, world.random(100));
            world.cut(node, choice);
            cuts += 1;
        }
        let step = match is_quiet {
            true if !was_busy => {
                let next = world.next_at().unwrap_or(end).min(end);
                next.max(world.now + Duration::from_nanos(1))
            }
            true => world.now + Duration::from_micros(100),
            false => world.now + Duration::from_micros(1 + world.random(4000)),
        };
        world.advance(step);
    }
    let total = |count: fn(&Counters) -> u64| -> u64 {
        world
            .nodes
            .iter()
            .map(|node| count(&node.engine.counters()))
            .sum()
    };
    let (unsent, unreceived) = (total(|all| all.unsent), total(|all| all.unreceived));
    let delivered = ledger.seen.len() as u64;
    assert!(
        delivered + unsent + unreceived <= ledger.sent + unreceived,
        "more than was sent"
    );
    if cuts == 0 {
        assert_eq!(
            delivered + unsent + unreceived,
            ledger.sent,
            "nothing is lost unnoticed"
        );
        assert_eq!(unreceived, 0);
    }
    // After the faults every connecting DEALER is connected and its queue is empty.
    for node in routers..count {
        let engine = &world.nodes[node].engine;
        assert_eq!(engine.pending_bytes(), 0, "node {node} has sent all");
        for (_, peer) in engine.peers.iter() {
            assert!(peer.is_established(), "node {node}: {:?}", peer.state);
        }
    }
}

fn iterate(
    world: &mut World,
    node: usize,
    count: usize,
    ledger: &mut Ledger,
    next: &mut [u32],
    is_quiet: bool,
) {
    world.process(node);
    if !is_quiet && world.random(5) == 0 {
        world.drive(node);
    } else {
        let most = match is_quiet {
            true => usize::MAX,
            false => world.random(20) as usize,
        };
        for _ in 0..most {
            let Some((id, _, parts)) = world.receive(node) else {
                break;
            };
            ledger.receive(node, id, &parts);
        }
    }
    if !is_quiet && world.random(3) == 0 {
        for _ in 0..world.random(6) {
            let number = next[node];
            let body = vec![number as u8; body_size(number)];
            let sender = (node as u32).to_be_bytes();
            let number_bytes = number.to_be_bytes();
            let parts: [&[u8]; 3] = [&sender, &number_bytes, &body];
            let to = format!("n{}", world.random(count as u64));
            let is_router = world.nodes[node].engine.is_router();
            let to = is_router.then_some(to.as_bytes());
            if world.send(node, to, &parts).is_ok() {
                ledger.sent += 1;
                next[node] += 1;
            }
        }
    }
    world.flush(node);
    world.check(node);
    if world.random(10) == 0 {
        world.events(node);
    }
}
