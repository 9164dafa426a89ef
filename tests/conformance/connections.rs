//! The life of connections: endpoints, reconnecting, events.

use std::mem::discriminant;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casparian::socket::{Dealer, Error, Event, Options, ReconnectStop, Router};

use crate::dealer::routers;
use crate::router::router;
use crate::support::*;

fn quick() -> Options {
    Options::new()
        .routing_id("d")
        .reconnect_ivl(Duration::from_millis(1))
        .reconnect_ivl_max(Duration::from_millis(20))
}

/// A dealer with an established connection to that endpoint.
fn connected(bound: &str, router: &mut Router, options: Options) -> Dealer {
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(bound).unwrap();
    until("established", || {
        dealer.drive();
        router.drive();
        (dealer.counters().established == 1).then_some(())
    });
    dealer
}

pub(crate) fn close(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick());
    // Nobody reads these, and bytes that are unread when a tcp connection is dropped end it by
    // a reset, which takes along what is on its way.
    server.send(b"d", &[&[1; 100_000]]).unwrap();
    server.drain(DEADLINE).unwrap();
    let body = vec![7; 1 << 20];
    for _ in 0..8 {
        assert_eq!(dealer.send_timeout(&[&body], None), Ok(()));
    }
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| dealer.close(DEADLINE).unwrap());
        for round in 0..8 {
            let message = until("all of it arrives", || take(&mut server));
            assert!(message.1 == [&body[..]], "message {round}");
        }
        until("it is gone", || {
            server.drive();
            (server.counters().disconnected == 1).then_some(())
        });
        assert!(closing.join().unwrap());
    });
    // A peer that does not read keeps nobody for longer than the linger.
    let mut dealer = connected(&bound, &mut server, quick());
    while dealer.send(&[&body]).is_ok() {}
    assert!(!dealer.close(Duration::from_millis(50)).unwrap());
}

pub(crate) fn close_is_bounded(net: &Net) {
    let establish = |server: &mut Router, bound: &str, count: u64| -> Vec<Raw> {
        let raws = (0..count)
            .map(|number| {
                let mut raw = net.raw(bound);
                raw.shake_hands("DEALER", format!("peer {number}").as_bytes());
                // The system holds only so many that are not accepted.
                server.drive();
                raw
            })
            .collect();
        until("all are there", || {
            server.drive();
            (server.counters().established == count).then_some(())
        });
        raws
    };
    let (mut server, bound) = router(net, Options::new());
    let mut raws = establish(&mut server, &bound, 1);
    server
        .send(b"peer 0", &[b"not waited for without"])
        .unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes = frame(0, b"x").repeat(10_000);
            while !over.load(Ordering::SeqCst) {
                raws[0].try_write(&bytes);
            }
        });
        assert!(!server.close(Duration::from_millis(50)).unwrap());
        over.store(true, Ordering::SeqCst);
    });
    // Connections on which nothing was sent are not waited for.
    let (mut server, bound) = router(net, Options::new());
    let _raws = establish(&mut server, &bound, 3);
    let began = std::time::Instant::now();
    assert!(server.close(DEADLINE).unwrap());
    assert!(began.elapsed() < DEADLINE / 4);
    // More peers that have gone than one call reads from.
    let (mut server, bound) = router(net, Options::new());
    drop(establish(&mut server, &bound, 150));
    let began = std::time::Instant::now();
    assert!(server.close(DEADLINE).unwrap());
    assert!(began.elapsed() < DEADLINE / 4);
}

pub(crate) fn held_and_lost(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick().sndhwm(2));
    server.send(b"d", &[b"nobody receives this"]).unwrap();
    server.drain(DEADLINE).unwrap();
    for_a_while(Duration::from_millis(5), || dealer.drive());
    drop(server);
    let mut server = Router::new(Options::new()).unwrap();
    server.bind(&bound).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                let sent = dealer.send_timeout(&[b"x"], Some(DEADLINE));
                assert_eq!(sent, Ok(()));
            }
            dealer.drain(DEADLINE).unwrap();
        });
        // What the old connection had taken may be lost with it.
        for _ in 0..10 {
            until("it is back", || take(&mut server));
        }
    });
}

