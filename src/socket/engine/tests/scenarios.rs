//! Scenarios with one right result, each under several seeds, delays and buffer sizes.

use super::*;
use crate::socket::Event;

/// Runs a scenario in worlds with different transports.
fn in_worlds(scenario: impl Fn(&mut World)) {
    for seed in 0..40 {
        let mut world = World::new(Choices::of_seed(seed), Instant::now());
        world.network.delay_max = Duration::from_micros([0, 10, 1000, 20_000][seed as usize % 4]);
        world.network.chunk_max = [0, 1, 7, 4096][seed as usize / 4 % 4];
        world.network.capacity = [256 << 10, 300, 4096][seed as usize / 16 % 3];
        scenario(&mut world);
    }
}

/// A peer sends and ends; a second one with its routing ID connects and sends; then the owner reads.
#[test]
fn what_a_peer_sent_before_another_takes_its_routing_id_is_delivered() {
    for handover in [true, false] {
        in_worlds(|world| {
            world.network.capacity = 256 << 10;
            let router = world.add(SocketType::Router, Options::new().router_handover(handover));
            world.bind(router, "r");
            let mut dealers = Vec::new();
            for first in [0u32, 500] {
                let dealer = world.add(SocketType::Dealer, named(b"w"));
                dealers.push(dealer);
                world.connect(dealer, "r");
                for count in first..first + 500 {
                    let body = count.to_be_bytes();
                    world.send(dealer, None, &[&body]).unwrap();
                }
                // The owner of the ROUTER only drives.
                let established = 1 + u64::from(first > 0);
                for _ in 0..20_000 {
                    for node in [router, dealer] {
                        world.process(node);
                        world.drive(node);
                        world.flush(node);
                        world.check(node);
                    }
                    let next = world.now + Duration::from_micros(100);
                    world.advance(next);
                    if world.nodes[dealer].engine.pending_bytes() == 0
                        && world.nodes[router].engine.counters().established == established
                    {
                        break;
                    }
                }
                assert_eq!(world.nodes[dealer].engine.pending_bytes(), 0);
                if first == 0 {
                    world.stop(dealer);
                    let later = world.now + SECOND;
                    world.advance(later);
                }
            }
            let received = world.run(SECOND * 60, |_, received| received[router].len() == 1000);
            let mut numbers: Vec<u32> = received[router]
                .iter()
                .map(|(_, parts)| number(parts))
                .collect();
            for half in [0..500, 500..1000] {
                let of_one: Vec<u32> = numbers
                    .iter()
                    .copied()
                    .filter(|number| half.contains(number))
                    .collect();
                assert_eq!(of_one, half.collect::<Vec<u32>>(), "in order");
            }
            numbers.sort_unstable();
            assert_eq!(numbers.len(), 1000);
            assert_eq!(world.nodes[router].engine.counters().unreceived, 0);
        });
    }
}

/// What a peer had sent that is refused after its handshake is counted.
#[test]
fn messages_of_a_refused_peer_are_counted() {
    in_worlds(|world| {
        let router = world.add(SocketType::Router, Options::new());
        world.bind(router, "r");
        let first = world.add(SocketType::Dealer, named(b"w"));
        world.connect(first, "r");
        let second = world.add(SocketType::Dealer, named(b"w").no_reconnect());
        world.run(SECOND, |world, _| {
            world.nodes[router].engine.counters().established == 1
        });
        world.connect(second, "r");
        for count in 0..1000u32 {
            world.send(second, None, &[&count.to_be_bytes()]).unwrap();
        }
        let received = world.run(SECOND * 30, |world, _| {
            world.nodes[router].engine.counters().handshake_failed == 1
                && world.nodes[second].engine.peer_count() == 0
        });
        assert_eq!(received[router].len(), 0);
        let refused = world.nodes[router].engine.counters();
        let sender = world.nodes[second].engine.counters();
        assert_eq!(
            refused.unreceived + sender.unsent,
            1000,
            "{refused:?} {sender:?}"
        );
        assert_eq!(world.nodes[router].engine.peer_count(), 1);
    });
}

