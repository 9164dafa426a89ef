//! DEALER: round-robin out, fair queue in.

use std::time::Duration;

use casparian::socket::{Dealer, Error, Options, Router};

use crate::support::*;

/// Routers that a dealer is connected to, all established.
pub(crate) fn routers(net: &Net, dealer: &mut Dealer, count: usize) -> Vec<Router> {
    let mut routers = Vec::new();
    let established = dealer.counters().established + count as u64;
    for _ in 0..count {
        let mut router = Router::new(Options::new()).unwrap();
        let bound = router.bind(&net.endpoint()).unwrap().to_string();
        dealer.connect(&bound).unwrap();
        routers.push(router);
    }
    until("all are established", || {
        dealer.drive();
        routers.iter_mut().for_each(Drive::drive);
        (dealer.counters().established == established).then_some(())
    });
    routers
}

pub(crate) fn spec_dealer(net: &Net) {
    let mut dealer = Dealer::new(Options::new().routing_id("d")).unwrap();
    assert_eq!(dealer.send(&[b"x"]), Err(Error::NoPeer));
    let mut routers = routers(net, &mut dealer, 5);
    for round in 0..3u8 {
        for count in 0..5u8 {
            dealer.send(&[&[round, count]]).unwrap();
        }
    }
    for router in &mut routers {
        let mut got = Vec::new();
        until("each gets its share", || {
            dealer.drive();
            got.extend(take(router));
            (got.len() == 3).then_some(())
        });
        let place = got[0].1[0][1];
        for (round, (from, frames)) in got.into_iter().enumerate() {
            assert_eq!(from, b"d");
            assert_eq!(frames, [vec![round as u8, place]]);
        }
        assert_eq!(take(router), None);
    }
    // Everybody has sent much; whoever is heard waits until the others were.
    for (place, router) in routers.iter_mut().enumerate() {
        for _ in 0..20 {
            router.send(b"d", &[&[place as u8]]).unwrap();
        }
        router.drive();
    }
    let mut heard = Vec::new();
    until("all are heard", || {
        routers.iter_mut().for_each(Drive::drive);
        // The bytes of all are there before the first is taken.
        if heard.is_empty() {
            for_a_while(Duration::from_millis(20), || dealer.drive());
        }
        heard.extend(receive(&mut dealer).map(|frames| frames[0][0]));
        (heard.len() == 100).then_some(())
    });
    for turn in heard.chunks(5) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, [0, 1, 2, 3, 4], "{heard:?}");
    }
}

pub(crate) fn full_peer(net: &Net) {
    // One of two takes nothing; the other gets all.
    let options = Options::new().sndhwm(2).sndbuf(16 << 10);
    let mut dealer = Dealer::new(options).unwrap();
    let bound = dealer.bind(&net.endpoint()).unwrap().to_string();
    let connect = || {
        let mut raw = net.raw(&bound);
        raw.receive_buffer(128 << 10);
        raw.shake_hands("ROUTER", b"");
        raw
    };
    let (_stalled, mut good) = (connect(), connect());
    until("both are there", || {
        dealer.drive();
        (dealer.counters().established == 2).then_some(())
    });
    let body = vec![8; 50_000];
    let messages = 100;
    for _ in 0..messages {
        until("one of them takes it", || {
            good.poll();
            dealer.drive();
            dealer.send(&[&body]).ok()
        });
    }
    let mut got = 0;
    until("the good one has all but a few", || {
        good.poll();
        dealer.drive();
        got = good
            .frames()
            .iter()
            .filter(|(_, frame)| *frame == body)
            .count();
        (got >= messages - 20).then_some(())
    });
    assert!(got < messages, "the other one has its share");
}

pub(crate) fn immediate(net: &Net) {
    for immediate in [true, false] {
        let mut dealer = Dealer::new(Options::new().immediate(immediate)).unwrap();
        dealer.connect(&net.unbound()).unwrap();
        if immediate {
            assert_eq!(dealer.send(&[b"x"]), Err(Error::NoPeer));
        }
        let mut router = Router::new(Options::new()).unwrap();
        let bound = router.bind(&net.endpoint()).unwrap().to_string();
        dealer.connect(&bound).unwrap();
        until("one is established", || {
            dealer.drive();
            router.drive();
            (dealer.counters().established == 1).then_some(())
        });
        for _ in 0..10 {
            dealer.send(&[b"x"]).unwrap();
        }
        let want = if immediate { 10 } else { 5 };
        let mut got = 0;
        until("its share arrives", || {
            dealer.drive();
            got += usize::from(take(&mut router).is_some());
            (got == want).then_some(())
        });
        for_a_while(Duration::from_millis(10), || {
            dealer.drive();
            assert_eq!(take(&mut router), None);
        });
        // Once it is lost, there is nobody, or it is queued until it comes back.
        drop(router);
        until("it is lost", || {
            dealer.drive();
            (dealer.counters().disconnected == 1).then_some(())
        });
        let sent = dealer.send(&[b"x"]);
        assert_eq!(sent.is_err(), immediate, "{sent:?}");
    }
}

pub(crate) fn msg_flags(net: &Net) {
    let mut dealer = Dealer::new(Options::new().routing_id("d")).unwrap();
    let mut router = routers(net, &mut dealer, 1).pop().unwrap();
    let large = vec![9; 300];
    let messages: [&[&[u8]]; 6] = [
        &[b""],
        &[b"", b""],
        &[b"a", b"", b"b"],
        &[b"a"],
        &[&large, b"b"],
        &[b"", &large, b""],
    ];
    for message in messages {
        dealer.send(message).unwrap();
        until("it arrives", || {
            dealer.drive();
            let (_, frames) = take(&mut router)?;
            assert_eq!(frames, message);
            Some(())
        });
        router.send(b"d", message).unwrap();
        until("it comes back", || {
            router.drive();
            assert_eq!(receive(&mut dealer)?, message);
            Some(())
        });
    }
    assert_eq!(dealer.send(&[]), Err(Error::InvalidMessage));
    assert_eq!(router.send(b"d", &[]), Err(Error::InvalidMessage));
}

pub(crate) fn order_before_the_end(net: &Net) {
    let mut dealer = Dealer::new(Options::new().routing_id("d")).unwrap();
    let mut router = routers(net, &mut dealer, 1).pop().unwrap();
    for count in 0..100u8 {
        dealer.send(&[&[count]]).unwrap();
    }
    assert!(dealer.drain(DEADLINE).unwrap());
    drop(dealer);
    for count in 0..100u8 {
        until("all that left arrives", || {
            let (_, frames) = take(&mut router)?;
            assert_eq!(frames, [[count]]);
            Some(())
        });
    }
}