pub(crate) fn host_names(net: &Net) {
    // Names are a matter of tcp; the peer beside them is of either transport.
    let (mut server, bound) = router(net, Options::new());
    let by_address = server.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let mut dealer = Dealer::new(quick()).unwrap();
    // Longer than a label may be, so that no server is asked.
    let name = format!("{}.invalid", "x".repeat(64));
    dealer.connect(&format!("tcp://{name}:5")).unwrap();
    let mut reasons = Vec::new();
    let mut good = Dealer::new(quick().routing_id("good")).unwrap();
    good.connect(&bound).unwrap();
    until("it is told, and told again", || {
        good.send(&[b"x"]).unwrap();
        until("another peer goes on", || {
            good.drive();
            dealer.drive();
            take(&mut server)
        });
        reasons.extend(dealer.events().into_iter().filter_map(|event| match event {
            Event::ConnectFailed { reason, .. } => Some(reason.to_string()),
            _ => None,
        }));
        (reasons.len() >= 2).then_some(())
    });
    for reason in reasons {
        assert!(reason.contains(&name), "{reason}");
        assert!(reason.contains("cannot resolve the host"), "{reason}");
    }
    let mut named = Dealer::new(quick().routing_id("named")).unwrap();
    named.connect(&by_name).unwrap();
    named.send(&[b"hello"]).unwrap();
    until("the name leads there", || {
        named.drive();
        assert_eq!(take(&mut server)?.0, b"named");
        Some(())
    });
}

pub(crate) fn send_timeout(net: &Net) {
    let short = Some(Duration::from_millis(20));
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = Dealer::new(quick().immediate(true).sndhwm(1)).unwrap();
    assert_eq!(dealer.send_timeout(&[b"x"], short), Err(Error::NoPeer));
    dealer.connect(&bound).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The connection comes up meanwhile, and room where there was none.
            for _ in 0..1000 {
                let sent = dealer.send_timeout(&[b"head", &[7; 10_000]], None);
                assert_eq!(sent, Ok(()));
            }
            dealer.drain(DEADLINE).unwrap();
        });
        for _ in 0..1000 {
            until("it arrives", || take(&mut server));
        }
    });
    let mut raw = net.raw(&bound);
    raw.shake_hands("DEALER", b"slow");
    until("it is there", || {
        server.drive();
        server.socket().route(b"slow").map(drop)
    });
    let full = loop {
        let sent = server.send_timeout(b"slow", &[&[7; 1 << 20]], short);
        if let Err(error) = sent {
            break error;
        }
    };
    assert_eq!(full, Error::Full);
    let nobody = server.send_timeout(b"nobody", &[b"x"], short);
    assert_eq!(nobody, Err(Error::Unroutable));
    assert!(!server.wait_writable(Duration::from_millis(20)).unwrap());
    until("there is room again", || {
        raw.poll();
        let has_left = server.wait_writable(Duration::from_millis(1)).unwrap();
        has_left.then_some(())
    });
}

pub(crate) fn endless_durations(net: &Net) {
    let endless = || {
        Options::new()
            .handshake_ivl(Duration::MAX)
            .connect_timeout(Duration::MAX)
            .heartbeat_ivl(Duration::MAX)
            .heartbeat_timeout(Duration::MAX)
            .heartbeat_ttl(Duration::MAX)
            .reconnect_ivl(Duration::MAX)
            .reconnect_ivl_max(Duration::MAX)
    };
    let (mut server, bound) = router(net, endless());
    let mut dealer = connected(&bound, &mut server, endless().routing_id("d"));
    dealer.send(&[b"x"]).unwrap();
    dealer.drain(Duration::MAX).unwrap();
    server.receive(Some(Duration::MAX)).unwrap().unwrap();
    drop(server);
    until("the pause is endless, too", || {
        dealer.drive();
        (dealer.counters().retries == 1).then_some(())
    });
    // Zero is no bound but for intervals, as in libzmq.
    let zero = Duration::ZERO;
    let options = Options::new().handshake_ivl(zero).connect_timeout(zero);
    let options = options
        .heartbeat_ivl(Duration::from_secs(60))
        .heartbeat_timeout(zero);
    let (mut server, bound) = router(net, options.clone());
    connected(&bound, &mut server, options);
}

