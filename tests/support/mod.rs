//! What the socket tests share: endpoints of each transport, peers that speak raw bytes, and
//! what the process uses.

#![allow(dead_code)]

mod wait;

use std::io::{self, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, DisconnectReason, Event, Router};

/// Longest wait for anything; machines may be slow, so it is generous.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Zero: what is there already.
pub(crate) const NOW: Option<Duration> = Some(Duration::ZERO);

/// Repeats `step` until it gives a value.
#[track_caller]
pub(crate) fn until<T>(what: &str, step: impl FnMut() -> Option<T>) -> T {
    wait::until(what, DEADLINE, Duration::from_micros(50), step)
}

/// Repeats `step` for a time, to see that something does not happen.
pub(crate) fn for_a_while(time: Duration, mut step: impl FnMut()) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        step();
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// What a test runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Ipc,
}

/// Endpoints of one transport, gone with the test.
pub(crate) struct Net {
    pub(crate) transport: Transport,
    dir: tempfile::TempDir,
    count: AtomicU32,
}

impl Net {
    pub(crate) fn new(transport: Transport) -> Self {
        Net {
            transport,
            dir: tempfile::tempdir().unwrap(),
            count: AtomicU32::new(0),
        }
    }

    /// An endpoint to bind that nobody else has.
    pub(crate) fn endpoint(&self) -> String {
        match self.transport {
            Transport::Tcp => "tcp://127.0.0.1:*".to_owned(),
            Transport::Ipc => {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                format!(
                    "ipc://{}",
                    self.dir.path().join(count.to_string()).display()
                )
            }
        }
    }

    /// An endpoint where nobody listens, which can be bound later.
    pub(crate) fn unbound(&self) -> String {
        match self.transport {
            Transport::Tcp => {
                let port = TcpListener::bind("127.0.0.1:0").unwrap();
                format!("tcp://{}", port.local_addr().unwrap())
            }
            Transport::Ipc => self.endpoint(),
        }
    }

    /// A raw connection to a bound endpoint.
    pub(crate) fn raw(&self, bound: &str) -> Raw {
        self.try_raw(bound).expect("somebody listens")
    }

    /// A raw connection, if somebody listens.
    pub(crate) fn try_raw(&self, bound: &str) -> Option<Raw> {
        Some(Raw::new(match bound.split_once("://").unwrap() {
            ("tcp", address) => {
                let stream = TcpStream::connect(address).ok()?;
                stream.set_nodelay(true).unwrap();
                stream.set_nonblocking(true).unwrap();
                RawStream::Tcp(stream)
            }
            (_, path) => {
                let stream = UnixStream::connect(path).ok()?;
                stream.set_nonblocking(true).unwrap();
                RawStream::Ipc(stream)
            }
        }))
    }

    /// A raw listener and its endpoint.
    pub(crate) fn raw_listener(&self) -> (RawListener, String) {
        match self.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
                (RawListener::Tcp(listener), endpoint)
            }
            Transport::Ipc => {
                let endpoint = self.endpoint();
                let path = endpoint.strip_prefix("ipc://").unwrap();
                let listener = UnixListener::bind(path).unwrap();
                listener.set_nonblocking(true).unwrap();
                (RawListener::Ipc(listener), endpoint)
            }
        }
    }
}

pub(crate) enum RawListener {
    Tcp(TcpListener),
    Ipc(UnixListener),
}

