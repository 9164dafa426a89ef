//! Tests of CURVE between two connections, with correct and with misbehaving peers.

use super::*;
use crate::zmtp::curve::memory::Needle;
use crate::zmtp::curve::{AuthorizedKeys, Clients, CurveClient, CurveServer, SecretKey};

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

fn client(secret: u8, server: u8) -> Arc<Config> {
    let keys = CurveClient {
        secret: key(secret),
        server: key(server).public(),
    };
    with(SocketType::Dealer, Security::CurveClient(keys))
}

fn server(secret: u8, clients: Clients) -> Arc<Config> {
    let keys = CurveServer {
        secret: key(secret),
        clients,
    };
    with(SocketType::Router, Security::CurveServer(keys))
}

fn listed(clients: &[(u8, &str)]) -> Clients {
    let keys: AuthorizedKeys = clients
        .iter()
        .map(|(byte, name)| (key(*byte).public(), (*name).to_owned()))
        .collect();
    Clients::Listed(Arc::new(keys))
}

/// A client and a server after the handshake.
fn pair() -> (Connection, Connection) {
    let now = Instant::now();
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(server(2, Clients::Any), now);
    talk(&mut a, &mut b);
    assert!(a.is_open() && b.is_open());
    (a, b)
}

#[test]
fn curve_shakes_hands_at_every_split() {
    handshake_at_every_split(&client(1, 2), &server(2, listed(&[(1, "node-1")])));
}

#[test]
fn the_handshake_has_the_sizes_of_rfc_26_and_names_the_client() {
    let now = Instant::now();
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(server(2, listed(&[(9, "x"), (1, "node-1")])), now);
    let [(client_seen, up), (server_seen, down)] = talk(&mut a, &mut b);
    assert_eq!((client_seen.error, server_seen.error), (None, None));
    let peer = server_seen.peer.unwrap();
    assert_eq!(peer.user_id.as_deref(), Some("node-1"));
    assert_eq!(peer.public_key, Some(key(1).public()));
    assert_eq!(client_seen.peer.unwrap().socket_type, "ROUTER");
    let theirs = capture("curve.client");
    // The greeting without its padding, and the fixed part of HELLO.
    assert_eq!(up[9..144], theirs[9..144]);
    assert_eq!(up[64..66], [4, 200]);
    let initiate = &up[64 + 202..];
    assert_eq!(initiate[0], 6, "a long command");
    assert_eq!(initiate[9..18], *b"\x08INITIATE");
    assert_eq!(initiate.len() - 9, 257 + 22 + 13 + 6 - 6);
    assert_eq!(down[64..74], *b"\x04\xA8\x07WELCOME");
    assert_eq!(down[64 + 170 + 2..][..6], *b"\x05READY");
    let debug = format!("{:?} {a:?}", client(1, 2));
    assert!(!debug.contains(key(1).to_z85().as_str()), "{debug}");
}

#[test]
fn traffic_is_sealed_both_ways_in_message_frames_of_libzmqs_form() {
    let now = Instant::now();
    let (mut a, mut b) = pair();
    let mut queue = SendQueue::new();
    let big = vec![7u8; 200_000];
    queue.push(&[b"", b"x", &big]);
    queue.push(&[b"second"]);
    let mut wire = output(&mut a, &mut queue);
    assert_eq!(queue.message_count(), 0);
    assert_eq!(wire[..10], *b"\x00\x21\x07MESSAGE");
    assert_eq!(wire[35 + 36..][..2], [2, 0], "a long message frame");
    let seen = feed(&mut b, &wire, &[1000], now);
    assert_eq!(seen.error, None);
    assert_eq!(
        seen.messages,
        [vec![vec![], b"x".to_vec(), big], vec![b"second".to_vec()]]
    );
    // The same bytes again: their nonces have been used.
    wire.truncate(35);
    let again = feed(&mut b, &wire, &[35], now);
    assert!(again.error.unwrap().to_string().contains("nonce"));
    assert!(again.messages.is_empty());
}

