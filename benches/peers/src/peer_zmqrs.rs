//! zmq.rs (crate `zeromq`), with its default buffers: larger ones measured slower.

use crate::async_peer::Peer;
use crate::measure::{Error, Mode};
use bytes::Bytes;
use zeromq::{DealerSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// The library's sockets.
pub(crate) struct ZmqRs;

impl Peer for ZmqRs {
    type Dealer = DealerSocket;
    type Router = RouterSocket;
    type Message = ZmqMessage;

    async fn bind(_mode: Mode) -> Result<(RouterSocket, String), Error> {
        let mut router = RouterSocket::new();
        let endpoint = router.bind("tcp://127.0.0.1:0").await?;
        Ok((router, endpoint.to_string()))
    }

    async fn connect(_mode: Mode, endpoint: &str) -> Result<DealerSocket, Error> {
        let mut dealer = DealerSocket::new();
        dealer.connect(endpoint).await?;
        Ok(dealer)
    }

    fn message(header: &Bytes, payload: &Bytes) -> Result<ZmqMessage, Error> {
        let frames = vec![header.clone(), payload.clone()];
        Ok(ZmqMessage::try_from(frames).map_err(|error| error.to_string())?)
    }

    fn sizes(message: &ZmqMessage) -> (usize, usize) {
        let mut last = message.iter().rev().map(Bytes::len);
        let payload_size = last.next().unwrap_or(0);
        (last.next().unwrap_or(0), payload_size)
    }

    async fn dealer_send(dealer: &mut DealerSocket, message: ZmqMessage) -> Result<(), Error> {
        Ok(dealer.send(message).await?)
    }

    async fn dealer_recv(dealer: &mut DealerSocket) -> Result<ZmqMessage, Error> {
        Ok(dealer.recv().await?)
    }

    async fn router_recv(router: &mut RouterSocket) -> Result<ZmqMessage, Error> {
        Ok(router.recv().await?)
    }

    async fn router_echo(router: &mut RouterSocket, message: ZmqMessage) -> Result<(), Error> {
        Ok(router.send(message).await?)
    }
}
