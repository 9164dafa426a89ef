//! Transports, listeners and lookups: readiness, reads, writes, and what the engine asks for.

use std::io::{self, Read as _};
use std::time::Instant;

use super::{LOOKUP_TOKENS, Link, Socket};
use crate::limits;
use crate::reactor::{Endpoint, Lookup, Stream};
use crate::socket::PeerId;
use crate::socket::engine::{Action, Failure, LinkId, Read, Readiness, Step, Written};
use crate::zmtp::Slices;

impl Socket {
    pub(super) fn link_ready(&mut self, index: usize, event: &mio::event::Event) {
        let options = &self.engine.options().stream;
        let Some(Some(link)) = self.links.get_mut(index) else {
            return;
        };
        let peer = link.peer;
        if link.is_connecting {
            // The number of links is far below u32::MAX.
            let id = LinkId(index as u32);
            match link.stream.connect_result(options) {
                Ok(false) => return,
                Ok(true) => {
                    link.is_connecting = false;
                    if !self.engine.handle_connected(peer, id, self.now) {
                        self.close(id);
                    }
                }
                Err(error) => {
                    self.close(id);
                    let failure = failure(error);
                    self.engine
                        .handle_connect_failed(peer, Some(id), failure, self.now);
                    return;
                }
            }
        }
        self.engine.handle_ready(
            peer,
            Readiness {
                is_readable: event.is_readable(),
                is_writable: event.is_writable(),
                is_ended: event.is_read_closed() || event.is_error(),
            },
        );
    }

    pub(super) fn lookup_ready(&mut self, index: usize) {
        let Some(slot) = self.lookups.get_mut(index) else {
            return;
        };
        let Some((peer, found)) = slot
            .as_ref()
            .and_then(|(peer, lookup)| Some((*peer, lookup.poll()?)))
        else {
            return;
        };
        // Dropping the lookup closes its source, which also removes it from the reactor.
        *slot = None;
        self.lookup_of.remove(&peer);
        let found = found.map_err(failure);
        self.engine.handle_resolved(peer, found, self.now);
    }

    pub(super) fn take_step(&mut self, step: Step) {
        match step {
            Step::Read(id, link) => self.read(id, link),
            #[cfg(feature = "process")]
            Step::FindUser(id, link) => self.find_users(&[(id, link)]),
            Step::Message(_) | Step::Idle => {}
        }
        self.perform();
    }