#[test]
fn outer_command_flags_are_accepted_and_heartbeats_run_inside() {
    let now = Instant::now();
    let (mut a, mut b) = pair();
    let mut queue = SendQueue::new();
    queue.push(&[b"hello"]);
    let mut wire = output(&mut a, &mut queue);
    // RFC 25 requires the COMMAND bit, which libzmq does not set.
    wire[0] |= 4;
    assert_eq!(feed(&mut b, &wire, &[9], now).messages.len(), 1);

    let mut config = (*client(1, 2)).clone();
    config.heartbeat = Some(Heartbeat {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
        ttl: Duration::from_secs(5),
    });
    let mut a = Connection::new(Arc::new(config), now);
    let mut b = Connection::new(server(2, Clients::Any), now);
    talk(&mut a, &mut b);
    let later = now + Duration::from_secs(1);
    a.handle_timeout(later + Duration::from_secs(1), false)
        .unwrap();
    let ping = output(&mut a, &mut SendQueue::new());
    assert_eq!(ping.len(), 2 + 33 + 7);
    assert_eq!(feed(&mut b, &ping, &[1], later), Seen::default());
    assert_eq!(b.poll_timeout(), Some(later + Duration::from_secs(5)));
    let pong = output(&mut b, &mut SendQueue::new());
    assert_eq!(pong.len(), 2 + 33 + 5);
    assert_eq!(feed(&mut a, &pong, &[1], later), Seen::default());
}

#[test]
fn an_unauthorized_client_gets_the_reason_and_delivers_nothing() {
    let now = Instant::now();
    type Case = (
        &'static str,
        Arc<Config>,
        Arc<Config>,
        &'static str,
        &'static str,
    );
    let cases: Vec<Case> = vec![
        (
            "key not listed",
            client(1, 2),
            server(2, listed(&[(3, "other")])),
            "not authorized (400)",
            "is not authorized",
        ),
        (
            "no key listed",
            client(1, 2),
            server(2, listed(&[])),
            "not authorized (400)",
            "is not authorized",
        ),
        (
            "another server key",
            client(1, 5),
            server(2, Clients::Any),
            "",
            "HELLO does not open",
        ),
        (
            "two servers",
            server(1, Clients::Any),
            server(2, Clients::Any),
            "",
            "",
        ),
        (
            "two clients",
            client(1, 2),
            client(2, 1),
            "WELCOME expected",
            "WELCOME expected",
        ),
    ];
    for (name, client, server, client_error, server_error) in cases {
        let mut a = Connection::new(client, now);
        let mut b = Connection::new(server, now);
        let [(client_seen, _), (server_seen, _)] = talk(&mut a, &mut b);
        for (seen, want) in [(client_seen, client_error), (server_seen, server_error)] {
            let got = seen.error.map_or(String::new(), |error| error.to_string());
            assert!(
                got.contains(want) && got.is_empty() == want.is_empty(),
                "{name}: {got}"
            );
            assert!(seen.peer.is_none() && seen.messages.is_empty(), "{name}");
        }
    }
}

/// A client and a server, and the bytes that a correct client sends next. Stage 1: HELLO (after the
/// greetings); stage 2: INITIATE.
fn honest(stage: usize) -> (Connection, Connection, Vec<u8>) {
    let now = Instant::now();
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(server(2, Clients::Any), now);
    for _ in 0..stage {
        let up = output(&mut a, &mut SendQueue::new());
        feed(&mut b, &up, &[usize::MAX], now);
        let down = output(&mut b, &mut SendQueue::new());
        feed(&mut a, &down, &[usize::MAX], now);
    }
    let next = output(&mut a, &mut SendQueue::new());
    (a, b, next)
}

