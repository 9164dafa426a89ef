//! ROUTER and DEALER against live libzmq, both ways.

use std::sync::Arc;
use std::time::Duration;

use casparian::socket::curve::{Clients, SecretKey};
use casparian::socket::{Dealer, Event, Options, PlainClient, PlainServer, Router};
use serde_json::{Value, json};

use crate::common::*;

const WAIT: Option<Duration> = Some(Duration::from_millis(5));

fn send(peer: &mut Background, action: Value) -> Value {
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

fn options(routing_id: &str) -> Options {
    Options::new()
        .routing_id(routing_id)
        .heartbeat_ivl(Duration::from_millis(50))
        .heartbeat_timeout(Duration::from_secs(30))
        .heartbeat_ttl(Duration::from_secs(30))
}

/// Our options and a libzmq peer's arguments for a mechanism and its server.
fn secured(mechanism: &str, ours: Options, they_serve: bool) -> (Options, Vec<String>) {
    let keys = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
    let [server, client] = &keys;
    match (mechanism, they_serve) {
        ("PLAIN", true) => (
            ours.plain_client(PlainClient::new("user", "pass").unwrap()),
            vec![
                "--option=plain_server=1".to_owned(),
                r#"--zap={"plain": {"user": "pass"}}"#.to_owned(),
            ],
        ),
        ("PLAIN", false) => (
            ours.plain_server(PlainServer::new([("user", "pass")])),
            vec![
                "--option=plain_username=user".to_owned(),
                "--option=plain_password=pass".to_owned(),
            ],
        ),
        ("CURVE", true) => (
            ours.curve_client(client.clone(), server.public()),
            vec![
                "--option=curve_server=1".to_owned(),
                format!("--option=curve_secretkey={}", *server.to_z85()),
                format!("--zap={}", json!({"curve": [client.public().to_string()]})),
            ],
        ),
        ("CURVE", false) => {
            let listed = [(client.public(), "client".to_owned())];
            let listed = Clients::Listed(Arc::new(listed.into_iter().collect()));
            (
                ours.curve_server(server.clone(), listed),
                vec![
                    format!("--option=curve_serverkey={}", server.public()),
                    format!("--option=curve_publickey={}", client.public()),
                    format!("--option=curve_secretkey={}", *client.to_z85()),
                ],
            )
        }
        _ => (ours, Vec::new()),
    }
}

/// Every mechanism, its server, transport and side that binds: what we are told, their
/// arguments, the endpoint, and whether they bind.
fn matrix(routing_id: &str, mut run: impl FnMut(Options, Vec<String>, &str, bool)) {
    let mechanisms = [
        ("NULL", false),
        ("PLAIN", false),
        ("PLAIN", true),
        ("CURVE", false),
        ("CURVE", true),
    ];
    for (mechanism, they_serve) in mechanisms {
        for they_bind in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            for endpoint in endpoints(dir.path()) {
                let (ours, mut theirs) = secured(mechanism, options(routing_id), they_serve);
                // libzmq's timeout is its interval unless it is told otherwise.
                theirs.push("--option=heartbeat_ivl=50".to_owned());
                theirs.push("--option=heartbeat_timeout=30000".to_owned());
                run(ours, theirs, &endpoint, they_bind);
            }
        }
    }
}

/// Starts their socket of a role and connects ours with it, whichever side binds.
macro_rules! meet {
    ($ours:ident, $theirs:expr, $endpoint:expr, $they_bind:expr) => {{
        let mut command = peer("zmq_peer.py");
        command.args($theirs);
        if $they_bind {
            let mut other = Background::start(command.args(["--bind", $endpoint]));
            let bound = other.event("ready")["endpoint"].clone();
            $ours.connect(bound.as_str().unwrap()).unwrap();
            other
        } else {
            let bound = $ours.bind($endpoint).unwrap().to_string();
            let mut other = Background::start(command.args(["--connect", &bound]));
            other.event("ready");
            other
        }
    }};
}

