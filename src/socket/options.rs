//! Options of a socket.

use std::io;
use std::time::Duration;

use crate::limits;
use crate::reactor::Buffers;
use crate::zmtp::{Heartbeat, Limits, PlainClient, PlainServer, Security};

#[cfg(feature = "curve")]
use crate::zmtp::curve::{Clients, CurveClient, CurveServer, PublicKey, SecretKey};

/// When a connecting socket gives up instead of trying again (`ZMQ_RECONNECT_STOP`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReconnectStop {
    /// Connection refused.
    pub conn_refused: bool,
    /// The handshake failed.
    pub handshake_failed: bool,
    /// An established connection ended.
    pub after_disconnect: bool,
}

/// Options of a socket, each set by a method named like libzmq's option.
///
/// The defaults fit a control plane on a local network. They are libzmq's where not noted
/// otherwise. Linger is an argument of [`close`](super::Router::close): a socket that is dropped
/// drops what is queued.
///
/// ```
/// use std::time::Duration;
/// use casparian::socket::Options;
///
/// let options = Options::new()
///     .routing_id("w-1")
///     .sndhwm(100)
///     .heartbeat_ivl(Duration::from_secs(1))
///     .reconnect_ivl(Duration::from_millis(50));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) routing_id: Vec<u8>,
    pub(super) sndhwm: usize,
    pub(super) sndhwm_bytes: u64,
    pub(super) sndhwm_total_bytes: u64,
    pub(super) rcvhwm: usize,
    pub(super) rcvhwm_bytes: usize,
    pub(super) rcvhwm_total_bytes: u64,
    pub(super) buffers: Buffers,
    pub(super) limits: Limits,
    pub(super) handshake_ivl: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) heartbeat_ivl: Duration,
    pub(super) heartbeat_timeout: Option<Duration>,
    pub(super) heartbeat_ttl: Duration,
    pub(super) reconnect_ivl: Option<Duration>,
    pub(super) reconnect_ivl_max: Duration,
    pub(super) reconnect_stop: ReconnectStop,
    pub(super) router_handover: bool,
    pub(super) router_mandatory: bool,
    pub(super) probe_router: bool,
    pub(super) immediate: bool,
    pub(super) connections_max: usize,
    pub(super) handshakes_max: usize,
    pub(super) metadata: Vec<(String, Vec<u8>)>,
    pub(super) security: Security,
    #[cfg(feature = "process")]
    pub(super) local_users: Option<super::LocalUsers>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            routing_id: Vec::new(),
            sndhwm: limits::SEND_HWM,
            sndhwm_bytes: limits::SEND_HWM_BYTES,
            sndhwm_total_bytes: limits::SEND_TOTAL_BYTES,
            rcvhwm: 0,
            rcvhwm_bytes: limits::RECEIVE_BUFFER_SIZE_MAX,
            rcvhwm_total_bytes: limits::RECEIVE_TOTAL_BYTES,
            buffers: Buffers::default(),
            limits: Limits::default(),
            handshake_ivl: limits::HANDSHAKE_TIMEOUT,
            connect_timeout: limits::HANDSHAKE_TIMEOUT,
            heartbeat_ivl: Duration::ZERO,
            heartbeat_timeout: None,
            heartbeat_ttl: Duration::ZERO,
            reconnect_ivl: Some(limits::RECONNECT_INTERVAL),
            reconnect_ivl_max: limits::RECONNECT_INTERVAL_MAX,
            reconnect_stop: ReconnectStop::default(),
            router_handover: false,
            router_mandatory: true,
            probe_router: false,
            immediate: false,
            connections_max: limits::CONNECTIONS_MAX,
            handshakes_max: limits::HANDSHAKES_MAX,
            metadata: Vec::new(),
            security: Security::Null,
            #[cfg(feature = "process")]
            local_users: None,
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Our routing ID, at most 255 bytes, the first not zero; a socket refuses others. Empty
    /// (the default) lets each peer make one up. `ZMQ_ROUTING_ID`.
    #[must_use]
    pub fn routing_id(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.routing_id = id.into();
        self
    }

    /// Messages queued per peer at most (default 1000); 0 = no bound. `ZMQ_SNDHWM`.
    #[must_use]
    pub fn sndhwm(mut self, messages: usize) -> Self {
        self.sndhwm = messages;
        self
    }

    /// Bytes queued per peer at most (default 64 MiB); 0 = no bound. A message that is larger
    /// than all of it is taken when the queue is empty. libzmq has no such bound.
    #[must_use]
    pub fn sndhwm_bytes(mut self, bytes: u64) -> Self {
        self.sndhwm_bytes = bytes;
        self
    }

    /// Bytes queued for all peers together at most (default 1 GiB); 0 = no bound. Peers for
    /// whom no more than 64 KiB are queued go on beyond it, so that those who take nothing do not
    /// silence the others.
    #[must_use]
    pub fn sndhwm_total_bytes(mut self, bytes: u64) -> Self {
        self.sndhwm_total_bytes = bytes;
        self
    }

    /// Whole messages read ahead of what the owner has received, per peer; 0 (the default,
    /// where libzmq's is 1000) = as many as there are in the bytes read ahead. A small mark
    /// leaves messages with their sender, for other peers of its to take, and costs reads: with
    /// 1 there are two or three a frame. `ZMQ_RCVHWM`.
    #[must_use]
    pub fn rcvhwm(mut self, messages: usize) -> Self {
        self.rcvhwm = messages;
        self
    }

    /// Bytes read ahead of what the owner has received, per peer (default 256 KiB, at least
    /// 512); 0 = no bound but the one of all peers. libzmq has no such bound.
    #[must_use]
    pub fn rcvhwm_bytes(mut self, bytes: usize) -> Self {
        self.rcvhwm_bytes = match bytes {
            0 => usize::MAX,
            bytes => bytes.max(limits::RECEIVE_BUFFER_SIZE_MIN),
        };
        self
    }

    /// Memory for what all peers send, unfinished messages included (default 1 GiB); 0 = no
    /// bound. At the bound a peer whose message needs more is closed.
    #[must_use]
    pub fn rcvhwm_total_bytes(mut self, bytes: u64) -> Self {
        self.rcvhwm_total_bytes = bytes;
        self
    }

    /// Bytes of the kernel's send buffer of a connection (default: the system's choice, which
    /// grows as it needs). `ZMQ_SNDBUF`.
    #[must_use]
    pub fn sndbuf(mut self, bytes: usize) -> Self {
        self.buffers.send = Some(bytes);
        self
    }

    /// Bytes of the kernel's receive buffer of a connection (default: the system's choice,
    /// which grows as it needs). `ZMQ_RCVBUF`.
    #[must_use]
    pub fn rcvbuf(mut self, bytes: usize) -> Self {
        self.buffers.receive = Some(bytes);
        self
    }

    /// Bytes of a message, either way (default 64 MiB). Who gets a larger one closes the
    /// connection; what was queued behind it may go with it. `ZMQ_MAXMSGSIZE`, which has no bound
    /// by default and counts frames.
    #[must_use]
    pub fn maxmsgsize(mut self, bytes: u64) -> Self {
        self.limits.message_size_max = bytes;
        self.limits.frame_size_max = bytes;
        self
    }

    /// Frames of a received message, empty ones included (default 4096).
    #[must_use]
    pub fn max_frames(mut self, frames: usize) -> Self {
        self.limits.frames_max = frames;
        self
    }

    /// Time from an open transport to the end of the handshake (default 30 s); zero = no bound.
    /// `ZMQ_HANDSHAKE_IVL`.
    #[must_use]
    pub fn handshake_ivl(mut self, time: Duration) -> Self {
        self.handshake_ivl = unbounded_if_zero(time);
        self
    }

    /// Time for the transport to open, and before that for the lookup of a host name (default
    /// 30 s each, libzmq has no bound); zero = as long as the system tries.
    /// `ZMQ_CONNECT_TIMEOUT`.
    #[must_use]
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = unbounded_if_zero(time);
        self
    }

    /// Time between our PINGs; zero (the default) sends none. `ZMQ_HEARTBEAT_IVL`.
    #[must_use]
    pub fn heartbeat_ivl(mut self, time: Duration) -> Self {
        self.heartbeat_ivl = time;
        self
    }

    /// Silence after a PING that ends the connection (default, and with zero: the interval).
    /// `ZMQ_HEARTBEAT_TIMEOUT`.
    #[must_use]
    pub fn heartbeat_timeout(mut self, time: Duration) -> Self {
        self.heartbeat_timeout = Some(time);
        self
    }

    /// What we ask the peer to wait for us at most, to 6553.5 s; zero (the default) asks for
    /// nothing. `ZMQ_HEARTBEAT_TTL`.
    #[must_use]
    pub fn heartbeat_ttl(mut self, time: Duration) -> Self {
        self.heartbeat_ttl = time;
        self
    }

    /// First pause before a connection is made again (default 100 ms, at least 1 ms); it doubles with every
    /// failure, ±25 % so that a fleet does not come back in one instant. `ZMQ_RECONNECT_IVL`.
    #[must_use]
    pub fn reconnect_ivl(mut self, time: Duration) -> Self {
        self.reconnect_ivl = Some(time);
        self
    }

    /// Never connects again: `ZMQ_RECONNECT_IVL` of -1.
    #[must_use]
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect_ivl = None;
        self
    }

    /// Longest pause, and the one after a refusal (default 5 s, libzmq's is zero); zero = pauses do not grow, and
    /// a refusal has the default. `ZMQ_RECONNECT_IVL_MAX`.
    #[must_use]
    pub fn reconnect_ivl_max(mut self, time: Duration) -> Self {
        self.reconnect_ivl_max = time;
        self
    }

    /// What ends the attempts (default: nothing). `ZMQ_RECONNECT_STOP`.
    #[must_use]
    pub fn reconnect_stop(mut self, stop: ReconnectStop) -> Self {
        self.reconnect_stop = stop;
        self
    }

    /// ROUTER: a newcomer with the routing ID of a living peer takes its place (true), or is
    /// refused with ERROR (false, the default). Where PLAIN or a list of CURVE keys proves who
    /// peers are, no user takes the routing ID of another. `ZMQ_ROUTER_HANDOVER`.
    #[must_use]
    pub fn router_handover(mut self, on: bool) -> Self {
        self.router_handover = on;
        self
    }

    /// ROUTER: a send to an unknown routing ID is an error (true, the default, unlike
    /// libzmq's) or dropped (false). `ZMQ_ROUTER_MANDATORY`.
    #[must_use]
    pub fn router_mandatory(mut self, on: bool) -> Self {
        self.router_mandatory = on;
        self
    }

    /// Sends an empty message to every new peer, by which a ROUTER learns of us.
    /// `ZMQ_PROBE_ROUTER`.
    #[must_use]
    pub fn probe_router(mut self, on: bool) -> Self {
        self.probe_router = on;
        self
    }

    /// DEALER: only established connections are sent to (true), or those under way as well
    /// (false, the default). `ZMQ_IMMEDIATE`.
    #[must_use]
    pub fn immediate(mut self, on: bool) -> Self {
        self.immediate = on;
        self
    }

    /// Peers at a time (default 65536); further connections are closed at once.
    #[must_use]
    pub fn max_connections(mut self, peers: usize) -> Self {
        self.connections_max = peers;
        self
    }

    /// Accepted connections at a time whose handshake is not done (default 16384). The oldest
    /// goes when one more comes, so that silent ones cannot keep others out.
    #[must_use]
    pub fn max_handshakes(mut self, peers: usize) -> Self {
        self.handshakes_max = peers.max(1);
        self
    }

    /// Adds a property that peers learn in the handshake; its name must begin with `X-`, a
    /// socket refuses others. `ZMQ_METADATA`.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// The mechanism, our role in it and our credentials (default NULL).
    #[must_use]
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Lets only these users of this host connect to our listeners, and connects to none of others;
    /// peers of other hosts are not asked. For mechanisms that do not authenticate, on Linux. (libzmq has `ZMQ_IPC_FILTER_UID`.)
    #[cfg(feature = "process")]
    #[must_use]
    pub fn local_users(mut self, users: super::LocalUsers) -> Self {
        self.local_users = Some(users);
        self
    }

    /// PLAIN, showing these credentials. `ZMQ_PLAIN_USERNAME`, `ZMQ_PLAIN_PASSWORD`.
    #[must_use]
    pub fn plain_client(self, client: PlainClient) -> Self {
        self.security(Security::PlainClient(client))
    }

    /// PLAIN, letting these users in. `ZMQ_PLAIN_SERVER`.
    #[must_use]
    pub fn plain_server(self, server: PlainServer) -> Self {
        self.security(Security::PlainServer(server))
    }

    /// CURVE with our secret key and the server's public one. `ZMQ_CURVE_SECRETKEY`,
    /// `ZMQ_CURVE_SERVERKEY`.
    #[cfg(feature = "curve")]
    #[must_use]
    pub fn curve_client(self, secret: SecretKey, server: PublicKey) -> Self {
        self.security(Security::CurveClient(CurveClient { secret, server }))
    }

    /// CURVE with our secret key, deciding who may connect. `ZMQ_CURVE_SERVER`,
    /// `ZMQ_CURVE_SECRETKEY`.
    #[cfg(feature = "curve")]
    #[must_use]
    pub fn curve_server(self, secret: SecretKey, clients: Clients) -> Self {
        self.security(Security::CurveServer(CurveServer { secret, clients }))
    }

    pub(super) fn heartbeat(&self) -> Option<Heartbeat> {
        let timeout = self.heartbeat_timeout.filter(|time| !time.is_zero());
        (!self.heartbeat_ivl.is_zero()).then(|| Heartbeat {
            interval: self.heartbeat_ivl,
            timeout: timeout.unwrap_or(self.heartbeat_ivl),
            ttl: self.heartbeat_ttl,
        })
    }
}