#[test]
fn every_changed_byte_of_hello_and_initiate_is_found() {
    let now = Instant::now();
    for (stage, name) in [(1, "HELLO"), (2, "INITIATE")] {
        let (_, _, honest_bytes) = honest(stage);
        for at in 0..honest_bytes.len() {
            let (_, mut b, mut bytes) = honest(stage);
            bytes[at] ^= 0x10;
            let seen = feed(&mut b, &bytes, &[usize::MAX], now);
            // HELLO's padding is not checked. After a frame with a larger size, the server waits
            // for more bytes.
            let padding = name == "HELLO" && (10..82).contains(&at);
            let sizes = if name == "HELLO" { 1..2 } else { 1..9 };
            assert!(
                seen.error.is_some() || padding || sizes.contains(&at),
                "{name} byte {at}"
            );
            assert!(seen.peer.is_none(), "{name} byte {at}");
            assert!(seen.messages.is_empty());
        }
    }
}

#[test]
fn changed_bytes_of_welcome_ready_and_message_are_found() {
    let now = Instant::now();
    let (mut a, mut b, hello) = honest(1);
    feed(&mut b, &hello, &[usize::MAX], now);
    let welcome = output(&mut b, &mut SendQueue::new());
    let mut bad = welcome.clone();
    bad[60] ^= 1;
    let seen = feed(&mut a, &bad, &[usize::MAX], now);
    assert!(
        seen.error
            .unwrap()
            .to_string()
            .contains("WELCOME does not open")
    );

    let (mut a, mut b, initiate) = honest(2);
    feed(&mut b, &initiate, &[usize::MAX], now);
    let mut ready = output(&mut b, &mut SendQueue::new());
    ready[40] ^= 1;
    let seen = feed(&mut a, &ready, &[usize::MAX], now);
    assert!(
        seen.error
            .unwrap()
            .to_string()
            .contains("READY does not open")
    );

    for (at, want) in [
        (0, ""),
        (5, "MESSAGE"),
        (12, "open"),
        (20, "open"),
        (39, "open"),
    ] {
        let (mut a, mut b) = pair();
        let mut queue = SendQueue::new();
        queue.push(&[b"hello"]);
        let mut wire = output(&mut a, &mut queue);
        wire[at] ^= 0x01;
        let seen = feed(&mut b, &wire, &[usize::MAX], now);
        let error = seen.error.expect("an error").to_string();
        assert!(error.contains(want), "{at}: {error}");
        assert!(seen.messages.is_empty());
        assert!(output(&mut b, &mut SendQueue::new()).is_empty(), "no ERROR");
    }
}

#[test]
fn commands_of_a_bad_server_are_refused() {
    let now = Instant::now();
    let short = |name: &[u8], size: usize| {
        let mut body = name.to_vec();
        body.resize(size, 7);
        command(&body)
    };
    for (stage, bytes, want) in [
        (1, short(b"\x07WELCOME", 167), "WELCOME expected, of 168"),
        (1, short(b"\x07WELCOME", 169), "WELCOME expected, of 168"),
        (1, short(b"\x07welcome", 168), "WELCOME expected"),
        (1, short(b"\x05READY", 60), "WELCOME expected"),
        (2, short(b"\x05READY", 13), "READY cut short"),
        (2, short(b"\x05READY", 14), "READY does not open"),
        (2, short(b"\x05READY", 29), "READY does not open"),
        (2, short(b"\x05ready", 60), "READY expected"),
        (2, short(b"\x07WELCOME", 168), "READY expected"),
    ] {
        let (mut a, _, _) = honest(stage);
        let seen = feed(&mut a, &bytes, &[usize::MAX], now);
        let error = seen.error.expect(want).to_string();
        assert!(error.contains(want), "{error}");
        assert!(seen.peer.is_none());
        assert!(output(&mut a, &mut SendQueue::new()).is_empty());
    }
}

