//! Tests of sockets with a thread, and of the linger time of a drop.

use super::*;
use crate::socket::Background;

/// Sockets may be moved to other threads, and shared with a thread that drives them.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_sync<T: Sync>() {}
    is_send::<Socket>();
    is_send::<Router>();
    is_send::<Dealer>();
    is_send::<Event>();
    is_send::<Waker>();
    is_sync::<Waker>();
    is_sync::<Background<Router>>();
    is_sync::<Background<Dealer>>();
    is_send::<Error>();
    is_sync::<Error>();
};

fn heartbeats(timeout: Duration) -> Options {
    Options::new()
        .heartbeat_ivl(timeout / 20)
        .heartbeat_timeout(timeout)
}

/// Drives a router until its peer is established.
fn establish(router: &mut Router) {
    until(|| {
        router.receive(WAIT).unwrap();
        (router.counters().established == 1).then_some(())
    });
}

#[test]
fn pings_are_answered_while_the_owner_makes_no_calls() {
    let timeout = Duration::from_secs(1);
    for has_thread in [false, true] {
        let mut router = Router::new(heartbeats(timeout)).unwrap();
        let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
        let dealer = Dealer::new(options(b"d").no_reconnect()).unwrap();
        let (mut plain, with_thread) = match has_thread {
            true => (None, Some(Background::new(dealer).unwrap())),
            false => (Some(dealer), None),
        };
        if let Some(dealer) = &with_thread {
            dealer.lock().connect(&bound).unwrap();
            establish(&mut router);
        }
        if let Some(dealer) = &mut plain {
            dealer.connect(&bound).unwrap();
            until(|| {
                dealer.flush().unwrap();
                router.receive(WAIT).unwrap();
                (dealer.counters().established + router.counters().established == 2).then_some(())
            });
        }
        // From here on the owner makes no calls.
        let until_at = Instant::now() + timeout * 5 / 2;
        while Instant::now() < until_at {
            router.receive(WAIT).unwrap();
        }
        let timeouts = u64::from(!has_thread);
        assert_eq!(router.counters().heartbeat_timeouts, timeouts);
    }
}

#[test]
fn a_thread_connects_again_and_writes_what_was_queued() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}", dir.path().join("s").display());
    let quick = options(b"d").reconnect_ivl(Duration::from_millis(5));
    let dealer = Background::new(Dealer::new(quick).unwrap()).unwrap();
    dealer.lock().connect(&endpoint).unwrap();
    dealer.lock().send(&[b"early"]).unwrap();
    // No one has listened until now.
    until(|| (dealer.lock().counters().connect_failed > 0).then_some(()));
    let router = Background::new(Router::new(Options::new()).unwrap()).unwrap();
    router.lock().bind(&endpoint).unwrap();
    let receive = || {
        let mut router = router.lock();
        let received = router.receive(Some(DEADLINE)).unwrap();
        received.map(|(id, message)| (id.to_vec(), message.to_vecs()))
    };
    let message = |text: &[u8]| Some((b"d".to_vec(), vec![text.to_vec()]));
    assert_eq!(receive(), message(b"early"));
    dealer.lock().send(&[b"late"]).unwrap();
    assert_eq!(receive(), message(b"late"));
    router.lock().send(b"d", &[b"back"]).unwrap();
    let mut dealer = dealer.lock();
    let back = dealer.receive(Some(DEADLINE)).unwrap();
    assert_eq!(
        back.map(|back| back.to_vecs()),
        Some(vec![b"back".to_vec()])
    );
}

#[test]
fn threads_share_a_socket() {
    let router = Background::new(Router::new(Options::new()).unwrap()).unwrap();
    let bound = router.lock().bind("ipc://*").unwrap().to_string();
    let dealer = Background::new(Dealer::new(options(b"d")).unwrap()).unwrap();
    dealer.lock().connect(&bound).unwrap();
    let (threads, messages) = (4u8, 50u8);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let dealer = &dealer;
            scope.spawn(move || {
                for number in 0..messages {
                    dealer.lock().send(&[&[thread, number]]).unwrap();
                }
            });
        }
        let mut next = vec![0; usize::from(threads)];
        for _ in 0..usize::from(threads) * usize::from(messages) {
            let mut router = router.lock();
            let (_, message) = router.receive(Some(DEADLINE)).unwrap().unwrap();
            let [thread, number] = message.get(0).unwrap() else {
                panic!("{message:?}");
            };
            assert_eq!(*number, next[usize::from(*thread)], "thread {thread}");
            next[usize::from(*thread)] += 1;
        }
    });
    assert!(dealer.close(Duration::ZERO).is_ok());
}

#[test]
fn a_drop_waits_for_its_linger_time() {
    // All messages together are more than the kernel's buffers take.
    let body = vec![7; 1 << 20];
    let sent = 32;
    for linger in [DEADLINE, Duration::ZERO] {
        let mut router = Router::new(Options::new()).unwrap();
        let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
        let waker = router.waker().unwrap();
        let dropping = std::thread::spawn({
            let body = body.clone();
            move || {
                let mut dealer = Dealer::new(options(b"d").linger(linger)).unwrap();
                dealer.connect(&bound).unwrap();
                for _ in 0..sent {
                    dealer.send(&[&body]).unwrap();
                }
                drop(dealer);
                waker.wake().unwrap();
            }
        });
        let mut received = 0;
        while let Some((_, message)) = router.receive(Some(DEADLINE)).unwrap() {
            assert_eq!(message.get(0), Some(&body[..]));
            received += 1;
        }
        dropping.join().unwrap();
        assert_eq!(
            received == sent,
            !linger.is_zero(),
            "{linger:?}: {received}"
        );
    }
}
