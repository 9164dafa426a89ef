//! A thread that drives a blocking socket while its owner makes no calls.

use std::io::{self, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Error;
use super::blocking::Blocking;

/// A [`Router`](super::Router) or [`Dealer`](super::Dealer) with a thread that does the socket's work
/// while its owner makes no calls: it writes queued messages, answers PINGs, continues handshakes and
/// reconnects. Without it, an owner that works on a message for longer than a peer's heartbeat timeout
/// loses the connection.
///
/// The owner makes calls by [`Background::lock`]. Meanwhile the thread waits, because every call does this
/// work itself. So the owner copies a message and releases the lock before it works on it. Several threads
/// may share the socket. A call that waits for a message keeps the others waiting, so threads that share it
/// receive with a short timeout.
///
/// ```
/// use casparian::socket::{Background, Dealer, Options, Router};
///
/// let router = Background::new(Router::new(Options::new())?)?;
/// let bound = router.lock().bind("tcp://127.0.0.1:*")?;
/// let dealer = Background::new(Dealer::new(Options::new().routing_id("w-1"))?)?;
/// dealer.lock().connect(&bound.to_string())?;
/// // The thread writes it.
/// dealer.lock().send(&[b"hello"])?;
///
/// let received = router.lock().receive(None)?.map(|(id, message)| (id.to_vec(), message.to_vecs()));
/// // PINGs are answered meanwhile, however long this takes.
/// assert_eq!(received, Some((b"w-1".to_vec(), vec![b"hello".to_vec()])));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// When it is dropped, the thread ends, and the socket is dropped.
#[derive(Debug)]
pub struct Background<S: Blocking> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<S> {
    state: Mutex<State<S>>,
    /// A byte ends the thread's wait.
    wake: UnixStream,
}

#[derive(Debug)]
struct State<S> {
    socket: S,
    /// When the thread's wait ends by itself.
    planned: Option<Instant>,
    must_stop: bool,
}

impl<S: Blocking> Background<S> {
    /// Starts the thread.
    pub fn new(mut socket: S) -> Result<Self, Error> {
        let poll = Poll::new()?;
        let (wake, mut woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        for (index, descriptor) in [socket.driven().events_fd(), woken.as_raw_fd()]
            .iter()
            .enumerate()
        {
            let mut source = SourceFd(descriptor);
            poll.registry()
                .register(&mut source, Token(index), Interest::READABLE)?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                socket,
                planned: None,
                must_stop: false,
            }),
            wake,
        });
        let thread = crate::thread::start("zmtp", {
            let shared = shared.clone();
            move || {
                if let Err(error) = run(&shared, poll, &mut woken) {
                    log::error!("the thread of a socket has ended: {error}");
                }
            }
        })?;
        Ok(Background {
            shared,
            thread: Some(thread),
        })
    }

    /// The socket, for calls. The thread and other callers wait until the guard is dropped.
    pub fn lock(&self) -> Guard<'_, S> {
        Guard {
            state: self.shared.lock(),
            wake: &self.shared.wake,
        }
    }

    /// Closes the socket and ends the thread; see [`Router::close`](super::Router::close).
    pub fn close(self, linger: Duration) -> Result<bool, Error> {
        self.lock().driven().close(linger)
    }
}

impl<S: Blocking> Drop for Background<S> {
    fn drop(&mut self) {
        self.shared.lock().must_stop = true;
        wake(&self.shared.wake);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a socket has panicked");
        }
    }
}

/// A [`Router`](super::Router) or [`Dealer`](super::Dealer) that its thread does not drive at present; see [`Background::lock`].
#[derive(Debug)]
pub struct Guard<'a, S: Blocking> {
    state: MutexGuard<'a, State<S>>,
    wake: &'a UnixStream,
}

impl<S: Blocking> Deref for Guard<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state.socket
    }
}

impl<S: Blocking> DerefMut for Guard<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.state.socket
    }
}

impl<S: Blocking> Drop for Guard<'_, S> {
    fn drop(&mut self) {
        let due = self.state.socket.driven().drive_at();
        let is_earlier = match (due, self.state.planned) {
            (Some(due), Some(planned)) => due < planned,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_earlier {
            self.state.planned = due;
            wake(self.wake);
        }
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // A caller that panicked has not left the socket half changed: panics in it are faults of this crate,
        // and its state is only read and written by whole calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mut stream: &UnixStream) {
    match stream.write(&[1]) {
        Ok(_) => {}
        // Enough bytes wait.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => log::debug!("a wake-up: {error}"),
    }
}

fn run<S: Blocking>(shared: &Shared<S>, mut poll: Poll, woken: &mut UnixStream) -> io::Result<()> {
    let mut events = Events::with_capacity(2);
    loop {
        let planned = {
            let mut state = shared.lock();
            if state.must_stop {
                return Ok(());
            }
            let driven = state.socket.driven();
            driven.drive_now()?;
            let planned = driven.drive_at();
            state.planned = planned;
            planned
        };
        let wait = planned.map(|at| at.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        while woken.read(&mut [0; 64]).is_ok_and(|count| count == 64) {}
    }
}
