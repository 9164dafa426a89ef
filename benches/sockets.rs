//! DEALER → ROUTER over tcp on loopback, against libzmq, zmq.rs and bare tcp in the same run.
//!
//! The peers live in a package of their own (`benches/peers`), which this program builds and
//! runs; each round measures every peer once, so that a drift of the machine meets all alike.
//! Printed: the median of the rounds, and ours against each peer's.
//!
//! `cargo bench --bench sockets [-- ROUNDS] [ours]`; `ours` leaves the peers out. With `CASPARIAN_BENCH_SMOKE` set (or `--test`)
//! one short round of ours only.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Error, Options, Router};

const FOREVER: Option<Duration> = Some(Duration::from_secs(60));

fn options() -> Options {
    Options::new().sndhwm(0).sndhwm_bytes(8 << 20)
}

/// Messages per second. A tenth as many go first as warm-up; the clock runs from the moment the
/// sender is released, with nothing under way, until the last message has arrived.
fn throughput(payload: usize, messages: u64) -> f64 {
    let warm_up = messages / 10;
    let mut router = Router::new(options()).expect("router");
    let bound = router.bind("tcp://127.0.0.1:*").expect("bind").to_string();
    let sender = std::thread::spawn(move || {
        let mut dealer = Dealer::new(options()).expect("dealer");
        dealer.connect(&bound).expect("connect");
        let header = [1u8; 16];
        let body = vec![2u8; payload];
        for count in [warm_up, messages] {
            for _ in 0..count {
                while let Err(error) = dealer.send(&[&header, &body]) {
                    assert_eq!(error, Error::Full);
                    dealer.wait_writable(Duration::from_secs(1)).expect("wait");
                }
            }
            assert!(dealer.drain(Duration::from_secs(60)).expect("drain"));
            // Released for the next part, or told that all has arrived.
            dealer.receive(FOREVER).expect("receive").expect("in time");
        }
    });
    let mut seconds = 1.0;
    for count in [warm_up, messages] {
        let start = Instant::now();
        let mut from = Vec::new();
        for _ in 0..count {
            let (routing_id, message) = router.receive(FOREVER).expect("receive").expect("in time");
            assert_eq!(message.get(1).map(<[u8]>::len), Some(payload));
            if from.is_empty() {
                from = routing_id.to_vec();
            }
        }
        seconds = start.elapsed().as_secs_f64();
        router.send(&from, &[b"go"]).expect("go");
        assert!(router.drain(Duration::from_secs(5)).expect("drain"));
    }
    sender.join().expect("sender");
    messages as f64 / seconds
}

/// Median round trip in microseconds, one in flight.
fn latency(payload: usize, rounds: usize) -> f64 {
    let mut router = Router::new(options()).expect("router");
    let bound = router.bind("tcp://127.0.0.1:*").expect("bind").to_string();
    let echo = std::thread::spawn(move || {
        for _ in 0..rounds + rounds / 10 {
            let (from, parts) = {
                let (from, message) = router.receive(FOREVER).expect("receive").expect("in time");
                (from.to_vec(), message.to_vecs())
            };
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            router.send(&from, &parts).expect("send");
        }
        router.drain(Duration::from_secs(5)).expect("drain");
    });
    let mut dealer = Dealer::new(options()).expect("dealer");
    dealer.connect(&bound).expect("connect");
    let body = vec![2u8; payload];
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds + rounds / 10 {
        let start = Instant::now();
        dealer.send(&[&[1u8; 16], &body]).expect("send");
        dealer.receive(FOREVER).expect("receive").expect("in time");
        if round >= rounds / 10 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    echo.join().expect("echo");
    median(&mut times)
}

/// Median round trip of a bare tcp stream in microseconds.
fn raw_latency(size: usize, rounds: usize) -> f64 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_nodelay(true).expect("nodelay");
        let mut buffer = vec![0u8; size];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer).expect("write");
        }
    });
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut buffer = vec![0u8; size];
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds + rounds / 10 {
        let start = Instant::now();
        stream.write_all(&buffer).expect("write");
        stream.read_exact(&mut buffer).expect("read");
        if round >= rounds / 10 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    drop(stream);
    echo.join().expect("echo");
    median(&mut times)
}

