//! Blocking ROUTER and DEALER sockets, each with its own reactor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::driven::Driven;
use super::engine::Size;
use super::{Counters, Error, Event, Options, PeerId, Socket};
use crate::reactor::Endpoint;
use crate::zmtp::{Message, SendQueue, SocketType};

/// The blocking sockets of this module: [`Router`] and [`Dealer`].
pub trait Blocking: sealed::Driver + Send + 'static {}

impl Blocking for Router {}
impl Blocking for Dealer {}

mod sealed {
    #[expect(
        unnameable_types,
        reason = "seals a trait, so that other crates cannot implement it"
    )]
    pub trait Driver {
        #[doc(hidden)]
        fn driven(&mut self) -> &mut crate::socket::driven::Driven;
    }
}

/// Ends a blocking call of a [`Router`] or [`Dealer`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker {
    waker: Arc<mio::Waker>,
}

impl Waker {
    /// Ends the present blocking call of the socket, or the next one: `receive` returns `None`,
    /// other calls return as if their time were over.
    pub fn wake(&self) -> Result<(), Error> {
        Ok(self.waker.wake()?)
    }
}

/// A received message with the routing ID of its peer.
pub type Routed<'a> = (&'a [u8], Message<'a>);

/// What [`Router::next`] or [`Dealer::next`] returns.
#[derive(Debug)]
pub enum Next<M> {
    /// A message.
    Message(M),
    /// A lifecycle event.
    Event(Event),
}

/// The methods that [`Router`] and [`Dealer`] have in common.
macro_rules! common_methods {
    ($name:ident, $socket_type:expr) => {
        impl $name {
            /// Creates a socket without peers. Fails if the options are invalid or the system has
            /// no more descriptors.
            pub fn new(options: Options) -> Result<Self, Error> {
                Ok($name {
                    inner: Driven::new($socket_type, options)?,
                })
            }

            /// Binds a listener. Returns its endpoint, with the port or file that the system chose.
            pub fn bind(&mut self, endpoint: &str) -> Result<Endpoint, Error> {
                self.inner.bind(endpoint)
            }

            /// Closes the listener of an endpoint that `bind` returned. Accepted peers stay
            /// connected. Returns false if there is no such listener.
            pub fn unbind(&mut self, endpoint: &str) -> Result<bool, Error> {
                self.inner.unbind(endpoint)
            }

            /// Connects in the background, and retries after failures; see [`Socket::connect`].
            /// Fails if the endpoint is a wildcard (port `*` or 0, `ipc://*`).
            pub fn connect(&mut self, endpoint: &str) -> Result<PeerId, Error> {
                self.inner.connect(endpoint)
            }

            /// Closes the connections to an endpoint that was passed to `connect`, and drops the
            /// messages queued for them. Returns false if there is none.
            pub fn disconnect(&mut self, endpoint: &str) -> Result<bool, Error> {
                self.inner.disconnect(endpoint)
            }

            /// Writes queued messages as far as the kernel accepts them, continues handshakes,
            /// answers PINGs and detects closed connections; never blocks. Received messages are
            /// kept for `receive`.
            pub fn flush(&mut self) -> Result<(), Error> {
                self.inner.flush()
            }

            /// For use after [`Error::Full`]: writes, and waits until the number of queued
            /// bytes has decreased (returns true; at once if none are queued) or `timeout` is over
            /// (returns false).
            pub fn wait_writable(&mut self, timeout: Duration) -> Result<bool, Error> {
                self.inner.wait_writable(timeout)
            }

            /// Waits until all queued messages are written, for `linger` at most. Returns true if
            /// all are written. If the socket is dropped then, the others are lost. See also
            /// `close`.
            pub fn drain(&mut self, linger: Duration) -> Result<bool, Error> {
                self.inner.drain(linger)
            }

            /// Drains the socket and closes it (`ZMQ_LINGER`). Then waits until the peers have read
            /// the messages and closed their ends, for `linger` in total. (The system may discard
            /// undelivered bytes when a connection with unread input is closed.) Returns true if
            /// all messages were written and every connection ended in this way. Returns false if a
            /// connection was reset or a peer did not close in time; a peer with a blocking socket
            /// of this module closes only during its calls.
            pub fn close(mut self, linger: Duration) -> Result<bool, Error> {
                self.inner.close(linger)
            }

            /// The next lifecycle event (`zmq_socket_monitor`).
            #[must_use]
            pub fn poll_event(&mut self) -> Option<Event> {
                self.inner.poll_event()
            }

            /// A handle by which another thread can end a blocking call of this socket.
            pub fn waker(&mut self) -> Result<Waker, Error> {
                let waker = self.inner.waker()?;
                Ok(Waker { waker })
            }

            /// The counters of the socket.
            pub fn counters(&self) -> Counters {
                self.inner.socket.counters()
            }

            /// The inner socket, for operations that have no method here.
            pub fn socket(&mut self) -> &mut Socket {
                &mut self.inner.socket
            }
        }

        /// For use in another event loop. The descriptor is readable while a message or an event waits,
        /// or the socket may have work: then call `receive` with a timeout of zero until it returns
        /// `None`, and `poll_event`. Timers (heartbeats, reconnects) are processed only in calls, so
        /// also make a call when [`Socket::poll_timeout`] is due. Do not read from it.
        impl sealed::Driver for $name {
            fn driven(&mut self) -> &mut Driven {
                &mut self.inner
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.inner.watched.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.as_fd().as_raw_fd()
            }
        }
    };
}

