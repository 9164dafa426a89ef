use super::*;
use crate::zmtp::command::{encode_property, encode_ready};
use crate::zmtp::encode_head;
use crate::zmtp::{Heartbeat, Limits, SendQueue, SocketType};
use proptest::prelude::*;

pub(super) fn config(socket_type: SocketType, routing_id: &[u8]) -> Arc<Config> {
    Arc::new(Config {
        socket_type,
        routing_id: routing_id.to_vec(),
        limits: Limits::default(),
        handshake_timeout: Duration::from_secs(30),
        heartbeat: None,
        read_ahead: crate::limits::RECEIVE_BUFFER_SIZE_MAX,
        rcvhwm: 0,
        security: Security::Null,
        metadata: Vec::new(),
    })
}

/// Appends a READY command frame of a peer.
fn ready(out: &mut Vec<u8>, socket_type: &str, routing_id: &[u8]) {
    let mut metadata = Vec::new();
    encode_property(&mut metadata, "Socket-Type", socket_type.as_bytes());
    encode_property(&mut metadata, "Identity", routing_id);
    encode_ready(out, &metadata);
}

/// What a connection reported while it parsed the bytes of [`feed`].
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) peer: Option<PeerInfo>,
    pub(super) messages: Vec<Vec<Vec<u8>>>,
    pub(super) error: Option<Error>,
}

/// Feeds bytes in pieces of the given sizes (repeated cyclically), and collects what the connection
/// reports.
pub(super) fn feed(
    connection: &mut Connection,
    bytes: &[u8],
    steps: &[usize],
    now: Instant,
) -> Seen {
    let mut seen = Seen::default();
    let mut rest = bytes;
    let mut steps = steps.iter().cycle();
    while !rest.is_empty() {
        let space = connection.receive_space(crate::zmtp::Growth::ReadAhead);
        let step = (*steps.next().unwrap())
            .clamp(1, rest.len())
            .min(space.len());
        space[..step].copy_from_slice(&rest[..step]);
        connection.handle_received(step, now);
        rest = &rest[step..];
        loop {
            match connection.poll(now) {
                Ok(Progress::NeedInput) => break,
                Ok(Progress::Established) => seen.peer = Some(connection.peer().clone()),
                Ok(Progress::Message) => seen.messages.push(connection.message().to_vecs()),
                Err(error) => {
                    seen.error = Some(error);
                    return seen;
                }
            }
        }
    }
    seen
}

pub(super) fn output(connection: &mut Connection, queue: &mut SendQueue) -> Vec<u8> {
    let mut out = Vec::new();
    while connection.wants_write(queue) {
        connection.seal(queue, usize::MAX).unwrap();
        let mut slices = crate::zmtp::Slices::new();
        connection.gather(queue, &mut slices);
        let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
        connection.handle_written(queue, bytes.len(), Instant::now());
        out.extend(bytes);
    }
    out
}

pub(super) fn capture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/zmtp/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).expect("tests/data/zmtp is part of the repository")
}

#[test]
fn captured_libzmq_conversations_parse_at_every_split() {
    let now = Instant::now();
    let cases: [(&str, SocketType, &[u8], usize); 8] = [
        ("null_identity.client", SocketType::Router, b"w-1", 1),
        ("null_identity.server", SocketType::Dealer, b"", 1),
        ("null_no_identity.client", SocketType::Router, b"", 1),
        ("null_no_identity.server", SocketType::Dealer, b"", 1),
        ("null_sizes.client", SocketType::Router, b"", 1),
        ("null_sizes.server", SocketType::Dealer, b"", 1),
        ("null_heartbeat.client", SocketType::Router, b"", 1),
        ("null_heartbeat.server", SocketType::Dealer, b"", 1),
    ];
    for (name, ours, routing_id, messages) in cases {
        let bytes = capture(name);
        let whole = feed(
            &mut Connection::new(config(ours, b""), now),
            &bytes,
            &[usize::MAX],
            now,
        );
        assert_eq!(whole.error, None, "{name}");
        let peer = whole.peer.as_ref().expect(name);
        assert!(ours.is_compatible(peer.socket_type.as_bytes()), "{name}");
        if !routing_id.is_empty() {
            assert_eq!(peer.routing_id, routing_id, "{name}");
        }
        assert!(
            whole.messages.len() >= messages || name.contains("heartbeat"),
            "{name}: {whole:?}"
        );
        for steps in every_split(bytes.len()) {
            let mut connection = Connection::new(config(ours, b""), now);
            assert_eq!(
                feed(&mut connection, &bytes, &steps, now),
                whole,
                "{name} by {steps:?}"
            );
        }
    }
}

