//! Faults that sockets of other libraries have had, on real transports: programs and their right
//! results.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use super::*;
use crate::socket::Next;

/// Whether a descriptor is readable now.
fn is_readable(socket: &impl AsRawFd) -> bool {
    let mut poll = mio::Poll::new().unwrap();
    let descriptor = socket.as_raw_fd();
    let mut source = mio::unix::SourceFd(&descriptor);
    let registry = poll.registry();
    registry
        .register(&mut source, mio::Token(0), mio::Interest::READABLE)
        .unwrap();
    let mut events = mio::Events::with_capacity(4);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    events.iter().any(mio::event::Event::is_readable)
}

/// 200 quick requests make the server read the clock seldom; then each answer takes 100 ms of work.
/// An answer must not wait for those after it.
#[test]
fn slow_answers_after_quick_ones_leave_one_by_one() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let client = thread::spawn(move || {
        let mut dealer = Dealer::new(options(b"d")).unwrap();
        dealer.connect(&bound).unwrap();
        for number in 0..212u32 {
            dealer.send(&[&number.to_be_bytes()]).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < 212 {
            let message = dealer.receive(Some(DEADLINE)).unwrap().unwrap();
            assert_eq!(message.len(), 1);
            arrived.push(Instant::now());
        }
        arrived
    });
    let mut sent = Vec::new();
    while sent.len() < 212 {
        let Some((from, message)) = router.receive(Some(DEADLINE)).unwrap() else {
            panic!("no request");
        };
        let (from, body) = (from.to_vec(), message.to_vecs());
        if sent.len() >= 200 {
            thread::sleep(Duration::from_millis(100));
        }
        router.send_parts(&from, &body).unwrap();
        sent.push(Instant::now());
    }
    router.flush().unwrap();
    for (sent, arrived) in sent.iter().zip(client.join().unwrap()) {
        let took = arrived.saturating_duration_since(*sent);
        assert!(took <= Duration::from_millis(250), "{took:?}");
    }
}

/// The same for an owner that only sends.
#[test]
fn slow_sends_after_quick_ones_leave_one_by_one() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let server = thread::spawn(move || {
        let mut arrived = Vec::new();
        while arrived.len() < 210 {
            router.receive(Some(DEADLINE)).unwrap().unwrap();
            arrived.push(Instant::now());
        }
        arrived
    });
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    dealer.connect(&bound).unwrap();
    let mut sent = Vec::new();
    for number in 0..210u32 {
        dealer.send(&[&number.to_be_bytes()]).unwrap();
        sent.push(Instant::now());
        if number >= 200 {
            thread::sleep(Duration::from_millis(100));
        }
        if number == 199 {
            dealer.drain(DEADLINE).unwrap();
        }
    }
    dealer.drain(DEADLINE).unwrap();
    for (sent, arrived) in sent.iter().zip(server.join().unwrap()).skip(200) {
        let took = arrived.saturating_duration_since(*sent);
        assert!(took <= Duration::from_millis(250), "{took:?}");
    }
}

