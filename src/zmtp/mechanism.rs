//! Security mechanisms: the state of the handshake of a connection.

use std::time::Instant;

use super::command::{Command, Metadata, encode_property, encode_ready};
use super::config::may_be_chosen;
use super::{Config, Error, PeerInfo, Security, plain};

#[cfg(feature = "curve")]
use super::curve;

/// State of the handshake of one connection, from our greeting to the peer's metadata.
#[derive(Debug)]
pub(super) enum Handshake {
    /// NULL: waits for READY.
    Null,
    /// PLAIN client: waits for WELCOME.
    PlainClient,
    /// PLAIN client: waits for READY.
    PlainInitiated,
    /// PLAIN server: waits for HELLO.
    PlainServer,
    /// PLAIN server: waits for INITIATE of this user.
    PlainWelcomed(String),
    #[cfg(feature = "curve")]
    CurveClient(Box<curve::Client>),
    #[cfg(feature = "curve")]
    CurveServer(Box<curve::Server>),
}

/// Result of a handshake command.
pub(super) enum Outcome {
    /// Another command must follow.
    Continue,
    /// The handshake is done with this peer.
    Done(PeerInfo),
    /// The handshake is done, and all further traffic is encrypted.
    #[cfg(feature = "curve")]
    Sealed(PeerInfo, Box<curve::Sealed>),
}

impl Handshake {
    pub(super) fn new(security: &Security) -> Self {
        match security {
            Security::Null => Handshake::Null,
            Security::PlainClient(_) => Handshake::PlainClient,
            Security::PlainServer(_) => Handshake::PlainServer,
            #[cfg(feature = "curve")]
            Security::CurveClient(_) => Handshake::CurveClient(Box::new(curve::Client::New)),
            #[cfg(feature = "curve")]
            Security::CurveServer(_) => Handshake::CurveServer(Box::new(curve::Server::New)),
        }
    }

    /// Queues the first command of a client, after the peer's greeting has named our mechanism.
    /// (READY of NULL is sent with the greeting. Credentials are sent only after the greeting,
    /// because only then it is known that the peer uses the mechanism.)
    pub(super) fn start(&mut self, config: &Config, out: &mut Vec<u8>) -> Result<(), Error> {
        match (self, &config.security) {
            (Handshake::PlainClient, Security::PlainClient(client)) => {
                plain::encode_hello(out, client);
                Ok(())
            }
            #[cfg(feature = "curve")]
            (Handshake::CurveClient(client), Security::CurveClient(keys)) => {
                client.start(keys, out)
            }
            _ => Ok(()),
        }
    }

