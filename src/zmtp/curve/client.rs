//! The client side of the CURVE handshake (RFC 26 §5.2).

use std::fmt;

use zeroize::Zeroizing;

use super::{
    BoxKey, COOKIE_SIZE, CurveClient, KEY_SIZE, LONG_NONCE_SIZE, NONCE_HELLO, NONCE_INITIATE,
    NONCE_MESSAGE_CLIENT, NONCE_MESSAGE_SERVER, NONCE_READY, NONCE_VOUCH, NONCE_WELCOME, PublicKey,
    Sealed, SecretKey, Step, TAG_SIZE, append_box, bad, long_nonce, open_in_place, random_array,
    shared, short_nonce, wiping_stack,
};
use crate::zmtp::Error;
use crate::zmtp::cursor::{Cursor, append_u64};
use crate::zmtp::frame::encode_head;

const HELLO_SIZE: usize = 200;
const WELCOME_SIZE: usize = 168;

/// ```text
/// New ──start: HELLO──▶ Greeted ──WELCOME: INITIATE──▶ Initiated ──READY──▶ (Sealed)
/// ```
pub(in crate::zmtp) enum Client {
    New,
    Greeted(SecretKey),
    /// Boxed, so that moving it leaves no copy of the key in memory.
    Initiated(Box<BoxKey>),
    Done,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Client::New => "New",
            Client::Greeted(_) => "Greeted",
            Client::Initiated(_) => "Initiated",
            Client::Done => "Done",
        })
    }
}

impl Client {
    /// HELLO has been queued, and WELCOME has not arrived.
    pub(in crate::zmtp) fn is_unanswered(&self) -> bool {
        matches!(self, Client::Greeted(_))
    }

    /// Queues HELLO.
    pub(in crate::zmtp) fn start(
        &mut self,
        config: &CurveClient,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        wiping_stack(|| self.start_secretly(config, out))
    }

    fn start_secretly(&mut self, config: &CurveClient, out: &mut Vec<u8>) -> Result<(), Error> {
        let transient = SecretKey::generate()?;
        encode_head(out, HELLO_SIZE, false, true);
        out.extend_from_slice(b"\x05HELLO\x01\x00");
        out.extend_from_slice(&[0; 72]);
        out.extend_from_slice(transient.public().as_bytes());
        append_u64(out, 1);
        let key = shared(&config.server, &transient)?;
        append_box(out, &key, short_nonce(NONCE_HELLO, 1), &[0; 64]);
        *self = Client::Greeted(transient);
        Ok(())
    }

    /// Processes WELCOME or READY.
    pub(in crate::zmtp) fn handle(
        &mut self,
        body: &[u8],
        config: &CurveClient,
        metadata: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, Error> {
        wiping_stack(|| match std::mem::replace(self, Client::Done) {
            Client::Greeted(transient) => {
                let key = welcome(body, config, &transient, metadata, out)?;
                *self = Client::Initiated(key);
                Ok(Step::Continue)
            }
            Client::Initiated(key) => ready(body, key),
            Client::New | Client::Done => Err(bad("command in the wrong order")),
        })
    }
}

/// Reads WELCOME and queues INITIATE; returns the key of the transient keys' boxes.
fn welcome(
    body: &[u8],
    config: &CurveClient,
    transient: &SecretKey,
    metadata: &[u8],
    out: &mut Vec<u8>,
) -> Result<Box<BoxKey>, Error> {
    let mut cursor = Cursor::new(body);
    if body.len() != WELCOME_SIZE || cursor.take(8) != Some(b"\x07WELCOME") {
        return Err(bad("WELCOME expected, of 168 bytes"));
    }
    let nonce: [u8; LONG_NONCE_SIZE] = cursor.array().ok_or(bad("WELCOME cut short"))?;
    let mut sealed = Zeroizing::new(cursor.rest().to_vec());
    let key = shared(&config.server, transient)?;
    let plain = open_in_place(&key, long_nonce(NONCE_WELCOME, &nonce), &mut sealed).ok_or(bad(
        "WELCOME does not open: the server's key is not the one configured here",
    ))?;
    let mut plain = Cursor::new(plain);
    let server_transient =
        PublicKey::from_bytes(plain.array().ok_or(bad("WELCOME without a key"))?);
    let cookie: [u8; COOKIE_SIZE] = plain.array().ok_or(bad("WELCOME without a cookie"))?;

    // The vouch proves that the owner of key C uses C' for server S: box[C', S](c→S').
    let vouch_random = random_array::<LONG_NONCE_SIZE>()?;
    let mut vouched = Vec::with_capacity(2 * KEY_SIZE);
    vouched.extend_from_slice(transient.public().as_bytes());
    vouched.extend_from_slice(config.server.as_bytes());
    let mut initiate = Zeroizing::new(Vec::with_capacity(128 + metadata.len()));
    initiate.extend_from_slice(config.secret.public().as_bytes());
    initiate.extend_from_slice(&vouch_random);
    append_box(
        &mut initiate,
        &*shared(&server_transient, &config.secret)?,
        long_nonce(NONCE_VOUCH, &vouch_random),
        &vouched,
    );
    initiate.extend_from_slice(metadata);

    let key = shared(&server_transient, transient)?;
    encode_head(
        out,
        9 + COOKIE_SIZE + 8 + TAG_SIZE + initiate.len(),
        false,
        true,
    );
    out.extend_from_slice(b"\x08INITIATE");
    out.extend_from_slice(&cookie);
    append_u64(out, 2);
    append_box(out, &key, short_nonce(NONCE_INITIATE, 2), &initiate);
    Ok(key)
}

fn ready(body: &[u8], key: Box<BoxKey>) -> Result<Step, Error> {
    let mut cursor = Cursor::new(body);
    if cursor.take(6) != Some(b"\x05READY") {
        return Err(bad("READY expected"));
    }
    let nonce = cursor.u64().ok_or(bad("READY cut short"))?;
    let mut properties = cursor.rest().to_vec();
    open_in_place(&key, short_nonce(NONCE_READY, nonce), &mut properties)
        .ok_or(bad("READY does not open"))?;
    properties.drain(..TAG_SIZE);
    Ok(Step::Done {
        properties,
        key: None,
        sealed: Box::new(Sealed::new(
            key,
            NONCE_MESSAGE_CLIENT,
            2,
            NONCE_MESSAGE_SERVER,
            nonce,
        )),
    })
}
