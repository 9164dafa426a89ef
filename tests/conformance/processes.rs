//! Sockets in forked processes, and in host programs with other signal dispositions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use casparian::socket::{Options, Router};

use crate::support::{DEADLINE, until};

/// Runs `work` in a forked child; returns its wait status. The child ends without destructors.
#[allow(unsafe_code)]
fn in_child(work: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs `work` on its copy of the memory and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_good = work();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(!is_good)) }
    }
    let mut status = 1;
    // SAFETY: the child is ours, and the status is a valid pointer.
    unsafe { libc::waitpid(child, &mut status, 0) };
    status
}

#[test]
fn a_forked_child_leaves_the_socket_file_of_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [
        format!("ipc://{}", dir.path().join("s").display()),
        "ipc://*".to_owned(),
    ] {
        let mut router = Router::new(Options::new()).unwrap();
        let bound = router.bind(&endpoint).unwrap().to_string();
        let path = std::path::PathBuf::from(bound.strip_prefix("ipc://").unwrap());
        let mut router = Some(router);
        let status = in_child(|| {
            drop(router.take());
            true
        });
        assert_eq!(status, 0);
        assert!(path.exists(), "the child removed its parent's file");
        drop(router.take());
        assert!(!path.exists());
        assert!(endpoint != "ipc://*" || !path.parent().unwrap().exists());
    }
}

/// With SIGPIPE at its default, as in a host program that is not in Rust.
#[test]
#[allow(unsafe_code)]
fn a_write_to_a_closed_connection_raises_no_signal() {
    let mut router = Router::new(Options::new()).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut raw = TcpStream::connect(bound.strip_prefix("tcp://").unwrap()).unwrap();
    raw.write_all(&casparian::zmtp::Greeting::encode("NULL"))
        .unwrap();
    raw.write_all(b"\x04\x2a\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x01x")
        .unwrap();
    until("it is established", || {
        router.flush().unwrap();
        router.socket().route(b"x").map(drop)
    });
    raw.set_read_timeout(Some(DEADLINE)).unwrap();
    raw.read_exact(&mut [0; 64]).unwrap();
    drop(raw);
    let status = in_child(|| {
        // SAFETY: sets a disposition of the child.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let body = vec![7; 100_000];
        (0..100).any(|_| {
            let sent = router.send(b"x", &[&body]);
            router.socket().flush(Instant::now());
            sent.is_err()
        })
    });
    assert_eq!(status, 0, "no signal, and a send failed");
}
