//! One peer and the state of its transport.

use core::net::SocketAddr;
use std::collections::VecDeque;
use std::time::Instant;

use super::action::{Failure, LinkId};
use crate::reactor::Endpoint;
use crate::socket::{DisconnectReason, PeerId};
use crate::zmtp::{Connection, SendQueue};

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) state: State,
    pub(super) origin: Origin,
    pub(super) queue: SendQueue,
    /// Its routing ID from the last handshake, or as assigned by `connect_as`. A connecting peer
    /// keeps it while it is reconnecting.
    pub(super) routing_id: Vec<u8>,
    pub(super) address: String,
    /// It is in `Engine::ready`.
    pub(super) is_ready: bool,
    /// It is in `Engine::dirty`.
    pub(super) is_dirty: bool,
    /// Its time in `Engine::timers`.
    pub(super) timer: Option<Instant>,
}

/// Who opened the connection.
#[derive(Debug)]
pub(super) enum Origin {
    /// The peer; a listener accepted it. It is removed when its connection ends.
    Accepted,
    /// We. It is connected again when its connection ends.
    Connecting(Box<Target>),
}

/// The endpoint of a connecting peer, and what is known from earlier attempts.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    /// Failed attempts since the last established connection.
    pub(super) failures: u32,
    pub(super) lookup: Lookup,
    /// The owner chose the routing ID by `connect_as`; the peer's own routing ID is ignored.
    pub(super) has_assigned_id: bool,
    /// The routing ID of a peer that has connected to us. While it is connected, this peer is not.
    pub(super) stands_by_for: Option<Vec<u8>>,
}

/// The lookup of a target's host name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// None is running.
    None,
    Running,
    /// It ended after its deadline; the next attempt uses the result.
    Found(Vec<SocketAddr>),
}

/// ```text
///             ┌──────────────────── retry is due ───────────────────┐
///             ▼                                                     │
/// (connect) Resolving ─addresses─▶ Connecting ─connected─▶ Up ─lost─▶ Waiting   (connecting peers)
///             └────────── lost ────────┴──────── lost ──────────────▶
/// (accept)                                                 Up ─lost─▶ removed   (accepted peers)
/// ```
#[derive(Debug)]
pub(super) enum State {
    /// The next attempt to connect is due at this time.
    Waiting(Instant),
    /// The host name of the endpoint is being resolved, until the deadline. Endpoints with an
    /// address skip this state.
    Resolving(Instant),
    /// The transport is being connected.
    Connecting(Attempts),
    /// The transport is connected.
    Up(Up),
}

/// Attempts to connect to the addresses of an endpoint (RFC 8305): a further address is tried when
/// an attempt has failed, or has not succeeded for some time.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) deadline: Instant,
    /// Attempts for which the driver has not yet answered [`super::Action::Connect`].
    pub(super) starting: usize,
    /// Transports that are being connected.
    pub(super) links: Vec<LinkId>,
    /// Addresses that have not been tried; `None` for ipc.
    pub(super) left: VecDeque<Option<SocketAddr>>,
    /// When the next of them is tried.
    pub(super) next_at: Option<Instant>,
    /// Why attempts failed: the last failure, refused only if all were.
    pub(super) failure: Option<Failure>,
}

/// A connected transport.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) link: LinkId,
    pub(super) connection: Box<Connection>,
    pub(super) phase: Phase,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) probe: Probe,
    /// A complete message was parsed by `poll_drive` and waits for the owner's next receive.
    pub(super) is_held: bool,
    /// It is received from only after this connection has ended, whose routing ID it has taken: so
    /// messages under one routing ID are in order.
    pub(super) waits_for: Option<PeerId>,
    /// Bytes of the queue have been written on this connection.
    pub(super) has_sent: bool,
    /// Its part of `Engine::received_bytes`.
    pub(super) counted: usize,
    /// The user that owns the other end of the connection; `None` until the driver has determined
    /// it.
    #[cfg(feature = "process")]
    pub(super) user: Option<crate::socket::users::LocalUser>,
}

/// ```text
///  Handshake ─done─▶ Open ─another connection takes its routing ID─▶ Draining ─end─▶ lost
///      └──────────── refused after its handshake ──────────────────────┘
/// ```
#[derive(Debug)]
pub(super) enum Phase {
    Handshake,
    Open,
    /// Nothing is sent any more, except for an ERROR. What the peer sent is still received, until
    /// the peer closes its end, no more bytes are waiting, or a limit is reached.
    Draining(Drain),
}

