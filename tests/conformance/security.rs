//! Who is let in.

use std::sync::Arc;
use std::time::Duration;

use casparian::socket::curve::{AuthorizedKeys, Clients, SecretKey};
use casparian::socket::{Dealer, Options, PlainClient, PlainServer};

use crate::router::router;
use crate::support::*;

fn key(octet: u8) -> SecretKey {
    SecretKey::from_bytes([octet; 32])
}

fn listed(octets: &[u8]) -> Clients {
    let keys = octets
        .iter()
        .map(|octet| (key(*octet).public(), format!("key {octet}")));
    Clients::Listed(Arc::new(keys.collect::<AuthorizedKeys>()))
}

fn base() -> Options {
    Options::new().handshake_ivl(Duration::from_millis(500))
}

fn plain(user: &str, password: &str) -> Options {
    base().plain_client(PlainClient::new(user, password).unwrap())
}

fn plain_server() -> Options {
    base().plain_server(PlainServer::new([("user", "pass")]))
}

/// Connects a client to a server and says whether it got in; if not, that nothing of it was
/// delivered and that the server still serves `good`.
fn let_in(net: &Net, what: &str, server: Options, client: Options, good: Option<Options>) -> bool {
    let (mut router, bound) = router(net, server);
    let connect = |options: Options| {
        let mut dealer = Dealer::new(options.no_reconnect()).unwrap();
        dealer.connect(&bound).unwrap();
        dealer.send(&[b"let me in"]).unwrap();
        dealer
    };
    let mut dealer = connect(client);
    let mut got_in = until(what, || {
        dealer.drive();
        let message = take(&mut router);
        let refused =
            dealer.counters().handshake_failed > 0 && router.counters().handshake_failed > 0;
        (message.is_some() || refused).then_some(message.is_some())
    });
    assert_eq!(got_in, router.counters().established > 0, "{what}");
    if let Some(good) = good {
        let mut good = connect(good);
        until("a good one gets in after it", || {
            good.drive();
            dealer.drive();
            take(&mut router)
        });
    } else {
        got_in &= dealer.counters().established == 1;
    }
    got_in
}

pub(crate) fn security_null(net: &Net) {
    assert!(let_in(net, "NULL", base(), base(), None));
    let curve = base().curve_client(key(2), key(1).public());
    for (what, client) in [("PLAIN", plain("user", "pass")), ("CURVE", curve)] {
        assert!(!let_in(net, what, base(), client, Some(base())), "{what}");
    }
}

pub(crate) fn security_plain(net: &Net) {
    let good = || Some(plain("user", "pass"));
    assert!(let_in(
        net,
        "right",
        plain_server(),
        plain("user", "pass"),
        None
    ));
    let curve = base().curve_client(key(2), key(1).public());
    for (what, client) in [
        ("password", plain("user", "wrong")),
        ("user", plain("nobody", "pass")),
        ("nothing", plain("", "")),
        ("prefix", plain("user", "pas")),
        ("NULL", base()),
        ("CURVE", curve),
        ("two servers", plain_server()),
    ] {
        assert!(!let_in(net, what, plain_server(), client, good()), "{what}");
    }
    // Raw: what is malformed, or comes out of turn, is refused; nothing is delivered.
    let hello = frame(4, b"\x05HELLO\x04user\x04pass");
    let initiate = frame(4, b"\x08INITIATE\x0bSocket-Type\0\0\0\x06DEALER");
    for (what, octets) in [
        ("INITIATE first", initiate.clone()),
        ("READY", ready(&[("Socket-Type", b"DEALER")])),
        ("cut HELLO", frame(4, b"\x05HELLO\x04user\x04pas")),
        ("long HELLO", frame(4, b"\x05HELLO\x04user\x04passx")),
        ("HELLO without password", frame(4, b"\x05HELLO\x04user")),
        ("HELLO as a message", frame(0, b"\x05HELLO\x04user\x04pass")),
        ("two HELLO", [hello.clone(), hello.clone()].concat()),
        (
            "a message instead of INITIATE",
            [hello.clone(), frame(0, b"x")].concat(),
        ),
    ] {
        let (mut server, bound) = router(net, plain_server());
        let mut raw = net.raw(&bound);
        raw.write(&greeting("PLAIN"));
        raw.write(&octets);
        raw.write(&frame(0, b"not authenticated"));
        until(what, || {
            assert_eq!(take(&mut server), None, "{what}");
            (server.counters().handshake_failed == 1).then_some(())
        });
    }
    let (mut server, bound) = router(net, plain_server());
    let mut raw = net.raw(&bound);
    raw.write(&greeting("PLAIN"));
    raw.write(&hello);
    raw.write(&initiate);
    raw.write(&frame(0, b"authenticated"));
    until("the right octets get in", || take(&mut server));
}

