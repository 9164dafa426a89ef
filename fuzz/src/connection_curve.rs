//! A CURVE client and server that receive forged bytes according to a plan. In some plans a key is
//! not accepted.

use crate::curve_keys::pair;

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
