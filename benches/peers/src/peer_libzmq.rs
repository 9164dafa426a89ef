//! libzmq through the `zmq` crate: blocking sockets, a context (and so an I/O thread) for each side,
//! as if they were two processes. Parts are received into messages that are used again.

use crate::measure::{Error, HWM, Laps, Outcome, Plan, join};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;
use zmq::{Context, Message, SNDMORE, Socket, SocketType};

fn socket(kind: SocketType) -> Result<Socket, Error> {
    let socket = Context::new().socket(kind)?;
    socket.set_sndhwm(HWM)?;
    socket.set_rcvhwm(HWM)?;
    socket.set_linger(0)?;
    Ok(socket)
}

fn pair() -> Result<(Socket, Socket), Error> {
    let router = socket(zmq::ROUTER)?;
    router.bind("tcp://127.0.0.1:*")?;
    let endpoint = router
        .get_last_endpoint()?
        .map_err(|_| "the endpoint is not text")?;
    let dealer = socket(zmq::DEALER)?;
    dealer.connect(&endpoint)?;
    Ok((dealer, router))
}

/// The three parts of a message at a ROUTER.
struct Parts {
    identity: Message,
    header: Message,
    payload: Message,
}

impl Parts {
    fn new() -> Parts {
        Parts {
            identity: Message::new(),
            header: Message::new(),
            payload: Message::new(),
        }
    }

    fn receive(&mut self, router: &Socket, plan: &Plan) -> Result<(), Error> {
        router.recv(&mut self.identity, 0)?;
        router.recv(&mut self.header, 0)?;
        router.recv(&mut self.payload, 0)?;
        plan.check(self.header.len(), self.payload.len())
    }
}

/// One way.
pub(crate) fn throughput(plan: &Plan) -> Result<Outcome, Error> {
    let (dealer, router) = pair()?;
    let (go, gone) = mpsc::channel::<()>();
    let sender_plan = plan.clone();
    let sender = thread::spawn(move || {
        let (header, payload) = (sender_plan.header(), sender_plan.payload());
        let send = |count: u32| -> Result<(), Error> {
            for _ in 0..count {
                dealer.send(&header[..], SNDMORE)?;
                dealer.send(&payload[..], 0)?;
            }
            Ok(())
        };
        send(sender_plan.warmup_count())?;
        gone.recv()?;
        send(sender_plan.message_count)?;
        // The socket stays until the receiver has everything and hangs up.
        let _ = gone.recv();
        Ok(())
    });
    let mut parts = Parts::new();
    for _ in 0..plan.warmup_count() {
        parts.receive(&router, plan)?;
    }
    let start = Instant::now();
    go.send(())?;
    for _ in 0..plan.message_count {
        parts.receive(&router, plan)?;
    }
    let elapsed = start.elapsed();
    drop(go);
    join(sender)?;
    Ok(Outcome::Throughput(elapsed))
}

/// Round trips.
pub(crate) fn latency(plan: &Plan) -> Result<Outcome, Error> {
    let (dealer, router) = pair()?;
    let laps = plan.warmup_count() + plan.message_count;
    let (done, hung_up) = mpsc::channel::<()>();
    let echo_plan = plan.clone();
    let echo = thread::spawn(move || {
        for _ in 0..laps {
            // New each time: sending gives the messages away. An empty message allocates nothing.
            let mut parts = Parts::new();
            parts.receive(&router, &echo_plan)?;
            router.send(parts.identity, SNDMORE)?;
            router.send(parts.header, SNDMORE)?;
            router.send(parts.payload, 0)?;
        }
        let _ = hung_up.recv();
        Ok(())
    });
    let (header, payload) = (plan.header(), plan.payload());
    let (mut first, mut second) = (Message::new(), Message::new());
    let mut times = Laps::new(plan);
    for lap in 0..laps {
        let start = Instant::now();
        dealer.send(&header[..], SNDMORE)?;
        dealer.send(&payload[..], 0)?;
        dealer.recv(&mut first, 0)?;
        dealer.recv(&mut second, 0)?;
        times.note(plan, lap, start);
        plan.check(first.len(), second.len())?;
    }
    drop(done);
    join(echo)?;
    Ok(times.finish())
}