#[test]
fn the_table_of_frames_counts_as_memory_and_goes_with_its_message() {
    let now = Instant::now();
    let mut connection = Connection::new(config(SocketType::Router, b""), now);
    let mut bytes = Greeting::encode("NULL").to_vec();
    ready(&mut bytes, "DEALER", b"x");
    feed(&mut connection, &bytes, &[usize::MAX], now);
    let before = connection.receive_capacity();
    let frames = [1, 0].repeat(4000);
    feed(&mut connection, &frames, &[usize::MAX], now);
    assert!(connection.receive_capacity() >= before + 4000 * size_of::<Span>());
    let seen = feed(&mut connection, b"\0\0", &[2], now);
    assert_eq!(seen.messages[0].len(), 4001);
    connection.release_idle();
    assert!(connection.receive_capacity() <= SPANS_KEPT_MAX * size_of::<Span>());
}

/// Ways to split `size` bytes: single bytes, and two pieces split at every position (at several
/// hundred positions for long input).
pub(super) fn every_split(size: usize) -> impl Iterator<Item = Vec<usize>> {
    let apart = size / 500 + 1;
    let two = (1..size).step_by(apart).map(move |at| vec![at, size]);
    [vec![1]].into_iter().chain(two)
}

/// Commands of every kind between messages and between frames, in some cases with an invalid frame
/// at the end.
#[test]
fn commands_between_frames_are_seen_alike_at_every_split() {
    let now = Instant::now();
    let mut good = Vec::new();
    let ping = b"\x04\x0a\x04PING\0\0abc".as_slice();
    let unknown = b"\x04\x09\x07UNKNOWNx".as_slice();
    let pong = b"\x06\0\0\0\0\0\0\0\x05\x04PONG".as_slice();
    for command in [ping, unknown, pong, b""] {
        good.extend(command);
        good.extend(b"\x01\x01a");
        good.extend(command);
        good.extend(b"\x03\0\0\0\0\0\0\0\x02bc");
        good.extend([command, command].concat());
        good.extend(b"\x00\x00");
    }
    let bad: [&[u8]; 5] = [
        b"",
        b"\x04\0",
        b"\x05\x05\x04PONG",
        b"\x09\0",
        b"\x04\x05\x04PING",
    ];
    for end in bad {
        let bytes = [&good, end].concat();
        let new = || established(SocketType::Router, Limits::default(), now);
        let mut whole = new();
        let want = feed(&mut whole, &bytes, &[usize::MAX], now);
        assert_eq!(want.messages.len(), 4);
        assert_eq!(want.messages[0], [&b"a"[..], b"bc", b""]);
        assert_eq!(want.error.is_some(), !end.is_empty());
        let answers = output(&mut whole, &mut SendQueue::new());
        for steps in every_split(bytes.len()) {
            let mut connection = new();
            assert_eq!(
                feed(&mut connection, &bytes, &steps, now),
                want,
                "{steps:?}"
            );
            assert_eq!(output(&mut connection, &mut SendQueue::new()), answers);
        }
    }
}

/// Other minor versions (3.0 and later), later major versions and the as-server bit change nothing.
#[test]
fn later_and_earlier_greetings_shake_hands_all_the_same() {
    let now = Instant::now();
    for (at, byte) in [
        (11, 0),
        (11, 9),
        (10, 4),
        (10, 255),
        (32, 1),
        (5, 0xAB),
        (40, 1),
    ] {
        let mut bytes = Greeting::encode("NULL").to_vec();
        bytes[at] = byte;
        ready(&mut bytes, "DEALER", b"x");
        let mut connection = Connection::new(config(SocketType::Router, b""), now);
        bytes.extend(b"\0\x01m");
        let seen = feed(&mut connection, &bytes, &[7], now);
        assert_eq!(seen.error, None, "byte {at} is {byte}");
        assert_eq!(seen.messages, [[b"m"]]);
    }
}

