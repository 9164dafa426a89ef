//! A TCP proxy that cuts connections, or keeps them open and lets no byte through.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Poll interval of threads.
const PERIOD: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    over: AtomicBool,
    /// To the sentinel, and from it.
    stalled: [AtomicBool; 2],
    open: Mutex<Vec<TcpStream>>,
}

/// A proxy on a port of its own, with its threads. It ends when it is dropped.
pub(crate) struct Proxy {
    state: Arc<State>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(to_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let accepting = std::thread::spawn(move || accept(&listener, to_port, &shared));
        Proxy {
            state,
            port,
            accepting: Some(accepting),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            // ENOTCONN: it has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets bytes through or not, towards the sentinel and from it.
    pub(crate) fn stall(&self, to_sentinel: bool, from_sentinel: bool) {
        let [to, from] = &self.state.stalled;
        to.store(to_sentinel, Ordering::SeqCst);
        from.store(from_sentinel, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.cut();
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, to_port: u16, state: &Arc<State>) {
    let mut copying: Vec<JoinHandle<()>> = Vec::new();
    while !state.over.load(Ordering::SeqCst) {
        copying.retain(|thread| !thread.is_finished());
        let Ok((worker, _)) = listener.accept() else {
            std::thread::sleep(PERIOD);
            continue;
        };
        // A sentinel that is down: the worker's connection ends as well.
        let Ok(sentinel) = TcpStream::connect(("127.0.0.1", to_port)) else {
            continue;
        };
        let pairs = [(&worker, &sentinel, 0), (&sentinel, &worker, 1)];
        for (from, to, direction) in pairs {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let state = state.clone();
            copying.push(std::thread::spawn(move || {
                copy(from, to, &state, direction);
            }));
        }
        let mut open = state.open.lock().unwrap();
        open.retain(|stream| stream.peer_addr().is_ok());
        open.extend([worker, sentinel]);
    }
    drop(
        copying
            .into_iter()
            .map(JoinHandle::join)
            .collect::<Vec<_>>(),
    );
}

fn copy(mut from: TcpStream, mut to: TcpStream, state: &State, direction: usize) {
    let mut space = [0; 16 << 10];
    let stalled = &state.stalled[direction];
    // A listener that does not block gives streams that do not on some systems.
    from.set_nonblocking(false).unwrap();
    while let Ok(size @ 1..) = from.read(&mut space) {
        while stalled.load(Ordering::SeqCst) && !state.over.load(Ordering::SeqCst) {
            std::thread::sleep(PERIOD);
        }
        if to.write_all(&space[..size]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