pub(crate) fn reconnect_ivl(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick());
    drop(server);
    until("it tries again and again", || {
        dealer.drive();
        (dealer.counters().retries > 3).then_some(())
    });
    let mut server = Router::new(Options::new()).unwrap();
    server.bind(&bound).unwrap();
    dealer.send(&[b"back"]).unwrap();
    until("it is back", || {
        dealer.drive();
        take(&mut server)
    });
    // The pause grows to its cap, give or take a quarter.
    let pauses: Vec<Duration> = dealer
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::RetryIn { pause, .. } => Some(*pause),
            _ => None,
        })
        .collect();
    assert!(pauses[0] <= Duration::from_micros(1250), "{pauses:?}");
    assert!(
        pauses
            .iter()
            .all(|pause| *pause <= Duration::from_millis(25))
    );

    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick().no_reconnect());
    drop(server);
    let mut server = Router::new(Options::new()).unwrap();
    server.bind(&bound).unwrap();
    until("it stops", || {
        dealer.drive();
        dealer
            .events()
            .iter()
            .any(|event| matches!(event, Event::Stopped { .. }))
            .then_some(())
    });
    for_a_while(Duration::from_millis(20), || {
        dealer.drive();
        server.drive();
    });
    assert_eq!(server.counters().accepted, 0);
    assert_eq!(dealer.send(&[b"x"]), Err(Error::NoPeer));
}

pub(crate) fn reconnect_options(net: &Net) {
    let all = ReconnectStop::default;
    // What happens, and the conditions that must and must not end the attempts.
    let refused = ReconnectStop {
        conn_refused: true,
        ..all()
    };
    let handshake = ReconnectStop {
        handshake_failed: true,
        ..all()
    };
    let disconnect = ReconnectStop {
        after_disconnect: true,
        ..all()
    };
    for (what, stops, goes_on) in [
        ("refused", refused, [handshake, disconnect]),
        ("handshake", handshake, [refused, disconnect]),
        ("disconnect", disconnect, [refused, handshake]),
    ] {
        for (stop, ends) in [(stops, true), (goes_on[0], false), (goes_on[1], false)] {
            let mut dealer = Dealer::new(quick().reconnect_stop(stop)).unwrap();
            // What listens there closes everybody in its own way.
            let (listener, endpoint) = net.raw_listener();
            let endpoint = if what == "refused" {
                net.unbound()
            } else {
                endpoint
            };
            dealer.connect(&endpoint).unwrap();
            let mut raws = Vec::new();
            until(what, || {
                dealer.drive();
                if let Some(mut raw) = listener.accept() {
                    match what {
                        "handshake" => raw.write(&[0; 64]),
                        _ => raw.shake_hands("ROUTER", b""),
                    }
                    raws.push(raw);
                }
                if what == "disconnect" && dealer.counters().established > 0 {
                    raws.clear();
                }
                let stopped = dealer
                    .events()
                    .iter()
                    .any(|event| matches!(event, Event::Stopped { .. }));
                assert!(ends || !stopped, "{what} with {stop:?}");
                (stopped || (!ends && dealer.counters().retries > 3)).then_some(())
            });
            assert_eq!(
                dealer.socket().peer_count(),
                usize::from(!ends),
                "{what} with {stop:?}"
            );
        }
    }
}

