//! The state machine of one connection.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroize;

use super::command::{Command, encode_error, encode_pong};
#[cfg(feature = "curve")]
use super::curve;
use super::error::STATUS_UNAUTHORIZED;
use super::frame::{FRAME_SIZE_MIN, Head, HeadResult, missing};
use super::greeting::{GREETING_SIZE, Greeting};
use super::mechanism::{Handshake, Outcome, encode_null_ready};
use super::message::{Message, Span};
use super::{Config, Error, Growth, Limits, PeerInfo, ReceiveBuffer, Security};
use crate::limits::{
    HANDSHAKE_READ_AHEAD, ZMTP_COMMAND_SIZE_MAX, ZMTP_HANDSHAKE_COMMAND_SIZE_MAX, after,
};

/// Result of one [`Connection::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes must be read.
    NeedInput,
    /// The handshake is done; [`Connection::peer`] is known and messages may be sent.
    Established,
    /// A complete message is available by [`Connection::message`].
    Message,
}

/// ```text
///  Greeting ──64 bytes──▶ Handshake ──mechanism done──▶ Open ──refuse──▶ Refused
///      └────────── error ──────┴──────── error ──────────┴────── error ─────┴──▶ Failed
/// ```
/// `Refused`: our side has queued ERROR and sends nothing else. What the peer has sent is still
/// parsed, so that its messages can be counted.
///
/// `control` contains our greeting from the start, and with NULL also our READY: RFC 37 allows both
/// sides to send at once, and libzmq does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Handshake,
    Open,
    Refused,
    Failed,
}

/// The state of one ZMTP connection, without its socket.
///
/// Inputs: bytes are read into [`Connection::receive_space`] and reported by
/// [`Connection::handle_received`]. [`Connection::handle_timeout`] is called when
/// [`Connection::poll_timeout`] is due. After either, call [`Connection::poll`] until it returns
/// [`Progress::NeedInput`]. Then write the slices of [`Connection::gather`] and report the count to
/// [`Connection::handle_written`].
pub struct Connection {
    config: Arc<Config>,
    state: State,
    handshake: Handshake,
    /// Encrypts and decrypts all traffic after CURVE's handshake.
    #[cfg(feature = "curve")]
    sealed: Option<Box<curve::Sealed>>,
    received: ReceiveBuffer,
    /// Number of bytes of `received` that have been parsed: the frames of the current message so
    /// far, or the complete message that `poll` reported last.
    parsed: usize,
    spans: Vec<Span>,
    message_size: u64,
    /// Total size of the commands between the frames of the current message, in bytes.
    commands_size: usize,
    complete: bool,
    peer: PeerInfo,
    /// Bytes of greeting, handshake and heartbeats. They are written before the next queued
    /// message.
    control: Vec<u8>,
    control_written: usize,
    handshake_deadline: Instant,
    received_at: Instant,
    ping_at: Option<Instant>,
    pong_deadline: Option<Instant>,
    /// The PING that `pong_deadline` belongs to is not written yet.
    ping_unwritten: bool,
    /// The peer answers PINGs: it announced ZMTP 3.1 or has sent a PONG. ZMTP 3.0 (RFC 23) has no
    /// PING, but libzmq 4.2 announces 3.0 and answers.
    answers_pings: bool,
    peer_ttl: Option<Duration>,
}

// One for each peer, of which there may be tens of thousands.
const _: () = assert!(size_of::<Connection>() <= 400);

/// Capacity of `spans`, in frames, that is kept for the next message.
const SPANS_KEPT_MAX: usize = 64;
/// While this many bytes of `control` are unwritten, no PING or PONG is added. So a peer that sends
/// PINGs and does not read cannot make it grow.
const CONTROL_PENDING_MAX: usize = 4096;

impl Connection {
    /// Creates the state of a connection whose transport has just been established.
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

    /// The buffer for the next read. It is empty only when the current message needs more memory
    /// and `growth` is [`Growth::None`].
    pub fn receive_space(&mut self, growth: Growth) -> &mut [u8] {
        let read_ahead = match self.state {
            State::Open => self.config.read_ahead,
            _ => self.config.read_ahead.min(HANDSHAKE_READ_AHEAD),
        };
        let bytes_max = match self.config.rcvhwm {
            0 => usize::MAX,
            messages => self.bytes_of(messages),
        };
        let space = self.received.space(read_ahead, growth);
        let size = space.len().min(bytes_max);
        space.get_mut(..size).unwrap_or(&mut [])
    }

