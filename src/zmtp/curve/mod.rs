//! The CURVE mechanism: CurveZMQ (RFC 26) inside ZMTP (RFC 25).
//!
//! Every connection generates transient keys of its own. The long-term keys only authenticate
//! client and server. The client is configured with the server's public key. The server accepts
//! clients by [`Clients`]. Neither side learns a secret key of the other.
//!
//! ```text
//! client                                                server
//!   HELLO     C', box[zeros](c'→S)            ──▶
//!             ◀──  WELCOME   box[S', cookie](s→C')
//!   INITIATE  cookie, box[C, vouch, metadata](c'→S') ──▶
//!             ◀──  READY     box[metadata](s'→C')
//!   MESSAGE   box[flags, body] both ways, nonces strictly increasing
//! ```
//!
//! The RustCrypto and dalek crates implement the cryptography: X25519, XSalsa20-Poly1305. Secrets
//! are wiped from memory when they are dropped and never formatted.

mod client;
mod keys;
#[cfg(test)]
#[path = "../../../tests/support/memory.rs"]
pub(super) mod memory;
#[cfg(fuzzing)]
pub mod repeatable;
mod secretbox;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use keys::{AuthorizedKeys, KeyError, KeyLimits, PublicKey, SecretKey};

pub(super) use client::Client;
pub(super) use server::Server;
pub(super) use session::{MESSAGE_OVERHEAD, Sealed};

use std::sync::Arc;
use std::time::Duration;

use byteorder::{BigEndian, ByteOrder};
use curve25519_dalek::MontgomeryPoint;
use zeroize::{Zeroize, Zeroizing};

use self::secretbox::{BoxKey, BoxStream, TAG_SIZE, append_box, open_in_place};
use super::Error;

/// The keys of a CURVE client.
#[derive(Clone, Debug)]
pub struct CurveClient {
    /// Our long-term secret key.
    pub secret: SecretKey,
    /// The server's long-term public key.
    pub server: PublicKey,
}

/// The keys of a CURVE server.
#[derive(Clone, Debug)]
pub struct CurveServer {
    /// Our long-term secret key.
    pub secret: SecretKey,
    /// The clients that may connect.
    pub clients: Clients,
}

/// The clients that a CURVE server accepts.
#[derive(Clone, Debug)]
pub enum Clients {
    /// Every client that has the server's public key. Clients are not authenticated.
    Any,
    /// Clients with the listed keys.
    Listed(Arc<AuthorizedKeys>),
}

impl Clients {
    /// The user name of a key, or `None` if the key is not accepted.
    pub(crate) fn name_of(&self, key: &PublicKey) -> Option<String> {
        match self {
            Clients::Any => Some(key.to_string()),
            Clients::Listed(keys) => keys.name(key).map(str::to_owned),
        }
    }
}

/// Result of a handshake command.
pub(super) enum Step {
    /// Another command must follow.
    Continue,
    /// The handshake is done.
    Done {
        /// The peer's metadata.
        properties: Vec<u8>,
        /// The client's key and its user name; on servers only.
        key: Option<(PublicKey, String)>,
        /// Encrypts and decrypts all further traffic.
        sealed: Box<Sealed>,
    },
}

const fn bad(what: &'static str) -> Error {
    Error::Curve { what }
}

/// Sizes in bytes: of a long nonce's random part, a key, a cookie.
const LONG_NONCE_SIZE: usize = 16;
const KEY_SIZE: usize = 32;
const COOKIE_SIZE: usize = 96;

/// Lifetime of a cookie (RFC 26 §5.3).
pub(super) const COOKIE_LIFE: Duration = Duration::from_secs(60);

const NONCE_HELLO: &[u8; 16] = b"CurveZMQHELLO---";
const NONCE_WELCOME: &[u8; 8] = b"WELCOME-";
const NONCE_COOKIE: &[u8; 8] = b"COOKIE--";
const NONCE_VOUCH: &[u8; 8] = b"VOUCH---";
const NONCE_INITIATE: &[u8; 16] = b"CurveZMQINITIATE";
const NONCE_READY: &[u8; 16] = b"CurveZMQREADY---";
const NONCE_MESSAGE_CLIENT: &[u8; 16] = b"CurveZMQMESSAGEC";
const NONCE_MESSAGE_SERVER: &[u8; 16] = b"CurveZMQMESSAGES";

/// A nonce that consists of a fixed prefix and a counter.
fn short_nonce(prefix: &[u8; 16], counter: u64) -> [u8; 24] {
    let mut nonce = [0; 24];
    let (head, tail) = nonce.split_at_mut(16);
    head.copy_from_slice(prefix);
    BigEndian::write_u64(tail, counter);
    nonce
}

/// A nonce that consists of a fixed prefix and random bytes.
fn long_nonce(prefix: &[u8; 8], random: &[u8; LONG_NONCE_SIZE]) -> [u8; 24] {
    let mut nonce = [0; 24];
    let (head, tail) = nonce.split_at_mut(8);
    head.copy_from_slice(prefix);
    tail.copy_from_slice(random);
    nonce
}

/// Fills `out` with random bytes from the system.
#[cfg(not(fuzzing))]
fn random(out: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(out).map_err(|_| Error::NoRandomness)
}

/// Fills `out` with the fuzz run's deterministic bytes, so that runs can be repeated.
#[cfg(fuzzing)]
fn random(out: &mut [u8]) -> Result<(), Error> {
    repeatable::random(out);
    Ok(())
}

fn random_array<const N: usize>() -> Result<[u8; N], Error> {
    let mut out = [0; N];
    random(&mut out)?;
    Ok(out)
}

/// Runs a calculation with secrets, then wipes the stack below the caller. Moving or passing a
/// value leaves a copy of it on the stack.
fn wiping_stack<T>(calculate: impl FnOnce() -> T) -> T {
    /// 32 KiB. The curve and the cipher use about 8 KiB without optimization.
    const WORDS: usize = 4 << 10;

    #[inline(never)]
    fn below<T>(calculate: impl FnOnce() -> T) -> T {
        calculate()
    }
    #[inline(never)]
    fn wipe() {
        let mut same_bytes = [0u64; WORDS];
        same_bytes.zeroize();
        std::hint::black_box(&same_bytes);
    }
    let result = below(calculate);
    wipe();
    result
}

/// The key for the shared secret of a public and a secret key: X25519 (RFC 7748), then HSalsa20.
///
/// The secret key is clamped, not reduced, so a low-order component of a public key reveals nothing
/// about it. A low-order public key is rejected: with it, anyone could compute the shared secret
/// (RFC 7748 §6.1).
fn shared(public: &PublicKey, secret: &SecretKey) -> Result<Box<BoxKey>, Error> {
    let mut point = MontgomeryPoint(*public.as_bytes()).mul_clamped(*secret.as_bytes());
    let shared = Zeroizing::new(point.0);
    point.zeroize();
    if shared.iter().all(|byte| *byte == 0) {
        return Err(bad("public key of low order"));
    }
    Ok(BoxKey::of_shared_point(&shared))
}
