//! Engines joined by simulated transports, in virtual time: bytes are delayed, cut into pieces and
//! blocked by full buffers; connections are half-closed, reset and refused. All choices come from one
//! seed, so that every run can be repeated.
//!
//! [`World`] is the driver of several engines. Tests and fuzz targets act as their owners.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod pipe;
pub(crate) mod storm;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::pipe::{Pipe, Side};
use super::action::{Action, Failure, LinkId, Read, Readiness, Step, Written};
use super::{Engine, PeerId, Size};
use crate::limits;
use crate::reactor::Endpoint;
use crate::socket::{Error, Event, Options, TransportError};
use crate::zmtp::{Slices, SocketType};

/// Bounds of what the simulated transports do.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// Longest delay of bytes, connects and closes.
    pub(crate) delay_max: Duration,
    /// Bytes that a direction of a connection holds, in flight and unread together.
    pub(crate) capacity: usize,
    /// Largest read and write; 0 = unlimited.
    pub(crate) chunk_max: usize,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            delay_max: Duration::from_millis(1),
            capacity: 256 << 10,
            chunk_max: 0,
        }
    }
}

/// A socket without an operating system.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    links: BTreeMap<u32, Link>,
    next_link: u32,
    /// Names under which it listens, with the connections that wait to be accepted.
    listens: Vec<(String, VecDeque<(usize, Side)>)>,
    /// Readiness that the owner has not processed.
    ready: Vec<(LinkId, Readiness)>,
}

struct Link {
    pipe: usize,
    side: Side,
    peer: Option<PeerId>,
}

/// What happens at a later time.
enum Due {
    /// Bytes or the end of a direction may have arrived at a side of a pipe.
    Arrival(usize, Side),
    Connected(usize, LinkId, PeerId),
    Refused(usize, LinkId, PeerId),
}

/// The routing ID of a message's peer, and its frames.
#[cfg(test)]
pub(crate) type Received = (Vec<u8>, Vec<Vec<u8>>);

/// Where a world's random numbers come from.
#[derive(Debug)]
pub(crate) struct Choices {
    /// The first numbers, a byte each, or more for large ones.
    bytes: VecDeque<u8>,
    /// The state of the pseudo-random numbers after them (SplitMix64).
    random: u64,
}

impl Choices {
    /// Pseudo-random numbers from a seed.
    #[cfg(test)]
    pub(crate) fn of_seed(seed: u64) -> Self {
        Choices {
            bytes: VecDeque::new(),
            random: seed,
        }
    }

    /// The numbers of an input, and then pseudo-random ones.
    #[cfg(fuzzing)]
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Choices {
            bytes: bytes.iter().copied().collect(),
            random: 0,
        }
    }

    fn next(&mut self, bound: u64) -> u64 {
        if self.bytes.is_empty() {
            self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            return (mixed ^ (mixed >> 31)) % bound;
        }
        let mut number = 0;
        let mut left = bound - 1;
        while left > 0 {
            number = number << 8 | u64::from(self.bytes.pop_front().unwrap_or(0));
            left >>= 8;
        }
        number % bound
    }
}

/// Nodes, pipes and the time.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pipes: Vec<Pipe>,
    due: BTreeMap<(Instant, u64), Due>,
    count: u64,
    choices: Choices,
    /// Hosts that resolve to these addresses, and addresses that do not answer.
    pub(crate) hosts: BTreeMap<String, Vec<core::net::SocketAddr>>,
    pub(crate) silent: Vec<core::net::SocketAddr>,
    /// Connects that were started, with their times.
    pub(crate) attempts: Vec<(Instant, Option<core::net::SocketAddr>)>,
}