#[test]
fn our_bytes_are_those_of_libzmq() {
    let now = Instant::now();
    let theirs = capture("null_identity.client");
    let mut connection = Connection::new(config(SocketType::Dealer, b"w-1"), now);
    let mut queue = SendQueue::new();
    let ours = output(&mut connection, &mut queue);
    // libzmq sets byte 8 of the padding to the length of the routing ID + 1.
    assert_eq!(ours[9..12], theirs[9..12]);
    assert_eq!(ours[12..ours.len()], theirs[12..ours.len()]);
}

#[test]
fn two_connections_shake_hands_and_exchange_messages() {
    let now = Instant::now();
    let mut client = Connection::new(config(SocketType::Dealer, b"id"), now);
    let mut server = Connection::new(config(SocketType::Router, b""), now);
    let (mut to_server, mut to_client) = (SendQueue::new(), SendQueue::new());
    to_server.push(&[b"queued before the handshake"]);
    let first = output(&mut client, &mut to_server);
    let seen = feed(&mut server, &first, &[usize::MAX], now);
    assert_eq!(seen.peer.unwrap().routing_id, b"id");
    assert!(
        seen.messages.is_empty(),
        "nothing leaves before the handshake"
    );
    let back = output(&mut server, &mut to_client);
    feed(&mut client, &back, &[usize::MAX], now);
    to_server.push(&[b"", &[5u8; 300]]);
    let rest = output(&mut client, &mut to_server);
    let seen = feed(&mut server, &rest, &[usize::MAX], now);
    assert_eq!(
        seen.messages,
        vec![
            vec![b"queued before the handshake".to_vec()],
            vec![vec![], vec![5u8; 300]]
        ]
    );
}

fn established(ours: SocketType, limits: Limits, now: Instant) -> Connection {
    let mut config = (*config(ours, b"")).clone();
    config.limits = limits;
    let mut connection = Connection::new(Arc::new(config), now);
    let mut hello = Greeting::encode("NULL").to_vec();
    ready(&mut hello, "DEALER", b"");
    assert!(
        feed(&mut connection, &hello, &[usize::MAX], now)
            .peer
            .is_some()
    );
    connection
}

#[test]
fn bad_input_closes_the_connection_with_its_reason() {
    let now = Instant::now();
    let limits = Limits {
        frame_size_max: 1000,
        message_size_max: 1500,
        frames_max: 3,
    };
    let frame = |flags: u8, body: &[u8]| {
        let mut out = vec![flags, body.len() as u8];
        out.extend_from_slice(body);
        out
    };
    let long = |size: u64| [&[2u8][..], &size.to_be_bytes()].concat();
    let many_empty = [frame(1, b""), frame(1, b""), frame(1, b""), frame(0, b"")].concat();
    let big = {
        let mut out = Vec::new();
        for _ in 0..2 {
            encode_head(&mut out, 900, true, false);
            out.extend([0; 900]);
        }
        out
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("reserved flags", vec![8, 0], "reserved"),
        ("command with MORE", vec![5, 0], "MORE"),
        ("declared 2^63-1", long(i64::MAX as u64), "limit is 1000"),
        ("declared u64::MAX", long(u64::MAX), "bytes"),
        ("frame over the limit", long(1001), "limit is 1000"),
        ("message over the limit", big, "limit is 1500"),
        ("too many frames", many_empty, "more than 3 frames"),
        ("short PING", frame(4, b"\x04PING\x00"), "PING"),
        ("second READY", frame(4, b"\x05READY"), "READY sent twice"),
        ("ERROR", frame(4, b"\x05ERROR\x02no"), "refused"),
    ];
    for (name, bytes, want) in cases {
        let mut connection = established(SocketType::Router, limits, now);
        let seen = feed(&mut connection, &bytes, &[1], now);
        let error = seen.error.unwrap_or_else(|| panic!("{name}: no error"));
        assert!(error.to_string().contains(want), "{name}: {error}");
        assert!(seen.messages.is_empty(), "{name}");
        assert!(!connection.is_open());
    }
}