#[test]
fn a_client_sends_no_plaintext_to_a_server_that_has_sealed() {
    let now = Instant::now();
    let mut config = (*server(2, Clients::Any)).clone();
    // An invalid routing ID: a ROUTER may have generated it.
    config.routing_id = vec![0, 1, 2, 3, 4];
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(Arc::new(config), now);
    let [(client_seen, up), (server_seen, _)] = talk(&mut a, &mut b);
    assert!(matches!(client_seen.error, Some(Error::BadIdentity { .. })));
    assert_eq!(server_seen.error, None);
    assert!(!up.windows(5).any(|bytes| bytes == b"ERROR"));
}

#[test]
fn commands_have_their_own_limit_inside_boxes_too() {
    let now = Instant::now();
    let mut limited = (*server(2, Clients::Any)).clone();
    limited.limits.frame_size_max = 5;
    limited.limits.message_size_max = 5;
    let mut config = (*client(1, 2)).clone();
    config.heartbeat = Some(Heartbeat {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(9),
        ttl: Duration::ZERO,
    });
    let mut a = Connection::new(Arc::new(config), now);
    let mut b = Connection::new(Arc::new(limited), now);
    talk(&mut a, &mut b);
    a.handle_timeout(now + Duration::from_secs(1), false)
        .unwrap();
    let mut queue = SendQueue::new();
    queue.push(&[b"five!"]);
    let seen = feed(&mut b, &output(&mut a, &mut queue), &[1], now);
    assert_eq!(seen.error, None);
    assert_eq!(seen.messages, [vec![b"five!".to_vec()]]);
    queue.push(&[b"sixsix"]);
    let seen = feed(&mut b, &output(&mut a, &mut queue), &[1], now);
    assert!(matches!(seen.error, Some(Error::FrameTooLarge { .. })));
}

