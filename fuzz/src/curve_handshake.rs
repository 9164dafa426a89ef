//! Malicious CURVE peers with the right keys: plaintexts are changed before they are sealed, during
//! the handshake and after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arbitrary::Unstructured;
use casparian::fuzzing::Edit;
use casparian::zmtp::curve::SecretKey;
use casparian::zmtp::{Connection, Error, Progress, Security, SendQueue, SocketType};

use crate::connection::{config, feed};

/// Exchanges bytes between two connections until neither has more to send. Returns the received
/// messages and the error of each.
fn talk(ends: &mut [(Connection, SendQueue); 2]) -> [(Vec<Vec<Vec<u8>>>, Option<Error>); 2] {
    let now = Instant::now();
    let mut seen = [(Vec::new(), None), (Vec::new(), None)];
    loop {
        let mut silent = true;
        for side in [0, 1] {
            let mut bytes = Vec::new();
            let (connection, queue) = &mut ends[side];
            while connection.wants_write(queue) {
                if connection.seal(queue, usize::MAX).is_err() {
                    return seen;
                }
                let mut slices = casparian::zmtp::Slices::new();
                connection.gather(queue, &mut slices);
                // The simulated kernel accepts at most 50,000 bytes.
                let written: Vec<u8> = slices.iter().flatten().copied().collect();
                let count = written.len().min(50_000);
                bytes.extend_from_slice(&written[..count]);
                connection.handle_written(queue, count, now);
            }
            silent &= bytes.is_empty();
            let (connection, _) = &mut ends[1 - side];
            let (messages, error) = &mut seen[1 - side];
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && error.is_none() {
                let count = feed(connection, rest, usize::MAX, now);
                rest = &rest[count..];
                loop {
                    match connection.poll(now) {
                        Ok(Progress::Message) => {
                            assert!(connection.is_open(), "a message before the handshake");
                            messages.push(connection.message().to_vecs());
                        }
                        Ok(Progress::Established) => {}
                        Ok(Progress::NeedInput) => break,
                        Err(failure) => {
                            *error = Some(failure);
                            break;
                        }
                    }
                }
            }
        }
        if silent {
            return seen;
        }
    }
}

fn ends(client: Security, server: Security) -> [(Connection, SendQueue); 2] {
    let now = Instant::now();
    let mut dealer = config(SocketType::Dealer);
    let mut router = config(SocketType::Router);
    (dealer.security, router.security) = (client, server);
    [dealer, router].map(|config| (Connection::new(Arc::new(config), now), SendQueue::new()))
}

/// A client with the wrong server key must not be accepted, whatever is queued.
pub(crate) fn refused(data: &[u8], client: Security, server: Security) {
    casparian::fuzzing::reset(Vec::new());
    let mut ends = ends(client, server);
    ends[0].1.push(&[data]);
    ends[1].1.push(&[data]);
    let [(to_client, _), (to_server, error)] = talk(&mut ends);
    assert!(to_client.is_empty() && to_server.is_empty());
    assert!(error.is_some());
}

/// Whether an edit changes the meaning of a box. X25519 ignores some bits of keys, and edits of
/// only these bits have no effect.
fn is_seen(sealed: usize, at: usize, by: u8) -> bool {
    let ignored = match (sealed, at) {
        // The server's transient secret key in its cookie.
        (1, 32) => 0x07,
        (1, 63) => 0xC0,
        // Public keys: the server's transient key, the client's long-term key.
        (2, 31) | (4, 31) => 0x80,
        _ => 0,
    };
    by & !ignored != 0
}

/// Sizes of plaintexts in bytes: of the boxes of HELLO, the cookie, WELCOME and the vouch, and of
/// INITIATE's before its metadata.
const BOXES: [usize; 5] = [64, 64, 128, 64, 128];
/// Size of the DEALER's metadata in INITIATE, in bytes.
const METADATA: usize = 39;

/// Whether edits change the meaning of a handshake box before READY, except for metadata.
fn spoils_the_handshake(edits: &[Edit]) -> bool {
    let mut net = BTreeMap::new();
    for edit in edits {
        let Some(size) = BOXES.get(edit.sealed) else {
            continue;
        };
        let whole = size + if edit.sealed == 4 { METADATA } else { 0 };
        *net.entry((edit.sealed, edit.at % whole)).or_insert(0) ^= edit.by;
    }
    net.iter().any(|(&(sealed, at), &by)| {
        BOXES.get(sealed).is_some_and(|size| at < *size) && is_seen(sealed, at, by)
    })
}

pub fn run(data: &[u8]) {
    let mut plan = Unstructured::new(data);
    let mut edits = Vec::new();
    let count = plan.int_in_range(0..=6u8).unwrap_or(0);
    for _ in 0..count {
        edits.push(Edit {
            sealed: plan.int_in_range(0..=15usize).unwrap_or(0),
            at: usize::from(plan.arbitrary::<u16>().unwrap_or(0)),
            by: plan.arbitrary().unwrap_or(0),
        });
    }
    let is_honest = edits.iter().all(|edit| edit.by == 0);
    let mut is_spoiled = spoils_the_handshake(&edits);
    let keys = match count {
        6 => 3,
        // A client whose key is not listed puts a listed key into INITIATE. Its vouch must then be
        // invalid.
        5 => {
            let [own, listed] = [3u8, 2].map(|byte| SecretKey::from_bytes([byte; 32]).public());
            let pairs = own.as_bytes().iter().zip(listed.as_bytes());
            edits.extend(pairs.enumerate().map(|(at, (own, listed))| Edit {
                sealed: 4,
                at,
                by: own ^ listed,
            }));
            is_spoiled = true;
            1
        }
        _ => 0,
    };
    casparian::fuzzing::reset(edits);
    let (client, server) = crate::curve_keys::pair(keys);
    let mut ends = ends(client, server);
    let mut sent = [Vec::new(), Vec::new()];
    for side in [0, 1] {
        for _ in 0..plan.int_in_range(0..=2u8).unwrap_or(1) {
            let size = plan.int_in_range(0..=300usize).unwrap_or(3);
            let mut body = plan.bytes(size.min(plan.len())).unwrap_or(&[]).to_vec();
            if size == 299 {
                // More than is sealed ahead of writing.
                body.resize(200_000, 7);
            }
            ends[side].1.push(&[&body, b"tail"]);
            sent[side].push(vec![body, b"tail".to_vec()]);
        }
    }
    let [(to_client, client_error), (to_server, server_error)] = talk(&mut ends);
    if is_spoiled {
        assert!(!ends[1].0.is_open(), "let in by a handshake that lies");
        assert!(to_server.is_empty() && server_error.is_some() | client_error.is_some());
        return;
    }
    if is_honest {
        assert_eq!((&client_error, &server_error), (&None, &None));
        assert_eq!((to_client, to_server), (sent[1].clone(), sent[0].clone()));
        return;
    }
    // An accepted client must have the secret key of its listed key.
    let (server_end, _) = &ends[1];
    if server_end.is_open() {
        let key = server_end.peer().public_key.expect("a key");
        let name = server_end.peer().user_id.as_deref();
        assert!(name == Some("client") || count == 6, "{key:?}");
    }
}
