//! Connections that never become peers, or too many of them.

use std::time::{Duration, Instant};

use casparian::socket::Options;

use crate::arena::{Arena, Cost, Random};
use crate::support::*;

#[test]
fn garbage_greetings() {
    let mut arena = Arena::new("garbage greetings", Options::new());
    let mut random = Random(1);
    for round in 0..1000u64 {
        let mut raw = arena.raw();
        raw.write(&random.bytes(1024));
        if round % 50 == 0 {
            arena.round();
        }
    }
    // One greeting in 256 begins like ZMTP, and one in two of those goes on like it.
    arena.rounds_until("all are refused", |seen| {
        seen.counters.handshake_failed == 1000
    });
    let seen = arena.end(&Cost {
        memory_mib: 4,
        descriptors: 1001,
        cpu: Duration::from_secs(5),
    });
    assert_eq!((seen.strange, seen.counters.established), (0, 1));
    assert!(seen.counters.log_lines_dropped > 900, "{:?}", seen.counters);
}

#[test]
fn slow_greetings() {
    // A byte now and then is progress, and still no handshake. Behind the greeting stands a
    // command that would take minutes.
    let mut arena = Arena::new(
        "slow greetings",
        Options::new().handshake_ivl(Duration::from_secs(4)),
    );
    let mut raws: Vec<Raw> = (0..100).map(|_| arena.raw()).collect();
    let mut bytes = greeting("NULL").to_vec();
    bytes.extend([6, 0, 0, 0, 0, 0, 0, 0x27, 0]);
    bytes.resize(bytes.len() + 0x2700, b'x');
    let mut bytes = bytes.into_iter();
    while arena.seen().counters.handshake_timeouts < 100 {
        let byte = bytes.next().expect("out of time before the last byte");
        raws.iter_mut().for_each(|raw| {
            raw.try_write(&[byte]);
        });
        for _ in 0..10 {
            arena.round();
        }
        for_a_while(Duration::from_millis(10), || {});
    }
    drop(raws);
    let seen = arena.end(&Cost {
        memory_mib: 4,
        descriptors: 101,
        cpu: Duration::from_secs(5),
    });
    assert_eq!((seen.peers, seen.strange), (1, 0));
}

/// The attackers of the test below, in a process of their own: a descriptor for each side is
/// more than one process may have.
#[test]
#[ignore = "started by ten_thousand_silent_connections_at_once"]
fn ten_thousand_silent_attackers() {
    allow_descriptors(10_100);
    let address = std::env::var("CASPARIAN_ATTACKED").unwrap();
    let streams: Vec<_> = (0..10_000)
        .map(|_| std::net::TcpStream::connect(&address).unwrap())
        .collect();
    println!("connected {}", streams.len());
    // Until the test closes its end.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn ten_thousand_silent_connections_at_once() {
    allow_descriptors(10_200);
    // How long it takes to accept them all is not what is tested.
    let options = Options::new().handshake_ivl(Duration::ZERO);
    let mut arena = Arena::new("10,000 silent, all held", options);
    let mut attackers = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "greetings::ten_thousand_silent_attackers"])
        .args(["--ignored", "--nocapture"])
        .env("CASPARIAN_ATTACKED", arena.bound.replace("tcp://", ""))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    arena.rounds_until("all are accepted", |seen| seen.counters.accepted == 10_001);
    assert_eq!(arena.seen().peers, 10_001);
    assert_eq!(arena.seen().counters.too_many, 0);
    // They say nothing and cost nothing.
    let cpu = arena.seen().cpu;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        arena.round();
    }
    assert!(arena.seen().cpu - cpu < Duration::from_millis(600));
    // Nor do they keep anybody out.
    let mut late = casparian::socket::Dealer::new(Options::new().routing_id("late")).unwrap();
    late.connect(&arena.bound).unwrap();
    until("a newcomer is let in", || {
        late.drive();
        (late.counters().established == 1).then_some(())
    });
    drop(late);
    drop(attackers.stdin.take());
    assert!(attackers.wait().unwrap().success());
    arena.rounds_until("all are gone", |seen| seen.peers == 1);
    let seen = arena.end(&Cost {
        memory_mib: 32,
        descriptors: 10003,
        cpu: Duration::from_secs(20),
    });
    assert_eq!(seen.strange, 0);
}

