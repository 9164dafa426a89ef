//! A server without descriptors to spare.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use casparian::socket::{Dealer, Options, Router};

use crate::arena::ALONE;
use crate::support::*;

/// Descriptors the server's process may have.
const DESCRIPTORS: usize = 48;

/// The server of the test below, in a process of its own as the limit is the process's.
#[test]
#[ignore = "started by a_server_out_of_descriptors"]
fn server_with_few_descriptors() {
    let mut router = Router::new(Options::new()).unwrap();
    let endpoint = std::env::var("CASPARIAN_BIND").unwrap();
    let bound = router.bind(&endpoint).unwrap();
    println!("bound {bound}");
    let began = Instant::now();
    let mut thread = ThreadCpu::new();
    let mut cpu_before = thread.used();
    let mut said = Instant::now();
    while began.elapsed() < DEADLINE {
        let reply = router
            .receive(Some(Duration::from_millis(20)))
            .unwrap()
            .map(|(from, message)| (from.to_vec(), message.to_vecs()));
        if let Some((from, frames)) = reply {
            if frames == [b"stop"] {
                return;
            }
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            router.send(&from, &frames).unwrap();
            router.flush().unwrap();
        }
        if said.elapsed() > Duration::from_millis(500) {
            let cpu = thread.used() - cpu_before;
            let failed = router.counters().accept_failed;
            println!(
                "used {} of {} failed {failed}",
                cpu.as_micros(),
                said.elapsed().as_micros()
            );
            said = Instant::now();
            cpu_before = thread.used();
        }
    }
}

#[test]
fn a_server_out_of_descriptors() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        out_of_descriptors(transport);
    }
}

fn out_of_descriptors(transport: Transport) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let net = Net::new(transport);
    let command = format!(
        "ulimit -n {DESCRIPTORS} && exec \"$0\" --exact descriptors::server_with_few_descriptors --ignored --nocapture"
    );
    let mut server = Command::new("sh")
        .args(["-c", &command])
        .arg(std::env::current_exe().unwrap())
        .env("CASPARIAN_BIND", net.endpoint())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let bound = lines
        .find_map(|line| line.unwrap().strip_prefix("bound ").map(str::to_owned))
        .unwrap();
    let serve = |what: &str, dealer: &mut Dealer| {
        dealer.send(&[b"x"]).unwrap();
        until(what, || {
            dealer
                .receive(Some(Duration::from_millis(1)))
                .unwrap()
                .map(drop)
        });
    };
    let connect = || {
        let mut dealer = Dealer::new(Options::new()).unwrap();
        dealer.connect(&bound).unwrap();
        dealer
    };
    let mut good = connect();
    serve("at first", &mut good);
    // Silent connections take all descriptors, and give them up to those who mean it.
    let silent: Vec<Raw> = (0..2 * DESCRIPTORS).map(|_| net.raw(&bound)).collect();
    serve("beside silent connections", &mut good);
    let mut second = connect();
    serve("a newcomer beside silent connections", &mut second);
    serve("after the newcomer", &mut good);
    drop(silent);
    // Established peers keep theirs: nobody else gets in, and the server does not spin.
    let mut peers: Vec<Raw> = (0..2 * DESCRIPTORS)
        .map(|n| {
            let mut raw = net.raw(&bound);
            raw.shake_hands("DEALER", format!("peer {n}").as_bytes());
            raw
        })
        .collect();
    let mut tight = 0;
    for line in &mut lines {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        if let ["used", cpu, "of", time, "failed", failed] = words[..] {
            let [cpu, time, failed] = [cpu, time, failed].map(|text| text.parse::<u64>().unwrap());
            if failed > 0 {
                tight += 1;
                assert!(cpu * 5 < time, "the server spins: {line}");
            }
            if tight == 3 {
                println!("out of descriptors: {line}");
                break;
            }
        }
    }
    serve("without descriptors left", &mut good);
    peers.truncate(10);
    let mut third = connect();
    serve("when descriptors are back", &mut third);
    good.send(&[b"stop"]).unwrap();
    good.drain(DEADLINE).unwrap();
    assert!(server.wait().unwrap().success());
}
