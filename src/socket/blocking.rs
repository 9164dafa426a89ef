//! ROUTER and DEALER with a reactor of their own.

use std::io;
use std::time::{Duration, Instant};

use super::{Event, Options, PeerId, SendError, Socket};
use crate::reactor::{Endpoint, Reactor};
use crate::zmtp::{Message, SocketType};

struct Driven {
    reactor: Reactor,
    socket: Socket,
    /// Taken anew after every wait, not for every message.
    now: Instant,
}

fn parse(endpoint: &str) -> io::Result<Endpoint> {
    endpoint
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl Driven {
    fn new(socket_type: SocketType, options: Options) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let socket = Socket::new(socket_type, options, reactor.registry(), 0)?;
        Ok(Driven {
            reactor,
            socket,
            now: Instant::now(),
        })
    }

    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let deadline = if self.socket.has_ready() {
            Some(self.now)
        } else {
            [deadline, self.socket.poll_timeout()]
                .into_iter()
                .flatten()
                .min()
        };
        self.wait(deadline)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.reactor.wait(deadline, self.now)?;
        self.now = Instant::now();
        for event in self.reactor.events() {
            self.socket.handle_ready(event, self.now);
        }
        self.socket.handle_timeout(self.now);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.now = Instant::now();
        self.turn(Some(self.now))?;
        self.socket.drive_handshakes(self.now);
        self.socket.flush();
        Ok(())
    }

    fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<PeerId>> {
        let mut deadline = None;
        loop {
            if let Some(id) = self.socket.receive(self.now) {
                return Ok(Some(id));
            }
            self.socket.flush();
            if let Some(timeout) = timeout {
                let at = *deadline.get_or_insert_with(|| Instant::now() + timeout);
                if self.now >= at {
                    return Ok(None);
                }
            }
            self.turn(deadline)?;
        }
    }

    /// Waits until some octets have left or `timeout` is over.
    fn wait_writable(&mut self, timeout: Duration) -> io::Result<()> {
        let before = self.socket.pending_octets();
        let deadline = Instant::now() + timeout;
        loop {
            self.socket.drive_handshakes(self.now);
            self.socket.flush();
            if self.socket.pending_octets() < before || Instant::now() >= deadline {
                return Ok(());
            }
            let wait = [Some(deadline), self.socket.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            self.wait(wait)?;
        }
    }

    /// Goes on until everything queued has left, or `linger` is over. True when all has left.
    fn drain(&mut self, linger: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + linger;
        loop {
            self.socket.flush();
            if self.socket.pending_octets() == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // Input is looked at for handshakes and ends of streams; messages stay unread.
            self.turn(Some(deadline))?;
            if self.socket.receive(self.now).is_some() {
                continue;
            }
        }
    }
}

/// A ROUTER socket with a reactor of its own.
pub struct Router {
    inner: Driven,
}

impl Router {
    /// A socket without peers.
    pub fn new(options: Options) -> io::Result<Self> {
        Ok(Router {
            inner: Driven::new(SocketType::Router, options)?,
        })
    }

    /// Listens; gives the endpoint with the port the system chose.
    pub fn bind(&mut self, endpoint: &str) -> io::Result<Endpoint> {
        self.inner.socket.bind(&parse(endpoint)?)
    }

    /// Connects in the background.
    pub fn connect(&mut self, endpoint: &str) -> io::Result<PeerId> {
        let endpoint = parse(endpoint)?;
        self.inner.now = Instant::now();
        Ok(self.inner.socket.connect(&endpoint, self.inner.now))
    }

    /// The next message and the routing id it came from, or none when `timeout` (none = wait
    /// for ever) is over. What is queued for sending leaves meanwhile.
    pub fn receive(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<Option<(&[u8], Message<'_>)>> {
        let Some(id) = self.inner.receive(timeout)? else {
            return Ok(None);
        };
        let socket = &self.inner.socket;
        Ok(socket.identity(id).zip(socket.message(id)))
    }

    /// Queues a message for the peer with a routing id. It leaves on the next
    /// [`Router::flush`] or [`Router::receive`] that has to wait.
    pub fn send(&mut self, identity: &[u8], parts: &[&[u8]]) -> Result<(), SendError> {
        let id = self
            .inner
            .socket
            .route(identity)
            .ok_or(SendError::Unroutable)?;
        self.inner.socket.send_to(id, parts)
    }

    /// Writes what is queued as far as the system takes it; never blocks.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// Waits until everything queued has left; false when `linger` was over before. Messages
    /// that arrive meanwhile are dropped: it is meant for the end.
    pub fn drain(&mut self, linger: Duration) -> io::Result<bool> {
        self.inner.drain(linger)
    }

    /// The next lifecycle event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.inner.socket.poll_event()
    }
}

/// A DEALER socket with a reactor of its own.
pub struct Dealer {
    inner: Driven,
}

impl Dealer {
    /// A socket without peers.
    pub fn new(options: Options) -> io::Result<Self> {
        Ok(Dealer {
            inner: Driven::new(SocketType::Dealer, options)?,
        })
    }

    /// Listens; gives the endpoint with the port the system chose.
    pub fn bind(&mut self, endpoint: &str) -> io::Result<Endpoint> {
        self.inner.socket.bind(&parse(endpoint)?)
    }

    /// Connects in the background; messages may be queued at once.
    pub fn connect(&mut self, endpoint: &str) -> io::Result<PeerId> {
        let endpoint = parse(endpoint)?;
        self.inner.now = Instant::now();
        Ok(self.inner.socket.connect(&endpoint, self.inner.now))
    }

    /// The next message, or none when `timeout` (none = wait for ever) is over. What is queued
    /// for sending leaves meanwhile.
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<Message<'_>>> {
        match self.inner.receive(timeout)? {
            Some(id) => Ok(self.inner.socket.message(id)),
            None => Ok(None),
        }
    }

    /// After [`SendError::Full`]: writes, and waits until some octets have left or `timeout` is
    /// over.
    pub fn wait_writable(&mut self, timeout: Duration) -> io::Result<()> {
        self.inner.wait_writable(timeout)
    }

    /// Queues a message for the next peer in turn. It leaves on the next [`Dealer::flush`] or
    /// [`Dealer::receive`] that has to wait, or when much has gathered.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        self.inner.socket.send(parts)
    }

    /// Writes what is queued as far as the system takes it; never blocks.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// Waits until everything queued has left; false when `linger` was over before. Messages
    /// that arrive meanwhile are dropped: it is meant for the end.
    pub fn drain(&mut self, linger: Duration) -> io::Result<bool> {
        self.inner.drain(linger)
    }

    /// The next lifecycle event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.inner.socket.poll_event()
    }
}