#[test]
fn ten_thousand_silent_connections_one_after_another() {
    let held = 256;
    // Each is closed to make room for another, never because of its age.
    let options = Options::new()
        .max_handshakes(held)
        .handshake_ivl(Duration::ZERO);
    let mut arena = Arena::new("10,000 silent", options);
    let mut raws = std::collections::VecDeque::new();
    for count in 0..10_000 {
        raws.push_back(arena.raw());
        if count % 50 == 0 {
            arena.round();
            assert!(arena.seen().peers <= held + 1);
            // Those that were closed to make room.
            while raws.len() > held {
                raws.pop_front();
            }
        }
    }
    arena.rounds_until("all but the last are closed", |seen| {
        seen.counters.accepted == 10_001
    });
    assert_eq!(arena.seen().counters.too_many, 10_000 - held as u64);
    drop(raws);
    arena.rounds_until("the last are gone", |seen| seen.peers == 1);
    let seen = arena.end(&Cost {
        memory_mib: 8,
        descriptors: 300,
        cpu: Duration::from_secs(10),
    });
    assert_eq!((seen.peers, seen.counters.established), (1, 1));
}

#[test]
fn what_a_silent_connection_costs() {
    let options = Options::new().handshake_ivl(Duration::ZERO);
    let mut arena = Arena::new("400 silent, all held", options);
    let raws: Vec<Raw> = (0..400).map(|_| arena.raw()).collect();
    arena.rounds_until("all are accepted", |seen| seen.peers == 401);
    // A connection that says nothing holds no buffer and uses no time.
    let cpu = arena.seen().cpu;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        arena.round();
    }
    assert!(arena.seen().cpu - cpu < Duration::from_millis(300));
    assert_eq!(arena.seen().peers, 401);
    drop(raws);
    arena.end(&Cost {
        memory_mib: 4,
        descriptors: 401,
        cpu: Duration::from_secs(2),
    });
}

#[test]
fn half_open_peers() {
    let mut arena = Arena::new(
        "half-open",
        Options::new()
            .heartbeat_ivl(Duration::from_millis(50))
            .heartbeat_timeout(Duration::from_secs(4)),
    );
    // Established, then neither a word nor an end.
    let raws: Vec<Raw> = (0..100u8)
        .map(|n| {
            let mut raw = arena.raw();
            raw.shake_hands("DEALER", &[b'h', n]);
            raw
        })
        .collect();
    arena.rounds_until("all are established", |seen| {
        seen.counters.established == 101
    });
    arena.rounds_until("all are given up", |seen| {
        seen.counters.heartbeat_timeouts == 100
    });
    drop(raws);
    let seen = arena.end(&Cost {
        memory_mib: 4,
        descriptors: 101,
        cpu: Duration::from_secs(5),
    });
    assert_eq!(seen.peers, 1);
}

#[test]
fn an_identity_a_connection() {
    let mut arena = Arena::new("a routing ID a connection", Options::new());
    let mut settled = 0;
    for count in 0..20_000u64 {
        let mut raw = arena.raw();
        raw.shake_hands("DEALER", format!("identity {count}").as_bytes());
        raw.write(&frame(0, b"x"));
        if count % 50 == 49 {
            arena.rounds_until("they came and went", |seen| {
                seen.counters.established == count + 2
            });
        }
        // The allocator has seen everything once.
        if count == 5_000 {
            settled = rss();
        }
    }
    arena.rounds_until("all are gone", |seen| seen.peers == 1);
    let grown = rss().saturating_sub(settled);
    assert!(grown < 2 << 20, "15,000 identities left {grown} bytes");
    let seen = arena.end(&Cost {
        memory_mib: 6,
        descriptors: 120,
        cpu: Duration::from_secs(30),
    });
    assert_eq!(seen.strange, 20_000);
    assert_eq!(seen.counters.disconnected, 20_000);
}
