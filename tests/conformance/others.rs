//! Bugs that other implementations had.

use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Error, Event, Options, Router};

use crate::raw::{established, lost, ping};
use crate::router::{fill, router};
use crate::support::*;

fn quick(routing_id: &str) -> Options {
    Options::new()
        .routing_id(routing_id)
        .reconnect_ivl(Duration::from_millis(1))
        .reconnect_ivl_max(Duration::from_millis(20))
}

pub(crate) fn zmqrs_143_reconnect(net: &Net) {
    let (server, bound) = router(net, Options::new());
    let mut server = Some(server);
    let mut dealer = Dealer::new(quick("d")).unwrap();
    dealer.connect(&bound).unwrap();
    for round in 0..5u8 {
        let mut router = server.take().unwrap_or_else(|| {
            let mut router = Router::new(Options::new()).unwrap();
            router.bind(&bound).unwrap();
            router
        });
        dealer.send(&[&[round]]).unwrap();
        until("it is served by each", || {
            dealer.drive();
            assert_eq!(take(&mut router)?.1, [[round]]);
            Some(())
        });
        let before = dealer.counters().disconnected;
        drop(router);
        until("it notices", || {
            dealer.drive();
            dealer.receive(NOW).unwrap();
            (dealer.counters().disconnected > before).then_some(())
        });
    }
}

pub(crate) fn zmqrs_216_dead_peer(net: &Net) {
    // The DEALER binds: a peer that dies is not coming back.
    let mut dealer = Dealer::new(Options::new()).unwrap();
    let bound = dealer.bind(&net.endpoint()).unwrap().to_string();
    let connect = || {
        let mut router = Router::new(quick("")).unwrap();
        router.connect(&bound).unwrap();
        router
    };
    let (mut stays, mut dies) = (connect(), connect());
    until("both are there", || {
        dealer.drive();
        stays.drive();
        dies.drive();
        (dealer.counters().established == 2).then_some(())
    });
    drop(dies);
    until("one is gone", || {
        dealer.receive(NOW).unwrap();
        (dealer.counters().disconnected == 1).then_some(())
    });
    for count in 0..20u8 {
        dealer.send(&[&[count]]).unwrap();
        until("the living one gets all", || {
            dealer.drive();
            assert_eq!(take(&mut stays)?.1, [[count]]);
            Some(())
        });
    }
}

pub(crate) fn zmqrs_210_equal_identities(net: &Net) {
    for handover in [true, false] {
        let (mut server, bound) = router(net, Options::new().router_handover(handover));
        let mut crowd: Vec<Raw> = (0..100)
            .map(|_| {
                let mut raw = net.raw(&bound);
                raw.shake_hands("DEALER", b"same");
                raw
            })
            .collect();
        until("one is left", || {
            server.receive(NOW).unwrap();
            let counters = server.counters();
            let decided =
                counters.accepted == 100 && counters.established + counters.handshake_failed == 100;
            (decided && server.socket().peer_count() == 1).then_some(())
        });
        server.send(b"same", &[b"you"]).unwrap();
        until("it is reached", || {
            server.drive();
            crowd.iter_mut().for_each(Raw::poll);
            let reached = crowd
                .iter()
                .filter(|raw| raw.frames().contains(&(0, b"you".to_vec())))
                .count();
            let closed = crowd.iter().filter(|raw| raw.ended).count();
            (reached == 1 && closed == 99).then_some(())
        });
    }
}

pub(crate) fn zmqrs_286_ready_lengths(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let good = ready(&[("Socket-Type", b"DEALER"), ("Identity", b"g")]);
    let mut bad = Vec::new();
    // The body cut everywhere, and every byte of it made as large and as small as it can be.
    for size in 0..good.len() - 2 {
        bad.push(frame(4, &good[2..2 + size]));
    }
    for place in 2..good.len() {
        for value in [0, 0x7F, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[place] = value;
            bad.push(bytes);
        }
    }
    let mut raws: Vec<Raw> = Vec::new();
    for bytes in &bad {
        let mut raw = net.raw(&bound);
        raw.write(&greeting("NULL"));
        raw.write(bytes);
        raws.push(raw);
        server.drive();
    }
    let mut keeper = established(net, &mut server, &bound, b"keeper");
    keeper.write(&frame(0, b"still served"));
    until("a good peer is served", || take(&mut server));
    until("all are decided", || {
        server.drive();
        let counters = server.counters();
        (counters.established + counters.handshake_failed == bad.len() as u64 + 1).then_some(())
    });
    assert!(server.counters().handshake_failed > bad.len() as u64 / 2);
}

pub(crate) fn rzmq_8_short_ping(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut good = established(net, &mut server, &bound, b"good");
    for size in 1..7 {
        let mut raw = established(net, &mut server, &bound, b"bad");
        raw.write(&frame(4, &ping(0, b"")[..size]));
        lost(&mut server, b"bad");
    }
    good.write(&frame(0, b"x"));
    until("the good peer is served", || take(&mut server));
}

