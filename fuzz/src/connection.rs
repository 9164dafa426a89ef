//! Two connections driven by a plan of writes, reads, forged bytes and waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use casparian::zmtp::{
    Config, Connection, Error, Heartbeat, Limits, Progress, Security, SendQueue, SocketType,
};

use crate::wire;

pub(crate) fn config(socket_type: SocketType) -> Config {
    Config {
        socket_type,
        routing_id: match socket_type {
            SocketType::Dealer => b"fuzz".to_vec(),
            SocketType::Router => Vec::new(),
        },
        limits: Limits::default(),
        read_ahead: 4096,
        rcvhwm: 0,
        handshake_timeout: Duration::from_secs(30),
        heartbeat: None,
        security: Security::Null,
        metadata: Vec::new(),
    }
}

/// The greeting and READY of a NULL DEALER.
pub(crate) fn hands_shaken() -> Vec<u8> {
    let mut bytes = casparian::zmtp::Greeting::encode("NULL").to_vec();
    let body = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
    bytes.extend([4, body.len() as u8]);
    bytes.extend_from_slice(body);
    bytes
}

/// Passes at most `step` bytes to a connection; returns how many it accepted.
pub(crate) fn feed(connection: &mut Connection, bytes: &[u8], step: usize, now: Instant) -> usize {
    let space = connection.receive_space(casparian::zmtp::Growth::ReadAhead);
    let count = step.min(bytes.len()).min(space.len());
    space[..count].copy_from_slice(&bytes[..count]);
    connection.handle_received(count, now);
    count
}

/// One end: its connection, the messages that it must send, and the messages and bytes that it has
/// received and written.
struct End {
    connection: Connection,
    queue: SendQueue,
    sent: Vec<Vec<Vec<u8>>>,
    received: Vec<Vec<Vec<u8>>>,
    established: bool,
    error: Option<Error>,
    written: Vec<u8>,
    /// Number of bytes of `written` that have been delivered to the other end.
    given: usize,
}

impl End {
    fn new(config: Config, now: Instant) -> Self {
        End {
            connection: Connection::new(Arc::new(config), now),
            queue: SendQueue::new(),
            sent: Vec::new(),
            received: Vec::new(),
            established: false,
            error: None,
            written: Vec::new(),
            given: 0,
        }
    }

    fn poll(&mut self, now: Instant) {
        loop {
            match self.connection.poll(now) {
                Ok(Progress::Established) => {
                    assert!(!self.established, "established twice");
                    assert!(self.error.is_none(), "established after an error");
                    self.established = true;
                }
                Ok(Progress::Message) => {
                    assert!(self.established, "a message before the handshake");
                    assert!(self.error.is_none(), "a message after an error");
                    let message = self.connection.message().to_vecs();
                    let size: usize = message.iter().map(Vec::len).sum();
                    assert!(size as u64 <= wire::MESSAGE_SIZE_MAX);
                    assert!(!message.is_empty() && message.len() <= wire::FRAMES_MAX);
                    self.received.push(message);
                }
                Ok(Progress::NeedInput) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    let _ = error.is_fatal();
                    self.error = self.error.take().or(Some(error));
                    break;
                }
            }
        }
        assert_eq!(
            self.connection.is_open(),
            self.established && self.error.is_none()
        );
    }

    fn receive(&mut self, mut bytes: &[u8], step: usize, now: Instant) {
        while !bytes.is_empty() && self.error.is_none() {
            let count = feed(&mut self.connection, bytes, step, now);
            bytes = &bytes[count..];
            self.poll(now);
        }
        let limit = if self.established {
            512 << 10
        } else {
            16 << 10
        };
        assert!(
            self.connection.receive_capacity() <= limit,
            "memory beyond what has arrived"
        );
    }

    fn write(&mut self, at_most: usize, now: Instant) {
        let mut left = at_most;
        while left > 0 && self.connection.wants_write(&self.queue) {
            self.connection.seal(&self.queue, usize::MAX).expect("sealing");
            let mut slices = casparian::zmtp::Slices::new();
            self.connection.gather(&self.queue, &mut slices);
            let bytes: Vec<u8> = slices.iter().flatten().copied().collect();
            assert!(!bytes.is_empty(), "wants to write nothing");
            let count = bytes.len().min(left);
            self.written.extend_from_slice(&bytes[..count]);
            self.connection.handle_written(&mut self.queue, count, now);
            left -= count;
        }
    }

    fn wait(&mut self, now: Instant, is_unread: bool) {
        assert!(self.connection.received_at() <= now);
        assert!(!format!("{:?}", self.connection).is_empty());
        self.connection.release_idle();
        self.queue.release_idle();
        let due = self.connection.poll_timeout().is_some_and(|at| at <= now);
        let is_overdue = self.connection.is_overdue(now);
        if let Err(error) = self.connection.handle_timeout(now, is_unread) {
            assert!(due && is_overdue, "timed out before its time");
            assert!(!is_unread, "timed out with bytes unread");
            assert!(!error.to_string().is_empty());
            assert!(matches!(
                error,
                Error::HandshakeTimeout | Error::HeartbeatTimeout
            ));
            self.error = self.error.take().or(Some(error));
        } else {
            assert!(
                is_unread || !is_overdue || self.error.is_some(),
                "time stands still"
            );
        }
    }
}

