//! Bytes after a NULL handshake: the result must not depend on how they are split, and must agree
//! with the reference decoder.

use std::time::Instant;

use casparian::zmtp::{Connection, Limits, Progress, SocketType};

use crate::connection::{config, feed, hands_shaken};
use crate::wire;

/// Decodes bytes in steps; returns the messages, and whether the connection failed.
fn decode(bytes: &[u8], mut step: impl FnMut(usize) -> usize) -> (Vec<Vec<Vec<u8>>>, bool) {
    let now = Instant::now();
    let mut config = config(SocketType::Router);
    config.limits = Limits {
        frame_size_max: wire::FRAME_SIZE_MAX,
        message_size_max: wire::MESSAGE_SIZE_MAX,
        frames_max: wire::FRAMES_MAX,
    };
    let mut connection = Connection::new(config.into(), now);
    let mut messages = Vec::new();
    let mut rest = hands_shaken();
    rest.extend_from_slice(bytes);
    let mut rest = rest.as_slice();
    let mut transaction = 0;
    let mut refused = false;
    while !rest.is_empty() && !refused {
        transaction += 1;
        let count = feed(&mut connection, rest, step(transaction).max(1), now);
        rest = &rest[count..];
        loop {
            match connection.poll(now) {
                Ok(Progress::Message) => messages.push(connection.message().to_vecs()),
                Ok(Progress::Established) => {}
                Ok(Progress::NeedInput) => break,
                Err(_) => {
                    refused = true;
                    break;
                }
            }
        }
        // Memory must be limited by the number of received bytes.
        assert!(connection.receive_capacity() <= (2 * bytes.len()).max(4096) + 512);
    }
    (messages, refused)
}

pub fn run(data: &[u8]) {
    // The first four bytes are the sizes of the pieces.
    let Some((choice, bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let expected = wire::messages(bytes);
    assert_eq!(decode(bytes, |_| usize::MAX), expected, "in one piece");
    assert_eq!(decode(bytes, |_| 1), expected, "byte by byte");
    let split = decode(bytes, |transaction| usize::from(choice[transaction % 4]));
    assert_eq!(split, expected, "split by {choice:?}");
}
