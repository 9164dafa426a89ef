//! What the fuzz targets have found, as tests; `fuzz/README.md` lists the findings.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::buffer::Buffer;
use casparian::plugin::bridge;
use casparian::zmtp::curve::{AuthorizedKeys, Clients, CurveClient, CurveServer, SecretKey};
use casparian::zmtp::{
    Config, Connection, Heartbeat, Limits, Progress, Security, SendQueue, SocketType,
};

fn config(socket_type: SocketType, security: Security) -> Config {
    Config {
        socket_type,
        routing_id: Vec::new(),
        limits: Limits::default(),
        read_ahead: 4096,
        rcvhwm: 0,
        handshake_timeout: Duration::from_secs(30),
        heartbeat: None,
        security,
        metadata: Vec::new(),
    }
}

/// What a connection writes until it wants no more.
fn output(connection: &mut Connection, queue: &mut SendQueue, now: Instant) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..1000 {
        if !connection.wants_write(queue) {
            return out;
        }
        connection.seal(queue, usize::MAX).unwrap();
        let mut slices = casparian::zmtp::Slices::new();
        connection.gather(queue, &mut slices);
        let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
        connection.handle_written(queue, bytes.len(), now);
        out.extend(bytes);
    }
    panic!("wants to write and has nothing to write");
}

/// Whether the connection took all of it.
fn input(connection: &mut Connection, mut bytes: &[u8], now: Instant) -> bool {
    while !bytes.is_empty() {
        let space = connection.receive_space(casparian::zmtp::Growth::ReadAhead);
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        connection.handle_received(count, now);
        bytes = &bytes[count..];
        loop {
            match connection.poll(now) {
                Ok(Progress::NeedInput) => break,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
    true
}

/// Target `connection_curve`: a PING and a forged MESSAGE in one read left a PONG that could
/// neither be sealed nor written, and the socket's flush went on for ever.
#[test]
fn a_curve_connection_that_fails_with_a_pong_to_send_writes_no_more() {
    let now = Instant::now();
    let [server, client] = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
    let mut dealer = config(
        SocketType::Dealer,
        Security::CurveClient(CurveClient {
            secret: client,
            server: server.public(),
        }),
    );
    dealer.heartbeat = Some(Heartbeat {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(60),
        ttl: Duration::ZERO,
    });
    let router = config(
        SocketType::Router,
        Security::CurveServer(CurveServer {
            secret: server,
            clients: Clients::Any,
        }),
    );
    let mut queue = SendQueue::new();
    let mut dealer = Connection::new(Arc::new(dealer), now);
    let mut router = Connection::new(Arc::new(router), now);
    for _ in 0..4 {
        let bytes = output(&mut dealer, &mut queue, now);
        assert!(input(&mut router, &bytes, now));
        let bytes = output(&mut router, &mut queue, now);
        assert!(input(&mut dealer, &bytes, now));
    }
    assert!(router.is_open() && dealer.is_open());
    dealer
        .handle_timeout(now + Duration::from_secs(2), false)
        .unwrap();
    let mut bytes = output(&mut dealer, &mut queue, now);
    assert!(!bytes.is_empty(), "a PING");
    bytes.extend([0, 40]);
    bytes.extend(b"\x07MESSAGE");
    bytes.extend([0xFF; 32]);
    assert!(!input(&mut router, &bytes, now));
    assert!(output(&mut router, &mut queue, now).is_empty());
}

/// The first frame of a captured conversation.
fn captured_frame(name: &str) -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let capture = std::fs::read(root.join(format!("tests/data/bridge/{name}.bin"))).unwrap();
    let size = u32::from_be_bytes(capture[..4].try_into().unwrap()) as usize;
    capture[4..4 + size].to_vec()
}

/// Target `bridge`: arrow's reader panics on the offset of a buffer behind the end of its
/// message (arrow-buffer 60.1, `Buffer::slice_with_length`); a plugin process gets an error.
#[test]
fn a_panic_of_arrows_reader_is_an_error() {
    let mut frame = captured_frame("three_rows");
    // Of the record batch's first buffer.
    frame[274] = 0x7F;
    let error = bridge::decode(Buffer::from(frame)).unwrap_err().to_string();
    assert!(
        error.contains("lengths or offsets make no sense"),
        "{error}"
    );
}

/// No single changed byte gets a plugin process further than an error, or columns that are valid.
#[test]
fn every_changed_byte_of_a_frame_is_an_error_or_valid() {
    for name in [
        "three_rows",
        "dictionary_column",
        "two_batches_strings_nulls",
    ] {
        let frame = captured_frame(name);
        for at in 0..frame.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut changed = frame.clone();
                changed[at] = value;
                is_refused_or_valid(changed);
            }
        }
    }
}

