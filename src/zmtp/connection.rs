//! The state machine of one connection.

use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroize;

use super::command::{Command, encode_error, encode_ping, encode_pong};
#[cfg(feature = "curve")]
use super::curve;
use super::error::STATUS_UNAUTHORIZED;
use super::frame::{Head, HeadResult};
use super::greeting::{GREETING_SIZE, Greeting};
use super::mechanism::{Handshake, Outcome, encode_null_ready};
use super::message::{Message, Span};
use super::{Error, Limits, ReceiveBuffer, Security, SendQueue};
use crate::limits::{
    HANDSHAKE_READ_AHEAD, ZMTP_COMMAND_SIZE_MAX, ZMTP_HANDSHAKE_COMMAND_SIZE_MAX, after,
};

/// The socket types this stack speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// Round-robin out, fair-queued in.
    Dealer,
    /// Addresses its peers by routing id.
    Router,
}

impl SocketType {
    /// The value of the `Socket-Type` property.
    pub fn name(self) -> &'static str {
        match self {
            SocketType::Dealer => "DEALER",
            SocketType::Router => "ROUTER",
        }
    }

    /// RFC 37 §3.6.1: which types may talk to each other.
    pub fn talks_to(self, peer: &[u8]) -> bool {
        match self {
            SocketType::Dealer => matches!(peer, b"REP" | b"DEALER" | b"ROUTER"),
            SocketType::Router => matches!(peer, b"REQ" | b"DEALER" | b"ROUTER"),
        }
    }
}

/// PING and the patience that goes with it (RFC 37 §3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between our PINGs.
    pub interval: Duration,
    /// Silence after a PING that closes the connection.
    pub timeout: Duration,
    /// What we ask the peer to wait for us at most; sent in tenths of a second, at most
    /// 6553.5 s. Zero = none.
    pub ttl: Duration,
}

/// What all connections of a socket share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our socket type.
    pub socket_type: SocketType,
    /// Our routing id, 0 to 255 octets; empty lets the peer make one up.
    pub identity: Vec<u8>,
    /// Bounds on what the peer may send.
    pub limits: Limits,
    /// Octets a busy connection reads ahead of what its owner has taken.
    pub read_ahead: usize,
    /// Time from the start of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Heartbeats, or none.
    pub heartbeat: Option<Heartbeat>,
    /// The security mechanism, our role in it and our credentials.
    pub security: Security,
    /// Properties of the application's own; names begin with `X-` (RFC 37 §3.4).
    pub metadata: Vec<(String, Vec<u8>)>,
}

/// What the handshake told about the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Its `Socket-Type`.
    pub socket_type: String,
    /// Its `Identity`; empty when it has none.
    pub identity: Vec<u8>,
    /// Minor version of ZMTP 3 in its greeting.
    pub minor: u8,
    /// Who it proved to be: the user name of PLAIN, the name of a listed CURVE key. Servers
    /// only.
    pub user_id: Option<String>,
    /// Its long-term key, proved by CURVE. Servers only.
    #[cfg(feature = "curve")]
    pub public_key: Option<curve::PublicKey>,
    /// Its properties with names that begin with `X-`.
    pub metadata: Vec<(String, Vec<u8>)>,
}

/// What one step of parsing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All octets are used up; read more.
    NeedInput,
    /// The handshake is done; [`Connection::peer`] is known and messages may be sent.
    Established,
    /// A whole message is there: [`Connection::message`].
    Message,
}

/// ```text
///  Greeting ──64 octets──▶ Handshake ──mechanism done──▶ Open
///      └────────── error ──────┴──────── error ──────────┴──▶ Failed
/// ```
/// Our greeting is in `control` from the start, and with NULL our READY too: RFC 37 lets both
/// sides send at once, and libzmq does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Handshake,
    Open,
    Failed,
}

