//! Sockets against peers that speak bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, DisconnectReason, Event, Options, Router};

use crate::router::router;
use crate::support::*;

/// A raw peer of that router, established under `routing_id`.
pub(crate) fn established(net: &Net, router: &mut Router, bound: &str, routing_id: &[u8]) -> Raw {
    let mut raw = net.raw(bound);
    raw.shake_hands("DEALER", routing_id);
    until("established", || {
        router.drive();
        raw.poll();
        // Our READY, and the router's view of it.
        (!raw.frames().is_empty() && router.socket().route(routing_id).is_some()).then_some(())
    });
    raw
}

/// Why the router lost that routing ID, once it has.
pub(crate) fn lost(router: &mut Router, routing_id: &[u8]) -> DisconnectReason {
    until("the peer is lost", || {
        assert_eq!(take(router), None);
        router.events().into_iter().find_map(|event| match event {
            Event::Disconnected {
                routing_id: id,
                reason,
                ..
            } if id == routing_id => Some(reason),
            _ => None,
        })
    })
}

pub(crate) fn stream(net: &Net) {
    let (listener, endpoint) = net.raw_listener();
    let mut dealer = Dealer::new(Options::new().routing_id("d")).unwrap();
    dealer.connect(&endpoint).unwrap();
    let mut raw = until("it connects", || {
        dealer.drive();
        listener.accept()
    });
    let mut want = greeting("NULL").to_vec();
    want.extend(ready(&[("Socket-Type", b"DEALER"), ("Identity", b"d")]));
    until("greeting and READY come unasked", || {
        dealer.drive();
        raw.poll();
        (raw.got.len() >= want.len()).then_some(())
    });
    assert_eq!(raw.got, want);
    for byte in greeting("NULL")
        .into_iter()
        .chain(ready(&[("Socket-Type", b"ROUTER")]))
    {
        raw.write(&[byte]);
        dealer.drive();
    }
    until("established", || {
        dealer.drive();
        (dealer.counters().established == 1).then_some(())
    });
    let long = vec![b'x'; 256];
    dealer.send(&[b"", b"hello", &long]).unwrap();
    want.extend([1, 0, 1, 5]);
    want.extend(b"hello");
    want.extend([2, 0, 0, 0, 0, 0, 0, 1, 0]);
    want.extend(&long);
    until("the message comes", || {
        dealer.drive();
        raw.poll();
        (raw.got.len() >= want.len()).then_some(())
    });
    assert_eq!(raw.got, want);
    // A long frame with a short length is legal (RFC 37 §3.3).
    raw.write(&[3, 0, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 1, b'b']);
    until("the answer arrives", || {
        assert_eq!(receive(&mut dealer)?, [b"a", b"b"]);
        Some(())
    });
}

pub(crate) fn stream_timeout(net: &Net) {
    let short = || {
        Options::new()
            .handshake_ivl(Duration::from_millis(40))
            .no_reconnect()
    };
    let (mut server, bound) = router(net, short());
    let mut silent = net.raw(&bound);
    let mut halfway = net.raw(&bound);
    halfway.write(&greeting("NULL"));
    until("both are dropped", || {
        server.drive();
        (server.counters().handshake_timeouts == 2).then_some(())
    });
    for raw in [&mut silent, &mut halfway] {
        until("they see it", || {
            raw.poll();
            raw.ended.then_some(())
        });
    }
    let (listener, endpoint) = net.raw_listener();
    let mut dealer = Dealer::new(short()).unwrap();
    dealer.connect(&endpoint).unwrap();
    let mut raw = until("it connects", || {
        dealer.drive();
        listener.accept()
    });
    until("it gives up", || {
        dealer.drive();
        raw.poll();
        (raw.ended && dealer.counters().handshake_timeouts == 1).then_some(())
    });
}

