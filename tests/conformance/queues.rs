//! High-water marks.

use casparian::socket::{Dealer, Error, Options, Router};

use crate::raw::established;
use crate::router::{fill, router};
use crate::support::*;

pub(crate) fn hwm(net: &Net) {
    for (mark, taken) in [(1, 1), (1000, 1000), (0, 20_000)] {
        let endpoint = net.unbound();
        let mut dealer = Dealer::new(Options::new().routing_id("d").sndhwm(mark)).unwrap();
        dealer.connect(&endpoint).unwrap();
        for count in 0..taken as u32 {
            dealer.send(&[&count.to_be_bytes()]).unwrap();
        }
        if mark > 0 {
            assert_eq!(dealer.send(&[b"one too many"]), Err(Error::Full));
        }
        // Messages that have left make room, whether or not they were received.
        let mut router = casparian::socket::Router::new(Options::new()).unwrap();
        router.bind(&endpoint).unwrap();
        for count in 0..taken as u32 {
            until("all arrive in order", || {
                dealer.drive();
                let (_, frames) = take(&mut router)?;
                assert_eq!(frames, [count.to_be_bytes()]);
                Some(())
            });
        }
        dealer.send(&[b"room again"]).unwrap();
        until("and once more", || {
            dealer.drive();
            take(&mut router)
        });
    }
}

/// Messages so large that the kernel holds a part of one at most.
const LARGE: usize = 1 << 20;

fn small_buffers() -> Options {
    Options::new().sndbuf(16 << 10).rcvbuf(128 << 10)
}

/// Lets both sides do what they can, and sends until nobody takes more.
fn fill_both(dealer: &mut Dealer, router: &mut Router, body: &[u8]) -> usize {
    let mut taken = 0;
    for_a_while(std::time::Duration::from_millis(50), || {
        router.drive();
        dealer.drive();
        while dealer.send(&[body]).is_ok() {
            taken += 1;
        }
    });
    taken
}

pub(crate) fn hwm_of_both_sides(net: &Net) {
    // 1 + 1: one message is with the receiver, one with the sender; each that is received lets
    // one more be sent.
    let (mut server, bound) = router(net, small_buffers().rcvhwm(1));
    let mut dealer = Dealer::new(small_buffers().sndhwm(1)).unwrap();
    dealer.connect(&bound).unwrap();
    until("a peer", || {
        server.drive();
        dealer.drive();
        (dealer.counters().established == 1).then_some(())
    });
    let body = vec![6; LARGE];
    let mut taken = 0;
    until("both marks are reached", || {
        taken += fill_both(&mut dealer, &mut server, &body);
        (taken >= 2).then_some(())
    });
    assert_eq!(taken + fill_both(&mut dealer, &mut server, &body), 2);
    for _ in 0..5 {
        let (_, frames) = until("one arrives", || {
            dealer.drive();
            take(&mut server)
        });
        assert_eq!(frames, std::slice::from_ref(&body));
        let mut taken = 0;
        until("one more is taken", || {
            taken += fill_both(&mut dealer, &mut server, &body);
            (taken > 0).then_some(())
        });
        assert_eq!(taken, 1);
    }
    // 1000 + 1000 small messages go though nothing is received; every one arrives.
    let (mut server, bound) = router(net, Options::new().rcvhwm(1000));
    let mut dealer = Dealer::new(Options::new().sndhwm(1000)).unwrap();
    dealer.connect(&bound).unwrap();
    let mut sent = 0u32;
    until("two thousand are taken", || {
        server.drive();
        dealer.drive();
        while sent < 2000 && dealer.send(&[&sent.to_be_bytes()]).is_ok() {
            sent += 1;
        }
        (sent == 2000).then_some(())
    });
    for count in 0..sent {
        until("all arrive in order", || {
            dealer.drive();
            assert_eq!(take(&mut server)?.1, [count.to_be_bytes()]);
            Some(())
        });
    }
}

pub(crate) fn gone_with_its_connection(net: &Net) {
    let (mut server, bound) = router(net, small_buffers());
    let stalled = established(net, &mut server, &bound, b"same");
    for count in 0..20u8 {
        server.send(b"same", &[&[count; 100_000]]).unwrap();
    }
    server.drive();
    drop(stalled);
    until("it is gone", || {
        assert_eq!(take(&mut server), None);
        (server.socket().peer_count() == 0).then_some(())
    });
    assert_eq!(server.socket().pending_bytes(), 0);
    let mut back = established(net, &mut server, &bound, b"same");
    server.send(b"same", &[b"fresh"]).unwrap();
    until("a message comes", || {
        server.drive();
        back.poll();
        let frames = back.frames();
        let (_, first) = frames.iter().find(|(flags, _)| flags & 4 == 0)?;
        assert_eq!(first, b"fresh");
        Some(())
    });
}

pub(crate) fn sockopt_hwm(net: &Net) {
    let endpoint = net.unbound();
    let mut dealer = Dealer::new(Options::new().sndhwm(100)).unwrap();
    dealer.connect(&endpoint).unwrap();
    for count in 0..100u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    dealer.socket().set_sndhwm(10);
    assert_eq!(dealer.send(&[b"x"]), Err(Error::Full));
    let mut router = casparian::socket::Router::new(Options::new()).unwrap();
    router.bind(&endpoint).unwrap();
    for count in 0..100u8 {
        until("nothing was lost", || {
            dealer.drive();
            let (_, frames) = take(&mut router)?;
            assert_eq!(frames, [[count]]);
            Some(())
        });
    }
    dealer.socket().set_sndhwm(1);
    dealer
        .socket()
        .disconnect_endpoint(&endpoint.parse().unwrap(), std::time::Instant::now());
    dealer.connect(&net.unbound()).unwrap();
    dealer.send(&[b"x"]).unwrap();
    assert_eq!(dealer.send(&[b"x"]), Err(Error::Full));
    dealer.socket().set_sndhwm(2);
    dealer.send(&[b"x"]).unwrap();
    assert_eq!(dealer.send(&[b"x"]), Err(Error::Full));
}

pub(crate) fn backpressure(net: &Net) {
    // The receiver reads ahead little and its owner takes nothing.
    let (mut server, bound) = router(net, Options::new().sndhwm(10));
    let options = Options::new().routing_id("d").rcvhwm_bytes(4096);
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&bound).unwrap();
    until("established", || {
        server.drive();
        dealer.drive();
        (server.counters().established == 1).then_some(())
    });
    let body = vec![5; 10_000];
    let taken = fill(&mut server, b"d", &body);
    for_a_while(std::time::Duration::from_millis(20), || dealer.drive());
    assert_eq!(server.send(b"d", &[&body]), Err(Error::Full));
    for received in 1..=taken {
        until("each arrives", || {
            server.drive();
            assert_eq!(receive(&mut dealer)?, std::slice::from_ref(&body));
            Some(())
        });
        if received == taken {
            server.send(b"d", &[&body]).unwrap();
        }
    }
}