/// One ZMTP connection without its socket.
///
/// Inputs: octets read into [`Connection::receive_space`] and announced by
/// [`Connection::handle_received`]; [`Connection::handle_timeout`]. After either, drain
/// [`Connection::poll`] until [`Progress::NeedInput`], then write what
/// [`Connection::gather`] gives and report it to [`Connection::handle_written`].
/// [`Connection::poll_timeout`] says when [`Connection::handle_timeout`] is due.
pub struct Connection {
    config: Arc<Config>,
    state: State,
    handshake: Handshake,
    /// Seals and opens all traffic once CURVE's handshake is done.
    #[cfg(feature = "curve")]
    sealed: Option<Box<curve::Sealed>>,
    received: ReceiveBuffer,
    /// Octets of `received` that have been parsed: the message so far, or the whole of the
    /// message given out last.
    parsed: usize,
    spans: Vec<Span>,
    message_size: u64,
    /// Octets of commands that stand between the frames of the message so far.
    commands_size: usize,
    complete: bool,
    peer: PeerInfo,
    /// Greeting, handshake and heartbeat octets; they go before the next queued message.
    control: Vec<u8>,
    control_written: usize,
    handshake_deadline: Instant,
    received_at: Instant,
    ping_at: Option<Instant>,
    pong_deadline: Option<Instant>,
    /// The PING that `pong_deadline` belongs to is not written yet.
    ping_unwritten: bool,
    /// It answers PINGs: it speaks 3.1, or has answered one. RFC 23 (3.0) knows no PING, though
    /// libzmq 4.2 announces 3.0 and answers.
    answers_pings: bool,
    peer_ttl: Option<Duration>,
}

/// PONGs waiting to be written are bounded: a peer that pings without reading gets no more.
const CONTROL_PENDING_MAX: usize = 4096;