/// A blocking ROUTER socket with its own reactor.
///
/// ```
/// use std::time::Duration;
/// use casparian::socket::{Options, Router, Error};
///
/// let mut router = Router::new(Options::new().router_handover(true))?;
/// let bound = router.bind("tcp://127.0.0.1:*")?;
/// assert!(bound.to_string().starts_with("tcp://127.0.0.1:"));
/// assert_eq!(router.send(b"unknown", &[b"hello"]), Err(Error::Unroutable));
/// assert!(router.receive(Some(Duration::ZERO))?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Router {
    inner: Driven,
}

common_methods!(Router, SocketType::Router);

impl Router {
    /// Connects to a peer that is addressed by `routing_id` from now on; see
    /// [`Socket::connect_as`].
    pub fn connect_as(&mut self, endpoint: &str, routing_id: &[u8]) -> Result<PeerId, Error> {
        self.inner.connect_as(endpoint, routing_id)
    }

    /// Receives the next message, with the routing ID of its peer. Returns `None` if `timeout` is
    /// over (`None` = no limit). Queued messages are written during the wait.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Routed<'_>>, Error> {
        let Some(id) = self.inner.receive(timeout, false)? else {
            return Ok(None);
        };
        Ok(self.inner.socket.received(id))
    }

    /// Receives the next message, with the routing ID of its peer, or the next lifecycle event.
    /// Returns `None` if `timeout` is over. Waiting events come before messages.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Next<Routed<'_>>>, Error> {
        match self.inner.receive(timeout, true)? {
            Some(id) => Ok(self.inner.socket.received(id).map(Next::Message)),
            None => Ok(self.inner.poll_event().map(Next::Event)),
        }
    }

    /// Queues a message for the peer with a routing ID; never blocks. It is written by the next
    /// `flush` or by a `receive` that has to wait, or at once when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.process_before_sending();
        self.inner.socket.send_routed(routing_id, parts)
    }

    /// Like [`Router::send`], for any parts.
    pub fn send_parts<P>(&mut self, routing_id: &[u8], parts: P) -> Result<(), Error>
    where
        P: IntoIterator<Item: AsRef<[u8]>, IntoIter: Clone>,
    {
        let parts = parts.into_iter();
        self.inner.process_before_sending();
        self.inner
            .socket
            .queue_routed(routing_id, size_of(parts.clone()), pushing(parts))
    }

    /// Like [`Router::send`]. The last part is kept by reference instead of copied.
    pub fn send_shared(
        &mut self,
        routing_id: &[u8],
        parts: &[&[u8]],
        last: &Arc<[u8]>,
    ) -> Result<(), Error> {
        self.inner.process_before_sending();
        let (size, push) = sharing(parts, last);
        self.inner.socket.queue_routed(routing_id, size, push)
    }

    /// Like [`Router::send`], but waits while the peer's queue is full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        routing_id: &[u8],
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.inner
            .send(timeout, |socket| socket.send_routed(routing_id, parts))
    }
}

