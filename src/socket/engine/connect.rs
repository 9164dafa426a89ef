//! Connecting: lookups, attempts at several addresses, pauses between attempts.

use core::net::SocketAddr;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::action::{Action, Failure, LinkId};
use super::peer::{Attempts, Lookup, Origin, Peer, State, Target, Up};
use super::{DisconnectReason, Engine, Event, PeerId};
use crate::limits;
use crate::reactor::Endpoint;
use crate::socket::{Error, InvalidOption};
use crate::zmtp::{Connection, may_be_chosen};

impl Engine {
    /// See [`Socket::connect`](crate::socket::Socket::connect).
    pub(in crate::socket) fn connect(&mut self, endpoint: &Endpoint, now: Instant) -> PeerId {
        if !self.is_router()
            && let Some(id) = self.peers_at(endpoint).first()
        {
            return *id;
        }
        let id = self.insert_target(endpoint, Vec::new(), now);
        if !self.is_router() && !self.options.immediate {
            self.round_robin.push(id);
        }
        self.start_connect(id, now);
        id
    }

    /// See [`Socket::connect_as`](crate::socket::Socket::connect_as).
    pub(in crate::socket) fn connect_as(
        &mut self,
        endpoint: &Endpoint,
        routing_id: &[u8],
        now: Instant,
    ) -> Result<PeerId, Error> {
        if !self.is_router() {
            return Err(InvalidOption::NotRouter.into());
        }
        if routing_id.is_empty() || !may_be_chosen(routing_id) {
            return Err(InvalidOption::RoutingId.into());
        }
        if self.routes.contains_key(routing_id) {
            return Err(Error::RoutingIdInUse);
        }
        let id = self.insert_target(endpoint, routing_id.to_vec(), now);
        self.routes.insert(routing_id.to_vec(), id);
        self.start_connect(id, now);
        Ok(id)
    }

    fn insert_target(&mut self, endpoint: &Endpoint, routing_id: Vec<u8>, now: Instant) -> PeerId {
        let target = Target {
            endpoint: endpoint.clone(),
            failures: 0,
            lookup: Lookup::None,
            has_assigned_id: !routing_id.is_empty(),
            stands_by_for: None,
        };
        let mut peer = Peer::new(
            State::Waiting(now),
            Origin::Connecting(Box::new(target)),
            endpoint.to_string(),
        );
        peer.routing_id = routing_id;
        self.peers.insert(peer)
    }

    /// The peers that are connected to an endpoint, or will be.
    pub(in crate::socket) fn peers_at(&self, endpoint: &Endpoint) -> Vec<PeerId> {
        let is_at = |peer: &Peer| {
            peer.target()
                .is_some_and(|target| &target.endpoint == endpoint)
        };
        let peers = self.peers.iter().filter(|(_, peer)| is_at(peer));
        peers.map(|(id, _)| id).collect()
    }