pub(crate) fn rzmq_9_huge_length(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut good = established(net, &mut server, &bound, b"good");
    let before = rss();
    for size in [
        u64::MAX,
        u64::MAX - 8,
        1 << 63,
        i64::MAX as u64,
        1 << 40,
        (64 << 20) + 1,
    ] {
        for flags in [2, 3, 6] {
            let mut raw = established(net, &mut server, &bound, b"bad");
            let mut bytes = vec![flags];
            bytes.extend(size.to_be_bytes());
            raw.write(&bytes);
            raw.try_write(&[0; 1000]);
            lost(&mut server, b"bad");
        }
    }
    assert!(rss() < before + (16 << 20));
    good.write(&frame(0, b"x"));
    until("the good peer is served", || take(&mut server));
}

pub(crate) fn libzmq_4503_duplicate_identity(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut owner = established(net, &mut server, &bound, b"same");
    for _ in 0..3 {
        let mut duplicate = net.raw(&bound);
        duplicate.shake_hands("DEALER", b"same");
        until("the duplicate is told and closed", || {
            server.drive();
            duplicate.poll();
            duplicate.ended.then_some(())
        });
        let (flags, body) = duplicate.frames().pop().unwrap();
        assert!(flags == 4 && body.starts_with(b"\x05ERROR"), "{body:?}");
        let before = owner.frames().len();
        server.send(b"same", &[b"x"]).unwrap();
        until("the owner is reached", || {
            server.drive();
            owner.poll();
            (owner.frames().len() > before).then_some(())
        });
    }
    // Once the owner has gone, the name is free.
    drop(owner);
    lost(&mut server, b"same");
    established(net, &mut server, &bound, b"same");
}

pub(crate) fn libzmq_3238_handover_descriptors(net: &Net) {
    let (mut server, bound) = router(net, Options::new().router_handover(true));
    let mut last = established(net, &mut server, &bound, b"same");
    for round in 1..=10_000u64 {
        let mut next = net.raw(&bound);
        next.shake_hands("DEALER", b"same");
        until("it takes over", || {
            server.drive();
            while server.poll_event().is_some() {}
            (server.counters().established > round).then_some(())
        });
        // The newcomer's end stays open, the old one's is closed by the router itself.
        last = next;
    }
    assert_eq!(server.socket().peer_count(), 1);
    assert_eq!(server.counters().disconnected, 10_000);
    last.write(&frame(0, b"x"));
    until("the last one is served", || take(&mut server));
}

pub(crate) fn libzmq_4665_dead_at_hwm(net: &Net) {
    let (mut server, bound) = router(net, Options::new().sndhwm(2));
    let raw = established(net, &mut server, &bound, b"dies");
    fill(&mut server, b"dies", &vec![1; 256 << 10]);
    drop(raw);
    let mut said = Vec::new();
    until("it becomes unroutable", || {
        assert_eq!(take(&mut server), None);
        server.drive();
        said.push(server.send(b"dies", &[b"x"]));
        (said.last() == Some(&Err(Error::Unroutable))).then_some(())
    });
    let unsent = server.events().into_iter().find_map(|event| match event {
        Event::Unsent { messages, .. } => Some(messages),
        _ => None,
    });
    assert!(
        unsent.is_some_and(|messages| messages > 0),
        "what was lost is told"
    );
}

pub(crate) fn libzmq_4665_blocked_send(net: &Net) {
    // A send that may wait for ever, to a peer whose own message nobody has received and whose
    // host is gone: no byte comes any more, and no end of the stream.
    let options = Options::new()
        .heartbeat_ivl(Duration::from_millis(20))
        .heartbeat_timeout(Duration::from_millis(200))
        .sndhwm(2)
        .sndbuf(16 << 10);
    let (mut server, bound) = router(net, options);
    let mut raw = established(net, &mut server, &bound, b"gone");
    raw.receive_buffer(16 << 10);
    raw.write(&frame(0, b"its last words"));
    for_a_while(Duration::from_millis(20), || server.drive());
    let body = vec![5; 1 << 20];
    until("the send ends", || {
        match server.send_timeout(b"gone", &[&body], None) {
            Ok(()) => None,
            Err(error) => {
                assert_eq!(error, Error::Unroutable);
                Some(())
            }
        }
    });
    until("they are heard", || {
        assert_eq!(take(&mut server)?.1, [b"its last words"]);
        Some(())
    });
}