/// The first peer has closed its connection, and the ROUTER's owner has not received its messages.
#[test]
fn a_newcomer_takes_the_routing_id_of_an_ended_connection_at_once() {
    in_worlds(|world| {
        let router = world.add(SocketType::Router, Options::new());
        world.bind(router, "r");
        let first = world.add(SocketType::Dealer, named(b"w"));
        world.connect(first, "r");
        for _ in 0..3 {
            world.send(first, None, &[b"\0\0\0\0"]).unwrap();
        }
        let drive = |world: &mut World, node: usize| {
            for _ in 0..3000 {
                for node in [router, node] {
                    world.process(node);
                    world.drive(node);
                    world.flush(node);
                    world.check(node);
                }
                let next = world.now + Duration::from_micros(100);
                world.advance(next);
            }
        };
        drive(world, first);
        world.stop(first);
        let later = world.now + world.network.delay_max;
        world.advance(later);
        let second = world.add(SocketType::Dealer, named(b"w"));
        world.connect(second, "r");
        let began = world.now;
        drive(world, second);
        let counters = world.nodes[router].engine.counters();
        assert_eq!((counters.established, counters.handshake_failed), (2, 0));
        assert!(world.now - began < SECOND);
    });
}

#[test]
fn of_the_connections_of_two_routers_to_each_other_one_is_used() {
    for (assigned, rounds) in [(false, 40), (true, 40)] {
        for seed in 0..rounds {
            let mut world = World::new(Choices::of_seed(seed), Instant::now());
            world.network.delay_max = Duration::from_micros([0, 50, 3000][seed as usize % 3]);
            let names: [&[u8]; 2] = [b"a", b"b"];
            for name in names {
                let node = world.add(SocketType::Router, named(name));
                world.bind(node, std::str::from_utf8(name).unwrap());
            }
            for node in [0, 1] {
                let other = std::str::from_utf8(names[1 - node]).unwrap();
                match assigned {
                    true => world.connect_as(node, other, names[1 - node]),
                    false => world.connect(node, other),
                };
                let pause = Duration::from_micros(world.random(4000));
                let later = world.now + pause;
                world.advance(later);
            }
            let mut sent = [0u32; 2];
            let received = world.run(SECOND * 20, |world, received| {
                for node in [0, 1] {
                    if sent[node] < 500 {
                        let body = sent[node].to_be_bytes();
                        if world.send(node, Some(names[1 - node]), &[&body]).is_ok() {
                            sent[node] += 1;
                            world.flush(node);
                        }
                    }
                }
                received.iter().all(|received| received.len() == 500)
            });
            for received in received {
                let mut numbers: Vec<u32> =
                    received.iter().map(|(_, parts)| number(parts)).collect();
                numbers.sort_unstable();
                let all: Vec<u32> = (0..500).collect();
                assert_eq!(numbers, all, "assigned {assigned}, seed {seed}");
            }
            // Both keep one connection, and it is the same one.
            world.run(SECOND * 60, |_, _| false);
            for node in [0, 1] {
                let engine = &world.nodes[node].engine;
                assert!(engine.route(names[1 - node]).is_some());
                let up = engine.peers.iter().filter(|(_, peer)| peer.up().is_some());
                assert_eq!(up.count(), 1, "assigned {assigned}, seed {seed}");
            }
        }
    }
}

/// The other side's connection is used; when its owner closes it, ours is made again.
#[test]
fn a_connection_that_stood_by_is_made_when_the_other_one_ends() {
    let mut world = World::new(Choices::of_seed(1), Instant::now());
    let (a, b) = (
        world.add(SocketType::Router, named(b"a")),
        world.add(SocketType::Router, named(b"b")),
    );
    world.bind(a, "a");
    world.bind(b, "b");
    let to_b = world.connect(a, "b");
    world.connect(b, "a");
    world.run(SECOND * 5, |_, _| false);
    let now = world.now;
    assert!(world.nodes[a].engine.disconnect(to_b, now));
    world.run(SECOND * 5, |_, _| false);
    world.send(a, Some(b"b"), &[b"\0\0\0\x01"]).unwrap();
    world.send(b, Some(b"a"), &[b"\0\0\0\x02"]).unwrap();
    let received = world.run(SECOND * 5, |_, received| {
        received.iter().all(|received| received.len() == 1)
    });
    assert_eq!(number(&received[a][0].1), 2);
    assert_eq!(number(&received[b][0].1), 1);
}