pub(crate) fn trickled_handshake(net: &Net) {
    // Byte after byte, a stranger could go on for as long as its command is long.
    let options = Options::new().handshake_ivl(Duration::from_millis(40));
    let (mut server, bound) = router(net, options);
    let mut raw = net.raw(&bound);
    raw.write(&greeting("NULL"));
    raw.write(&[6, 0, 0, 0, 0, 0, 0, 0x27, 0]);
    let mut given = 0;
    until("it is out of time", || {
        given += raw.try_write(b"x");
        server.drive();
        (server.counters().handshake_timeouts == 1).then_some(())
    });
    assert!(given < 0x2700, "{given} bytes");
}

pub(crate) fn socket_types(net: &Net) {
    // RFC 37 §3.6.1; a mismatch, like a bad routing ID, is told by ERROR.
    let types = [
        "REQ", "REP", "DEALER", "ROUTER", "PUB", "PAIR", "dealer", "",
    ];
    let (mut server, at_router) = router(net, Options::new());
    let mut dealer = Dealer::new(Options::new()).unwrap();
    let at_dealer = dealer.bind(&net.endpoint()).unwrap().to_string();
    for (ours, bound) in [("ROUTER", &at_router), ("DEALER", &at_dealer)] {
        for (count, theirs) in types.iter().enumerate() {
            // A fifth byte follows: then the third one is of the form that a ROUTER generates.
            for routing_id in [&b"ok"[..], b"\0taken", b"\0bad", &[b'x'; 256]] {
                let fits = match ours {
                    "ROUTER" => ["REQ", "DEALER", "ROUTER"].contains(theirs),
                    _ => ["REP", "DEALER", "ROUTER"].contains(theirs),
                };
                let fits = fits && [&b"ok"[..], b"\0taken"].contains(&routing_id);
                let mut raw = net.raw(bound);
                let name = [routing_id, &[count as u8]].concat();
                raw.shake_hands(theirs, &name);
                until("it is let in or told why not", || {
                    server.drive();
                    dealer.drive();
                    raw.poll();
                    match fits {
                        true => {
                            let established = match ours {
                                "ROUTER" => server.socket().route(&name).is_some(),
                                _ => dealer.send(&[b"hello"]).is_ok(),
                            };
                            (established && !raw.ended).then_some(())
                        }
                        false => raw.ended.then_some(()),
                    }
                });
                let (flags, body) = raw.frames().pop().unwrap();
                if !fits {
                    assert_eq!((flags, &body[..6]), (4, &b"\x05ERROR"[..]), "{theirs}");
                    assert_eq!(usize::from(body[6]), body.len() - 7);
                }
                raw.ended = true;
                drop(raw);
                until("it is gone", || {
                    server.receive(NOW).unwrap();
                    dealer.receive(NOW).unwrap();
                    let peers = server.socket().peer_count() + dealer.socket().peer_count();
                    (peers == 0).then_some(())
                });
            }
        }
    }
}

pub(crate) fn old_versions(net: &Net) {
    for (bytes, want) in [
        (&b"\x01\0"[..], "not a ZMTP greeting"),
        (b"\x05\0abcd", "not a ZMTP greeting"),
        (b"\xff\0\0\0\0\0\0\0\x05\0", "peer speaks ZMTP 1.0"),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\0", "peer speaks ZMTP 1.0"),
        (
            b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\0\0",
            "peer speaks ZMTP 2.0",
        ),
        (b"GET / HTTP/1.1\r\n", "not a ZMTP greeting"),
    ] {
        let (mut server, bound) = router(net, Options::new());
        let mut raw = net.raw(&bound);
        raw.write(bytes);
        let mut events = Vec::new();
        until("it is closed", || {
            server.drive();
            events.extend(server.events());
            raw.poll();
            raw.ended.then_some(())
        });
        // This is what the log line says.
        let reason = handshake_failure(&events).unwrap().to_string();
        assert!(reason.contains(want), "{bytes:?}: {reason}");
    }
    // Higher versions and whatever stands in the padding are those of a peer to come.
    let (mut server, bound) = router(net, Options::new());
    let mut bytes = greeting("NULL");
    bytes[1..9].copy_from_slice(b"whatever");
    (bytes[9], bytes[10], bytes[11]) = (0x01, 4, 7);
    (bytes[32], bytes[63]) = (1, 9);
    let mut raw = net.raw(&bound);
    raw.write(&bytes);
    raw.write(&ready(&[("Socket-Type", b"DEALER"), ("Identity", b"new")]));
    until("it is let in", || {
        server.drive();
        server.socket().route(b"new").map(drop)
    });
}

