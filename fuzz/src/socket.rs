//! A ROUTER and a DEALER driven by a plan: endpoints are bound, connected and closed, messages are
//! sent in any state, raw peers send arbitrary bytes, and time jumps forward. Messages of a
//! connection must stay in order, counters must be consistent, and no state may remain when
//! everything is closed.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use casparian::reactor::{Endpoint, Reactor, token};
use casparian::socket::{
    Counters, Event, Options, PeerId, PlainClient, PlainServer, ReconnectStop, Security, Error,
    Socket, SocketType,
};

use casparian::socket::curve::{PublicKey, SecretKey};

use crate::connection::hands_shaken;

struct Scene {
    reactor: Reactor,
    sockets: [Socket; 2],
    now: Instant,
    raws: Vec<UnixStream>,
    /// The last message number that the ROUTER received on each connection.
    last: HashMap<PeerId, u32>,
    /// All message numbers that the ROUTER received.
    seen: HashSet<u32>,
    sent: u32,
    counters: [Counters; 2],
}

fn endpoint(choice: u8) -> Endpoint {
    let name = match choice % 6 {
        // This endpoint can be neither bound nor connected.
        5 => "ipc:///nowhere/at/all".to_owned(),
        // No process listens on this port, so connections are refused.
        4 => "tcp://127.0.0.1:1".to_owned(),
        number => format!(
            "ipc://@casparian-fuzz-socket-{}-{number}",
            std::process::id()
        ),
    };
    name.parse().unwrap()
}

fn options(plan: &mut Unstructured<'_>, routing_id: &str) -> Options {
    let flags: u16 = plan.arbitrary().unwrap_or(0);
    let flag = |bit: u16| flags & 1 << bit != 0;
    let mut options = Options::new()
        .routing_id(routing_id)
        .maxmsgsize(4096)
        .max_frames(8)
        .router_handover(flag(0))
        .router_mandatory(flag(1))
        .probe_router(flag(2))
        .immediate(flag(3))
        .handshake_ivl(Duration::from_millis(500))
        .connect_timeout(Duration::from_millis(500))
        .reconnect_ivl(Duration::from_millis(10))
        .reconnect_ivl_max(Duration::from_millis(100))
        .sndhwm(usize::from(flags >> 13))
        .reconnect_stop(ReconnectStop {
            conn_refused: flag(4),
            handshake_failed: flag(5),
            after_disconnect: flag(6),
        });
    if flag(7) {
        options = options.no_reconnect();
    }
    if flag(14) {
        options = options.rcvhwm_bytes(0).handshake_ivl(Duration::ZERO);
    }
    if flag(8) {
        options = options.sndhwm_bytes(600).sndhwm_total_bytes(1500);
    }
    if flag(9) {
        options = options.rcvhwm_bytes(512).rcvhwm_total_bytes(2048);
    }
    if flag(10) {
        options = options.max_connections(3).max_handshakes(2);
    }
    if flag(11) {
        options = options
            .heartbeat_ivl(Duration::from_millis(50))
            .heartbeat_timeout(Duration::from_millis(100))
            .heartbeat_ttl(Duration::from_millis(300));
    }
    if flag(12) {
        options = options.metadata("X-Fuzz", "yes");
    }
    options
}

impl Scene {
    fn iterate(&mut self) {
        self.reactor.wait(Some(self.now), self.now).unwrap();
        for event in self.reactor.events() {
            let owner = usize::from(token::owner(event.token()));
            self.sockets[owner].handle_ready(event, self.now);
        }
        for side in [0, 1] {
            let socket = &mut self.sockets[side];
            socket.handle_timeout(self.now);
            for _ in 0..32 {
                let Some(peer) = socket.receive(self.now) else {
                    break;
                };
                let message = socket.message(peer).expect("the message that was told");
                assert!(!message.is_empty() && message.len() <= 8 && message.size() <= 4096);
                assert!(socket.routing_id(peer).is_some());
                let number = match (message.get(0), message.get(1)) {
                    (Some(b"ours"), Some(number)) => number.try_into().ok().map(u32::from_be_bytes),
                    _ => None,
                };
                if side == 0
                    && let Some(number) = number
                    && number <= self.sent
                {
                    assert!(self.seen.insert(number), "{number} came twice");
                }
                if side == 0
                    && let Some(number) = number
                    && let Some(before) = self.last.insert(peer, number)
                {
                    assert!(number > before, "{number} after {before}");
                }
            }
            socket.flush(self.now);
            let mut told = 0;
            while let Some(event) = socket.poll_event() {
                assert!(!format!("{event:?}").is_empty());
                if let Event::Disconnected { reason, .. }
                | Event::HandshakeFailed { reason, .. }
                | Event::ConnectFailed { reason, .. } = event
                {
                    assert!(!reason.to_string().is_empty());
                }
                told += 1;
            }
            assert!(told < 100_000);
            casparian::fuzzing::check(socket);
            let (before, counters) = (self.counters[side], socket.counters());
            assert!(counters.established <= counters.accepted + counters.connected);
            assert!(counters.accepted >= before.accepted && counters.unsent >= before.unsent);
            self.counters[side] = counters;
        }
    }