#[test]
fn a_further_address_is_tried_when_the_first_is_silent_or_refuses() {
    let endpoint: Endpoint = "tcp://host:1".parse().unwrap();
    let [first, second, third] =
        ["10.0.0.1:1", "10.0.0.2:1", "[::1]:1"].map(|text| text.parse().unwrap());
    // The silent addresses, the one that listens, and the longest time to connect.
    for (silent, listens, longest) in [
        (vec![first], Some(second), 600),
        (vec![first], Some(third), 600),
        (vec![], Some(third), 100),
        (vec![first, second], Some(third), 600),
        (vec![first, second, third], None, 0),
        (vec![], None, 0),
    ] {
        let mut world = World::new(Choices::of_seed(7), Instant::now());
        world
            .hosts
            .insert("host".to_owned(), vec![first, second, third]);
        world.silent = silent.clone();
        let server = world.add(SocketType::Router, Options::new());
        if let Some(listens) = listens {
            world.bind(server, &listens.to_string());
        }
        let options = named(b"d").connect_timeout(SECOND).no_reconnect();
        let dealer = world.add(SocketType::Dealer, options);
        world.connect_endpoint(dealer, &endpoint);
        let began = world.now;
        world.run(SECOND * 10, |world, _| {
            let counters = world.nodes[dealer].engine.counters();
            counters.established + counters.connect_failed > 0
        });
        let took = world.now - began;
        let counters = world.nodes[dealer].engine.counters();
        match listens {
            Some(_) => {
                assert_eq!(counters.established, 1, "{silent:?}");
                assert!(
                    took <= Duration::from_millis(longest),
                    "{took:?} {silent:?}"
                );
            }
            None => {
                let events = world.events(dealer);
                let failed = events.iter().find_map(|event| match event {
                    Event::ConnectFailed { reason, .. } => Some(reason.clone()),
                    _ => None,
                });
                // All addresses were tried before.
                assert_eq!(world.attempts.len(), 3);
                match silent.is_empty() {
                    true => assert!(matches!(failed, Some(DisconnectReason::ConnRefused(_)))),
                    false => assert!(matches!(failed, Some(DisconnectReason::Io(_)))),
                }
            }
        }
    }
}

#[test]
fn strangers_push_no_event_of_a_peer_out() {
    let mut world = World::new(Choices::of_seed(3), Instant::now());
    let router = world.add(SocketType::Router, Options::new());
    world.bind(router, "r");
    let dealer = world.add(SocketType::Dealer, named(b"good"));
    world.connect(dealer, "r");
    world.run(SECOND, |world, _| {
        world.nodes[router].engine.counters().established == 1
    });
    for _ in 0..5000 {
        let stranger = world.add(SocketType::Dealer, named(b"x").no_reconnect());
        world.connect(stranger, "r");
        world.process(router);
        world.stop(stranger);
        world.nodes.pop();
        let next = world.now + Duration::from_millis(2);
        world.advance(next);
        world.process(router);
        while world.receive(router).is_some() {}
    }
    let events = world.events(router);
    let is_good = |event: &&Event| matches!(event, Event::Established { routing_id, .. } if routing_id == b"good");
    assert_eq!(events.iter().filter(is_good).count(), 1);
    assert!(world.nodes[router].engine.counters().events_dropped > 0);
}

/// Many peers with small messages, and one whose message does not fit: at the limit only that one is
/// disconnected.
#[test]
fn at_the_limit_of_memory_no_peer_is_disconnected_for_what_was_read_ahead() {
    let mut world = World::new(Choices::of_seed(5), Instant::now());
    let total = 4 << 20;
    let options = Options::new()
        .rcvhwm_total_bytes(total)
        .maxmsgsize(64 << 20);
    let router = world.add(SocketType::Router, options);
    world.bind(router, "r");
    let count = 40;
    for index in 0..count {
        let dealer = world.add(SocketType::Dealer, named(&[b'd', index]).sndhwm(0));
        world.connect(dealer, "r");
        for _ in 0..200 {
            world.send(dealer, None, &[&[0; 4], &[7; 1000]]).unwrap();
        }
    }
    let greedy = world.add(
        SocketType::Dealer,
        named(b"greedy").no_reconnect().maxmsgsize(64 << 20),
    );
    world.connect(greedy, "r");
    world.send(greedy, None, &[&vec![1; 16 << 20]]).unwrap();
    let want = usize::from(count) * 200;
    let received = world.run(SECOND * 60, |_, received| received[router].len() >= want);
    let small = received[router]
        .iter()
        .filter(|(_, parts)| parts.len() == 2);
    assert_eq!(small.count(), want);
    let gone = world
        .events(router)
        .into_iter()
        .filter_map(|event| match event {
            Event::Disconnected {
                routing_id, reason, ..
            } => Some((routing_id, reason)),
            _ => None,
        });
    for (routing_id, reason) in gone {
        assert_eq!(routing_id, b"greedy", "{reason}");
    }
}

