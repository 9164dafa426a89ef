//! omq-tokio, its sockets driven by the caller's runtime, told which of the two workloads it is.

use crate::async_peer::Peer;
use crate::measure::{Error, HWM, Mode};
use bytes::Bytes;
use omq_tokio::options::WorkloadProfile;
use omq_tokio::{Message, Options, Socket, SocketType};
use std::time::Duration;

/// The library's sockets.
pub(crate) struct Omq;

fn options(mode: Mode) -> Options {
    let mut options = Options::default().workload_profile(match mode {
        Mode::Throughput => WorkloadProfile::Throughput,
        Mode::Latency => WorkloadProfile::Latency,
    });
    options.send_hwm = HWM.unsigned_abs();
    options.recv_hwm = HWM.unsigned_abs();
    options
}

impl Peer for Omq {
    type Dealer = Socket;
    type Router = Socket;
    type Message = Message;

    async fn bind(mode: Mode) -> Result<(Socket, String), Error> {
        let router = Socket::new(SocketType::Router, options(mode));
        let endpoint = router.bind("tcp://127.0.0.1:0").await?;
        Ok((router, endpoint.to_string()))
    }

    async fn connect(mode: Mode, endpoint: &str) -> Result<Socket, Error> {
        let dealer = Socket::new(SocketType::Dealer, options(mode));
        dealer.connect(endpoint).await?;
        dealer.wait_connected(1, Duration::from_secs(10)).await?;
        Ok(dealer)
    }

    fn message(header: &Bytes, payload: &Bytes) -> Result<Message, Error> {
        Ok(Message::multipart([header.clone(), payload.clone()]))
    }

    fn sizes(message: &Message) -> (usize, usize) {
        let size = |back: usize| {
            let index = message.len().checked_sub(back)?;
            message.part_slice(index).map(<[u8]>::len)
        };
        (size(2).unwrap_or(0), size(1).unwrap_or(0))
    }

    async fn dealer_send(dealer: &mut Socket, message: Message) -> Result<(), Error> {
        Ok(dealer.send(message).await?)
    }

    async fn dealer_recv(dealer: &mut Socket) -> Result<Message, Error> {
        Ok(dealer.recv().await?)
    }

    async fn router_recv(router: &mut Socket) -> Result<Message, Error> {
        Ok(router.recv().await?)
    }

    async fn router_echo(router: &mut Socket, message: Message) -> Result<(), Error> {
        Ok(router.send(message).await?)
    }
}
