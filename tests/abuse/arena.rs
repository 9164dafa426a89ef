//! A ROUTER in a thread of its own, a good peer, and what an attack costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use casparian::socket::{Counters, Dealer, Options, Router};

use crate::support::*;

/// Memory and descriptors are counted by process, so the attacks come one at a time.
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

/// Longest round trip of the good peer. Generous for busy machines; attackers' deadlines are at
/// least twice as long, so that a peer which has to wait for one is beyond it.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);

/// What the server's thread has said last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) counters: Counters,
    pub(crate) peers: usize,
    /// The most there were; each has a descriptor.
    pub(crate) peers_max: usize,
    /// Messages from others than the good peer.
    pub(crate) strange: u64,
    pub(crate) cpu: Duration,
}

/// A ROUTER that echoes what peers named `good` send and counts what others send.
pub(crate) struct Arena {
    pub(crate) net: Net,
    pub(crate) bound: String,
    good: Dealer,
    /// What the good peer says beside the number of the round.
    pub(crate) filler: Vec<u8>,
    rounds: u32,
    worst: Duration,
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    name: &'static str,
    /// Largest resident set so far.
    peak: u64,
    before: (u64, usize, Duration),
    _alone: MutexGuard<'static, ()>,
}

/// The most an attack may cost.
pub(crate) struct Cost {
    /// Growth of the resident set at its largest, MiB.
    pub(crate) memory_mib: u64,
    /// Peers at a time, the good one included: each costs a descriptor.
    pub(crate) descriptors: usize,
    /// CPU time of the server's thread.
    pub(crate) cpu: Duration,
}

impl Arena {
    /// Over tcp, without security.
    pub(crate) fn new(name: &'static str, server: Options) -> Self {
        Self::with(name, Transport::Tcp, server, Options::new())
    }

    /// Transport and the good peer's options come from the caller.
    pub(crate) fn with(
        name: &'static str,
        transport: Transport,
        server: Options,
        good: Options,
    ) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let net = Net::new(transport);
        let mut router = Router::new(server).unwrap();
        let bound = router.bind(&net.endpoint()).unwrap().to_string();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (seen, over) = (seen.clone(), over.clone());
            move || serve(&mut router, &seen, &over)
        });
        let mut good = Dealer::new(good.routing_id("good")).unwrap();
        good.connect(&bound).unwrap();
        let mut arena = Arena {
            net,
            bound,
            good,
            filler: Vec::new(),
            rounds: 0,
            worst: Duration::ZERO,
            seen,
            over,
            thread: Some(thread),
            name,
            peak: 0,
            before: (0, 0, Duration::ZERO),
            _alone: alone,
        };
        arena.round();
        arena.worst = Duration::ZERO;
        arena.peak = 0;
        arena.before = (rss(), fds(), arena.seen().cpu);
        arena
    }

    /// What the server has said last.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn raw(&self) -> Raw {
        self.net.raw(&self.bound)
    }

    /// A round trip of the good peer.
    pub(crate) fn round(&mut self) {
        let began = Instant::now();
        self.rounds += 1;
        let body = self.rounds.to_be_bytes();
        self.good.send(&[&body, &self.filler]).unwrap();
        until("the good peer is served", || {
            let message = self.good.receive(Some(Duration::from_millis(1))).unwrap()?;
            assert!(message.to_vecs() == [&body[..], &self.filler]);
            Some(())
        });
        self.worst = self.worst.max(began.elapsed());
        self.peak = self.peak.max(rss());
    }

    /// Round trips of the good peer until the server has seen something.
    #[track_caller]
    pub(crate) fn rounds_until(&mut self, what: &str, mut done: impl FnMut(&Seen) -> bool) {
        until(what, || {
            self.round();
            done(&self.seen()).then_some(())
        });
    }

    /// Ends the attack: the good peer was never kept waiting nor disconnected, and the costs are
    /// within bounds.
    #[track_caller]
    pub(crate) fn end(mut self, cost: &Cost) -> Seen {
        self.round();
        let memory = self.peak.saturating_sub(self.before.0);
        let seen = self.seen();
        let cpu = seen.cpu.saturating_sub(self.before.2);
        println!(
            "{:24} memory {:>6} KiB, {:>5} descriptors, server CPU {:>5} ms, {} round trips of the good peer, worst {:.1} ms",
            self.name,
            memory >> 10,
            seen.peers_max,
            cpu.as_millis(),
            self.rounds,
            self.worst.as_secs_f64() * 1000.0
        );
        assert!(
            self.worst < ROUND_TRIP_MAX,
            "the good peer waited {:?}",
            self.worst
        );
        assert_eq!(self.good.counters().disconnected, 0);
        assert!(memory < cost.memory_mib << 20, "{memory} bytes");
        assert!(cpu < cost.cpu, "{cpu:?}");
        let descriptors = seen.peers_max;
        assert!(descriptors <= cost.descriptors, "{descriptors} descriptors");
        // Every descriptor an attack has cost goes with its connection.
        let base = self.before.1;
        until("descriptors are given back", || {
            self.round();
            (fds() <= base).then_some(())
        });
        self.seen()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn serve(router: &mut Router, seen: &Mutex<Seen>, over: &AtomicBool) {
    let mut cpu = ThreadCpu::new();
    let mut strange = 0;
    let mut peers_max = 0;
    let mut said = Instant::now();
    while !over.load(Ordering::SeqCst) {
        let message = router.receive(Some(Duration::from_millis(1))).unwrap();
        let waited = message.is_none();
        let reply = match message {
            Some((b"good", message)) => Some(message.to_vecs()),
            Some(_) => {
                strange += 1;
                None
            }
            None => None,
        };
        if let Some(frames) = reply {
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            router.send(b"good", &frames).unwrap();
            router.flush().unwrap();
        }
        if waited || said.elapsed() > Duration::from_millis(1) {
            said = Instant::now();
            while router.poll_event().is_some() {}
            peers_max = peers_max.max(router.socket().peer_count());
            *seen.lock().unwrap() = Seen {
                counters: router.counters(),
                peers: router.socket().peer_count(),
                peers_max,
                strange,
                cpu: cpu.used(),
            };
        }
    }
}

/// A small generator, so that every run is the same (xorshift64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
