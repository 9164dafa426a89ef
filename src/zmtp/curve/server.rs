//! The server side of the CURVE handshake (RFC 26 §5.3).

use std::fmt;
use std::time::Instant;

use zeroize::Zeroizing;

use super::{
    BoxKey, COOKIE_LIFE, COOKIE_SIZE, CurveServer, KEY_SIZE, LONG_NONCE_SIZE, NONCE_COOKIE,
    NONCE_HELLO, NONCE_INITIATE, NONCE_MESSAGE_CLIENT, NONCE_MESSAGE_SERVER, NONCE_READY,
    NONCE_VOUCH, NONCE_WELCOME, PublicKey, Sealed, SecretKey, Step, TAG_SIZE, append_box, bad,
    long_nonce, open_in_place, random, random_array, shared, short_nonce, wiping_stack,
};
use crate::zmtp::Error;
use crate::zmtp::cursor::{Cursor, append_u64};
use crate::zmtp::frame::encode_head;

const HELLO_SIZE: usize = 200;
const WELCOME_SIZE: usize = 168;
const INITIATE_SIZE_MIN: usize = 257;

/// Boxed, so that moving it leaves no copy of the key in memory.
type CookieKey = Box<Zeroizing<[u8; KEY_SIZE]>>;

/// ```text
/// New ──HELLO: WELCOME──▶ Welcomed ──INITIATE: READY──▶ (Sealed)
/// ```
/// Between WELCOME and INITIATE, the transient secret key is only in the cookie, which the client
/// has. This state keeps only the cookie's key. That key is generated for this connection and wiped
/// after one INITIATE.
pub(in crate::zmtp) enum Server {
    New,
    Welcomed {
        cookie_key: CookieKey,
        hello_nonce: u64,
        since: Instant,
    },
    Done,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::New => "New",
            Server::Welcomed { .. } => "Welcomed",
            Server::Done => "Done",
        })
    }
}

