//! ROUTER and DEALER against live libzmq, both ways.

use std::time::Duration;

use casparian::socket::{Dealer, Options, Router};
use serde_json::{Value, json};

use crate::common::*;

const WAIT: Option<Duration> = Some(Duration::from_millis(5));

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn say(peer: &mut Background, action: Value) -> Value {
    peer.write(&action.to_string());
    peer.event(action["do"].as_str().unwrap())
}

fn bodies() -> Vec<Vec<u8>> {
    [0usize, 1, 255, 256, 8193, 70_000, 1 << 20]
        .iter()
        .map(|size| vec![7u8; *size])
        .collect()
}

fn endpoints(dir: &std::path::Path) -> [String; 2] {
    [
        "tcp://127.0.0.1:*".to_owned(),
        format!("ipc://{}", dir.join("s").display()),
    ]
}

fn options(identity: &str) -> Options {
    Options::new()
        .routing_id(identity)
        .heartbeat_ivl(Duration::from_millis(50))
        .heartbeat_timeout(Duration::from_secs(30))
        .heartbeat_ttl(Duration::from_secs(30))
}

#[test]
fn our_router_and_a_libzmq_dealer() {
    for they_bind in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        for endpoint in endpoints(dir.path()) {
            let mut router = Router::new(options("")).unwrap();
            let mut command = peer("zmq_peer.py");
            command.args([
                "DEALER",
                "--identity",
                "d-1",
                "--option",
                "heartbeat_ivl=50",
            ]);
            let mut dealer;
            if they_bind {
                dealer = Background::start(command.args(["--bind", &endpoint]));
                let bound = dealer.event("ready")["endpoint"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                router.connect(&bound).unwrap();
            } else {
                let bound = router.bind(&endpoint).unwrap().to_string();
                dealer = Background::start(command.args(["--connect", &bound]));
                dealer.event("ready");
            }
            for body in bodies() {
                dealer.write(
                    &json!({"do": "send", "frames": [hex(b"head"), hex(&body)]}).to_string(),
                );
                until("the message arrives", || {
                    let (from, message) = router.receive(WAIT).unwrap()?;
                    assert_eq!(from, b"d-1");
                    assert_eq!(message.to_vecs(), [b"head".to_vec(), body.clone()]);
                    Some(())
                });
                dealer.event("send");
                router.send(b"d-1", &[&body, b"", b"tail"]).unwrap();
                until("it is written", || {
                    router.receive(WAIT).unwrap();
                    router
                        .drain(Duration::from_millis(5))
                        .unwrap()
                        .then_some(())
                });
                let back = say(&mut dealer, json!({"do": "recv", "count": 1}));
                assert_eq!(back["messages"][0], json!([hex(&body), "", hex(b"tail")]));
            }
            say(&mut dealer, json!({"do": "close"}));
        }
    }
}

#[test]
fn our_dealer_and_a_libzmq_router() {
    for they_bind in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        for endpoint in endpoints(dir.path()) {
            let mut dealer = Dealer::new(options("d-2")).unwrap();
            let mut command = peer("zmq_peer.py");
            command.args(["ROUTER", "--option", "heartbeat_ivl=50"]);
            let mut router;
            if they_bind {
                router = Background::start(command.args(["--bind", &endpoint]));
                let bound = router.event("ready")["endpoint"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                dealer.connect(&bound).unwrap();
            } else {
                let bound = dealer.bind(&endpoint).unwrap().to_string();
                router = Background::start(command.args(["--connect", &bound]));
                router.event("ready");
            }
            let bodies = bodies();
            router.write(
                &json!({"do": "echo", "count": bodies.len(), "timeout_ms": 60_000}).to_string(),
            );
            for body in &bodies {
                until("a peer is there", || {
                    dealer.flush().unwrap();
                    dealer.send(&[b"head", body]).ok()
                });
                until("the echo arrives", || {
                    let message = dealer.receive(WAIT).unwrap()?;
                    assert_eq!(message.to_vecs(), [b"head".to_vec(), body.clone()]);
                    Some(())
                });
            }
            router.event("echo");
            say(&mut router, json!({"do": "close"}));
        }
    }
}

#[test]
fn a_libzmq_peer_that_dies_is_lost_and_one_that_comes_back_is_served() {
    let mut router = Router::new(options("")).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    for _ in 0..3 {
        let mut dealer = Background::start(peer("zmq_peer.py").args([
            "DEALER",
            "--identity",
            "same",
            "--connect",
            &bound,
        ]));
        dealer.event("ready");
        dealer.write(&json!({"do": "send", "frames": ["aa"]}).to_string());
        until("it is served", || {
            let (from, _) = router.receive(WAIT).unwrap()?;
            assert_eq!(from, b"same");
            Some(())
        });
        dealer.kill();
        until("it is unroutable", || {
            router.receive(WAIT).unwrap();
            router.send(b"same", &[b"x"]).is_err().then_some(())
        });
    }
}

#[test]
fn many_messages_arrive_once_and_in_order_from_libzmq() {
    let mut router = Router::new(options("")).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Background::start(peer("zmq_peer.py").args([
        "DEALER",
        "--option",
        "sndhwm=0",
        "--connect",
        &bound,
    ]));
    dealer.event("ready");
    dealer.write(&json!({"do": "send", "frames": ["aa", {"size": 300, "fill": 7}], "count": 20_000, "timeout_ms": 60_000}).to_string());
    let mut count = 0;
    until("all arrive", || {
        while let Some((_, message)) = router.receive(WAIT).unwrap() {
            assert_eq!(message.get(1).map(<[u8]>::len), Some(300));
            count += 1;
        }
        (count == 20_000).then_some(())
    });
    assert_eq!(dealer.event("send")["count"], 20_000);
}
