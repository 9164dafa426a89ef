//! Established peers that send too much, too long, or too often.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::Options;

use crate::arena::{Arena, Cost};
use crate::support::*;

fn attacker(arena: &Arena, routing_id: &[u8]) -> Raw {
    let mut raw = arena.raw();
    raw.shake_hands("DEALER", routing_id);
    raw
}

/// Writes `bytes` again and again until the connection is closed.
fn flood_until_closed(arena: &mut Arena, raw: &mut Raw, bytes: &[u8]) {
    let mut at = 0;
    let mut turns = 0u32;
    until("it is closed", || {
        at = (at + raw.try_write(&bytes[at..])) % bytes.len();
        raw.read(1024);
        turns += 1;
        if turns.is_multiple_of(16) {
            arena.round();
        }
        raw.ended.then_some(())
    });
}

#[test]
fn endless_more_frames() {
    let mut arena = Arena::new("endless MORE", Options::new().maxmsgsize(8 << 20));
    for body in [0, 1, 100, 1 << 20] {
        // Up to 4096 frames, or 8 MiB, whichever comes first.
        let mut raw = attacker(&arena, b"endless");
        flood_until_closed(&mut arena, &mut raw, &frame(1, &vec![0; body]));
    }
    arena.rounds_until("all are closed", |seen| seen.counters.disconnected == 4);
    let seen = arena.end(&Cost {
        memory_mib: 40,
        descriptors: 5,
        cpu: Duration::from_secs(5),
    });
    assert_eq!((seen.strange, seen.counters.protocol_errors), (0, 4));
}

#[test]
fn endless_commands_within_a_message() {
    let mut arena = Arena::new("endless commands in one", Options::new());
    for command in [&b"\x04PING\0\0"[..], b"\x04PONG", b"\x07UNKNOWN"] {
        let mut raw = attacker(&arena, b"endless");
        raw.write(&frame(1, b"the first of two frames"));
        flood_until_closed(&mut arena, &mut raw, &frame(4, command).repeat(1000));
    }
    arena.rounds_until("all are closed", |seen| seen.counters.disconnected == 3);
    let seen = arena.end(&Cost {
        memory_mib: 12,
        descriptors: 4,
        cpu: Duration::from_secs(5),
    });
    assert_eq!((seen.strange, seen.counters.protocol_errors), (0, 3));
}

#[test]
fn huge_declared_frames() {
    let mut arena = Arena::new("declared 2^63-1", Options::new());
    for round in 0..200u64 {
        let mut raw = attacker(&arena, b"huge");
        let mut bytes = vec![2];
        bytes.extend((i64::MAX as u64 - round).to_be_bytes());
        bytes.extend([0; 500]);
        raw.write(&bytes);
        arena.rounds_until("it is closed", |seen| {
            seen.counters.protocol_errors == round + 1
        });
    }
    // What the limits allow is taken as it comes, never reserved.
    let raws: Vec<Raw> = (0..100u8)
        .map(|n| {
            let mut raw = attacker(&arena, &[b'a', n]);
            let mut bytes = vec![2];
            bytes.extend((64u64 << 20).to_be_bytes());
            bytes.extend([0; 500]);
            raw.write(&bytes);
            raw
        })
        .collect();
    arena.rounds_until("all wait for more", |seen| seen.counters.established == 301);
    for _ in 0..100 {
        arena.round();
    }
    assert_eq!(arena.seen().peers, 101);
    drop(raws);
    arena.end(&Cost {
        memory_mib: 4,
        descriptors: 102,
        cpu: Duration::from_secs(5),
    });
}

#[test]
fn floods_below_the_mark() {
    let mut arena = Arena::new("floods of small messages", Options::new());
    let over = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..3u8 {
            let mut raw = attacker(&arena, &[b'f', n]);
            let over = &over;
            scope.spawn(move || {
                let bytes = frame(0, b"a small message").repeat(4096);
                let mut at = 0;
                while !over.load(Ordering::SeqCst) {
                    let count = raw.try_write(&bytes[at..]);
                    at = (at + count) % bytes.len();
                    if count == 0 {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            });
        }
        while began.elapsed() < Duration::from_secs(2) {
            arena.round();
        }
        // A newcomer is not kept waiting either.
        let mut late = casparian::socket::Dealer::new(Options::new().routing_id("late")).unwrap();
        late.connect(&arena.bound).unwrap();
        until("a newcomer is let in", || {
            late.drive();
            arena.round();
            (late.counters().established == 1).then_some(())
        });
        over.store(true, Ordering::SeqCst);
    });
    arena.rounds_until("they are gone", |seen| seen.peers == 1);
    let strange = arena.seen().strange;
    assert!(strange > 10_000, "{strange}");
    let elapsed = began.elapsed();
    arena.end(&Cost {
        memory_mib: 8,
        descriptors: 5,
        // The flood may cost a core for as long as it lasts, and no more.
        cpu: elapsed,
    });
}

