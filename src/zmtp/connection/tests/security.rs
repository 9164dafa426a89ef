//! Tests of PLAIN and CURVE between two connections: exact bytes, splits, and misbehaving peers.

use super::*;
use crate::zmtp::{PlainClient, PlainServer, encode_head};

fn with(socket_type: SocketType, security: Security) -> Arc<Config> {
    let mut config = (*config(socket_type, b"")).clone();
    config.security = security;
    Arc::new(config)
}

fn plain(user: &str, password: &str) -> Arc<Config> {
    let client = PlainClient::new(user, password).unwrap();
    with(SocketType::Dealer, Security::PlainClient(client))
}

fn plain_server() -> Arc<Config> {
    let users = PlainServer::new([("worker", "secret"), ("empty", "")]);
    with(SocketType::Router, Security::PlainServer(users))
}

/// Exchanges bytes between two connections until neither has more to send. Returns what each
/// reported and sent.
fn talk(client: &mut Connection, server: &mut Connection) -> [(Seen, Vec<u8>); 2] {
    let now = Instant::now();
    let mut seen = [Seen::default(), Seen::default()];
    let mut sent = [Vec::new(), Vec::new()];
    let (mut to_server, mut to_client) = (SendQueue::new(), SendQueue::new());
    loop {
        let up = output(client, &mut to_server);
        let down = output(server, &mut to_client);
        if up.is_empty() && down.is_empty() {
            break;
        }
        let results = [
            feed(client, &down, &[usize::MAX], now),
            feed(server, &up, &[usize::MAX], now),
        ];
        for (all, new) in seen.iter_mut().zip(results) {
            all.peer = all.peer.take().or(new.peer);
            all.error = all.error.take().or(new.error);
            all.messages.extend(new.messages);
        }
        sent[0].extend(up);
        sent[1].extend(down);
    }
    let [a, b] = seen;
    let [c, d] = sent;
    [(a, c), (b, d)]
}

/// The handshake and a message in each direction, with the bytes split at every position. The split
/// must not change the result.
fn handshake_at_every_split(client: &Arc<Config>, server: &Arc<Config>) {
    let now = Instant::now();
    let mut queues = [SendQueue::new(), SendQueue::new()];
    let mut count = 0;
    // The longest sequence of bytes in one direction is about 350 bytes, so later positions split
    // nothing.
    for cut in 0..400usize {
        let mut sides = [
            Connection::new(client.clone(), now),
            Connection::new(server.clone(), now),
        ];
        let mut seen = [Seen::default(), Seen::default()];
        for queue in &mut queues {
            queue.clear();
            queue.push(&[b"a", b"", b"message"]);
        }
        loop {
            let mut answered = false;
            for (from, to) in [(0, 1), (1, 0)] {
                let bytes = output(&mut sides[from], &mut queues[from]);
                answered |= !bytes.is_empty();
                let steps = [if cut == 0 { 1 } else { cut }, bytes.len().max(1)];
                let steps = if cut == 0 { &steps[..1] } else { &steps[..] };
                let new = feed(&mut sides[to], &bytes, steps, now);
                seen[to].peer = seen[to].peer.take().or(new.peer);
                seen[to].messages.extend(new.messages);
                assert_eq!(new.error, None, "cut {cut}");
            }
            if !answered {
                break;
            }
        }
        for seen in &seen {
            assert!(seen.peer.is_some(), "cut {cut}");
            assert_eq!(seen.messages, [[&b"a"[..], b"", b"message"]], "cut {cut}");
            count += 1;
        }
    }
    assert_eq!(count, 800);
}

#[test]
fn plain_shakes_hands_at_every_split() {
    handshake_at_every_split(&plain("worker", "secret"), &plain_server());
}

fn command(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_head(&mut out, body.len(), false, true);
    out.extend_from_slice(body);
    out
}

#[test]
fn plain_is_byte_for_byte_that_of_libzmq() {
    let now = Instant::now();
    let mut client = Connection::new(plain("worker", "secret"), now);
    let mut server = Connection::new(plain_server(), now);
    let [(client_seen, up), (server_seen, down)] = talk(&mut client, &mut server);
    assert_eq!((client_seen.error, server_seen.error), (None, None));
    assert_eq!(server_seen.peer.unwrap().user_id.as_deref(), Some("worker"));
    assert_eq!(client_seen.peer.unwrap().socket_type, "ROUTER");
    // Compares only what follows the greetings: libzmq's greeting has other padding.
    for (ours, theirs) in [
        (up, capture("plain.client")),
        (down, capture("plain.server")),
    ] {
        assert_eq!(ours[9..64], theirs[9..64]);
        assert_eq!(ours[64..], theirs[64..ours.len()]);
    }
}

#[test]
fn captured_plain_conversations_parse_at_every_split() {
    let now = Instant::now();
    for (name, config) in [
        ("plain.client", plain_server()),
        ("plain.server", plain("worker", "secret")),
    ] {
        let bytes = capture(name);
        for steps in every_split(bytes.len()) {
            let seen = feed(
                &mut Connection::new(config.clone(), now),
                &bytes,
                &steps,
                now,
            );
            assert_eq!(seen.error, None, "{name} by {steps:?}");
            assert_eq!(seen.messages.len(), 1, "{name} by {steps:?}");
        }
    }
}

