//! ZMTP codec without I/O: encode into a send queue, parse out of a receive buffer.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casparian::zmtp::{Config, Connection, Limits, Progress, Security, SendQueue, SocketType};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MESSAGES: usize = 1000;

fn connection(socket_type: SocketType, now: Instant) -> Connection {
    let config = Config {
        socket_type,
        routing_id: Vec::new(),
        limits: Limits::default(),
        handshake_timeout: Duration::from_secs(30),
        heartbeat: None,
        read_ahead: casparian::limits::RECEIVE_BUFFER_SIZE_MAX,
        rcvhwm: 0,
        security: Security::Null,
        metadata: Vec::new(),
    };
    Connection::new(Arc::new(config), now)
}

fn wire(connection: &mut Connection, queue: &mut SendQueue) -> Vec<u8> {
    let mut out = Vec::new();
    while connection.wants_write(queue) {
        let mut slices = casparian::zmtp::Slices::new();
        connection.gather(queue, &mut slices);
        let before = out.len();
        for slice in slices.iter() {
            out.extend_from_slice(slice);
        }
        connection.handle_written(queue, out.len() - before, Instant::now());
    }
    out
}

fn feed(connection: &mut Connection, mut bytes: &[u8], now: Instant) -> usize {
    let mut messages = 0;
    while !bytes.is_empty() {
        let space = connection.receive_space(casparian::zmtp::Growth::ReadAhead);
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        connection.handle_received(count, now);
        bytes = &bytes[count..];
        loop {
            match connection.poll(now) {
                Ok(Progress::NeedInput) => break,
                Ok(Progress::Message) => {
                    black_box(connection.message().get(1));
                    messages += 1;
                }
                Ok(Progress::Established) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    messages
}

fn codec(criterion: &mut Criterion) {
    let now = Instant::now();
    for size in [16usize, 256, 4096] {
        let header = [7u8; 16];
        let payload = vec![1u8; size];
        let mut group = criterion.benchmark_group(format!("codec/16+{size}"));
        group.throughput(Throughput::Elements(MESSAGES as u64));
        group.bench_function("encode", |bencher| {
            let mut queue = SendQueue::new();
            bencher.iter(|| {
                for _ in 0..MESSAGES {
                    queue.push(&[black_box(&header), black_box(&payload)]);
                }
                let bytes = queue.bytes();
                queue.advance(bytes);
            });
        });
        let mut client = connection(SocketType::Dealer, now);
        let mut server = connection(SocketType::Router, now);
        let mut queue = SendQueue::new();
        let hello = wire(&mut server, &mut SendQueue::new());
        feed(&mut client, &hello, now);
        for _ in 0..MESSAGES {
            queue.push(&[&header, &payload]);
        }
        let mut bytes = wire(&mut client, &mut queue);
        // The handshake goes once, before the measured part.
        let body = MESSAGES * (2 + 16 + if size < 256 { 2 } else { 9 } + size);
        let messages = bytes.split_off(bytes.len() - body);
        feed(&mut server, &bytes, now);
        group.bench_function("decode", |bencher| {
            bencher.iter(|| assert_eq!(feed(&mut server, &messages, now), MESSAGES));
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
