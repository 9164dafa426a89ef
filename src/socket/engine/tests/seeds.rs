//! Random sockets, owners and faults from seeds. `CASPARIAN_SOCKET_SEEDS` sets their number,
//! `CASPARIAN_SOCKET_SEED` runs a single one.

use super::*;
use crate::socket::engine::simulation::storm;

fn run(seed: u64) {
    storm::run(World::new(Choices::of_seed(seed), Instant::now()));
}

#[test]
fn seeds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("CASPARIAN_SOCKET_SEED") {
        return run(seed);
    }
    let count: u64 = number("CASPARIAN_SOCKET_SEEDS").unwrap_or(50);
    for seed in 0..count {
        let result = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = result {
            eprintln!("replay with CASPARIAN_SOCKET_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
