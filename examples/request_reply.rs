//! Requests with an ID and a time limit, and a server that answers them.
//!
//! `cargo run --example request_reply` runs both sides in one process. `… -- server
//! tcp://127.0.0.1:5555` and `… -- client tcp://127.0.0.1:5555 TEXT…` each run one side.
//!
//! A request has three frames: its ID (8 bytes, big-endian), the client's name for the operation, and the
//! body. The reply has the same ID first. A client sends a request again when its time is over, and drops a
//! reply whose ID it does not wait for: a late or a second one. So the server may process a request twice.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Options, Router, Waker};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A client that may have several requests at a time.
pub(crate) struct Client {
    dealer: Dealer,
    next_id: u64,
    /// Requests that nobody has waited for to the end, with their replies if those are there.
    open: HashMap<u64, Option<Vec<u8>>>,
}

/// A request that waits for its reply.
pub(crate) struct Request {
    id: u64,
    operation: String,
    body: Vec<u8>,
}

impl Client {
    /// Connects in the background.
    pub(crate) fn connect(endpoint: &str) -> Outcome<Self> {
        let options = Options::new().heartbeat_ivl(Duration::from_secs(1));
        let mut dealer = Dealer::new(options)?;
        dealer.connect(endpoint)?;
        Ok(Client {
            dealer,
            next_id: 1,
            open: HashMap::new(),
        })
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, operation: &str, body: &[u8]) -> Outcome<Request> {
        let request = Request {
            id: self.next_id,
            operation: operation.to_owned(),
            body: body.to_vec(),
        };
        self.next_id += 1;
        self.open.insert(request.id, None);
        self.send_again(&request)?;
        Ok(request)
    }

    fn send_again(&mut self, request: &Request) -> Outcome {
        let id = request.id.to_be_bytes();
        let frames = [&id[..], request.operation.as_bytes(), &request.body];
        Ok(self.dealer.send(&frames)?)
    }

    /// Waits for the reply. The request is sent again after each `timeout`, `tries` times in total.
    pub(crate) fn wait(
        &mut self,
        request: Request,
        timeout: Duration,
        tries: u32,
    ) -> Outcome<Vec<u8>> {
        for attempt in 1..=tries {
            let deadline = Instant::now() + timeout;
            loop {
                if let Some(reply) = self.open.get_mut(&request.id).and_then(Option::take) {
                    self.open.remove(&request.id);
                    return Ok(reply);
                }
                let left = deadline.saturating_duration_since(Instant::now());
                let Some(message) = self.dealer.receive(Some(left))? else {
                    break;
                };
                let id = message.get(0).and_then(|id| id.try_into().ok());
                let id = id.map(u64::from_be_bytes);
                if let (Some(id), Some(body)) = (id, message.get(1))
                    && let Some(reply) = self.open.get_mut(&id)
                {
                    *reply = Some(body.to_vec());
                }
            }
            if attempt < tries {
                self.send_again(&request)?;
            }
        }
        self.open.remove(&request.id);
        Err(format!("no reply to {:?} after {tries} tries", request.operation).into())
    }
}

/// A server. `handle` gets the operation and the body of a request, and returns the reply.
pub(crate) struct Server {
    router: Router,
}

impl Server {
    /// Listens at an endpoint. Returns the endpoint with the port that the system chose.
    pub(crate) fn bind(endpoint: &str) -> Outcome<(Self, String)> {
        let options = Options::new().heartbeat_ivl(Duration::from_secs(1));
        let mut router = Router::new(options)?;
        let bound = router.bind(endpoint)?.to_string();
        Ok((Server { router }, bound))
    }

    /// Ends a wait of [`Server::run`] from another thread.
    pub(crate) fn waker(&mut self) -> Outcome<Waker> {
        Ok(self.router.waker()?)
    }

    /// Answers requests until `must_stop` is set.
    pub(crate) fn run(
        &mut self,
        mut handle: impl FnMut(&[u8], &[u8]) -> Vec<u8>,
        must_stop: &AtomicBool,
    ) -> Outcome {
        while !must_stop.load(Ordering::Relaxed) {
            let Some((client, message)) = self.router.receive(None)? else {
                continue;
            };
            let (Some(id), Some(operation), Some(body)) =
                (message.get(0), message.get(1), message.get(2))
            else {
                eprintln!("not a request: {} frames", message.len());
                continue;
            };
            let reply = handle(operation, body);
            let (client, id) = (client.to_vec(), id.to_vec());
            // The client may be gone, or may not read its replies; it sends the request again.
            if let Err(error) = self.router.send(&client, &[&id, &reply]) {
                eprintln!("a reply is dropped: {error}");
            }
        }
        Ok(())
    }
}

/// The server's operations.
pub(crate) fn reverse(operation: &[u8], body: &[u8]) -> Vec<u8> {
    match operation {
        b"reverse" => body.iter().rev().copied().collect(),
        _ => b"unknown operation".to_vec(),
    }
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (timeout, tries) = (Duration::from_secs(2), 3);
    let ask = |endpoint: &str, texts: &[&str]| -> Outcome {
        let mut client = Client::connect(endpoint)?;
        let requests: Result<Vec<_>, _> = texts
            .iter()
            .map(|text| client.send("reverse", text.as_bytes()))
            .collect();
        for request in requests? {
            let reply = client.wait(request, timeout, tries)?;
            println!("{}", String::from_utf8_lossy(&reply));
        }
        Ok(())
    };
    let must_stop = AtomicBool::new(false);
    match arguments.as_slice() {
        ["server", endpoint] => {
            let (mut server, endpoint) = Server::bind(endpoint)?;
            println!("listening on {endpoint}");
            server.run(reverse, &must_stop)
        }
        ["client", endpoint, texts @ ..] => ask(endpoint, texts),
        [] => {
            let (mut server, endpoint) = Server::bind("tcp://127.0.0.1:*")?;
            let waker = server.waker()?;
            std::thread::scope(|scope| {
                let serving = scope.spawn(|| server.run(reverse, &must_stop));
                let asked = ask(&endpoint, &["lever", "stressed"]);
                must_stop.store(true, Ordering::Relaxed);
                waker.wake()?;
                serving.join().map_err(|_| "the server has panicked")??;
                asked
            })
        }
        _ => Err("usage: request_reply [server ENDPOINT | client ENDPOINT TEXT…]".into()),
    }
}