/// Messages of so many bytes per second that a bare tcp stream would carry: writes of 64 KiB,
/// reads of 256 KiB, nothing looked at.
fn raw_throughput(size: usize, messages: u64) -> f64 {
    let bytes = size as u64 * messages;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let sender = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(address).expect("connect");
        let buffer = vec![2u8; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let count = buffer.len().min(left as usize);
            stream.write_all(&buffer[..count]).expect("write");
            left -= count as u64;
        }
    });
    let (mut stream, _) = listener.accept().expect("accept");
    let mut buffer = vec![0u8; 256 << 10];
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        left -= stream.read(&mut buffer).expect("read") as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().expect("sender");
    messages as f64 / seconds
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn peers_program() -> Option<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/peers/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--manifest-path"])
        .arg(&manifest)
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .ok()?;
    let program = manifest.with_file_name("target/release/casparian-bench-peers");
    (status.success() && program.exists()).then_some(program)
}

fn peer(
    program: &PathBuf,
    peer: &str,
    mode: &str,
    payload: usize,
    messages: u64,
    key: &str,
) -> f64 {
    let output = Command::new(program)
        .args([
            peer,
            mode,
            "--header",
            "16",
            "--payload",
            &payload.to_string(),
        ])
        .args(["--messages", &messages.to_string()])
        .output()
        .expect("the peers' program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line: serde_json::Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{peer} {mode}: {error}: {text}"));
    line[key].as_f64().unwrap_or(f64::NAN)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || arguments.iter().any(|argument| argument == "--test");
    if smoke {
        println!(
            "throughput 16+16: {:.0} msg/s (smoke)",
            throughput(16, 10_000)
        );
        println!("round trip 16+16: {:.1} us (smoke)", latency(16, 200));
        return;
    }
    let rounds = arguments
        .iter()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(5usize);
    let program = match arguments.iter().any(|argument| argument == "ours") {
        true => None,
        false => Some(peers_program().expect("benches/peers builds (a C++ compiler is needed)")),
    };
    let peers: &[&str] = if program.is_some() {
        &["libzmq", "zmq.rs"]
    } else {
        &[]
    };
    let program = program.unwrap_or_default();
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (name, payload, messages) in [
            ("throughput 16+16, msg/s", 16, 2_000_000u64),
            ("throughput 16+4096, msg/s", 4096, 300_000),
        ] {
            let mut note = |who, value| results.entry((name, who)).or_default().push(value);
            note("casparian", throughput(payload, messages));
            // Two frames of two bytes, or nine where the payload is long.
            let heads = if payload > 255 { 11 } else { 4 };
            note("raw tcp", raw_throughput(16 + payload + heads, messages));
            for &who in peers {
                note(
                    who,
                    peer(&program, who, "throughput", payload, messages, "msgs_per_s"),
                );
            }
        }
        let name = "round trip 16+16, us";
        let mut note = |who, value| results.entry((name, who)).or_default().push(value);
        note("casparian", latency(16, 20_000));
        note("raw tcp", raw_latency(36, 20_000));
        for &who in peers {
            note(who, peer(&program, who, "latency", 16, 20_000, "median_us"));
        }
    }
    println!(
        "{:28} {:10} {:>12} {:>16}",
        "", "", "median", "casparian / it"
    );
    let mut ours = BTreeMap::new();
    let medians: Vec<_> = results
        .iter_mut()
        .map(|((name, who), values)| {
            let value = median(values);
            if *who == "casparian" {
                ours.insert(*name, value);
            }
            (*name, *who, value)
        })
        .collect();
    for (name, who, value) in medians {
        let ratio = ours.get(name).map_or(f64::NAN, |ours| ours / value);
        println!("{name:28} {who:10} {value:>12.1} {ratio:>16.2}");
    }
}
