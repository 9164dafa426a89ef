//! Peers that should not get in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use casparian::socket::curve::{Clients, CurveClient, SecretKey};
use casparian::socket::{Dealer, Options, Security, SocketType};
use casparian::zmtp::{Config, Connection, Heartbeat, Limits, Progress, SendQueue};

use crate::arena::{Arena, Cost, Random};
use crate::support::*;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

fn arena(name: &'static str) -> Arena {
    let listed = [(key(2).public(), "good".to_owned())];
    let clients = Clients::Listed(Arc::new(listed.into_iter().collect()));
    Arena::with(
        name,
        Transport::Tcp,
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
        descriptors: 20,
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
        descriptors: 4,
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
        hello.extend(random.bytes(120));
        raw.write(&frame(4, &hello));
        raw.write(&frame(0, &random.bytes(100)));
        if round % 10 == 9 {
            arena.rounds_until("all are refused", |seen| {
                seen.counters.handshake_failed == round + 1
            });
        }
    }
    let seen = arena.end(&Cost {
        memory_mib: 4,
        descriptors: 20,
        cpu: Duration::from_secs(20),
    });
    assert_eq!((seen.strange, seen.counters.established), (0, 1));
}

/// A peer that is let in and then pings without end, or breaks its boxes.
#[test]
fn authenticated_attackers() {
    let mut arena = arena("CURVE, let in, then bad");
    for kind in ["pings", "boxes"] {
        let config = Config {
            socket_type: SocketType::Dealer,
            routing_id: kind.as_bytes().to_vec(),
            limits: Limits::default(),
            read_ahead: 4096,
            rcvhwm: 0,
            handshake_timeout: Duration::from_secs(60),
            // A PING whenever time passes.
            heartbeat: Some(Heartbeat {
                interval: Duration::from_nanos(1),
                timeout: Duration::from_secs(3600),
                ttl: Duration::ZERO,
            }),
            security: Security::CurveClient(CurveClient {
                secret: key(2),
                server: key(1).public(),
            }),
            metadata: Vec::new(),
        };
        let now = Instant::now();
        let mut client = Connection::new(Arc::new(config), now);
        let mut queue = SendQueue::new();
        let mut raw = arena.raw();
        let mut written = |client: &mut Connection| {
            client.seal(&queue, usize::MAX).unwrap();
            let mut slices = casparian::zmtp::Slices::new();
            client.gather(&queue, &mut slices);
            let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
            client.handle_written(&mut queue, bytes.len(), now);
            bytes
        };
        let mut read = 0;
        until("it is let in", || {
            raw.write(&written(&mut client));
            arena.round();
            raw.poll();
            while read < raw.got.len() {
                let space = client.receive_space(casparian::zmtp::Growth::ReadAhead);
                let count = space.len().min(raw.got.len() - read);
                space[..count].copy_from_slice(&raw.got[read..][..count]);
                read += count;
                client.handle_received(count, now);
                while client.poll(now).unwrap() != Progress::NeedInput {}
            }
            client.is_open().then_some(())
        });
        if kind == "boxes" {
            let bytes = frame(0, &[b"\x07MESSAGE".to_vec(), vec![9; 100]].concat());
            raw.write(&bytes);
            until("it is closed", || {
                arena.round();
                raw.poll();
                raw.ended.then_some(())
            });
            continue;
        }
        // No PONG is read.
        let (mut sent, mut turns, mut pending, mut later) = (0, 0u32, Vec::new(), now);
        until("megabytes of PINGs are taken", || {
            if pending.is_empty() {
                for _ in 0..1000 {
                    later += Duration::from_secs(1);
                    client.handle_timeout(later, true).unwrap();
                    pending.extend(written(&mut client));
                }
            }
            let count = raw.try_write(&pending);
            pending.drain(..count);
            sent += count;
            turns += 1;
            if turns.is_multiple_of(8) {
                arena.round();
            }
            (sent > 4 << 20).then_some(())
        });
        assert_eq!(arena.seen().peers, 2);
    }
    let seen = arena.end(&Cost {
        memory_mib: 6,
        descriptors: 3,
        cpu: Duration::from_secs(20),
    });
    assert_eq!(seen.strange, 0);
}