#[test]
fn a_tcp_socket_that_connects_to_itself_is_refused() {
    // A port from the range of local ports, on which no process listens.
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let mut refused = 0;
    for port in first..first + 200 {
        let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
        let Ok(socket) = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        else {
            continue;
        };
        // A socket that is bound to the port connects to itself.
        if socket.bind(&address.into()).is_err() || socket.connect(&address.into()).is_err() {
            continue;
        }
        socket.set_nonblocking(true).unwrap();
        let stream = crate::reactor::Stream::Tcp(mio::net::TcpStream::from_std(socket.into()));
        let error = stream.connect_result(&Default::default()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_listener_at_a_name_has_all_its_addresses() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://localhost:*").unwrap();
    let port = bound.to_string().rsplit(':').next().unwrap().to_owned();
    let addresses = bound.addresses().unwrap();
    assert!(!addresses.is_empty());
    for address in addresses {
        if TcpListener::bind((address.ip(), 0)).is_err() {
            continue; // This host does not have the address.
        }
        let mut dealer = Dealer::new(options(b"d")).unwrap();
        dealer.connect(&format!("tcp://{address}")).unwrap();
        assert_eq!(address.port().to_string(), port);
        dealer.send(&[b"x"]).unwrap();
        until(|| {
            dealer.flush().unwrap();
            router.receive(WAIT).unwrap().map(drop)
        });
        drop(dealer);
        until(|| {
            router.receive(WAIT).unwrap();
            (router.socket().peer_count() == 0).then_some(())
        });
    }
    assert!(router.unbind(&bound.to_string()).unwrap());
    assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_err());
}

#[test]
fn the_descriptor_is_readable_while_a_message_or_an_event_waits() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    assert!(is_readable(&router), "the event of the listener");
    while router.poll_event().is_some() {}
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    dealer.connect(&bound).unwrap();
    for number in 0..3u8 {
        dealer.send(&[&[number]]).unwrap();
    }
    until(|| {
        dealer.flush().unwrap();
        router.flush().unwrap();
        (router.counters().established == 1).then_some(())
    });
    let mut received = 0;
    while received < 3 {
        // After every kind of call: the message that a flush has parsed waits, and those behind it.
        for call in 0..6 {
            match call {
                0 => router.flush().unwrap(),
                1 => drop(router.poll_event()),
                2 => drop(router.wait_writable(Duration::ZERO)),
                3 => drop(router.drain(Duration::ZERO)),
                4 => drop(router.send(b"d", &[b"y"])),
                _ => drop(router.send_timeout(b"z", &[b"y"], WAIT)),
            }
            until(|| {
                dealer.flush().unwrap();
                is_readable(&router).then_some(())
            });
        }
        let message = router.receive(WAIT).unwrap();
        received += usize::from(message.is_some());
    }
    until(|| {
        while router.poll_event().is_some() {}
        let message = router.receive(Some(Duration::ZERO)).unwrap();
        assert!(message.is_none());
        (!is_readable(&router)).then_some(())
    });
}

#[test]
fn a_call_to_receive_ends_for_an_event_and_for_another_thread() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let listening = router.next(None).unwrap();
    assert!(matches!(
        listening,
        Some(Next::Event(Event::Listening { .. }))
    ));
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    dealer.connect(&bound).unwrap();
    let client = thread::spawn(move || {
        dealer.send(&[b"x"]).unwrap();
        assert!(dealer.receive(Some(DEADLINE)).unwrap().is_some());
    });
    let mut events = 0;
    loop {
        match router.next(Some(DEADLINE)).unwrap().unwrap() {
            Next::Event(_) => events += 1,
            Next::Message((from, message)) => {
                assert_eq!((from, message.get(0)), (&b"d"[..], Some(&b"x"[..])));
                break;
            }
        }
    }
    events += std::iter::from_fn(|| router.poll_event()).count();
    assert_eq!(events, 2, "accepted, established");
    router.send(b"d", &[b"y"]).unwrap();
    router.flush().unwrap();
    client.join().unwrap();
    while router.poll_event().is_some() {}
    let waker = router.waker().unwrap();
    let other = thread::spawn(move || waker.wake().unwrap());
    let message = router.receive(None).unwrap();
    assert!(message.is_none());
    other.join().unwrap();
}