pub(crate) fn term_endpoint(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick());
    assert!(dealer.disconnect(&bound).unwrap());
    assert!(!dealer.disconnect(&bound).unwrap());
    assert_eq!(dealer.send(&[b"x"]), Err(Error::NoPeer));
    until("the server sees it go", || {
        server.receive(NOW).unwrap();
        (server.socket().peer_count() == 0).then_some(())
    });
    let mut stays = connected(&bound, &mut server, quick());
    assert!(server.unbind(&bound).unwrap());
    assert!(!server.unbind(&bound).unwrap());
    // Accepted peers stay, others find nobody.
    stays.send(&[b"still here"]).unwrap();
    until("it is served", || {
        stays.drive();
        take(&mut server)
    });
    let mut late = Dealer::new(quick()).unwrap();
    late.connect(&bound).unwrap();
    until("nobody listens any more", || {
        late.drive();
        server.drive();
        (late.counters().connect_failed > 0).then_some(())
    });
    assert_eq!(late.counters().connected, 0);
}

pub(crate) fn bind_after_connect(net: &Net) {
    let endpoint = net.unbound();
    let mut dealer = Dealer::new(quick()).unwrap();
    dealer.connect(&endpoint).unwrap();
    for count in 0..10u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    until("it has tried", || {
        dealer.drive();
        (dealer.counters().retries > 1).then_some(())
    });
    let mut server = Router::new(Options::new()).unwrap();
    server.bind(&endpoint).unwrap();
    for count in 0..10u8 {
        until("what was queued arrives", || {
            dealer.drive();
            let (_, frames) = take(&mut server)?;
            assert_eq!(frames, [[count]]);
            Some(())
        });
    }
}

pub(crate) fn rebind(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick());
    for round in 0..10u8 {
        assert!(server.unbind(&bound).unwrap());
        assert_eq!(server.bind(&bound).unwrap().to_string(), bound);
        let error = server.bind(&bound).unwrap_err();
        assert_eq!(error, Error::Io(std::io::ErrorKind::AddrInUse.into()));
        let mut fresh = Dealer::new(Options::new()).unwrap();
        fresh.connect(&bound).unwrap();
        fresh.send(&[&[round]]).unwrap();
        until("a newcomer is served", || {
            fresh.drive();
            take(&mut server)
        });
    }
    dealer.send(&[b"x"]).unwrap();
    until("the first is still served", || {
        dealer.drive();
        take(&mut server)
    });
}

pub(crate) fn wildcard(net: &Net) {
    let asked: &[&str] = match net.transport {
        Transport::Tcp => &[
            "tcp://127.0.0.1:*",
            "tcp://127.0.0.1:0",
            "tcp://*:*",
            "tcp://[::1]:*",
        ],
        Transport::Ipc => &["ipc://*"],
    };
    for asked in asked {
        // Where the system has no IPv6, ours fails as the system does.
        if asked.contains("[::1]")
            && let Err(error) = std::net::TcpListener::bind("[::1]:0")
        {
            let mut server = Router::new(Options::new()).unwrap();
            assert_eq!(server.bind(asked).unwrap_err(), Error::Io(error));
            continue;
        }
        let mut server = Router::new(Options::new()).unwrap();
        let first = server.bind(asked).unwrap().to_string();
        let second = server.bind(asked).unwrap().to_string();
        assert_ne!(first, second);
        assert!(!first.ends_with('*') && !first.ends_with(":0"), "{first}");
        let endpoint = first.replace("0.0.0.0", "127.0.0.1");
        let mut dealer = connected(&endpoint, &mut server, quick());
        dealer.send(&[b"x"]).unwrap();
        until("it is reachable there", || {
            dealer.drive();
            take(&mut server)
        });
        drop(server);
        if let Some(path) = first.strip_prefix("ipc://") {
            assert!(!std::path::Path::new(path).exists());
            assert!(!std::path::Path::new(path).parent().unwrap().exists());
        }
    }
    if net.transport == Transport::Ipc && cfg!(target_os = "linux") {
        let name = format!("ipc://@casparian-{}", std::process::id());
        let mut server = Router::new(Options::new()).unwrap();
        assert_eq!(server.bind(&name).unwrap().to_string(), name);
        let mut dealer = connected(&name, &mut server, quick());
        dealer.send(&[b"x"]).unwrap();
        until("abstract names work", || {
            dealer.drive();
            take(&mut server)
        });
    }
    for bad in [
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "udp://x:1",
        "ipc://",
        "x",
    ] {
        let mut server = Router::new(Options::new()).unwrap();
        let error = server.bind(bad).unwrap_err();
        assert!(matches!(error, Error::Endpoint(_)), "{bad}: {error}");
    }
}

