use std::time::{Duration, Instant};

use super::*;

mod background;
mod blocking;
mod faults;
mod stepped;

const WAIT: Option<Duration> = Some(Duration::from_millis(2));
const DEADLINE: Duration = Duration::from_secs(10);

fn options(routing_id: &[u8]) -> Options {
    Options::new().routing_id(routing_id)
}

/// Runs `step` until it returns a value.
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
fn a_routing_id_in_use_is_handed_over_or_refused_by_option() {
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
                                reason: DisconnectReason::RoutingIdInUse,
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
    assert_eq!(dealer.send(&[b"x"]), Err(Error::NoPeer));
    let mut router = Router::new(Options::default()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    dealer.connect(&bound).unwrap();
    for count in 0..3u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    assert_eq!(dealer.send(&[b"x"]), Err(Error::Full));
    assert_eq!(dealer.send(&[]), Err(Error::InvalidMessage));
    assert_eq!(router.send(b"unknown", &[b"x"]), Err(Error::Unroutable));
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
fn a_dealer_deals_in_turn_and_receives_from_all() {
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
    let mut received: Vec<u8> = (0..5)
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
    received.sort_unstable();
    assert_eq!(received, [0, 1, 2, 3, 4]);
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

/// A PING frees the buffers of idle connections; they must not stay counted.
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

/// At the limit, the peer that uses most memory is disconnected, and the others continue.
#[test]
fn at_the_bound_of_memory_the_largest_receiver_is_closed() {
    let total = 4 << 20;
    let mut router = Router::new(Options::new().rcvhwm_total_bytes(total)).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let dealer = |routing_id: &[u8]| {
        let mut dealer = Dealer::new(options(routing_id).no_reconnect()).unwrap();
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
