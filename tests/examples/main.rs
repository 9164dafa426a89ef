//! The examples, each in one process and with libzmq (pyzmq) on the other side.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[path = "../../examples/broker.rs"]
#[allow(dead_code)]
mod broker;
#[path = "../it/common.rs"]
#[allow(dead_code)]
mod common;
#[path = "../../examples/request_reply.rs"]
#[allow(dead_code)]
mod request_reply;
#[path = "../../examples/work_queue.rs"]
#[allow(dead_code)]
mod work_queue;

/// A process of `tests/peers/example_peer.py`. It checks what it receives, and exits with 0.
fn peer(arguments: &[&str]) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/example_peer.py");
    Command::new(common::python())
        .arg(script)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn succeeds(mut peer: Child) {
    let status = peer.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_broker_serves_clients_and_workers_of_both_sides() {
    let (mut broker, bound) = broker::Broker::bind("tcp://127.0.0.1:*", "ipc://*").unwrap();
    let [clients, workers] = bound.map(|endpoint| endpoint.to_string());
    let must_stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let broker = scope.spawn(|| broker.run(&must_stop).unwrap());
        // A worker that is lost with its request: another one gets it.
        let lost = peer(&["broker-lost-worker", &workers]);
        let client = peer(&["broker-client", &clients, "1"]);
        succeeds(lost);
        let theirs = peer(&["broker-worker", &workers]);
        succeeds(client);
        let ours = scope.spawn(|| broker::work(&workers, "ours", &must_stop).unwrap());
        let many = peer(&["broker-client", &clients, "200"]);
        let mut replies = broker::ask(&clients, &["a", "b", "c"]).unwrap();
        replies.sort();
        assert_eq!(replies, ["A", "B", "C"]);
        succeeds(many);
        must_stop.store(true, Ordering::Relaxed);
        ours.join().unwrap();
        broker.join().unwrap();
        kill(theirs);
    });
}

#[test]
fn requests_are_answered_or_sent_again() {
    let (mut server, endpoint) = request_reply::Server::bind("tcp://127.0.0.1:*").unwrap();
    let waker = server.waker().unwrap();
    let must_stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(request_reply::reverse, &must_stop).unwrap());
        succeeds(peer(&["request-client", &endpoint]));
        must_stop.store(true, Ordering::Relaxed);
        waker.wake().unwrap();
        serving.join().unwrap();
    });
    // Their server does not answer the first time, and answers twice and late afterwards.
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}", folder.path().join("s").display());
    let server = peer(&["request-server", &endpoint]);
    let mut client = request_reply::Client::connect(&endpoint).unwrap();
    let short = Duration::from_millis(500);
    let one = client.send("reverse", b"abc").unwrap();
    let other = client.send("reverse", b"xyz").unwrap();
    // The order of the replies is not that of the waits.
    assert_eq!(client.wait(other, short, 60).unwrap(), b"zyx");
    assert_eq!(client.wait(one, short, 60).unwrap(), b"cba");
    let unanswered = client.send("silence", b"").unwrap();
    let error = client.wait(unanswered, Duration::from_millis(50), 2);
    assert!(error.unwrap_err().to_string().contains("after 2 tries"));
    kill(server);
}

#[test]
fn fifty_workers_of_both_sides_do_all_tasks() {
    let (router, endpoint) = work_queue::bind("tcp://127.0.0.1:*").unwrap();
    let tasks = work_queue::tasks(20_000);
    let results = std::thread::scope(|scope| {
        let endpoint = &endpoint;
        let running = scope.spawn(|| work_queue::run(router, &tasks).unwrap());
        // Takes tasks and ends without doing them.
        succeeds(peer(&["queue-thief", endpoint]));
        let mut theirs = peer(&["queue-workers", endpoint, "25"]);
        // Until each of them has had a task.
        let mut line = String::new();
        let mut output = BufReader::new(theirs.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "all work\n");
        for number in 0..25 {
            scope.spawn(move || work_queue::work(endpoint, &format!("ours-{number}")).unwrap());
        }
        let results = running.join().unwrap();
        succeeds(theirs);
        results
    });
    let sum = |data: &Vec<u8>| data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let want: Vec<Vec<u8>> = tasks
        .iter()
        .map(|data| sum(data).to_string().into_bytes())
        .collect();
    assert_eq!(results, want);
}

#[test]
fn our_workers_serve_their_queue() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("ipc://{}", folder.path().join("s").display());
    let queue = peer(&["queue", &endpoint, "500"]);
    std::thread::scope(|scope| {
        for number in 0..50 {
            let endpoint = &endpoint;
            scope.spawn(move || work_queue::work(endpoint, &format!("w-{number}")).unwrap());
        }
    });
    succeeds(queue);
}

fn kill(mut peer: Child) {
    peer.kill().unwrap();
    peer.wait().unwrap();
}