impl RawListener {
    pub(crate) fn accept(&self) -> Option<Raw> {
        let stream = match self {
            RawListener::Tcp(listener) => listener.accept().map(|(stream, _)| {
                stream.set_nonblocking(true).unwrap();
                RawStream::Tcp(stream)
            }),
            RawListener::Ipc(listener) => listener.accept().map(|(stream, _)| {
                stream.set_nonblocking(true).unwrap();
                RawStream::Ipc(stream)
            }),
        };
        match stream {
            Ok(stream) => Some(Raw::new(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

enum RawStream {
    Tcp(TcpStream),
    Ipc(UnixStream),
}

/// A peer that speaks bytes, never blocks, and remembers what it was sent.
pub(crate) struct Raw {
    stream: RawStream,
    pub(crate) got: Vec<u8>,
    /// The other side has closed, or reset, the connection.
    pub(crate) ended: bool,
}

impl Raw {
    fn new(stream: RawStream) -> Self {
        Raw {
            stream,
            got: Vec::new(),
            ended: false,
        }
    }

    /// Writes as much as the kernel takes now; how much that was. An error is an end.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> usize {
        let result = match &mut self.stream {
            RawStream::Tcp(stream) => stream.write(bytes),
            RawStream::Ipc(stream) => stream.write(bytes),
        };
        match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.ended = true;
                0
            }
        }
    }

    /// Writes bytes that the kernel takes at once.
    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        assert_eq!(self.try_write(bytes), bytes.len());
    }

    /// Reads at most `limit` bytes of what is there into `got`; how many they were.
    pub(crate) fn read(&mut self, limit: usize) -> usize {
        let mut chunk = vec![0; limit];
        let result = match &mut self.stream {
            RawStream::Tcp(stream) => stream.read(&mut chunk),
            RawStream::Ipc(stream) => stream.read(&mut chunk),
        };
        match result {
            Ok(0) => self.ended = true,
            Ok(count) => {
                self.got.extend_from_slice(&chunk[..count]);
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
        0
    }

    /// Sets `SO_RCVBUF`, which Unix sockets do not have.
    pub(crate) fn receive_buffer(&self, bytes: usize) {
        if let RawStream::Tcp(stream) = &self.stream {
            let socket = socket2::SockRef::from(stream);
            socket.set_recv_buffer_size(bytes).unwrap();
        }
    }

    /// Reads what is there.
    pub(crate) fn poll(&mut self) {
        while self.read(64 << 10) > 0 {}
    }

    /// Greeting and READY of a NULL peer.
    pub(crate) fn shake_hands(&mut self, socket_type: &str, routing_id: &[u8]) {
        let mut bytes = greeting("NULL").to_vec();
        bytes.extend(ready(&[
            ("Socket-Type", socket_type.as_bytes()),
            ("Identity", routing_id),
        ]));
        self.write(&bytes);
    }

    /// Frames that have come whole after the greeting: flags and body.
    pub(crate) fn frames(&self) -> Vec<(u8, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut rest = self.got.get(64..).unwrap_or(&[]);
        while let [flags, size, ..] = rest {
            let (head, size) = match flags & 2 {
                0 => (2, usize::from(*size)),
                _ => match rest.get(1..9) {
                    Some(bytes) => (9, u64::from_be_bytes(bytes.try_into().unwrap()) as usize),
                    None => break,
                },
            };
            let Some(body) = rest.get(head..head + size) else {
                break;
            };
            frames.push((*flags, body.to_vec()));
            rest = &rest[head + size..];
        }
        frames
    }
}

/// A ZMTP 3.1 greeting.
pub(crate) fn greeting(mechanism: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[9], bytes[10], bytes[11]) = (0xFF, 0x7F, 3, 1);
    bytes[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    bytes
}

/// A frame with these flags; LONG is set when the body needs it.
pub(crate) fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = match u8::try_from(body.len()) {
        Ok(size) => vec![flags, size],
        Err(_) => {
            let mut head = vec![flags | 2];
            head.extend_from_slice(&(body.len() as u64).to_be_bytes());
            head
        }
    };
    bytes.extend_from_slice(body);
    bytes
}

/// A READY command frame.
pub(crate) fn ready(properties: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in properties {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    frame(4, &body)
}

/// What both sockets can do without a message.
pub(crate) trait Drive {
    fn drive(&mut self);
    fn event(&mut self) -> Option<Event>;

    /// Events until now.
    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }
}

impl Drive for Router {
    fn drive(&mut self) {
        self.flush().unwrap();
    }
    fn event(&mut self) -> Option<Event> {
        self.poll_event()
    }
}

impl Drive for Dealer {
    fn drive(&mut self) {
        self.flush().unwrap();
    }
    fn event(&mut self) -> Option<Event> {
        self.poll_event()
    }
}

/// Drives sockets until `done` says so.
#[track_caller]
pub(crate) fn drive_until(
    what: &str,
    sockets: &mut [&mut dyn Drive],
    mut done: impl FnMut() -> bool,
) {
    until(what, || {
        for socket in sockets.iter_mut() {
            socket.drive();
        }
        done().then_some(())
    });
}

/// Receives on a ROUTER: the routing ID and the frames.
pub(crate) fn take(router: &mut Router) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let (from, message) = router.receive(NOW).unwrap()?;
    Some((from.to_vec(), message.to_vecs()))
}

/// Receives on a DEALER.
pub(crate) fn receive(dealer: &mut Dealer) -> Option<Vec<Vec<u8>>> {
    dealer
        .receive(NOW)
        .unwrap()
        .map(|message| message.to_vecs())
}

/// The reason of the first failed handshake among events.
pub(crate) fn handshake_failure(events: &[Event]) -> Option<&DisconnectReason> {
    events.iter().find_map(|event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason),
        _ => None,
    })
}

/// Raises the limit of open files to so many.
pub(crate) fn allow_descriptors(count: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        hard >= count,
        "{count} open files are needed, {hard} are allowed: ulimit -Hn {count}, as root"
    );
    if limit.current.is_some_and(|soft| soft < count) {
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

/// Open descriptors of the process.
pub(crate) fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory of the process, bytes.
pub(crate) fn rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The CPU time of the thread that made it; needs no further descriptor.
pub(crate) struct ThreadCpu(std::fs::File);

impl ThreadCpu {
    pub(crate) fn new() -> Self {
        ThreadCpu(std::fs::File::open("/proc/thread-self/schedstat").unwrap())
    }

    pub(crate) fn used(&mut self) -> Duration {
        let mut text = String::new();
        self.0.seek(io::SeekFrom::Start(0)).unwrap();
        self.0.read_to_string(&mut text).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }
}
