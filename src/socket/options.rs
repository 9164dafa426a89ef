//! What a socket is told when it is made.

use std::time::Duration;

use crate::limits;
use crate::zmtp::{Heartbeat, Limits};

/// Options of a socket; the defaults fit a control plane on a local network.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our routing id, at most 255 octets, the first not zero. Empty lets each peer make one
    /// up. (libzmq: `ZMQ_ROUTING_ID`)
    pub identity: Vec<u8>,
    /// Messages queued per peer at most; 0 = no bound. (`ZMQ_SNDHWM`)
    pub send_hwm: usize,
    /// Octets queued per peer at most; 0 = no bound. A message that is larger than all of it is
    /// taken when the queue is empty.
    pub send_hwm_octets: u64,
    /// Bounds on what a peer may send. (`ZMQ_MAXMSGSIZE`)
    pub limits: Limits,
    /// Time for connect and handshake together. (`ZMQ_HANDSHAKE_IVL`)
    pub handshake_timeout: Duration,
    /// Heartbeats, or none. (`ZMQ_HEARTBEAT_IVL`, `_TIMEOUT`, `_TTL`)
    pub heartbeat: Option<Heartbeat>,
    /// First pause before a connection is made again; it doubles with every failure, ±25 %
    /// jitter. (`ZMQ_RECONNECT_IVL`)
    pub reconnect_interval: Duration,
    /// Longest pause. (`ZMQ_RECONNECT_IVL_MAX`)
    pub reconnect_interval_max: Duration,
    /// ROUTER: a newcomer with the identity of a living peer takes its place; otherwise it is
    /// refused with ERROR. (`ZMQ_ROUTER_HANDOVER`)
    pub handover: bool,
    /// Peers at a time; further connections are closed at once.
    pub connections_max: usize,
    /// Peers at a time whose handshake is not done.
    pub handshakes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            identity: Vec::new(),
            send_hwm: limits::SEND_HWM,
            send_hwm_octets: limits::SEND_HWM_OCTETS,
            limits: Limits::default(),
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            heartbeat: None,
            reconnect_interval: limits::RECONNECT_INTERVAL,
            reconnect_interval_max: limits::RECONNECT_INTERVAL_MAX,
            handover: false,
            connections_max: limits::CONNECTIONS_MAX,
            handshakes_max: limits::HANDSHAKES_MAX,
        }
    }
}