impl Connection {
    /// A connection whose transport has just been made.
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        let mut control = Greeting::encode(config.security.mechanism()).to_vec();
        let handshake = Handshake::new(&config.security);
        if matches!(handshake, Handshake::Null) {
            encode_null_ready(&config, &mut control);
        }
        Connection {
            state: State::Greeting,
            handshake,
            #[cfg(feature = "curve")]
            sealed: None,
            received: {
                let mut received = ReceiveBuffer::default();
                received.set_secret(!matches!(config.security, Security::Null));
                received
            },
            parsed: 0,
            spans: Vec::new(),
            message_size: 0,
            commands_size: 0,
            complete: false,
            peer: PeerInfo::default(),
            control,
            control_written: 0,
            handshake_deadline: after(now, config.handshake_timeout),
            received_at: now,
            ping_at: None,
            pong_deadline: None,
            ping_unwritten: false,
            answers_pings: false,
            peer_ttl: None,
            config,
        }
    }

    /// Where the next read goes; empty only when the message under way needs more memory and
    /// `may_grow` is false.
    pub fn receive_space(&mut self, may_grow: bool) -> &mut [u8] {
        let read_ahead = match self.state {
            State::Open => self.config.read_ahead,
            _ => self.config.read_ahead.min(HANDSHAKE_READ_AHEAD),
        };
        self.received.space(read_ahead, may_grow)
    }

    /// `count` octets were read into [`Connection::receive_space`]. Any octet is life.
    pub fn handle_received(&mut self, count: usize, now: Instant) {
        self.received.fill(count);
        self.received_at = now;
        self.pong_deadline = None;
    }

    /// Parses on. After an error the connection is dead and every call gives the same kind.
    #[inline]
    pub fn poll(&mut self, now: Instant) -> Result<Progress, Error> {
        if self.complete {
            self.received.consume(self.parsed);
            self.parsed = 0;
            self.spans.clear();
            self.message_size = 0;
            self.commands_size = 0;
            self.complete = false;
        }
        let result = match self.state {
            #[cfg(feature = "curve")]
            State::Open if self.sealed.is_some() => self.poll_sealed(),
            State::Open => self.poll_open(),
            State::Greeting | State::Handshake => self.poll_handshake(now),
            State::Failed => Ok(Progress::NeedInput),
        };
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// The message [`Connection::poll`] announced; frames of zero length when there is none.
    #[inline]
    pub fn message(&self) -> Message<'_> {
        if self.complete {
            Message::new(self.received.filled(), &self.spans)
        } else {
            Message::new(&[], &[])
        }
    }

    /// What the handshake told; empty before [`Progress::Established`].
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// True from [`Progress::Established`] until an error.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// When octets last arrived.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    fn poll_handshake(&mut self, now: Instant) -> Result<Progress, Error> {
        if self.state == State::Greeting {
            let filled = self.received.filled();
            let Some(greeting) = filled.first_chunk::<GREETING_SIZE>() else {
                Greeting::check_prefix(filled)?;
                return Ok(Progress::NeedInput);
            };
            let greeting = Greeting::decode(greeting)?;
            greeting.require_mechanism(self.config.security.mechanism())?;
            self.peer.minor = greeting.minor;
            self.received.consume(GREETING_SIZE);
            self.state = State::Handshake;
            self.handshake.start(&self.config, &mut self.control)?;
        }
        loop {
            let filled = self.received.filled();
            let Some((head, body)) = next_frame(filled)? else {
                return Ok(Progress::NeedInput);
            };
            if !head.command {
                return Err(Error::UnexpectedInHandshake { what: "message" });
            }
            let outcome = self
                .handshake
                .handle(body, &self.config, now, &mut self.control)?;
            let size = head.head_size + body.len();
            self.received.consume_secret(size);
            let peer = match outcome {
                Outcome::Continue => continue,
                Outcome::Done(peer) => peer,
                #[cfg(feature = "curve")]
                Outcome::Sealed(peer, mut sealed) => {
                    let unwritten = std::mem::take(&mut self.control);
                    sealed.carry(unwritten.get(self.control_written..).unwrap_or(&[]));
                    self.control_written = 0;
                    self.sealed = Some(sealed);
                    peer
                }
            };
            let minor = self.peer.minor;
            self.peer = PeerInfo { minor, ..peer };
            self.state = State::Open;
            self.received.set_secret(false);
            self.answers_pings = minor > 0;
            self.ping_at = self
                .config
                .heartbeat
                .map(|heartbeat| after(now, heartbeat.interval));
            return Ok(Progress::Established);
        }
    }

    #[inline]
    fn poll_open(&mut self) -> Result<Progress, Error> {
        loop {
            let filled = self.received.filled();
            let rest = filled.get(self.parsed..).unwrap_or(&[]);
            let HeadResult::Head(head) = Head::decode(rest)? else {
                return Ok(Progress::NeedInput);
            };
            self.check_limits(&head)?;
            // The limits keep both far below usize::MAX.
            let body_size = head.body_size as usize;
            let Some(body) = rest
                .get(head.head_size..)
                .and_then(|octets| octets.get(..body_size))
            else {
                return Ok(Progress::NeedInput);
            };
            let body_start = self.parsed + head.head_size;
            self.parsed = body_start + body_size;
            if head.command {
                let pong = handle_command(body, &mut self.peer_ttl, &mut self.answers_pings)?;
                if let Some(context) = pong
                    && self.control.len() - self.control_written < CONTROL_PENDING_MAX
                {
                    encode_pong(&mut self.control, context);
                }
                self.drop_command(head.head_size + body_size)?;
                continue;
            }
            self.spans.push(Span {
                start: body_start,
                size: body_size,
            });
            self.message_size += head.body_size;
            if !head.more {
                self.complete = true;
                return Ok(Progress::Message);
            }
        }
    }

    /// [`Connection::poll_open`] for frames that are MESSAGEs of CURVE.
    #[cfg(feature = "curve")]
    fn poll_sealed(&mut self) -> Result<Progress, Error> {
        const OVERHEAD: u64 = curve::MESSAGE_OVERHEAD as u64;
        loop {
            let Some(sealed) = &mut self.sealed else {
                return Ok(Progress::NeedInput);
            };
            let filled = self.received.filled_mut();
            let rest = filled.get_mut(self.parsed..).unwrap_or(&mut []);
            let HeadResult::Head(head) = Head::decode(rest)? else {
                return Ok(Progress::NeedInput);
            };
            if head.more {
                return Err(Error::Curve {
                    what: "MESSAGE with the MORE bit outside its box",
                });
            }
            // Before the octets arrive nothing says whether the box holds a command.
            let inner_size = head.body_size.saturating_sub(OVERHEAD);
            check_frame_size(inner_size, self.message_size, &self.config.limits)?;
            let body_size = head.body_size as usize;
            let Some(body) = rest
                .get_mut(head.head_size..)
                .and_then(|octets| octets.get_mut(..body_size))
            else {
                return Ok(Progress::NeedInput);
            };
            let inner = sealed.open(body)?;
            let body = body.get(curve::MESSAGE_OVERHEAD..).unwrap_or(&[]);
            let body_start = self.parsed + head.head_size + curve::MESSAGE_OVERHEAD;
            self.parsed += head.head_size + body_size;
            if inner.command {
                let pong = handle_command(body, &mut self.peer_ttl, &mut self.answers_pings)?;
                if let Some(context) = pong
                    && self.control.len() < CONTROL_PENDING_MAX
                {
                    encode_pong(&mut self.control, context);
                }
                self.drop_command(head.head_size + body_size)?;
                continue;
            }
            if self.spans.len() >= self.config.limits.frames_max {
                return Err(Error::TooManyFrames {
                    limit: self.config.limits.frames_max,
                });
            }
            self.spans.push(Span {
                start: body_start,
                size: body.len(),
            });
            self.message_size += inner_size;
            if !inner.more {
                self.complete = true;
                return Ok(Progress::Message);
            }
        }
    }

    /// A command of so many octets is done with. Between the frames of a message it stays in the
    /// buffer until the message is complete, so those are bounded.
    fn drop_command(&mut self, size: usize) -> Result<(), Error> {
        if self.spans.is_empty() {
            self.received.consume(self.parsed);
            self.parsed = 0;
            return Ok(());
        }
        self.commands_size += size;
        let limit = crate::limits::ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX;
        if self.commands_size > limit {
            return Err(Error::TooManyCommands { limit });
        }
        Ok(())
    }

    #[inline]
    fn check_limits(&self, head: &Head) -> Result<(), Error> {
        if head.command {
            return check_command_size(head, ZMTP_COMMAND_SIZE_MAX);
        }
        let limits = &self.config.limits;
        check_frame_size(head.body_size, self.message_size, limits)?;
        if self.spans.len() >= limits.frames_max {
            return Err(Error::TooManyFrames {
                limit: limits.frames_max,
            });
        }
        Ok(())
    }

    /// RFC 37 §3.5: a side that refuses the other says so with ERROR before it closes. Only
    /// errors that the peer's operator can mend are told, and only during the handshake.
    fn fail(&mut self, error: &Error) {
        if self.state == State::Handshake {
            match error {
                Error::SocketTypeMismatch { .. } | Error::BadIdentity { .. } => {
                    encode_error(&mut self.control, &error.to_string());
                }
                Error::Unauthorized { .. } => {
                    encode_error(&mut self.control, STATUS_UNAUTHORIZED);
                }
                _ => {}
            }
        }
        self.state = State::Failed;
    }

    /// Queues ERROR with a reason of the owner's and ends the connection: nothing more is
    /// parsed or sent but what is in the control octets.
    ///
    /// A CURVE server says it in place of READY as long as that has not left; later, and as a
    /// client, a CURVE connection is ended without a word. One that has failed stays as it is.
    pub fn refuse(&mut self, reason: &str) {
        if self.state == State::Failed {
            return;
        }
        #[cfg(feature = "curve")]
        if self
            .sealed
            .take()
            .is_some_and(|sealed| !sealed.is_untouched())
        {
            // What is not sealed must not leave.
            self.control.clear();
            self.control_written = 0;
            self.state = State::Failed;
            return;
        }
        encode_error(&mut self.control, reason);
        self.state = State::Failed;
    }

    /// The earliest instant at which [`Connection::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Greeting | State::Handshake => Some(self.handshake_deadline),
            State::Open => [
                self.ping_at,
                self.pong_deadline,
                self.peer_ttl.map(|ttl| after(self.received_at, ttl)),
            ]
            .into_iter()
            .flatten()
            .min(),
            State::Failed => None,
        }
    }

    /// Whether [`Connection::handle_timeout`] would end it, but for octets that are unread.
    pub fn is_overdue(&self, now: Instant) -> bool {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        match self.state {
            State::Failed => false,
            State::Greeting | State::Handshake => now >= self.handshake_deadline,
            State::Open => {
                due(self.pong_deadline)
                    || due(self.peer_ttl.map(|ttl| after(self.received_at, ttl)))
            }
        }
    }

    /// Lets time pass: heartbeats are queued, deadlines close the connection.
    ///
    /// `is_unread` says that octets of the peer's may be waiting which nobody has read: then
    /// the silence is our own and does not count.
    pub fn handle_timeout(&mut self, now: Instant, is_unread: bool) -> Result<(), Error> {
        let is_open = self.state == State::Open;
        if !is_unread && self.is_overdue(now) {
            self.state = State::Failed;
            return Err(match is_open {
                true => Error::HeartbeatTimeout,
                false => Error::HandshakeTimeout,
            });
        }
        if is_open
            && self.ping_at.is_some_and(|at| at <= now)
            && let Some(heartbeat) = self.config.heartbeat
        {
            let ttl = u16::try_from(heartbeat.ttl.as_millis() / 100).unwrap_or(u16::MAX);
            // One PING at a time is enough while it waits behind a large message.
            if !self.ping_unwritten
                && self.control.len() - self.control_written < CONTROL_PENDING_MAX
            {
                encode_ping(&mut self.control, ttl);
            }
            self.ping_at = Some(after(now, heartbeat.interval));
            if self.pong_deadline.is_none() && self.answers_pings {
                self.pong_deadline = Some(after(now, heartbeat.timeout));
                self.ping_unwritten = true;
            }
            self.received.release_if_empty();
        }
        Ok(())
    }

    /// True when there is something to write now.
    #[inline]
    pub fn wants_write(&self, queue: &SendQueue) -> bool {
        let open = self.state == State::Open;
        let control = self.control_written < self.control.len();
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            // What is not sealed when the connection fails never will be.
            return !sealed.pending().is_empty() || (open && (control || !queue.is_empty()));
        }
        match open {
            true => control || !queue.is_empty(),
            // Nothing can follow a message that was cut.
            false => control && queue.unfinished() == 0,
        }
    }

    /// Makes what is to be written ready for [`Connection::gather`]; must come before it.
    ///
    /// With CURVE, control octets and queued messages are sealed here, a bounded amount ahead
    /// of the kernel; otherwise nothing happens.
    #[inline]
    pub fn seal(&mut self, queue: &SendQueue) -> Result<(), Error> {
        #[cfg(feature = "curve")]
        if self.state == State::Open
            && let Some(sealed) = &mut self.sealed
        {
            return sealed.seal(&mut self.control, queue);
        }
        let _ = queue;
        Ok(())
    }

    /// Adds the next octets to write to `out`, at most `slices_max` slices in all.
    ///
    /// A message that is partly on the wire is finished first, then control octets go, then
    /// further messages; before the handshake is done only control octets.
    pub fn gather<'a>(
        &'a self,
        queue: &'a SendQueue,
        slices_max: usize,
        out: &mut Vec<IoSlice<'a>>,
    ) {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            if out.len() < slices_max && !sealed.pending().is_empty() {
                out.push(IoSlice::new(sealed.pending()));
            }
            return;
        }
        if !self.wants_write(queue) {
            return;
        }
        let open = self.state == State::Open;
        let unfinished = if open { queue.unfinished() } else { 0 };
        if unfinished > 0 {
            queue.gather(0, unfinished, slices_max, out);
            let gathered: u64 = out.iter().map(|slice| slice.len() as u64).sum();
            if gathered < unfinished {
                return;
            }
        }
        let control = self.control.get(self.control_written..).unwrap_or(&[]);
        if !control.is_empty() && out.len() < slices_max {
            out.push(IoSlice::new(control));
        }
        if open && out.len() < slices_max {
            queue.gather(unfinished, u64::MAX, slices_max, out);
        }
    }

    /// The kernel took the first `count` octets of what [`Connection::gather`] gave.
    ///
    /// A PONG can be missed only from when its PING has left: it may have waited behind a large
    /// message, and a connection that takes octets is alive.
    pub fn handle_written(&mut self, queue: &mut SendQueue, count: usize, now: Instant) {
        if self.ping_unwritten
            && count > 0
            && let Some(heartbeat) = self.config.heartbeat
        {
            let deadline = after(now, heartbeat.timeout);
            self.pong_deadline = self.pong_deadline.map(|_| deadline);
        }
        self.advance(queue, count);
        self.ping_unwritten &= !self.control_is_written();
    }

    fn control_is_written(&self) -> bool {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed
            && !sealed.pending().is_empty()
        {
            return false;
        }
        self.control_written >= self.control.len()
    }

    fn advance(&mut self, queue: &mut SendQueue, count: usize) {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &mut self.sealed {
            queue.advance(sealed.handle_written(count));
            return;
        }
        let mut count = count as u64;
        let open = self.state == State::Open;
        let unfinished = if open {
            queue.unfinished().min(count)
        } else {
            0
        };
        queue.advance(unfinished);
        count -= unfinished;
        let pending = (self.control.len() - self.control_written) as u64;
        let control = pending.min(count);
        self.control_written += control as usize;
        if self.control_written == self.control.len() {
            // PLAIN's HELLO holds a password.
            self.control.zeroize();
            self.control = Vec::new();
            self.control_written = 0;
        }
        queue.advance(count - control);
    }

    /// Gives idle memory back.
    pub fn release_idle(&mut self) {
        if !self.complete && self.spans.is_empty() {
            self.received.release_if_empty();
        }
        #[cfg(feature = "curve")]
        if let Some(sealed) = &mut self.sealed {
            sealed.release_idle();
        }
    }

    /// Octets of memory that hold what the peer sent.
    pub fn receive_capacity(&self) -> usize {
        self.received.capacity()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.control.zeroize();
        self.received.wipe_secret();
    }
}