#[test]
fn wrong_plain_credentials_are_refused_with_400() {
    let now = Instant::now();
    for (user, password) in [
        ("worker", "wrong"),
        ("worker", ""),
        ("worker", "secret "),
        ("Worker", "secret"),
        ("", ""),
    ] {
        let mut client = Connection::new(plain(user, password), now);
        let mut server = Connection::new(plain_server(), now);
        let [(client_seen, _), (server_seen, down)] = talk(&mut client, &mut server);
        assert!(down.ends_with(b"\x04\x0A\x05ERROR\x03400"), "{down:?}");
        assert!(
            matches!(server_seen.error, Some(Error::Unauthorized { .. })),
            "{server_seen:?}"
        );
        assert_eq!(
            client_seen.error,
            Some(Error::Refused {
                reason: "400".to_owned()
            })
        );
        assert!(client_seen.peer.is_none() && server_seen.peer.is_none());
    }
    assert!(PlainClient::new(&"x".repeat(256), "").is_none());
    let debug = format!("{:?} {:?}", plain("worker", "secret"), plain_server());
    assert!(!debug.contains("secret"), "{debug}");
}

#[test]
fn error_is_understood_as_libzmqs_plain_server_spells_it() {
    let now = Instant::now();
    for (body, fatal) in [
        (&b"\x05ERROR\x03400"[..], true),
        (b"^RROR\x03400", true),
        (b"^RROR", false),
        (b"^", false),
    ] {
        let mut client = Connection::new(plain("worker", "wrong"), now);
        let mut bytes = Greeting::encode("PLAIN").to_vec();
        bytes.extend(command(body));
        let error = feed(&mut client, &bytes, &[1], now).error.unwrap();
        assert_eq!(error.is_fatal(), fatal, "{error}");
        assert_eq!(error.to_string().contains("400"), fatal, "{error}");
    }
}

#[test]
fn malformed_plain_commands_close_the_connection() {
    let now = Instant::now();
    let greeting = Greeting::encode("PLAIN");
    let hello = command(b"\x05HELLO\x06worker\x06secret");
    let welcome = command(b"\x07WELCOME");
    type Case = (&'static str, Arc<Config>, Vec<Vec<u8>>);
    let cases: Vec<Case> = vec![
        (
            "READY for HELLO",
            plain_server(),
            vec![command(b"\x05READY")],
        ),
        ("empty command", plain_server(), vec![command(b"")]),
        ("HELLO alone", plain_server(), vec![command(b"\x05HELLO")]),
        (
            "user name cut short",
            plain_server(),
            vec![command(b"\x05HELLO\x09worker")],
        ),
        (
            "password cut short",
            plain_server(),
            vec![command(b"\x05HELLO\x06worker\x07secret")],
        ),
        (
            "bytes behind the password",
            plain_server(),
            vec![command(b"\x05HELLO\x06worker\x06secretx")],
        ),
        (
            "HELLO twice",
            plain_server(),
            vec![hello.clone(), hello.clone()],
        ),
        (
            "INITIATE with a property cut short",
            plain_server(),
            vec![
                hello.clone(),
                command(b"\x08INITIATE\x0BSocket-Type\0\0\0\x09DEALER"),
            ],
        ),
        (
            "a message for INITIATE",
            plain_server(),
            vec![hello.clone(), vec![0, 1, 7]],
        ),
        (
            "WELCOME of nine bytes",
            plain("a", "b"),
            vec![command(b"\x07WELCOME\0")],
        ),
        (
            "WELCOME twice",
            plain("a", "b"),
            vec![welcome.clone(), welcome],
        ),
        ("HELLO for WELCOME", plain("a", "b"), vec![hello]),
    ];
    for (name, config, frames) in cases {
        let bytes = [&greeting[..], &frames.concat()].concat();
        let seen = feed(&mut Connection::new(config, now), &bytes, &[5], now);
        assert!(seen.error.is_some(), "{name}");
        assert!(seen.peer.is_none() && seen.messages.is_empty(), "{name}");
    }
}

#[test]
fn another_mechanism_is_refused_and_gets_no_credentials() {
    let now = Instant::now();
    for (config, theirs) in [
        (plain("worker", "secret"), "NULL"),
        (plain_server(), "NULL"),
        (plain_server(), "CURVE"),
        (config(SocketType::Router, b""), "PLAIN"),
        (config(SocketType::Router, b""), "NULLX"),
        (config(SocketType::Router, b""), "null"),
    ] {
        let mut connection = Connection::new(config, now);
        let seen = feed(&mut connection, &Greeting::encode(theirs), &[64], now);
        assert!(matches!(seen.error, Some(Error::MechanismMismatch { .. })));
        let sent = output(&mut connection, &mut SendQueue::new());
        assert!(!sent.windows(6).any(|bytes| bytes == b"secret"));
    }
}

#[cfg(feature = "curve")]
mod curve_tests;