#[test]
fn a_cookies_key_stands_in_memory_once_and_goes_with_its_use() {
    let now = Instant::now();
    let copies = |needle: &Needle| needle.copies(std::process::id());
    for is_used in [true, false] {
        let (_, mut b, initiate) = honest(2);
        let needle = match &b.handshake {
            Handshake::CurveServer(server) => match &**server {
                curve::Server::Welcomed { cookie_key, .. } => Needle::new(&cookie_key[..]),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(copies(&needle), 1);
        match is_used {
            true => {
                feed(&mut b, &initiate, &[usize::MAX], now);
                assert!(b.is_open());
            }
            false => drop(b),
        }
        assert_eq!(copies(&needle), 0);
    }
}

#[test]
fn a_cookie_and_its_key_live_for_60_s() {
    let now = Instant::now();
    let mut patient = (*server(2, Clients::Any)).clone();
    patient.handshake_timeout = Duration::from_secs(3600);
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(Arc::new(patient), now);
    assert_eq!(b.poll_timeout(), Some(now + Duration::from_secs(3600)));
    let welcomed = now + Duration::from_secs(9);
    for _ in 0..2 {
        let up = output(&mut a, &mut SendQueue::new());
        feed(&mut b, &up, &[usize::MAX], welcomed);
        let down = output(&mut b, &mut SendQueue::new());
        feed(&mut a, &down, &[usize::MAX], welcomed);
    }
    // INITIATE does not arrive.
    let end = welcomed + Duration::from_secs(60);
    assert_eq!(b.poll_timeout(), Some(end));
    assert_eq!(b.handle_timeout(end, false), Err(Error::HandshakeTimeout));
}

#[test]
fn a_recorded_conversation_is_refused_on_a_fresh_connection() {
    let now = Instant::now();
    let mut a = Connection::new(client(1, 2), now);
    let mut b = Connection::new(server(2, Clients::Any), now);
    let [(_, up), _] = talk(&mut a, &mut b);
    let mut fresh = Connection::new(server(2, Clients::Any), now);
    let seen = feed(&mut fresh, &up, &[usize::MAX], now);
    assert!(seen.error.unwrap().to_string().contains("cookie"));
    assert!(seen.peer.is_none() && seen.messages.is_empty());
}

#[test]
fn libzmqs_recorded_hello_opens_and_its_initiate_is_refused() {
    let now = Instant::now();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(index_path()).unwrap()).unwrap();
    let session = index["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|session| session["name"] == "curve")
        .unwrap();
    let secret: SecretKey = session["server_secret_z85"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let keys = CurveServer {
        secret,
        clients: Clients::Any,
    };
    let config = with(SocketType::Router, Security::CurveServer(keys));
    let bytes = capture("curve.client");
    for step in [1, 7, usize::MAX] {
        let mut connection = Connection::new(config.clone(), now);
        let seen = feed(&mut connection, &bytes[..64 + 202], &[step], now);
        assert_eq!(seen, Seen::default());
        let sent = output(&mut connection, &mut SendQueue::new());
        assert_eq!(sent[64..74], *b"\x04\xA8\x07WELCOME");
        let seen = feed(&mut connection, &bytes[64 + 202..], &[step], now);
        assert!(seen.error.unwrap().to_string().contains("cookie"));
    }
}

fn index_path() -> String {
    format!("{}/tests/data/zmtp/index.json", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_cookie_is_old_after_a_minute() {
    let now = Instant::now();
    let (_, mut b, initiate) = honest(2);
    let late = now + Duration::from_secs(61);
    let seen = feed(&mut b, &initiate, &[usize::MAX], late);
    assert!(seen.error.unwrap().to_string().contains("60 s"));
}

#[test]
fn null_and_other_low_order_keys_are_refused() {
    let now = Instant::now();
    let (_, mut b, mut hello) = honest(1);
    hello[2 + 80..][..32].fill(0);
    let seen = feed(&mut b, &hello, &[usize::MAX], now);
    assert!(seen.error.unwrap().to_string().contains("low order"));
    let mut one = [0u8; 32];
    one[0] = 1;
    assert!(curve::PublicKey::from_bytes(one).is_low_order());
    assert!(!key(1).public().is_low_order());
    let zeros = "0".repeat(40);
    assert!(zeros.parse::<curve::PublicKey>().is_err());
}

#[test]
fn lengths_names_and_versions_are_checked() {
    let now = Instant::now();
    let greeting = Greeting::encode("CURVE");
    let (_, _, hello) = honest(1);
    let hello = &hello[2..];
    let version = [&hello[..6], &[2, 0], &hello[8..]].concat();
    let name = [b"\x05HELLX", &hello[6..]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HELLO of 199", command(&hello[..199])),
        ("HELLO of 201", command(&[hello, b"x"].concat())),
        ("HELLO of version 2", command(&version)),
        ("HELLX", command(&name)),
        ("READY for HELLO", command(b"\x05READY")),
        ("nothing", command(b"")),
        ("a message", vec![0, 5, 1, 2, 3, 4, 5]),
        (
            "MESSAGE before the handshake",
            vec![0, 8, 7, b'M', b'E', b'S', b'S', b'A', b'G', b'E'],
        ),
    ];
    for (what, bytes) in cases {
        let mut b = Connection::new(server(2, Clients::Any), now);
        let all = [&greeting[..], &bytes].concat();
        let seen = feed(&mut b, &all, &[11], now);
        assert!(seen.error.is_some(), "{what}");
        assert!(seen.peer.is_none() && seen.messages.is_empty(), "{what}");
    }
    for size in [0, 8, 256, 9] {
        let (_, mut b, initiate) = honest(2);
        let bytes = command(&initiate[9..9 + size]);
        let seen = feed(&mut b, &bytes, &[usize::MAX], now);
        assert!(seen.error.is_some(), "INITIATE of {size}");
    }
    // A frame with a declared size above the limit is refused when its head is read, also on an
    // encrypted connection.
    let (_, mut b) = pair();
    let huge = [&[2u8][..], &(i64::MAX as u64).to_be_bytes()].concat();
    assert!(matches!(
        feed(&mut b, &huge, &[1], now).error,
        Some(Error::FrameTooLarge { .. })
    ));
    let (_, mut b) = pair();
    let short = [&[0u8, 32][..], b"\x07MESSAGE", &[0; 24]].concat();
    assert!(feed(&mut b, &short, &[1], now).error.is_some());
}

#[test]
fn a_connection_that_fails_with_a_pong_unsealed_has_nothing_to_write() {
    let now = Instant::now();
    let (mut a, mut b) = pair();
    let mut wire = sealed_ping(&mut a);
    wire.extend(command(b"\x07MESSAGE with nothing in it that opens......"));
    let seen = feed(&mut b, &wire, &[usize::MAX], now);
    assert!(seen.error.is_some());
    assert!(!b.wants_write(&SendQueue::new()));
    assert!(output(&mut b, &mut SendQueue::new()).is_empty());
}

/// A sealed PING, as a connection with heartbeats sends it.
fn sealed_ping(connection: &mut Connection) -> Vec<u8> {
    connection.control.extend(command(b"\x04PING\0\0context"));
    output(connection, &mut SendQueue::new())
}

/// The peer sends PINGs and never reads, so the connection stays blocked while it is polled
/// repeatedly.
#[test]
fn pongs_that_cannot_leave_do_not_gather() {
    let now = Instant::now();
    let (mut a, mut b) = pair();
    let queue = SendQueue::new();
    for _ in 0..10_000 {
        let wire = sealed_ping(&mut a);
        assert_eq!(feed(&mut b, &wire, &[usize::MAX], now).error, None);
        b.seal(&queue, usize::MAX).unwrap();
    }
    let mut slices = crate::zmtp::Slices::new();
    b.gather(&queue, &mut slices);
    let waiting: usize = slices.iter().map(|slice| slice.len()).sum();
    let room = crate::limits::SEALED_BYTES_MAX + 4 * CONTROL_PENDING_MAX;
    assert!(waiting <= room, "{waiting} bytes");
}

#[test]
fn a_lost_connection_seals_the_unfinished_message_again_for_the_next() {
    let now = Instant::now();
    let (mut a, _) = pair();
    let mut queue = SendQueue::new();
    for name in [&b"first"[..], b"second", b"third"] {
        queue.push(&[name]);
    }
    a.seal(&queue, usize::MAX).unwrap();
    // The first message and half of the second have been written.
    a.handle_written(&mut queue, 2 + 33 + 5 + 20, now);
    assert_eq!(queue.message_count(), 2);
    queue.rewind(true);
    let (mut a, mut b) = pair();
    let wire = output(&mut a, &mut queue);
    let seen = feed(&mut b, &wire, &[usize::MAX], now);
    assert_eq!(
        seen.messages,
        [vec![b"second".to_vec()], vec![b"third".to_vec()]]
    );
}

#[test]
fn keys_and_key_lists_parse_or_name_the_error() {
    // A test key from RFC 26, which libzmq's own tests also use.
    let text = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
    let key: curve::PublicKey = text.parse().unwrap();
    assert_eq!(key.to_string(), text);
    let secret = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
    let secret: SecretKey = secret.parse().unwrap();
    assert_eq!(secret.public(), key);
    for (text, want) in [
        ("", "40 characters"),
        (&text[..39], "40 characters"),
        ("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hI\"", "character 40"),
        ("#####w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "not the Z85"),
        ("Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaL####1", "not the Z85"),
        (&"0".repeat(40), "order is low"),
    ] {
        let error = text.parse::<curve::PublicKey>().unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
    let list = format!(
        "# a comment\n\n  {text}  node 1 \n{}\r\n",
        curve::SecretKey::from_bytes([7; 32]).public()
    );
    let keys = AuthorizedKeys::parse(&list).unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys.name(&key), Some("node 1"));
    assert!(keys.shared_names().is_empty());
    let names = [(1, "b"), (2, "a"), (3, "b"), (4, "c"), (5, "b"), (6, "a")];
    let keys: AuthorizedKeys = names
        .iter()
        .map(|(byte, name)| {
            let secret = curve::SecretKey::from_bytes([*byte; 32]);
            (secret.public(), (*name).to_owned())
        })
        .collect();
    assert_eq!(keys.shared_names(), ["a", "b"]);
    for (line, name, slots, plugins) in [
        ("node 1", "node 1", None, None),
        ("node 1 slots=4", "node 1", Some(4), None),
        ("n plugins=a,b slots=0", "n", Some(0), Some(vec!["a", "b"])),
        (
            "slots=2  plugins=*",
            &*key.to_string(),
            Some(2),
            Some(vec!["*"]),
        ),
        // Only `slots` and `plugins` at the end of the line are limits.
        ("cn=n", "cn=n", None, None),
        ("team=blue", "team=blue", None, None),
    ] {
        let keys = AuthorizedKeys::parse(&format!("{text} {line}")).unwrap();
        assert_eq!(keys.name(&key), Some(name), "{line}");
        let limits = keys.limited().next().map(|(_, limits)| limits.clone());
        let limits = limits.unwrap_or_default();
        let plugins = plugins.map(|names| names.into_iter().map(str::to_owned).collect());
        assert_eq!((limits.slots, limits.plugins), (slots, plugins), "{line}");
    }
    for (list, want) in [
        (format!("{text} slots=2 n"), "slots=2 is no limit"),
        (format!("{text} n plugins=a, b"), "plugins=a, is no limit"),
        (format!("{text} n plugins = a"), "= is no limit"),
        (format!("{text} n Plugins=a"), "Plugins=a is no limit"),
        (format!("{text} n plugin=a slots=1"), "plugin=a is no limit"),
        (format!("{text} n slots=1 # laptop"), "slots=1 is no limit"),
        (format!("{text} n slots=many"), "line 1: slots= needs"),
        (format!("{text} n slots=-1"), "line 1: slots= needs"),
        (format!("{text} n plugins=a,,b"), "line 1: plugins= needs"),
        (format!("{text} slots=1 slots=2"), "stands there twice"),
        (
            format!("{text} a\n{text} b"),
            "line 2: the key stands there twice",
        ),
        ("#comment without a space".to_owned(), "line 1: a key is 40"),
        (format!("{text}\nnonsense"), "line 2: a key is 40"),
    ] {
        let error = AuthorizedKeys::parse(&list).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn sealed_messages_survive_any_split_and_any_write_size(
        messages in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..5), 0..20),
        steps in prop::collection::vec(1usize..2000, 1..10),
        writes in prop::collection::vec(1usize..2000, 1..10),
    ) {
        let now = Instant::now();
        let (mut a, mut b) = pair();
        let mut queue = SendQueue::new();
        for message in &messages {
            let parts: Vec<&[u8]> = message.iter().map(Vec::as_slice).collect();
            queue.push(&parts);
        }
        let mut wire = Vec::new();
        let mut writes = writes.iter().cycle();
        while a.wants_write(&queue) {
            a.seal(&queue, usize::MAX).unwrap();
            let mut slices = crate::zmtp::Slices::new();
            a.gather(&queue, &mut slices);
            let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
            let count = bytes.len().min(*writes.next().unwrap());
            a.handle_written(&mut queue, count, now);
            wire.extend_from_slice(&bytes[..count]);
        }
        let seen = feed(&mut b, &wire, &steps, now);
        prop_assert_eq!(seen.error, None);
        prop_assert_eq!(seen.messages, messages);
        prop_assert_eq!(queue.message_count(), 0);
        prop_assert_eq!(queue.bytes(), 0);
    }
}