/// A routing ID of another peer that is generated is never given out, whatever peers call themselves.
#[test]
fn a_generated_routing_id_is_never_that_of_another_peer() {
    let mut world = World::new(Choices::of_seed(11), Instant::now());
    let router = world.add(SocketType::Router, Options::new());
    world.bind(router, "r");
    for _ in 0..20 {
        let dealer = world.add(SocketType::Dealer, Options::new());
        world.connect(dealer, "r");
    }
    world.run(SECOND, |world, _| {
        world.nodes[router].engine.counters().established == 20
    });
    assert_eq!(world.nodes[router].engine.routes.len(), 20);
}

#[test]
fn a_peer_that_stops_reading_holds_up_no_other() {
    in_worlds(|world| {
        let router = world.add(SocketType::Router, Options::new().sndhwm(10));
        world.bind(router, "r");
        let stalled = world.add(SocketType::Dealer, named(b"stalled"));
        let good = world.add(SocketType::Dealer, named(b"good"));
        world.connect(stalled, "r");
        world.connect(good, "r");
        world.run(SECOND * 2, |world, _| {
            world.nodes[router].engine.counters().established == 2
        });
        let body = vec![0; 100_000];
        let mut is_full = false;
        for _ in 0..200 {
            is_full |= world.send(router, Some(b"stalled"), &[&body]) == Err(Error::Full);
            world.flush(router);
        }
        assert!(is_full);
        world.send(router, Some(b"good"), &[b"\0\0\0\x05"]).unwrap();
        world.flush(router);
        for _ in 0..1000 {
            for node in [router, good] {
                world.process(node);
                world.flush(node);
            }
            if world.receive(good).is_some() {
                return;
            }
            let next = world.now + Duration::from_millis(1);
            world.advance(next);
        }
        panic!("nothing for the good peer");
    });
}

/// A large message is encrypted in parts, in several iterations of the owner's event loop. Others
/// that were sent behind it to other peers leave before.
#[cfg(feature = "curve")]
#[test]
fn a_large_encrypted_message_does_not_delay_those_of_other_peers() {
    use crate::zmtp::curve::{Clients, SecretKey};
    const SIZE: usize = 8 << 20;
    let key = |byte| SecretKey::from_bytes([byte; 32]);
    let mut world = World::new(Choices::of_seed(1), Instant::now());
    world.network.capacity = 1 << 30;
    let options = Options::new().curve_server(key(1), Clients::Any);
    let router = world.add(SocketType::Router, options);
    world.bind(router, "r");
    let dealers = [b"large", b"small"].map(|name| {
        let options = named(name).curve_client(key(2), key(1).public());
        let dealer = world.add(SocketType::Dealer, options);
        world.connect(dealer, "r");
        dealer
    });
    world.run(SECOND, |world, _| {
        world.nodes[router].engine.counters().established == 2
    });
    let body = vec![7; SIZE];
    world.send(router, Some(b"large"), &[&body]).unwrap();
    world.send(router, Some(b"small"), &[b"x"]).unwrap();
    // The first part is encrypted by `send`.
    let mut iterations = 1;
    while world.nodes[router].engine.pending_bytes() > 0 {
        world.process(router);
        world.flush(router);
        world.check(router);
        iterations += 1;
        let pending = world.nodes[router].engine.pending_bytes();
        let is_large_pending = pending >= SIZE as u64;
        assert_eq!(
            pending > 0,
            is_large_pending,
            "the small one leaves at once"
        );
        assert!(world.is_busy(router) || !is_large_pending, "no wait");
    }
    assert!(
        iterations >= SIZE / crate::limits::SEAL_BYTES_PER_ITERATION,
        "{iterations}"
    );
    let received = world.run(SECOND, |_, received| {
        dealers.iter().all(|dealer| received[*dealer].len() == 1)
    });
    assert_eq!(received[dealers[0]][0].1[0].len(), SIZE);
}