    /// The largest read size by which at most `messages` messages can become complete: what the
    /// current frame lacks, plus one smallest frame for each further message.
    fn bytes_of(&self, messages: usize) -> usize {
        let filled = self.received.filled();
        let missing = match self.state {
            State::Greeting => GREETING_SIZE.saturating_sub(filled.len()).max(1),
            _ => missing(filled.get(self.parsed..).unwrap_or(&[])),
        };
        missing.saturating_add((messages - 1).saturating_mul(FRAME_SIZE_MIN))
    }

    /// Reports that `count` bytes were read into [`Connection::receive_space`]. Any byte counts as
    /// a sign of life and cancels the PONG deadline.
    pub fn handle_received(&mut self, count: usize, now: Instant) {
        self.received.fill(count);
        self.received_at = now;
        self.pong_deadline = None;
    }

    /// Continues parsing. After an error the connection has failed, and every call returns
    /// [`Progress::NeedInput`].
    #[inline]
    pub fn poll(&mut self, now: Instant) -> Result<Progress, Error> {
        self.consume_message();
        let result = match self.state {
            #[cfg(feature = "curve")]
            State::Open | State::Refused if self.sealed.is_some() => self.poll_sealed(),
            State::Open => self.poll_open(),
            // A CURVE client sends no messages before READY, in place of which it got ERROR.
            State::Refused if self.config.security.mechanism() == "CURVE" => {
                Ok(Progress::NeedInput)
            }
            State::Refused => self.poll_open(),
            State::Greeting | State::Handshake => self.poll_handshake(now),
            State::Failed => Ok(Progress::NeedInput),
        };
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// Drops the message that [`Connection::poll`] reported, as the next `poll` does.
    #[inline]
    pub fn consume_message(&mut self) {
        if self.complete {
            self.received.consume(self.parsed);
            self.parsed = 0;
            match self.spans.capacity() > SPANS_KEPT_MAX {
                true => self.spans = Vec::new(),
                false => self.spans.clear(),
            }
            self.message_size = 0;
            self.commands_size = 0;
            self.complete = false;
        }
    }

    /// True if received bytes follow what was parsed, so that [`Connection::poll`] may make progress
    /// without another read.
    #[inline]
    pub fn has_unparsed(&self) -> bool {
        self.received.filled().len() > self.parsed
    }

    /// True if [`Connection::receive_space`] is not empty without growth.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.received.has_room()
    }

