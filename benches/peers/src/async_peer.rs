//! The two measurements for peers on tokio: each side has a thread and a current-thread runtime of
//! its own, as if they were two processes (faster for all of them than one shared runtime).
//! Frames are reference-counted, so that sending copies nothing here.

use crate::measure::{Error, Laps, Mode, Outcome, Plan, join};
use bytes::Bytes;
use std::thread;
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// What the measurements need of a peer's library.
pub(crate) trait Peer {
    type Dealer;
    type Router;
    type Message;

    /// A ROUTER bound to a free port, and its endpoint.
    async fn bind(mode: Mode) -> Result<(Self::Router, String), Error>;
    /// A DEALER connected to it.
    async fn connect(mode: Mode, endpoint: &str) -> Result<Self::Dealer, Error>;
    /// A message of two frames.
    fn message(header: &Bytes, payload: &Bytes) -> Result<Self::Message, Error>;
    /// The sizes of a message's last two frames.
    fn sizes(message: &Self::Message) -> (usize, usize);
    async fn dealer_send(dealer: &mut Self::Dealer, message: Self::Message) -> Result<(), Error>;
    async fn dealer_recv(dealer: &mut Self::Dealer) -> Result<Self::Message, Error>;
    async fn router_recv(router: &mut Self::Router) -> Result<Self::Message, Error>;
    /// Sends a message back as it was received.
    async fn router_echo(router: &mut Self::Router, message: Self::Message) -> Result<(), Error>;
}

fn runtime() -> Result<Runtime, Error> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn check<P: Peer>(plan: &Plan, message: &P::Message) -> Result<(), Error> {
    let (header_size, payload_size) = P::sizes(message);
    plan.check(header_size, payload_size)
}

async fn send_many<P: Peer>(
    dealer: &mut P::Dealer,
    header: &Bytes,
    payload: &Bytes,
    count: u32,
) -> Result<(), Error> {
    for _ in 0..count {
        P::dealer_send(dealer, P::message(header, payload)?).await?;
    }
    Ok(())
}

/// One way.
pub(crate) fn throughput<P: Peer>(plan: &Plan) -> Result<Outcome, Error> {
    let (go, gone) = oneshot::channel::<()>();
    let (done, hung_up) = oneshot::channel::<()>();
    runtime()?.block_on(async {
        let (mut router, endpoint) = P::bind(Mode::Throughput).await?;
        let sender_plan = plan.clone();
        let sender = thread::spawn(move || {
            runtime()?.block_on(async {
                let mut dealer = P::connect(Mode::Throughput, &endpoint).await?;
                let (header, payload) = (sender_plan.header().into(), sender_plan.payload().into());
                send_many::<P>(&mut dealer, &header, &payload, sender_plan.warmup_count()).await?;
                gone.await?;
                send_many::<P>(&mut dealer, &header, &payload, sender_plan.message_count).await?;
                // The runtime writes until the receiver has everything and hangs up.
                let _ = hung_up.await;
                Ok(())
            })
        });
        for _ in 0..plan.warmup_count() {
            check::<P>(plan, &P::router_recv(&mut router).await?)?;
        }
        let start = Instant::now();
        go.send(()).map_err(|()| "the sender is gone")?;
        for _ in 0..plan.message_count {
            check::<P>(plan, &P::router_recv(&mut router).await?)?;
        }
        let elapsed = start.elapsed();
        drop(done);
        join(sender)?;
        Ok(Outcome::Throughput(elapsed))
    })
}

/// Round trips.
pub(crate) fn latency<P: Peer>(plan: &Plan) -> Result<Outcome, Error> {
    let laps = plan.warmup_count() + plan.message_count;
    let (endpoint_out, endpoint_in) = std::sync::mpsc::channel();
    let (done, hung_up) = oneshot::channel::<()>();
    let echo = thread::spawn(move || {
        runtime()?.block_on(async {
            let (mut router, endpoint) = P::bind(Mode::Latency).await?;
            endpoint_out.send(endpoint)?;
            for _ in 0..laps {
                let message = P::router_recv(&mut router).await?;
                P::router_echo(&mut router, message).await?;
            }
            let _ = hung_up.await;
            Ok(())
        })
    });
    let endpoint = endpoint_in.recv()?;
    runtime()?.block_on(async {
        let mut dealer = P::connect(Mode::Latency, &endpoint).await?;
        let (header, payload) = (plan.header().into(), plan.payload().into());
        let mut times = Laps::new(plan);
        for lap in 0..laps {
            let start = Instant::now();
            P::dealer_send(&mut dealer, P::message(&header, &payload)?).await?;
            let message = P::dealer_recv(&mut dealer).await?;
            times.note(plan, lap, start);
            check::<P>(plan, &message)?;
        }
        drop(done);
        join(echo)?;
        Ok(times.finish())
    })
}
