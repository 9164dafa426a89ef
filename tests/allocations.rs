//! Allocations of sockets: none for a message or a write on an established connection with NULL.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Options, Router};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: all calls are passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's pointer, layout and size.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends `count` messages in batches and receives them; returns the number of allocations.
fn exchange(dealer: &mut Dealer, router: &mut Router, count: u32, batch: u32) -> u64 {
    let body = [7u8; 200];
    let before = COUNT.load(Ordering::Relaxed);
    for _ in 0..count / batch {
        for _ in 0..batch {
            dealer.send(&[b"head", &body]).unwrap();
        }
        dealer.flush().unwrap();
        let mut received = 0;
        while received < batch {
            let (from, message) = router
                .receive(Some(Duration::from_secs(60)))
                .unwrap()
                .unwrap();
            assert_eq!((from, message.len()), (&b"d"[..], 2));
            received += 1;
        }
        for _ in 0..batch {
            router.send(b"d", &[b"answer"]).unwrap();
        }
        router.flush().unwrap();
        for _ in 0..batch {
            dealer
                .receive(Some(Duration::from_secs(60)))
                .unwrap()
                .unwrap();
        }
    }
    COUNT.load(Ordering::Relaxed) - before
}

#[test]
fn messages_and_writes_allocate_nothing() {
    for endpoint in ["tcp://127.0.0.1:*", "ipc://*"] {
        let mut router = Router::new(Options::new()).unwrap();
        let bound = router.bind(endpoint).unwrap().to_string();
        let mut dealer = Dealer::new(Options::new().routing_id("d")).unwrap();
        dealer.connect(&bound).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while router.counters().established == 0 || dealer.counters().established == 0 {
            dealer.flush().unwrap();
            router.flush().unwrap();
            assert!(Instant::now() < deadline);
        }
        for batch in [1, 10, 100] {
            exchange(&mut dealer, &mut router, 1000, batch);
            let allocations = exchange(&mut dealer, &mut router, 10_000, batch);
            // Timers of idle memory may allocate a node of their table.
            assert!(allocations < 20, "{endpoint} {batch}: {allocations}");
        }
    }
}