impl World {
    pub(crate) fn new(choices: Choices, now: Instant) -> Self {
        World {
            now,
            nodes: Vec::new(),
            network: Network::default(),
            pipes: Vec::new(),
            due: BTreeMap::new(),
            count: 0,
            choices,
            hosts: BTreeMap::new(),
            silent: Vec::new(),
            attempts: Vec::new(),
        }
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn random(&mut self, bound: u64) -> u64 {
        self.choices.next(bound)
    }

    fn delay(&mut self) -> Duration {
        let longest = self.network.delay_max.as_nanos() as u64;
        Duration::from_nanos(self.random(longest + 1))
    }

    fn later(&mut self, at: Instant, due: Due) {
        self.count += 1;
        self.due.insert((at, self.count), due);
    }

    pub(crate) fn add(&mut self, socket_type: SocketType, options: Options) -> usize {
        let seed = self.random(u64::MAX);
        self.nodes.push(Node {
            engine: Engine::new(socket_type, options, seed),
            links: BTreeMap::new(),
            next_link: 0,
            listens: Vec::new(),
            ready: Vec::new(),
        });
        self.nodes.len() - 1
    }

    pub(crate) fn bind(&mut self, node: usize, name: &str) {
        let endpoint = Endpoint::IpcAbstract(name.to_owned());
        let index = self.nodes[node].engine.free_listener();
        self.nodes[node]
            .engine
            .handle_bound(index, &endpoint, &endpoint, true);
        self.nodes[node]
            .listens
            .push((name.to_owned(), VecDeque::new()));
    }

    pub(crate) fn connect(&mut self, node: usize, name: &str) -> PeerId {
        let endpoint = Endpoint::IpcAbstract(name.to_owned());
        self.connect_endpoint(node, &endpoint)
    }

    pub(crate) fn connect_endpoint(&mut self, node: usize, endpoint: &Endpoint) -> PeerId {
        let id = self.nodes[node].engine.connect(endpoint, self.now);
        self.perform(node);
        id
    }

    #[cfg(test)]
    pub(crate) fn connect_as(&mut self, node: usize, name: &str, routing_id: &[u8]) -> PeerId {
        let endpoint = Endpoint::IpcAbstract(name.to_owned());
        let id = self.nodes[node]
            .engine
            .connect_as(&endpoint, routing_id, self.now)
            .unwrap();
        self.perform(node);
        id
    }

    /// Queues a message: for the peer with a routing ID, or for the next peer of a DEALER.
    pub(crate) fn send(
        &mut self,
        node: usize,
        to: Option<&[u8]>,
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        let size = Size {
            frames: parts.len(),
            bytes: parts.iter().map(|part| part.len()).sum(),
        };
        let engine = &mut self.nodes[node].engine;
        let ids: Vec<PeerId> = match to {
            Some(routing_id) => engine.route(routing_id).into_iter().collect(),
            None => (0..engine.round_robin_count())
                .filter_map(|_| engine.next_dealt())
                .collect(),
        };
        let mut result = Err(match to {
            Some(_) => Error::Unroutable,
            None => Error::NoPeer,
        });
        for id in ids {
            let engine = &mut self.nodes[node].engine;
            match engine.send_to(id, size, |queue| queue.push(parts)) {
                Ok(flushes) => {
                    if flushes {
                        self.write(node, id);
                    }
                    return Ok(());
                }
                Err(Error::Unroutable) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    pub(crate) fn flush(&mut self, node: usize) {
        while let Some(id) = self.nodes[node].engine.next_dirty() {
            self.write(node, id);
        }
        self.perform(node);
    }

    /// One iteration of an owner's event loop without receiving: readiness, timers, accepts.
    pub(crate) fn process(&mut self, node: usize) {
        for (link, readiness) in std::mem::take(&mut self.nodes[node].ready) {
            let found = self.nodes[node].links.get(&link.0);
            if let Some(peer) = found.and_then(|link| link.peer) {
                self.nodes[node].engine.handle_ready(peer, readiness);
            }
        }
        if self.nodes[node].engine.retry_blocked(self.now) {
            self.flush(node);
        }
        self.nodes[node].engine.handle_timeout(self.now);
        self.perform(node);
        self.accept(node);
    }

    fn accept(&mut self, node: usize) {
        for index in 0..self.nodes[node].listens.len() {
            while self.nodes[node].engine.accepts(index, self.now) {
                let Some((pipe, side)) = self.nodes[node].listens[index].1.pop_front() else {
                    self.nodes[node].engine.handle_accept_blocked(index);
                    break;
                };
                let link = self.insert(node, pipe, side, None);
                let address = format!("sim {pipe}");
                let now = self.now;
                match self.nodes[node].engine.handle_accepted(link, address, now) {
                    Some(id) => self.nodes[node].links.get_mut(&link.0).unwrap().peer = Some(id),
                    None => self.close(node, link),
                }
                self.perform(node);
            }
        }
    }

    /// Receives a message: its peer, routing ID and frames.
    pub(crate) fn receive(&mut self, node: usize) -> Option<(PeerId, Vec<u8>, Vec<Vec<u8>>)> {
        let mut budget = self.nodes[node].engine.budget();
        loop {
            let now = self.now;
            let step = self.nodes[node].engine.poll_receive(&mut budget, now);
            self.perform(node);
            match step {
                Step::Message(id) => {
                    let (routing_id, message) = self.nodes[node].engine.received(id).unwrap();
                    return Some((id, routing_id.to_vec(), message.to_vecs()));
                }
                Step::Read(id, link) => self.read(node, id, link),
                _ => return None,
            }
        }
    }

    /// Drives a node whose owner does not receive.
    pub(crate) fn drive(&mut self, node: usize) {
        let mut budget = self.nodes[node].engine.budget();
        loop {
            let now = self.now;
            let step = self.nodes[node].engine.poll_drive(&mut budget, now);
            self.perform(node);
            match step {
                Step::Read(id, link) => self.read(node, id, link),
                _ => return,
            }
        }
    }

    pub(crate) fn check(&self, node: usize) {
        self.nodes[node].engine.check(self.now);
    }

    pub(crate) fn events(&mut self, node: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.nodes[node].engine.poll_event()).collect()
    }

    /// When something happens next: on a transport, or by a node's timer.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let due = self.due.keys().next().map(|(at, _)| *at);
        let timers = self
            .nodes
            .iter()
            .filter_map(|node| node.engine.poll_timeout());
        timers.chain(due).min()
    }

    /// True if a node has work without waiting.
    pub(crate) fn is_busy(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        !node.ready.is_empty()
            || node.engine.has_ready()
            || node.engine.has_dirty()
            || node.engine.may_accept()
            || node.engine.poll_timeout().is_some_and(|at| at <= self.now)
    }

    /// Advances the time to `to`; transports deliver what is due until then.
    pub(crate) fn advance(&mut self, to: Instant) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > to {
                break;
            }
            self.now = self.now.max(entry.key().0);
            let due = entry.remove();
            self.happen(due);
        }
        self.now = self.now.max(to);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Arrival(pipe, side) => {
                let readiness = self.pipes[pipe].arrive(side, self.now);
                if let Some((node, link)) = self.pipes[pipe].owner(side)
                    && readiness != Readiness::default()
                    && let Some(node) = self.nodes.get_mut(node)
                {
                    node.ready.push((link, readiness));
                }
            }
            Due::Connected(node, link, peer) => {
                let known = self.nodes.get(node);
                if known.is_none_or(|node| !node.links.contains_key(&link.0)) {
                    return;
                }
                let now = self.now;
                if !self.nodes[node].engine.handle_connected(peer, link, now) {
                    self.close(node, link);
                }
                self.perform(node);
            }
            Due::Refused(node, link, peer) => {
                let known = self.nodes.get_mut(node);
                if known.is_none_or(|node| node.links.remove(&link.0).is_none()) {
                    return;
                }
                let failure = Failure {
                    is_refused: true,
                    error: TransportError::timed_out("refused".to_owned()),
                };
                let now = self.now;
                self.nodes[node]
                    .engine
                    .handle_connect_failed(peer, Some(link), failure, now);
                self.perform(node);
            }
        }
    }

    /// Cuts the connection of a peer: both ends see a reset.
    pub(crate) fn cut(&mut self, node: usize, choice: u64) {
        let links: Vec<usize> = self.nodes[node]
            .links
            .values()
            .map(|link| link.pipe)
            .collect();
        if links.is_empty() {
            return;
        }
        let pipe = links[(choice % links.len() as u64) as usize];
        for side in [Side::Client, Side::Server] {
            self.pipes[pipe].reset(side);
            let at = self.now + self.delay();
            self.later(at, Due::Arrival(pipe, side));
        }
    }

    /// Ends a node, as when its process ends: all its connections are closed.
    #[cfg(test)]
    pub(crate) fn stop(&mut self, node: usize) {
        let links: Vec<u32> = self.nodes[node].links.keys().copied().collect();
        for link in links {
            self.close(node, LinkId(link));
        }
        self.nodes[node].listens.clear();
        self.nodes[node].ready.clear();
    }

    // ---- the driver ----

    fn perform(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].engine.poll_action() {
            match action {
                Action::Connect {
                    peer,
                    endpoint,
                    address,
                } => self.start_connect(node, peer, &endpoint, address),
                Action::Resolve { peer, endpoint } => {
                    let found = match &endpoint {
                        Endpoint::Tcp { host, .. } => self.hosts.get(host).cloned(),
                        _ => None,
                    };
                    let found = found.ok_or(Failure {
                        is_refused: false,
                        error: TransportError::timed_out("unknown host".to_owned()),
                    });
                    let now = self.now;
                    self.nodes[node].engine.handle_resolved(peer, found, now);
                }
                Action::AbandonLookup { .. } => {}
                Action::Close { link, last } => {
                    self.write_last(node, link, &last);
                    self.close(node, link);
                }
                Action::ShutDown { link, last } => {
                    self.write_last(node, link, &last);
                    if let Some(link) = self.nodes[node].links.get(&link.0) {
                        let (pipe, side) = (link.pipe, link.side);
                        let at = self.now + self.delay();
                        let at = self.pipes[pipe].end(side, at);
                        self.later(at, Due::Arrival(pipe, side.other()));
                    }
                }
                Action::CloseListener { index } => self.nodes[node].listens[index].0.clear(),
            }
        }
    }

    fn start_connect(
        &mut self,
        node: usize,
        peer: PeerId,
        endpoint: &Endpoint,
        address: Option<core::net::SocketAddr>,
    ) {
        self.attempts.push((self.now, address));
        let name = match (endpoint, address) {
            (Endpoint::IpcAbstract(name), _) => name.clone(),
            (_, Some(address)) => address.to_string(),
            _ => String::new(),
        };
        let pipe = self.pipes.len();
        self.pipes.push(Pipe::new(self.network.capacity));
        let link = self.insert(node, pipe, Side::Client, Some(peer));
        assert!(self.nodes[node].engine.handle_connecting(peer, link));
        if address.is_some_and(|address| self.silent.contains(&address)) {
            return;
        }
        let at = self.now + self.delay();
        let listens = |other: &Node| other.listens.iter().position(|(known, _)| *known == name);
        let found = self.nodes.iter().enumerate();
        let mut found = found.filter_map(|(other, node)| Some((other, listens(node)?)));
        match found.next() {
            Some((other, index)) => {
                self.nodes[other].listens[index]
                    .1
                    .push_back((pipe, Side::Server));
                self.nodes[other].engine.handle_acceptable(index);
                self.later(at, Due::Connected(node, link, peer));
            }
            None => self.later(at, Due::Refused(node, link, peer)),
        }
    }

    fn insert(&mut self, node: usize, pipe: usize, side: Side, peer: Option<PeerId>) -> LinkId {
        let link = LinkId(self.nodes[node].next_link);
        self.nodes[node].next_link += 1;
        self.nodes[node]
            .links
            .insert(link.0, Link { pipe, side, peer });
        self.pipes[pipe].own(side, node, link);
        link
    }

    fn close(&mut self, node: usize, link: LinkId) {
        let Some(link) = self.nodes[node].links.remove(&link.0) else {
            return;
        };
        let at = self.now + self.delay();
        let at = self.pipes[link.pipe].close(link.side, at);
        self.later(at, Due::Arrival(link.pipe, link.side.other()));
    }

    fn chunk(&mut self) -> usize {
        match self.network.chunk_max {
            0 => usize::MAX,
            most => 1 + self.random(most as u64) as usize,
        }
    }

    fn read(&mut self, node: usize, id: PeerId, link: LinkId) {
        let most = self.chunk();
        let now = self.now;
        let Some(link) = self.nodes[node].links.get(&link.0) else {
            return;
        };
        let (pipe, side) = (link.pipe, link.side);
        let Some(space) = self.nodes[node].engine.read_space(id, now) else {
            return;
        };
        let room = space.len();
        assert!(room > 0, "a read without space");
        let result = self.pipes[pipe].read(side, space.get_mut(..room.min(most)).unwrap());
        // After a short read nothing more is waiting, except for an end.
        let is_full = self.pipes[pipe].has_unread(side)
            || matches!(result, Read::Bytes(count) if count == room);
        if let Read::Bytes(_) = result {
            // The other end may write again.
            let at = self.now + self.delay();
            self.later(at, Due::Arrival(pipe, side.other()));
        }
        self.nodes[node]
            .engine
            .handle_read(id, result, is_full, now);
        self.perform(node);
    }

    fn write(&mut self, node: usize, id: PeerId) {
        let now = self.now;
        let mut seal_bytes = self.chunk().min(limits::SEAL_BYTES_PER_ITERATION);
        while let Some(link) = self.nodes[node].engine.poll_write(id, &mut seal_bytes, now) {
            let most = self.chunk();
            let Some(link) = self.nodes[node].links.get(&link.0) else {
                return;
            };
            let (pipe, side) = (link.pipe, link.side);
            let at = self.now + self.delay();
            let mut slices = Slices::new();
            self.nodes[node].engine.gather(id, &mut slices);
            let size = slices.size();
            let bytes: Vec<u8> = slices.iter().flatten().copied().take(most).collect();
            if bytes.is_empty() {
                return;
            }
            let (result, at) = self.pipes[pipe].write(side, &bytes, at);
            let is_blocked = matches!(result, Written::Bytes(count) if count < size);
            if let Written::Bytes(_) = result {
                self.later(at, Due::Arrival(pipe, side.other()));
            }
            if is_blocked {
                // A short write is followed by readiness once there is room.
                self.pipes[pipe].note_blocked(side);
                let soon = self.now + Duration::from_nanos(100);
                self.later(soon, Due::Arrival(pipe, side));
            }
            if !self.nodes[node]
                .engine
                .handle_written(id, size, result, now)
            {
                break;
            }
        }
        self.perform(node);
    }

    fn write_last(&mut self, node: usize, link: LinkId, last: &[u8]) {
        if last.is_empty() {
            return;
        }
        if let Some(link) = self.nodes[node].links.get(&link.0) {
            let (pipe, side) = (link.pipe, link.side);
            let at = self.now + self.delay();
            let (_, at) = self.pipes[pipe].write(side, last, at);
            self.later(at, Due::Arrival(pipe, side.other()));
        }
    }

    /// Runs all nodes as owners that receive at once, until `done` or `limit` of virtual time.
    /// Returns the messages that each node received.
    #[cfg(test)]
    pub(crate) fn run(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut World, &[Vec<Received>]) -> bool,
    ) -> Vec<Vec<Received>> {
        let mut received: Vec<Vec<Received>> = vec![Vec::new(); self.nodes.len()];
        let end = self.now + limit;
        while self.now < end && !done(self, &received) {
            let mut was_busy = false;
            for (node, received) in received.iter_mut().enumerate() {
                was_busy |= self.is_busy(node);
                self.process(node);
                while let Some((_, routing_id, parts)) = self.receive(node) {
                    received.push((routing_id, parts));
                }
                self.flush(node);
                self.check(node);
            }
            if !was_busy {
                let next = self.next_at().unwrap_or(end).min(end);
                self.advance(next.max(self.now + Duration::from_nanos(1)));
            } else {
                self.advance(self.now + Duration::from_micros(1));
            }
        }
        received
    }
}
