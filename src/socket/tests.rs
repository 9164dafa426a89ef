use std::time::{Duration, Instant};

use super::*;

const WAIT: Option<Duration> = Some(Duration::from_millis(2));
const DEADLINE: Duration = Duration::from_secs(10);

fn options(identity: &[u8]) -> Options {
    Options::new().routing_id(identity)
}

/// Runs `step` until it gives a value.
fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "nothing happened for {DEADLINE:?}"
        );
    }
}

fn endpoints() -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    (
        dir,
        vec![
            "tcp://127.0.0.1:*".to_owned(),
            format!("ipc://{}", path.display()),
        ],
    )
}

#[test]
fn request_and_reply_over_each_transport() {
    let (_dir, endpoints) = endpoints();
    for endpoint in endpoints {
        let mut router = Router::new(Options::default()).unwrap();
        let bound = router.bind(&endpoint).unwrap().to_string();
        let mut dealer = Dealer::new(options(b"w-1")).unwrap();
        dealer.connect(&bound).unwrap();
        for round in 0..100u32 {
            let body = vec![7u8; (round * 997) as usize];
            dealer.send(&[&round.to_be_bytes(), &body]).unwrap();
            let from = until(|| {
                dealer.flush().unwrap();
                let (from, message) = router.receive(WAIT).unwrap()?;
                assert_eq!(message.get(1), Some(&body[..]));
                Some(from.to_vec())
            });
            assert_eq!(from, b"w-1");
            router.send(&from, &[b"", b"reply"]).unwrap();
            until(|| {
                router.flush().unwrap();
                let message = dealer.receive(WAIT).unwrap()?;
                assert_eq!(message.to_vecs(), vec![b"".to_vec(), b"reply".to_vec()]);
                Some(())
            });
        }
    }
}

