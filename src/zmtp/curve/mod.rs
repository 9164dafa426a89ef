//! The CURVE mechanism: CurveZMQ (RFC 26) inside ZMTP (RFC 25).
//!
//! Every connection makes transient keys of its own; the long-term keys only prove who takes
//! part. The client knows the server's public key beforehand, the server decides by
//! [`Clients`] whom it lets in, and neither learns a secret of the other's.
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
//! The cryptography is that of the RustCrypto and dalek crates: X25519, XSalsa20-Poly1305.
//! Secrets are wiped from memory when they are dropped and never formatted.

mod client;
mod keys;
#[cfg(test)]
#[path = "../../../tests/support/memory.rs"]
pub(super) mod memory;
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

use crypto_secretbox::{AeadInPlace, KeyInit, XSalsa20Poly1305};
use curve25519_dalek::MontgomeryPoint;
use salsa20::cipher::consts::U10;
use zeroize::{Zeroize, Zeroizing};

use super::Error;

/// The keys of a connecting side.
#[derive(Clone, Debug)]
pub struct CurveClient {
    /// Our long-term secret key.
    pub secret: SecretKey,
    /// The server's long-term public key.
    pub server: PublicKey,
}

/// The keys of a side that lets clients in.
#[derive(Clone, Debug)]
pub struct CurveServer {
    /// Our long-term secret key.
    pub secret: SecretKey,
    /// Who may connect.
    pub clients: Clients,
}

/// Whom a CURVE server lets in.
#[derive(Clone, Debug)]
pub enum Clients {
    /// Every client that knows the server's public key. Clients are not authenticated.
    Any,
    /// The holders of the listed keys.
    Listed(Arc<AuthorizedKeys>),
}

impl Clients {
    /// The name under which a key is let in.
    pub(crate) fn name_of(&self, key: &PublicKey) -> Option<String> {
        match self {
            Clients::Any => Some(key.to_string()),
            Clients::Listed(keys) => keys.name(key).map(str::to_owned),
        }
    }
}

/// What a handshake command came to.
pub(super) enum Step {
    /// Another command is awaited.
    Continue,
    /// Both sides have proved themselves.
    Done {
        /// The peer's metadata.
        properties: Vec<u8>,
        /// The client's key and the name it is let in by; servers only.
        key: Option<(PublicKey, String)>,
        /// What seals and opens the traffic from here on.
        sealed: Box<Sealed>,
    },
}

const fn bad(what: &'static str) -> Error {
    Error::Curve { what }
}

/// Bytes of a long nonce's random part, of a short nonce, of a Poly1305 tag, of a key.
const LONG_NONCE_SIZE: usize = 16;
const TAG_SIZE: usize = 16;
const KEY_SIZE: usize = 32;
const COOKIE_SIZE: usize = 96;

/// A cookie is worth nothing after this (RFC 26 §5.3).
pub(super) const COOKIE_LIFE: Duration = Duration::from_secs(60);

const NONCE_HELLO: &[u8; 16] = b"CurveZMQHELLO---";
const NONCE_WELCOME: &[u8; 8] = b"WELCOME-";
const NONCE_COOKIE: &[u8; 8] = b"COOKIE--";
const NONCE_VOUCH: &[u8; 8] = b"VOUCH---";
const NONCE_INITIATE: &[u8; 16] = b"CurveZMQINITIATE";
const NONCE_READY: &[u8; 16] = b"CurveZMQREADY---";
const NONCE_MESSAGE_CLIENT: &[u8; 16] = b"CurveZMQMESSAGEC";
const NONCE_MESSAGE_SERVER: &[u8; 16] = b"CurveZMQMESSAGES";