    /// Starts an attempt to connect. A host name is resolved first.
    pub(super) fn start_connect(&mut self, id: PeerId, now: Instant) {
        let Some(target) = self.peers.get_mut(id).and_then(Peer::target_mut) else {
            return;
        };
        if let Some(routing_id) = &target.stands_by_for {
            if self
                .routes
                .get(routing_id)
                .is_some_and(|other| *other != id)
            {
                return self.wait(id, now + limits::STAND_BY_INTERVAL);
            }
            target.stands_by_for = None;
        }
        if let Some(addresses) = target.endpoint.literal_addresses() {
            let addresses = match addresses.is_empty() {
                true => VecDeque::from([None]),
                false => addresses.into_iter().map(Some).collect(),
            };
            return self.start_attempts(id, addresses, now);
        }
        match std::mem::replace(&mut target.lookup, Lookup::Running) {
            Lookup::Found(addresses) => {
                target.lookup = Lookup::None;
                return self.start_attempts(id, in_order(addresses), now);
            }
            Lookup::Running => {}
            Lookup::None => self.actions.push_back(Action::Resolve {
                peer: id,
                endpoint: target.endpoint.clone(),
            }),
        }
        let deadline = limits::after(now, self.options.connect_timeout);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.state = State::Resolving(deadline);
        }
        self.set_timer(id, Some(deadline));
    }

    /// A lookup has ended.
    pub(in crate::socket) fn handle_resolved(
        &mut self,
        id: PeerId,
        found: Result<Vec<SocketAddr>, Failure>,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let is_awaited = matches!(peer.state, State::Resolving(_));
        let Some(target) = peer.target_mut() else {
            return;
        };
        target.lookup = Lookup::None;
        match found {
            Ok(addresses) if is_awaited => self.start_attempts(id, in_order(addresses), now),
            Ok(addresses) => target.lookup = Lookup::Found(addresses),
            Err(failure) if is_awaited => self.lose(id, failure.into(), now),
            Err(_) => {}
        }
    }

    /// The lookup could not be started because too many are running: it is tried again later.
    pub(in crate::socket) fn handle_resolve_later(&mut self, id: PeerId, now: Instant) {
        if let Some(target) = self.peers.get_mut(id).and_then(Peer::target_mut) {
            target.lookup = Lookup::None;
            self.wait(id, now + limits::LOOKUP_PAUSE);
        }
    }

    fn start_attempts(
        &mut self,
        id: PeerId,
        mut addresses: VecDeque<Option<SocketAddr>>,
        now: Instant,
    ) {
        addresses.truncate(limits::ADDRESSES_MAX);
        let deadline = limits::after(now, self.options.connect_timeout);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.state = State::Connecting(Attempts {
            deadline,
            starting: 0,
            links: Vec::new(),
            left: addresses,
            next_at: None,
            failure: None,
        });
        self.set_timer(id, Some(deadline));
        self.next_attempt(id, now);
    }

    /// Tries the next address.
    pub(super) fn next_attempt(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(endpoint) = peer.target().map(|target| target.endpoint.clone()) else {
            return;
        };
        let State::Connecting(attempts) = &mut peer.state else {
            return;
        };
        let Some(address) = attempts.left.pop_front() else {
            return;
        };
        attempts.starting += 1;
        attempts.next_at = match attempts.left.is_empty() {
            true => None,
            false => Some(now + limits::ATTEMPT_INTERVAL),
        };
        let next_at = attempts.next_at;
        self.actions.push_back(Action::Connect {
            peer: id,
            endpoint,
            address,
        });
        self.set_timer(id, next_at);
    }

    /// An attempt has begun. False if it is not wanted any more: the driver must close the link.
    pub(in crate::socket) fn handle_connecting(&mut self, id: PeerId, link: LinkId) -> bool {
        match self.peers.get_mut(id).map(|peer| &mut peer.state) {
            Some(State::Connecting(attempts)) if attempts.starting > 0 => {
                attempts.starting -= 1;
                attempts.links.push(link);
                true
            }
            _ => false,
        }
    }

    /// An attempt has failed, before or after the driver had a link for it. The driver has closed
    /// the link.
    pub(in crate::socket) fn handle_connect_failed(
        &mut self,
        id: PeerId,
        link: Option<LinkId>,
        failure: Failure,
        now: Instant,
    ) {
        let Some(State::Connecting(attempts)) = self.peers.get_mut(id).map(|peer| &mut peer.state)
        else {
            return;
        };
        match link {
            Some(link) => attempts.links.retain(|other| *other != link),
            None => attempts.starting = attempts.starting.saturating_sub(1),
        }
        let earlier = attempts.failure.take();
        let are_refused = earlier.as_ref().is_none_or(|earlier| earlier.is_refused);
        let error = match earlier {
            Some(earlier) => failure.error.after(&earlier.error),
            None => failure.error,
        };
        let failure = Failure {
            is_refused: failure.is_refused && are_refused,
            error,
        };
        if !attempts.left.is_empty() {
            attempts.failure = Some(failure);
            return self.next_attempt(id, now);
        }
        if attempts.links.is_empty() && attempts.starting == 0 {
            return self.lose(id, failure.into(), now);
        }
        attempts.failure = Some(failure);
    }

    /// A transport is connected. False if it is not wanted any more: the driver must close the link.
    pub(in crate::socket) fn handle_connected(
        &mut self,
        id: PeerId,
        link: LinkId,
        now: Instant,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        let State::Connecting(attempts) = &mut peer.state else {
            return false;
        };
        if !attempts.links.contains(&link) {
            return false;
        }
        for other in attempts.links.drain(..).filter(|other| *other != link) {
            self.actions.push_back(Action::Close {
                link: other,
                last: Vec::new(),
            });
        }
        let connection = Box::new(Connection::new(self.config.clone(), now));
        let timeout = connection.poll_timeout();
        peer.state = State::Up(Up::new(link, connection));
        let endpoint = peer.target().map(|target| target.endpoint.clone());
        self.mark_ready(id);
        self.mark_dirty(id);
        if let Some(endpoint) = endpoint {
            self.report(Event::Connected { peer: id, endpoint });
        }
        self.set_timer(id, timeout);
        true
    }

    /// Waits until `at` for the next attempt.
    pub(super) fn wait(&mut self, id: PeerId, at: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.state = State::Waiting(at);
            self.set_timer(id, Some(at));
        }
    }

    /// After a loss: waits for the next attempt.
    pub(super) fn wait_to_connect(&mut self, id: PeerId, reason: &DisconnectReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(target) = peer.target_mut() else {
            return;
        };
        let failures = target.failures;
        target.failures = failures.saturating_add(1);
        if self.options.immediate {
            self.round_robin.retain(|other| *other != id);
        }
        let is_refused = match reason {
            DisconnectReason::Protocol(error) => error.is_fatal(),
            DisconnectReason::Rejected(_) => true,
            #[cfg(feature = "process")]
            DisconnectReason::NotAdmitted(_) => true,
            _ => false,
        };
        let pause = match (is_refused, self.options.reconnect_ivl_max) {
            (false, _) => self.backoff(failures),
            (true, Duration::ZERO) => limits::RECONNECT_INTERVAL_MAX.max(self.backoff(failures)),
            (true, longest) => longest.max(self.backoff(failures)),
        };
        let pause = self.jitter(pause).max(limits::RECONNECT_INTERVAL_MIN);
        self.report(Event::RetryIn { peer: id, pause });
        self.wait(id, limits::after(now, pause));
    }

    /// Pause before the next attempt: it doubles with each failure, up to the maximum.
    pub(in crate::socket) fn backoff(&self, failures: u32) -> Duration {
        let first = self.options.reconnect_ivl.unwrap_or_default();
        first
            .saturating_mul(1 << failures.min(16))
            .min(self.options.reconnect_ivl_max.max(first))
    }

    /// Varies a pause by ±25 %, so that many clients that lost their server do not reconnect at the
    /// same time.
    pub(in crate::socket) fn jitter(&mut self, pause: Duration) -> Duration {
        let percent = 75 + self.next_random() % 51;
        (pause / 100).saturating_mul(percent as u32)
    }
}

/// The addresses of a host in the order in which they are tried: the resolver's, with the families
/// in alternation (RFC 8305 §4).
fn in_order(addresses: Vec<SocketAddr>) -> VecDeque<Option<SocketAddr>> {
    let is_first_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == is_first_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = VecDeque::new();
    loop {
        match (first.next(), second.next()) {
            (None, None) => return ordered,
            (one, other) => ordered.extend([one, other].into_iter().flatten().map(Some)),
        }
    }
}

impl From<Failure> for DisconnectReason {
    fn from(failure: Failure) -> Self {
        match failure.is_refused {
            true => DisconnectReason::ConnRefused(failure.error),
            false => DisconnectReason::Io(failure.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_of_addresses_alternate() {
        let all = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        for (found, want) in [
            (&[][..], &[][..]),
            (&["1.1.1.1:1"], &["1.1.1.1:1"]),
            (
                &["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"],
            ),
            (
                &["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"],
                &["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"],
            ),
        ] {
            let ordered: Vec<_> = in_order(all(found)).into_iter().flatten().collect();
            assert_eq!(ordered, all(want));
        }
    }
}
