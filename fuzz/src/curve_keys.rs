//! The keys of CURVE peers in several targets.

use std::sync::Arc;

use casparian::zmtp::Security;
use casparian::zmtp::curve::{Clients, CurveClient, CurveServer, SecretKey};

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

/// The securities of client and server. `wrong`: 1 = the client's key is not listed, 2 = the client
/// has another server key, 3 = the server accepts any key.
pub(crate) fn pair(wrong: u8) -> (Security, Security) {
    let listed = [(key(2).public(), "client".to_owned())];
    let client = CurveClient {
        secret: key(if wrong == 1 { 3 } else { 2 }),
        server: key(if wrong == 2 { 4 } else { 1 }).public(),
    };
    let server = CurveServer {
        secret: key(1),
        clients: match wrong {
            3 => Clients::Any,
            _ => Clients::Listed(Arc::new(listed.into_iter().collect())),
        },
    };
    (Security::CurveClient(client), Security::CurveServer(server))
}
