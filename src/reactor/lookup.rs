//! Lookups of host names. Each runs on its own thread, because the system's resolver blocks without
//! a time limit and an event loop must not block.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use super::{Endpoint, EndpointError};
use crate::limits;
use crate::thread;

type Found = Result<Vec<SocketAddr>, EndpointError>;

/// Permission for one of the `LOOKUPS_MAX` concurrent lookups. It is returned when dropped.
struct Permit;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Permit {
    fn take() -> io::Result<Self> {
        let one_more = |taken: usize| (taken < limits::LOOKUPS_MAX).then_some(taken + 1);
        match TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Permit),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "too many lookups of hosts are under way",
            )),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A running lookup. When it ends, its source becomes readable and [`Lookup::poll`] returns the
/// result. If a `Lookup` is dropped earlier, its thread continues until the resolver returns.
#[derive(Debug)]
pub struct Lookup {
    found: mpsc::Receiver<Found>,
    /// The thread owns the other end, and closes it when the lookup ends.
    ended: UnixStream,
}

impl Lookup {
    /// Starts to resolve the addresses of a tcp endpoint. Fails with `WouldBlock` if too many
    /// lookups are running or the system cannot start another thread.
    pub fn start(endpoint: &Endpoint) -> io::Result<Self> {
        let endpoint = endpoint.clone();
        Self::start_with(move || endpoint.addresses())
    }

    /// Like [`Lookup::start`], with any function as the resolver.
    pub(crate) fn start_with(find: impl FnOnce() -> Found + Send + 'static) -> io::Result<Self> {
        let permit = Permit::take()?;
        let (ended, other) = UnixStream::pair()?;
        let (sender, found) = mpsc::sync_channel(1);
        thread::start("casparian-lookup", move || {
            let found = find();
            drop(permit);
            // This fails if the `Lookup` has been dropped; then the result is not needed.
            let _ = sender.send(found);
            drop(other);
        })?;
        Ok(Lookup { found, ended })
    }

    /// The result; `None` while the lookup is running.
    #[must_use]
    pub fn poll(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        match self.found.try_recv() {
            Ok(found) => Some(found.map_err(io::Error::other)),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => {
                Some(Err(io::Error::other("the lookup of the host has failed")))
            }
        }
    }

    /// Registers the lookup for readiness events.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.ended, token, Interest::READABLE)
    }

    /// Removes the lookup from the registry.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut self.ended)
    }
}

/// Tests that start lookups hold this lock shared. The test that takes all permits holds it
/// exclusively.
#[cfg(test)]
pub(crate) static PERMITS: std::sync::RwLock<()> = std::sync::RwLock::new(());

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::reactor::Reactor;

    /// Waits for the end of a lookup; readiness is the only trigger.
    fn wait(reactor: &mut Reactor, lookup: &Lookup) -> io::Result<Vec<SocketAddr>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = lookup.poll() {
                return found;
            }
            let now = Instant::now();
            assert!(now < deadline, "no readiness");
            reactor.wait(Some(deadline), now).unwrap();
        }
    }

    #[test]
    fn there_are_so_many_lookups_at_a_time() {
        let _alone = PERMITS.write();
        let deadline = Instant::now() + Duration::from_secs(60);
        let all_are_free = || {
            while TAKEN.load(Ordering::Relaxed) > 0 {
                assert!(Instant::now() < deadline, "permits are not given back");
                std::thread::yield_now();
            }
        };
        all_are_free();
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Arc::new(std::sync::Mutex::new(released));
        let hang = || {
            let released = released.clone();
            Lookup::start_with(move || {
                let _ = released.lock().unwrap().recv();
                Ok(Vec::new())
            })
        };
        let under_way: Vec<_> = (0..limits::LOOKUPS_MAX).map(|_| hang().unwrap()).collect();
        let error = hang().unwrap_err().to_string();
        assert!(error.contains("too many lookups"), "{error}");
        // Abandoned lookups count until they end.
        drop(under_way);
        assert!(hang().is_err());
        drop(release);
        all_are_free();
    }

    #[test]
    fn the_end_of_a_lookup_is_reported_by_readiness() {
        let _shared = PERMITS.read();
        let mut reactor = Reactor::new().unwrap();
        let address: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let mut lookup = Lookup::start_with(move || {
            released.recv().unwrap();
            Ok(vec![address])
        })
        .unwrap();
        lookup.register(reactor.registry(), Token(1)).unwrap();
        assert!(lookup.poll().is_none());
        reactor.wait(Some(Instant::now()), Instant::now()).unwrap();
        assert!(lookup.poll().is_none());
        release.send(()).unwrap();
        assert_eq!(wait(&mut reactor, &lookup).unwrap(), [address]);
    }

    #[test]
    fn names_addresses_and_failures() {
        let _shared = PERMITS.read();
        let mut reactor = Reactor::new().unwrap();
        let mut resolve = |text: &str| {
            let mut lookup = Lookup::start(&text.parse().unwrap()).unwrap();
            lookup.register(reactor.registry(), Token(1)).unwrap();
            let found = wait(&mut reactor, &lookup);
            lookup.deregister(reactor.registry()).unwrap();
            found
        };
        let found = resolve("tcp://localhost:5").unwrap();
        assert!(
            found
                .iter()
                .all(|at| at.ip().is_loopback() && at.port() == 5)
        );
        // Longer than the limit of a DNS label, so that no server is queried.
        let endpoint = format!("tcp://{}.invalid:5", "x".repeat(64));
        let error = resolve(&endpoint).unwrap_err();
        assert!(error.to_string().contains("cannot resolve"), "{error}");
        let mut panics = Lookup::start_with(|| panic!("a resolver's bug")).unwrap();
        panics.register(reactor.registry(), Token(1)).unwrap();
        assert!(wait(&mut reactor, &panics).is_err());
    }
}