/// A nonce of a fixed prefix and a counter.
fn short_nonce(prefix: &[u8; 16], counter: u64) -> [u8; 24] {
    let mut nonce = [0; 24];
    let (head, tail) = nonce.split_at_mut(16);
    head.copy_from_slice(prefix);
    tail.copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// A nonce of a fixed prefix and random bytes.
fn long_nonce(prefix: &[u8; 8], random: &[u8; LONG_NONCE_SIZE]) -> [u8; 24] {
    let mut nonce = [0; 24];
    let (head, tail) = nonce.split_at_mut(8);
    head.copy_from_slice(prefix);
    tail.copy_from_slice(random);
    nonce
}

/// Fills with random bytes of the system.
#[cfg(not(fuzzing))]
fn random(out: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(out).map_err(|_| Error::NoRandomness)
}

/// A fuzz run must be repeatable.
#[cfg(fuzzing)]
fn random(out: &mut [u8]) -> Result<(), Error> {
    crate::fuzzing::random(out);
    Ok(())
}

fn random_array<const N: usize>() -> Result<[u8; N], Error> {
    let mut out = [0; N];
    random(&mut out)?;
    Ok(out)
}

/// Calculates with secrets, and wipes what that has left of them on the stack: values that are
/// moved or passed leave copies behind that are not wiped.
fn wiping_stack<T>(calculate: impl FnOnce() -> T) -> T {
    /// 32 KiB: more than the curve and the cipher use, which is some 8 KiB without optimisation.
    const WORDS: usize = 4 << 10;

    #[inline(never)]
    fn below<T>(calculate: impl FnOnce() -> T) -> T {
        calculate()
    }
    #[inline(never)]
    fn wipe() {
        let mut same_place = [0u64; WORDS];
        same_place.zeroize();
        std::hint::black_box(&same_place);
    }
    let result = below(calculate);
    wipe();
    result
}

/// Appends box[plain], its tag first as NaCl lays it out.
fn append_box(
    out: &mut Vec<u8>,
    cipher: &XSalsa20Poly1305,
    nonce: [u8; 24],
    plain: &[u8],
) -> Result<(), Error> {
    let start = out.len();
    out.extend_from_slice(&[0; TAG_SIZE]);
    out.extend_from_slice(plain);
    let sealed = out.get_mut(start..).unwrap_or(&mut []);
    seal_in_place(cipher, nonce, sealed)
}

/// Encrypts all of `bytes` but the first [`TAG_SIZE`], where the tag goes.
fn seal_in_place(
    cipher: &XSalsa20Poly1305,
    nonce: [u8; 24],
    bytes: &mut [u8],
) -> Result<(), Error> {
    let (tag_place, body) = bytes.split_at_mut_checked(TAG_SIZE).ok_or(SEAL_FAILED)?;
    #[cfg(fuzzing)]
    crate::fuzzing::tamper(body);
    let tag = cipher
        .encrypt_in_place_detached(&nonce.into(), b"", body)
        .map_err(|_| SEAL_FAILED)?;
    tag_place
        .iter_mut()
        .zip(tag.iter())
        .for_each(|(to, from)| *to = *from);
    Ok(())
}

const SEAL_FAILED: Error = bad("a box could not be sealed");

/// Decrypts a box in place and gives the plaintext behind its tag; false when it is forged.
fn open_in_place<'a>(
    cipher: &XSalsa20Poly1305,
    nonce: [u8; 24],
    bytes: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let (tag, body) = bytes.split_at_mut_checked(TAG_SIZE)?;
    let (tag, _) = tag.split_first_chunk::<TAG_SIZE>()?;
    cipher
        .decrypt_in_place_detached(&nonce.into(), b"", body, tag.into())
        .ok()?;
    Some(body)
}

/// The cipher of a key pair's shared secret: X25519 (RFC 7748), then HSalsa20, as NaCl's
/// `crypto_box_beforenm`.
///
/// The secret is clamped, not reduced, so that a point of low order hidden in a public key
/// reveals nothing about it. A public key that is such a point alone would make the secret known
/// to everybody and is refused (RFC 7748 §6.1).
fn shared(public: &PublicKey, secret: &SecretKey) -> Result<Box<XSalsa20Poly1305>, Error> {
    let mut point = MontgomeryPoint(*public.as_bytes()).mul_clamped(*secret.as_bytes());
    let shared = Zeroizing::new(point.0);
    point.zeroize();
    if shared.iter().all(|byte| *byte == 0) {
        return Err(bad("public key of low order"));
    }
    let mut key = salsa20::hsalsa::<U10>((&*shared).into(), (&[0; 16]).into());
    let cipher = Box::new(XSalsa20Poly1305::new(&key));
    key.as_mut_slice().zeroize();
    Ok(cipher)
}