/// Commands between the frames of a message stay in the buffer, so their size is limited.
#[test]
fn commands_within_a_message_are_bounded() {
    let now = Instant::now();
    let limit = crate::limits::ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX;
    let mut connection = established(SocketType::Router, Limits::default(), now);
    let pong = [&[4u8, 5][..], b"\x04PONG"].concat();
    let mut bytes = b"\x01\x01a".to_vec();
    bytes.extend(pong.repeat(limit / pong.len()));
    bytes.extend(b"\x00\x01b");
    let seen = feed(&mut connection, &bytes, &[usize::MAX], now);
    assert_eq!(seen.messages, [[b"a", b"b"]]);
    // The limit counts anew for the next message. Commands between messages are not limited.
    bytes.splice(..0, pong.repeat(limit / pong.len() + 1));
    let seen = feed(&mut connection, &bytes, &[usize::MAX], now);
    assert_eq!(seen.messages, [[b"a", b"b"]]);
    let mut bytes = b"\x01\x01a".to_vec();
    bytes.extend(pong.repeat(limit / pong.len() + 1));
    let seen = feed(&mut connection, &bytes, &[usize::MAX], now);
    assert_eq!(seen.error, Some(Error::TooManyCommands { limit }));
    assert!(seen.messages.is_empty());
    assert!(connection.receive_capacity() <= 4 * limit);
}

#[test]
fn handshake_violations_are_refused() {
    let now = Instant::now();
    let ready = |socket_type: &str, routing_id: &[u8]| {
        let mut out = Vec::new();
        self::ready(&mut out, socket_type, routing_id);
        out
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("message first", vec![0, 1, 7], "before the handshake"),
        (
            "PING first",
            vec![4, 7, 4, b'P', b'I', b'N', b'G', 0, 0],
            "before the handshake",
        ),
        ("PUB", ready("PUB", b""), "does not talk"),
        (
            "identity as generated ones",
            ready("DEALER", b"\0abcd"),
            "routing ID",
        ),
        ("identity of 256", ready("DEALER", &[1; 256]), "routing ID"),
        (
            "no socket type",
            vec![4, 6, 5, b'R', b'E', b'A', b'D', b'Y'],
            "does not talk",
        ),
    ];
    for (name, bytes, want) in cases {
        let mut connection = Connection::new(config(SocketType::Router, b""), now);
        let all = [&Greeting::encode("NULL")[..], &bytes].concat();
        let error = feed(&mut connection, &all, &[3], now).error.expect(name);
        assert!(error.to_string().contains(want), "{name}: {error}");
        assert!(connection.message().is_empty());
    }
}

#[test]
fn heartbeats_are_sent_answered_and_missed() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut config = (*config(SocketType::Router, b"")).clone();
    config.heartbeat = Some(Heartbeat {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(250),
        ttl: Duration::from_secs(100_000),
    });
    let mut connection = Connection::new(Arc::new(config), start);
    let mut queue = SendQueue::new();
    let mut hello = Greeting::encode("NULL").to_vec();
    ready(&mut hello, "DEALER", b"");
    feed(&mut connection, &hello, &[usize::MAX], start);
    output(&mut connection, &mut queue);
    assert_eq!(connection.poll_timeout(), Some(at(100)));
    connection.handle_timeout(at(100), false).unwrap();
    // A TTL above 6553.5 s is limited to it and does not wrap.
    assert_eq!(
        output(&mut connection, &mut queue),
        b"\x04\x07\x04PING\xFF\xFF"
    );
    // Any byte counts as a sign of life, even half a frame head.
    feed(&mut connection, &[0], &[1], at(300));
    connection.handle_timeout(at(349), false).unwrap();
    connection.handle_timeout(at(598), false).unwrap();
    assert_eq!(
        connection.handle_timeout(at(600), false),
        Err(Error::HeartbeatTimeout)
    );
    assert_eq!(connection.poll_timeout(), None);
}

#[test]
fn a_pong_goes_between_messages_never_into_one() {
    let now = Instant::now();
    let mut connection = established(SocketType::Router, Limits::default(), now);
    let mut queue = SendQueue::new();
    output(&mut connection, &mut queue);
    queue.push(&[&[1u8; 500], &[2u8; 10]]);
    queue.push(&[&[3u8; 5]]);
    connection.handle_written(&mut queue, 100, now);
    feed(&mut connection, b"\x04\x0A\x04PING\x00\x00ctx", &[4], now);
    let mut want = vec![1u8; 509 - 100];
    want.extend([0, 10]);
    want.extend([2u8; 10]);
    want.extend(b"\x04\x08\x04PONGctx");
    want.extend([0, 5, 3, 3, 3, 3, 3]);
    assert_eq!(output(&mut connection, &mut queue), want);
}