/// Without the octets, which may be a secret.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.state)
            .field("handshake", &self.handshake)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Commands are small; anything larger than this is no command we or libzmq would send.
fn check_command_size(head: &Head, limit: u64) -> Result<(), Error> {
    if head.body_size > limit {
        return Err(Error::FrameTooLarge {
            size: head.body_size,
            limit,
        });
    }
    Ok(())
}

fn check_frame_size(size: u64, message_size: u64, limits: &Limits) -> Result<(), Error> {
    if size > limits.frame_size_max {
        return Err(Error::FrameTooLarge {
            size,
            limit: limits.frame_size_max,
        });
    }
    let size = message_size + size;
    if size > limits.message_size_max {
        return Err(Error::MessageTooLarge {
            size,
            limit: limits.message_size_max,
        });
    }
    Ok(())
}

/// A whole frame of the handshake; every one of them is a command.
fn next_frame(filled: &[u8]) -> Result<Option<(Head, &[u8])>, Error> {
    let HeadResult::Head(head) = Head::decode(filled)? else {
        return Ok(None);
    };
    check_command_size(&head, ZMTP_HANDSHAKE_COMMAND_SIZE_MAX)?;
    let body = filled
        .get(head.head_size..)
        .and_then(|octets| octets.get(..usize::try_from(head.body_size).ok()?));
    Ok(body.map(|body| (head, body)))
}

/// A command on an open connection; gives the context of a PING to answer.
fn handle_command<'a>(
    body: &'a [u8],
    peer_ttl: &mut Option<Duration>,
    answers_pings: &mut bool,
) -> Result<Option<&'a [u8]>, Error> {
    match Command::decode(body)? {
        Command::Ping {
            ttl_deciseconds,
            context,
        } => {
            *peer_ttl = (ttl_deciseconds > 0)
                .then(|| Duration::from_millis(u64::from(ttl_deciseconds) * 100));
            Ok(Some(context))
        }
        Command::Pong => {
            *answers_pings = true;
            Ok(None)
        }
        Command::Unknown(_) => Ok(None),
        Command::Ready(_) => Err(Error::Repeated { command: "READY" }),
        Command::Error(reason) => Err(Error::Refused {
            reason: String::from_utf8_lossy(reason).into_owned(),
        }),
    }
}
#[cfg(test)]
mod tests;
