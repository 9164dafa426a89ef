//! Where secrets stand in memory, and that they do not stay.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use casparian::socket::{Dealer, Options, PlainClient, PlainServer, Router};
use zeroize::{Zeroize, Zeroizing};

use crate::common::*;
use crate::curve::keygen;

/// Octets to look for which do not stand in our own memory while we look.
struct Needle(Vec<u8>);

impl Needle {
    fn new(octets: &[u8]) -> Self {
        Needle(octets.iter().map(|octet| !octet).collect())
    }

    /// How often they stand in what a process may write to.
    fn copies(&self, pid: u32) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        let (mut count, mut looked_at) = (0, 0);
        let mut buffer = vec![0; 1 << 20];
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            if !rights.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let mut at = start;
            while at < end {
                // What we read into is ours, and holds copies of what we have just read.
                let own = buffer.as_ptr() as u64;
                if (own..own + buffer.len() as u64).contains(&at) {
                    at = own + buffer.len() as u64;
                    continue;
                }
                let stop = if at < own { end.min(own) } else { end };
                let size = buffer.len().min((stop - at) as usize);
                // A region that is gone, or is none of the process's own.
                let Ok(size) = memory.read_at(&mut buffer[..size], at) else {
                    break;
                };
                let is_needle = |window: &&[u8]| {
                    let masked = window.iter().map(|octet| !octet);
                    masked.eq(self.0.iter().copied())
                };
                let windows = buffer[..size].windows(self.0.len());
                count += windows.filter(is_needle).count();
                looked_at += size;
                // The next piece begins with what may have been cut.
                at += match at + size as u64 == stop || size < self.0.len() {
                    true => size.max(1),
                    false => size - self.0.len() + 1,
                } as u64;
            }
        }
        buffer.zeroize();
        assert!(looked_at > 100_000, "{looked_at} octets of memory");
        count
    }
}

#[test]
fn a_secret_key_stands_in_memory_once_and_its_text_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, key) = keygen(dir.path(), "sentinel");
    let (worker_secret, worker_key) = keygen(dir.path(), "worker");
    let list = dir.path().join("authorized");
    std::fs::write(&list, format!("{worker_key} worker\n")).unwrap();
    let (sentinel, endpoint) = sentinel(
        &dir.path().join("q.sqlite"),
        &[
            "--curve-secret-key",
            secret.to_str().unwrap(),
            "--authorized-keys",
            list.to_str().unwrap(),
        ],
    );
    let mut worker = worker(
        &endpoint,
        &dir.path().join("out"),
        &[
            "--curve-secret-key",
            worker_secret.to_str().unwrap(),
            "--curve-server-key",
            &key,
        ],
    );
    worker.line_with("connected");
    for (program, file) in [(&sentinel, &secret), (&worker, &worker_secret)] {
        let held = std::fs::read_to_string(file).unwrap();
        let held = held.lines().last().unwrap();
        let octets = z85::decode(held).unwrap();
        // Clamping changes the first and the last octet.
        let copies = [held.as_bytes(), &octets[1..31]].map(Needle::new);
        assert_eq!(copies.map(|needle| needle.copies(program.pid())), [0, 1]);
    }
}

#[test]
fn a_password_goes_with_the_sockets_that_knew_it() {
    let mut password = Zeroizing::new(String::with_capacity(256));
    for count in 0..4u8 {
        write!(password, "{:016x}", RandomState::new().hash_one(count)).unwrap();
    }
    let needle = Needle::new(password.as_bytes());
    let server = Options::new().plain_server(PlainServer::new([("user", password.as_str())]));
    let client = PlainClient::new("user", &password).unwrap();
    drop(password);
    let mut router = Router::new(server).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(Options::new().plain_client(client)).unwrap();
    dealer.connect(&bound).unwrap();
    dealer.send(&[b"hello"]).unwrap();
    until("it is let in", || {
        dealer.flush().unwrap();
        let wait = Some(Duration::from_millis(5));
        router.receive(wait).unwrap().map(drop)
    });
    let alive = needle.copies(std::process::id());
    drop((router, dealer));
    let after = needle.copies(std::process::id());
    assert_eq!((alive, after), (2, 0), "while alive, after");
}
