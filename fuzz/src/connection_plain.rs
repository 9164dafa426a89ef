//! A PLAIN client and server that receive forged bytes according to a plan. In some plans the
//! password is wrong.

use casparian::zmtp::{PlainClient, PlainServer, Security};

pub fn run(data: &[u8]) {
    let (password, data) = match data.split_first() {
        Some((0, rest)) => ("wrong", rest),
        _ => ("pass", data),
    };
    let client = PlainClient::new("user", password).unwrap();
    let server = PlainServer::new([("user", "pass")]);
    crate::connection::run(
        data,
        Security::PlainClient(client),
        Security::PlainServer(server),
        password == "pass",
    );
}