    fn step(&mut self, plan: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let op: u8 = plan.arbitrary()?;
        let choice: u8 = plan.arbitrary()?;
        let side = usize::from(choice >> 7);
        let now = self.now;
        let socket = &mut self.sockets[side];
        match op % 14 {
            0 => drop(socket.bind(&endpoint(choice % 4))),
            1 => drop(socket.unbind(&endpoint(choice % 4))),
            2 => {
                if socket.peer_count() < 8 {
                    socket.connect(&endpoint(choice), now);
                }
            }
            3 => {
                let id = [&b"given"[..], b"", b"\0x", b"d"][usize::from(choice >> 3) % 4];
                drop(socket.connect_as(&endpoint(choice % 4), id, now));
            }
            4 => drop(socket.disconnect_endpoint(&endpoint(choice), now)),
            5 | 6 => {
                let number = (self.sent + 1).to_be_bytes();
                let body = vec![choice; usize::from(choice) * 17];
                let sent = match side {
                    0 => {
                        let id = [&b"d"[..], b"given", b"raw", b"nobody"][usize::from(choice) % 4];
                        socket.send_routed(id, &[b"theirs", &body])
                    }
                    _ => socket.send(&[b"ours", &number, &body]),
                };
                match sent {
                    Ok(()) => self.sent += u32::from(side == 1),
                    Err(Error::InvalidMessage) => assert!(body.len() > 4000),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                assert_eq!(
                    socket.send_to(PeerId::from_u64(u64::MAX), &[b"x"]),
                    Err(Error::Unroutable)
                );
                assert_eq!(socket.send(&[]).is_ok(), false);
            }
            7 => {
                let Endpoint::IpcAbstract(name) = endpoint(choice % 4) else {
                    return Ok(());
                };
                let address = SocketAddr::from_abstract_name(name).unwrap();
                if let Ok(raw) = UnixStream::connect_addr(&address)
                    && self.raws.len() < 6
                {
                    raw.set_nonblocking(true).unwrap();
                    self.raws.push(raw);
                }
            }
            8 | 9 => {
                if let Some(raw) = self.raws.last_mut() {
                    let bytes = match choice % 3 {
                        0 => hands_shaken(),
                        1 => {
                            let mut bytes = casparian::zmtp::Greeting::encode("NULL").to_vec();
                            bytes.extend(b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x01d");
                            bytes
                        }
                        _ => {
                            let size = usize::from(choice >> 2).min(plan.len());
                            plan.bytes(size)?.to_vec()
                        }
                    };
                    let _ = raw.write(&bytes);
                }
            }
            10 => {
                let at = usize::from(choice) % (self.raws.len() + 1);
                if at < self.raws.len() {
                    let mut raw = self.raws.remove(at);
                    let _ = raw.read(&mut [0; 4096]);
                    if choice & 64 != 0 {
                        self.raws.push(raw);
                    }
                }
            }
            11 => self.now += Duration::from_millis(u64::from(choice) * 4),
            12 => {
                socket.set_sndhwm(usize::from(choice % 4));
                if choice & 32 != 0 {
                    let security = socket_security(choice);
                    socket.set_security(security, now).expect("usable keys");
                }
            }
            _ => {
                for id in [&b"d"[..], b"given", b"raw"] {
                    if let Some(peer) = socket.route(id) {
                        assert!(socket.address(peer).is_some());
                        let open = socket.peer_info(peer).is_some();
                        assert_eq!(open, socket.received_at(peer).is_some());
                        if choice & 1 != 0 {
                            assert_eq!(PeerId::from_u64(peer.to_u64()), peer);
                            if choice & 2 != 0 {
                                // A peer to which we connected still exists after `reject`, because
                                // it reconnects.
                                assert!(socket.reject(peer, "no sense", now));
                                socket.disconnect(peer, now);
                                assert!(!socket.reject(peer, "no sense", now));
                            } else {
                                assert!(socket.disconnect(peer, now));
                            }
                            assert!(!socket.disconnect(peer, now), "it is gone");
                            assert_eq!(socket.route(id), None);
                        }
                    }
                }
                socket.drive(now);
            }
        }
        if op & 0x40 != 0 {
            self.iterate();
        }
        Ok(())
    }
}

fn socket_security(choice: u8) -> casparian::socket::Security {
    use casparian::socket::Security;
    // CURVE is rare, because its handshakes take a hundred times as long as everything else.
    match choice % 32 {
        1..=4 => Security::PlainClient(PlainClient::new("user", "pass").unwrap()),
        5..=8 => Security::PlainServer(PlainServer::new([("user", "pass")])),
        9 => crate::curve_keys::pair(0).0,
        10 => crate::curve_keys::pair(0).1,
        _ => Security::Null,
    }
}

pub fn run(data: &[u8]) {
    crate::ignore_sigpipe();
    casparian::fuzzing::reset(Vec::new());
    let mut plan = Unstructured::new(data);
    let reactor = Reactor::new().unwrap();
    let mut securities: [u8; 2] = plan.arbitrary().unwrap_or([0, 0]);
    if securities[0] < 200 {
        // In most plans the securities of both sides match.
        securities = match securities[0] {
            0..100 => [0, 0],
            100..195 => [5, 1],
            _ => [10, 9],
        };
    }
    let now = Instant::now();
    let router = options(&mut plan, "").security(socket_security(securities[0]));
    let dealer = options(&mut plan, "d").security(socket_security(securities[1]));
    let sockets = [
        Socket::new(SocketType::Router, router, reactor.registry(), token::new(0, 0), now).unwrap(),
        Socket::new(SocketType::Dealer, dealer, reactor.registry(), token::new(1, 0), now).unwrap(),
    ];
    for wrong in [
        Options::new().routing_id([0; 5]),
        Options::new().metadata("Y", "x"),
        Options::new().metadata("X-", vec![0; 5000]),
        Options::new().curve_client(
            SecretKey::from_bytes([1; 32]),
            PublicKey::from_bytes([0; 32]),
        ),
    ] {
        let refused = Socket::new(SocketType::Dealer, wrong, reactor.registry(), token::new(2, 0), now);
        assert!(!refused.unwrap_err().to_string().is_empty());
    }
    let (client, server) = crate::curve_keys::pair(0);
    if let (_, Security::CurveServer(server)) = (client, server) {
        for right in [
            Options::new().plain_client(PlainClient::new("user", "pass").unwrap()),
            Options::new().plain_server(PlainServer::new([("user", "pass")])),
            Options::new().curve_server(server.secret, server.clients),
        ] {
            assert!(Socket::new(SocketType::Router, right, reactor.registry(), token::new(2, 0), now).is_ok());
        }
    }
    assert!(!format!("{sockets:?}").is_empty());
    let mut scene = Scene {
        reactor,
        sockets,
        now: Instant::now(),
        raws: Vec::new(),
        last: HashMap::new(),
        seen: HashSet::new(),
        sent: 0,
        counters: Default::default(),
    };
    for _ in 0..80 {
        if scene.step(&mut plan).is_err() {
            break;
        }
    }
    for _ in 0..4 {
        scene.iterate();
    }
    for side in [0, 1] {
        let socket = &mut scene.sockets[side];
        for choice in 0..6 {
            socket.unbind(&endpoint(choice));
            while socket.disconnect_endpoint(&endpoint(choice), scene.now) {}
        }
    }
    scene.raws.clear();
    for _ in 0..1000 {
        scene.now += Duration::from_millis(200);
        scene.iterate();
        if scene.sockets.iter().all(|socket| socket.peer_count() == 0) {
            assert!(
                scene
                    .sockets
                    .iter()
                    .all(|socket| socket.pending_bytes() == 0)
            );
            return;
        }
    }
    panic!("peers stay: {:?}", scene.sockets);
}
