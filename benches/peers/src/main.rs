//! `casparian-bench-peers`: how fast other ZMTP implementations move Casparian's messages.
//!
//! One run measures one peer in one mode and prints one JSON line, so that the product's own bench
//! can interleave runs with its own on the same machine. A message is two frames, header and
//! payload, from a DEALER to a ROUTER over TCP on the loopback interface.
//!
//! It is not a benchmark framework: no statistics over runs, no files. The caller does those.

mod async_peer;
mod measure;
mod peer_libzmq;
#[cfg(feature = "omq")]
mod peer_omq;
#[cfg(feature = "rzmq")]
mod peer_rzmq;
mod peer_zmqrs;
mod raw_tcp;

use measure::{Error, Mode, Outcome, Plan};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: casparian-bench-peers PEER MODE [--header N] [--payload N] [--messages N] [--deadline-s N]

  PEER  libzmq | zmq.rs | raw-tcp | rzmq (feature `rzmq`) | omq (feature `omq`)
  MODE  throughput: a DEALER sends, a ROUTER receives; the clock runs from the moment both are
                    warm and nothing is under way until the last message has arrived
        latency:    round trips, one in flight

  --header N      size of the first frame in bytes (16)
  --payload N     size of the second frame in bytes (16)
  --messages N    messages, or round trips, that are measured (1000000, or 20000);
                  a tenth as many go first as warm-up
  --deadline-s N  give up after so many seconds (120)

Prints one JSON line. Exit code 0, 1 when the peer fails, 2 for a bad command line, 3 at the deadline.";

/// One run over a peer.
type Measurement = fn(&Plan) -> Result<Outcome, Error>;

/// The measurement that a peer's name and a mode mean.
fn measurement(peer: &str, mode: Mode) -> Option<Measurement> {
    Some(match (peer, mode) {
        ("libzmq", Mode::Throughput) => peer_libzmq::throughput,
        ("libzmq", Mode::Latency) => peer_libzmq::latency,
        ("zmq.rs", Mode::Throughput) => async_peer::throughput::<peer_zmqrs::ZmqRs>,
        ("zmq.rs", Mode::Latency) => async_peer::latency::<peer_zmqrs::ZmqRs>,
        ("raw-tcp", Mode::Throughput) => raw_tcp::throughput,
        ("raw-tcp", Mode::Latency) => raw_tcp::latency,
        #[cfg(feature = "rzmq")]
        ("rzmq", Mode::Throughput) => async_peer::throughput::<peer_rzmq::Rzmq>,
        #[cfg(feature = "rzmq")]
        ("rzmq", Mode::Latency) => async_peer::latency::<peer_rzmq::Rzmq>,
        #[cfg(feature = "omq")]
        ("omq", Mode::Throughput) => async_peer::throughput::<peer_omq::Omq>,
        #[cfg(feature = "omq")]
        ("omq", Mode::Latency) => async_peer::latency::<peer_omq::Omq>,
        _ => return None,
    })
}

/// What the command line asks for.
struct Arguments {
    peer: String,
    mode: Mode,
    plan: Plan,
    deadline: Duration,
}

/// Reads the command line; the error says which word is wrong.
fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let peer = words.next().ok_or("which peer?")?;
    let mode = match words.next().as_deref() {
        Some("throughput") => Mode::Throughput,
        Some("latency") => Mode::Latency,
        other => {
            return Err(format!(
                "expected throughput or latency, got {}",
                other.unwrap_or("nothing")
            ));
        }
    };
    let mut plan = Plan {
        header_size: 16,
        payload_size: 16,
        message_count: mode.message_count_default(),
    };
    let mut deadline = Duration::from_secs(120);
    while let Some(flag) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        let number: u32 = value
            .parse()
            .map_err(|_| format!("{flag}: expected a number, got {value}"))?;
        match flag.as_str() {
            "--header" => plan.header_size = number as usize,
            "--payload" => plan.payload_size = number as usize,
            "--messages" => plan.message_count = number.max(1),
            "--deadline-s" => deadline = Duration::from_secs(number.into()),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(Arguments {
        peer,
        mode,
        plan,
        deadline,
    })
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("casparian-bench-peers: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Arguments {
        peer,
        mode,
        plan,
        deadline,
    } = arguments;
    let Some(measurement) = measurement(&peer, mode) else {
        eprintln!(
            "casparian-bench-peers: unknown peer {peer}, or built without its feature\n{USAGE}"
        );
        return ExitCode::from(2);
    };
    std::thread::spawn(move || {
        std::thread::sleep(deadline);
        eprintln!("casparian-bench-peers: not done after {deadline:?}");
        std::process::exit(3);
    });
    match measurement(&plan) {
        Ok(outcome) => {
            println!("{}", outcome.to_json(&peer, &plan));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("casparian-bench-peers: {peer}: {error}");
            ExitCode::FAILURE
        }
    }
}
