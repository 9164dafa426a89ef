//! A broker between clients and workers: two ROUTERs in one event loop.
//!
//! `cargo run --example broker -- tcp://*:5555 tcp://*:5556` listens for clients at the first endpoint and
//! for workers at the second. Without arguments it also runs a client and two workers.
//!
//! A client is a REQ or DEALER socket: it sends a request and receives the reply. A worker is a DEALER
//! socket: it sends `READY`, receives requests, each after the routing ID of its client, and sends replies
//! with that routing ID first. A worker has one request at a time. The request of a worker that disconnects
//! goes to another worker, so a request may be processed twice.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casparian::reactor::mio::Token;
use casparian::reactor::{Endpoint, Reactor};
use casparian::socket::{self, Dealer, Event, Options, PeerId, Socket, SocketType};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;
type Frames = Vec<Vec<u8>>;

/// Requests that wait for a worker. At the limit no more are received, so clients have to wait.
const WAITING_MAX: usize = 10_000;

pub(crate) struct Broker {
    reactor: Reactor,
    clients: Socket,
    workers: Socket,
    /// Requests without a worker, each with the routing ID of its client first.
    waiting: VecDeque<Frames>,
    /// Workers without a request.
    idle: VecDeque<PeerId>,
    /// Workers with a request.
    busy: HashMap<PeerId, Frames>,
}

impl Broker {
    /// Listens at two endpoints. Returns them with the ports that the system chose.
    pub(crate) fn bind(clients: &str, workers: &str) -> Outcome<(Broker, [Endpoint; 2])> {
        let reactor = Reactor::new()?;
        let now = Instant::now();
        let socket = |first| {
            let options = Options::new().heartbeat_ivl(Duration::from_secs(1));
            let first = Token(first);
            Socket::new(SocketType::Router, options, reactor.registry(), first, now)
        };
        let mut broker = Broker {
            clients: socket(0)?,
            workers: socket(Socket::TOKENS)?,
            reactor,
            waiting: VecDeque::new(),
            idle: VecDeque::new(),
            busy: HashMap::new(),
        };
        let bound = [
            broker.clients.bind(&clients.parse()?)?,
            broker.workers.bind(&workers.parse()?)?,
        ];
        Ok((broker, bound))
    }

    /// Works until `must_stop` is set.
    pub(crate) fn run(&mut self, must_stop: &AtomicBool) -> Outcome {
        while !must_stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            // Each limited by a number of messages, so that neither side keeps the other waiting.
            for _ in 0..100 {
                let Some(worker) = self.workers.receive(now) else {
                    break;
                };
                self.handle_worker(worker);
            }
            for _ in 0..100 {
                if self.waiting.len() >= WAITING_MAX {
                    break;
                }
                let Some((client, message)) = self
                    .clients
                    .receive(now)
                    .and_then(|client| self.clients.received(client))
                else {
                    break;
                };
                let request = [client].into_iter().chain(message.iter());
                self.waiting
                    .push_back(request.map(<[u8]>::to_vec).collect());
            }
            self.handle_events();
            self.dispatch()?;
            for socket in [&mut self.clients, &mut self.workers] {
                socket.handle_timeout(now);
                socket.flush(now);
            }
            let is_full = self.waiting.len() >= WAITING_MAX;
            let is_ready = self.workers.has_ready() || (self.clients.has_ready() && !is_full);
            let wait = [
                self.clients.poll_timeout(),
                self.workers.poll_timeout(),
                Some(now + Duration::from_millis(100)),
            ];
            let wait = match is_ready {
                true => Some(now),
                false => wait.into_iter().flatten().min(),
            };
            self.reactor.wait(wait, now)?;
            let now = Instant::now();
            for event in self.reactor.events() {
                for socket in [&mut self.clients, &mut self.workers] {
                    if socket.owns(event.token()) {
                        socket.handle_ready(event, now);
                    }
                }
            }
        }
        Ok(())
    }

    /// A worker is ready, or replies.
    fn handle_worker(&mut self, worker: PeerId) {
        let Some(message) = self.workers.message(worker) else {
            return;
        };
        let frames: Vec<&[u8]> = message.iter().collect();
        if let [client, reply @ ..] = frames.as_slice()
            && !reply.is_empty()
        {
            // The client may be gone, or may not read its replies.
            if let Err(error) = self.clients.send_routed(client, reply) {
                eprintln!("a reply is dropped: {error}");
            }
            self.busy.remove(&worker);
        }
        if !self.busy.contains_key(&worker) && !self.idle.contains(&worker) {
            self.idle.push_back(worker);
        }
    }

    fn handle_events(&mut self) {
        while self.clients.poll_event().is_some() {}
        while let Some(event) = self.workers.poll_event() {
            if let Event::Disconnected { peer, .. } = event {
                self.idle.retain(|idle| *idle != peer);
                self.waiting.extend(self.busy.remove(&peer));
            }
        }
    }

    fn dispatch(&mut self) -> Outcome {
        while let (Some(worker), Some(request)) = (self.idle.front(), self.waiting.front()) {
            let frames: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            let sent = self.workers.send_to(*worker, &frames);
            let (worker, request) = (self.idle.pop_front(), self.waiting.pop_front());
            match (sent, worker, request) {
                (Ok(()), Some(worker), Some(request)) => drop(self.busy.insert(worker, request)),
                // It has just disconnected.
                (Err(socket::Error::Unroutable | socket::Error::Full), _, Some(request)) => {
                    self.waiting.push_front(request);
                }
                (Err(error), ..) => return Err(error.into()),
                (Ok(()), ..) => {}
            }
        }
        Ok(())
    }
}