pub(crate) fn stream_exceeds_buffer(net: &Net) {
    for step in [1, 7, 512, 8192, usize::MAX] {
        let (mut server, bound) = router(net, Options::new());
        let mut raw = established(net, &mut server, &bound, b"r");
        let body: Vec<u8> = (0..8193u32).map(|n| n as u8).collect();
        let bytes = frame(0, &body);
        for piece in bytes.chunks(step.min(bytes.len())) {
            raw.write(piece);
            if let Some((from, frames)) = take(&mut server) {
                assert_eq!((from, frames), (b"r".to_vec(), vec![body.clone()]));
                server.send(b"r", &[b"thanks"]).unwrap();
            }
        }
        until("it arrives whole", || {
            if let Some((_, frames)) = take(&mut server) {
                assert_eq!(frames, std::slice::from_ref(&body));
                server.send(b"r", &[b"thanks"]).unwrap();
            }
            server.drive();
            raw.poll();
            raw.frames()
                .contains(&(0, b"thanks".to_vec()))
                .then_some(())
        });
    }
}

/// A PING's body.
pub(crate) fn ping(ttl_deciseconds: u16, context: &[u8]) -> Vec<u8> {
    let mut body = b"\x04PING".to_vec();
    body.extend(ttl_deciseconds.to_be_bytes());
    body.extend(context);
    body
}

pub(crate) fn heartbeats(net: &Net) {
    // Silence after our PING ends a connection, and the PING tells our TTL.
    let (mut server, bound) = router(
        net,
        Options::new()
            .heartbeat_ivl(Duration::from_millis(20))
            .heartbeat_timeout(Duration::from_millis(60))
            .heartbeat_ttl(Duration::from_millis(1500)),
    );
    let mut raw = established(net, &mut server, &bound, b"silent");
    let reason = lost(&mut server, b"silent");
    assert_eq!(
        reason.to_string(),
        DisconnectReason::Protocol(casparian::zmtp::Error::HeartbeatTimeout).to_string()
    );
    raw.poll();
    assert!(raw.ended);
    let pings: Vec<_> = raw
        .frames()
        .into_iter()
        .filter(|(_, body)| body.starts_with(b"\x04PING"))
        .collect();
    assert!(
        pings.iter().all(|ping_| *ping_ == (4, ping(15, b""))),
        "{pings:?}"
    );
    assert!(!pings.is_empty());
    // Whoever answers stays, and so does whoever sends anything at all.
    let mut answers = established(net, &mut server, &bound, b"answers");
    let mut dribbles = established(net, &mut server, &bound, b"dribbles");
    dribbles.write(&[2, 0, 0, 0, 0, 0, 1, 0, 0]);
    let mut answered = 0;
    let mut dribbled = Instant::now();
    for_a_while(Duration::from_millis(300), || {
        server.receive(NOW).unwrap();
        server.drive();
        answers.poll();
        let pings = answers
            .frames()
            .iter()
            .filter(|(_, body)| body.starts_with(b"\x04PING"))
            .count();
        while answered < pings {
            answers.write(&frame(4, b"\x04PONG"));
            answered += 1;
        }
        if dribbled.elapsed() > Duration::from_millis(5) {
            dribbles.write(b"x");
            dribbled = Instant::now();
        }
    });
    assert!(answered > 3);
    assert!(server.socket().route(b"answers").is_some());
    assert!(server.socket().route(b"dribbles").is_some());

    // A peer's TTL is honoured though we send no PING ourselves; none means none.
    let (mut server, bound) = router(net, Options::new());
    let mut short = established(net, &mut server, &bound, b"short");
    let mut none = established(net, &mut server, &bound, b"none");
    let said = Instant::now();
    short.write(&frame(4, &ping(1, b"")));
    none.write(&frame(4, &ping(0, b"")));
    lost(&mut server, b"short");
    assert!(said.elapsed() >= Duration::from_millis(100));
    assert!(server.socket().route(b"none").is_some());
    // A TTL beyond what libzmq's 16-bit milliseconds hold is no short one.
    none.write(&frame(4, &ping(u16::MAX, b"")));
    for_a_while(Duration::from_millis(50), || server.drive());
    assert!(server.socket().route(b"none").is_some());

    // The context comes back, 16 bytes of it at most.
    let long = [7; 300];
    for (context, echo) in [
        (&b""[..], &b""[..]),
        (b"abc", b"abc"),
        (&long[..16], &long[..16]),
        (&long, &long[..16]),
    ] {
        let before = none.frames().len();
        none.write(&frame(4, &ping(0, context)));
        until("PONG comes", || {
            assert_eq!(take(&mut server), None);
            server.drive();
            none.poll();
            (none.frames().len() > before).then_some(())
        });
        let want = [b"\x04PONG", echo].concat();
        assert_eq!(none.frames().pop().unwrap(), (4, want));
    }
}

