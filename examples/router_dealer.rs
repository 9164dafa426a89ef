//! A ROUTER distributes work to DEALERs, which request it and send results.
//!
//! `cargo run --example router_dealer` runs both sides in one process. `… -- router
//! tcp://127.0.0.1:5555` and `… -- dealer tcp://127.0.0.1:5555 NAME` each run one side, on the same
//! host or different ones. The other side may also use libzmq.
//!
//! It needs none of the crate's features, so it also runs with `--no-default-features`.

use std::error::Error;
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Event, Options, Router};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

const JOBS: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Squares numbers until there are no more. A DEALER requests its first number by `ready`; each
/// result also requests the next number.
fn dealer(endpoint: &str, name: &str) -> Outcome {
    let options = Options::new()
        .routing_id(name)
        .heartbeat_ivl(Duration::from_secs(1))
        .reconnect_ivl(Duration::from_millis(50));
    let mut dealer = Dealer::new(options)?;
    dealer.connect(endpoint)?;
    dealer.send(&[b"ready"])?;
    let mut done = 0;
    loop {
        // This call also processes reconnects, heartbeats and writes.
        let Some(message) = dealer.receive(Some(PATIENCE))? else {
            return Err(format!("{name}: no work for {PATIENCE:?}").into());
        };
        let number = match (message.get(0), message.get(1)) {
            (Some(b"square"), Some(bytes)) => u32::from_be_bytes(bytes.try_into()?),
            _ => break,
        };
        let square = u64::from(number) * u64::from(number);
        dealer.send(&[b"result", &number.to_be_bytes(), &square.to_be_bytes()])?;
        done += 1;
    }
    println!("{name}: {done} numbers squared");
    Ok(())
}

/// Sends numbers to the DEALERs that request them, and adds the squares.
fn router(mut router: Router) -> Outcome {
    let (mut next, mut answers, mut sum) = (0u32, 0, 0u64);
    let mut names: Vec<Vec<u8>> = Vec::new();
    let began = Instant::now();
    while answers < JOBS {
        // A received message is borrowed from the socket. A sent message is copied at once.
        let from = match router.receive(Some(PATIENCE))? {
            None => return Err("nobody works".into()),
            Some((from, message)) => {
                if let (Some(b"result"), Some(square)) = (message.get(0), message.get(2)) {
                    sum += u64::from_be_bytes(square.try_into()?);
                    answers += 1;
                } else {
                    names.push(from.to_vec());
                }
                from.to_vec()
            }
        };
        if next < JOBS {
            router.send(&from, &[b"square", &next.to_be_bytes()])?;
            next += 1;
        }
        while let Some(event) = router.poll_event() {
            if let Event::Disconnected {
                routing_id, reason, ..
            } = event
            {
                println!("{} is gone: {reason}", String::from_utf8_lossy(&routing_id));
            }
        }
    }
    println!(
        "the sum of {answers} squares is {sum}, after {:?}",
        began.elapsed()
    );
    for name in names {
        router.send(&name, &[b"done"])?;
    }
    router.close(PATIENCE)?;
    Ok(())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["router", endpoint] => {
            let mut socket = Router::new(Options::new().router_handover(true))?;
            println!("listening on {}", socket.bind(endpoint)?);
            router(socket)
        }
        ["dealer", endpoint, name] => dealer(endpoint, name),
        [] => {
            let mut socket = Router::new(Options::new())?;
            let endpoint = socket.bind("tcp://127.0.0.1:*")?.to_string();
            std::thread::scope(|scope| {
                for name in ["d-1", "d-2", "d-3"] {
                    let endpoint = &endpoint;
                    scope.spawn(move || {
                        if let Err(error) = dealer(endpoint, name) {
                            eprintln!("{name}: {error}");
                        }
                    });
                }
                router(socket)
            })
        }
        _ => Err("usage: router_dealer [router ENDPOINT | dealer ENDPOINT NAME]".into()),
    }
}