pub(crate) fn many_sockets(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let mut dealers: Vec<Dealer> = (0..100)
        .map(|n| {
            let mut dealer = Dealer::new(Options::new().routing_id(format!("d-{n}"))).unwrap();
            dealer.connect(&bound).unwrap();
            dealer.send(&[b"here"]).unwrap();
            dealer
        })
        .collect();
    let mut heard = 0;
    until("all are heard", || {
        dealers.iter_mut().for_each(Drive::drive);
        heard += std::iter::from_fn(|| take(&mut server)).count();
        (heard == 100).then_some(())
    });
    for (n, dealer) in dealers.iter_mut().enumerate() {
        server.send(format!("d-{n}").as_bytes(), &[b"you"]).unwrap();
        until("each is answered", || {
            server.drive();
            receive(dealer)
        });
    }
    drop(dealers);
    until("all are gone", || {
        server.receive(NOW).unwrap();
        (server.socket().peer_count() == 0).then_some(())
    });
}

pub(crate) fn shutdown_stress(net: &Net) {
    let (mut server, bound) = router(net, Options::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..100u32 {
                        let mut dealer = Dealer::new(quick().routing_id("")).unwrap();
                        dealer.connect(&bound).unwrap();
                        dealer.send(&[b"x"]).unwrap();
                        for _ in 0..round % 7 {
                            dealer.drive();
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            over.store(true, Ordering::SeqCst);
        });
        until("all threads end", || {
            server.receive(Some(Duration::from_millis(1))).unwrap();
            over.load(Ordering::SeqCst).then_some(())
        });
    });
    until("nothing is left", || {
        server.receive(Some(Duration::from_millis(1))).unwrap();
        let counters = server.counters();
        let ended = counters.disconnected + counters.handshake_failed;
        (server.socket().peer_count() == 0 && counters.accepted == ended).then_some(())
    });
}