/// A blocking DEALER socket with its own reactor.
///
/// ```
/// use casparian::socket::{Dealer, Options, Error};
///
/// let mut dealer = Dealer::new(Options::new().routing_id("w-1").sndhwm(1))?;
/// assert_eq!(dealer.send(&[b"hello"]), Err(Error::NoPeer));
/// dealer.connect("ipc://@casparian-doc-example")?;
/// dealer.send(&[b"queued until a peer listens"])?;
/// assert_eq!(dealer.send(&[b"one too many"]), Err(Error::Full));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Dealer {
    inner: Driven,
}

common_methods!(Dealer, SocketType::Dealer);

impl Dealer {
    /// Receives the next message. Returns `None` if `timeout` is over (`None` = no limit). Queued
    /// messages are written during the wait.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Message<'_>>, Error> {
        match self.inner.receive(timeout, false)? {
            Some(id) => Ok(self.inner.socket.message(id)),
            None => Ok(None),
        }
    }

    /// Receives the next message or lifecycle event. Returns `None` if `timeout` is over. Waiting
    /// events come before messages.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Next<Message<'_>>>, Error> {
        match self.inner.receive(timeout, true)? {
            Some(id) => Ok(self.inner.socket.message(id).map(Next::Message)),
            None => Ok(self.inner.poll_event().map(Next::Event)),
        }
    }

    /// Queues a message for the next peer, in round-robin order, whose queue is not full; never
    /// blocks. It is written by the next `flush` or by a `receive` that has to wait, or at once
    /// when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.process_before_sending();
        self.inner.socket.send(parts)
    }

    /// Like [`Dealer::send`], for any parts, such as those of a received [`Message`].
    pub fn send_parts<P>(&mut self, parts: P) -> Result<(), Error>
    where
        P: IntoIterator<Item: AsRef<[u8]>, IntoIter: Clone>,
    {
        let parts = parts.into_iter();
        self.inner.process_before_sending();
        self.inner
            .socket
            .queue_dealt(size_of(parts.clone()), pushing(parts))
    }

    /// Like [`Dealer::send`]. The last part is kept by reference instead of copied.
    pub fn send_shared(&mut self, parts: &[&[u8]], last: &Arc<[u8]>) -> Result<(), Error> {
        self.inner.process_before_sending();
        let (size, push) = sharing(parts, last);
        self.inner.socket.queue_dealt(size, push)
    }

    /// Like [`Dealer::send`], but waits for a peer whose queue is not full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.inner.send(timeout, |socket| socket.send(parts))
    }
}

fn size_of(parts: impl Iterator<Item: AsRef<[u8]>>) -> Size {
    let none = Size {
        frames: 0,
        bytes: 0,
    };
    parts.fold(none, |size, part| Size {
        frames: size.frames + 1,
        bytes: size.bytes + part.as_ref().len(),
    })
}

fn pushing<P>(parts: P) -> impl Fn(&mut SendQueue)
where
    P: Iterator<Item: AsRef<[u8]>> + Clone,
{
    move |queue| queue.push_parts(parts.clone())
}

fn sharing<'a>(parts: &'a [&'a [u8]], last: &'a Arc<[u8]>) -> (Size, impl Fn(&mut SendQueue)) {
    let size = size_of(parts.iter().copied().chain([&last[..]]));
    (size, move |queue: &mut SendQueue| {
        queue.push_shared(parts, last.clone());
    })
}