pub(crate) fn libzmq_1575_new_identity(net: &Net) {
    let endpoint = net.unbound();
    let mut client = Router::new(quick("client")).unwrap();
    client.connect(&endpoint).unwrap();
    for routing_id in ["first", "second", "", "third"] {
        let mut server = Router::new(Options::new().routing_id(routing_id)).unwrap();
        server.bind(&endpoint).unwrap();
        let name = until("the client learns its name", || {
            client.drive();
            client.receive(NOW).unwrap();
            server.drive();
            client
                .events()
                .into_iter()
                .rev()
                .find_map(|event| match event {
                    Event::Established { routing_id, .. } => Some(routing_id),
                    _ => None,
                })
        });
        if !routing_id.is_empty() {
            assert_eq!(name, routing_id.as_bytes());
        }
        client.send(&name, &[b"hello"]).unwrap();
        until("it is reached under that name", || {
            client.drive();
            take(&mut server)
        });
        for old in ["first", "second", "third"] {
            if old != routing_id {
                assert_eq!(client.send(old.as_bytes(), &[b"x"]), Err(Error::Unroutable));
            }
        }
        let before = client.counters().disconnected;
        drop(server);
        until("it is gone", || {
            client.receive(NOW).unwrap();
            (client.counters().disconnected > before).then_some(())
        });
    }
}

pub(crate) fn libzmq_2709_big_transfer(net: &Net) {
    let (mut server, bound) = router(
        net,
        Options::new()
            .heartbeat_ivl(Duration::from_millis(500))
            .heartbeat_timeout(Duration::from_secs(2)),
    );
    let mut raw = established(net, &mut server, &bound, b"slow");
    // The peer's own buffer is small, as it is at the end of a slow link. On loopback it must
    // hold some segments of 64 KiB, or the stream stands still between probes of its window.
    raw.receive_buffer(256 << 10);
    let body = vec![3; 6 << 20];
    server.send(b"slow", &[&body]).unwrap();
    // The message goes before the first PING. The peer reads 1 MB/s to the end, for several
    // times the timeout, and answers no PING before it has got to it behind the message. What the
    // kernel takes cannot be overtaken or hurried along; left to itself it takes most of the
    // message at once.
    let began = Instant::now();
    until("all of it arrives", || {
        server.receive(NOW).unwrap();
        server.drive();
        assert_eq!(server.counters().disconnected, 0, "{:?}", server.events());
        let due = began.elapsed().as_micros() as usize;
        match due.saturating_sub(raw.got.len()) {
            0 => {}
            bytes => _ = raw.read(bytes.min(1 << 20)),
        }
        (raw.got.len() > body.len()).then_some(())
    });
    assert!(began.elapsed() > Duration::from_secs(5));
    raw.write(&frame(4, b"\x04PONG"));
    // And a large message that comes slowly is life as well.
    let bytes = frame(0, &vec![4; 100_000]);
    for piece in bytes.chunks(1000) {
        raw.write(piece);
        let until = Instant::now() + Duration::from_millis(3);
        while Instant::now() < until {
            server.drive();
            assert!(server.socket().route(b"slow").is_some());
            if server.receive(NOW).unwrap().is_some() {
                break;
            }
        }
    }
    assert_eq!(server.counters().heartbeat_timeouts, 0);
}

pub(crate) fn cve_2020_15166(net: &Net) {
    let options = Options::new()
        .max_handshakes(16)
        .handshake_ivl(Duration::from_secs(3600));
    let (mut server, bound) = router(net, options);
    let mut silent = Vec::new();
    for round in 0..10u8 {
        for _ in 0..50 {
            silent.push(net.raw(&bound));
            server.drive();
        }
        let mut dealer = Dealer::new(quick("")).unwrap();
        dealer.connect(&bound).unwrap();
        dealer.send(&[&[round]]).unwrap();
        until("a real peer gets in", || {
            dealer.drive();
            assert_eq!(take(&mut server)?.1, [[round]]);
            Some(())
        });
    }
    assert!(server.socket().peer_count() <= 16 + 10);
    assert!(server.counters().too_many > 400);
}

pub(crate) fn libzmq_2020_memory(net: &Net) {
    let options = Options::new()
        .sndhwm(0)
        .sndhwm_bytes(4 << 20)
        .sndhwm_total_bytes(10 << 20);
    let (mut server, bound) = router(net, options);
    let _stalled: Vec<Raw> = (0..4u8)
        .map(|n| established(net, &mut server, &bound, &[b'a' + n]))
        .collect();
    let before = rss();
    let body = vec![1; 100_000];
    for n in 0..4u8 {
        fill(&mut server, &[b'a' + n], &body);
    }
    let queued = server.socket().pending_bytes();
    assert!((9 << 20..=10 << 20).contains(&queued), "{queued}");
    assert!(rss() < before + (64 << 20));
    // A message that is larger than the whole mark goes alone.
    let (mut alone, bound) = router(net, Options::new().sndhwm_bytes(1000));
    let mut raw = established(net, &mut alone, &bound, b"r");
    alone.send(b"r", &[&body]).unwrap();
    until("it arrives", || {
        alone.drive();
        raw.poll();
        raw.frames()
            .iter()
            .any(|(_, got)| *got == body)
            .then_some(())
    });
}