/// The rest of a connection whose reason to end is known.
#[derive(Debug)]
pub(super) struct Drain {
    pub(super) reason: DisconnectReason,
    /// Messages are delivered to the owner; otherwise they are counted as unreceived.
    pub(super) delivers: bool,
    /// The connection that has its routing ID now, and is not received from before this one has ended.
    pub(super) successor: Option<PeerId>,
    /// Until then the connection ends only when the peer closes its end. Without a deadline it ends
    /// when no more bytes are waiting.
    pub(super) deadline: Option<Instant>,
    /// Number of bytes that may still be read.
    pub(super) bytes_left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// No bytes are waiting.
    Blocked,
    /// A read may succeed without waiting.
    Readable,
    /// As `Readable`. The peer has closed its end, or sending has stopped: the connection is read
    /// until the end of the stream, and lost when no more bytes are waiting.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The transport accepts no bytes now.
    Blocked,
    /// A write may succeed without waiting.
    Writable,
    /// A write has failed: nothing more is sent. Received bytes are still read.
    Failed,
    /// As `Failed`: the heartbeat timed out, but the connection is kept until the owner has taken a
    /// received message.
    Silent,
    /// As `Failed`: the connection is draining.
    ShutDown,
}

/// The last read from an overdue peer before it is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// The peer is not overdue.
    None,
    /// The read is still to be done.
    Wanted,
    /// The read was done. Received bytes reset it on an established connection, but not during the
    /// handshake, so that a peer that sends single bytes cannot postpone the deadline.
    Done,
}

impl Probe {
    /// The state after a read.
    pub(super) fn after_read(self) -> Self {
        match self {
            Probe::None => Probe::None,
            Probe::Wanted | Probe::Done => Probe::Done,
        }
    }
}

impl Output {
    /// Nothing is sent any more on this connection.
    #[inline]
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Output::Failed | Output::Silent | Output::ShutDown)
    }
}

impl Peer {
    pub(super) fn new(state: State, origin: Origin, address: String) -> Self {
        Peer {
            state,
            origin,
            queue: SendQueue::new(),
            routing_id: Vec::new(),
            address,
            is_ready: false,
            is_dirty: false,
            timer: None,
        }
    }

    #[inline]
    pub(super) fn up(&self) -> Option<&Up> {
        match &self.state {
            State::Up(up) => Some(up),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.state {
            State::Up(up) => Some(up),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn connection(&self) -> Option<&Connection> {
        self.up().map(|up| &*up.connection)
    }

    pub(super) fn target(&self) -> Option<&Target> {
        match &self.origin {
            Origin::Connecting(target) => Some(target),
            Origin::Accepted => None,
        }
    }

    pub(super) fn target_mut(&mut self) -> Option<&mut Target> {
        match &mut self.origin {
            Origin::Connecting(target) => Some(target),
            Origin::Accepted => None,
        }
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(self.origin, Origin::Accepted)
    }

    /// Its handshake is done and it was not refused.
    #[inline]
    pub(super) fn is_established(&self) -> bool {
        self.up().is_some_and(Up::is_established)
    }

    /// It is established, and another connection has taken its routing ID.
    pub(super) fn is_draining(&self) -> bool {
        self.up()
            .is_some_and(|up| matches!(up.phase, Phase::Draining(_)))
    }

    /// A message is parsed and waits for the owner's next receive.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_held(&self) -> bool {
        self.up().is_some_and(|up| up.is_held)
    }
}

impl Up {
    pub(super) fn new(link: LinkId, connection: Box<Connection>) -> Self {
        Up {
            link,
            connection,
            phase: Phase::Handshake,
            input: Input::Readable,
            output: Output::Writable,
            probe: Probe::None,
            is_held: false,
            waits_for: None,
            has_sent: false,
            counted: 0,
            #[cfg(feature = "process")]
            user: None,
        }
    }

    #[inline]
    pub(super) fn is_established(&self) -> bool {
        match &self.phase {
            Phase::Handshake => false,
            Phase::Open => true,
            Phase::Draining(drain) => drain.delivers,
        }
    }

    /// Updates `counted` and `total` to the current receive memory of the connection.
    #[inline]
    pub(super) fn count_memory(&mut self, total: &mut u64) {
        let bytes = self.connection.receive_capacity();
        *total += bytes as u64;
        *total -= self.counted as u64;
        self.counted = bytes;
    }
}