fn is_refused_or_valid(frame: Vec<u8>) {
    let Ok(decoded) = bridge::decode(Buffer::from(frame)) else {
        return;
    };
    for column in decoded.batches.iter().flat_map(|batch| batch.columns()) {
        column.to_data().validate_full().unwrap();
    }
}

/// Target `connection_curve`: a second refusal wrote ERROR behind a sealed frame that was cut.
#[test]
fn a_curve_connection_that_was_refused_sends_nothing_more() {
    let key = |byte| SecretKey::from_bytes([byte; 32]);
    let client = CurveClient {
        secret: key(2),
        server: key(1).public(),
    };
    let server = CurveServer {
        secret: key(1),
        clients: Clients::Any,
    };
    let now = Instant::now();
    let security = [Security::CurveClient(client), Security::CurveServer(server)];
    let types = [SocketType::Dealer, SocketType::Router];
    let mut ends = security.map(|security| {
        let socket_type = types[usize::from(matches!(security, Security::CurveServer(_)))];
        Connection::new(Arc::new(config(socket_type, security)), now)
    });
    let mut queue = SendQueue::new();
    for _ in 0..3 {
        for side in [0, 1] {
            let bytes = output(&mut ends[side], &mut queue, now);
            assert!(input(&mut ends[1 - side], &bytes, now));
        }
    }
    let [_, router] = &mut ends;
    assert!(router.is_open());
    queue.push(&[b"a message that is cut"]);
    router.seal(&queue, usize::MAX).unwrap();
    router.handle_written(&mut queue, 5, now);
    router.refuse("no more");
    router.refuse("no more");
    assert!(output(router, &mut queue, now).is_empty());
}

/// Target `connection_null`: ERROR was written into a message of which a part had left.
#[test]
fn error_does_not_follow_a_message_that_was_cut() {
    let now = Instant::now();
    let mut router = Connection::new(Arc::new(config(SocketType::Router, Security::Null)), now);
    let mut dealer = Connection::new(Arc::new(config(SocketType::Dealer, Security::Null)), now);
    let mut queue = SendQueue::new();
    let bytes = output(&mut dealer, &mut queue, now);
    assert!(input(&mut router, &bytes, now));
    output(&mut router, &mut queue, now);
    queue.push(&[b"a message that is cut"]);
    router.handle_written(&mut queue, 5, now);
    router.refuse("no more");
    assert!(output(&mut router, &mut queue, now).is_empty());
}

/// Target `bridge`: arrow's reader reserves up to 64 MiB for a body that a few bytes declare.
#[test]
fn a_body_that_is_declared_and_not_there_is_refused_before_the_reader_sees_it() {
    let frame = captured_frame("three_rows");
    assert!(bridge::decode(Buffer::from(frame.clone())).is_ok());
    for cut in 0..frame.len() {
        // A stream may end without its mark; a message may not end without its bytes.
        if let Ok(decoded) = bridge::decode(Buffer::from(&frame[..cut])) {
            assert!(decoded.batches.len() <= 1, "cut at {cut}");
        }
    }
    // Every byte of the lengths made large.
    for at in 0..frame.len() {
        let mut bytes = frame.to_vec();
        bytes[at] = 0x7F;
        is_refused_or_valid(bytes);
    }
}

/// Target `keys`: a name of control characters alone was an empty name.
#[test]
fn a_key_whose_name_cannot_be_shown_goes_by_itself() {
    let key = SecretKey::from_bytes([7; 32]).public();
    let keys = AuthorizedKeys::parse(&format!("{key} \u{7}\u{1}\n")).unwrap();
    assert_eq!(keys.name(&key), Some(&*key.to_string()));
}

/// Rows of the null type take no bytes, and the columns that are added to them do.
#[test]
fn rows_that_take_no_bytes_are_bounded() {
    use arrow::array::{NullArray, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::ipc::writer::StreamWriter;
    for (rows, taken) in [(16 << 20, true), (1 << 40, false)] {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Null, true)]));
        let column = Arc::new(NullArray::new(rows));
        let batch = RecordBatch::try_new(schema.clone(), vec![column]).unwrap();
        let mut stream = Vec::new();
        let mut writer = StreamWriter::try_new(&mut stream, &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let decoded = bridge::decode(Buffer::from(stream));
        assert_eq!(decoded.is_ok(), taken, "{rows} rows");
    }
}
