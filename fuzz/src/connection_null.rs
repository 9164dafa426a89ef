//! A NULL client and server that receive forged bytes according to a plan.

use casparian::zmtp::Security;

pub fn run(data: &[u8]) {
    crate::connection::run(data, Security::Null, Security::Null, true);
}
