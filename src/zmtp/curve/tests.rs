//! Tests of the CURVE handshake with INITIATE commands of a malicious client.

use std::time::Instant;

use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::montgomery::MontgomeryPoint;

use super::memory::Needle;
use super::*;
use crate::zmtp::command::{Metadata, encode_property};
use crate::zmtp::cursor::Cursor;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

fn open(key: &BoxKey, nonce: [u8; 24], sealed: &[u8]) -> Option<Vec<u8>> {
    let mut sealed = sealed.to_vec();
    open_in_place(key, nonce, &mut sealed).map(|plain| plain.to_vec())
}

fn sealed(key: &BoxKey, nonce: [u8; 24], plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_box(&mut out, key, nonce, plain);
    out
}

/// The symmetric key from which [`shared`] creates a key.
fn session_key(public: &PublicKey, secret: &SecretKey) -> Needle {
    let point = MontgomeryPoint(*public.as_bytes()).mul_clamped(*secret.as_bytes());
    let mut key =
        salsa20::hsalsa::<salsa20::cipher::consts::U10>((&point.0).into(), (&[0; 16]).into());
    let needle = Needle::new(&key);
    key.as_mut_slice().zeroize();
    needle
}

/// An INITIATE whose parts may be wrong.
struct Attempt {
    hello_nonce: u64,
    nonce: u64,
    /// `shown` is the long-term public key in INITIATE. `vouching` is the secret key that seals the
    /// vouch.
    shown: PublicKey,
    vouching: SecretKey,
    /// Keys in the vouch. `None`: the client's own transient key, and the server's key.
    vouched_transient: Option<PublicKey>,
    vouched_server: Option<PublicKey>,
}

impl Attempt {
    fn honest() -> Self {
        Attempt {
            hello_nonce: 1,
            nonce: 2,
            shown: key(2).public(),
            vouching: key(2),
            vouched_transient: None,
            vouched_server: None,
        }
    }

    /// Runs HELLO, WELCOME and this INITIATE with a server that lists key 2.
    fn run(&self) -> Result<Step, Error> {
        self.watched().1
    }

    /// The same; returns also the session key, to search memory for it.
    fn watched(&self) -> (Option<Needle>, Result<Step, Error>) {
        let mut needle = None;
        let result = wiping_stack(|| self.steps(&mut needle));
        (needle, result)
    }

    fn steps(&self, needle: &mut Option<Needle>) -> Result<Step, Error> {
        let listed = [(key(2).public(), "two".to_owned())];
        let config = CurveServer {
            secret: key(1),
            clients: Clients::Listed(Arc::new(listed.into_iter().collect())),
        };
        let now = Instant::now();
        let transient = key(7);
        let mut hello = b"\x05HELLO\x01\0".to_vec();
        hello.extend([0; 72]);
        hello.extend(transient.public().as_bytes());
        hello.extend(self.hello_nonce.to_be_bytes());
        let to_server = shared(&key(1).public(), &transient).unwrap();
        let nonce = short_nonce(NONCE_HELLO, self.hello_nonce);
        hello.extend(sealed(&to_server, nonce, &[0; 64]));
        let mut server = Server::New;
        let mut out = Vec::new();
        server.handle(&hello, &config, b"", now, &mut out)?;

        // WELCOME is: frame head, name, nonce, box.
        let mut welcome = Cursor::new(&out[2 + 8..]);
        let nonce = long_nonce(NONCE_WELCOME, &welcome.array().unwrap());
        let welcome = open(&to_server, nonce, welcome.rest()).unwrap();
        let (server_transient, cookie) = welcome.split_first_chunk().unwrap();
        let server_transient = PublicKey::from_bytes(*server_transient);
        let to_transient = shared(&server_transient, &transient).unwrap();
        *needle = Some(session_key(&server_transient, &transient));

        let mut vouched = Vec::new();
        let own = transient.public();
        vouched.extend(self.vouched_transient.unwrap_or(own).as_bytes());
        let server_key = key(1).public();
        vouched.extend(self.vouched_server.unwrap_or(server_key).as_bytes());
        let by = shared(&server_transient, &self.vouching).unwrap();
        let mut plain = self.shown.as_bytes().to_vec();
        plain.extend([9; LONG_NONCE_SIZE]);
        plain.extend(sealed(&by, long_nonce(NONCE_VOUCH, &[9; 16]), &vouched));
        encode_property(&mut plain, "Socket-Type", b"DEALER");
        let mut initiate = b"\x08INITIATE".to_vec();
        initiate.extend(cookie);
        initiate.extend(self.nonce.to_be_bytes());
        let nonce = short_nonce(NONCE_INITIATE, self.nonce);
        initiate.extend(sealed(&to_transient, nonce, &plain));
        server.handle(&initiate, &config, b"", now, &mut out)
    }
}

#[test]
fn a_sessions_key_stands_in_memory_once_and_goes_with_it() {
    let copies = |needle: &Needle| needle.copies(std::process::id());
    let (needle, step) = Attempt::honest().watched();
    let needle = needle.unwrap();
    assert_eq!(copies(&needle), 1);
    drop(step);
    assert_eq!(copies(&needle), 0);
}

