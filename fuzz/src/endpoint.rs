//! Endpoints: formatting and parsing a parsed endpoint again must give the same endpoint.

use casparian::reactor::Endpoint;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<Endpoint>() {
        Ok(endpoint) => {
            let shown = endpoint.to_string();
            assert_eq!(
                shown.parse::<Endpoint>().as_ref(),
                Ok(&endpoint),
                "{shown:?}"
            );
            let scheme = shown.split("://").next();
            assert_eq!(scheme, text.split("://").next());
            let _ = endpoint.is_local();
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && message.len() < 4096);
        }
    }
}
