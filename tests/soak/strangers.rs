//! Connections that mean no good.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::*;
use crate::{PEERS, Random, Shared};

/// Makes trouble until all is over; how often.
pub(crate) fn run(net: &Net, bound: &str, mechanism: &str, shared: &Shared) -> u64 {
    let mut random = Random::new(shared.seed, u64::MAX / 2);
    let mut count = 0;
    let mut held: Vec<Raw> = Vec::new();
    while !shared.over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(2));
        // While the server restarts nobody listens.
        let Some(mut raw) = net.try_raw(bound) else {
            continue;
        };
        count += 1;
        let noise: Vec<u8> = (0..random.below(300))
            .map(|_| random.next() as u8)
            .collect();
        match random.below(8) {
            0 => drop(raw.try_write(&noise)),
            1 => drop(raw.try_write(&greeting(mechanism)[..random.below(64) as usize])),
            2 => {}
            kind if mechanism == "CURVE" && kind < 6 => {
                // HELLOs that open nothing, of the right size and of others, and what may not
                // come before them.
                let mut bytes = greeting(mechanism).to_vec();
                let mut hello = b"\x05HELLO\x01\0".to_vec();
                hello.resize(80, 0);
                hello.extend((0..120).map(|_| random.next() as u8));
                match kind {
                    3 => bytes.extend(frame(4, &hello)),
                    4 => bytes.extend(frame(4, &hello[..random.below(200) as usize])),
                    _ => bytes.extend(frame(0, b"\x07MESSAGE of nobody")),
                }
                raw.try_write(&bytes);
            }
            kind => {
                // As somebody new, or as somebody who is there.
                let name = match random.below(2) {
                    0 => format!("stranger {count}"),
                    _ => format!("p-{}", random.below(PEERS)),
                };
                let mut bytes = greeting("NULL").to_vec();
                bytes.extend(ready(&[
                    ("Socket-Type", b"DEALER"),
                    ("Identity", name.as_bytes()),
                ]));
                bytes.extend(match kind {
                    3 => frame(1, b"never finished"),
                    4 => frame(0, b"whole"),
                    5 => frame(4, b"\x04PING\0"),
                    6 => noise,
                    _ => vec![2, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
                });
                raw.try_write(&bytes);
            }
        }
        held.push(raw);
        // Some stay silently for a while.
        while held.len() as u64 > random.below(50) {
            held.swap_remove(random.below(held.len() as u64) as usize);
        }
    }
    count
}