pub(crate) fn monitor(net: &Net) {
    let mut server = Router::new(Options::new()).unwrap();
    let bound = server.bind(&net.endpoint()).unwrap().to_string();
    let mut dealer = connected(&bound, &mut server, quick());
    let mut server_saw = server.events();
    until("the server has established it", || {
        server.drive();
        server_saw.extend(server.events());
        (server.counters().established == 1).then_some(())
    });
    assert!(server.unbind(&bound).unwrap());
    let mut dealer_saw = dealer.events();
    server_saw.extend(server.events());
    drop(server);
    until("the dealer has given up twice", || {
        dealer.drive();
        dealer_saw.extend(dealer.events());
        (dealer.counters().retries == 2).then_some(())
    });
    let names = |events: &[Event]| -> Vec<String> {
        events
            .iter()
            .map(|event| {
                format!("{event:?}")
                    .split([' ', '{'])
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(
        names(&server_saw),
        ["Listening", "Accepted", "Established", "Closed"]
    );
    let told = server_saw.iter().find_map(|event| match event {
        Event::Accepted { address, .. } => Some(address.as_str()),
        _ => None,
    });
    let is_told = match net.transport {
        Transport::Tcp => told.unwrap().starts_with("tcp://127.0.0.1:"),
        Transport::Ipc => told.unwrap() == bound.replace("ipc://", "ipc peer at "),
    };
    assert!(is_told, "{told:?}");
    assert_eq!(
        names(&dealer_saw),
        [
            "Connected",
            "Established",
            "Disconnected",
            "RetryIn",
            "ConnectFailed",
            "RetryIn"
        ]
    );
    // The other side's end, and an end of our own.
    let (mut server, bound) = router(net, Options::new());
    let mut dealer = connected(&bound, &mut server, quick());
    dealer.disconnect(&bound).unwrap();
    let last = dealer.events().pop().unwrap();
    assert!(matches!(last, Event::Disconnected { .. }), "{last:?}");
    let mut events = Vec::new();
    until("the server sees the end", || {
        server.receive(NOW).unwrap();
        events.extend(server.events());
        (server.counters().disconnected == 1).then_some(())
    });
    assert_eq!(
        names(&events),
        ["Listening", "Accepted", "Established", "Disconnected"]
    );
    // Events that nobody reads are bounded and the loss is counted.
    let mut lonely = Dealer::new(quick()).unwrap();
    let endpoint = net.unbound();
    for _ in 0..50_000 {
        lonely.connect(&endpoint).unwrap();
        lonely.disconnect(&endpoint).unwrap();
        if lonely.counters().events_dropped > 0 {
            break;
        }
    }
    assert!(lonely.counters().events_dropped > 0);
    let kept = lonely.events();
    assert!(
        kept.iter()
            .any(|event| discriminant(event) == discriminant(&last))
    );
}

pub(crate) fn metadata(net: &Net) {
    let options = Options::new()
        .routing_id("d")
        .metadata("X-Site", "field")
        .metadata("X-Empty", "");
    let (mut server, bound) = router(net, Options::new().metadata("X-Version", "7"));
    let mut dealer = Dealer::new(options).unwrap();
    let peer = dealer.connect(&bound).unwrap();
    dealer.send(&[b"x"]).unwrap();
    until("it arrives", || {
        dealer.drive();
        take(&mut server)
    });
    let theirs = dealer.socket().peer_info(peer).unwrap();
    assert_eq!(theirs.socket_type, "ROUTER");
    assert_eq!(theirs.metadata, [("X-Version".to_owned(), b"7".to_vec())]);
    let id = server.socket().route(b"d").unwrap();
    let ours = server.socket().peer_info(id).unwrap();
    assert_eq!(
        (ours.socket_type.as_str(), ours.routing_id.as_slice()),
        ("DEALER", &b"d"[..])
    );
    assert_eq!(
        ours.metadata,
        [
            ("X-Site".to_owned(), b"field".to_vec()),
            ("X-Empty".to_owned(), Vec::new())
        ]
    );
    assert!(server.socket().address(id).is_some());
    // Names of properties have no case (RFC 37 §3.6).
    let mut raw = net.raw(&bound);
    raw.write(&greeting("NULL"));
    raw.write(&ready(&[
        ("sOCKET-tYPE", b"DEALER"),
        ("IDENTITY", b"odd"),
        ("x-more", b"1"),
    ]));
    until("it is established", || {
        server.drive();
        server.socket().route(b"odd").map(drop)
    });
    assert!(Dealer::new(Options::new().metadata("Site", "x")).is_err());
    assert!(Dealer::new(Options::new().metadata("X-Large", vec![0; 5000])).is_err());
    // Every connection of the dealer carries them.
    let mut others = routers(net, &mut dealer, 1);
    let other = &mut others[0];
    let id = until("the other server has the dealer", || {
        dealer.drive();
        other.drive();
        other.socket().route(b"d")
    });
    assert_eq!(
        other.socket().peer_info(id).unwrap().metadata,
        [
            ("X-Site".to_owned(), b"field".to_vec()),
            ("X-Empty".to_owned(), Vec::new())
        ]
    );
}
