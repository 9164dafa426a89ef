//! A ROUTER on a real socket with two correct DEALERs and one peer that sends the input. The
//! correct ones must be served, and no state of the other may remain.

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Options, Router, Error};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::connection::hands_shaken;

struct Scene {
    router: Router,
    good: [Dealer; 2],
    address: SocketAddr,
    count: u32,
}

const NOW: Option<Duration> = Some(Duration::ZERO);
/// Iterations within which a round must be complete; each has a few system calls.
const ITERATIONS_MAX: u32 = 20_000;

fn scene() -> Scene {
    let name = format!("casparian-fuzz-{}", std::process::id());
    let options = Options::new()
        .maxmsgsize(1 << 16)
        .max_frames(16)
        .router_handover(true);
    let mut router = Router::new(options).unwrap();
    router.bind(&format!("ipc://@{name}")).unwrap();
    let good = ["good-0", "good-1"].map(|routing_id| {
        let mut dealer = Dealer::new(Options::new().routing_id(routing_id)).unwrap();
        dealer.connect(&format!("ipc://@{name}")).unwrap();
        dealer
    });
    Scene {
        router,
        good,
        address: SocketAddr::from_abstract_name(name).unwrap(),
        count: 0,
    }
}

impl Scene {
    /// One iteration: receives messages and sends each back to its peer.
    fn iterate(&mut self) {
        for dealer in &mut self.good {
            dealer.flush().unwrap();
        }
        for _ in 0..64 {
            let Some((from, message)) = self.router.receive(NOW).unwrap() else {
                break;
            };
            assert!(message.size() <= 1 << 16 && message.len() <= 16);
            let (from, frames) = (from.to_vec(), message.to_vecs());
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            // The bad peer also gets its messages back, if it is connected and reads.
            let _ = self.router.send(&from, &frames);
        }
        self.router.flush().unwrap();
        while self.router.poll_event().is_some() {}
    }

