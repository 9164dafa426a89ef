//! The PLAIN mechanism (RFC 24): a user name and a password, sent in plaintext.
//!
//! It is for private networks only: others can read the password on the network.
//!
//! ```text
//! client                                   server
//!   HELLO     user, password   ──▶
//!             ◀──              WELCOME | ERROR
//!   INITIATE  metadata         ──▶
//!             ◀──              READY metadata | ERROR
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Error;
use super::command::encode_ready;
use super::cursor::Cursor;
use super::frame::encode_head;

/// The credentials of a client. The password is in memory only once: clones share it. It is wiped
/// when the last clone is dropped, and is never printed.
#[derive(Clone)]
pub struct PlainClient {
    username: String,
    password: Arc<Zeroizing<String>>,
}

impl PlainClient {
    /// User name and password of at most 255 bytes each; `None` if one is longer.
    pub fn new(username: &str, password: &str) -> Option<Self> {
        (username.len() <= 255 && password.len() <= 255).then(|| PlainClient {
            username: username.to_owned(),
            password: Arc::new(Zeroizing::new(password.to_owned())),
        })
    }
}

impl fmt::Debug for PlainClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlainClient({:?})", self.username)
    }
}

/// The users that a server accepts, with their passwords. Clones share them.
#[derive(Clone, Default)]
pub struct PlainServer {
    users: Arc<BTreeMap<Vec<u8>, Zeroizing<Vec<u8>>>>,
}

impl PlainServer {
    /// Users and passwords of at most 255 bytes each. Longer ones never match, because HELLO cannot
    /// contain them.
    pub fn new<'a>(users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let entry = |(user, password): (&str, &str)| {
            let password = Zeroizing::new(password.as_bytes().to_vec());
            (user.as_bytes().to_vec(), password)
        };
        PlainServer {
            users: Arc::new(users.into_iter().map(entry).collect()),
        }
    }

    /// Whether a user is in both lists with the same password.
    pub(super) fn has_same(&self, other: &PlainServer, user: &str) -> bool {
        let password = self.users.get(user.as_bytes());
        password.is_some() && password == other.users.get(user.as_bytes())
    }

    fn accepts(&self, user: &[u8], password: &[u8]) -> bool {
        self.users
            .get(user)
            .is_some_and(|known| known.as_slice().ct_eq(password).into())
    }
}

impl fmt::Debug for PlainServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlainServer({} users)", self.users.len())
    }
}

fn malformed(what: &'static str) -> Error {
    Error::MalformedCommand { what }
}

/// Appends HELLO.
pub(super) fn encode_hello(out: &mut Vec<u8>, client: &PlainClient) {
    let (user, password) = (client.username.as_bytes(), client.password.as_bytes());
    let size = 8 + user.len() + password.len();
    // If the buffer grew later, a copy of the password would stay in the freed memory.
    out.reserve(size + 9);
    encode_head(out, size, false, true);
    out.extend_from_slice(b"\x05HELLO");
    for text in [user, password] {
        out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(text);
    }
}

/// Reads HELLO and queues WELCOME; returns the user's name.
pub(super) fn answer_hello(
    body: &[u8],
    server: &PlainServer,
    out: &mut Vec<u8>,
) -> Result<String, Error> {
    let mut cursor = Cursor::new(body);
    if cursor.take(6) != Some(b"\x05HELLO") {
        return Err(malformed("HELLO expected"));
    }
    let mut text = |what| {
        let size = cursor.u8().ok_or(malformed(what))?;
        cursor.take(usize::from(size)).ok_or(malformed(what))
    };
    let user = text("HELLO with its user name cut short")?;
    let password = text("HELLO with its password cut short")?;
    if !cursor.is_empty() {
        return Err(malformed("bytes after the password of HELLO"));
    }
    let name = String::from_utf8_lossy(user).into_owned();
    if !server.accepts(user, password) {
        return Err(Error::Unauthorized {
            who: format!("user {name:?}"),
        });
    }
    encode_head(out, 8, false, true);
    out.extend_from_slice(b"\x07WELCOME");
    Ok(name)
}

/// Reads WELCOME and queues INITIATE.
pub(super) fn answer_welcome(body: &[u8], metadata: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    if body != b"\x07WELCOME" {
        return Err(malformed("WELCOME expected, of 8 bytes"));
    }
    encode_head(out, 9 + metadata.len(), false, true);
    out.extend_from_slice(b"\x08INITIATE");
    out.extend_from_slice(metadata);
    Ok(())
}

/// Reads INITIATE and queues READY; returns the client's metadata.
pub(super) fn answer_initiate<'a>(
    body: &'a [u8],
    metadata: &[u8],
    out: &mut Vec<u8>,
) -> Result<&'a [u8], Error> {
    let properties = body
        .strip_prefix(b"\x08INITIATE")
        .ok_or(malformed("INITIATE expected"))?;
    encode_ready(out, metadata);
    Ok(properties)
}