pub(crate) fn security_curve(net: &Net) {
    let server = || base().curve_server(key(1), listed(&[2, 3]));
    let client = |secret: u8, server: u8| base().curve_client(key(secret), key(server).public());
    assert!(let_in(net, "listed", server(), client(2, 1), None));
    assert!(let_in(
        net,
        "any",
        base().curve_server(key(1), Clients::Any),
        client(9, 1),
        None
    ));
    for (what, options) in [
        ("unlisted key", client(4, 1)),
        ("wrong server key", client(2, 5)),
        ("NULL", base()),
        ("PLAIN", plain("user", "pass")),
        ("two servers", server()),
    ] {
        assert!(
            !let_in(net, what, server(), options, Some(client(3, 1))),
            "{what}"
        );
    }
    assert!(
        Dealer::new(base().curve_client(
            key(2),
            casparian::socket::curve::PublicKey::from_bytes([0; 32])
        ))
        .is_err()
    );
    // Keys change while the socket lives: whoever is struck off is closed, and told why.
    let (mut router, bound) = router(net, server());
    let mut dealer = Dealer::new(client(2, 1).reconnect_ivl(Duration::from_millis(1))).unwrap();
    dealer.connect(&bound).unwrap();
    dealer.send(&[b"x"]).unwrap();
    until("it is in", || {
        dealer.drive();
        take(&mut router)
    });
    let others = Options::new().curve_server(key(1), listed(&[3]));
    let _ = others;
    let security =
        casparian::socket::Security::CurveServer(casparian::socket::curve::CurveServer {
            secret: key(1),
            clients: listed(&[3]),
        });
    router
        .socket()
        .set_security(security, std::time::Instant::now())
        .unwrap();
    until("it is out, and stays out", || {
        dealer.drive();
        assert_eq!(take(&mut router), None);
        (router.counters().unauthorized >= 2).then_some(())
    });
    assert_eq!(router.socket().peer_count(), 0);
}

pub(crate) fn heartbeats_under_curve(net: &Net) {
    let beat = |options: Options| {
        options
            .heartbeat_ivl(Duration::from_millis(10))
            .heartbeat_timeout(Duration::from_secs(10))
            .heartbeat_ttl(Duration::from_secs(10))
    };
    let (mut server, bound) = router(net, beat(base().curve_server(key(1), listed(&[2]))));
    let options = beat(base().curve_client(key(2), key(1).public())).routing_id("d");
    let mut dealer = Dealer::new(options).unwrap();
    dealer.connect(&bound).unwrap();
    let mut count = 0u32;
    for_a_while(Duration::from_millis(400), || {
        if dealer.send(&[&count.to_be_bytes()]).is_ok() {
            count += 1;
        }
        dealer.drive();
        assert_eq!(hear(&mut dealer), None);
        while take(&mut server).is_some() {}
        server.drive();
    });
    assert!(count > 0);
    assert_eq!(server.counters().disconnected, 0);
    assert_eq!(dealer.counters().disconnected, 0);
    let peer = server.socket().route(b"d").unwrap();
    let info = server.socket().peer_info(peer).unwrap();
    assert_eq!(info.public_key, Some(key(2).public()));
    assert_eq!(info.user_id.as_deref(), Some("key 2"));
}
