//! rzmq, its portable path (no io_uring). Its DEALER puts an empty frame before each message.

use crate::async_peer::Peer;
use crate::measure::{Error, HWM, Mode};
use bytes::Bytes;
use rzmq::socket::options::{LAST_ENDPOINT, RCVHWM, SNDHWM};
use rzmq::{Context, Msg, MsgFlags, Socket, SocketType};

/// The library's sockets, each with the context that must outlive it.
pub(crate) struct Rzmq;

/// A socket and its context.
pub(crate) struct Held {
    socket: Socket,
    _context: Context,
}

async fn hold(kind: SocketType) -> Result<Held, Error> {
    let context = Context::new()?;
    let socket = context.socket(kind)?;
    socket.set_option(SNDHWM, HWM).await?;
    socket.set_option(RCVHWM, HWM).await?;
    Ok(Held {
        socket,
        _context: context,
    })
}

/// Marks all frames but the last as followed by more.
fn mark(frames: &mut [Msg]) {
    if let Some((_last, others)) = frames.split_last_mut() {
        for frame in others {
            frame.set_flags(MsgFlags::MORE);
        }
    }
}

impl Peer for Rzmq {
    type Dealer = Held;
    type Router = Held;
    type Message = Vec<Msg>;

    async fn bind(_mode: Mode) -> Result<(Held, String), Error> {
        let held = hold(SocketType::Router).await?;
        held.socket.bind("tcp://127.0.0.1:0").await?;
        let endpoint = held.socket.get_option(LAST_ENDPOINT).await?;
        Ok((held, String::from_utf8(endpoint)?))
    }

    async fn connect(_mode: Mode, endpoint: &str) -> Result<Held, Error> {
        let held = hold(SocketType::Dealer).await?;
        held.socket.connect(endpoint).await?;
        Ok(held)
    }

    fn message(header: &Bytes, payload: &Bytes) -> Result<Vec<Msg>, Error> {
        let mut frames = vec![
            Msg::from_bytes(header.clone()),
            Msg::from_bytes(payload.clone()),
        ];
        mark(&mut frames);
        Ok(frames)
    }

    fn sizes(message: &Vec<Msg>) -> (usize, usize) {
        let mut last = message.iter().rev().map(Msg::size);
        let payload_size = last.next().unwrap_or(0);
        (last.next().unwrap_or(0), payload_size)
    }

    async fn dealer_send(dealer: &mut Held, message: Vec<Msg>) -> Result<(), Error> {
        Ok(dealer.socket.send_multipart(message).await?)
    }

    async fn dealer_recv(dealer: &mut Held) -> Result<Vec<Msg>, Error> {
        Ok(dealer.socket.recv_multipart().await?)
    }

    async fn router_recv(router: &mut Held) -> Result<Vec<Msg>, Error> {
        Ok(router.socket.recv_multipart().await?)
    }

    async fn router_echo(router: &mut Held, mut message: Vec<Msg>) -> Result<(), Error> {
        mark(&mut message);
        Ok(router.socket.send_multipart(message).await?)
    }
}
