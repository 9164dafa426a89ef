//! Who is let in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use casparian::socket::curve::{AuthorizedKeys, Clients, CurveClient, CurveServer, SecretKey};
use casparian::socket::{
    Dealer, DisconnectReason, Event, Options, PlainClient, PlainServer, ProtocolError, Security,
    SocketType,
};
use casparian::zmtp::{Config, Connection, Limits, Progress, SendQueue};

use crate::router::router;
use crate::support::*;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

fn listed(bytes: &[u8]) -> Clients {
    let keys = bytes
        .iter()
        .map(|byte| (key(*byte).public(), format!("key {byte}")));
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

/// What a client with these keys writes until it waits for an answer, and then for the one after
/// WELCOME: greeting and HELLO, then INITIATE.
struct Client(Connection);

impl Client {
    fn new(secret: u8, server: u8) -> Self {
        let config = Config {
            socket_type: SocketType::Dealer,
            routing_id: Vec::new(),
            limits: Limits::default(),
            read_ahead: 4096,
            rcvhwm: 0,
            handshake_timeout: Duration::from_secs(30),
            heartbeat: None,
            security: Security::CurveClient(CurveClient {
                secret: key(secret),
                server: key(server).public(),
            }),
            metadata: Vec::new(),
        };
        Client(Connection::new(Arc::new(config), Instant::now()))
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let space = self.0.receive_space(casparian::zmtp::Growth::ReadAhead);
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.0.handle_received(count, Instant::now());
            while let Ok(Progress::Established | Progress::Message) = self.0.poll(Instant::now()) {}
        }
    }

    fn written(&mut self) -> Vec<u8> {
        let mut queue = SendQueue::new();
        let mut slices = casparian::zmtp::Slices::new();
        self.0.gather(&queue, &mut slices);
        let bytes = slices
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect::<Vec<u8>>();
        self.0
            .handle_written(&mut queue, bytes.len(), Instant::now());
        bytes
    }
}

/// Offsets are those of the body, which stands behind the head of its frame.
pub(crate) fn security_curve_raw(net: &Net) {
    let (mut server, bound) = router(net, base().curve_server(key(1), listed(&[2])));
    let change = |at: usize, by: u8| {
        move |body: &mut Vec<u8>| {
            body[at] ^= by;
        }
    };
    type Edit = Box<dyn Fn(&mut Vec<u8>)>;
    let hello: Vec<(&str, Edit)> = vec![
        ("short", Box::new(|body| body.truncate(199))),
        ("long", Box::new(|body| body.push(0))),
        ("empty", Box::new(|body| body.truncate(6))),
        ("name", Box::new(change(1, 0x20))),
        ("major version", Box::new(change(6, 3))),
        ("minor version", Box::new(change(7, 1))),
        ("null key", Box::new(|body| body[80..112].fill(0))),
        ("key", Box::new(change(90, 1))),
        ("nonce", Box::new(change(119, 1))),
        ("box", Box::new(change(150, 1))),
        ("tag", Box::new(change(120, 1))),
    ];
    let initiate: Vec<(&str, Edit)> = vec![
        ("short", Box::new(|body| body.truncate(256))),
        ("cut by one", Box::new(|body| body.truncate(body.len() - 1))),
        ("long", Box::new(|body| body.push(0))),
        ("name", Box::new(change(1, 0x20))),
        ("cookie", Box::new(change(50, 1))),
        ("cookie's nonce", Box::new(change(9, 1))),
        ("nonce", Box::new(change(112, 4))),
        (
            "nonce of HELLO",
            Box::new(|body| body[105..113].copy_from_slice(&1u64.to_be_bytes())),
        ),
        ("box", Box::new(change(200, 1))),
        ("tag", Box::new(change(113, 1))),
    ];
    let mut rounds: Vec<(String, &Edit, bool)> = Vec::new();
    rounds.extend(
        hello
            .iter()
            .map(|(what, edit)| (format!("HELLO: {what}"), edit, false)),
    );
    rounds.extend(
        initiate
            .iter()
            .map(|(what, edit)| (format!("INITIATE: {what}"), edit, true)),
    );
    for (refused, (what, edit, is_initiate)) in (1..).zip(rounds) {
        let mut client = Client::new(2, 1);
        let mut raw = net.raw(&bound);
        client.receive(&greeting("CURVE"));
        let bytes = client.written();
        let (greeted, hello) = bytes.split_at(64);
        raw.write(greeted);
        let mut edited = |head: usize, bytes: &[u8]| {
            let mut body = bytes[head..].to_vec();
            edit(&mut body);
            raw.write(&frame(4, &body));
        };
        if is_initiate {
            raw.write(hello);
            until("WELCOME comes", || {
                server.drive();
                raw.poll();
                (raw.got.len() == 64 + 170).then_some(())
            });
            client.receive(&raw.got[64..]);
            let initiate = client.written();
            let mut body = initiate[9..].to_vec();
            edit(&mut body);
            raw.write(&frame(4, &body));
        } else {
            edited(2, hello);
        }
        raw.write(&frame(0, b"not authenticated"));
        until(&what, || {
            assert_eq!(take(&mut server), None, "{what}");
            (server.counters().handshake_failed == refused).then_some(())
        });
    }
    assert_eq!(server.counters().established, 0);
    let good = base().curve_client(key(2), key(1).public());
    let mut good = Dealer::new(good).unwrap();
    good.connect(&bound).unwrap();
    good.send(&[b"authenticated"]).unwrap();
    until("the right keys get in", || {
        good.drive();
        take(&mut server)
    });
}