#[test]
fn a_dealer_survives_its_routers_restart_and_keeps_its_queue() {
    let mut router = Router::new(Options::default()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(options(b"w-1").reconnect_ivl(Duration::from_millis(5))).unwrap();
    dealer.connect(&bound).unwrap();
    dealer.send(&[b"1"]).unwrap();
    until(|| {
        dealer.flush().unwrap();
        router.receive(WAIT).unwrap().map(drop)
    });
    drop(router);
    until(|| {
        dealer.receive(WAIT).unwrap();
        std::iter::from_fn(|| dealer.poll_event())
            .any(|event| matches!(event, Event::Disconnected { .. }))
            .then_some(())
    });
    dealer.send(&[b"2"]).unwrap();
    dealer.send(&[b"3"]).unwrap();
    let mut router = Router::new(Options::default()).unwrap();
    router.bind(&bound).unwrap();
    for want in [b"2", b"3"] {
        until(|| {
            dealer.flush().unwrap();
            let (from, message) = router.receive(WAIT).unwrap()?;
            assert_eq!((from, message.get(0)), (&b"w-1"[..], Some(&want[..])));
            Some(())
        });
    }
}

#[test]
fn an_identity_in_use_is_handed_over_or_refused_by_option() {
    for handover in [true, false] {
        let mut router = Router::new(Options::new().router_handover(handover)).unwrap();
        let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
        let mut dealers: Vec<Dealer> = Vec::new();
        for name in [b"first", b"secnd"] {
            let mut dealer = Dealer::new(options(b"same")).unwrap();
            dealer.connect(&bound).unwrap();
            dealer.send(&[name]).unwrap();
            dealers.push(dealer);
            if handover || name == b"first" {
                until(|| {
                    for dealer in &mut dealers {
                        dealer.flush().unwrap();
                    }
                    let (_, message) = router.receive(WAIT).unwrap()?;
                    (message.get(0) == Some(name)).then_some(())
                });
            } else {
                until(|| {
                    for dealer in &mut dealers {
                        dealer.flush().unwrap();
                    }
                    assert!(router.receive(WAIT).unwrap().is_none());
                    std::iter::from_fn(|| router.poll_event()).find(|event| {
                        matches!(
                            event,
                            Event::HandshakeFailed {
                                reason: DisconnectReason::IdentityInUse,
                                ..
                            }
                        )
                    })
                });
            }
        }
        router.send(b"same", &[b"to the owner"]).unwrap();
        let owner = usize::from(handover);
        until(|| {
            router.flush().unwrap();
            dealers[owner].receive(WAIT).unwrap().map(drop)
        });
    }
}

#[test]
fn full_unknown_and_empty_sends_are_refused_and_nothing_is_lost() {
    let mut dealer = Dealer::new(Options::new().sndhwm(3)).unwrap();
    assert_eq!(dealer.send(&[b"x"]), Err(SendError::NoPeer));
    let mut router = Router::new(Options::default()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    dealer.connect(&bound).unwrap();
    for count in 0..3u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    assert_eq!(dealer.send(&[b"x"]), Err(SendError::Full));
    assert_eq!(dealer.send(&[]), Err(SendError::Invalid));
    assert_eq!(router.send(b"nobody", &[b"x"]), Err(SendError::Unroutable));
    for count in 0..3u8 {
        until(|| {
            dealer.flush().unwrap();
            let (_, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(message.get(0), Some(&[count][..]));
            Some(())
        });
    }
    dealer.send(&[b"room again"]).unwrap();
}

#[test]
fn a_dealer_deals_in_turn_and_hears_all() {
    let mut routers: Vec<Router> = Vec::new();
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    for _ in 0..5 {
        let mut router = Router::new(Options::default()).unwrap();
        dealer
            .connect(&router.bind("tcp://127.0.0.1:*").unwrap().to_string())
            .unwrap();
        routers.push(router);
    }
    for count in 0..5u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    for (count, router) in routers.iter_mut().enumerate() {
        until(|| {
            dealer.flush().unwrap();
            let (_, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(message.get(0), Some(&[count as u8][..]));
            Some(())
        });
        router.send(b"d", &[&[count as u8]]).unwrap();
        router.flush().unwrap();
    }
    let mut heard: Vec<u8> = (0..5)
        .map(|_| {
            until(|| {
                for router in &mut routers {
                    router.flush().unwrap();
                }
                dealer
                    .receive(WAIT)
                    .unwrap()
                    .map(|message| message.get(0).unwrap()[0])
            })
        })
        .collect();
    heard.sort_unstable();
    assert_eq!(heard, [0, 1, 2, 3, 4]);
}

#[test]
fn a_silent_connection_is_dropped_and_garbage_does_not_disturb_others() {
    use std::io::{Read, Write};
    let mut router = Router::new(Options::new().handshake_ivl(Duration::from_millis(50))).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let address = bound.trim_start_matches("tcp://");
    let mut silent = std::net::TcpStream::connect(address).unwrap();
    let mut garbage = std::net::TcpStream::connect(address).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut dealer = Dealer::new(options(b"good")).unwrap();
    dealer.connect(&bound).unwrap();
    dealer.send(&[b"still served"]).unwrap();
    until(|| {
        dealer.flush().unwrap();
        router.receive(WAIT).unwrap().map(drop)
    });
    let mut reasons = Vec::new();
    until(|| {
        router.receive(WAIT).unwrap();
        while let Some(event) = router.poll_event() {
            if let Event::HandshakeFailed {
                reason: DisconnectReason::Protocol(error),
                ..
            } = event
            {
                reasons.push(error.to_string());
            }
        }
        (reasons.len() == 2).then_some(())
    });
    reasons.sort();
    assert!(reasons[0].contains("handshake not done"), "{reasons:?}");
    assert!(reasons[1].contains("not a ZMTP greeting"), "{reasons:?}");
    silent.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert_eq!(
        rest.len(),
        64 + 2 + 41,
        "our greeting and READY, then the end"
    );
}

/// A PING gives idle buffers back, which must not be counted for ever.
#[test]
fn memory_of_peers_is_accounted_through_pings_messages_and_ends() {
    let beat = Options::new()
        .heartbeat_ivl(Duration::from_millis(5))
        .heartbeat_timeout(Duration::from_secs(60));
    let mut router = Router::new(beat.clone()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealers: Vec<Dealer> = (0..4u8)
        .map(|n| {
            let mut dealer = Dealer::new(beat.clone().routing_id([n + 1])).unwrap();
            dealer.connect(&bound).unwrap();
            dealer
        })
        .collect();
    let began = Instant::now();
    let mut received = 0;
    let mut sent = 0;
    while began.elapsed() < Duration::from_millis(300) {
        for dealer in &mut dealers {
            let body = vec![3; 1000 * (sent % 400)];
            sent += usize::from(dealer.send(&[&body]).is_ok());
            dealer.flush().unwrap();
            dealer.socket().check();
        }
        while router.receive(Some(Duration::ZERO)).unwrap().is_some() {
            received += 1;
        }
        router.socket().check();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(received > 50, "{received}");
    drop(dealers);
    until(|| {
        router.flush().unwrap();
        while router.receive(Some(Duration::ZERO)).unwrap().is_some() {}
        (router.socket().peer_count() == 0).then_some(())
    });
    router.socket().check();
}

/// The one who holds most makes way, and the others go on.
#[test]
fn at_the_bound_of_memory_the_largest_receiver_is_closed() {
    let total = 4 << 20;
    let mut router = Router::new(Options::new().rcvhwm_total_octets(total)).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let dealer = |identity: &[u8]| {
        let mut dealer = Dealer::new(options(identity).no_reconnect()).unwrap();
        dealer.connect(&bound).unwrap();
        dealer
    };
    let mut good = dealer(b"good");
    let mut hogs: Vec<Dealer> = (0..8u8).map(|n| dealer(&[n + 1])).collect();
    for hog in &mut hogs {
        hog.send(&[&vec![0; 60 << 20]]).unwrap();
    }
    let body = vec![7; 100_000];
    for _ in 0..200 {
        good.send(&[&body]).unwrap();
        until(|| {
            good.flush().unwrap();
            for hog in &mut hogs {
                hog.flush().unwrap();
            }
            let (from, message) = router.receive(WAIT).unwrap()?;
            assert_eq!((from, message.len()), (&b"good"[..], 1));
            Some(())
        });
        router.socket().check();
    }
    assert_eq!(good.counters().disconnected, 0);
    let closed = router.counters().too_many;
    assert!(closed >= 7, "{closed} of 8 closed");
}

#[test]
fn a_resolver_that_hangs_holds_up_nothing_and_is_not_asked_twice() {
    use super::peers::Link;
    use crate::reactor::{Lookup, PLACES, Reactor};
    use std::sync::mpsc;

    let _shared = PLACES.read();
    let mut server = Router::new(Options::new()).unwrap();
    let bound = server.bind("tcp://127.0.0.1:*").unwrap();
    let address = bound.addresses().unwrap();
    let mut reactor = Reactor::new().unwrap();
    let options = options(b"d")
        .connect_timeout(Duration::from_millis(20))
        .reconnect_ivl(Duration::from_millis(1));
    let mut dealer = Socket::new(SocketType::Dealer, options, reactor.registry(), 1).unwrap();
    let id = dealer.connect(&"tcp://a-name:5".parse().unwrap(), Instant::now());
    let (release, released) = mpsc::channel::<()>();
    let mut hangs = Lookup::start_with(move || {
        // Asked once: a second call would not be answered.
        released.recv().unwrap();
        Ok(address)
    })
    .unwrap();
    let place = crate::reactor::token::new(1, 0);
    hangs.register(reactor.registry(), place).unwrap();
    let peer = dealer.peers.get_mut(id).unwrap();
    peer.link = Link::Resolving(hangs, Instant::now() + Duration::from_millis(20));
    let mut failures = 0;
    let mut release = Some(release);
    let mut reply = None;
    until(|| {
        let now = Instant::now();
        let until = now + Duration::from_millis(1);
        reactor.wait(Some(until), now).unwrap();
        let now = Instant::now();
        for event in reactor.events() {
            dealer.handle_ready(event, now);
        }
        dealer.handle_timeout(now);
        dealer.drive(now);
        dealer.flush();
        dealer.check();
        while let Some(event) = dealer.poll_event() {
            if let Event::ConnectFailed { reason, .. } = event {
                assert!(reason.to_string().contains("timed out"), "{reason}");
                failures += 1;
            }
        }
        if failures == 3
            && let Some(release) = release.take()
        {
            release.send(()).unwrap();
            dealer.send(&[b"at last"]).unwrap();
        }
        reply = server.receive(Some(Duration::ZERO)).unwrap().map(drop);
        reply
    });
    assert!(failures >= 3);
}

/// A bound ROUTER of a test's reactor, turned by hand.
struct Turned {
    reactor: crate::reactor::Reactor,
    socket: Socket,
    bound: Endpoint,
}

impl Turned {
    fn new(options: Options) -> Self {
        let reactor = crate::reactor::Reactor::new().unwrap();
        let mut socket = Socket::new(SocketType::Router, options, reactor.registry(), 1).unwrap();
        let bound = socket.bind(&"tcp://127.0.0.1:*".parse().unwrap()).unwrap();
        Turned {
            reactor,
            socket,
            bound,
        }
    }

    /// One turn; whose message there is.
    fn turn(&mut self) -> Option<PeerId> {
        let now = Instant::now();
        let wait = now + Duration::from_millis(1);
        self.reactor.wait(Some(wait), now).unwrap();
        let now = Instant::now();
        for event in self.reactor.events() {
            self.socket.handle_ready(event, now);
        }
        self.socket.handle_timeout(now);
        let message = self.socket.receive(now);
        self.socket.flush();
        self.socket.check();
        message
    }

    /// One turn of an owner that only sends.
    fn drive(&mut self) {
        let now = Instant::now();
        let wait = now + Duration::from_millis(1);
        self.reactor.wait(Some(wait), now).unwrap();
        let now = Instant::now();
        for event in self.reactor.events() {
            self.socket.handle_ready(event, now);
        }
        self.socket.handle_timeout(now);
        self.socket.drive(now);
        self.socket.flush();
        self.socket.check();
    }

    /// An established DEALER that speaks octets.
    fn raw(&mut self, identity: &[u8]) -> std::net::TcpStream {
        use std::io::Write;
        let address = self.bound.addresses().unwrap()[0];
        let mut raw = std::net::TcpStream::connect(address).unwrap();
        let mut octets = crate::zmtp::Greeting::encode("NULL").to_vec();
        let mut body = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity".to_vec();
        body.extend((identity.len() as u32).to_be_bytes());
        body.extend(identity);
        octets.extend([4, body.len() as u8]);
        octets.extend(body);
        raw.write_all(&octets).unwrap();
        until(|| {
            self.drive();
            self.socket.route(identity)
        });
        raw
    }
}

#[test]
fn a_ttl_is_noted_however_the_reads_fall() {
    use std::io::Write;
    // With a mark of 1 every read ends with a frame, and so is as long as there was room.
    for rcvhwm in [0, 1, 2] {
        let mut router = Turned::new(Options::new().rcvhwm(rcvhwm));
        let mut raw = router.raw(b"x");
        raw.write_all(b"\x04\x07\x04PING\0\x01").unwrap();
        let peer = router.socket.route(b"x").unwrap();
        until(|| {
            // `check` sees a deadline that no timer stands for.
            router.turn();
            router.socket.identity(peer).is_none().then_some(())
        });
        let event = std::iter::from_fn(|| router.socket.poll_event()).last();
        assert!(
            format!("{event:?}").contains("HeartbeatTimeout"),
            "{event:?}"
        );
    }
}

#[test]
fn who_takes_nothing_keeps_nobody_else_from_a_little() {
    let total = 1 << 20;
    let mut router = Turned::new(Options::new().sndhwm_total_octets(total).sndbuf(4096));
    let _stalled = router.raw(b"stalled");
    let good = router.raw(b"good");
    let filler = vec![7; 60_000];
    let stalled = router.socket.route(b"stalled").unwrap();
    until(|| {
        router.turn();
        (router.socket.send_to(stalled, &[&filler]) == Err(SendError::Full)).then_some(())
    });
    assert!(router.socket.pending_octets() > total / 2);
    let to_good = router.socket.route(b"good").unwrap();
    assert_eq!(router.socket.send_to(to_good, &[b"a little"]), Ok(()));
    let much = vec![7; total as usize];
    assert_eq!(
        router.socket.send_to(to_good, &[&much]),
        Err(SendError::Full)
    );
    router.socket.flush();
    let mut got = vec![0; 4096];
    until(|| {
        use std::io::Read;
        router.turn();
        let count = (&good).read(&mut got).unwrap();
        got[..count].ends_with(b"a little").then_some(())
    });
}

#[test]
fn pauses_grow_spread_and_never_vanish() {
    let mut socket = Turned::new(
        Options::new()
            .reconnect_ivl(Duration::from_millis(100))
            .reconnect_ivl_max(Duration::from_millis(1600)),
    )
    .socket;
    for (failures, want) in [
        (0, 100),
        (1, 200),
        (2, 400),
        (4, 1600),
        (5, 1600),
        (u32::MAX, 1600),
    ] {
        let pause = socket.backoff(failures);
        assert_eq!(pause, Duration::from_millis(want));
        let spread: Vec<Duration> = (0..200).map(|_| socket.jitter(pause)).collect();
        let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
        assert!(*least >= pause * 3 / 4 && *least < pause * 9 / 10);
        assert!(*most <= pause * 5 / 4 && *most > pause * 11 / 10);
    }
    // A pause of zero is none that a loop could not live with.
    let options = options(b"d").reconnect_ivl(Duration::ZERO);
    let mut dealer = Dealer::new(options).unwrap();
    let began = Instant::now();
    dealer.connect("ipc:///nowhere/at/all").unwrap();
    until(|| {
        dealer.flush().unwrap();
        (dealer.counters().retries >= 20).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_millis(19));
}

#[test]
fn an_identity_that_the_owner_gave_stays_with_its_peer() {
    let now = Instant::now();
    let mut router = Turned::new(Options::new().router_handover(true));
    let nowhere = "ipc:///nowhere/at/all".parse().unwrap();
    let chosen = router.socket.connect_as(&nowhere, b"same", now).unwrap();
    router.socket.send_to(chosen, &[b"for the chosen"]).unwrap();
    let mut dealer = Dealer::new(options(b"same").no_reconnect()).unwrap();
    dealer.connect(&router.bound.to_string()).unwrap();
    until(|| {
        router.turn();
        dealer.flush().unwrap();
        (router.socket.counters().handshake_failed == 1).then_some(())
    });
    assert_eq!(router.socket.route(b"same"), Some(chosen));
    assert!(router.socket.pending_octets() > 0);
}

#[test]
fn a_refusal_is_not_followed_by_an_immediate_retry() {
    // libzmq's default for the longest pause is zero.
    let server = Options::new().plain_server(PlainServer::new([("user", "pass")]));
    let mut router = Router::new(server).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let client = PlainClient::new("user", "wrong").unwrap();
    let options = options(b"d")
        .plain_client(client)
        .reconnect_ivl(Duration::from_millis(1))
        .reconnect_ivl_max(Duration::ZERO);
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&bound).unwrap();
    let pause = until(|| {
        dealer.flush().unwrap();
        router.receive(Some(Duration::ZERO)).unwrap();
        std::iter::from_fn(|| dealer.poll_event()).find_map(|event| match event {
            Event::RetryIn { pause, .. } => Some(pause),
            _ => None,
        })
    });
    assert!(pause >= Duration::from_secs(3), "{pause:?}");
}

#[test]
fn a_silent_peer_whose_message_waits_keeps_its_name_from_nobody() {
    use std::io::Write;
    // Its first read fills the first buffer to the brim, or does not.
    for (size, is_received) in [(10, true), (600, true), (5000, true), (600, false)] {
        let heartbeats = Options::new()
            .heartbeat_ivl(Duration::from_millis(5))
            .heartbeat_timeout(Duration::from_millis(50));
        let mut router = Turned::new(heartbeats);
        let mut raw = router.raw(b"same");
        let old = router.socket.route(b"same").unwrap();
        let mut octets = vec![2, 0, 0, 0, 0, 0, 0];
        octets.extend((size as u16).to_be_bytes());
        octets.extend(vec![7; size]);
        // Octets of a second message stand behind the first.
        octets.extend([0, 200, 1, 2, 3]);
        raw.write_all(&octets).unwrap();
        // An owner that only sends.
        until(|| {
            router.drive();
            (router.socket.send_to(old, &[b"x"]) == Err(SendError::Unroutable)).then_some(())
        });
        if is_received {
            let back = router.socket.receive(Instant::now());
            assert_eq!(back, Some(old), "{size}");
            assert_eq!(
                router.socket.message(old).unwrap().get(0).unwrap().len(),
                size
            );
            until(|| {
                router.turn();
                router.socket.identity(old).is_none().then_some(())
            });
        }
        // Its client is back, whether or not that has been received.
        let _again = router.raw(b"same");
        assert_ne!(router.socket.route(b"same"), Some(old));
        let counters = router.socket.counters();
        let want = if is_received { (1, 0) } else { (0, 1) };
        assert_eq!((counters.heartbeat_timeouts, counters.unreceived), want);
    }
}

#[test]
fn a_message_that_goes_with_its_connection_is_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let options = options(b"d")
        .heartbeat_ivl(Duration::from_millis(5))
        .heartbeat_timeout(Duration::from_millis(50));
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&endpoint).unwrap();
    dealer.flush().unwrap();
    let (mut raw, _) = listener.accept().unwrap();
    use std::io::Write;
    raw.write_all(&crate::zmtp::Greeting::encode("NULL"))
        .unwrap();
    raw.write_all(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\0\x01x")
        .unwrap();
    // Nobody receives, and the other side falls silent: a connection is worth more than that.
    until(|| {
        dealer.flush().unwrap();
        (dealer.counters().retries > 0).then_some(())
    });
    let counters = dealer.counters();
    assert_eq!((counters.heartbeat_timeouts, counters.unreceived), (1, 1));
}

#[test]
fn a_handshake_that_has_come_is_read_however_late() {
    use std::io::Write;
    let options = Options::new().handshake_ivl(Duration::from_millis(20));
    let mut router = Turned::new(options);
    let address = router.bound.addresses().unwrap()[0];
    let mut raw = std::net::TcpStream::connect(address).unwrap();
    let (mut asked, mut reads) = (0, 0);
    until(|| {
        let now = Instant::now();
        let wait = now + Duration::from_millis(1);
        router.reactor.wait(Some(wait), now).unwrap();
        let now = Instant::now();
        for event in router.reactor.events() {
            router.socket.handle_ready(event, now);
        }
        router.socket.handle_timeout(now);
        router.socket.check();
        // The owner is slow: its timers run, and it reads nothing for long.
        asked += 1;
        if asked == 5 || asked > 100 {
            router.socket.receive(now);
            router.socket.flush();
            reads += 1;
        }
        if asked == 20 {
            raw.write_all(&crate::zmtp::Greeting::encode("NULL"))
                .unwrap();
            raw.write_all(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER")
                .unwrap();
        }
        let counters = router.socket.counters();
        (counters.established + counters.handshake_failed > 0).then_some(())
    });
    assert_eq!(router.socket.counters().established, 1, "{reads} reads");
}

#[test]
fn an_owner_that_was_away_waits_no_longer_than_it_says() {
    let mut router = Router::new(Options::new()).unwrap();
    router.bind("tcp://127.0.0.1:*").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    assert!(router.receive(Some(Duration::ZERO)).unwrap().is_none());
    assert!(router.wait_writable(Duration::from_secs(60)).unwrap());
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_is_sent_after_a_connection_has_ended_goes_to_the_next() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let options = options(b"d").reconnect_ivl(Duration::from_millis(1));
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&bound).unwrap();
    for round in 0..20u8 {
        let with_timeout = round % 2 == 0;
        dealer.send(&[b"ask"]).unwrap();
        until(|| {
            dealer.flush().unwrap();
            router.receive(WAIT).unwrap().map(drop)
        });
        // The owner works, and the server is started anew meanwhile.
        drop(router);
        router = Router::new(Options::new()).unwrap();
        router.bind(&bound).unwrap();
        let away = Instant::now();
        while away.elapsed() < Duration::from_millis(5) {}
        match with_timeout {
            true => dealer.send_timeout(&[b"result"], WAIT).unwrap().unwrap(),
            false => dealer.send(&[b"result"]).unwrap(),
        }
        until(|| {
            dealer.receive(WAIT).unwrap();
            let (_, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(message.get(0), Some(&b"result"[..]));
            Some(())
        });
    }
}

#[test]
fn a_message_that_the_peer_never_takes_is_told_and_given_up() {
    let mut router = Router::new(Options::new().maxmsgsize(10_000)).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let options = options(b"d").reconnect_ivl(Duration::from_millis(1));
    let mut dealer = Dealer::new(options.sndbuf(16 << 10)).unwrap();
    dealer.connect(&bound).unwrap();
    // More than the systems between them take at once.
    dealer.send(&[&vec![1; 20 << 20]]).unwrap();
    dealer.send(&[b"after"]).unwrap();
    until(|| {
        dealer.flush().unwrap();
        let (_, message) = router.receive(WAIT).unwrap()?;
        assert_eq!(message.get(0), Some(&b"after"[..]));
        Some(())
    });
    assert_eq!(dealer.counters().unsent, 1);
    let frames = vec![&b""[..]; 5000];
    assert_eq!(dealer.send(&frames), Err(SendError::Invalid));
}

#[test]
fn a_dealer_has_one_connection_to_an_endpoint() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    let first = dealer.connect(&bound).unwrap();
    assert_eq!(dealer.connect(&bound).unwrap(), first);
    for count in 0..100u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    for count in 0..100u8 {
        until(|| {
            dealer.flush().unwrap();
            let (_, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(message.get(0), Some(&[count][..]));
            Some(())
        });
    }
    assert_eq!(dealer.socket().peer_count(), 1);
    for nowhere in ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "ipc://*"] {
        let error = dealer.connect(nowhere).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
    let reactor = crate::reactor::Reactor::new().unwrap();
    assert!(Socket::new(SocketType::Dealer, Options::new(), reactor.registry(), 16).is_err());
}

#[test]
fn the_descriptor_tells_of_what_is_held() {
    use std::os::fd::AsRawFd;
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    dealer.connect(&bound).unwrap();
    let mut poll = mio::Poll::new().unwrap();
    let descriptor = dealer.as_raw_fd();
    let mut source = mio::unix::SourceFd(&descriptor);
    poll.registry()
        .register(&mut source, mio::Token(0), mio::Interest::READABLE)
        .unwrap();
    until(|| {
        dealer.flush().unwrap();
        router.receive(WAIT).unwrap();
        router.send(b"d", &[b"hello"]).ok()
    });
    // A flush takes notice of the message, and leaves it for a receive.
    until(|| {
        router.flush().unwrap();
        dealer.flush().unwrap();
        dealer.socket().has_ready().then_some(())
    });
    let mut events = mio::Events::with_capacity(4);
    poll.poll(&mut events, Some(DEADLINE)).unwrap();
    assert!(!events.is_empty());
    assert!(dealer.receive(Some(Duration::ZERO)).unwrap().is_some());
}

#[test]
fn a_reset_connection_is_no_good_end() {
    use std::io::{Read, Write};
    for reads in [true, false] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let mut dealer = Dealer::new(options(b"d")).unwrap();
        dealer.connect(&endpoint).unwrap();
        dealer.flush().unwrap();
        let (mut raw, _) = listener.accept().unwrap();
        raw.write_all(&crate::zmtp::Greeting::encode("NULL"))
            .unwrap();
        raw.write_all(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER")
            .unwrap();
        until(|| {
            dealer.flush().unwrap();
            (dealer.counters().established == 1).then_some(())
        });
        dealer.send(&[b"a message"]).unwrap();
        let closing = std::thread::spawn(move || dealer.close(DEADLINE).unwrap());
        let mut got = Vec::new();
        match reads {
            true => _ = raw.read_to_end(&mut got).unwrap(),
            // What has come is unread when this side goes.
            false => {
                let mut peeked = [0; 200];
                until(|| {
                    let count = raw.peek(&mut peeked).unwrap();
                    peeked[..count].ends_with(b"a message").then_some(())
                });
            }
        }
        drop(raw);
        assert_eq!(closing.join().unwrap(), reads);
    }
}

#[cfg(feature = "curve")]
#[test]
fn a_wrong_server_key_is_guessed() {
    use crate::zmtp::curve::{Clients, SecretKey};
    let key = |octet| SecretKey::from_bytes([octet; 32]);
    let mut router = Router::new(Options::new().curve_server(key(1), Clients::Any)).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(options(b"d").curve_client(key(2), key(3).public())).unwrap();
    dealer.connect(&bound).unwrap();
    let reason = until(|| {
        router.receive(WAIT).unwrap();
        dealer.flush().unwrap();
        std::iter::from_fn(|| dealer.poll_event()).find_map(|event| match event {
            Event::HandshakeFailed { reason, .. } => Some(reason),
            _ => None,
        })
    });
    assert_eq!(reason, DisconnectReason::Unanswered);
}