#[test]
fn our_router_and_a_libzmq_dealer() {
    matrix("", |ours, theirs, endpoint, they_bind| {
        let mut router = Router::new(ours).unwrap();
        let role = ["DEALER", "--identity", "d-1"].map(str::to_owned);
        let mut dealer = meet!(router, role.into_iter().chain(theirs), endpoint, they_bind);
        for body in bodies() {
            dealer.write(&json!({"do": "send", "frames": [hex(b"head"), hex(&body)]}).to_string());
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
            let back = send(&mut dealer, json!({"do": "recv", "count": 1}));
            assert_eq!(back["messages"][0], json!([hex(&body), "", hex(b"tail")]));
        }
        send(&mut dealer, json!({"do": "close"}));
    });
}

#[test]
fn our_dealer_and_a_libzmq_router() {
    matrix("d-2", |ours, theirs, endpoint, they_bind| {
        let mut dealer = Dealer::new(ours).unwrap();
        let role = ["ROUTER".to_owned()];
        let mut router = meet!(dealer, role.into_iter().chain(theirs), endpoint, they_bind);
        let bodies = bodies();
        router
            .write(&json!({"do": "echo", "count": bodies.len(), "timeout_ms": 60_000}).to_string());
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
        send(&mut router, json!({"do": "close"}));
    });
}

#[test]
fn two_dealers_understand_each_other() {
    matrix("ours", |ours, theirs, endpoint, they_bind| {
        let mut dealer = Dealer::new(ours).unwrap();
        let role = ["DEALER".to_owned()];
        let mut other = meet!(dealer, role.into_iter().chain(theirs), endpoint, they_bind);
        other.write(&json!({"do": "echo", "count": 1, "timeout_ms": 60_000}).to_string());
        until("their DEALER is there", || {
            dealer.flush().unwrap();
            dealer.send(&[b"hello"]).ok()
        });
        until("the echo arrives", || {
            let message = dealer.receive(WAIT).unwrap()?;
            assert_eq!(message.to_vecs(), [b"hello".to_vec()]);
            Some(())
        });
    });
}

#[test]
fn two_routers_understand_each_other() {
    matrix("ours", |ours, theirs, endpoint, they_bind| {
        let mut router = Router::new(ours).unwrap();
        let role = ["ROUTER", "--identity", "theirs"].map(str::to_owned);
        let mut other = meet!(router, role.into_iter().chain(theirs), endpoint, they_bind);
        other.write(&json!({"do": "echo", "count": 1, "timeout_ms": 60_000}).to_string());
        until("their ROUTER is there", || {
            router.receive(WAIT).unwrap();
            router.send(b"theirs", &[b"hello"]).ok()
        });
        until("the echo arrives", || {
            let (from, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(from, b"theirs");
            assert_eq!(message.to_vecs(), [b"hello".to_vec()]);
            Some(())
        });
    });
}

/// RFC 28: a ROUTER serves REQ, a DEALER asks REP; the empty frame between them is theirs.
#[test]
fn libzmqs_req_and_rep_are_served() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in endpoints(dir.path()) {
        let mut router = Router::new(options("")).unwrap();
        let bound = router.bind(&endpoint).unwrap().to_string();
        let mut req = Background::start(peer("zmq_peer.py").args(["REQ", "--connect", &bound]));
        req.event("ready");
        req.write(&json!({"do": "send", "frames": [hex(b"question")]}).to_string());
        let from = until("the question arrives", || {
            let (from, message) = router.receive(WAIT).unwrap()?;
            assert_eq!(message.to_vecs(), [b"".to_vec(), b"question".to_vec()]);
            Some(from.to_vec())
        });
        req.event("send");
        router.send(&from, &[b"", b"answer"]).unwrap();
        router.drain(Duration::from_secs(10)).unwrap();
        let answer = send(&mut req, json!({"do": "recv", "count": 1}));
        assert_eq!(answer["messages"][0], json!([hex(b"answer")]));
    }
    let dir = tempfile::tempdir().unwrap();
    for endpoint in endpoints(dir.path()) {
        let mut dealer = Dealer::new(options("")).unwrap();
        let bound = dealer.bind(&endpoint).unwrap().to_string();
        let mut rep = Background::start(peer("zmq_peer.py").args(["REP", "--connect", &bound]));
        rep.event("ready");
        rep.write(&json!({"do": "echo", "count": 1}).to_string());
        let sent = dealer.send_timeout(&[b"", b"question"], Some(Duration::from_secs(60)));
        sent.unwrap();
        until("the answer arrives", || {
            let message = dealer.receive(WAIT).unwrap()?;
            assert_eq!(message.to_vecs(), [b"".to_vec(), b"question".to_vec()]);
            Some(())
        });
    }
}