pub(crate) fn duplicates_are_reported(net: &Net) {
    let curve = base().curve_client(key(2), key(1).public());
    for (what, server, client) in [
        ("NULL", base(), base()),
        ("PLAIN", plain_server(), plain("user", "pass")),
        ("CURVE", base().curve_server(key(1), listed(&[2])), curve),
    ] {
        let (mut router, bound) = router(net, server);
        let connect = || {
            let soon = Duration::from_millis(50);
            let options = client.clone().routing_id("same").reconnect_ivl_max(soon);
            let mut dealer = Dealer::new(options).unwrap();
            dealer.connect(&bound).unwrap();
            dealer
        };
        let mut owner = connect();
        until(what, || {
            owner.drive();
            router.drive();
            router.socket().route(b"same").map(drop)
        });
        let mut duplicate = connect();
        duplicate.send(&[b"not to be lost"]).unwrap();
        let mut events = Vec::new();
        let reason = until(what, || {
            duplicate.drive();
            router.drive();
            events.extend(duplicate.events());
            events.iter().find_map(|event| match event {
                Event::HandshakeFailed { reason, .. } | Event::Disconnected { reason, .. } => {
                    Some(reason.clone())
                }
                _ => None,
            })
        });
        assert!(
            matches!(&reason, DisconnectReason::Protocol(ProtocolError::Refused { reason }) if reason.contains("in use")),
            "{what}: {reason:?}"
        );
        // What it has to say waits until the name is free.
        drop(owner);
        let message = until(what, || {
            duplicate.drive();
            take(&mut router)
        });
        assert_eq!(
            message,
            (b"same".to_vec(), vec![b"not to be lost".to_vec()]),
            "{what}"
        );
    }
}

pub(crate) fn set_security(net: &Net) {
    let curve_client = || base().curve_client(key(2), key(1).public());
    let curve = |server: u8, bytes: &[u8]| {
        Security::CurveServer(CurveServer {
            secret: key(server),
            clients: listed(bytes),
        })
    };
    let users = |users: &[(&'static str, &'static str)]| {
        Security::PlainServer(PlainServer::new(users.iter().copied()))
    };
    let user = || plain("user", "pass");
    let one = &[("user", "pass")];
    for (what, old, client, new, stays) in [
        ("NULL", Security::Null, base(), Security::Null, true),
        ("to CURVE", Security::Null, base(), curve(1, &[2]), false),
        ("to PLAIN", Security::Null, base(), users(one), false),
        ("to NULL", users(one), user(), Security::Null, false),
        (
            "one more",
            users(one),
            user(),
            users(&[("user", "pass"), ("b", "c")]),
            true,
        ),
        ("user gone", users(one), user(), users(&[("b", "c")]), false),
        (
            "password",
            users(one),
            user(),
            users(&[("user", "new")]),
            false,
        ),
        (
            "key more",
            curve(1, &[2]),
            curve_client(),
            curve(1, &[2, 3]),
            true,
        ),
        (
            "key gone",
            curve(1, &[2]),
            curve_client(),
            curve(1, &[3]),
            false,
        ),
        (
            "our key",
            curve(1, &[2]),
            curve_client(),
            curve(4, &[2]),
            false,
        ),
    ] {
        let (mut router, bound) = router(net, base().security(old));
        let mut dealer = Dealer::new(client.routing_id("d").no_reconnect()).unwrap();
        dealer.connect(&bound).unwrap();
        until(what, || {
            dealer.drive();
            router.drive();
            router.socket().route(b"d").map(drop)
        });
        router.socket().set_security(new, Instant::now()).unwrap();
        assert_eq!(router.socket().route(b"d").is_some(), stays, "{what}");
    }
    let (mut router, _) = router(net, base());
    let low_order = casparian::socket::curve::PublicKey::from_bytes([0; 32]);
    let client = Security::CurveClient(CurveClient {
        secret: key(1),
        server: low_order,
    });
    assert!(
        router
            .socket()
            .set_security(client, Instant::now())
            .is_err()
    );
}

/// Connects a client to a server and says whether it got in; if not, that nothing of it was
/// delivered and that the server still serves `good`.
fn open_socket_file(
    net: &Net,
    what: &str,
    server: Options,
    client: Options,
    good: Option<Options>,
) -> bool {
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
    assert!(open_socket_file(net, "NULL", base(), base(), None));
    let curve = base().curve_client(key(2), key(1).public());
    for (what, client) in [("PLAIN", plain("user", "pass")), ("CURVE", curve)] {
        assert!(
            !open_socket_file(net, what, base(), client, Some(base())),
            "{what}"
        );
    }
}

pub(crate) fn security_plain(net: &Net) {
    let good = || Some(plain("user", "pass"));
    assert!(open_socket_file(
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
        assert!(
            !open_socket_file(net, what, plain_server(), client, good()),
            "{what}"
        );
    }
    // Raw: what is malformed, or comes out of turn, is refused; nothing is delivered.
    let hello = frame(4, b"\x05HELLO\x04user\x04pass");
    let initiate = frame(4, b"\x08INITIATE\x0bSocket-Type\0\0\0\x06DEALER");
    for (what, bytes) in [
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
        raw.write(&bytes);
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
    until("the right bytes get in", || take(&mut server));
}

pub(crate) fn security_curve(net: &Net) {
    let server = || base().curve_server(key(1), listed(&[2, 3]));
    let client = |secret: u8, server: u8| base().curve_client(key(secret), key(server).public());
    assert!(open_socket_file(
        net,
        "listed",
        server(),
        client(2, 1),
        None
    ));
    assert!(open_socket_file(
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
            !open_socket_file(net, what, server(), options, Some(client(3, 1))),
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
        assert_eq!(receive(&mut dealer), None);
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
