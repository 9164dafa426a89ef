//! High-water marks.

use casparian::socket::{Dealer, Options, SendError};

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
            assert_eq!(dealer.send(&[b"one too many"]), Err(SendError::Full));
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

pub(crate) fn sockopt_hwm(net: &Net) {
    let endpoint = net.unbound();
    let mut dealer = Dealer::new(Options::new().sndhwm(100)).unwrap();
    dealer.connect(&endpoint).unwrap();
    for count in 0..100u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    dealer.socket().set_sndhwm(10);
    assert_eq!(dealer.send(&[b"x"]), Err(SendError::Full));
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
    assert_eq!(dealer.send(&[b"x"]), Err(SendError::Full));
    dealer.socket().set_sndhwm(2);
    dealer.send(&[b"x"]).unwrap();
    assert_eq!(dealer.send(&[b"x"]), Err(SendError::Full));
}

pub(crate) fn backpressure(net: &Net) {
    // The receiver reads ahead little and its owner takes nothing.
    let (mut server, bound) = router(net, Options::new().sndhwm(10));
    let options = Options::new().routing_id("d").rcvhwm_octets(4096);
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
    assert_eq!(server.send(b"d", &[&body]), Err(SendError::Full));
    for received in 1..=taken {
        until("each arrives", || {
            server.drive();
            assert_eq!(hear(&mut dealer)?, std::slice::from_ref(&body));
            Some(())
        });
        if received == taken {
            server.send(b"d", &[&body]).unwrap();
        }
    }
}