    #[inline]
    fn read(&mut self, id: PeerId, link: LinkId) {
        let Some(space) = self.engine.read_space(id, self.now) else {
            return;
        };
        let Some(Some(link)) = self.links.get_mut(link.0 as usize) else {
            return;
        };
        let room = space.len();
        let result = loop {
            match link.stream.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let (result, is_full) = match result {
            Ok(0) => (Read::End, false),
            Ok(count) => {
                // The time that the owner passed may be long ago.
                self.now = self.now.max(Instant::now());
                (Read::Bytes(count), count == room)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (Read::Blocked, false),
            Err(error) => (Read::Failed(error.into()), false),
        };
        self.engine.handle_read(id, result, is_full, self.now);
    }

    pub(super) fn accept(&mut self) {
        #[cfg(feature = "process")]
        let mut accepted = Vec::new();
        for index in 0..self.listeners.len() {
            for _ in 0..limits::ACCEPTS_PER_ITERATION {
                if !self.engine.accepts(index, self.now) {
                    break;
                }
                let Some(Some(listener)) = self.listeners.get(index) else {
                    break;
                };
                match listener.accept(&self.engine.options().stream) {
                    Ok(stream) => {
                        let id = self.accepted(stream);
                        #[cfg(feature = "process")]
                        accepted.extend(id);
                        #[cfg(not(feature = "process"))]
                        let _ = id;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.engine.handle_accept_blocked(index);
                    }
                    // The connection was closed before it was accepted.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                        ) => {}
                    Err(error) => {
                        let is_out_of_files = matches!(error.raw_os_error(), Some(23 | 24));
                        let again = self.engine.handle_accept_failed(
                            index,
                            error.into(),
                            is_out_of_files,
                            self.now,
                        );
                        self.perform();
                        if !again {
                            break;
                        }
                    }
                }
            }
        }
        #[cfg(feature = "process")]
        if self.engine.options().local_users.is_some() && !accepted.is_empty() {
            self.find_users(&accepted);
        }
    }

    fn accepted(&mut self, stream: Stream) -> Option<(PeerId, LinkId)> {
        let address = stream.peer();
        let link = self.insert(Link {
            stream,
            // Replaced below, when the engine has named the peer.
            peer: PeerId::from_u64(u64::MAX),
            is_connecting: false,
        });
        if let Err(error) = self.register(link) {
            self.close(link);
            self.engine.warn(
                format_args!("{address}: cannot register the connection: {error}"),
                self.now,
            );
            return None;
        }
        let id = self.engine.handle_accepted(link, address, self.now);
        match id {
            Some(id) => {
                if let Some(Some(link)) = self.links.get_mut(link.0 as usize) {
                    link.peer = id;
                }
            }
            None => self.close(link),
        }
        self.perform();
        Some((id?, link))
    }

    /// Determines the users of peers.
    #[cfg(feature = "process")]
    fn find_users(&mut self, peers: &[(PeerId, LinkId)]) {
        let streams = peers.iter().filter_map(|(id, link)| {
            let link = self.links.get(link.0 as usize)?.as_ref()?;
            Some((*id, &link.stream))
        });
        let (users, result) = crate::socket::owners::find_users(streams);
        if let Err(error) = result {
            self.engine.warn(format_args!("{error}"), self.now);
        }
        // A peer whose transport is closed keeps this user.
        for (id, _) in peers {
            self.engine
                .handle_user(*id, crate::socket::users::LocalUser::Unknown);
        }
        for (id, user) in users {
            self.engine.handle_user(id, user);
        }
    }

    pub(super) fn write_all(&mut self) {
        while let Some(id) = self.engine.next_dirty() {
            self.write(id);
        }
    }

    pub(super) fn write(&mut self, id: PeerId) {
        let mut seal_bytes = limits::SEAL_BYTES_PER_ITERATION;
        while let Some(link) = self.engine.poll_write(id, &mut seal_bytes, self.now) {
            let mut slices = Slices::new();
            self.engine.gather(id, &mut slices);
            let size = slices.size();
            if size == 0 {
                return;
            }
            let Some(Some(link)) = self.links.get(link.0 as usize) else {
                return;
            };
            let result = match link.stream.send(slices.as_slices()) {
                Ok(count) => Written::Bytes(count as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Written::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Written::Failed(error.into()),
            };
            if !self.engine.handle_written(id, size, result, self.now) {
                return;
            }
        }
    }

    #[inline]
    pub(super) fn perform(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            self.perform_one(action);
        }
    }

    fn perform_one(&mut self, action: Action) {
        match action {
            Action::Resolve { peer, endpoint } => self.resolve(peer, &endpoint),
            Action::AbandonLookup { peer } => {
                if let Some(index) = self.lookup_of.remove(&peer)
                    && let Some(slot) = self.lookups.get_mut(index)
                {
                    *slot = None;
                }
            }
            Action::Connect {
                peer,
                endpoint,
                address,
            } => {
                let options = &self.engine.options().stream;
                let started = Stream::connect(&endpoint, address, options).and_then(|stream| {
                    let link = self.insert(Link {
                        stream,
                        peer,
                        is_connecting: true,
                    });
                    match self.register(link) {
                        Ok(()) => Ok(link),
                        Err(error) => {
                            self.close(link);
                            Err(error)
                        }
                    }
                });
                match started {
                    Ok(link) if self.engine.handle_connecting(peer, link) => {}
                    Ok(link) => self.close(link),
                    Err(error) => {
                        let failure = failure(error);
                        self.engine
                            .handle_connect_failed(peer, None, failure, self.now);
                    }
                }
            }
            Action::Close { link, last } => {
                self.write_last(link, &last);
                self.close(link);
            }
            Action::ShutDown { link, last } => {
                self.write_last(link, &last);
                if let Some(Some(link)) = self.links.get(link.0 as usize)
                    && let Err(error) = link.stream.shut_down()
                {
                    log::debug!("cannot shut down a connection: {error}");
                }
            }
            Action::CloseListener { index } => {
                if let Some(slot) = self.listeners.get_mut(index) {
                    *slot = None;
                }
            }
        }
    }

    fn resolve(&mut self, peer: PeerId, endpoint: &Endpoint) {
        let free = self.lookups.iter().position(Option::is_none);
        let index = free.unwrap_or(self.lookups.len());
        let token = self.token(LOOKUP_TOKENS + index);
        let started = Lookup::start(endpoint).and_then(|mut lookup| {
            lookup.register(&self.registry, token)?;
            Ok(lookup)
        });
        match started {
            Ok(lookup) => {
                if index >= self.lookups.len() {
                    self.lookups.push(None);
                }
                if let Some(slot) = self.lookups.get_mut(index) {
                    *slot = Some((peer, lookup));
                    self.lookup_of.insert(peer, index);
                }
            }
            // Too many lookups are running.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.engine.handle_resolve_later(peer, self.now);
            }
            Err(error) => {
                let failure = failure(error);
                self.engine.handle_resolved(peer, Err(failure), self.now);
            }
        }
    }

    fn insert(&mut self, link: Link) -> LinkId {
        if let Some(index) = self.free_links.pop()
            && let Some(slot) = self.links.get_mut(index as usize)
        {
            *slot = Some(link);
            return LinkId(index);
        }
        // The number of links is far below u32::MAX.
        let index = self.links.len() as u32;
        self.links.push(Some(link));
        LinkId(index)
    }

    fn register(&mut self, id: LinkId) -> io::Result<()> {
        let token = self.token(id.0 as usize);
        match self.links.get_mut(id.0 as usize) {
            Some(Some(link)) => link.stream.register(&self.registry, token),
            _ => Ok(()),
        }
    }

    pub(super) fn close(&mut self, id: LinkId) {
        let Some(mut link) = self.links.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        if let Err(error) = link.stream.deregister(&self.registry) {
            log::debug!("cannot deregister a connection: {error}");
        }
        self.free_links.push(id.0);
    }

    /// Tries to write the last bytes of a connection.
    fn write_last(&self, link: LinkId, last: &[u8]) {
        if let Some(Some(link)) = self.links.get(link.0 as usize)
            && !last.is_empty()
            && let Err(error) = link.stream.send(&[io::IoSlice::new(last)])
        {
            log::debug!("cannot write the last bytes of a connection: {error}");
        }
    }
}

fn failure(error: io::Error) -> Failure {
    Failure {
        is_refused: matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
        error: error.into(),
    }
}