/// Replies to each request with its frames in capital letters, until `must_stop` is set.
pub(crate) fn work(endpoint: &str, name: &str, must_stop: &AtomicBool) -> Outcome {
    let mut dealer = Dealer::new(Options::new().routing_id(name))?;
    dealer.connect(endpoint)?;
    dealer.send(&[b"READY"])?;
    while !must_stop.load(Ordering::Relaxed) {
        let wait = Some(Duration::from_millis(100));
        let Some(request) = dealer.receive(wait)?.map(|request| request.to_vecs()) else {
            continue;
        };
        let mut reply = request;
        // The routing ID of the client is kept.
        for frame in reply.iter_mut().skip(1) {
            frame.make_ascii_uppercase();
        }
        dealer.send_parts(&reply)?;
    }
    Ok(())
}

/// Sends requests at the same time, and returns their replies.
pub(crate) fn ask(endpoint: &str, requests: &[&str]) -> Outcome<Vec<String>> {
    let mut dealer = Dealer::new(Options::new())?;
    dealer.connect(endpoint)?;
    for request in requests {
        dealer.send(&[request.as_bytes()])?;
    }
    let mut replies = Vec::new();
    while replies.len() < requests.len() {
        let Some(reply) = dealer.receive(Some(Duration::from_secs(10)))? else {
            return Err("no reply".into());
        };
        let text = reply.get(0).unwrap_or_default();
        replies.push(String::from_utf8_lossy(text).into_owned());
    }
    Ok(replies)
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let must_stop = AtomicBool::new(false);
    if let [clients, workers] = arguments.as_slice() {
        let (mut broker, [clients, workers]) = Broker::bind(clients, workers)?;
        println!("clients connect to {clients}, workers to {workers}");
        return broker.run(&must_stop);
    }
    if !arguments.is_empty() {
        return Err("usage: broker [ENDPOINT-FOR-CLIENTS ENDPOINT-FOR-WORKERS]".into());
    }
    let (mut broker, bound) = Broker::bind("tcp://127.0.0.1:*", "ipc://*")?;
    let [clients, workers] = bound.map(|endpoint| endpoint.to_string());
    std::thread::scope(|scope| {
        let stop = &must_stop;
        let broker = scope.spawn(move || broker.run(stop));
        for name in ["w-1", "w-2"] {
            let workers = &workers;
            scope.spawn(move || work(workers, name, stop));
        }
        let replies = ask(&clients, &["to be", "or", "not to be"]);
        must_stop.store(true, Ordering::Relaxed);
        println!("{:?}", replies?);
        broker.join().map_err(|_| "the broker has panicked")?
    })
}