/// Whether the error can occur between two correct peers: a timeout, or a refusal if it is
/// expected.
fn is_nobodys_fault(error: &Error, may_be_refused: bool) -> bool {
    match error {
        Error::Refused { .. } | Error::Unauthorized { .. } => may_be_refused,
        error => matches!(
            error,
            Error::HandshakeTimeout
            | Error::HeartbeatTimeout
            // The cookie of CURVE expires after a minute.
            | Error::Curve { what: "INITIATE with a cookie of more than 60 s" }
        ),
    }
}

/// Runs a plan with a client and a server. `may_enter`: their securities allow the client to
/// connect.
pub(crate) fn run(data: &[u8], client: Security, server: Security, may_enter: bool) {
    let is_sealed = server.is_encrypted();
    casparian::fuzzing::reset(Vec::new());
    let mut plan = Unstructured::new(data);
    let mut now = Instant::now();
    let limits = Limits {
        frame_size_max: wire::FRAME_SIZE_MAX,
        message_size_max: wire::MESSAGE_SIZE_MAX,
        frames_max: wire::FRAMES_MAX,
    };
    let settings: u8 = plan.arbitrary().unwrap_or(0);
    let heartbeat = (settings & 1 != 0).then_some(Heartbeat {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(300),
        ttl: Duration::from_millis(if settings & 2 != 0 { 700 } else { 0 }),
    });
    let mut dealer = config(SocketType::Dealer);
    let mut router = config(SocketType::Router);
    (dealer.security, router.security) = (client, server);
    for config in [&mut dealer, &mut router] {
        config.limits = limits;
        config.heartbeat = heartbeat;
        if settings & 8 != 0 {
            config.handshake_timeout = Duration::from_secs(300);
        }
    }
    if settings & 4 != 0 {
        dealer.metadata.push(("X-Fuzz".to_owned(), b"yes".to_vec()));
    }
    let mut ends = [End::new(dealer, now), End::new(router, now)];
    // Which ends have received bytes that the other has not written.
    let mut lied = [false; 2];
    let mut sent_away = false;
    for _ in 0..200 {
        let Ok(op) = plan.arbitrary::<u8>() else {
            break;
        };
        let side = usize::from(op & 1);
        match op >> 1 & 7 {
            // Delivers a chosen number of the other end's written bytes, in steps.
            0 | 1 => {
                let step = usize::from(plan.arbitrary::<u8>().unwrap_or(255)) + 1;
                let from = &mut ends[1 - side];
                if op >> 4 == 15 {
                    // Delivers bytes again that were delivered before.
                    let bytes = from.written[..from.given].to_vec();
                    let from = usize::from(plan.arbitrary::<u16>().unwrap_or(0));
                    let bytes = bytes.get(from..).unwrap_or(&[]);
                    lied[side] |= !bytes.is_empty();
                    ends[side].receive(bytes, step, now);
                    continue;
                }
                let size = match op >> 4 {
                    0 => from.written.len() - from.given,
                    many => (usize::from(many) * 7).min(from.written.len() - from.given),
                };
                let bytes = from.written[from.given..from.given + size].to_vec();
                from.given += size;
                ends[side].receive(&bytes, step, now);
            }
            // Delivers forged bytes.
            2 => {
                let size = usize::from(plan.arbitrary::<u8>().unwrap_or(0));
                let bytes = plan.bytes(size.min(plan.len())).unwrap_or(&[]).to_vec();
                lied[side] |= !bytes.is_empty();
                ends[side].receive(&bytes, 64, now);
            }
            // Delivers written bytes, one of them changed.
            3 => {
                let at = usize::from(plan.arbitrary::<u16>().unwrap_or(0));
                let by = plan.arbitrary::<u8>().unwrap_or(0);
                let from = &mut ends[1 - side];
                let mut bytes = from.written[from.given..].to_vec();
                from.given = from.written.len();
                let size = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at % size) {
                    *byte ^= by;
                    lied[side] |= by != 0;
                }
                ends[side].receive(&bytes, 1000, now);
            }
            4 => {
                let count = usize::from(op >> 4) % wire::FRAMES_MAX + 1;
                let size = usize::from(plan.arbitrary::<u8>().unwrap_or(0)) % 180;
                let parts: Vec<Vec<u8>> = (0..count)
                    .map(|part| vec![op; (size + part) % 180])
                    .collect();
                let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                ends[side].queue.push(&slices);
                ends[side].sent.push(parts);
            }
            5 | 6 => {
                let size = plan.arbitrary::<u16>().unwrap_or(u16::MAX);
                ends[side].write(usize::from(size), now);
            }
            _ => {
                match op >> 4 {
                    15 => {
                        // The owner refuses the peer. For a CURVE server after its handshake, ERROR
                        // is an invalid frame, so it counts as forged.
                        lied[1 - side] = true;
                        sent_away = true;
                        ends[side].connection.refuse("enough");
                        ends[side].error = ends[side].error.take().or(Some(Error::Refused {
                            reason: "enough".to_owned(),
                        }));
                    }
                    14 => now += Duration::from_secs(61),
                    13 => now += Duration::from_secs(1),
                    few => now += Duration::from_millis(u64::from(few) * 20),
                }
                let is_unread = op >> 4 == 12;
                ends.iter_mut().for_each(|end| end.wait(now, is_unread));
            }
        }
    }
    // Without forged bytes, everything that is written must be understood.
    for _ in 0..8 {
        for side in [0, 1] {
            ends[side].write(usize::MAX, now);
            let bytes = ends[side].written.split_off(ends[side].given);
            ends[side].written.extend_from_slice(&bytes);
            ends[side].given = ends[side].written.len();
            ends[1 - side].receive(&bytes, usize::MAX, now);
        }
    }
    for side in [0, 1] {
        wire::assert_valid_output(&ends[side].written);
        let [this, other] = [&ends[side], &ends[1 - side]];
        if !lied[0] && !lied[1] {
            let may_be_refused = !may_enter || sent_away;
            let nobodys = |error: &&Error| !is_nobodys_fault(error, may_be_refused);
            let fault = this.error.as_ref().filter(nobodys);
            assert!(fault.is_none(), "an honest end fails: {fault:?}");
            if this.error.is_none() && other.error.is_none() {
                assert_eq!(this.received, other.sent);
            }
        }
        // With CURVE, a received message must be one that was sent, even with forged bytes.
        if is_sealed || !lied[side] {
            assert!(this.received.len() <= other.sent.len());
            assert_eq!(this.received[..], other.sent[..this.received.len()]);
        }
    }
    // With PLAIN, forged bytes may contain the right password.
    if !may_enter && (is_sealed || !lied[1]) {
        assert!(
            !ends[1].established && ends[1].received.is_empty(),
            "let in"
        );
    }
}