pub(crate) fn heartbeats_of_3_0(net: &Net) {
    let (mut server, bound) = router(
        net,
        Options::new()
            .heartbeat_ivl(Duration::from_millis(20))
            .heartbeat_timeout(Duration::from_millis(60)),
    );
    let old = |routing_id: &[u8]| {
        let mut raw = net.raw(&bound);
        let mut bytes = greeting("NULL").to_vec();
        bytes[11] = 0;
        bytes.extend(ready(&[
            ("Socket-Type", b"DEALER"),
            ("Identity", routing_id),
        ]));
        raw.write(&bytes);
        raw
    };
    let _ignores = old(b"ignores");
    let mut answers = old(b"answers");
    until("both are there", || {
        server.drive();
        (server.counters().established == 2).then_some(())
    });
    // Whoever has answered once is held to it.
    answers.write(&frame(4, b"\x04PONG"));
    lost(&mut server, b"answers");
    for_a_while(Duration::from_millis(200), || server.drive());
    assert!(server.socket().route(b"ignores").is_some());
}

pub(crate) fn unread_is_not_silent(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut raw = established(net, &mut server, &bound, b"patient");
    raw.write(&frame(4, &ping(1, b"")));
    until("its TTL is known", || {
        server.drive();
        raw.poll();
        (!raw.frames().is_empty()).then_some(())
    });
    // The owner is away for longer than the TTL of 0.1 s, and comes back to what came meanwhile.
    for round in 0..3u8 {
        raw.write(&frame(0, &[round]));
        std::thread::sleep(Duration::from_millis(250));
        let (from, message) = server.receive(NOW).unwrap().unwrap();
        assert_eq!(
            (from, message.to_vecs()),
            (&b"patient"[..], vec![vec![round]])
        );
    }
    // So does an owner that only sends, and holds a message.
    raw.write(&frame(0, b"held"));
    for_a_while(Duration::from_millis(250), || server.drive());
    assert_eq!(take(&mut server).unwrap().1, [b"held"]);
    lost(&mut server, b"patient");
}