impl Server {
    /// Processes HELLO or INITIATE.
    pub(in crate::zmtp) fn handle(
        &mut self,
        body: &[u8],
        config: &CurveServer,
        metadata: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Step, Error> {
        wiping_stack(|| match std::mem::replace(self, Server::Done) {
            Server::New => {
                let (cookie_key, hello_nonce) = hello(body, config, out)?;
                *self = Server::Welcomed {
                    cookie_key,
                    hello_nonce,
                    since: now,
                };
                Ok(Step::Continue)
            }
            Server::Welcomed {
                cookie_key,
                hello_nonce,
                since,
            } => {
                if now.saturating_duration_since(since) >= COOKIE_LIFE {
                    return Err(bad("INITIATE with a cookie of more than 60 s"));
                }
                initiate(body, config, &cookie_key, hello_nonce, metadata, out)
            }
            Server::Done => Err(bad("command in the wrong order")),
        })
    }
}

/// Reads HELLO and queues WELCOME; returns the cookie's key and the nonce of HELLO.
fn hello(body: &[u8], config: &CurveServer, out: &mut Vec<u8>) -> Result<(CookieKey, u64), Error> {
    let mut cursor = Cursor::new(body);
    if body.len() != HELLO_SIZE || cursor.take(6) != Some(b"\x05HELLO") {
        return Err(bad("HELLO expected, of 200 bytes"));
    }
    if cursor.take(2) != Some(&[1, 0]) {
        return Err(bad("HELLO of another CurveZMQ version than 1.0"));
    }
    let cut_short = bad("HELLO cut short");
    cursor.take(72).ok_or(cut_short.clone())?;
    let client_transient = PublicKey::from_bytes(cursor.array().ok_or(cut_short.clone())?);
    let hello_nonce = cursor.u64().ok_or(cut_short)?;
    let mut sealed = cursor.rest().to_vec();
    let key = shared(&client_transient, &config.secret)?;
    let signature = open_in_place(&key, short_nonce(NONCE_HELLO, hello_nonce), &mut sealed).ok_or(
        bad("HELLO does not open: the client has another server key"),
    )?;
    if signature.iter().any(|byte| *byte != 0) {
        return Err(bad("HELLO with a box that is not all zeros"));
    }

    let transient = SecretKey::generate()?;
    let mut cookie_key = Box::new(Zeroizing::new([0; KEY_SIZE]));
    random(cookie_key.as_mut_slice())?;
    let cookie_random = random_array::<LONG_NONCE_SIZE>()?;
    let mut secrets = Zeroizing::new(Vec::with_capacity(2 * KEY_SIZE));
    secrets.extend_from_slice(client_transient.as_bytes());
    secrets.extend_from_slice(transient.as_bytes());
    let mut welcome = Zeroizing::new(Vec::with_capacity(KEY_SIZE + COOKIE_SIZE));
    welcome.extend_from_slice(transient.public().as_bytes());
    welcome.extend_from_slice(&cookie_random);
    append_box(
        &mut welcome,
        &BoxKey::new(&cookie_key),
        long_nonce(NONCE_COOKIE, &cookie_random),
        &secrets,
    );

    let random = random_array::<LONG_NONCE_SIZE>()?;
    encode_head(out, WELCOME_SIZE, false, true);
    out.extend_from_slice(b"\x07WELCOME");
    out.extend_from_slice(&random);
    append_box(out, &key, long_nonce(NONCE_WELCOME, &random), &welcome);
    Ok((cookie_key, hello_nonce))
}

/// Reads INITIATE, decides whether the client may connect, and queues READY.
fn initiate(
    body: &[u8],
    config: &CurveServer,
    cookie_key: &[u8; KEY_SIZE],
    hello_nonce: u64,
    metadata: &[u8],
    out: &mut Vec<u8>,
) -> Result<Step, Error> {
    let mut cursor = Cursor::new(body);
    if body.len() < INITIATE_SIZE_MIN || cursor.take(9) != Some(b"\x08INITIATE") {
        return Err(bad("INITIATE expected, of 257 bytes or more"));
    }
    let cut_short = bad("INITIATE cut short");
    let cookie_random: [u8; LONG_NONCE_SIZE] = cursor.array().ok_or(cut_short.clone())?;
    let mut cookie = Zeroizing::new(
        cursor
            .take(COOKIE_SIZE - LONG_NONCE_SIZE)
            .ok_or(cut_short.clone())?
            .to_vec(),
    );
    let secrets = open_in_place(
        &BoxKey::new(cookie_key),
        long_nonce(NONCE_COOKIE, &cookie_random),
        &mut cookie,
    )
    .ok_or(bad("INITIATE with a cookie that is not of this connection"))?;
    let mut secrets = Cursor::new(secrets);
    let client_transient = PublicKey::from_bytes(secrets.array().ok_or(cut_short.clone())?);
    let transient = secrets.take(KEY_SIZE).and_then(|bytes| bytes.first_chunk());
    let transient = SecretKey::of(transient.ok_or(cut_short.clone())?);

    let nonce = cursor.u64().ok_or(cut_short.clone())?;
    if nonce <= hello_nonce {
        return Err(bad("INITIATE with a nonce that was used"));
    }
    let key = shared(&client_transient, &transient)?;
    let mut sealed = Zeroizing::new(cursor.rest().to_vec());
    let plain = open_in_place(&key, short_nonce(NONCE_INITIATE, nonce), &mut sealed)
        .ok_or(bad("INITIATE does not open"))?;
    let mut plain = Cursor::new(plain);
    let client = PublicKey::from_bytes(plain.array().ok_or(cut_short.clone())?);
    let vouch_random: [u8; LONG_NONCE_SIZE] = plain.array().ok_or(cut_short.clone())?;
    let mut vouch = plain
        .take(TAG_SIZE + 2 * KEY_SIZE)
        .ok_or(cut_short)?
        .to_vec();
    let vouched = open_in_place(
        &*shared(&client, &transient)?,
        long_nonce(NONCE_VOUCH, &vouch_random),
        &mut vouch,
    )
    .ok_or(bad("vouch does not open: the client does not hold its key"))?;
    let mut vouched = Cursor::new(vouched);
    if vouched.take(KEY_SIZE) != Some(client_transient.as_bytes())
        || vouched.take(KEY_SIZE) != Some(config.secret.public().as_bytes())
    {
        return Err(bad("vouch for another connection or server"));
    }
    let Some(name) = config.clients.name_of(&client) else {
        return Err(Error::Unauthorized {
            who: format!("key {client}"),
        });
    };

    encode_head(out, 6 + 8 + TAG_SIZE + metadata.len(), false, true);
    out.extend_from_slice(b"\x05READY");
    append_u64(out, 1);
    append_box(out, &key, short_nonce(NONCE_READY, 1), metadata);
    Ok(Step::Done {
        properties: plain.rest().to_vec(),
        key: Some((client, name)),
        sealed: Box::new(Sealed::new(
            key,
            NONCE_MESSAGE_SERVER,
            1,
            NONCE_MESSAGE_CLIENT,
            nonce,
        )),
    })
}