    fn round(&mut self) {
        self.count += 1;
        let body = self.count.to_be_bytes();
        for dealer in 0..2 {
            self.good[dealer].send(&[b"ping", &body]).unwrap();
        }
        let mut served = [false; 2];
        for _ in 0..ITERATIONS_MAX {
            self.iterate();
            for (dealer, served) in self.good.iter_mut().zip(&mut served) {
                // Other answers are ignored.
                if let Some(message) = dealer.receive(NOW).unwrap() {
                    *served |= message.get(1) == Some(&body);
                }
            }
            if served == [true; 2] {
                return;
            }
        }
        panic!("a good peer is not served: {:?}", self.router.counters());
    }
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

/// Calls that wait must return after their timeout, whatever the bad peer has sent.
fn blocking(scene: &mut Scene, choice: u8) {
    let short = Duration::from_millis(1);
    let began = Instant::now();
    match choice % 8 {
        0 => {
            let sent = scene.router.send_timeout(b"unknown", &[b"x"], Some(short));
            assert_eq!(sent, Err(Error::Unroutable));
        }
        1 => drop(scene.router.wait_writable(short).unwrap()),
        2 => drop(scene.router.drain(short).unwrap()),
        3 => {
            // Another socket, with a peer that gets an answer and does not close.
            let name = format!("casparian-fuzz-{}-close", std::process::id());
            let mut router = Router::new(Options::new()).unwrap();
            router.bind(&format!("ipc://@{name}")).unwrap();
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let mut bad = UnixStream::connect_addr(&address).unwrap();
            let mut bytes = hands_shaken();
            bytes.extend_from_slice(b"\0\x01x");
            bad.write_all(&bytes).unwrap();
            let mut from = None;
            for _ in 0..ITERATIONS_MAX {
                if let Some((id, _)) = router.receive(NOW).unwrap() {
                    from = Some(id.to_vec());
                    break;
                }
            }
            router.send(&from.unwrap(), &[b"x"]).unwrap();
            assert!(!router.close(short).unwrap(), "it has not gone");
        }
        4 => {
            // A DEALER without peers, then with a peer that does not read, then without peers
            // again.
            let name = format!("casparian-fuzz-{}-dealer", std::process::id());
            let endpoint = format!("ipc://@{name}");
            let mut dealer = Dealer::new(Options::new().sndhwm(2)).unwrap();
            let nobody = dealer.send_timeout(&[b"x"], Some(short));
            assert_eq!(nobody, Err(Error::NoPeer));
            dealer.bind(&endpoint).unwrap();
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let mut raw = UnixStream::connect_addr(&address).unwrap();
            let mut bytes = hands_shaken();
            let at = bytes.len() - 6;
            bytes[at..].copy_from_slice(b"ROUTER");
            let _ = raw.write(&bytes);
            let body = vec![0; 1 << 20];
            let sent = dealer.send_timeout(&[&body], Some(Duration::from_secs(1)));
            assert_eq!(sent, Ok(()));
            while dealer.send(&[&body]).is_ok() {}
            let full = dealer.send_timeout(&[&body], Some(short));
            assert_eq!(full, Err(Error::Full));
            assert!(!dealer.drain(short).unwrap() && !dealer.wait_writable(short).unwrap());
            assert_eq!(dealer.counters().established, 1);
            assert!(dealer.as_raw_fd() >= 0);
            assert!(dealer.unbind(&endpoint).unwrap() && !dealer.unbind(&endpoint).unwrap());
            assert!(!dealer.disconnect(&endpoint).unwrap());
            assert!(dealer.connect("nonsense").is_err());
            drop(raw);
            assert!(dealer.close(Duration::from_secs(1)).unwrap() || choice > 0);
        }
        5 => {
            // A ROUTER that connects with an assigned routing ID.
            let name = format!("casparian-fuzz-{}", std::process::id());
            let mut router = Router::new(Options::new()).unwrap();
            let endpoint = format!("ipc://@{name}");
            router.connect_as(&endpoint, b"there").unwrap();
            assert!(router.connect_as(&endpoint, b"there").is_err());
            router.send(b"there", &[b"from a router"]).unwrap();
            for _ in 0..20 {
                scene.iterate();
                router.flush().unwrap();
            }
            assert!(router.close(Duration::from_millis(20)).is_ok());
        }
        6 => out_of_descriptors(choice == 6),
        _ => return,
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{choice}");
}

/// When no descriptors are left, an idle connection in its handshake is closed, then the listener
/// pauses. With `wakes_up`, also checks that the listener accepts again, which takes some time.
fn out_of_descriptors(wakes_up: bool) {
    let name = format!("casparian-fuzz-{}-few", std::process::id());
    let mut router = Router::new(Options::new()).unwrap();
    router.bind(&format!("ipc://@{name}")).unwrap();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let connect = || UnixStream::connect_addr(&address).unwrap();
    let _silent = connect();
    for _ in 0..10 {
        let _ = router.receive(NOW).unwrap();
    }
    assert_eq!(router.counters().accepted, 1);
    let _others = [connect(), connect()];
    let limit = getrlimit(Resource::Nofile);
    let mut none = limit;
    none.current = Some(1);
    setrlimit(Resource::Nofile, none).unwrap();
    for _ in 0..10 {
        let _ = router.receive(NOW).unwrap();
    }
    setrlimit(Resource::Nofile, limit).unwrap();
    let counters = router.counters();
    assert!(
        counters.accept_failed > 0 && counters.too_many == 1,
        "{counters:?}"
    );
    if wakes_up {
        for _ in 0..100 {
            let _ = router.receive(Some(Duration::from_millis(10))).unwrap();
        }
        assert_eq!(router.counters().accepted, 3);
    }
}

pub fn run(data: &[u8]) {
    crate::ignore_sigpipe();
    // With handover, a peer that takes the routing ID of a good one also gets its answers.
    if data.windows(5).any(|bytes| bytes == b"good-") {
        return;
    }
    SCENE.with_borrow_mut(|slot| {
        let scene = slot.get_or_insert_with(scene);
        let mut bad = UnixStream::connect_addr(&scene.address).unwrap();
        bad.set_nonblocking(true).unwrap();
        // The first byte chooses where the rest is split into two writes, with a round between
        // them.
        let (cut, bytes) = data.split_first().unwrap_or((&0, &[]));
        let (first, second) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
        for bytes in [first, second] {
            let _ = bad.write(bytes);
            scene.round();
        }
        blocking(scene, *cut);
        drop(bad);
        for _ in 0..ITERATIONS_MAX {
            scene.iterate();
            if scene.router.socket().peer_count() == 2 {
                return;
            }
        }
        panic!("the bad peer stays");
    });
}
