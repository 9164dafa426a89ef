//! The ROUTER: checks what comes, answers it, kicks peers and restarts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use casparian::socket::{DisconnectReason, Event, Options, PeerId, Router};

use crate::support::*;
use crate::{Random, Shared};

/// What the server has to say at the end.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) received: u64,
    pub(crate) accepted: u64,
    pub(crate) established: u64,
    pub(crate) ended: u64,
    pub(crate) kicked: u64,
    pub(crate) handed_over: u64,
    pub(crate) restarts: u64,
    pub(crate) memory_early: u64,
    pub(crate) memory_late: u64,
    /// CPU time of the first quarter of the messages, and of the last.
    pub(crate) cpu_early: Duration,
    pub(crate) cpu_late: Duration,
    pub(crate) cpu: Duration,
    pub(crate) idle_cpu: Duration,
}

/// The last message of a peer.
#[derive(Clone, Copy, Default)]
struct Last {
    epoch: u64,
    number: u64,
    connection: u64,
    answers: u64,
}

pub(crate) struct Server<'a> {
    options: &'a Options,
    bound: &'a str,
    shared: &'a Shared,
    random: Random,
    last: HashMap<Vec<u8>, Last>,
    /// Number of connections of each routing ID, draining ones included.
    connections: HashMap<Vec<u8>, i64>,
    /// Routing IDs a connection of which has ended since their last message.
    replaced: HashSet<Vec<u8>>,
    seen: Seen,
}

impl<'a> Server<'a> {
    pub(crate) fn new(options: &'a Options, bound: &'a str, shared: &'a Shared) -> Self {
        Server {
            options,
            bound,
            shared,
            random: Random::new(shared.seed, u64::MAX),
            last: HashMap::new(),
            connections: HashMap::new(),
            replaced: HashSet::new(),
            seen: Seen::default(),
        }
    }

    pub(crate) fn run(mut self, mut router: Router) -> Seen {
        let mut cpu = ThreadCpu::new();
        let restart_every = self.shared.messages / 8 + 1;
        while !self.shared.over.load(Ordering::SeqCst) {
            let Some((from, frames)) = self.receive(&mut router) else {
                continue;
            };
            let before = self.seen.received;
            self.check(&mut router, &from, &frames);
            let received = self.seen.received;
            // Both under load: of the first quarter, and of the last.
            let quarter = self.shared.messages / 4;
            if received > before {
                match received {
                    _ if received == quarter => {
                        self.seen.memory_early = rss();
                        self.seen.cpu_early = cpu.used();
                    }
                    _ if received == 3 * quarter => self.seen.cpu_late = cpu.used(),
                    _ if received == 4 * quarter => {
                        self.seen.memory_late = rss();
                        self.seen.cpu_late = cpu.used() - self.seen.cpu_late;
                    }
                    _ => {}
                }
            }
            let counted = received > before;
            if counted && received.is_multiple_of(restart_every) && !self.shared.is_done() {
                // All connections die at once, and what was on its way may.
                self.count(&mut router);
                drop(router);
                router = Router::new(self.options.clone()).unwrap();
                router.bind(self.bound).unwrap();
                self.seen.restarts += 1;
                self.connections.clear();
            }
        }
        until("everybody is gone", || {
            router.receive(Some(Duration::from_millis(1))).unwrap();
            (router.socket().peer_count() == 0).then_some(())
        });
        self.count(&mut router);
        self.seen.cpu = cpu.used();
        let idle = Instant::now() + Duration::from_millis(500);
        while Instant::now() < idle {
            router.receive(Some(Duration::from_millis(50))).unwrap();
        }
        self.seen.idle_cpu = cpu.used() - self.seen.cpu;
        self.seen
    }

    fn receive(&mut self, router: &mut Router) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
        let message = router.receive(Some(Duration::from_millis(2))).unwrap();
        let message = message.map(|(from, message)| (from.to_vec(), message.to_vecs()));
        for event in router.events() {
            match event {
                Event::Established { routing_id, .. } => {
                    *self.connections.entry(routing_id).or_default() += 1;
                }
                Event::Disconnected {
                    routing_id, reason, ..
                } => {
                    // Its last messages were taken for those of the connection that replaced it.
                    self.replaced.insert(routing_id.clone());
                    *self.connections.entry(routing_id).or_default() -= 1;
                    self.seen.handed_over += u64::from(reason == DisconnectReason::Handover);
                }
                _ => {}
            }
        }
        message
    }

    fn count(&mut self, router: &mut Router) {
        let counters = router.counters();
        self.seen.accepted += counters.accepted;
        self.seen.established += counters.established;
        self.seen.ended += counters.disconnected + counters.handshake_failed;
    }

    fn check(&mut self, router: &mut Router, from: &[u8], frames: &[Vec<u8>]) {
        // What strangers say under whatever name.
        let [head, filler] = frames else {
            return;
        };
        let Some((b"soak", numbers)) = head.split_first_chunk() else {
            return;
        };
        let number_at =
            |place: usize| u64::from_be_bytes(numbers[place * 8..][..8].try_into().unwrap());
        let (epoch, number, size) = (number_at(0), number_at(1), number_at(2));
        assert_eq!(filler.len() as u64, size);
        assert!(
            filler.iter().all(|byte| *byte == number as u8),
            "bytes of another message"
        );
        // A connection that another one has replaced, and that has ended since, has no route.
        let unrouted = PeerId::from_u64(u64::MAX);
        let peer = router.socket().route(from).unwrap_or(unrouted);
        let was_replaced = self.replaced.remove(from);
        let is_only = !was_replaced && self.connections.get(from) == Some(&1);
        let connection = self.seen.restarts << 48 | peer.to_u64();
        let last = self.last.entry(from.to_vec()).or_default();
        let said = format!(
            "{}: {epoch}.{number} after {}.{}",
            String::from_utf8_lossy(from),
            last.epoch,
            last.number
        );
        assert!(
            (epoch, number) > (last.epoch, last.number),
            "twice, or out of order: {said}"
        );
        if connection == last.connection && epoch == last.epoch && is_only {
            assert_eq!(
                number,
                last.number + 1,
                "lost on a living connection: {said}"
            );
        }
        if connection != last.connection {
            last.answers = 0;
        }
        (last.epoch, last.number, last.connection) = (epoch, number, connection);
        self.seen.received += 1;
        self.shared.received.fetch_add(1, Ordering::Relaxed);
        let mut answer = Vec::with_capacity(32);
        for number in [connection, last.answers + 1, epoch, number] {
            answer.extend(number.to_be_bytes());
        }
        // A peer that stalls gets no more answers until it reads.
        if router.send(from, &[&answer]).is_ok() {
            last.answers += 1;
        }
        if self.random.below(3000) == 0 {
            router.socket().disconnect(peer, Instant::now());
            self.seen.kicked += 1;
        }
    }
}