    /// The message that [`Connection::poll`] reported. It has no frames if there is none.
    #[inline]
    pub fn message(&self) -> Message<'_> {
        if self.complete {
            Message::new(self.received.filled(), &self.spans)
        } else {
            Message::new(&[], &[])
        }
    }

    /// The properties of the peer from the handshake; empty before [`Progress::Established`].
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// True from [`Progress::Established`] until an error.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// True for a CURVE client that has queued HELLO and waits for WELCOME.
    pub(crate) fn is_unanswered(&self) -> bool {
        #[cfg(feature = "curve")]
        if let Handshake::CurveClient(client) = &self.handshake {
            return self.state == State::Handshake && client.is_unanswered();
        }
        false
    }

    /// When bytes last arrived.
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
                Outcome::Continue => {
                    // The cookie in WELCOME is invalid after COOKIE_LIFE. Closing the connection
                    // then also wipes the cookie key.
                    #[cfg(feature = "curve")]
                    if matches!(self.config.security, Security::CurveServer(_)) {
                        let end = after(now, curve::COOKIE_LIFE);
                        self.handshake_deadline = self.handshake_deadline.min(end);
                    }
                    continue;
                }
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
            let body_size = head.body_len();
            let Some(body) = rest
                .get(head.head_size..)
                .and_then(|bytes| bytes.get(..body_size))
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
            // Only the decrypted flags show whether this is a command, which has a limit of its
            // own.
            let inner_size = head.body_size.saturating_sub(OVERHEAD);
            let within = check_frame_size(inner_size, self.message_size, &self.config.limits);
            if inner_size > ZMTP_COMMAND_SIZE_MAX {
                within.clone()?;
            }
            let body_size = head.body_len();
            let body = rest.get_mut(head.head_size..).unwrap_or(&mut []);
            let received = body.len().min(body_size);
            let body = body.get_mut(..received).unwrap_or(&mut []);
            let Some(inner) = sealed.open(body, body_size)? else {
                return Ok(Progress::NeedInput);
            };
            let body = body.get(curve::MESSAGE_OVERHEAD..).unwrap_or(&[]);
            let body_start = self.parsed + head.head_size + curve::MESSAGE_OVERHEAD;
            self.parsed += head.head_size + body_size;
            if inner.command {
                check_command_size(inner_size, ZMTP_COMMAND_SIZE_MAX)?;
                let pong = handle_command(body, &mut self.peer_ttl, &mut self.answers_pings)?;
                if let Some(context) = pong
                    && self.control.len() < CONTROL_PENDING_MAX
                {
                    encode_pong(&mut self.control, context);
                }
                self.drop_command(head.head_size + body_size)?;
                continue;
            }
            within?;
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

    /// Drops a processed command of `size` bytes. Between the frames of a message, commands stay
    /// buffered until the message is complete, so their total size is limited.
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
            return check_command_size(head.body_size, ZMTP_COMMAND_SIZE_MAX);
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

    /// RFC 37 §3.5: a side that refuses the peer sends ERROR before it closes. ERROR is sent only
    /// during the handshake, and only for errors that the peer's operator can correct.
    fn fail(&mut self, error: &Error) {
        // A CURVE client refuses a server after READY. From READY on, the server accepts only
        // encrypted frames.
        #[cfg(feature = "curve")]
        let may_report = !matches!(self.config.security, Security::CurveClient(_));
        #[cfg(not(feature = "curve"))]
        let may_report = true;
        if may_report && self.state == State::Handshake {
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

    /// Queues ERROR with the given reason. Nothing else is sent any more. What the peer has sent is
    /// still parsed.
    ///
    /// A CURVE server sends ERROR in place of READY while no byte of READY is written. Otherwise an
    /// established CURVE connection sends no ERROR, because plaintext is no longer allowed. A
    /// connection that has failed does not change.
    pub fn refuse(&mut self, reason: &str) {
        if matches!(self.state, State::Refused | State::Failed) {
            return;
        }
        self.state = State::Refused;
        #[cfg(feature = "curve")]
        if let Some(sealed) = self.sealed.take()
            && !sealed.is_untouched()
        {
            self.control.clear();
            self.control_written = 0;
            self.sealed = Some(sealed);
            return;
        }
        encode_error(&mut self.control, reason);
    }

    /// Frees unused memory.
    pub fn release_idle(&mut self) {
        if !self.complete && self.spans.is_empty() {
            self.received.release_if_empty();
            self.spans = Vec::new();
        }
        #[cfg(feature = "curve")]
        if let Some(sealed) = &mut self.sealed {
            sealed.release_idle();
        }
    }

    /// Whether the message has so many frames that the table of their positions is larger than what
    /// is kept for the next message.
    #[inline]
    pub(crate) fn has_many_spans(&self) -> bool {
        self.spans.capacity() > SPANS_KEPT_MAX
    }

    /// Memory allocated for received data, in bytes.
    pub fn receive_capacity(&self) -> usize {
        self.received.capacity() + self.spans.capacity() * size_of::<Span>()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.control.zeroize();
        self.received.wipe_secret();
    }
}

/// Omits buffered bytes, which may be secret.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.state)
            .field("handshake", &self.handshake)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Rejects commands that are larger than any that this crate or libzmq sends.
fn check_command_size(size: u64, limit: u64) -> Result<(), Error> {
    if size > limit {
        return Err(Error::FrameTooLarge { size, limit });
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

/// The first frame in `filled`, or `None` until it is complete. Its size is limited as a command's,
/// because the handshake has only commands.
fn next_frame(filled: &[u8]) -> Result<Option<(Head, &[u8])>, Error> {
    let HeadResult::Head(head) = Head::decode(filled)? else {
        return Ok(None);
    };
    check_command_size(head.body_size, ZMTP_HANDSHAKE_COMMAND_SIZE_MAX)?;
    let body = filled
        .get(head.head_size..)
        .and_then(|bytes| bytes.get(..usize::try_from(head.body_size).ok()?));
    Ok(body.map(|body| (head, body)))
}

/// Processes a command on an open connection. Returns the context of a PING, which PONG must
/// repeat.
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
mod time;
mod write;
