//! The baseline: the bytes of the same messages over a bare `TcpStream`, without any protocol work.
//!
//! A message is as long as ZMTP would frame it (2 bytes before a frame of up to 255, else 9).
//! Throughput writes whole blocks of messages, which no message library can beat.

use crate::measure::{Error, Laps, Outcome, Plan, join};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Bytes that are written or read at once in throughput mode.
const BLOCK_SIZE: usize = 256 * 1024;

fn wire_size(plan: &Plan) -> usize {
    let framed = |size: usize| size + if size <= 255 { 2 } else { 9 };
    framed(plan.header_size) + framed(plan.payload_size)
}

fn pair() -> Result<(TcpStream, TcpStream), Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

fn write_bytes(stream: &mut TcpStream, mut left: u64, block: &[u8]) -> Result<(), Error> {
    while left > 0 {
        let size = left.min(block.len() as u64) as usize;
        stream.write_all(&block[..size])?;
        left -= size as u64;
    }
    Ok(())
}

fn read_bytes(stream: &mut TcpStream, mut left: u64, block: &mut [u8]) -> Result<(), Error> {
    while left > 0 {
        let size = left.min(block.len() as u64) as usize;
        let got = stream.read(&mut block[..size])?;
        if got == 0 {
            return Err("the sender closed early".into());
        }
        left -= got as u64;
    }
    Ok(())
}

/// One way.
pub(crate) fn throughput(plan: &Plan) -> Result<Outcome, Error> {
    let (mut client, mut server) = pair()?;
    let size = wire_size(plan) as u64;
    let warmup = size * u64::from(plan.warmup_count());
    let total = size * u64::from(plan.message_count);
    let (go, gone) = mpsc::channel::<()>();
    let sender = thread::spawn(move || {
        let block = vec![0x5C; BLOCK_SIZE];
        write_bytes(&mut client, warmup, &block)?;
        gone.recv()?;
        write_bytes(&mut client, total, &block)
    });
    let mut block = vec![0; BLOCK_SIZE];
    read_bytes(&mut server, warmup, &mut block)?;
    let start = Instant::now();
    go.send(())?;
    read_bytes(&mut server, total, &mut block)?;
    let elapsed = start.elapsed();
    join(sender)?;
    Ok(Outcome::Throughput(elapsed))
}

/// Round trips.
pub(crate) fn latency(plan: &Plan) -> Result<Outcome, Error> {
    let (mut client, mut server) = pair()?;
    let laps = plan.warmup_count() + plan.message_count;
    let size = wire_size(plan);
    let echo = thread::spawn(move || {
        let mut message = vec![0; size];
        for _ in 0..laps {
            server.read_exact(&mut message)?;
            server.write_all(&message)?;
        }
        Ok(())
    });
    let mut message = vec![0x5C; size];
    let mut times = Laps::new(plan);
    for lap in 0..laps {
        let start = Instant::now();
        client.write_all(&message)?;
        client.read_exact(&mut message)?;
        times.note(plan, lap, start);
    }
    join(echo)?;
    Ok(times.finish())
}
