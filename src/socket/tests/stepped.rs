//! Tests that drive a socket in single iterations and check its internal consistency after each
//! one.

use super::*;

/// A bound ROUTER in a reactor of the test, driven in single iterations.
struct Stepped {
    reactor: crate::reactor::Reactor,
    socket: Socket,
    bound: Endpoint,
}

impl Stepped {
    fn new(options: Options) -> Self {
        let reactor = crate::reactor::Reactor::new().unwrap();
        let mut socket = Socket::new(
            SocketType::Router,
            options,
            reactor.registry(),
            crate::reactor::token::new(1, 0),
            Instant::now(),
        )
        .unwrap();
        let bound = socket.bind(&"tcp://127.0.0.1:*".parse().unwrap()).unwrap();
        Stepped {
            reactor,
            socket,
            bound,
        }
    }

    /// One iteration; returns the peer of a received message.
    fn iterate(&mut self) -> Option<PeerId> {
        let now = Instant::now();
        let wait = now + Duration::from_millis(1);
        self.reactor.wait(Some(wait), now).unwrap();
        let now = Instant::now();
        for event in self.reactor.events() {
            self.socket.handle_ready(event, now);
        }
        self.socket.handle_timeout(now);
        let message = self.socket.receive(now);
        self.socket.flush(now);
        self.socket.check();
        message
    }

    /// One iteration of an owner that only sends.
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
        self.socket.flush(now);
        self.socket.check();
    }

    /// A TCP stream that has done the handshake of a DEALER.
    fn raw(&mut self, routing_id: &[u8]) -> std::net::TcpStream {
        use std::io::Write;
        let address = self.bound.addresses().unwrap()[0];
        let mut raw = std::net::TcpStream::connect(address).unwrap();
        let mut bytes = crate::zmtp::Greeting::encode("NULL").to_vec();
        let mut body = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity".to_vec();
        body.extend((routing_id.len() as u32).to_be_bytes());
        body.extend(routing_id);
        bytes.extend([4, body.len() as u8]);
        bytes.extend(body);
        raw.write_all(&bytes).unwrap();
        until(|| {
            self.drive();
            self.socket.route(routing_id)
        });
        raw
    }
}

#[test]
fn a_ttl_is_noted_however_the_reads_fall() {
    use std::io::Write;
    // With an `rcvhwm` of 1, every read ends at the end of a frame and fills the space completely.
    for rcvhwm in [0, 1, 2] {
        let mut router = Stepped::new(Options::new().rcvhwm(rcvhwm));
        let mut raw = router.raw(b"x");
        raw.write_all(b"\x04\x07\x04PING\0\x01").unwrap();
        let peer = router.socket.route(b"x").unwrap();
        until(|| {
            // `check`, called in `iterate`, finds a deadline without a timer.
            router.iterate();
            router.socket.routing_id(peer).is_none().then_some(())
        });
        let event = std::iter::from_fn(|| router.socket.poll_event()).last();
        assert!(
            format!("{event:?}").contains("HeartbeatTimeout"),
            "{event:?}"
        );
    }
}

#[test]
fn a_stalled_peer_leaves_others_a_small_queue() {
    let total = 1 << 20;
    let mut router = Stepped::new(Options::new().sndhwm_total_bytes(total).sndbuf(4096));
    let _stalled = router.raw(b"stalled");
    let good = router.raw(b"good");
    let filler = vec![7; 60_000];
    let stalled = router.socket.route(b"stalled").unwrap();
    until(|| {
        router.iterate();
        (router.socket.send_to(stalled, &[&filler]) == Err(Error::Full)).then_some(())
    });
    assert!(router.socket.pending_bytes() > total / 2);
    let to_good = router.socket.route(b"good").unwrap();
    assert_eq!(router.socket.send_to(to_good, &[b"a little"]), Ok(()));
    let much = vec![7; total as usize];
    assert_eq!(router.socket.send_to(to_good, &[&much]), Err(Error::Full));
    router.socket.flush(Instant::now());
    let mut got = vec![0; 4096];
    until(|| {
        use std::io::Read;
        router.iterate();
        let count = (&good).read(&mut got).unwrap();
        got[..count].ends_with(b"a little").then_some(())
    });
}

