//! What peers cost that have nothing to say: a ROUTER with heartbeats and thousands of DEALERs.
//!
//! Both sides are in this process, on a thread each, so only the CPU time of the ROUTER's thread
//! is its own; the memory is that of both sides.
//!
//! `cargo bench --bench idle [-- PEERS…]`; with `CASPARIAN_BENCH_SMOKE` set (or `--test`) a few
//! peers for a moment.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Options, Router};

/// PINGs go out this often to every peer.
const INTERVAL: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || arguments.iter().any(|argument| argument == "--test");
    let asked: Vec<usize> = arguments.iter().flat_map(|text| text.parse()).collect();
    let (counts, time) = match (smoke, asked.is_empty()) {
        (true, _) => (vec![50], Duration::from_millis(200)),
        (false, true) => (vec![1000, 9000], Duration::from_secs(10)),
        (false, false) => (asked, Duration::from_secs(10)),
    };
    println!("   peers   CPU of the ROUTER   memory a peer, both sides");
    for count in counts {
        measure(count, time);
    }
}

fn measure(count: usize, time: Duration) {
    raise_descriptors(2 * count as u64 + 100);
    let before = resident();
    let options = || Options::new().max_handshakes(count.max(1));
    let beating = options()
        .heartbeat_ivl(INTERVAL)
        .heartbeat_timeout(Duration::from_secs(60));
    let mut router = Router::new(beating).expect("router");
    let bound = router.bind("tcp://0.0.0.0:*").expect("bind").to_string();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dealer = Dealer::new(options()).expect("dealer");
            // A DEALER has one connection to an endpoint, and 127.0.0.0/8 has endpoints enough.
            for number in 1..=count {
                let host = format!("127.0.{}.{}", number / 250, number % 250 + 1);
                let endpoint = bound.replace("0.0.0.0", &host);
                dealer.connect(&endpoint).expect("connect");
            }
            while !over.load(Ordering::Relaxed) {
                dealer
                    .receive(Some(Duration::from_millis(20)))
                    .expect("receive");
            }
        });
        let deadline = Instant::now() + Duration::from_secs(120);
        while router.counters().established < count as u64 {
            assert!(Instant::now() < deadline, "{:?}", router.counters());
            router
                .receive(Some(Duration::from_millis(20)))
                .expect("receive");
        }
        // One interval for buffers to be given back, and pings to spread.
        serve(&mut router, Duration::from_secs(6).min(time));
        let (start, wall) = (cpu(), Instant::now());
        serve(&mut router, time);
        let share = (cpu() - start).as_secs_f64() / wall.elapsed().as_secs_f64();
        let memory = resident().saturating_sub(before) / count as u64;
        println!("{count:8}   {:15.2} %   {memory:8} bytes", share * 100.0);
        assert_eq!(router.counters().disconnected, 0);
        over.store(true, Ordering::Relaxed);
    });
}

fn serve(router: &mut Router, time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        router.receive(Some(left)).expect("receive");
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

/// Bytes of memory this process holds.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|text| text.parse().ok());
    pages.expect("a number") * 4096
}

fn raise_descriptors(count: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|soft| soft < count) {
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).expect("ulimit -Hn allows so many open files");
    }
}
