//! ROUTER: messages by routing ID.

use std::sync::Arc;
use std::time::{Duration, Instant};

use casparian::socket::curve::{Clients, SecretKey};
use casparian::socket::{
    Dealer, DisconnectReason, Error, Event, Options, PlainClient, PlainServer, Router,
};

use crate::support::*;

fn dealer(routing_id: &str, bound: &str) -> Dealer {
    let mut dealer = Dealer::new(Options::new().routing_id(routing_id)).unwrap();
    dealer.connect(bound).unwrap();
    dealer
}

/// A ROUTER and where it is bound.
pub(crate) fn router(net: &Net, options: Options) -> (Router, String) {
    let mut router = Router::new(options).unwrap();
    let bound = router.bind(&net.endpoint()).unwrap().to_string();
    (router, bound)
}

fn establish(router: &mut Router, dealer: &mut Dealer) {
    until("established", || {
        router.drive();
        dealer.drive();
        (dealer.counters().established > 0).then_some(())
    });
    until("known to the router", || {
        router.drive();
        router
            .events()
            .iter()
            .any(|event| matches!(event, Event::Established { .. }))
            .then_some(())
    });
}

pub(crate) fn spec_router(net: &Net) {
    let (mut router, bound) = router(net, Options::new());
    let mut dealers: Vec<Dealer> = (0..5).map(|n| dealer(&format!("d-{n}"), &bound)).collect();
    for dealer in &mut dealers {
        establish(&mut router, dealer);
        for count in 0..20u8 {
            dealer.send(&[b"", &[count]]).unwrap();
        }
        assert!(dealer.drain(DEADLINE).unwrap());
    }
    // Bytes of all are there before the first is taken.
    for_a_while(Duration::from_millis(20), || router.drive());
    let mut got = Vec::new();
    until("all arrive", || {
        got.extend(take(&mut router));
        (got.len() == 100).then_some(())
    });
    for (round, turn) in got.chunks(5).enumerate() {
        let mut names: Vec<_> = turn.iter().map(|(from, _)| from.as_slice()).collect();
        names.sort_unstable();
        assert_eq!(names, [b"d-0", b"d-1", b"d-2", b"d-3", b"d-4"]);
        for (_, frames) in turn {
            assert_eq!(*frames, [vec![], vec![round as u8]]);
        }
    }
    // A peer without a name gets one of five bytes, the first of them zero.
    let mut nameless = dealer("", &bound);
    nameless.send(&[b"who am I"]).unwrap();
    let name = until("it is heard", || {
        nameless.drive();
        take(&mut router).map(|(from, _)| from)
    });
    assert_eq!((name.len(), name[0]), (5, 0));
    router.send(&name, &[b"you"]).unwrap();
    until("it is answered", || {
        router.drive();
        receive(&mut nameless)
    });
}

pub(crate) fn router_mandatory(net: &Net) {
    let (mut strict, _) = router(net, Options::new());
    assert_eq!(strict.send(b"nobody", &[b"x"]), Err(Error::Unroutable));
    let (mut lax, bound) = router(net, Options::new().router_mandatory(false));
    lax.send(b"nobody", &[b"x"]).unwrap();
    let mut dealer = dealer("d", &bound);
    establish(&mut lax, &mut dealer);
    lax.send(b"d", &[b"y"]).unwrap();
    until("a known one is reached", || {
        lax.drive();
        receive(&mut dealer)
    });
}

