//! What is measured, and how it is written down. No sockets here.

use std::time::{Duration, Instant};

/// Whatever a peer's library reports; it is printed and that is all.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// High-water mark of every peer that has one, in messages: never the thing that is measured.
pub(crate) const HWM: i32 = 100_000;

/// Which of the two measurements.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// One way, as fast as it goes.
    Throughput,
    /// Round trips, one in flight.
    Latency,
}

impl Mode {
    /// Messages to measure when the command line says nothing: a second or so of work.
    pub(crate) fn message_count_default(self) -> u32 {
        match self {
            Mode::Throughput => 1_000_000,
            Mode::Latency => 20_000,
        }
    }
}

/// The work of one run.
#[derive(Clone)]
pub(crate) struct Plan {
    /// First frame, in bytes.
    pub(crate) header_size: usize,
    /// Second frame, in bytes.
    pub(crate) payload_size: usize,
    /// Messages (or round trips) that count.
    pub(crate) message_count: u32,
}

impl Plan {
    /// Messages that go first and don't count.
    pub(crate) fn warmup_count(&self) -> u32 {
        (self.message_count / 10).max(1)
    }

    /// The first frame.
    pub(crate) fn header(&self) -> Vec<u8> {
        vec![0xC5; self.header_size]
    }

    /// The second frame.
    pub(crate) fn payload(&self) -> Vec<u8> {
        vec![0x5C; self.payload_size]
    }

    /// An error unless a received message's two frames have the sizes that were sent.
    pub(crate) fn check(&self, header_size: usize, payload_size: usize) -> Result<(), Error> {
        if (header_size, payload_size) == (self.header_size, self.payload_size) {
            return Ok(());
        }
        Err(format!(
            "expected frames of {} and {} bytes, got {header_size} and {payload_size}",
            self.header_size, self.payload_size
        )
        .into())
    }
}

/// What came out.
pub(crate) enum Outcome {
    /// All messages took this long.
    Throughput(Duration),
    /// The round trips, in order of time taken.
    Latency(Vec<Duration>),
}

impl Outcome {
    /// The one line of output.
    pub(crate) fn to_json(&self, peer: &str, plan: &Plan) -> String {
        let (header, payload, count) = (plan.header_size, plan.payload_size, plan.message_count);
        match self {
            Outcome::Throughput(elapsed) => {
                let seconds = elapsed.as_secs_f64().max(1e-9);
                let rate = f64::from(count) / seconds;
                let megabytes = rate * (header + payload) as f64 / 1e6;
                format!(
                    "{{\"peer\":\"{peer}\",\"mode\":\"throughput\",\"header\":{header},\"payload\":{payload},\
                     \"messages\":{count},\"seconds\":{seconds:.6},\"msgs_per_s\":{rate:.0},\"mb_per_s\":{megabytes:.1}}}"
                )
            }
            Outcome::Latency(sorted) => {
                let at = |permille: usize| {
                    let index =
                        (sorted.len() * permille / 1000).min(sorted.len().saturating_sub(1));
                    sorted
                        .get(index)
                        .map_or(0.0, |time| time.as_secs_f64() * 1e6)
                };
                let seconds: f64 = sorted.iter().map(Duration::as_secs_f64).sum();
                format!(
                    "{{\"peer\":\"{peer}\",\"mode\":\"latency\",\"header\":{header},\"payload\":{payload},\
                     \"messages\":{count},\"seconds\":{seconds:.6},\"median_us\":{:.2},\"p99_us\":{:.2}}}",
                    at(500),
                    at(990)
                )
            }
        }
    }
}

/// Collects round trips.
pub(crate) struct Laps(Vec<Duration>);

impl Laps {
    /// Room for every lap of the plan, so that collecting costs the same each time.
    pub(crate) fn new(plan: &Plan) -> Laps {
        Laps(Vec::with_capacity(plan.message_count as usize))
    }

    /// Notes the `index`-th round trip, unless it was a warm-up.
    pub(crate) fn note(&mut self, plan: &Plan, index: u32, start: Instant) {
        if index >= plan.warmup_count() {
            self.0.push(start.elapsed());
        }
    }

    /// The round trips as an outcome.
    pub(crate) fn finish(mut self) -> Outcome {
        self.0.sort_unstable();
        Outcome::Latency(self.0)
    }
}

/// Waits for a thread of ours; its panic is an error.
pub(crate) fn join<T>(thread: std::thread::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    thread
        .join()
        .map_err(|_| Error::from("a thread panicked"))?
}
