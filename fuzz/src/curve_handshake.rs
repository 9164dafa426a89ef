//! Peers with the right keys that lie inside their boxes: plaintexts are changed before they are
//! sealed, in the handshake and behind it.

use std::sync::Arc;
use std::time::Instant;

use arbitrary::Unstructured;
use casparian::fuzzing::Edit;
use casparian::zmtp::{Connection, Error, Progress, Security, SendQueue, SocketType};

use crate::connection::{config, feed};

/// Lets two connections talk until they are silent; what each received, and its error.
fn talk(ends: &mut [(Connection, SendQueue); 2]) -> [(Vec<Vec<Vec<u8>>>, Option<Error>); 2] {
    let now = Instant::now();
    let mut seen = [(Vec::new(), None), (Vec::new(), None)];
    loop {
        let mut silent = true;
        for side in [0, 1] {
            let mut octets = Vec::new();
            let (connection, queue) = &mut ends[side];
            while connection.wants_write(queue) {
                if connection.seal(queue).is_err() {
                    return seen;
                }
                let mut slices = Vec::new();
                connection.gather(queue, 8, &mut slices);
                // The kernel takes as much as it likes.
                let written: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                let count = written.len().min(50_000);
                octets.extend_from_slice(&written[..count]);
                connection.handle_written(queue, count, now);
            }
            silent &= octets.is_empty();
            let (connection, _) = &mut ends[1 - side];
            let (messages, error) = &mut seen[1 - side];
            let mut rest = octets.as_slice();
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

/// A client that has the wrong server's key: nobody is let in, whatever is queued.
pub(crate) fn refused(data: &[u8], client: Security, server: Security) {
    casparian::fuzzing::reset(Vec::new());
    let mut ends = ends(client, server);
    ends[0].1.push(&[data]);
    ends[1].1.push(&[data]);
    let [(to_client, _), (to_server, error)] = talk(&mut ends);
    assert!(to_client.is_empty() && to_server.is_empty());
    assert!(error.is_some());
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
    casparian::fuzzing::reset(edits);
    let (client, server) = crate::connection_curve::pair(if count == 6 { 3 } else { 0 });
    let mut ends = ends(client, server);
    let mut sent = [Vec::new(), Vec::new()];
    for side in [0, 1] {
        for _ in 0..plan.int_in_range(0..=2u8).unwrap_or(1) {
            let size = plan.int_in_range(0..=300usize).unwrap_or(3);
            let mut body = plan.bytes(size.min(plan.len())).unwrap_or(&[]).to_vec();
            if size == 299 {
                // Beyond what is sealed ahead.
                body.resize(200_000, 7);
            }
            ends[side].1.push(&[&body, b"tail"]);
            sent[side].push(vec![body, b"tail".to_vec()]);
        }
    }
    let [(to_client, client_error), (to_server, server_error)] = talk(&mut ends);
    if is_honest {
        assert_eq!((&client_error, &server_error), (&None, &None));
        assert_eq!((to_client, to_server), (sent[1].clone(), sent[0].clone()));
        return;
    }
    // Whoever was let in holds the key it is listed under.
    let (server_end, _) = &ends[1];
    if server_end.is_open() {
        let key = server_end.peer().public_key.expect("a key");
        let name = server_end.peer().user_id.as_deref();
        assert!(name == Some("client") || count == 6, "{key:?}");
    }
}