#[test]
fn parts_may_be_of_any_kind_and_a_message_is_forwarded_as_it_is() {
    let mut back = Dealer::new(options(b"broker")).unwrap();
    let mut front = Router::new(Options::new()).unwrap();
    let mut server = Router::new(Options::new()).unwrap();
    let to_front = front.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let to_server = server.bind("tcp://127.0.0.1:*").unwrap().to_string();
    back.connect(&to_server).unwrap();
    let mut dealer = Dealer::new(options(b"d")).unwrap();
    dealer.connect(&to_front).unwrap();
    let large: std::sync::Arc<[u8]> = vec![7; 200_000].into();
    dealer.send_parts(vec![vec![1, 2], Vec::new()]).unwrap();
    dealer.send_parts([&b"ab"[..], b"c"]).unwrap();
    dealer.send_parts(["text"]).unwrap();
    dealer.send_shared(&[b"head"], &large).unwrap();
    assert_eq!(
        dealer.send_parts([[0u8; 0]; 0]),
        Err(Error::InvalidMessage),
        "no parts"
    );
    let mut got = Vec::new();
    until(|| {
        dealer.flush().unwrap();
        if let Some((_, message)) = front.receive(Some(Duration::ZERO)).unwrap() {
            back.send_parts(message).unwrap();
        }
        back.flush().unwrap();
        if let Some((_, message)) = server.receive(Some(Duration::ZERO)).unwrap() {
            got.push(message.to_vecs());
        }
        (got.len() == 4).then_some(())
    });
    let want = [
        vec![vec![1, 2], Vec::new()],
        vec![b"ab".to_vec(), b"c".to_vec()],
        vec![b"text".to_vec()],
        vec![b"head".to_vec(), large.to_vec()],
    ];
    assert_eq!(got, want);
}

/// 5,000 connections in sequence, while the owner is in `receive`. The system's backlog holds those
/// that are not accepted yet, so that none waits for a repeated SYN.
#[test]
fn a_storm_of_connects_is_not_slowed_by_the_backlog() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap();
    let address = bound.addresses().unwrap()[0];
    let waker = router.waker().unwrap();
    let storm = thread::spawn(move || {
        let mut slowest = Duration::ZERO;
        let mut streams = Vec::new();
        for _ in 0..500 {
            let began = Instant::now();
            streams.push(TcpStream::connect(address).unwrap());
            slowest = slowest.max(began.elapsed());
        }
        waker.wake().unwrap();
        slowest
    });
    while router.receive(Some(DEADLINE)).unwrap().is_some() {}
    let slowest = storm.join().unwrap();
    // A lost SYN is repeated after a second.
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
}

#[test]
fn an_interface_can_be_bound_and_a_connection_has_its_source() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://lo:*").unwrap().to_string();
    let target = bound.strip_prefix("tcp://").unwrap();
    assert!(target.starts_with("127.0.0.1:"), "{bound}");
    for (source, from) in [
        ("127.0.0.2:0", "tcp://127.0.0.2:"),
        ("lo:*", "tcp://127.0.0.1:"),
        ("*:*", "tcp://127.0.0.1:"),
    ] {
        let mut dealer = Dealer::new(options(b"d").no_reconnect()).unwrap();
        dealer.connect(&format!("tcp://{source};{target}")).unwrap();
        let address = until(|| {
            dealer.flush().unwrap();
            match router.next(WAIT).unwrap() {
                Some(Next::Event(Event::Accepted { address, .. })) => Some(address),
                _ => None,
            }
        });
        assert!(address.starts_with(from), "{source}: {address}");
    }
    for (source, words) in [
        ("[::1]:0", "of the same family"),
        ("no-such-interface:0", "before `;`"),
        ("203.0.113.1:0", "assign"),
    ] {
        let mut dealer = Dealer::new(options(b"d").no_reconnect()).unwrap();
        dealer.connect(&format!("tcp://{source};{target}")).unwrap();
        let reason = until(|| match dealer.next(WAIT).unwrap() {
            Some(Next::Event(Event::ConnectFailed { reason, .. })) => Some(reason),
            _ => None,
        });
        assert!(reason.to_string().contains(words), "{source}: {reason}");
    }
    let error = router.bind(&format!("tcp://lo:*;{target}")).unwrap_err();
    assert!(error.to_string().contains("cannot be bound"), "{error}");
}