/// Fills the way to a peer that does not read; how many messages it took.
pub(crate) fn fill(router: &mut Router, id: &[u8], body: &[u8]) -> usize {
    let mut count = 0;
    loop {
        match router.send(id, &[body]) {
            Ok(()) => count += 1,
            Err(Error::Full) => {
                router.drive();
                if router.send(id, &[body]) == Err(Error::Full) {
                    return count;
                }
                count += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn router_mandatory_hwm(net: &Net) {
    let (mut router, bound) = router(net, Options::new().sndhwm(5));
    let mut stalled = dealer("stalled", &bound);
    let mut good = dealer("good", &bound);
    establish(&mut router, &mut stalled);
    establish(&mut router, &mut good);
    let body = vec![1; 64 << 10];
    let taken = fill(&mut router, b"stalled", &body);
    for count in 0..50u8 {
        assert_eq!(router.send(b"stalled", &[b"x"]), Err(Error::Full));
        until("there is room for the good one", || {
            router.drive();
            router.send(b"good", &[&[count]]).ok()
        });
        until("the good one is served", || {
            router.drive();
            receive(&mut good)
        });
    }
    // The stalled one wakes up and misses nothing.
    let mut got = 0;
    until("it catches up", || {
        router.drive();
        got += usize::from(receive(&mut stalled).is_some());
        (got == taken).then_some(())
    });
    router.send(b"stalled", &[b"x"]).unwrap();
}

pub(crate) fn router_handover(net: &Net) {
    for handover in [true, false] {
        let (mut router, bound) = router(net, Options::new().router_handover(handover));
        let mut first = dealer("same", &bound);
        establish(&mut router, &mut first);
        let mut raw = net.raw(&bound);
        raw.shake_hands("DEALER", b"same");
        let events = until("it is decided", || {
            router.drive();
            let events = router.events();
            events
                .iter()
                .any(|event| {
                    matches!(
                        event,
                        Event::HandshakeFailed { .. } | Event::Disconnected { .. }
                    )
                })
                .then_some(events)
        });
        if handover {
            let reason = events.iter().find_map(|event| match event {
                Event::Disconnected { reason, .. } => Some(reason),
                _ => None,
            });
            assert_eq!(reason, Some(&DisconnectReason::Handover));
        } else {
            assert_eq!(
                handshake_failure(&events),
                Some(&DisconnectReason::RoutingIdInUse)
            );
        }
        router.send(b"same", &[b"for the owner"]).unwrap();
        if handover {
            until("the newcomer gets it", || {
                router.drive();
                raw.poll();
                raw.frames()
                    .contains(&(0, b"for the owner".to_vec()))
                    .then_some(())
            });
        } else {
            until("the first gets it", || {
                router.drive();
                receive(&mut first)
            });
            until("the newcomer is told", || {
                router.drive();
                raw.poll();
                raw.ended.then_some(())
            });
            let (flags, body) = raw.frames().pop().unwrap();
            assert_eq!(flags, 4);
            assert!(body.starts_with(b"\x05ERROR"), "{body:?}");
        }
    }
}

pub(crate) fn handover_of_another_user(net: &Net) {
    let users = || PlainServer::new([("one", "1"), ("two", "2")]);
    let secret = |byte| SecretKey::from_bytes([byte; 32]);
    let listed = || {
        let keys = [(1, "one"), (2, "two"), (3, "two")];
        let keys = keys.map(|(byte, name)| (secret(byte).public(), name.to_owned()));
        Clients::Listed(Arc::new(keys.into_iter().collect()))
    };
    let plain = |user: &str, password: &str| {
        Options::new().plain_client(PlainClient::new(user, password).unwrap())
    };
    let curve = |byte| Options::new().curve_client(secret(byte), secret(9).public());
    let server = |clients| Options::new().curve_server(secret(9), clients);
    // Key 2 and key 3 have one name.
    for (what, server, first, second, may) in [
        (
            "PLAIN, same",
            Options::new().plain_server(users()),
            plain("one", "1"),
            plain("one", "1"),
            true,
        ),
        (
            "PLAIN, other",
            Options::new().plain_server(users()),
            plain("one", "1"),
            plain("two", "2"),
            false,
        ),
        ("CURVE, same", server(listed()), curve(1), curve(1), true),
        (
            "CURVE, same name",
            server(listed()),
            curve(2),
            curve(3),
            true,
        ),
        ("CURVE, other", server(listed()), curve(1), curve(2), false),
        (
            "CURVE, anybody",
            server(Clients::Any),
            curve(1),
            curve(2),
            true,
        ),
    ] {
        let (mut router, bound) = router(net, server.router_handover(true));
        let connect = |options: Options| {
            let mut dealer = Dealer::new(options.routing_id("same").no_reconnect()).unwrap();
            dealer.connect(&bound).unwrap();
            dealer
        };
        let mut first = connect(first);
        establish(&mut router, &mut first);
        let mut second = connect(second);
        until(what, || {
            second.drive();
            router.drive();
            let counters = router.counters();
            (counters.established + counters.handshake_failed == 2).then_some(())
        });
        assert_eq!(router.counters().established == 2, may, "{what}");
        router.send(b"same", &[b"for the owner"]).unwrap();
        let owner = if may { &mut second } else { &mut first };
        until(what, || {
            router.drive();
            receive(owner)
        });
    }
}

pub(crate) fn handover_reports_the_identity(net: &Net) {
    // The old peer is one that we connected to. It does not read, so messages for it stay queued.
    let (mut old, there) = router(net, Options::new().routing_id("same"));
    let options = Options::new().router_handover(true).sndhwm(5);
    let (mut router, bound) = router(net, options);
    router.connect(&there).unwrap();
    until("both know each other", || {
        router.drive();
        old.drive();
        router.socket().route(b"same").map(drop)
    });
    router.events();
    // More than the kernel takes while the old peer does not read, so the rest is queued.
    let body = vec![1; 64 << 10];
    let sent = fill(&mut router, b"same", &body);
    let mut raw = net.raw(&bound);
    raw.shake_hands("DEALER", b"same");
    let mut events = Vec::new();
    until("it is handed over", || {
        router.drive();
        events.extend(router.events());
        (router.counters().disconnected == 1).then_some(())
    });
    assert!(
        events.iter().any(|event| matches!(
            event,
            Event::Disconnected { routing_id, reason: DisconnectReason::Handover, .. } if routing_id == b"same"
        )),
        "{events:?}"
    );
    let unsent = events.iter().find_map(|event| match event {
        Event::Unsent {
            routing_id,
            messages,
            ..
        } => Some((routing_id.as_slice(), *messages)),
        _ => None,
    });
    let (of, unsent) = unsent.expect("messages that were queued are reported");
    assert_eq!(of, b"same");
    assert!((1..=sent).contains(&unsent), "{unsent} of {sent}");
    router.send(b"same", &[b"for the newcomer"]).unwrap();
    until("the newcomer gets what is sent after it came", || {
        router.drive();
        raw.poll();
        raw.frames()
            .contains(&(0, b"for the newcomer".to_vec()))
            .then_some(())
    });
    assert!(
        raw.frames().iter().all(|(_, frame)| *frame != body),
        "the newcomer got what was queued for the old peer"
    );
}

pub(crate) fn probe_router(net: &Net) {
    let (mut router, bound) = router(net, Options::new());
    let mut dealer = Dealer::new(Options::new().routing_id("d").probe_router(true)).unwrap();
    dealer.connect(&bound).unwrap();
    until("the probe arrives", || {
        dealer.drive();
        let (from, frames) = take(&mut router)?;
        assert_eq!((from, frames), (b"d".to_vec(), vec![vec![]]));
        Some(())
    });
    router.send(b"d", &[b"hello"]).unwrap();
    until("it can be talked to", || {
        router.drive();
        receive(&mut dealer)
    });
    // A ROUTER that connects announces itself as well.
    let mut other = Router::new(Options::new().routing_id("r").probe_router(true)).unwrap();
    other.connect(&bound).unwrap();
    until("its probe arrives", || {
        other.drive();
        let (from, frames) = take(&mut router)?;
        assert_eq!((from, frames), (b"r".to_vec(), vec![vec![]]));
        Some(())
    });
}

pub(crate) fn connect_rid(net: &Net) {
    let (mut first, first_bound) = router(net, Options::new());
    let (mut second, second_bound) = router(net, Options::new().routing_id("its own name"));
    let mut client = Router::new(Options::new().routing_id("client")).unwrap();
    client.connect_as(&first_bound, b"one").unwrap();
    client.connect_as(&second_bound, b"two").unwrap();
    assert!(client.connect_as(&second_bound, b"two").is_err());
    for bad in [&b""[..], b"\0zero", &[b'x'; 256]] {
        assert!(client.connect_as(&second_bound, bad).is_err());
    }
    // Queued before anybody has answered.
    client.send(b"one", &[b"1"]).unwrap();
    client.send(b"two", &[b"2"]).unwrap();
    for (server, id, body) in [(&mut first, b"one", b"1"), (&mut second, b"two", b"2")] {
        until("it arrives where it was meant for", || {
            client.drive();
            let (from, frames) = take(server)?;
            assert_eq!((from, frames), (b"client".to_vec(), vec![body.to_vec()]));
            Some(())
        });
        server.send(b"client", &[body]).unwrap();
        until("the answer comes under that id", || {
            server.drive();
            let (from, frames) = take(&mut client)?;
            assert_eq!((from, frames), (id.to_vec(), vec![body.to_vec()]));
            Some(())
        });
    }
}

pub(crate) fn issue_566(net: &Net) {
    let (mut router, bound) = router(net, Options::new());
    let mut late = 0;
    for _ in 0..30 {
        let began = Instant::now();
        let mut dealer = dealer("same", &bound);
        until("it is reached", || {
            router.receive(NOW).unwrap();
            if router.send(b"same", &[b"hello"]).is_ok() {
                router.drive();
            }
            receive(&mut dealer)
        });
        // libzmq's test sleeps for so long before it sends.
        late += u32::from(began.elapsed() >= Duration::from_secs(1));
        drop(dealer);
        until("it is gone", || {
            router.receive(Some(Duration::from_millis(1))).unwrap();
            (router.socket().peer_count() == 0).then_some(())
        });
    }
    // A busy machine may stand still for a moment.
    assert!(late <= 2, "{late} of 30 late");
}

pub(crate) fn peer_disconnect(net: &Net) {
    let (mut router, bound) = router(net, Options::new());
    let mut dealer = dealer("d", &bound);
    establish(&mut router, &mut dealer);
    router.send(b"d", &[b"x"]).unwrap();
    drop(dealer);
    until("it is unroutable", || {
        assert_eq!(take(&mut router), None);
        (router.send(b"d", &[b"x"]) == Err(Error::Unroutable)).then_some(())
    });
    assert_eq!(router.socket().peer_count(), 0);
}