pub(crate) fn slow_owner(net: &Net) {
    let (mut server, bound) = router(
        net,
        Options::new()
            .heartbeat_ivl(Duration::from_millis(200))
            .heartbeat_timeout(Duration::from_millis(400)),
    );
    let dealer = |routing_id: &str| {
        let mut dealer = Dealer::new(Options::new().routing_id(routing_id)).unwrap();
        dealer.connect(&bound).unwrap();
        dealer
    };
    let (mut busy, mut idle) = (dealer("busy"), dealer("idle"));
    for _ in 0..5 {
        busy.send(&[b"work"]).unwrap();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                busy.receive(Some(Duration::from_millis(1))).unwrap();
                idle.receive(Some(Duration::from_millis(1))).unwrap();
            }
        });
        let mut worked = 0;
        until("all is worked off", || {
            if server
                .receive(Some(Duration::from_millis(5)))
                .unwrap()
                .is_some()
            {
                std::thread::sleep(Duration::from_millis(500));
                worked += 1;
            }
            (worked == 5).then_some(())
        });
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!(server.counters().heartbeat_timeouts, 0);
    assert_eq!(server.counters().disconnected, 0);
}

pub(crate) fn heartbeats_before_handshake(net: &Net) {
    for body in [ping(0, b""), b"\x04PONG".to_vec(), b"\x07UNKNOWN".to_vec()] {
        let (mut server, bound) = router(net, Options::new());
        let mut raw = net.raw(&bound);
        raw.write(&greeting("NULL"));
        raw.write(&frame(4, &body));
        let events = until("it is refused", || {
            server.drive();
            (server.counters().handshake_failed == 1).then(|| server.events())
        });
        assert!(matches!(
            handshake_failure(&events),
            Some(DisconnectReason::Protocol(_))
        ));
        until("it is closed", || {
            raw.poll();
            raw.ended.then_some(())
        });
        // A READY, and never a PONG.
        assert!(
            raw.frames()
                .iter()
                .all(|(_, body)| !body.starts_with(b"\x04PONG"))
        );
    }
}

pub(crate) fn unfinished_messages(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    for unfinished in [
        frame(1, b"first"),
        frame(0, b"cut")[..4].to_vec(),
        vec![2, 0, 0],
        vec![0],
    ] {
        let mut raw = established(net, &mut server, &bound, b"same");
        raw.write(&frame(0, b"whole"));
        raw.write(&unfinished);
        drop(raw);
        until("what came whole is received", || {
            assert_eq!(take(&mut server)?.1, [b"whole"]);
            Some(())
        });
        lost(&mut server, b"same");
        let mut again = established(net, &mut server, &bound, b"same");
        again.write(&frame(0, b"fresh"));
        until("nothing is left of the cut one", || {
            assert_eq!(take(&mut server)?.1, [b"fresh"]);
            Some(())
        });
        drop(again);
        lost(&mut server, b"same");
    }
}

pub(crate) fn commands_between_frames(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut raw = established(net, &mut server, &bound, b"r");
    raw.write(&frame(1, b"a"));
    raw.write(&frame(4, &ping(0, b"ctx")));
    raw.write(&frame(1, b"b"));
    raw.write(&frame(4, b"\x07UNKNOWN with whatever"));
    raw.write(&frame(0, b"c"));
    until("it is one message", || {
        assert_eq!(take(&mut server)?.1, [b"a", b"b", b"c"]);
        Some(())
    });
    until("the PING was answered", || {
        server.drive();
        raw.poll();
        raw.frames()
            .contains(&(4, b"\x04PONGctx".to_vec()))
            .then_some(())
    });
    // What the RFC forbids closes the connection: reserved bits, MORE on a command, a second
    // READY, a malformed command.
    for bytes in [
        frame(8, b"x"),
        frame(0x80, b"x"),
        frame(5, b"\x04PONG"),
        ready(&[("Socket-Type", b"DEALER")]),
        frame(4, b""),
        frame(4, b"\0"),
        frame(4, b"\x09PING"),
    ] {
        let mut raw = established(net, &mut server, &bound, b"bad");
        raw.write(&bytes);
        let reason = lost(&mut server, b"bad");
        assert!(
            matches!(reason, DisconnectReason::Protocol(_)),
            "{bytes:?}: {reason}"
        );
    }
    assert!(server.socket().route(b"r").is_some());
}
