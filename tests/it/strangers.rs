//! What the log says of connections that are none of ours.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::*;

#[test]
fn bad_input_is_one_line_with_peer_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (mut sentinel, endpoint) = sentinel(&dir.path().join("q.sqlite"), &[]);
    let address = endpoint.strip_prefix("tcp://").unwrap();
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xFF, 0x7F, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    let behind = |bytes: &[u8]| [&greeting, bytes].concat();
    let ready = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
    let cases: [(Vec<u8>, &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not a ZMTP greeting"),
        (
            b"\xff\0\0\0\0\0\0\0\x01\x7f\x01".to_vec(),
            "peer speaks ZMTP 2.0",
        ),
        (
            {
                let mut bytes = greeting;
                bytes[12..17].copy_from_slice(b"PLAIN");
                bytes.to_vec()
            },
            "PLAIN",
        ),
        (behind(b"\x04\x02\x05R"), "malformed command"),
        (
            behind(&[&ready[..], b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff"].concat()),
            "the limit is",
        ),
        (
            behind(&[&ready[..], b"\0\x01x"].concat()),
            "message refused",
        ),
    ];
    let mut told = Vec::new();
    for (bytes, reason) in &cases {
        let mut raw = TcpStream::connect(address).unwrap();
        raw.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        raw.write_all(bytes).unwrap();
        // An end or a reset, as it may.
        let mut rest = Vec::new();
        let _ = raw.read_to_end(&mut rest);
        told.push((format!("tcp://{}", raw.local_addr().unwrap()), *reason));
    }
    sentinel.signal("-TERM");
    assert_eq!(sentinel.wait(), Some(0));
    for (peer, reason) in told {
        let lines: Vec<_> = sentinel
            .seen
            .iter()
            .filter(|line| line.contains(&peer))
            .collect();
        assert_eq!(lines.len(), 1, "{peer}: {:#?}", sentinel.seen);
        assert!(lines[0].contains(reason), "{reason}: {}", lines[0]);
    }
}