#[test]
fn a_routing_id_that_the_owner_assigned_stays_with_its_peer() {
    let now = Instant::now();
    let mut router = Stepped::new(Options::new().router_handover(true));
    let nowhere = "ipc:///nowhere/at/all".parse().unwrap();
    let chosen = router.socket.connect_as(&nowhere, b"same", now).unwrap();
    router.socket.send_to(chosen, &[b"for the chosen"]).unwrap();
    let mut dealer = Dealer::new(options(b"same").no_reconnect()).unwrap();
    dealer.connect(&router.bound.to_string()).unwrap();
    until(|| {
        router.iterate();
        dealer.flush().unwrap();
        (router.socket.counters().handshake_failed == 1).then_some(())
    });
    assert_eq!(router.socket.route(b"same"), Some(chosen));
    assert!(router.socket.pending_bytes() > 0);
}

#[test]
fn a_silent_peer_whose_message_waits_keeps_no_routing_id() {
    use std::io::Write;
    // The first read fills the first buffer completely, or does not, depending on the size.
    for (size, is_received) in [(10, true), (600, true), (5000, true), (600, false)] {
        let heartbeats = Options::new()
            .heartbeat_ivl(Duration::from_millis(5))
            .heartbeat_timeout(Duration::from_millis(50));
        let mut router = Stepped::new(heartbeats);
        let mut raw = router.raw(b"same");
        let old = router.socket.route(b"same").unwrap();
        let mut bytes = vec![2, 0, 0, 0, 0, 0, 0];
        bytes.extend((size as u16).to_be_bytes());
        bytes.extend(vec![7; size]);
        // Bytes of a second message follow the first.
        bytes.extend([0, 200, 1, 2, 3]);
        raw.write_all(&bytes).unwrap();
        // The owner only sends.
        until(|| {
            router.drive();
            (router.socket.send_to(old, &[b"x"]) == Err(Error::Unroutable)).then_some(())
        });
        if is_received {
            let back = router.socket.receive(Instant::now());
            assert_eq!(back, Some(old), "{size}");
            assert_eq!(
                router.socket.message(old).unwrap().get(0).unwrap().len(),
                size
            );
            until(|| {
                router.iterate();
                router.socket.routing_id(old).is_none().then_some(())
            });
        }
        // The client reconnects, whether or not its message has been received.
        let _again = router.raw(b"same");
        assert_ne!(router.socket.route(b"same"), Some(old));
        let counters = router.socket.counters();
        assert_eq!(counters.unreceived, 0);
        assert_eq!(counters.heartbeat_timeouts, u64::from(is_received));
        if !is_received {
            // The message is delivered although another connection has the routing ID.
            let late = router.socket.receive(Instant::now());
            assert_eq!(late, Some(old), "{size}");
            until(|| {
                router.iterate();
                router.socket.routing_id(old).is_none().then_some(())
            });
            assert_eq!(router.socket.counters().unreceived, 0);
        }
    }
}

#[test]
fn a_handshake_that_has_come_is_read_however_late() {
    use std::io::Write;
    let options = Options::new().handshake_ivl(Duration::from_millis(20));
    let mut router = Stepped::new(options);
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
        // The owner is slow: it processes timers, but seldom reads.
        asked += 1;
        if asked == 5 || asked > 100 {
            router.socket.receive(now);
            router.socket.flush(Instant::now());
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
fn pauses_grow_spread_and_never_vanish() {
    let mut socket = Stepped::new(
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
        let pause = socket.engine().backoff(failures);
        assert_eq!(pause, Duration::from_millis(want));
        let spread: Vec<Duration> = (0..200).map(|_| socket.engine().jitter(pause)).collect();
        let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
        assert!(*least >= pause * 3 / 4 && *least < pause * 9 / 10);
        assert!(*most <= pause * 5 / 4 && *most > pause * 11 / 10);
    }
    // With a pause of zero, the minimum pause of 1 ms applies.
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
