//! Peers that behave, as far as a peer that stalls and goes without a word does.

use std::ops::Range;
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Error, Options};

use crate::support::*;
use crate::{Random, Shared};

/// What the peers of a thread did.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) answers: u64,
    pub(crate) came: u64,
    /// Left after everything was acknowledged.
    pub(crate) left: u64,
    /// Went in the middle of whatever was going on.
    pub(crate) vanished: u64,
    pub(crate) reconnects: u64,
}

enum Mood {
    Busy,
    StallsUntil(Instant),
    /// Sends no more, and leaves when the last message is acknowledged.
    Leaves(Instant),
}

struct Peer {
    dealer: Dealer,
    epoch: u64,
    /// The last message that was sent, and the last that was acknowledged.
    number: u64,
    acknowledged: u64,
    connection: u64,
    answers: u64,
    mood: Mood,
}

impl Peer {
    fn new(number: u64, epoch: u64, bound: &str, options: &Options) -> Self {
        let options = options.clone().routing_id(format!("p-{number}"));
        let mut dealer = Dealer::new(options.sndhwm(200)).unwrap();
        dealer.connect(bound).unwrap();
        Peer {
            dealer,
            epoch,
            number: 0,
            acknowledged: 0,
            connection: 0,
            answers: 0,
            mood: Mood::Busy,
        }
    }

    fn send(&mut self, size: usize) -> bool {
        let number = self.number + 1;
        let mut head = b"soak".to_vec();
        for value in [self.epoch, number, size as u64] {
            head.extend(value.to_be_bytes());
        }
        match self.dealer.send(&[&head, &vec![number as u8; size]]) {
            Ok(()) => self.number = number,
            Err(Error::Full) => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }

    fn receive(&mut self, report: &mut Report) {
        while let Some(frames) = receive(&mut self.dealer) {
            let number_at =
                |place: usize| u64::from_be_bytes(frames[0][place * 8..][..8].try_into().unwrap());
            let (connection, answers, epoch, number) =
                (number_at(0), number_at(1), number_at(2), number_at(3));
            if epoch != self.epoch {
                // To the peer that had this name before, which went before it was read.
                continue;
            }
            if connection == self.connection {
                assert_eq!(
                    answers,
                    self.answers + 1,
                    "an answer was lost on a living connection"
                );
            }
            assert!(
                number > self.acknowledged,
                "an answer came twice, or out of order"
            );
            (self.connection, self.answers, self.acknowledged) = (connection, answers, number);
            report.answers += 1;
        }
    }
}

pub(crate) fn run(numbers: Range<u64>, bound: &str, options: &Options, shared: &Shared) -> Report {
    let mut report = Report::default();
    let mut random = Random::new(shared.seed, numbers.start);
    let mut peers: Vec<(u64, Option<Peer>)> = numbers.map(|number| (number, None)).collect();
    let mut epoch = 0;
    let deadline = Instant::now() + DEADLINE + Duration::from_millis(shared.messages);
    while !(shared.is_done() && peers.iter().all(|(_, peer)| peer.is_none())) {
        assert!(Instant::now() < deadline, "the plan does not end");
        let mut idle = true;
        for (number, slot) in &mut peers {
            let Some(peer) = slot else {
                if !shared.is_done() {
                    epoch += 1;
                    report.came += 1;
                    *slot = Some(Peer::new(*number, epoch, bound, options));
                }
                continue;
            };
            let now = Instant::now();
            match peer.mood {
                Mood::StallsUntil(until) if until > now => continue,
                Mood::StallsUntil(_) => peer.mood = Mood::Busy,
                Mood::Leaves(_) if peer.acknowledged == peer.number => {
                    report.reconnects += peer.dealer.counters().retries;
                    report.left += 1;
                    *slot = None;
                    continue;
                }
                Mood::Leaves(since) => {
                    // What was on its way may have gone with a connection, or the answer found
                    // no room; another message brings another answer.
                    if since.elapsed() > Duration::from_millis(20) && peer.send(0) {
                        peer.mood = Mood::Leaves(now);
                    }
                }
                Mood::Busy => {
                    idle = false;
                    for _ in 0..random.below(30) {
                        let size = match random.below(200) {
                            0 => 300_000,
                            1..20 => random.below(10_000),
                            _ => random.below(100),
                        };
                        if !peer.send(size as usize) {
                            break;
                        }
                    }
                    match random.below(2000) {
                        _ if shared.is_done() => peer.mood = Mood::Leaves(now),
                        0..4 => {
                            report.reconnects += peer.dealer.counters().retries;
                            report.vanished += 1;
                            *slot = None;
                            continue;
                        }
                        4..8 => peer.mood = Mood::Leaves(now),
                        8..20 => {
                            let pause = Duration::from_millis(random.below(50));
                            peer.mood = Mood::StallsUntil(now + pause);
                        }
                        _ => {}
                    }
                }
            }
            peer.dealer.flush().unwrap();
            peer.receive(&mut report);
            peer.dealer.events();
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    report
}