#[test]
fn a_peers_ttl_is_honoured() {
    let now = Instant::now();
    let mut connection = established(SocketType::Router, Limits::default(), now);
    feed(&mut connection, b"\x04\x07\x04PING\x00\x05", &[9], now);
    assert_eq!(
        connection.poll_timeout(),
        Some(now + Duration::from_millis(500))
    );
    let late = now + Duration::from_millis(500);
    assert_eq!(
        connection.handle_timeout(late, false),
        Err(Error::HeartbeatTimeout)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn messages_survive_any_split_and_any_write_size(
        messages in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..5), 0..20),
        steps in prop::collection::vec(1usize..2000, 1..10),
        writes in prop::collection::vec(1usize..2000, 1..10),
    ) {
        let now = Instant::now();
        let mut client = Connection::new(config(SocketType::Dealer, b"x"), now);
        let mut server = Connection::new(config(SocketType::Router, b""), now);
        let mut queue = SendQueue::new();
        feed(&mut client, &output(&mut server, &mut SendQueue::new()), &[usize::MAX], now);
        for message in &messages {
            let parts: Vec<&[u8]> = message.iter().map(Vec::as_slice).collect();
            queue.push(&parts);
        }
        let mut wire = Vec::new();
        let mut writes = writes.iter().cycle();
        while client.wants_write(&queue) {
            let mut slices = crate::zmtp::Slices::new();
            client.gather(&queue, &mut slices);
            let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
            let count = bytes.len().min(*writes.next().unwrap());
            client.handle_written(&mut queue, count, now);
            wire.extend_from_slice(&bytes[..count]);
        }
        let seen = feed(&mut server, &wire, &steps, now);
        prop_assert_eq!(seen.error, None);
        prop_assert_eq!(seen.messages, messages);
        prop_assert_eq!(queue.message_count(), 0);
    }

    #[test]
    fn no_more_messages_are_read_ahead_than_the_mark_allows(
        messages in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..4), 1..30),
        rcvhwm in 1usize..5,
        read_ahead in 1usize..2000,
    ) {
        let now = Instant::now();
        let mut wire = Greeting::encode("NULL").to_vec();
        ready(&mut wire, "DEALER", b"x");
        for message in &messages {
            for (index, part) in message.iter().enumerate() {
                encode_head(&mut wire, part.len(), index + 1 < message.len(), false);
                wire.extend_from_slice(part);
            }
        }
        let mut config = (*config(SocketType::Router, b"")).clone();
        (config.rcvhwm, config.read_ahead) = (rcvhwm, read_ahead);
        let mut connection = Connection::new(Arc::new(config), now);
        let mut got = Vec::new();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            // The peer sends as fast as it can, so every read fills the space.
            let space = connection.receive_space(crate::zmtp::Growth::ReadAhead);
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            connection.handle_received(count, now);
            rest = &rest[count..];
            let mut whole = 0;
            loop {
                match connection.poll(now).unwrap() {
                    Progress::NeedInput => break,
                    Progress::Established => {}
                    Progress::Message => {
                        whole += 1;
                        got.push(connection.message().to_vecs());
                    }
                }
            }
            prop_assert!(whole <= rcvhwm, "{} of {}", whole, rcvhwm);
        }
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn garbage_never_panics_and_delivers_nothing_before_the_handshake(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        greet in any::<bool>(),
        step in 1usize..50,
    ) {
        let now = Instant::now();
        let mut connection = Connection::new(config(SocketType::Router, b""), now);
        let mut all = if greet { Greeting::encode("NULL").to_vec() } else { Vec::new() };
        all.extend(bytes);
        let seen = feed(&mut connection, &all, &[step], now);
        prop_assert!(seen.peer.is_some() || seen.messages.is_empty());
    }
}

mod security;

#[test]
fn error_never_cuts_into_a_message() {
    let now = Instant::now();
    let mut connection = Connection::new(config(SocketType::Router, b""), now);
    let mut bytes = Greeting::encode("NULL").to_vec();
    ready(&mut bytes, "DEALER", b"d");
    assert!(
        feed(&mut connection, &bytes, &[usize::MAX], now)
            .peer
            .is_some()
    );
    let mut queue = SendQueue::new();
    output(&mut connection, &mut queue);
    queue.push(&[b"a message that is cut"]);
    connection.handle_written(&mut queue, 5, now);
    connection.refuse("whatever");
    assert!(!connection.wants_write(&queue));
    assert!(output(&mut connection, &mut queue).is_empty());
}