#[test]
fn large_unfinished_messages_of_many() {
    let total = 32 << 20;
    let mut arena = Arena::new(
        "large, never finished",
        Options::new().rcvhwm_total_bytes(total),
    );
    // It needs memory as well, and gets it.
    arena.filler = vec![7; 100_000];
    arena.round();
    let mut raws: Vec<Raw> = (0..20u8).map(|n| attacker(&arena, &[b'l', n])).collect();
    let mut head = vec![2];
    head.extend((60u64 << 20).to_be_bytes());
    raws.iter_mut().for_each(|raw| raw.write(&head));
    let body = vec![0; 64 << 10];
    let mut turns = 0u32;
    until("those that do not fit are closed", || {
        for raw in &mut raws {
            raw.try_write(&body);
            raw.read(1024);
        }
        turns += 1;
        if turns.is_multiple_of(8) {
            arena.round();
        }
        (arena.seen().counters.too_many > 10).then_some(())
    });
    drop(raws);
    arena.rounds_until("all are gone", |seen| seen.peers == 1);
    let seen = arena.end(&Cost {
        memory_mib: 128,
        descriptors: 21,
        cpu: Duration::from_secs(10),
    });
    assert_eq!(seen.strange, 0);
}

#[test]
fn ping_floods() {
    let mut arena = Arena::new("PING floods", Options::new());
    let mut pings = b"\x04PING\0\0".to_vec();
    pings.extend([7; 16]);
    let pings = frame(4, &pings).repeat(1000);
    let size = pings.len() / 1000;
    let mut raws: Vec<(Raw, usize)> = (0..4u8)
        .map(|n| (attacker(&arena, &[b'p', n]), 0))
        .collect();
    arena.rounds_until("all are let in", |seen| seen.peers == 5);
    // They never read a PONG: those that find no room are dropped.
    let mut turns = 0u32;
    until("megabytes of PINGs are taken", || {
        for (raw, written) in &mut raws {
            *written += raw.try_write(&pings[*written % size..]);
        }
        turns += 1;
        if turns.is_multiple_of(8) {
            arena.round();
        }
        let written: usize = raws.iter().map(|(_, written)| written).sum();
        (written > 32 << 20).then_some(())
    });
    arena.rounds_until("what was written is read", |_| true);
    assert_eq!(arena.seen().peers, 5);
    drop(raws);
    arena.rounds_until("they are gone", |seen| seen.peers == 1);
    arena.end(&Cost {
        memory_mib: 8,
        descriptors: 5,
        cpu: Duration::from_secs(20),
    });
}

#[test]
fn ten_thousand_handovers() {
    for (name, transport) in [
        ("10,000 handovers, tcp", Transport::Tcp),
        ("10,000 handovers, ipc", Transport::Ipc),
    ] {
        let server = Options::new().router_handover(true);
        let mut arena = Arena::with(name, transport, server, Options::new());
        for round in 1..=10_000u64 {
            let _gone = attacker(&arena, b"same");
            if round % 100 == 0 {
                arena.rounds_until("it takes over", |seen| {
                    seen.counters.established == round + 1
                });
            }
        }
        // Handshakes may end in another order than they began, so the last comes alone.
        let last = attacker(&arena, b"same");
        arena.rounds_until("the last takes over", |seen| {
            seen.counters.established == 10_002
        });
        assert_eq!(arena.seen().peers, 2);
        drop(last);
        arena.rounds_until("it is gone", |seen| seen.peers == 1);
        arena.end(&Cost {
            memory_mib: 4,
            descriptors: 110,
            cpu: Duration::from_secs(20),
        });
    }
}

#[test]
fn short_pings() {
    let mut arena = Arena::new("short PINGs", Options::new());
    for round in 0..600u64 {
        let mut raw = attacker(&arena, b"short");
        raw.write(&frame(4, &b"\x04PING\0"[..1 + (round % 6) as usize]));
        // One at a time, so that the routing ID is free.
        arena.rounds_until("it is closed", |seen| {
            seen.counters.protocol_errors == round + 1
        });
    }
    let seen = arena.end(&Cost {
        memory_mib: 4,
        descriptors: 3,
        cpu: Duration::from_secs(5),
    });
    assert_eq!((seen.strange, seen.counters.protocol_errors), (0, 600));
}