#[test]
fn initiate_must_vouch_for_this_connection_and_this_server_by_the_key_it_shows() {
    let honest = Attempt::honest();
    match honest.run().unwrap() {
        Step::Done {
            properties, key, ..
        } => {
            assert_eq!(key.map(|(_, name)| name).as_deref(), Some("two"));
            let metadata = Metadata::decode(&properties).unwrap();
            assert_eq!(metadata.get("Socket-Type"), Some(&b"DEALER"[..]));
        }
        Step::Continue => panic!("no end"),
    }
    let other = || Some(key(8).public());
    let low_order = PublicKey::from_bytes([0; 32]);
    let cases = [
        (
            "vouch for another transient key",
            "another connection",
            Attempt {
                vouched_transient: other(),
                ..Attempt::honest()
            },
        ),
        (
            "vouch for another server",
            "another connection or server",
            Attempt {
                vouched_server: other(),
                ..Attempt::honest()
            },
        ),
        (
            "vouch by another key",
            "does not hold its key",
            Attempt {
                vouching: key(3),
                ..Attempt::honest()
            },
        ),
        (
            "a listed key that it does not hold",
            "does not hold its key",
            Attempt {
                shown: key(2).public(),
                vouching: key(3),
                ..Attempt::honest()
            },
        ),
        (
            "a key that is not listed",
            "not authorized",
            Attempt {
                shown: key(3).public(),
                vouching: key(3),
                ..Attempt::honest()
            },
        ),
        (
            "the null key",
            "low order",
            Attempt {
                shown: low_order,
                ..Attempt::honest()
            },
        ),
        (
            "the nonce of HELLO again",
            "nonce that was used",
            Attempt {
                nonce: 1,
                ..Attempt::honest()
            },
        ),
        (
            "a nonce before that of HELLO",
            "nonce that was used",
            Attempt {
                hello_nonce: 9,
                nonce: 8,
                ..Attempt::honest()
            },
        ),
    ];
    for (what, want, attempt) in cases {
        match attempt.run() {
            Err(error) => assert!(error.to_string().contains(want), "{what}: {error}"),
            Ok(_) => panic!("{what}: let in"),
        }
    }
}

/// A low-order component of a public key must reveal nothing about the secret key: the clamped
/// scalar is a multiple of eight.
#[test]
fn a_point_of_low_order_added_to_a_key_changes_nothing() {
    let nonce = [3; 24];
    let client = curve25519_dalek::EdwardsPoint::mul_base_clamped([5; 32]);
    for byte in 1..20u8 {
        let secret = key(byte);
        let plain = PublicKey::from_bytes(client.to_montgomery().0);
        let want = sealed(&shared(&plain, &secret).unwrap(), nonce, b"x");
        for torsion in EIGHT_TORSION {
            let point: MontgomeryPoint = (client + torsion).to_montgomery();
            let key = shared(&PublicKey::from_bytes(point.0), &secret).unwrap();
            assert_eq!(sealed(&key, nonce, b"x"), want, "key {byte}");
        }
    }
    for torsion in EIGHT_TORSION {
        let key_alone = PublicKey::from_bytes(torsion.to_montgomery().0);
        assert!(key_alone.is_low_order());
        assert!(shared(&key_alone, &key(1)).is_err());
    }
}

/// Captured traffic between two libzmq sockets: its boxes can be opened with the server's key, and
/// MESSAGE is not a command frame on the wire.
#[test]
fn libzmqs_recorded_welcome_opens_and_its_frames_have_the_sizes_of_rfc_26() {
    let read = |name: &str| {
        let root = env!("CARGO_MANIFEST_DIR");
        std::fs::read(format!("{root}/tests/data/zmtp/{name}")).unwrap()
    };
    let index: serde_json::Value = serde_json::from_slice(&read("index.json")).unwrap();
    let sessions = index["sessions"].as_array().unwrap();
    let session = sessions.iter().find(|session| session["name"] == "curve");
    let secret = session.unwrap()["server_secret_z85"].as_str().unwrap();
    let secret: SecretKey = secret.parse().unwrap();
    let (client, server) = (read("curve.client.bin"), read("curve.server.bin"));
    let transient = PublicKey::from_bytes(*client[64 + 2 + 80..].first_chunk().unwrap());
    let key = shared(&transient, &secret).unwrap();
    let hello_nonce = u64::from_be_bytes(*client[64 + 2 + 112..].first_chunk().unwrap());
    let hello = &client[64 + 2 + 120..][..80];
    let hello = open(&key, short_nonce(NONCE_HELLO, hello_nonce), hello);
    assert_eq!(hello, Some(vec![0; 64]));
    let welcome = &server[64 + 2..][..168];
    let nonce = long_nonce(NONCE_WELCOME, welcome[8..].first_chunk().unwrap());
    let welcome = open(&key, nonce, &welcome[24..]).unwrap();
    assert_eq!(welcome.len(), KEY_SIZE + COOKIE_SIZE);
    let frames: Vec<(u8, u8, &[u8])> = vec![
        (4, 168, b"\x07WELCOME"),
        (4, 65, b"\x05READY"),
        (0, 34, b"\x07MESSAGE"),
    ];
    let mut rest = &server[64..];
    for (flags, size, name) in frames {
        assert_eq!(rest[..2], [flags, size]);
        assert!(rest[2..].starts_with(name));
        rest = &rest[2 + usize::from(size)..];
    }
}