#[test]
fn libzmq_peers_with_wrong_credentials_or_types_are_refused_and_refuse_us() {
    let key = |byte| SecretKey::from_bytes([byte; 32]);
    let curve = |server: u8, client: u8| {
        vec![
            format!("--option=curve_serverkey={}", key(server).public()),
            format!("--option=curve_publickey={}", key(client).public()),
            format!("--option=curve_secretkey={}", *key(client).to_z85()),
        ]
    };
    let plain = |password: &str| {
        vec![
            "--option=plain_username=user".to_owned(),
            format!("--option=plain_password={password}"),
        ]
    };
    let listed = || {
        let keys = [(key(2).public(), "client".to_owned())];
        Clients::Listed(Arc::new(keys.into_iter().collect()))
    };
    let users = || PlainServer::new([("user", "pass")]);
    let table = [
        (
            "password",
            options("").plain_server(users()),
            plain("wrong"),
            "DEALER",
        ),
        (
            "mechanism",
            options("").plain_server(users()),
            curve(1, 2),
            "DEALER",
        ),
        (
            "no mechanism",
            options("").plain_server(users()),
            vec![],
            "DEALER",
        ),
        (
            "server key",
            options("").curve_server(key(1), listed()),
            curve(9, 2),
            "DEALER",
        ),
        (
            "client key",
            options("").curve_server(key(1), listed()),
            curve(1, 9),
            "DEALER",
        ),
        (
            "downgrade",
            options("").curve_server(key(1), listed()),
            plain("pass"),
            "DEALER",
        ),
        ("socket type", options(""), vec![], "PUB"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, ours, theirs, role) in table {
        for endpoint in endpoints(dir.path()) {
            let mut router = Router::new(ours.clone()).unwrap();
            let bound = router.bind(&endpoint).unwrap().to_string();
            let mut command = peer("zmq_peer.py");
            command.arg(role).args(&theirs).args(["--connect", &bound]);
            let mut peer = Background::start(&mut command);
            peer.event("ready");
            until(name, || {
                assert!(router.receive(WAIT).unwrap().is_none(), "{name}");
                (router.counters().handshake_failed > 0).then_some(())
            });
            assert_eq!(router.counters().established, 0, "{name}: {endpoint}");
        }
    }
    // And the other way round: a libzmq server that refuses us.
    let theirs = [
        (
            options("").plain_client(PlainClient::new("user", "wrong").unwrap()),
            vec![
                "--option=plain_server=1".to_owned(),
                r#"--zap={"plain": {"user": "pass"}}"#.to_owned(),
            ],
        ),
        (
            options("").curve_client(key(9), key(1).public()),
            vec![
                "--option=curve_server=1".to_owned(),
                format!("--option=curve_secretkey={}", *key(1).to_z85()),
                format!("--zap={}", json!({"curve": [key(2).public().to_string()]})),
            ],
        ),
    ];
    for (ours, theirs) in theirs {
        for endpoint in endpoints(dir.path()) {
            let mut command = peer("zmq_peer.py");
            command
                .arg("ROUTER")
                .args(&theirs)
                .args(["--bind", &endpoint]);
            let mut router = Background::start(&mut command);
            let bound = router.event("ready")["endpoint"].clone();
            let mut dealer =
                Dealer::new(ours.clone().reconnect_ivl_max(Duration::from_secs(60))).unwrap();
            dealer.connect(bound.as_str().unwrap()).unwrap();
            until("it refuses us", || {
                dealer.receive(WAIT).unwrap();
                let event = std::iter::from_fn(|| dealer.poll_event())
                    .find(|event| matches!(event, Event::HandshakeFailed { .. }))?;
                assert!(format!("{event:?}").contains("400"), "{event:?}");
                Some(())
            });
            let pause = std::iter::from_fn(|| dealer.poll_event()).find_map(|event| match event {
                Event::RetryIn { pause, .. } => Some(pause),
                _ => None,
            });
            // Give or take a quarter.
            assert!(
                pause.unwrap() >= Duration::from_secs(45),
                "no immediate retry"
            );
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
