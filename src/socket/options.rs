//! Options of a socket.

use std::time::Duration;

use super::InvalidOption;
use crate::limits;
use crate::reactor::{Keepalive, StreamOptions};
use crate::zmtp::{Heartbeat, Limits, PlainClient, PlainServer, Security, may_be_chosen};

#[cfg(feature = "curve")]
use crate::zmtp::curve::{Clients, CurveClient, CurveServer, PublicKey, SecretKey};

/// The events after which a connecting socket does not reconnect (`ZMQ_RECONNECT_STOP`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReconnectStop {
    /// The connection was refused.
    pub conn_refused: bool,
    /// The handshake failed.
    pub handshake_failed: bool,
    /// An established connection ended.
    pub after_disconnect: bool,
}

/// Options of a socket. The methods are named after libzmq's options.
///
/// The defaults are for a control plane on a local network. They are libzmq's unless noted
/// otherwise.
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
    pub(super) linger: Duration,
    pub(super) sndhwm: usize,
    pub(super) sndhwm_bytes: u64,
    pub(super) sndhwm_total_bytes: u64,
    pub(super) rcvhwm: usize,
    pub(super) rcvhwm_bytes: usize,
    pub(super) rcvhwm_total_bytes: u64,
    pub(super) stream: StreamOptions,
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
            linger: Duration::ZERO,
            sndhwm: limits::SEND_HWM,
            sndhwm_bytes: limits::SEND_HWM_BYTES,
            sndhwm_total_bytes: limits::SEND_TOTAL_BYTES,
            rcvhwm: 0,
            rcvhwm_bytes: limits::RECEIVE_BUFFER_SIZE_MAX,
            rcvhwm_total_bytes: limits::RECEIVE_TOTAL_BYTES,
            stream: StreamOptions::default(),
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

    /// Our routing ID: at most 255 bytes, and not a zero byte and four others, as those that a ROUTER
    /// generates; creating a socket with another one fails. If it is empty (the default), each peer
    /// generates one. `ZMQ_ROUTING_ID`.
    #[must_use]
    pub fn routing_id(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.routing_id = id.into();
        self
    }

    /// How long the drop of a [`Router`](super::Router) or [`Dealer`](super::Dealer) waits at most until
    /// its queued messages are delivered, as [`close`](super::Router::close) does (default 0: they are
    /// dropped at once; libzmq's default is no limit). A drop cannot report whether they were, `close`
    /// does. `ZMQ_LINGER`.
    #[must_use]
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    /// Maximum number of queued messages for each peer (default 1000); 0 = no limit. `ZMQ_SNDHWM`.
    #[must_use]
    pub fn sndhwm(mut self, messages: usize) -> Self {
        self.sndhwm = messages;
        self
    }

    /// Maximum number of queued bytes for each peer (default 64 MiB); 0 = no limit. A message that
    /// is larger than the limit is accepted if the queue is empty. libzmq has no such limit.
    #[must_use]
    pub fn sndhwm_bytes(mut self, bytes: u64) -> Self {
        self.sndhwm_bytes = bytes;
        self
    }

    /// Maximum number of queued bytes for all peers together (default 1 GiB); 0 = no limit. Each
    /// peer may queue 64 KiB beyond the limit, so that stalled peers cannot starve others.
    #[must_use]
    pub fn sndhwm_total_bytes(mut self, bytes: u64) -> Self {
        self.sndhwm_total_bytes = bytes;
        self
    }

    /// Maximum number of complete messages that are read ahead of the owner, for each peer. 0 =
    /// limited by [`Options::rcvhwm_bytes`] only (the default; libzmq's is 1000). With a low limit,
    /// more messages stay with their sender, which can send them to other peers. It also costs more
    /// reads: with 1, two or three for each frame. `ZMQ_RCVHWM`.
    #[must_use]
    pub fn rcvhwm(mut self, messages: usize) -> Self {
        self.rcvhwm = messages;
        self
    }

    /// Maximum number of bytes that are read ahead of the owner, for each peer (default 256 KiB, at
    /// least 512); 0 = limited by [`Options::rcvhwm_total_bytes`] only. libzmq has no such limit.
    #[must_use]
    pub fn rcvhwm_bytes(mut self, bytes: usize) -> Self {
        self.rcvhwm_bytes = match bytes {
            0 => usize::MAX,
            bytes => bytes.max(limits::RECEIVE_BUFFER_SIZE_MIN),
        };
        self
    }

    /// Maximum receive memory of all peers together in bytes, incomplete messages included (default
    /// 1 GiB); 0 = no limit. When a message needs more memory at the limit, the peer that uses most
    /// memory is disconnected.
    #[must_use]
    pub fn rcvhwm_total_bytes(mut self, bytes: u64) -> Self {
        self.rcvhwm_total_bytes = bytes;
        self
    }

    /// Size of a connection's send buffer in the kernel, in bytes (default: chosen and adapted by
    /// the system). `ZMQ_SNDBUF`.
    #[must_use]
    pub fn sndbuf(mut self, bytes: usize) -> Self {
        self.stream.buffers.send = Some(bytes);
        self
    }

    /// Size of a connection's receive buffer in the kernel, in bytes (default: chosen and adapted
    /// by the system). `ZMQ_RCVBUF`.
    #[must_use]
    pub fn rcvbuf(mut self, bytes: usize) -> Self {
        self.stream.buffers.receive = Some(bytes);
        self
    }

    /// Number of connections of a listener that wait to be accepted (default 4096; libzmq's is 100);
    /// the system may allow fewer (`net.core.somaxconn`). `ZMQ_BACKLOG`.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.stream.backlog = i32::try_from(connections).unwrap_or(i32::MAX);
        self
    }

    /// tcp keepalive: after `idle` without traffic a probe is sent, then one every `interval`. The
    /// connection fails after `probes` without an answer. By default the system sends none.
    /// `ZMQ_TCP_KEEPALIVE`, `_IDLE`, `_INTVL`, `_CNT`.
    #[must_use]
    pub fn tcp_keepalive(mut self, idle: Duration, interval: Duration, probes: u32) -> Self {
        self.stream.keepalive = Some(Keepalive {
            idle,
            interval,
            probes,
        });
        self
    }

    /// tcp: the connection fails if sent bytes are not acknowledged within this time (Linux; by
    /// default the system's limit, about 15 minutes). `ZMQ_TCP_MAXRT`.
    #[must_use]
    pub fn tcp_user_timeout(mut self, time: Duration) -> Self {
        self.stream.user_timeout = Some(time);
        self
    }

    /// Maximum size of a message in bytes, sent or received (default 64 MiB). Sending a larger one
    /// fails. Receiving a larger one closes the connection, and the messages behind it may be lost.
    /// `ZMQ_MAXMSGSIZE`, which is unlimited by default and applies to frames.
    #[must_use]
    pub fn maxmsgsize(mut self, bytes: u64) -> Self {
        self.limits.message_size_max = bytes;
        self.limits.frame_size_max = bytes;
        self
    }

    /// Maximum number of frames of a message, sent or received, empty ones included (default 4096).
    /// Sending more fails. Receiving more closes the connection.
    #[must_use]
    pub fn max_frames(mut self, frames: usize) -> Self {
        self.limits.frames_max = frames;
        self
    }

    /// Time limit of the handshake, from when the transport is connected (default 30 s); zero = no
    /// limit. `ZMQ_HANDSHAKE_IVL`.
    #[must_use]
    pub fn handshake_ivl(mut self, time: Duration) -> Self {
        self.handshake_ivl = unbounded_if_zero(time);
        self
    }

    /// Time limit for connecting the transport, and separately for the lookup of a host name before
    /// it (default 30 s each; libzmq has no limit); zero = the system's limit.
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

    /// The connection is closed if no byte arrives within this time after a PING (by default, and
    /// with zero: the interval). `ZMQ_HEARTBEAT_TIMEOUT`.
    #[must_use]
    pub fn heartbeat_timeout(mut self, time: Duration) -> Self {
        self.heartbeat_timeout = Some(time);
        self
    }

    /// TTL in our PINGs: the peer closes the connection if it receives nothing from us for this
    /// long. At most 6553.5 s; zero (the default) = none. `ZMQ_HEARTBEAT_TTL`.
    #[must_use]
    pub fn heartbeat_ttl(mut self, time: Duration) -> Self {
        self.heartbeat_ttl = time;
        self
    }

    /// First pause before reconnecting (default 100 ms, at least 1 ms). It doubles with every
    /// failure and is varied by ±25 %, so that many clients do not reconnect at the same time.
    /// `ZMQ_RECONNECT_IVL`.
    #[must_use]
    pub fn reconnect_ivl(mut self, time: Duration) -> Self {
        self.reconnect_ivl = Some(time);
        self
    }

    /// Never reconnects: `ZMQ_RECONNECT_IVL` of -1.
    #[must_use]
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect_ivl = None;
        self
    }

    /// Longest pause before reconnecting, and the pause after a refusal (default 5 s; libzmq's is
    /// zero). Zero = the pause does not grow, and after a refusal it is 5 s.
    /// `ZMQ_RECONNECT_IVL_MAX`.
    #[must_use]
    pub fn reconnect_ivl_max(mut self, time: Duration) -> Self {
        self.reconnect_ivl_max = time;
        self
    }

    /// Events after which the socket does not reconnect (default: none). `ZMQ_RECONNECT_STOP`.
    #[must_use]
    pub fn reconnect_stop(mut self, stop: ReconnectStop) -> Self {
        self.reconnect_stop = stop;
        self
    }

    /// ROUTER: a new peer with the routing ID of an existing peer replaces it (true), or is refused
    /// with ERROR (false, the default). If PLAIN, a list of CURVE keys or `LocalUsers` distinguishes
    /// users, none can take the routing ID of another. `ZMQ_ROUTER_HANDOVER`.
    #[must_use]
    pub fn router_handover(mut self, on: bool) -> Self {
        self.router_handover = on;
        self
    }

    /// ROUTER: a send to an unknown routing ID fails (true, the default, unlike libzmq), or the
    /// message is dropped (false). `ZMQ_ROUTER_MANDATORY`.
    #[must_use]
    pub fn router_mandatory(mut self, on: bool) -> Self {
        self.router_mandatory = on;
        self
    }

    /// Sends an empty message to every new peer, so that a ROUTER's owner receives our routing ID.
    /// `ZMQ_PROBE_ROUTER`.
    #[must_use]
    pub fn probe_router(mut self, on: bool) -> Self {
        self.probe_router = on;
        self
    }

    /// DEALER: messages are queued for established connections only (true), or also for peers that
    /// are not connected yet (false, the default). `ZMQ_IMMEDIATE`.
    #[must_use]
    pub fn immediate(mut self, on: bool) -> Self {
        self.immediate = on;
        self
    }

    /// Maximum number of peers (default 65536). At the limit a new connection replaces the one that
    /// has been in its handshake for longest; if there is none, the new connection is closed.
    #[must_use]
    pub fn max_connections(mut self, peers: usize) -> Self {
        self.connections_max = peers;
        self
    }

    /// Maximum number of accepted connections whose handshake is not done (default 16384). At the
    /// limit a new connection replaces the oldest of them, so that idle connections cannot keep
    /// others out.
    #[must_use]
    pub fn max_handshakes(mut self, peers: usize) -> Self {
        self.handshakes_max = peers.max(1);
        self
    }

    /// Adds a property that is sent to peers in the handshake. Its name must begin with `X-`;
    /// creating a socket with another one fails. `ZMQ_METADATA`.
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

    /// Of this host, only these users may connect to our listeners, and we connect only to their
    /// listeners. Peers on other hosts are not checked. For mechanisms that do not authenticate, on
    /// Linux. (libzmq has `ZMQ_IPC_FILTER_UID`.)
    #[cfg(feature = "process")]
    #[must_use]
    pub fn local_users(mut self, users: super::LocalUsers) -> Self {
        self.local_users = Some(users);
        self
    }

    /// PLAIN client with these credentials. `ZMQ_PLAIN_USERNAME`, `ZMQ_PLAIN_PASSWORD`.
    #[must_use]
    pub fn plain_client(self, client: PlainClient) -> Self {
        self.security(Security::PlainClient(client))
    }

    /// PLAIN server for these users. `ZMQ_PLAIN_SERVER`.
    #[must_use]
    pub fn plain_server(self, server: PlainServer) -> Self {
        self.security(Security::PlainServer(server))
    }

    /// CURVE client with our secret key and the server's public key. `ZMQ_CURVE_SECRETKEY`,
    /// `ZMQ_CURVE_SERVERKEY`.
    #[cfg(feature = "curve")]
    #[must_use]
    pub fn curve_client(self, secret: SecretKey, server: PublicKey) -> Self {
        self.security(Security::CurveClient(CurveClient { secret, server }))
    }

    /// CURVE server with our secret key and the clients that may connect. `ZMQ_CURVE_SERVER`,
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

pub(super) fn check_options(options: &Options) -> Result<(), InvalidOption> {
    if !may_be_chosen(&options.routing_id) {
        return Err(InvalidOption::RoutingId);
    }
    let named = |(name, _): &(String, Vec<u8>)| name.starts_with("X-") && name.len() <= 255;
    if !options.metadata.iter().all(named) {
        return Err(InvalidOption::PropertyName);
    }
    let size: usize = options
        .metadata
        .iter()
        .map(|(name, value)| 5 + name.len() + value.len())
        .sum();
    if size > limits::METADATA_KEPT_MAX {
        return Err(InvalidOption::PropertiesTooLarge);
    }
    check_security(&options.security)
}

pub(super) fn check_security(security: &Security) -> Result<(), InvalidOption> {
    #[cfg(feature = "curve")]
    if let Security::CurveClient(client) = security
        && client.server.is_low_order()
    {
        return Err(InvalidOption::ServerKey);
    }
    let _ = security;
    Ok(())
}
