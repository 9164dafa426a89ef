//! Peers that should not get in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use casparian::socket::curve::{Clients, SecretKey};
use casparian::socket::{Dealer, Options};

use crate::arena::{Arena, Cost, Random};
use crate::support::*;

fn key(octet: u8) -> SecretKey {
    SecretKey::from_bytes([octet; 32])
}

fn arena(name: &'static str) -> Arena {
    let listed = [(key(2).public(), "good".to_owned())];
    let clients = Clients::Listed(Arc::new(listed.into_iter().collect()));
    Arena::with(
        name,
        Options::new().curve_server(key(1), clients),
        Options::new().curve_client(key(2), key(1).public()),
    )
}

/// What a client with the right keys sends to that server until its first message has left:
/// greeting, HELLO, INITIATE and a MESSAGE.
fn recorded(arena: &Arena) -> Vec<u8> {
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", relay.local_addr().unwrap());
    let options = Options::new().curve_client(key(2), key(1).public());
    let mut dealer = Dealer::new(options.routing_id("victim").no_reconnect()).unwrap();
    dealer.connect(&endpoint).unwrap();
    dealer.send(&[b"recorded"]).unwrap();
    let (mut client, _) = relay.accept().unwrap();
    let mut server = TcpStream::connect(arena.bound.trim_start_matches("tcp://")).unwrap();
    let mut record = Vec::new();
    for stream in [&client, &server] {
        stream.set_nonblocking(true).unwrap();
    }
    let strange = arena.seen().strange;
    until("the victim's message arrives", || {
        dealer.drive();
        let mut chunk = [0; 4096];
        if let Ok(count) = client.read(&mut chunk) {
            record.extend_from_slice(&chunk[..count]);
            server.write_all(&chunk[..count]).unwrap();
        }
        if let Ok(count) = server.read(&mut chunk) {
            client.write_all(&chunk[..count]).unwrap();
        }
        (arena.seen().strange > strange).then_some(())
    });
    record
}

#[test]
fn replayed_curve_handshakes() {
    let mut arena = arena("replayed CURVE");
    let record = recorded(&arena);
    let failed = arena.seen().counters.handshake_failed;
    for round in 0..500u64 {
        let mut raw = arena.raw();
        raw.write(&record);
        if round % 10 == 9 {
            arena.rounds_until("all are refused", |seen| {
                seen.counters.handshake_failed == failed + round + 1
            });
        }
    }
    let seen = arena.end(&Cost {
        memory_mib: 4,
        // HELLO and WELCOME are what a stranger can make us calculate.
        cpu: Duration::from_secs(20),
    });
    assert_eq!(seen.strange, 1, "the victim's own message alone");
    assert_eq!(seen.counters.established, 2);
}

#[test]
fn wrong_curve_keys() {
    let mut arena = arena("wrong CURVE keys");
    for (secret, server) in [(3, 1), (2, 9), (1, 1), (3, 9)] {
        for _ in 0..25 {
            let options = Options::new().curve_client(key(secret), key(server).public());
            let mut dealer = Dealer::new(options.no_reconnect()).unwrap();
            dealer.connect(&arena.bound).unwrap();
            dealer.send(&[b"let me in"]).unwrap();
            until("it is refused", || {
                dealer.drive();
                arena.round();
                (dealer.counters().handshake_failed == 1).then_some(())
            });
        }
    }
    let seen = arena.end(&Cost {
        memory_mib: 4,
        cpu: Duration::from_secs(20),
    });
    assert_eq!((seen.strange, seen.counters.established), (0, 1));
    assert_eq!(seen.counters.unauthorized, 50, "{:?}", seen.counters);
}

#[test]
fn forged_curve_messages() {
    let mut arena = arena("forged CURVE");
    let mut random = Random(7);
    for round in 0..500u64 {
        let mut raw = arena.raw();
        raw.write(&greeting("CURVE"));
        let mut hello = b"\x05HELLO\x01\0".to_vec();
        hello.extend([0; 72]);
        hello.extend(random.octets(120));
        raw.write(&frame(4, &hello));
        raw.write(&frame(0, &random.octets(100)));
        if round % 10 == 9 {
            arena.rounds_until("all are refused", |seen| {
                seen.counters.handshake_failed == round + 1
            });
        }
    }
    let seen = arena.end(&Cost {
        memory_mib: 4,
        cpu: Duration::from_secs(20),
    });
    assert_eq!((seen.strange, seen.counters.established), (0, 1));
}
