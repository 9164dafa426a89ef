//! Tests of blocking sockets: owners that make no calls for some time, wait, or close the socket.

use super::*;

/// A DEALER that is established with a plain TCP stream, and that stream with its listener.
fn dealer_of_raw(options: Options) -> (Dealer, std::net::TcpStream, std::net::TcpListener) {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&endpoint).unwrap();
    dealer.flush().unwrap();
    let (mut raw, _) = listener.accept().unwrap();
    let mut bytes = crate::zmtp::Greeting::encode("NULL").to_vec();
    bytes.extend(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER");
    raw.write_all(&bytes).unwrap();
    until(|| {
        dealer.flush().unwrap();
        (dealer.counters().established == 1).then_some(())
    });
    (dealer, raw, listener)
}

#[test]
fn a_message_that_goes_with_its_connection_is_counted() {
    let options = options(b"d")
        .heartbeat_ivl(Duration::from_millis(5))
        .heartbeat_timeout(Duration::from_millis(50));
    use std::io::Write;
    let (mut dealer, mut raw, _listener) = dealer_of_raw(options);
    raw.write_all(b"\0\x01x").unwrap();
    // The owner does not receive, and the peer sends nothing more, but keeps the connection open.
    until(|| {
        dealer.flush().unwrap();
        (dealer.counters().retries > 0).then_some(())
    });
    let counters = dealer.counters();
    assert_eq!((counters.heartbeat_timeouts, counters.unreceived), (1, 1));
}

#[test]
fn a_refusal_is_not_followed_by_an_immediate_retry() {
    // Zero is libzmq's default for the longest pause.
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
fn an_owner_that_made_no_calls_waits_no_longer_than_its_timeout() {
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
        // While the owner makes no calls, the server is restarted.
        drop(router);
        router = Router::new(Options::new()).unwrap();
        router.bind(&bound).unwrap();
        let away = Instant::now();
        while away.elapsed() < Duration::from_millis(5) {}
        match with_timeout {
            true => dealer.send_timeout(&[b"result"], WAIT).unwrap(),
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
fn a_message_that_the_peer_never_takes_is_reported_and_dropped() {
    let mut router = Router::new(Options::new().maxmsgsize(10_000)).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let options = options(b"d").reconnect_ivl(Duration::from_millis(1));
    let mut dealer = Dealer::new(options.sndbuf(16 << 10)).unwrap();
    dealer.connect(&bound).unwrap();
    // More than the kernel's buffers of both ends can contain.
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
    assert_eq!(dealer.send(&frames), Err(Error::InvalidMessage));
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
        assert!(matches!(error, Error::Endpoint(_)), "{error}");
    }
    let reactor = crate::reactor::Reactor::new().unwrap();
    let last = mio::Token(usize::MAX - 5);
    let now = Instant::now();
    assert!(
        Socket::new(
            SocketType::Dealer,
            Options::new(),
            reactor.registry(),
            last,
            now
        )
        .is_err()
    );
}

#[test]
fn the_descriptor_is_readable_for_a_held_message() {
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
    // A flush parses the message and keeps it for a receive.
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
    use std::io::Read;
    for reads in [true, false] {
        let (mut dealer, mut raw, _listener) = dealer_of_raw(options(b"d"));
        dealer.send(&[b"a message"]).unwrap();
        let closing = std::thread::spawn(move || dealer.close(DEADLINE).unwrap());
        let mut got = Vec::new();
        match reads {
            true => _ = raw.read_to_end(&mut got).unwrap(),
            // This side closes the connection with unread input.
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
    let key = |byte| SecretKey::from_bytes([byte; 32]);
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
