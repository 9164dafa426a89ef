//! A CURVE client and server that receive forged bytes according to a plan. In some plans a key is
//! not accepted.

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

pub fn run(data: &[u8]) {
    let (wrong, data) = match data.split_first() {
        Some((wrong @ 1..=2, rest)) => (*wrong, rest),
        _ => (0, data),
    };
    // The client has the wrong server key, so the handshake fails without forged bytes.
    let (client, server) = pair(wrong);
    if wrong == 2 {
        return crate::curve_handshake::refused(data, client, server);
    }
    crate::connection::run(data, client, server, wrong == 0);
}