fn unbounded_if_zero(time: Duration) -> Duration {
    match time.is_zero() {
        true => Duration::MAX,
        false => time,
    }
}

pub(super) const ROUTING_ID_RULE: &str =
    "a routing ID is at most 255 bytes, the first of them not zero";

pub(super) fn is_routing_id(id: &[u8]) -> bool {
    id.len() <= 255 && id.first() != Some(&0)
}

pub(super) fn check_options(options: &Options) -> io::Result<()> {
    let refused = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if !is_routing_id(&options.routing_id) {
        return refused(ROUTING_ID_RULE);
    }
    let named = |(name, _): &(String, Vec<u8>)| name.starts_with("X-") && name.len() <= 255;
    if !options.metadata.iter().all(named) {
        return refused("the name of a property begins with X- and has at most 255 bytes");
    }
    let size: usize = options
        .metadata
        .iter()
        .map(|(name, value)| 5 + name.len() + value.len())
        .sum();
    if size > limits::METADATA_KEPT_MAX {
        return refused("the properties take more than 4096 bytes");
    }
    check_security(&options.security)
}

pub(super) fn check_security(security: &Security) -> io::Result<()> {
    #[cfg(feature = "curve")]
    if let Security::CurveClient(client) = security
        && client.server.is_low_order()
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the server's key is no usable key: its order is low",
        ));
    }
    let _ = security;
    Ok(())
}
