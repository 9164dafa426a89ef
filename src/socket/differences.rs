//! Where these sockets differ from libzmq's, and why.
//!
//! On the wire they send what libzmq sends; see [`crate::zmtp`] for what they accept. The behaviour
//! below differs because libzmq's lets one peer harm others, or loses messages without a report.
//!
//! # Memory
//!
//! | subject | libzmq | here | why |
//! |---|---|---|---|
//! | Received messages | Queued per peer, at most `ZMQ_RCVHWM` messages of any size. | Not queued. A peer is read from only while no complete message of it waits. [`Options::rcvhwm_bytes`] bounds the bytes buffered for a peer. | A limit on messages does not limit memory. |
//! | All peers together | No bound. | [`Options::rcvhwm_total_bytes`]. From half of it nothing is read ahead. At the limit empty buffers are freed, then the peer that uses most memory is disconnected. | Peers that use little memory stay connected. |
//! | Before the handshake is done | No bound of its own. | 16 KiB for each connection. | Any process that can reach the endpoint can connect. |
//! | Large messages | The declared size is allocated when the frame's header arrives. | Buffers grow with bytes received. | A header of 9 bytes must not allocate a large message. |
//! | Commands between the frames of a message | No bound. | 1 MiB. | They stay buffered until the message is complete. |
//! | Messages to send | At most `ZMQ_SNDHWM` messages of any size for each peer. | Bounded in messages and bytes for each peer, and by [`Options::sndhwm_total_bytes`] for all. Each peer may queue 64 KiB beyond the total. | Peers that do not read cannot starve others. |
//!
//! # Routing
//!
//! | subject | libzmq | here | why |
//! |---|---|---|---|
//! | ROUTER: no peer with that routing ID | The message is dropped without a report, unless `ZMQ_ROUTER_MANDATORY`. | [`Error::Unroutable`], unless [`Options::router_mandatory`] is off. | A dropped message is reported. |
//! | Messages that will not be sent any more | Dropped. | Reported by [`Event::Unsent`]. | As above. |
//! | A message during which ten connections have ended | No such limit. | Dropped, and reported by [`Event::Unsent`]. | The messages behind it could never be sent. |
//! | A routing ID that another peer has | The new connection stays open and is not read, unless `ZMQ_ROUTER_HANDOVER`. | It is refused with ERROR, unless [`Options::router_handover`]. | The refused peer gets the reason. |
//! | Messages of a connection that another one replaces | Dropped. | Delivered. Those of a refused connection are counted ([`Counters::unreceived`]). | No message that had arrived is lost unnoticed. |
//! | A routing ID whose connection has ended, with messages that the owner has not received | Taken until they are received. | The new connection gets it at once. | A restarted peer does not wait. |
//! | Two ROUTERs that connect to each other | Each refuses one connection, possibly not the same. | Both keep the connection that the side with the smaller routing ID opened. The other one is drained. | Both can send, and no message is lost. |
//! | A routing ID that begins with a zero byte | Taken; also one that the ROUTER generated for another peer. | Taken, except those of five bytes, which a ROUTER generates (RFC 28 refuses all). | No peer can take a generated one. |
//! | Handover | Any peer takes any routing ID. | If PLAIN or a list of CURVE keys authenticates users, only the same user. Routing IDs of peers that are reconnecting, and those assigned by `connect_as`, are kept. | No peer can take the messages of another. |
//! | A write to an accepted peer has failed | Later messages are queued until the connection is closed. | The peer is unroutable. What it sent before is still received. | These messages would be lost. |
//!
//! # Connections
//!
//! | subject | libzmq | here | why |
//! |---|---|---|---|
//! | No connection or descriptor left | Accepting fails. | The connection that has been in its handshake for longest without progress is closed. Without one the listener pauses for 200 ms. | Idle connections cannot keep others out. |
//! | A host with several addresses | The first one that resolves is used. | All are tried, the next one after 250 ms without success (RFC 8305). A listener has all of them. | One silent address does not delay a connect. |
//! | A TCP connection of a socket to itself | A peer. | Refused. | The system may choose the port of the endpoint as the local port. |
//! | Lifecycle events that the owner does not read | A PAIR socket with its own limit. | 4096 of connections in their handshake, and 4096 others; the oldest are dropped. | Strangers do not push out the events of peers. |
//! | Deadline of a handshake | `ZMQ_HANDSHAKE_IVL` | The same, with one last read at the deadline. A CURVE server's is at most 60 s, the lifetime of its cookie. | A busy owner must not time out peers whose bytes have arrived. |
//! | Deadline of a PONG | Counts from when PING is encoded. | Counts from when PING was written. A peer that is blocked is written to first, and no peer times out while bytes of it are unread. | A slow owner or a full send buffer must not time out a peer. |
//! | A silent peer | Disconnected. | An accepted one is disconnected once its last message was received, or a peer with its routing ID connects. A connecting one is connected again ([`Counters::unreceived`]). | Messages that it had sent are not lost. |
//! | Bytes in the kernel's send buffer | As many as it takes. | At most 512 KiB unsent for a TCP connection (`TCP_NOTSENT_LOWAT`, Linux). | A PING behind them is late (libzmq issue 2709). Set [`Options::sndbuf`] for slow links. |
//! | I/O | In threads of the context. | In the caller's thread. A blocking socket polls before it writes, if its owner has made no call for a millisecond. | No threads, no locks. Nothing is written to a connection that has ended. |
//!
//! # Security
//!
//! | subject | libzmq | here | why |
//! |---|---|---|---|
//! | Users of the same host | Any may connect. | `LocalUsers`: only those on the list. | Without CURVE this is the only check of who connects. |
//! | Refused credentials | ERROR with the status code of a ZAP handler. | ERROR "400". The client waits for its longest reconnect interval. | The same, without a handler. |
//! | A CURVE client refuses its server | Closes. | Closes without ERROR. | Plaintext is no longer allowed. |
//! | Invalid input | The connection is closed. | The same, with a log line (at most ten a second for a socket) and a count in [`Counters`]. | Operators see it. |

#[cfg(doc)]
use super::{Counters, Error, Event, Options};