    /// Processes one command of the peer; appends answers to `out`.
    pub(super) fn handle(
        &mut self,
        body: &[u8],
        config: &Config,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Error> {
        if body.starts_with(b"\x05ERROR")
            && let Command::Error(reason) = Command::decode(body)?
        {
            return Err(Error::Refused {
                reason: String::from_utf8_lossy(reason).into_owned(),
            });
        }
        // libzmq's PLAIN server sends ERROR under a wrong name: a hexadecimal escape in its source
        // includes the first letter. The frame contains "^RROR", a length and the status.
        if matches!(self, Handshake::PlainClient | Handshake::PlainInitiated)
            && let Some([_, reason @ ..]) = body.strip_prefix(b"^RROR")
        {
            return Err(Error::Refused {
                reason: String::from_utf8_lossy(reason).into_owned(),
            });
        }
        // Only CURVE uses `now`, for the lifetime of cookies.
        let _ = now;
        match (&mut *self, &config.security) {
            (Handshake::PlainClient, _) => {
                plain::answer_welcome(body, &metadata(config), out)?;
                *self = Handshake::PlainInitiated;
                Ok(Outcome::Continue)
            }
            (Handshake::PlainServer, Security::PlainServer(server)) => {
                let user = plain::answer_hello(body, server, out)?;
                *self = Handshake::PlainWelcomed(user);
                Ok(Outcome::Continue)
            }
            (Handshake::PlainWelcomed(user), _) => {
                let before = out.len();
                let properties = plain::answer_initiate(body, &metadata(config), out)?;
                let peer = PeerInfo {
                    user_id: Some(std::mem::take(user)),
                    ..checked_peer(properties, config).inspect_err(|_| out.truncate(before))?
                };
                Ok(Outcome::Done(peer))
            }
            #[cfg(feature = "curve")]
            (Handshake::CurveClient(client), Security::CurveClient(keys)) => {
                let step = client.handle(body, keys, &metadata(config), out)?;
                curve_outcome(step, config)
            }
            #[cfg(feature = "curve")]
            (Handshake::CurveServer(server), Security::CurveServer(keys)) => {
                let before = out.len();
                let step = server.handle(body, keys, &metadata(config), now, out)?;
                // If the peer is refused, ERROR is sent instead of READY.
                curve_outcome(step, config).inspect_err(|_| out.truncate(before))
            }
            _ => match Command::decode(body)? {
                Command::Ready(metadata) => {
                    Ok(Outcome::Done(checked_peer(metadata.bytes(), config)?))
                }
                _ => Err(Error::UnexpectedInHandshake {
                    what: "another command than READY",
                }),
            },
        }
    }
}

#[cfg(feature = "curve")]
fn curve_outcome(step: curve::Step, config: &Config) -> Result<Outcome, Error> {
    match step {
        curve::Step::Continue => Ok(Outcome::Continue),
        curve::Step::Done {
            properties,
            key,
            sealed,
        } => {
            let (public_key, user_id) = key.unzip();
            let peer = PeerInfo {
                public_key,
                user_id,
                ..checked_peer(&properties, config)?
            };
            Ok(Outcome::Sealed(peer, sealed))
        }
    }
}

/// Appends READY of NULL, which does not depend on the peer.
pub(super) fn encode_null_ready(config: &Config, out: &mut Vec<u8>) {
    encode_ready(out, &metadata(config));
}

/// Our properties.
fn metadata(config: &Config) -> Vec<u8> {
    let mut out = Vec::new();
    encode_property(
        &mut out,
        "Socket-Type",
        config.socket_type.name().as_bytes(),
    );
    encode_property(&mut out, "Identity", &config.routing_id);
    for (name, value) in &config.metadata {
        encode_property(&mut out, name, value);
    }
    out
}

/// Reads the peer's properties; an error if its socket type or routing ID is not allowed.
fn checked_peer(properties: &[u8], config: &Config) -> Result<PeerInfo, Error> {
    let metadata = Metadata::decode(properties)?;
    let theirs = metadata.get("Socket-Type").unwrap_or(&[]);
    let name =
        String::from_utf8_lossy(theirs.get(..theirs.len().min(32)).unwrap_or(&[])).into_owned();
    if !config.socket_type.is_compatible(theirs) {
        return Err(Error::SocketTypeMismatch {
            ours: config.socket_type.name(),
            theirs: name,
        });
    }
    let routing_id = metadata.get("Identity").unwrap_or(&[]);
    if !may_be_chosen(routing_id) {
        return Err(Error::BadIdentity {
            size: routing_id.len(),
        });
    }
    Ok(PeerInfo {
        socket_type: name,
        routing_id: routing_id.to_vec(),
        metadata: application_properties(&metadata),
        ..PeerInfo::default()
    })
}

/// The properties whose names begin with `X-` (RFC 37 §3.4), up to a total size of
/// `METADATA_KEPT_MAX` bytes.
fn application_properties(metadata: &Metadata<'_>) -> Vec<(String, Vec<u8>)> {
    let mut left = crate::limits::METADATA_KEPT_MAX;
    let mut kept = Vec::new();
    for (name, value) in metadata.iter() {
        let ours = name
            .first_chunk::<2>()
            .is_some_and(|start| start.eq_ignore_ascii_case(b"X-"));
        let Some(rest) = left.checked_sub(name.len() + value.len()) else {
            break;
        };
        if ours {
            left = rest;
            kept.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        }
    }
    kept
}
